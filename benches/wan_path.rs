//! A path between two TUNs with a rate, a queue, a delay and impairments.
//!
//! `wan_path --tun wan@client --tun wan@front --rate 50 --delay 25 --queue 300000`; without arguments
//! it explains itself. It prints `ready`, and on SIGTERM statistics of the packets. The devices have no
//! offload: no packet is larger than their MTU, so a loss is one packet. `benches/wan.py` runs it.
#![allow(missing_docs, reason = "a program")]

#[cfg(target_os = "linux")]
#[path = "support/plain_tun.rs"]
mod plain_tun;

#[cfg(target_os = "linux")]
mod path {
    use super::plain_tun::{PlainTun, Spec};
    use clap::{CommandFactory, Parser};
    use rustix::buffer::spare_capacity;
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    use rustix::io::{Errno, read, write};
    use sosplice::clock::{Clock, SystemClock};
    use std::cmp::Reverse;
    use std::collections::{BinaryHeap, HashMap};
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::{Duration, Instant};

    /// The granularity of the loop: earlier events happen now.
    const GRAIN: Duration = Duration::from_micros(100);

    /// A path between two TUN devices.
    #[derive(Debug, Parser)]
    struct Arguments {
        /// NAME[@NETNS], twice.
        #[arg(long)]
        tun: Vec<Spec>,
        /// Mbit/s in each direction.
        #[arg(long, default_value_t = 50.0)]
        rate: f64,
        /// Milliseconds in each direction.
        #[arg(long, default_value_t = 25.0)]
        delay: f64,
        /// Maximum bytes in the queue: from the first device to the second, and back.
        #[arg(long, num_args = 2, default_values_t = [300_000, 300_000])]
        queue: Vec<u64>,
        /// Percent of the packets that are lost, in each direction.
        #[arg(long, default_value_t = 0.0)]
        loss: f64,
        /// Each packet is delayed by up to this many milliseconds.
        #[arg(long, default_value_t = 0.0)]
        jitter: f64,
        /// With jitter packets overtake each other.
        #[arg(long)]
        overtake: bool,
        /// Percent of the packets that are delayed by this many milliseconds, and overtaken meanwhile.
        #[arg(long, num_args = 2, default_values_t = [0.0, 0.0])]
        late: Vec<f64>,
        /// An outage: seconds after the first packet, and its length.
        #[arg(long, num_args = 2, default_values_t = [0.0, 0.0])]
        outage: Vec<f64>,
        /// Of each connection the packet with this byte from the second device is lost, once.
        #[arg(long, default_value_t = 0)]
        drop_byte: u32,
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// Given by `cargo bench`.
        #[arg(long, hide = true)]
        bench: bool,
    }

    pub(crate) fn main() -> anyhow::Result<()> {
        let arguments = Arguments::parse();
        let [a, b] = arguments.tun.as_slice() else {
            Arguments::command().print_help()?;
            return Ok(());
        };
        let tuns = [a.open(false)?, b.open(false)?];
        let stop = Arc::new(AtomicBool::new(false));
        signal_hook::flag::register(signal_hook::consts::SIGTERM, Arc::clone(&stop))?;
        println!("ready");
        let mut path = Path::new(arguments);
        while !stop.load(Ordering::Relaxed) {
            path.turn(&tuns)?;
        }
        let [there, back] = path.ways.map(|way| way.counts);
        println!("there {there:?}, back {back:?}");
        Ok(())
    }

    #[derive(Debug, Default)]
    #[allow(dead_code, reason = "printed")]
    struct Counts {
        packets: u64,
        /// Random losses, and those of a full queue.
        lost: u64,
        overflowed: u64,
    }

    /// One direction.
    #[derive(Debug)]
    struct Way {
        queue: f64,
        /// When the rate has let all pass.
        free_at: Instant,
        /// Arrival of the latest packet in order.
        last: Instant,
        /// The byte to be lost, and of each connection its first sequence number until that is so.
        drop_byte: u32,
        connections: HashMap<[u8; 4], u32>,
        counts: Counts,
    }

    /// The TCP header of an IPv4 packet, and the bytes of its payload.
    fn tcp(packet: &[u8]) -> Option<(&[u8], u32)> {
        let header = usize::from(packet.first()? & 15) * 4;
        let tcp = packet.get(header..).filter(|tcp| tcp.len() >= 20)?;
        let len = tcp.len().checked_sub(usize::from(tcp[12] >> 4) * 4)?;
        (packet[9] == 6).then_some((tcp, u32::try_from(len).ok()?))
    }

    impl Way {
        /// Whether the packet is the one of its connection that is to be lost.
        fn is_chosen(&mut self, packet: &[u8]) -> bool {
            let Some((tcp, len)) = tcp(packet).filter(|_| self.drop_byte > 0) else {
                return false;
            };
            let ports = [tcp[0], tcp[1], tcp[2], tcp[3]];
            let seq = u32::from_be_bytes([tcp[4], tcp[5], tcp[6], tcp[7]]);
            if tcp[13] & 2 != 0 {
                self.connections.insert(ports, seq);
                return false;
            }
            let first = self.connections.get(&ports);
            // The SYN has a sequence number too.
            let before = first.map(|first| self.drop_byte.wrapping_sub(seq.wrapping_sub(*first)));
            let chosen = before.is_some_and(|before| before < len);
            if chosen {
                self.connections.remove(&ports);
            }
            chosen
        }

