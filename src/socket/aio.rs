//! Sockets for executors: polls that leave a waker, and the traits of `futures-io` and tokio.
//!
//! The wakers of a socket are one [`Upcall`] on both of its buffers ([`Wakers`]). A waker is foreign
//! code, so it is not called under a buffer's lock: the due wakers are a [`Job`] for the run list of
//! the thread that delivers the bytes or, without a run list, for a separate thread (`sosplice:wake`),
//! which starts with the first poll. They are called as all foreign code is ([`callbacks`]).
//!
//! Locks: `so_rcv` (2) or `so_snd` (3), then the list of wakers (5).

use super::{Socket, Wait};
use crate::callbacks::{self, Callback};
use crate::error::SoError;
use crate::lock::{LEAF, Mutex};
use crate::protocol::{Upcall, Wakeup};
use crate::run_list::{self, Job};
use crate::sockbuf::{Addresses, Datagram};
use crossbeam_channel::{Sender, unbounded};
use std::fmt;
use std::io::{self, ErrorKind};
use std::panic::{self, AssertUnwindSafe};
use std::sync::{Arc, OnceLock, Weak};
use std::task::{Context, Poll, Waker};
use std::thread;

/// The wakers of the tasks that wait for a socket.
pub(super) struct Wakers {
    me: Weak<Wakers>,
    slots: Mutex<Slots, LEAF>,
    thread: &'static Sender<Weak<Wakers>>,
}

impl fmt::Debug for Wakers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Wakers")
    }
}

#[derive(Debug, Default)]
struct Slots {
    readers: Vec<Waker>,
    writers: Vec<Waker>,
    /// To be called; the thread that adds the first one queues the job.
    due: Vec<Waker>,
}

/// The thread for wakers that become due without an active run list.
fn thread_for_wakers() -> io::Result<&'static Sender<Weak<Wakers>>> {
    static SENDER: OnceLock<Result<Sender<Weak<Wakers>>, ErrorKind>> = OnceLock::new();
    let sender = SENDER.get_or_init(|| {
        let (sender, receiver) = unbounded::<Weak<Wakers>>();
        let run = move || {
            let live = receiver.iter().filter_map(|wakers| wakers.upgrade());
            // Code that runs because of wakers may panic too.
            live.for_each(|wakers| contained(|| wakers.call()));
        };
        let thread = thread::Builder::new().name("sosplice:wake".into());
        let started = thread.spawn(run).map_err(|error| error.kind());
        started.map(|_| sender)
    });
    sender.as_ref().map_err(|kind| io::Error::from(*kind))
}

impl Wakers {
    fn new() -> io::Result<Arc<Wakers>> {
        let thread = thread_for_wakers()?;
        Ok(Arc::new_cyclic(|me| Wakers {
            me: me.clone(),
            slots: Mutex::default(),
            thread,
        }))
    }

    /// Leaves the waker of a task.
    fn leave(&self, side: Side, cx: &Context<'_>) {
        // Cloned, and if it is not needed dropped, with no lock held.
        let mut new = Some(cx.waker().clone());
        let mut slots = self.slots.lock();
        match side {
            Side::Read => wait(&mut slots.readers, &mut new),
            Side::Write => wait(&mut slots.writers, &mut new),
        }
        drop(slots);
    }

    /// Calls the due wakers, with no lock held. Inside a callback they are handed to the thread for
    /// wakers, because the callback may wait for a task that they wake.
    fn call(self: Arc<Self>) {
        if callbacks::is_inside() {
            self.hand_over();
        } else {
            callbacks::call(Due(self));
        }
    }
}

/// Runs foreign code. A panic, which was reported, ends only that code.
fn contained(code: impl FnOnce()) {
    panic::catch_unwind(AssertUnwindSafe(code)).ok();
}

/// The wakers that are due.
struct Due(Arc<Wakers>);

impl Callback for Due {
    /// Calls all of them, even if one panics.
    fn call(&mut self) {
        let due = std::mem::take(&mut self.0.slots.lock().due);
        due.into_iter().for_each(|waker| contained(|| waker.wake()));
    }
}

/// Adds a task's waker, once. Keeps the former ones: several tasks may wait for one socket.
fn wait(wakers: &mut Vec<Waker>, new: &mut Option<Waker>) {
    let fresh = new.take_if(|new| !wakers.iter().any(|waker| waker.will_wake(new)));
    wakers.extend(fresh);
}

