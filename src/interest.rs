//! The directions to wait for.

use std::ops::BitOr;

/// The directions of a socket, a listener or a link to wait for.
///
/// ```
/// use sosplice::socket::poller::Interest;
/// assert_eq!(Interest::READABLE | Interest::WRITABLE, Interest::BOTH);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Interest(u8);

impl Interest {
    /// The socket can be read, the listener has a connection or a SYN, the link has received a frame.
    pub const READABLE: Interest = Interest(1);
    /// The socket can be written, a connecting socket is established or has failed, the link has room.
    pub const WRITABLE: Interest = Interest(2);
    /// Both.
    pub const BOTH: Interest = Interest(3);
    /// Neither: only events that are reported in any case.
    pub const NONE: Interest = Interest(0);

    /// Whether they have a direction in common.
    ///
    /// ```
    /// use sosplice::socket::poller::Interest;
    /// assert!(Interest::BOTH.overlaps(Interest::READABLE));
    /// assert!(!Interest::WRITABLE.overlaps(Interest::READABLE));
    /// ```
    pub const fn overlaps(self, other: Interest) -> bool {
        self.0 & other.0 != 0
    }
}

impl BitOr for Interest {
    type Output = Interest;

    fn bitor(self, other: Interest) -> Interest {
        Interest(self.0 | other.0)
    }
}
