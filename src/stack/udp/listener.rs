//! Intercepting listeners for datagrams: rules, limits, and flows that wait to be accepted.

use crate::error::SoError;
use crate::ip::header::peer_of;
use crate::lock::{Condvar, LEAF, Mutex};
use crate::protocol::{Upcall, Upcalls, Wakeup, is_same};
use crate::socket::poller::{Condition, Pollable, Sealed, Watched};
use crate::stack::Stack;
use crate::stack::accept::backlog::may_wait;
use crate::stack::accept::intercept::{Intercept, Rule};
use crate::stack::udp::{HIWAT, LIMIT, UdpSocket};
use crate::udp::{Timeouts, Transport, Udp};
use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Which datagrams of a client are one flow (RFC 4787 4.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Mapping {
    /// Those to one destination: the flow is a connected socket.
    #[default]
    Flow,
    /// All of one client's address and port, whatever their destinations (endpoint-independent): the flow is an
    /// unconnected socket, and the peer of each datagram is the client's destination. What the program sends goes to
    /// the client in the name of the given peer, also one that the client has never sent to.
    Endpoint,
}

/// How a listener treats flows.
///
/// ```
/// use sosplice::stack::{FlowOptions, Mapping};
/// use std::time::Duration;
/// let options = FlowOptions::default()
///     .mapping(Mapping::Endpoint)
///     .answered_timeout(Duration::from_secs(300))
///     .max_flows_per_client(100);
/// assert_eq!(options.mapping, Mapping::Endpoint);
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct FlowOptions {
    /// Which datagrams of a client are one flow.
    pub mapping: Mapping,
    /// A flow that was never answered ends after this time without a datagram; 30 s by default.
    pub unanswered_timeout: Duration,
    /// One that was answered ends after this time without a datagram in either direction; 180 s by default
    /// (RFC 4787 4.3 asks for two minutes at least).
    pub answered_timeout: Duration,
    /// Most flows of the listener; 16,384 by default. Datagrams that would begin another one are dropped.
    pub max_flows: usize,
    /// Most flows of one client (an IPv4 address, an IPv6 /64); 2,048 by default.
    pub max_flows_per_client: usize,
    /// Most flows that wait to be accepted; 1,024 by default.
    pub backlog: usize,
    /// Payload bytes of each flow's receive buffer, and of its send buffer; 256 KiB by default. A datagram that finds
    /// it full is dropped.
    pub hiwat: usize,
    /// Datagrams of each buffer; 1,024 by default.
    pub records: usize,
}

impl Default for FlowOptions {
    fn default() -> FlowOptions {
        FlowOptions {
            mapping: Mapping::Flow,
            unanswered_timeout: Duration::from_secs(30),
            answered_timeout: Duration::from_secs(180),
            max_flows: 16_384,
            max_flows_per_client: 2048,
            backlog: 1024,
            hiwat: HIWAT,
            records: LIMIT,
        }
    }
}

impl FlowOptions {
    /// Sets [`mapping`](field@Self::mapping).
    #[must_use]
    pub fn mapping(mut self, mapping: Mapping) -> FlowOptions {
        self.mapping = mapping;
        self
    }

    /// Sets [`unanswered_timeout`](field@Self::unanswered_timeout).
    #[must_use]
    pub fn unanswered_timeout(mut self, timeout: Duration) -> FlowOptions {
        self.unanswered_timeout = timeout;
        self
    }

    /// Sets [`answered_timeout`](field@Self::answered_timeout).
    #[must_use]
    pub fn answered_timeout(mut self, timeout: Duration) -> FlowOptions {
        self.answered_timeout = timeout;
        self
    }

    /// Sets [`max_flows`](field@Self::max_flows).
    #[must_use]
    pub fn max_flows(mut self, flows: usize) -> FlowOptions {
        self.max_flows = flows;
        self
    }

    /// Sets [`max_flows_per_client`](field@Self::max_flows_per_client).
    #[must_use]
    pub fn max_flows_per_client(mut self, flows: usize) -> FlowOptions {
        self.max_flows_per_client = flows;
        self
    }

    /// Sets [`backlog`](field@Self::backlog).
    #[must_use]
    pub fn backlog(mut self, flows: usize) -> FlowOptions {
        self.backlog = flows;
        self
    }

    /// Sets [`hiwat`](field@Self::hiwat).
    #[must_use]
    pub fn hiwat(mut self, bytes: usize) -> FlowOptions {
        self.hiwat = bytes;
        self
    }

    /// Sets [`records`](field@Self::records).
    #[must_use]
    pub fn records(mut self, datagrams: usize) -> FlowOptions {
        self.records = datagrams;
        self
    }

    pub(super) fn timeouts(&self) -> Timeouts {
        Timeouts {
            unanswered: self.unanswered_timeout,
            answered: self.answered_timeout,
        }
    }
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Arc<Udp>>,
    /// Flows of each client, those that wait included.
    clients: HashMap<IpAddr, usize>,
    flows: usize,
    upcalls: Upcalls,
    closed: bool,
    down: Option<SoError>,
}

impl fmt::Debug for Queue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Queue")
            .field("waiting", &self.waiting.len())
            .field("flows", &self.flows)
            .field("closed", &self.closed)
            .field("down", &self.down)
            .finish_non_exhaustive()
    }
}

