//! Kernel sockets for datagrams.

use crate::error::SoError;
use crate::kernel::{KernelPing, KernelUdp};
use crate::local;
use crate::sockbuf::{Addresses, Datagram};
use crate::socket::Socket;
use crate::splice::{Cause, Options};
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::thread;
use std::time::Duration;

const LOOPBACK: [&str; 2] = ["127.0.0.1:0", "[::1]:0"];

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

/// One of `std`'s sockets, and one of ours, connected to each other.
fn connected(any: &str) -> (UdpSocket, KernelUdp) {
    let std = UdpSocket::bind(any).unwrap();
    let ours = KernelUdp::connect(std.local_addr().unwrap()).unwrap();
    std.connect(ours.local_addr().unwrap()).unwrap();
    std.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    ours.set_read_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    (std, ours)
}

fn read(socket: &Socket) -> Vec<u8> {
    let mut bytes = vec![0; 70_000];
    let len = socket.recv(&mut bytes).unwrap();
    bytes.truncate(len);
    bytes
}

fn read_std(socket: &UdpSocket) -> Vec<u8> {
    let mut bytes = vec![0; 70_000];
    let len = socket.recv(&mut bytes).unwrap();
    bytes.truncate(len);
    bytes
}

/// The datagram of this number: lengths come in runs, and some are empty.
fn numbered(number: usize) -> Vec<u8> {
    let len = match (number / 40) % 4 {
        0 => 1200,
        1 => 64,
        2 => number % 7 * 100,
        _ => 9000,
    };
    (0..len)
        .map(|at| u8::try_from((at + number) % 251).unwrap())
        .collect()
}

#[test]
fn datagrams_keep_their_boundaries_both_ways() {
    for any in LOOPBACK {
        let (std, ours) = connected(any);
        for payload in [&b"one"[..], b"", b"three", &[7; 65_000]] {
            std.send(payload).unwrap();
            assert_eq!(read(&ours), payload);
            assert_eq!(
                ours.send_datagram(payload, Addresses::default()).unwrap(),
                payload.len()
            );
            assert_eq!(read_std(&std), payload);
        }
    }
}

/// Sends datagrams of many lengths, in batches, and no more than the kernel's buffers take.
fn all_pass(send: impl Fn(&[Vec<u8>]), receive: impl Fn() -> Vec<u8>) {
    for batch in 0..60 {
        let datagrams: Vec<_> = (batch * 8..batch * 8 + 8).map(numbered).collect();
        send(&datagrams);
        for expected in datagrams {
            assert!(
                receive() == expected,
                "batch {batch}, {} bytes",
                expected.len()
            );
        }
    }
}

#[test]
fn runs_of_equal_datagrams_leave_as_one_and_arrive_one_by_one() {
    for any in LOOPBACK {
        let (std, ours) = connected(any);
        let datagram = |bytes: &Vec<u8>| {
            let buf = crate::buf::Buf::copy_of(bytes);
            Datagram::new([buf], Addresses::default())
        };
        let send = |batch: &[Vec<u8>]| {
            let mut list: Vec<_> = batch.iter().map(datagram).collect();
            while !list.is_empty() {
                ours.send_datagrams(&mut list).unwrap();
            }
        };
        all_pass(send, || read_std(&std));
        assert_eq!(ours.unsent(), 0);
    }
}

#[test]
fn runs_that_the_kernel_puts_together_are_cut_again() {
    for any in LOOPBACK {
        // Runs of the sender are cut by its own kernel, unless the receiver takes them whole.
        let receiver = KernelUdp::bind(address(any)).unwrap();
        receiver
            .set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        let sender = KernelUdp::connect(receiver.local_addr().unwrap()).unwrap();
        let send = |batch: &[Vec<u8>]| {
            for bytes in batch {
                sender.send_datagram(bytes, Addresses::default()).unwrap();
            }
        };
        all_pass(send, || read(&receiver));
    }
}

#[test]
fn a_run_that_no_message_holds_is_sent_in_several() {
    let (std, ours) = connected("127.0.0.1:0");
    let datagram = |byte| {
        let buf = crate::buf::Buf::copy_of(&[byte; 20_000]);
        Datagram::new([buf], Addresses::default())
    };
    let mut many: Vec<_> = (1..8).map(datagram).collect();
    ours.send_datagrams(&mut many).unwrap();
    for byte in 1..8 {
        assert_eq!(read_std(&std), [byte; 20_000]);
    }
    assert_eq!((ours.unsent(), ours.take_error()), (0, None));
}

