//! Moves buffers from a source's `so_rcv` to a sink's `so_snd` (FreeBSD's `so_splice_xfer_data`).
//!
//! Pure: both buffers are locked by the caller. Bytes leave the source only if the sink has room for
//! them and will send them; otherwise they stay.

use crate::sockbuf::SockBuf;

/// The terms of one pass.
#[derive(Debug, Clone, Copy)]
pub(super) struct XferLimits {
    /// Bytes until the limit.
    pub(super) limit: Option<u64>,
    /// Bytes for this pass.
    pub(super) quantum: usize,
    /// Bytes that the rate allows now.
    pub(super) allowance: usize,
    /// Bytes that the rate ever allows at once.
    pub(super) burst: usize,
    /// Low-water mark: with fewer bytes on the source the pass moves nothing (unless the limit is
    /// lower).
    pub(super) lowat: usize,
    /// Bytes that have passed this many splices are in a ring.
    pub(super) max_hops: Option<u8>,
    /// The sink is connected.
    pub(super) connected: bool,
    /// The sink has an error, and will never send again although its `so_snd` is not closed.
    pub(super) failed: bool,
    /// The source has an error; it counts for datagrams, which come in spite of it.
    pub(super) source_failed: bool,
    /// Datagrams keep their addresses.
    pub(super) addressed: bool,
}

/// Why a pass stopped, by precedence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stop {
    /// The source has an error. Nothing was moved.
    SourceFailed,
    /// The sink takes no more bytes. Nothing was moved.
    SinkGone,
    /// The next datagram is longer than the sink ever takes.
    MessageSize,
    /// The next byte has passed too many splices. Nothing was moved.
    Loop,
    /// The limit is reached to the byte, or the next datagram would exceed it.
    Limit,
    /// The source is closed and its last byte is moved.
    Eof,
    /// The source is empty, or has fewer bytes than the low-water mark.
    NoData,
    /// The sink is full, has less room than its low-water mark, or still connects.
    NoRoom,
    /// The rate allows no more now.
    Rate,
    /// The quantum is used up.
    Quantum,
}

/// Moves the bytes that the terms allow. Returns their number and the reason for stopping.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Moved {
    pub(super) bytes: usize,
    /// Some, of which each may be empty.
    pub(super) datagrams: usize,
}

/// Moves datagrams, each of them whole (`somove` of OpenBSD, for each record). Returns what was moved, and
/// why there was no more.
pub(super) fn transfer_records(
    rcv: &mut SockBuf,
    snd: &mut SockBuf,
    terms: XferLimits,
) -> (Moved, Stop) {
    let mut moved = Moved::default();
    if terms.source_failed {
        return (moved, Stop::SourceFailed);
    }
    if snd.is_closed() || terms.failed {
        return (moved, Stop::SinkGone);
    }
    loop {
        match next_record(rcv, snd, &terms, moved) {
            Ok(len) => {
                let count = alike(rcv, snd, &terms, (moved, len));
                moved.bytes += rcv.move_records_to(snd, count, terms.addressed);
                moved.datagrams += count;
            }
            Err(stop) => return (moved, stop),
        }
    }
}

/// How many datagrams of the first run are to be moved if the first one is, which has this length.
fn alike(rcv: &SockBuf, snd: &SockBuf, terms: &XferLimits, (moved, len): (Moved, usize)) -> usize {
    let left = terms.limit.map_or(usize::MAX, |limit| {
        usize::try_from(limit).unwrap_or(usize::MAX)
    });
    let bytes = left
        .min(terms.allowance)
        .min(terms.quantum)
        .saturating_sub(moved.bytes)
        .min(snd.space());
    let records = (QUANTUM - moved.datagrams).min(snd.record_limit() - snd.records());
    let most = (bytes / len.max(1)).min(records).max(1);
    rcv.first_run().min(most)
}

