//! Destinations that refuse, that are unreachable and that do not answer, and peers that vanish: the
//! errors and times of connections of a stack over a TUN and of the operating system. Needs root,
//! otherwise skipped with a message.
//!
//! ```text
//!   namespace R, a router: t0 10.77.0.1, behind it our stack 10.77.0.2
//!                          v0 10.76.0.1 --- v0 10.76.0.2, namespace P: peers
//! ```
//!
//! R forwards, or refuses by ICMP (`unreachable`, `prohibit`), drops silently (`blackhole`), or its
//! link to P is down. Lower bounds of times are exact; upper ones allow for a busy machine.
#![cfg(target_os = "linux")]
#![allow(missing_docs, clippy::unwrap_used, reason = "tests")]

#[path = "support/namespace.rs"]
mod namespace;

use namespace::{Namespace, available};
use sosplice::clock::{Clock, SystemClock};
use sosplice::error::SoError;
use sosplice::kernel::KernelStream;
use sosplice::link::tun::Tun;
use sosplice::splice::{Cause, Options};
use sosplice::stack::KeepAlive;
use sosplice::{Socket, Stack, TcpStream, local};
use std::io::{ErrorKind, Read};
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::time::{Duration, Instant};

/// A closed port.
const CLOSED_PORT: u16 = 9;
/// How long an attempt of ours to connect may take.
const CONNECT: Duration = ms(2000);
/// More than any of these waits takes.
const LIMIT: Duration = Duration::from_secs(30);

const fn ms(count: u64) -> Duration {
    Duration::from_millis(count)
}

/// Fails unless the time since `start` is at least `least`, and not very much more.
#[track_caller]
fn took(start: Instant, least: Duration) {
    let time = SystemClock.now() - start;
    assert!(time >= least, "{time:?}, before its time of {least:?}");
    assert!(time < least + ms(3000), "{time:?} instead of {least:?}");
}

/// Whose connections are tested.
#[derive(Debug, Clone, Copy)]
enum Whose {
    Ours,
    Kernel,
}

struct Scene {
    router: Namespace,
    peers: Namespace,
    stack: Stack,
}

impl Scene {
    fn new(test: &str) -> Option<Scene> {
        if !available(test) {
            return None;
        }
        let router = Namespace::new("r");
        let peers = Namespace::new("p");
        router.tun("t0", &["10.77.0.1/24", "fd77::1/64"], 1500);
        router.ip(&format!(
            "link add v0 type veth peer name v0 netns {}",
            peers.name()
        ));
        for (namespace, last) in [(&router, 1), (&peers, 2)] {
            namespace.ip(&format!("addr add 10.76.0.{last}/24 dev v0"));
            namespace.ip(&format!("addr add fd76::{last}/64 dev v0 nodad"));
            namespace.ip("link set v0 up");
        }
        peers.ip("route add default via 10.76.0.1");
        peers.ip("route add default via fd76::1");
        for what in [
            "unreachable 10.75.1.0/24",
            "prohibit 10.75.2.0/24",
            "blackhole 10.75.3.0/24",
        ] {
            router.ip(&format!("route add {what}"));
        }
        for what in [
            "unreachable fd75:1::/64",
            "prohibit fd75:2::/64",
            "blackhole fd75:3::/64",
        ] {
            router.ip(&format!("route add {what}"));
        }
        router.enter(|| {
            std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap();
            std::fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "1").unwrap();
        });
        let tun = Tun::builder("t0").netns(router.name()).build().unwrap();
        let stack = Stack::builder(tun)
            .address("10.77.0.2/24".parse().unwrap())
            .address("fd77::2/64".parse().unwrap())
            .connect_timeout(CONNECT)
            .build()
            .unwrap();
        let scene = Scene {
            router,
            peers,
            stack,
        };
        scene.settle();
        Some(scene)
    }

    /// Waits until the router has found the peers' hardware addresses.
    fn settle(&self) {
        let start = SystemClock.now();
        for peer in PEERS {
            let at = SocketAddr::new(peer, CLOSED_PORT);
            let dial = || std::net::TcpStream::connect_timeout(&at, ms(500)).unwrap_err();
            while self.router.enter(dial).kind() != ErrorKind::ConnectionRefused {
                assert!(SystemClock.now() - start < LIMIT, "{peer} does not answer");
            }
        }
    }

    fn connect(
        &self,
        whose: Whose,
        to: SocketAddr,
        within: Duration,
    ) -> std::io::Result<Connection> {
        Ok(match whose {
            Whose::Ours => Connection::Ours(TcpStream::connect_timeout(&self.stack, to, within)?),
            Whose::Kernel => {
                let connect = || KernelStream::connect_timeout(to, within);
                Connection::Kernel(self.router.enter(connect)?)
            }
        })
    }

    /// A connection to a peer, and the peer's end of it.
    fn connected(&self, whose: Whose, peer: IpAddr) -> (Connection, std::net::TcpStream) {
        let at = SocketAddr::new(peer, 0);
        let listener = self.peers.enter(|| TcpListener::bind(at).unwrap());
        let to = listener.local_addr().unwrap();
        let connection = self.connect(whose, to, LIMIT).unwrap();
        let (accepted, _) = listener.accept().unwrap();
        accepted.set_read_timeout(Some(LIMIT)).unwrap();
        (connection, accepted)
    }

    /// The peers vanish, and the router does not notice: it has their hardware addresses.
    fn vanish(&self) {
        let address = "02:00:00:00:00:01";
        for peer in ["10.76.0.2", "fd76::2"] {
            self.router.ip(&format!(
                "neigh replace {peer} lladdr {address} nud permanent dev v0"
            ));
        }
        self.peers.ip("link set v0 down");
    }
}

