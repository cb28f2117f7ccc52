//! Demultiplexing of received packets.

pub(in crate::stack) mod conn_table;
mod echo;
pub(in crate::stack) mod stateless;
pub(in crate::stack) mod unhandled;
