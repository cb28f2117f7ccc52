//! Counters of a stack.

use crate::busy::Busy;
use crate::ip::Malformed;
use crate::stack::accept::backlog::Queued;
use crate::stack::driver::queue::Queue;
use crate::stack::udp::UdpTable;
use crate::tcp::conn::Conn;
use crate::tcp::counters::Counter;
use crate::tcp::state::TcpState;
use std::time::{Duration, Instant};

/// Counters of received frames, mainly of those that were dropped.
#[derive(Debug, Default)]
pub(crate) struct Received {
    /// Frames that a link could not receive.
    pub(crate) lost: Counter,
    /// Dropped by the parser, by reason.
    pub(crate) malformed: Counter,
    pub(crate) fragments: Counter,
    pub(crate) reassembled: Counter,
    pub(crate) reassembly_timeouts: Counter,
    pub(crate) reassembly_overlaps: Counter,
    pub(crate) reassembly_evicted: Counter,
    pub(crate) unsupported: Counter,
    pub(crate) bad_checksum: Counter,
    pub(crate) bad_address: Counter,
    /// Not for an address or protocol of this stack.
    pub(crate) stray: Counter,
    /// From an unreachable network.
    pub(crate) unrouted: Counter,
    /// ICMP errors about received packets: sent, and suppressed by the rate limit.
    pub(crate) icmp_errors_sent: Counter,
    pub(crate) icmp_errors_limited: Counter,
    /// Taken by the hook for unhandled frames.
    pub(crate) claimed: Counter,
    /// Records in TIME-WAIT replaced by an active open.
    pub(crate) time_wait_reused: Counter,
    /// SYNs dropped beyond a backlog.
    pub(crate) backlog_full: Counter,
    /// Connections beyond the stack's limit, active and passive.
    pub(crate) connections_refused: Counter,
    /// Connections beyond the limit of each peer.
    pub(crate) peers_refused: Counter,
    /// SYNs beyond the stack's limit of half-open connections.
    pub(crate) half_open_full: Counter,
    /// SYNs beyond a backlog that were answered with a cookie.
    pub(crate) cookies_sent: Counter,
    /// SYNs not answered with a cookie until they are repeated.
    pub(crate) cookies_withheld: Counter,
    /// Connections that began with a cookie.
    pub(crate) cookies_accepted: Counter,
    /// Valid TCP segments.
    pub(crate) segments: Counter,
    pub(crate) bytes: Counter,
}

impl Received {
    pub(crate) fn dropped(&self, why: Malformed) -> &Counter {
        match why {
            Malformed::Header => &self.malformed,
            Malformed::Fragment => &self.fragments,
            Malformed::Protocol | Malformed::Parameter { .. } => &self.unsupported,
            Malformed::Checksum => &self.bad_checksum,
            Malformed::Address => &self.bad_address,
        }
    }
}

/// A snapshot of the counters of a receive queue.
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

