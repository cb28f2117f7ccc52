//! Sockets of [smoltcp](https://docs.rs/smoltcp) as ends of splices, for programs with an `Interface` and a
//! `SocketSet` of their own, on any medium.
//!
//! An [`Adapter`] makes a `smoltcp::socket::tcp::Socket` of the set a [`Socket`] of this crate. It can be spliced to
//! another one of the set, or to any other socket: of a stack, of the operating system, in memory. The program keeps
//! its loop, its device and its set, and calls [`Adapter::polled`] after `Interface::poll`. (`Cargo.toml` needs smoltcp
//! 0.14 and the feature `smoltcp` of this crate.)
//!
//! ```
//! use smoltcp::iface::{Config, Interface, SocketSet};
//! use smoltcp::phy::{Loopback, Medium};
//! use smoltcp::socket::tcp;
//! use smoltcp::time::Instant;
//! use smoltcp::wire::{HardwareAddress, IpAddress, IpCidr};
//! use sosplice::{smoltcp::Adapter, splice::{self, Options}};
//!
//! # let mut device = Loopback::new(Medium::Ip);
//! # let mut iface = Interface::new(Config::new(HardwareAddress::Ip), &mut device, Instant::now());
//! # let address = IpAddress::v4(10, 0, 0, 1);
//! # iface.update_ip_addrs(|addresses| addresses.push(IpCidr::new(address, 24)).unwrap());
//! # let mut sockets = SocketSet::new(vec![]);
//! # let mut add = || {
//! #     let buffer = || tcp::SocketBuffer::new(vec![0; 65_536]);
//! #     sockets.add(tcp::Socket::new(buffer(), buffer()))
//! # };
//! # let [inside, outside, client, server] = [(); 4].map(|()| add());
//! # sockets.get_mut::<tcp::Socket>(inside).listen(80)?;
//! # sockets.get_mut::<tcp::Socket>(server).listen(8080)?;
//! # sockets.get_mut::<tcp::Socket>(client).connect(iface.context(), (address, 80), 4000)?;
//! # while !sockets.get::<tcp::Socket>(inside).may_send() {
//! #     iface.poll(Instant::now(), &mut device, &mut sockets);
//! # }
//! # sockets.get_mut::<tcp::Socket>(outside).connect(iface.context(), (address, 8080), 4001)?;
//! # sockets.get_mut::<tcp::Socket>(client).send_slice(b"hello")?;
//! # sockets.get_mut::<tcp::Socket>(client).close();
//! // `inside` has accepted a connection, `outside` connects.
//! let mut adapter = Adapter::new(|| { /* wake the loop below: write to an eventfd, say */ });
//! let (a, b) = (adapter.adopt(&sockets, inside)?, adapter.adopt(&sockets, outside)?);
//! let join = splice::join(a, b, Options::default().forward_eof(true).forward_reset(true))?;
//!
//! loop {
//!     let now = Instant::now();
//!     iface.poll(now, &mut device, &mut sockets);
//!     while adapter.polled(&mut sockets, now) {
//!         iface.poll(now, &mut device, &mut sockets);
//!     }
//!     adapter.remove_finished(&mut sockets);
//! #   if sockets.get::<tcp::Socket>(server).state() == tcp::State::CloseWait {
//! #       break;
//! #   }
//!     let delays = [iface.poll_delay(now, &sockets), adapter.poll_delay(now)];
//!     let delay = delays.into_iter().flatten().min();
//!     // Wait for the device, at most so long, or until the loop is woken.
//! #   let _ = delay;
//! }
//! # assert_eq!((join.bytes(), sockets.get::<tcp::Socket>(server).recv_queue()), ((5, 0), 5));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! `examples/smoltcp_bridge.rs` is a whole program, of which ten lines are the adapter's.
//!
//! # Threads and locks
//!
//! | thread | what it does |
//! |---|---|
//! | the program's, in [`polled`](Adapter::polled) | everything with smoltcp's sockets; copies payload between their buffers and `so_rcv` and `so_snd`; runs the passes of splices that this causes |
//! | any, in a call of a [`Socket`] or a pass of a splice | takes bytes from `so_rcv`, appends to `so_snd`; enters the socket into the adapter's queue; if the queue was empty and the program's thread is not in `polled`, calls `wake` |
//!
//! No other thread ever accesses the set or its sockets. `polled` holds no lock while it copies. Locks: `so_rcv` (2),
//! `so_snd` (3), and the adapter's queue (5), each for a moment. `wake` is called with none held, from any thread; it
//! may be called once too often, never too seldom.
//!
//! # How bytes travel
//!
//! * Received bytes are copied from smoltcp's buffer into a frame, which is appended to `so_rcv`, as far as that has
//!   space. The rest stays in smoltcp's buffer, and so smoltcp's window closes: what a sender can have on its way is
//!   what that buffer and `so_rcv` hold together. When bytes are taken from `so_rcv`, the next `polled` goes on.
//! * A splice moves the frame to the other socket by reference.
//! * Bytes leave `so_snd` in `polled`, when they are copied to smoltcp's send buffer, and thus before they are sent or
//!   acknowledged. So a splice counts bytes that smoltcp has yet to send; if the connection fails then, they are lost,
//!   as those in a kernel's send buffer are.
//! * A shutdown for writing becomes `close` of smoltcp's socket once every byte of `so_snd` is in its buffer, and not
//!   before the connection is established.
//!
//! Both high-water marks are at first the sizes of smoltcp's buffers; [`Socket::set_rcv_hiwat`] and
//! [`Socket::set_snd_hiwat`] change them. Timers are smoltcp's (`set_timeout`, `set_keep_alive`), except one: a socket
//! without a handle whose peer does not end its direction is reset after 60 s in FIN-WAIT-2.
//!
//! # A bound on each poll
//!
//! `Interface::poll` of smoltcp returns when no socket has anything to send, or when the device is full
//! (`Device::transmit` returns `None`). In smoltcp 0.14.0 a TCP socket can come into a state in which it always has an
//! empty segment to send. With a device that is never full, as `Loopback`, a `VecDeque` of packets, or `TunTapInterface`
//! (which drops what the operating system does not accept), that `poll` then does not return, and what it sends fills
//! the memory. The adapter cannot stop it, since it is called after `poll`.
//!
//! So a program that is exposed to peers it does not trust needs a device with a bounded transmit queue: full after so
//! many frames, until the program has sent them. For a device without one, this counts the frames of a poll:
//!
//! ```
//! use smoltcp::phy::{Device, DeviceCapabilities};
//! use smoltcp::time::Instant;
//!
//! struct Bounded<D> {
//!     device: D,
//!     /// Frames that may still be sent in this poll.
//!     left: usize,
//! }
//!
//! impl<D: Device> Device for Bounded<D> {
//!     type RxToken<'a> = D::RxToken<'a> where D: 'a;
//!     type TxToken<'a> = D::TxToken<'a> where D: 'a;
//!
//!     // A received frame is answered with one at most, and so needs no bound.
//!     fn receive(&mut self, now: Instant) -> Option<(D::RxToken<'_>, D::TxToken<'_>)> {
//!         self.device.receive(now)
//!     }
//!
//!     fn transmit(&mut self, now: Instant) -> Option<D::TxToken<'_>> {
//!         self.left = self.left.checked_sub(1)?;
//!         self.device.transmit(now)
//!     }
//!
//!     fn capabilities(&self) -> DeviceCapabilities {
//!         self.device.capabilities()
//!     }
//! }
//! # use smoltcp::iface::{Config, Interface, SocketSet};
//! # use smoltcp::phy::{Loopback, Medium};
//! # use smoltcp::socket::tcp;
//! # use smoltcp::wire::{HardwareAddress, IpAddress, IpCidr};
//! # let mut device = Bounded { device: Loopback::new(Medium::Ip), left: 0 };
//! # let mut iface = Interface::new(Config::new(HardwareAddress::Ip), &mut device, Instant::ZERO);
//! # let address = IpAddress::v4(10, 0, 0, 1);
//! # iface.update_ip_addrs(|addresses| addresses.push(IpCidr::new(address, 24)).unwrap());
//! # let mut sockets = SocketSet::new(vec![]);
//! # let mut add = || {
//! #     let buffer = || tcp::SocketBuffer::new(vec![0; 65_536]);
//! #     sockets.add(tcp::Socket::new(buffer(), buffer()))
//! # };
//! # let handles = [(); 20].map(|()| add());
//! # for (handle, port) in handles.iter().zip(4000..) {
//! #     let socket = sockets.get_mut::<tcp::Socket>(*handle);
//! #     socket.connect(iface.context(), (IpAddress::v4(10, 0, 0, 2), 80), port)?;
//! # }
//! # let mut polls = 0;
//!
//! loop {
//!     device.left = 8;
//!     iface.poll(Instant::ZERO, &mut device, &mut sockets);
//!     // `adapter.polled` and so on, and other work of the program, before the next poll.
//! #   polls += 1;
//! #   if iface.poll_delay(Instant::ZERO, &sockets) != Some(smoltcp::time::Duration::ZERO) {
//! #       break;
//! #   }
//! }
//! # assert_eq!(polls, 3, "twenty connections dial");
//! # Ok::<(), tcp::ConnectError>(())
//! ```
//!
//! (A program uses a larger bound: a thousand, say.) Then the faulty connection costs a bounded time and a bounded number
//! of frames in each poll, others go on, and [`abort`](Socket::abort) ends it. The stack of this crate is
//! not affected, since its TCP is another one; it uses smoltcp for wire formats.
//!
//! One more fault of smoltcp 0.14.0 loses data: when a socket has advertised a larger window in a zero-window probe only,
//! and the peer's last segment uses that, the end of that segment is dropped and its FIN accepted. No call prevents it. A
//! protocol whose messages have a length finds the missing bytes.
//!
//! # How connections end
//!
//! smoltcp has one state, `CLOSED`, for all ends. The adapter knows the one before, and tells them apart:
//!
//! | smoltcp | the [`Socket`] |
//! |---|---|
//! | the peer's FIN (`CLOSE-WAIT`, `CLOSING`, `LAST-ACK`, `TIME-WAIT`), all bytes before it taken | end of file |
//! | `TIME-WAIT`, after whose end smoltcp drops unread bytes | they are appended to `so_rcv`, beyond its high-water mark if need be |
//! | `CLOSED`, both FINs there and the send buffer empty | orderly end, no error |
//! | `CLOSED` before | received bytes can be read, then `ConnectionReset` |
//! | `CLOSED` after `SYN-SENT` | `ConnectionRefused` |
//! | `CLOSED`, and nothing of the peer was seen for the time of `set_timeout` | `TimedOut` |
//! | `CLOSED` by the program's own `abort`, seen before the reset was sent | `ConnectionAborted` |
//! | `LISTEN`, after a reset in `SYN-RECEIVED` | `ConnectionReset` |
//! | `close` by the program | writing ends; if bytes were in `so_snd`, the connection is reset, since its end would look complete |
//! | the socket is no longer in the set, or another one has its place | [`SoError::SocketRemoved`]; the other one is not touched |
//!
//! | [`Socket`] or adapter | smoltcp |
//! |---|---|
//! | [`abort`](Socket::abort), or closed with unread bytes, or while it connects | `abort`: a reset |
//! | closed otherwise | `close`, when the bytes of `so_snd` are in its buffer; a reset if bytes arrive later |
//! | the adapter is dropped | nothing: the socket is the program's again. Its [`Socket`] gets [`SoError::AdapterDropped`], and can read what it has received |
//! | `polled` is not called any more | nothing moves; splices end by their idle time, reads and writes by their timeouts |
//!
//! What cannot be known, because smoltcp does not tell:
//!
//! * a reset in LAST-ACK after the last byte was acknowledged from the acknowledgement of the FIN: both are an orderly
//!   end;
//! * a timeout from a reset, when the peer has only sent what changes nothing (answers to keep-alives) for the time of
//!   `set_timeout`: `TimedOut`;
//! * a refusal from a reset after a handshake, both between two calls of `polled` and without a byte:
//!   `ConnectionRefused`;
//! * an `abort` of the program, and an address that the interface has lost, from a reset, once `poll` was called:
//!   `ConnectionReset`;
//! * a socket that was removed and replaced by another one with the same addresses and ports and in a later state,
//!   between two calls of `polled`;
//! * a socket that was removed and replaced by a closed one, which the program is yet to connect, from a reset:
//!   `ConnectionReset`, and [`Adapter::finished`] returns the handle, which is the new socket's. A program that
//!   removes an adopted socket itself calls `polled` before it adds another one: then it is
//!   [`SoError::SocketRemoved`], and the new socket is left alone.
//!
//! So the program leaves an adopted socket alone, but for its settings, until [`Adapter::finished`] returns it; and
//! calls `polled` after every `poll`, with the same time.

