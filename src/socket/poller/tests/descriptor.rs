//! A poller as a descriptor: readable while there is something to report.

#![cfg(not(sosplice_loom))]

use super::*;
use rustix::event::{PollFd, PollFlags, Timespec, epoll};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicUsize, Ordering};

fn is_readable(poller: &PollerFd) -> bool {
    let mut descriptors = [PollFd::new(poller, PollFlags::IN)];
    rustix::event::poll(&mut descriptors, Some(&Timespec::default())).unwrap() == 1
}

#[test]
fn it_is_readable_while_a_level_holds() {
    let (poller, a, b) = watched(Interest::READABLE, Mode::Level);
    let poller = poller.descriptor().unwrap();
    assert!(is_readable(&poller), "the check of the registration");
    assert_eq!(now(&poller), []);
    assert!(!is_readable(&poller));
    a.send(b"hello").unwrap();
    for _ in 0..3 {
        assert!(is_readable(&poller));
        assert_eq!(now(&poller), [(7, true, false)]);
    }
    b.recv(&mut [0; 5]).unwrap();
    assert!(is_readable(&poller), "it was not looked at yet");
    assert_eq!(now(&poller), []);
    assert!(!is_readable(&poller));
}

#[test]
fn an_edge_makes_it_readable_until_it_is_taken() {
    let (poller, a, _b) = watched(Interest::READABLE, Mode::Edge);
    let poller = poller.descriptor().unwrap();
    assert_eq!(now(&poller), []);
    for _ in 0..3 {
        a.send(b"x").unwrap();
        assert!(is_readable(&poller));
        assert_eq!(now(&poller), [(7, true, false)]);
        assert!(!is_readable(&poller));
    }
}

#[test]
fn it_stays_readable_while_events_are_left() {
    let poller = Poller::new();
    let pairs: Vec<_> = (0..3).map(|_| pair()).collect();
    for (number, (a, _)) in pairs.iter().enumerate() {
        poller
            .add(a, Token(number), Interest::WRITABLE, Mode::Edge)
            .unwrap();
    }
    // There are entries before there is a descriptor.
    let poller = poller.descriptor().unwrap();
    let mut events = Events::with_capacity(1);
    for _ in 0..3 {
        assert!(is_readable(&poller));
        poller.wait(&mut events, Some(Duration::ZERO)).unwrap();
    }
    assert!(!is_readable(&poller));
}

#[test]
fn a_wake_makes_it_readable() {
    let poller = Poller::new().descriptor().unwrap();
    let other = poller.clone();
    assert!(!is_readable(&poller));
    other.wake();
    assert!(is_readable(&poller));
    assert_eq!(now(&poller), []);
    assert!(!is_readable(&other));
    // All handles have the same one.
    let same = Poller::clone(&poller).descriptor().unwrap();
    assert_eq!(same.as_raw_fd(), poller.as_raw_fd());
}

/// Several threads send, and one waits for the descriptor with epoll, and for nothing else: a lost wake-up would leave
/// it there.
#[test]
fn no_wake_up_is_lost() {
    const SENDERS: usize = 3;
    let count = crate::long::times(200, 20_000);
    for flags in [
        epoll::EventFlags::IN,
        epoll::EventFlags::IN | epoll::EventFlags::ET,
    ] {
        let poller = Poller::new().descriptor().unwrap();
        let waits = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
        epoll::add(&waits, &poller, epoll::EventData::new_u64(1), flags).unwrap();
        let pairs: Vec<_> = (0..SENDERS).map(|_| local::pair_with_hiwat(1, 1)).collect();
        for (number, (_, b)) in pairs.iter().enumerate() {
            b.set_nonblocking(true);
            poller
                .add(b, Token(number), Interest::READABLE, Mode::Edge)
                .unwrap();
        }
        let received = AtomicUsize::new(0);
        thread::scope(|scope| {
            for (a, _) in &pairs {
                scope.spawn(move || (0..count).for_each(|_| assert_eq!(a.send(b"x").unwrap(), 1)));
            }
            let mut events = Events::default();
            while received.load(Ordering::Relaxed) < SENDERS * count {
                let mut ready = Vec::with_capacity(1);
                let patience = Timespec::try_from(PATIENCE).unwrap();
                let space = rustix::buffer::spare_capacity(&mut ready);
                let woken = epoll::wait(&waits, space, Some(&patience)).unwrap();
                assert_eq!(woken, 1, "after {} bytes", received.load(Ordering::Relaxed));
                while poller.wait(&mut events, Some(Duration::ZERO)).unwrap() > 0 {
                    for event in &events {
                        while pairs[event.token().0].1.recv(&mut [0; 4]).is_ok() {
                            received.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                }
            }
        });
    }
}
