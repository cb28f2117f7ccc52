//! Which errors are allowed where.
//!
//! The tables are those of the documentation: an undocumented error is a fault of the crate. Sockets
//! are shared and change their flavor, so errors that either flavor leaves in `so_error` are allowed on
//! each.

use sosplice::error::SoError;
use sosplice::socket::ConnectError;
use sosplice::splice::{SpliceError, UnspliceError};
use std::fmt::Debug;
use std::io::{self, ErrorKind};

/// Why an operation was not done.
#[derive(Debug)]
pub(crate) enum Refusal {
    /// A documented error.
    Allowed(String),
    /// An undocumented error.
    Forbidden(String),
}

pub(crate) type Verdict = Result<(), Refusal>;

/// There was no object for it: a slot was empty.
pub(crate) fn nothing_there() -> Refusal {
    Refusal::Allowed("nothing there".into())
}

pub(crate) fn forbidden(what: impl Into<String>) -> Refusal {
    Refusal::Forbidden(what.into())
}

fn judge(error: &impl Debug, allowed: bool) -> Refusal {
    let text = format!("{error:?}");
    if allowed {
        Refusal::Allowed(text)
    } else {
        Refusal::Forbidden(text)
    }
}

/// The `so_error` inside.
pub(crate) fn so_error(error: &io::Error) -> Option<SoError> {
    error.get_ref()?.downcast_ref().copied()
}

/// Whether this may be in `so_error`. No network here reports a host as unreachable.
fn is_possible(error: SoError) -> bool {
    match error {
        SoError::ConnectionReset
        | SoError::ConnectionRefused
        | SoError::TimedOut
        | SoError::ConnectionAborted
        | SoError::BrokenPipe
        | SoError::NetworkDown
        | SoError::DriverDropped => true,
        error => error.is_of_splice(),
    }
}

pub(crate) fn of_so_error(error: SoError) -> Refusal {
    judge(&error, is_possible(error))
}

/// Receiving, peeking, sending.
pub(crate) fn of_transfer(error: &io::Error) -> Refusal {
    match so_error(error) {
        Some(error) => of_so_error(error),
        None => judge(&error.kind(), error.kind() == ErrorKind::WouldBlock),
    }
}

/// A timeout that was set to `zero` or not.
pub(crate) fn of_timeout(result: io::Result<()>, zero: bool) -> Verdict {
    match result {
        Ok(()) if zero => Err(forbidden("a zero timeout was taken")),
        Ok(()) => Ok(()),
        Err(error) => Err(judge(
            &error.kind(),
            zero && error.kind() == ErrorKind::InvalidInput,
        )),
    }
}

/// Waiting for a connection.
pub(crate) fn of_wait(error: ConnectError) -> Refusal {
    match error {
        ConnectError::Failed(error) => of_so_error(error),
        ConnectError::Pending => judge(&error, true),
        _ => judge(&error, false),
    }
}

/// Connecting to an address with or without a listener.
pub(crate) fn of_connect(error: &io::Error) -> Refusal {
    let pending = error
        .get_ref()
        .and_then(|inside| inside.downcast_ref::<ConnectError>());
    match (so_error(error), pending) {
        (Some(error), _) => {
            let allowed = [
                SoError::ConnectionRefused,
                SoError::ConnectionReset,
                SoError::TimedOut,
                SoError::NetworkDown,
                SoError::DriverDropped,
            ];
            judge(&error, allowed.contains(&error))
        }
        (None, Some(ConnectError::Pending)) => Refusal::Allowed("Pending".into()),
        // The caller's timeout, without a socket.
        (None, None) if error.kind() == ErrorKind::TimedOut => Refusal::Allowed("TimedOut".into()),
        _ => judge(error, false),
    }
}

/// An operation that must fail with exactly this error.
pub(crate) fn of_mistake<T>(result: io::Result<T>, right: ErrorKind) -> Verdict {
    match result {
        Ok(_) => Err(forbidden(format!("done, instead of {right:?}"))),
        Err(error) => Err(judge(&error.kind(), error.kind() == right)),
    }
}

/// Listening at an address and port that may be in use.
pub(crate) fn of_bind(error: &io::Error) -> Refusal {
    judge(&error.kind(), error.kind() == ErrorKind::AddrInUse)
}

/// Splicing two sockets in a pool that is open, with valid options.
pub(crate) fn of_splice(error: SpliceError) -> Refusal {
    let allowed = matches!(error, SpliceError::NotConnected(_) | SpliceError::Busy(_));
    judge(&error, allowed)
}

pub(crate) fn of_unsplice(error: UnspliceError) -> Refusal {
    judge(&error, error == UnspliceError::NotSpliced)
}
