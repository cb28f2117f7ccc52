//! Splices of datagrams, each case from each kind of socket to each, in each dispatch and both families: OpenBSD's
//! rules for UDP (`somove`).

use crate::kinds::{KINDS, Kind, LIMIT, NET, Pair, eventually, read, stack_pair};
use sosplice::error::{Errno, Flavor, SoError};
use sosplice::kernel::{KernelPing, KernelUdp};
use sosplice::link::{Link, Packet, memory};
use sosplice::splice::{self, Cause, Dispatch, End, Options, Role, Splice, SpliceError};
use sosplice::stack::{Intercept, PingListener, UdpSocket};
use sosplice::{Socket, Stack, local};
use std::cell::RefCell;
use std::io::ErrorKind;
use std::net::Shutdown;
use std::time::Duration;

const DISPATCHES: [Dispatch; 3] = [Dispatch::Worker, Dispatch::Direct, Dispatch::Adaptive];

/// A splice to be: what `client` sends, `source` receives; what `sink` sends, `server` receives.
struct Relay {
    name: String,
    client: Socket,
    source: Socket,
    sink: Socket,
    server: Socket,
    dispatch: Dispatch,
}

impl Relay {
    #[track_caller]
    fn splice(&self, options: Options) -> Splice {
        let spliced = self
            .source
            .splice_to(&self.sink, options.dispatch(self.dispatch));
        spliced.unwrap_or_else(|error| panic!("{}: {error}", self.name))
    }

    /// Sends datagrams, each when the source has the one before.
    #[track_caller]
    fn queue(&self, datagrams: &[&[u8]]) {
        for payload in datagrams {
            let before = self.source.end().with_rcv(|rcv| rcv.records());
            self.client.send(payload).unwrap();
            eventually(&self.name, || {
                self.source.end().with_rcv(|rcv| rcv.records()) > before
            });
        }
    }

    #[track_caller]
    fn ended(&self, splice: &Splice) -> End {
        let end = splice.wait_timeout(LIMIT);
        end.unwrap_or_else(|| panic!("{}: still spliced", self.name))
    }
}

/// Each pair of kinds, in each dispatch, in both families and between them.
fn everywhere(case: impl Fn(&Relay)) {
    for from in KINDS {
        for to in KINDS {
            for (at, dispatch) in DISPATCHES.into_iter().enumerate() {
                for (v4, far_v4) in [(true, true), (false, false), (at == 0, at != 0)] {
                    let (a, b) = (from.pair(v4), to.pair(far_v4));
                    let Pair {
                        user: client,
                        inside: source,
                    } = a;
                    let Pair {
                        user: server,
                        inside: sink,
                    } = b;
                    let name = format!("{from:?} to {to:?}, {dispatch:?}, v4: {v4}, {far_v4}");
                    case(&Relay {
                        name,
                        client,
                        source,
                        sink,
                        server,
                        dispatch,
                    });
                }
            }
        }
    }
}

#[test]
fn boundaries_are_kept() {
    everywhere(|relay| {
        relay.queue(&[b"before"]);
        let splice = relay.splice(Options::default());
        assert_eq!(read(&relay.server), b"before");
        let long = vec![7; 40_000];
        for payload in [
            &b"one"[..],
            b"",
            b"",
            &[1; 1472],
            &[2; 1473],
            &[3; 9000],
            &long,
        ] {
            relay.client.send(payload).unwrap();
            assert!(
                read(&relay.server) == payload,
                "{}, {}",
                relay.name,
                payload.len()
            );
        }
        let moved = 6 + 3 + 1472 + 1473 + 9000 + 40_000;
        assert_eq!(relay.source.spliced(), moved, "{}", relay.name);
        assert_eq!(splice.unsplice().unwrap().bytes, moved);
        assert_eq!(
            (relay.source.take_error(), relay.sink.take_error()),
            (None, None)
        );
    });
}

