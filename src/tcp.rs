//! One TCP connection: control block, store and the service step.
//!
//! The files of the last rows are the former TCP, smoltcp's socket behind a guard. It is compiled, so that
//! it does not rot, and takes the place of the control block with `--cfg sosplice_tcp_engine`, to compare.
//!
//! | file | what |
//! |---|---|
//! | `wire` | frames to segments, canonical headers |
//! | `block` | the control block: positions, windows, times; no payload. Its documentation has the standards |
//! | `direct` | a connection's state and its service step |
//! | `store` | out-of-order payload |
//! | `icmp` | ICMP errors: what they say and what they quote |
//! | `state` | the states of a connection, as others see them |
//! | `conn` | ownership: who runs a connection |
//! | `options` | what its user has set |
//! | `limits` | how long it waits for its peer |
//! | `memory` | what the buffers of all connections hold, and the pressure when that is too much |
//! | `keep_alive` | when an idle peer is asked for a sign of life |
//! | `time_wait` | what remains of it |
//! | `host` | what it needs of the stack |
//! | `tcb` | the former service step; `tcb::outlet`, where packets leave, is used by `direct` too |
//! | `engine` | the former TCP: the only file that drives smoltcp's socket |
//! | `ring` | memory for the engine's rings |
//! | `guard` | segment acceptance, before anything is fed to the engine or kept |
//! | `ack` | which acknowledgements wait for an answer to ride on |
//! | `ahead` | which bytes arrived ahead of their turn |
//! | `recovery` | which bytes the peer lacks, and when they are sent again |

mod ack;
pub(crate) mod ahead;
#[cfg(any(test, not(sosplice_tcp_engine)))]
pub(crate) mod block;
pub(crate) mod conn;
#[cfg(any(test, not(sosplice_tcp_engine)))]
pub(crate) mod direct;
pub(crate) mod engine;
pub(crate) mod guard;
pub(crate) mod host;
pub(crate) mod icmp;
pub(crate) mod keep_alive;
pub(crate) mod limits;
pub(crate) mod memory;
pub(crate) mod options;
#[cfg(any(test, sosplice_fuzz))]
pub(crate) mod oracle;
mod recovery;
pub(crate) mod ring;
pub(crate) mod state;
pub(crate) mod store;
pub(crate) mod tcb;
pub(crate) mod time_wait;
pub(crate) mod wire;
