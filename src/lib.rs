//! BSD socket splicing (`SO_SPLICE`) for userspace TCP stacks.
//!
//! A splice joins two connections: bytes that one receives are sent by the other one, and the program that
//! owns both is not woken and does not copy them. FreeBSD and OpenBSD have this in their kernels. This
//! crate is the socket layer, the splices and their worker threads for programs with a TCP of their own. It
//! contains one, over TUN devices or links in memory, that keeps positions and no payload (see
//! [which standards hold](stack#tcp-which-standards-hold)).
//!
//! The manual: a [`guide`] to programs, a [`glossary`], [`platforms`], [`behaviour`] beside FreeBSD and OpenBSD, [`endings`]
//! (shutdown), [timers](stack#timers), [`security`], [`performance`], [`scale`], several machines ([`fleet`]),
//! [`experiments`], [`coming_from`] netstack-smoltcp, ipstack, gVisor, lwIP.
//!
//! ```
//! use sosplice::{Stack, TcpListener, TcpStream, link::memory, splice::{Cause, Options}};
//! use std::io::{Read, Write};
//!
//! // client --- proxy (two stacks) --- server
//! let (a, b) = memory::pair(memory::Config::default());
//! let (c, d) = memory::pair(memory::Config::default());
//! let client = Stack::builder(a).address("10.0.1.1/24".parse()?).build()?;
//! let front = Stack::builder(b).address("10.0.1.2/24".parse()?).build()?;
//! let back = Stack::builder(c).address("10.0.2.2/24".parse()?).build()?;
//! let server = Stack::builder(d).address("10.0.2.1/24".parse()?).build()?;
//!
//! let service = TcpListener::bind(&server, "10.0.2.1:80")?;
//! let proxy = TcpListener::bind(&front, "10.0.1.2:80")?;
//! let mut user = TcpStream::connect(&client, "10.0.1.2:80")?;
//! let (inside, _) = proxy.accept()?;
//! let outside = TcpStream::connect(&back, "10.0.2.1:80")?;
//!
//! let up = inside.splice_to(&outside, Options::default())?;
//! outside.splice_to(&inside, Options::default().limit(4))?;
//!
//! user.write_all(b"ping")?;
//! user.shutdown(std::net::Shutdown::Write)?;
//! let end = up.wait();
//! assert_eq!((end.cause, end.bytes), (Cause::Eof, 4));
//! outside.shutdown(std::net::Shutdown::Write)?;
//!
//! let (mut at_server, _) = service.accept()?;
//! let mut request = String::new();
//! at_server.read_to_string(&mut request)?;
//! at_server.write_all(b"pong")?;
//! let mut answer = [0; 4];
//! user.read_exact(&mut answer)?;
//! assert_eq!((request.as_str(), &answer), ("ping", b"pong"));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # The map
//!
//! | module | contents |
//! |---|---|
//! | [`splice`] | splices: options, ends, the pool of worker threads |
//! | [`sockopt`] | the option as bytes: `setsockopt` and `getsockopt` of both kernels |
//! | [`socket`] | a program's socket: blocking and non-blocking I/O, shutdown, close, upcalls |
//! | [`socket::poller`] | waiting for many sockets and listeners at once, level- or edge-triggered; ends of splices are events |
//! | [`protocol`] | the interface between a socket and its protocol (`protosw`), for other stacks |
//! | [`sockbuf`], [`buf`] | socket buffers, and the chains of reference-counted buffers (mbufs) in them |
//! | [`local`] | pairs of sockets in memory, for streams and for datagrams: the reference protocols |
//! | `kernel` | the operating system's connections (TCP, unix sockets, vsock), UDP sockets and ping sockets as sockets |
//! | `smoltcp` | TCP sockets of a program's own smoltcp `SocketSet` as sockets |
//! | [`stack`] | a TCP/IP stack over one link: addresses, ports, listeners, streams, UDP sockets and flows, pings, the driver thread |
//! | `ip` | the Internet Protocol: headers, fragments, ICMP errors, answers to pings (private) |
//! | `tcp` | one connection: control block, store, service step (private) |
//! | `udp` | one UDP socket or flow, or the pings of one client (private) |
//! | [`link`] | sources and destinations of packets: in memory, TUN devices, Ethernet: hosts in a LAN, gateways of virtual machines |
//! | [`clock`], [`error`] | time, errors |
//! | `lock` | ranked locks (private) |
//! | `sync` | locks, atomics and threads: `std`'s, or [loom](https://docs.rs/loom)'s for the models (private) |
//!
//! Arrows mean "uses"; none points upwards (`tests/arrows.rs`):
//!
//! ```text
//!   sockopt ──> splice ──> socket ──> protocol ──> sockbuf ──> buf
//!                          local  ──────┘ │
//!                          stack ──> tcp ─┘
//!                            ├───────┼───> ip
//!                            └───────┴─────┴────> link ──────> buf
//! ```
//!
//! The socket layer does not use splices (it offers an upcall that diverts a buffer), splices use neither
//! stack nor TCP. [smoltcp](https://docs.rs/smoltcp) is a peer and a twin in tests and
//! benchmarks; `kernel` and `smoltcp` are protocols, as `local` is.
//!
//! # How a byte travels
//!
//! 1. The driver reads a frame from the link. Its headers are parsed once; the connection is found by
//!    a hash look-up.
//! 2. The connection's *control block* decides by RFC 9293, 5961 and 7323 which part of the segment is
//!    acceptable. It keeps sequence numbers, windows and timers; of the payload it has only position and length.
//! 3. The payload stays in its frame; a reference to it is appended to `so_rcv`. Out-of-order data waits until
//!    the hole before it is filled, and is reported to the peer (SACK).
//! 4. An upcall notifies the splice, and one of its passes moves the reference from `so_rcv` to the `so_snd` of
//!    the other socket.
//! 5. That socket's control block emits a header and a range of positions. The range picks the
//!    references out of `so_snd`, and the link sends header and payload with one gathering write.
//! 6. When the range is acknowledged, the last reference is dropped, and the frame returns to its pool.
//!
//! The bytes stay counted in the receiving connection's window until the splice has moved them, so
//! back-pressure is exact from one end to the other.
//!
//! # Threads
//!
//! * Each stack has a *driver*, a thread that receives, runs timers, and sends the answers to received
//!   segments; one for each receive queue, if its link has several ([`Stack::with_queues`]).
//! * A [`SplicePool`] has *workers*. While a receiving thread keeps up, it moves the bytes of splices itself,
//!   after its batch; while it lags behind, the splice's worker moves them, so that receiving and sending
//!   overlap. [`Dispatch`](splice::Dispatch) can fix either way.
//!   One thread can receive for several stacks ([`stack::Driver::run_all`]).
//! * A thread of the program sends in its own calls, and waits in them unless the socket is non-blocking.
//! * A simulator needs no threads: it runs stacks, pools and clocks itself
//!   ([`stack::Builder::build_with_driver`], [`splice::Builder::manual`], [`clock::Clock`]).
//!
//! # Callbacks
//!
//! Callbacks do not nest: a callback may call the library, and further callbacks that become due there are
//! called when it has returned, in the same thread, in order. So the stack of a thread does not grow with
//! callbacks, whatever peers do. In return a callback must not wait for another one.
//!
//! | code of the program | thread that calls it |
//! |---|---|
//! | [`Splice::on_end`], the wakers of `Splice::ended` | the one that ends the splice |
//! | the wakers of sockets | the one that delivers the bytes or the space, or the thread for wakers |
//! | subscribers of events (below) | the one that reports the event |
//! | the hook for frames ([`stack::Builder::on_unhandled`]) | the driver's |
//! | destructors of values in upcalls and wakers of a closed socket | the one that closes the socket |
//! | [upcalls](protocol::Upcall) | any, under a buffer's lock: they must call nothing; [`closing`](protocol::Upcall::closing): the one that closes the socket |
//!
//! The wakers of sockets are not delayed by a running callback: meanwhile the thread for wakers calls them, so a
//! callback may wait for a task of another thread. After 64 callbacks in a row, each caused by the one before,
//! those for ends are called by the worker of the splice, so that the thread can do its other work. A [`Poller`]
//! calls no code of the program.
//!
//! # Counters, tables and events
//!
//! * Counters, queues and memory of a stack ([`Stack::stats`], [`Stack::driver_stats`]) and of a pool
//!   ([`SplicePool::stats`], [`SplicePool::worker_stats`]).
//! * Threads that make no progress, for a watchdog ([`Stack::probe`], [`SplicePool::probe`]).
//! * Lists like netstat's: [`Stack::sockets`] and [`SplicePool::splices`], and both as tables
//!   ([`stack::SocketTable`], [`splice::SpliceTable`]).
//! * Events of [tracing](https://docs.rs/tracing) about life cycles, never about a segment or a pass:
//!
//! | target | level | events |
//! |---|---|---|
//! | `sosplice::stack` | info | stack up, stack down (with the reason: link gone, driver dropped, no handle left), listener bound, listener closed |
//! | `sosplice::stack` | warn | link gone; at most once a second: frame lost and packet lost (with the link's error), and SYN dropped, SYN answered with a cookie, segment dropped, because a backlog is full |
//! | `sosplice::tcp` | debug | connecting, peer is connecting, connection established, in TIME-WAIT, ended, failed (with the error, and whether it had been established) |
//! | `sosplice::splice` | debug | splice set up; splice ended, with its cause and bytes |
//!
//! A subscriber runs in the thread that reports the event, with no lock held, and may use every
//! socket, but in the thread of a driver or a worker it must not wait for one. Events that its own calls, or
//! those of other callbacks, cause are reported afterwards. If it panics in a driver's thread, the stack goes
//! down.
//!
//! # Locks
//!
//! A thread takes only locks of higher rank than it holds, and one of each rank: a connection's
//! ownership (1), `so_rcv` (2), `so_snd` (3), a splice's state (4), tables and queues (5), free
//! frames (6). Protocol methods and user callbacks are entered with none held. Builds with debug
//! assertions check it; the source of `lock` has the reasons.
//!
//! # Features
//!
//! None is on by default.
//!
//! | feature | adds |
//! |---|---|
//! | `async` | futures: `Splice::ended`, `Join::ended`, `TcpListener::accept_async`, `ConditionalListener::pending_async`, `TcpSocket::connect_async`, `UdpListener::accept_async`, `UdpSocket::recv_from_async` and its like; `Socket::poll_recv`, `Socket::poll_recv_datagram` and their like |
//! | `futures-io` | the traits of `futures-io` for all sockets |
//! | `tokio` | tokio's traits for all sockets (its runtime is not needed) |
//! | `conformance` | a suite of cases for the sockets of any protocol |
//! | `tun-rs` | `link::tun_rs`: a link over devices of tun-rs |
//! | `smoltcp` | the module `smoltcp`: sockets of programs with plain smoltcp as ends of splices |
//!
//! `link::tun`, the transports of `link::ethernet` and `kernel` need the kernel of Linux or Android; the rest is portable
//! ([`platforms`]).
//!
//! # Not supported
//!
//! Multicast sockets (a [host](link::ethernet::Host) joins groups, for
//! [`Builder::on_unhandled`](stack::Builder::on_unhandled)), raw sockets, KTLS; of TCP, Fast Open
//! and urgent data ([list](stack#tcp-which-standards-hold)).

