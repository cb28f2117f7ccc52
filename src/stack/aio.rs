//! Listening, connecting and datagrams for executors. Streams are sockets: see [`Socket::poll_recv`] and its like.
//!
//! Tasks that wait for a listener are woken by upcalls of its queue, as pollers are: when a connection
//! or a SYN arrives, when the stack goes down, and when the listener is closed.

use crate::protocol::{Upcall, is_same};
use crate::sockbuf::{Addresses, Datagram};
use crate::socket::Socket;
use crate::socket::poller::Watched;
use crate::stack::conditional::{ConditionalListener, ConnectionRequest};
use crate::stack::listener::TcpListener;
use crate::stack::stream::TcpStream;
use crate::stack::tcp_socket::TcpSocket;
use crate::stack::udp::{Open, PingFlow, PingListener, UdpListener, UdpSocket};
use crate::udp::Udp;
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::{Context, Poll};

/// Puts an upcall on a listener's queue, if it is not there.
fn register(listening: &dyn Watched, upcall: &Arc<dyn Upcall>) {
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

impl Open {
    fn poll_accept(&self, cx: &Context<'_>) -> Poll<io::Result<Arc<Udp>>> {
        let watch = |upcall| register(&*self.flows, &upcall);
        self.tasks.poll(watch, cx, || self.flows.accept(true))
    }
}

impl UdpListener {
    /// As [`accept`](Self::accept), for a task: if there is no flow, the task is woken when one begins, when the stack
    /// goes down, and when the listener is closed. It does not matter whether the listener is non-blocking.
    ///
    /// # Errors
    /// As for [`accept`](Self::accept), except `WouldBlock`; once, if the thread for wakers cannot be started.
    pub fn poll_accept(&self, cx: &mut Context<'_>) -> Poll<io::Result<(UdpSocket, SocketAddr)>> {
        self.open().poll_accept(cx).map_ok(|udp| self.accepted(udp))
    }

    /// As [`accept`](Self::accept), for any executor. Dropping the future loses no flow.
    ///
    /// ```
    /// # futures_lite::future::block_on(async {
    /// use sosplice::stack::{FlowOptions, Intercept, Stack, UdpListener, UdpSocket};
    /// use sosplice::link::memory;
    /// let (a, b) = memory::pair(memory::Config::default());
    /// let stack = Stack::builder(a).address("10.0.0.1/24".parse()?).build()?;
    /// let client = Stack::builder(b).address("10.0.0.2/24".parse()?).build()?;
    /// let listener = UdpListener::intercept(&stack, Intercept::all(), FlowOptions::default())?;
    /// let query = UdpSocket::bind(&client, "10.0.0.2:0")?;
    /// query.send_to_async(b"query", "203.0.113.53:53".parse()?).await?;
    /// let (flow, from) = listener.accept_async().await?;
    /// let mut buffer = [0; 512];
    /// assert_eq!((flow.recv_async(&mut buffer).await?, from), (5, query.local_addr()));
    /// flow.send_async(b"answer").await?;
    /// assert_eq!(query.recv_from_async(&mut buffer).await?, (6, "203.0.113.53:53".parse()?));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// # })?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// As for [`poll_accept`](Self::poll_accept).
    pub async fn accept_async(&self) -> io::Result<(UdpSocket, SocketAddr)> {
        poll_fn(|cx| self.poll_accept(cx)).await
    }
}

impl PingListener {
    /// As [`accept`](Self::accept), for a task, see [`UdpListener::poll_accept`].
    ///
    /// # Errors
    /// As for [`accept`](Self::accept), except `WouldBlock`; once, if the thread for wakers cannot be started.
    pub fn poll_accept(&self, cx: &mut Context<'_>) -> Poll<io::Result<PingFlow>> {
        self.open().poll_accept(cx).map_ok(|udp| self.accepted(udp))
    }

    /// As [`accept`](Self::accept), for any executor. Dropping the future loses no flow.
    ///
    /// # Errors
    /// As for [`poll_accept`](Self::poll_accept).
    pub async fn accept_async(&self) -> io::Result<PingFlow> {
        poll_fn(|cx| self.poll_accept(cx)).await
    }
}

/// The calls of [`UdpSocket`] for tasks, in tokio's shape. Those that return futures end in `_async`, and dropping such a
/// future loses no datagram. It does not matter whether the socket is non-blocking, and timeouts do not count.
impl UdpSocket {
    /// As [`recv_from`](Self::recv_from), for a task.
    ///
    /// # Errors
    /// As for [`recv_from`](Self::recv_from), except `WouldBlock`; once, if the thread for wakers cannot be started.
    pub fn poll_recv_from(
        &self,
        cx: &mut Context<'_>,
        out: &mut [u8],
    ) -> Poll<io::Result<(usize, SocketAddr)>> {
        let received = self.poll_recv_whole(cx, out);
        received.map_ok(|(len, addresses)| (len, self.from(addresses)))
    }

    /// As [`peek_from`](Self::peek_from), for a task.
    ///
    /// # Errors
    /// As for [`poll_recv_from`](Self::poll_recv_from).
    pub fn poll_peek_from(
        &self,
        cx: &mut Context<'_>,
        out: &mut [u8],
    ) -> Poll<io::Result<(usize, SocketAddr)>> {
        let seen = self.poll_peek_whole(cx, out);
        seen.map_ok(|(len, addresses)| (len, self.from(addresses)))
    }

    /// As [`recv`](Self::recv), for a task.
    ///
    /// # Errors
    /// As for [`poll_recv_from`](Self::poll_recv_from).
    pub fn poll_recv(&self, cx: &mut Context<'_>, out: &mut [u8]) -> Poll<io::Result<usize>> {
        self.poll_recv_whole(cx, out).map_ok(|(len, _)| len)
    }

    /// As [`peek`](Self::peek), for a task.
    ///
    /// # Errors
    /// As for [`poll_recv_from`](Self::poll_recv_from).
    pub fn poll_peek(&self, cx: &mut Context<'_>, out: &mut [u8]) -> Poll<io::Result<usize>> {
        self.poll_peek_whole(cx, out).map_ok(|(len, _)| len)
    }

    /// As [`send_to`](Self::send_to), for a task.
    ///
    /// # Errors
    /// As for [`send_to`](Self::send_to), except `WouldBlock`; once, if the thread for wakers cannot be started.
    pub fn poll_send_to(
        &self,
        cx: &mut Context<'_>,
        bytes: &[u8],
        to: SocketAddr,
    ) -> Poll<io::Result<usize>> {
        self.is_peer(to)?;
        self.poll_send_one(cx, bytes, Addresses::to(to))
    }

    /// As [`send`](Self::send), for a task.
    ///
    /// # Errors
    /// As for [`poll_send_to`](Self::poll_send_to).
    pub fn poll_send(&self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_send_one(cx, bytes, Addresses::default())
    }

    fn poll_send_one(
        &self,
        cx: &mut Context<'_>,
        bytes: &[u8],
        addresses: Addresses,
    ) -> Poll<io::Result<usize>> {
        self.check(addresses, bytes.len())?;
        self.poll_send_datagram(cx, bytes, addresses)
    }

    /// As [`recv_from`](Self::recv_from), for any executor.
    ///
    /// # Errors
    /// As for [`poll_recv_from`](Self::poll_recv_from).
    pub async fn recv_from_async(&self, out: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
        poll_fn(|cx| self.poll_recv_from(cx, out)).await
    }

    /// As [`peek_from`](Self::peek_from), for any executor.
    ///
    /// # Errors
    /// As for [`poll_recv_from`](Self::poll_recv_from).
    pub async fn peek_from_async(&self, out: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
        poll_fn(|cx| self.poll_peek_from(cx, out)).await
    }

    /// As [`recv`](Self::recv), for any executor.
    ///
    /// # Errors
    /// As for [`poll_recv_from`](Self::poll_recv_from).
    pub async fn recv_async(&self, out: &mut [u8]) -> io::Result<usize> {
        poll_fn(|cx| self.poll_recv(cx, out)).await
    }

    /// As [`recv_many`](Self::recv_many), for any executor.
    ///
    /// # Errors
    /// As for [`recv_many`](Self::recv_many), except `WouldBlock`.
    pub async fn recv_many_async(
        &self,
        datagrams: &mut Vec<Datagram>,
        max: usize,
    ) -> io::Result<usize> {
        poll_fn(|cx| self.poll_recv_datagrams(cx, datagrams, max)).await
    }

    /// As [`send_to`](Self::send_to), for any executor.
    ///
    /// # Errors
    /// As for [`poll_send_to`](Self::poll_send_to).
    pub async fn send_to_async(&self, bytes: &[u8], to: SocketAddr) -> io::Result<usize> {
        poll_fn(|cx| self.poll_send_to(cx, bytes, to)).await
    }

    /// As [`send`](Self::send), for any executor.
    ///
    /// # Errors
    /// As for [`poll_send_to`](Self::poll_send_to).
    pub async fn send_async(&self, bytes: &[u8]) -> io::Result<usize> {
        poll_fn(|cx| self.poll_send(cx, bytes)).await
    }

    /// As [`send_many`](Self::send_many), for any executor.
    ///
    /// # Errors
    /// As for [`send_many`](Self::send_many), except `WouldBlock`.
    pub async fn send_many_async(&self, datagrams: &mut Vec<Datagram>) -> io::Result<usize> {
        poll_fn(|cx| {
            self.check_first(datagrams)?;
            self.poll_send_datagrams(cx, datagrams)
        })
        .await
    }
}
