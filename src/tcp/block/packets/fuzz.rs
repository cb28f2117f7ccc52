//! Random segments and calls: no panic, the invariants hold, and the number of answers is bounded.

use super::*;
use crate::error::SoError;
use crate::tcp::block::segment::{PSH, RST};
use crate::tcp::block::sim::path::Random;
use crate::tcp::block::tcb::Cause;
use crate::tcp::icmp::IcmpErrorKind;
use crate::tcp::memory::AcceptPolicy;

struct Fuzz {
    raw: Raw,
    random: Random,
    read: u64,
    /// Segments in and out.
    count: (u64, u64),
    /// The end was reported.
    over: bool,
}

impl Fuzz {
    fn new(seed: u64) -> Fuzz {
        let mut random = Random::new(seed);
        let mut config = if random.chance(0.5) {
            stamped()
        } else {
            config()
        };
        config.sack = random.chance(0.8);
        config.nodelay = random.chance(0.5);
        config.iss = OURS;
        Fuzz {
            raw: Raw::established(&config, ms(random.below(100))),
            random,
            read: 0,
            count: (0, 0),
            over: false,
        }
    }

    fn number(&mut self, near: u32, spread: u64) -> u32 {
        match self.random.below(10) {
            0 => u32::try_from(self.random.below(1 << 32)).unwrap(),
            1..=4 => near,
            _ => {
                let distance = u32::try_from(self.random.below(2 * spread)).unwrap();
                near.wrapping_add(distance)
                    .wrapping_sub(u32::try_from(spread).unwrap())
            }
        }
    }

    fn segment(&mut self) -> Segment {
        let near = self.raw.tcb.receive_next();
        let (una, max) = self.raw.tcb.send_span();
        let at = una + self.random.below(max - una + 1);
        let mut segment = self.raw.segment(ACK, 0);
        if self.raw.tcb.is_closed() && self.random.chance(0.5) {
            // The peer's orderly end.
            (segment.seq, segment.ack, segment.flags) = (near, seq(max), ACK | FIN);
            return segment;
        }
        segment.seq = self.number(near, 70_000);
        segment.ack = self.number(seq(at), 3000);
        segment.len = usize::try_from(self.random.below(3) * self.random.below(3000)).unwrap();
        segment.window = u16::try_from(self.random.below(4) * self.random.below(16_000)).unwrap();
        segment.flags = match self.random.below(40) {
            0 => u8::try_from(self.random.below(64)).unwrap(),
            1 => RST,
            2 => SYN | ACK,
            3..=5 => ACK | FIN,
            6..=12 => ACK | PSH,
            _ => ACK,
        };
        for _ in 0..self.random.below(4) {
            let start = self.number(seq(at), 5000);
            let end = start.wrapping_add(u32::try_from(self.random.below(4000)).unwrap());
            segment.options.sack.push((start, end));
        }
        if let Some(stamps) = &mut segment.options.timestamps {
            match self.random.below(20) {
                0 => stamps.value = u32::try_from(self.random.below(1 << 32)).unwrap(),
                1 => stamps.echo = u32::try_from(self.random.below(1 << 32)).unwrap(),
                2 => segment.options.timestamps = None,
                _ => {}
            }
        }
        segment
    }

    fn step(&mut self) {
        let now = self.raw.now;
        let closing = self.raw.tcb.is_closed();
        match self.random.below(if closing { 25 } else { 20 }) {
            0..=10 => {
                let segment = self.segment();
                self.count.0 += 1;
                let before = self.raw.tcb.in_order();
                let taken = self.raw.give(&segment);
                let growth = taken.kept.map_or(0, |kept| kept.growth);
                if self.raw.state() != TcpState::Closed {
                    assert_eq!(self.raw.tcb.in_order(), before + growth);
                }
                if let Some(kept) = taken.kept {
                    assert!(kept.len > 0 && kept.skip + kept.len <= segment.len);
                }
            }
            11..=13 => {
                let bytes = usize::try_from(1 + self.random.below(20_000)).unwrap();
                if !self.raw.tcb.is_closed() {
                    self.raw.write(bytes);
                }
            }
            14 | 15 => {
                let unread = self.raw.tcb.in_order() - self.read;
                self.read += self.random.below(unread + 1);
                let idle = self.random.chance(0.5);
                self.raw.tcb.read(self.read, idle, now);
            }
            16 => {
                let all = [
                    AcceptPolicy::Everything,
                    AcceptPolicy::InOrder,
                    AcceptPolicy::Nothing,
                ];
                let accept_policy = all[usize::try_from(self.random.below(3)).unwrap()];
                self.raw.tcb.set_accept_policy(accept_policy);
            }
            17 => {
                let (una, _) = self.raw.tcb.send_span();
                let at = self.number(seq(una), 3000);
                let mtu = usize::try_from(self.random.below(2000)).unwrap();
                self.raw
                    .tcb
                    .handle_icmp(at, IcmpErrorKind::TooBig(mtu), now);
            }
            18 => {
                let time = ms(self.random.below(2000));
                self.count.1 += self.raw.pass(time).len() as u64 / 20;
            }
            _ => match self.random.below(if closing { 10 } else { 100 }) {
                0..=5 => self.raw.shutdown(),
                6 => self.raw.tcb.detach(self.random.chance(0.5), None, now),
                7 => self.raw.tcb.abort(Cause::Aborted),
                8 => {
                    let down = Cause::FromBelow(SoError::NetworkDown);
                    self.raw.tcb.abort(down);
                }
                _ => {}
            },
        }
        // The link may be full.
        let room = self.random.below(2) * self.random.below(20);
        for _ in 0..room {
            let Some(emission) = self.raw.tcb.poll_transmit(5000, self.raw.now) else {
                break;
            };
            assert!(emission.payload.end <= self.raw.written);
            self.count.1 += 1;
        }
        self.heed_events();
        self.raw.tcb.check();
    }

