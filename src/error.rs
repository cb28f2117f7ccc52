//! Errors: one enum for each operation, and the `so_error` of a socket.
//!
//! Messages say what was wrong and what would be right. Each error has the number that FreeBSD
//! gives for it (`errno()`).

use std::io;

/// What went wrong with a connection: BSD's `so_error`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
#[non_exhaustive]
#[repr(u8)]
pub enum SoError {
    /// The peer reset the connection.
    #[error("connection reset by peer")]
    ConnectionReset = 1,
    /// Nobody listens where the connection was to go.
    #[error("connection refused by peer")]
    ConnectionRefused = 2,
    /// The peer did not answer in time.
    #[error("connection timed out: the peer did not answer")]
    TimedOut = 3,
    /// This side gave the connection up.
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
            _ => return None,
        })
    }

    /// The number of this error on FreeBSD and OpenBSD.
    ///
    /// ```
    /// assert_eq!(sosplice::error::SoError::ConnectionReset.errno(), 54);
    /// ```
    pub const fn errno(self) -> i32 {
        match self {
            SoError::ConnectionReset => 54,
            SoError::ConnectionRefused => 61,
            SoError::TimedOut => 60,
            SoError::ConnectionAborted => 53,
            SoError::BrokenPipe => 32,
            SoError::HostUnreachable => 65,
            SoError::NetworkDown => 50,
        }
    }
}

impl From<SoError> for io::Error {
    fn from(error: SoError) -> io::Error {
        let kind = match error {
            SoError::ConnectionReset => io::ErrorKind::ConnectionReset,
            SoError::ConnectionRefused => io::ErrorKind::ConnectionRefused,
            SoError::TimedOut => io::ErrorKind::TimedOut,
            SoError::ConnectionAborted => io::ErrorKind::ConnectionAborted,
            SoError::BrokenPipe => io::ErrorKind::BrokenPipe,
            SoError::HostUnreachable => io::ErrorKind::HostUnreachable,
            SoError::NetworkDown => io::ErrorKind::NetworkDown,
        };
        io::Error::new(kind, error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_survives_the_round_trip() {
        for value in 1..=7 {
            let error = SoError::from_u8(value).expect("listed");
            assert_eq!(error as u8, value);
        }
        assert_eq!(SoError::from_u8(0), None);
        assert_eq!(SoError::from_u8(8), None);
    }
}
