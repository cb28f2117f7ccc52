//! Decisions between SYN and SYN|ACK: the raw peer's SYN is answered after the program's decision.
//!
//! The listener, its records and their place in the backlog; time is virtual.

use super::*;
use crate::socket::poller::{Events, Interest, Mode, Poller, Token};
use crate::stack::accept::syn_queue::Syn;
use crate::stack::{ConditionalListener, ConnectionRequest};
use crate::tcp::conn_state::Opening;

const BACKLOG: usize = 2;
const HOME: Home = Home {
    queue: 0,
    looped: false,
};

fn deciding(net: &Net) -> ConditionalListener {
    let at = "10.0.0.1:80".parse().unwrap();
    let listener = ConditionalListener::bind_with_backlog(&net.stack, at, BACKLOG).unwrap();
    listener.set_nonblocking(true);
    listener
}

fn none_pending(listener: &ConditionalListener) -> bool {
    (listener.pending()).is_err_and(|error| error.kind() == ErrorKind::WouldBlock)
}

/// A SYN that is not answered yet.
fn held(net: &mut Net, listener: &ConditionalListener, raw: &Raw) -> ConnectionRequest {
    raw.send(net, SYN, b"");
    assert!(net.seen().is_empty(), "not before the decision");
    let pending = listener.pending().unwrap();
    assert_eq!(pending.peer_addr(), SocketAddr::from(raw.from));
    assert_eq!(pending.local_addr(), SocketAddr::from(raw.to));
    pending
}

/// All places of the backlog are free, and no record is left.
fn no_syn_is_held(net: &mut Net, listener: &ConditionalListener) {
    assert_eq!(net.stack.shared().accepting.held.lock().len(), (0, 0));
    let dropped = net.stack.stats().syns_dropped;
    let pending: Vec<ConnectionRequest> = (0..BACKLOG as u16)
        .map(|i| held(net, listener, &Raw::new(60_000 + i)))
        .collect();
    Raw::new(60_100).send(net, SYN, b"");
    net.turn();
    assert!(none_pending(listener));
    assert_eq!(net.stack.stats().syns_dropped, dropped + 1);
    drop(pending);
    assert_eq!(net.stack.shared().accepting.held.lock().len(), (0, 0));
}

/// The peer's side after `accept()`.
fn finish(net: &mut Net, raw: &mut Raw, stream: &TcpStream) {
    let answer = net.one();
    assert_eq!(answer.header.flags, SYN | ACK);
    raw.seq = raw.seq.wrapping_add(1);
    raw.ack = answer.header.seq.wrapping_add(1);
    assert_eq!(answer.header.ack, raw.seq);
    raw.send_data(net, b"hi");
    net.seen();
    assert!(stream.wait_connected(None).is_ok());
    stream.set_nonblocking(true);
    assert_eq!(read(stream), b"hi");
}

#[test]
fn accepting_answers_the_syn() {
    let mut net = Net::new();
    let listener = deciding(&net);
    let mut raw = Raw::new(5000);
    raw.options.mss = Some(700);
    raw.window = 10_000;
    let pending = held(&mut net, &listener, &raw);
    assert_eq!(net.stack.stats().connections, 0, "none yet");
    let stream = pending.accept().unwrap();
    assert_eq!(stream.local_addr(), SocketAddr::from(raw.to));
    finish(&mut net, &mut raw, &stream);
    (&stream).write_all(&[1; 1000]).unwrap();
    let seen = net.seen();
    assert_eq!(seen[0].payload.len(), 700, "the SYN's options apply");
    no_syn_is_held(&mut net, &listener);
    net.healthy();
}

#[test]
fn refusing_resets_and_ignoring_does_not() {
    let mut net = Net::new();
    let listener = deciding(&net);
    let raw = Raw::new(5000);
    held(&mut net, &listener, &raw).refuse();
    let reset = net.one();
    assert_eq!(reset.header.flags, RST | ACK);
    assert_eq!(reset.header.ack, raw.seq.wrapping_add(1));
    no_syn_is_held(&mut net, &listener);
    held(&mut net, &listener, &raw).ignore();
    assert!(net.seen().is_empty());
    drop(held(&mut net, &listener, &raw));
    assert!(net.seen().is_empty(), "the repeated SYN is a new one");
    no_syn_is_held(&mut net, &listener);
}

