//! Reference-counted buffers and chains of them: BSD's mbufs.
//!
//! * [`FrameMut`] is memory for one frame, taken from a pool, to be filled by a link.
//! * [`Buf`] is a slice of a filled frame. Cloning and slicing count references; no byte is copied. The
//!   last reference returns the memory to its pool, which reuses the latest one first, while it is in
//!   the CPU cache.
//! * [`Chain`] is a rope of `Buf`s whose ends are absolute stream positions that only grow.
//!
//! Pure; the only locks are the pools' (rank 6).

mod chain;
mod pool;

pub(crate) use chain::Taken;
pub use chain::{COPY_BELOW, Chain, Gather};
pub(crate) use pool::{at_work, give_back};

use std::fmt;
use std::ops::{Deref, Range};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Memory for one frame. The pool it belongs to follows from its capacity.
struct Frame {
    bytes: Vec<u8>,
    class: Option<u8>,
}

/// Number of frames, in use and in the pools. Changed only when memory is allocated or freed.
static FRAMES: AtomicUsize = AtomicUsize::new(0);

impl Frame {
    fn new(bytes: Vec<u8>, class: Option<u8>) -> Arc<Frame> {
        FRAMES.fetch_add(1, Ordering::Relaxed);
        Arc::new(Frame { bytes, class })
    }
}

