//! The available congestion controls.

use super::bbr::Bbr;
use super::controller::{Controller, Growth};
use super::cubic::Cubic;
use super::reno::Reno;
pub(crate) use crate::congestion::Congestion as Kind;

/// A congestion control with its state.
#[derive(Debug, Clone)]
pub(crate) enum Algorithm {
    Cubic(Cubic),
    Reno(Reno),
    /// Its model replaces these methods and slow start. Boxed, since it is large and optional.
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

    /// `seed`: a value that differs between connections.
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
