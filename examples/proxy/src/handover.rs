//! A second process takes over from the first one (`--handover SOCKET`), which ends when its connections have.
//!
//! The first process listens on a Unix socket; the second one, started with the same command line, connects to it:
//!
//! | second process | first process | reads the devices |
//! |---|---|---|
//! | `Hello`: version, devices | | first |
//! | | `Offered` with duplicates of its descriptors, or `Refused` | first |
//! | builds its stacks, listens: all that can fail | goes on as before | first |
//! | `Take` | stops reading | |
//! | | `Yours`, with the clients whose handshakes it has begun | |
//! | `Serving` | drains | second |
//!
//! If either ends, or does not answer in time, before `Serving`, the first one reads again and goes on: packets wait in
//! the device meanwhile. The kernel gives each packet to one reader, so the second process passes on those that belong
//! to no connection of its own ([`lane`]); it looks for its own connections by asking its stack. The first one sends to
//! the devices itself. Both connect to the backends from the same addresses, each with its half of the ports.
//!
//! When the second one ends first, the first one reads again, for its own connections only: it accepts none.
//!
//! * [`Candidate`] is the second process until `Serving`, [`Post`] either one from then on.
//! * [`control`] has the messages and the socket file, [`lane`] the devices and the way of passed packets.

mod candidate;
mod control;
pub(crate) mod lane;
mod post;

pub(crate) use candidate::{Candidate, Given};
pub(crate) use post::{Post, Terms};

use crate::arguments::{Arguments, TunSpec};
use rustix::net::sockopt::{set_socket_reuseaddr, set_socket_reuseport};
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, socket_with};
use sosplice::clock::{Clock, SystemClock};
use sosplice::link::tun::{Builder, OpenError, Tun};
use std::io;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::os::fd::OwnedFd;
use std::thread;
use std::time::Duration;

/// How long one side waits for an answer that needs no work.
const ANSWER: Duration = Duration::from_secs(5);
/// How long the second process may take to build its stacks.
const PREPARE: Duration = Duration::from_secs(20);
/// How long a process that ends may still have a device, and how often to check.
const PATIENCE: Duration = Duration::from_secs(1);
const LOOK: Duration = Duration::from_millis(5);
/// The local ports of connections to backends, of which each of two processes has one half.
const HALVES: [RangeInclusive<u16>; 2] = [1024..=33_279, 33_280..=65_535];

/// The ports of a half.
pub(crate) fn ports(upper: bool) -> RangeInclusive<u16> {
    HALVES[usize::from(upper)].clone()
}

/// What both processes must have in common: names of the devices with their namespaces, the number of queues, and
/// whether the kernel is asked for offloads.
fn common(arguments: &Arguments) -> Vec<String> {
    let name = |spec: &TunSpec| match &spec.netns {
        Some(netns) => format!("{}@{netns}", spec.name),
        None => spec.name.clone(),
    };
    let mut all: Vec<_> = arguments.tun.iter().map(name).collect();
    all.push(match arguments.queues {
        Some(queues) => format!("--queues {queues}"),
        None => "no --queues".into(),
    });
    all.push(if arguments.no_offload {
        "--no-offload".into()
    } else {
        "no --no-offload".into()
    });
    all
}

/// What a process finds as it starts.
#[derive(Debug)]
pub(crate) enum Start {
    /// No other process.
    Alone,
    /// Another one, which goes on until [`Candidate::take`].
    Second(Box<Candidate>),
}

/// Where a device comes from.
#[derive(Debug)]
pub(crate) struct Origin {
    /// The half of the ports.
    pub(crate) upper: bool,
    pub(crate) given: Option<Given>,
}

impl Start {
    /// Whether this process has the upper half of the ports.
    pub(crate) fn upper(&self) -> bool {
        match self {
            Start::Alone => false,
            Start::Second(candidate) => candidate.upper,
        }
    }

    /// The origin of a device, which is asked for once.
    pub(crate) fn origin(&mut self, index: usize) -> Origin {
        let upper = self.upper();
        let given = match self {
            Start::Alone => None,
            Start::Second(candidate) => candidate.devices[index].take(),
        };
        Origin { upper, given }
    }
}

/// Opens a device that a process which ends just now may still have: its socket may be closed before its devices.
#[expect(
    clippy::disallowed_methods,
    reason = "the kernel does not report when a device is free"
)]
pub(crate) fn open_left(builder: &Builder) -> Result<Vec<Tun>, OpenError> {
    let end = SystemClock.now() + PATIENCE;
    loop {
        match builder.clone().build_queues() {
            Err(OpenError::Busy(_)) if SystemClock.now() < end => thread::sleep(LOOK),
            result => return result,
        }
    }
}

/// The socket for metrics, at an address where the former process may still have one. It does not listen yet.
pub(crate) fn metrics_socket(at: SocketAddr) -> io::Result<OwnedFd> {
    let family = match at {
        SocketAddr::V4(_) => AddressFamily::INET,
        SocketAddr::V6(_) => AddressFamily::INET6,
    };
    let socket = socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    set_socket_reuseaddr(&socket, true)?;
    set_socket_reuseport(&socket, true)?;
    bind(&socket, &at)?;
    Ok(socket)
}
