//! Descriptors of TUN and TAP devices that another program has attached, used without privileges. Needs root, `ip`,
//! `ethtool`, `python3` and `setpriv`; everything happens in namespaces that each test makes and removes.
#![cfg(target_os = "linux")]
#![allow(missing_docs, clippy::unwrap_used, reason = "tests")]

#[path = "support/example.rs"]
mod example;
#[path = "support/exchange.rs"]
mod exchange;
#[path = "support/namespace.rs"]
mod namespace;
#[path = "support/program.rs"]
#[allow(dead_code, reason = "other tests use the rest")]
mod program;

use exchange::{LIMIT, connect, exchange, swap};
use namespace::{Namespace, available_with};
use program::Program;
use rustix::fs::OFlags;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg, sockopt::set_socket_linger,
};
use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities};
use sosplice::link::ethernet::{Edge, EdgeConfig, Tap};
use sosplice::link::tun::{Difference, FdBuilder, FdError, Tun};
use sosplice::link::{Interest, Link, ReceiveError};
use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::net::TcpStream;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

const IFF_TUN: u32 = 0x0001;
const IFF_TAP: u32 = 0x0002;
const IFF_MULTI_QUEUE: u32 = 0x0100;
const IFF_NO_PI: u32 = 0x1000;
const IFF_VNET_HDR: u32 = 0x4000;
const PLAIN: u32 = IFF_TUN | IFF_NO_PI;

/// Attaches descriptors to t0, and passes them over its standard input; lives until that ends. Arguments: flags, the
/// number of queues, and the length of the virtio-net header.
const HELPER: &str = r"
import fcntl, os, socket, struct, sys
SETIFF, SETHDR = 0x400454ca, 0x400454d8
flags, count, header = map(int, sys.argv[1:])
fds = [os.open('/dev/net/tun', os.O_RDWR) for _ in range(count)]
for fd in fds:
    if flags:
        fcntl.ioctl(fd, SETIFF, struct.pack('16sH22x', b't0', flags))
if header:
    fcntl.ioctl(fds[0], SETHDR, struct.pack('i', header))
with socket.socket(fileno=0) as other:
    socket.send_fds(other, [b'!'], fds)
    other.recv(1)
";

/// A program with privileges, which has passed descriptors.
#[derive(Debug)]
struct Helper {
    child: Child,
    socket: Option<UnixStream>,
}

impl Helper {
    /// One that attaches so many queues of the device.
    fn new(namespace: &Namespace, flags: u32, count: usize, header: u32) -> (Helper, Vec<OwnedFd>) {
        let (socket, other) = UnixStream::pair().unwrap();
        let child = Command::new("ip")
            .args(["netns", "exec", namespace.name(), "python3", "-c", HELPER])
            .args([flags.to_string(), count.to_string(), header.to_string()])
            .stdin(Stdio::from(OwnedFd::from(other)))
            .spawn();
        let fds = descriptors(&socket);
        assert_eq!(fds.len(), count, "the helper failed");
        let socket = Some(socket);
        let child = child.unwrap();
        (Helper { child, socket }, fds)
    }

    fn one(namespace: &Namespace, flags: u32) -> (Helper, OwnedFd) {
        let (helper, mut fds) = Helper::new(namespace, flags, 1, 0);
        (helper, fds.pop().unwrap())
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        self.socket = None;
        self.child.wait().ok();
    }
}

fn descriptors(socket: &UnixStream) -> Vec<OwnedFd> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut note = [0];
    let note = &mut [IoSliceMut::new(&mut note)];
    recvmsg(socket, note, &mut ancillary, RecvFlags::CMSG_CLOEXEC).unwrap();
    let messages = ancillary.drain();
    messages
        .filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(fds) => Some(fds),
            _ => None,
        })
        .flatten()
        .collect()
}

fn ready(test: &str) -> bool {
    available_with(test, &["ethtool", "python3", "setpriv"])
}

