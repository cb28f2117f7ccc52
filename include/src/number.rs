//! Error numbers: those of this machine's `<errno.h>`. And the border that no panic crosses.

use libc::c_int;
use sosplice::error::{Errno, SoError};
use std::panic::{self, AssertUnwindSafe};

/// A number of `<errno.h>`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Number(pub(crate) c_int);

/// Calls the code of a function of the interface. A panic, which would be a defect of the library, ends here, as
/// `ENOTRECOVERABLE`.
pub(crate) fn border(code: impl FnOnce() -> Result<(), Number>) -> c_int {
    match panic::catch_unwind(AssertUnwindSafe(code)) {
        Ok(Ok(())) => 0,
        Ok(Err(Number(number))) => number,
        Err(payload) => {
            // Its destructor might panic as well.
            std::mem::forget(payload);
            libc::ENOTRECOVERABLE
        }
    }
}

/// The number of a BSD error here.
impl From<Errno> for Number {
    fn from(errno: Errno) -> Number {
        Number(match errno {
            Errno::EPERM | Errno::ENOTCAPABLE => libc::EPERM,
            Errno::ENXIO => libc::ENXIO,
            Errno::EBADF => libc::EBADF,
            Errno::EACCES => libc::EACCES,
            Errno::EBUSY => libc::EBUSY,
            Errno::EMFILE => libc::EMFILE,
            Errno::EFBIG => libc::EFBIG,
            Errno::EPIPE => libc::EPIPE,
            Errno::EAGAIN => libc::EAGAIN,
            Errno::ENOTSOCK => libc::ENOTSOCK,
            Errno::EDESTADDRREQ => libc::EDESTADDRREQ,
            Errno::EMSGSIZE => libc::EMSGSIZE,
            Errno::ENOPROTOOPT => libc::ENOPROTOOPT,
            Errno::EPROTONOSUPPORT => libc::EPROTONOSUPPORT,
            Errno::EOPNOTSUPP => libc::EOPNOTSUPP,
            Errno::EADDRNOTAVAIL => libc::EADDRNOTAVAIL,
            Errno::ENETDOWN => libc::ENETDOWN,
            Errno::ECONNABORTED => libc::ECONNABORTED,
            Errno::ECONNRESET => libc::ECONNRESET,
            Errno::ENOBUFS => libc::ENOBUFS,
            Errno::ENOTCONN => libc::ENOTCONN,
            Errno::ETIMEDOUT => libc::ETIMEDOUT,
            Errno::ECONNREFUSED => libc::ECONNREFUSED,
            Errno::ELOOP => libc::ELOOP,
            Errno::EHOSTUNREACH => libc::EHOSTUNREACH,
            Errno::EPROTO => libc::EPROTO,
            // EINVAL, and errors that a later version has.
            _ => libc::EINVAL,
        })
    }
}

impl From<SoError> for Number {
    fn from(error: SoError) -> Number {
        error.errno().into()
    }
}

/// The error of a connection with this number; `None` for 0.
///
/// # Errors
/// `EINVAL` for other numbers.
pub(crate) fn so_error(number: c_int) -> Result<Option<SoError>, Number> {
    Ok(Some(match number {
        0 => return Ok(None),
        libc::ECONNRESET => SoError::ConnectionReset,
        libc::ECONNREFUSED => SoError::ConnectionRefused,
        libc::ETIMEDOUT => SoError::TimedOut,
        libc::ECONNABORTED => SoError::ConnectionAborted,
        libc::EPIPE => SoError::BrokenPipe,
        libc::EHOSTUNREACH => SoError::HostUnreachable,
        libc::ENETDOWN => SoError::NetworkDown,
        _ => return Err(Number(libc::EINVAL)),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_does_not_cross_the_border() {
        assert_eq!(border(|| panic!("inside")), libc::ENOTRECOVERABLE);
        assert_eq!(border(|| Err(Errno::ENOTCONN.into())), libc::ENOTCONN);
        assert_eq!(border(|| Ok(())), 0);
    }

    #[test]
    fn errors_of_connections_survive_the_round_trip() {
        for number in [
            libc::ECONNRESET,
            libc::ECONNREFUSED,
            libc::ETIMEDOUT,
            libc::ECONNABORTED,
            libc::EPIPE,
            libc::EHOSTUNREACH,
            libc::ENETDOWN,
        ] {
            let error = so_error(number).unwrap().unwrap();
            assert_eq!(Number::from(error), Number(number));
        }
        assert_eq!(so_error(0), Ok(None));
        assert_eq!(so_error(libc::EFBIG), Err(Number(libc::EINVAL)));
    }
}
