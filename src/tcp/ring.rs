//! Memory for the engine's rings.
//!
//! Rings hold zeros, ever: the payload is elsewhere. So all rings, however many and however large, can
//! lie on the same few pages ([`mapping`]). The zeros then stay in the nearest caches, and a ring costs
//! addresses and page tables but no memory. Threads that run at the same time are not to write the same
//! memory, though, also if it is the same that they write: each processor would take it from the other
//! one's caches. So each thread that drives a stack has pages of its own for the
//! rings of its connections ([`of_this_thread`]).
//! Where that cannot be had (too many mappings, another system, switched off) a ring has memory of its
//! own. All behave the same.
//!
//! To map a ring takes as long as a connection of a few bytes, so some are kept for the next
//! connections. Lock: the kept ones (6); nothing is mapped or unmapped under it.

#[cfg(target_os = "linux")]
mod kept;
#[cfg(target_os = "linux")]
mod mapping;

use smoltcp::socket::tcp::SocketBuffer;
use std::sync::atomic::{AtomicU64, Ordering};

#[cfg(target_os = "linux")]
pub(crate) use kept::Kept;

/// There are none on this system.
#[cfg(not(target_os = "linux"))]
#[derive(Debug)]
pub(crate) enum Kept {}

/// How many pieces of memory there are to be shared.
pub(crate) const PIECES: u8 = 64;

/// A piece, for as long as its thread runs.
struct Piece(u8);

/// One bit for each piece that a thread has.
static TAKEN: AtomicU64 = AtomicU64::new(0);

impl Piece {
    /// The first that no other thread has, so that no more memory is used than threads run at a time.
    /// The last one is for all threads that find none.
    fn take() -> Piece {
        let first = |taken: u64| taken.trailing_ones().min(u32::from(PIECES) - 1);
        let (set, load) = (Ordering::Relaxed, Ordering::Relaxed);
        let before = TAKEN.fetch_update(set, load, |taken| Some(taken | 1 << first(taken)));
        let (Ok(before) | Err(before)) = before;
        Piece(u8::try_from(first(before)).unwrap_or(0))
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        TAKEN.fetch_and(!(1 << self.0), Ordering::Relaxed);
    }
}

/// The piece for the rings that this thread will write to most.
pub(crate) fn of_this_thread() -> u8 {
    thread_local! {
        static PIECE: Piece = Piece::take();
    }
    PIECE.try_with(|piece| piece.0).unwrap_or(0)
}

/// A ring of `len` bytes, on the memory that all rings of this piece share (below [`PIECES`]), and what
/// must outlive it.
pub(crate) fn ring(len: usize, piece: Option<u8>) -> (SocketBuffer<'static>, Option<Kept>) {
    #[cfg(target_os = "linux")]
    if let Some(piece) = piece
        && let Some(mut memory) = Kept::new(len, piece)
    {
        return (SocketBuffer::new(memory.lend()), Some(memory));
    }
    #[cfg(not(target_os = "linux"))]
    let _ = piece;
    (SocketBuffer::new(vec![0; len]), None)
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    /// What is put into a ring comes out of it: zeros.
    fn use_whole(ring: &mut SocketBuffer<'static>) {
        let zeros = vec![0; ring.capacity()];
        for _ in 0..3 {
            // Not where it began, so that it goes round.
            assert_eq!(ring.enqueue_slice(&zeros[1..]), zeros.len() - 1);
            assert!(
                ring.get_allocated(0, zeros.len())
                    .iter()
                    .all(|byte| *byte == 0)
            );
            let mut out = vec![1; zeros.len() - 1];
            assert_eq!(ring.dequeue_slice(&mut out), out.len());
            assert!(out.iter().all(|byte| *byte == 0));
        }
    }

    #[test]
    fn threads_have_pieces_of_their_own() {
        use std::sync::Barrier;
        const THREADS: usize = 4;
        let barrier = Barrier::new(THREADS);
        let look = || {
            barrier.wait();
            let both = (of_this_thread(), of_this_thread());
            barrier.wait();
            both
        };
        for _ in 0..100 {
            let mut pieces = std::thread::scope(|scope| {
                let start = |_| std::thread::Builder::new().spawn_scoped(scope, look);
                let threads: Vec<_> = (0..THREADS).map(start).collect();
                let join = |thread: std::io::Result<std::thread::ScopedJoinHandle<'_, _>>| {
                    thread.unwrap().join().unwrap()
                };
                threads.into_iter().map(join).collect::<Vec<_>>()
            });
            assert!(pieces.iter().all(|(first, second)| first == second));
            pieces.sort_unstable();
            pieces.dedup();
            // The last is for who finds none: were the others not given back, that would come soon.
            assert_eq!(pieces.len(), THREADS);
            assert!(pieces.iter().all(|(piece, _)| *piece < PIECES - 1));
        }
    }

    #[test]
    fn both_kinds_of_memory_serve() {
        // Less than a page, no whole number of pages, several pieces.
        for len in [2048, 5000, 65_536, 300_001] {
            for piece in [Some(0), Some(1), None] {
                let (mut ring, mapping) = ring(len, piece);
                let shared = piece.is_some();
                assert_eq!((ring.capacity(), mapping.is_some()), (len, shared));
                use_whole(&mut ring);
                // In the order of an engine's fields.
                drop(ring);
                drop(mapping);
            }
        }
    }
}
