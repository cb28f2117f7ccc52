//! Socket buffers: `so_rcv` and `so_snd`.
//!
//! A [`SockBuf`] is a [`Chain`] with a high-water mark, a low-water mark, a limit of real memory and a
//! flag: no more bytes will be appended. It has no lock of its own: the socket's protects it.

mod records;

pub(crate) use records::Run;
pub use records::{Addresses, Datagram};

use crate::buf::{Buf, Chain, Taken};
use records::Records;

/// Default high-water mark in bytes.
pub const DEFAULT_HIWAT: usize = 256 * 1024;

/// Limit of real memory as a multiple of the high-water mark; beyond it buffers are compacted (BSD's
/// `sb_mbmax` follows `sb_hiwat` in the same way).
const MBMAX_FACTOR: usize = 4;

/// While memory is short, a buffer is filled up to an eighth of its high-water mark, or to this if that
/// is more.
const PRESSED: usize = 16 * 1024;

fn highest_lowat(hiwat: usize) -> usize {
    (hiwat - hiwat / 4).max(1)
}

/// A socket buffer.
///
/// ```
/// use sosplice::{buf::Buf, sockbuf::SockBuf};
/// let mut so_snd = SockBuf::new(4);
/// assert_eq!(so_snd.space(), 4);
/// so_snd.append(Buf::copy_of(b"abcdef"));      // the protocol decides; nothing is refused
/// assert_eq!((so_snd.len(), so_snd.space()), (6, 0));
/// ```
#[derive(Debug)]
pub struct SockBuf {
    chain: Chain,
    /// Where datagrams begin and end in the chain; none in the buffer of a stream.
    records: Option<Box<Records>>,
    hiwat: usize,
    lowat: usize,
    mbmax: usize,
    closed: bool,
    pressed: bool,
}

impl SockBuf {
    /// An empty buffer with this high-water mark in bytes.
    pub fn new(hiwat: usize) -> SockBuf {
        SockBuf {
            chain: Chain::default(),
            records: None,
            hiwat,
            lowat: 1,
            mbmax: hiwat.saturating_mul(MBMAX_FACTOR),
            closed: false,
            pressed: false,
        }
    }

    /// Bytes queued (`sb_ccc`).
    pub fn len(&self) -> usize {
        self.chain.len()
    }

    /// Whether no byte is queued.
    pub fn is_empty(&self) -> bool {
        self.chain.is_empty()
            && self
                .records
                .as_ref()
                .is_none_or(|records| records.is_empty())
    }

    /// Free space under the high-water mark (`sbspace`), reduced while the stack is short of memory. 0 while a
    /// buffer for datagrams holds as many as it may.
    pub fn space(&self) -> usize {
        if self
            .records
            .as_ref()
            .is_some_and(|records| records.is_full())
        {
            return 0;
        }
        self.ceiling().saturating_sub(self.len())
    }

    /// Whether a read of `want` bytes need not wait: there are as many, or there is a datagram.
    pub(crate) fn has(&self, want: usize) -> bool {
        match &self.records {
            Some(records) => !records.is_empty(),
            None => self.len() >= want,
        }
    }

    /// The high-water mark, reduced while memory is short.
    pub(crate) fn ceiling(&self) -> usize {
        if self.pressed {
            self.hiwat.min(PRESSED.max(self.hiwat / 8))
        } else {
            self.hiwat
        }
    }

    /// Sets whether memory is short. While it is, buffers are compacted earlier.
    pub(crate) fn set_pressed(&mut self, pressed: bool) {
        self.pressed = pressed;
        if pressed {
            self.keep_memory_bounded();
        }
    }

    /// The high-water mark in bytes.
    pub fn hiwat(&self) -> usize {
        self.hiwat
    }

    /// Changes the high-water mark, and the memory limit with it (`sbreserve`).
    pub fn set_hiwat(&mut self, hiwat: usize) {
        self.hiwat = hiwat;
        self.mbmax = hiwat.saturating_mul(MBMAX_FACTOR);
        self.lowat = self.lowat.min(highest_lowat(hiwat));
    }

    /// The low-water mark in bytes; reduced while the stack is short of memory, since it could not be
    /// reached.
    pub fn lowat(&self) -> usize {
        self.lowat.min(highest_lowat(self.ceiling()))
    }

    /// Sets the low-water mark, at least 1 and at most three quarters of the high-water mark: a
    /// protocol may withhold a window update until it is worth a segment, so that the last quarter of
    /// the space may never be announced and a thread that waits for it would not be woken.
    pub fn set_lowat(&mut self, lowat: usize) {
        self.lowat = lowat.clamp(1, highest_lowat(self.hiwat));
    }

    /// Real memory held.
    pub fn memory(&self) -> usize {
        self.chain.footprint()
    }

    /// Limit of real memory (`sb_mbmax`). Beyond it buffers are compacted.
    pub fn mbmax(&self) -> usize {
        self.mbmax
    }

    /// No more bytes will be appended: `SBS_CANTRCVMORE`, `SBS_CANTSENDMORE`.
    pub fn is_closed(&self) -> bool {
        self.closed
    }

    /// Sets the flag that [`is_closed`](Self::is_closed) reads. It is never cleared.
    pub fn close(&mut self) {
        self.closed = true;
    }

