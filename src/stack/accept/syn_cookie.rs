//! SYN cookies (RFC 4987 3.6): the answer to a SYN when half-open connections fill the listener's
//! backlog, or the stack's limit. No state is kept: the initial sequence number of the answer is a
//! keyed hash of the SYN's contents, so only a peer that has received it can acknowledge it.
//!
//! A cookie carries 8 bits: parity of the time, segment size (of four), window scale, SACK. The other
//! 24 are the hash. It is valid for one to two minutes, and only while cookies are being sent, so that
//! none can be guessed at other times.
//!
//! If the SYN has timestamps (RFC 7323), so has the answer: those of the connection that may follow,
//! whose clock is the same for all connections between these ends. The acknowledgement echoes the
//! answer's timestamp, which must be less than two minutes old, and is the first RTT sample. Options
//! are in the cookie itself, not in the timestamp as in Linux, whose cookies have no room for them.
//!
//! The connection then begins as any other: its control block processes the reconstructed SYN, with the
//! SYN|ACK marked as sent.
//!
//! Locks: none of its own.

use crate::stack::Shared;
use crate::stack::accept::admission::Refusal;
use crate::stack::accept::backlog::Listening;
use crate::stack::accept::begin::Put;
use crate::stack::accept::syn_queue::Syn;
use crate::stack::demux::stateless;
use crate::stack::driver::queue::Queue;
use crate::tcp::conn::{Conn, Host, Runner};
use crate::tcp::conn_state::Opening;
use crate::tcp::home::Home;
use crate::tcp::service::Work;
use crate::tcp::wire::{self, ACK, Header, SYN, Segment, SynOptions, Tuple};
use std::hash::{Hash, Hasher};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

/// Length of a time slot in seconds.
const SLOT: u64 = 64;
/// No cookie is of this slot: the hash of a claim with it is that of a mark.
const NO_SLOT: u64 = u64::MAX;
/// The segment sizes that a cookie can encode.
const SIZES: [u16; 4] = [536, 1220, 1440, 1460];
/// The scale value for a SYN without window scaling.
const UNSCALED: u8 = 15;

/// The input of a cookie's hash.
#[derive(Debug, Clone, Copy)]
pub(in crate::stack) struct Claim {
    tuple: Tuple,
    irs: u32,
    slot: u64,
    bits: u8,
}

/// Hashed in one piece: a dozen small writes take a dozen times as long, and a flood needs a hash for
/// each SYN.
impl Hash for Claim {
    fn hash<H: Hasher>(&self, state: &mut H) {
        let octets = |address| match address {
            IpAddr::V4(address) => Ipv4Addr::to_ipv6_mapped(&address).octets(),
            IpAddr::V6(address) => address.octets(),
        };
        let mut bytes = [0; 49];
        bytes[..16].copy_from_slice(&octets(self.tuple.local));
        bytes[16..32].copy_from_slice(&octets(self.tuple.remote));
        bytes[32..34].copy_from_slice(&self.tuple.local_port.to_be_bytes());
        bytes[34..36].copy_from_slice(&self.tuple.remote_port.to_be_bytes());
        bytes[36..40].copy_from_slice(&self.irs.to_be_bytes());
        bytes[40..48].copy_from_slice(&self.slot.to_be_bytes());
        bytes[48] = self.bits;
        state.write(&bytes);
    }
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

/// The contents of the SYN behind a cookie, if the cookie is of this time slot or the previous one.
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
    fn slot(&self, now: Instant) -> u64 {
        let passed = now.saturating_duration_since(self.epoch);
        1 + passed.as_secs() / SLOT
    }

