//! The public states of a connection (RFC 9293 3.3.2).

use std::fmt;

/// The state of a TCP connection (RFC 9293 3.3.2). Displayed as in netstat.
///
/// ```
/// use sosplice::stack::TcpState;
/// assert_eq!(TcpState::FinWait2.to_string(), "FIN_WAIT_2");
/// assert_eq!(format!("{:>12}|", TcpState::Closed), "      CLOSED|");
/// assert_eq!(TcpState::ALL.len(), 11);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
#[expect(clippy::exhaustive_enums, reason = "the states of RFC 9293 3.3.2")]
pub enum TcpState {
    /// No connection any more: at most its reset waits for room in the link.
    Closed,
    /// A listener waits for connections.
    Listen,
    /// Our SYN was sent.
    SynSent,
    /// A SYN was received; ours was sent, or is about to be.
    SynReceived,
    /// Both sides may send.
    Established,
    /// We have closed; our FIN is not acknowledged.
    FinWait1,
    /// We have closed, and the peer may send.
    FinWait2,
    /// The peer has closed, and we may send.
    CloseWait,
    /// Both have closed at the same time; our FIN is not acknowledged.
    Closing,
    /// The peer has closed first, then we; our FIN is not acknowledged.
    LastAck,
    /// We have closed first; a record answers for the connection for a while.
    TimeWait,
}

impl TcpState {
    /// Number of states.
    pub const COUNT: usize = 11;

    /// All states, in the order of their numbers.
    pub const ALL: [TcpState; TcpState::COUNT] = [
        TcpState::Closed,
        TcpState::Listen,
        TcpState::SynSent,
        TcpState::SynReceived,
        TcpState::Established,
        TcpState::FinWait1,
        TcpState::FinWait2,
        TcpState::CloseWait,
        TcpState::Closing,
        TcpState::LastAck,
        TcpState::TimeWait,
    ];

    pub(crate) fn number(self) -> u8 {
        self as u8
    }

    /// The state with this number; CLOSED for an unknown one.
    pub(crate) fn of_number(number: u8) -> TcpState {
        let state = TcpState::ALL.get(usize::from(number));
        state.copied().unwrap_or(TcpState::Closed)
    }

    fn name(self) -> &'static str {
        match self {
            TcpState::Closed => "CLOSED",
            TcpState::Listen => "LISTEN",
            TcpState::SynSent => "SYN_SENT",
            TcpState::SynReceived => "SYN_RCVD",
            TcpState::Established => "ESTABLISHED",
            TcpState::FinWait1 => "FIN_WAIT_1",
            TcpState::FinWait2 => "FIN_WAIT_2",
            TcpState::CloseWait => "CLOSE_WAIT",
            TcpState::Closing => "CLOSING",
            TcpState::LastAck => "LAST_ACK",
            TcpState::TimeWait => "TIME_WAIT",
        }
    }
}

impl fmt::Display for TcpState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_places() {
        for (at, state) in (0..).zip(TcpState::ALL) {
            assert_eq!(state.number(), at);
            assert_eq!(TcpState::of_number(at), state);
        }
        assert_eq!(TcpState::of_number(11), TcpState::Closed);
    }
}
