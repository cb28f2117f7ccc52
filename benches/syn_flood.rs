//! The throughput of existing splices during a flood of SYNs from forged addresses.
//!
//! A proxy in one thread, its peers and links as in `memory`. Another thread makes SYNs for the proxy's
//! front and takes the answers. Their rate is relative to the proxy's processor time, so that other
//! load of the machine matters less; at most half of a batch are SYNs. Rounds with and without the
//! flood alternate. `cargo bench --bench syn_flood` prints a table; `-- count cookie` answers a million
//! SYNs and nothing else, for `valgrind --tool=callgrind --toggle-collect='*flooded*'`.
#![allow(missing_docs, clippy::disallowed_methods, reason = "a program")]

#[path = "support/machine.rs"]
mod machine;
#[path = "support/memory_ours.rs"]
#[allow(dead_code, reason = "`scale` uses the rest")]
mod ours;
#[path = "support/peers.rs"]
#[allow(dead_code, reason = "`scale` uses the rest")]
mod peers;

use machine::{busy, caption, summary};
use ours::Ours;
use peers::{CLIENT, FRONT, Offload, PROXY_PORT, Rig};
use sosplice::Stack;
use sosplice::link::memory::{self, MemoryLink};
use sosplice::link::{
    Capabilities, Checksum, Frame, Interest, Link, Packet, ReceiveError, TransmitError,
};
use sosplice::stack::{Builder, Stats, TcpListener};
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// Bytes of each receive and send buffer.
const RING: usize = 256 * 1024;
/// Frames that a link holds in each direction.
pub(crate) const FRAMES: usize = 256;
const ROUNDS: usize = 7;
/// SYNs a second.
const RATE: u64 = 100_000;
/// How often the flood's thread checks for room.
const TICK: Duration = Duration::from_micros(500);

struct Case {
    name: &'static str,
    flows: u16,
    segment: usize,
    offload: Offload,
    /// Bytes of a round.
    bytes: u64,
}

const CASES: [Case; 3] = [
    Case {
        name: "1 flow x 64 KiB",
        flows: 1,
        segment: 44 * 1460,
        offload: Offload::Segments,
        bytes: 4 << 30,
    },
    Case {
        name: "16 flows x 64 KiB",
        flows: 16,
        segment: 44 * 1460,
        offload: Offload::Segments,
        bytes: 4 << 30,
    },
    Case {
        name: "16 flows x 1460",
        flows: 16,
        segment: 1460,
        offload: Offload::Nothing,
        bytes: 1 << 30,
    },
];

/// The fate of the SYNs.
#[derive(Debug, Clone, Copy)]
struct Flood {
    name: &'static str,
    port: u16,
    cookies: bool,
    /// Of the stack's connections: with none to spare, SYNs are dropped at once.
    spare: bool,
}

const FLOODS: [Flood; 4] = [
    Flood {
        name: "answered with cookies",
        port: PROXY_PORT,
        cookies: true,
        spare: true,
    },
    Flood {
        name: "dropped, the backlog is full",
        port: PROXY_PORT,
        cookies: false,
        spare: true,
    },
    Flood {
        name: "dropped, the stack is full",
        port: PROXY_PORT,
        cookies: true,
        spare: false,
    },
    Flood {
        name: "to a port without a listener",
        port: 7,
        cookies: true,
        spare: true,
    },
];

/// A link with the flood's link beside it.
#[derive(Debug)]
struct Flooded {
    link: MemoryLink,
    flood: Arc<MemoryLink>,
    tap: Arc<Tap>,
    /// The start, and the number of SYNs so far.
    pace: Mutex<Option<(Duration, u64)>>,
}

impl Flooded {
    /// The number of SYNs due by now. The clock is read without a flood too.
    fn due(&self, most: usize) -> usize {
        let (now, open) = (busy(), self.tap.open.load(Ordering::Relaxed));
        let mut pace = self.pace.lock().expect("one thread");
        if !open {
            *pace = None;
            return 0;
        }
        let (since, come) = pace.get_or_insert((now, 0));
        let micros = u64::try_from((now - *since).as_micros()).expect("not for so long");
        let due = (micros * RATE / 1_000_000 - *come).min(most as u64);
        *come += due;
        usize::try_from(due).expect("at most a batch")
    }
}

impl Link for Flooded {
    fn capabilities(&self) -> Capabilities {
        self.link.capabilities()
    }

    fn receive(&self, frames: &mut Vec<Frame>, max: usize) -> Result<usize, ReceiveError> {
        let due = self.due(max / 2);
        let forged = self.flood.receive(frames, due)?;
        let tap = &self.tap;
        tap.come.fetch_add(forged as u64, Ordering::Relaxed);
        tap.late.fetch_add((due - forged) as u64, Ordering::Relaxed);
        Ok(forged + self.link.receive(frames, max - forged)?)
    }

