//! One connection against a scripted peer, step by step.

mod at_random;

use super::*;
use crate::clock::{Clock, SystemClock};
use crate::link::memory::{self, MemoryLink};
use crate::link::{Capabilities, Checksum, Packet};
use crate::tcp::engine::EngineConfig;
use crate::tcp::host::Sent;
use crate::tcp::wire::{self, SYN};
use crate::tcp::wire::{ACK, Parsed, SynOptions};
use std::sync::Arc;

const IRS: u32 = u32::MAX - 5;

struct World {
    tcb: Tcb,
    end: Arc<SocketEnd>,
    link: MemoryLink,
    far: MemoryLink,
    counters: Counters,
    memory: Memory,
    options: Options,
    now: Instant,
    iss: u32,
}

impl World {
    /// A connection that waits for the peer's SYN.
    fn new(ring: usize, config: memory::Config) -> World {
        World::with(ring, config, Engine::listening)
    }

    fn with(
        ring: usize,
        config: memory::Config,
        make: impl FnOnce(&Capabilities, &EngineConfig, &Tuple) -> Engine,
    ) -> World {
        let tuple = Tuple {
            local: [10, 0, 0, 1].into(),
            remote: [10, 0, 0, 2].into(),
            local_port: 80,
            remote_port: 4000,
        };
        let (link, far) = memory::pair(config);
        let engine = EngineConfig {
            rcv_ring: ring,
            snd_ring: ring,
            shared_rings: Some(0),
            nagle: false,
            seed: 1,
        };
        let engine = make(&link.capabilities(), &engine, &tuple);
        let epoch = SystemClock.now();
        let now = epoch + Duration::from_secs(1);
        let limits = Limits::default();
        let mtu = link.capabilities().mtu;
        World {
            tcb: Tcb::new(
                tuple,
                engine,
                (ring, mtu),
                1000,
                (limits, None),
                (epoch, now),
            ),
            end: SocketEnd::new(ring, ring),
            link,
            far,
            counters: Counters::default(),
            memory: Memory::default(),
            options: Options::new(true, None, limits),
            now,
            iss: 1000,
        }
    }

    /// A connection that the peer has opened; its handshake ends with a window of `window`.
    fn accepted(ring: usize, window: u16, config: memory::Config) -> World {
        let mut world = World::new(ring, config);
        world.input(SYN, 0, 0, window, 0);
        world.serve(Work::SERVE);
        assert_eq!(world.sent()[0].header.flags, SYN | ACK);
        world.input(ACK, 1, 1, window, 0);
        world.serve(Work::SERVE);
        assert_eq!(world.tcb.state(), State::Established);
        world
    }

    /// A connection to a peer that has answered with this window, and has said nothing else.
    fn dialled(ring: usize, window: u16, options: SynOptions) -> World {
        let mut world = World::with(ring, memory::Config::default(), Engine::connecting);
        world.serve(Work::SERVE);
        assert_eq!(world.sent()[0].header.flags, SYN);
        world.hear(SYN | ACK, 0, 1, window, 0, options);
        world.serve(Work::SERVE);
        assert_eq!(world.tcb.state(), State::Established);
        world
    }

    /// A segment of the peer; its numbers count from the two SYNs.
    fn input(&mut self, flags: u8, seq: u32, ack: u32, window: u16, len: usize) {
        self.hear(flags, seq, ack, window, len, SynOptions::default());
    }

    fn hear(
        &mut self,
        flags: u8,
        seq: u32,
        ack: u32,
        window: u16,
        len: usize,
        options: SynOptions,
    ) {
        let header = Header {
            seq: IRS.wrapping_add(seq),
            ack: self.iss.wrapping_add(ack),
            flags,
            window,
            options,
        };
        let segment = Segment {
            tuple: self.tcb.tuple,
            header,
            payload: Gather::from_iter([Buf::copy_of(&vec![7; len])]),
            payload_len: len,
            sack: None,
            looped: false,
            timestamps: None,
        };
        let env = Env {
            now: self.now,
            link: &self.link,
            end: &self.end,
            counters: &self.counters,
            memory: &self.memory,
            sent: Sent::new(&self.counters),
            options: &self.options,
        };
        self.tcb.input(&segment, &env);
    }

    /// A router says that what was sent from there on does not fit.
    fn too_big(&mut self, seq: u32, mtu: usize) {
        let error = IcmpError {
            tuple: self.tcb.tuple,
            seq: self.iss.wrapping_add(seq),
            trouble: Trouble::TooBig(mtu),
        };
        let env = Env {
            now: self.now,
            link: &self.link,
            end: &self.end,
            counters: &self.counters,
            memory: &self.memory,
            sent: Sent::new(&self.counters),
            options: &self.options,
        };
        self.tcb.icmp(&error, &env);
    }

