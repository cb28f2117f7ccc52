//! F07 `splice_listen`, with a listening socket of a stack.

use crate::{FREEBSD, OPENBSD, Process, Splice};
use sosplice::error::{Errno, Flavor};
use sosplice::protocol::SoState;
use sosplice::{Stack, TcpListener, link};
use std::io::ErrorKind;
use std::net::SocketAddr;

/// A stack, an address of it, and the other end of its link, without which the stack is down.
struct Host {
    stack: Stack,
    address: SocketAddr,
    _other: link::memory::MemoryLink,
}

fn host(flavor: Flavor) -> Host {
    let (link, _other) = link::memory::pair(link::memory::Config::default());
    let address = "10.0.0.1/24".parse().unwrap();
    let stack = Stack::builder(link).address(address).flavor(flavor);
    Host {
        stack: stack.build().unwrap(),
        address: "10.0.0.1:80".parse().unwrap(),
        _other,
    }
}

impl Host {
    fn listen(&self) -> std::io::Result<TcpListener> {
        TcpListener::bind(&self.stack, self.address)
    }
}

// Row: the counter of a listening socket | `ENOTCONN` | 0 | 0
#[test]
fn f07_splice_listen() {
    for (abi, as_either, as_unspliced) in [
        (FREEBSD, Errno::EINVAL, Errno::EINVAL),
        (OPENBSD, Errno::EOPNOTSUPP, Errno::EPROTO),
    ] {
        let process = Process::new(abi);
        let ((left, _a), (right, _b)) = (process.connect(), process.connect());
        assert_eq!(process.splice(left, Splice::to(right)), Ok(()));
        let (third, _c) = process.connect();
        let host = host(abi.flavor);
        let listener = host.listen().unwrap();
        let listening = process.table.insert(listener.as_ref().clone()).unwrap();

        let splice = |source, sink| process.splice(source, Splice::to(sink));
        assert_eq!(splice(third, listening), Err(as_either));
        assert_eq!(splice(listening, third), Err(as_either));
        assert_eq!(splice(listening, listening), Err(as_either));
        let unsplice = process.splice(listening, Splice::UNSPLICE);
        assert_eq!(unsplice, Err(as_unspliced));
        assert_eq!(process.count(listening), 0);
        assert!(process.is_source(left), "the other splice continues");
    }
}

#[test]
fn a_listener_as_a_socket_has_no_bytes_and_keeps_nothing_open() {
    let host = host(Flavor::OpenBsd);
    let listener = host.listen().unwrap();
    let socket = listener.as_ref().clone();
    socket.set_nonblocking(true);
    assert_eq!(socket.protocol().so_state(), SoState::Listening);
    assert_eq!(socket.flavor(), Flavor::OpenBsd);
    assert_eq!(socket.recv(&mut [0]).unwrap(), 0);
    assert_eq!(socket.send(b"x").unwrap_err().kind(), ErrorKind::BrokenPipe);

    assert_eq!(host.listen().unwrap_err().kind(), ErrorKind::AddrInUse);
    drop(listener);
    assert_eq!(socket.protocol().so_state(), SoState::Listening);
    let again = host.listen().unwrap();
    // Nor does closing the socket close the listener.
    again.as_ref().abort();
    drop(again.as_ref().clone());
    assert_eq!(host.listen().unwrap_err().kind(), ErrorKind::AddrInUse);
}
