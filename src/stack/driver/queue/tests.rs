//! Stacks with several receiving threads, over links whose steering is right, wrong, or none.

use crate::clock::{Clock, SystemClock};
use crate::link::memory::{self, MemoryLink};
use crate::link::{
    Capabilities, Checksum, Flow, Frame, Interest, Link, Packet, ReceiveError, TransmitError,
};
use crate::lock::Mutex;
use crate::long::times;
use crate::stack::packet::TestClock;
use crate::stack::{BuildError, Driver, Stack, TcpListener, TcpSocket, TcpStream};
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::thread;
use std::time::{Duration, Instant};

const SERVER: &str = "10.0.0.1:80";
/// Time limit of the tests.
const LIMIT: Duration = Duration::from_secs(60);

fn server() -> SocketAddr {
    SERVER.parse().unwrap()
}

fn stacks<A: Link + 'static, B: Link + 'static>(near: Vec<A>, far: Vec<B>) -> (Stack, Stack) {
    let server = Stack::with_queues(near).address("10.0.0.1/24".parse().unwrap());
    let client = Stack::with_queues(far).address("10.0.0.2/24".parse().unwrap());
    (server.build().unwrap(), client.build().unwrap())
}

/// The byte of the stream at this position.
fn byte(seed: u64, at: usize) -> u8 {
    let mixed = (at as u64 ^ seed << 32).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed.to_be_bytes()[1]
}

fn bytes(seed: u64, len: usize) -> Vec<u8> {
    (0..len).map(|at| byte(seed, at)).collect()
}

fn limit(stream: &TcpStream) {
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    stream.set_write_timeout(Some(LIMIT)).unwrap();
}

/// Echoes all bytes of this many connections, one thread each.
fn echo(listener: &TcpListener, connections: usize) {
    thread::scope(|scope| {
        for _ in 0..connections {
            let (mut stream, _) = listener.accept().unwrap();
            limit(&stream);
            let body = move || {
                let mut part = vec![0; 16 * 1024];
                loop {
                    let count = stream.read(&mut part).unwrap();
                    if count == 0 {
                        return;
                    }
                    stream.write_all(&part[..count]).unwrap();
                }
            };
            small_thread(scope, body);
        }
    });
}

fn small_thread<'scope>(
    scope: &'scope thread::Scope<'scope, '_>,
    body: impl FnOnce() + Send + 'scope,
) {
    let builder = thread::Builder::new().stack_size(128 * 1024);
    drop(builder.spawn_scoped(scope, body).unwrap());
}

/// Sends bytes and receives their echo, on several connections at once, in rounds of new connections.
/// Every byte is compared.
fn there_and_back((server_stack, client): &(Stack, Stack), connections: usize, len: usize) {
    let listener = TcpListener::bind_with_backlog(server_stack, SERVER, connections).unwrap();
    thread::scope(|scope| {
        small_thread(scope, || echo(&listener, connections));
        for seed in 0..connections as u64 {
            small_thread(scope, move || {
                let mut stream = TcpStream::connect(client, SERVER).unwrap();
                limit(&stream);
                let (sent, mut received) = (bytes(seed, len), Vec::new());
                thread::scope(|scope| {
                    let mut writer = stream.clone();
                    let sent = &sent;
                    small_thread(scope, move || {
                        writer.write_all(sent).unwrap();
                        writer.shutdown(Shutdown::Write).unwrap();
                    });
                    stream.read_to_end(&mut received).unwrap();
                });
                assert!(received == sent, "connection {seed}");
            });
        }
    });
    for stack in [server_stack, client] {
        assert_eq!(stack.stats().broken, 0);
    }
}

/// A queue whose `steer` returns the next one: every frame for an active open arrives on the wrong
/// queue.
#[derive(Debug)]
struct Lying(MemoryLink, usize);