/// Runs `work` in a thread without capabilities, in the namespace if one is given.
fn without_privileges<R: Send>(inside: Option<&Namespace>, work: impl FnOnce() -> R + Send) -> R {
    let work = || {
        let none = CapabilitySet::empty();
        let sets = CapabilitySets {
            effective: none,
            permitted: none,
            inheritable: none,
        };
        set_capabilities(None, sets).unwrap();
        let driver = File::options().write(true).open("/sys/class/net/lo/mtu");
        assert!(driver.is_err() || driver.unwrap().write(b"60000").is_err());
        work()
    };
    match inside {
        Some(namespace) => namespace.enter(work),
        None => thread::scope(|scope| {
            let inside = thread::Builder::new().spawn_scoped(scope, work);
            inside.unwrap().join().unwrap()
        }),
    }
}

/// A namespace with a persistent device `t0`.
fn device(create: &str) -> Namespace {
    let namespace = Namespace::new("fd");
    namespace.ip(&format!("tuntap add t0 mode {create}"));
    namespace.ip("addr add 10.99.1.1/24 dev t0");
    namespace.ip("link set t0 mtu 1400 txqueuelen 10000 up");
    namespace
}

/// Whether `ethtool` shows partial checksums and super-frames of TCP as accepted.
fn offloads(namespace: &Namespace) -> bool {
    let shown = Command::new("ip")
        .args(["netns", "exec", namespace.name(), "ethtool", "-k", "t0"])
        .output()
        .unwrap();
    let shown = String::from_utf8(shown.stdout).unwrap();
    let on = |name: &str| {
        let line = shown.lines().find(|line| line.trim().starts_with(name));
        line.unwrap().trim().ends_with(": on")
    };
    let both = [on("tx-checksum-ip-generic:"), on("tx-tcp-segmentation:")];
    assert_eq!(both[0], both[1], "{shown}");
    both[0]
}

#[test]
fn bytes_cross_with_and_without_the_virtio_header() {
    if !ready("bytes_cross_with_and_without_the_virtio_header") {
        return;
    }
    for (flags, offload) in [
        (PLAIN | IFF_VNET_HDR, true),
        (PLAIN | IFF_VNET_HDR, false),
        (PLAIN, true),
    ] {
        let namespace = device("tun");
        let (helper, fd) = Helper::one(&namespace, flags);
        let builder = Tun::fd_builder().offload(offload);
        let tun = without_privileges(Some(&namespace), || builder.build(fd)).unwrap();
        assert_eq!(tun.place().to_string(), "t0");
        let offload = offload && flags & IFF_VNET_HDR != 0;
        let able = tun.capabilities();
        assert_eq!((able.mtu, able.checksum), (1400, offload));
        assert_eq!(able.segment_v4.is_some(), offload);
        assert_eq!(offloads(&namespace), offload);
        // The helper's copy is one of the same queue, and not needed.
        drop(helper);
        let queues = exchange(&namespace, vec![Arc::new(tun)], 4 << 20);
        assert_eq!(offloads(&namespace), offload);
        drop(queues);
        assert!(!offloads(&namespace));
    }
}

#[test]
fn frames_cross_a_tap() {
    if !ready("frames_cross_a_tap") {
        return;
    }
    for flags in [IFF_TAP | IFF_NO_PI, IFF_TAP | IFF_NO_PI | IFF_VNET_HDR] {
        let namespace = device("tap");
        let (_helper, fd) = Helper::one(&namespace, flags);
        let tap = without_privileges(Some(&namespace), || Tap::from_fd(fd)).unwrap();
        assert_eq!(tap.capabilities().mtu, 1414);
        let config = EdgeConfig::new(
            "10.99.1.2/24".parse().unwrap(),
            "10.99.1.1".parse().unwrap(),
        );
        let edge = Edge::new(tap, config).unwrap();
        exchange(&namespace, vec![Arc::new(edge)], 1 << 20);
    }
}

