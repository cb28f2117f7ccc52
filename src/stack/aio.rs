//! Listening and connecting for executors. Streams are sockets: see [`Socket::poll_recv`] and its like.
//!
//! Tasks that wait for a listener are woken by upcalls of its queue, as pollers are: when a connection
//! or a SYN arrives, when the stack goes down, and when the listener is closed.

use crate::protocol::{Upcall, is_same};
use crate::socket::Socket;
use crate::socket::poller::Watched;
use crate::stack::accept::backlog::Listening;
use crate::stack::conditional::{ConditionalListener, ConnectionRequest};
use crate::stack::listener::TcpListener;
use crate::stack::stream::TcpStream;
use crate::stack::tcp_socket::TcpSocket;
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::{Context, Poll};

/// Puts an upcall on a listener's queue, if it is not there.
fn register(listening: &Listening, upcall: &Arc<dyn Upcall>) {
    listening.edit(&mut |upcalls| {
        if !upcalls.iter().any(|other| is_same(other, &**upcall)) {
            upcalls.push(upcall.clone());
        }
    });
}

impl TcpListener {
    /// As [`accept`](Self::accept), for a task: if there is no connection, the task is woken when one
    /// arrives, when the stack goes down, and when the listener is closed. It does not matter whether
    /// the listener is non-blocking.
    ///
    /// # Errors
    /// As for [`accept`](Self::accept), except `WouldBlock`; once, if the thread for wakers cannot be
    /// started.
    pub fn poll_accept(&self, cx: &mut Context<'_>) -> Poll<io::Result<(TcpStream, SocketAddr)>> {
        let (stack, listening) = self.parts();
        let socket: &Socket = self.as_ref();
        let watch = |upcall| register(listening, &upcall);
        let accepted = socket.poll_beside(watch, cx, || listening.try_accept());
        accepted.map_ok(|conn| {
            let stream = TcpStream::new(stack, conn);
            let peer = stream.peer_addr();
            (stream, peer)
        })
    }

    /// As [`accept`](Self::accept), for any executor. Dropping the future loses no connection.
    ///
    /// ```
    /// # futures_lite::future::block_on(async {
    /// use futures_lite::{AsyncReadExt, AsyncWriteExt};
    /// use sosplice::{Stack, TcpListener, TcpSocket, link::memory};
    /// let (a, b) = memory::pair(memory::Config::default());
    /// let server = Stack::builder(a).address("10.0.0.1/24".parse()?).build()?;
    /// let client = Stack::builder(b).address("10.0.0.2/24".parse()?).build()?;
    /// let listener = TcpListener::bind(&server, "10.0.0.1:80")?;
    /// let mut near = TcpSocket::new(&client).connect_async("10.0.0.1:80".parse()?).await?;
    /// let (mut far, peer) = listener.accept_async().await?;
    /// assert_eq!(peer, near.local_addr());
    /// near.write_all(b"hello").await?;
    /// let mut greeting = [0; 5];
    /// far.read_exact(&mut greeting).await?;
    /// assert_eq!(&greeting, b"hello");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// # })?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// As for [`poll_accept`](Self::poll_accept).
    pub async fn accept_async(&self) -> io::Result<(TcpStream, SocketAddr)> {
        poll_fn(|cx| self.poll_accept(cx)).await
    }
}

impl ConditionalListener {
    /// As [`pending`](Self::pending), for a task, see [`TcpListener::poll_accept`].
    ///
    /// # Errors
    /// As for [`pending`](Self::pending), except `WouldBlock`; once, if the thread for wakers cannot be
    /// started.
    pub fn poll_pending(&self, cx: &mut Context<'_>) -> Poll<io::Result<ConnectionRequest>> {
        let (stack, listening) = self.parts();
        let socket: &Socket = self.as_ref();
        let watch = |upcall| register(listening, &upcall);
        let key = socket.poll_beside(watch, cx, || listening.try_pending());
        key.map_ok(|key| ConnectionRequest::new(stack, key))
    }

    /// As [`pending`](Self::pending), for any executor. Dropping the future loses no SYN.
    ///
    /// ```
    /// # futures_lite::future::block_on(async {
    /// use sosplice::{ConditionalListener, Stack, TcpSocket, link::memory};
    /// use std::io::ErrorKind;
    /// let (a, b) = memory::pair(memory::Config::default());
    /// let server = Stack::builder(a).address("10.0.0.1/24".parse()?).build()?;
    /// let client = Stack::builder(b).address("10.0.0.2/24".parse()?).build()?;
    /// let listener = ConditionalListener::bind(&server, "10.0.0.1:80".parse()?)?;
    /// let socket = TcpSocket::new(&client);
    /// let connecting = socket.connect_async("10.0.0.1:80".parse()?);
    /// let deciding = async { listener.pending_async().await.map(|pending| pending.refuse()) };
    /// let (refused, decided) = futures_lite::future::zip(connecting, deciding).await;
    /// decided?;
    /// assert_eq!(refused.unwrap_err().kind(), ErrorKind::ConnectionRefused);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// # })?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// As for [`poll_pending`](Self::poll_pending).
    pub async fn pending_async(&self) -> io::Result<ConnectionRequest> {
        poll_fn(|cx| self.poll_pending(cx)).await
    }
}

impl TcpSocket {
    /// As [`connect`](Self::connect), for any executor. Dropping the future cancels the attempt. An
    /// example is at [`TcpListener::accept_async`].
    ///
    /// # Errors
    /// As for [`connect`](Self::connect); once, if the thread for wakers cannot be started.
    pub async fn connect_async(&self, address: SocketAddr) -> io::Result<TcpStream> {
        let stream = self.start(address)?;
        poll_fn(|cx| stream.poll_connected(cx)).await?;
        Ok(stream)
    }
}
