//! The control block of one TCP connection: positions without payload.
//!
//! It keeps sequence numbers, windows and times; the bytes stay in the socket's buffers, and the
//! format on the wire is elsewhere. It is being built, and not wired to connections yet: they use
//! smoltcp's socket ([`engine`](super::engine)) behind the [`guard`](super::guard). It is compiled for
//! its tests, and with `--cfg sosplice_tcp_block`.

#![allow(dead_code, reason = "not wired to connections yet")]

pub(crate) mod auto_tune;
pub(crate) mod congestion;
pub(crate) mod delayed_ack;
pub(crate) mod pace;
#[cfg(test)]
mod packets;
pub(crate) mod path_mtu;
pub(crate) mod range_set;
pub(crate) mod receiver;
pub(crate) mod recovery;
pub(crate) mod segment;
pub(crate) mod sender;
pub(crate) mod seq;
pub(crate) mod stamp;
pub(crate) mod state;
pub(crate) mod tcb;
pub(crate) mod time_wait;
pub(crate) mod timers;
pub(crate) mod watch;
