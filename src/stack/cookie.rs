//! SYN cookies (RFC 4987 3.6): how a listener answers a SYN when half-open connections fill its
//! backlog. Nothing is remembered: the initial sequence number of the answer is a keyed hash of what
//! the SYN said, and whoever acknowledges it has received it.
//!
//! A cookie carries 8 bits: parity of the time, segment size (of four), window scale, SACK. The other
//! 24 are the hash. It is good for one to two minutes, and only while cookies are being sent, so that
//! at all other times nobody can guess one. The connection that follows from it begins as any other:
//! its engine is given the SYN once more, and repeats the SYN|ACK, which its peer ignores.
//!
//! Locks: none of its own.

use super::control;
use super::listener::Listening;
use super::{Shared, Work};
use crate::tcp::conn::{Conn, Runner};
use crate::tcp::engine::Engine;
use crate::tcp::wire::{self, ACK, Header, MAX_CANONICAL, SYN, Segment, SynOptions, Tuple};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// How long a cookie's time lasts, in seconds.
const SLOT: u64 = 64;
/// The segment sizes that a cookie can say.
const SIZES: [u16; 4] = [536, 1220, 1440, 1460];
/// A scale that says that the SYN had none.
const UNSCALED: u8 = 15;

/// What the hash of a cookie is of.
#[derive(Debug, Clone, Copy, Hash)]
pub(super) struct Claim {
    tuple: Tuple,
    irs: u32,
    slot: u64,
    bits: u8,
}

fn cookie(claim: &Claim, hash: impl Fn(&Claim) -> u32) -> u32 {
    hash(claim) << 8 | u32::from(claim.bits)
}

fn pack(options: &SynOptions, slot: u64) -> u8 {
    let mss = options.mss.unwrap_or(SIZES[0]);
    let size = SIZES.iter().rposition(|size| *size <= mss).unwrap_or(0);
    let scale = options.window_scale.unwrap_or(UNSCALED);
    let parity = u8::from(slot % 2 == 1);
    parity
        | u8::try_from(size).unwrap_or(0) << 1
        | scale << 3
        | u8::from(options.sack_permitted) << 7
}

fn unpack(bits: u8) -> SynOptions {
    let scale = bits >> 3 & 15;
    SynOptions {
        mss: Some(SIZES[usize::from(bits >> 1 & 3)]),
        window_scale: (scale != UNSCALED).then_some(scale),
        sack_permitted: bits >> 7 == 1,
    }
}

/// What the SYN said whose cookie this is, if it is one of this time or the one before.
fn check(
    (tuple, irs, cookie_value): (Tuple, u32, u32),
    now: u64,
    hash: impl Fn(&Claim) -> u32,
) -> Option<SynOptions> {
    let bits = cookie_value.to_be_bytes()[3];
    let slot = now.checked_sub((now ^ u64::from(bits)) & 1)?;
    let claim = Claim {
        tuple,
        irs,
        slot,
        bits,
    };
    (cookie(&claim, hash) == cookie_value).then(|| unpack(bits))
}

impl Shared {
    fn slot(&self) -> u64 {
        let passed = self.clock.now().saturating_duration_since(self.epoch);
        1 + passed.as_secs() / SLOT
    }

