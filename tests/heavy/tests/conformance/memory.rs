//! Pairs in memory.

use crate::clock::SetClock;
use sosplice::clock::Clock;
use sosplice::conformance::{Connecting, Factory, Setup, Time, Verdict};
use sosplice::error::SoError;
use sosplice::protocol::{Protocol, SoState, SocketEnd};
use sosplice::{Socket, local};
use std::sync::Arc;
use std::time::Duration;

pub(crate) fn real() -> Box<dyn Factory> {
    Box::new(Memory { time: None })
}

pub(crate) fn in_virtual_time() -> Box<dyn Factory> {
    let time = Some(Still(SetClock::new()));
    Box::new(Memory { time })
}

/// The time of pairs in memory: they do everything at once.
struct Still(Arc<SetClock>);

impl Time for Still {
    fn clock(&self) -> Arc<dyn Clock> {
        self.0.clone()
    }

    fn advance(&self, by: Duration) {
        self.0.advance(by);
    }

    fn run(&self) -> bool {
        false
    }

    fn poll_at(&self) -> Option<Duration> {
        None
    }
}

struct Memory {
    time: Option<Still>,
}

impl Factory for Memory {
    fn connect(&self, setup: Setup) -> (Socket, Socket) {
        local::pair_with_hiwat(setup.rcv_hiwat, setup.snd_hiwat)
    }

    fn connecting(&self) -> Option<Connecting> {
        let (socket, far) = local::connecting_pair();
        let end = socket.end().clone();
        let complete = move |verdict| match verdict {
            Verdict::Accept => {
                end.connected();
                Some(far)
            }
            Verdict::Refuse => {
                end.disconnected(Some(SoError::ConnectionRefused));
                None
            }
        };
        Some(Connecting {
            socket,
            complete: Box::new(complete),
        })
    }

    fn listening(&self) -> Option<Socket> {
        Some(odd(SoState::Listening))
    }

    fn unconnected(&self) -> Option<Socket> {
        Some(odd(SoState::Unconnected))
    }

    fn time(&self) -> Option<&dyn Time> {
        self.time.as_ref().map(|time| time as &dyn Time)
    }
}

#[derive(Debug)]
struct Odd(SoState);

impl Protocol for Odd {
    fn output(&self) {}
    fn rcvd(&self, _idle: bool) {}
    fn abort(&self) {}
    fn detach(&self) {}
    fn name(&self) -> &'static str {
        "odd"
    }
    fn so_state(&self) -> SoState {
        self.0
    }
}

fn odd(state: SoState) -> Socket {
    Socket::new(SocketEnd::new(100, 100), Arc::new(Odd(state)))
}