/// The stack's record of a listener.
#[derive(Debug)]
pub(in crate::stack) struct Flows {
    pub(super) rule: Rule,
    pub(super) options: FlowOptions,
    queue: Mutex<Queue, LEAF>,
    changed: Condvar,
    nonblocking: AtomicBool,
}

impl Flows {
    /// Takes a place for a flow of this client, if the limits allow one.
    pub(super) fn reserve(&self, client: IpAddr) -> bool {
        let client = peer_of(client);
        let mut queue = self.queue.lock();
        let of_client = queue.clients.get(&client).copied().unwrap_or(0);
        let room = !queue.closed
            && queue.down.is_none()
            && queue.flows < self.options.max_flows
            && of_client < self.options.max_flows_per_client
            && queue.waiting.len() < self.options.backlog.max(1);
        if room {
            queue.flows += 1;
            queue.clients.insert(client, of_client + 1);
        }
        room
    }

    /// Gives the place of a flow back, and its place in the backlog if it was not accepted.
    pub(super) fn release(&self, client: IpAddr, udp: &Udp) {
        let is_it = |other: &Arc<Udp>| std::ptr::eq(Arc::as_ptr(other), udp);
        let mut queue = self.queue.lock();
        let waits = !udp.attached.load(Ordering::Acquire);
        let at = waits.then(|| queue.waiting.iter().position(is_it));
        let over = at.flatten().and_then(|at| queue.waiting.remove(at));
        queue.flows -= 1;
        if let Some(count) = queue.clients.get_mut(&peer_of(client)) {
            *count -= 1;
            if *count == 0 {
                queue.clients.remove(&peer_of(client));
            }
        }
        drop(queue);
        drop(over);
    }

    /// A new flow, with its first datagram, waits to be accepted. `false` if the listener is closed, or the flow over.
    pub(super) fn offer(&self, udp: &Arc<Udp>) -> bool {
        let upcalls = {
            let mut queue = self.queue.lock();
            // Either its end has found it here, or this sees that it is over.
            if queue.closed || udp.is_over() {
                return false;
            }
            queue.waiting.push_back(udp.clone());
            self.changed.notify_one();
            queue.upcalls.clone()
        };
        upcalls
            .iter()
            .for_each(|upcall| upcall.wakeup(Wakeup::Data));
        true
    }

    /// Flows, and those that wait to be accepted.
    #[cfg(test)]
    pub(in crate::stack) fn counts(&self) -> (usize, usize) {
        let queue = self.queue.lock();
        (queue.flows, queue.waiting.len())
    }