impl Link for Lying {
    fn capabilities(&self) -> Capabilities {
        self.0.capabilities()
    }
    fn receive(&self, frames: &mut Vec<Frame>, max: usize) -> Result<usize, ReceiveError> {
        self.0.receive(frames, max)
    }
    fn transmit(&self, packet: &Packet<'_>) -> Result<(), TransmitError> {
        self.0.transmit(packet)
    }
    fn wait(&self, interest: Interest, deadline: Option<Instant>) -> io::Result<()> {
        self.0.wait(interest, deadline)
    }
    fn wake(&self) {
        self.0.wake();
    }
    fn steer(&self, flow: &Flow) -> Option<usize> {
        self.0.steer(flow).map(|queue| (queue + 1) % self.1)
    }
}

/// A queue that sends on all of them in turn.
#[derive(Debug)]
struct Spraying {
    own: usize,
    all: Arc<[MemoryLink]>,
    turn: Arc<AtomicUsize>,
}

impl Spraying {
    fn over(links: Vec<MemoryLink>) -> Vec<Spraying> {
        let all: Arc<[MemoryLink]> = links.into();
        let turn = Arc::new(AtomicUsize::new(0));
        let one = |own| Spraying {
            own,
            all: all.clone(),
            turn: turn.clone(),
        };
        (0..all.len()).map(one).collect()
    }
}

impl Link for Spraying {
    fn capabilities(&self) -> Capabilities {
        self.all[self.own].capabilities()
    }
    fn receive(&self, frames: &mut Vec<Frame>, max: usize) -> Result<usize, ReceiveError> {
        self.all[self.own].receive(frames, max)
    }
    fn transmit(&self, packet: &Packet<'_>) -> Result<(), TransmitError> {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        self.all[turn % self.all.len()].transmit(packet)
    }
    fn wait(&self, interest: Interest, deadline: Option<Instant>) -> io::Result<()> {
        self.all[self.own].wait(interest, deadline)
    }
    fn wake(&self) {
        self.all[self.own].wake();
    }
}

fn queues(count: usize) -> (Vec<MemoryLink>, Vec<MemoryLink>) {
    memory::queues(count, memory::Config::default())
}

/// Unconnected pairs, without steering by a hash; never full.
fn pairs(count: usize) -> (Vec<MemoryLink>, Vec<MemoryLink>) {
    let config = memory::Config {
        frames: 1 << 20,
        bytes: 1 << 30,
        ..memory::Config::default()
    };
    (0..count).map(|_| memory::pair(config)).unzip()
}

#[test]
fn traffic_on_both_queues_and_none_astray() {
    let (near, far) = queues(2);
    let both = stacks(near, far);
    there_and_back(&both, 40, 50_000);
    for stack in [&both.0, &both.1] {
        for one in stack.queue_stats() {
            assert!(one.frames_received > 40, "{one:?}");
            assert_eq!(one.segments_astray, 0, "{one:?}");
        }
    }
}

#[test]
fn every_frame_by_the_wrong_queue() {
    let (near, far) = queues(2);
    let far = far.into_iter().map(|link| Lying(link, 2)).collect();
    let both = stacks(near, far);
    there_and_back(&both, 40, 50_000);
    for one in both.1.queue_stats() {
        assert!(one.frames_received > 40, "{one:?}");
        // Except for late frames to a record in TIME-WAIT: at most one for each connection.
        let late = one.frames_received - one.segments_astray;
        assert!(late <= 40, "{one:?}");
    }
    assert!(
        both.0
            .queue_stats()
            .iter()
            .all(|one| one.segments_astray == 0)
    );
}

#[test]
fn every_frame_by_another_queue_than_the_one_before() {
    let (near, far) = pairs(2);
    let both = stacks(Spraying::over(near), Spraying::over(far));
    there_and_back(&both, 40, 50_000);
    for stack in [&both.0, &both.1] {
        assert!(
            stack
                .queue_stats()
                .iter()
                .all(|one| one.segments_astray > 40)
        );
    }
}

/// A hundred connections or several, two receiving threads on each side, links that are full most of the
/// time, every byte compared.
#[test]
fn stress() {
    let config = memory::Config {
        frames: 16,
        ..memory::Config::default()
    };
    let (near, far) = memory::queues(2, config);
    let start = SystemClock.now();
    there_and_back(&stacks(near, far), times(100, 300), 100_000);
    let (near, far) = pairs(2);
    there_and_back(
        &stacks(Spraying::over(near), Spraying::over(far)),
        times(100, 300),
        20_000,
    );
    assert!(SystemClock.now() - start < 2 * LIMIT);
}

