//! The option as bytes: `setsockopt(SO_SPLICE)` and `getsockopt`, with a kernel's semantics.
//!
//! For system-call layers on top of this crate's sockets. A program makes the call of FreeBSD or
//! OpenBSD; the layer copies the bytes in, hands them to [`setsockopt`] or [`getsockopt`] with the
//! program's [`Abi`] and [`Descriptors`], and returns the error's [`errno`](SockoptError::errno).
//! Programs that are written for this crate use [`Socket::splice_to`](crate::Socket::splice_to).
//!
//! ```
//! use sosplice::error::{Errno, Flavor};
//! use sosplice::sockopt::{self, Abi, Layout, SO_SPLICE, SOL_SOCKET, Table};
//! use sosplice::{local, splice::Options};
//!
//! let table = Table::new(1024);
//! let ((user, inside), (outside, server)) = (local::pair(), local::pair());
//! let (source, sink) = (table.insert(inside)?, table.insert(outside)?);
//!
//! // A program of OpenBSD on amd64: struct splice { sp_fd, sp_max, sp_idle }.
//! let abi = Abi { flavor: Flavor::OpenBsd, layout: Layout::Lp64 };
//! let mut option = [0; 32];
//! option[..4].copy_from_slice(&sink.to_ne_bytes());
//! option[8..16].copy_from_slice(&5_i64.to_ne_bytes());
//! let set = |value| {
//!     let defaults = Options::default();
//!     sockopt::setsockopt(&table, source, SOL_SOCKET, SO_SPLICE, value, abi, &defaults)
//! };
//! set(Some(&option))?;
//!
//! user.send(b"hello world")?;
//! assert_eq!(server.recv_chain(5)?.to_vec(), b"hello");
//! let mut count = [0; 8];
//! sockopt::getsockopt(&table, source, SOL_SOCKET, SO_SPLICE, &mut count, abi)?;
//! assert_eq!(i64::from_ne_bytes(count), 5);
//!
//! // That was the limit, so there is nothing to unsplice.
//! let error = set(None).unwrap_err();
//! assert_eq!(error.errno(Flavor::OpenBsd), Errno::EPROTO);
//! # Ok::<_, Box<dyn std::error::Error>>(())
//! ```
//!
//! # The value
//!
//! | length | FreeBSD | OpenBSD |
//! |---|---|---|
//! | none, 0 | `EINVAL` | unsplice |
//! | 1 to 3 | `EINVAL` | `EINVAL` |
//! | 4 up to the struct | `EINVAL` | an `int`: the sink's descriptor |
//! | the struct, or more | the struct; the rest is ignored | the same |
//!
//! | | size | `sp_fd` | `sp_max` | `sp_idle` seconds | microseconds |
//! |---|---:|---|---|---|---|
//! | both, [`Lp64`](Layout::Lp64) | 32 | `i32` at 0 | `i64` at 8 | `i64` at 16 | `i64` at 24 |
//! | FreeBSD, [`Ilp32`](Layout::Ilp32) | 20 | `i32` at 0 | `i64` at 4 | `i32` at 12 | `i32` at 16 |
//! | OpenBSD, [`Ilp32`](Layout::Ilp32) | 24 | `i32` at 0 | `i64` at 4 | `i64` at 12 | `i32` at 20 |
//!
//! A negative descriptor means unsplice. `sp_max` 0 is no limit. `sp_idle` 0.0 is no timeout; else it
//! is a [`lifetime`](Options::lifetime) on FreeBSD and an [`idle`](Options::idle) time on OpenBSD.
//!
//! # The order of the checks
//!
//! The first check that fails determines the error. A failed call changes nothing.
//!
//! | FreeBSD | | OpenBSD | |
//! |---|---|---|---|
//! | 1. the descriptor is a socket, with [`SETSOCKOPT`](Rights::SETSOCKOPT) | `EBADF`, `ENOTCAPABLE`, `ENOTSOCK` | 1. the descriptor is a socket | `EBADF`, `ENOTSOCK` |
//! | 2. the length | `EINVAL` | 2. the length | `EINVAL` |
//! | 3. the pool has workers | `ENXIO` | 3. the socket is a stream | `EPROTONOSUPPORT` |
//! | 4. `sp_fd` < 0: it is not listening | `EINVAL` | 4. `sp_max` >= 0 | `EINVAL` |
//! | 4. `sp_fd` < 0: it is spliced | `ENOTCONN` | 5. `sp_idle` is a time | `EINVAL` |
//! | 5. the descriptor has [`RECV`](Rights::RECV) | `ENOTCAPABLE` | 6. `sp_fd` < 0: it is spliced | `EPROTO` |
//! | 6. the sink is a socket, with [`SEND`](Rights::SEND) | `EBADF`, `ENOTCAPABLE`, `ENOTSOCK` | 7. the pool has workers | `ENXIO` |
//! | 7. `sp_max` >= 0 | `EINVAL` | 8. the sink is a socket | `EBADF`, `ENOTSOCK` |
//! | 8. `sp_idle` is a time | `EINVAL` | 9. the sink is a stream | `EPROTONOSUPPORT` |
//! | 9. both are streams | `EPROTONOSUPPORT` | 10. neither listens | `EOPNOTSUPP` |
//! | 10. the source does not listen | `EINVAL` | 11. both are connected or connecting | `ENOTCONN` |
//! | 11. it is connected or connecting | `ENOTCONN` | 12. neither is spliced in its role | `EBUSY` |
//! | 12. it is not the source of a splice | `EBUSY` | 13. neither is encrypted below | `EINVAL` |
//! | 13. it is not encrypted below | `EINVAL` | | |
//! | 14. the same for the sink | the same | | |
//!
//! # Deliberate differences from the kernels
//!
//! * `sp_idle` is checked in the FreeBSD flavor too: seconds below 0, and microseconds below 0 or above
//!   999999, are `EINVAL`. Any non-negative number of seconds is accepted.
//! * The counter is 0 on a listening socket in both flavors (FreeBSD: `ENOTCONN`), and set to 0 by
//!   successful calls only.
//! * A pool without workers is `ENXIO` in the OpenBSD flavor too, where the kernel has no such error.
//! * Sockets of different stacks can be spliced, and those of any two stream protocols. UDP cannot.
//! * No call waits, so none can be interrupted.
//!
//! # Flavors
//!
//! A call belongs to a program, a splice to its source. The [`Abi`] determines the call: forms, layout,
//! order of checks, meaning of `sp_idle`, error numbers. The source's own
//! [`flavor`](crate::Socket::flavor) determines the splice: whether reads find bytes, the value of
//! `SO_ERROR` afterwards, whether rings end. A layer for programs of one system builds its
//! [stacks](crate::stack::Builder::flavor) with that flavor, so that both agree.
//!
//! Inside: `layout` (the bytes), `table` (the descriptors). Locks: none but the table's leaf (5).

