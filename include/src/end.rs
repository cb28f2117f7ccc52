//! A protocol's side of a socket: both socket buffers, the error, the wake-ups.

use crate::number::{Number, border, so_error};
use crate::{bytes, reference, store};
use libc::c_int;
use sosplice::buf::Buf;
use sosplice::protocol::SocketEnd;
use std::ffi::c_void;
use std::sync::Arc;

/// A protocol's side of a socket. Made by `sosplice_socket`, freed by `sosplice_end_free`; the socket may be closed
/// before or after that. All functions on it may be called from any thread, also inside the functions of a
/// protocol, and do not wait. They may call functions of protocols, of this one too, and `on_end`.
#[derive(Debug)]
pub struct End(pub(crate) Arc<SocketEnd>);

/// A snapshot of both buffers.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(clippy::exhaustive_structs, reason = "C programs read it")]
pub struct State {
    /// Bytes in the receive buffer, not yet taken by a reader or a splice.
    pub rcv_len: usize,
    /// Bytes that fit below its high-water mark: the window to advertise.
    pub rcv_space: usize,
    /// Bytes taken from it since the socket was made. By the growth of this number a window opens
    /// (`tcp_recved`). Bytes that were dropped by `sosplice_end_flush_rcv`, or appended after it, count as taken.
    pub rcv_taken: u64,
    /// Not 0 after `sosplice_end_cantrcvmore`, `sosplice_end_disconnected`, or when the program has shut down
    /// reading.
    pub rcv_closed: c_int,
    /// Bytes in the send buffer.
    pub snd_len: usize,
    /// Bytes that fit below its high-water mark.
    pub snd_space: usize,
    /// Not 0 when no more bytes come: send what is there, and then the end of the stream.
    pub snd_closed: c_int,
}

impl End {
    fn state(&self) -> State {
        let (rcv_len, rcv_space, rcv_taken, rcv_closed) = self.0.with_rcv(|so_rcv| {
            let closed = so_rcv.is_closed();
            (so_rcv.len(), so_rcv.space(), so_rcv.chain().start(), closed)
        });
        self.0.with_snd(|so_snd| State {
            rcv_len,
            rcv_space,
            rcv_taken,
            rcv_closed: rcv_closed.into(),
            snd_len: so_snd.len(),
            snd_space: so_snd.space(),
            snd_closed: so_snd.is_closed().into(),
        })
    }

    /// References to the bytes of the send buffer from `offset`, at most `max` of them.
    fn sent_from(&self, offset: usize, max: usize) -> Vec<Buf> {
        let (mut skip, mut left) = (offset, max);
        let mut parts = Vec::new();
        self.0.with_snd(|so_snd| {
            for buf in so_snd.chain().iter() {
                let from = skip.min(buf.len());
                skip -= from;
                let length = left.min(buf.len() - from);
                left -= length;
                if length > 0 {
                    parts.push(buf.slice(from..from + length));
                }
                if left == 0 {
                    break;
                }
            }
        });
        parts
    }
}

/// Reads the state of both buffers, each for itself at one moment.
///
/// Returns 0, or EFAULT for a null pointer.
///
/// # Safety
/// `end` is null or not freed; `state` is null or memory for the result.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sosplice_end_state(end: *const End, state: *mut State) -> c_int {
    border(|| {
        // SAFETY: the caller's promise.
        let end = unsafe { reference(end)? };
        // SAFETY: the caller's promise.
        unsafe { store(state, end.state()) }
    })
}

/// The connection is established (`soisconnected`): from now on the program and splices can send.
///
/// Returns 0, or EFAULT for a null pointer.
///
/// # Safety
/// `end` is null or not freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sosplice_end_connected(end: *const End) -> c_int {
    // SAFETY: the caller's promise.
    border(|| unsafe { reference(end) }.map(|end| end.0.connected()))
}

/// Appends a copy of received bytes, in order, and wakes a splice or readers (`sbappendstream`, `sorwakeup`). The
/// space of the receive buffer is not checked: keeping the peer to the window is up to the protocol.
///
/// Returns 0; EFAULT for a null pointer (`data` may be null if `length` is 0); EINVAL for a length above half of
/// the address space.
///
/// # Safety
/// `end` is null or not freed; `data` points to `length` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sosplice_end_append_rcv(
    end: *const End,
    data: *const c_void,
    length: usize,
) -> c_int {
    border(|| {
        // SAFETY: the caller's promise.
        let end = unsafe { reference(end)? };
        // SAFETY: the caller's promise.
        let bytes = unsafe { bytes(data, length)? };
        if !bytes.is_empty() {
            // Larger buffers come from no pool.
            end.0.append_rcv(bytes.chunks(65_536).map(Buf::copy_of));
        }
        Ok(())
    })
}

/// The peer will send no more (`socantrcvmore`): readers and a splice find the end of the stream behind the last
/// byte.
///
/// Returns 0, or EFAULT for a null pointer.
///
/// # Safety
/// `end` is null or not freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sosplice_end_cantrcvmore(end: *const End) -> c_int {
    // SAFETY: the caller's promise.
    border(|| unsafe { reference(end) }.map(|end| end.0.cantrcvmore()))
}

/// Nothing can be sent any more (`socantsendmore`). Bytes in the send buffer stay.
///
/// Returns 0, or EFAULT for a null pointer.
///
/// # Safety
/// `end` is null or not freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sosplice_end_cantsendmore(end: *const End) -> c_int {
    // SAFETY: the caller's promise.
    border(|| unsafe { reference(end) }.map(|end| end.0.cantsendmore()))
}

