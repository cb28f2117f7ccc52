//! Frames that this stack does not handle, and the hook that may take them.
//!
//! With the hook a program can run a second stack (UDP, another protocol) beside this one, on the same
//! link. The [driver](crate::stack::Driver) calls it, with no lock held, before it drops a frame; the
//! second stack sends through the shared link ([`Link`](crate::link::Link) is implemented for `Arc`s).
//! A frame that the hook does not take is dropped and counted as without a hook; a TCP segment is
//! reset.

use crate::callbacks;
use crate::link::Frame;
use crate::lock;
use std::fmt;

type Hook = dyn Fn(&Frame) -> bool + Send + Sync;

/// The hook, if there is one. See the module.
#[derive(Default)]
pub(in crate::stack) struct Unclaimed {
    pub(in crate::stack) hook: Option<Box<Hook>>,
    /// It is called for TCP segments too.
    pub(in crate::stack) tcp: bool,
}

impl Unclaimed {
    /// A copy of a TCP segment's frame for the hook, if it is to be called: parsing consumes the frame
    /// before it is known whether the segment has a connection.
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
