//! Frames that nobody here claims, and who may take them.
//!
//! A hook lets an author put a second stack (UDP, his own protocol) beside this one, on the same
//! link. The [driver](crate::stack::Driver) asks it, holding no lock, before it drops a frame; it sends
//! through the link that it shares ([`Link`](crate::link::Link) is implemented for `Arc`s). What it
//! does not take goes the way of all frames without a hook: dropped and counted, a TCP segment reset.

use crate::callbacks;
use crate::link::Frame;
use crate::lock;
use std::fmt;

type Hook = dyn Fn(&Frame) -> bool + Send + Sync;

/// The hook, if there is one. See the module.
#[derive(Default)]
pub(in crate::stack) struct Unclaimed {
    pub(in crate::stack) hook: Option<Box<Hook>>,
    /// It is asked about TCP segments too.
    pub(in crate::stack) tcp: bool,
}

impl Unclaimed {
    /// A frame that the hook is asked about when it turns out that nobody claims it: a TCP segment,
    /// whose frame is taken apart before that is known.
    pub(in crate::stack) fn keep_segment(&self, frame: &Frame) -> Option<Frame> {
        (self.tcp && self.hook.is_some()).then(|| frame.clone())
    }

    pub(in crate::stack) fn takes(&self, frame: &Frame) -> bool {
        lock::assert_none_held();
        let hook = self.hook.as_deref();
        hook.is_some_and(|hook| callbacks::during(|| hook(frame)))
    }
}

impl fmt::Debug for Unclaimed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Unclaimed")
            .field("hook", &self.hook.is_some())
            .field("tcp", &self.tcp)
            .finish()
    }
}
