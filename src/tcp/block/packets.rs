//! Packet tests: a block against segments that a test writes, in virtual time.

mod acks;
mod close;
mod ecn;
mod fuzz;
mod handshake;
mod hostile;
mod loss;
mod path;
mod timers;
mod windows;

use super::segment::{ACK, Emission, FIN, SYN, Segment, SegmentOptions, Timestamps};
use super::tcb::{Config, News, Taken, Tcb};
use crate::tcp::block::delayed_ack::SOON;
use crate::tcp::block::time::Instant;
use crate::tcp::block::time::start as any_time;
use crate::tcp::state::TcpState;
use smallvec::SmallVec;
use std::time::Duration;

/// The peer's ISS; ours is the one of [`config`].
const THEIRS: u32 = 1000;
const OURS: u32 = u32::MAX - 20;
const MSS: usize = 1000;

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// Without timestamps, so that numbers are round.
fn config() -> Config {
    Config {
        iss: OURS,
        mtu: MSS + 40,
        timestamps: None,
        receive_buffer: 60_000,
        ..Config::default()
    }
}

fn stamped() -> Config {
    Config {
        mtu: MSS + 52,
        timestamps: Some(5000),
        ..config()
    }
}

/// A block, and the state of its peer.
struct Raw {
    tcb: Tcb,
    start: Instant,
    now: Instant,
    /// The peer's next sequence number, and what it acknowledges.
    seq: u32,
    ack: u32,
    window: u16,
    /// The peer's clock in milliseconds, and the latest TSval that it has seen.
    stamps: Option<u32>,
    echo: u32,
    /// Bytes that were written and read.
    written: u64,
    most: usize,
}

/// The options of the peer's SYN.
fn offer(config: &Config) -> SegmentOptions {
    SegmentOptions {
        mss: Some(u16::try_from(config.mtu - 40).unwrap()),
        window_scale: Some(0),
        sack_permitted: config.sack,
        timestamps: config.timestamps.map(|_| Timestamps {
            value: 100,
            echo: 0,
        }),
        ..SegmentOptions::default()
    }
}

impl Raw {
    fn new(tcb: Tcb, now: Instant, config: &Config) -> Raw {
        Raw {
            tcb,
            start: now,
            now,
            seq: THEIRS,
            ack: OURS,
            window: 50_000,
            stamps: config.timestamps.map(|_| 100),
            echo: 0,
            written: 0,
            most: MSS,
        }
    }

    /// A block that has sent its SYN.
    fn dialling(config: &Config) -> Raw {
        let now = any_time();
        let mut raw = Raw::new(Tcb::connect(config, now), now, config);
        let syn = raw.one();
        assert_eq!((syn.segment.flags, syn.segment.seq), (SYN, OURS));
        raw
    }

    /// A block that has received a SYN.
    fn listening(config: &Config) -> Raw {
        let now = any_time();
        let syn = Segment {
            seq: THEIRS,
            flags: SYN,
            window: 50_000,
            options: offer(config),
            ..Segment::default()
        };
        let tcb = Tcb::accept(config, &syn, now).unwrap();
        Raw::new(tcb, now, config)
    }

    /// An established connection with this handshake RTT.
    fn established(config: &Config, rtt: Duration) -> Raw {
        let mut raw = Raw::listening(config);
        let answer = raw.one();
        assert_eq!(
            (answer.segment.flags, answer.segment.ack),
            (SYN | ACK, THEIRS + 1)
        );
        raw.pass(rtt);
        raw.seq = THEIRS + 1;
        raw.ack = OURS.wrapping_add(1);
        raw.send(ACK, 0);
        assert_eq!(raw.state(), TcpState::Established);
        assert_eq!(raw.tcb.poll_event(), Some(News::Established));
        raw.none();
        raw
    }

    fn state(&self) -> TcpState {
        self.tcb.state()
    }

    /// Time since the beginning.
    fn since(&self) -> Duration {
        self.now - self.start
    }