    pub(in crate::stack) fn go_down(&self, why: SoError) {
        let upcalls = {
            let mut queue = self.queue.lock();
            queue.down = Some(why);
            self.changed.notify_all();
            queue.upcalls.clone()
        };
        upcalls
            .iter()
            .for_each(|upcall| upcall.wakeup(Wakeup::RcvClosed));
    }

    fn close(&self) -> VecDeque<Arc<Udp>> {
        let (waiting, upcalls) = {
            let mut queue = self.queue.lock();
            queue.closed = true;
            self.changed.notify_all();
            let waiting = std::mem::take(&mut queue.waiting);
            (waiting, std::mem::take(&mut queue.upcalls))
        };
        upcalls
            .iter()
            .for_each(|upcall| upcall.wakeup(Wakeup::RcvClosed));
        waiting
    }

    pub(in crate::stack) fn accept(&self, nonblocking: bool) -> io::Result<Arc<Udp>> {
        let mut queue = self.queue.lock();
        loop {
            if let Some(udp) = queue.waiting.pop_front() {
                return Ok(udp);
            }
            may_wait(queue.closed, queue.down, nonblocking)?;
            self.changed.wait(&mut queue);
        }
    }
}

impl Watched for Flows {
    fn edit(&self, edit: &mut dyn FnMut(&mut Upcalls)) {
        let mut queue = self.queue.lock();
        if !queue.closed {
            edit(&mut queue.upcalls);
        }
    }

    fn condition(&self, upcall: &dyn Upcall) -> Option<Condition> {
        let queue = self.queue.lock();
        queue.upcalls.iter().find(|other| is_same(other, upcall))?;
        Some(Condition {
            readable: !queue.waiting.is_empty() || queue.down.is_some(),
            read_closed: queue.down.is_some(),
            error: queue.down,
            ..Condition::default()
        })
    }
}

/// Accepts flows of datagrams to the destinations of a rule, whether these are addresses of the stack or not: what a
/// tun2socks tool, a VPN or a sandbox does with UDP.
///
/// Each new flow is an event: [`accept`](Self::accept) returns it as a [`UdpSocket`] with its first datagram to
/// read. Its [`local_addr`](UdpSocket::local_addr) is the original destination. A flow ends when no datagram has
/// passed for a while ([`FlowOptions`]): its socket is then at its end, and so are the splices of it. A client whose
/// flow was closed may begin it anew.
///
/// Handles are cloned. Dropping the last one drops the flows that were not accepted.
///
/// ```
/// use sosplice::stack::{FlowOptions, Intercept, Stack, UdpListener, UdpSocket};
/// use sosplice::link::memory;
/// let (a, b) = memory::pair(memory::Config::default());
/// let stack = Stack::builder(a).address("10.0.0.1/24".parse()?).build()?;
/// let client = Stack::builder(b).address("10.0.0.2/24".parse()?).build()?;
/// let listener = UdpListener::intercept(&stack, Intercept::all().ports(53..=53), FlowOptions::default())?;
/// let query = UdpSocket::bind(&client, "10.0.0.2:0")?;
/// query.send_to(b"query", "203.0.113.53:53")?;
/// let (flow, from) = listener.accept()?;
/// assert_eq!((flow.local_addr(), from), ("203.0.113.53:53".parse()?, query.local_addr()));
/// let mut buffer = [0; 512];
/// assert_eq!(flow.recv(&mut buffer)?, 5);
/// flow.send(b"answer")?;
/// assert_eq!(query.recv_from(&mut buffer)?, (6, "203.0.113.53:53".parse()?));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone)]
pub struct UdpListener {
    open: Arc<Open>,
}

/// An open listener, of one transport.
#[derive(Debug)]
pub(in crate::stack) struct Open {
    pub(super) stack: Stack,
    transport: Transport,
    pub(in crate::stack) flows: Arc<Flows>,
    #[cfg(feature = "async")]
    pub(in crate::stack) tasks: crate::socket::aio::Tasks,
}

