//! Descriptors: the numbers in a call, and their rights.
//!
//! The table of a system-call layer implements [`Descriptors`]; [`Table`] is a small ready-made one.
//! Locks: the table is a leaf (5); removed sockets are dropped after releasing it.

use crate::error::Errno;
use crate::lock::{LEAF, Mutex};
use crate::socket::Socket;
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fmt;

bitflags::bitflags! {
    /// The rights of a descriptor (FreeBSD's Capsicum).
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
    pub struct Rights: u8 {
        /// Receiving, and being the source of a splice (`CAP_RECV`).
        const RECV = 1;
        /// Sending, and being the sink of a splice (`CAP_SEND`).
        const SEND = 2;
        /// Setting options (`CAP_SETSOCKOPT`).
        const SETSOCKOPT = 4;
        /// Reading options (`CAP_GETSOCKOPT`).
        const GETSOCKOPT = 8;
    }
}

/// The error of a descriptor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
#[non_exhaustive]
pub enum DescriptorError {
    /// The number is not open.
    #[error("the descriptor is not open, use one that is")]
    BadDescriptor,
    /// It is not a socket.
    #[error("the descriptor is not a socket, use one of a socket")]
    NotASocket,
    /// A right is missing (only in the FreeBSD flavor).
    #[error("the descriptor lacks a right for this, use one with more rights")]
    NotCapable,
    /// The table is full.
    #[error("too many descriptors are open, close one first")]
    TooMany,
}

impl DescriptorError {
    /// The error of a system call for it.
    ///
    /// ```
    /// use sosplice::{error::Errno, sockopt::DescriptorError};
    /// assert_eq!(DescriptorError::NotASocket.errno(), Errno::ENOTSOCK);
    /// ```
    pub const fn errno(self) -> Errno {
        match self {
            DescriptorError::BadDescriptor => Errno::EBADF,
            DescriptorError::NotASocket => Errno::ENOTSOCK,
            DescriptorError::NotCapable => Errno::ENOTCAPABLE,
            DescriptorError::TooMany => Errno::EMFILE,
        }
    }
}

/// The descriptors of a process, as the option needs them.
pub trait Descriptors {
    /// The socket with this number, if it has all these rights. Called with no lock held; the socket is
    /// held until the end of the call.
    ///
    /// # Errors
    /// In FreeBSD's order: [`BadDescriptor`](DescriptorError::BadDescriptor),
    /// [`NotCapable`](DescriptorError::NotCapable), [`NotASocket`](DescriptorError::NotASocket).
    fn get(&self, fd: i32, need: Rights) -> Result<Socket, DescriptorError>;
}

/// A table of descriptors.
///
/// ```
/// use sosplice::{local, sockopt::{DescriptorError, Descriptors, Rights, Table}};
/// let table = Table::new(4);
/// let (a, b) = local::pair();
/// let fd = table.insert(a)?;
/// let reading = table.dup(fd, Rights::RECV)?;
/// assert_eq!((fd, reading), (0, 1));
/// table.close(fd)?;
/// assert!(table.get(reading, Rights::RECV).is_ok());
/// let sending = table.get(reading, Rights::SEND);
/// assert_eq!(sending.unwrap_err(), DescriptorError::NotCapable);
///
/// // The last descriptor closes the socket.
/// table.close(reading)?;
/// assert_eq!(b.recv(&mut [0])?, 0);
/// # Ok::<_, Box<dyn std::error::Error>>(())
/// ```
pub struct Table {
    open: Mutex<Open, LEAF>,
    limit: usize,
}

#[derive(Default)]
struct Open {
    entries: Vec<Option<Entry>>,
    /// Free numbers below the length.
    free: BinaryHeap<Reverse<usize>>,
}

#[derive(Clone)]
struct Entry {
    /// `None` for a file or device.
    socket: Option<Socket>,
    rights: Rights,
}

impl Open {
    fn entry(&self, fd: i32) -> Result<&Entry, DescriptorError> {
        let index = usize::try_from(fd).ok();
        let entry = index.and_then(|index| self.entries.get(index)?.as_ref());
        entry.ok_or(DescriptorError::BadDescriptor)
    }

    /// Assigns the lowest free number. The caller's own copy outlives the lock, so the last handle of a
    /// socket is not dropped under it.
    fn add(&mut self, entry: &Entry, limit: usize) -> Result<i32, DescriptorError> {
        let index = match self.free.pop() {
            Some(Reverse(index)) => index,
            None if self.entries.len() < limit => {
                self.entries.push(None);
                self.entries.len() - 1
            }
            None => return Err(DescriptorError::TooMany),
        };
        self.entries[index] = Some(entry.clone());
        Ok(i32::try_from(index).expect("invariant: the limit is an i32"))
    }
}

impl Table {
    /// An empty table for this many descriptors (`RLIMIT_NOFILE`).
    pub fn new(limit: usize) -> Table {
        Table {
            open: Mutex::default(),
            limit: limit.min(i32::MAX as usize),
        }
    }

