//! The events of a poller: levels, edges, registrations, waking and waiting.
//!
//! Here the bench and tests without splices; splices are in `ends`, races in `threads`, any order of
//! operations in `model`, listeners in `listeners`.

#[cfg(any(target_os = "linux", target_os = "android"))]
mod descriptor;
mod ends;
mod listeners;
mod model;
mod threads;

use super::*;
use crate::error::SoError;
use crate::local;
use crate::lock::{LEAF, Mutex};
use crate::protocol::{Protocol, SocketEnd};
use std::fs;
use std::io::ErrorKind;
use std::net::Shutdown;
use std::path::Path;
use std::thread;
use std::time::Instant;

/// A time limit longer than any expected event takes.
const PATIENCE: Duration = Duration::from_secs(60);

const MODES: [Mode; 2] = [Mode::Level, Mode::Edge];

/// The present events.
fn poll(poller: &Poller) -> Vec<Event> {
    let mut events = Events::default();
    let count = poller.wait(&mut events, Some(Duration::ZERO)).unwrap();
    assert_eq!((count, count == 0), (events.len(), events.is_empty()));
    events.into_iter().copied().collect()
}

/// Token, readable, writable.
fn brief(events: &[Event]) -> Vec<(usize, bool, bool)> {
    let brief = |event: &Event| (event.token().0, event.is_readable(), event.is_writable());
    events.iter().map(brief).collect()
}

fn now(poller: &Poller) -> Vec<(usize, bool, bool)> {
    brief(&poll(poller))
}

fn pair() -> (Socket, Socket) {
    let (a, b) = local::pair_with_hiwat(10, 10);
    a.set_nonblocking(true);
    b.set_nonblocking(true);
    (a, b)
}

/// A poller that watches one end of a pair.
fn watched(interest: Interest, mode: Mode) -> (Poller, Socket, Socket) {
    let (a, b) = pair();
    let poller = Poller::new();
    poller.add(&b, Token(7), interest, mode).unwrap();
    (poller, a, b)
}

#[test]
fn a_level_is_reported_as_long_as_it_holds() {
    let (poller, a, b) = watched(Interest::READABLE, Mode::Level);
    assert_eq!(now(&poller), []);
    a.send(b"hello").unwrap();
    for _ in 0..3 {
        assert_eq!(now(&poller), [(7, true, false)]);
    }
    b.recv(&mut [0; 2]).unwrap();
    assert_eq!(now(&poller), [(7, true, false)]);
    b.recv(&mut [0; 3]).unwrap();
    assert_eq!(now(&poller), []);
}

#[test]
fn an_edge_is_reported_once_after_each_change() {
    let (poller, a, b) = watched(Interest::READABLE, Mode::Edge);
    assert_eq!(now(&poller), []);
    a.send(b"hello").unwrap();
    assert_eq!(now(&poller), [(7, true, false)]);
    assert_eq!(now(&poller), []);
    a.send(b"more").unwrap();
    assert_eq!(now(&poller), [(7, true, false)]);
    a.send(b"!").unwrap();
    b.recv(&mut [0; 10]).unwrap();
    assert_eq!(now(&poller), [], "it was read before the check");
}

#[test]
fn edges_are_of_one_direction() {
    let (poller, a, b) = watched(Interest::BOTH, Mode::Edge);
    assert_eq!(now(&poller), [(7, false, true)]);
    a.send(b"unread").unwrap();
    assert_eq!(now(&poller), [(7, true, false)]);
    b.send(&[0; 20]).unwrap();
    a.recv(&mut [0; 5]).unwrap();
    assert_eq!(now(&poller), [(7, false, true)], "new space only");
}

#[test]
fn a_level_has_all_that_holds() {
    let (poller, a, b) = watched(Interest::BOTH, Mode::Level);
    a.send(b"unread").unwrap();
    assert_eq!(now(&poller), [(7, true, true)]);
    // 10 bytes are in a's so_rcv, 10 in b's so_snd.
    assert_eq!(
        (b.send(&[0; 20]).unwrap(), b.send(&[0; 20]).unwrap()),
        (10, 10)
    );
    assert_eq!(now(&poller), [(7, true, false)]);
    a.recv(&mut [0; 1]).unwrap();
    assert_eq!(now(&poller), [(7, true, true)]);
}

#[test]
fn only_interests_are_reported() {
    for mode in MODES {
        let (poller, a, b) = watched(Interest::READABLE, mode);
        assert_eq!(now(&poller), [], "it could be written");
        b.send(b"x").unwrap();
        assert_eq!(
            poller.list.ready.lock().entries.len(),
            0,
            "no thread is woken"
        );
        assert_eq!(now(&poller), []);
        poller
            .modify(&b, Token(8), Interest::WRITABLE, mode)
            .unwrap();
        a.send(b"x").unwrap();
        assert_eq!(now(&poller), [(8, false, true)]);
    }
}

