//! The oracle: a plain smoltcp socket with real payload, fed what the guard let through.

use super::wire::{Header, Tuple};
use crate::buf::Buf;
use smoltcp::time::Instant;

/// What happened at the engine, in order.
#[derive(Debug, Default)]
pub(crate) struct Tap {}

impl Tap {
    pub(crate) fn fed(
        &mut self,
        _now: Instant,
        _tuple: &Tuple,
        _header: &Header,
        _len: usize,
        _bytes: &[Buf],
    ) {
    }
    pub(crate) fn nagle(&mut self, _enabled: bool) {}
    pub(crate) fn abort(&mut self) {}
    pub(crate) fn close(&mut self) {}
    pub(crate) fn egress(&mut self, _now: Instant) {}
    pub(crate) fn dequeued(&mut self, _count: usize) {}
    pub(crate) fn enqueued(&mut self, _count: usize) {}
    pub(crate) fn emitted(&mut self, _header: &[u8], _payload: &[Buf]) {}
}