#[test]
fn connections_are_on_the_requested_queue() {
    let (near, far) = queues(3);
    let (server_stack, client) = stacks(near, far);
    let listener = TcpListener::bind(&server_stack, SERVER).unwrap();
    for count in 0..100 {
        let queue = count % 3;
        let near = TcpSocket::new(&client)
            .queue(queue)
            .connect(server())
            .unwrap();
        let (far, _) = listener.accept().unwrap();
        assert_eq!((near.queue(), far.queue()), (queue, queue));
        near.abort();
    }
    for stack in [&server_stack, &client] {
        assert!(
            stack
                .queue_stats()
                .iter()
                .all(|one| one.segments_astray == 0)
        );
    }
}

#[test]
fn a_queue_has_its_share_of_the_ports() {
    let (_near, far) = queues(2);
    let builder = Stack::with_queues(far).address("10.0.0.2/24".parse().unwrap());
    let builder = builder.ephemeral_ports(1000..=1099);
    let (client, _drivers) = builder.build_with_drivers().unwrap();
    let mut streams = Vec::new();
    let error = loop {
        match TcpSocket::new(&client).queue(1).start(server()) {
            Ok(stream) => streams.push(stream),
            Err(error) => break error,
        }
    };
    assert_eq!(error.kind(), ErrorKind::AddrNotAvailable);
    assert!(error.to_string().contains("by queue 1"), "{error}");
    assert!((20..80).contains(&streams.len()), "{}", streams.len());
    let rest = (streams.len()..100).map(|_| TcpSocket::new(&client).queue(0).start(server()));
    let rest: Vec<_> = rest.collect::<Result<_, _>>().unwrap();
    assert!(TcpSocket::new(&client).start(server()).is_err());
    drop(rest);
}

/// Waits until the last reference to the stack is dropped, so until all its threads have ended.
fn until_dropped<T>(shared: &Weak<T>) {
    let start = SystemClock.now();
    while shared.strong_count() > 0 {
        assert!(SystemClock.now() - start < LIMIT, "a thread has not ended");
        thread::yield_now();
    }
}

#[test]
fn all_threads_end_with_the_last_handle() {
    let (near, far) = queues(4);
    let (server_stack, client) = stacks(near, far);
    let gone = [&server_stack, &client].map(|stack| Arc::downgrade(stack.shared()));
    let listener = TcpListener::bind(&server_stack, SERVER).unwrap();
    let streams: Vec<_> = (0..4)
        .map(|queue| {
            let near = TcpSocket::new(&client)
                .queue(queue)
                .connect(server())
                .unwrap();
            (near, listener.accept().unwrap().0)
        })
        .collect();
    drop((listener, server_stack, client));
    assert!(gone.iter().all(|one| one.strong_count() > 0));
    (&streams[3].0).write_all(b"the stack is there").unwrap();
    (&streams[3].1).read_exact(&mut [0; 18]).unwrap();
    drop(streams);
    gone.iter().for_each(until_dropped);
}

#[test]
fn one_queue_that_fails_ends_the_stack_and_its_threads() {
    let (near, mut far) = queues(3);
    let builder = Stack::with_queues(near).address("10.0.0.1/24".parse().unwrap());
    let stack = builder.build().unwrap();
    let listener = TcpListener::bind(&stack, SERVER).unwrap();
    let connecting = TcpSocket::new(&stack)
        .start("10.0.0.2:9".parse().unwrap())
        .unwrap();
    drop(far.remove(1));
    let down = ErrorKind::NetworkDown;
    assert_eq!(listener.accept().unwrap_err().kind(), down);
    let error = connecting.wait_connected(None).unwrap_err();
    assert_eq!(io::Error::from(error).kind(), down);
    let late = TcpSocket::new(&stack).start("10.0.0.2:9".parse().unwrap());
    assert_eq!(late.unwrap_err().kind(), down);
    let shared = Arc::downgrade(stack.shared());
    drop((listener, connecting, stack));
    until_dropped(&shared);
}

