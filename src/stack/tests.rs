//! A stack whose driver is called by the test, over a link whose other end the test holds.

use super::accept::begin::Begun;
use super::*;
use crate::clock::Clock;
use crate::error::SoError;
use crate::link::memory::{self, MemoryLink};
use crate::tcp::wire::Tuple;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::AtomicUsize;
use std::thread;
use std::time::Duration;

fn stack(frames: usize) -> (Stack, Driver, MemoryLink) {
    let config = memory::Config {
        frames,
        ..memory::Config::default()
    };
    let (link, far) = memory::pair(config);
    let builder = Stack::builder(link).address("10.0.0.1/24".parse().unwrap());
    let (stack, driver) = builder.build_with_driver().unwrap();
    (stack, driver, far)
}

fn peer() -> SocketAddr {
    "10.0.0.2:80".parse().unwrap()
}

#[test]
fn a_connection_has_one_timer() {
    let (stack, mut driver, _far) = stack(1);
    let connecting = [(); 3].map(|()| TcpSocket::new(&stack).start(peer()).unwrap());
    for _ in 0..100 {
        driver.poll().unwrap();
    }
    assert_eq!(
        stack.shared().queues[0].run_queue.lock().timers(),
        connecting.len()
    );
}

#[test]
fn a_port_is_taken_again_only_after_all_others() {
    let (stack, mut driver, _far) = stack(100_000);
    let mut ports = std::collections::HashSet::new();
    for count in 1..=10_000 {
        let stream = TcpSocket::new(&stack).start(peer()).unwrap();
        assert!(ports.insert(stream.local_addr().port()), "after {count}");
        stream.abort();
        drop(stream);
        driver.poll().unwrap();
    }
}

#[test]
fn a_stack_without_its_link_fails_at_once() {
    let (stack, mut driver, far) = stack(100);
    let listener = TcpListener::bind(&stack, "10.0.0.1:80").unwrap();
    let waiting = {
        let stack = stack.clone();
        let connecting = TcpSocket::new(&stack).start(peer()).unwrap();
        spawn(move || connecting.wait_connected(None))
    };
    drop(far);
    // Segments sent before are received first.
    while driver.poll().is_ok() {}
    let down = io::ErrorKind::NetworkDown;
    assert_eq!(
        io::Error::from(waiting.join().unwrap().unwrap_err()).kind(),
        down
    );
    assert_eq!(TcpStream::connect(&stack, peer()).unwrap_err().kind(), down);
    assert_eq!(listener.accept().unwrap_err().kind(), down);
    let other = TcpListener::bind(&stack, "10.0.0.1:81");
    assert_eq!(other.unwrap_err().kind(), down);
    assert_eq!(stack.stats().connections, 0);
}

#[test]
fn a_stack_with_a_full_link_leaves_no_state() {
    let (stack, mut driver, far) = stack(1);
    let connecting = [(); 3].map(|()| TcpSocket::new(&stack).start(peer()).unwrap());
    driver.poll().unwrap();
    let shared = Arc::downgrade(stack.shared());
    drop(connecting);
    drop(stack);
    driver.poll().unwrap();
    assert!(shared.strong_count() > 1, "resets wait for room");
    drop(driver);
    assert_eq!(shared.strong_count(), 0);
    drop(far);
}

fn syn_from(remote_port: u16) -> crate::tcp::wire::Segment {
    let tuple = Tuple {
        local: [10, 0, 0, 1].into(),
        remote: [10, 0, 0, 2].into(),
        local_port: 80,
        remote_port,
    };
    let syn = crate::tcp::wire::Header {
        seq: 5000,
        ack: 0,
        flags: crate::tcp::wire::SYN,
        window: 1000,
        options: crate::tcp::wire::SynOptions::default(),
    };
    accept::syn_queue::Syn::from(syn).segment(tuple)
}

#[test]
fn a_syn_whose_place_is_taken_is_its_connections() {
    let (stack, _driver, _far) = stack(100);
    let shared = stack.shared();
    let listener = stack
        .listen("10.0.0.1:80".parse().unwrap(), 2, false)
        .unwrap();
    let syn = syn_from(4000);
    let now = stack.now();
    let begin = || match shared.accept_syn(0, &listener, (&syn, now), None) {
        Ok(Begun::Runs(conn)) => conn,
        other => panic!("{other:?}"),
    };
    assert!(Arc::ptr_eq(&begin(), &begin()));
    assert_eq!(shared.accepting.half_open.lock().len(), 1);
    assert!(listener.reserve(), "one of two places is taken");
    assert!(!listener.reserve());
}

