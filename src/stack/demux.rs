//! Demultiplexing of received packets.

pub(in crate::stack) mod conn_table;
pub(in crate::stack) mod stateless;
pub(in crate::stack) mod unhandled;
