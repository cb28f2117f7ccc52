//! Ethernet: links of IP packets over transports of frames.
//!
//! * A *transport* is a [`Link`](super::Link) whose packets are Ethernet frames, from the destination address to the
//!   end of the payload, without a checksum (FCS): on Linux [`FrameStream`] and
//!   [`FrameDatagrams`] are Unix sockets in the framing of QEMU, libkrun, passt and vfkit, [`Tap`] is a TAP device, and
//!   [`AfPacket`] any Ethernet interface; [`memory::pair`](super::memory::pair) is a pair in memory. Super-frames and
//!   checksums are left to those that can do it: a TAP device, a packet socket, a pair in memory.
//! * [`Edge`] is a link of IP packets over such a transport, for the network of one guest or of several: it is the guests'
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
//! * [`Host`] is a link of IP packets for a host in a LAN: it finds its neighbours, gateways, and, by DHCPv4 and router
//!   advertisements, its addresses.
//!
//! ```
//! use sosplice::link::ethernet::{Host, HostConfig};
//! use sosplice::{Stack, link::memory};
//! let (transport, _lan) = memory::pair(memory::Config::default().mtu(1514));
//! let config = HostConfig::new("02:00:00:00:00:05".parse()?).dhcp(true).slaac(true);
//! // Its addresses come later: see `Stack::wait_for_address`.
//! let stack = Stack::builder(Host::new(transport, config)?).build()?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! A received frame of any length and content is answered, passed on as an IP packet, or dropped and counted
//! ([`EdgeStats`], [`HostStats`]). A tag of a virtual LAN is removed, or its frame is dropped ([`Vlan`]).

#[cfg(target_os = "linux")]
mod af_packet;
mod carry;
#[cfg(any(target_os = "linux", target_os = "android"))]
mod datagrams;
mod edge;
pub(super) mod frame;
mod host;
mod neighbours;
#[cfg(any(target_os = "linux", target_os = "android"))]
mod socket_file;
#[cfg(any(target_os = "linux", target_os = "android"))]
mod stream;
#[cfg(any(target_os = "linux", target_os = "android"))]
mod tap;
mod wire;
#[cfg(target_os = "linux")]
pub use af_packet::{AfPacket, AfPacketBuilder, AfPacketError, AfPacketStats};
#[cfg(any(target_os = "linux", target_os = "android"))]
pub use datagrams::FrameDatagrams;
pub use edge::{ConfigError, Edge, EdgeConfig, EdgeStats, Guest};
pub use frame::{MAX_FRAME, Mac, ParseMacError, Vlan};
pub use host::{AddressState, Host, HostAddress, HostConfig, HostConfigError, HostStats};
pub use neighbours::{Neighbour, NeighbourState};
#[cfg(any(target_os = "linux", target_os = "android"))]
pub use stream::{FrameStream, StreamStats};
#[cfg(any(target_os = "linux", target_os = "android"))]
pub use tap::Tap;