#[test]
fn present_conditions_are_reported() {
    for mode in MODES {
        let (a, b) = pair();
        a.send(b"early").unwrap();
        let poller = Poller::new();
        poller.add(&b, Token(1), Interest::READABLE, mode).unwrap();
        assert_eq!(now(&poller), [(1, true, false)]);
        poller.modify(&b, Token(2), Interest::BOTH, mode).unwrap();
        assert_eq!(now(&poller), [(2, true, true)]);
        assert_eq!(now(&poller).len(), usize::from(mode == Mode::Level));
    }
}

#[test]
fn modify_changes_everything() {
    let (poller, a, b) = watched(Interest::READABLE, Mode::Level);
    a.send(b"x").unwrap();
    assert_eq!(now(&poller), [(7, true, false)]);
    poller
        .modify(&b, Token(8), Interest::READABLE, Mode::Edge)
        .unwrap();
    assert_eq!(now(&poller), [(8, true, false)]);
    assert_eq!(now(&poller), []);
    poller
        .modify(&b, Token(9), Interest::WRITABLE, Mode::Level)
        .unwrap();
    assert_eq!(now(&poller), [(9, false, true)]);
    assert_eq!(now(&poller), [(9, false, true)]);
}

#[test]
fn after_delete_there_is_no_event() {
    for mode in MODES {
        let (poller, a, b) = watched(Interest::BOTH, mode);
        a.send(b"x").unwrap();
        poller.delete(&b).unwrap();
        a.send(b"y").unwrap();
        assert_eq!(now(&poller), []);
        assert_eq!(poller.delete(&b).unwrap_err().kind(), ErrorKind::NotFound);
        let modified = poller.modify(&b, Token(1), Interest::BOTH, mode);
        assert_eq!(modified.unwrap_err().kind(), ErrorKind::NotFound);
        assert!(b.end().rcv().upcalls().is_empty() && b.end().snd().upcalls().is_empty());
        poller.add(&b, Token(9), Interest::READABLE, mode).unwrap();
        assert_eq!(
            now(&poller),
            [(9, true, false)],
            "once, although it was queued before"
        );
    }
}

#[test]
fn a_socket_is_watched_once_by_each_poller() {
    let (first, a, b) = watched(Interest::READABLE, Mode::Edge);
    let again = first.add(&b.clone(), Token(8), Interest::WRITABLE, Mode::Level);
    assert_eq!(again.unwrap_err().kind(), ErrorKind::AlreadyExists);
    let second = Poller::new();
    second
        .add(&b, Token(8), Interest::READABLE, Mode::Level)
        .unwrap();
    a.send(b"x").unwrap();
    assert_eq!(now(&first), [(7, true, false)]);
    assert_eq!(now(&second), [(8, true, false)]);
    first.delete(&b).unwrap();
    a.send(b"y").unwrap();
    assert_eq!(now(&first), []);
    assert_eq!(now(&second), [(8, true, false)]);
}

#[test]
fn a_closed_socket_leaves_silently() {
    for mode in MODES {
        let (poller, a, b) = watched(Interest::BOTH, mode);
        let end = Arc::downgrade(b.end());
        a.send(b"x").unwrap();
        let handle = b.clone();
        b.close();
        assert_eq!(now(&poller), [(7, true, true)], "one handle is left");
        a.send(b"y").unwrap();
        handle.recv_chain(10).unwrap();
        handle.close();
        assert_eq!(now(&poller), []);
        assert_eq!(
            a.recv(&mut [0; 1]).unwrap(),
            0,
            "no reference has kept it open"
        );
        a.close();
        assert!(end.upgrade().is_none());
    }
}

#[test]
fn a_poller_that_is_gone_leaves_nothing_to_do() {
    let (poller, a, b) = watched(Interest::READABLE, Mode::Edge);
    let clone = poller.clone();
    drop(poller);
    a.send(b"x").unwrap();
    assert_eq!(now(&clone), [(7, true, false)]);
    drop(clone);
    a.send(b"y").unwrap();
    let next = Poller::new();
    next.add(&b, Token(1), Interest::READABLE, Mode::Edge)
        .unwrap();
    assert_eq!(b.end().rcv().upcalls().len(), 1, "the old one was removed");
    assert_eq!(b.end().snd().upcalls().len(), 1);
}

#[test]
fn the_end_of_the_stream_is_readable_and_reported() {
    for mode in MODES {
        let (poller, a, b) = watched(Interest::READABLE, mode);
        a.shutdown(Shutdown::Write).unwrap();
        let [event] = poll(&poller)[..] else { panic!() };
        assert!(event.is_readable() && event.is_read_closed());
        assert!(!event.is_writable() && !event.is_write_closed());
        b.shutdown(Shutdown::Write).unwrap();
        let [event] = poll(&poller)[..] else { panic!() };
        assert!(event.is_write_closed(), "a close counts for both");
    }
}