    #[expect(clippy::cast_possible_truncation, reason = "32 bits of a hash")]
    fn claim_hash(&self) -> impl Fn(&Claim) -> u32 + use<'_> {
        |claim| self.addressing.isn.keyed_hash(claim) as u32
    }

    /// Whether a SYN that finds the backlog full may be answered.
    pub(super) fn sends_cookies(&self, listening: &Listening) -> bool {
        self.config.syn_cookies && listening.accepts()
    }

    /// Whether it may be answered now, and not only when it is repeated.
    pub(super) fn may_answer(&self, syn: &Segment, now: Instant) -> bool {
        let Some(limit) = self.config.max_syn_cookies else {
            return true;
        };
        let claim = Claim {
            tuple: syn.tuple,
            irs: syn.header.seq,
            slot: NO_SLOT,
            bits: 0,
        };
        let hash = || self.addressing.isn.keyed_hash(claim);
        let marks = &self.accepting.syn_marks;
        marks.allow(limit, self.since_epoch(now), hash)
    }

    /// Answers a SYN that finds the backlog full.
    pub(super) fn answer_with_cookie(&self, queue: &Queue, (syn, now): (&Segment, Instant)) {
        let (tuple, slot) = (syn.tuple, self.slot(now));
        let options = &syn.header.options;
        let claim = Claim {
            tuple,
            irs: syn.header.seq,
            slot,
            bits: pack(options, slot),
        };
        self.accepting
            .cookies_sent_in
            .store(slot, Ordering::Relaxed);
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
        let timestamps = syn.timestamps.map(|(theirs, _)| {
            let ours = self
                .addressing
                .isn
                .initial_timestamp(&tuple, self.since_epoch(now));
            (ours, theirs)
        });
        let link = queue.way_back(syn.looped);
        stateless::answer(link, &tuple, (&header, timestamps));
    }

    /// The contents of the SYN whose cookie a segment without a connection acknowledges, if it does.
    pub(crate) fn cookie_of(&self, segment: &Segment, now: Instant) -> Option<Syn> {
        let sent_in = self.accepting.cookies_sent_in.load(Ordering::Relaxed);
        if sent_in == 0 {
            return None;
        }
        let slot = self.slot(now);
        if slot > sent_in + 1 {
            return None;
        }
        let header = &segment.header;
        let irs = header.seq.wrapping_sub(1);
        let value = header.ack.wrapping_sub(1);
        let options = check((segment.tuple, irs, value), slot, self.claim_hash())?;
        let timestamps = segment.timestamps;
        if timestamps.is_some_and(|(_, echo)| !self.is_of_cookie(&segment.tuple, echo, now)) {
            return None;
        }
        Some(Syn {
            header: Header {
                seq: irs,
                ack: 0,
                flags: SYN,
                window: header.window,
                options,
            },
            timestamps,
        })
    }

    /// Whether a cookie of the last two minutes had this timestamp.
    fn is_of_cookie(&self, tuple: &Tuple, echo: u32, now: Instant) -> bool {
        let latest = self
            .addressing
            .isn
            .initial_timestamp(tuple, self.since_epoch(now));
        u64::from(latest.wrapping_sub(echo)) <= 2 * SLOT * 1000
    }

    /// Begins the connection of that SYN, if its listener has room, with the segment that acknowledges
    /// the cookie. It is established at once, so it does not count as half-open. Another driver may
    /// have begun it with another segment of the peer.
    pub(crate) fn accept_cookie(
        self: &Arc<Self>,
        queue: u16,
        listening: &Arc<Listening>,
        (segment, syn): (&Segment, Syn),
        now: Instant,
    ) -> Result<Arc<Conn>, Refusal> {
        let (tuple, looped) = (segment.tuple, segment.looped);
        self.admits(&tuple)?;
        if listening.decides || !listening.reserve_beyond() {
            return Err(Refusal::Backlog);
        }
        let home = Home { queue, looped };
        let value = segment.header.ack.wrapping_sub(1);
        let conn = self.connection(home, (tuple, Opening::Cookie), value, now);
        conn.leave(syn.segment(tuple));
        self.half_open(&conn, listening);
        // Before it is visible to other drivers: it must process the SYN before an acknowledgement.
        conn.run(Work::SERVE, Runner::Driver);
        Ok(match self.put(conn, listening, None)? {
            Put::Taken(conn) => {
                self.received.cookies_accepted.add(1);
                self.counters(queue).passive_opens.add(1);
                crate::stack::accept::backlog::report_peer(&tuple);
                conn
            }
            Put::Other(conn) => conn,
            Put::Ended => return Err(Refusal::Taken),
        })
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
        let (stack, _driver) = builder.build_with_driver().unwrap();
        let (shared, tuple) = (stack.shared(), tuple());
        let slot = shared.slot(shared.now());
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
        let guessed = Syn::from(header).segment(tuple);
        assert_eq!(shared.cookie_of(&guessed, shared.now()), None);
        shared
            .accepting
            .cookies_sent_in
            .store(slot, Ordering::Relaxed);
        assert!(shared.cookie_of(&guessed, shared.now()).is_some());
    }

    #[test]
    fn a_cookie_encodes_the_syn_for_a_while() {
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