/// A snapshot of the counters and present quantities of a stack.
///
/// Counters only grow, and wrap around after 2^64. Those with a name in RFC 4022 (TCP-MIB) follow its
/// definitions. A packet that the link cuts into segments, or has put together from several, is one
/// segment here. A connection adds to the counters at the end of each step.
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
    /// Records in TIME-WAIT.
    pub time_wait: usize,
    /// Records dropped early because of their limit.
    pub time_wait_dropped: u64,
    /// Records whose port was reused by a connection from here, since all ports to its destination were
    /// in use.
    pub time_wait_reused: u64,
    /// Frames received, including those that the stack has sent to itself.
    pub frames_received: u64,
    /// Errors of the link that each cost a received frame
    /// ([`ReceiveError::Lost`](crate::link::ReceiveError)).
    pub receive_errors: u64,
    /// Packets that the link refused for good ([`TransmitError::Refused`](crate::link::TransmitError)):
    /// those of connections, which are in [`segments_lost`](Self::segments_lost) too, and answers.
    pub transmit_errors: u64,
    /// Frames dropped because of invalid lengths or versions.
    pub frames_malformed: u64,
    /// IP fragments received (ipReasmReqds of RFC 4293).
    pub frames_fragments: u64,
    /// Packets reassembled (ipReasmOKs).
    pub packets_reassembled: u64,
    /// Packets that were incomplete after 30 s.
    pub reassembly_timeouts: u64,
    /// Packets dropped because their fragments overlap or contradict each other (RFC 5722).
    pub reassembly_overlaps: u64,
    /// Incomplete packets dropped because of a [limit](crate::security#fragments-and-icmp).
    pub reassembly_evicted: u64,
    /// Memory of incomplete packets in bytes.
    pub fragment_memory: usize,
    /// Frames of another protocol than TCP and ICMP, or with IPv6 extension headers or options that ask for
    /// what a stack does not do (see [IP](super#ip)).
    pub frames_unsupported: u64,
    /// Frames with a wrong checksum.
    pub frames_bad_checksum: u64,
    /// Packets from or to an address that no host on the link has, or to port 0, and source-routed
    /// packets: dropped unanswered (see [Addresses and routes](super#addresses-and-routes)).
    pub frames_bad_address: u64,
    /// Frames for other hosts, or ICMP that is not handled.
    pub frames_stray: u64,
    /// Segments without a connection from an unreachable network ([`Route`](crate::stack::Route)),
    /// dropped unanswered.
    pub frames_unrouted: u64,
    /// Frames that the hook ([`Builder::on_unhandled`](crate::stack::Builder::on_unhandled)) took;
    /// otherwise counted only in [`frames_received`](Self::frames_received).
    pub frames_claimed: u64,
    /// Segments sent by connections. (Answers to segments of no connection are not counted.)
    pub segments_sent: u64,
    /// Segments that the link refused for good; TCP retransmits them.
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
    /// SYNs beyond a full backlog that were not answered, since more came in that second than
    /// [`Builder::max_syn_cookies`](crate::stack::Builder::max_syn_cookies): a flood. A client's is answered when it
    /// is repeated, if it is remembered until then. They do not count in [`syns_dropped`](Self::syns_dropped).
    pub syn_cookies_withheld: u64,
    /// Connections begun by an acknowledged cookie.
    pub syn_cookies_accepted: u64,
    /// Times that the link, or the stack's loopback queue, had no room.
    pub link_full: u64,
    /// ICMP errors about a segment of ours that is in flight.
    pub icmp_errors: u64,
    /// Times that an ICMP error lowered the packet size of a connection (RFC 1191, 8201).
    pub mtu_lowered: u64,
    /// ICMP errors about a TCP segment that is not in flight (RFC 5927), or of no connection.
    pub icmp_ignored: u64,
    /// ICMP errors sent about received packets.
    pub icmp_errors_sent: u64,
    /// ICMP errors that were not sent because of the limit: 1,000 a second, and 50 at once.
    pub icmp_errors_limited: u64,
    /// Connections reset because an invariant of this crate was broken: always 0, or a bug.
    pub broken: u64,
    /// Connections that did not begin because of the stack's limit
    /// ([`Builder::max_connections`](crate::stack::Builder::max_connections)): SYNs, and
    /// acknowledgements of cookies, that were dropped, and attempts to connect that failed.
    pub connections_refused: u64,
    /// The same for the limit of each peer
    /// ([`Builder::max_connections_per_peer`](crate::stack::Builder::max_connections_per_peer)): SYNs that were
    /// dropped, and connections that were reset when their handshake was over.
    pub peer_connections_refused: u64,
    /// SYNs beyond the stack's limit of half-open connections
    /// ([`Builder::max_half_open`](crate::stack::Builder::max_half_open)): answered with a cookie or
    /// dropped.
    pub half_open_full: u64,
    /// TCP segments received, with or without a connection, except those dropped by the parser.
    pub segments_received: u64,
    /// Bytes of payload in those, including duplicates and segments that were not acceptable.
    pub bytes_received: u64,
    /// Bytes of payload in the segments sent, including retransmissions.
    pub bytes_sent: u64,
    /// Segments sent that begin before the highest sequence number sent before, for any reason. Probes
    /// of a closed window do not count.
    pub segments_retransmitted: u64,
    /// Bytes of payload in those.
    pub bytes_retransmitted: u64,
    /// Connections begun by this stack (tcpActiveOpens).
    pub active_opens: u64,
    /// Connections begun by peers (tcpPassiveOpens). Excludes cookies that were not acknowledged.
    pub passive_opens: u64,
    /// Connections, active or passive, that ended before they were established: refused, reset, timed
    /// out, cancelled (tcpAttemptFails).
    pub attempts_failed: u64,
    /// Established connections that ended before this side had closed: reset by either side, timed out
    /// (tcpEstabResets).
    pub connections_reset: u64,
    /// Half-open connections, and SYNs that wait for a decision, of all listeners, including SYNs that
    /// were returned to the program, and those of closed listeners.
    pub half_open: usize,
    /// Connections that wait to be accepted, and SYNs that were not returned to the program yet.
    pub accept_queue: usize,
    /// Timers that are armed: at most one for each connection.
    pub timers: usize,
    /// Connections that wait for room in the link, or in the loopback queue.
    pub blocked: usize,
    /// Connections that a thread of the program has left to the driver.
    pub handed_over: usize,
    /// Bytes in receive buffers (`so_rcv`).
    pub receive_queue: usize,
    /// Bytes in send buffers (`so_snd`): not sent yet, or not acknowledged.
    pub send_queue: usize,
    /// Memory of out-of-order data in bytes.
    pub reassembly_memory: usize,
    /// Memory of the connections' buffers in bytes, as of each connection's latest step, and of the receive buffers of
    /// sockets and flows for datagrams.
    pub buffer_memory: usize,
    /// Times that it approached its limit
    /// ([`Builder::max_buffer_memory`](crate::stack::Builder::max_buffer_memory)).
    pub memory_pressures: u64,
    /// Segments whose data was dropped because of that.
    pub segments_pressed: u64,
    /// Datagrams received for a socket or a flow, and put into its buffer ([`MIB`'s](https://www.rfc-editor.org/rfc/rfc4113)
    /// udpInDatagrams).
    pub datagrams_received: u64,
    /// Datagrams of sockets and flows that the link has taken (udpOutDatagrams). Each of a super-frame counts, and one
    /// in fragments once.
    pub datagrams_sent: u64,
    /// Datagrams for no socket, flow or rule (udpNoPorts), that the hook has not taken either; they are in
    /// [`frames_stray`](Self::frames_stray) too. Of udpInErrors the rest are those, and frames that are malformed or
    /// have a wrong checksum.
    pub datagrams_no_port: u64,
    /// Datagrams that found the receive buffer of their socket full, or shut down, or the memory of the stack used up
    /// ([`Builder::max_buffer_memory`](crate::stack::Builder::max_buffer_memory)).
    pub datagrams_dropped: u64,
    /// Datagrams of sockets and flows that were not sent: there was no way to their destination, they were too long,
    /// the link refused them, or the stack's loopback queue was full.
    pub datagrams_unsent: u64,
    /// ICMP errors about a datagram of a socket or a flow. (Those about others are in
    /// [`icmp_ignored`](Self::icmp_ignored).)
    pub datagram_icmp_errors: u64,
    /// Bound sockets for datagrams.
    pub datagram_sockets: usize,
    /// Flows that [`UdpListener`](crate::stack::UdpListener)s have intercepted, accepted or not.
    pub flows: usize,
    /// Those that have begun.
    pub flows_opened: u64,
    /// Datagrams that were dropped since the flow that they would have begun was beyond a limit
    /// ([`FlowOptions`](crate::stack::FlowOptions)).
    pub flows_refused: u64,
    /// Flows that ended because no datagram had passed for their time.
    pub flows_expired: u64,
    pub(super) states: [usize; TcpState::COUNT],
}

