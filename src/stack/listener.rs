//! Listening: the backlog, and the user's [`TcpListener`].

use crate::error::SoError;
use crate::lock::{Condvar, LEAF, Mutex};
use crate::protocol::{Protocol, SoState, SocketEnd, Upcall, Upcalls, Wakeup, is_same};
use crate::socket::Socket;
use crate::socket::poller::{Condition, Pollable, Sealed, Watched};
use crate::stack::Stack;
use crate::stack::accept::intercept::{Intercept, Rule};
use crate::stack::accept::syn_queue::Key;
use crate::stack::stream::{TcpStream, each};
use crate::tcp::conn::Conn;
use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

#[derive(Default)]
struct Queue {
    ready: VecDeque<Arc<Conn>>,
    /// Held SYNs that nobody was handed yet.
    held: VecDeque<Key>,
    /// Told when a connection is ready, and when the stack is down, after the lock.
    upcalls: Upcalls,
    /// Half-open connections and held SYNs.
    half_open: usize,
    closed: bool,
    /// The stack is down, and why: nobody will come any more.
    down: Option<SoError>,
}

impl fmt::Debug for Queue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Queue")
            .field("ready", &self.ready)
            .field("held", &self.held)
            .field("upcalls", &self.upcalls.len())
            .field("half_open", &self.half_open)
            .field("closed", &self.closed)
            .field("down", &self.down)
            .finish()
    }
}

/// What a listener leaves behind when it is closed.
#[derive(Debug)]
pub(crate) struct Unaccepted {
    pub(crate) ready: VecDeque<Arc<Conn>>,
    pub(crate) held: VecDeque<Key>,
}

/// How long a listener's queues are.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Queued {
    /// Handshakes that are not over, and SYNs that nobody has decided about.
    pub(crate) half_open: usize,
    /// Connections to be accepted, and SYNs to be handed out.
    pub(crate) waiting: usize,
}

/// What the stack knows of a listener.
#[derive(Debug)]
pub(crate) struct Listening {
    pub(crate) rule: Rule,
    /// SYNs are held until the user decides.
    pub(crate) decides: bool,
    /// At least 1.
    backlog: usize,
    queue: Mutex<Queue, LEAF>,
    changed: Condvar,
    nonblocking: AtomicBool,
}

impl Listening {
    pub(crate) fn new(rule: Rule, backlog: usize, decides: bool) -> Listening {
        Listening {
            rule,
            decides,
            backlog,
            queue: Mutex::default(),
            changed: Condvar::new(),
            nonblocking: AtomicBool::new(false),
        }
    }

    /// A SYN may begin a connection: half-open and waiting ones together fit into the backlog.
    pub(crate) fn reserve(&self) -> bool {
        let mut queue = self.queue.lock();
        let room = !queue.closed && queue.half_open + queue.ready.len() < self.backlog;
        queue.half_open += usize::from(room);
        room
    }

    /// A connection whose handshake is over with its first segment may begin: only those that wait
    /// count.
    pub(crate) fn reserve_beyond(&self) -> bool {
        let mut queue = self.queue.lock();
        let room = !queue.closed && queue.ready.len() < self.backlog;
        queue.half_open += usize::from(room);
        room
    }

    /// Whether there is room for connections that wait, were those that are half-open not there.
    pub(crate) fn accepts(&self) -> bool {
        let queue = self.queue.lock();
        !queue.closed && queue.ready.len() < self.backlog
    }

    pub(crate) fn backlog(&self) -> usize {
        self.backlog
    }

    pub(crate) fn queued(&self) -> Queued {
        let queue = self.queue.lock();
        Queued {
            half_open: queue.half_open,
            waiting: queue.ready.len() + queue.held.len(),
        }
    }

    /// A half-open connection has failed.
    pub(crate) fn release(&self) {
        self.queue.lock().half_open -= 1;
    }

    /// A half-open connection stands. `false`: the listener is closed.
    pub(crate) fn ready(&self, conn: &Arc<Conn>) -> bool {
        let upcalls = {
            let mut queue = self.queue.lock();
            queue.half_open -= 1;
            if queue.closed {
                return false;
            }
            queue.ready.push_back(conn.clone());
            self.changed.notify_one();
            queue.upcalls.clone()
        };
        upcalls
            .iter()
            .for_each(|upcall| upcall.wakeup(Wakeup::Data));
        true
    }

    /// A SYN is held. `false`: the listener is closed.
    pub(crate) fn offer(&self, key: Key) -> bool {
        let upcalls = {
            let mut queue = self.queue.lock();
            if queue.closed {
                return false;
            }
            queue.held.push_back(key);
            self.changed.notify_one();
            queue.upcalls.clone()
        };
        upcalls
            .iter()
            .for_each(|upcall| upcall.wakeup(Wakeup::Data));
        true
    }

    /// A SYN is held no longer. It is near the front: the oldest go first.
    pub(crate) fn withdraw(&self, key: Key) {
        let mut queue = self.queue.lock();
        let at = queue.held.iter().position(|other| *other == key);
        at.map(|at| queue.held.remove(at));
    }

