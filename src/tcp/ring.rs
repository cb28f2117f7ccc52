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
use std::sync::atomic::{AtomicUsize, Ordering};

#[cfg(target_os = "linux")]
pub(crate) use kept::Kept;

/// There are none on this system.
#[cfg(not(target_os = "linux"))]
#[derive(Debug)]
pub(crate) enum Kept {}

/// How many pieces of memory there are to be shared.
pub(crate) const PIECES: u8 = 64;

/// The piece for the rings that this thread will write to most. Threads take them in turn.
pub(crate) fn of_this_thread() -> u8 {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        static PIECE: u8 = {
            let turn = NEXT.fetch_add(1, Ordering::Relaxed) % usize::from(PIECES);
            u8::try_from(turn).unwrap_or(0)
        };
    }
    PIECE.try_with(|piece| *piece).unwrap_or(0)
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
        let of_another = || {
            std::thread::scope(|scope| {
                let look = || (of_this_thread(), of_this_thread());
                let thread = std::thread::Builder::new().spawn_scoped(scope, look);
                thread.unwrap().join().unwrap()
            })
        };
        // Other tests' threads take turns too, so two may happen to have the same.
        let pieces: Vec<_> = std::iter::repeat_with(of_another).take(8).collect();
        assert!(
            pieces
                .iter()
                .all(|(first, second)| first == second && *first < PIECES)
        );
        assert!(pieces.windows(2).any(|pair| pair[0] != pair[1]));
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
