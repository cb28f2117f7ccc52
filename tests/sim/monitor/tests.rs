//! Each rule, and frames by hand that break it: our side begins at sequence number 1000, the peer at 5000, and
//! both advertise 10,000 bytes.

use super::{Limits, Monitor};
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    IpProtocol, Ipv4Packet, Ipv4Repr, TcpControl, TcpPacket, TcpRepr, TcpSeqNumber,
    TcpTimestampRepr,
};
use sosplice::clock::system;
use sosplice::link::{Capabilities, Checksum, Packet};
use std::net::Ipv4Addr;
use std::num::NonZeroU16;
use std::time::{Duration, Instant};

const ENDS: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(10, 0, 0, 2)];
const OURS: u32 = 1000;
const THEIRS: u32 = 5000;
const WINDOW: u16 = 10_000;
static BYTES: [u8; 30_000] = {
    let mut bytes = [0; 30_000];
    let mut at = 0;
    while at < bytes.len() {
        bytes[at] = (at % 251) as u8;
        at += 1;
    }
    bytes
};

/// A monitor beside the first of the ends.
struct Wire {
    monitor: Monitor,
    now: Instant,
    /// Both offer timestamps in their SYNs.
    stamps: bool,
}

/// Positions of a stream, as they are there.
fn bytes(start: u32, len: usize) -> &'static [u8] {
    let start = start as usize;
    &BYTES[start..start + len]
}

fn bare(out: bool) -> TcpRepr<'static> {
    let number = |at: u32| TcpSeqNumber(at.cast_signed());
    let (own, other) = if out { (OURS, THEIRS) } else { (THEIRS, OURS) };
    TcpRepr {
        src_port: if out { 1 } else { 2 },
        dst_port: if out { 2 } else { 1 },
        control: TcpControl::None,
        seq_number: number(own + 1),
        ack_number: Some(number(other + 1)),
        window_len: WINDOW,
        window_scale: None,
        max_seg_size: None,
        sack_permitted: false,
        sack_ranges: [None; 3],
        timestamp: None,
        payload: &[],
    }
}

impl Wire {
    fn new(stamps: bool) -> Wire {
        let link = Capabilities::new(1500).segment_v4(40_000);
        let (delay, trip) = (Duration::from_millis(40), Duration::from_millis(300));
        let now = system().now();
        let limits = Limits::new(&link, Some(delay), Duration::ZERO, trip);
        Wire {
            monitor: Monitor::new(limits, now),
            now,
            stamps,
        }
    }

    /// After a handshake that both sides offer all options in.
    fn established(stamps: bool) -> Wire {
        let mut wire = Wire::new(stamps);
        let mut syn = wire.syn(true);
        syn.ack_number = None;
        wire.leaves(syn);
        wire.arrives(wire.syn(false));
        wire.leaves(bare(true));
        wire.holds();
        wire
    }