#[test]
fn queues_of_one_device_are_one_link_each() {
    if !ready("queues_of_one_device_are_one_link_each") {
        return;
    }
    for header in [0, IFF_VNET_HDR] {
        let namespace = device("tun multi_queue");
        let flags = PLAIN | IFF_MULTI_QUEUE | header;
        let (helper, fds) = Helper::new(&namespace, flags, 3, 0);
        let take = || Tun::fd_builder().build_queues(fds);
        let queues = without_privileges(Some(&namespace), take).unwrap();
        drop(helper);
        let queues = queues
            .into_iter()
            .map(|queue| Arc::new(queue) as Arc<dyn Link>);
        let mut queues = exchange(&namespace, queues.collect(), 1 << 20);
        while let Some(queue) = queues.pop() {
            assert_eq!(offloads(&namespace), header != 0);
            drop(queue);
        }
        assert!(!offloads(&namespace));
    }
    let (namespace, other) = (device("tun multi_queue"), Namespace::new("fd"));
    other.ip("tuntap add t0 mode tun multi_queue");
    other.ip("link set t0 name t1");
    let (_one, mut fds) = Helper::new(&namespace, PLAIN | IFF_MULTI_QUEUE, 1, 0);
    other.ip("link set t1 name t0");
    let (_other, more) = Helper::new(&other, PLAIN | IFF_MULTI_QUEUE, 1, 0);
    other.ip("link set t0 name t1");
    fds.extend(more);
    let error = Tun::fd_builder().mtu(1400).build_queues(fds).unwrap_err();
    assert_eq!(
        error.to_string(),
        "t1 is not a queue of t0: give descriptors of one device"
    );
}

/// What is looked up by name is looked up where the device is, or not at all.
#[test]
fn a_device_of_another_namespace_needs_its_mtu() {
    if !ready("a_device_of_another_namespace_needs_its_mtu") {
        return;
    }
    let namespace = device("tun");
    let (empty, decoy) = (Namespace::new("none"), Namespace::new("decoy"));
    decoy.ip("tuntap add t0 mode tun");
    let before = offloads(&namespace);
    for (where_, privileged) in [(&empty, false), (&empty, true), (&decoy, true)] {
        for header in [0, IFF_VNET_HDR] {
            let (_helper, fd) = Helper::one(&namespace, PLAIN | header);
            let duplicate = fd.try_clone().unwrap();
            let take = |builder: FdBuilder, fd| match privileged {
                true => where_.enter(|| builder.build(fd)),
                false => without_privileges(Some(where_), || builder.build(fd)),
            };
            let error = take(Tun::fd_builder(), duplicate).unwrap_err();
            assert!(matches!(&error, FdError::MtuUnknown(_)), "{error}");
            let tun = take(Tun::fd_builder().mtu(1400), fd).unwrap();
            assert_eq!(tun.capabilities().mtu, 1400);
            assert_eq!(offloads(&namespace), header != 0);
            let queues = exchange(&namespace, vec![Arc::new(tun)], 100_000);
            drop(queues);
            assert_eq!(offloads(&namespace), before);
        }
    }
}

/// Without privileges the namespace of the device is not known. One of the same name here is left alone.
#[test]
fn another_device_of_the_same_name_is_not_touched() {
    if !ready("another_device_of_the_same_name_is_not_touched") {
        return;
    }
    let (namespace, decoy) = (device("tun"), device("tun"));
    let (_user, fd) = Helper::one(&decoy, PLAIN | IFF_VNET_HDR);
    let others = decoy.enter(|| Tun::from_fd(fd)).unwrap();
    assert!(offloads(&decoy));
    let (_helper, fd) = Helper::one(&namespace, PLAIN | IFF_VNET_HDR);
    let tun = without_privileges(Some(&decoy), || Tun::from_fd(fd)).unwrap();
    assert!(offloads(&namespace) && offloads(&decoy));
    drop(tun);
    assert!(!offloads(&namespace) && offloads(&decoy));
    drop(others);
    assert!(!offloads(&decoy));
}

