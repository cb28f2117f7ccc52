//! A simulation: two ends, a path between them, virtual time. Deterministic for a seed.

pub(crate) mod monitor;
pub(crate) mod path;
pub(crate) mod world;

mod controllers;
mod cost;
mod goodput;
mod peer;
mod random;