#[test]
fn addresses_of_both_sides_come_with_a_datagram_and_go_with_an_answer() {
    let (v4, v6) = (address("0.0.0.0:0"), address("[::]:0"));
    let own = [
        ("127.0.0.1", v4),
        ("127.0.0.2", v4),
        ("127.0.0.3", v6),
        ("::1", v6),
    ];
    for (to, any) in own {
        let echo = KernelUdp::bind(any).unwrap();
        let to: IpAddr = to.parse().unwrap();
        let to = SocketAddr::new(to, echo.local_addr().unwrap().port());
        let client = UdpSocket::bind(SocketAddr::new(
            if to.is_ipv4() {
                [127, 0, 0, 9].into()
            } else {
                to.ip()
            },
            0,
        ))
        .unwrap();
        // It takes answers from the address that it has asked, and from no other.
        client.connect(to).unwrap();
        client.send(b"question").unwrap();
        let mut bytes = [0; 20];
        let (len, addresses) = echo.recv_datagram(&mut bytes).unwrap();
        let from = client.local_addr().unwrap();
        assert_eq!(addresses, Addresses::to(from).from_local(to.ip()));
        let answer = || Datagram::new([crate::buf::Buf::copy_of(&bytes[..len])], addresses);
        let mut three = vec![answer(), answer(), answer()];
        echo.send_datagrams(&mut three).unwrap();
        client
            .set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        for _ in 0..3 {
            assert_eq!(read_std(&client), b"question");
        }
        assert_eq!((echo.unsent(), echo.take_error()), (0, None));
    }
}

#[test]
fn a_full_receive_buffer_stops_reading_and_goes_on_in_order() {
    let (std, ours) = connected("127.0.0.1:0");
    ours.set_rcv_hiwat(10_000);
    for number in 0..100u8 {
        std.send(&[number; 1000]).unwrap();
    }
    for number in 0..100u8 {
        assert!(ours.readable_bytes() <= 10_000);
        assert_eq!(read(&ours), [number; 1000]);
    }
    assert_eq!(ours.dropped(), 0);
}

#[test]
fn one_that_so_rcv_never_holds_is_dropped_and_counted() {
    let (std, ours) = connected("127.0.0.1:0");
    ours.set_rcv_hiwat(100);
    std.send(&[0; 101]).unwrap();
    std.send(b"next").unwrap();
    assert_eq!(read(&ours), b"next");
    assert_eq!(ours.dropped(), 1);
}

