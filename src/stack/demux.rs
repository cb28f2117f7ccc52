//! To whom a received packet belongs.

pub(in crate::stack) mod conn_table;
pub(in crate::stack) mod stateless;
pub(in crate::stack) mod unhandled;