/// Fails when its bit is set, which only its own driver notices.
#[derive(Debug)]
struct Failing {
    link: MemoryLink,
    /// The queues that fail, one bit each.
    fails: Arc<AtomicUsize>,
    own: usize,
}

impl Link for Failing {
    fn capabilities(&self) -> Capabilities {
        self.link.capabilities()
    }
    fn receive(&self, frames: &mut Vec<Frame>, max: usize) -> Result<usize, ReceiveError> {
        if self.fails.load(Ordering::Acquire) >> self.own & 1 != 0 {
            return Err(ReceiveError::Gone(io::Error::other("pulled")));
        }
        self.link.receive(frames, max)
    }
    fn transmit(&self, packet: &Packet<'_>) -> Result<(), TransmitError> {
        self.link.transmit(packet)
    }
    fn wait(&self, interest: Interest, deadline: Option<Instant>) -> io::Result<()> {
        self.link.wait(interest, deadline)
    }
    fn wake(&self) {
        self.link.wake();
    }
    fn steer(&self, flow: &Flow) -> Option<usize> {
        self.link.steer(flow)
    }
}

/// A stack whose queues can fail separately, and a client with the same number.
fn failing(count: usize) -> (Stack, Stack, Arc<AtomicUsize>) {
    let (near, far) = queues(count);
    let fails = Arc::new(AtomicUsize::new(0));
    let failing = near.into_iter().enumerate().map(|(own, link)| Failing {
        link,
        fails: fails.clone(),
        own,
    });
    let builder = Stack::with_queues(failing).address("10.0.0.1/24".parse().unwrap());
    let builder = builder.time_wait(Duration::from_millis(20));
    let client = Stack::with_queues(far).address("10.0.0.2/24".parse().unwrap());
    (builder.build().unwrap(), client.build().unwrap(), fails)
}

fn is_network_down(mut stream: &TcpStream) -> bool {
    let error = stream.read(&mut [0; 1]).unwrap_err();
    error.kind() == ErrorKind::NetworkDown
}

/// Guards `Shared::queue_gone`: connections with a failed home queue end, also later ones, and the
/// other queues' connections and listeners continue. With the last queue all end.
#[test]
fn a_queue_that_fails_takes_only_its_own() {
    for fails_first in [0, 1] {
        let (stack, client, fails) = failing(2);
        let listener = TcpListener::bind(&stack, SERVER).unwrap();
        let pairs = [0, 1].map(|queue| {
            let near = TcpSocket::new(&client)
                .queue(queue)
                .connect(server())
                .unwrap();
            (near, listener.accept().unwrap().0)
        });
        let stays = 1 - fails_first;
        fails.store(1 << fails_first, Ordering::Release);
        // Wakes its driver, which finds it gone.
        drop(TcpSocket::new(&client).queue(fails_first).start(server()));
        assert!(is_network_down(&pairs[fails_first].1));
        let (mut near, mut inside) = (&pairs[stays].0, &pairs[stays].1);
        near.write_all(b"still there").unwrap();
        let mut heard = [0; 11];
        inside.read_exact(&mut heard).unwrap();
        assert_eq!(&heard, b"still there");
        // A new connection on the remaining queue, in both directions, and none on the other.
        let more = TcpSocket::new(&client)
            .queue(stays)
            .connect(server())
            .unwrap();
        drop((more, listener.accept().unwrap()));
        let back = TcpListener::bind(&client, "10.0.0.2:80").unwrap();
        let to = "10.0.0.2:80".parse().unwrap();
        for _ in 0..4 {
            let dialled = TcpSocket::new(&stack).start(to).unwrap();
            assert_eq!(dialled.queue(), stays);
            drop((dialled, back.accept().unwrap()));
        }
        let error = TcpSocket::new(&stack)
            .queue(fails_first)
            .connect(to)
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NetworkDown);
        fails.store(3, Ordering::Release);
        drop(TcpSocket::new(&client).queue(stays).start(server()));
        assert!(is_network_down(inside));
        let error = listener.accept().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NetworkDown);
    }
}

