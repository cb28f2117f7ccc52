//! TUN devices that other programs use too: before, beside and behind this crate. Needs root, `ip`,
//! `ethtool` and `python3`; everything happens in namespaces that each test makes and removes.
#![cfg(target_os = "linux")]
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "tests"
)]

#[path = "support/namespace.rs"]
mod namespace;

use namespace::{Namespace, available_with, run};
use rustix::fd::AsFd;
use sosplice::link::tun::{self, Difference, OpenError, Tun};
use sosplice::link::{Capabilities, Frame, Interest, Link, Packet, ReceiveError, TransmitError};
use sosplice::{Stack, TcpListener};
use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

const IFF_TUN: u32 = 0x0001;
const IFF_MULTI_QUEUE: u32 = 0x0100;
const IFF_NO_PI: u32 = 0x1000;
const IFF_VNET_HDR: u32 = 0x4000;
const TUN_F_CSUM: u32 = 1;
const TUN_F_TSO4: u32 = 2;

/// Another program with a TUN device: it executes commands from its standard input, and answers each
/// with a line.
const OTHER: &str = r"
import errno, fcntl, os, select, struct, sys, time
SETIFF, SETOFFLOAD, GETHDR, SETHDR = 0x400454ca, 0x400454d0, 0x800454d7, 0x400454d8
fd = os.open('/dev/net/tun', os.O_RDWR)
for line in sys.stdin:
    word, *args = line.split()
    if word == 'attach':
        while True:
            try:
                fcntl.ioctl(fd, SETIFF, struct.pack('16sH22x', args[0].encode(), int(args[1])))
                break
            except OSError as error:
                if error.errno != errno.EBUSY:
                    raise
                time.sleep(0.01)
        print('done', flush=True)
    elif word == 'offload':
        fcntl.ioctl(fd, SETOFFLOAD, int(args[0]))
        print('done', flush=True)
    elif word == 'header':
        fcntl.ioctl(fd, SETHDR, struct.pack('i', int(args[0])))
        print('done', flush=True)
    elif word == 'header?':
        print(struct.unpack('i', fcntl.ioctl(fd, GETHDR, b'\0' * 4))[0], flush=True)
    elif word == 'syn?':
        while True:
            if not select.select([fd], [], [], 10)[0]:
                print('nothing', flush=True)
                break
            packet = os.read(fd, 65536)
            if packet[0] == 0x45 and packet[9] == 6:
                print(packet.hex(), flush=True)
                break
";

#[derive(Debug)]
struct Other {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl Other {
    fn new(namespace: &Namespace) -> Other {
        let mut child = Command::new("ip")
            .args(["netns", "exec", namespace.name(), "python3", "-c", OTHER])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        Other {
            input: child.stdin.take(),
            output: BufReader::new(child.stdout.take().unwrap()),
            child,
        }
    }

    fn attached(namespace: &Namespace, flags: u32) -> Other {
        let mut other = Other::new(namespace);
        other.tell(&format!("attach t0 {flags}"));
        other
    }

    fn ask(&mut self, command: &str) -> String {
        writeln!(self.input.as_mut().unwrap(), "{command}").unwrap();
        let mut answer = String::new();
        self.output.read_line(&mut answer).unwrap();
        answer.trim().to_owned()
    }

    fn tell(&mut self, command: &str) {
        assert_eq!(self.ask(command), "done", "{command}");
    }

    /// As if it had crashed.
    fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        self.input = None;
        self.child.wait().ok();
    }
}

fn ready(test: &str) -> bool {
    available_with(test, &["ethtool", "python3"])
}

/// Which of checksums, TSO over IPv4 and TSO over IPv6 `ethtool` shows as on.
fn offloads(namespace: &Namespace, device: &str) -> [bool; 3] {
    let output = Command::new("ip")
        .args(["netns", "exec", namespace.name(), "ethtool", "-k", device])
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    [
        "tx-checksum-ip-generic",
        "tx-tcp-segmentation",
        "tx-tcp6-segmentation",
    ]
    .map(|name| {
        let line = text
            .lines()
            .find(|line| line.trim().starts_with(&format!("{name}:")));
        line.unwrap().trim().ends_with(": on")
    })
}

