//! The C interface of sosplice: protocols in C, and sockets by descriptor. The header `sosplice.h`, which
//! `tests/header.rs` makes from these sources, has the manual.
//!
//! A package of its own, because the library's own package denies `unsafe`, and so that a Rust program builds
//! neither archive nor shared object.
//!
//! * [`layer`]: `struct sosplice`, the descriptors and the pool, as a layer of system calls has them.
//! * [`end`]: `struct sosplice_end`, a protocol's side of a socket.
//! * [`protocol`]: the table of a protocol's functions.
//! * [`number`]: error numbers, and the border that no panic crosses.
//!
//! Locks: none of its own.

#![allow(
    unsafe_code,
    reason = "a C interface has pointers; each block says why it is sound"
)]

pub mod end;
pub mod layer;
pub mod number;
pub mod protocol;

/// A pointer of C's as a reference.
///
/// # Errors
/// `EFAULT` if it is null.
///
/// # Safety
/// It is null, or points to a value that stays as it is while the reference is used.
unsafe fn reference<'a, T>(pointer: *const T) -> Result<&'a T, number::Number> {
    // SAFETY: the caller's promise.
    unsafe { pointer.as_ref() }.ok_or(number::Number(libc::EFAULT))
}

/// Stores a result.
///
/// # Errors
/// `EFAULT` if `to` is null.
///
/// # Safety
/// `to` is null, or points to memory for a value.
unsafe fn store<T>(to: *mut T, value: T) -> Result<(), number::Number> {
    if to.is_null() {
        return Err(number::Number(libc::EFAULT));
    }
    // SAFETY: the caller's promise.
    unsafe { to.write(value) };
    Ok(())
}

/// Bytes of C's.
///
/// # Errors
/// `EFAULT` if `data` is null and `length` is not 0; `EINVAL` if the length is more than half of the address space.
///
/// # Safety
/// `data` is null, or there are `length` bytes that stay as they are while the slice is used.
unsafe fn bytes<'a>(
    data: *const std::ffi::c_void,
    length: usize,
) -> Result<&'a [u8], number::Number> {
    if length == 0 {
        return Ok(&[]);
    }
    if data.is_null() {
        return Err(number::Number(libc::EFAULT));
    }
    if isize::try_from(length).is_err() {
        return Err(number::Number(libc::EINVAL));
    }
    // SAFETY: not null, not too long, and the caller's promise.
    Ok(unsafe { std::slice::from_raw_parts(data.cast(), length) })
}

/// Memory of C's for bytes, which may be uninitialized: copies to its begin.
///
/// # Errors
/// As [`bytes`].
///
/// # Safety
/// `to` is null, or there are `length` bytes of memory that no other code uses meanwhile.
unsafe fn copy_out<'a>(
    parts: impl Iterator<Item = &'a [u8]>,
    to: *mut std::ffi::c_void,
    length: usize,
) -> Result<(), number::Number> {
    let mut at = 0;
    for part in parts.filter(|part| !part.is_empty()) {
        let room = length.saturating_sub(at);
        if to.is_null() || part.len() > room {
            return Err(number::Number(libc::EFAULT));
        }
        // SAFETY: there is room, by the caller's promise; the library's own memory does not overlap it.
        unsafe {
            std::ptr::copy_nonoverlapping(part.as_ptr(), to.cast::<u8>().add(at), part.len())
        };
        at += part.len();
    }
    Ok(())
}
