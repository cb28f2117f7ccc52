//! Several drivers in one thread, over links that are sockets.
#![cfg(target_os = "linux")]
#![allow(missing_docs, clippy::unwrap_used, reason = "tests")]

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use sosplice::clock::{Clock, SystemClock};
use sosplice::error::SoError;
use sosplice::link::{
    Capabilities, Frame, Interest, Link, Packet, ReceiveError, TransmitError, memory,
};
use sosplice::splice::{Cause, Dispatch, Options, Role};
use sosplice::stack::Driver;
use sosplice::{Stack, TcpListener, TcpSocket, TcpStream};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::net::UnixDatagram;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

const LIMIT: Duration = Duration::from_secs(30);

/// One packet is one datagram.
#[derive(Debug)]
struct Datagrams {
    socket: UnixDatagram,
    wake: OwnedFd,
    waits: AtomicUsize,
    failed: AtomicBool,
}

impl Datagrams {
    fn pair() -> [Arc<Datagrams>; 2] {
        let (a, b) = UnixDatagram::pair().unwrap();
        [a, b].map(|socket| {
            socket.set_nonblocking(true).unwrap();
            Arc::new(Datagrams {
                socket,
                wake: eventfd(0, EventfdFlags::NONBLOCK).unwrap(),
                waits: AtomicUsize::new(0),
                failed: AtomicBool::new(false),
            })
        })
    }

    fn fail(&self) {
        self.failed.store(true, Ordering::Release);
        self.wake();
    }

    fn look(&self) -> io::Result<()> {
        match self.failed.load(Ordering::Acquire) {
            true => Err(io::Error::other("pulled")),
            false => Ok(()),
        }
    }
}

impl Link for Datagrams {
    fn capabilities(&self) -> Capabilities {
        Capabilities::new(1500)
    }

    fn receive(&self, frames: &mut Vec<Frame>, max: usize) -> Result<usize, ReceiveError> {
        let mut bytes = [0; 1500];
        for count in 0..max {
            let Ok(len) = self.socket.recv(&mut bytes) else {
                return Ok(count);
            };
            frames.push(Frame::new(&bytes[..len]));
        }
        Ok(max)
    }

    fn transmit(&self, packet: &Packet<'_>) -> Result<(), TransmitError> {
        match self.socket.send(&packet.to_vec()) {
            Ok(_) => Ok(()),
            Err(error) if error.kind() == ErrorKind::WouldBlock => Err(TransmitError::Full),
            Err(error) => Err(TransmitError::Refused(error)),
        }
    }

    fn wait(&self, interest: Interest, deadline: Option<Instant>) -> io::Result<()> {
        self.waits.fetch_add(1, Ordering::Relaxed);
        self.look()?;
        let out = if interest.overlaps(Interest::WRITABLE) {
            PollFlags::OUT
        } else {
            PollFlags::empty()
        };
        let left = deadline.map(|at| at.saturating_duration_since(SystemClock.now()));
        let limit = left.map(|left| Timespec::try_from(left).unwrap());
        let mut fds = [
            PollFd::new(&self.socket, PollFlags::IN | out),
            PollFd::new(&self.wake, PollFlags::IN),
        ];
        poll(&mut fds, limit.as_ref()).unwrap();
        rustix::io::read(&self.wake, &mut [0; 8]).ok();
        self.look()
    }

    fn wake(&self) {
        rustix::io::write(&self.wake, &1u64.to_ne_bytes()).ok();
    }

    fn descriptors(&self) -> Option<[BorrowedFd<'_>; 2]> {
        Some([self.socket.as_fd(), self.wake.as_fd()])
    }
}

/// client | front, back | server: front and back share a thread.
struct World {
    client: Stack,
    server: Stack,
    middle: Mutex<Vec<Stack>>,
    links: [Arc<Datagrams>; 2],
    thread: JoinHandle<io::Result<()>>,
}