/// Guards `Shared::first_up`: another driver takes over the expiry of records.
#[test]
fn when_the_first_queue_is_gone_another_one_expires_records() {
    let (stack, client, fails) = failing(2);
    let listener = TcpListener::bind(&stack, SERVER).unwrap();
    fails.store(1, Ordering::Release);
    drop(TcpSocket::new(&client).queue(0).start(server()));
    while !stack.shared().queues[0].is_gone() {
        thread::yield_now();
    }
    assert_eq!(stack.shared().first_up(), 1);
    let near = TcpSocket::new(&client).queue(1).connect(server()).unwrap();
    let (inside, _) = listener.accept().unwrap();
    drop(inside);
    drop(near);
    // Closed first here, so a record remains, and expires.
    while stack.stats().time_wait == 0 && stack.stats().connections > 0 {
        thread::yield_now();
    }
    while stack.stats().time_wait > 0 {
        thread::yield_now();
    }
}

/// Loses received frames, as often as it is set.
#[derive(Debug)]
struct Losing {
    link: MemoryLink,
    loses: Arc<AtomicUsize>,
}

impl Link for Losing {
    fn capabilities(&self) -> Capabilities {
        self.link.capabilities()
    }
    fn receive(&self, frames: &mut Vec<Frame>, max: usize) -> Result<usize, ReceiveError> {
        let left = self.loses.load(Ordering::Acquire);
        if left == 0 {
            return self.link.receive(frames, max);
        }
        self.loses.store(left - 1, Ordering::Release);
        self.link.receive(frames, 1)?;
        Err(ReceiveError::Lost(io::Error::other("garbled")))
    }
    fn transmit(&self, packet: &Packet<'_>) -> Result<(), TransmitError> {
        match self.loses.load(Ordering::Acquire) {
            0 => self.link.transmit(packet),
            _ => Err(TransmitError::Refused(io::Error::other("garbled"))),
        }
    }
    fn wait(&self, interest: Interest, deadline: Option<Instant>) -> io::Result<()> {
        self.link.wait(interest, deadline)
    }
    fn wake(&self) {
        self.link.wake();
    }
}

/// Guards `Driver::receive`: a lost frame is counted, one received with it is kept, and a link that
/// returns only errors is not called again before the end of the back-off.
#[test]
fn frames_lost_by_a_link_are_counted_and_end_no_connection() {
    let (link, far) = memory::pair(memory::Config::default());
    let loses = Arc::new(AtomicUsize::new(0));
    let losing = Losing {
        link,
        loses: loses.clone(),
    };
    let clock = Arc::new(TestClock(Mutex::new(SystemClock.now())));
    let builder = Stack::builder(losing).address("10.0.0.1/24".parse().unwrap());
    let (stack, mut driver) = builder.clock(clock.clone()).build_with_driver().unwrap();
    let ping = |driver: &mut Driver| {
        drop(far.transmit(&Packet {
            header: &[0x45; 40],
            payload: &[],
            ip_header_len: 20,
            checksum: Checksum::Complete,
            segment: None,
        }));
        driver.poll().unwrap()
    };
    assert!(ping(&mut driver));
    assert_eq!(driver.interest(), Interest::READABLE);
    // With frames, so that it continues at once.
    loses.store(2, Ordering::Release);
    assert!(ping(&mut driver) && ping(&mut driver));
    assert_eq!(
        (stack.stats().receive_errors, stack.stats().frames_received),
        (2, 3)
    );
    assert_eq!(driver.poll_at(), None);
    // Without frames.
    loses.store(usize::MAX, Ordering::Release);
    let mut asked = Vec::new();
    for milli in 0..400 {
        let left = loses.load(Ordering::Acquire);
        assert!(!driver.poll().unwrap());
        if loses.load(Ordering::Acquire) < left {
            asked.push(milli);
        }
        assert_eq!(driver.interest(), Interest::NONE);
        assert!(driver.poll_at().is_some());
        *clock.0.lock() += Duration::from_millis(1);
    }
    assert_eq!(asked, [0, 1, 3, 7, 15, 31, 63, 127, 255, 383]);
    // It recovers.
    loses.store(0, Ordering::Release);
    *clock.0.lock() += Duration::from_millis(128);
    assert!(ping(&mut driver));
    assert_eq!(driver.interest(), Interest::READABLE);
    assert_eq!(stack.stats().receive_errors, 12);
}