const OFF: [bool; 3] = [false; 3];
const ON: [bool; 3] = [true; 3];

/// A namespace with a device that exists after its user has closed it.
fn persistent(queues: bool) -> Namespace {
    let namespace = Namespace::new("dev");
    match queues {
        true => namespace.tun_queues("t0", &["10.99.1.1/24"], 1500),
        false => namespace.tun("t0", &["10.99.1.1/24"], 1500),
    }
    namespace
}

fn open(namespace: &Namespace) -> Tun {
    build(|| Tun::builder("t0").netns(namespace.name()))
}

/// Retries, since a process forked by another test may still hold descriptors (until it has executed
/// its program).
fn build(builder: impl Fn() -> tun::Builder) -> Tun {
    loop {
        match builder().build() {
            Err(OpenError::Busy(_)) => thread::yield_now(),
            result => return result.unwrap(),
        }
    }
}

fn open_queue(namespace: &Namespace) -> Result<Tun, OpenError> {
    let builder = Tun::builder("t0").netns(namespace.name());
    builder.queues(1).build()
}

#[test]
fn device_settings_are_restored_at_close() {
    if !ready("device_settings_are_restored_at_close") {
        return;
    }
    let namespace = persistent(false);
    assert_eq!(offloads(&namespace, "t0"), OFF);
    let tun = open(&namespace);
    assert_eq!(offloads(&namespace, "t0"), ON);
    drop(tun);
    assert_eq!(offloads(&namespace, "t0"), OFF);
    // A program without offload gets a SYN with a complete checksum.
    let mut plain = Other::attached(&namespace, IFF_TUN | IFF_NO_PI);
    namespace.wait_until_up("t0");
    let syn = thread::scope(|scope| {
        scope.spawn(|| namespace.enter(|| connect_briefly("10.99.1.2:80")));
        plain.ask("syn?")
    });
    let syn: Vec<u8> = (0..syn.len() / 2)
        .map(|at| u8::from_str_radix(&syn[2 * at..2 * at + 2], 16).unwrap())
        .collect();
    let mut sum = internet_sum(&syn[12..20]) + 6 + u32::try_from(syn.len() - 20).unwrap();
    sum += internet_sum(&syn[20..]);
    let folded = (sum & 0xffff) + (sum >> 16);
    assert_eq!((folded & 0xffff) + (folded >> 16), 0xffff);
}

fn connect_briefly(to: &str) {
    let to: SocketAddr = to.parse().unwrap();
    drop(TcpStream::connect_timeout(&to, Duration::from_millis(200)));
}

fn internet_sum(bytes: &[u8]) -> u32 {
    let words = bytes
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)));
    words.sum()
}

/// The former settings are restored, whatever they were: here those of a killed program.
#[test]
fn only_own_settings_are_restored() {
    if !ready("only_own_settings_are_restored") {
        return;
    }
    let namespace = persistent(false);
    let mut other = Other::attached(&namespace, IFF_TUN | IFF_NO_PI | IFF_VNET_HDR);
    other.tell("header 12");
    other.tell(&format!("offload {}", TUN_F_CSUM | TUN_F_TSO4));
    other.kill();
    let found = [true, true, false];
    assert_eq!(offloads(&namespace, "t0"), found);
    let plain = build(|| Tun::builder("t0").netns(namespace.name()).offload(false));
    assert_eq!(offloads(&namespace, "t0"), OFF);
    drop(plain);
    assert_eq!(offloads(&namespace, "t0"), found);
    drop(open(&namespace));
    assert_eq!(offloads(&namespace, "t0"), found);
    let mut other = Other::attached(&namespace, IFF_TUN | IFF_NO_PI | IFF_VNET_HDR);
    assert_eq!(other.ask("header?"), "12");
}

