//! Errors: one enum for each operation, the `so_error` of a socket, and their numbers in BSD.
//!
//! Messages say what was wrong and what would be right. Each error has an [`Errno`] (`errno()`), which
//! for some errors depends on the [`Flavor`]; [`Errno::number`] is the value that a system call
//! returns.

use std::fmt;
use std::io;

/// Which system a socket behaves like where the two differ: the numbers of some errors, the value of
/// `SO_ERROR` after a splice has ended, whether a spliced source can be read, the meaning of the
/// option's timeout, and whether rings end.
///
/// A stack has a flavor for all its sockets
/// ([`Builder::flavor`](crate::stack::Builder::flavor)); a socket can have one of its own
/// ([`Socket::set_flavor`](crate::Socket::set_flavor)). The flavor of a splice is its source's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Flavor {
    /// A read takes the bytes that are queued; splices end without `so_error`; rings go on.
    #[default]
    FreeBsd,
    /// A read finds nothing while the splice lasts; `so_error` holds the reason of its end; rings end
    /// with `ELOOP` after 128 splices. Before splicing the source again, take that error
    /// ([`Socket::take_error`](crate::Socket::take_error)): it came from the sink, but would be taken
    /// for the source's own at the end of its stream (`somove` would stop at once).
    OpenBsd,
}

/// An error of a BSD system call, by its name.
///
/// ```
/// use sosplice::error::{Errno, Flavor};
/// assert_eq!(Errno::EPROTO.number(Flavor::FreeBsd), 92);
/// assert_eq!(Errno::EPROTO.number(Flavor::OpenBsd), 95);
/// assert_eq!(Errno::EPROTO.to_string(), "EPROTO");
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
#[expect(missing_docs, reason = "the names are the documentation")]
pub enum Errno {
    EPERM = 1,
    ENXIO = 6,
    EBADF = 9,
    EACCES = 13,
    EBUSY = 16,
    EINVAL = 22,
    EMFILE = 24,
    EFBIG = 27,
    EPIPE = 32,
    EAGAIN = 35,
    ENOTSOCK = 38,
    EDESTADDRREQ = 39,
    EMSGSIZE = 40,
    ENOPROTOOPT = 42,
    EPROTONOSUPPORT = 43,
    EOPNOTSUPP = 45,
    EADDRNOTAVAIL = 49,
    ENETDOWN = 50,
    ECONNABORTED = 53,
    ECONNRESET = 54,
    ENOBUFS = 55,
    ENOTCONN = 57,
    ETIMEDOUT = 60,
    ECONNREFUSED = 61,
    ELOOP = 62,
    EHOSTUNREACH = 65,
    EPROTO = 92,
    ENOTCAPABLE = 93,
}

impl Errno {
    /// Its number on that system. OpenBSD has no `ENOTCAPABLE`: it is `EPERM` there.
    pub const fn number(self, flavor: Flavor) -> i32 {
        match (flavor, self) {
            (Flavor::OpenBsd, Errno::EPROTO) => 95,
            (Flavor::OpenBsd, Errno::ENOTCAPABLE) => Errno::EPERM as i32,
            _ => self as i32,
        }
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// The error of a connection: BSD's `so_error`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
#[non_exhaustive]
#[repr(u8)]
pub enum SoError {
    /// The peer reset the connection.
    #[error("connection reset by peer")]
    ConnectionReset = 1,
    /// No listener at the destination.
    #[error("connection refused by peer")]
    ConnectionRefused = 2,
    /// The peer did not answer in time.
    #[error("connection timed out: the peer did not answer")]
    TimedOut = 3,
    /// This side aborted the connection.
    #[error("connection aborted by this side")]
    ConnectionAborted = 4,
    /// Writing after this side was shut down for writing.
    #[error("broken pipe: the socket is shut down for writing")]
    BrokenPipe = 5,
    /// No route to the host.
    #[error("host unreachable")]
    HostUnreachable = 6,
    /// The link below is gone.
    #[error("network is down: the link below is gone")]
    NetworkDown = 7,
    /// The socket's splice has reached its limit (only in the OpenBSD flavor).
    #[error("the splice of this socket has reached its limit, splice again for more")]
    SpliceLimit = 8,
    /// The socket's splice has ended by its timeout (only in the OpenBSD flavor).
    #[error("the splice of this socket has timed out, splice again to go on")]
    SpliceTimedOut = 9,
    /// The socket's splice is part of a ring (only in the OpenBSD flavor).
    #[error("the splices of this socket form a ring: bytes have passed 128 splices")]
    SpliceLoop = 10,
    /// A driver of the socket's stack was dropped, and the stack has ended with it.
    #[error(
        "network is down: a driver of the stack was dropped, keep all of them as long as the stack is used"
    )]
    DriverDropped = 11,
    /// The socket's address was removed from its stack.
    #[error("network is down: the socket's address was removed from the stack")]
    AddressRemoved = 12,
    /// A datagram is larger than the socket, or the path, takes.
    #[error(
        "the datagram is too long: send smaller ones, or raise the send buffer's high-water mark"
    )]
    MessageSize = 13,
    /// A datagram without a destination, from a socket that is not connected.
    #[error("the datagram has no destination: give one, or connect the socket")]
    DestinationRequired = 14,
    /// A datagram from an address that is not the stack's, or from or to port 0.
    #[error(
        "the datagram cannot have these addresses: send it from an address of the stack, to a port that is not 0"
    )]
    AddressNotAvailable = 15,
    /// A route, or the operating system's packet filter, forbids to send there; or it is a broadcast.
    #[error("a route, or a packet filter of the operating system, forbids to send there")]
    Prohibited = 16,
    /// Its socket of smoltcp is no longer in the set.
    #[error(
        "connection lost: its socket was removed from the adapter's set, or another one has its place; keep it until the adapter has finished with it"
    )]
    SocketRemoved = 17,
    /// The adapter of its socket of smoltcp was dropped.
    #[error(
        "connection lost: the adapter of its socket was dropped, keep it as long as the socket is used"
    )]
    AdapterDropped = 18,
}

