//! What a congestion control is asked, and which there are.

use super::bbr::Bbr;
use super::cubic::Cubic;
use super::reno::Reno;
pub(crate) use crate::congestion::Congestion as Kind;
use crate::tcp::block::time::Instant;
use std::time::Duration;

/// What an acknowledgement says while the window is to grow.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Growth {
    /// cwnd, in bytes.
    pub(crate) window: u64,
    /// Bytes that were delivered (byte counting, RFC 3465).
    pub(crate) delivered: u64,
    pub(crate) mss: u64,
    pub(crate) rtt: Duration,
    pub(crate) now: Instant,
}

/// A congestion control beyond slow start. All sizes are in bytes.
pub(crate) trait Controller {
    /// Congestion avoidance: the window after an acknowledgement.
    fn avoid(&mut self, growth: &Growth) -> u64;

    /// Something was lost: ssthresh.
    fn reduce(&mut self, window: u64, mss: u64) -> u64;

    /// Slow start has ended without a loss, or nothing was sent for a while: growth begins anew.
    fn restart(&mut self);
}

/// One of them, with its state.
#[derive(Debug, Clone)]
pub(crate) enum Algorithm {
    Cubic(Cubic),
    Reno(Reno),
    /// Its model replaces all that is asked here, and slow start; large, and only there when it is chosen.
    Bbr(Box<Bbr>),
}

impl Algorithm {
    pub(crate) fn kind(&self) -> Kind {
        match self {
            Algorithm::Cubic(_) => Kind::Cubic,
            Algorithm::Reno(_) => Kind::Reno,
            Algorithm::Bbr(_) => Kind::Bbr,
        }
    }

    /// `seed`: of what differs between connections.
    pub(crate) fn new(kind: Kind, initial_window: u64, seed: u32) -> Algorithm {
        match kind {
            Kind::Cubic => Algorithm::Cubic(Cubic::default()),
            Kind::Reno => Algorithm::Reno(Reno::default()),
            Kind::Bbr => Algorithm::Bbr(Box::new(Bbr::new(initial_window as f64, seed))),
        }
    }
}

impl Controller for Algorithm {
    fn avoid(&mut self, growth: &Growth) -> u64 {
        match self {
            Algorithm::Cubic(cubic) => cubic.avoid(growth),
            Algorithm::Reno(reno) => reno.avoid(growth),
            Algorithm::Bbr(_) => growth.window,
        }
    }

    fn reduce(&mut self, window: u64, mss: u64) -> u64 {
        match self {
            Algorithm::Cubic(cubic) => cubic.reduce(window, mss),
            Algorithm::Reno(reno) => reno.reduce(window, mss),
            Algorithm::Bbr(_) => window,
        }
    }

    fn restart(&mut self) {
        match self {
            Algorithm::Cubic(cubic) => cubic.restart(),
            Algorithm::Reno(reno) => reno.restart(),
            Algorithm::Bbr(_) => {}
        }
    }
}