    #[expect(clippy::cast_possible_truncation, reason = "32 bits of a hash")]
    fn claim_hash(&self) -> impl Fn(&Claim) -> u32 + use<'_> {
        |claim| self.numbers.keyed_hash(claim) as u32
    }

    /// Answers a SYN that finds the backlog full. `false`: it is to be dropped.
    pub(crate) fn answer_with_cookie(&self, listening: &Listening, syn: &Segment) -> bool {
        if !self.config.syn_cookies || !listening.accepts() {
            return false;
        }
        let (tuple, slot) = (syn.tuple, self.slot());
        let options = &syn.header.options;
        let claim = Claim {
            tuple,
            irs: syn.header.seq,
            slot,
            bits: pack(options, slot),
        };
        self.cookies_sent_in.store(slot, Ordering::Relaxed);
        self.received.cookies_sent.add(1);
        let capacity = self.config.rcv_buffer;
        let mtu = self.mtu_for(&tuple) - tuple.ip_header_len() - wire::TCP_HEADER;
        let header = Header {
            seq: cookie(&claim, self.claim_hash()),
            ack: syn.header.seq.wrapping_add(1),
            flags: SYN | ACK,
            window: u16::try_from(capacity).unwrap_or(u16::MAX),
            options: SynOptions {
                mss: Some(u16::try_from(mtu).unwrap_or(u16::MAX)),
                window_scale: options.window_scale.map(|_| wire::shift_for(capacity)),
                sack_permitted: options.sack_permitted,
            },
        };
        let mut out = [0; MAX_CANONICAL];
        let from = (tuple.local, tuple.local_port);
        let to = (tuple.remote, tuple.remote_port);
        let len = wire::compose(&mut out, from, to, &header, 0);
        let ip = tuple.ip_header_len();
        wire::finish(&mut out[..len], ip, std::iter::empty(), false);
        control::send(&self.link, &out[..len], ip);
        true
    }

    /// What the SYN said that a segment without a connection acknowledges, if it was answered with a
    /// cookie.
    pub(crate) fn cookie_of(&self, segment: &Segment) -> Option<Header> {
        let now = self.slot();
        let sent_in = self.cookies_sent_in.load(Ordering::Relaxed);
        if sent_in == 0 || now > sent_in + 1 {
            return None;
        }
        let header = &segment.header;
        let irs = header.seq.wrapping_sub(1);
        let value = header.ack.wrapping_sub(1);
        let options = check((segment.tuple, irs, value), now, self.claim_hash())?;
        Some(Header {
            seq: irs,
            ack: 0,
            flags: SYN,
            window: header.window,
            options,
        })
    }

    /// Begins the connection of that SYN, if somebody may accept it. Only its acknowledgement is
    /// missing.
    pub(crate) fn accept_cookie(
        self: &Arc<Self>,
        listening: &Arc<Listening>,
        (tuple, syn, value): (Tuple, Header, u32),
    ) -> Option<Arc<Conn>> {
        if listening.decides || !listening.reserve_beyond() {
            return None;
        }
        let engine = self.engine(&tuple, |link, config| {
            Engine::listening(link, config, &tuple)
        });
        let conn = self.connection(tuple, engine, value);
        if !self.table.insert(&conn) {
            listening.release();
            return None;
        }
        self.half_open.lock().insert(tuple, listening.clone());
        self.received.cookies_accepted.add(1);
        self.counters.passive_opens.add(1);
        super::tell_of_peer(&tuple);
        conn.leave(super::held::segment(tuple, syn));
        conn.run(Work::SERVE, Runner::Driver);
        Some(conn)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::link::memory;
    use crate::stack::Stack;

    fn tuple() -> Tuple {
        Tuple {
            local: [10, 0, 0, 1].into(),
            remote: [10, 0, 0, 2].into(),
            local_port: 80,
            remote_port: 5000,
        }
    }

    fn hash(claim: &Claim) -> u32 {
        use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
        let hash = BuildHasherDefault::<DefaultHasher>::default().hash_one(claim);
        u32::from_be_bytes(hash.to_be_bytes()[4..].try_into().unwrap())
    }

    #[test]
    fn a_cookie_counts_only_while_cookies_are_sent() {
        let (link, _far) = memory::pair(memory::Config::default());
        let builder = Stack::builder(link).address("10.0.0.1/24".parse().unwrap());
        let (stack, _driver) = builder.manual().unwrap();
        let (shared, tuple) = (stack.shared(), tuple());
        let slot = shared.slot();
        let claim = Claim {
            tuple,
            irs: 77,
            slot,
            bits: pack(&SynOptions::default(), slot),
        };
        let header = Header {
            seq: 78,
            ack: cookie(&claim, shared.claim_hash()).wrapping_add(1),
            flags: ACK,
            window: 0,
            options: SynOptions::default(),
        };
        let guessed = crate::stack::held::segment(tuple, header);
        assert_eq!(shared.cookie_of(&guessed), None);
        shared.cookies_sent_in.store(slot, Ordering::Relaxed);
        assert!(shared.cookie_of(&guessed).is_some());
    }

    #[test]
    fn a_cookie_says_what_the_syn_said_for_a_while() {
        let tuple = tuple();
        let scales = (0..15).map(Some).chain([None]);
        for (slot, scale) in (7..).zip(scales) {
            for (mss, said) in [
                (None, 536),
                (Some(1), 536),
                (Some(1460), 1460),
                (Some(9000), 1460),
            ] {
                let options = SynOptions {
                    mss,
                    window_scale: scale,
                    sack_permitted: slot % 3 == 0,
                };
                let claim = Claim {
                    tuple,
                    irs: 77,
                    slot,
                    bits: pack(&options, slot),
                };
                let value = cookie(&claim, hash);
                let want = SynOptions {
                    mss: Some(said),
                    ..options
                };
                for now in [slot, slot + 1] {
                    assert_eq!(check((tuple, 77, value), now, hash), Some(want));
                }
                for now in [slot - 1, slot + 2, slot + 3] {
                    assert_eq!(check((tuple, 77, value), now, hash), None);
                }
                assert_eq!(check((tuple, 78, value), slot, hash), None);
                assert_eq!(check((tuple, 77, value ^ 1 << 20), slot, hash), None);
                assert_eq!(check((tuple, 77, value ^ 8), slot, hash), None);
            }
        }
    }
}
