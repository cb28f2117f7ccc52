//! Models of ownership: a driver with a segment and a writer, or two drivers with a segment each, at
//! the same time, over a whole connection. No thread waits, and the backlog is empty at the end.

#![cfg(sosplice_loom)]

use super::*;
use crate::buf::{Buf, Gather};
use crate::clock;
use crate::ip;
use crate::link::{Capabilities, Frame, Interest, Link, Packet, ReceiveError, TransmitError};
use crate::sync::model::{claim, explore, explore_without, join, spawn};
use crate::tcp::block::path_mtu::Finding;
use crate::tcp::block::time::Clocked;
use crate::tcp::counters::Counters;
use crate::tcp::home::{Home, TimerKey};
use crate::tcp::memory::Memory;
use crate::tcp::time_wait::TimeWait;
use crate::tcp::wire::{ACK, Header, SYN, SynOptions};
use std::io;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

/// The stack: a link that counts payload bytes, and no timers.
#[derive(Debug)]
struct Stack {
    now: Instant,
    counters: Counters,
    memory: Memory,
    sent: AtomicUsize,
    /// The last acknowledgement, from the start of the peer's stream.
    acknowledged: AtomicU32,
}

impl Link for Stack {
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            mtu: 1500,
            checksum: true,
            segment_v4: None,
            segment_v6: None,
            datagrams_v4: None,
            datagrams_v6: None,
        }
    }

    fn receive(&self, _frames: &mut Vec<Frame>, _max: usize) -> Result<usize, ReceiveError> {
        Ok(0)
    }

    fn transmit(&self, packet: &Packet<'_>) -> Result<(), TransmitError> {
        let bytes = packet.payload.iter().map(Buf::len).sum();
        self.sent.fetch_add(bytes, Ordering::Relaxed);
        let ack = ip::be32(packet.header, packet.ip_header_len + 8).wrapping_sub(IRS);
        self.acknowledged.fetch_max(ack, Ordering::Relaxed);
        Ok(())
    }

    fn wait(&self, _interest: Interest, _deadline: Option<Instant>) -> io::Result<()> {
        Ok(())
    }

    fn wake(&self) {}
}

impl Host for Stack {
    fn link(&self, _home: Home) -> &dyn Link {
        self
    }

    fn queues(&self) -> usize {
        1
    }

    fn now(&self) -> Instant {
        self.now
    }

    fn clocked(&self) -> Clocked {
        Clocked { epoch: self.now }
    }

    fn memory(&self) -> &Memory {
        &self.memory
    }

    fn counters(&self, _queue: u16) -> &Counters {
        &self.counters
    }

    fn arm(&self, _conn: &Arc<Conn>, at: Instant, _former: Option<TimerKey>) -> TimerKey {
        (at, 0)
    }

    fn blocked(&self, _conn: &Arc<Conn>) {}
    fn hand_over(&self, _conn: &Arc<Conn>) {}
    fn established(&self, _conn: &Arc<Conn>) {}
    fn announce(&self, _conn: &Arc<Conn>) {}
    fn tell(&self, callback: Connected, result: Result<(), SoError>) {
        callback(result);
    }
    fn path_found(&self, _to: IpAddr, _finding: Finding) {}
    fn detached(&self) {}
    fn closed(&self, _conn: &Arc<Conn>, _record: Option<TimeWait>) {}
}

const ISS: u32 = 1000;
const IRS: u32 = 5000;