impl Upcall for Wakers {
    fn wakeup(&self, what: Wakeup) {
        let mut guard = self.slots.lock();
        let slots = &mut *guard;
        let queued = !slots.due.is_empty();
        if matches!(what, Wakeup::Data | Wakeup::RcvClosed | Wakeup::Failed) {
            slots.due.append(&mut slots.readers);
        }
        if matches!(what, Wakeup::Space | Wakeup::SndClosed | Wakeup::Failed) {
            slots.due.append(&mut slots.writers);
        }
        if slots.due.is_empty() {
            return;
        }
        drop(guard);
        if !queued && !run_list::push(self.me.clone()) {
            self.hand_over();
        }
    }
}

impl Job for Wakers {
    fn run(&self) -> u64 {
        if let Some(me) = self.me.upgrade() {
            me.call();
        }
        0
    }

    fn hand_over(&self) {
        // The thread lives as long as the process.
        self.thread.send(self.me.clone()).ok();
    }
}

/// The tasks that wait for something that is no socket.
#[derive(Debug, Default)]
pub(crate) struct Tasks(OnceLock<Arc<Wakers>>);

impl Tasks {
    /// Tries, has the upcall registered, once, and tries again.
    pub(crate) fn poll<R>(
        &self,
        register: impl FnOnce(Arc<dyn Upcall>),
        cx: &Context<'_>,
        attempt: impl FnMut() -> io::Result<R>,
    ) -> Poll<io::Result<R>> {
        try_twice(attempt, || {
            let wakers = match self.0.get() {
                Some(wakers) => wakers,
                None => {
                    let new = Wakers::new()?;
                    self.0.get_or_init(|| new)
                }
            };
            wakers.leave(Side::Read, cx);
            register(wakers.clone());
            Ok(())
        })
    }
}

/// Tries, and if it is too early leaves word, and tries once more in case of a change in between.
fn try_twice<R>(
    mut attempt: impl FnMut() -> io::Result<R>,
    leave_word: impl FnOnce() -> io::Result<()>,
) -> Poll<io::Result<R>> {
    let mut ready = || match attempt() {
        Err(error) if error.kind() == ErrorKind::WouldBlock => Poll::Pending,
        other => Poll::Ready(other),
    };
    if let Poll::Ready(result) = ready() {
        return Poll::Ready(result);
    }
    leave_word()?;
    ready()
}

/// The change that a task waits for.
#[derive(Clone, Copy)]
enum Side {
    Read,
    Write,
}

impl Socket {
    fn wakers(&self) -> io::Result<&Arc<Wakers>> {
        let slot = &self.open.wakers;
        if let Some(wakers) = slot.get() {
            return Ok(wakers);
        }
        let wakers = Wakers::new()?;
        if slot.set(wakers.clone()).is_ok() {
            self.add_rcv_upcall(wakers.clone());
            self.add_snd_upcall(wakers);
        }
        Ok(slot
            .get()
            .expect("invariant: set above, here or by another thread"))
    }

    /// Tries, registers the waker, and tries once more in case of a change in between.
    fn poll<R>(
        &self,
        side: Side,
        cx: &Context<'_>,
        attempt: impl FnMut() -> io::Result<R>,
    ) -> Poll<io::Result<R>> {
        try_twice(attempt, || {
            self.wakers()?.leave(side, cx);
            if let Side::Read = side {
                // As for a thread that is about to sleep: no window update is withheld.
                self.enter(|protocol| protocol.rcvd(true));
            }
            Ok(())
        })
    }

    /// Waits for another event source that this socket represents; `register` adds the upcall there,
    /// once.
    pub(crate) fn poll_beside<R>(
        &self,
        register: impl FnOnce(Arc<dyn Upcall>),
        cx: &Context<'_>,
        attempt: impl FnMut() -> io::Result<R>,
    ) -> Poll<io::Result<R>> {
        register(self.wakers()?.clone());
        self.poll(Side::Read, cx, attempt)
    }

    /// As [`recv`](Socket::recv), for a task: if there is nothing yet, it is woken when there is.
    /// Independent of the socket's non-blocking mode and timeouts.
    ///
    /// # Errors
    /// As for [`recv`](Socket::recv); once, if the thread for wakers cannot be started.
    pub fn poll_recv(&self, cx: &mut Context<'_>, out: &mut [u8]) -> Poll<io::Result<usize>> {
        self.poll(Side::Read, cx, || self.try_recv(out))
    }