/// A connection of either kind.
enum Connection {
    Ours(TcpStream),
    Kernel(KernelStream),
}

impl std::ops::Deref for Connection {
    type Target = Socket;
    fn deref(&self) -> &Socket {
        match self {
            Connection::Ours(stream) => stream,
            Connection::Kernel(stream) => stream,
        }
    }
}

impl AsRef<Socket> for Connection {
    fn as_ref(&self) -> &Socket {
        self
    }
}

impl Connection {
    fn set_user_timeout(&self, timeout: Duration) {
        match self {
            Connection::Ours(stream) => stream.set_user_timeout(timeout),
            Connection::Kernel(stream) => stream.set_user_timeout(Some(timeout)),
        }
        .unwrap();
    }

    fn set_keep_alive(&self, keep_alive: KeepAlive) {
        match self {
            Connection::Ours(stream) => stream.set_keep_alive(Some(keep_alive)),
            Connection::Kernel(stream) => stream.set_keep_alive(Some(keep_alive)),
        }
        .unwrap();
    }
}

const PEERS: [IpAddr; 2] = [
    IpAddr::V4(std::net::Ipv4Addr::new(10, 76, 0, 2)),
    IpAddr::V6(std::net::Ipv6Addr::new(0xfd76, 0, 0, 0, 0, 0, 0, 2)),
];
const WHOSE: [Whose; 2] = [Whose::Ours, Whose::Kernel];

/// Both kinds of connection, over both versions of IP.
fn everyone() -> impl Iterator<Item = (Whose, IpAddr)> {
    WHOSE
        .into_iter()
        .flat_map(|whose| PEERS.map(|peer| (whose, peer)))
}

#[test]
fn a_sink_whose_peer_vanished_ends_after_the_user_timeout() {
    for (whose, peer) in everyone() {
        let Some(scene) = Scene::new("a_sink_whose_peer_vanished_ends_after_the_user_timeout")
        else {
            return;
        };
        let (sink, mut accepted) = scene.connected(whose, peer);
        sink.set_user_timeout(ms(2000));
        let (user, source) = local::pair();
        let splice = source.splice_to(&sink, Options::default()).unwrap();
        user.send(b"before").unwrap();
        accepted.read_exact(&mut [0; 6]).unwrap();
        scene.vanish();
        let start = SystemClock.now();
        user.send(b"after").unwrap();
        let end = splice.wait_timeout(LIMIT).expect("the splice ends");
        assert_eq!(
            end.cause,
            Cause::SinkError(SoError::TimedOut),
            "{whose:?} {peer}"
        );
        assert_eq!(end.bytes, 11);
        took(start, ms(2000));
    }
}

