//! A range of addresses, each part of it mapped onto the same [`PIECE`] bytes of memory, of which there
//! are [`PIECES`].
//!
//! Each part is a mapping of the process, of which Linux allows 65,530 by default; all ranges together
//! use [`MAPPINGS`] at most. A range beyond that has memory of its own, which the system provides as it
//! is touched, takes back when the range goes, and joins to few mappings. No locks; the count is atomic.

#![allow(
    unsafe_code,
    reason = "mapping memory is a matter between this file and the system"
)]

use super::PIECES;
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::mm::{MapFlags, ProtFlags, mmap, mmap_anonymous, munmap};
use std::ffi::c_void;
use std::io;
use std::ptr::{self, NonNull};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

/// What all ranges share: a ring of the default size is one piece, so one mapping. A quarter of it is
/// no faster, though it would fit into nearer caches.
const PIECE: usize = 256 * 1024;
/// Mappings that all ranges may have together: half of what a process may.
const MAPPINGS: usize = 32_768;

static USED: AtomicUsize = AtomicUsize::new(0);

/// A range of addresses that holds zeros. Nothing but zeros may be written to it.
#[derive(Debug)]
pub(crate) struct Mapping {
    start: NonNull<c_void>,
    len: usize,
    piece: u8,
    /// `None`: it has memory of its own.
    share: Option<Share>,
}

// SAFETY: the range of addresses belongs to its mapping alone, like the memory of a `Vec`.
unsafe impl Send for Mapping {}

impl Mapping {
    /// `None`: there are too many, or the system refuses.
    pub(super) fn new(len: usize, piece: u8) -> Option<Mapping> {
        Mapping::within(&USED, len, piece)
    }

    fn within(used: &'static AtomicUsize, len: usize, piece: u8) -> Option<Mapping> {
        let share = Share::take(used, len.div_ceil(PIECE))?;
        let mapping = Mapping::reserve(len, ProtFlags::empty(), (piece, Some(share))).ok()?;
        mapping.fill(memory().ok()?).ok()?;
        Some(mapping)
    }

    /// A range with memory of its own. `None`: the system refuses.
    pub(super) fn own(len: usize) -> Option<Mapping> {
        Mapping::reserve(len, ProtFlags::READ | ProtFlags::WRITE, (0, None)).ok()
    }

    /// It lies on the memory that others lie on.
    pub(super) fn is_shared(&self) -> bool {
        self.share.is_some()
    }

    fn reserve(
        len: usize,
        access: ProtFlags,
        (piece, share): (u8, Option<Share>),
    ) -> io::Result<Mapping> {
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        // SAFETY: a new range, wherever the system likes.
        let start = unsafe { mmap_anonymous(ptr::null_mut(), len, access, flags)? };
        Ok(Mapping {
            start: NonNull::new(start).ok_or(io::ErrorKind::OutOfMemory)?,
            len,
            piece,
            share,
        })
    }

    /// Maps all of it onto its piece of the memory that everybody shares.
    fn fill(&self, memory: impl AsFd) -> io::Result<()> {
        let offset = u64::from(self.piece % PIECES) * PIECE as u64;
        let access = ProtFlags::READ | ProtFlags::WRITE;
        for at in (0..self.len).step_by(PIECE) {
            let len = PIECE.min(self.len - at);
            let flags = MapFlags::SHARED | MapFlags::FIXED;
            // SAFETY: within the range that was just reserved, which nobody uses yet.
            unsafe {
                let to = self.start.as_ptr().byte_add(at);
                mmap(to, len, access, flags, &memory, offset)?;
            }
        }
        Ok(())
    }

    /// Bytes of the range.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// On which memory it is.
    pub(super) fn piece(&self) -> u8 {
        self.piece
    }

    /// The range, for who ends before it.
    pub(super) fn lend(&mut self) -> &'static mut [u8] {
        // SAFETY: the range is mapped, to be read and written, until `self` is dropped, and nobody but
        // the borrower uses it: an engine keeps the mapping behind its ring, and it is lent again only
        // when that is gone. That ranges share memory cannot be seen: zeros are there, and nothing but
        // zeros is written.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr().cast(), self.len) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the range is this mapping's, and who borrowed it is gone.
        let unmapped = unsafe { munmap(self.start.as_ptr(), self.len) };
        debug_assert!(unmapped.is_ok(), "invariant: the range is mapped");
    }
}

/// A part of [`MAPPINGS`], and what it is counted in.
#[derive(Debug)]
struct Share {
    used: &'static AtomicUsize,
    count: usize,
}

impl Share {
    fn take(used: &'static AtomicUsize, count: usize) -> Option<Share> {
        let within = |used: usize| Some(used + count).filter(|used| *used <= MAPPINGS);
        used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, within)
            .ok()?;
        Some(Share { used, count })
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.used.fetch_sub(self.count, Ordering::Relaxed);
    }
}

/// The memory that all ranges share. If the system has no descriptor for it now, it may have one later.
fn memory() -> io::Result<&'static OwnedFd> {
    static MEMORY: OnceLock<OwnedFd> = OnceLock::new();
    if let Some(memory) = MEMORY.get() {
        return Ok(memory);
    }
    let file = memfd_create("sosplice:zeros", MemfdFlags::CLOEXEC)?;
    ftruncate(&file, u64::from(PIECES) * PIECE as u64)?;
    Ok(MEMORY.get_or_init(|| file))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_a_limit_to_mappings_and_they_are_given_back() {
        static USED: AtomicUsize = AtomicUsize::new(0);
        let part = MAPPINGS / 64 * PIECE;
        for _ in 0..2 {
            let mappings: Vec<_> = (0..64).map(|_| Mapping::within(&USED, part, 0)).collect();
            assert!(mappings.iter().all(Option::is_some));
            assert!(Mapping::within(&USED, 1, 0).is_none());
            drop(mappings);
            assert_eq!(USED.load(Ordering::Relaxed), 0);
        }
    }

    /// A byte that is no zero, which only this test may write, shows who shares it.
    #[test]
    fn a_piece_is_shared_by_its_own_ranges_only() {
        let last = PIECES - 1;
        let range = |piece| Mapping::new(2 * PIECE, piece).unwrap();
        let [mut one, mut same, mut other] = [last, last, last - 1].map(range);
        let at = PIECE - 1;
        one.lend()[at] = 1;
        let seen = [&mut one, &mut same, &mut other].map(|range| range.lend()[at + PIECE]);
        one.lend()[at] = 0;
        assert_eq!(seen, [1, 1, 0]);
    }

    #[test]
    fn what_the_system_refuses_is_given_back() {
        static USED: AtomicUsize = AtomicUsize::new(0);
        assert!(Mapping::within(&USED, 0, 0).is_none());
        assert_eq!(USED.load(Ordering::Relaxed), 0);
    }
}