    fn syn(&self, out: bool) -> TcpRepr<'static> {
        TcpRepr {
            control: TcpControl::Syn,
            seq_number: bare(out).seq_number - 1,
            max_seg_size: Some(1460),
            window_scale: Some(0),
            sack_permitted: true,
            ..bare(out)
        }
    }

    fn frame(&self, mut segment: TcpRepr<'_>, out: bool) -> Vec<u8> {
        let resets = segment.control == TcpControl::Rst;
        if self.stamps && segment.timestamp.is_none() && !resets {
            segment.timestamp = Some(TcpTimestampRepr::new(77, 77));
        }
        let [own, other] = if out { ENDS } else { [ENDS[1], ENDS[0]] };
        let ip = Ipv4Repr {
            src_addr: own,
            dst_addr: other,
            next_header: IpProtocol::Tcp,
            payload_len: segment.buffer_len(),
            hop_limit: 64,
        };
        let mut frame = vec![0; 20 + segment.buffer_len()];
        let sums = ChecksumCapabilities::default();
        ip.emit(&mut Ipv4Packet::new_unchecked(&mut frame), &sums);
        let mut tcp = TcpPacket::new_unchecked(&mut frame[20..]);
        segment.emit(&mut tcp, &own.into(), &other.into(), &sums);
        frame
    }

    fn transmit(&mut self, frame: &[u8], size: Option<u16>) {
        let packet = Packet::new(&frame[..40], &[], 20).segment(size.and_then(NonZeroU16::new));
        self.monitor.leaves(&packet, frame, self.now);
    }

    fn leaves(&mut self, segment: TcpRepr<'_>) {
        let frame = self.frame(segment, true);
        self.transmit(&frame, None);
    }

    fn arrives(&mut self, segment: TcpRepr<'_>) {
        let frame = self.frame(segment, false);
        self.monitor.batch(1);
        self.monitor.arrives(&frame, Checksum::Complete, self.now);
    }

    /// So many bytes leave, from a position of the stream on.
    fn sends(&mut self, start: u32, len: usize) {
        self.leaves(TcpRepr {
            seq_number: bare(true).seq_number + start as usize,
            payload: bytes(start, len),
            ..bare(true)
        });
    }

    fn receives(&mut self, start: u32, len: usize) {
        self.arrives(TcpRepr {
            seq_number: bare(false).seq_number + start as usize,
            payload: bytes(start, len),
            ..bare(false)
        });
    }

    /// An ACK leaves, for so many bytes and with these blocks of the stream.
    fn tells(&mut self, ack: usize, blocks: &[(u32, u32)]) {
        let base = THEIRS + 1;
        let mut segment = TcpRepr {
            ack_number: bare(true).ack_number.map(|base| base + ack),
            window_len: WINDOW - ack as u16,
            ..bare(true)
        };
        for (told, (start, end)) in segment.sack_ranges.iter_mut().zip(blocks) {
            *told = Some((base + start, base + end));
        }
        self.leaves(segment);
    }

    /// The peer acknowledges so many bytes.
    fn hears(&mut self, ack: usize) {
        self.arrives(TcpRepr {
            ack_number: bare(false).ack_number.map(|base| base + ack),
            ..bare(false)
        });
    }

    fn passes(&mut self, millis: u64) {
        self.now += Duration::from_millis(millis);
    }

    fn holds(&self) {
        self.monitor.verdict().unwrap();
    }

    #[track_caller]
    fn breaks(&self, rule: &str) {
        let why = self.monitor.verdict().expect_err(rule);
        assert!(why.contains(rule), "{why}");
        assert!(why.contains(" |> "), "with the history: {why}");
    }
}

fn fin(at: u32) -> TcpRepr<'static> {
    TcpRepr {
        control: TcpControl::Fin,
        seq_number: bare(true).seq_number + at as usize,
        ..bare(true)
    }
}

#[test]
fn data_beyond_the_edge() {
    let mut wire = Wire::established(false);
    for start in 0..10 {
        wire.sends(start * 1000, 1000);
    }
    wire.passes(200);
    wire.sends(10_000, 1);
    wire.holds();
    wire.sends(10_000, 2);
    wire.breaks("beyond the edge");
}

#[test]
fn an_acknowledgement_that_decreases() {
    let mut wire = Wire::established(false);
    wire.receives(0, 1000);
    wire.tells(1000, &[]);
    wire.holds();
    wire.tells(999, &[]);
    wire.breaks("an ACK that goes back");
}

#[test]
fn an_acknowledgement_of_data_that_has_not_arrived() {
    let mut wire = Wire::established(false);
    wire.receives(0, 1000);
    wire.receives(1001, 1000);
    wire.tells(1001, &[]);
    wire.breaks("but only 1001 has arrived");
}

#[test]
fn a_window_that_shrinks() {
    let mut wire = Wire::established(false);
    wire.leaves(TcpRepr {
        window_len: WINDOW - 1,
        ..bare(true)
    });
    wire.breaks("a window's edge that goes back");
}

