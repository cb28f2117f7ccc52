//! Models of two drivers of a stack: the same SYN on both queues, and a driver that falls asleep while
//! a record is added, or while its stack sends to itself.

#![cfg(sosplice_loom)]

use crate::clock::{Clock, SystemClock};
use crate::link::{
    Capabilities, Checksum, Frame, Interest, Link, Packet, ReceiveError, TransmitError,
};
use crate::stack::driver::Running;
use crate::stack::{Driver, Stack, TcpSocket};
use crate::sync::Protection;
use crate::sync::model::{claim, explore, explore_without, join, spawn};
use crate::tcp::block::time_wait::Record;
use crate::tcp::conn::Host;
use crate::tcp::home::Home;
use crate::tcp::time_wait::TimeWait;
use crate::tcp::wire::{self, Header, MAX_CANONICAL, RST, SYN, SynOptions};
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

const BACKLOG: usize = 4;
const LOCAL: (IpAddr, u16) = (IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1)), 80);
const REMOTE: (IpAddr, u16) = (IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 2)), 4000);

/// A queue on which these segments arrive in one batch.
#[derive(Debug, Default)]
struct Queue {
    flags: &'static [u8],
    given: AtomicUsize,
    woken: AtomicUsize,
}

impl Link for Queue {
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

    fn receive(&self, frames: &mut Vec<Frame>, _max: usize) -> Result<usize, ReceiveError> {
        let given = self.given.fetch_add(1, Ordering::Relaxed);
        if given > 0 {
            return Ok(0);
        }
        frames.extend(
            self.flags
                .iter()
                .zip(0..)
                .map(|(flags, at)| frame(*flags, at)),
        );
        Ok(frames.len())
    }

    fn transmit(&self, _packet: &Packet<'_>) -> Result<(), TransmitError> {
        Ok(())
    }

    fn wait(&self, _interest: Interest, _deadline: Option<Instant>) -> io::Result<()> {
        Ok(())
    }

    fn wake(&self) {
        self.woken.fetch_add(1, Ordering::Relaxed);
    }
}

fn frame(flags: u8, at: u32) -> Frame {
    let header = Header {
        seq: 5000 + at,
        ack: 0,
        flags,
        window: 1000,
        options: SynOptions::default(),
    };
    let mut out = [0; MAX_CANONICAL];
    let len = wire::compose(&mut out, REMOTE, LOCAL, &header, 0);
    wire::finish(&mut out[..len], 20, std::iter::empty(), false);
    Frame {
        checksum: Checksum::Verified,
        ..Frame::new(&out[..len])
    }
}

#[derive(Debug)]
struct Still(Instant);

impl Clock for Still {
    fn now(&self) -> Instant {
        self.0
    }
}

fn stack(flags: [&'static [u8]; 2]) -> (Stack, [Driver; 2], [Arc<Queue>; 2]) {
    let queues = flags.map(|flags| {
        Arc::new(Queue {
            flags,
            ..Queue::default()
        })
    });
    let builder = Stack::with_queues(queues.clone())
        .address("10.0.0.1/24".parse().unwrap())
        .receive_buffer(2048)
        .send_buffer(2048)
        .seed(1)
        .clock(Arc::new(Still(SystemClock.now())));
    let (stack, drivers) = builder.build_with_drivers().unwrap();
    (stack, drivers.try_into().unwrap(), queues)
}

/// Both drivers get the SYN, one of them also the peer's reset after it.
fn same_syn() {
    let (stack, [mut one, mut other], _queues) = stack([&[SYN], &[SYN, RST]]);
    let listening = stack.listen("10.0.0.1:80".parse().unwrap(), BACKLOG, false);
    let listening = listening.unwrap();
    let thread = spawn(move || {
        other.poll().unwrap();
        other
    });
    one.poll().unwrap();
    let other = join(thread);
    let shared = stack.shared();
    let connections = shared.table.connections();
    claim(connections <= 1, "one connection");
    let half_open = shared.accepting.half_open.lock().len();
    claim(
        half_open == connections,
        "a half-open entry without a connection",
    );
    let free = (0..=BACKLOG).take_while(|_| listening.reserve()).count();
    claim(
        free == BACKLOG - half_open,
        "places in the backlog and half-open connections differ",
    );
    drop((one, other));
}

#[test]
fn a_syn_by_two_queues() {
    explore("the same SYN by two queues", same_syn);
}

#[test]
#[should_panic(expected = "does not hold")]
fn fails_if_a_connection_can_be_found_before_its_listener() {
    explore_without(Protection::HalfOpenFirst, same_syn);
}

/// The first driver falls asleep; a connection of the second one enters TIME-WAIT.
fn record_against_sleep() {
    let (stack, [one, other], queues) = stack([&[], &[]]);
    let stream = TcpSocket::new(&stack)
        .queue(1)
        .start("10.0.0.2:9".parse().unwrap())
        .unwrap();
    let shared = stack.shared().clone();
    let tuple = stream.conn().tuple;
    let Some(crate::stack::demux::conn_table::Entry::Conn(conn)) = shared.table.get(&tuple) else {
        panic!("not in the table");
    };
    let record = TimeWait {
        tuple,
        record: Record {
            snd_nxt: 1,
            rcv_nxt: 1,
            timestamps: None,
        },
    };
    let thread = spawn(move || shared.closed(&conn, Some(record)));
    let sleeper = Running::new(one);
    let asleep = sleeper.fall_asleep();
    join(thread);
    let deadline = asleep.and_then(|(deadline, _)| deadline);
    let minute = Duration::from_secs(60);
    let in_time = deadline.is_some_and(|at| at <= stack.now() + minute);
    let woken = queues[0].woken.load(Ordering::Relaxed) > 0;
    claim(in_time || woken, "the sleeper wakes up for the record");
    drop((sleeper, other));
}

#[test]
fn a_record_while_its_driver_falls_asleep() {
    explore("a record against falling asleep", record_against_sleep);
}

#[test]
#[should_panic(expected = "does not hold")]
fn fails_if_a_driver_checks_before_it_marks_itself_asleep() {
    explore_without(Protection::SleepFirst, record_against_sleep);
}

/// The first driver falls asleep; a connection of the stack with itself sends a frame.
fn frame_against_sleep() {
    let (stack, [one, other], queues) = stack([&[], &[]]);
    let shared = stack.shared().clone();
    let thread = spawn(move || {
        let packet = Packet {
            header: &[0x45; 40],
            payload: &[],
            ip_header_len: 20,
            checksum: Checksum::partial_tcp(20),
            segment: None,
        };
        let home = Home {
            queue: 0,
            looped: true,
        };
        shared.link(home).transmit(&packet).unwrap();
    });
    let sleeper = Running::new(one);
    let sleeps = sleeper.fall_asleep().is_some();
    join(thread);
    let woken = queues[0].woken.load(Ordering::Relaxed) > 0;
    claim(!sleeps || woken, "the sleeper wakes up for the frame");
    drop((sleeper, other));
}

#[test]
fn a_frame_of_its_own_while_a_driver_falls_asleep() {
    explore("a frame against falling asleep", frame_against_sleep);
}

#[test]
#[should_panic(expected = "does not hold")]
fn fails_if_a_driver_checks_for_frames_before_it_marks_itself_asleep() {
    explore_without(Protection::SleepFirst, frame_against_sleep);
}
