//! The kernel's sockets, over loopback.

use rustix::net::sockopt::{set_socket_recv_buffer_size, set_socket_send_buffer_size};
use sosplice::Socket;
use sosplice::conformance::{Factory, Setup};
use sosplice::kernel::KernelStream;
use std::net::{TcpListener, TcpStream};

pub(crate) fn loopback() -> Box<dyn Factory> {
    Box::new(Loopback)
}

struct Loopback;

impl Factory for Loopback {
    fn stands_still(&self) -> bool {
        false
    }

    fn connect(&self, setup: Setup) -> (Socket, Socket) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        // Small kernel buffers; the accepted socket inherits them.
        set_socket_recv_buffer_size(&listener, 16_384).unwrap();
        set_socket_send_buffer_size(&listener, 16_384).unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (server, _) = listener.accept().unwrap();
        set_socket_send_buffer_size(&client, 16_384).unwrap();
        let socket = |stream: TcpStream| {
            let stream = KernelStream::from_std(stream).unwrap();
            stream.set_nodelay(true).unwrap();
            stream.set_rcv_hiwat(setup.rcv_hiwat);
            stream.set_snd_hiwat(setup.snd_hiwat);
            stream.as_ref().clone()
        };
        (socket(client), socket(server))
    }
}