#[test]
fn a_retransmitted_syn_is_the_same_one() {
    let mut net = Net::new();
    let listener = deciding(&net);
    let mut raw = Raw::new(5000);
    let pending = held(&mut net, &listener, &raw);
    for _ in 0..10 {
        net.pass(Duration::from_secs(70));
        // Another attempt from the same port: the latest is the one to answer.
        raw.seq = raw.seq.wrapping_add(100);
        raw.send(&net, SYN, b"");
        assert!(net.seen().is_empty());
        assert!(none_pending(&listener));
    }
    assert_eq!(net.stack.shared().accepting.held.lock().len(), (1, 1));
    let stream = pending.accept().unwrap();
    finish(&mut net, &mut raw, &stream);
    no_syn_is_held(&mut net, &listener);
}

#[test]
fn a_held_syn_that_is_not_repeated_expires() {
    let mut net = Net::new();
    let listener = deciding(&net);
    let raw = Raw::new(5000);
    let late = held(&mut net, &listener, &raw);
    let at = net.clock.now() + Duration::from_secs(75);
    assert_eq!(net.driver.poll_at(), Some(at), "the driver wakes up");
    Raw::new(5001).send(&net, SYN, b"");
    net.pass(Duration::from_secs(74));
    assert_eq!(net.stack.shared().accepting.held.lock().len(), (2, 2));
    net.pass(Duration::from_secs(2));
    assert!(net.seen().is_empty(), "silently");
    assert!(none_pending(&listener), "this one was not returned");
    // A late decision does not apply to the next SYN.
    let next = held(&mut net, &listener, &raw);
    assert_eq!(late.accept().unwrap_err().kind(), ErrorKind::TimedOut);
    next.refuse();
    assert_eq!(net.one().header.flags, RST | ACK);
    no_syn_is_held(&mut net, &listener);
}

#[test]
fn an_accepted_connection_that_the_peer_left_ends() {
    let mut net = Net::new();
    let listener = deciding(&net);
    let stream = held(&mut net, &listener, &Raw::new(5000)).accept().unwrap();
    net.pass(Duration::from_secs(76));
    assert_eq!(net.stack.stats().connections, 0);
    let error = io::Error::from(stream.wait_connected(None).unwrap_err());
    assert_eq!(error.kind(), ErrorKind::TimedOut);
    net.drain();
    no_syn_is_held(&mut net, &listener);
    net.healthy();
}

#[test]
fn closing_before_the_handshake_is_over_sends_a_fin_after_it() {
    let mut net = Net::new();
    let listener = deciding(&net);
    let mut raw = Raw::new(5000);
    let pending = held(&mut net, &listener, &raw);
    let stream = pending.accept().unwrap();
    drop(stream);
    raw.seq = raw.seq.wrapping_add(1);
    raw.ack = net.one().header.seq.wrapping_add(1);
    raw.send(&net, ACK, b"");
    let seen = net.seen();
    assert!(seen.iter().any(|frame| frame.has(FIN)), "RFC 9293 3.10.4");
    net.healthy();
}

#[test]
fn a_closed_listener_refuses_syns_that_were_not_returned() {
    let mut net = Net::new();
    let listener = deciding(&net);
    let mut raw = Raw::new(5000);
    let pending = held(&mut net, &listener, &raw);
    Raw::new(5001).send(&net, SYN, b"");
    net.turn();
    drop(listener);
    let reset = net.one();
    assert_eq!(
        (reset.header.flags, reset.tuple.remote_port),
        (RST | ACK, 80)
    );
    assert_eq!(reset.tuple.local_port, 5001);
    raw.send(&net, SYN, b"");
    assert!(net.seen().is_empty(), "this one can still be decided");
    let stream = pending.accept().unwrap();
    finish(&mut net, &mut raw, &stream);
    assert_eq!(net.stack.shared().accepting.held.lock().len(), (0, 0));
}

#[test]
fn a_stack_that_goes_down_holds_nothing() {
    let mut net = Net::new();
    let listener = deciding(&net);
    let pending = held(&mut net, &listener, &Raw::new(5000));
    Raw::new(5001).send(&net, SYN, b"");
    net.turn();
    let elsewhere = deciding_elsewhere(&net);
    let other = held(&mut net, &elsewhere, &to_port(81));
    let Net { stack, driver, .. } = net;
    drop(driver);
    assert_eq!(stack.shared().accepting.held.lock().len(), (0, 0));
    assert_eq!(pending.accept().unwrap_err().kind(), ErrorKind::NetworkDown);
    assert_eq!(
        listener.pending().unwrap_err().kind(),
        ErrorKind::NetworkDown
    );
    other.refuse();
    assert_eq!(stack.stats().connections, 0);
}