    fn serve(&mut self, work: Work) -> Served {
        let env = Env {
            now: self.now,
            link: &self.link,
            end: &self.end,
            counters: &self.counters,
            memory: &self.memory,
            sent: Sent::new(&self.counters),
            options: &self.options,
        };
        self.tcb.serve(work, &env)
    }

    /// What the peer has received.
    fn sent(&self) -> Vec<Segment> {
        let mut frames = Vec::new();
        self.far.receive(&mut frames, 1000).unwrap();
        let parsed = frames.into_iter().map(wire::parse);
        let segments = parsed.filter_map(|parsed| match parsed {
            Parsed::Tcp(segment) => Some(segment),
            _ => None,
        });
        segments.collect()
    }
}

/// A window probe tells the peer a window; the peer may use it.
#[test]
fn a_window_that_a_probe_tells_counts() {
    let mut world = World::accepted(4096, 0, memory::Config::default());
    world.input(ACK, 1, 1, 0, 3000);
    world.serve(Work::SERVE);
    assert_eq!(world.sent().last().unwrap().header.window, 1096);
    // Less than would double the window: no update of its own is worth it.
    drop(world.end.rcv().buf.take(1024));
    world.serve(Work::SERVE);
    assert!(world.sent().is_empty());
    world.end.snd().buf.append_copy(b"probe");
    world.serve(Work::SERVE);
    let probe = world.sent();
    assert_eq!((probe[0].payload_len, probe[0].header.window), (1, 2120));
    world.input(ACK, 3001, 1, 0, 2120);
    world.serve(Work::SERVE);
    assert_eq!(world.end.rcv().buf.len(), 3000 - 1024 + 2120);
    assert_eq!(
        world.sent().last().unwrap().header.ack,
        IRS.wrapping_add(3001 + 2120)
    );
    assert_eq!(world.counters.broken.get(), 0);
}

/// Guards `Tcb::rest` and `Tcb::rise`: what follows is as if the engine had stayed.
#[test]
fn an_engine_that_was_given_back_is_not_missed() {
    let ring = 256 * 1024;
    let rested = |rests: bool| {
        let mut world = World::accepted(ring, 1000, memory::Config::default());
        world.tcb.limits.rest = rests.then_some(Duration::from_secs(5));
        world.end.snd().buf.append_copy(b"before");
        world.serve(Work::SERVE);
        world.input(ACK, 1, 7, 900, 3000);
        world.serve(Work::SERVE);
        drop(world.end.rcv().buf.take(3000));
        let served = world.serve(Work::SERVE);
        assert_eq!(
            served.next,
            rests.then(|| world.now + Duration::from_secs(5))
        );
        world.now += Duration::from_secs(5);
        assert_eq!(world.serve(Work::SERVE).next, None);
        assert_eq!(world.tcb.is_at_rest(), rests);
        world.sent();

        // A timer that comes late, and a reader that waits, are no reasons to rise.
        let mut idle = Work::SERVE;
        idle.add(Work::IDLE);
        world.serve(idle);
        assert_eq!(world.tcb.is_at_rest(), rests);
        // The peer fills the window that it was told.
        let mut seen = Vec::new();
        for at in (0..ring - 4).step_by(32_768) {
            let len = 32_768.min(ring - 4 - at);
            world.input(ACK, u32::try_from(3001 + at).unwrap(), 7, 900, len);
            assert!(!world.tcb.is_at_rest());
            world.serve(Work::SERVE);
        }
        assert_eq!(world.end.rcv().buf.len(), ring - 4);
        world.end.snd().buf.append_copy(b"after");
        world.serve(Work::SERVE);
        seen.extend(world.sent());
        world.input(
            ACK | FIN,
            u32::try_from(3001 + ring - 4).unwrap(),
            12,
            800,
            0,
        );
        world.serve(Work::SERVE);
        seen.extend(world.sent());
        assert_eq!(world.tcb.state(), State::CloseWait);
        assert_eq!(world.counters.broken.get(), 0);
        let headers = seen
            .iter()
            .map(|segment| (segment.header, segment.payload_len));
        headers.collect::<Vec<_>>()
    };
    assert_eq!(rested(true), rested(false));
}