#[test]
fn the_exact_limit_is_efbig_and_the_next_datagram_stays() {
    everywhere(|relay| {
        relay.queue(&[b"abc", b"", b"defg", b"next"]);
        let end = relay.ended(&relay.splice(Options::default().limit(7)));
        assert_eq!(
            (end.cause, end.bytes, end.residual),
            (Cause::Limit, 7, 4),
            "{}",
            relay.name
        );
        assert_eq!(
            relay.source.take_error(),
            Some(SoError::SpliceLimit),
            "{}",
            relay.name
        );
        assert_eq!(relay.sink.take_error(), None);
        for payload in [&b"abc"[..], b"", b"defg"] {
            assert_eq!(read(&relay.server), payload, "{}", relay.name);
        }
        assert_eq!(read(&relay.source), b"next");
    });
}

#[test]
fn a_datagram_that_would_exceed_the_limit_ends_the_splice_without_an_error() {
    everywhere(|relay| {
        let splice = relay.splice(Options::default().limit(7));
        relay.client.send(b"abc").unwrap();
        assert_eq!(read(&relay.server), b"abc");
        relay.client.send(b"defgh").unwrap();
        let end = relay.ended(&splice);
        assert_eq!((end.cause, end.bytes), (Cause::Limit, 3), "{}", relay.name);
        assert_eq!(relay.source.take_error(), None, "{}", relay.name);
        assert_eq!(read(&relay.source), b"defgh");
    });
}

#[test]
fn one_that_the_sink_never_takes_is_emsgsize_and_stays() {
    everywhere(|relay| {
        relay.sink.set_snd_hiwat(100);
        let splice = relay.splice(Options::default());
        relay.client.send(&[1; 100]).unwrap();
        assert_eq!(read(&relay.server), [1; 100], "{}", relay.name);
        relay.client.send(&[2; 101]).unwrap();
        let end = relay.ended(&splice);
        assert_eq!(
            (end.cause, end.bytes, end.residual),
            (Cause::MessageSize, 100, 101)
        );
        let errors = (relay.source.take_error(), relay.sink.take_error());
        assert_eq!(errors, (Some(SoError::MessageSize), None), "{}", relay.name);
        assert_eq!(read(&relay.source), [2; 101]);
    });
}

#[test]
fn the_end_of_the_source_is_eof_and_shuts_nothing_down() {
    everywhere(|relay| {
        let splice = relay.splice(Options::default());
        relay.client.send(b"last").unwrap();
        assert_eq!(read(&relay.server), b"last");
        relay.source.shutdown(Shutdown::Read).unwrap();
        let end = relay.ended(&splice);
        assert_eq!((end.cause, end.bytes), (Cause::Eof, 4), "{}", relay.name);
        assert_eq!(
            (relay.source.take_error(), relay.sink.take_error()),
            (None, None)
        );
        relay.sink.send(b"more").unwrap();
        assert_eq!(read(&relay.server), b"more");
    });
}

#[test]
fn the_end_is_passed_on_if_that_is_wanted() {
    everywhere(|relay| {
        let splice = relay.splice(Options::default().forward_eof(true));
        relay.source.shutdown(Shutdown::Read).unwrap();
        assert_eq!(relay.ended(&splice).cause, Cause::Eof, "{}", relay.name);
        let error = relay.sink.send(b"x").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::BrokenPipe);
    });
}

#[test]
fn a_sink_that_is_shut_down_is_epipe_and_the_data_stays() {
    everywhere(|relay| {
        let splice = relay.splice(Options::default());
        relay.sink.shutdown(Shutdown::Write).unwrap();
        let end = relay.ended(&splice);
        assert_eq!(
            (end.cause, end.bytes),
            (Cause::SinkShutdown, 0),
            "{}",
            relay.name
        );
        assert_eq!(relay.source.take_error(), Some(SoError::BrokenPipe));
        relay.client.send(b"stays").unwrap();
        assert_eq!(read(&relay.source), b"stays");
    });
}

#[test]
fn an_error_of_the_source_ends_the_splice_and_stays() {
    everywhere(|relay| {
        let splice = relay.splice(Options::default());
        relay.source.end().fail_once(SoError::HostUnreachable);
        let end = relay.ended(&splice);
        let expected = Cause::SourceError(SoError::HostUnreachable);
        assert_eq!((end.cause, end.bytes), (expected, 0), "{}", relay.name);
        assert_eq!(relay.source.take_error(), Some(SoError::HostUnreachable));
        assert_eq!(relay.sink.take_error(), None);
        // It has ended nothing else.
        let again = relay.splice(Options::default());
        relay.client.send(b"on").unwrap();
        assert_eq!(read(&relay.server), b"on");
        drop(again);
    });
}