#[test]
fn what_is_no_device_is_refused() {
    if !ready("what_is_no_device_is_refused") {
        return;
    }
    let (socket, _other) = UnixStream::pair().unwrap();
    let path = rustix::fs::open("/", OFlags::PATH, rustix::fs::Mode::empty()).unwrap();
    let not_tun: [OwnedFd; 6] = [
        File::open("/dev/null").unwrap().into(),
        File::open("/proc/self/exe").unwrap().into(),
        socket.into(),
        std::net::UdpSocket::bind("127.0.0.1:0").unwrap().into(),
        io::pipe().unwrap().0.into(),
        path,
    ];
    for fd in not_tun {
        let error = Tun::from_fd(fd).unwrap_err();
        assert!(matches!(&error, FdError::NotTun { .. }), "{error}");
        assert!(error.to_string().contains(" is not a TUN or TAP device ("));
    }
    let driver = File::options().read(true).write(true).open("/dev/net/tun");
    let error = Tun::from_fd(driver.unwrap()).unwrap_err();
    assert!(matches!(&error, FdError::NotAttached(_)), "{error}");
    let namespace = device("tun");
    let (_helper, fd) = Helper::one(&namespace, PLAIN);
    namespace.ip("link del t0");
    let error = Tun::from_fd(fd).unwrap_err();
    assert!(matches!(&error, FdError::NotAttached(_)), "{error}");
    let error = Tun::fd_builder()
        .mtu(67)
        .build(File::open("/dev/null").unwrap());
    assert!(matches!(error, Err(FdError::BadMtu(67))));
}

#[test]
fn devices_that_are_not_as_asked_for_are_refused() {
    if !ready("devices_that_are_not_as_asked_for_are_refused") {
        return;
    }
    let (tun, tap) = (device("tun"), device("tap"));
    let (_helper, fd) = Helper::one(&tap, IFF_TAP | IFF_NO_PI);
    let error = tap.enter(|| Tun::from_fd(fd)).unwrap_err();
    assert!(matches!(&error, FdError::IsTap(_)), "{error}");
    let (_helper, fd) = Helper::one(&tun, PLAIN);
    let error = tun.enter(|| Tap::from_fd(fd)).unwrap_err();
    assert!(matches!(&error, FdError::IsTun(_)), "{error}");
    let refused = |create: &str, flags, header, builder: FdBuilder| {
        let namespace = device(create);
        let (_user, mut fds) = Helper::new(&namespace, flags, 2, header);
        let take = || builder.build(fds.pop().unwrap());
        match without_privileges(Some(&namespace), take) {
            Err(FdError::OtherSettings { difference, .. }) => difference,
            other => panic!("{other:?}"),
        }
    };
    let any = Tun::fd_builder;
    let several = PLAIN | IFF_MULTI_QUEUE;
    for (flags, header, builder, difference) in [
        (
            several,
            0,
            any().virtio_header(true),
            Difference::NoVirtioHeader,
        ),
        (
            several | IFF_VNET_HDR,
            0,
            any().virtio_header(false),
            Difference::VirtioHeader,
        ),
        (
            several & !IFF_NO_PI,
            0,
            any(),
            Difference::PacketInformation,
        ),
        (
            several & !IFF_NO_PI | IFF_VNET_HDR,
            0,
            any(),
            Difference::PacketInformation,
        ),
        (
            several | IFF_VNET_HDR,
            12,
            any(),
            Difference::HeaderLength(12),
        ),
        (
            several | IFF_VNET_HDR,
            12,
            any().mtu(1400),
            Difference::HeaderLength(12),
        ),
    ] {
        assert_eq!(
            refused("tun multi_queue", flags, header, builder),
            difference
        );
    }
}

/// Another length of the header is set if the device has no other queue, and put back.
#[test]
fn the_header_of_a_single_queue_is_set_and_put_back() {
    if !ready("the_header_of_a_single_queue_is_set_and_put_back") {
        return;
    }
    let namespace = device("tun");
    let (_helper, mut fds) = Helper::new(&namespace, PLAIN | IFF_VNET_HDR, 1, 12);
    let fd = fds.pop().unwrap();
    for builder in [Tun::fd_builder(), Tun::fd_builder().mtu(1400)] {
        let duplicate = fd.try_clone().unwrap();
        let tun = without_privileges(Some(&namespace), || builder.build(duplicate)).unwrap();
        let queues = exchange(&namespace, vec![Arc::new(tun)], 100_000);
        assert_eq!(header_len(&fd), 10);
        drop(queues);
        assert_eq!(header_len(&fd), 12);
    }
}