/// Guards `Tcb::open_window`: as much as RFC 6928 2 lets a new connection send.
#[test]
fn the_first_flight_after_rest_is_ten_segments() {
    let flight = |window: u16| {
        let mut world = World::accepted(256 * 1024, window, memory::Config::default());
        world.tcb.limits.rest = Some(Duration::ZERO);
        for round in 0..3 {
            world.serve(Work::SERVE);
            assert!(world.tcb.is_at_rest());
            world.sent();
            world.end.snd().buf.append_copy(&[0; 20_000]);
            world.serve(Work::SERVE);
            let sent: usize = world.sent().iter().map(|one| one.payload_len).sum();
            // Everything arrives in the end.
            for _ in 0..100 {
                let end = u32::try_from(world.tcb.guard.snd_max()).unwrap();
                world.input(ACK, 1, 1 + end, window, 0);
                world.serve(Work::SERVE);
            }
            assert_eq!(world.tcb.guard.snd_una(), 20_000 * (round + 1));
            if round == 2 {
                return sent;
            }
        }
        unreachable!()
    };
    // Segments of 536 bytes: the peer has said nothing else.
    assert_eq!(flight(60_000), 2048 + 6 * 536);
    assert_eq!(flight(1000), 1000, "no more than the peer takes");
}

/// Whoever closes, aborts or waits for a keep-alive probe takes an engine for it.
#[test]
fn an_engine_is_taken_for_what_needs_one() {
    let still = || {
        let mut world = World::accepted(4096, 1000, memory::Config::default());
        world.tcb.limits.rest = Some(Duration::ZERO);
        world.serve(Work::SERVE);
        assert!(world.tcb.is_at_rest());
        world.sent();
        world
    };
    let mut world = still();
    world.end.cantsendmore();
    world.serve(Work::SERVE);
    assert_eq!(world.sent()[0].header.flags, FIN | ACK);
    let mut world = still();
    let done = world.serve(Work::ABORT).done;
    assert!(matches!(done, Some(Done::Closed(_))));
    assert_eq!(world.sent()[0].header.flags & RST, RST);
    let mut world = still();
    let done = world.serve(Work::NETWORK_DOWN).done;
    assert!(matches!(done, Some(Done::Closed(_))));
    let mut world = still();
    world.input(RST, 1, 1, 0, 0);
    assert!(matches!(
        world.serve(Work::SERVE).done,
        Some(Done::Closed(_))
    ));
    let mut world = still();
    let every = Duration::from_secs(60);
    let keep_alive = crate::keep_alive::KeepAlive {
        idle: every,
        interval: every,
        probes: 2,
    };
    world.tcb.vigil.set(Some(keep_alive), world.now);
    assert_eq!(world.serve(Work::SERVE).next, Some(world.now + every));
    world.now += every;
    assert_eq!(
        world.serve(Work::SERVE).next,
        Some(world.now + every),
        "a probe, and rest again"
    );
    let probe = world.sent();
    assert_eq!(probe[0].header.seq, world.iss, "one below the next");
    assert!(world.tcb.is_at_rest());
    world.now += every;
    assert!(world.serve(Work::SERVE).done.is_none());
    world.now += every;
    assert!(matches!(
        world.serve(Work::SERVE).done,
        Some(Done::Closed(_))
    ));
}

/// The reset of a connection that has timed out waits for room like everything else.
#[test]
fn a_timeout_while_the_link_is_full_is_not_forgotten() {
    let config = memory::Config {
        frames: 1,
        ..memory::Config::default()
    };
    let mut world = World::accepted(4096, 1000, config);
    world.end.cantsendmore();
    world.serve(Work::DETACH);
    assert_eq!(world.sent().last().unwrap().header.flags, FIN | ACK);
    world.input(ACK, 1, 2, 1000, 0);
    world.serve(Work::SERVE);
    assert_eq!(world.tcb.state(), State::FinWait2);
    let other = Packet {
        header: &[0x45; 40],
        payload: &[],
        ip_header_len: 20,
        checksum: Checksum::Complete,
        segment: None,
    };
    world.link.transmit(&other).unwrap();
    world.now += Duration::from_secs(61);
    let served = world.serve(Work::SERVE);
    assert!(served.done.is_none() && served.link_full);
    world.sent();
    assert!(matches!(
        world.serve(Work::SERVE).done,
        Some(Done::Closed(_))
    ));
    assert_eq!(world.sent()[0].header.flags & RST, RST);
}

/// A peer that has us reset it again and again cannot fill our memory while the link is full.
#[test]
fn resets_do_not_pile_up_behind_a_full_link() {
    let config = memory::Config {
        frames: 1,
        ..memory::Config::default()
    };
    let mut world = World::new(4096, config);
    world.input(SYN, 0, 0, 1000, 0);
    world.serve(Work::SERVE);
    for _ in 0..100 {
        world.input(ACK, 1, 77, 1000, 0);
        assert!(world.serve(Work::SERVE).link_full);
    }
    assert!(world.tcb.waiting.len() <= 2, "{}", world.tcb.waiting.len());
}