mod affinity;
#[doc = include_str!("doc/differences.md")]
#[doc = "\n\n# Row by row\n\n"]
#[doc = include_str!("doc/behaviour.md")]
pub mod behaviour {}
pub mod buf;
mod busy;
mod callbacks;
#[cfg(test)]
#[path = "../tests/support/cases.rs"]
mod cases;
mod checksum;
pub mod clock;
#[doc = include_str!("doc/coming_from.md")]
pub mod coming_from {}
#[cfg(feature = "conformance")]
pub mod conformance;
mod congestion;
mod counter;
mod end;
#[doc = include_str!("doc/endings.md")]
pub mod endings {}
pub mod error;
mod events;
#[doc = include_str!("doc/experiments.md")]
#[doc = "<div>"]
#[doc = include_str!("doc/soak.svg")]
#[doc = "</div>\n\n# Plots: messages, connections, loss\n\n<div>"]
#[doc = include_str!("doc/messages.svg")]
#[doc = "</div>\n\n<div>"]
#[doc = include_str!("doc/connections.svg")]
#[doc = "</div>\n\n<div>"]
#[doc = include_str!("doc/loss.svg")]
#[doc = "</div>"]
pub mod experiments {}
#[doc = include_str!("doc/fleet.md")]
pub mod fleet {}
#[doc = include_str!("doc/glossary.md")]
pub mod glossary {}
#[doc = include_str!("doc/guide.md")]
pub mod guide {}
mod interest;
mod ip;
mod keep_alive;
#[cfg(any(target_os = "linux", target_os = "android"))]
pub mod kernel;
pub mod link;
pub mod local;
mod lock;
#[cfg(test)]
#[path = "../tests/support/long.rs"]
mod long;
#[doc = include_str!("doc/performance.md")]
pub mod performance {}
#[doc = include_str!("doc/platforms.md")]
pub mod platforms {}
pub mod probe;
pub mod protocol;
mod random;
mod run_list;
#[doc = include_str!("doc/scale.md")]
#[doc = "\n\n# Plot: memory and cost by number of connections\n\n<div>"]
#[doc = include_str!("doc/scale.svg")]
#[doc = "</div>"]
pub mod scale {}
#[doc = include_str!("doc/security.md")]
pub mod security {}
#[cfg(feature = "smoltcp")]
pub mod smoltcp;
pub mod sockbuf;
pub mod socket;
pub mod sockopt;
pub mod splice;
pub mod stack;
mod sync;
mod tcp;
mod text_table;
mod timer;
mod turn;
mod udp;

pub use socket::Socket;
pub use socket::poller::Poller;
pub use splice::{Splice, SplicePool};
pub use stack::{
    ConditionalListener, ConnectionRequest, Intercept, Stack, TcpListener, TcpSocket, TcpStream,
    UdpListener, UdpSocket,
};

/// The examples of the README are tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
mod readme {}
