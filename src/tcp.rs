//! One TCP connection: control block, out-of-order payload and the service step.
//!
//! | file | contents |
//! |---|---|
//! | `wire` | frames to segments, canonical headers |
//! | `block` | the control block: positions, windows, times; no payload. Its documentation has the standards |
//! | `conn_state` | a connection's state and its service step |
//! | `service` | inputs and results of that step |
//! | `output` | packets to the link |
//! | `store` | out-of-order payload |
//! | `icmp` | ICMP errors: their meaning and their quotes |
//! | `state` | the public states of a connection |
//! | `conn` | ownership: which thread runs a connection; its interface to the stack |
//! | `options` | socket options |
//! | `limits` | time limits |
//! | `memory` | memory of the buffers of all connections, and memory pressure |
//! | `keep_alive` | keep-alive probes |
//! | `time_wait` | the record in TIME-WAIT |
//! | `home` | the connection's queue |
//! | `counters` | counters of connections |

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
