//! One TCP connection: control block, out-of-order payload and the service step.
//!
//! | file | what |
//! |---|---|
//! | `wire` | frames to segments, canonical headers |
//! | `block` | the control block: positions, windows, times; no payload. Its documentation has the standards |
//! | `conn_state` | a connection's state and its service step |
//! | `service` | what that step works with, and what it leaves |
//! | `output` | where packets leave |
//! | `store` | out-of-order payload |
//! | `icmp` | ICMP errors: what they say and what they quote |
//! | `state` | the states of a connection, as others see them |
//! | `conn` | ownership: which thread runs a connection, and what it needs of the stack |
//! | `options` | what its user has set |
//! | `limits` | how long it waits for its peer |
//! | `memory` | what the buffers of all connections hold, and the pressure when that is too much |
//! | `keep_alive` | when an idle peer is asked for a sign of life |
//! | `time_wait` | what remains of it |
//! | `home` | where it belongs in the stack |
//! | `counters` | what connections count |

pub(crate) mod block;
pub(crate) mod conn;
pub(crate) mod conn_state;
pub(crate) mod counters;
pub(crate) mod home;
pub(crate) mod icmp;
pub(crate) mod keep_alive;
pub(crate) mod limits;
pub(crate) mod memory;
pub(crate) mod options;
mod output;
pub(crate) mod preset;
pub(crate) mod service;
pub(crate) mod state;
pub(crate) mod store;
pub(crate) mod time_wait;
pub(crate) mod wire;
