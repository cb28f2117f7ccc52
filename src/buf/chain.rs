//! A rope of buffers with absolute positions.

use super::{Buf, FrameMut};
use smallvec::SmallVec;
use std::collections::VecDeque;
use std::ops::Range;

/// A buffer of a chain.
#[derive(Debug, Clone)]
struct Link {
    /// One past the position of the last byte.
    end: u64,
    buf: Buf,
    /// Its share in the chain's footprint.
    footprint: usize,
}

impl Link {
    fn start(&self) -> u64 {
        self.end - self.buf.len() as u64
    }

    /// Uses less than half of its frame.
    fn wastes(&self) -> bool {
        self.footprint > self.buf.len()
    }
}

/// The buffers of a chain. The first one is inline: most chains have one or none, and then there is no other memory
/// to touch.
#[derive(Debug, Default)]
struct Links {
    /// `None`: there are none.
    first: Option<Link>,
    rest: VecDeque<Link>,
}

impl Links {
    fn len(&self) -> usize {
        usize::from(self.first.is_some()) + self.rest.len()
    }

    fn push(&mut self, link: Link) {
        match &self.first {
            None => self.first = Some(link),
            Some(_) => self.rest.push_back(link),
        }
    }

    fn pop(&mut self) -> Option<Link> {
        let next = self.rest.pop_front();
        std::mem::replace(&mut self.first, next)
    }

    fn last(&self) -> Option<&Link> {
        self.rest.back().or(self.first.as_ref())
    }

    fn last_mut(&mut self) -> Option<&mut Link> {
        self.rest.back_mut().or(self.first.as_mut())
    }

    fn iter(&self) -> impl Iterator<Item = &Link> {
        self.first.iter().chain(&self.rest)
    }

    /// Those that end behind this position.
    fn behind(&self, position: u64) -> impl Iterator<Item = &Link> {
        let first = self.first.iter().filter(move |link| link.end > position);
        let from = self.rest.partition_point(|link| link.end <= position);
        first.chain(self.rest.range(from..))
    }

    /// Those from this index on.
    fn skip_mut(&mut self, index: usize) -> impl Iterator<Item = &mut Link> {
        let first = self.first.iter_mut().skip(index);
        first.chain(self.rest.iter_mut().skip(index.saturating_sub(1)))
    }

    fn into_iter(self) -> impl Iterator<Item = Link> {
        self.first.into_iter().chain(self.rest)
    }
}

/// References to a range of a chain. Most ranges lie in a few buffers.
pub type Gather = SmallVec<[Buf; 4]>;

/// Buffers removed by an acknowledgement; inline for some segments.
pub(crate) type Taken = SmallVec<[Buf; 64]>;

/// A rope of [`Buf`]s: append at the end, take from the front, refer to any range.
///
/// Positions are absolute: [`start`](Chain::start) counts the bytes ever taken from the front and
/// [`end`](Chain::end) those ever appended. Neither goes back.
///
/// ```
/// use sosplice::buf::{Buf, Chain};
/// let mut chain = Chain::default();
/// chain.append(Buf::copy_of(b"hello "));
/// chain.append(Buf::copy_of(b"world"));
/// let front = chain.split_to(8);
/// assert_eq!((front.to_vec(), chain.to_vec()), (b"hello wo".to_vec(), b"rld".to_vec()));
/// assert_eq!((chain.start(), chain.end()), (8, 11));
/// ```
#[derive(Debug, Default)]
pub struct Chain {
    links: Links,
    start: u64,
    end: u64,
    footprint: usize,
}

/// A payload shorter than this is copied to the last buffer instead of being linked.
pub const COPY_BELOW: usize = 512;

/// Smallest frame that pieces are collected in, unless the chain is empty.
const COLLECT: usize = 16_384;

impl Chain {
    /// Number of bytes.
    pub fn len(&self) -> usize {
        usize::try_from(self.end - self.start).expect("invariant: a chain fits into memory")
    }

    /// Whether it is empty.
    pub fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// Position of the first byte: the number of bytes ever taken from the front.
    pub fn start(&self) -> u64 {
        self.start
    }

    /// One past the position of the last byte: the number of bytes ever appended.
    pub fn end(&self) -> u64 {
        self.end
    }

    /// Real memory to account for, see [`Buf::footprint`].
    pub fn footprint(&self) -> usize {
        self.footprint
    }

    /// Number of buffers.
    pub fn buffers(&self) -> usize {
        self.links.len()
    }

    /// Releases unused capacity.
    pub(crate) fn shrink(&mut self) {
        self.links.rest.shrink_to_fit();
    }