    fn transmit(&self, packet: &Packet<'_>) -> Result<(), TransmitError> {
        if packet.header[16..20] == CLIENT.octets() {
            self.link.transmit(packet)
        } else {
            self.flood.transmit(packet)
        }
    }

    fn wait(&self, interest: Interest, deadline: Option<Instant>) -> io::Result<()> {
        self.link.wait(interest, deadline)
    }

    fn wake(&self) {
        self.link.wake();
    }
}

/// A SYN with the options of a usual client.
struct Syn {
    bytes: [u8; 52],
    random: fastrand::Rng,
}

impl Syn {
    fn new(port: u16) -> Syn {
        let mut bytes = [0; 52];
        bytes[..10].copy_from_slice(&[0x45, 0, 0, 52, 0, 0, 0x40, 0, 64, 6]);
        bytes[16..20].copy_from_slice(&FRONT.octets());
        bytes[22..24].copy_from_slice(&port.to_be_bytes());
        bytes[32..36].copy_from_slice(&[8 << 4, 2, 0xff, 0xff]);
        bytes[40..].copy_from_slice(&[2, 4, 5, 180, 1, 3, 3, 7, 1, 1, 4, 2]);
        Syn {
            bytes,
            random: fastrand::Rng::with_seed(u64::from(port)),
        }
    }

    /// The next one, with a random address, port and sequence number.
    fn next(&mut self) -> Packet<'_> {
        let bytes = &mut self.bytes;
        let from = 0x6440_0000 | self.random.u32(..1 << 22);
        bytes[12..16].copy_from_slice(&from.to_be_bytes());
        bytes[20..22].copy_from_slice(&self.random.u16(1..).to_be_bytes());
        bytes[24..28].copy_from_slice(&self.random.u32(..).to_be_bytes());
        bytes[10..12].fill(0);
        let sum = internet_checksum::checksum(&bytes[..20]);
        bytes[10..12].copy_from_slice(&sum);
        Packet::new(bytes, &[], 20).checksum(Checksum::partial_tcp(20))
    }
}

/// The state of the flood's thread.
#[derive(Debug, Default)]
struct Tap {
    open: AtomicBool,
    over: AtomicBool,
    come: AtomicU64,
    /// SYNs that were due, but not ready.
    late: AtomicU64,
    answers: AtomicU64,
}

fn flood(tap: &Tap, link: &MemoryLink, port: u16) {
    let mut syn = Syn::new(port);
    let mut frames = Vec::new();
    while !tap.over.load(Ordering::Relaxed) {
        thread::sleep(TICK);
        let answers = link.receive(&mut frames, usize::MAX >> 1).unwrap_or(0);
        tap.answers.fetch_add(answers as u64, Ordering::Relaxed);
        frames.clear();
        while link.transmit(&syn.next()).is_ok() {}
    }
}

struct Contestant {
    rig: Rig<Ours>,
    tap: Arc<Tap>,
    thread: Option<JoinHandle<()>>,
}

impl Contestant {
    fn new(case: &Case, which: Flood) -> Contestant {
        let (near, far) = memory::pair(memory::Config::default().frames(16_384).bytes(16 << 20));
        let options = |builder: Builder| {
            let most = if which.spare {
                10_000
            } else {
                case.flows.into()
            };
            builder.syn_cookies(which.cookies).max_connections(most)
        };
        let tap = Arc::new(Tap::default());
        let its = tap.clone();
        let near = Arc::new(near);
        let between = |link| -> Arc<dyn Link> {
            Arc::new(Flooded {
                link,
                flood: near.clone(),
                tap: its.clone(),
                pace: Mutex::default(),
            })
        };
        let sizes = (case.segment, RING);
        let proxy = Ours::behind(case.flows, case.offload, sizes, (&between, &options));
        let rig = Rig::new(proxy, case.flows, case.segment, FRAMES);
        let its = tap.clone();
        let thread = thread::spawn(move || flood(&its, &far, which.port));
        let mut contestant = Contestant {
            rig,
            tap,
            thread: Some(thread),
        };
        // All rings are used once, and the backlog is full.
        contestant.time(u64::from(case.flows) * RING as u64 * 2, true);
        contestant
    }

    /// Processor time of the proxy's thread.
    fn time(&mut self, bytes: u64, flood: bool) -> Duration {
        self.tap.open.store(flood, Ordering::Relaxed);
        let start = busy();
        self.rig.transfer(bytes);
        let taken = busy().saturating_sub(start);
        self.tap.open.store(false, Ordering::Relaxed);
        self.rig.settle();
        taken
    }
}

