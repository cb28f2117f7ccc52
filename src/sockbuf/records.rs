//! Records: where one datagram ends and the next one begins in a socket buffer, and the addresses of each.
//!
//! The bytes of all records lie in the buffer's chain, one behind the other, so that its memory is bounded as
//! that of a stream is. A record without bytes is a record.

use crate::buf::{Buf, Chain, Gather};
use crate::sockbuf::SockBuf;
use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};

/// The addresses of a datagram: from where it came, or where it goes (BSD's `MT_SONAME` and the control
/// record of `IP_RECVDSTADDR`). A connected socket needs neither to send.
///
/// ```
/// use sosplice::sockbuf::Addresses;
/// let to = Addresses::to("10.0.0.2:53".parse()?);
/// assert_eq!((to.peer, to.local), (Some("10.0.0.2:53".parse()?), None));
/// # Ok::<_, std::net::AddrParseError>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub struct Addresses {
    /// The other side: the source of a received datagram, the destination of one to send.
    pub peer: Option<SocketAddr>,
    /// This side's address: the destination of a received datagram, the source of one to send.
    pub local: Option<IpAddr>,
}

impl Addresses {
    /// Those of a datagram to `peer`, from whichever address suits.
    pub const fn to(peer: SocketAddr) -> Addresses {
        Addresses {
            peer: Some(peer),
            local: None,
        }
    }

    /// Sets [`local`](field@Self::local).
    #[must_use]
    pub const fn from_local(mut self, local: IpAddr) -> Addresses {
        self.local = Some(local);
        self
    }
}

/// A datagram by reference, and its addresses.
///
/// ```
/// use sosplice::{buf::Buf, sockbuf::{Addresses, Datagram}};
/// let query = Datagram::new([Buf::copy_of(b"query")], Addresses::to("10.0.0.2:53".parse()?));
/// assert_eq!((query.len(), query.to_vec()), (5, b"query".to_vec()));
/// # Ok::<_, std::net::AddrParseError>(())
/// ```
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct Datagram {
    /// The bytes, in order.
    pub payload: Gather,
    /// From where it came, or where it goes.
    pub addresses: Addresses,
}

impl Datagram {
    /// A datagram of these bytes.
    pub fn new(payload: impl IntoIterator<Item = Buf>, addresses: Addresses) -> Datagram {
        Datagram {
            payload: payload.into_iter().collect(),
            addresses,
        }
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.payload.iter().map(Buf::len).sum()
    }

    /// Whether there is no byte.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// A copy of the bytes.
    pub fn to_vec(&self) -> Vec<u8> {
        let mut all = Vec::with_capacity(self.len());
        self.payload
            .iter()
            .for_each(|buf| all.extend_from_slice(buf));
        all
    }
}

/// Datagrams of the same length, but for the last one, which may be shorter, with the same addresses, one behind the
/// other: as they come in a super-frame, and leave in one. Empty datagrams are alone.
#[derive(Debug, Clone)]
pub(crate) struct Run {
    /// The bytes of all of them, in order.
    pub(crate) payload: Gather,
    /// Length of each datagram.
    pub(crate) size: usize,
    pub(crate) addresses: Addresses,
}

impl Run {
    pub(crate) fn len(&self) -> usize {
        self.payload.iter().map(Buf::len).sum()
    }

    /// Number of datagrams.
    pub(crate) fn count(&self) -> usize {
        count(self.len(), self.size)
    }

    /// Cuts the first datagrams off: all, or so many.
    pub(crate) fn cut(&mut self, datagrams: usize) -> Run {
        let all = std::mem::take(&mut self.payload);
        let mut chain = Chain::default();
        all.into_iter().for_each(|buf| chain.append(buf));
        let bytes = chain.len().min(datagrams.saturating_mul(self.size));
        let mut payload = Gather::new();
        chain.take_each(bytes, |buf| payload.push(buf));
        chain.take_each(chain.len(), |buf| self.payload.push(buf));
        let mut first = Run { payload, ..*self };
        // A single one may be the last, which is shorter.
        for part in [&mut first, self] {
            part.size = part.size.min(part.len());
        }
        first
    }
}

/// Datagrams of this size in so many bytes. None without bytes is one.
fn count(len: usize, size: usize) -> usize {
    len.div_ceil(size.max(1)).max(1)
}

/// The place of a run of datagrams.
#[derive(Debug, Clone, Copy)]
struct Record {
    /// Position in the chain of the first byte of the first datagram.
    begin: u64,
    /// Position behind the last byte of the last one.
    end: u64,
    /// Length of each datagram.
    size: u32,
    /// Splices that they have passed.
    hops: u8,
    addresses: Addresses,
}