        /// When the rate has let the packet pass; `None`: the queue is full.
        fn queue(&mut self, len: f64, rate: f64, now: Instant) -> Option<Instant> {
            let waits = self.free_at.saturating_duration_since(now).as_secs_f64();
            if waits * rate + len > self.queue {
                self.counts.overflowed += 1;
                return None;
            }
            self.free_at = self.free_at.max(now) + Duration::from_secs_f64(len / rate);
            Some(self.free_at)
        }
    }

    /// A packet in flight: arrival time, number, origin.
    type UnderWay = Reverse<(Instant, u64, usize, Vec<u8>)>;

    struct Path {
        arguments: Arguments,
        ways: [Way; 2],
        under_way: BinaryHeap<UnderWay>,
        count: u64,
        random: fastrand::Rng,
        /// When the first packet arrived.
        began: Option<Instant>,
    }

    impl Path {
        fn new(arguments: Arguments) -> Path {
            let now = SystemClock.now();
            let way = |direction: usize| Way {
                queue: arguments.queue[direction] as f64,
                free_at: now,
                last: now,
                drop_byte: arguments.drop_byte * u32::try_from(direction).unwrap_or(0),
                connections: HashMap::new(),
                counts: Counts::default(),
            };
            Path {
                ways: [way(0), way(1)],
                under_way: BinaryHeap::new(),
                count: 0,
                random: fastrand::Rng::with_seed(arguments.seed),
                began: None,
                arguments,
            }
        }

        /// Waits until something arrives, at either end of the path.
        fn turn(&mut self, tuns: &[PlainTun; 2]) -> anyhow::Result<()> {
            let now = SystemClock.now();
            let next = self.under_way.peek().map(|Reverse(packet)| packet.0);
            let wait = next.map(|at| at.saturating_duration_since(now).max(GRAIN));
            let wait = wait.map(Timespec::try_from).transpose()?;
            let mut fds = [0, 1].map(|n: usize| PollFd::new(&tuns[n].fd, PollFlags::IN));
            match poll(&mut fds, wait.as_ref()) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            let ready = fds.map(|fd| fd.revents().contains(PollFlags::IN));
            for from in [0, 1] {
                if ready[from] {
                    self.take(from, &tuns[from])?;
                }
            }
            let now = SystemClock.now();
            while let Some(Reverse(packet)) = self.under_way.peek()
                && packet.0 <= now
            {
                // A full device drops it, like a router.
                let _refused = write(&tuns[1 - packet.2].fd, &packet.3);
                self.under_way.pop();
            }
            Ok(())
        }

        /// Receives from a device.
        fn take(&mut self, from: usize, tun: &PlainTun) -> anyhow::Result<()> {
            for _ in 0..64 {
                let mut packet = Vec::with_capacity(2048);
                match read(&tun.fd, spare_capacity(&mut packet)) {
                    Ok(_) => {}
                    Err(Errno::AGAIN) => break,
                    Err(error) => return Err(error.into()),
                }
                // The kernel's own packets (router solicitations) are ignored.
                if packet.first().is_some_and(|first| first >> 4 == 4)
                    && let Some(at) = self.pass(from, &packet, SystemClock.now())
                {
                    self.count += 1;
                    self.under_way.push(Reverse((at, self.count, from, packet)));
                }
            }
            Ok(())
        }

        /// When a packet arrives; `None` if it is lost.
        fn pass(&mut self, from: usize, packet: &[u8], now: Instant) -> Option<Instant> {
            let arguments = &self.arguments;
            let began = *self.began.get_or_insert(now);
            let way = &mut self.ways[from];
            way.counts.packets += 1;
            let outage = (now - began).as_secs_f64() - arguments.outage[0];
            let outage = (0.0..arguments.outage[1]).contains(&outage);
            let rate = arguments.rate * 1e6 / 8.0;
            let passed = if outage || way.is_chosen(packet) {
                None
            } else {
                let left = way.queue(packet.len() as f64, rate, now)?;
                (self.random.f64() * 100.0 >= arguments.loss).then_some(left)
            };
            let Some(left) = passed else {
                way.counts.lost += 1;
                return None;
            };
            let late = arguments.delay + arguments.jitter * self.random.f64();
            let at = left + Duration::from_secs_f64(late / 1e3);
            if self.random.f64() * 100.0 < arguments.late[0] {
                return Some(at + Duration::from_secs_f64(arguments.late[1] / 1e3));
            }
            if arguments.overtake {
                return Some(at);
            }
            way.last = way.last.max(at);
            Some(way.last)
        }
    }
}

#[cfg(target_os = "linux")]
fn main() -> anyhow::Result<()> {
    path::main()
}

#[cfg(not(target_os = "linux"))]
fn main() {
    println!("TUN devices are for Linux only");
}
