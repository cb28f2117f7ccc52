//! What a stack counts.

use crate::busy::Busy;
use crate::stack::accept::backlog::Queued;
use crate::stack::driver::queue::Queue;
use crate::tcp::conn::Conn;
use crate::tcp::counters::Counter;
use crate::tcp::state::TcpState;
use crate::tcp::wire::Malformed;
use std::time::{Duration, Instant};

/// What a stack did not take of what it has received.
#[derive(Debug, Default)]
pub(crate) struct Received {
    /// Frames that a link could not receive.
    pub(crate) lost: Counter,
    /// Dropped by the parser, by reason.
    pub(crate) malformed: Counter,
    pub(crate) fragments: Counter,
    pub(crate) unsupported: Counter,
    pub(crate) bad_checksum: Counter,
    pub(crate) bad_address: Counter,
    /// Not for us, or for nobody.
    pub(crate) stray: Counter,
    /// From where nobody can be reached.
    pub(crate) unrouted: Counter,
    /// Taken by the hook for what nobody here claims.
    pub(crate) claimed: Counter,
    /// Records in TIME-WAIT whose place a connection of ours has taken.
    pub(crate) time_wait_reused: Counter,
    /// SYNs beyond a backlog.
    pub(crate) backlog_full: Counter,
    /// Connections, of a peer's or of ours, beyond the stack's limit.
    pub(crate) connections_refused: Counter,
    /// Connections beyond the limit of each peer.
    pub(crate) peers_refused: Counter,
    /// SYNs beyond the stack's limit of half-open connections.
    pub(crate) half_open_full: Counter,
    /// SYNs beyond a backlog that were answered with a cookie.
    pub(crate) cookies_sent: Counter,
    /// Connections that began with a cookie.
    pub(crate) cookies_accepted: Counter,
    /// Segments of TCP that make sense, and their payload.
    pub(crate) segments: Counter,
    pub(crate) bytes: Counter,
}

impl Received {
    pub(crate) fn dropped(&self, why: Malformed) -> &Counter {
        match why {
            Malformed::Header => &self.malformed,
            Malformed::Fragment => &self.fragments,
            Malformed::Protocol => &self.unsupported,
            Malformed::Checksum => &self.bad_checksum,
            Malformed::Address => &self.bad_address,
        }
    }
}

/// Counters of a receive queue of a stack at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct QueueStats {
    /// Frames received, also those that the stack has sent to itself.
    pub frames_received: u64,
    /// Of these, segments of connections whose home is another queue
    /// ([`TcpStream::queue`](crate::TcpStream::queue)).
    pub segments_astray: u64,
    /// Segments sent.
    pub segments_sent: u64,
}

impl QueueStats {
    pub(super) fn of(queue: &Queue) -> QueueStats {
        QueueStats {
            frames_received: queue.frames.get(),
            segments_astray: queue.astray.get(),
            segments_sent: queue.counters.sent.get(),
        }
    }
}

