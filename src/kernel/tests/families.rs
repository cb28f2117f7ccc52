//! Unix sockets and vsock, and sockets that are configured before they connect.

use super::*;
use crate::clock::{Clock, SystemClock};
use nix::sys::socket::VsockAddr;
use rustix::net::{
    AddressFamily, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix,
    SocketType, listen, recv, socket, sockopt,
};
use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr as UnixAddress, UnixListener, UnixStream};
use std::sync::atomic::{AtomicUsize, Ordering};

const LIMIT: Duration = Duration::from_secs(10);

/// A name in the abstract namespace that nothing else has.
fn name() -> String {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let next = NEXT.fetch_add(1, Ordering::Relaxed);
    format!("sosplice-test-{}-{next}", std::process::id())
}

fn listener() -> (UnixListener, Address) {
    let address = UnixAddress::from_abstract_name(name()).unwrap();
    let listener = UnixListener::bind_addr(&address).unwrap();
    (listener, address.into())
}

fn unix() -> (UnixStream, KernelStream) {
    let (user, near) = UnixStream::pair().unwrap();
    (user, KernelStream::from_fd(near).unwrap())
}

/// A listener of vsock on this machine, where the kernel has its loopback.
fn vsock_listener() -> Option<(OwnedFd, Address)> {
    let made = socket(AddressFamily::VSOCK, SocketType::STREAM, None).ok()?;
    let any = VsockAddr::new(1, u32::MAX);
    let bound = nix::sys::socket::bind(made.as_raw_fd(), &any);
    if bound.is_err() {
        println!("vsock: skipped, there is no loopback (modprobe vsock_loopback)");
        return None;
    }
    listen(&made, 8).unwrap();
    let address = Address::local(&made).unwrap();
    Some((made, address))
}

#[test]
fn bytes_go_through_between_unix_sockets() {
    let ((mut a, near), (b, far)) = (unix(), unix());
    let options = || Options::default().forward_eof(true);
    let up = near.splice_to(&far, options()).unwrap();
    let down = far.splice_to(&near, options()).unwrap();
    let bytes = pattern(5_000_003);
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut all = Vec::new();
            (&b).read_to_end(&mut all).unwrap();
            (&b).write_all(&all).unwrap();
            b.shutdown(Shutdown::Write).unwrap();
        });
        let (mut writer, sent) = (&a, &bytes);
        scope.spawn(move || {
            writer.write_all(sent).unwrap();
            writer.shutdown(Shutdown::Write).unwrap();
        });
        let mut all = Vec::new();
        (&a).read_to_end(&mut all).unwrap();
        assert!(all == bytes);
    });
    for splice in [up, down] {
        let end = splice.wait();
        assert_eq!((end.cause, end.bytes), (Cause::Eof, 5_000_003));
    }
    drop((near, far));
    assert_eq!(a.read(&mut [0]).unwrap(), 0);
}

#[test]
fn back_pressure_of_a_unix_socket_is_exact() {
    let (mut user, near) = unix();
    near.set_rcv_hiwat(5000);
    user.write_all(&pattern(100_000)).unwrap();
    let mut got = Vec::new();
    while got.len() < 100_000 {
        assert!(near.readable_bytes() <= 5000);
        got.extend(near.recv_chain(1000).unwrap().to_vec());
    }
    assert!(got == pattern(100_000));
    // And in the other direction: its peer does not read.
    near.set_snd_hiwat(10_000);
    near.set_nonblocking(true);
    let mut sent = 0;
    while let Ok(count) = near.send(&pattern(5000)) {
        sent += count;
    }
    assert_eq!(near.end().with_snd(|so_snd| so_snd.len()), 10_000);
    let mut all = vec![0; sent];
    user.read_exact(&mut all).unwrap();
}