#[test]
fn an_error_that_was_there_before_ends_a_new_splice_at_once() {
    everywhere(|relay| {
        relay.queue(&[b"stays"]);
        relay.source.end().set_error(SoError::ConnectionRefused);
        let end = relay.ended(&relay.splice(Options::default()));
        let expected = Cause::SourceError(SoError::ConnectionRefused);
        assert_eq!((end.cause, end.residual), (expected, 5), "{}", relay.name);
        assert_eq!(relay.source.take_error(), Some(SoError::ConnectionRefused));
        assert_eq!(read(&relay.source), b"stays");
    });
}

#[test]
fn an_error_of_the_sink_ends_the_splice_and_both_have_it() {
    everywhere(|relay| {
        let splice = relay.splice(Options::default());
        relay.sink.end().fail_once(SoError::ConnectionRefused);
        let end = relay.ended(&splice);
        let error = SoError::ConnectionRefused;
        assert_eq!(end.cause, Cause::SinkError(error), "{}", relay.name);
        let errors = (relay.source.take_error(), relay.sink.take_error());
        assert_eq!(errors, (Some(error), Some(error)), "{}", relay.name);
    });
}

#[test]
fn errors_of_the_sinks_own_splice_do_not_count() {
    let own = [
        SoError::SpliceLimit,
        SoError::SpliceTimedOut,
        SoError::SpliceLoop,
    ];
    for error in own {
        everywhere(|relay| {
            relay.sink.end().set_error(error);
            let splice = relay.splice(Options::default());
            relay.client.send(b"through").unwrap();
            assert_eq!(read(&relay.server), b"through", "{}", relay.name);
            assert!(splice.unsplice().is_ok());
            assert_eq!(relay.sink.take_error(), Some(error));
        });
    }
}

#[test]
fn idle_time_is_etimedout() {
    everywhere(|relay| {
        let splice = relay.splice(Options::default().idle(Duration::from_millis(30)));
        relay.client.send(b"").unwrap();
        let end = relay.ended(&splice);
        assert_eq!((end.cause, end.bytes), (Cause::Idle, 0), "{}", relay.name);
        assert_eq!(relay.source.take_error(), Some(SoError::SpliceTimedOut));
        assert_eq!(relay.sink.take_error(), None);
    });
}

#[test]
fn both_ways_at_once() {
    everywhere(|relay| {
        let options = Options::default().dispatch(relay.dispatch);
        let join = splice::join(&relay.source, &relay.sink, options).unwrap();
        for round in 0..20u8 {
            relay.client.send(&[round; 700]).unwrap();
            assert_eq!(read(&relay.server), [round; 700], "{}", relay.name);
            relay.server.send(&[round; 900]).unwrap();
            assert_eq!(read(&relay.client), [round; 900], "{}", relay.name);
        }
        assert_eq!(join.bytes(), (20 * 700, 20 * 900));
        join.unsplice();
        let ends = join.wait();
        assert_eq!((ends.a_to_b.bytes, ends.b_to_a.bytes), (20 * 700, 20 * 900));
    });
}

#[test]
fn an_aborted_sink_ends_the_splice() {
    everywhere(|relay| {
        let splice = relay.splice(Options::default());
        relay.sink.abort();
        let end = relay.ended(&splice);
        let aborted = Cause::SinkError(SoError::ConnectionAborted);
        assert_eq!(end.cause, aborted, "{}", relay.name);
    });
}