    /// Whether the buffer is closed and empty.
    pub fn is_finished(&self) -> bool {
        self.closed && self.is_empty()
    }

    /// The bytes.
    pub fn chain(&self) -> &Chain {
        &self.chain
    }

    /// Appends without copying (`sbappend`). Does not check for space.
    pub fn append(&mut self, buf: Buf) {
        self.chain.append(buf);
        self.keep_memory_bounded();
    }

    /// See [`Chain::shrink`].
    pub(crate) fn shrink(&mut self) {
        self.chain.shrink();
        if let Some(records) = &mut self.records {
            records.shrink();
        }
    }

    /// Appends the whole `chain`.
    pub fn append_chain(&mut self, mut chain: Chain) {
        let count = chain.len();
        self.append_from(&mut chain, count);
    }

    /// Appends the first bytes of `chain`, which keeps its allocation.
    pub(crate) fn append_from(&mut self, chain: &mut Chain, count: usize) {
        chain.move_to(&mut self.chain, count);
        self.keep_memory_bounded();
    }

    /// Appends a copy.
    pub fn append_copy(&mut self, bytes: &[u8]) {
        self.chain.append_copy(bytes);
        self.keep_memory_bounded();
    }

    /// Drops bytes from the front (`sbdrop`).
    ///
    /// # Panics
    /// If there are fewer.
    pub fn drop_front(&mut self, count: usize) {
        self.chain.advance(count);
    }

    /// Takes bytes from the front (`sbcut`).
    ///
    /// # Panics
    /// If there are fewer.
    pub fn take(&mut self, count: usize) -> Chain {
        self.chain.split_to(count)
    }

    /// As [`drop_front`](Self::drop_front), but moves the bytes to `taken`, which the caller drops
    /// after releasing the lock.
    pub(crate) fn take_bufs(&mut self, count: usize, taken: &mut Taken) {
        self.chain.take_bufs(count, taken);
    }

    /// Takes everything (`sbflush`). The caller drops it after releasing the lock.
    pub fn take_all(&mut self) -> Chain {
        if let Some(records) = &mut self.records {
            records.clear();
        }
        self.take(self.len())
    }

    /// Copies bytes to `out` and removes them. Returns their number.
    pub fn read(&mut self, out: &mut [u8]) -> usize {
        self.chain.read(out)
    }

    /// Moves bytes to the end of another buffer by reference.
    ///
    /// # Panics
    /// If there are fewer.
    pub fn move_to(&mut self, other: &mut SockBuf, count: usize) {
        self.chain.move_to(&mut other.chain, count);
        other.keep_memory_bounded();
    }

    /// As [`move_to`](Self::move_to), and counts one more splice that the bytes have passed.
    pub(crate) fn hop_to(&mut self, other: &mut SockBuf, count: usize) {
        self.chain.hop_to(&mut other.chain, count);
        other.keep_memory_bounded();
    }

    fn keep_memory_bounded(&mut self) {
        let most = self.mbmax.min(self.ceiling().saturating_mul(MBMAX_FACTOR));
        if self.chain.footprint() > most.max(2 * self.chain.len()) {
            self.chain.compact();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_bounded_by_copying_not_by_refusing() {
        let mut sockbuf = SockBuf::new(64 * 1024);
        for _ in 0..60_000 {
            sockbuf.append(Buf::copy_of(&[1; 40_000]).slice(0..1));
            assert!(sockbuf.memory() <= sockbuf.mbmax() + crate::buf::MAX_FRAME);
        }
        assert_eq!(sockbuf.len(), 60_000);
    }

    #[test]
    fn low_water_stays_within_the_buffer() {
        let mut sockbuf = SockBuf::new(100);
        sockbuf.set_lowat(0);
        assert_eq!(sockbuf.lowat(), 1);
        sockbuf.set_lowat(1000);
        assert_eq!(sockbuf.lowat(), 75);
        sockbuf.set_hiwat(50);
        assert_eq!((sockbuf.lowat(), sockbuf.mbmax()), (38, 200));
        sockbuf.set_hiwat(0);
        assert_eq!(sockbuf.lowat(), 1);
    }

    #[test]
    fn short_of_memory_it_is_filled_less() {
        let mut sockbuf = SockBuf::new(256 * 1024);
        sockbuf.set_lowat(100_000);
        sockbuf.append_copy(&[0; 30_000]);
        sockbuf.set_pressed(true);
        assert_eq!((sockbuf.space(), sockbuf.lowat()), (2768, 24_576));
        assert_eq!(sockbuf.hiwat(), 256 * 1024);
        sockbuf.set_pressed(false);
        assert_eq!((sockbuf.space(), sockbuf.lowat()), (232_144, 100_000));
        for (hiwat, ceiling) in [(10, 10), (65_536, 16_384), (1 << 20, 1 << 17)] {
            let mut sockbuf = SockBuf::new(hiwat);
            sockbuf.set_pressed(true);
            assert_eq!(sockbuf.ceiling(), ceiling);
        }
    }

    #[test]
    fn finished_only_after_the_last_byte() {
        let mut sockbuf = SockBuf::new(100);
        sockbuf.append_copy(b"x");
        sockbuf.close();
        assert!(!sockbuf.is_finished());
        assert_eq!(sockbuf.take_all().len(), 1);
        assert!(sockbuf.is_finished());
    }
}