/// Counters of a stack, and what there is at one moment.
///
/// Counters only grow, and wrap around after 2^64. Those that have a name in RFC 4022 (TCP-MIB) are
/// counted as it says. A packet that the link cuts into segments, or has put together from several, is
/// one segment here. A step of a connection adds to the counters when it is over.
///
/// ```
/// use sosplice::stack::TcpState;
/// use sosplice::{Stack, TcpListener, TcpStream, link::memory};
/// let (a, b) = memory::pair(memory::Config::default());
/// let server = Stack::builder(a).address("10.0.0.1/24".parse()?).build()?;
/// let client = Stack::builder(b).address("10.0.0.2/24".parse()?).build()?;
/// let listener = TcpListener::bind(&server, "10.0.0.1:80")?;
/// let stream = TcpStream::connect(&client, "10.0.0.1:80")?;
/// let accepted = listener.accept()?;
/// let stats = client.stats();
/// assert_eq!((stats.active_opens, stats.passive_opens), (1, 0));
/// assert_eq!(stats.in_state(TcpState::Established), 1);
/// assert_eq!(server.stats().in_state(TcpState::Listen), 1);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Stats {
    /// Connections, those in TIME-WAIT not counted.
    pub connections: usize,
    /// Connections in TIME-WAIT that are remembered.
    pub time_wait: usize,
    /// Those forgotten early, since there were too many.
    pub time_wait_dropped: u64,
    /// Those whose port a connection from here has taken, since all ports to its destination were used.
    pub time_wait_reused: u64,
    /// Frames received, also those that the stack has sent to itself.
    pub frames_received: u64,
    /// Errors of the link that each cost a received frame
    /// ([`ReceiveError::Lost`](crate::link::ReceiveError)).
    pub receive_errors: u64,
    /// Packets that the link refused for good ([`TransmitError::Refused`](crate::link::TransmitError)):
    /// those of connections, which are in [`segments_lost`](Self::segments_lost) too, and answers.
    pub transmit_errors: u64,
    /// Frames dropped because of lengths or versions that make no sense.
    pub frames_malformed: u64,
    /// IP fragments, which are dropped.
    pub frames_fragments: u64,
    /// Frames of another protocol than TCP and ICMP, or with IPv6 extension headers.
    pub frames_unsupported: u64,
    /// Frames with a wrong checksum.
    pub frames_bad_checksum: u64,
    /// Packets from or to an address that no host on the link has, or to port 0, and those whose source
    /// has chosen the route: dropped unanswered (see [Addresses and routes](super#addresses-and-routes)).
    pub frames_bad_address: u64,
    /// Frames for nobody here.
    pub frames_stray: u64,
    /// Segments of no connection from where nobody can be reached
    /// ([`Route`](crate::stack::Route)), dropped unanswered.
    pub frames_unrouted: u64,
    /// Frames for nobody here that [`Builder::on_unhandled`](crate::stack::Builder::on_unhandled) took; in no other
    /// counter but that of all frames.
    pub frames_claimed: u64,
    /// Segments sent by connections. (Answers to segments of no connection are not counted.)
    pub segments_sent: u64,
    /// Segments that the link refused for good; TCP sends them again.
    pub segments_lost: u64,
    /// Segments that were not acceptable (RFC 9293, 5961).
    pub segments_refused: u64,
    /// Segments dropped because a connection's backlog was full.
    pub segments_backlog_full: u64,
    /// SYNs dropped because a listener's backlog was full, or the stack had too many half-open
    /// connections.
    pub syns_dropped: u64,
    /// SYNs answered with a cookie because half-open connections filled a listener's backlog
    /// ([`Builder::syn_cookies`](crate::stack::Builder::syn_cookies)).
    pub syn_cookies_sent: u64,
    /// Connections that began with such an answer.
    pub syn_cookies_accepted: u64,
    /// Times that the link, or the queue of what the stack sends to itself, had no room.
    pub link_full: u64,
    /// ICMP errors about a segment of ours that is in flight.
    pub icmp_errors: u64,
    /// Times that a connection sends smaller packets from then on, since an ICMP error said that its
    /// packets are too big (RFC 1191, 8201).
    pub mtu_lowered: u64,
    /// ICMP errors about a TCP segment that is not in flight (RFC 5927), or of no connection.
    pub icmp_ignored: u64,
    /// Connections reset because an invariant of this crate was broken: always 0, or a bug.
    pub broken: u64,
    /// Connections that did not begin because the stack had as many as it may have
    /// ([`Builder::max_connections`](crate::stack::Builder::max_connections)): SYNs, and acknowledgements of
    /// cookies, that were dropped, and attempts to connect that failed.
    pub connections_refused: u64,
    /// The same for the limit of each peer
    /// ([`Builder::max_connections_per_peer`](crate::stack::Builder::max_connections_per_peer)): SYNs that were
    /// dropped, and connections that were reset when their handshake was over.
    pub peer_connections_refused: u64,
    /// SYNs that found as many half-open connections in the stack as there may be
    /// ([`Builder::max_half_open`](crate::stack::Builder::max_half_open)): answered with a cookie or dropped.
    pub half_open_full: u64,
    /// Segments of TCP received, of whatever connection or none, those that are dropped by the parser
    /// not counted.
    pub segments_received: u64,
    /// Bytes of payload in those, also in those that came twice or were not acceptable.
    pub bytes_received: u64,
    /// Bytes of payload in the segments sent, also in those sent again.
    pub bytes_sent: u64,
    /// Segments, of those sent, that begin before the highest sequence number sent until then, whoever
    /// sent them again and why. The probes of a closed window are none.
    pub segments_retransmitted: u64,
    /// Bytes of payload in those.
    pub bytes_retransmitted: u64,
    /// Connections begun by this stack (tcpActiveOpens).
    pub active_opens: u64,
    /// Connections begun by peers (tcpPassiveOpens). Not those whose SYN was answered with a cookie and
    /// nothing came after it.
    pub passive_opens: u64,
    /// Connections, of either kind, that ended before they stood: refused, reset, timed out, given up
    /// (tcpAttemptFails).
    pub attempts_failed: u64,
    /// Connections that stood and ended before this side had closed: reset by either side, timed out
    /// (tcpEstabResets).
    pub connections_reset: u64,
    /// Connections whose handshake is not over, and SYNs that wait to be decided about, of all
    /// listeners. A SYN that was handed out and a listener that was closed still count.
    pub half_open: usize,
    /// Connections that wait to be accepted, and SYNs that wait to be handed out.
    pub accept_queue: usize,
    /// Timers that are armed: at most one for each connection.
    pub timers: usize,
    /// Connections that wait for room in the link, or in the queue of what the stack sends to itself.
    pub blocked: usize,
    /// Connections that a user's thread has left to the driver.
    pub handed_over: usize,
    /// Bytes in receive buffers (`so_rcv`).
    pub receive_queue: usize,
    /// Bytes in send buffers (`so_snd`): not sent yet, or not acknowledged.
    pub send_queue: usize,
    /// Memory, in bytes, of what has arrived ahead of its turn.
    pub ahead_memory: usize,
    /// Memory that the connections' buffers hold at this moment, in bytes, as of the last time that each
    /// was looked at.
    pub buffer_memory: usize,
    /// Times that it came near its limit
    /// ([`Builder::max_buffer_memory`](crate::stack::Builder::max_buffer_memory)).
    pub memory_pressures: u64,
    /// Segments whose text was dropped for that.
    pub segments_pressed: u64,
    pub(super) states: [usize; TcpState::COUNT],
}