/// A process continues with the device of another one: neither its settings nor its packets suffer, and the last one
/// restores what the first one found.
#[test]
fn duplicates_are_the_device() {
    if !ready("duplicates_are_the_device") {
        return;
    }
    let namespace = persistent(false);
    let builder = || Tun::builder("t0").netns(namespace.name());
    let former = open(&namespace);
    assert!(matches!(builder().build(), Err(OpenError::Busy(_))));
    let settings = former.device_settings().unwrap();
    let none = builder().build_queues_from(vec![], settings);
    assert!(matches!(none, Err(OpenError::QueueCount { queues: 0, .. })));
    let duplicate = || former.as_fd().try_clone_to_owned().unwrap();
    let null = std::fs::File::open("/dev/null").unwrap();
    for (name, fd) in [("t0", null.into()), ("t1", duplicate())] {
        let other = Tun::builder(name).netns(namespace.name());
        let error = other.build_queues_from(vec![fd], settings).unwrap_err();
        assert!(matches!(error, OpenError::NotItsQueue { .. }), "{error}");
    }
    let take = || {
        let mut queues = builder().build_queues_from(vec![duplicate()], settings);
        queues.as_mut().unwrap().pop().unwrap()
    };
    let next = take();
    assert_eq!(next.capabilities(), former.capabilities());
    assert_eq!(next.place(), former.place());
    // It gives up.
    drop(next);
    assert_eq!(offloads(&namespace, "t0"), ON);
    let next = take();
    former.restore_at_end(false);
    drop(former);
    assert_eq!(offloads(&namespace, "t0"), ON);
    assert_eq!(next.device_settings(), Some(settings));
    next.restore_at_end(true);
    drop(next);
    assert_eq!(offloads(&namespace, "t0"), OFF);
}

#[test]
fn the_last_of_several_queues_puts_back() {
    if !ready("the_last_of_several_queues_puts_back") {
        return;
    }
    let namespace = persistent(true);
    let builder = Tun::builder("t0").netns(namespace.name());
    let mut queues = builder.queues(3).build_queues().unwrap();
    while let Some(queue) = queues.pop() {
        assert_eq!(offloads(&namespace, "t0"), ON);
        drop(queue);
    }
    assert_eq!(offloads(&namespace, "t0"), OFF);
    // Opened one by one, they are strangers to each other: any order leaves the device as it was.
    for first in [0, 1] {
        let mut two = [0, 1].map(|_| Some(open_queue(&namespace).unwrap()));
        assert_eq!(offloads(&namespace, "t0"), ON);
        drop(two[first].take());
        drop(two[1 - first].take());
        assert_eq!(offloads(&namespace, "t0"), OFF, "{first}");
    }
    // Settings of another program made meanwhile are kept.
    let ours = open_queue(&namespace).unwrap();
    let flags = IFF_TUN | IFF_NO_PI | IFF_VNET_HDR | IFF_MULTI_QUEUE;
    let mut other = Other::attached(&namespace, flags);
    other.tell(&format!("offload {TUN_F_CSUM}"));
    drop(ours);
    assert_eq!(offloads(&namespace, "t0"), [true, false, false]);
}

/// The first of two programs closes the device, and the second one continues receiving.
#[test]
fn the_header_length_stays_while_another_program_needs_it() {
    if !ready("the_header_length_stays_while_another_program_needs_it") {
        return;
    }
    let namespace = persistent(true);
    let flags = IFF_TUN | IFF_NO_PI | IFF_VNET_HDR | IFF_MULTI_QUEUE;
    let mut other = Other::attached(&namespace, flags);
    other.tell("header 12");
    drop(other);
    let [first, second] = [0, 1].map(|_| open_queue(&namespace).unwrap());
    drop(first);
    let stack = Stack::builder(second).address("10.99.1.2/24".parse().unwrap());
    let stack = stack.build().unwrap();
    let listener = TcpListener::bind(&stack, "10.99.1.2:80").unwrap();
    namespace.wait_until_up("t0");
    let to = "10.99.1.2:80".parse().unwrap();
    let limit = Duration::from_secs(10);
    let connected = namespace.enter(|| TcpStream::connect_timeout(&to, limit));
    connected.unwrap();
    drop(listener);
    assert_eq!(stack.stats().receive_errors, 0);
}

