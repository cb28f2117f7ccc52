//! F07 `splice_listen`, with a listening socket of a stack.

use crate::{FREEBSD, OPENBSD, Process, Splice};
use sosplice::error::{Errno, Flavor};
use sosplice::protocol::SoState;
use sosplice::{Stack, TcpListener, link};
use std::net::SocketAddr;

fn stack(flavor: Flavor) -> (Stack, SocketAddr) {
    let (link, _other) = link::memory::pair(link::memory::Config::default());
    let address = "10.0.0.1/24".parse().unwrap();
    let stack = Stack::builder(link).address(address).flavor(flavor);
    (stack.build().unwrap(), "10.0.0.1:80".parse().unwrap())
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
        let (stack, address) = stack(abi.flavor);
        let listener = TcpListener::bind(&stack, address).unwrap();
        let listening = process.table.insert(listener.as_ref().clone()).unwrap();

        let splice = |source, sink| process.splice(source, Splice::to(sink));
        assert_eq!(splice(third, listening), Err(as_either));
        assert_eq!(splice(listening, third), Err(as_either));
        assert_eq!(splice(listening, listening), Err(as_either));
        let unsplice = process.splice(listening, Splice::UNSPLICE);
        assert_eq!(unsplice, Err(as_unspliced));
        assert_eq!(process.count(listening), 0);
        assert!(process.is_source(left), "the other splice goes on");
    }
}

#[test]
fn a_listener_as_a_socket_has_no_bytes_and_keeps_nothing_open() {
    let (stack, address) = stack(Flavor::OpenBsd);
    let listener = TcpListener::bind(&stack, address).unwrap();
    let socket = listener.as_ref().clone();
    assert_eq!(socket.protocol().so_state(), SoState::Listening);
    assert_eq!(socket.flavor(), Flavor::OpenBsd);
    assert_eq!(socket.recv(&mut [0]).unwrap(), 0);
    assert!(socket.send(b"x").is_err());

    assert!(TcpListener::bind(&stack, address).is_err());
    drop(listener);
    assert_eq!(socket.protocol().so_state(), SoState::Listening);
    let again = TcpListener::bind(&stack, address).unwrap();
    // Nor does closing the socket close the listener.
    again.as_ref().abort();
    drop(again.as_ref().clone());
    assert!(TcpListener::bind(&stack, address).is_err());
}
