//! Sockets for datagrams of every kind, in pairs that are connected to each other.

use sosplice::clock::{Clock, SystemClock};
use sosplice::kernel::KernelUdp;
use sosplice::link::memory;
use sosplice::stack::UdpSocket;
use sosplice::{Socket, Stack, local};
use std::sync::LazyLock;
use std::thread;
use std::time::Duration;

/// More than anything here takes.
pub(crate) const LIMIT: Duration = Duration::from_secs(30);

/// A kind of sockets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Memory,
    Stack,
    Kernel,
}

pub(crate) const KINDS: [Kind; 3] = [Kind::Memory, Kind::Stack, Kind::Kernel];

/// Two stacks on one link.
pub(crate) struct Net {
    pub(crate) near: Stack,
    pub(crate) far: Stack,
}

pub(crate) static NET: LazyLock<Net> = LazyLock::new(|| {
    let (a, b) = memory::pair(memory::Config::default().frames(4096).bytes(64 << 20));
    let stack = |link, v4: &str, v6: &str| {
        Stack::builder(link)
            .address(v4.parse().unwrap())
            .address(v6.parse().unwrap())
            .build()
            .unwrap()
    };
    Net {
        near: stack(a, "10.0.0.1/24", "fd00::1/64"),
        far: stack(b, "10.0.0.2/24", "fd00::2/64"),
    }
});

/// Two sockets that are connected to each other: the program's, and the one that is spliced.
#[derive(Debug)]
pub(crate) struct Pair {
    pub(crate) user: Socket,
    pub(crate) inside: Socket,
}

impl Kind {
    pub(crate) fn pair(self, v4: bool) -> Pair {
        let [user, inside] = match self {
            Kind::Memory => <[Socket; 2]>::from(local::datagram_pair()),
            Kind::Stack => {
                let (user, inside) = stack_pair(v4);
                [(*user).clone(), (*inside).clone()]
            }
            Kind::Kernel => kernel_pair(v4).map(|socket| (*socket).clone()),
        };
        for socket in [&user, &inside] {
            socket.set_read_timeout(Some(LIMIT)).unwrap();
            socket.set_write_timeout(Some(LIMIT)).unwrap();
        }
        Pair { user, inside }
    }
}

pub(crate) fn stack_pair(v4: bool) -> (UdpSocket, UdpSocket) {
    let (near, far) = match v4 {
        true => ("10.0.0.1:0", "10.0.0.2:0"),
        false => ("[fd00::1]:0", "[fd00::2]:0"),
    };
    let user = UdpSocket::bind(&NET.near, near).unwrap();
    let inside = UdpSocket::bind(&NET.far, far).unwrap();
    user.connect(inside.local_addr()).unwrap();
    inside.connect(user.local_addr()).unwrap();
    (user, inside)
}

fn kernel_pair(v4: bool) -> [KernelUdp; 2] {
    let any = if v4 { "127.0.0.1:0" } else { "[::1]:0" };
    let pair = [(), ()].map(|()| std::net::UdpSocket::bind(any).unwrap());
    let [a, b] = [&pair[0], &pair[1]].map(|socket| socket.local_addr().unwrap());
    pair[0].connect(b).unwrap();
    pair[1].connect(a).unwrap();
    pair.map(|socket| KernelUdp::from_std(socket).unwrap())
}

/// Waits for one datagram.
#[track_caller]
pub(crate) fn read(socket: &Socket) -> Vec<u8> {
    let mut bytes = vec![0; 70_000];
    let len = socket.recv(&mut bytes).unwrap();
    bytes.truncate(len);
    bytes
}

/// Fails if `done` does not become true.
#[track_caller]
pub(crate) fn eventually(what: &str, done: impl Fn() -> bool) {
    let start = SystemClock.now();
    while !done() {
        assert!(SystemClock.now() - start < LIMIT, "timeout: {what}");
        thread::yield_now();
    }
}
