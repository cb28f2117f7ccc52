//! Streams: bytes, ends, clones, options.

use super::nets::{Listener, Net, Stream};
use std::io::{ErrorKind, IoSlice, IoSliceMut};
use std::net::{Shutdown, SocketAddr};
use std::thread;
use std::time::Duration;

pub(crate) fn addresses_are_those_of_the_other_side(net: &impl Net) {
    let listener = net.listen();
    let client = net.connect(&[listener.local_addr()]).unwrap();
    let (server, peer) = listener.accept().unwrap();
    assert_ne!(listener.local_addr().port(), 0);
    assert_eq!(peer, client.local_addr());
    assert_eq!(server.peer_addr().unwrap(), client.local_addr());
    assert_eq!(client.peer_addr().unwrap(), listener.local_addr());
    assert_eq!(server.local_addr(), listener.local_addr());
}

/// A closed port.
pub(crate) fn nobody(net: &impl Net) -> SocketAddr {
    net.listen().local_addr()
}

pub(crate) fn several_addresses_are_tried_in_turn(net: &impl Net) {
    let foreign: SocketAddr = ([192, 0, 2, 1], 0).into();
    let listener = net.bind(&[foreign, net.server()]).unwrap();
    let (bad, good) = (nobody(net), listener.local_addr());
    assert_eq!(good.ip(), net.server().ip());
    let client = net.connect(&[bad, good]).unwrap();
    assert_eq!(client.peer_addr().unwrap(), good);
    let kind = |to: &[SocketAddr]| net.connect(to).err().map(|error| error.kind());
    assert_eq!(kind(&[bad, bad]), Some(ErrorKind::ConnectionRefused));
    assert_eq!(kind(&[]), Some(ErrorKind::InvalidInput));
    let kind = net.bind(&[]).err().map(|error| error.kind());
    assert_eq!(kind, Some(ErrorKind::InvalidInput));
}

pub(crate) fn bytes_arrive_and_end(net: &impl Net) {
    let (client, server) = net.pair();
    let bytes: Vec<u8> = (0..1_000_000_u32)
        .map(|i| i.to_le_bytes()[i as usize % 2])
        .collect();
    thread::scope(|scope| {
        scope.spawn(|| {
            client.write_all(&bytes).unwrap();
            drop(client);
        });
        assert!(server.read_all().unwrap() == bytes);
    });
    assert_eq!(server.read(&mut [0; 9]).unwrap(), 0, "the end stays");
    assert_eq!(server.peek(&mut [0; 9]).unwrap(), 0);
}

pub(crate) fn vectors_are_gathered_and_scattered(net: &impl Net) {
    let (client, server) = net.pair();
    let parts = [&b"he"[..], b"", b"llo", b" world"].map(IoSlice::new);
    assert_eq!(client.write_vectored(&parts).unwrap(), 11);
    let (mut first, mut second) = ([0; 5], [0; 20]);
    while server.peek(&mut [0; 20]).unwrap() < 11 {}
    let mut into = [&mut first[..], &mut second].map(IoSliceMut::new);
    assert_eq!(server.read_vectored(&mut into).unwrap(), 11);
    assert_eq!((&first, &second[..6]), (b"hello", &b" world"[..]));
}

pub(crate) fn peek_leaves_the_bytes(net: &impl Net) {
    let (client, server) = net.pair();
    client.write_all(b"abc").unwrap();
    let mut out = [0; 2];
    for _ in 0..2 {
        assert_eq!(server.peek(&mut out).unwrap(), 2);
        assert_eq!(&out, b"ab");
    }
    drop(client);
    assert_eq!(server.read_all().unwrap(), b"abc");
}

pub(crate) fn nothing_to_read_into_reads_nothing(net: &impl Net) {
    let (client, server) = net.pair();
    assert_eq!(client.write(b"").unwrap(), 0);
    server.set_nonblocking(true);
    let empty = server.read(&mut []).map_err(|error| error.kind());
    assert_eq!(empty, net.either(Err(ErrorKind::WouldBlock), Ok(0)));
    server.set_nonblocking(false);
    client.write_all(b"abc").unwrap();
    assert_eq!(server.peek(&mut [0]).unwrap(), 1);
    assert_eq!(server.read(&mut []).unwrap(), 0);
    assert_eq!(server.peek(&mut []).unwrap(), 0);
    drop(client);
    assert_eq!(server.read_all().unwrap(), b"abc");
    assert_eq!(server.read(&mut []).unwrap(), 0);
}

pub(crate) fn a_clone_is_the_same_socket(net: &impl Net) {
    let (client, server) = net.pair();
    let other = client.try_clone().unwrap();
    other.set_nonblocking(true);
    assert_eq!(client.read_error(), Some(ErrorKind::WouldBlock));
    client.set_nonblocking(false);
    other
        .set_read_timeout(Some(Duration::from_secs(7)))
        .unwrap();
    other.set_ttl(9).unwrap();
    other.set_nodelay(false);
    assert_eq!(client.read_timeout(), Some(Duration::from_secs(7)));
    assert_eq!((client.ttl(), client.nodelay()), (9, false));
    assert_eq!(client.local_addr(), other.local_addr());
    client.write_all(b"one ").unwrap();
    drop(client);
    other.write_all(b"two").unwrap();
    drop(other);
    assert_eq!(server.read_all().unwrap(), b"one two");
}