#[test]
fn a_second_syn() {
    let mut wire = Wire::established(false);
    wire.leaves(TcpRepr {
        seq_number: TcpSeqNumber(7),
        ..wire.syn(true)
    });
    wire.breaks("another SYN");
    // After a reset it is another connection's.
    let mut wire = Wire::established(false);
    wire.leaves(TcpRepr {
        control: TcpControl::Rst,
        ..bare(true)
    });
    wire.leaves(TcpRepr {
        seq_number: TcpSeqNumber(7),
        ..wire.syn(true)
    });
    wire.holds();
}

#[test]
fn data_behind_the_fin() {
    let mut wire = Wire::established(false);
    wire.sends(0, 100);
    wire.leaves(fin(100));
    wire.sends(50, 50);
    wire.holds();
    wire.sends(50, 51);
    wire.breaks("data behind the FIN");
}

#[test]
fn a_fin_that_moves() {
    let mut wire = Wire::established(false);
    wire.sends(0, 100);
    wire.leaves(fin(99));
    wire.breaks("a FIN at 100");
}

#[test]
fn different_bytes_at_the_same_position() {
    let mut wire = Wire::established(false);
    wire.sends(0, 1000);
    wire.sends(500, 1000);
    wire.holds();
    wire.leaves(TcpRepr {
        seq_number: bare(true).seq_number + 100,
        payload: bytes(101, 10),
        ..bare(true)
    });
    wire.breaks("other bytes at 101");
}

#[test]
fn a_hole_in_the_sent_data() {
    let mut wire = Wire::established(false);
    wire.sends(1, 1000);
    wire.breaks("data at 2, and all before ends at 1");
}

#[test]
fn a_block_that_has_not_arrived() {
    let mut wire = Wire::established(false);
    wire.receives(1000, 1000);
    wire.tells(0, &[(1000, 2000)]);
    wire.holds();
    wire.tells(0, &[(1000, 2001)]);
    wire.breaks("which has not arrived");
}

#[test]
fn a_first_block_that_is_not_the_latest() {
    let mut wire = Wire::established(false);
    wire.receives(1000, 1000);
    wire.tells(0, &[(1000, 2000)]);
    wire.receives(3000, 1000);
    wire.tells(0, &[(3000, 4000), (1000, 2000)]);
    wire.receives(2000, 100);
    wire.tells(0, &[(1000, 2100), (3000, 4000)]);
    wire.holds();
    wire.receives(4000, 100);
    wire.tells(0, &[(1000, 2100), (3000, 4100)]);
    wire.breaks("a first SACK block of Some(1001..2101)");
}

#[test]
fn a_duplicate_that_is_none() {
    let mut wire = Wire::established(false);
    wire.receives(0, 1000);
    wire.tells(1000, &[]);
    wire.receives(500, 500);
    wire.tells(1000, &[(500, 1000)]);
    wire.holds();
    let mut twice = Wire::established(false);
    twice.receives(0, 1000);
    twice.tells(1000, &[(500, 1000)]);
    twice.breaks("which has arrived once");
    wire.tells(1000, &[(500, 1000)]);
    wire.breaks("2 D-SACKs of 1 duplicates");
}

#[test]
fn blocks_that_are_not_agreed_on() {
    let mut wire = Wire::new(false);
    wire.arrives(TcpRepr {
        ack_number: None,
        sack_permitted: false,
        ..wire.syn(false)
    });
    wire.leaves(TcpRepr {
        sack_permitted: false,
        ..wire.syn(true)
    });
    wire.hears(0);
    wire.receives(1000, 1000);
    wire.holds();
    wire.tells(0, &[(1000, 2000)]);
    wire.breaks("a SACK that is not agreed on");
}