/// A clock that counts how often it is read.
#[derive(Debug, Default)]
struct Counting(AtomicUsize);

impl Clock for Counting {
    fn now(&self) -> Instant {
        self.0.fetch_add(1, Ordering::Relaxed);
        SystemClock.now()
    }
}

/// One reading is for its beginning, sequence number and timestamp; the other is the service step's.
#[test]
fn a_new_connection_reads_the_clock_once() {
    let clock = Arc::new(Counting::default());
    let (link, _far) = memory::pair(memory::Config::default());
    let builder = Stack::builder(link).address("10.0.0.1/24".parse().unwrap());
    let (stack, _driver) = builder.clock(clock.clone()).build_with_driver().unwrap();
    let readings = |begin: &dyn Fn()| {
        let before = clock.0.load(Ordering::Relaxed);
        begin();
        clock.0.load(Ordering::Relaxed) - before
    };
    let preset = crate::tcp::preset::Preset::default();
    let any = "0.0.0.0:0".parse().unwrap();
    let dialled = readings(&|| drop(stack.dial(any, peer(), None, &preset)));
    assert_eq!(dialled, 2);
    let listener = stack
        .listen("10.0.0.1:80".parse().unwrap(), 2, false)
        .unwrap();
    let now = stack.now();
    let syn = syn_from(4000);
    let accepted = readings(&|| {
        let begun = stack.shared().accept_syn(0, &listener, (&syn, now), None);
        assert!(matches!(begun, Ok(Begun::Runs(_))));
    });
    assert_eq!(accepted, 0, "the driver's reading");
}

/// It has no socket: there is nothing to wait for or to close.
#[test]
fn a_connection_without_a_socket_is_not_closed_by_it() {
    let (stack, mut driver, _far) = stack(100);
    let timeout = Duration::from_millis(5);
    let error = TcpStream::connect_timeout(&stack, peer(), timeout).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    let said = "10.0.0.2:80 has not answered within 5ms: allow more time";
    assert_eq!(error.to_string(), said);
    driver.poll().unwrap();
    assert_eq!(stack.stats().connections, 0, "the attempt leaves no state");
}

#[test]
fn no_argument_panics() {
    let mut config = memory::Config::default();
    config.capabilities.mtu = 1 << 20;
    let (link, _far) = memory::pair(config);
    let builder = Stack::builder(link).address("10.0.0.1/24".parse().unwrap());
    assert!(matches!(
        builder.build_with_driver(),
        Err(BuildError::Mtu(_))
    ));

    for mss in [0, 535, 65_496, usize::MAX] {
        let (link, _far) = memory::pair(memory::Config::default());
        let builder = Stack::builder(link).address("10.0.0.1/24".parse().unwrap());
        assert!(
            matches!(builder.mss(mss).build_with_driver(), Err(BuildError::Mss(bad)) if bad == mss)
        );
    }

    let mut config = memory::Config::default();
    config.capabilities.segment_v4 = Some(1 << 20);
    let (near, far) = memory::pair(config);
    let build = |link, address: &str, delay| {
        let builder = Stack::builder(link)
            .address(address.parse().unwrap())
            .connect_timeout(Duration::MAX)
            .user_timeout(Duration::MAX)
            .time_wait(Duration::MAX)
            .ack_delay(delay)
            .send_buffer(1 << 20)
            .receive_buffer(1 << 20);
        builder.build_with_driver().unwrap()
    };
    let (server, mut serving) = build(near, "10.0.0.2/24", None);
    let (client, mut dialling) = build(far, "10.0.0.1/24", Some(Duration::MAX));
    let listener = TcpListener::bind(&server, peer()).unwrap();
    let stream = TcpSocket::new(&client).start(peer()).unwrap();
    let run = |serving: &mut Driver, dialling: &mut Driver| {
        for _ in 0..20 {
            serving.poll().unwrap();
            dialling.poll().unwrap();
        }
    };
    run(&mut serving, &mut dialling);
    let (accepted, _) = listener.accept().unwrap();
    accepted.set_nonblocking(true);
    let mut received = 0;
    for _ in 0..20 {
        stream.set_nonblocking(true);
        drop(stream.send(&vec![1; 1 << 20]));
        run(&mut serving, &mut dialling);
        received += accepted.recv_chain(1 << 20).map_or(0, |chain| chain.len());
    }
    assert!(received > 1 << 16);
    drop((stream, accepted));
    run(&mut serving, &mut dialling);
    drop(dialling);
    let late = TcpStream::connect_timeout(&client, peer(), Duration::MAX);
    assert_eq!(late.unwrap_err().kind(), io::ErrorKind::NetworkDown);
}

