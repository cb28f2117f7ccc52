//! Memory for the engine's rings.
//!
//! Rings hold zeros, ever: the payload is elsewhere. So all rings, however many and however large, can
//! lie on the same few pages ([`mapping`]). The zeros then stay in the nearest caches, and a ring costs
//! addresses and page tables but no memory. Where that cannot be had (too many mappings, another
//! system, switched off) a ring has memory of its own. All behave the same.
//!
//! To map a ring takes as long as a connection of a few bytes, so some are kept for the next
//! connections. Lock: the kept ones (6); nothing is mapped or unmapped under it.

#[cfg(target_os = "linux")]
mod kept;
#[cfg(target_os = "linux")]
mod mapping;

use smoltcp::socket::tcp::SocketBuffer;

#[cfg(target_os = "linux")]
pub(crate) use kept::Kept;

/// There are none on this system.
#[cfg(not(target_os = "linux"))]
#[derive(Debug)]
pub(crate) enum Kept {}

/// A ring of `len` bytes, and what must outlive it.
pub(crate) fn ring(len: usize, shared: bool) -> (SocketBuffer<'static>, Option<Kept>) {
    #[cfg(target_os = "linux")]
    if shared && let Some(mut memory) = Kept::new(len) {
        return (SocketBuffer::new(memory.lend()), Some(memory));
    }
    #[cfg(not(target_os = "linux"))]
    let _ = shared;
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
    fn both_kinds_of_memory_serve() {
        // Less than a page, no whole number of pages, several pieces.
        for len in [2048, 5000, 65_536, 300_001] {
            for shared in [true, false] {
                let (mut ring, mapping) = ring(len, shared);
                assert_eq!((ring.capacity(), mapping.is_some()), (len, shared));
                use_whole(&mut ring);
                // In the order of an engine's fields.
                drop(ring);
                drop(mapping);
            }
        }
    }
}