#[test]
fn an_option_that_was_not_offered() {
    let mut wire = Wire::new(false);
    wire.arrives(TcpRepr {
        ack_number: None,
        window_scale: None,
        ..wire.syn(false)
    });
    wire.leaves(wire.syn(true));
    wire.breaks("an option that the SYN has not");
}

fn stamped(value: u32, echo: u32) -> TcpRepr<'static> {
    TcpRepr {
        timestamp: Some(TcpTimestampRepr::new(value, echo)),
        ..bare(true)
    }
}

#[test]
fn timestamps() {
    let mut wire = Wire::established(true);
    wire.leaves(stamped(78, 77));
    wire.holds();
    wire.leaves(stamped(77, 77));
    wire.breaks("a timestamp that goes back");

    // A retransmission may have an older one, but not older than the original's.
    let mut wire = Wire::established(true);
    for (value, start, len) in [(80, 0, 10), (90, 10, 10), (80, 0, 10), (80, 10, 10)] {
        wire.holds();
        wire.leaves(TcpRepr {
            seq_number: bare(true).seq_number + start,
            payload: bytes(start as u32, len),
            ..stamped(value, 77)
        });
    }
    wire.breaks("a timestamp that goes back to 80");

    let mut wire = Wire::established(true);
    wire.leaves(stamped(78, 76));
    wire.breaks("an echo of 76, which never arrived");

    let mut wire = Wire::established(true);
    wire.arrives(TcpRepr {
        timestamp: Some(TcpTimestampRepr::new(90, 77)),
        ..bare(false)
    });
    wire.leaves(stamped(78, 90));
    wire.holds();
    wire.leaves(stamped(79, 77));
    wire.breaks("an echo that goes back");

    let mut wire = Wire::established(false);
    wire.leaves(stamped(78, 77));
    wire.breaks("a timestamp that is not agreed on");

    let mut wire = Wire::established(true);
    wire.stamps = false;
    wire.leaves(bare(true));
    wire.breaks("no timestamp");
}

#[test]
fn segments_that_are_too_large() {
    let mut wire = Wire::established(true);
    wire.sends(0, 1448);
    wire.holds();
    wire.sends(1448, 1449);
    wire.breaks("the peer's MSS is 1460");

    let mut wire = Wire::established(false);
    let whole = TcpRepr {
        payload: bytes(0, 4000),
        ..bare(true)
    };
    let frame = wire.frame(whole, true);
    wire.transmit(&frame, Some(1460));
    wire.holds();
    wire.transmit(&frame, Some(1461));
    wire.breaks("the peer's MSS is 1460");
}

#[test]
fn timeouts_that_do_not_double() {
    let mut wire = Wire::established(false);
    for interval in [0, 200, 200, 400, 800] {
        wire.passes(interval);
        wire.sends(0, 1000);
    }
    wire.holds();
    wire.passes(1598);
    wire.sends(0, 1000);
    wire.breaks("is sent again after 1.598s, and before that after 800ms");

    let mut wire = Wire::established(false);
    for interval in [0, 200, 198] {
        wire.passes(interval);
        wire.sends(0, 1000);
    }
    wire.breaks("is sent again after 198ms");

    // 60 s is as long as they get.
    let mut wire = Wire::established(false);
    for interval in [0, 20_000, 30_000, 60_000, 60_000] {
        wire.passes(interval);
        wire.sends(0, 1000);
    }
    wire.holds();

    // The peer's segment may be a reason.
    let mut wire = Wire::established(false);
    wire.sends(0, 1000);
    wire.sends(1000, 1000);
    wire.passes(200);
    wire.sends(1000, 1000);
    wire.hears(1000);
    wire.passes(100);
    wire.sends(1000, 1000);
    wire.holds();
}

#[test]
fn a_storm_of_resets() {
    let mut wire = Wire::established(false);
    let reset = TcpRepr {
        control: TcpControl::Rst,
        ..bare(true)
    };
    // One ends the connection, and one answers the peer's SYN|ACK.
    wire.leaves(reset);
    wire.leaves(reset);
    wire.holds();
    wire.leaves(reset);
    wire.breaks("3 resets after 1 segments");
}