    fn close(&self) -> Unaccepted {
        let (unaccepted, upcalls) = {
            let mut queue = self.queue.lock();
            queue.closed = true;
            self.changed.notify_all();
            let upcalls = std::mem::take(&mut queue.upcalls);
            let ready = std::mem::take(&mut queue.ready);
            let held = std::mem::take(&mut queue.held);
            (Unaccepted { ready, held }, upcalls)
        };
        drop(upcalls);
        unaccepted
    }

    /// The stack is down.
    pub(crate) fn go_down(&self, why: SoError) {
        let upcalls = {
            let mut queue = self.queue.lock();
            queue.down = Some(why);
            // Their records are about to go.
            queue.held.clear();
            self.changed.notify_all();
            queue.upcalls.clone()
        };
        upcalls
            .iter()
            .for_each(|upcall| upcall.wakeup(Wakeup::RcvClosed));
    }

    fn accept(&self) -> io::Result<Arc<Conn>> {
        self.wait(|queue| queue.ready.pop_front())
    }

    pub(crate) fn pending(&self) -> io::Result<Key> {
        self.wait(|queue| queue.held.pop_front())
    }

    fn wait<T>(&self, take: impl Fn(&mut Queue) -> Option<T>) -> io::Result<T> {
        let mut queue = self.queue.lock();
        loop {
            if let Some(taken) = take(&mut queue) {
                return Ok(taken);
            }
            if queue.closed {
                let why = "the listener was closed by another thread";
                return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
            }
            if let Some(why) = queue.down {
                return Err(why.into());
            }
            if self.nonblocking.load(Ordering::Relaxed) {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            self.changed.wait(&mut queue);
        }
    }
}

impl Watched for Listening {
    fn edit(&self, edit: &mut dyn FnMut(&mut Upcalls)) {
        let mut queue = self.queue.lock();
        if !queue.closed {
            edit(&mut queue.upcalls);
        }
    }

    fn condition(&self, upcall: &dyn Upcall) -> Option<Condition> {
        let queue = self.queue.lock();
        let mut upcalls = queue.upcalls.iter();
        upcalls.find(|other| is_same(other, upcall))?;
        Some(Condition {
            readable: !(queue.ready.is_empty() && queue.held.is_empty()) || queue.down.is_some(),
            read_closed: queue.down.is_some(),
            error: queue.down,
            ..Condition::default()
        })
    }
}

impl TcpListener {
    /// The stack and what it knows of the listener.
    pub(super) fn parts(&self) -> (&Stack, &Listening) {
        (&self.open.stack, &self.open.listening)
    }
}

impl Sealed for TcpListener {
    fn watched(&self) -> Arc<dyn Watched> {
        self.open.listening.clone()
    }
}

impl Pollable for TcpListener {}

/// A socket that accepts connections, in the shape of [`std::net::TcpListener`].
///
/// Connections whose handshake is not over, and those that wait for [`accept`](Self::accept), count
/// against the backlog. Beyond it SYNs are answered with cookies
/// ([`Builder::syn_cookies`](crate::stack::Builder::syn_cookies)) as long as there is room for those
/// that wait; otherwise they are dropped, and their senders try again.
///
/// Handles are cloned. Dropping the last one resets the connections that nobody has accepted.
///
/// What differs from std in shape: a listener belongs to a [`Stack`], what cannot fail returns no
/// `Result`, and there are no `ttl` and no `take_error`: a listener has no errors but those that
/// [`accept`](Self::accept) returns.
///
/// ```
/// use sosplice::{TcpListener, TcpStream, Stack, link::memory};
/// use std::io::{Read, Write};
///
/// let (a, b) = memory::pair(memory::Config::default());
/// let server = Stack::builder(a).address("10.0.0.1/24".parse()?).build()?;
/// let client = Stack::builder(b).address("10.0.0.2/24".parse()?).build()?;
/// let listener = TcpListener::bind(&server, "10.0.0.1:80")?;
/// let mut to_server = TcpStream::connect(&client, "10.0.0.1:80")?;
/// let (mut from_client, peer) = listener.accept()?;
/// assert_eq!(peer, to_server.local_addr());
/// to_server.write_all(b"hello")?;
/// drop(to_server);
/// let mut text = String::new();
/// from_client.read_to_string(&mut text)?;
/// assert_eq!(text, "hello");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone)]
pub struct TcpListener {
    open: Arc<Open>,
}

/// The listener that all handles share.
#[derive(Debug)]
struct Open {
    stack: Stack,
    listening: Arc<Listening>,
    socket: Socket,
}

/// Connections that wait to be accepted, unless another number is given.
pub const DEFAULT_BACKLOG: usize = 128;

impl TcpListener {
    pub(super) fn new(stack: &Stack, listening: Arc<Listening>) -> TcpListener {
        let end = SocketEnd::new(0, 0);
        end.set_flavor(stack.shared().config.flavor);
        end.cantrcvmore();
        end.cantsendmore();
        TcpListener {
            open: Arc::new(Open {
                stack: stack.clone(),
                listening,
                socket: Socket::new(end, Arc::new(Passive)),
            }),
        }
    }