fn builder(link: impl Link + 'static, address: &str) -> sosplice::stack::Builder {
    Stack::builder(link).address(address.parse().unwrap())
}

impl World {
    fn new(busy_poll: Duration) -> World {
        let ([a, b], [c, d]) = (Datagrams::pair(), Datagrams::pair());
        let links = [b.clone(), c.clone()];
        let manual = |link, address| {
            let builder = builder(link, address).busy_poll(busy_poll);
            builder
                .connect_timeout(Duration::from_millis(300))
                .build_with_driver()
                .unwrap()
        };
        let (front, one) = manual(b, "10.0.1.2/24");
        let (back, other) = manual(c, "10.0.2.2/24");
        let run = move || Driver::run_all([one, other]);
        World {
            client: builder(a, "10.0.1.1/24").build().unwrap(),
            server: builder(d, "10.0.2.1/24").build().unwrap(),
            middle: Mutex::new(vec![front, back]),
            links,
            thread: thread::Builder::new().spawn(run).unwrap(),
        }
    }

    fn stack(&self, at: usize) -> Stack {
        self.middle.lock().unwrap()[at].clone()
    }
}

fn connection(from: &Stack, to: &Stack, at: &str) -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind(to, at).unwrap();
    let near = TcpStream::connect(from, listener.local_addr()).unwrap();
    let (far, _) = listener.accept().unwrap();
    for stream in [&near, &far] {
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        stream.set_write_timeout(Some(LIMIT)).unwrap();
    }
    (near, far)
}

/// Both connections of a proxy, spliced in both directions: the ends, and the inner sockets.
fn spliced(world: &World) -> ([TcpStream; 2], [TcpStream; 2]) {
    let (near, inside) = connection(&world.client, &world.stack(0), "10.0.1.2:0");
    let (outside, far) = connection(&world.stack(1), &world.server, "10.0.2.1:0");
    let options = Options::default().dispatch(Dispatch::Direct);
    inside.splice_to(&outside, options.clone()).unwrap();
    outside.splice_to(&inside, options).unwrap();
    ([near, far], [inside, outside])
}

/// More than windows and links hold, so threads sleep and are woken, and links are full.
#[test]
fn a_stream_crosses_two_stacks_in_one_thread_both_ways() {
    for busy_poll in [Duration::ZERO, Duration::from_micros(200)] {
        let world = World::new(busy_poll);
        let ([near, far], _inner) = spliced(&world);
        let sent: Vec<u8> = (0..=250).cycle().take(3_000_000).collect();
        thread::scope(|scope| {
            for (from, to) in [(&near, &far), (&far, &near)] {
                let (mut writer, mut reader, sent) = (from, to, &sent);
                scope.spawn(move || writer.write_all(sent).unwrap());
                scope.spawn(move || {
                    let mut got = vec![0; sent.len()];
                    reader.read_exact(&mut got).unwrap();
                    assert!(got == *sent);
                });
            }
        });
    }
}

/// A user's thread, and a timer, have the attention of a thread that sleeps.
#[test]
fn a_thread_that_sleeps_is_woken_by_users_and_timers() {
    let world = World::new(Duration::ZERO);
    let (near, far) = connection(&world.stack(1), &world.server, "10.0.2.1:0");
    for _ in 0..100 {
        near.send(b"to").unwrap();
        assert_eq!(far.recv_chain(9).unwrap().to_vec(), b"to");
        far.send(b"fro").unwrap();
        assert_eq!(near.recv_chain(9).unwrap().to_vec(), b"fro");
    }
    let begin = SystemClock.now();
    let error = TcpStream::connect(&world.stack(0), "10.0.1.77:1").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TimedOut);
    assert!(SystemClock.now() - begin < Duration::from_secs(10));
    // Sleeping is one call for all links.
    assert!(world.links[0].waits.load(Ordering::Relaxed) < 50);
}

