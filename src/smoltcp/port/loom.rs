//! A model of requests: what another thread wants of an adopted socket is seen by the program's thread.

#![cfg(sosplice_loom)]

use super::{Port, Requests};
use crate::protocol::{Protocol, SocketEnd};
use crate::sync::Protection;
use crate::sync::model::{claim, explore, explore_without, join, spawn};
use smoltcp::iface::SocketHandle;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The program's thread serves one request, while another thread aborts the connection.
fn abort() {
    let woken = Arc::new(AtomicUsize::new(0));
    let counts = woken.clone();
    let wake = move || {
        counts.fetch_add(1, Ordering::Relaxed);
    };
    let requests = Arc::new(Requests::new(Box::new(wake)));
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 80));
    let port = Arc::new(Port::new(
        SocketEnd::new(1000, 1000),
        SocketHandle::default(),
        (address, address),
        requests.clone(),
    ));
    port.output();
    claim(woken.load(Ordering::Relaxed) == 1, "the loop is woken");
    let other = port.clone();
    let thread = spawn(move || other.abort());
    requests.begin();
    let mut is_seen = false;
    while requests.next().is_some() {
        port.served();
        is_seen = port.is_reset();
    }
    join(thread);
    let is_woken = woken.load(Ordering::Relaxed) == 2 && requests.is_waiting();
    claim(is_seen || is_woken, "the abort is served");
}

#[test]
fn an_abort_is_served() {
    explore("requests", abort);
}

#[test]
#[should_panic(expected = "the abort is served")]
fn fails_if_the_request_is_not_seen() {
    explore_without(Protection::SeeRequest, abort);
}
