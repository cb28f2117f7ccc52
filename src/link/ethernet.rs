//! Ethernet: links of IP packets over transports of frames.
//!
//! * A *transport* is a [`Link`](super::Link) whose packets are Ethernet frames, from the destination address to the
//!   end of the payload, without a checksum (FCS): [`FrameStream`] and [`FrameDatagrams`] (Linux) are Unix
//!   sockets in the framing of QEMU, libkrun, passt and vfkit, [`memory::pair`](super::memory::pair) a pair in
//!   memory.
//! * [`Edge`] is a link of IP packets over such a transport, for the network of one guest: it is the guest's
//!   gateway. It answers ARP, neighbour discovery and DHCPv4, sends router advertisements, and learns the guest's
//!   hardware address ([`Mac`]).
//!
//! ```
//! use sosplice::link::ethernet::{Edge, EdgeConfig};
//! use sosplice::{Stack, link::memory};
//! let (transport, _guest) = memory::pair(memory::Config::default().mtu(65_549));
//! let edge = Edge::new(transport, EdgeConfig::new("10.0.2.1/24".parse()?, "10.0.2.15".parse()?))?;
//! let stack = Stack::builder(edge).address("10.0.2.1/24".parse()?).build()?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! A received frame of any length and content is answered, passed on as an IP packet, or dropped and counted
//! ([`EdgeStats`]). A tag of a virtual LAN is removed, or its frame is dropped ([`Vlan`]).

#[cfg(target_os = "linux")]
mod datagrams;
mod edge;
mod frame;
#[cfg(target_os = "linux")]
mod stream;
#[cfg(target_os = "linux")]
#[cfg(target_os = "linux")]
pub use datagrams::FrameDatagrams;
pub use edge::{ConfigError, Edge, EdgeConfig, EdgeStats};
pub use frame::{MAX_FRAME, Mac, ParseMacError, Vlan};
#[cfg(target_os = "linux")]
pub use stream::{FrameStream, StreamStats};