    /// Appends a buffer without copying, unless it is tiny and the last one has room.
    pub fn append(&mut self, buf: Buf) {
        if buf.is_empty() {
            return;
        }
        let len = buf.len();
        if let Some(last) = self.links.last_mut()
            && (last.buf.join(&buf) || (len < COPY_BELOW && last.buf.extend_whole(&buf)))
        {
            self.grown(len);
            return;
        }
        self.end += len as u64;
        let footprint = buf.footprint();
        self.footprint += footprint;
        self.links.push(Link {
            end: self.end,
            buf,
            footprint,
        });
    }

    /// The last buffer has grown by `count` bytes.
    fn grown(&mut self, count: usize) {
        self.end += count as u64;
        if let Some(last) = self.links.last_mut() {
            last.end = self.end;
            let footprint = last.buf.footprint();
            self.footprint = self.footprint - last.footprint + footprint;
            last.footprint = footprint;
        }
    }

    /// Appends the whole of `other`.
    pub fn append_chain(&mut self, other: Chain) {
        for link in other.links.into_iter() {
            self.append(link.buf);
        }
    }

    /// Appends a copy of `bytes`, filling the last buffer first.
    pub fn append_copy(&mut self, bytes: &[u8]) {
        let expected = if self.is_empty() {
            bytes.len()
        } else {
            COLLECT
        };
        self.collect(bytes, expected);
    }

    /// As [`append`](Self::append), but a tiny buffer is copied into a frame that has room for as much as is there
    /// already: many of them take a few frames.
    pub(crate) fn append_gathered(&mut self, buf: Buf) {
        let joins = |last: &mut Link| last.buf.join(&buf);
        if buf.len() >= COPY_BELOW {
            self.append(buf);
        } else if self.links.last_mut().is_some_and(joins) {
            self.grown(buf.len());
        } else {
            self.collect(&buf, self.len());
        }
    }

    /// As [`append_copy`](Self::append_copy): a new frame has room for `expected` bytes, within limits.
    fn collect(&mut self, mut bytes: &[u8], expected: usize) {
        if let Some(last) = self.links.last_mut() {
            let count = last.buf.extend(bytes);
            self.grown(count);
            bytes = &bytes[count..];
        }
        if bytes.is_empty() {
            return;
        }
        let room = bytes.len().max(expected.min(COLLECT));
        let mut frame = FrameMut::with_capacity(room);
        frame.bytes_mut().extend_from_slice(bytes);
        self.append(frame.freeze());
    }

    /// Removes the first `count` bytes and returns them as a chain.
    ///
    /// # Panics
    /// If there are fewer.
    pub fn split_to(&mut self, count: usize) -> Chain {
        let mut front = Chain::default();
        self.move_to(&mut front, count);
        front
    }

    /// Drops the first `count` bytes.
    ///
    /// # Panics
    /// If there are fewer.
    pub fn advance(&mut self, count: usize) {
        self.take(count, drop);
    }

    /// Takes the first `count` bytes, to be dropped later.
    pub(crate) fn take_bufs(&mut self, count: usize, taken: &mut Taken) {
        self.take(count, |buf| taken.push(buf));
    }

    /// Takes the first `count` bytes, buffer by buffer.
    pub(crate) fn take_each(&mut self, count: usize, each: impl FnMut(Buf)) {
        self.take(count, each);
    }

    /// Moves the first `count` bytes to the end of `other`.
    ///
    /// # Panics
    /// If there are fewer.
    pub fn move_to(&mut self, other: &mut Chain, count: usize) {
        self.take(count, |buf| other.append(buf));
    }

    /// As [`move_to`](Self::move_to), counting a hop of an OpenBSD splice.
    pub(crate) fn hop_to(&mut self, other: &mut Chain, count: usize) {
        self.take(count, |mut buf| {
            buf.hop();
            other.append(buf);
        });
    }

    /// Bytes from the front that have passed fewer than `hops` splices.
    pub(crate) fn below(&self, hops: u8) -> usize {
        let fresh = self.iter().take_while(|buf| buf.hops() < hops);
        fresh.map(Buf::len).sum()
    }

    /// The bytes of the buffers at the front that are within the first `count` bytes as a whole.
    pub(crate) fn whole(&self, count: usize) -> usize {
        let mut all = 0;
        for buf in self.iter() {
            if buf.len() > count - all {
                break;
            }
            all += buf.len();
        }
        all
    }