#[test]
fn unix_sockets_are_dialled_by_path_and_by_name() {
    let path = std::env::temp_dir().join(name());
    let by_path = UnixListener::bind(&path).unwrap();
    let (by_name, abstract_name) = listener();
    for (listener, address) in [
        (by_path, Address::unix(&path).unwrap()),
        (by_name, abstract_name),
    ] {
        let stream = KernelStream::connect(address.clone()).unwrap();
        stream.send(b"hello").unwrap();
        let (mut accepted, _) = listener.accept().unwrap();
        let mut bytes = [0; 5];
        accepted.read_exact(&mut bytes).unwrap();
        let peer = stream.peer_address().unwrap().to_string();
        assert_eq!(peer, address.to_string());
        assert_eq!(stream.local_address().unwrap().to_string(), "unix:");
        let error = stream.peer_addr().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        let far = KernelStream::from_fd(accepted).unwrap();
        assert_eq!(
            far.local_address().unwrap().to_string(),
            address.to_string()
        );
        assert_eq!(far.peer_address().unwrap().to_string(), "unix:");
    }
    std::fs::remove_file(&path).unwrap();
    let gone = KernelStream::connect(Address::unix(&path).unwrap()).unwrap_err();
    assert_eq!(gone.kind(), ErrorKind::NotFound);
    let nobody = KernelStream::start(Address::unix_abstract(name()).unwrap()).unwrap_err();
    assert_eq!(nobody.kind(), ErrorKind::ConnectionRefused);
}

#[test]
fn addresses_that_are_none() {
    let long = format!("unix:@{}", "x".repeat(108));
    for string in [
        "",
        "unix:",
        "vsock:1",
        "vsock:1:x",
        "vsock:-1:2",
        "localhost:1",
        "127.0.0.1",
        &long,
    ] {
        let error = string.parse::<Address>().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{string}");
    }
    for string in [
        "[::1]:1",
        "unix:/a b:c",
        "unix:@",
        "vsock:4294967295:4294967295",
    ] {
        let address: Address = string.parse().unwrap();
        assert_eq!(address.to_string(), string);
    }
}

/// 108 bytes: as many as `sockaddr_un` has, so that there is no room for the zero behind them.
#[test]
fn a_peer_with_the_longest_path_has_an_address() {
    let folder = std::env::temp_dir().join(name());
    std::fs::create_dir(&folder).unwrap();
    let mut path = folder.as_os_str().as_encoded_bytes().to_vec();
    path.push(b'/');
    path.resize(108, b'x');
    let peer = socket(AddressFamily::UNIX, SocketType::STREAM, None).unwrap();
    rustix::net::bind(&peer, &SocketAddrUnix::new(&path[..]).unwrap()).unwrap();
    let (listener, address) = listener();
    let user = KernelSocket::from_fd(peer)
        .unwrap()
        .connect(address)
        .unwrap();
    let near = KernelStream::from_fd(listener.accept().unwrap().0).unwrap();
    let shown = format!("unix:{}", String::from_utf8(path).unwrap());
    assert_eq!(near.peer_address().unwrap().to_string(), shown);
    assert_eq!(user.local_address().unwrap().to_string(), shown);
    std::fs::remove_dir_all(&folder).unwrap();
}

/// The kernel reports no readiness for it, so `start` cannot wait, and the others wait in the kernel.
#[test]
fn a_full_backlog_of_a_unix_listener() {
    let (listener, address) = listener();
    listen(&listener, 0).unwrap();
    let first = KernelStream::connect(address.clone()).unwrap();
    let error = KernelStream::start(address.clone()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::WouldBlock);
    let brief = Duration::from_millis(50);
    let error = KernelStream::connect_timeout(address.clone(), brief).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TimedOut);
    thread::scope(|scope| {
        let waiting = scope.spawn(|| KernelStream::connect_timeout(address, LIMIT));
        drop(listener.accept().unwrap());
        let (mut accepted, _) = listener.accept().unwrap();
        let stream = waiting.join().unwrap().unwrap();
        stream.send(b"x").unwrap();
        accepted.read_exact(&mut [0]).unwrap();
        let timeout =
            sockopt::socket_timeout(&*stream.conn.live().unwrap(), sockopt::Timeout::Send);
        assert_eq!(timeout.unwrap(), None, "the timeout was for connecting");
    });
    drop(first);
}