    /// Listens at an address of the stack; an unspecified one means all of them. Port 0 picks a free
    /// port. Of several addresses the first that can be had; names are resolved by the operating
    /// system.
    ///
    /// # Errors
    /// That of the last address that was tried:
    /// [`AddrNotAvailable`](io::ErrorKind::AddrNotAvailable) if the stack does not have the address,
    /// [`AddrInUse`](io::ErrorKind::AddrInUse) if somebody listens there.
    pub fn bind(stack: &Stack, address: impl ToSocketAddrs) -> io::Result<TcpListener> {
        TcpListener::bind_with_backlog(stack, address, DEFAULT_BACKLOG)
    }

    /// As [`bind`](Self::bind), with a backlog other than [`DEFAULT_BACKLOG`]. 0 counts as 1, here and
    /// wherever a backlog is given.
    ///
    /// # Errors
    /// As for [`bind`](Self::bind).
    pub fn bind_with_backlog(
        stack: &Stack,
        address: impl ToSocketAddrs,
        backlog: usize,
    ) -> io::Result<TcpListener> {
        let listening = each(address, |address| stack.listen(address, backlog, false))?;
        Ok(TcpListener::new(stack, listening))
    }

    /// Accepts connections to the destinations of a rule, whether they are the stack's addresses or
    /// not: what a proxy behind a TUN needs. `local_addr()` of an accepted connection is the original
    /// destination.
    ///
    /// Of several listeners for a destination, bound ones come first, then the intercepting one with
    /// the longest prefix, then the one with the fewest ports.
    ///
    /// The backlog is as for [`bind_with_backlog`](Self::bind_with_backlog): 0 counts as 1.
    ///
    /// # Errors
    /// [`AddrInUse`](io::ErrorKind::AddrInUse) if the rule overlaps one that is as precise,
    /// [`InvalidInput`](io::ErrorKind::InvalidInput) if the range of ports is empty.
    pub fn intercept(stack: &Stack, rule: Intercept, backlog: usize) -> io::Result<TcpListener> {
        let listening = stack.intercept(rule, backlog, false)?;
        Ok(TcpListener::new(stack, listening))
    }

    /// Waits for a connection and returns it with its peer's address.
    ///
    /// # Errors
    /// [`WouldBlock`](io::ErrorKind::WouldBlock) if none is there and the listener is non-blocking;
    /// [`NetworkDown`](io::ErrorKind::NetworkDown) if none is there and the stack is down:
    /// [`SoError::NetworkDown`] or [`SoError::DriverDropped`] is inside.
    pub fn accept(&self) -> io::Result<(TcpStream, SocketAddr)> {
        let conn = self.open.listening.accept()?;
        let stream = TcpStream::new(&self.open.stack, conn);
        let peer = stream.peer_addr();
        Ok((stream, peer))
    }

    /// An iterator over accepted connections that never ends.
    pub fn incoming(&self) -> impl Iterator<Item = io::Result<TcpStream>> + '_ {
        std::iter::repeat_with(|| self.accept().map(|(stream, _)| stream))
    }

    /// The address this listener was bound to, or the network that it intercepts. What is not one
    /// address or one port is zero.
    pub fn local_addr(&self) -> SocketAddr {
        self.open.listening.rule.address()
    }

    /// Whether [`accept`](Self::accept) returns at once when nobody is there.
    pub fn set_nonblocking(&self, nonblocking: bool) {
        self.open
            .listening
            .nonblocking
            .store(nonblocking, Ordering::Relaxed);
    }

    /// Another handle of the same listener: what a clone is, in the shape of std.
    ///
    /// # Errors
    /// None.
    pub fn try_clone(&self) -> io::Result<TcpListener> {
        Ok(self.clone())
    }

    /// Stops listening, for all handles: threads that wait in [`accept`](Self::accept) return with
    /// an error.
    pub fn close(&self) {
        self.open.close();
    }
}

impl Open {
    fn close(&self) {
        let unaccepted = self.listening.close();
        self.stack.unlisten(&self.listening, unaccepted);
    }
}

/// As a socket it is a listening one, which stands among others
/// ([`sockopt::Table`](crate::sockopt::Table)) and says what it is to whoever wants to splice it: no
/// bytes come from it or go to it. Its handles do not keep the listener open.
impl AsRef<Socket> for TcpListener {
    fn as_ref(&self) -> &Socket {
        &self.open.socket
    }
}

/// The protocol of a listening socket: no bytes.
#[derive(Debug)]
struct Passive;

impl Protocol for Passive {
    fn output(&self) {}
    fn rcvd(&self, _idle: bool) {}
    fn abort(&self) {}
    fn detach(&self) {}
    fn name(&self) -> &'static str {
        "tcp"
    }
    fn so_state(&self) -> SoState {
        SoState::Listening
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.close();
    }
}