#[allow(unsafe_code, reason = "what another program would see")]
fn header_len(fd: &OwnedFd) -> i32 {
    use rustix::ioctl::{Getter, ioctl, opcode};
    const GETHDR: rustix::ioctl::Opcode = opcode::read::<i32>(b'T', 215);
    // SAFETY: TUNGETVNETHDRSZ writes an `int`.
    unsafe { ioctl(fd, Getter::<GETHDR, i32>::new()) }.unwrap()
}

/// Packet information that could not be looked up is found out by the first packet.
#[test]
fn packet_information_is_an_error_of_each_packet() {
    if !ready("packet_information_is_an_error_of_each_packet") {
        return;
    }
    for header in [0, IFF_VNET_HDR] {
        let namespace = device("tun");
        let (_helper, fd) = Helper::one(&namespace, IFF_TUN | header);
        let tun = without_privileges(None, || Tun::fd_builder().mtu(1400).build(fd)).unwrap();
        namespace.wait_until_up("t0");
        let ping = namespace.enter(|| std::net::UdpSocket::bind("10.99.1.1:0").unwrap());
        ping.send_to(b"hello", "10.99.1.2:7").unwrap();
        tun.wait(Interest::READABLE, None).unwrap();
        let error = match tun.receive(&mut Vec::new(), 1) {
            Err(ReceiveError::Lost(error)) => error.to_string(),
            other => panic!("{other:?}"),
        };
        let difference = Difference::PacketInformation;
        assert_eq!(error, format!("t0: {difference}"));
    }
}

/// A folder that any user can make files in, with the example `passed_tun`.
struct Folder(PathBuf);

impl Folder {
    fn new(tag: &str) -> Folder {
        use std::os::unix::fs::PermissionsExt;
        let name = format!("sosplice-{}-{tag}", std::process::id());
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir(&path).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o777)).unwrap();
        let program = example::path("passed_tun");
        std::fs::copy(program, path.join("passed_tun")).unwrap();
        Folder(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).ok();
    }
}

/// Denies what an app of Android may be denied: the calls about TUN devices and interfaces.
const SANDBOX: &str = r"
import ctypes, os, struct, sys
def op(code, yes, no, value):
    return struct.pack('HBBI', code, yes, no, value)
LOAD, JEQ, JGE, AND, RET = 0x20, 0x15, 0x35, 0x54, 0x06
number = {'x86_64': 16, 'aarch64': 29}[os.uname().machine]
program = b''.join([
    op(LOAD, 0, 0, 0), op(JEQ, 0, 7, number),
    op(LOAD, 0, 0, 24), op(AND, 0, 0, 0xffff),
    op(JGE, 0, 4, 0x54c8), op(JGE, 0, 2, 0x5500),
    op(JGE, 0, 2, 0x8900), op(JGE, 1, 0, 0x8a00),
    op(RET, 0, 0, 0x50000 | 13),
    op(RET, 0, 0, 0x7fff0000),
])
data = ctypes.create_string_buffer(program)
filter = struct.pack('HxxxxxxP', len(program) // 8, ctypes.addressof(data))
prctl = ctypes.CDLL(None, use_errno=True).prctl
assert prctl(22, 2, filter) == 0, os.strerror(ctypes.get_errno())
os.execvp(sys.argv[1], sys.argv[1:])
";

/// The example `passed_tun` as a user without privileges, in a namespace.
fn server(inside: &Namespace, folder: &Folder, wrap: &[&str], more: &[&str]) -> Command {
    let mut command = Command::new("ip");
    command.args(["netns", "exec", inside.name()]);
    command.args(wrap).arg("setpriv");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]);
    command.args(["--inh-caps=-all", "--bounding-set=-all", "--no-new-privs"]);
    command.arg(folder.0.join("passed_tun"));
    command.args(["server", "--address=10.99.1.2/24", "--socket"]);
    command.arg(folder.0.join("socket")).args(more);
    command
}