mod connection;
mod port;
#[cfg(test)]
mod tests;
#[cfg(test)]
#[path = "../tests/support/smoltcp_wire.rs"]
mod wire;

use crate::buf;
use crate::error::SoError;
use crate::protocol::SocketEnd;
use crate::run_list::{self, Budget};
use crate::socket::Socket;
use connection::Connection;
use port::{Port, Requests};
use smoltcp::iface::{SocketHandle, SocketSet};
use smoltcp::socket::AnySocket;
use smoltcp::socket::tcp::{self, State};
use smoltcp::time::{Duration, Instant};
use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;

/// Makes sockets of one `SocketSet` ends of splices. See the [module](self).
///
/// It belongs to the thread that has the set. Dropping it ends its connections for this crate, and leaves smoltcp's
/// sockets as they are.
pub struct Adapter {
    /// In the order of their handles.
    connections: Vec<(SocketHandle, Connection)>,
    requests: Arc<Requests>,
    finished: VecDeque<SocketHandle>,
    /// Those to be served in a call, which keep their memory from one to the next.
    due: Vec<SocketHandle>,
}

/// Why a socket was not adopted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AdoptError {
    /// The set has no socket of this handle.
    #[error("the set has no socket {0}: adopt a socket with the set that it was added to")]
    NotInSet(SocketHandle),
    /// The socket is not for TCP.
    #[error("socket {0} is not a TCP socket, only these can be spliced")]
    NotTcp(SocketHandle),
    /// The socket is not connected.
    #[error("socket is in state {0}: connect it, or wait until it has accepted a connection")]
    NotConnected(State),
    /// The socket was adopted before.
    #[error("socket {0} is adopted already: use a clone of the Socket that was returned")]
    Adopted(SocketHandle),
}