#[test]
fn a_source_whose_peer_vanished_ends_after_its_keep_alive() {
    for (whose, peer) in everyone() {
        let Some(scene) = Scene::new("a_source_whose_peer_vanished_ends_after_its_keep_alive")
        else {
            return;
        };
        let (source, _accepted) = scene.connected(whose, peer);
        let (sink, user) = local::pair();
        let options = Options::default().forward_reset(true);
        let splice = source.splice_to(&sink, options).unwrap();
        scene.vanish();
        let start = SystemClock.now();
        source.set_keep_alive(KeepAlive {
            idle: ms(1000),
            interval: ms(1000),
            probes: 2,
        });
        let end = splice.wait_timeout(LIMIT).expect("the splice ends");
        assert_eq!(
            end.cause,
            Cause::SourceError(SoError::TimedOut),
            "{whose:?} {peer}"
        );
        took(start, ms(3000));
        // The peer behind the splice is notified too.
        let error = user.recv(&mut [0]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    }
}

/// The results of connecting to these destinations, and the start times. The caller waits for `within`.
fn dial(
    scene: &Scene,
    whose: Whose,
    within: Duration,
    destinations: [(&str, u16); 2],
) -> [(ErrorKind, Instant); 2] {
    destinations.map(|(to, port)| {
        let start = SystemClock.now();
        let to = SocketAddr::new(to.parse().unwrap(), port);
        let error = scene.connect(whose, to, within).map(drop).unwrap_err();
        (error.kind(), start)
    })
}

#[test]
fn a_refusing_destination_fails_at_once() {
    let Some(scene) = Scene::new("a_refusing_destination_fails_at_once") else {
        return;
    };
    let closed = [("10.76.0.2", CLOSED_PORT), ("fd76::2", CLOSED_PORT)];
    for whose in WHOSE {
        for (kind, start) in dial(&scene, whose, LIMIT, closed) {
            assert_eq!(kind, ErrorKind::ConnectionRefused, "{whose:?}");
            took(start, ms(0));
        }
    }
}

#[test]
fn a_prohibited_destination_fails_at_once() {
    let Some(scene) = Scene::new("a_prohibited_destination_fails_at_once") else {
        return;
    };
    let prohibited = [("10.75.2.1", 80), ("fd75:2::1", 80)];
    for (kind, start) in dial(&scene, Whose::Ours, LIMIT, prohibited) {
        assert_eq!(kind, ErrorKind::HostUnreachable);
        took(start, ms(0));
    }
}

#[test]
fn connecting_to_an_unreachable_network_fails() {
    let Some(scene) = Scene::new("connecting_to_an_unreachable_network_fails") else {
        return;
    };
    let closed = [("10.75.1.1", 80), ("fd75:1::1", 80)];
    // Routes may recover, so the router's report is used when the time is over.
    for (kind, start) in dial(&scene, Whose::Ours, LIMIT, closed) {
        assert_eq!(kind, ErrorKind::HostUnreachable);
        took(start, CONNECT);
    }
    // The router itself does not even try.
    for (kind, start) in dial(&scene, Whose::Kernel, LIMIT, closed) {
        assert_eq!(kind, ErrorKind::HostUnreachable);
        took(start, ms(0));
    }
}

#[test]
fn a_black_hole_is_given_up_after_the_connect_timeout() {
    let Some(scene) = Scene::new("a_black_hole_is_given_up_after_the_connect_timeout") else {
        return;
    };
    let hole = [("10.75.3.1", 80), ("fd75:3::1", 80)];
    for (kind, start) in dial(&scene, Whose::Ours, LIMIT, hole) {
        assert_eq!(kind, ErrorKind::TimedOut);
        took(start, CONNECT);
    }
    scene.vanish();
    let gone = [("10.76.0.2", 80), ("fd76::2", 80)];
    for whose in WHOSE {
        // The caller does not wait longer.
        for (kind, start) in dial(&scene, whose, ms(1000), gone) {
            assert_eq!(kind, ErrorKind::TimedOut, "{whose:?}");
            took(start, ms(1000));
        }
    }
}