#[test]
fn a_queue_with_other_flags_is_refused() {
    if !ready("a_queue_with_other_flags_is_refused") {
        return;
    }
    let base = IFF_TUN | IFF_MULTI_QUEUE;
    for (flags, header, expected) in [
        (base | IFF_NO_PI, None, Difference::NoVirtioHeader),
        (base | IFF_VNET_HDR, None, Difference::PacketInformation),
        (
            base | IFF_NO_PI | IFF_VNET_HDR,
            Some(12),
            Difference::HeaderLength(12),
        ),
    ] {
        // A device of its own each time: it has the flags of the first opener, and a process forked by
        // another test may hold descriptors until it has executed its program.
        let namespace = persistent(true);
        let mut other = Other::attached(&namespace, flags);
        if let Some(len) = header {
            other.tell(&format!("header {len}"));
        }
        let before = (offloads(&namespace, "t0"), other.ask("header?"));
        let error = open_queue(&namespace).unwrap_err();
        let OpenError::OtherSettings { difference, .. } = &error else {
            panic!("{error}");
        };
        assert_eq!(*difference, expected);
        let text = error.to_string();
        assert!(text.contains(&expected.to_string()), "{text}");
        // Nothing of the other program's was touched.
        assert_eq!((offloads(&namespace, "t0"), other.ask("header?")), before);
        drop(other);
        // As the only user it gets the requested settings.
        drop(open_queue(&namespace).unwrap());
    }
    // One with the same settings is welcome.
    let namespace = persistent(true);
    let other = Other::attached(&namespace, base | IFF_NO_PI | IFF_VNET_HDR);
    drop(open_queue(&namespace).unwrap());
    drop(other);
}

fn ping(tun: &Tun) -> Result<(), TransmitError> {
    let mut packet = vec![0x45, 0, 0, 28, 0, 0, 0x40, 0, 64, 1, 0, 0];
    packet.extend([10, 99, 1, 2, 10, 99, 1, 1, 8, 0, 0, 0, 0, 1, 0, 1]);
    for range in [0..20, 20..28] {
        let at = range.start + if range.start == 0 { 10 } else { 2 };
        let sum = internet_sum(&packet[range]);
        let sum = u16::try_from((sum & 0xffff) + (sum >> 16)).unwrap();
        packet[at..at + 2].copy_from_slice(&(!sum).to_be_bytes());
    }
    tun.transmit(&Packet::new(&packet, &[], 20).checksum(sosplice::link::Checksum::Complete))
}

/// The answer to a ping, or the first error; `None` if there is neither soon.
fn answer(tun: &Tun) -> Option<Result<Frame, ReceiveError>> {
    let mut frames = Vec::new();
    let until = Instant::now() + Duration::from_secs(1);
    while Instant::now() < until {
        if let Err(error) = tun.receive(&mut frames, 1) {
            return Some(Err(error));
        }
        match frames.pop() {
            Some(frame) if frame.head[0] == 0x45 && frame.head[9] == 1 => return Some(Ok(frame)),
            Some(_) => {}
            None => tun.wait(Interest::READABLE, Some(until)).unwrap(),
        }
    }
    None
}

/// Pings until there is an answer: of two queues the kernel may choose the other one, for a flow that was silent for 3 s.
fn exchange(tun: &Tun) {
    loop {
        ping(tun).unwrap();
        if let Some(result) = answer(tun) {
            result.unwrap();
            break;
        }
    }
}