    fn take(&mut self, count: usize, mut each: impl FnMut(Buf)) {
        assert!(count <= self.len(), "more taken from a chain than it holds");
        let target = self.start + count as u64;
        while self.start < target {
            let first = self
                .links
                .first
                .as_mut()
                .expect("invariant: links cover start..end");
            if first.end <= target {
                self.start = first.end;
                self.footprint -= first.footprint;
                if let Some(link) = self.links.pop() {
                    each(link.buf);
                }
            } else {
                let rest = first.buf.split_off(span(self.start, target));
                each(std::mem::replace(&mut first.buf, rest));
                let footprint = first.buf.footprint();
                self.footprint = self.footprint - first.footprint + footprint;
                first.footprint = footprint;
                self.start = target;
            }
        }
    }

    /// References to the bytes at these absolute positions.
    ///
    /// # Panics
    /// If the range is not within `start..end`.
    pub fn range(&self, range: Range<u64>) -> Gather {
        assert!(
            self.start <= range.start && range.start <= range.end && range.end <= self.end,
            "range {range:?} is not within {}..{}",
            self.start,
            self.end
        );
        self.links
            .behind(range.start)
            .take_while(|link| link.start() < range.end)
            .map(|link| {
                let from = range.start.max(link.start());
                let to = range.end.min(link.end);
                link.buf
                    .slice(span(link.start(), from)..span(link.start(), to))
            })
            .collect()
    }

    /// The buffers in order.
    pub fn iter(&self) -> impl Iterator<Item = &Buf> {
        self.links.iter().map(|link| &link.buf)
    }

    /// Removes up to `out.len()` bytes from the front. Returns their number.
    pub fn read(&mut self, out: &mut [u8]) -> usize {
        let count = self.peek(out);
        self.advance(count);
        count
    }

    /// Copies up to `out.len()` bytes from the front without removing them. Returns their number.
    pub fn peek(&self, out: &mut [u8]) -> usize {
        let mut filled = 0;
        for buf in self.iter() {
            let count = buf.len().min(out.len() - filled);
            out[filled..filled + count].copy_from_slice(&buf[..count]);
            filled += count;
            if filled == out.len() {
                break;
            }
        }
        filled
    }

    /// A copy of all bytes.
    pub fn to_vec(&self) -> Vec<u8> {
        let mut all = vec![0; self.len()];
        self.peek(&mut all);
        all
    }

    /// Copies buffers that use less than half of their frame together, with those between them, so that
    /// [`footprint`](Self::footprint) is at most twice [`len`](Self::len) and one frame. Positions do
    /// not change.
    pub fn compact(&mut self) {
        let old = std::mem::take(&mut self.links);
        let (start, end) = (self.start, self.end);
        *self = Chain {
            links: Links::default(),
            start,
            end: start,
            footprint: 0,
        };
        for link in old.into_iter() {
            // Fills a partly used frame first: otherwise each small piece would take a frame.
            let begun = self.links.last().is_some_and(Link::wastes);
            if begun || link.wastes() {
                let first = self.links.len().saturating_sub(1);
                self.collect(&link.buf, span(self.end, end));
                for copy in self.links.skip_mut(first) {
                    copy.buf.hops = copy.buf.hops.max(link.buf.hops);
                }
            } else {
                self.append(link.buf);
            }
        }
    }
}

fn span(from: u64, to: u64) -> usize {
    usize::try_from(to - from).expect("invariant: a buffer fits into memory")
}

impl FromIterator<Buf> for Chain {
    fn from_iter<I: IntoIterator<Item = Buf>>(bufs: I) -> Chain {
        let mut chain = Chain::default();
        bufs.into_iter().for_each(|buf| chain.append(buf));
        chain
    }
}