/// The connection has ended (`soisdisconnected`): sets the socket's error, unless `error` is 0, and closes both
/// buffers. Received bytes can still be read; those in the send buffer stay (`sosplice_end_flush_snd`).
///
/// `error` is ECONNRESET, ECONNREFUSED, ETIMEDOUT, ECONNABORTED, EPIPE, EHOSTUNREACH, ENETDOWN or 0.
///
/// Returns 0; EFAULT for a null pointer; EINVAL for another error, without a change.
///
/// # Safety
/// `end` is null or not freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sosplice_end_disconnected(end: *const End, error: c_int) -> c_int {
    border(|| {
        // SAFETY: the caller's promise.
        let end = unsafe { reference(end)? };
        end.0.disconnected(so_error(error)?);
        Ok(())
    })
}

/// Sets the socket's error, as `sosplice_end_disconnected` does, but closes nothing and does not wake.
///
/// Returns 0; EFAULT for a null pointer; EINVAL for another error, and for 0.
///
/// # Safety
/// `end` is null or not freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sosplice_end_set_error(end: *const End, error: c_int) -> c_int {
    border(|| {
        // SAFETY: the caller's promise.
        let end = unsafe { reference(end)? };
        let error = so_error(error)?.ok_or(Number(libc::EINVAL))?;
        end.0.set_error(error);
        Ok(())
    })
}

/// No more bytes will be read (`sorflush`): closes the receive buffer and drops what it holds. Stores how many bytes
/// that was in `count`, which may be null.
///
/// Returns 0, or EFAULT for a null `end`.
///
/// # Safety
/// `end` is null or not freed; `count` is null or memory for the result.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sosplice_end_flush_rcv(end: *const End, count: *mut usize) -> c_int {
    border(|| {
        // SAFETY: the caller's promise.
        let dropped = unsafe { reference(end)? }.0.flush_rcv();
        if !count.is_null() {
            // SAFETY: the caller's promise.
            unsafe { store(count, dropped)? };
        }
        Ok(())
    })
}

/// Drops the bytes in the send buffer, which can no longer be sent.
///
/// Returns 0, or EFAULT for a null pointer.
///
/// # Safety
/// `end` is null or not freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sosplice_end_flush_snd(end: *const End) -> c_int {
    // SAFETY: the caller's promise.
    border(|| unsafe { reference(end) }.map(|end| end.0.flush_snd()))
}

/// Shows the bytes of the send buffer from `offset`, at most `max` of them, and leaves them there: calls `write` for
/// each piece, in order, until it returns less than the length that it was given. `write` returns how many bytes it
/// has used (sent, or copied). The pieces stay valid until `write` returns. It is called with no lock held, before
/// this function returns, and may call any function except those that drop bytes of this send buffer.
///
/// The protocol keeps `offset`: the number of bytes that it has sent and not yet dropped. Only one thread at a time
/// may send for a socket; the others append to the buffer meanwhile.
///
/// Stores the sum of what `write` returned in `used`, which may be null; 0 if there is nothing behind `offset`.
///
/// Returns 0; EFAULT for a null `end` or `write`; EINVAL if `write` has returned more than the length that it was
/// given.
///
/// # Safety
/// `end` is null or not freed; `write` can be called with this context; `used` is null or memory for the result.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sosplice_end_read_snd(
    end: *const End,
    offset: usize,
    max: usize,
    write: Option<
        unsafe extern "C" fn(context: *mut c_void, data: *const c_void, length: usize) -> usize,
    >,
    context: *mut c_void,
    used: *mut usize,
) -> c_int {
    border(|| {
        // SAFETY: the caller's promise.
        let end = unsafe { reference(end)? };
        let write = write.ok_or(Number(libc::EFAULT))?;
        let mut sum = 0;
        let mut wrong = false;
        for part in end.sent_from(offset, max) {
            // SAFETY: the caller's promise; the bytes are kept by `part`.
            let count = unsafe { write(context, part.as_ptr().cast(), part.len()) };
            wrong = count > part.len();
            sum += count.min(part.len());
            if count != part.len() {
                break;
            }
        }
        if !used.is_null() {
            // SAFETY: the caller's promise.
            unsafe { store(used, sum)? };
        }
        if wrong {
            return Err(Number(libc::EINVAL));
        }
        Ok(())
    })
}

/// Drops bytes from the front of the send buffer, which the peer has acknowledged, and wakes a splice or writers
/// (`sbdrop`, `sowwakeup`).
///
/// Returns 0; EFAULT for a null pointer; EINVAL if there are fewer, without a change.
///
/// # Safety
/// `end` is null or not freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sosplice_end_drop_snd(end: *const End, count: usize) -> c_int {
    border(|| {
        // SAFETY: the caller's promise.
        let end = unsafe { reference(end)? };
        let fewer = || end.0.with_snd(|so_snd| so_snd.len()) < count;
        // Another thread may have dropped some since (`sosplice_end_flush_snd`).
        if fewer() || end.0.take_snd(count).len() < count {
            return Err(Number(libc::EINVAL));
        }
        Ok(())
    })
}

/// Frees the protocol's side of a socket. Call it when neither the stack nor a function of the protocol uses it any
/// more, at the earliest inside `release`. A null pointer is ignored.
///
/// # Safety
/// `end` is null or not freed, and no other thread uses it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sosplice_end_free(end: *mut End) {
    let free = || {
        if !end.is_null() {
            // SAFETY: made by `Box::into_raw` in `sosplice_socket`; the caller promises that it is freed once.
            drop(unsafe { Box::from_raw(end) });
        }
        Ok(())
    };
    border(free);
}