/// Another program may change the length of the headers of all queues at any time. No frame is
/// misinterpreted: there is an error, and the device works again when the length is restored.
#[test]
fn a_header_changed_by_another_program_garbles_no_frame() {
    if !ready("a_header_changed_by_another_program_garbles_no_frame") {
        return;
    }
    let namespace = persistent(true);
    let tun = open_queue(&namespace).unwrap();
    namespace.wait_until_up("t0");
    exchange(&tun);
    let flags = IFF_TUN | IFF_NO_PI | IFF_VNET_HDR | IFF_MULTI_QUEUE;
    let mut other = Other::attached(&namespace, flags);
    for (len, sign) in [(12, "bytes to 12"), (1_000_000, "bytes to 1000000")] {
        let error = loop {
            // Requested before the change, read after it.
            ping(&tun).unwrap();
            other.tell(&format!("header {len}"));
            match answer(&tun) {
                Some(Err(ReceiveError::Lost(error))) => break error,
                None => other.tell("header 10"),
                other => panic!("{len}: {other:?}"),
            }
        };
        let refused = match ping(&tun) {
            Err(TransmitError::Refused(error)) => error,
            other => panic!("{len}: {other:?}"),
        };
        assert!(refused.to_string().contains(sign), "{refused}");
        assert!(len > 100 || error.to_string().contains(sign), "{error}");
        other.tell("header 10");
        exchange(&tun);
    }
}

fn stack(tuns: Vec<Tun>) -> Stack {
    let builder = Stack::with_queues(tuns).address("10.99.1.2/24".parse().unwrap());
    builder.build().unwrap()
}

/// Guards `Driver::receive`: errors other than of the device itself lose frames, which TCP retransmits.
#[test]
fn reads_that_fail_end_nothing() {
    if !ready("reads_that_fail_end_nothing") {
        return;
    }
    let namespace = persistent(true);
    let stack = stack(vec![open_queue(&namespace).unwrap()]);
    namespace.wait_until_up("t0");
    let listener = TcpListener::bind(&stack, "10.99.1.2:80").unwrap();
    let mut near = namespace.enter(|| TcpStream::connect("10.99.1.2:80").unwrap());
    let (mut inside, _) = listener.accept().unwrap();
    let flags = IFF_TUN | IFF_NO_PI | IFF_VNET_HDR | IFF_MULTI_QUEUE;
    let mut other = Other::attached(&namespace, flags);
    let mut lost = Vec::new();
    loop {
        // Of two queues, the kernel takes the one that has sent something of a connection in the last 3 s.
        inside.write_all(b"here").unwrap();
        near.read_exact(&mut [0; 4]).unwrap();
        // The kernel finds no room for the header, and each read fails with EINVAL.
        other.tell("header 1000000");
        let before = stack.stats().receive_errors;
        near.write_all(b"lost at first").unwrap();
        lost.extend(b"lost at first");
        let until = Instant::now() + Duration::from_secs(1);
        while stack.stats().receive_errors == before && Instant::now() < until {
            thread::yield_now();
        }
        other.tell("header 10");
        if stack.stats().receive_errors > before {
            break;
        }
    }
    drop(other);
    let mut heard = vec![0; lost.len()];
    inside.read_exact(&mut heard).unwrap();
    assert_eq!(heard, lost);
    inside.write_all(b"and back").unwrap();
    near.read_exact(&mut heard[..8]).unwrap();
    assert_eq!(&heard[..8], b"and back");
}

