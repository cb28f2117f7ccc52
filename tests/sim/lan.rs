//! A switch of Ethernet, in virtual time: frames are lost, late, overtaken and doubled, and those of ARP and neighbour
//! discovery more often than others.

use crate::clock::SetClock;
use fastrand::Rng;
use sosplice::clock::Clock;
use sosplice::link::{
    Capabilities, Checksum, Frame, Interest, Link, Packet, ReceiveError, TransmitError,
};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// Chances are shares of 1.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Faults {
    pub(crate) loss: f64,
    /// Loss of ARP, of neighbour discovery and of DHCP.
    pub(crate) control_loss: f64,
    pub(crate) duplication: f64,
    pub(crate) delay: Duration,
    /// A frame is late by up to this much.
    pub(crate) jitter: Duration,
}

#[derive(Debug)]
struct State {
    rng: Rng,
    faults: Faults,
    /// Frames on their way: when and, of the same time, in which order they arrive at a port.
    flying: BTreeMap<(Instant, u64), (usize, Vec<u8>, Checksum)>,
    serial: u64,
    ports: Vec<VecDeque<Frame>>,
    /// The ports of hardware addresses, by the sources of frames.
    learned: HashMap<[u8; 6], usize>,
    lost: u64,
    control_lost: u64,
}

#[derive(Debug, Clone)]
pub(crate) struct Lan {
    clock: Arc<SetClock>,
    state: Arc<Mutex<State>>,
}

/// A port of the switch: a transport of frames.
#[derive(Debug, Clone)]
pub(crate) struct Port {
    lan: Lan,
    index: usize,
}

impl Lan {
    pub(crate) fn new(seed: u64, faults: Faults, clock: &Arc<SetClock>) -> Lan {
        let state = State {
            rng: Rng::with_seed(seed),
            faults,
            flying: BTreeMap::new(),
            serial: 0,
            ports: Vec::new(),
            learned: HashMap::new(),
            lost: 0,
            control_lost: 0,
        };
        Lan {
            clock: clock.clone(),
            state: Arc::new(Mutex::new(state)),
        }
    }

    pub(crate) fn port(&self) -> Port {
        let mut state = self.lock();
        state.ports.push(VecDeque::new());
        Port {
            lan: self.clone(),
            index: state.ports.len() - 1,
        }
    }

    pub(crate) fn next(&self) -> Option<Instant> {
        self.lock().flying.keys().next().map(|(at, _)| *at)
    }

    /// Delivers frames that are due.
    pub(crate) fn run(&self) {
        let now = self.clock.now();
        let mut state = self.lock();
        while let Some(first) = state
            .flying
            .first_entry()
            .filter(|first| first.key().0 <= now)
        {
            let (port, bytes, checksum) = first.remove();
            state.ports[port].push_back(Frame::new(&bytes).checksum(checksum));
        }
    }

    /// Frames that were lost, and those among them with control messages.
    pub(crate) fn lost(&self) -> (u64, u64) {
        let state = self.lock();
        (state.lost, state.control_lost)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }
}

/// ARP, neighbour discovery, DHCP.
fn is_control(frame: &[u8]) -> bool {
    let packet = &frame[14..];
    match frame[12..14] {
        [8, 6] => true,
        [8, 0] => packet[9] == 17 && [67, 68].contains(&packet[23]) && packet[22] == 0,
        _ => packet[6] == 58 && (133..=137).contains(&packet[40]),
    }
}

impl State {
    /// Sends a frame to a port, or to none.
    fn carry(&mut self, port: usize, bytes: &[u8], checksum: Checksum, now: Instant) {
        let faults = self.faults;
        let control = is_control(bytes);
        let loss = if control {
            faults.control_loss
        } else {
            faults.loss
        };
        if self.rng.f64() < loss {
            self.lost += 1;
            self.control_lost += u64::from(control);
            return;
        }
        let copies = if self.rng.f64() < faults.duplication {
            2
        } else {
            1
        };
        for _ in 0..copies {
            let jitter = self.rng.u64(0..=faults.jitter.as_nanos() as u64);
            let at = now + faults.delay + Duration::from_nanos(jitter);
            self.serial += 1;
            self.flying
                .insert((at, self.serial), (port, bytes.to_vec(), checksum));
        }
    }
}

impl Link for Port {
    fn capabilities(&self) -> Capabilities {
        Capabilities::new(1514).checksum(true)
    }

    fn receive(&self, frames: &mut Vec<Frame>, max: usize) -> Result<usize, ReceiveError> {
        let mut state = self.lan.lock();
        let most = state.rng.usize(1..=max);
        let inbox = &mut state.ports[self.index];
        let count = most.min(inbox.len());
        frames.extend(inbox.drain(..count));
        Ok(count)
    }

    fn transmit(&self, packet: &Packet<'_>) -> Result<(), TransmitError> {
        let (bytes, now) = (packet.to_vec(), self.lan.clock.now());
        let mut state = self.lan.lock();
        let address = |at: usize| bytes[at..at + 6].try_into().unwrap();
        let (to, from): ([u8; 6], [u8; 6]) = (address(0), address(6));
        assert!(bytes.len() <= 1514 && from[0] & 1 == 0);
        state.learned.insert(from, self.index);
        let known = state.learned.get(&to).copied();
        for port in 0..state.ports.len() {
            if port != self.index && known.is_none_or(|known| known == port) {
                state.carry(port, &bytes, packet.checksum, now);
            }
        }
        Ok(())
    }

    fn wait(&self, _interest: Interest, _deadline: Option<Instant>) -> io::Result<()> {
        Ok(())
    }

    fn wake(&self) {}
}