impl Adapter {
    /// An adapter for one set. `wake` makes the program's loop call [`polled`](Self::polled) soon; it is called from any
    /// thread that has work for it, with no lock held, and must not wait. A loop that never waits for longer than it
    /// likes to be late needs none.
    ///
    /// ```
    /// use sosplice::smoltcp::Adapter;
    /// let looping = std::thread::current(); // which waits in park_timeout
    /// let adapter = Adapter::new(move || looping.unpark());
    /// assert!(!adapter.wants_poll());
    /// ```
    pub fn new(wake: impl Fn() + Send + Sync + 'static) -> Adapter {
        Adapter {
            connections: Vec::new(),
            requests: Arc::new(Requests::new(Box::new(wake))),
            finished: VecDeque::new(),
            due: Vec::new(),
        }
    }

    /// Makes a TCP socket of the set, connected or connecting, a [`Socket`]. It stays in the set. If it still
    /// connects, bytes for it are held until it is established.
    ///
    /// ```
    /// use smoltcp::{iface::SocketSet, socket::tcp};
    /// use sosplice::smoltcp::{Adapter, AdoptError};
    /// let mut sockets = SocketSet::new(vec![]);
    /// let buffer = || tcp::SocketBuffer::new(vec![0; 4096]);
    /// let handle = sockets.add(tcp::Socket::new(buffer(), buffer()));
    /// let mut adapter = Adapter::new(|| ());
    /// let error = adapter.adopt(&sockets, handle).unwrap_err();
    /// assert_eq!(error, AdoptError::NotConnected(tcp::State::Closed));
    /// ```
    ///
    /// # Errors
    /// See [`AdoptError`]. A handle of another set is an error if this one has no such socket; otherwise it is that of
    /// a socket here.
    pub fn adopt(
        &mut self,
        sockets: &SocketSet<'_>,
        handle: SocketHandle,
    ) -> Result<Socket, AdoptError> {
        let at = match self.place(handle) {
            Ok(_) => return Err(AdoptError::Adopted(handle)),
            Err(at) => at,
        };
        let mut all = sockets.iter();
        let (_, socket) = all
            .find(|(other, _)| *other == handle)
            .ok_or(AdoptError::NotInSet(handle))?;
        let socket = tcp::Socket::downcast(socket).ok_or(AdoptError::NotTcp(handle))?;
        let state = socket.state();
        let over = matches!(state, State::Closing | State::LastAck | State::TimeWait);
        let ends = socket.local_endpoint().zip(socket.remote_endpoint());
        let ends = ends
            .filter(|_| socket.is_active() && !over)
            .ok_or(AdoptError::NotConnected(state))?;
        let end = SocketEnd::new(socket.recv_capacity().max(1), socket.send_capacity().max(1));
        let addresses = (ends.0.into(), ends.1.into());
        let port = Arc::new(Port::new(
            end.clone(),
            handle,
            addresses,
            self.requests.clone(),
        ));
        let connection = Connection::new(port.clone(), ends, state);
        self.connections.insert(at, (handle, connection));
        Ok(Socket::new(end, port))
    }

