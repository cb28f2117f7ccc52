//! A socket of either protocol.

use sosplice::{Socket, TcpStream};
use std::ops::Deref;

/// A handle of a connection, over TCP or in memory.
#[derive(Debug, Clone)]
pub(crate) enum Handle {
    Tcp(TcpStream),
    Local(Socket),
}

impl Deref for Handle {
    type Target = Socket;

    fn deref(&self) -> &Socket {
        match self {
            Handle::Tcp(stream) => stream,
            Handle::Local(socket) => socket,
        }
    }
}

impl AsRef<Socket> for Handle {
    fn as_ref(&self) -> &Socket {
        self
    }
}

impl From<TcpStream> for Handle {
    fn from(stream: TcpStream) -> Handle {
        Handle::Tcp(stream)
    }
}

impl From<Socket> for Handle {
    fn from(socket: Socket) -> Handle {
        Handle::Local(socket)
    }
}
