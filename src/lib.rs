//! BSD socket splicing (`SO_SPLICE`) for userspace TCP stacks.
//!
//! A splice joins two connections: what one receives, the other one sends, and the program that
//! owns both neither wakes up nor touches a byte. FreeBSD and OpenBSD have this in the kernel; this
//! crate is the socket layer, the splices and their worker threads for programs that bring their own
//! TCP. One comes with it, over TUN devices or links in memory: a TCP that keeps positions and no
//! payload (see [which standards hold](stack#tcp-which-standards-hold)).
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
//! outside.splice_to(&inside, Options { limit: Some(4), ..Options::default() })?;
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
//! | module | what it is |
//! |---|---|
//! | [`splice`] | splices: options, ends, the pool of worker threads |
//! | [`behaviour`] | what a splice does beside FreeBSD and OpenBSD, row by row, each with its test |
//! | [`endings`] | what becomes of the rest when a socket, listener, stack, link or pool goes |
//! | [`security`] | what a hostile peer can do, and the limit or rule that holds against it |
//! | [`sockopt`] | the option as bytes: `setsockopt` and `getsockopt` as the kernels have them |
//! | [`socket`] | a user's socket: blocking and non-blocking I/O, shutdown, close, upcalls |
//! | [`socket::poller`] | waiting for many sockets and listeners at once, level- or edge-triggered; ends of splices are events |
//! | [`protocol`] | what a socket and its protocol know of each other (`protosw`): where other stacks plug in |
//! | [`sockbuf`], [`buf`] | socket buffers, and the reference-counted buffers that they are chains of (mbufs) |
//! | [`local`] | a stream pair in memory: the reference protocol |
//! | `kernel` | the operating system's connections as sockets |
//! | [`stack`] | a TCP/IP stack over one link: addresses, ports, listeners, streams, the driver thread |
//! | `tcp` | one connection: control block, store, service step (private) |
//! | [`link`] | where packets come from and go to: in memory, TUN devices |
//! | [`clock`], [`error`], [`lock`] | time, errors, ranked locks |
//! | `sync` | what threads meet at: `std`'s, or [loom](https://docs.rs/loom)'s for the models (private) |
//!
//! Arrows mean "knows"; none goes up:
//!
//! ```text
//!   sockopt ──> splice ──> socket ──> protocol ──> sockbuf ──> buf
//!                          local  ──────┘ │
//!                          stack ──> tcp ─┘
//!                            └───────┴──────────> link ──────> buf
//! ```
//!
//! The socket layer does not know splices (it offers an upcall that diverts a buffer), splices know
//! neither stack nor TCP. Only `tcp` and `stack` know [smoltcp](https://docs.rs/smoltcp), which answers
//! pings, and is a peer and a twin in tests and benchmarks.
//!
//! # How a byte travels
//!
//! 1. The driver reads a frame from the link. Its headers are parsed once; the connection is found by
//!    a hash look-up.
//! 2. The connection's *control block* decides by RFC 9293, 5961 and 7323 what of the segment counts. It
//!    keeps sequence numbers, windows and timers, and sees no payload: only its position and length.
//! 3. The payload stays in the frame that it came in; a reference to it is appended to `so_rcv`.
//!    Out-of-order data waits until the hole before it is filled, and is reported to the peer (SACK).
//! 4. A splice is told, and one of its passes moves the reference from `so_rcv` to the `so_snd` of
//!    the other socket.
//! 5. That socket's control block emits a header and a range of positions. The range picks the
//!    references out of `so_snd`, and the link sends header and payload with one gathering write.
//! 6. When the range is acknowledged, the last reference goes, and the frame returns to its pool.
//!
//! The bytes stay counted in the receiving connection's window until the splice has moved them, so
//! back-pressure is exact from one end to the other.
//!
//! # Threads
//!
//! * Each stack has a *driver* that receives, runs timers, and sends what its segments caused; one for
//!   each receive queue, if its link has several ([`Stack::over`]).
//! * A [`SplicePool`] has *workers*. A splice's worker moves its bytes when the receiving thread lags
//!   behind, so that receiving and sending overlap; while that keeps up it does so itself, after its
//!   batch. [`Dispatch`](splice::Dispatch) has it one way or the other always.
//!   One thread can receive for several stacks ([`stack::Driver::run_all`]).
//! * A user's thread sends in its own calls, and waits in them unless told not to.
//! * A simulator uses none of these: stacks, pools and clocks can be run by hand
//!   ([`stack::Builder::manual`], [`splice::Builder::manual`], [`clock::Clock`]).
//!
//! # What is called back
//!
//! Code of the program's that the library calls does not nest: it may call the library, and what becomes due
//! there is called when it has returned, in the same thread, in order. So the stack of a thread does not
//! grow with what callbacks bring about, whatever peers do. In turn code that is called back must not wait
//! for other code that is.
//!
//! | code | where it is called |
//! |---|---|
//! | [`Splice::on_end`], the wakers of `Splice::ended` | in the thread that ends the splice |
//! | the wakers of sockets | in the thread that brings the bytes or the room, or one for wakers |
//! | subscribers of events (below) | in the thread that has something to tell |
//! | the hook for frames ([`stack::Builder::unclaimed`]) | in the driver |
//! | what is dropped with the upcalls and wakers of a closed socket | where the socket is closed |
//! | [upcalls](protocol::Upcall) | under a buffer's lock, where they call nothing; [`closing`](protocol::Upcall::closing) where the socket is closed |
//!
//! The wakers of sockets do not wait for such code: in it, the thread for wakers calls them, so code that is
//! called back may wait for a task of another thread. After 64 callbacks in a row that each other have brought
//! about, those for ends are called by the worker of the splice, so that the thread gets on with what else it
//! has to do. A [`Poller`] calls nobody.
//!
//! # What an administrator sees
//!
//! * Counters, queues and memory of a stack ([`Stack::stats`], [`Stack::driver_stats`]) and of a pool
//!   ([`SplicePool::stats`], [`SplicePool::worker_stats`]).
//! * What netstat shows: [`Stack::sockets`] and [`SplicePool::splices`], and both as tables
//!   ([`stack::SocketTable`], [`splice::SpliceTable`]).
//! * Events of [tracing](https://docs.rs/tracing), of life cycles and never of a segment or a pass:
//!
//! | target | level | what |
//! |---|---|---|
//! | `sosplice::stack` | info | stack up, stack down (and why: link gone, driver dropped, nobody holds it), listener bound, listener closed |
//! | `sosplice::stack` | warn | link gone; once a second at most: frame lost and packet lost (the link's error), and SYN dropped, SYN answered with a cookie, segment dropped, since a backlog is full |
//! | `sosplice::tcp` | debug | connecting, peer is connecting, connection established, in TIME-WAIT, ended, failed (with the error, and whether it stood) |
//! | `sosplice::splice` | debug | splice set up; splice ended, with its cause and bytes |
//!
//! A subscriber runs in whatever thread has something to tell, with no lock held, and may use every
//! socket, but in the thread of a driver or a worker it must not wait for one. What its own calls, or those
//! of other code that is called back, give to tell is told afterwards. If it panics in a driver's thread,
//! the stack goes down.
//!
//! # Locks
//!
//! A thread takes only locks of higher rank than it holds, and one of each rank: a connection's
//! ownership (1), `so_rcv` (2), `so_snd` (3), a splice's state (4), tables and queues (5), free
//! frames (6). Protocol methods and user callbacks are entered with none held. Builds with debug
//! assertions check it; [`lock`] has the reasons.
//!
//! # Features
//!
//! None is on by default.
//!
//! | feature | what it adds |
//! |---|---|
//! | `async` | `Splice::ended`, a future; `Socket::poll_recv` and its like |
//! | `futures-io` | the traits of `futures-io` for all sockets |
//! | `tokio` | tokio's traits for all sockets (its runtime is not needed) |
//! | `conformance` | the suite that any protocol's sockets are to pass |
//!
//! `link::tun` and `kernel` need Linux; the rest is portable.
//!
//! # What is not done
//!
//! UDP, Ethernet (ARP, neighbour discovery), reassembly of IP fragments; of TCP, urgent data
//! ([list](stack#tcp-which-standards-hold)).