fn deciding_elsewhere(net: &Net) -> ConditionalListener {
    ConditionalListener::bind(&net.stack, "10.0.0.1:81".parse().unwrap()).unwrap()
}

fn to_port(port: u16) -> Raw {
    let mut raw = Raw::new(5002);
    raw.to.1 = port;
    raw
}

/// Guards `Shared::accept_held`: the record in TIME-WAIT is removed only then, and its sequence numbers
/// are used.
#[test]
fn time_wait_makes_room_when_the_larger_syn_is_accepted() {
    let mut net = Net::new();
    let (old, listener) = in_time_wait(&mut net);
    drop(listener);
    let listener = deciding(&net);
    let mut raw = old.clone();
    raw.seq = old.seq.wrapping_add(1000);
    held(&mut net, &listener, &raw).refuse();
    assert_eq!(net.one().header.flags, RST | ACK);
    old.send_at(&net, -1, ACK | FIN, b"");
    assert_eq!(net.one().header.seq, old.ack, "still in TIME-WAIT");
    let pending = held(&mut net, &listener, &raw);
    raw.send(&net, SYN, b"");
    assert!(net.seen().is_empty() && none_pending(&listener), "again");
    let stream = pending.accept().unwrap();
    finish(&mut net, &mut raw, &stream);
    assert!(
        raw.ack.wrapping_sub(old.ack).cast_signed() > 0,
        "RFC 1122 4.2.2.13"
    );
    no_syn_is_held(&mut net, &listener);
}

/// Guards the check of the table after a record was made: the connection gets the SYN.
#[test]
fn a_syn_whose_connection_has_just_begun_is_not_held() {
    let mut net = Net::new();
    let listener = deciding(&net);
    let raw = Raw::new(5000);
    let pending = held(&mut net, &listener, &raw);
    let tuple = pending.key().tuple;
    let _stream = pending.accept().unwrap();
    net.drain();
    // As a driver that had not found the connection.
    let shared = net.stack.shared();
    let listening = shared.listener_for(&tuple, true).unwrap();
    let header = Header {
        seq: raw.seq,
        ack: 0,
        flags: SYN,
        window: raw.window,
        options: raw.options,
    };
    let syn = Syn::from(header).segment(tuple);
    assert!(
        shared
            .hold_syn(0, &listening, &syn, net.clock.now())
            .is_some()
    );
    assert!(none_pending(&listener));
    no_syn_is_held(&mut net, &listener);
}

#[test]
fn a_tuple_that_was_dialled_meanwhile_is_taken() {
    let mut net = Net::new();
    let listener = deciding(&net);
    let pending = held(&mut net, &listener, &Raw::new(5000));
    let tuple = pending.key().tuple;
    let shared = net.stack.shared();
    let conn = shared.connection(HOME, (tuple, Opening::Active), 0, net.clock.now());
    shared.table.insert(&conn, None).unwrap();
    assert_eq!(pending.accept().unwrap_err().kind(), ErrorKind::AddrInUse);
    no_syn_is_held(&mut net, &listener);
}

#[test]
fn a_poller_sees_the_listener_readable() {
    let mut net = Net::new();
    let listener = deciding(&net);
    let poller = Poller::new();
    let mut events = Events::default();
    let mut wait = || poller.wait(&mut events, Some(Duration::ZERO)).unwrap();
    (poller.add(&listener, Token(7), Interest::READABLE, Mode::Level)).unwrap();
    assert_eq!(wait(), 0);
    Raw::new(5000).send(&net, SYN, b"");
    net.turn();
    assert_eq!((wait(), wait()), (1, 1));
    let _pending = listener.pending().unwrap();
    assert_eq!(wait(), 0);
    // This one was not returned in time.
    Raw::new(5001).send(&net, SYN, b"");
    net.turn();
    assert_eq!(wait(), 1);
    net.pass(Duration::from_secs(76));
    assert_eq!(wait(), 0);
}