    /// A connection ends once, and its end is reported at once.
    fn heed_events(&mut self) {
        for news in self.raw.events() {
            assert!(!self.over, "{news:?} after the end");
            self.over = matches!(news, News::Ended(_) | News::TimeWait(_));
        }
        assert!(self.over || self.raw.state() != TcpState::Closed, "no end");
    }
}

#[test]
fn any_segments_in_any_order_are_survived() {
    let seeds = std::env::var("SEEDS").map_or(300, |seeds| seeds.parse().unwrap());
    for seed in 0..seeds {
        let run = || {
            let mut fuzz = Fuzz::new(seed);
            for _ in 0..300 {
                fuzz.step();
                if fuzz.over {
                    break;
                }
            }
            let sent = fuzz.raw.written / 500;
            let (heard, said) = fuzz.count;
            assert!(said <= 3 * heard + 3 * sent + 500, "{said} for {heard}");
            // It always comes to an end.
            let late = fuzz.raw.pass(ms(10_000_000));
            assert!(late.len() < 2000, "{} later", late.len());
            fuzz.heed_events();
            assert!(fuzz.over || fuzz.raw.state() != TcpState::TimeWait);
            fuzz.raw.tcb.check();
        };
        if let Err(panic) = std::panic::catch_unwind(run) {
            eprintln!("seed {seed}");
            std::panic::resume_unwind(panic);
        }
    }
}

/// Two established ends that each receive a forged segment do not answer each other for ever.
#[test]
fn a_forged_segment_starts_no_storm() {
    for seed in 0..300 {
        let mut random = Random::new(seed);
        let now = any_time();
        let config = stamped();
        let mut one = Tcb::connect(&config, now);
        let syn = one.poll_transmit(1, now).unwrap().segment;
        let mut two = Tcb::accept(&Config { iss: 7, ..config }, &syn, now).unwrap();
        let exchange = |one: &mut Tcb, two: &mut Tcb| {
            let mut count = 0;
            loop {
                let before = count;
                while let Some(emission) = one.poll_transmit(1, now) {
                    two.handle_segment(&emission.segment, now);
                    count += 1;
                }
                while let Some(emission) = two.poll_transmit(1, now) {
                    one.handle_segment(&emission.segment, now);
                    count += 1;
                }
                assert!(count < 100, "seed {seed}: a storm");
                if before == count {
                    return;
                }
            }
        };
        exchange(&mut one, &mut two);
        one.written(5000, now);
        exchange(&mut one, &mut two);
        for _ in 0..20 {
            for side in [&mut one, &mut two] {
                let (una, max) = side.send_span();
                let at = una + random.below(max - una + 3);
                let forged = Segment {
                    marked: random.below(4) == 0,
                    seq: side
                        .receive_next()
                        .wrapping_add(u32::try_from(random.below(5)).unwrap())
                        .wrapping_sub(2),
                    ack: side.send_number(at),
                    flags: [ACK, ACK | PSH, ACK | FIN, SYN | ACK]
                        [usize::try_from(random.below(3)).unwrap()],
                    window: 1000,
                    len: usize::try_from(random.below(3)).unwrap(),
                    options: SegmentOptions {
                        timestamps: Some(Timestamps {
                            value: 6000,
                            echo: 5000,
                        }),
                        ..SegmentOptions::default()
                    },
                };
                side.handle_segment(&forged, now);
            }
            exchange(&mut one, &mut two);
        }
    }
}