/// The length of the next datagram, if it is to be moved.
fn next_record(
    rcv: &SockBuf,
    snd: &SockBuf,
    terms: &XferLimits,
    moved: Moved,
) -> Result<usize, Stop> {
    let done = moved.bytes;
    let left = terms
        .limit
        .map(|limit| limit.saturating_sub(done as u64))
        .map_or(usize::MAX, |left| {
            usize::try_from(left).unwrap_or(usize::MAX)
        });
    if left == 0 {
        return Err(Stop::Limit);
    }
    let Some((len, _)) = rcv.first_record() else {
        let over = rcv.is_closed();
        return Err(if over { Stop::Eof } else { Stop::NoData });
    };
    let want = rcv.len().min(left);
    let space = if terms.connected { snd.space() } else { 0 };
    if space == 0 || space < want && space < snd.lowat() {
        return Err(Stop::NoRoom);
    }
    if terms.max_hops.is_some_and(|hops| rcv.first_hops() >= hops) {
        return Err(Stop::Loop);
    }
    if len > snd.hiwat() {
        return Err(Stop::MessageSize);
    }
    if len > left && left <= space {
        return Err(Stop::Limit);
    }
    if len > space {
        return Err(Stop::NoRoom);
    }
    // More than a burst never comes together.
    let allowance = terms.allowance.saturating_sub(done);
    if allowance == 0 || allowance < len.min(terms.burst) {
        return Err(Stop::Rate);
    }
    if done >= terms.quantum || moved.datagrams >= QUANTUM {
        return Err(Stop::Quantum);
    }
    Ok(len)
}

/// Most datagrams of a pass.
const QUANTUM: usize = 1024;

/// Moves what the terms allow. Returns the number of bytes and why there were no more.
pub(super) fn transfer(rcv: &mut SockBuf, snd: &mut SockBuf, terms: XferLimits) -> (Moved, Stop) {
    let (bytes, stop) = transfer_bytes(rcv, snd, terms);
    let datagrams = 0;
    (Moved { bytes, datagrams }, stop)
}

fn transfer_bytes(rcv: &mut SockBuf, snd: &mut SockBuf, terms: XferLimits) -> (usize, Stop) {
    if snd.is_closed() || terms.failed {
        return (0, Stop::SinkGone);
    }
    let left = terms.limit.map_or(usize::MAX, |left| {
        usize::try_from(left).unwrap_or(usize::MAX)
    });
    let want = rcv.len().min(left);
    if want < terms.lowat.min(left) && !rcv.is_closed() {
        return (0, Stop::NoData);
    }
    let room = if terms.connected { room(snd, want) } else { 0 };
    let most = want.min(room).min(terms.allowance);
    let most = match most > terms.quantum {
        true => quantum(rcv, terms.quantum),
        false => most,
    };
    let count = match terms.max_hops {
        None => most,
        Some(hops) => most.min(rcv.chain().below(hops)),
    };
    if count == 0 && most > 0 {
        return (0, Stop::Loop);
    }
    if terms.max_hops.is_some() {
        rcv.hop_to(snd, count);
    } else if count > 0 {
        rcv.move_to(snd, count);
    }
    let stop = if left == count {
        Stop::Limit
    } else if rcv.is_finished() {
        Stop::Eof
    } else if rcv.is_empty() {
        Stop::NoData
    } else if count == room || snd.space() == 0 {
        Stop::NoRoom
    } else if count == terms.allowance {
        Stop::Rate
    } else {
        Stop::Quantum
    };
    (count, stop)
}

/// The bytes of a pass that its quantum ends: no part of a frame, which would cost the sink a packet for each of its
/// parts, unless the frame alone is more.
fn quantum(rcv: &SockBuf, most: usize) -> usize {
    match rcv.chain().whole(most) {
        0 => most,
        whole => whole,
    }
}

