//! Arbitrary bytes and damaged frames: no panic, and another connection is not affected.

use super::*;
use crate::cases::cases;
use crate::link::{Checksum, Frame};
use proptest::prelude::*;
use proptest::test_runner::TestCaseError;

/// Actions of the attacker.
#[derive(Debug, Clone)]
enum Act {
    /// Bytes that may begin like an IP packet.
    Bytes {
        first: u8,
        bytes: Vec<u8>,
    },
    /// A segment of the victim's connection, or of one that does not exist yet.
    Segment {
        port: u16,
        offset: i32,
        ack: i32,
        flags: u8,
        window: u16,
        options: SynOptions,
        len: usize,
        /// Bytes of the frame to change afterwards; the checksum counts as verified.
        damage: Vec<(usize, u8)>,
        /// The frame ends early.
        cut: usize,
    },
    /// The victim's program writes.
    Write(usize),
    Read(usize),
    Shutdown,
    Abort,
    Pass(u64),
}

fn segment() -> impl Strategy<Value = Act> {
    let near =
        || prop_oneof![5 => Just(0i32), 3 => -5i32..6, 2 => -70_000i32..70_000, 1 => any::<i32>()];
    let flags = prop_oneof![6 => Just(ACK), 2 => Just(ACK | FIN), 1 => Just(SYN), 2 => any::<u8>()];
    let options = (any::<Option<u16>>(), any::<Option<u8>>(), any::<bool>());
    let damage = prop_oneof![
        3 => Just(Vec::new()),
        1 => prop::collection::vec((0usize..80, any::<u8>()), 1..4),
    ];
    let len = prop_oneof![2 => Just(0usize), 4 => 0usize..3000, 1 => 0usize..60_000];
    let port = prop_oneof![5 => Just(5000u16), 1 => 6000u16..6004];
    let cut = prop_oneof![6 => Just(0usize), 1 => 0usize..60];
    (
        port,
        near(),
        near(),
        flags,
        any::<u16>(),
        options,
        len,
        damage,
        cut,
    )
        .prop_map(
            |(
                port,
                offset,
                ack,
                flags,
                window,
                (mss, window_scale, sack_permitted),
                len,
                damage,
                cut,
            )| {
                Act::Segment {
                    port,
                    offset,
                    ack,
                    flags,
                    window,
                    options: SynOptions {
                        mss,
                        window_scale,
                        sack_permitted,
                    },
                    len,
                    damage,
                    cut,
                }
            },
        )
}

fn act() -> impl Strategy<Value = Act> {
    let first = prop_oneof![Just(0x45u8), Just(0x60), any::<u8>()];
    let bytes = prop::collection::vec(any::<u8>(), 0..120);
    prop_oneof![
        2 => (first, bytes).prop_map(|(first, bytes)| Act::Bytes { first, bytes }),
        12 => segment(),
        2 => (1usize..20_000).prop_map(Act::Write),
        2 => (1usize..20_000).prop_map(Act::Read),
        1 => Just(Act::Shutdown),
        1 => (0u32..8).prop_map(|one| if one == 0 { Act::Abort } else { Act::Pass(1) }),
        2 => (0u64..3_000).prop_map(Act::Pass),
    ]
}

const LIVE: u16 = 7000;

struct Attack {
    net: Net,
    victim: Raw,
    victims_user: TcpStream,
    live: Raw,
    lives_user: TcpStream,
    _listener: TcpListener,
}

impl Attack {
    fn new() -> Attack {
        let mut net = Net::with(one_packet_or_many(), |builder| {
            builder.receive_buffer(8192).send_buffer(8192)
        });
        let listener = net.listen(80);
        let mut open = |port| {
            let mut raw = Raw::new(port);
            raw.handshake(&mut net);
            let (stream, _) = listener.accept().unwrap();
            stream.set_nonblocking(true);
            (raw, stream)
        };
        let (victim, victims_user) = open(5000);
        let (live, lives_user) = open(LIVE);
        Attack {
            net,
            victim,
            victims_user,
            live,
            lives_user,
            _listener: listener,
        }
    }

    /// Arbitrary bytes, unless they happen to be a segment of the live connection.
    fn raw(&self, bytes: &[u8]) {
        let frame = Frame {
            checksum: Checksum::Verified,
            ..Frame::new(bytes)
        };
        let lives =
            matches!(wire::parse(frame), Parsed::Tcp(segment) if segment.tuple.remote_port == LIVE);
        if lives || bytes.len() > 65_000 {
            return;
        }
        let packet = Packet {
            header: bytes,
            payload: &[],
            ip_header_len: 20,
            checksum: Checksum::partial_tcp(20),
            segment: None,
        };
        let segment = NonZeroU16::new(1460);
        // Only IP packets cross in one large piece.
        let large = bytes.len() > 1500;
        drop(self.net.wire.transmit(&Packet {
            segment: segment.filter(|_| large),
            ..packet
        }));
    }