impl Drop for Frame {
    fn drop(&mut self) {
        FRAMES.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Room for the largest frame that a link carries: 64 KiB of IP packet and a link header.
pub const MAX_FRAME: usize = 65_536 + 64;

/// Bytes of free frames in the pools. For the crate's own tests.
///
/// ```
/// drop(sosplice::buf::Buf::copy_of(&[1; 100]));
/// assert!(sosplice::buf::pooled_bytes() >= 256);
/// ```
#[doc(hidden)]
pub fn pooled_bytes() -> usize {
    pool::pooled()
        .map(|(count, capacity)| count * capacity)
        .sum()
}

/// Number of frames in use; 0 at the end means that no frame has leaked. For the crate's own tests.
/// While other threads make and drop buffers the number is approximate, and a driver or worker thread
/// keeps up to 1 MiB of free frames for itself until it is idle.
///
/// ```standalone_crate
/// use sosplice::buf::{Buf, frames_in_use};
/// let buf = Buf::copy_of(b"a frame in use");
/// let other = [buf.slice(3..5), Buf::from(vec![1, 2, 3])];
/// assert_eq!(frames_in_use(), 2);
/// drop(buf);
/// assert_eq!(frames_in_use(), 2);
/// drop(other);
/// assert_eq!(frames_in_use(), 0, "free frames, which a pool keeps, are not in use");
/// ```
#[doc(hidden)]
pub fn frames_in_use() -> usize {
    let free: usize = pool::pooled().map(|(count, _)| count).sum();
    FRAMES.load(Ordering::Relaxed).saturating_sub(free)
}

/// A frame with a single reference.
#[derive(Debug)]
pub struct FrameMut {
    buf: Buf,
}

impl FrameMut {
    /// An empty frame with room for at least `capacity` bytes, from a pool if one is free.
    pub fn with_capacity(capacity: usize) -> FrameMut {
        let mut frame = FrameMut::used(capacity);
        frame.bytes_mut().clear();
        frame
    }

    /// A frame of `len` bytes with any content: memory that was used before need not be cleared for a system call
    /// that overwrites it.
    #[cfg(any(target_os = "linux", feature = "tun-rs"))]
    pub(crate) fn of_any_bytes(len: usize) -> FrameMut {
        let mut frame = FrameMut::used(len);
        frame.bytes_mut().resize(len, 0);
        frame
    }

    /// A frame with room for at least `capacity` bytes that has those of its last use, or none.
    fn used(capacity: usize) -> FrameMut {
        let class = pool::class_for(capacity);
        let recycled = class.and_then(pool::take);
        let frame = recycled.unwrap_or_else(|| {
            let capacity = class.map_or(capacity, pool::capacity);
            let class = class.and_then(|class| u8::try_from(class).ok());
            Frame::new(Vec::with_capacity(capacity), class)
        });
        FrameMut {
            buf: Buf {
                frame: Some(frame),
                start: 0,
                end: 0,
                hops: 0,
            },
        }
    }

    /// The bytes, to be written. Growing beyond the capacity moves the frame to memory outside the
    /// pools.
    pub fn bytes_mut(&mut self) -> &mut Vec<u8> {
        let frame = self
            .buf
            .frame
            .as_mut()
            .expect("invariant: only Drop takes the frame");
        &mut Arc::get_mut(frame)
            .expect("invariant: a FrameMut is the only reference")
            .bytes
    }

    /// The filled frame, to be shared.
    ///
    /// # Panics
    /// If it holds 4 GiB or more.
    pub fn freeze(mut self) -> Buf {
        self.buf.end = position(self.bytes_mut().len());
        self.buf
    }
}

fn position(len: usize) -> u32 {
    u32::try_from(len).expect("invariant: a frame is smaller than 4 GiB")
}

/// A slice of a frame, by reference.
///
/// ```
/// use sosplice::buf::Buf;
/// let mut head = Buf::copy_of(b"GET / HTTP/1.1");
/// let rest = head.split_off(3);
/// assert_eq!((&head[..], &rest[..]), (&b"GET"[..], &b" / HTTP/1.1"[..]));
/// ```
#[derive(Clone)]
pub struct Buf {
    /// `None` only while being dropped.
    frame: Option<Arc<Frame>>,
    start: u32,
    end: u32,
    /// Number of OpenBSD splices that its bytes have passed (`ph_loopcnt`).
    hops: u8,
}

impl Buf {
    /// A copy of `bytes` in memory of its own.
    pub fn copy_of(bytes: &[u8]) -> Buf {
        let mut frame = FrameMut::with_capacity(bytes.len());
        frame.bytes_mut().extend_from_slice(bytes);
        frame.freeze()
    }

    /// Number of bytes.
    pub fn len(&self) -> usize {
        (self.end - self.start) as usize
    }

    /// Whether it is empty.
    pub fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// Another reference to a part of it.
    ///
    /// # Panics
    /// If `range` is not within the buffer.
    pub fn slice(&self, range: Range<usize>) -> Buf {
        assert!(
            range.start <= range.end && range.end <= self.len(),
            "slice out of range"
        );
        let mut part = self.clone();
        part.end = self.start + position(range.end);
        part.start = self.start + position(range.start);
        part
    }

    /// Cuts the buffer at `at` and returns the part after it.
    ///
    /// # Panics
    /// If `at` is beyond the end.
    pub fn split_off(&mut self, at: usize) -> Buf {
        let rest = self.slice(at..self.len());
        self.end = rest.start;
        rest
    }

    /// Drops the first `count` bytes.
    ///
    /// # Panics
    /// If there are fewer.
    pub fn advance(&mut self, count: usize) {
        assert!(count <= self.len(), "advance beyond the end");
        self.start += position(count);
    }

    /// Real memory to account for this buffer: its length, or the whole frame if it uses less than
    /// half of it.
    pub fn footprint(&self) -> usize {
        let capacity = self
            .frame
            .as_ref()
            .map_or(0, |frame| frame.bytes.capacity());
        if self.len() * 2 < capacity {
            capacity
        } else {
            self.len()
        }
    }

    /// How many splices of the OpenBSD flavor its bytes have passed. Copies of the bytes, e.g. on a
    /// link, start at 0.
    pub fn hops(&self) -> u8 {
        self.hops
    }

    /// Its bytes pass one more splice.
    pub(crate) fn hop(&mut self) {
        self.hops = self.hops.saturating_add(1);
    }

    /// Takes over `next` if it continues this buffer within the same frame.
    fn join(&mut self, next: &Buf) -> bool {
        let same = match (&self.frame, &next.frame) {
            (Some(a), Some(b)) => Arc::ptr_eq(a, b),
            _ => false,
        };
        let joins = same && self.end == next.start;
        if joins {
            self.end = next.end;
            self.hops = self.hops.max(next.hops);
        }
        joins
    }

    /// Appends as many of `bytes` as the frame has room for, if this is its only reference. Returns
    /// their number.
    fn extend(&mut self, bytes: &[u8]) -> usize {
        let end = self.end as usize;
        let Some(frame) = self.frame.as_mut().and_then(Arc::get_mut) else {
            return 0;
        };
        frame.bytes.truncate(end);
        let count = bytes.len().min(frame.bytes.capacity() - end);
        frame.bytes.extend_from_slice(&bytes[..count]);
        self.end += position(count);
        count
    }

    /// As [`extend`](Self::extend), but all or nothing.
    fn extend_whole(&mut self, next: &Buf) -> bool {
        let end = self.end;
        let whole = self.extend(next) == next.len();
        if whole {
            self.hops = self.hops.max(next.hops);
        } else {
            self.end = end;
        }
        whole
    }
}

impl Drop for Buf {
    fn drop(&mut self) {
        let Some(mut frame) = self.frame.take() else {
            return;
        };
        // Two last references that are dropped at once may each see the other: then the memory returns
        // to the allocator instead of the pool.
        let Some(inside) = Arc::get_mut(&mut frame) else {
            return;
        };
        let Some(class) = inside.class.map(usize::from) else {
            return;
        };
        if inside.bytes.capacity() == pool::capacity(class) {
            pool::put(class, frame);
        }
    }
}

impl Deref for Buf {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        match &self.frame {
            Some(frame) => &frame.bytes[self.start as usize..self.end as usize],
            None => &[],
        }
    }
}

impl AsRef<[u8]> for Buf {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl From<Vec<u8>> for Buf {
    /// Takes the vector over without copying.
    fn from(bytes: Vec<u8>) -> Buf {
        let end = position(bytes.len());
        Buf {
            frame: Some(Frame::new(bytes, None)),
            start: 0,
            end,
            hops: 0,
        }
    }
}

impl fmt::Debug for Buf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Buf({} bytes)", self.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_share_memory() {
        let whole = Buf::copy_of(b"hello world");
        let world = whole.slice(6..11);
        assert_eq!(&world[..], b"world");
        assert_eq!(world.as_ptr(), whole[6..].as_ptr());
    }

