//! Both kinds of sockets behind one trait. The methods have std's names and shapes.

use rustix::net::sockopt;
use sosplice::link::memory;
use sosplice::{Socket, Stack};
use std::io::{self, ErrorKind, IoSlice, IoSliceMut, Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::time::Duration;

/// Nothing takes this long; a test that waits for it has failed.
pub(crate) const LIMIT: Duration = Duration::from_secs(10);

pub(crate) trait Stream: Sized + Send + Sync + 'static {
    fn read(&self, out: &mut [u8]) -> io::Result<usize>;
    fn read_vectored(&self, out: &mut [IoSliceMut<'_>]) -> io::Result<usize>;
    fn write(&self, bytes: &[u8]) -> io::Result<usize>;
    fn write_vectored(&self, bytes: &[IoSlice<'_>]) -> io::Result<usize>;
    fn peek(&self, out: &mut [u8]) -> io::Result<usize>;
    fn shutdown(&self, how: Shutdown) -> io::Result<()>;
    fn try_clone(&self) -> io::Result<Self>;
    fn set_nonblocking(&self, nonblocking: bool);
    fn set_read_timeout(&self, timeout: Option<Duration>) -> io::Result<()>;
    fn set_write_timeout(&self, timeout: Option<Duration>) -> io::Result<()>;
    fn read_timeout(&self) -> Option<Duration>;
    fn write_timeout(&self) -> Option<Duration>;
    fn set_nodelay(&self, nodelay: bool);
    fn nodelay(&self) -> bool;
    fn set_ttl(&self, ttl: u32) -> io::Result<()>;
    fn ttl(&self) -> u32;
    fn set_linger(&self, linger: Option<Duration>);
    fn linger(&self) -> Option<Duration>;
    fn local_addr(&self) -> SocketAddr;
    fn peer_addr(&self) -> io::Result<SocketAddr>;
    fn take_error(&self) -> Option<ErrorKind>;

    fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            bytes = &bytes[self.write(bytes)?..];
        }
        Ok(())
    }

    /// Everything until the end.
    fn read_all(&self) -> io::Result<Vec<u8>> {
        let mut all = Vec::new();
        let mut part = [0; 4096];
        loop {
            match self.read(&mut part)? {
                0 => return Ok(all),
                count => all.extend_from_slice(&part[..count]),
            }
        }
    }

    fn read_error(&self) -> Option<ErrorKind> {
        self.read(&mut [0; 1]).err().map(|error| error.kind())
    }

    fn write_error(&self) -> Option<ErrorKind> {
        self.write(b"x").err().map(|error| error.kind())
    }
}

pub(crate) trait Listener: Sized + Send + 'static {
    type Stream: Stream;
    fn accept(&self) -> io::Result<(Self::Stream, SocketAddr)>;
    fn incoming(&self) -> impl Iterator<Item = io::Result<Self::Stream>>;
    fn try_clone(&self) -> io::Result<Self>;
    fn set_nonblocking(&self, nonblocking: bool);
    fn local_addr(&self) -> SocketAddr;
}

pub(crate) trait Net {
    type Stream: Stream;
    type Listener: Listener<Stream = Self::Stream>;

    /// Where servers listen, at port 0.
    fn server(&self) -> SocketAddr;
    fn bind(&self, to: &[SocketAddr]) -> io::Result<Self::Listener>;
    /// A listener with room for one connection, which is not accepted.
    fn bind_narrow(&self) -> Self::Listener;
    fn connect(&self, to: &[SocketAddr]) -> io::Result<Self::Stream>;
    fn connect_timeout(&self, to: SocketAddr, timeout: Duration) -> io::Result<Self::Stream>;
    /// Selects the system's value, or ours, of a difference.
    fn either<T>(&self, system: T, ours: T) -> T;

    fn listen(&self) -> Self::Listener {
        self.bind(&[self.server()]).unwrap()
    }

    /// A connection whose sides wait for [`LIMIT`] at most: of the client and of the server.
    fn pair(&self) -> (Self::Stream, Self::Stream) {
        let listener = self.listen();
        let client = self.connect(&[listener.local_addr()]).unwrap();
        let (server, _) = listener.accept().unwrap();
        for side in [&client, &server] {
            side.set_read_timeout(Some(LIMIT)).unwrap();
            side.set_write_timeout(Some(LIMIT)).unwrap();
        }
        (client, server)
    }
}

/// A result or a value, where std has one and this crate the other.
trait Fine<T> {
    fn fine(self) -> T;
}

impl<T> Fine<T> for io::Result<T> {
    fn fine(self) -> T {
        self.unwrap()
    }
}

macro_rules! values {
    ($($value:ty)*) => { $(
        impl Fine<$value> for $value {
            fn fine(self) -> $value {
                self
            }
        }
    )* };
}

values!(() bool u32 SocketAddr Option<Duration>);

/// The parts of std's shape that both have by the same names. `$socket` has the methods of `$stream`
/// that are not its own.
macro_rules! same {
    ($stream:ty, $socket:ty) => {
        fn read(&self, out: &mut [u8]) -> io::Result<usize> {
            Read::read(&mut &*self, out)
        }
        fn read_vectored(&self, out: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
            Read::read_vectored(&mut &*self, out)
        }
        fn write(&self, bytes: &[u8]) -> io::Result<usize> {
            Write::write(&mut &*self, bytes)
        }
        fn write_vectored(&self, bytes: &[IoSlice<'_>]) -> io::Result<usize> {
            Write::write_vectored(&mut &*self, bytes)
        }
        fn peek(&self, out: &mut [u8]) -> io::Result<usize> {
            <$socket>::peek(self, out)
        }
        fn shutdown(&self, how: Shutdown) -> io::Result<()> {
            <$stream>::shutdown(self, how)
        }
        fn try_clone(&self) -> io::Result<Self> {
            <$stream>::try_clone(self)
        }
        fn set_nonblocking(&self, nonblocking: bool) {
            <$socket>::set_nonblocking(self, nonblocking).fine();
        }
        fn set_read_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
            <$socket>::set_read_timeout(self, timeout)
        }
        fn set_write_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
            <$socket>::set_write_timeout(self, timeout)
        }
        fn read_timeout(&self) -> Option<Duration> {
            <$socket>::read_timeout(self).fine()
        }
        fn write_timeout(&self) -> Option<Duration> {
            <$socket>::write_timeout(self).fine()
        }
        fn set_nodelay(&self, nodelay: bool) {
            <$stream>::set_nodelay(self, nodelay).fine();
        }
        fn nodelay(&self) -> bool {
            <$stream>::nodelay(self).fine()
        }
        fn set_ttl(&self, ttl: u32) -> io::Result<()> {
            <$stream>::set_ttl(self, ttl)
        }
        fn ttl(&self) -> u32 {
            <$stream>::ttl(self).fine()
        }
        fn local_addr(&self) -> SocketAddr {
            <$stream>::local_addr(self).fine()
        }
    };
}