    /// Moves payload between smoltcp's buffers and the sockets', runs splices, and closes or resets what is to be
    /// closed or reset: to be called after each `Interface::poll`, with the same time, and when the loop was woken.
    /// Returns whether the interface must be polled at once, because it has something to send. Its work is bounded by
    /// the buffers of smoltcp.
    ///
    /// The set is that of the [adopted](Self::adopt) sockets; with another one they are taken for removed.
    pub fn polled(&mut self, sockets: &mut SocketSet<'_>, now: Instant) -> bool {
        let _at_work = buf::at_work();
        self.requests.begin();
        self.look(sockets, now);
        let mut due = std::mem::take(&mut self.due);
        let mut must_poll = false;
        for handle in due.drain(..) {
            must_poll |= self.serve(handle, sockets, now);
            // The other end of its splice, while its bytes are in the cache.
            while let Some(handle) = self.requests.pop() {
                must_poll |= self.serve(handle, sockets, now);
            }
        }
        self.due = due;
        while let Some(handle) = self.requests.next() {
            must_poll |= self.serve(handle, sockets, now);
        }
        must_poll
    }

    /// Whether [`polled`](Self::polled) is to be called, for a program whose loop cannot be woken.
    pub fn wants_poll(&self) -> bool {
        self.requests.is_waiting()
    }