    /// Assigns the lowest free number to a socket, with all rights. The socket stays open until its
    /// descriptors are closed and its other handles are dropped.
    ///
    /// # Errors
    /// [`DescriptorError::TooMany`]; the handle is dropped.
    pub fn insert(&self, socket: Socket) -> Result<i32, DescriptorError> {
        self.add(Some(socket))
    }

    /// Assigns a number to a file or a device.
    ///
    /// ```
    /// use sosplice::sockopt::{DescriptorError, Descriptors, Rights, Table};
    /// let table = Table::new(4);
    /// let file = table.insert_file()?;
    /// let error = table.get(file, Rights::empty()).unwrap_err();
    /// assert_eq!(error, DescriptorError::NotASocket);
    /// # Ok::<_, DescriptorError>(())
    /// ```
    ///
    /// # Errors
    /// [`DescriptorError::TooMany`].
    pub fn insert_file(&self) -> Result<i32, DescriptorError> {
        self.add(None)
    }

    fn add(&self, socket: Option<Socket>) -> Result<i32, DescriptorError> {
        let entry = Entry {
            socket,
            rights: Rights::all(),
        };
        self.open.lock().add(&entry, self.limit)
    }

    /// Another number for the same, with those of its rights that are among `rights`
    /// ([`Rights::all`] keeps them).
    ///
    /// # Errors
    /// [`DescriptorError::BadDescriptor`], [`DescriptorError::TooMany`].
    pub fn dup(&self, fd: i32, rights: Rights) -> Result<i32, DescriptorError> {
        let mut entry = self.open.lock().entry(fd)?.clone();
        entry.rights &= rights;
        self.open.lock().add(&entry, self.limit)
    }

    /// Closes a descriptor. The last one of a socket closes it, unless there are other handles.
    ///
    /// # Errors
    /// [`DescriptorError::BadDescriptor`].
    pub fn close(&self, fd: i32) -> Result<(), DescriptorError> {
        let mut open = self.open.lock();
        open.entry(fd)?;
        let index = usize::try_from(fd).expect("invariant: a number that is open is not negative");
        let gone = open.entries[index].take();
        open.free.push(Reverse(index));
        drop(open);
        drop(gone);
        Ok(())
    }
}

impl Descriptors for Table {
    fn get(&self, fd: i32, need: Rights) -> Result<Socket, DescriptorError> {
        let open = self.open.lock();
        let entry = open.entry(fd)?;
        if !entry.rights.contains(need) {
            return Err(DescriptorError::NotCapable);
        }
        entry.socket.clone().ok_or(DescriptorError::NotASocket)
    }
}

impl fmt::Debug for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Table")
            .field("limit", &self.limit)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::local;

    #[test]
    fn the_lowest_free_number_comes_first() {
        let table = Table::new(4);
        let numbers: Vec<_> = (0..4).map(|_| table.insert_file()).collect();
        assert_eq!(numbers, [Ok(0), Ok(1), Ok(2), Ok(3)]);
        for fd in [2, 0, 3] {
            assert_eq!(table.close(fd), Ok(()));
            assert_eq!(table.close(fd), Err(DescriptorError::BadDescriptor));
        }
        assert_eq!(table.insert_file(), Ok(0));
        assert_eq!(table.dup(0, Rights::all()), Ok(2));
        assert_eq!(table.insert_file(), Ok(3));
    }

    #[test]
    fn a_full_table_takes_nothing_and_closes_the_socket_with_no_lock_held() {
        let table = Table::new(1);
        let (a, b) = local::pair();
        assert_eq!(table.insert_file(), Ok(0));
        assert_eq!(table.dup(0, Rights::all()), Err(DescriptorError::TooMany));
        assert_eq!(table.insert(a), Err(DescriptorError::TooMany));
        assert_eq!(b.recv(&mut [0]).unwrap(), 0);
    }

    #[test]
    fn rights_are_only_taken_away() {
        let table = Table::new(9);
        let (a, _b) = local::pair();
        let all = table.insert(a).unwrap();
        let few = table.dup(all, Rights::RECV | Rights::SEND).unwrap();
        let fewer = table.dup(few, Rights::RECV | Rights::SETSOCKOPT).unwrap();
        let get = |fd, need| table.get(fd, need).map(drop);
        assert_eq!(get(all, Rights::all()), Ok(()));
        assert_eq!(get(few, Rights::RECV | Rights::SEND), Ok(()));
        assert_eq!(get(fewer, Rights::RECV), Ok(()));
        for right in [Rights::SEND, Rights::SETSOCKOPT] {
            assert_eq!(get(fewer, right), Err(DescriptorError::NotCapable));
        }
        assert_eq!(get(fewer, Rights::empty()), Ok(()));
    }

    #[test]
    fn the_order_of_checks() {
        let table = Table::new(9);
        let file = table.insert_file().unwrap();
        let poor = table.dup(file, Rights::empty()).unwrap();
        let get = |fd| table.get(fd, Rights::RECV).map(drop);
        assert_eq!(get(file), Err(DescriptorError::NotASocket));
        assert_eq!(get(poor), Err(DescriptorError::NotCapable));
        for fd in [2, -1, i32::MIN, i32::MAX] {
            assert_eq!(get(fd), Err(DescriptorError::BadDescriptor));
        }
    }
}