    #[test]
    fn the_last_reference_gives_the_frame_back() {
        // A class that no other test of this module uses at the same time.
        let buf = Buf::copy_of(&vec![7; 40_000]);
        let other = buf.clone();
        let memory = buf.as_ptr();
        drop(buf);
        drop(other);
        let mut again = FrameMut::with_capacity(40_000);
        again.bytes_mut().push(0);
        assert_eq!(again.freeze().as_ptr(), memory, "last in, first out");
    }

    #[test]
    fn extend_only_without_other_references() {
        let mut buf = Buf::copy_of(b"abc");
        let other = buf.clone();
        assert_eq!(buf.extend(b"def"), 0);
        drop(other);
        assert_eq!(buf.extend(b"def"), 3);
        assert_eq!(&buf[..], b"abcdef");
        assert_eq!(buf.extend(&[0; 1000]), 250);
    }

    #[test]
    fn neighbours_in_one_frame_join() {
        let mut a = Buf::copy_of(b"abcdef");
        let b = a.split_off(3);
        assert!(a.join(&b));
        assert_eq!(&a[..], b"abcdef");
        assert!(!a.join(&b));
    }

    #[test]
    fn a_small_part_counts_as_the_whole_frame() {
        let buf = Buf::copy_of(&[0; 2000]);
        assert_eq!(buf.footprint(), 2000);
        assert_eq!(buf.slice(0..10).footprint(), 2048);
    }
}