#[test]
fn a_closed_port_is_an_error_once_and_nothing_ends() {
    for any in LOOPBACK {
        let (std, ours) = connected(any);
        let peer = std.local_addr().unwrap();
        let own = ours.local_addr().unwrap();
        drop(std);
        ours.send(b"lost").unwrap();
        let error = ours.recv(&mut [0; 10]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
        let errors = ours.take_errors();
        assert_eq!(errors.len(), 1);
        assert_eq!((errors[0].to, errors[0].by), (Some(peer), Some(peer.ip())));
        let icmp = if peer.is_ipv4() { (3, 3) } else { (1, 4) };
        assert_eq!(
            (errors[0].error, errors[0].icmp),
            (SoError::ConnectionRefused, icmp)
        );
        // Whoever has the port now hears of the next datagram, although more errors may have come.
        let std = UdpSocket::bind(peer).unwrap();
        std.connect(own).unwrap();
        ours.send(b"found").unwrap();
        assert_eq!(read_std(&std), b"found");
    }
}

#[test]
fn an_error_does_not_cost_the_datagrams_behind_it() {
    let (std, ours) = connected("127.0.0.1:0");
    let peer = std.local_addr().unwrap();
    drop(std);
    // Each of them is refused while the next ones are being sent.
    for _ in 0..50 {
        drop(ours.send(b"lost"));
    }
    assert_eq!(ours.unsent(), 0, "the kernel has taken all of them");
    while ours.take_error().is_none() && ours.take_errors().is_empty() {
        thread::yield_now();
    }
    let std = UdpSocket::bind(peer).unwrap();
    while ours.take_error().is_some() {}
    ours.send(b"found").unwrap();
    // Another thread may still have been sending the last ones.
    let mut read = read_std(&std);
    while read == b"lost" {
        read = read_std(&std);
    }
    assert_eq!(read, b"found");
}

#[test]
fn errors_of_one_peer_are_not_those_of_a_socket_with_many() {
    for any in LOOPBACK {
        let ours = KernelUdp::bind(address(any)).unwrap();
        let nobody = UdpSocket::bind(any).unwrap().local_addr().unwrap();
        let std = UdpSocket::bind(any).unwrap();
        ours.send_to(b"lost", nobody).unwrap();
        ours.send_to(b"found", std.local_addr().unwrap()).unwrap();
        assert_eq!(read_std(&std), b"found");
        let errors = loop {
            let errors = ours.take_errors();
            if !errors.is_empty() {
                break errors;
            }
            thread::yield_now();
        };
        assert_eq!((errors[0].to, ours.take_error()), (Some(nobody), None));
    }
}

#[test]
fn a_failing_datagram_is_an_error_and_the_next_one_is_sent() {
    let std = UdpSocket::bind("127.0.0.1:0").unwrap();
    let to = std.local_addr().unwrap();
    let ours = KernelUdp::bind(address("127.0.0.1:0")).unwrap();
    let payload = |len| [crate::buf::Buf::copy_of(&vec![1; len])];
    let failing = [
        (
            Datagram::new(payload(5), Addresses::default()),
            Some(SoError::DestinationRequired),
        ),
        (
            Datagram::new(payload(65_530), Addresses::to(to)),
            Some(SoError::MessageSize),
        ),
        (
            Datagram::new(
                payload(5),
                Addresses::to(to).from_local([203, 0, 113, 7].into()),
            ),
            // One of several destinations that cannot be reached is no error of the socket.
            None,
        ),
        (
            Datagram::new(payload(5), Addresses::to(address("255.255.255.255:9"))),
            Some(SoError::Prohibited),
        ),
    ];
    let count = failing.len() as u64;
    for (datagram, expected) in failing {
        let mut two = vec![datagram, Datagram::new(payload(2), Addresses::to(to))];
        ours.send_datagrams(&mut two).unwrap();
        assert_eq!(read_std(&std), [1; 2]);
        assert_eq!(ours.take_error(), expected);
    }
    assert_eq!(ours.unsent(), count);
}

#[test]
fn what_was_sent_before_a_close_arrives() {
    let std = UdpSocket::bind("127.0.0.1:0").unwrap();
    let ours = KernelUdp::connect(std.local_addr().unwrap()).unwrap();
    for number in 0..50u8 {
        ours.send(&[number; 500]).unwrap();
    }
    drop(ours);
    for number in 0..50u8 {
        assert_eq!(read_std(&std), [number; 500]);
    }
}

#[test]
fn closed_sockets_leave_the_reactor() {
    let (_std, ours) = connected("127.0.0.1:0");
    let weak = std::sync::Arc::downgrade(&ours.datagrams);
    drop(ours);
    while weak.upgrade().is_some() {
        thread::yield_now();
    }
    let (_std, ours) = connected("127.0.0.1:0");
    ours.abort();
    assert_eq!(ours.take_error(), Some(SoError::ConnectionAborted));
    assert!(ours.local_addr().is_err());
}

#[test]
fn a_refused_datagram_ends_the_splice_whose_sink_has_sent_it() {
    let (std, ours) = connected("127.0.0.1:0");
    drop(std);
    let (a, b) = local::datagram_pair();
    let splice = b.splice_to(&ours, Options::default()).unwrap();
    a.send(b"lost").unwrap();
    let end = splice.wait();
    assert_eq!(end.cause, Cause::SinkError(SoError::ConnectionRefused));
    assert_eq!(ours.take_error(), Some(SoError::ConnectionRefused));
}

#[test]
fn lists_say_which_socket_it_is() {
    let (_std, ours) = connected("127.0.0.1:0");
    let name = crate::protocol::SocketName::of(ours.end(), &**ours.protocol());
    let (own, peer) = (ours.local_addr().unwrap(), ours.peer_addr().unwrap());
    assert_eq!(name.to_string(), format!("kernel-udp {own}-{peer}"));
}

#[test]
fn an_echo_request_is_answered() {
    for (to, request, reply) in [("127.0.0.1", 8, 0), ("::1", 128, 129)] {
        let ping = match KernelPing::connect(to.parse().unwrap()) {
            Err(error) if error.kind() == ErrorKind::PermissionDenied => {
                eprintln!("skipped: {error}");
                return;
            }
            other => other.unwrap(),
        };
        ping.set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        let other = KernelPing::connect(to.parse().unwrap()).unwrap();
        let name = crate::protocol::SocketName::of(ping.end(), &**ping.protocol());
        let shown = format!("-{}", SocketAddr::new(ping.destination(), 0));
        assert!(name.to_string().starts_with("kernel-icmp ") && name.to_string().ends_with(&shown));
        ping.send(b"no echo request").unwrap();
        for number in 1..4u8 {
            ping.send(&[request, 0, 0, 0, 9, 9, 0, number, b'h', b'i'])
                .unwrap();
            let answer = read(&ping);
            assert_eq!((answer[0], answer.len()), (reply, 10));
            assert_eq!(answer[6..], [0, number, b'h', b'i']);
        }
        assert_eq!(ping.unsent(), 1);
        assert_eq!(
            other.readable_bytes(),
            0,
            "answers are for whoever has asked"
        );
    }
}

#[test]
fn a_duplicate_that_is_taken_over_again_after_a_close_is_served() {
    let near = UdpSocket::bind("127.0.0.1:0").unwrap();
    let to = near.local_addr().unwrap();
    // Other tests take descriptors too, so that not each of these has the number of the one before.
    for _ in 0..20 {
        drop(KernelUdp::from_std(near.try_clone().unwrap()).unwrap());
    }
    let socket = KernelUdp::from_std(near).unwrap();
    let user = UdpSocket::bind("127.0.0.1:0").unwrap();
    user.send_to(b"hello", to).unwrap();
    let mut bytes = [0; 9];
    assert_eq!(socket.recv(&mut bytes).unwrap(), 5);
}