impl Record {
    /// Bytes of the first datagrams.
    fn bytes_of(&self, datagrams: usize) -> usize {
        let most = (self.size as usize).saturating_mul(datagrams);
        most.min(self.len())
    }

    fn len(&self) -> usize {
        usize::try_from(self.end - self.begin).expect("invariant: it is in the chain")
    }

    fn count(&self) -> usize {
        count(self.len(), self.size as usize)
    }

    /// Whether a run of this size can be its continuation.
    fn continues(&self, next: &Record) -> bool {
        let size = self.size as usize;
        let fits = next.size == self.size || next.size < self.size && next.count() == 1;
        size > 0
            && next.size > 0
            && fits
            && self.len().is_multiple_of(size)
            && (self.hops, self.addresses) == (next.hops, next.addresses)
    }
}

/// The places of all datagrams in a buffer.
#[derive(Debug)]
pub(super) struct Records {
    queue: VecDeque<Record>,
    /// Datagrams of all of them.
    count: usize,
    /// Most records.
    limit: usize,
    /// Records that found no room.
    dropped: u64,
}

impl Records {
    pub(super) fn new(limit: usize) -> Records {
        Records {
            queue: VecDeque::new(),
            count: 0,
            limit,
            dropped: 0,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    pub(super) fn is_full(&self) -> bool {
        self.count >= self.limit
    }

    pub(super) fn shrink(&mut self) {
        self.queue.shrink_to_fit();
    }

    pub(super) fn clear(&mut self) {
        self.queue = VecDeque::new();
        self.count = 0;
    }

    fn push(&mut self, record: Record) {
        self.count += record.count();
        match self.queue.back_mut() {
            Some(last) if last.continues(&record) => last.end = record.end,
            _ => self.queue.push_back(record),
        }
    }

    /// Takes the first datagrams of the first run.
    fn pop(&mut self, datagrams: usize) -> Option<Record> {
        let first = self.queue.front_mut()?;
        let mut popped = *first;
        if datagrams < first.count() {
            first.begin += first.bytes_of(datagrams) as u64;
            popped.end = first.begin;
        } else {
            self.queue.pop_front();
        }
        self.count -= popped.count();
        Some(popped)
    }
}

/// Datagrams. On a buffer of a stream these panic.
impl SockBuf {
    /// An empty buffer for datagrams: this many bytes of payload, and this many datagrams, at most.
    ///
    /// ```
    /// use sosplice::{buf::Buf, sockbuf::{Addresses, SockBuf}};
    /// let mut so_rcv = SockBuf::for_records(100, 2);
    /// let from = Addresses::to("10.0.0.2:53".parse()?);
    /// assert!(so_rcv.append_record([Buf::copy_of(b"first")], from));
    /// assert!(so_rcv.append_record([], from));                 // an empty one
    /// assert!(!so_rcv.append_record([Buf::copy_of(b"third")], from));
    /// assert_eq!((so_rcv.records(), so_rcv.dropped()), (2, 1));
    /// let (payload, addresses) = so_rcv.take_record().ok_or("none")?;
    /// assert_eq!((&payload[0][..], addresses), (&b"first"[..], from));
    /// # Ok::<_, Box<dyn std::error::Error>>(())
    /// ```
    pub fn for_records(hiwat: usize, limit: usize) -> SockBuf {
        SockBuf {
            records: Some(Box::new(Records::new(limit))),
            ..SockBuf::new(hiwat)
        }
    }

    /// Whether it holds datagrams, and no stream.
    pub fn holds_records(&self) -> bool {
        self.records.is_some()
    }

    fn queue(&self) -> &Records {
        self.records.as_deref().expect("a buffer for datagrams")
    }

    fn queue_mut(&mut self) -> &mut Records {
        self.records.as_deref_mut().expect("a buffer for datagrams")
    }

    /// Number of datagrams queued.
    pub fn records(&self) -> usize {
        self.records.as_ref().map_or(0, |records| records.count)
    }

    /// Real memory held, that of the datagrams' places included.
    pub(crate) fn records_memory(&self) -> usize {
        let places = self.records.as_ref().map_or(0, |it| it.queue.len());
        self.memory() + places * size_of::<Record>()
    }

    /// Datagrams that found the buffer full, and were dropped.
    pub fn dropped(&self) -> u64 {
        self.records.as_ref().map_or(0, |records| records.dropped)
    }

    /// Most datagrams that it takes.
    pub fn record_limit(&self) -> usize {
        self.records.as_ref().map_or(0, |records| records.limit)
    }

    /// Whether a datagram of so many bytes finds room.
    pub fn has_room_for(&self, len: usize) -> bool {
        !self.queue().is_full() && len <= self.space()
    }

    /// Appends a datagram (`sbappendaddr`). `false` if there is no room: it is dropped, and counted.
    ///
    /// # Panics
    /// If the buffer is that of a stream; so do the other methods for datagrams.
    pub fn append_record(
        &mut self,
        payload: impl IntoIterator<Item = Buf>,
        addresses: Addresses,
    ) -> bool {
        let payload: Gather = payload.into_iter().collect();
        let len = payload.iter().map(Buf::len).sum();
        self.append_hopped(payload, len, (addresses, 0))
    }

    fn append_hopped(
        &mut self,
        payload: Gather,
        len: usize,
        (addresses, hops): (Addresses, u8),
    ) -> bool {
        if !self.has_room_for(len) {
            self.queue_mut().dropped += 1;
            return false;
        }
        let begin = self.chain.end();
        // Small ones are copied together: a frame for each would be more than what it holds.
        for buf in payload {
            self.chain.append_gathered(buf);
        }
        self.add(begin, len, (addresses, hops));
        true
    }

    /// What was appended to the chain from this position on is a run.
    fn add(&mut self, begin: u64, size: usize, (addresses, hops): (Addresses, u8)) {
        self.keep_memory_bounded();
        let end = self.chain.end();
        self.queue_mut().push(Record {
            begin,
            end,
            size: u32::try_from(size).expect("invariant: a datagram is smaller than 4 GiB"),
            hops,
            addresses,
        });
    }

    /// Appends the datagrams of a run. Returns how many found room; the others are dropped, and counted.
    pub(crate) fn append_run(&mut self, mut run: Run) -> usize {
        let (len, count) = (run.len(), run.count());
        let room = self.record_limit() - self.records().min(self.record_limit());
        if count == 1 || len <= self.space() && count <= room {
            if count == 1 {
                return self
                    .append_hopped(run.payload, len, (run.addresses, 0))
                    .into();
            }
            let begin = self.chain.end();
            run.payload
                .into_iter()
                .for_each(|buf| self.chain.append_gathered(buf));
            self.add(begin, run.size, (run.addresses, 0));
            return count;
        }
        let each = (0..count).map(|_| self.append_run(run.cut(1)));
        each.sum()
    }

    /// Length and addresses of the first datagram.
    pub fn first_record(&self) -> Option<(usize, Addresses)> {
        let first = self.records.as_ref()?.queue.front()?;
        Some((self.length(first), first.addresses))
    }

    /// Number of datagrams of the first run.
    pub(crate) fn first_run(&self) -> usize {
        let first = self.records.as_ref().and_then(|it| it.queue.front());
        first.map_or(0, Record::count)
    }

    /// Bytes of the first datagram that are there.
    fn length(&self, first: &Record) -> usize {
        let end = first.begin + first.bytes_of(1) as u64;
        usize::try_from(end - self.chain.start()).expect("invariant: it is in the chain")
    }

    /// Takes the first datagram out by reference.
    pub fn take_record(&mut self) -> Option<(Gather, Addresses)> {
        let run = self.take_run((0, 1))?;
        Some((run.payload, run.addresses))
    }

    /// Takes datagrams of the first run out, by reference: one, and more up to so many bytes and so many datagrams.
    pub(crate) fn take_run(&mut self, (bytes, datagrams): (usize, usize)) -> Option<Run> {
        let first = self.queue().queue.front()?;
        let size = first.size as usize;
        let fit = (bytes / size.max(1)).clamp(1, datagrams);
        let popped = self.queue_mut().pop(fit)?;
        let len = usize::try_from(popped.end - self.chain.start()).unwrap_or(0);
        let mut payload = Gather::new();
        self.chain.take_each(len, |buf| payload.push(buf));
        let addresses = popped.addresses;
        // A single one may be a run's last, which is shorter.
        let size = if popped.count() == 1 { len } else { size };
        Some(Run {
            payload,
            size,
            addresses,
        })
    }

    /// Copies the first datagram out, as far as there is room, and leaves it. Returns how much was copied, how
    /// long it is, and its addresses.
    pub fn peek_record(&self, out: &mut [u8]) -> Option<(usize, usize, Addresses)> {
        let (len, addresses) = self.first_record()?;
        let most = len.min(out.len());
        let copied = self.chain.peek(&mut out[..most]);
        Some((copied, len, addresses))
    }

    /// Drops the first datagram; what it held is to be dropped after the lock.
    pub(crate) fn drop_record(&mut self) -> Option<Gather> {
        self.take_record().map(|(payload, _)| payload)
    }

    /// Of a datagram whose bytes are being taken from the front, drops the rest. Nothing, in the buffer of a
    /// stream.
    pub(crate) fn end_record(&mut self) {
        let first = self.records.as_mut().and_then(|it| it.pop(1));
        if let Some(first) = first {
            let rest = self.length(&first);
            self.chain.advance(rest);
        }
    }

    /// Splices that the first datagram has passed.
    pub(crate) fn first_hops(&self) -> u8 {
        let first = self.records.as_ref().and_then(|it| it.queue.front());
        first.map_or(0, |first| first.hops)
    }

    /// Moves the first datagram to the end of another buffer, which has room for it, by reference, with its
    /// addresses, and no splice.
    pub(crate) fn pass_record_to(&mut self, other: &mut SockBuf) {
        self.hand_over(other, 1, |addresses, hops| (addresses, hops));
    }

    /// Moves the first datagrams of the first run to the end of another buffer, which has room for them, by reference.
    /// They have then passed one more splice; `addressed`: with their addresses. Returns their bytes.
    pub(crate) fn move_records_to(
        &mut self,
        other: &mut SockBuf,
        datagrams: usize,
        addressed: bool,
    ) -> usize {
        self.hand_over(other, datagrams, |addresses, hops| {
            let kept = if addressed {
                addresses
            } else {
                Addresses::default()
            };
            (kept, hops.saturating_add(1))
        })
    }

    fn hand_over(
        &mut self,
        other: &mut SockBuf,
        datagrams: usize,
        change: impl FnOnce(Addresses, u8) -> (Addresses, u8),
    ) -> usize {
        let Some(popped) = self.queue_mut().pop(datagrams) else {
            return 0;
        };
        let len = usize::try_from(popped.end - self.chain.start()).unwrap_or(0);
        let begin = other.chain.end();
        self.chain
            .take_each(len, |buf| other.chain.append_gathered(buf));
        let size = if popped.count() == 1 {
            len
        } else {
            popped.size as usize
        };
        other.add(begin, size, change(popped.addresses, popped.hops));
        len
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Debug, Clone)]
    enum Op {
        Append(Vec<u8>, u16),
        Take,
        Read(usize),
        Move,
        Pressed(bool),
    }

    fn op() -> impl Strategy<Value = Op> {
        let payload = prop_oneof![
            Just(Vec::new()),
            proptest::collection::vec(any::<u8>(), 1..20),
            proptest::collection::vec(any::<u8>(), 500..2000),
        ];
        prop_oneof![
            3 => (payload, any::<u16>()).prop_map(|(payload, port)| Op::Append(payload, port)),
            1 => Just(Op::Take),
            1 => (0usize..3000).prop_map(Op::Read),
            1 => Just(Op::Move),
            1 => any::<bool>().prop_map(Op::Pressed),
        ]
    }

    fn from(port: u16) -> Addresses {
        Addresses::to(([10, 0, 0, 1], port).into())
    }

    type Datagram = (Vec<u8>, Addresses);

    fn flat(payload: &Gather) -> Vec<u8> {
        payload.iter().flat_map(|buf| buf.to_vec()).collect()
    }

    /// A buffer beside a list.
    struct Pair {
        buf: SockBuf,
        other: SockBuf,
        model: VecDeque<Datagram>,
        moved: VecDeque<Datagram>,
        dropped: u64,
    }

    impl Pair {
        fn apply(&mut self, op: Op) {
            match op {
                Op::Append(payload, port) => {
                    let room = self.buf.space() >= payload.len() && self.model.len() < 8;
                    let taken = self.buf.append_record([Buf::copy_of(&payload)], from(port));
                    assert_eq!(taken, room);
                    match room {
                        true => self.model.push_back((payload, from(port))),
                        false => self.dropped += 1,
                    }
                }
                Op::Take => {
                    let taken = self.buf.take_record();
                    let taken = taken.map(|(payload, addresses)| (flat(&payload), addresses));
                    assert_eq!(taken, self.model.pop_front());
                }
                Op::Read(len) => {
                    let mut out = vec![0; len];
                    let seen = self.buf.peek_record(&mut out);
                    let want = self.model.front().map(|(payload, addresses)| {
                        let copied = payload.len().min(len);
                        assert_eq!(out[..copied], payload[..copied]);
                        (copied, payload.len(), *addresses)
                    });
                    assert_eq!(seen, want);
                }
                Op::Move => {
                    self.buf.move_records_to(&mut self.other, 1, true);
                    self.moved.extend(self.model.pop_front());
                }
                Op::Pressed(pressed) => self.buf.set_pressed(pressed),
            }
            let bytes: usize = self.model.iter().map(|(payload, _)| payload.len()).sum();
            assert_eq!(
                (self.buf.len(), self.buf.records()),
                (bytes, self.model.len())
            );
            assert_eq!(self.buf.is_empty(), self.model.is_empty());
            assert_eq!(self.buf.dropped(), self.dropped);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// A buffer of records is a bounded queue of datagrams.
        #[test]
        fn a_queue_of_datagrams(ops in proptest::collection::vec(op(), 1..80)) {
            let mut pair = Pair {
                buf: SockBuf::for_records(6000, 8),
                other: SockBuf::for_records(1 << 20, 1000),
                model: VecDeque::new(),
                moved: VecDeque::new(),
                dropped: 0,
            };
            ops.into_iter().for_each(|op| pair.apply(op));
            for want in pair.moved {
                let (payload, addresses) = pair.other.take_record().expect("moved");
                prop_assert_eq!((flat(&payload), addresses), want);
            }
            prop_assert!(pair.other.is_empty());
        }
    }

    /// Runs are cut, joined and read in parts; what is in them stays a queue of datagrams.
    #[test]
    fn runs_are_queues_of_datagrams() {
        let bytes: Vec<u8> = (0..=104).collect();
        let run = |size: usize, len: usize| Run {
            payload: Gather::from_iter([Buf::copy_of(&bytes[..len])]),
            size,
            addresses: from(1),
        };
        let mut buf = SockBuf::for_records(1000, 20);
        assert_eq!(buf.append_run(run(10, 95)), 10);
        assert!(buf.append_record([Buf::copy_of(&[7; 10])], from(1)));
        assert_eq!(
            (buf.records(), buf.first_run()),
            (11, 10),
            "the shorter one is the last"
        );
        assert_eq!(buf.append_run(run(10, 105)), 9, "the others find no room");
        assert_eq!((buf.records(), buf.dropped()), (20, 2));
        let first = buf.take_run((35, 100)).expect("there");
        assert_eq!(
            (first.count(), first.size, flat(&first.payload)),
            (3, 10, bytes[..30].to_vec())
        );
        // A reader that takes a part of one: the rest of that one is gone.
        assert_eq!(buf.read(&mut [0; 4]), 4);
        buf.end_record();
        let mut other = SockBuf::for_records(1000, 100);
        assert_eq!(buf.move_records_to(&mut other, 100, false), 55);
        assert_eq!((other.records(), other.first_hops()), (6, 1));
        let mut moved = other.take_run((1000, 100)).expect("moved");
        assert_eq!(flat(&moved.payload), bytes[40..95].to_vec());
        let begun = moved.cut(2);
        assert_eq!((begun.count(), moved.count(), moved.len()), (2, 4, 35));
        let rest: Vec<usize> = (0..4).map(|_| moved.cut(1).len()).collect();
        assert_eq!(rest, [10, 10, 10, 5]);
        assert_eq!(
            buf.take_record().map(|(payload, _)| flat(&payload)),
            Some(vec![7; 10])
        );
    }

    #[test]
    fn a_closed_buffer_is_finished_when_the_last_empty_datagram_is_taken() {
        let mut buf = SockBuf::for_records(100, 8);
        assert!(buf.append_record([], Addresses::default()));
        buf.close();
        assert!(!buf.is_finished() && !buf.is_empty());
        assert!(buf.take_record().is_some());
        assert!(buf.is_finished());
    }

    #[test]
    fn taking_everything_takes_the_records_too() {
        let mut buf = SockBuf::for_records(100, 8);
        assert!(buf.append_record([Buf::copy_of(b"abc")], Addresses::default()));
        assert!(buf.append_record([], Addresses::default()));
        let all: Chain = buf.take_all();
        assert_eq!((all.len(), buf.records(), buf.is_empty()), (3, 0, true));
    }

    #[test]
    fn tiny_datagrams_of_large_frames_hold_little_memory() {
        let mut buf = SockBuf::for_records(64 * 1024, 100_000);
        for _ in 0..60_000 {
            let tiny = Buf::copy_of(&[1; 40_000]).slice(0..1);
            assert!(buf.append_record([tiny], Addresses::default()));
            assert!(buf.memory() <= buf.mbmax() + crate::buf::MAX_FRAME);
        }
    }
}