mod affinity;
#[doc = include_str!("doc/differences.md")]
#[doc = "\n\n# Row by row\n\n"]
#[doc = include_str!("doc/behaviour.md")]
pub mod behaviour {}
pub mod buf;
mod busy;
mod callbacks;
pub mod clock;
mod columns;
#[cfg(feature = "conformance")]
pub mod conformance;
mod congestion;
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
#[doc = include_str!("doc/glossary.md")]
pub mod glossary {}
#[doc = include_str!("doc/guide.md")]
pub mod guide {}
mod interest;
mod keep_alive;
#[cfg(target_os = "linux")]
pub mod kernel;
pub mod link;
pub mod local;
pub mod lock;
#[doc = include_str!("doc/performance.md")]
pub mod performance {}
pub mod protocol;
mod run_list;
#[doc = include_str!("doc/scale.md")]
#[doc = "\n\n# Plot: memory and cost by number of connections\n\n<div>"]
#[doc = include_str!("doc/scale.svg")]
#[doc = "</div>"]
pub mod scale {}
#[doc = include_str!("doc/security.md")]
pub mod security {}
pub mod sockbuf;
pub mod socket;
pub mod sockopt;
pub mod splice;
pub mod stack;
mod sync;
mod tcp;
mod timer;

pub use socket::Socket;
pub use socket::poller::Poller;
pub use splice::{Splice, SplicePool};
pub use stack::{DecidingListener, Intercept, Pending, Stack, TcpListener, TcpStream};

/// The examples of the README are tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
mod readme {}