#[test]
fn data_after_a_reset() {
    let mut wire = Wire::established(false);
    wire.leaves(TcpRepr {
        control: TcpControl::Rst,
        ..bare(true)
    });
    wire.sends(0, 10);
    wire.breaks("data after a reset");
}

#[test]
fn a_storm_of_acknowledgements() {
    let mut wire = Wire::established(false);
    wire.hears(0);
    for _ in 0..2 {
        wire.leaves(bare(true));
    }
    wire.holds();
    wire.leaves(bare(true));
    wire.breaks("ACKs without new information");
}

#[test]
fn a_bare_acknowledgement_out_of_place() {
    let mut wire = Wire::established(false);
    wire.leaves(TcpRepr {
        seq_number: bare(true).seq_number + 1,
        ..bare(true)
    });
    wire.breaks("a bare ACK at 2");
}

#[test]
fn a_burst() {
    let large = |wire: &mut Wire| {
        wire.arrives(TcpRepr {
            window_len: 30_000,
            ..bare(false)
        });
        for start in 0..20 {
            wire.sends(start * 1400, 1400);
        }
    };
    let mut wire = Wire::established(false);
    large(&mut wire);
    wire.breaks("bytes at once, more than");
    // A path that is as fast as we are.
    let mut wire = Wire::established(false);
    wire.monitor.limits.round_trip = Duration::from_micros(100);
    large(&mut wire);
    wire.holds();
}

#[test]
fn an_acknowledgement_that_is_late() {
    // One segment may wait for 40 ms,
    let mut wire = Wire::established(false);
    wire.receives(0, 1000);
    wire.passes(40);
    wire.tells(1000, &[]);
    wire.holds();
    wire.receives(1000, 1000);
    wire.passes(41);
    wire.tells(2000, &[]);
    wire.breaks("an ACK that is late");
    // two do not wait,
    let mut wire = Wire::established(false);
    wire.receives(0, 1000);
    wire.receives(1000, 1000);
    wire.tells(2000, &[]);
    wire.receives(2000, 1000);
    wire.receives(3000, 1000);
    wire.passes(1);
    wire.tells(4000, &[]);
    wire.breaks("an ACK that is late");
    // nor does out-of-order data,
    let mut wire = Wire::established(false);
    wire.receives(1000, 1000);
    wire.passes(1);
    wire.tells(0, &[(1000, 2000)]);
    wire.breaks("an ACK that is late");
    // and one that never leaves is found at the end.
    let mut wire = Wire::established(false);
    wire.receives(0, 1000);
    wire.holds();
    wire.passes(41);
    wire.monitor.finish(wire.now).unwrap_err();
    wire.breaks("an ACK that is late");
}

#[test]
fn a_link_that_is_full_is_an_excuse() {
    let mut wire = Wire::established(false);
    wire.receives(0, 1000);
    wire.monitor.full();
    wire.receives(1000, 1000);
    wire.passes(100);
    wire.tells(2000, &[]);
    wire.holds();
}

#[test]
fn a_wrong_checksum() {
    let wire = Wire::established(false);
    for at in [10, 36, 60] {
        let mut wire = Wire::established(false);
        let data = TcpRepr {
            payload: bytes(0, 100),
            ..bare(true)
        };
        let mut frame = wire.frame(data, true);
        frame[at] ^= 1;
        wire.transmit(&frame, None);
        let why = wire.monitor.verdict().unwrap_err();
        assert!(why.contains("Checksum"), "{why}");
    }
    // Such a segment does not count as received.
    let mut wire = wire;
    let mut frame = wire.frame(bare(false), false);
    frame[30] ^= 1;
    wire.monitor.arrives(&frame, Checksum::Complete, wire.now);
    wire.holds();
}