/// Passes the descriptor to the server as a helper does.
fn pass(folder: &Folder, fd: &OwnedFd) -> UnixStream {
    let socket = UnixStream::connect(folder.0.join("socket")).unwrap();
    let fds = [fd.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    ancillary.push(SendAncillaryMessage::ScmRights(&fds));
    let note = &[IoSlice::new(b"!")];
    sendmsg(&socket, note, &mut ancillary, SendFlags::empty()).unwrap();
    socket
}

/// Two clients of a server that has the device, or is about to get it, under this name.
fn two_clients(namespace: &Namespace, server: &Program, device: &str) {
    let ready = format!("joining clients behind {device}");
    // Each look takes a millisecond or more.
    let is_ready = (0..5000).any(|_| {
        namespace.wait_until_up("t0");
        server.said().contains(&ready)
    });
    assert!(is_ready, "{}", server.said());
    let [mut one, mut other] = namespace.enter(|| {
        // The first one is reset while it has no partner. The second one may be before its call has returned.
        let left = connect();
        set_socket_linger(&left, Some(Duration::ZERO)).unwrap();
        drop(left);
        let partner = TcpStream::connect("10.99.1.2:7");
        let reset = partner.and_then(|mut partner| {
            partner.set_read_timeout(Some(LIMIT))?;
            partner.read(&mut [0])
        });
        assert_eq!(reset.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
        [(); 2].map(|()| connect())
    });
    swap(&mut one, &mut other, 2 << 20);
}

#[test]
fn the_example_passes_a_device_to_a_program_without_privileges() {
    if !ready("the_example_passes_a_device_to_a_program_without_privileges") {
        return;
    }
    let (namespace, folder) = (device("tun"), Folder::new("passed"));
    let server = server(&namespace, &folder, &[], &[]);
    let server = Program::start(server, "waiting for a device");
    let mut helper = Command::new("ip");
    helper.args(["netns", "exec", namespace.name()]);
    helper.arg(folder.0.join("passed_tun"));
    helper.args(["helper", "--tun=t0", "--socket"]);
    let mut helper = helper.arg(folder.0.join("socket")).spawn().unwrap();
    two_clients(&namespace, &server, "t0");
    drop(server);
    assert!(helper.wait().unwrap().success());
    assert!(!offloads(&namespace));
}

/// As in an app of Android: another user, another namespace, no ioctls of the device, no virtio-net header.
#[test]
fn a_program_that_may_ask_nothing_gives_the_settings_itself() {
    if !ready("a_program_that_may_ask_nothing_gives_the_settings_itself") {
        return;
    }
    let (namespace, app) = (device("tun"), Namespace::new("app"));
    let folder = Folder::new("denied");
    let sandbox = ["python3", "-c", SANDBOX];
    let refused = |given: &[&str], fd: &OwnedFd| {
        let errors = folder.0.join("errors");
        let mut server = server(&app, &folder, &sandbox, given);
        server.stderr(File::create(&errors).unwrap());
        let mut server = Program::start(server, "waiting for a device");
        let _socket = pass(&folder, fd);
        assert!(!server.ended(LIMIT).success());
        std::fs::read_to_string(errors).unwrap()
    };
    for (header, given) in [
        (0, ["--mtu=1400", "--header=false"]),
        (IFF_VNET_HDR, ["--mtu=1400", "--header=true"]),
    ] {
        let (_helper, fd) = Helper::one(&namespace, PLAIN | header);
        let complaint = refused(&given[..1], &fd);
        let expected =
            "(TUNGETIFF: Permission denied (os error 13)): say them with virtio_header()";
        assert!(complaint.contains(expected), "{complaint}");
        let complaint = refused(&given[1..], &fd);
        assert!(complaint.contains("say it with mtu()"), "{complaint}");
        let server = server(&app, &folder, &sandbox, &given);
        let server = Program::start(server, "waiting for a device");
        let _socket = pass(&folder, &fd);
        two_clients(&namespace, &server, "descriptor ");
    }
    // Neither is a file taken for a device.
    let complaint = refused(
        &["--mtu=1400", "--header=false"],
        &File::open("/dev/zero").unwrap().into(),
    );
    let expected = "is not a TUN or TAP device";
    assert!(complaint.contains(expected), "{complaint}");
}