    fn act(&mut self, act: &Act) {
        match act {
            Act::Bytes { first, bytes } => {
                let mut bytes = bytes.clone();
                if let Some(byte) = bytes.first_mut() {
                    *byte = *first;
                }
                self.raw(&bytes);
            }
            Act::Segment {
                port,
                offset,
                ack,
                flags,
                window,
                options,
                len,
                damage,
                cut,
            } => {
                let header = Header {
                    seq: self.victim.seq.wrapping_add_signed(*offset),
                    ack: self.victim.ack.wrapping_add_signed(*ack),
                    flags: *flags,
                    window: *window,
                    options: *options,
                };
                let mut out = [0; MAX_CANONICAL];
                let from = (self.victim.from.0, *port);
                let header_len = wire::compose(&mut out, from, self.victim.to, &header, *len);
                let mut bytes = [&out[..header_len], &vec![0xee; *len]].concat();
                for (at, value) in damage {
                    let at = at % bytes.len();
                    bytes[at] ^= value;
                }
                bytes.truncate(bytes.len() - cut.min(&bytes.len()));
                self.raw(&bytes);
            }
            Act::Write(count) => drop(self.victims_user.send(&vec![1; *count])),
            Act::Read(count) => drop(self.victims_user.recv(&mut vec![0; *count])),
            Act::Shutdown => drop(self.victims_user.shutdown(Shutdown::Write)),
            Act::Abort => self.victims_user.abort(),
            Act::Pass(millis) => self.net.pass(Duration::from_millis(*millis)),
        }
    }

    /// The peer of both connections: follows the victim's numbers, answers the live one.
    fn answer(&mut self) -> Vec<u8> {
        let mut got = Vec::new();
        self.net.turn();
        let mut frames = Vec::new();
        while self.net.wire.receive(&mut frames, 1000).unwrap() > 0 {}
        for frame in frames {
            let Parsed::Tcp(segment) = wire::parse(frame) else {
                continue;
            };
            let payload: Vec<u8> = segment
                .payload
                .iter()
                .flat_map(|buf| buf.to_vec())
                .collect();
            let seen = Seen {
                tuple: segment.tuple,
                header: segment.header,
                timestamps: segment.timestamps,
                sack: segment.sack,
                payload,
            };
            match seen.tuple.local_port {
                LIVE => {
                    assert!(!seen.has(RST), "the live connection was reset");
                    if seen.header.seq == self.live.ack {
                        got.extend(self.live.take(&[seen]));
                        self.live.send(&self.net, ACK, b"");
                    }
                }
                5000 if seen.header.has(ACK) && !seen.has(RST) => {
                    self.victim.seq = seen.header.ack;
                    self.victim.ack = seen.header.seq.wrapping_add(seen.payload.len() as u32);
                }
                _ => {}
            }
        }
        got
    }

    /// Both ways over the live connection.
    fn transfer(&mut self, round: usize) -> Result<(), TestCaseError> {
        let there = pattern(round * 1000, 700);
        self.live.send_data(&self.net, &there);
        self.net.turn();
        prop_assert_eq!(read(&self.lives_user), there);
        let back = pattern(round * 500, 900);
        prop_assert_eq!(self.lives_user.send(&back).unwrap(), back.len());
        let mut got = self.answer();
        for _ in 0..20 {
            if got.len() == back.len() {
                break;
            }
            self.net.pass(Duration::from_secs(1));
            got.extend(self.answer());
        }
        prop_assert_eq!(got, back);
        Ok(())
    }
}

fn one_packet_or_many() -> memory::Config {
    let mut config = memory::Config {
        frames: 1000,
        ..memory::Config::default()
    };
    config.capabilities.segment_v6 = Some(65_535);
    config
}

proptest! {
    #![proptest_config(cases(1_000, 10_000))]

    #[test]
    fn no_frame_panics_or_harms_another_connection(acts in prop::collection::vec(act(), 1..16)) {
        let mut attack = Attack::new();
        for (round, act) in acts.iter().enumerate() {
            attack.act(act);
            if round % 3 == 2 {
                attack.transfer(round)?;
            }
        }
        attack.transfer(acts.len())?;
        prop_assert_eq!(attack.net.stack.stats().broken, 0);
    }
}