impl Stats {
    /// Sockets in this state: connections, listeners ([`Listen`](TcpState::Listen)) and records
    /// ([`TimeWait`](TcpState::TimeWait)). All but the listeners together are
    /// [`connections`](Self::connections) and [`time_wait`](Self::time_wait).
    ///
    /// ```
    /// use sosplice::{Stack, TcpListener, link::memory, stack::TcpState};
    /// let (link, _other) = memory::pair(memory::Config::default());
    /// let stack = Stack::builder(link).address("10.0.0.1/24".parse()?).build()?;
    /// let listener = TcpListener::bind(&stack, "10.0.0.1:80")?;
    /// let stats = stack.stats();
    /// assert_eq!(stats.in_state(TcpState::Listen), 1);
    /// assert_eq!(stats.in_state(TcpState::Established), stats.connections);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn in_state(&self, state: TcpState) -> usize {
        self.states[usize::from(state.number())]
    }

    pub(super) fn add_sockets(&mut self, state: TcpState, count: usize) {
        self.states[usize::from(state.number())] += count;
    }

    /// What a connection adds. Locks its buffers one after the other.
    pub(super) fn add_connection(&mut self, conn: &Conn) {
        self.connections += 1;
        self.add_sockets(conn.state(), 1);
        self.ahead_memory += conn.ahead_memory();
        let rcv = conn.end.rcv();
        self.receive_queue += rcv.buf.len();
        drop(rcv);
        let snd = conn.end.snd();
        self.send_queue += snd.buf.len();
    }

    pub(super) fn add_listener(&mut self, queued: Queued) {
        self.add_sockets(TcpState::Listen, 1);
        self.half_open += queued.half_open;
        self.accept_queue += queued.waiting;
    }
}

/// What a driver has done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct DriverStats {
    /// How long its thread has been at work: not asleep, in real time (that of the stack's clock), also
    /// when another thread had the processor. Of a thread that drives several stacks, and of one that
    /// looks on before it sleeps ([`Builder::busy_poll`](crate::stack::Builder::busy_poll)), all of that. Zero for
    /// a driver whose author calls it.
    pub busy: Duration,
}

impl DriverStats {
    pub(super) fn new(busy: &Busy, now: Instant) -> DriverStats {
        DriverStats {
            busy: busy.time(now),
        }
    }
}