/// Both stacks of a thread, each connected to itself, and spliced to each other: their packets wake the
/// thread, and use no link.
#[test]
fn stacks_in_one_thread_talk_to_themselves() {
    for busy_poll in [Duration::ZERO, Duration::from_micros(200)] {
        let world = World::new(busy_poll);
        let (front, back) = (world.stack(0), world.stack(1));
        let (near, inside) = connection(&front, &front, "10.0.1.2:0");
        let (outside, far) = connection(&back, &back, "10.0.2.2:0");
        for _ in 0..100 {
            near.send(b"to").unwrap();
            assert_eq!(inside.recv_chain(9).unwrap().to_vec(), b"to");
            inside.send(b"fro").unwrap();
            assert_eq!(near.recv_chain(9).unwrap().to_vec(), b"fro");
        }
        let refused = TcpStream::connect(&front, "10.0.1.2:1").unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
        let options = Options::default().dispatch(Dispatch::Direct);
        inside.splice_to(&outside, options.clone()).unwrap();
        outside.splice_to(&inside, options).unwrap();
        let sent: Vec<u8> = (0..=250).cycle().take(3_000_000).collect();
        thread::scope(|scope| {
            for (from, to) in [(&near, &far), (&far, &near)] {
                let (mut writer, mut reader, sent) = (from, to, &sent);
                scope.spawn(move || writer.write_all(sent).unwrap());
                scope.spawn(move || {
                    let mut got = vec![0; sent.len()];
                    reader.read_exact(&mut got).unwrap();
                    assert!(got == *sent);
                });
            }
        });
        assert_eq!(front.stats().broken + back.stats().broken, 0);
    }
}

#[test]
fn a_link_that_fails_ends_its_stack_and_no_other() {
    let world = World::new(Duration::ZERO);
    let ([near, far], [inside, outside]) = spliced(&world);
    (&near).write_all(b"there").unwrap();
    (&far).read_exact(&mut [0; 5]).unwrap();
    world.links[1].fail();
    while inside.end().is_diverted(Role::Source) {
        thread::yield_now();
    }
    assert_eq!(
        outside.send(b"x").unwrap_err().kind(),
        ErrorKind::NetworkDown
    );
    assert!(
        TcpSocket::new(&world.stack(1))
            .start("10.0.2.1:1".parse().unwrap())
            .is_err()
    );
    (&near).write_all(b"still").unwrap();
    assert_eq!(inside.recv_chain(5).unwrap().to_vec(), b"still");
    inside.send(b"alive").unwrap();
    assert_eq!(near.recv_chain(5).unwrap().to_vec(), b"alive");
    let end = inside.splice_end(Role::Source).unwrap();
    assert_eq!(end.cause, Cause::SinkError(SoError::NetworkDown));
    drop((near, far, inside, outside));
    world.middle.lock().unwrap().clear();
    world.thread.join().unwrap().unwrap();
}

#[test]
fn the_thread_ends_when_its_stacks_have_no_handles() {
    let world = World::new(Duration::ZERO);
    let (ends, inner) = spliced(&world);
    drop((inner, ends));
    world.middle.lock().unwrap().clear();
    world.thread.join().unwrap().unwrap();
}

#[test]
fn a_link_without_descriptors_runs_alone_or_not_at_all() {
    let (a, b) = memory::pair(memory::Config::default());
    let (one, first) = builder(a, "10.0.0.1/24").build_with_driver().unwrap();
    let (other, second) = builder(b, "10.0.0.2/24").build_with_driver().unwrap();
    let refused = Driver::run_all([first, second]).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::InvalidInput);
    for (stack, to) in [(&one, "10.0.0.2:1"), (&other, "10.0.0.1:1")] {
        let down = TcpSocket::new(stack)
            .start(to.parse().unwrap())
            .unwrap_err();
        assert_eq!(down.kind(), ErrorKind::NetworkDown);
    }
    let (a, b) = memory::pair(memory::Config::default());
    let (alone, driver) = builder(a, "10.0.0.1/24").build_with_driver().unwrap();
    let peer = builder(b, "10.0.0.2/24").build().unwrap();
    let thread = thread::Builder::new()
        .spawn(|| Driver::run_all([driver]))
        .unwrap();
    let (near, far) = connection(&alone, &peer, "10.0.0.2:0");
    near.send(b"alone").unwrap();
    assert_eq!(far.recv_chain(5).unwrap().to_vec(), b"alone");
    drop((near, far, alone));
    thread.join().unwrap().unwrap();
}