/// Two devices as queues of one stack: one is deleted, and the connections with that home end.
#[test]
fn losing_a_queue_does_not_affect_the_others() {
    if !ready("losing_a_queue_does_not_affect_the_others") {
        return;
    }
    let [one, two] = [(); 2].map(|()| persistent(false));
    let stack = stack(vec![open(&one), open(&two)]);
    [&one, &two]
        .iter()
        .for_each(|namespace| namespace.wait_until_up("t0"));
    let listener = TcpListener::bind(&stack, "10.99.1.2:80").unwrap();
    let connect = |namespace: &Namespace| {
        let near = namespace.enter(|| TcpStream::connect("10.99.1.2:80").unwrap());
        (near, listener.accept().unwrap().0)
    };
    let (_first, mut ends) = connect(&one);
    let (mut near, mut inside) = connect(&two);
    one.ip("link del t0");
    let error = ends.read(&mut [0; 1]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NetworkDown);
    near.write_all(b"still there").unwrap();
    let mut heard = [0; 11];
    inside.read_exact(&mut heard).unwrap();
    assert_eq!(&heard, b"still there");
    let (_more, _accepted) = connect(&two);
    two.ip("link del t0");
    let error = inside.read(&mut [0; 1]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NetworkDown);
}

/// The echo of `Builder::on_unhandled`'s documentation, for the kernel's datagrams, whose checksums are
/// partial with offload on.
#[test]
fn a_hook_answers_datagrams_with_and_without_offload() {
    if !ready("a_hook_answers_datagrams_with_and_without_offload") {
        return;
    }
    for offload in [true, false] {
        let namespace = persistent(false);
        let tun = Tun::builder("t0").netns(namespace.name()).offload(offload);
        let tun = Arc::new(tun.build().unwrap());
        let second = tun.clone();
        let echo = move |frame: &Frame| {
            let mut packet = frame.to_vec();
            if packet.len() < 28 || packet[0] != 0x45 || packet[9] != 17 {
                return false;
            }
            packet[12..20].rotate_left(4);
            packet[20..24].rotate_left(2);
            let answer = Packet::new(&packet, &[], 20)
                .checksum(frame.checksum)
                .segment(frame.segment);
            assert_eq!(frame.checksum.is_vouched_for(), offload);
            second.transmit(&answer).is_ok()
        };
        let builder = Stack::builder(tun).address("10.99.1.2/24".parse().unwrap());
        let stack = builder.on_unhandled(echo).build().unwrap();
        namespace.wait_until_up("t0");
        let socket = namespace.enter(|| UdpSocket::bind("10.99.1.1:0").unwrap());
        socket
            .set_read_timeout(Some(Duration::from_secs(10)))
            .unwrap();
        for len in [0, 1, 2, 999, 1472] {
            let sent: Vec<u8> = (0..=250).cycle().take(len).collect();
            socket.send_to(&sent, "10.99.1.2:7").unwrap();
            let mut heard = [0; 2000];
            let (count, from) = socket.recv_from(&mut heard).unwrap();
            assert_eq!((from.port(), &heard[..count]), (7, &sent[..]));
        }
        // Counted when the hook has returned.
        while stack.stats().frames_claimed < 5 {
            thread::yield_now();
        }
    }
}

/// A descriptor keeps its namespace alive.
#[test]
fn a_namespace_without_a_name_lives_as_long_as_its_device() {
    if !ready("a_namespace_without_a_name_lives_as_long_as_its_device") {
        return;
    }
    let namespace = persistent(false);
    let tun = open(&namespace);
    namespace.wait_until_up("t0");
    run(Command::new("ip").args(["netns", "del", namespace.name()]));
    for _ in 0..3 {
        exchange(&tun);
    }
}

/// Packets that the device `v0` has received.
fn packets(namespace: &Namespace) -> u64 {
    let text = namespace.enter(|| std::fs::read_to_string("/proc/thread-self/net/dev").unwrap());
    let line = text
        .lines()
        .find(|line| line.trim().starts_with("v0:"))
        .unwrap();
    line.split_whitespace().nth(2).unwrap().parse().unwrap()
}

/// A device, and the length of the largest packet that was sent by it.
#[derive(Debug)]
struct Watched {
    tun: Tun,
    largest: Arc<AtomicUsize>,
}