#[test]
fn a_source_need_not_be_connected_and_a_sink_must_be() {
    let bound = KernelUdp::bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let of_stack = UdpSocket::bind(&NET.far, "10.0.0.2:0").unwrap();
    for kind in KINDS {
        let Pair { user, inside } = kind.pair(true);
        for unconnected in [&*bound, &*of_stack] {
            let refused = inside
                .splice_to(unconnected, Options::default())
                .unwrap_err();
            assert_eq!(refused, SpliceError::NotConnected(Role::Sink));
            assert_eq!(refused.errno(Flavor::OpenBsd), Errno::ENOTCONN);
            // With addresses it knows where to.
            let addressed = inside.splice_to(unconnected, Options::default().addresses(true));
            addressed.unwrap().unsplice().unwrap();
        }
        let splice = bound.splice_to(&inside, Options::default()).unwrap();
        let other = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        other
            .send_to(b"from one", bound.local_addr().unwrap())
            .unwrap();
        assert_eq!(read(&user), b"from one");
        splice.unsplice().unwrap();

        let splice = of_stack.splice_to(&inside, Options::default()).unwrap();
        let other = UdpSocket::bind(&NET.near, "10.0.0.1:0").unwrap();
        other
            .send_to(b"from another", of_stack.local_addr())
            .unwrap();
        assert_eq!(read(&user), b"from another");
        splice.unsplice().unwrap();
    }
}

#[test]
fn addresses_pass_from_one_to_many() {
    // A relay with an unconnected sink: the datagrams of a flow to all destinations go where each one was sent.
    let (user, inside) = local::datagram_pair();
    let out = KernelUdp::bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let options = || Options::default().addresses(true);
    let up = inside.splice_to(&out, options()).unwrap();
    let down = out.splice_to(&inside, options()).unwrap();
    let servers = [(), ()].map(|()| std::net::UdpSocket::bind("127.0.0.1:0").unwrap());
    for (server, payload) in servers.iter().zip([b"first", b"other"]) {
        server.set_read_timeout(Some(LIMIT)).unwrap();
        let to = sosplice::sockbuf::Addresses::to(server.local_addr().unwrap());
        user.send_datagram(payload, to).unwrap();
        let mut bytes = [0; 20];
        let (len, from) = server.recv_from(&mut bytes).unwrap();
        assert_eq!(&bytes[..len], payload);
        server.send_to(b"answer", from).unwrap();
        let (len, addresses) = user.recv_datagram(&mut bytes).unwrap();
        assert_eq!((len, addresses.peer), (6, server.local_addr().ok()));
    }
    drop((up, down));
}

#[test]
fn streams_and_freebsd_are_eprotonosupport() {
    for kind in KINDS {
        let Pair { user, inside } = kind.pair(true);
        let (stream, _peer) = local::pair();
        stream.set_flavor(Flavor::OpenBsd);
        for (source, sink) in [(&inside, &stream), (&stream, &inside)] {
            let refused = source.splice_to(sink, Options::default()).unwrap_err();
            assert_eq!(refused, SpliceError::DifferentKinds, "{kind:?}");
            assert_eq!(refused.errno(Flavor::OpenBsd), Errno::EPROTONOSUPPORT);
        }
        let sink = kind.pair(true);
        inside.set_flavor(Flavor::FreeBsd);
        let refused = inside.splice_to(&sink.inside, Options::default());
        let refused = refused.unwrap_err();
        assert_eq!(refused, SpliceError::NotAStream(Role::Source), "{kind:?}");
        assert_eq!(refused.errno(Flavor::FreeBsd), Errno::EPROTONOSUPPORT);
        drop(user);
    }
}

#[test]
fn a_socket_has_one_splice_in_each_role() {
    for kind in KINDS {
        let [a, b, c] = [(), (), ()].map(|()| kind.pair(true));
        let splice = a.inside.splice_to(&b.inside, Options::default()).unwrap();
        let busy = a.inside.splice_to(&c.inside, Options::default());
        assert_eq!(busy.unwrap_err(), SpliceError::Busy(Role::Source));
        let busy = c.inside.splice_to(&b.inside, Options::default());
        assert_eq!(busy.unwrap_err(), SpliceError::Busy(Role::Sink));
        splice.unsplice().unwrap();
    }
}

/// The port of the destination is closed: the error comes to the sink, from the network.
#[test]
fn a_refused_datagram_ends_the_splice_with_the_networks_error() {
    for (kind, dispatch) in KINDS.into_iter().zip(DISPATCHES) {
        let (client, source) = local::datagram_pair();
        let far = kind.pair(true);
        let sink = match kind {
            Kind::Stack => {
                let (user, inside) = stack_pair(true);
                drop(user);
                (*inside).clone()
            }
            _ => {
                drop(far.user);
                far.inside
            }
        };
        let splice = source
            .splice_to(&sink, Options::default().dispatch(dispatch))
            .unwrap();
        client.send(b"lost").unwrap();
        let end = splice.wait_timeout(LIMIT).unwrap();
        let refused = SoError::ConnectionRefused;
        assert_eq!(
            (end.cause, end.bytes),
            (Cause::SinkError(refused), 4),
            "{kind:?}"
        );
        assert_eq!(sink.take_error(), Some(refused), "{kind:?}");
        assert_eq!(source.take_error(), Some(refused), "{kind:?}");
    }
}

