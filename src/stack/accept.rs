//! Connections that peers open.

pub(in crate::stack) mod admission;
pub(in crate::stack) mod begin;
pub(in crate::stack) mod intercept;
mod syn_cookie;
pub(in crate::stack) mod syn_queue;