#[test]
fn a_driver_that_panics_leaves_no_call_waiting() {
    let (stack, driver, _far) = stack(100);
    let connecting = TcpSocket::new(&stack).start(peer()).unwrap();
    let died = spawn(move || {
        let _driver = driver;
        panic!("a bug");
    });
    assert!(died.join().is_err());
    let error = io::Error::from(connecting.wait_connected(None).unwrap_err());
    assert_eq!(error.kind(), io::ErrorKind::NetworkDown);
}

#[expect(clippy::disallowed_methods, reason = "a user's thread")]
fn spawn<R: Send + 'static>(body: impl FnOnce() -> R + Send + 'static) -> thread::JoinHandle<R> {
    thread::spawn(body)
}

/// Two stacks, whose drivers the test calls.
fn two_stacks() -> ((Stack, Driver), (Stack, Driver)) {
    let (a, b) = memory::pair(memory::Config::default());
    let [one, other] = [(a, "10.0.0.1/24"), (b, "10.0.0.2/24")].map(|(link, address)| {
        let builder = Stack::builder(link).address(address.parse().unwrap());
        builder.build_with_driver().unwrap()
    });
    (one, other)
}

/// Polls both drivers until neither has work.
fn settle(drivers: [&mut Driver; 2]) {
    let [one, other] = drivers;
    while one.poll().unwrap() | other.poll().unwrap() {}
}

#[test]
fn a_callback_takes_connections_in_the_thread_that_receives() {
    let ((server, mut receives), (client, mut sends)) = two_stacks();
    let listener = TcpListener::bind(&server, "10.0.0.1:80").unwrap();
    let connect = || TcpSocket::new(&client).start("10.0.0.1:80".parse().unwrap());
    let first = connect().unwrap();
    settle([&mut receives, &mut sends]);
    let (sender, accepted) = std::sync::mpsc::channel();
    listener.on_accept(move |accepted| {
        let (stream, peer) = accepted.unwrap();
        // A callback may use the stack.
        stream.as_ref().send(b"hello").unwrap();
        sender.send((stream, peer, thread::current().id())).unwrap();
    });
    let (_waited, peer, _) = accepted.try_recv().unwrap();
    assert_eq!(peer, first.local_addr(), "one that waited already");
    let second = connect().unwrap();
    settle([&mut receives, &mut sends]);
    let (_stream, peer, called_by) = accepted.try_recv().unwrap();
    assert_eq!(
        (peer, called_by),
        (second.local_addr(), thread::current().id())
    );
    assert!(accepted.try_recv().is_err(), "each one once");
    assert_eq!(second.as_ref().recv_chain(100).unwrap().to_vec(), b"hello");
    assert_eq!(server.stats().connections, 2);
}

#[test]
fn a_callback_that_splices_serves_a_client_without_another_thread() {
    let ((proxy, mut receives), (far, mut sends)) = two_stacks();
    let backend = TcpListener::bind(&far, "10.0.0.2:80").unwrap();
    backend.set_nonblocking(true);
    let listener = TcpListener::bind(&proxy, "10.0.0.1:80").unwrap();
    let dial = proxy.clone();
    listener.on_accept(move |accepted| {
        let (client, _) = accepted.unwrap();
        let server = TcpSocket::new(&dial).start(peer()).unwrap();
        let options = crate::splice::Options::default()
            .dispatch(crate::splice::Dispatch::Direct)
            .forward_eof(true);
        crate::splice::join(client, server, options).unwrap();
    });
    let client = TcpSocket::new(&far)
        .start("10.0.0.1:80".parse().unwrap())
        .unwrap();
    settle([&mut receives, &mut sends]);
    client.as_ref().send(b"request").unwrap();
    settle([&mut receives, &mut sends]);
    let (server, _) = backend.accept().unwrap();
    assert_eq!(
        server.as_ref().recv_chain(100).unwrap().to_vec(),
        b"request"
    );
    server.as_ref().send(b"answer").unwrap();
    drop(server);
    settle([&mut receives, &mut sends]);
    assert_eq!(client.as_ref().recv_chain(100).unwrap().to_vec(), b"answer");
    assert!(
        client.as_ref().recv_chain(100).unwrap().is_empty(),
        "the end is forwarded"
    );
}