pub(crate) fn listeners_are_cloned(net: &impl Net) {
    let listener = net.listen();
    let other = listener.try_clone().unwrap();
    let at = listener.local_addr();
    assert_eq!(other.local_addr(), at);
    let clients = [(); 2].map(|()| net.connect(&[at]).unwrap());
    let peers = [listener.accept().unwrap().1, other.accept().unwrap().1];
    for client in &clients {
        assert!(peers.contains(&client.local_addr()));
    }
    drop(listener);
    let client = net.connect(&[at]).unwrap();
    assert_eq!(other.accept().unwrap().1, client.local_addr());
    other.set_nonblocking(true);
    let nobody = other.accept().map(drop).unwrap_err();
    assert_eq!(nobody.kind(), ErrorKind::WouldBlock);
    drop(other);
    let refused = net.connect(&[at]).map(drop).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
}

pub(crate) fn incoming_connections_come_in_turn(net: &impl Net) {
    let listener = net.listen();
    let at = listener.local_addr();
    let clients = [(); 3].map(|()| net.connect(&[at]).unwrap());
    for (client, server) in clients.iter().zip(listener.incoming()) {
        assert_eq!(server.unwrap().peer_addr().unwrap(), client.local_addr());
    }
}

pub(crate) fn half_closed_both_ways(net: &impl Net) {
    for client_first in [true, false] {
        let (client, server) = net.pair();
        let (first, second) = match client_first {
            true => (client, server),
            false => (server, client),
        };
        first.write_all(b"question").unwrap();
        first.shutdown(Shutdown::Write).unwrap();
        assert_eq!(first.write_error(), Some(ErrorKind::BrokenPipe));
        assert_eq!(second.read_all().unwrap(), b"question");
        second.write_all(b"answer").unwrap();
        second.shutdown(Shutdown::Write).unwrap();
        assert_eq!(first.read_all().unwrap(), b"answer");
    }
}

/// While the connection lasts, in any order and again.
pub(crate) fn shutdown_in_all_combinations(net: &impl Net) {
    let all = [Shutdown::Read, Shutdown::Write, Shutdown::Both];
    for (first, second, third) in (0..27).map(|i| (all[i / 9], all[i / 3 % 3], all[i % 3])) {
        let (client, server) = net.pair();
        server.write_all(b"").unwrap();
        client.write_all(b"sent").unwrap();
        let hows = [first, second, third];
        for how in hows {
            client.shutdown(how).unwrap();
        }
        let read = hows.iter().any(|how| *how != Shutdown::Write);
        let write = hows.iter().any(|how| *how != Shutdown::Read);
        if read {
            assert_eq!(client.read(&mut [0; 9]).unwrap(), 0, "{hows:?}");
        } else {
            server.write_all(b"x").unwrap();
            assert_eq!(client.read(&mut [0; 9]).unwrap(), 1, "{hows:?}");
        }
        if write {
            assert_eq!(
                client.write_error(),
                Some(ErrorKind::BrokenPipe),
                "{hows:?}"
            );
        } else {
            client.write_all(b" more").unwrap();
            client.shutdown(Shutdown::Write).unwrap();
        }
        let sent = if write { &b"sent"[..] } else { b"sent more" };
        assert_eq!(server.read_all().unwrap(), sent, "{hows:?}");
    }
}

pub(crate) fn shutdown_read_wakes_the_reader(net: &impl Net) {
    for how in [Shutdown::Read, Shutdown::Both] {
        let (client, _server) = net.pair();
        let other = client.try_clone().unwrap();
        let reader = thread::Builder::new()
            .spawn(move || other.read(&mut [0; 9]).unwrap())
            .unwrap();
        client.shutdown(how).unwrap();
        assert_eq!(reader.join().unwrap(), 0);
    }
}

pub(crate) fn shutdown_read_and_unread_bytes(net: &impl Net) {
    let (client, server) = net.pair();
    client.write_all(b"lost?").unwrap();
    assert!(server.peek(&mut [0; 9]).unwrap() > 0);
    server.shutdown(Shutdown::Read).unwrap();
    assert_eq!(server.read(&mut [0; 9]).unwrap(), net.either(5, 0));
    client.write_all(b"later").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    server.write_all(b"the other direction").unwrap();
    assert_eq!(client.read(&mut [0; 99]).unwrap(), 19);
}

pub(crate) fn options_are_kept(net: &impl Net) {
    let (client, _server) = net.pair();
    assert_eq!(client.nodelay(), net.either(false, true));
    for nodelay in [true, false, true] {
        client.set_nodelay(nodelay);
        assert_eq!(client.nodelay(), nodelay);
    }
    assert_eq!(client.ttl(), 64);
    for ttl in [1, 255] {
        client.set_ttl(ttl).unwrap();
        assert_eq!(client.ttl(), ttl);
    }
    for wrong in [0, 256] {
        let error = client.set_ttl(wrong).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
    }
    assert_eq!(client.ttl(), 255);
    assert_eq!(client.linger(), None);
    for linger in [Some(Duration::from_secs(5)), Some(Duration::ZERO), None] {
        client.set_linger(linger);
        assert_eq!(client.linger(), linger);
    }
}