/// A segment that comes after the end, in the same batch, does not begin a connection again.
#[test]
fn nothing_begins_again_after_a_reset() {
    let mut world = World::new(4096, memory::Config::default());
    world.input(SYN, 0, 0, 1000, 0);
    world.serve(Work::SERVE);
    world.sent();
    world.input(RST, 1, 0, 0, 0);
    world.input(SYN, 5000, 0, 1000, 0);
    assert!(matches!(
        world.serve(Work::SERVE).done,
        Some(Done::Closed(_))
    ));
    assert!(
        world.sent().is_empty(),
        "a SYN|ACK that nobody stands behind"
    );
}

/// Guards `Guard::synchronise`: the window of a SYN|ACK is not scaled (RFC 7323 2.2), also when another
/// engine is told of it.
#[test]
fn the_window_of_a_syn_ack_is_not_scaled_by_a_rest() {
    for (window, shift, most) in [
        (1000, 7, 1000),
        (1000, 0, 1000),
        (60_000, 14, 60_000),
        (100, 7, 100),
    ] {
        for rests in [false, true] {
            let options = SynOptions {
                mss: Some(1460),
                window_scale: Some(shift),
                sack_permitted: true,
            };
            let mut world = World::dialled(256 * 1024, window, options);
            world.tcb.limits.rest = rests.then_some(Duration::ZERO);
            world.serve(Work::SERVE);
            world.sent();
            world.end.snd().buf.append_copy(&[7; 200_000]);
            let mut sent = 0;
            // Whoever repeats itself opens the congestion window.
            for _ in 0..10 {
                world.serve(Work::SERVE);
                sent += world
                    .sent()
                    .iter()
                    .map(|one| one.payload_len)
                    .sum::<usize>();
            }
            assert!(
                sent > 0 && sent <= most,
                "{sent} of {window} << {shift}, {rests}"
            );
        }
    }
}

/// Guards `Tcb::rise`: RFC 5681 4.1 is about the congestion window. Where a round trip takes longer
/// than a second, an engine that knew nothing of it would send everything twice.
#[test]
fn a_long_round_trip_is_not_forgotten() {
    for rests in [false, true] {
        let mut world = World::accepted(256 * 1024, 60_000, memory::Config::default());
        world.tcb.limits.rest = rests.then_some(Duration::from_secs(5));
        let (mut ack, trip) = (1, Duration::from_secs(2));
        let mut again = Vec::new();
        for turn in 0..6 {
            world.end.snd().buf.append_copy(b"ping");
            world.serve(Work::SERVE);
            ack += 4;
            for _ in 0..20 {
                world.now += trip / 20;
                world.serve(Work::SERVE);
            }
            again.push(world.sent().len() - 1);
            world.input(ACK, 1, ack, 60_000, 0);
            world.serve(Work::SERVE);
            world.now += Duration::from_secs(5);
            world.serve(Work::SERVE);
            assert_eq!(world.tcb.is_at_rest(), rests, "{turn}");
        }
        // What was too soon at first is not so again and again.
        assert_eq!(again[2..], [0; 4], "{again:?}, {rests}");
    }
}

/// Guards `Tcb::rest`: many small buffers were here once.
#[test]
fn a_rest_keeps_no_memory_for_buffers() {
    let mut world = World::accepted(256 * 1024, 60_000, memory::Config::default());
    world.tcb.limits.rest = Some(Duration::from_secs(5));
    for at in 0..60 {
        world.input(ACK, 1 + at * 1000, 1, 60_000, 1000);
        world.end.snd().buf.append(Buf::copy_of(&[7; 1000]));
    }
    let mut acked = 1;
    while acked < 60_001 {
        world.serve(Work::SERVE);
        let sent = world
            .sent()
            .iter()
            .map(|one| one.payload_len)
            .sum::<usize>();
        acked += u32::try_from(sent).unwrap();
        world.input(ACK, 60_001, acked, 60_000, 0);
    }
    drop(world.end.rcv().buf.take(60_000));
    world.serve(Work::SERVE);
    world.now += Duration::from_secs(5);
    world.serve(Work::SERVE);
    assert!(world.tcb.is_at_rest());
    let rooms = [
        world.tcb.inbox.room(),
        world.tcb.waiting.capacity(),
        world.end.rcv().buf.chain().room(),
        world.end.snd().buf.chain().room(),
    ];
    assert_eq!(rooms, [0; 4]);
}