/// What the callback of a connection is told, and by which thread.
fn results(
    stream: &TcpStream,
) -> std::sync::mpsc::Receiver<(Result<(), SoError>, thread::ThreadId)> {
    let (sender, told) = std::sync::mpsc::channel();
    stream.on_connected(move |result| sender.send((result, thread::current().id())).unwrap());
    told
}

#[test]
fn a_callback_is_told_once_how_an_attempt_to_connect_has_ended() {
    let ((server, mut receives), (client, mut sends)) = two_stacks();
    let _listener = TcpListener::bind(&server, "10.0.0.1:80").unwrap();
    let start = |port| {
        let stream = TcpSocket::new(&client).start(([10, 0, 0, 1], port).into());
        let stream = stream.unwrap();
        let told = results(&stream);
        assert!(told.try_recv().is_err(), "not yet");
        (stream, told)
    };
    let (stream, told) = start(80);
    // For reading is still open: the attempt goes on.
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let late = results(&stream);
    assert!(told.recv().is_err(), "replaced");
    assert!(late.try_recv().is_err(), "not yet");
    settle([&mut receives, &mut sends]);
    let here = thread::current().id();
    assert_eq!(late.try_iter().collect::<Vec<_>>(), [(Ok(()), here)]);
    assert_eq!(results(&stream).recv(), Ok((Ok(()), here)), "at once");
    stream.abort();
    assert_eq!(results(&stream).recv(), Ok((Ok(()), here)), "it was");
    let (stream, told) = start(81);
    settle([&mut receives, &mut sends]);
    let refused = Err(SoError::ConnectionRefused);
    assert_eq!(told.try_iter().collect::<Vec<_>>(), [(refused, here)]);
    assert_eq!(results(&stream).recv(), Ok((refused, here)));
    assert_eq!(stream.take_error(), Some(SoError::ConnectionRefused));
    let aborted = Err(SoError::ConnectionAborted);
    assert_eq!(results(&stream).recv(), Ok((refused, here)), "it was");
    for end in [TcpStream::clone, |stream: &TcpStream| {
        stream.abort();
        stream.clone()
    }] {
        let (stream, told) = start(80);
        drop((end(&stream), stream));
        assert_eq!(told.try_iter().collect::<Vec<_>>(), [(aborted, here)]);
        assert!(told.recv().is_err(), "the callback is gone");
    }
    let (stack, mut driver, far) = stack(100);
    let told = results(&TcpSocket::new(&stack).start(peer()).unwrap());
    assert_eq!(told.recv(), Ok((aborted, here)), "no handle is left");
    let stream = TcpSocket::new(&stack).start(peer()).unwrap();
    let told = results(&stream);
    drop(far);
    while driver.poll().is_ok() {}
    let down = Err(SoError::NetworkDown);
    assert_eq!(told.try_iter().collect::<Vec<_>>(), [(down, here)]);
}

#[test]
fn a_callback_for_connections_is_told_that_the_stack_is_down() {
    let (stack, driver, _far) = stack(100);
    let listener = TcpListener::bind(&stack, "10.0.0.1:80").unwrap();
    let (sender, told) = std::sync::mpsc::channel();
    let again = sender.clone();
    listener.on_accept(move |accepted| sender.send(accepted.unwrap_err().kind()).unwrap());
    assert!(told.try_recv().is_err());
    drop(driver);
    // By a driver that has accepted connections meanwhile.
    listener.parts().1.announce();
    assert_eq!(
        told.try_iter().collect::<Vec<_>>(),
        [io::ErrorKind::NetworkDown]
    );
    listener.on_accept(move |accepted| again.send(accepted.unwrap_err().kind()).unwrap());
    assert_eq!(told.try_iter().count(), 1, "also one that comes later");
}

#[test]
fn a_listener_with_a_callback_that_is_closed() {
    let (stack, _driver, _far) = stack(100);
    let (sender, told) = std::sync::mpsc::channel::<()>();
    for close in [true, false] {
        let listener = TcpListener::bind(&stack, "10.0.0.1:80").unwrap();
        let held = sender.clone();
        listener.on_accept(move |_| held.send(()).unwrap());
        match close {
            true => listener.close(),
            false => drop(listener),
        }
    }
    drop(sender);
    assert_eq!(
        told.recv(),
        Err(std::sync::mpsc::RecvError),
        "the callbacks are gone"
    );
}
