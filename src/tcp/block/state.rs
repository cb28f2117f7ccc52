//! The state machine of RFC 9293 3.3.2: a pure function, and its whole table as text.
//!
//! The mapping of segments and calls to events is elsewhere ([`tcb`](super::tcb)). A close changes the
//! state at once; the FIN follows the last byte (RFC 9293 3.10.4: "in any case, enter FIN-WAIT-1
//! state").

use crate::tcp::state::TcpState;

/// An event of the state machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Event {
    /// Our active OPEN.
    Connect,
    /// A SYN for a listener.
    Accept,
    /// A SYN without a fitting ACK in SYN-SENT: both open at the same time.
    Syn,
    /// The ACK of our SYN.
    SynAcked,
    /// Our CLOSE.
    Close,
    /// The ACK of our FIN.
    FinAcked,
    /// The peer's FIN in order.
    Fin,
    /// A reset, an abort, a time limit, the end of TIME-WAIT.
    Gone,
}

impl Event {
    #[cfg(test)]
    pub(crate) const ALL: [Event; 8] = [
        Event::Connect,
        Event::Accept,
        Event::Syn,
        Event::SynAcked,
        Event::Close,
        Event::FinAcked,
        Event::Fin,
        Event::Gone,
    ];
}

/// The next state. `None` if the event has no effect in this state.
pub(crate) fn step(state: TcpState, event: Event) -> Option<TcpState> {
    use TcpState::*;
    match event {
        Event::Connect => (state == Closed).then_some(SynSent),
        Event::Accept => matches!(state, Closed | Listen).then_some(SynReceived),
        Event::Syn => (state == SynSent).then_some(SynReceived),
        Event::SynAcked => matches!(state, SynSent | SynReceived).then_some(Established),
        Event::Close => match state {
            Established => Some(FinWait1),
            CloseWait => Some(LastAck),
            // Before the connection is established the call is queued (RFC 9293 3.10.4).
            Closed | Listen | SynSent | SynReceived | FinWait1 | FinWait2 | Closing | LastAck
            | TimeWait => None,
        },
        Event::FinAcked => match state {
            FinWait1 => Some(FinWait2),
            Closing => Some(TimeWait),
            LastAck => Some(Closed),
            Closed | Listen | SynSent | SynReceived | Established | FinWait2 | CloseWait
            | TimeWait => None,
        },
        Event::Fin => match state {
            Established => Some(CloseWait),
            FinWait1 => Some(Closing),
            FinWait2 => Some(TimeWait),
            // The handshake completes before the FIN is processed.
            Closed | Listen | SynSent | SynReceived | CloseWait | Closing | LastAck | TimeWait => {
                None
            }
        },
        Event::Gone => (state != Closed).then_some(Closed),
    }
}

/// States in which the peer may still send data.
pub(crate) fn may_receive(state: TcpState) -> bool {
    use TcpState::*;
    matches!(state, Established | FinWait1 | FinWait2)
}

/// States in which data or FIN of ours may still be sent or acknowledged.
pub(crate) fn may_send(state: TcpState) -> bool {
    use TcpState::*;
    matches!(
        state,
        Established | FinWait1 | CloseWait | Closing | LastAck
    )
}

/// Both SYNs are acknowledged.
pub(crate) fn is_synchronised(state: TcpState) -> bool {
    may_send(state) || matches!(state, TcpState::FinWait2 | TcpState::TimeWait)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fmt::Write;

    const TABLE: &str = include_str!("state.txt");

    /// Every pair of a state and an event.
    #[test]
    fn the_table_is_as_it_is_written() {
        let mut table = format!("{:<12}", "");
        for event in Event::ALL {
            write!(table, "{:<13}", format!("{event:?}")).unwrap();
        }
        for state in TcpState::ALL {
            table = table.trim_end().to_owned();
            write!(table, "\n{state:<12}").unwrap();
            for event in Event::ALL {
                let next = step(state, event).map_or("-".to_owned(), |next| next.to_string());
                write!(table, "{next:<13}").unwrap();
            }
        }
        let table = format!("{}\n", table.trim_end());
        assert!(table == TABLE, "the table is now\n{table}");
    }

    #[test]
    fn events_allowed_by_states() {
        for state in TcpState::ALL {
            assert!(!may_receive(state) || is_synchronised(state));
            let ends = [step(state, Event::FinAcked), step(state, Event::Fin)];
            assert_eq!(ends[1].is_some(), may_receive(state));
            assert!(ends[0].is_none() || may_send(state));
        }
    }
}