#[test]
fn an_error_is_reported_and_left_in_place() {
    for mode in MODES {
        for interest in [Interest::READABLE, Interest::WRITABLE, Interest::BOTH] {
            let (poller, a, b) = watched(interest, mode);
            poll(&poller);
            a.abort();
            let [event] = poll(&poller)[..] else { panic!() };
            assert_eq!(event.error(), Some(SoError::ConnectionReset));
            assert_eq!(event.is_readable(), interest.overlaps(Interest::READABLE));
            assert_eq!(event.is_writable(), interest.overlaps(Interest::WRITABLE));
            assert!(event.is_read_closed() && event.is_write_closed());
            assert_eq!(b.take_error(), Some(SoError::ConnectionReset));
        }
    }
}

/// The stream has ended before: the reset closes nothing on that side.
#[test]
fn an_error_after_the_end_is_an_edge_for_readers_and_for_writers() {
    for interest in [Interest::READABLE, Interest::WRITABLE] {
        let (poller, a, b) = watched(interest, Mode::Edge);
        match interest {
            Interest::READABLE => a.shutdown(Shutdown::Write).unwrap(),
            _ => b.shutdown(Shutdown::Write).unwrap(),
        }
        poll(&poller);
        a.abort();
        let [event] = poll(&poller)[..] else {
            panic!("{interest:?}")
        };
        assert_eq!(event.error(), Some(SoError::ConnectionReset));
    }
}

/// An error alone makes it ready: in the OpenBSD flavor a splice leaves one on an open socket.
#[test]
fn an_error_on_an_open_socket_makes_it_ready() {
    let (poller, a, b) = watched(Interest::BOTH, Mode::Level);
    b.send(&[0; 10]).unwrap();
    b.send(&[0; 10]).unwrap();
    assert_eq!(now(&poller), []);
    b.end().set_error(SoError::SpliceLimit);
    b.set_rcv_lowat(1);
    assert_eq!(now(&poller), [(7, true, true)]);
    assert_eq!(b.take_error(), Some(SoError::SpliceLimit));
    assert_eq!(now(&poller), []);
    drop(a);
}

#[test]
fn low_water_marks_count() {
    for mode in MODES {
        let (poller, a, b) = watched(Interest::READABLE, mode);
        b.set_rcv_lowat(3);
        a.send(b"12").unwrap();
        assert_eq!(now(&poller), []);
        a.send(b"3").unwrap();
        assert_eq!(now(&poller), [(7, true, false)]);
        b.recv(&mut [0; 1]).unwrap();
        assert_eq!(now(&poller), []);
        b.set_rcv_lowat(2);
        assert_eq!(now(&poller), [(7, true, false)]);

        let (poller, a, b) = watched(Interest::WRITABLE, mode);
        poll(&poller);
        b.set_snd_lowat(5);
        poll(&poller);
        b.send(&[0; 10]).unwrap();
        b.send(&[0; 6]).unwrap();
        poll(&poller);
        assert_eq!(now(&poller), [], "4 bytes of space");
        a.recv(&mut [0; 1]).unwrap();
        assert_eq!(now(&poller), [(7, false, true)]);
    }
}

#[test]
fn a_smaller_buffer_lowers_the_low_water_mark() {
    let (poller, a, b) = watched(Interest::READABLE, Mode::Edge);
    b.set_rcv_lowat(10);
    a.send(b"1234").unwrap();
    assert_eq!(now(&poller), []);
    b.set_rcv_hiwat(4);
    assert_eq!(now(&poller), [(7, true, false)]);
}

/// A protocol that does nothing.
#[derive(Debug)]
struct Silent;

impl Protocol for Silent {
    fn output(&self) {}
    fn rcvd(&self, _idle: bool) {}
    fn abort(&self) {}
    fn detach(&self) {}
    fn name(&self) -> &'static str {
        "silent"
    }
}

#[test]
fn a_connecting_socket_becomes_writable() {
    for mode in MODES {
        for succeeds in [true, false] {
            let end = SocketEnd::new(10, 10);
            let socket = Socket::new(end.clone(), Arc::new(Silent));
            let poller = Poller::new();
            poller.add(&socket, Token(1), Interest::BOTH, mode).unwrap();
            assert_eq!(now(&poller), []);
            if succeeds {
                end.connected();
                assert_eq!(now(&poller), [(1, false, true)]);
            } else {
                end.set_error(SoError::ConnectionRefused);
                end.cantrcvmore();
                end.cantsendmore();
                let [event] = poll(&poller)[..] else { panic!() };
                assert_eq!(event.error(), Some(SoError::ConnectionRefused));
                assert!(event.is_writable() && event.is_write_closed());
            }
        }
    }
}