/// The sink's free space; none if that is less than `want` and than the low-water mark. The sink drains
/// by itself, so waiting for room cannot stall.
fn room(snd: &SockBuf, want: usize) -> usize {
    let space = snd.space();
    if space < want && space < snd.lowat() {
        0
    } else {
        space
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PLENTY: XferLimits = XferLimits {
        limit: None,
        quantum: 1000,
        allowance: usize::MAX,
        burst: usize::MAX,
        lowat: 0,
        max_hops: None,
        connected: true,
        failed: false,
        source_failed: false,
        addressed: false,
    };

    fn buffers(queued: usize, space: usize) -> (SockBuf, SockBuf) {
        let (mut rcv, snd) = (SockBuf::new(queued), SockBuf::new(space));
        rcv.append_copy(&vec![1; queued]);
        (rcv, snd)
    }

    fn run(queued: usize, space: usize, terms: XferLimits) -> (usize, Stop) {
        let (mut rcv, mut snd) = buffers(queued, space);
        let result = transfer_bytes(&mut rcv, &mut snd, terms);
        assert_eq!((rcv.len(), snd.len()), (queued - result.0, result.0));
        result
    }

    #[test]
    fn each_reason() {
        assert_eq!(run(5, 9, PLENTY), (5, Stop::NoData));
        assert_eq!(run(9, 5, PLENTY), (5, Stop::NoRoom));
        assert_eq!(run(0, 0, PLENTY), (0, Stop::NoData));
        let quantum = XferLimits {
            quantum: 3,
            ..PLENTY
        };
        assert_eq!(run(9, 5, quantum), (3, Stop::Quantum));
        assert_eq!(run(9, 3, quantum), (3, Stop::NoRoom));
        let limit = XferLimits {
            limit: Some(4),
            ..PLENTY
        };
        assert_eq!(run(9, 9, limit), (4, Stop::Limit));
        assert_eq!(run(4, 9, limit), (4, Stop::Limit));
        assert_eq!(run(9, 3, limit), (3, Stop::NoRoom));
        let connecting = XferLimits {
            connected: false,
            ..PLENTY
        };
        assert_eq!(run(9, 9, connecting), (0, Stop::NoRoom));
        assert_eq!(run(0, 9, connecting), (0, Stop::NoData));
        let rate = XferLimits {
            allowance: 2,
            ..PLENTY
        };
        assert_eq!(run(9, 9, rate), (2, Stop::Rate));
        assert_eq!(run(2, 9, rate), (2, Stop::NoData));
        assert_eq!(run(9, 2, rate), (2, Stop::NoRoom));
        let lowat = XferLimits { lowat: 5, ..PLENTY };
        assert_eq!(run(4, 9, lowat), (0, Stop::NoData));
        assert_eq!(run(5, 9, lowat), (5, Stop::NoData));
        let last = XferLimits {
            limit: Some(3),
            ..lowat
        };
        assert_eq!(run(2, 9, last), (0, Stop::NoData));
        assert_eq!(run(4, 9, last), (3, Stop::Limit));
        let failed = XferLimits {
            failed: true,
            ..PLENTY
        };
        assert_eq!(run(9, 9, failed), (0, Stop::SinkGone));
    }

    #[test]
    fn end_of_file_only_after_the_last_byte() {
        let (mut rcv, mut snd) = buffers(9, 5);
        rcv.close();
        assert_eq!(
            transfer_bytes(&mut rcv, &mut snd, PLENTY),
            (5, Stop::NoRoom)
        );
        snd.drop_front(5);
        assert_eq!(transfer_bytes(&mut rcv, &mut snd, PLENTY), (4, Stop::Eof));
    }

    #[test]
    fn low_water_of_the_source_holds_back_neither_the_last_bytes_nor_the_end() {
        let terms = XferLimits { lowat: 5, ..PLENTY };
        let (mut rcv, mut snd) = buffers(4, 9);
        assert_eq!(transfer_bytes(&mut rcv, &mut snd, terms), (0, Stop::NoData));
        rcv.close();
        assert_eq!(transfer_bytes(&mut rcv, &mut snd, terms), (4, Stop::Eof));
    }

    #[test]
    fn bytes_that_went_round_are_moved_no_more() {
        let terms = XferLimits {
            max_hops: Some(3),
            quantum: 10_000,
            ..PLENTY
        };
        let (mut a, mut b) = buffers(6000, 9000);
        for hop in 0..3 {
            assert_eq!(transfer_bytes(&mut a, &mut b, terms).0, 6000, "hop {hop}");
            std::mem::swap(&mut a, &mut b);
        }
        // A transfer without bytes does not count as a hop, and new bytes behind old ones do not reset
        // the count.
        a.append(crate::buf::Buf::copy_of(&[2; 6000]));
        for _ in 0..300 {
            assert_eq!(transfer_bytes(&mut a, &mut b, terms), (0, Stop::Loop));
        }
        // New bytes in front of old ones are moved.
        a.drop_front(6000);
        assert_eq!(transfer_bytes(&mut a, &mut b, terms), (6000, Stop::NoData));
    }

    /// Otherwise each pass of 256 KiB would end with a part of a frame.
    #[test]
    fn a_quantum_ends_between_frames() {
        let quantum = XferLimits {
            quantum: 2500,
            ..PLENTY
        };
        // With memory for whole frames, or they would be copied together.
        let (mut rcv, mut snd) = (SockBuf::new(1 << 20), SockBuf::new(1 << 20));
        for len in [1000, 1000, 1000, 2500, 3000] {
            // Not the whole frame, or it would be joined with the next one.
            rcv.append(crate::buf::Buf::copy_of(&vec![1; len + 1]).slice(0..len));
        }
        let mut passes = Vec::new();
        while !rcv.is_empty() {
            passes.push(transfer_bytes(&mut rcv, &mut snd, quantum));
        }
        let more = |bytes| (bytes, Stop::Quantum);
        let want = [
            more(2000),
            more(1000),
            more(2500),
            more(2500),
            (500, Stop::NoData),
        ];
        assert_eq!(passes, want);
    }

    #[test]
    fn low_water_is_a_hint() {
        let (mut rcv, mut snd) = buffers(9, 10);
        snd.append_copy(&[0; 7]);
        snd.set_lowat(4);
        assert_eq!(
            transfer_bytes(&mut rcv, &mut snd, PLENTY),
            (0, Stop::NoRoom)
        );
        rcv.drop_front(6);
        let all_fits = transfer_bytes(&mut rcv, &mut snd, PLENTY);
        assert_eq!(all_fits, (3, Stop::NoData));
    }

    proptest! {
        #[test]
        fn moves_all_that_the_terms_allow(
            queued in 0usize..50, space in 0usize..50, quantum in 1usize..50,
            limit in proptest::option::of(1usize..50), closed: bool,
        ) {
            let (mut rcv, mut snd) = buffers(queued, space);
            if closed {
                rcv.close();
            }
            let terms = XferLimits { limit: limit.map(|limit| limit as u64), quantum, ..PLENTY };
            let (count, stop) = transfer_bytes(&mut rcv, &mut snd, terms);
            let left = limit.unwrap_or(usize::MAX);
            prop_assert_eq!(count, queued.min(space).min(quantum).min(left));
            prop_assert_eq!((rcv.len(), snd.len()), (queued - count, count));
            let reason_holds = match stop {
                Stop::SinkGone | Stop::SourceFailed | Stop::MessageSize | Stop::Loop | Stop::Rate => false,
                Stop::Limit => count == left,
                Stop::Eof => closed && rcv.is_empty(),
                Stop::NoData => !closed && rcv.is_empty(),
                Stop::NoRoom => snd.space() == 0,
                Stop::Quantum => count == quantum,
            };
            prop_assert!(reason_holds);
        }
    }
}
