//! Pings to destinations that are none of the stack's, as flows of datagrams.

use crate::protocol::Protocol;
use crate::socket::Socket;
use crate::socket::poller::{Pollable, Sealed, Watched, pollable};
use crate::stack::Stack;
use crate::stack::accept::intercept::Intercept;
use crate::stack::udp::listener::{FlowOptions, Flows, Open};
use crate::stack::udp::socket::reason;
use crate::udp::{Transport, Udp};
use std::io;
use std::net::IpAddr;
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// Accepts pings (ICMP and ICMPv6 echo requests) to the destinations of a rule that are no addresses of the stack,
/// whose pings it answers itself.
///
/// Each flow, of one client, destination and identifier, is a [`PingFlow`]: a socket for datagrams, of which each is an
/// echo message from its type on. So a relay is a splice with `kernel::KernelPing`, both ways. Ports of the rule say
/// nothing.
///
/// ```
/// use sosplice::{link::{Link, Packet, memory}, stack::{Intercept, PingListener, Stack}};
/// let (a, b) = memory::pair(memory::Config::default());
/// let stack = Stack::builder(a).address("10.0.0.1/24".parse()?).build()?;
/// let listener = PingListener::intercept(&stack, Intercept::all(), PingListener::options())?;
/// # let request = [0x45, 0, 0, 28, 0, 0, 0, 0, 64, 1, 0x34, 0xde, 10, 0, 0, 2, 203, 0, 113, 1,
/// #     8, 0, 0xf7, 0xf6, 0, 7, 0, 2];
/// # b.transmit(&Packet::new(&request, &[], 20))?; // ping 203.0.113.1 from 10.0.0.2
/// let flow = listener.accept()?;
/// assert_eq!((flow.client().to_string(), flow.destination().to_string()),
///     ("10.0.0.2".into(), "203.0.113.1".into()));
/// let mut message = [0; 1500];
/// let len = flow.recv(&mut message)?;
/// message[0] = 0; // an echo reply
/// flow.send(&message[..len])?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone)]
pub struct PingListener {
    open: Arc<Open>,
}

impl PingListener {
    /// Options for pings: a flow ends after 60 seconds without a message (RFC 5508 3.2), with at most 64 messages in
    /// each buffer.
    pub fn options() -> FlowOptions {
        let minute = Duration::from_secs(60);
        FlowOptions::default()
            .unanswered_timeout(minute)
            .answered_timeout(minute)
            .records(64)
    }

    /// Begins to intercept. Of several listeners for a destination the one with the longest prefix comes first.
    ///
    /// # Errors
    /// [`AddrInUse`](io::ErrorKind::AddrInUse) if the rule overlaps one that is as precise,
    /// [`InvalidInput`](io::ErrorKind::InvalidInput) if the range of ports is empty,
    /// [`NetworkDown`](io::ErrorKind::NetworkDown) if the stack is down.
    pub fn intercept(
        stack: &Stack,
        rule: Intercept,
        options: FlowOptions,
    ) -> io::Result<PingListener> {
        let open = Open::new(stack, Transport::Echo, rule, options)?;
        Ok(PingListener {
            open: Arc::new(open),
        })
    }

    /// Waits for a new flow, and returns it.
    ///
    /// # Errors
    /// [`WouldBlock`](io::ErrorKind::WouldBlock) if there is none and the listener is non-blocking;
    /// [`NetworkDown`](io::ErrorKind::NetworkDown) if there is none and the stack is down.
    pub fn accept(&self) -> io::Result<PingFlow> {
        Ok(self.accepted(self.open.accept()?))
    }

    pub(in crate::stack) fn accepted(&self, udp: Arc<Udp>) -> PingFlow {
        PingFlow::new(&self.open.stack, udp)
    }

    #[cfg(feature = "async")]
    pub(in crate::stack) fn open(&self) -> &Open {
        &self.open
    }

    /// An iterator over new flows that never ends.
    pub fn incoming(&self) -> impl Iterator<Item = io::Result<PingFlow>> + '_ {
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

impl Sealed for PingListener {
    fn watched(&self) -> Arc<dyn Watched> {
        let flows: Arc<Flows> = self.open.flows.clone();
        flows
    }
}

impl Pollable for PingListener {}

/// The pings of one client to one destination, with one identifier: a socket for datagrams (to which it
/// dereferences), each an echo message from its type on. See [`PingListener`].
///
/// Only echo replies can be sent; they get the client's identifier and a new checksum. Other messages are dropped.
#[derive(Debug, Clone)]
pub struct PingFlow {
    socket: Socket,
    udp: Arc<Udp>,
}

impl PingFlow {
    fn new(stack: &Stack, udp: Arc<Udp>) -> PingFlow {
        let protocol: Arc<dyn Protocol> = udp.clone();
        let socket = Socket::new(udp.end.clone(), protocol);
        stack.shared().attach();
        udp.attached.store(true, Ordering::Release);
        PingFlow { socket, udp }
    }

    fn ends(&self) -> (IpAddr, IpAddr) {
        let (destination, client) = self.udp.addresses().expect("invariant: a flow has both");
        (destination.ip(), client.ip())
    }

    /// Whom the client pings.
    pub fn destination(&self) -> IpAddr {
        self.ends().0
    }

    /// Who pings.
    pub fn client(&self) -> IpAddr {
        self.ends().1
    }

    /// Tells the client that the destination cannot be reached, and ends the flow.
    pub fn refuse(self) {
        self.socket.abort();
    }

    /// As [`refuse`](Self::refuse), for the reason that the other side has given:
    /// [`UdpSocket::refuse_with`](crate::UdpSocket::refuse_with).
    pub fn refuse_with(self, why: &io::Error) {
        self.end().set_error(reason(why));
        self.socket.abort();
    }
}

impl Deref for PingFlow {
    type Target = Socket;
    fn deref(&self) -> &Socket {
        &self.socket
    }
}

impl AsRef<Socket> for PingFlow {
    fn as_ref(&self) -> &Socket {
        &self.socket
    }
}

pollable!(PingFlow);