impl Open {
    pub(super) fn new(
        stack: &Stack,
        transport: Transport,
        rule: Intercept,
        options: FlowOptions,
    ) -> io::Result<Open> {
        if rule.is_empty() {
            let why = "the range of ports is empty, give at least one port";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
        }
        let shared = stack.shared();
        let flows = Arc::new(Flows {
            rule: Rule::intercepting(rule),
            options,
            queue: Mutex::default(),
            changed: Condvar::new(),
            nonblocking: AtomicBool::new(false),
        });
        shared.datagrams(transport).listen(&flows)?;
        let open = Open {
            stack: stack.clone(),
            transport,
            flows,
            #[cfg(feature = "async")]
            tasks: crate::socket::aio::Tasks::default(),
        };
        // Either the stack that goes down has found the listener, or this finds it down.
        match shared.lifecycle.down.load(Ordering::SeqCst) {
            true => Err(shared.why_down().into()),
            false => Ok(open),
        }
    }

    pub(super) fn accept(&self) -> io::Result<Arc<Udp>> {
        self.flows
            .accept(self.flows.nonblocking.load(Ordering::Relaxed))
    }

    pub(super) fn set_nonblocking(&self, nonblocking: bool) {
        self.flows.nonblocking.store(nonblocking, Ordering::Relaxed);
    }

    pub(super) fn close(&self) {
        let shared = self.stack.shared();
        shared.datagrams(self.transport).unlisten(&self.flows);
        for udp in self.flows.close() {
            udp.finish(None);
        }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.close();
    }
}

impl UdpListener {
    /// Begins to intercept. Of several listeners for a destination the one with the longest prefix comes first, then
    /// the one with the fewest ports; sockets that are bound to an address of the stack come before all.
    ///
    /// # Errors
    /// [`AddrInUse`](io::ErrorKind::AddrInUse) if the rule overlaps one that is as precise,
    /// [`InvalidInput`](io::ErrorKind::InvalidInput) if the range of ports is empty,
    /// [`NetworkDown`](io::ErrorKind::NetworkDown) if the stack is down.
    pub fn intercept(
        stack: &Stack,
        rule: Intercept,
        options: FlowOptions,
    ) -> io::Result<UdpListener> {
        let open = Open::new(stack, Transport::Udp, rule, options)?;
        Ok(UdpListener {
            open: Arc::new(open),
        })
    }

    /// Waits for a new flow, and returns it with its client's address.
    ///
    /// # Errors
    /// [`WouldBlock`](io::ErrorKind::WouldBlock) if there is none and the listener is non-blocking;
    /// [`NetworkDown`](io::ErrorKind::NetworkDown) if there is none and the stack is down.
    pub fn accept(&self) -> io::Result<(UdpSocket, SocketAddr)> {
        Ok(self.accepted(self.open.accept()?))
    }

    pub(in crate::stack) fn accepted(&self, udp: Arc<Udp>) -> (UdpSocket, SocketAddr) {
        let socket = UdpSocket::new(&self.open.stack, udp);
        let client = socket.peer();
        (socket, client)
    }

    #[cfg(feature = "async")]
    pub(in crate::stack) fn open(&self) -> &Open {
        &self.open
    }

    /// An iterator over new flows that never ends.
    pub fn incoming(&self) -> impl Iterator<Item = io::Result<(UdpSocket, SocketAddr)>> + '_ {
        std::iter::repeat_with(|| self.accept())
    }

    /// Whether [`accept`](Self::accept) returns at once if there is no flow.
    pub fn set_nonblocking(&self, nonblocking: bool) {
        self.open.set_nonblocking(nonblocking);
    }

    /// Stops intercepting, for all handles. Accepted flows go on.
    pub fn close(&self) {
        self.open.close();
    }
}

impl Sealed for UdpListener {
    fn watched(&self) -> Arc<dyn Watched> {
        self.open.flows.clone()
    }
}

impl Pollable for UdpListener {}