macro_rules! listener {
    ($listener:ty, $stream:ty) => {
        impl Listener for $listener {
            type Stream = $stream;
            fn accept(&self) -> io::Result<($stream, SocketAddr)> {
                <$listener>::accept(self)
            }
            fn incoming(&self) -> impl Iterator<Item = io::Result<$stream>> {
                <$listener>::incoming(self)
            }
            fn try_clone(&self) -> io::Result<Self> {
                <$listener>::try_clone(self)
            }
            fn set_nonblocking(&self, nonblocking: bool) {
                <$listener>::set_nonblocking(self, nonblocking).fine();
            }
            fn local_addr(&self) -> SocketAddr {
                <$listener>::local_addr(self).fine()
            }
        }
    };
}

listener!(std::net::TcpListener, std::net::TcpStream);
listener!(sosplice::TcpListener, sosplice::TcpStream);

impl Stream for std::net::TcpStream {
    same!(std::net::TcpStream, std::net::TcpStream);
    fn set_linger(&self, linger: Option<Duration>) {
        sockopt::set_socket_linger(self, linger).unwrap();
    }
    fn linger(&self) -> Option<Duration> {
        sockopt::socket_linger(self).unwrap()
    }
    fn peer_addr(&self) -> io::Result<SocketAddr> {
        std::net::TcpStream::peer_addr(self)
    }
    fn take_error(&self) -> Option<ErrorKind> {
        let error = std::net::TcpStream::take_error(self).unwrap();
        error.map(|error| error.kind())
    }
}

