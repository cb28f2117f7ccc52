//! Bytes that are cheap to make and to check: their cost must not dominate the measurement.
//!
//! Sender and receiver each compute the digest of their bytes.

use sosplice::buf::{Chain, FrameMut};

/// Bytes made at a time.
const BLOCK: usize = 64 * 1024;
const WORD: usize = 8;
const LANES: usize = 8;
const STRIPE: usize = WORD * LANES;
const ODD: u64 = 0x9e37_79b9_7f4a_7c15;

/// Length and digest of one direction of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Print {
    pub(crate) bytes: u64,
    pub(crate) digest: u64,
}

/// Makes the bytes of a stream.
pub(crate) struct Source {
    base: Vec<u64>,
    left: u64,
    block: u64,
    digest: Digest,
}

impl Source {
    pub(crate) fn new(stream: u64, bytes: u64) -> Source {
        let mix = |word: u64| {
            let word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            word ^ (word >> 31)
        };
        let words = (BLOCK / WORD) as u64;
        let word = |at: u64| mix((stream * words + at).wrapping_mul(ODD));
        Source {
            base: (0..words).map(word).collect(),
            left: bytes,
            block: 0,
            digest: Digest::default(),
        }
    }

    /// The next bytes, or `None` at the end.
    pub(crate) fn next(&mut self) -> Option<Chain> {
        let len = usize::try_from(self.left).unwrap_or(BLOCK).min(BLOCK);
        if len == 0 {
            return None;
        }
        let step = self.block.wrapping_mul(ODD);
        let mut frame = FrameMut::with_capacity(BLOCK);
        let bytes = frame.bytes_mut();
        bytes.resize(len.next_multiple_of(WORD), 0);
        for (word, base) in bytes.chunks_exact_mut(WORD).zip(&self.base) {
            word.copy_from_slice(&base.wrapping_add(step).to_le_bytes());
        }
        bytes.truncate(len);
        self.digest.update(bytes);
        self.block += 1;
        self.left -= len as u64;
        Some(Chain::from(frame.freeze()))
    }

    pub(crate) fn print(self) -> Print {
        self.digest.finish()
    }
}

/// A 64-bit digest of a stream, however it is cut: eight lanes of multiplications. It detects faults,
/// not forgeries.
#[derive(Default)]
pub(crate) struct Digest {
    lanes: [u64; LANES],
    /// Bytes that do not fill a stripe yet.
    rest: Vec<u8>,
    bytes: u64,
}

impl Digest {
    pub(crate) fn update(&mut self, mut bytes: &[u8]) {
        self.bytes += bytes.len() as u64;
        if !self.rest.is_empty() {
            let (head, tail) = bytes.split_at(bytes.len().min(STRIPE - self.rest.len()));
            self.rest.extend_from_slice(head);
            bytes = tail;
            if self.rest.len() < STRIPE {
                return;
            }
            stripe(&mut self.lanes, &self.rest);
            self.rest.clear();
        }
        let stripes = bytes.chunks_exact(STRIPE);
        self.rest.extend_from_slice(stripes.remainder());
        let mut lanes = self.lanes;
        stripes.for_each(|bytes| stripe(&mut lanes, bytes));
        self.lanes = lanes;
    }

    pub(crate) fn finish(mut self) -> Print {
        self.rest.resize(STRIPE, 0);
        stripe(&mut self.lanes, &self.rest);
        let fold = |digest: u64, lane: &u64| (digest ^ lane).wrapping_mul(ODD).rotate_left(29);
        Print {
            bytes: self.bytes,
            digest: self.lanes.iter().fold(self.bytes, fold),
        }
    }
}

fn stripe(lanes: &mut [u64; LANES], bytes: &[u8]) {
    for (lane, word) in lanes.iter_mut().zip(bytes.chunks_exact(WORD)) {
        let mut le = [0; WORD];
        le.copy_from_slice(word);
        *lane = (*lane ^ u64::from_le_bytes(le))
            .wrapping_mul(ODD)
            .rotate_left(31);
    }
}