/// A connection that the peer has opened.
fn accepted() -> (Arc<Conn>, Arc<Stack>) {
    let now = clock::system().now();
    let stack = Arc::new(Stack {
        now,
        counters: Counters::default(),
        memory: Memory::default(),
        sent: AtomicUsize::new(0),
        acknowledged: AtomicU32::new(0),
    });
    let tuple = Tuple {
        local: [10, 0, 0, 1].into(),
        remote: [10, 0, 0, 2].into(),
        local_port: 80,
        remote_port: 4000,
    };
    let config = ConnConfig {
        home: Home {
            queue: 0,
            looped: false,
        },
        rcv_buffer: 100,
        iss: ISS,
        mtu: 1500,
        path: None,
        timestamp: 1,
        ack_delay: None,
        opening: Opening::Passive,
        ecn: false,
        began: now,
    };
    let end = SocketEnd::new(100, 100);
    let options = Options::new(true, Arc::default());
    let conn = Conn::new(tuple, end, (&config, options), stack.clone());
    for (flags, number) in [(SYN, 0), (ACK, 1)] {
        assert!(conn.leave(segment(&conn, flags, number, b"")));
        conn.resume();
    }
    (conn, stack)
}

/// A segment of the peer; its numbers count from the two SYNs.
fn segment(conn: &Conn, flags: u8, number: u32, bytes: &[u8]) -> Segment {
    Segment {
        tuple: conn.tuple,
        header: Header {
            seq: IRS + number,
            ack: ISS + number,
            flags,
            window: 1000,
            options: SynOptions::default(),
        },
        payload: Gather::from_iter([Buf::copy_of(bytes)]),
        payload_len: bytes.len(),
        sack: None,
        looped: false,
        marked: false,
        timestamps: None,
    }
}

fn owners() {
    let (conn, stack) = accepted();
    let user = conn.clone();
    let user = spawn(move || {
        user.end.snd().buf.append_copy(b"reply");
        user.output();
    });
    conn.receive(&mut [segment(&conn, ACK, 1, b"x")].into());
    conn.catch_up();
    join(user);
    let sent = stack.sent.load(Ordering::Relaxed);
    claim(conn.end.rcv().buf.len() == 1, "the segment is taken");
    claim(sent == 5, "the bytes are sent");
    let acknowledged = stack.acknowledged.load(Ordering::Relaxed);
    claim(acknowledged == 2, "the segment is acknowledged");
    claim(conn.backlog.lock().is_empty(), "nothing is left to do");
    claim(conn.state.try_lock().is_some(), "the connection is free");
}

/// Two drivers, each with a segment that arrived on its queue.
fn two_drivers() {
    let (conn, stack) = accepted();
    let other = conn.clone();
    let other = spawn(move || {
        other.receive(&mut [segment(&other, ACK, 1, b"x")].into());
        other.catch_up();
    });
    let mut second = segment(&conn, ACK, 1, b"y");
    second.header.seq += 1;
    conn.receive(&mut [second].into());
    conn.catch_up();
    join(other);
    claim(conn.end.rcv().buf.len() == 2, "both segments are taken");
    let acknowledged = stack.acknowledged.load(Ordering::Relaxed);
    claim(acknowledged == 3, "both segments are acknowledged");
    claim(conn.backlog.lock().is_empty(), "nothing is left to do");
    claim(conn.state.try_lock().is_some(), "the connection is free");
}

#[test]
fn two_drivers_leave_no_segment_behind() {
    explore("two drivers of one connection", two_drivers);
}

#[test]
#[should_panic(expected = "does not hold")]
fn fails_if_neither_driver_records_a_postponed_step() {
    explore_without(Protection::Owed, two_drivers);
}

#[test]
#[should_panic(expected = "does not hold")]
fn fails_if_the_backlog_of_two_drivers_is_free_first() {
    explore_without(Protection::FreeFirst, two_drivers);
}

#[test]
fn no_resource_is_left_over() {
    explore("backlog against lock holder", owners);
}

#[test]
#[should_panic(expected = "does not hold")]
fn fails_if_the_backlog_is_free_first() {
    explore_without(Protection::FreeFirst, owners);
}

#[test]
#[should_panic(expected = "does not hold")]
fn fails_if_a_driver_does_not_record_a_postponed_step() {
    explore_without(Protection::Owed, owners);
}