#[test]
fn invalid_sets_of_queues_are_refused() {
    let address = || "10.0.0.1/24".parse().unwrap();
    let none = Stack::with_queues(Vec::<MemoryLink>::new()).address(address());
    let error = none.build().unwrap_err();
    assert!(matches!(error, BuildError::QueueCount(0)), "{error}");
    let (first, _far) = memory::pair(memory::Config::default());
    let mut config = memory::Config::default();
    config.capabilities.mtu = 9000;
    let (other, _far) = memory::pair(config);
    let unlike = Stack::builder(first).queue(other).address(address());
    let error = unlike.build().unwrap_err();
    assert!(
        matches!(error, BuildError::UnlikeQueues { queue: 1, .. }),
        "{error}"
    );
    let (links, _far) = queues(2);
    let error = Stack::with_queues(links)
        .address(address())
        .build_with_driver()
        .unwrap_err();
    assert!(matches!(error, BuildError::SeveralDrivers(2)), "{error}");
}

/// Any number of a stack's drivers may share a thread.
#[test]
fn two_drivers_in_turn_in_one_thread() {
    let (near, far) = queues(2);
    let (server_stack, mut serving) = manual(near, "10.0.0.1/24");
    let (client, mut dialling) = manual(far, "10.0.0.2/24");
    let listener = TcpListener::bind(&server_stack, SERVER).unwrap();
    let streams: Vec<_> = (0..10)
        .map(|_| TcpSocket::new(&client).start(server()).unwrap())
        .collect();
    let mut turn = || {
        for driver in serving.iter_mut().chain(&mut dialling) {
            driver.poll().unwrap();
        }
    };
    (0..5).for_each(|_| turn());
    for stream in &streams {
        stream.send(b"hello").unwrap();
    }
    (0..5).for_each(|_| turn());
    for _ in &streams {
        let (stream, _) = listener.accept().unwrap();
        assert_eq!(stream.recv_chain(9).unwrap().to_vec(), b"hello");
    }
}

fn manual(links: Vec<MemoryLink>, address: &str) -> (Stack, Vec<Driver>) {
    let builder = Stack::with_queues(links).address(address.parse().unwrap());
    builder.build_with_drivers().unwrap()
}

/// An unhandled frame, for the hook.
#[cfg(any(target_os = "linux", target_os = "android"))]
fn udp(link: &MemoryLink, port: u8) {
    let ends = ([10, 0, 0, 2].into(), [10, 0, 0, 1].into());
    let packet = crate::ip::samples::udp(ends, (7, port.into()), b"");
    let packet = Packet {
        header: &packet,
        payload: &[],
        ip_header_len: 20,
        checksum: Checksum::Complete,
        segment: None,
    };
    link.transmit(&packet).unwrap();
}

#[cfg(any(target_os = "linux", target_os = "android"))]
#[test]
fn driver_threads_have_names_and_run_where_they_are_to() {
    use rustix::thread::sched_getaffinity;
    let (near, far) = pairs(2);
    let (sender, receiver) = crossbeam_channel::unbounded();
    let hook = move |_: &Frame| {
        let set = sched_getaffinity(None).unwrap();
        let name = thread::current().name().unwrap_or_default().to_owned();
        sender.send((name, set.count(), set.is_set(0))).is_ok()
    };
    let builder = Stack::with_queues(near).address("10.0.0.1/24".parse().unwrap());
    let _stack = builder.affinity([0]).on_unhandled(hook).build().unwrap();
    for (far, name) in far.iter().zip(["sosplice:driver", "sosplice:driver:1"]) {
        udp(far, 9);
        let seen = receiver.recv_timeout(LIMIT).unwrap();
        assert_eq!(seen, (name.to_owned(), 1, true));
    }
}
