//! The program between clients and proxies that this project has not written, in namespaces that each test makes and
//! removes. Needs root, and the programs of the proxies; otherwise skipped with a message.
//!
//! ```text
//!   namespace C: clients, tc --- tun2socks, in namespace H, whose loopback has 10.99/16: proxy, servers
//! ```
#![cfg(any(target_os = "linux", target_os = "android"))]
#![allow(missing_docs, clippy::unwrap_used, reason = "tests")]

mod dns;
#[path = "../../../../tests/support/namespace.rs"]
#[allow(dead_code, reason = "other tests use the rest")]
mod namespace;
mod odd;
#[path = "../../../../tests/support/program.rs"]
#[allow(dead_code, reason = "other tests use the rest")]
mod program;
mod real;
mod scene;
