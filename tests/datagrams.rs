//! Datagrams: splices of them, between sockets of every kind.
#![cfg(target_os = "linux")]
#![allow(missing_docs, clippy::unwrap_used, reason = "tests")]

#[path = "datagrams/flows.rs"]
mod flows;
#[path = "datagrams/kernel.rs"]
mod kernel;
#[path = "datagrams/kinds.rs"]
mod kinds;
#[allow(dead_code, reason = "some of it is for other tests")]
#[path = "support/namespace.rs"]
mod namespace;
#[path = "datagrams/overload.rs"]
mod overload;
#[path = "datagrams/pings.rs"]
mod pings;
#[path = "datagrams/rings.rs"]
mod rings;