impl SoError {
    pub(crate) const fn from_u8(value: u8) -> Option<SoError> {
        Some(match value {
            1 => SoError::ConnectionReset,
            2 => SoError::ConnectionRefused,
            3 => SoError::TimedOut,
            4 => SoError::ConnectionAborted,
            5 => SoError::BrokenPipe,
            6 => SoError::HostUnreachable,
            7 => SoError::NetworkDown,
            8 => SoError::SpliceLimit,
            9 => SoError::SpliceTimedOut,
            10 => SoError::SpliceLoop,
            11 => SoError::DriverDropped,
            12 => SoError::AddressRemoved,
            13 => SoError::MessageSize,
            14 => SoError::DestinationRequired,
            15 => SoError::AddressNotAvailable,
            16 => SoError::Prohibited,
            17 => SoError::SocketRemoved,
            18 => SoError::AdapterDropped,
            _ => return None,
        })
    }

    /// The value of `SO_ERROR`, the same on both systems.
    ///
    /// ```
    /// use sosplice::error::{Errno, SoError};
    /// assert_eq!(SoError::ConnectionReset.errno(), Errno::ECONNRESET);
    /// ```
    pub const fn errno(self) -> Errno {
        match self {
            SoError::ConnectionReset => Errno::ECONNRESET,
            SoError::ConnectionRefused => Errno::ECONNREFUSED,
            SoError::TimedOut | SoError::SpliceTimedOut => Errno::ETIMEDOUT,
            SoError::ConnectionAborted | SoError::SocketRemoved | SoError::AdapterDropped => {
                Errno::ECONNABORTED
            }
            SoError::BrokenPipe => Errno::EPIPE,
            SoError::HostUnreachable => Errno::EHOSTUNREACH,
            SoError::NetworkDown | SoError::DriverDropped | SoError::AddressRemoved => {
                Errno::ENETDOWN
            }
            SoError::SpliceLimit => Errno::EFBIG,
            SoError::SpliceLoop => Errno::ELOOP,
            SoError::MessageSize => Errno::EMSGSIZE,
            SoError::DestinationRequired => Errno::EDESTADDRREQ,
            SoError::AddressNotAvailable => Errno::EADDRNOTAVAIL,
            SoError::Prohibited => Errno::EACCES,
        }
    }

    /// Whether it is the end of a splice and not of the connection: the connection, and a splice in the
    /// other direction, are unaffected.
    ///
    /// ```
    /// use sosplice::error::SoError;
    /// assert!(SoError::SpliceLimit.is_of_splice() && !SoError::TimedOut.is_of_splice());
    /// ```
    pub const fn is_of_splice(self) -> bool {
        matches!(
            self,
            SoError::SpliceLimit | SoError::SpliceTimedOut | SoError::SpliceLoop
        )
    }
}

impl From<SoError> for io::Error {
    fn from(error: SoError) -> io::Error {
        let kind = match error {
            SoError::ConnectionReset => io::ErrorKind::ConnectionReset,
            SoError::ConnectionRefused => io::ErrorKind::ConnectionRefused,
            SoError::TimedOut | SoError::SpliceTimedOut => io::ErrorKind::TimedOut,
            SoError::ConnectionAborted | SoError::SocketRemoved | SoError::AdapterDropped => {
                io::ErrorKind::ConnectionAborted
            }
            SoError::BrokenPipe => io::ErrorKind::BrokenPipe,
            SoError::HostUnreachable => io::ErrorKind::HostUnreachable,
            SoError::NetworkDown | SoError::DriverDropped | SoError::AddressRemoved => {
                io::ErrorKind::NetworkDown
            }
            SoError::SpliceLimit => io::ErrorKind::FileTooLarge,
            SoError::SpliceLoop => io::ErrorKind::Other,
            SoError::MessageSize => io::ErrorKind::InvalidInput,
            SoError::DestinationRequired => io::ErrorKind::NotConnected,
            SoError::AddressNotAvailable => io::ErrorKind::AddrNotAvailable,
            SoError::Prohibited => io::ErrorKind::PermissionDenied,
        };
        io::Error::new(kind, error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_survives_the_round_trip() {
        for value in 1..=18 {
            let error = SoError::from_u8(value).expect("listed");
            assert_eq!(error as u8, value);
        }
        assert_eq!(SoError::from_u8(0), None);
        assert_eq!(SoError::from_u8(19), None);
    }
}