impl Link for Watched {
    fn capabilities(&self) -> Capabilities {
        self.tun.capabilities()
    }
    fn receive(&self, frames: &mut Vec<Frame>, max: usize) -> Result<usize, ReceiveError> {
        self.tun.receive(frames, max)
    }
    fn transmit(&self, packet: &Packet<'_>) -> Result<(), TransmitError> {
        self.largest.fetch_max(packet.len(), Ordering::Relaxed);
        self.tun.transmit(packet)
    }
    fn wait(&self, interest: Interest, deadline: Option<Instant>) -> io::Result<()> {
        self.tun.wait(interest, deadline)
    }
    fn wake(&self) {
        self.tun.wake();
    }
}

/// A stack behind `t0`, and a connection to it, and how large its packets are.
fn connection(
    (router, client): (&Namespace, &Namespace),
    to: &str,
    super_frame: Option<usize>,
) -> (Arc<AtomicUsize>, TcpStream, sosplice::TcpStream) {
    let tun = build(|| {
        let builder = Tun::builder("t0").netns(router.name());
        match super_frame {
            Some(bytes) => builder.super_frame(bytes),
            None => builder,
        }
    });
    let bits = if to.contains(':') { 64 } else { 24 };
    let largest = Arc::new(AtomicUsize::new(0));
    let watched = Watched {
        tun,
        largest: largest.clone(),
    };
    let builder = Stack::builder(watched).address(format!("{to}/{bits}").parse().unwrap());
    let stack = builder.send_buffer(4 << 20).build().unwrap();
    router.wait_until_up("t0");
    let at = SocketAddr::new(to.parse().unwrap(), 80);
    let listener = TcpListener::bind(&stack, at).unwrap();
    let near = client.enter(|| TcpStream::connect(at).unwrap());
    let (inside, _) = listener.accept().unwrap();
    assert_eq!(stack.stats().transmit_errors, 0);
    (largest, near, inside)
}

const MUCH: usize = 64 << 20;

/// Everything arrives as it was sent.
fn download(mut inside: sosplice::TcpStream, mut near: TcpStream) {
    const PERIOD: usize = 251;
    let pattern: Vec<u8> = (0..=250).cycle().take((1 << 20) + PERIOD).collect();
    thread::scope(|scope| {
        scope.spawn(|| {
            for at in (0..MUCH).step_by(1 << 20) {
                let from = at % PERIOD;
                inside.write_all(&pattern[from..from + (1 << 20)]).unwrap();
            }
        });
        let mut part = vec![0; 1 << 20];
        let mut got = 0;
        while got < MUCH {
            let count = near.read(&mut part).unwrap();
            assert!(count > 0, "{got}");
            let from = got % PERIOD;
            assert!(part[..count] == pattern[from..from + count], "{got}");
            got += count;
        }
    });
}

/// Packets of the size of `super_frame` are sent, arrive in one piece, and are a fraction of the
/// packets.
#[test]
fn receivers_on_the_host_take_larger_super_frames() {
    if !ready("receivers_on_the_host_take_larger_super_frames") {
        return;
    }
    for (tun, to) in [("10.99.1.1/24", "10.99.1.2"), ("fd99::1/64", "fd99::2")] {
        let host = Namespace::new("dev");
        host.tun("t0", &[tun], 1500);
        let (largest, near, inside) = connection((&host, &host), to, Some(500_000));
        download(inside, near);
        let largest = largest.load(Ordering::Relaxed);
        assert!(
            (65_536..=500_000).contains(&largest),
            "{to}: {largest} bytes"
        );
    }
}