/// A unix socket has no reset but this one.
#[test]
fn a_unix_peer_that_closes_with_unread_bytes_resets() {
    let (user, near) = unix();
    let (a, b) = local::pair();
    let splice = near.splice_to(&a, Options::default()).unwrap();
    near.send(b"unread").unwrap();
    let mut all = [0; 6];
    recv(&user, &mut all, RecvFlags::PEEK).unwrap();
    drop(user);
    let end = splice.wait();
    assert_eq!(end.cause, Cause::SourceError(SoError::ConnectionReset));
    drop(b);

    // As a sink: the peer is gone, with everything read.
    let (user, near) = unix();
    let (a, b) = local::pair();
    drop(user);
    let splice = a.splice_to(&near, Options::default());
    b.send(b"late").unwrap();
    let end = splice.unwrap().wait();
    assert_eq!(end.cause, Cause::SinkError(SoError::ConnectionReset));
}

/// It has answered before it had read everything, and there was no room for the answer yet.
#[test]
fn what_a_unix_peer_has_sent_before_it_closed_is_read() {
    for unread in [true, false] {
        let (user, near) = unix();
        near.set_rcv_hiwat(1000);
        if unread {
            near.send(b"unread").unwrap();
            recv(&user, &mut [0; 6], RecvFlags::PEEK).unwrap();
        }
        (&user).write_all(&pattern(50_000)).unwrap();
        drop(user);
        // It may be known already.
        let late = near.send(b"late");
        assert!(late.is_ok() || near.readable_bytes() > 0, "{late:?}");
        let mut all = Vec::new();
        let error = (&near).read_to_end(&mut all).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset, "unread: {unread}");
        assert!(
            all == pattern(50_000),
            "unread: {unread}, {} bytes",
            all.len()
        );
    }
}

/// Bytes of a peer that is gone wait for their reader; those for it must not wait meanwhile.
#[test]
fn a_unix_peer_that_is_gone_takes_nothing_although_its_bytes_are_not_read_yet() {
    let (user, near) = unix();
    near.set_rcv_hiwat(1000);
    (&user).write_all(&pattern(50_000)).unwrap();
    while near.readable_bytes() < 1000 {
        thread::yield_now();
    }
    drop(user);
    let (a, b) = local::pair();
    let splice = a.splice_to(&near, Options::default()).unwrap();
    b.send(b"late").unwrap();
    let end = splice.wait_timeout(LIMIT).expect("it ends");
    assert_eq!(end.cause, Cause::SinkShutdown);
    assert_eq!(near.send(b"x").unwrap_err().kind(), ErrorKind::BrokenPipe);
    let mut all = Vec::new();
    let error = (&near).read_to_end(&mut all).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    assert!(all == pattern(50_000));
}

/// In TCP nobody would know.
#[test]
fn a_unix_peer_that_only_stops_to_read_is_read_on() {
    let (mut user, near) = unix();
    user.shutdown(Shutdown::Read).unwrap();
    let (a, b) = local::pair();
    let splice = a.splice_to(&near, Options::default()).unwrap();
    b.send(b"late").unwrap();
    assert_eq!(splice.wait().cause, Cause::SinkShutdown);
    assert_eq!(near.take_error(), None);
    user.write_all(b"later").unwrap();
    assert_eq!(near.recv_chain(100).unwrap().to_vec(), b"later");
    drop(user);
    let error = near.recv_chain(100).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
}

#[test]
fn closed_unix_sockets_leave_the_reactor() {
    for bytes in [0, 1_000_000] {
        for peer_sends in [false, true] {
            let (user, near) = unix();
            near.set_rcv_hiwat(1000);
            near.set_nonblocking(true);
            if bytes > 0 {
                while near.send(&pattern(bytes)).is_ok() {}
            }
            if peer_sends {
                (&user).write_all(&pattern(3000)).unwrap();
                while near.readable_bytes() < 1000 {
                    thread::yield_now();
                }
                near.recv(&mut [0; 1000]).unwrap();
                near.set_rcv_hiwat(1);
            }
            let weak = Arc::downgrade(&near.conn);
            // What it has sent is not read, and the peer is gone before or after.
            match peer_sends {
                true => drop((user, near)),
                false => drop((near, user)),
            }
            let start = SystemClock.now();
            while weak.upgrade().is_some() {
                assert!(start.elapsed() < LIMIT, "{bytes} bytes, {peer_sends}");
                thread::yield_now();
            }
        }
    }
}