mod layout;
mod table;

pub use layout::{Abi, Layout};
pub use table::{DescriptorError, Descriptors, Rights, Table};

use crate::error::{Errno, Flavor};
use crate::socket::Socket;
use crate::splice::{self, Options, Role, Splice, SpliceError, UnspliceError};
use layout::Request;

/// The level of the socket layer's own options.
pub const SOL_SOCKET: i32 = 0xffff;
/// The option that sets up splices, and reads the counter.
pub const SO_SPLICE: i32 = 0x1023;
/// The option that reads and clears the pending error.
pub const SO_ERROR: i32 = 0x1007;

/// Why a call has failed. A failed call changes nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SockoptError {
    /// An error of the descriptor of the call.
    #[error(transparent)]
    Descriptor(#[from] DescriptorError),
    /// An error of the descriptor in the option.
    #[error("sink: {0}")]
    Sink(DescriptorError),
    /// The socket layer has no such option.
    #[error(
        "no option {name:#x} of level {level:#x} here, only SO_SPLICE, and SO_ERROR to be read"
    )]
    UnknownOption {
        /// The level.
        level: i32,
        /// The option.
        name: i32,
    },
    /// The value is too short.
    #[error("an option of {length} bytes, give at least {needed}")]
    ShortOption {
        /// Its length in bytes.
        length: usize,
        /// The required length in bytes.
        needed: usize,
    },
    /// `sp_max` is negative.
    #[error("a limit of {0} bytes, set at least 1, or 0 for no limit")]
    NegativeLimit(i64),
    /// `sp_idle` is not a valid time.
    #[error(
        "a timeout of {seconds} s and {microseconds} us, set 0 s or more, and 0 to 999999 us, or 0 \
         of both for no timeout"
    )]
    BadTimeout {
        /// Its seconds.
        seconds: i64,
        /// Its microseconds.
        microseconds: i64,
    },
    /// The splice could not be set up.
    #[error(transparent)]
    Splice(#[from] SpliceError),
    /// There was nothing to unsplice.
    #[error(transparent)]
    Unsplice(#[from] UnspliceError),
}

impl SockoptError {
    /// The error of the system call; [`Errno::number`] is the value that it returns.
    ///
    /// ```
    /// use sosplice::error::{Errno, Flavor};
    /// use sosplice::sockopt::SockoptError;
    /// assert_eq!(SockoptError::NegativeLimit(-3).errno(Flavor::FreeBsd), Errno::EINVAL);
    /// ```
    pub const fn errno(self, flavor: Flavor) -> Errno {
        match self {
            SockoptError::Descriptor(error) | SockoptError::Sink(error) => error.errno(),
            SockoptError::UnknownOption { .. } => Errno::ENOPROTOOPT,
            SockoptError::ShortOption { .. }
            | SockoptError::NegativeLimit(_)
            | SockoptError::BadTimeout { .. } => Errno::EINVAL,
            SockoptError::Splice(error) => error.errno(flavor),
            SockoptError::Unsplice(error) => error.errno(flavor),
        }
    }
}

/// `setsockopt`, for the option known here: [`set_splice`]. A layer with other options handles those
/// first.
///
/// # Errors
/// [`SockoptError::UnknownOption`] after [`SockoptError::Descriptor`]; as for [`set_splice`].
pub fn setsockopt(
    table: &dyn Descriptors,
    fd: i32,
    level: i32,
    name: i32,
    value: Option<&[u8]>,
    abi: Abi,
    defaults: &Options,
) -> Result<(), SockoptError> {
    if (level, name) == (SOL_SOCKET, SO_SPLICE) {
        return set_splice(table, fd, value, abi, defaults).map(drop);
    }
    table.get(fd, right(abi, Rights::SETSOCKOPT))?;
    Err(SockoptError::UnknownOption { level, name })
}

/// `getsockopt`, for the options known here: [`get_splice`], and `SO_ERROR`, an `int` with the number
/// of the pending error, or 0, which reads and clears it. Returns the number of bytes copied; a short
/// buffer gets as many as fit.
///
/// ```
/// use sosplice::error::{Errno, Flavor, SoError};
/// use sosplice::local;
/// use sosplice::sockopt::{self, Abi, Layout, SO_ERROR, SOL_SOCKET, Table};
/// let abi = Abi { flavor: Flavor::FreeBsd, layout: Layout::Lp64 };
/// let table = Table::new(8);
/// let (a, b) = local::pair();
/// let fd = table.insert(a)?;
/// b.abort();
/// let mut error = [0; 4];
/// let length = sockopt::getsockopt(&table, fd, SOL_SOCKET, SO_ERROR, &mut error, abi)?;
/// assert_eq!((length, i32::from_ne_bytes(error)), (4, Errno::ECONNRESET as i32));
/// # Ok::<_, Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// [`SockoptError::UnknownOption`] after [`SockoptError::Descriptor`].
pub fn getsockopt(
    table: &dyn Descriptors,
    fd: i32,
    level: i32,
    name: i32,
    out: &mut [u8],
    abi: Abi,
) -> Result<usize, SockoptError> {
    let socket = table.get(fd, right(abi, Rights::GETSOCKOPT))?;
    match (level, name) {
        (SOL_SOCKET, SO_SPLICE) => Ok(copy_out(&counter(&socket), out)),
        (SOL_SOCKET, SO_ERROR) => {
            let error = socket.take_error();
            let number = error.map_or(0, |error| error.errno().number(abi.flavor));
            Ok(copy_out(&number.to_ne_bytes(), out))
        }
        _ => Err(SockoptError::UnknownOption { level, name }),
    }
}

/// `setsockopt(SO_SPLICE)`: splices the socket to the one that the option names, or ends its splice.
/// `value` was copied in from the program (`EFAULT` is up to the caller); `None` is a null pointer. Returns the
/// handle of the new splice, with which a layer can be notified of its end; `None` if a splice was ended.
///
/// `defaults` has the settings that the option lacks: pool, dispatch, forwarding, rate. Its limit and
/// timeouts are ignored, since the option has them. If queued bytes reach the limit, the splice ends
/// within the call, which succeeds.
///
/// ```
/// use sosplice::error::{Errno, Flavor};
/// use sosplice::sockopt::{self, Abi, Layout, SockoptError, Table};
/// use sosplice::{local, splice::{Options, UnspliceError}};
/// let abi = Abi { flavor: Flavor::FreeBsd, layout: Layout::Lp64 };
/// let table = Table::new(8);
/// let (inside, _peer) = local::pair();
/// let source = table.insert(inside)?;
/// let set = |value: &[u8; 32]| {
///     sockopt::set_splice(&table, source, Some(value), abi, &Options::default())
/// };
/// // Descriptor 0, which is the source itself, without a limit.
/// let splice = set(&[0; 32])?.expect("a new splice");
/// splice.on_end(|end| println!("{:?} after {} bytes", end.cause, end.bytes));
/// // All bits set: a negative descriptor.
/// assert!(set(&[0xff; 32])?.is_none());
/// let error = set(&[0xff; 32]);
/// let error = error.unwrap_err();
/// assert_eq!(error, SockoptError::Unsplice(UnspliceError::NotSpliced));
/// assert_eq!(error.errno(abi.flavor), Errno::ENOTCONN);
/// # Ok::<_, SockoptError>(())
/// ```
///
/// # Errors
/// See [`SockoptError`], and the [order](self#the-order-of-the-checks) of the program's system.
pub fn set_splice(
    table: &dyn Descriptors,
    fd: i32,
    value: Option<&[u8]>,
    abi: Abi,
    defaults: &Options,
) -> Result<Option<Splice>, SockoptError> {
    match abi.flavor {
        Flavor::FreeBsd => set_freebsd(table, fd, value, abi, defaults),
        Flavor::OpenBsd => set_openbsd(table, fd, value, abi, defaults),
    }
}

/// `getsockopt(SO_SPLICE)`: the bytes that the socket's latest splice has moved, an `off_t` (`i64`); 0
/// if there was none. Returns the number of bytes copied; a short buffer gets as many as fit.
///
/// ```
/// use sosplice::{error::Flavor, local, sockopt::{self, Abi, Layout, SockoptError, Table}};
/// let abi = Abi { flavor: Flavor::FreeBsd, layout: Layout::Ilp32 };
/// let table = Table::new(8);
/// let fd = table.insert(local::pair().0)?;
/// let mut count = [0xff; 8];
/// assert_eq!(sockopt::get_splice(&table, fd, &mut count, abi)?, 8);
/// assert_eq!(count, [0; 8]);
/// # Ok::<_, SockoptError>(())
/// ```
///
/// # Errors
/// [`SockoptError::Descriptor`].
pub fn get_splice(
    table: &dyn Descriptors,
    fd: i32,
    out: &mut [u8],
    abi: Abi,
) -> Result<usize, SockoptError> {
    getsockopt(table, fd, SOL_SOCKET, SO_SPLICE, out, abi)
}

/// The steps are those of the module's table.
fn set_freebsd(
    table: &dyn Descriptors,
    fd: i32,
    value: Option<&[u8]>,
    abi: Abi,
    defaults: &Options,
) -> Result<Option<Splice>, SockoptError> {
    // 1. The descriptor.
    let socket = table.get(fd, Rights::SETSOCKOPT)?;
    // 2. The length.
    let request = abi.read(value)?;
    // 3. The pool, for unsplicing too.
    splice::check_pool(defaults)?;
    // 4. Unsplicing has no further checks.
    if request.is_unsplice() {
        socket.unsplice()?;
        return Ok(None);
    }
    // 5. The right to receive. Another thread may have replaced the socket, so from here on the one
    //    with the right is used.
    let source = table.get(fd, Rights::SETSOCKOPT | Rights::RECV)?;
    // 6. The sink.
    let sink = table.get(request.fd, Rights::SEND);
    let sink = sink.map_err(SockoptError::Sink)?;
    // 7. The limit. 8. The timeout.
    let options = options(&request, abi, defaults)?;
    // 9. Both are streams. 10 to 13. The source. 14. The sink.
    let splice = splice::set_up(&source, &sink, &options, Flavor::FreeBsd)?;
    Ok(Some(splice))
}

/// The steps are those of the module's table.
fn set_openbsd(
    table: &dyn Descriptors,
    fd: i32,
    value: Option<&[u8]>,
    abi: Abi,
    defaults: &Options,
) -> Result<Option<Splice>, SockoptError> {
    // 1. The descriptor.
    let source = table.get(fd, Rights::empty())?;
    // 2. The length.
    let request = abi.read(value)?;
    // 3. The source is a stream.
    splice::check_kind(&source, Role::Source, Flavor::OpenBsd)?;
    // 4. The limit. 5. The timeout.
    let options = options(&request, abi, defaults)?;
    // 6. Unsplicing.
    if request.is_unsplice() {
        source.unsplice()?;
        return Ok(None);
    }
    // 7. The pool.
    splice::check_pool(&options)?;
    // 8. The sink.
    let sink = table.get(request.fd, Rights::empty());
    let sink = sink.map_err(SockoptError::Sink)?;
    // 9. The sink is a stream. 10 to 13. Both.
    let splice = splice::set_up(&source, &sink, &options, Flavor::OpenBsd)?;
    Ok(Some(splice))
}

/// The options of the request: checks its limit, then its timeout.
fn options(request: &Request, abi: Abi, defaults: &Options) -> Result<Options, SockoptError> {
    let limit = request.limit()?;
    let timeout = request.timeout()?;
    let (idle, lifetime) = match abi.flavor {
        Flavor::FreeBsd => (None, timeout),
        Flavor::OpenBsd => (timeout, None),
    };
    Ok(Options {
        limit,
        idle,
        lifetime,
        ..defaults.clone()
    })
}

/// OpenBSD has no rights.
fn right(abi: Abi, right: Rights) -> Rights {
    match abi.flavor {
        Flavor::FreeBsd => right,
        Flavor::OpenBsd => Rights::empty(),
    }
}

fn counter(socket: &Socket) -> [u8; 8] {
    let count = i64::try_from(socket.spliced());
    count.unwrap_or(i64::MAX).to_ne_bytes()
}

/// Copies as many bytes as fit.
fn copy_out(value: &[u8], out: &mut [u8]) -> usize {
    let length = value.len().min(out.len());
    out[..length].copy_from_slice(&value[..length]);
    length
}