/// Super-frames cross a router whole: they leave room for the headers of the links behind it. Larger ones
/// are cut by the kernel, into packets of the MTU.
#[test]
fn super_frames_are_forwarded_whole() {
    if !ready("super_frames_are_forwarded_whole") {
        return;
    }
    for (tun, inner, outer, to) in [
        ("10.99.1.1/24", "10.98.1.1/24", "10.98.1.2/24", "10.99.1.2"),
        ("fd99::1/64", "fd98::1/64", "fd98::2/64", "fd99::2"),
    ] {
        let (router, client) = (Namespace::new("dev"), Namespace::new("dev"));
        router.tun("t0", &[tun], 1500);
        router.enter(|| {
            std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap();
            std::fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "1").unwrap();
        });
        run(Command::new("ip").args(["-n", router.name()]).args([
            "link",
            "add",
            "v0",
            "type",
            "veth",
            "peer",
            "name",
            "v0",
            "netns",
            client.name(),
        ]));
        for (namespace, address) in [(&router, inner), (&client, outer)] {
            let no_dad = if address.contains(':') { "nodad" } else { "" };
            namespace.ip(&format!("addr add {address} dev v0 {no_dad}"));
            namespace.ip("link set v0 up");
        }
        let (gateway, _) = inner.split_once('/').unwrap();
        client.ip(&format!("route add default via {gateway}"));
        // Those that are larger, for receivers on the router, are cut, and arrive.
        {
            let (_, near, inside) = connection((&router, &client), to, Some(500_000));
            download(inside, near);
        }
        let (largest, near, inside) = connection((&router, &client), to, None);
        let before = packets(&client);
        download(inside, near);
        assert!(largest.load(Ordering::Relaxed) <= 65_212);
        let packets = packets(&client) - before;
        let mean = MUCH as u64 / packets;
        println!("{to}: {packets} packets, {mean} bytes each");
        assert!(mean >= 25_000, "{to}: {packets} packets of {mean} bytes");
    }
}

/// See there.
const DATAGRAMS: &str = include_str!("support/super_frame.py");

/// UDP super-frames in and out, and single datagrams where the kernel is not to leave segmentation to the reader.
#[test]
fn datagrams_cross_in_super_frames() {
    if !ready("datagrams_cross_in_super_frames") {
        return;
    }
    for (own, to, offload) in [
        ("10.99.1.1/24", "10.99.1.2", true),
        ("fd99::1/64", "fd99::2", true),
        ("10.99.1.1/24", "10.99.1.2", false),
        ("fd99::1/64", "fd99::2", false),
    ] {
        let namespace = Namespace::new("dev");
        namespace.tun("t0", &[own], 1500);
        let builder = Tun::builder("t0").netns(namespace.name()).offload(offload);
        let largest = Arc::new(AtomicUsize::new(0));
        let watched = Watched {
            tun: builder.build().unwrap(),
            largest: largest.clone(),
        };
        let caps = watched.capabilities();
        assert_eq!(caps.datagrams_v4.is_some(), offload, "Linux 6.2 has it");
        let bits = if to.contains(':') { 64 } else { 24 };
        let stack = Stack::builder(watched).address(format!("{to}/{bits}").parse().unwrap());
        let stack = stack.build().unwrap();
        namespace.wait_until_up("t0");
        let echo = sosplice::UdpSocket::bind(&stack, SocketAddr::new(to.parse().unwrap(), 7));
        let echo = echo.unwrap();
        let (from, _) = own.split_once('/').unwrap();
        let count = 50;
        let program = Command::new("ip")
            .args([
                "netns",
                "exec",
                namespace.name(),
                "python3",
                "-c",
                DATAGRAMS,
            ])
            .args([from, to, "1200", &count.to_string()])
            .spawn();
        let mut program = program.unwrap();
        let before = stack.stats().frames_received;
        let mut datagrams = Vec::new();
        while datagrams.len() < count {
            echo.recv_many(&mut datagrams, count).unwrap();
        }
        let frames = stack.stats().frames_received - before;
        // Neighbour discovery and the like come too.
        assert_eq!(frames < 20, offload, "{to}: {frames} frames");
        while !datagrams.is_empty() {
            echo.send_many(&mut datagrams).unwrap();
        }
        assert!(program.wait().unwrap().success(), "{to} {offload}");
        let largest = largest.load(Ordering::Relaxed);
        assert_eq!(
            largest > 50_000,
            offload,
            "{to}: packets of {largest} bytes"
        );
        assert_eq!(stack.stats().transmit_errors, 0);
    }
}