const QUEUES: usize = 2;

/// Both sides of a link with several queues.
fn queues() -> (Vec<Arc<Datagrams>>, Vec<Arc<Datagrams>>) {
    let ends = (0..QUEUES).map(|_| Datagrams::pair());
    ends.map(|[near, far]| (near, far)).unzip()
}

fn over(queues: Vec<Arc<Datagrams>>, address: &str) -> sosplice::stack::Builder {
    Stack::with_queues(queues).address(address.parse().unwrap())
}

/// Queue i of a proxy's both stacks in thread i: a client's splices never leave it.
#[test]
fn each_queue_of_two_stacks_has_a_thread() {
    const CLIENTS: usize = 6;
    let ((a, b), (c, d)) = (queues(), queues());
    let client = over(a, "10.0.1.1/24").build().unwrap();
    let server = over(d, "10.0.2.1/24").build().unwrap();
    let (front, fronts) = over(b, "10.0.1.2/24").build_with_drivers().unwrap();
    let (back, backs) = over(c, "10.0.2.2/24").build_with_drivers().unwrap();
    let threads: Vec<_> = fronts
        .into_iter()
        .zip(backs)
        .map(|(front, back)| {
            let run = move || Driver::run_all([front, back]);
            thread::Builder::new().spawn(run).unwrap()
        })
        .collect();
    let (listener, service) = (
        TcpListener::bind(&front, "10.0.1.2:80").unwrap(),
        TcpListener::bind(&server, "10.0.2.1:80").unwrap(),
    );
    let sent: Vec<u8> = (0..=250).cycle().take(300_000).collect();
    thread::scope(|scope| {
        for count in 0..CLIENTS {
            let queue = count % QUEUES;
            let to = listener.local_addr();
            let near = TcpSocket::new(&client).queue(queue).connect(to).unwrap();
            let (inside, _) = listener.accept().unwrap();
            assert_eq!(inside.queue(), queue);
            let to = service.local_addr();
            let outside = TcpSocket::new(&back).queue(queue).connect(to).unwrap();
            let (far, _) = service.accept().unwrap();
            let options = Options::default()
                .dispatch(Dispatch::Direct)
                .forward_eof(true);
            inside.splice_to(&outside, options.clone()).unwrap();
            outside.splice_to(&inside, options).unwrap();
            let sent = &sent;
            let (mut writer, mut reader) = (near, far);
            scope.spawn(move || {
                writer.set_write_timeout(Some(LIMIT)).unwrap();
                writer.write_all(sent).unwrap();
                writer.shutdown(std::net::Shutdown::Write).unwrap();
                assert_eq!(writer.read(&mut [0; 1]).unwrap(), 0);
            });
            scope.spawn(move || {
                let _both = (inside, outside);
                reader.set_read_timeout(Some(LIMIT)).unwrap();
                let mut got = Vec::new();
                reader.read_to_end(&mut got).unwrap();
                assert!(got == *sent);
                reader.shutdown(std::net::Shutdown::Write).unwrap();
                assert_eq!(reader.read(&mut [0; 1]).unwrap(), 0);
            });
        }
    });
    for stack in [&front, &back] {
        let stats = stack.queue_stats();
        // Larger first flights, fewer frames.
        let least = 10;
        let busy = |one: &sosplice::stack::QueueStats| {
            one.frames_received > least && one.segments_astray == 0
        };
        assert!(stats.iter().all(busy), "{stats:?}");
    }
    drop((listener, service, client, server, front, back));
    for thread in threads {
        thread.join().unwrap().unwrap();
    }
}