    /// As [`peek`](Socket::peek), for a task.
    ///
    /// ```
    /// # futures_lite::future::block_on(async {
    /// use std::future::poll_fn;
    /// let (a, b) = sosplice::local::pair();
    /// a.send(b"GET / HTTP/1.1")?;
    /// let mut method = [0; 3];
    /// let count = poll_fn(|cx| b.poll_peek(cx, &mut method)).await?;
    /// assert_eq!((count, &method), (3, b"GET"));
    /// assert_eq!(b.readable_bytes(), 14);
    /// # std::io::Result::Ok(())
    /// # })?;
    /// # std::io::Result::Ok(())
    /// ```
    ///
    /// # Errors
    /// As for [`poll_recv`](Self::poll_recv).
    pub fn poll_peek(&self, cx: &mut Context<'_>, out: &mut [u8]) -> Poll<io::Result<usize>> {
        self.poll(Side::Read, cx, || self.peek_into(Wait::Never, out))
    }

    /// As [`send`](Socket::send), for a task.
    ///
    /// # Errors
    /// As for [`send`](Socket::send); once, if the thread for wakers cannot be started.
    pub fn poll_send(&self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll(Side::Write, cx, || {
            self.try_send(&[io::IoSlice::new(bytes)])
        })
    }

    /// As [`send_vectored`](Socket::send_vectored), for a task.
    ///
    /// # Errors
    /// As for [`poll_send`](Self::poll_send).
    pub fn poll_send_vectored(
        &self,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.poll(Side::Write, cx, || self.try_send(bufs))
    }

    /// As [`recv_datagram`](Socket::recv_datagram), for a task: if there is none yet, it is woken when there is.
    ///
    /// ```
    /// # futures_lite::future::block_on(async {
    /// use sosplice::sockbuf::Addresses;
    /// use std::future::poll_fn;
    /// let (a, b) = sosplice::local::datagram_pair();
    /// poll_fn(|cx| a.poll_send_datagram(cx, b"query", Addresses::default())).await?;
    /// let mut out = [0; 100];
    /// let (len, _) = poll_fn(|cx| b.poll_recv_datagram(cx, &mut out)).await?;
    /// assert_eq!(&out[..len], b"query");
    /// # std::io::Result::Ok(())
    /// # })?;
    /// # std::io::Result::Ok(())
    /// ```
    ///
    /// # Errors
    /// As for [`recv_datagram`](Socket::recv_datagram); once, if the thread for wakers cannot be started.
    pub fn poll_recv_datagram(
        &self,
        cx: &mut Context<'_>,
        out: &mut [u8],
    ) -> Poll<io::Result<(usize, Addresses)>> {
        self.poll(Side::Read, cx, || self.receive_datagram(Wait::Never, out))
    }

    /// As [`poll_recv_datagram`](Self::poll_recv_datagram), but the end is an error.
    pub(crate) fn poll_recv_whole(
        &self,
        cx: &mut Context<'_>,
        out: &mut [u8],
    ) -> Poll<io::Result<(usize, Addresses)>> {
        self.poll(Side::Read, cx, || self.receive_whole(Wait::Never, out))
    }

    /// As [`poll_recv_whole`](Self::poll_recv_whole), and leaves the datagram.
    pub(crate) fn poll_peek_whole(
        &self,
        cx: &mut Context<'_>,
        out: &mut [u8],
    ) -> Poll<io::Result<(usize, Addresses)>> {
        self.poll(Side::Read, cx, || self.see_whole(Wait::Never, out))
    }

    /// As [`recv_datagrams`](Socket::recv_datagrams), for a task.
    ///
    /// # Errors
    /// As for [`poll_recv_datagram`](Self::poll_recv_datagram).
    pub fn poll_recv_datagrams(
        &self,
        cx: &mut Context<'_>,
        datagrams: &mut Vec<Datagram>,
        max: usize,
    ) -> Poll<io::Result<usize>> {
        self.poll(Side::Read, cx, || {
            self.receive_datagrams(Wait::Never, datagrams, max)
        })
    }

    /// As [`send_datagram`](Socket::send_datagram), for a task.
    ///
    /// # Errors
    /// As for [`send_datagram`](Socket::send_datagram); once, if the thread for wakers cannot be started.
    pub fn poll_send_datagram(
        &self,
        cx: &mut Context<'_>,
        bytes: &[u8],
        addresses: Addresses,
    ) -> Poll<io::Result<usize>> {
        self.poll(Side::Write, cx, || {
            self.send_slices(Wait::Never, &[io::IoSlice::new(bytes)], addresses)
        })
    }

    /// As [`send_datagrams`](Socket::send_datagrams), for a task.
    ///
    /// # Errors
    /// As for [`poll_send_datagram`](Self::poll_send_datagram).
    pub fn poll_send_datagrams(
        &self,
        cx: &mut Context<'_>,
        datagrams: &mut Vec<Datagram>,
    ) -> Poll<io::Result<usize>> {
        self.poll(Side::Write, cx, || {
            self.give_datagrams(Wait::Never, datagrams)
        })
    }

