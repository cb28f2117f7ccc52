//! Datagrams: splices of them, between sockets of every kind.
#![cfg(target_os = "linux")]
#![allow(missing_docs, clippy::unwrap_used, reason = "tests")]

#[path = "datagrams/flows.rs"]
mod flows;
#[path = "datagrams/kernel.rs"]
mod kernel;
#[path = "datagrams/kinds.rs"]
mod kinds;
#[path = "datagrams/rings.rs"]
mod rings;