/// A host behind a link pings what the kernel reaches: through a flow of the stack and a socket of the kernel.
#[test]
fn pings_of_a_host_pass_through_a_flow_of_a_stack() {
    let ping = match KernelPing::connect("127.0.0.1".parse().unwrap()) {
        Err(error) if error.kind() == ErrorKind::PermissionDenied => {
            eprintln!("skipped: {error}");
            return;
        }
        other => other.unwrap(),
    };
    let (host, link) = memory::pair(memory::Config::default());
    let stack = Stack::builder(link)
        .address("10.0.0.1/24".parse().unwrap())
        .build()
        .unwrap();
    let pings = PingListener::intercept(&stack, Intercept::all(), PingListener::options()).unwrap();
    // From 10.0.0.2 to 203.0.113.1; here the kernel's socket pings an address of its own instead.
    let mut request = vec![
        0x45, 0, 0, 30, 0, 0, 0, 0, 64, 1, 0x34, 0xdc, 10, 0, 0, 2, 203, 0, 113, 1, // IPv4
        8, 0, 0, 0, 0xab, 0xcd, 0, 2, b'h', b'i',
    ];
    let sum = internet_checksum(&request[20..]);
    request[22..24].copy_from_slice(&sum);
    host.transmit(&Packet::new(&request, &[], 20)).unwrap();
    let flow = pings.accept().unwrap();
    let join = splice::join(&flow, &ping, Options::default()).unwrap();
    let frames = RefCell::new(Vec::new());
    eventually("an answer", || {
        host.receive(&mut frames.borrow_mut(), 16).unwrap() > 0
    });
    assert!(join.bytes().1 > 0);
    let frames = frames.into_inner();
    let [frame] = &frames[..] else {
        panic!("{frames:?}")
    };
    let parts = std::iter::once(&frame.head).chain(&frame.rest);
    let answer: Vec<u8> = parts.flat_map(|part| part.to_vec()).collect();
    // The client's identifier, whatever the kernel's socket has, and its data.
    assert_eq!(answer[12..20], [203, 0, 113, 1, 10, 0, 0, 2]);
    assert_eq!(
        (answer[20], &answer[24..]),
        (0, &[0xab, 0xcd, 0, 2, b'h', b'i'][..])
    );
    assert_eq!(internet_checksum(&answer[20..]), [0, 0]);
}

/// RFC 1071.
fn internet_checksum(bytes: &[u8]) -> [u8; 2] {
    let words = bytes.chunks(2).map(|word| {
        let low = word.get(1).copied().unwrap_or(0);
        u32::from(u16::from_be_bytes([word[0], low]))
    });
    let sum: u32 = words.sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    let folded = (folded & 0xffff) + (folded >> 16);
    (!u16::try_from(folded).unwrap()).to_be_bytes()
}

#[test]
fn pings_pass_through_a_splice() {
    for (to, request, reply) in [("127.0.0.1", 8, 0), ("::1", 128, 129)] {
        let ping = match KernelPing::connect(to.parse().unwrap()) {
            Err(error) if error.kind() == ErrorKind::PermissionDenied => {
                eprintln!("skipped: {error}");
                return;
            }
            other => other.unwrap(),
        };
        let (user, inside) = local::datagram_pair();
        let join = splice::join(&inside, &ping, Options::default()).unwrap();
        user.set_read_timeout(Some(LIMIT)).unwrap();
        for number in 0..3u8 {
            user.send(&[request, 0, 0, 0, 1, 2, 0, number, b'x'])
                .unwrap();
            let answer = read(&user);
            assert_eq!((answer[0], &answer[6..]), (reply, &[0, number, b'x'][..]));
        }
        join.abort();
    }
}