impl Stream for sosplice::TcpStream {
    same!(sosplice::TcpStream, Socket);
    fn set_linger(&self, linger: Option<Duration>) {
        sosplice::TcpStream::set_linger(self, linger);
    }
    fn linger(&self) -> Option<Duration> {
        sosplice::TcpStream::linger(self)
    }
    fn peer_addr(&self) -> io::Result<SocketAddr> {
        Ok(sosplice::TcpStream::peer_addr(self))
    }
    fn take_error(&self) -> Option<ErrorKind> {
        Socket::take_error(self).map(|error| io::Error::from(error).kind())
    }
}

/// The kernel's sockets, on loopback.
pub(crate) struct System;

impl Net for System {
    type Stream = std::net::TcpStream;
    type Listener = std::net::TcpListener;

    fn server(&self) -> SocketAddr {
        ([127, 0, 0, 1], 0).into()
    }
    fn bind(&self, to: &[SocketAddr]) -> io::Result<Self::Listener> {
        std::net::TcpListener::bind(to)
    }
    fn bind_narrow(&self) -> Self::Listener {
        let listener = self.listen();
        rustix::net::listen(&listener, 0).unwrap();
        listener
    }
    fn connect(&self, to: &[SocketAddr]) -> io::Result<Self::Stream> {
        std::net::TcpStream::connect(to)
    }
    fn connect_timeout(&self, to: SocketAddr, timeout: Duration) -> io::Result<Self::Stream> {
        std::net::TcpStream::connect_timeout(&to, timeout)
    }
    fn either<T>(&self, system: T, _ours: T) -> T {
        system
    }
}

/// This crate's, with a stack on each side.
pub(crate) struct Ours {
    server: Stack,
    client: Stack,
}

impl Ours {
    pub(crate) fn new() -> Ours {
        let (a, b) = memory::pair(memory::Config::default());
        let build = |link, address: &str| {
            let builder = Stack::builder(link).address(address.parse().unwrap());
            // A backlog of one that a handshake fills for a moment is to be full, as it is a moment later.
            builder.syn_cookies(false).build().unwrap()
        };
        Ours {
            server: build(a, "10.0.0.1/24"),
            client: build(b, "10.0.0.2/24"),
        }
    }
}

impl Net for Ours {
    type Stream = sosplice::TcpStream;
    type Listener = sosplice::TcpListener;

    fn server(&self) -> SocketAddr {
        ([10, 0, 0, 1], 0).into()
    }
    fn bind(&self, to: &[SocketAddr]) -> io::Result<Self::Listener> {
        sosplice::TcpListener::bind(&self.server, to)
    }
    fn bind_narrow(&self) -> Self::Listener {
        sosplice::TcpListener::bind_with_backlog(&self.server, self.server(), 1).unwrap()
    }
    fn connect(&self, to: &[SocketAddr]) -> io::Result<Self::Stream> {
        sosplice::TcpStream::connect(&self.client, to)
    }
    fn connect_timeout(&self, to: SocketAddr, timeout: Duration) -> io::Result<Self::Stream> {
        sosplice::TcpStream::connect_timeout(&self.client, to, timeout)
    }
    fn either<T>(&self, _system: T, ours: T) -> T {
        ours
    }
}