#[test]
fn an_abort_of_a_unix_socket_is_an_end_of_file_unless_the_kernel_has_bytes() {
    let (mut user, near) = unix();
    near.abort();
    assert_eq!(near.take_error(), Some(SoError::ConnectionAborted));
    assert_eq!(user.read(&mut [0]).unwrap(), 0);
    let error = user.write(b"x").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::BrokenPipe);

    for abort in [true, false] {
        let (mut user, near) = unix();
        near.set_rcv_hiwat(1000);
        user.write_all(&pattern(5000)).unwrap();
        while near.readable_bytes() < 1000 {
            thread::yield_now();
        }
        match abort {
            true => near.abort(),
            false => drop(near),
        }
        let error = user.read(&mut [0]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset, "abort: {abort}");
    }
}

/// A read ends at descriptors, and the kernel reports nothing for the bytes behind them.
#[test]
fn descriptors_that_a_peer_sends_do_not_stop_the_bytes() {
    let (user, near) = unix();
    let (watched, sent) = UnixStream::pair().unwrap();
    for byte in [b"1", b"2", b"3"] {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut along = SendAncillaryBuffer::new(&mut space);
        let descriptors = [sent.as_fd()];
        assert!(along.push(SendAncillaryMessage::ScmRights(&descriptors)));
        let bytes = [IoSlice::new(byte)];
        rustix::net::sendmsg(&user, &bytes, &mut along, SendFlags::empty()).unwrap();
    }
    (&user).write_all(b"4").unwrap();
    let mut all = [0; 4];
    (&near).read_exact(&mut all).unwrap();
    assert_eq!(&all, b"1234");
    // The copies that came along are closed.
    drop(sent);
    watched.set_read_timeout(Some(LIMIT)).unwrap();
    assert_eq!((&watched).read(&mut [0]).unwrap(), 0);
}

#[test]
fn a_urgent_byte_of_a_unix_socket_does_not_stop_the_others() {
    let (user, near) = unix();
    (&user).write_all(b"before").unwrap();
    if rustix::net::send(&user, b"!", SendFlags::OOB).is_err() {
        println!("skipped: the kernel has no urgent bytes of unix sockets");
        return;
    }
    (&user).write_all(b"after").unwrap();
    drop(user);
    let mut all = Vec::new();
    (&near).read_to_end(&mut all).unwrap();
    assert_eq!(all, b"beforeafter");
}

#[test]
fn a_configured_socket_is_connected() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let to = listener.local_addr().unwrap();
    let made = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
    sockopt::set_socket_recv_buffer_size(&made, 12_345).unwrap();
    rustix::net::bind(&made, &"127.0.0.77:0".parse::<SocketAddr>().unwrap()).unwrap();
    let socket = KernelSocket::from_fd(made).unwrap();
    let stream = socket.connect_timeout(to, LIMIT).unwrap();
    let (mut accepted, from) = listener.accept().unwrap();
    assert_eq!(from, stream.local_addr().unwrap());
    assert_eq!(from.ip().to_string(), "127.0.0.77");
    let kernels = stream.conn.live().unwrap();
    assert_eq!(sockopt::socket_recv_buffer_size(&*kernels).unwrap(), 24_690);
    stream.send(b"hello").unwrap();
    accepted.read_exact(&mut [0; 5]).unwrap();
}

#[test]
fn a_configured_socket_that_is_refused_or_not_answered() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let to = Address::from(listener.local_addr().unwrap());
    drop(listener);
    let error = KernelSocket::new(&to).unwrap().connect(to).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused);

    let (_listener, _waiting, to) = options::black_hole();
    let to = Address::from(to);
    let brief = Duration::from_millis(50);
    let socket = KernelSocket::new(&to).unwrap();
    let error = socket.connect_timeout(to.clone(), brief).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TimedOut);
    let socket = KernelSocket::new(&to).unwrap();
    let error = socket.connect_timeout(to, Duration::ZERO).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
}