    /// Advances time and handles timeouts; returns the emissions with their times.
    fn pass(&mut self, time: Duration) -> Vec<(Duration, Emission)> {
        let until = self.now + time;
        let mut out = Vec::new();
        loop {
            let at = self.tcb.deadline().filter(|at| *at <= until);
            self.now = self.now.max(at.unwrap_or(until));
            if at.is_some() {
                self.tcb.handle_timeout(self.now);
            }
            let all = self.all();
            out.extend(all.into_iter().map(|emission| (self.since(), emission)));
            if at.is_none() {
                return out;
            }
        }
    }

    /// All emissions now.
    fn all(&mut self) -> Vec<Emission> {
        let mut all = Vec::new();
        while let Some(emission) = self.tcb.poll_transmit(self.most, self.now) {
            if let Some(stamps) = emission.segment.options.timestamps {
                self.echo = stamps.value;
            }
            all.push(emission);
            assert!(all.len() < 1000, "emissions without end");
        }
        all
    }

    /// All emissions soon: bursts are paced.
    fn soon(&mut self) -> Vec<Emission> {
        let mut all = self.all();
        all.extend(self.pass(ms(40)).into_iter().map(|(_, emission)| emission));
        all
    }

    #[track_caller]
    fn one(&mut self) -> Emission {
        let mut all = self.all();
        assert_eq!(all.len(), 1, "{all:?}");
        all.remove(0)
    }

    /// The acknowledgement of less than a full segment, or of a FIN.
    #[track_caller]
    fn acked(&mut self) -> Emission {
        self.none();
        let mut all = self.pass(SOON);
        assert_eq!(all.len(), 1, "{all:?}");
        all.remove(0).1
    }

    #[track_caller]
    fn none(&mut self) {
        let all = self.all();
        assert!(all.is_empty(), "{all:?}");
    }

    /// A segment of the peer.
    fn segment(&self, flags: u8, len: usize) -> Segment {
        Segment {
            seq: self.seq,
            ack: self.ack,
            flags,
            window: self.window,
            options: SegmentOptions {
                timestamps: self.stamps.map(|value| Timestamps {
                    value: value + u32::try_from(self.since().as_millis()).unwrap(),
                    echo: self.echo,
                }),
                ..SegmentOptions::default()
            },
            len,
            marked: false,
        }
    }

    /// The peer's next segment, advancing its sequence number.
    fn send(&mut self, flags: u8, len: usize) -> Taken {
        let segment = self.segment(flags, len);
        let occupied = len + usize::from(flags & (FIN | SYN) != 0);
        self.seq = self.seq.wrapping_add(u32::try_from(occupied).unwrap());
        self.give(&segment)
    }

    /// The same at an offset, without advancing the sequence number.
    fn send_at(&mut self, ahead: i32, flags: u8, len: usize) -> Taken {
        let mut segment = self.segment(flags, len);
        segment.seq = segment.seq.wrapping_add_signed(ahead);
        self.give(&segment)
    }

    fn give(&mut self, segment: &Segment) -> Taken {
        self.tcb.handle_segment(segment, self.now)
    }

    /// Acknowledges all up to a position, with SACK blocks.
    fn acknowledge(&mut self, to: u64, sack: &[(u64, u64)]) {
        self.ack = seq(to);
        let mut segment = self.segment(ACK, 0);
        let blocks = sack.iter().map(|(from, to)| (seq(*from), seq(*to)));
        segment.options.sack = blocks.collect::<SmallVec<_>>();
        self.give(&segment);
    }

    fn write(&mut self, bytes: usize) {
        self.written += bytes as u64;
        self.tcb.written(self.written, self.now);
    }

    /// Writes this many segments and returns the emissions.
    fn flight(&mut self, segments: usize) -> Vec<Emission> {
        self.write(segments * MSS);
        self.all()
    }

    fn shutdown(&mut self) {
        self.tcb.shutdown(self.now);
    }

    fn events(&mut self) -> Vec<News> {
        std::iter::from_fn(|| self.tcb.poll_event()).collect()
    }
}

/// Our sequence number of a position.
fn seq(position: u64) -> u32 {
    super::seq::Space::new(OURS).seq(position)
}

/// Positions of the emitted payloads.
fn places(all: &[Emission]) -> Vec<(u64, u64)> {
    all.iter()
        .map(|emission| (emission.payload.start, emission.payload.end))
        .collect()
}