    /// Time until [`polled`](Self::polled) must be called, if nothing happens; zero if a socket waits for it. `None`
    /// if there is no need. (When the interface must be polled, `Interface::poll_delay` says.)
    pub fn poll_delay(&self, now: Instant) -> Option<Duration> {
        if self.wants_poll() {
            return Some(Duration::ZERO);
        }
        let deadlines = self.connections.iter();
        let next = deadlines.filter_map(|(_, connection)| connection.deadline());
        next.min().map(|deadline| {
            if deadline > now {
                deadline - now
            } else {
                Duration::ZERO
            }
        })
    }

    /// The next socket whose connection has ended and that the adapter no longer uses: the program may remove it from
    /// the set (as [`remove_finished`](Self::remove_finished) does), or use it again. (The [`Socket`] may still have bytes to read.)
    pub fn finished(&mut self) -> Option<SocketHandle> {
        self.finished.pop_front()
    }

    /// Removes from the set all sockets that [`finished`](Self::finished) would return.
    pub fn remove_finished(&mut self, sockets: &mut SocketSet<'_>) {
        for handle in self.finished.drain(..) {
            sockets.remove(handle);
        }
    }

    fn place(&self, handle: SocketHandle) -> Result<usize, usize> {
        let all = &self.connections;
        all.binary_search_by_key(&handle, |(handle, _)| *handle)
    }

    /// Finds the sockets that are to be served, and those that are no longer there.
    fn look(&mut self, sockets: &SocketSet<'_>, now: Instant) {
        let mut all = sockets.iter().peekable();
        let due = &mut self.due;
        self.connections.retain_mut(|(handle, connection)| {
            while all.next_if(|(other, _)| other < handle).is_some() {}
            let socket = all.next_if(|(other, _)| other == handle);
            let socket = socket.and_then(|(_, socket)| tcp::Socket::downcast(socket));
            let Some(socket) = socket.filter(|socket| connection.is_its(socket)) else {
                connection.lose(SoError::SocketRemoved);
                return false;
            };
            if connection.is_due(socket, now) {
                due.push(*handle);
            }
            true
        });
    }

    fn serve(&mut self, handle: SocketHandle, sockets: &mut SocketSet<'_>, now: Instant) -> bool {
        // A request may be older than the end of its connection.
        let Ok(at) = self.place(handle) else {
            return false;
        };
        let (_, connection) = &mut self.connections[at];
        let socket = sockets.get_mut::<tcp::Socket<'_>>(handle);
        let served = run_list::scope(Budget::DRIVER, || connection.serve(socket, now));
        if served.has_more {
            self.requests.push(handle);
        }
        if served.is_over {
            self.connections.remove(at);
            self.finished.push_back(handle);
        }
        served.must_poll
    }
}

impl Drop for Adapter {
    fn drop(&mut self) {
        let all = self.connections.iter();
        all.for_each(|(_, connection)| connection.lose(SoError::AdapterDropped));
    }
}

impl fmt::Debug for Adapter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Adapter")
            .field("connections", &self.connections.len())
            .field("requests", &self.requests)
            .finish_non_exhaustive()
    }
}
