//! What a stack counts.

use crate::tcp::host::Counter;
use crate::tcp::wire::Malformed;

/// What a stack has received, and what it did not take.
#[derive(Debug, Default)]
pub(crate) struct Received {
    pub(crate) frames: Counter,
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

/// Counters of a stack at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Stats {
    /// Connections, those in TIME-WAIT not counted.
    pub connections: usize,
    /// Connections in TIME-WAIT that are remembered.
    pub time_wait: usize,
    /// Those forgotten early, since there were too many.
    pub time_wait_dropped: u64,
    /// Frames received.
    pub frames_received: u64,
    /// Frames dropped because of lengths or versions that make no sense.
    pub frames_malformed: u64,
    /// IP fragments, which are dropped.
    pub frames_fragments: u64,
    /// Frames of another protocol than TCP and ICMP, or with IPv6 extension headers.
    pub frames_unsupported: u64,
    /// Frames with a wrong checksum.
    pub frames_bad_checksum: u64,
    /// Segments from or to an address or port that no connection has, e.g. multicast.
    pub frames_bad_address: u64,
    /// Frames for nobody here.
    pub frames_stray: u64,
    /// Segments of no connection from where nobody can be reached
    /// ([`Route`](super::Route)), dropped unanswered.
    pub frames_unrouted: u64,
    /// Frames for nobody here that [`Builder::unclaimed`](super::Builder::unclaimed) took; in no other
    /// counter but that of all frames.
    pub frames_claimed: u64,
    /// Segments sent.
    pub segments_sent: u64,
    /// Packets, of those sent, that were sent again because the peer told of a hole (RFC 6675), or to have
    /// it tell (RFC 8985 7). Other retransmissions are not counted.
    pub segments_repaired: u64,
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
    /// ([`Builder::syn_cookies`](super::Builder::syn_cookies)).
    pub syn_cookies_sent: u64,
    /// Connections that began with such an answer.
    pub syn_cookies_accepted: u64,
    /// Times that the link had no room.
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
    /// ([`Builder::max_connections`](super::Builder::max_connections)): SYNs, and acknowledgements of
    /// cookies, that were dropped, and attempts to connect that failed.
    pub connections_refused: u64,
    /// The same for the limit of each peer
    /// ([`Builder::max_connections_per_peer`](super::Builder::max_connections_per_peer)): SYNs that were
    /// dropped, and connections that were reset when their handshake was over.
    pub peer_connections_refused: u64,
    /// SYNs that found as many half-open connections in the stack as there may be
    /// ([`Builder::max_half_open`](super::Builder::max_half_open)): answered with a cookie or dropped.
    pub half_open_full: u64,
    /// Memory that the connections' buffers hold at this moment, in bytes, as of the last time that each
    /// was looked at.
    pub buffer_memory: usize,
    /// Times that it came near its limit
    /// ([`Builder::max_buffer_memory`](super::Builder::max_buffer_memory)).
    pub memory_pressures: u64,
    /// Segments whose text was dropped for that.
    pub segments_pressed: u64,
}