impl Stats {
    /// Sockets in this state: connections, listeners ([`Listen`](TcpState::Listen)) and records
    /// ([`TimeWait`](TcpState::TimeWait)). The sum without listeners is
    /// [`connections`](Self::connections) plus [`time_wait`](Self::time_wait).
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

    /// Adds a connection. Locks its buffers one after the other.
    pub(super) fn add_connection(&mut self, conn: &Conn) {
        self.connections += 1;
        self.add_sockets(conn.state(), 1);
        self.reassembly_memory += conn.reassembly_memory();
        let rcv = conn.end.rcv();
        self.receive_queue += rcv.buf.len();
        drop(rcv);
        let snd = conn.end.snd();
        self.send_queue += snd.buf.len();
    }

    /// Adds the counters of datagrams, and the sockets and flows.
    pub(super) fn add_datagrams(&mut self, table: &UdpTable) {
        let counters = &table.counters;
        self.datagrams_received = counters.received.get();
        self.datagrams_sent = counters.sent.get();
        self.datagrams_no_port = counters.no_port.get();
        self.datagrams_dropped = counters.dropped.get();
        self.datagrams_unsent = counters.unsent.get();
        self.datagram_icmp_errors = counters.icmp_errors.get();
        self.datagram_sockets = table.sockets();
        self.flows = table.count();
        self.flows_opened = counters.flows.get();
        self.flows_refused = counters.flows_refused.get();
        self.flows_expired = counters.flows_expired.get();
    }

    pub(super) fn add_listener(&mut self, queued: Queued) {
        self.add_sockets(TcpState::Listen, 1);
        self.half_open += queued.half_open;
        self.accept_queue += queued.waiting;
    }
}

/// Counters of a driver.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct DriverStats {
    /// How long its thread has been awake, in the stack's clock, including time in which another thread
    /// had the processor, time for other stacks of the same thread, and busy polling
    /// ([`Builder::busy_poll`](crate::stack::Builder::busy_poll)). Zero for a driver that the program
    /// calls itself.
    pub busy: Duration,
}

impl DriverStats {
    pub(super) fn new(busy: &Busy, now: Instant) -> DriverStats {
        DriverStats {
            busy: busy.time(now),
        }
    }
}
