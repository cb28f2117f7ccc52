//! The table of a protocol's functions, and the protocol that calls them.

use crate::number::Number;
use libc::{c_char, c_int};
use sosplice::protocol::{Protocol, SoState};
use std::ffi::{CStr, c_void};
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};

/// A stream that is connected, connecting, or disconnected.
pub const SOSPLICE_STREAM: c_int = 0;
/// A stream that is not connected yet: it cannot be spliced (`ENOTCONN`).
pub const SOSPLICE_UNCONNECTED: c_int = 1;
/// A listening socket: it cannot be spliced (`EINVAL`, OpenBSD: `EOPNOTSUPP`).
pub const SOSPLICE_LISTENING: c_int = 2;
/// No stream of bytes: it cannot be spliced (`EPROTONOSUPPORT`).
pub const SOSPLICE_NOT_A_STREAM: c_int = 3;

/// The functions of a protocol, for all its sockets (BSD's `struct protosw`). The table is copied.
///
/// Each function gets the `context` that the socket was made with. It may be called from any thread, from several
/// at once, also inside any function of this header; no lock of the library is held, so it may call every function
/// on every end. It must not wait, and must not take a lock that a thread holds while it calls this library (the
/// core lock of a stack, say). It must return: no `longjmp`, no exception of C++.
///
/// If your stack belongs to one thread, as lwIP does, these functions note what is wanted, in a queue with a lock of
/// its own, and wake that thread, for example by an `eventfd`; the thread then sends and opens windows.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
#[expect(
    clippy::exhaustive_structs,
    reason = "C programs fill it in; `size` tells versions apart"
)]
pub struct Functions {
    /// `sizeof(struct sosplice_protocol)`.
    pub size: usize,
    /// The protocol's name, for listings; it has to stay as long as the process. Null is "c".
    pub name: *const c_char,
    /// The send buffer has more bytes, or was closed for writing: send (`pr_send`, `pr_shutdown`). See
    /// `sosplice_end_read_snd`. The bytes before the close are still to be delivered, then the end of the stream.
    pub output: Option<unsafe extern "C" fn(context: *mut c_void)>,
    /// Bytes were taken from the receive buffer, so the window may open (`pr_rcvd`): see `rcv_taken` of
    /// `struct sosplice_state`. If `idle` is not 0, a reader now waits, and a withheld window update must be sent.
    pub rcvd: Option<unsafe extern "C" fn(context: *mut c_void, idle: c_int)>,
    /// Ends the connection at once and notifies the peer (`pr_abort`, a reset). Before it returns, both buffers are
    /// to be closed, by `sosplice_end_disconnected` with `ECONNABORTED`.
    pub abort: Option<unsafe extern "C" fn(context: *mut c_void)>,
    /// The socket was closed (`pr_detach`). If `sosplice_end_flush_rcv` finds unread bytes, or bytes arrive later,
    /// the peer gets a reset; otherwise the protocol calls `sosplice_end_cantsendmore` and delivers the rest of the
    /// send buffer. Later calls of `output` and `rcvd` are possible.
    pub detach: Option<unsafe extern "C" fn(context: *mut c_void)>,
    /// The last call for this context: none is running any more, and none follows. The protocol may still be
    /// delivering bytes; when it is done, it frees its end and the context. May be null.
    pub release: Option<unsafe extern "C" fn(context: *mut c_void)>,
    /// The state of the socket, `SOSPLICE_STREAM` and so on. Null for protocols that make sockets only for
    /// connections.
    pub state: Option<unsafe extern "C" fn(context: *mut c_void) -> c_int>,
}

type Call = unsafe extern "C" fn(*mut c_void);

/// A socket's protocol in C.
pub(crate) struct Foreign {
    context: *mut c_void,
    name: &'static str,
    output: Call,
    rcvd: unsafe extern "C" fn(*mut c_void, c_int),
    abort: Call,
    detach: Call,
    release: Option<Call>,
    state: Option<unsafe extern "C" fn(*mut c_void) -> c_int>,
    /// The socket has a descriptor. Before, and if it gets none, nothing is called.
    armed: AtomicBool,
}

// SAFETY: the table's documentation asks for functions that can be called from any thread, with this context.
unsafe impl Send for Foreign {}
// SAFETY: and from several at once.
unsafe impl Sync for Foreign {}

impl Foreign {
    /// # Errors
    /// `EINVAL` for the table of another version, or a name that is not UTF-8; `EFAULT` if a function is missing.
    ///
    /// # Safety
    /// The table's functions are as its documentation asks; its name is null, or a string that stays.
    pub(crate) unsafe fn new(table: &Functions, context: *mut c_void) -> Result<Foreign, Number> {
        if table.size != size_of::<Functions>() {
            return Err(Number(libc::EINVAL));
        }
        let missing = || Number(libc::EFAULT);
        Ok(Foreign {
            context,
            // SAFETY: the caller's promise.
            name: unsafe { name(table.name)? },
            output: table.output.ok_or_else(missing)?,
            rcvd: table.rcvd.ok_or_else(missing)?,
            abort: table.abort.ok_or_else(missing)?,
            detach: table.detach.ok_or_else(missing)?,
            release: table.release,
            state: table.state,
            armed: AtomicBool::new(false),
        })
    }

    /// From now on the functions are called.
    pub(crate) fn arm(&self) {
        self.armed.store(true, Ordering::Release);
    }

    fn call(&self, function: Call) {
        if self.armed.load(Ordering::Acquire) {
            // SAFETY: the maker of the table promised that it can be called with this context.
            unsafe { function(self.context) };
        }
    }
}

/// # Safety
/// Null, or a string that stays.
unsafe fn name(name: *const c_char) -> Result<&'static str, Number> {
    if name.is_null() {
        return Ok("c");
    }
    // SAFETY: the caller's promise.
    let name = unsafe { CStr::from_ptr(name) };
    name.to_str().map_err(|_| Number(libc::EINVAL))
}

impl fmt::Debug for Foreign {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Foreign")
            .field("name", &self.name)
            .field("context", &self.context)
            .finish_non_exhaustive()
    }
}

impl Protocol for Foreign {
    fn output(&self) {
        self.call(self.output);
    }

    fn rcvd(&self, idle: bool) {
        if self.armed.load(Ordering::Acquire) {
            // SAFETY: as in `call`.
            unsafe { (self.rcvd)(self.context, idle.into()) };
        }
    }

    fn abort(&self) {
        self.call(self.abort);
    }

    fn detach(&self) {
        self.call(self.detach);
    }

    fn name(&self) -> &'static str {
        self.name
    }

    fn so_state(&self) -> SoState {
        let Some(state) = self.state else {
            return SoState::Stream;
        };
        // SAFETY: as in `call`.
        match unsafe { state(self.context) } {
            SOSPLICE_STREAM => SoState::Stream,
            SOSPLICE_UNCONNECTED => SoState::Unconnected,
            SOSPLICE_LISTENING => SoState::Listening,
            _ => SoState::NotAStream,
        }
    }
}

impl Drop for Foreign {
    fn drop(&mut self) {
        if let Some(release) = self.release {
            self.call(release);
        }
    }
}