    /// As [`wait_connected`](Socket::wait_connected), for a task.
    ///
    /// ```
    /// # futures_lite::future::block_on(async {
    /// let (a, _b) = sosplice::local::pair();
    /// std::future::poll_fn(|cx| a.poll_connected(cx)).await?;
    /// # std::io::Result::Ok(())
    /// # })?;
    /// # std::io::Result::Ok(())
    /// ```
    ///
    /// # Errors
    /// The error that has ended the connection.
    pub fn poll_connected(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll(Side::Write, cx, || {
            let snd = self.end().snd();
            if snd.is_connected() {
                return Ok(());
            }
            if snd.buf.is_closed() {
                let error = self.end().take_error();
                return Err(error.unwrap_or(SoError::ConnectionAborted).into());
            }
            Err(ErrorKind::WouldBlock.into())
        })
    }
}

/// The traits, for types that have a socket.
#[cfg(any(feature = "futures-io", feature = "tokio"))]
macro_rules! asynchronous {
    ($stream:ty) => {
        #[cfg(feature = "futures-io")]
        impl futures_io::AsyncRead for $stream {
            fn poll_read(
                self: std::pin::Pin<&mut Self>,
                cx: &mut std::task::Context<'_>,
                out: &mut [u8],
            ) -> std::task::Poll<std::io::Result<usize>> {
                self.poll_recv(cx, out)
            }
        }

        #[cfg(feature = "futures-io")]
        impl futures_io::AsyncWrite for $stream {
            fn poll_write(
                self: std::pin::Pin<&mut Self>,
                cx: &mut std::task::Context<'_>,
                bytes: &[u8],
            ) -> std::task::Poll<std::io::Result<usize>> {
                self.poll_send(cx, bytes)
            }

            fn poll_write_vectored(
                self: std::pin::Pin<&mut Self>,
                cx: &mut std::task::Context<'_>,
                bufs: &[std::io::IoSlice<'_>],
            ) -> std::task::Poll<std::io::Result<usize>> {
                self.poll_send_vectored(cx, bufs)
            }

            fn poll_flush(
                self: std::pin::Pin<&mut Self>,
                _cx: &mut std::task::Context<'_>,
            ) -> std::task::Poll<std::io::Result<()>> {
                std::task::Poll::Ready(Ok(()))
            }

            fn poll_close(
                self: std::pin::Pin<&mut Self>,
                _cx: &mut std::task::Context<'_>,
            ) -> std::task::Poll<std::io::Result<()>> {
                std::task::Poll::Ready(self.shutdown(std::net::Shutdown::Write))
            }
        }

        #[cfg(feature = "tokio")]
        impl tokio::io::AsyncRead for $stream {
            fn poll_read(
                self: std::pin::Pin<&mut Self>,
                cx: &mut std::task::Context<'_>,
                out: &mut tokio::io::ReadBuf<'_>,
            ) -> std::task::Poll<std::io::Result<()>> {
                self.poll_recv(cx, out.initialize_unfilled())
                    .map_ok(|count| out.advance(count))
            }
        }

        #[cfg(feature = "tokio")]
        impl tokio::io::AsyncWrite for $stream {
            fn poll_write(
                self: std::pin::Pin<&mut Self>,
                cx: &mut std::task::Context<'_>,
                bytes: &[u8],
            ) -> std::task::Poll<std::io::Result<usize>> {
                self.poll_send(cx, bytes)
            }

            fn poll_write_vectored(
                self: std::pin::Pin<&mut Self>,
                cx: &mut std::task::Context<'_>,
                bufs: &[std::io::IoSlice<'_>],
            ) -> std::task::Poll<std::io::Result<usize>> {
                self.poll_send_vectored(cx, bufs)
            }

            fn is_write_vectored(&self) -> bool {
                true
            }

            fn poll_flush(
                self: std::pin::Pin<&mut Self>,
                _cx: &mut std::task::Context<'_>,
            ) -> std::task::Poll<std::io::Result<()>> {
                std::task::Poll::Ready(Ok(()))
            }

            fn poll_shutdown(
                self: std::pin::Pin<&mut Self>,
                _cx: &mut std::task::Context<'_>,
            ) -> std::task::Poll<std::io::Result<()>> {
                std::task::Poll::Ready(self.shutdown(std::net::Shutdown::Write))
            }
        }
    };
}

#[cfg(any(feature = "futures-io", feature = "tokio"))]
pub(crate) use asynchronous;

#[cfg(any(feature = "futures-io", feature = "tokio"))]
asynchronous!(Socket);
#[cfg(any(feature = "futures-io", feature = "tokio"))]
asynchronous!(&Socket);