impl Drop for Contestant {
    fn drop(&mut self) {
        self.tap.over.store(true, Ordering::Relaxed);
        let ended = self.thread.take().map(JoinHandle::join);
        assert!(
            ended.is_none_or(|ended| ended.is_ok()),
            "the flood's thread"
        );
    }
}

fn describe() {
    caption(&format!(
        "Gbit per second of the proxy's thread's processor time, peers and links included: median\n\
         (range) of {ROUNDS} rounds, without and with {RATE} SYNs per second of it, interleaved"
    ));
    println!(
        "buffers {RING} bytes, MTU 1500, backlog 128; the SYNs come from another thread, from"
    );
    println!("4 million addresses, with MSS, scale and SACK; checksums left to the link");
}

fn table() {
    describe();
    for case in &CASES {
        println!("\n{}", case.name);
        for which in FLOODS {
            let mut contestant = Contestant::new(case, which);
            let mut rates = [const { Vec::new() }; 2];
            let mut ratios = Vec::new();
            let mut flooded = Duration::ZERO;
            let before = contestant.tap.come.load(Ordering::Relaxed);
            for round in 0..ROUNDS {
                let mut now = [0.0; 2];
                for turn in 0..2 {
                    let flood = (round + turn) % 2;
                    let taken = contestant.time(case.bytes, flood == 1);
                    now[flood] = case.bytes as f64 * 8e-9 / taken.as_secs_f64();
                    rates[flood].push(now[flood]);
                    flooded += if flood == 1 { taken } else { Duration::ZERO };
                }
                ratios.push(now[1] / now[0]);
            }
            let come = contestant.tap.come.load(Ordering::Relaxed) - before;
            let rate = come as f64 / flooded.as_secs_f64();
            let (ratio, least, most) = summary(ratios);
            let [without, with] = rates.map(summary);
            println!(
                "  {:<31} {:6.2} {:6.2}, with / without {ratio:.3} ({least:.3} to {most:.3}); \
                 {rate:.0} SYNs/s, {} late, answers {}",
                which.name,
                without.0,
                with.0,
                contestant.tap.late.load(Ordering::Relaxed),
                contestant.tap.answers.load(Ordering::Relaxed),
            );
            assert_eq!(contestant.rig.proxy.broken(), 0, "connections were reset");
            check(contestant.rig.proxy.front_stats(), which);
        }
    }
}

/// Checks the fate of the SYNs.
fn check(stats: Stats, which: Flood) {
    let fate = match which {
        Flood { port: 7, .. } => stats.frames_stray,
        Flood { spare: false, .. } => stats.connections_refused,
        Flood { cookies: true, .. } => stats.syn_cookies_sent,
        Flood { .. } => stats.syns_dropped,
    };
    assert!(fate > 10_000, "{which:?}: {stats:?}");
}

/// SYNs only: the number of instructions for one.
#[inline(never)]
fn flooded(driver: &mut sosplice::stack::Driver, far: &MemoryLink, syn: &mut Syn) {
    let mut frames = Vec::new();
    for _ in 0..100_000 / 32 {
        for _ in 0..32 {
            far.transmit(&syn.next()).expect("room");
        }
        driver.poll().expect("the link is there");
        frames.clear();
        far.receive(&mut frames, 1000).expect("the link is there");
    }
}

fn count(which: Flood) {
    let (near, far) = memory::pair(memory::Config::default());
    let builder = Stack::builder(near)
        .address(ipnet::IpNet::new(FRONT.into(), 24).expect("a prefix"))
        .syn_cookies(which.cookies)
        .max_connections(if which.spare { 10_000 } else { 0 });
    let (stack, mut driver) = builder.build_with_driver().expect("a stack");
    let at = SocketAddr::new(FRONT.into(), PROXY_PORT);
    let _listener = TcpListener::bind(&stack, at).expect("a listener");
    let mut syn = Syn::new(which.port);
    flooded(&mut driver, &far, &mut syn);
    let start = busy();
    for _ in 0..10 {
        flooded(&mut driver, &far, &mut syn);
    }
    let taken = busy().saturating_sub(start);
    println!(
        "{}: {:.0} ns for each SYN, its making included",
        which.name,
        taken.as_nanos() as f64 / 1e6
    );
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [.., command, name] = &arguments[..]
        && command == "count"
    {
        let flood = FLOODS.iter().find(|flood| flood.name.contains(name));
        return count(*flood.expect("count and the fate of the SYNs"));
    }
    if arguments.iter().any(|argument| argument == "--test") {
        return count(FLOODS[0]);
    }
    table();
}