#[test]
fn a_wait_costs_as_much_as_its_events() {
    let poller = Poller::new();
    let pairs: Vec<_> = (0..1000).map(|_| pair()).collect();
    for (at, (_, b)) in pairs.iter().enumerate() {
        poller
            .add(b, Token(at), Interest::READABLE, Mode::Level)
            .unwrap();
    }
    let entries = || poller.list.ready.lock().entries.len();
    assert_eq!((entries(), now(&poller).len(), entries()), (1000, 0, 0));
    pairs[3].0.send(b"x").unwrap();
    pairs[3].0.send(b"y").unwrap();
    assert_eq!(entries(), 1, "at most once");
    assert_eq!(now(&poller), [(3, true, false)]);
    assert_eq!(entries(), 1, "a level that holds");
    pairs[3].1.recv(&mut [0; 9]).unwrap();
    assert_eq!((now(&poller).len(), entries()), (0, 0));
}

#[test]
fn excess_events_come_in_turn() {
    let poller = Poller::new();
    let sockets = [pair(), pair(), pair()];
    for (at, (_, b)) in sockets.iter().enumerate() {
        poller
            .add(b, Token(at), Interest::WRITABLE, Mode::Level)
            .unwrap();
    }
    let mut events = Events::with_capacity(2);
    let mut turn = || {
        poller.wait(&mut events, None).unwrap();
        let tokens: Vec<_> = events.iter().map(|event| event.token().0).collect();
        tokens
    };
    assert_eq!([turn(), turn(), turn()], [[0, 1], [2, 0], [1, 2]]);
    assert_eq!(Events::with_capacity(0).capacity.get(), 1);
}

#[test]
fn a_wait_without_events_lasts_for_the_timeout() {
    let (poller, _a, _b) = watched(Interest::READABLE, Mode::Level);
    let timeout = Duration::from_millis(20);
    let mut events = Events::default();
    let start = SystemClock.now();
    assert_eq!(poller.wait(&mut events, Some(timeout)).unwrap(), 0);
    assert!(SystemClock.now() >= start + timeout);
    assert_eq!(poller.wait(&mut events, Some(Duration::ZERO)).unwrap(), 0);
}

#[test]
fn a_timeout_of_ages_is_none() {
    let (poller, a, _b) = watched(Interest::READABLE, Mode::Level);
    thread::scope(|scope| {
        let waiting = scope.spawn(|| poller.wait(&mut Events::default(), Some(Duration::MAX)));
        a.send(b"x").unwrap();
        assert_eq!(waiting.join().unwrap().unwrap(), 1);
    });
}

#[test]
fn a_wake_is_kept_for_one_wait() {
    let poller = Poller::new();
    poller.wake();
    poller.wake();
    let mut events = Events::default();
    assert_eq!(poller.wait(&mut events, None).unwrap(), 0);
    let timeout = Duration::from_millis(20);
    let start = SystemClock.now();
    assert_eq!(poller.wait(&mut events, Some(timeout)).unwrap(), 0);
    assert!(
        SystemClock.now() >= start + timeout,
        "the timeout has passed"
    );
}

#[test]
fn a_wake_returns_the_present_events() {
    let (poller, a, _b) = watched(Interest::READABLE, Mode::Edge);
    a.send(b"x").unwrap();
    poller.wake();
    let mut events = Events::default();
    assert_eq!(poller.wait(&mut events, None).unwrap(), 1);
    assert!(!poller.list.ready.lock().woken);
}

fn sources(folder: &Path, into: &mut String) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, into);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            into.push_str(&fs::read_to_string(path).unwrap());
        }
    }
}

/// Reads the sources: the documentation lists each pollable type.
#[test]
fn the_documentation_of_pollable_lists_all_types() {
    let mut text = String::new();
    sources(
        &Path::new(env!("CARGO_MANIFEST_DIR")).join("src"),
        &mut text,
    );
    let named = |start| {
        let rests = text.split(start).skip(1);
        rests.filter_map(|rest| rest.split([')', ' ', '<']).next())
    };
    let all = named("\npollable!(").chain(named("\nimpl Pollable for "));
    // The tests' own.
    let all: Vec<_> = all.filter(|name| *name != "Arc").collect();
    assert_eq!(all.len(), 11, "{all:?}");
    let (before, _) = text.split_once("\npub trait Pollable: Sealed").unwrap();
    let (_, said) = before.rsplit_once("\n\n").unwrap();
    for name in all {
        assert!(
            said.contains(&format!("`{name}`")),
            "{name} is not in {said}"
        );
    }
}