/// What `VpnService.protect` and a rule of the routing need: the mark is there before the SYN.
#[test]
fn a_mark_is_kept() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let to = Address::from(listener.local_addr().unwrap());
    let socket = KernelSocket::new(&to).unwrap();
    let marked = nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::Mark, &7);
    if marked.is_err() {
        println!("skipped: needs CAP_NET_ADMIN");
        return;
    }
    let stream = socket.start(to).unwrap();
    stream
        .wait_connected(Some(SystemClock.now() + LIMIT))
        .unwrap();
    let kernels = stream.conn.live().unwrap();
    let mark = nix::sys::socket::getsockopt(&*kernels, nix::sys::socket::sockopt::Mark);
    assert_eq!(mark, Ok(7));
}

#[test]
fn descriptors_of_other_kinds_are_not_taken() {
    let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
    let (unix, _) = listener();
    let datagrams = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let file = std::fs::File::open("/dev/null").unwrap();
    let fds: [OwnedFd; 4] = [tcp.into(), unix.into(), datagrams.into(), file.into()];
    for fd in fds {
        let error = KernelStream::from_fd(fd.try_clone().unwrap()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
        let error = KernelSocket::from_fd(fd).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
    }
    for family in [AddressFamily::INET, AddressFamily::UNIX] {
        let made = socket(family, SocketType::STREAM, None).unwrap();
        let error = KernelStream::from_fd(made).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotConnected);
    }
    let made = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
    let other = KernelSocket::from_fd(made)
        .unwrap()
        .start(Address::unix("/x").unwrap());
    assert_eq!(other.unwrap_err().kind(), ErrorKind::InvalidInput);
}

#[test]
fn the_descriptor_of_a_unix_socket_is_given_back() {
    let (mut user, near) = unix();
    user.write_all(b"unread").unwrap();
    while near.readable_bytes() < 6 {
        thread::yield_now();
    }
    let other = near.clone();
    assert_eq!(other.give_back().unwrap_err(), GiveBackError::NotTcp);
    let (descriptor, unread) = near.into_fd().unwrap();
    assert_eq!(unread.to_vec(), b"unread");
    let mut stream = UnixStream::from(descriptor);
    user.write_all(b"more").unwrap();
    stream.read_exact(&mut [0; 4]).unwrap();
}

#[test]
fn options_of_tcp_fail_for_a_unix_socket() {
    let (_user, near) = unix();
    assert!(near.set_nodelay(true).is_err());
    assert!(near.set_user_timeout(None).is_err());
    let error = near.set_ttl(3).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert_eq!(near.linger().unwrap(), None);
}

#[test]
fn bytes_go_through_vsock() {
    let Some((listener, address)) = vsock_listener() else {
        return;
    };
    let client = KernelStream::connect_timeout(address.clone(), LIMIT).unwrap();
    let accepted = rustix::net::accept(&listener).unwrap();
    let server = KernelStream::from_fd(accepted).unwrap();
    assert_eq!(
        client.peer_address().unwrap().to_string(),
        address.to_string()
    );
    let bytes = pattern(3_000_001);
    let echo = || {
        let mut all = Vec::new();
        (&server).read_to_end(&mut all).unwrap();
        (&server).write_all(&all).unwrap();
        server.shutdown(Shutdown::Write).unwrap();
    };
    thread::scope(|scope| {
        scope.spawn(echo);
        scope.spawn(|| {
            (&client).write_all(&bytes).unwrap();
            client.shutdown(Shutdown::Write).unwrap();
        });
        let mut all = Vec::new();
        (&client).read_to_end(&mut all).unwrap();
        assert!(all == bytes);
    });
}

#[test]
fn a_vsock_port_without_a_listener_refuses() {
    let Some((listener, address)) = vsock_listener() else {
        return;
    };
    drop(listener);
    let error = KernelStream::connect_timeout(address, LIMIT).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
}

#[test]
fn a_duplicate_that_is_taken_over_again_after_a_close_is_served() {
    let (mut user, near) = UnixStream::pair().unwrap();
    // Other tests take descriptors too, so that not each of these has the number of the one before.
    for _ in 0..20 {
        let one = KernelStream::from_fd(near.try_clone().unwrap()).unwrap();
        one.abort();
    }
    let stream = KernelStream::from_fd(near).unwrap();
    user.write_all(b"hello").unwrap();
    assert_eq!(stream.recv_chain(100).unwrap().to_vec(), b"hello");
}