impl From<Buf> for Chain {
    fn from(buf: Buf) -> Chain {
        Chain::from_iter([buf])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cases::cases;
    use proptest::prelude::*;

    #[derive(Debug, Clone)]
    enum Op {
        Append(Vec<u8>),
        AppendCopy(Vec<u8>),
        AppendPart(Vec<u8>, usize, usize),
        Split(usize),
        Advance(usize),
        Read(usize),
        Compact,
        Range(usize, usize),
        Hold(usize),
    }

    fn bytes() -> impl Strategy<Value = Vec<u8>> {
        prop_oneof![
            proptest::collection::vec(any::<u8>(), 0..20),
            proptest::collection::vec(any::<u8>(), 400..3000),
        ]
    }

    fn op() -> impl Strategy<Value = Op> {
        prop_oneof![
            bytes().prop_map(Op::Append),
            bytes().prop_map(Op::AppendCopy),
            (bytes(), any::<usize>(), any::<usize>()).prop_map(|(b, i, j)| Op::AppendPart(b, i, j)),
            any::<usize>().prop_map(Op::Split),
            any::<usize>().prop_map(Op::Advance),
            (0usize..4000).prop_map(Op::Read),
            Just(Op::Compact),
            (any::<usize>(), any::<usize>()).prop_map(|(i, j)| Op::Range(i, j)),
            any::<usize>().prop_map(Op::Hold),
        ]
    }

    fn flat(bufs: &[Buf]) -> Vec<u8> {
        bufs.iter().flat_map(|buf| buf.to_vec()).collect()
    }

    /// A chain beside a simple reference model.
    #[derive(Default)]
    struct Pair {
        chain: Chain,
        model: VecDeque<u8>,
        start: u64,
        held: Vec<(Vec<u8>, Gather)>,
    }

    impl Pair {
        fn drain(&mut self, count: usize) -> Vec<u8> {
            self.start += count as u64;
            self.model.drain(..count).collect()
        }

        fn range(&self, i: usize, j: usize) -> (Vec<u8>, Gather) {
            let want = self.model.range(i..j).copied().collect();
            (
                want,
                self.chain
                    .range(self.start + i as u64..self.start + j as u64),
            )
        }

        fn apply(&mut self, op: Op) {
            let len = self.model.len();
            let wrap = |i: usize| i % (len + 1);
            match op {
                Op::Append(bytes) => {
                    self.model.extend(&bytes);
                    self.chain.append(bytes.into());
                }
                Op::AppendCopy(bytes) => {
                    self.model.extend(&bytes);
                    self.chain.append_copy(&bytes);
                }
                Op::AppendPart(bytes, i, j) => {
                    let (i, j) = (i % (bytes.len() + 1), j % (bytes.len() + 1));
                    let part = i.min(j)..i.max(j);
                    self.model.extend(&bytes[part.clone()]);
                    self.chain.append(Buf::copy_of(&bytes).slice(part));
                }
                Op::Split(n) => {
                    let front = self.drain(wrap(n));
                    assert_eq!(self.chain.split_to(wrap(n)).to_vec(), front);
                }
                Op::Advance(n) => {
                    self.drain(wrap(n));
                    self.chain.advance(wrap(n));
                }
                Op::Read(n) => {
                    let mut out = vec![0; n];
                    let got = self.chain.read(&mut out);
                    assert_eq!(out[..got], self.drain(n.min(len)));
                }
                Op::Compact => self.chain.compact(),
                Op::Range(i, j) => {
                    let (want, have) = self.range(wrap(i).min(wrap(j)), wrap(i).max(wrap(j)));
                    assert_eq!(flat(&have), want);
                }
                Op::Hold(i) => self.held.push(self.range(wrap(i), len)),
            }
            assert_eq!(self.chain.len(), self.model.len());
            assert_eq!(self.chain.start(), self.start);
            let sum: usize = self.chain.links.iter().map(|link| link.footprint).sum();
            assert_eq!(self.chain.footprint(), sum);
            assert!(self.chain.footprint() >= self.chain.len());
        }
    }

    proptest! {
        #![proptest_config(cases(512, 512))]

        /// The chain behaves as a queue of bytes, also while parts of it are referenced elsewhere.
        #[test]
        fn chain_is_a_byte_queue(ops in proptest::collection::vec(op(), 1..60)) {
            let mut pair = Pair::default();
            ops.into_iter().for_each(|op| pair.apply(op));
            prop_assert_eq!(pair.chain.to_vec(), pair.model.into_iter().collect::<Vec<_>>());
            for (want, have) in pair.held {
                prop_assert_eq!(flat(&have), want, "referenced bytes must not change");
            }
        }
    }

    #[test]
    fn tiny_pieces_are_collected() {
        let mut chain = Chain::default();
        for _ in 0..1000 {
            chain.append_copy(&[0; 16]);
        }
        assert!(
            chain.buffers() <= 3,
            "{} buffers for 16,000 bytes",
            chain.buffers()
        );
    }

    #[test]
    fn compaction_bounds_memory_also_between_full_buffers() {
        let mut chain = Chain::default();
        for _ in 0..100 {
            chain.append(Buf::copy_of(&[0; 2000]).slice(0..600));
            chain.append(Buf::copy_of(&[0; 2000]));
        }
        let content = chain.to_vec();
        chain.compact();
        let (len, footprint) = (chain.len(), chain.footprint());
        assert!(footprint <= 2 * len + COLLECT, "{footprint} for {len}");
        assert_eq!(chain.to_vec(), content);
    }

    #[test]
    fn compaction_bounds_memory() {
        let mut chain = Chain::default();
        for _ in 0..100 {
            chain.append(Buf::copy_of(&[0; 40_000]).slice(0..1000));
        }
        assert!(chain.footprint() > 6_000_000);
        chain.compact();
        assert!(chain.footprint() < 120_000, "{}", chain.footprint());
        assert_eq!(chain.len(), 100_000);
    }
}
