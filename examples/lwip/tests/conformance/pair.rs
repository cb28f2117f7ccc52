//! Pairs of sockets that lwIP connects, in the C code of this folder.

use crate::clock::SetClock;
use libtest_mimic::{Arguments, FormatSetting, Trial};
use sosplice::Socket;
use sosplice::clock::Clock;
use sosplice::conformance::{self, Case, Config, Connecting, Factory, Setup, Time, Verdict};
use sosplice::error::Flavor;
use sosplice::splice::Dispatch;
use sosplice_c::layer::{self, Layer};
use sosplice_c::protocol::{SOSPLICE_LISTENING, SOSPLICE_UNCONNECTED};
use std::ffi::{c_int, c_uint, c_void};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

unsafe extern "C" {
    fn pair_start(layer: *const c_void, without_thread: c_int);
    fn pair_run() -> c_int;
    fn pair_set_time(milliseconds: c_uint);
    fn pair_timeout() -> c_uint;
    fn pair_connect(rcv: usize, snd: usize, client: *mut c_int, server: *mut c_int) -> c_int;
    fn pair_connecting(client: *mut c_int) -> c_int;
    fn pair_complete(number: c_int, server: *mut c_int) -> c_int;
    fn pair_posed(state: c_int, fd: *mut c_int) -> c_int;
    fn pair_open() -> usize;
}

/// lwIP without a thread: its clock is this one, and it works when it is told to.
struct ByHand(Arc<SetClock>);

/// `None` if lwIP has a thread. Set once, before lwIP is started.
static BY_HAND: OnceLock<Option<ByHand>> = OnceLock::new();

fn by_hand() -> Option<&'static ByHand> {
    BY_HAND.get().unwrap().as_ref()
}

impl ByHand {
    fn milliseconds(&self) -> u32 {
        u32::try_from(self.0.passed().as_millis()).unwrap()
    }
}

impl Time for ByHand {
    fn clock(&self) -> Arc<dyn Clock> {
        self.0.clone()
    }

    fn advance(&self, by: Duration) {
        self.0.advance(by);
        // SAFETY: one thread at a time.
        unsafe { pair_set_time(self.milliseconds()) };
    }

    fn run(&self) -> bool {
        layer();
        // SAFETY: one thread at a time.
        unsafe { pair_run() != 0 }
    }

    fn poll_at(&self) -> Option<Duration> {
        layer();
        // SAFETY: one thread at a time.
        let timeout = unsafe { pair_timeout() };
        // lwIP has timers for ever.
        let at = Duration::from_millis((self.milliseconds() + timeout).into());
        Some(at.saturating_sub(self.0.passed()))
    }
}

/// The layer of all sockets, and lwIP.
fn layer() -> &'static Layer {
    static LAYER: OnceLock<&Layer> = OnceLock::new();
    LAYER.get_or_init(|| {
        let config = layer::Config {
            size: size_of::<layer::Config>(),
            flavor: layer::SOSPLICE_FREEBSD,
            layout: layer::SOSPLICE_LP64,
            workers: 0,
            descriptors: 0,
            splices: 0,
            flags: 0,
            on_end: None,
            context: std::ptr::null_mut(),
        };
        let mut made = std::ptr::null_mut();
        // SAFETY: both pointers are of values.
        let result = unsafe { layer::sosplice_new(&raw const config, &raw mut made) };
        assert_eq!(result, 0);
        // SAFETY: it is never freed.
        unsafe {
            pair_start(made.cast_const().cast(), by_hand().is_some().into());
            made.as_ref()
        }
        .unwrap()
    })
}

/// The socket of a descriptor, which is closed: the socket remains until its last handle is dropped.
fn socket(fd: c_int) -> Socket {
    let layer = layer();
    let socket = layer.socket(fd).unwrap();
    // SAFETY: the layer is not freed.
    assert_eq!(unsafe { layer::sosplice_close(layer, fd) }, 0);
    socket.set_nonblocking(false);
    socket
}

fn posed(state: c_int) -> Option<Socket> {
    layer();
    let mut fd = -1;
    // SAFETY: the pointer is of a value.
    assert_eq!(unsafe { pair_posed(state, &raw mut fd) }, 0);
    Some(socket(fd))
}

struct Pairs;

impl Factory for Pairs {
    fn connect(&self, setup: Setup) -> (Socket, Socket) {
        layer();
        let (mut client, mut server) = (-1, -1);
        // SAFETY: the pointers are of values.
        let error = unsafe {
            pair_connect(
                setup.rcv_hiwat,
                setup.snd_hiwat,
                &raw mut client,
                &raw mut server,
            )
        };
        assert_eq!(error, 0);
        (socket(client), socket(server))
    }

    fn connecting(&self) -> Option<Connecting> {
        layer();
        let mut client = -1;
        // SAFETY: the pointer is of a value.
        let number = unsafe { pair_connecting(&raw mut client) };
        let complete = move |verdict| {
            let mut server = -1;
            let to = match verdict {
                Verdict::Accept => &raw mut server,
                Verdict::Refuse => std::ptr::null_mut(),
            };
            // SAFETY: null, or of a value.
            assert_eq!(unsafe { pair_complete(number, to) }, 0);
            (verdict == Verdict::Accept).then(|| socket(server))
        };
        Some(Connecting {
            socket: socket(client),
            complete: Box::new(complete),
        })
    }

    fn listening(&self) -> Option<Socket> {
        posed(SOSPLICE_LISTENING)
    }

    fn unconnected(&self) -> Option<Socket> {
        posed(SOSPLICE_UNCONNECTED)
    }

    fn time(&self) -> Option<&dyn Time> {
        by_hand().map(|time| time as &dyn Time)
    }
}

type World = (&'static str, Dispatch, usize);

const WORLDS: [World; 3] = [
    ("lwip/workers", Dispatch::Worker, 2),
    ("lwip/direct", Dispatch::Direct, 1),
    ("lwip/adaptive", Dispatch::Adaptive, 1),
];

const VIRTUAL: [World; 3] = [
    ("lwip-virtual/worker", Dispatch::Worker, 1),
    ("lwip-virtual/direct", Dispatch::Direct, 2),
    ("lwip-virtual/adaptive", Dispatch::Adaptive, 1),
];

fn trial(world: World, case: &'static Case, flavor: Flavor) -> Trial {
    let (name, dispatch, workers) = world;
    let config = Config::default().dispatch(dispatch).workers(workers);
    let test = move || {
        let factory: Arc<dyn Factory> = Arc::new(Pairs);
        // Cases that do not apply are skipped; the others run.
        let _ = case.run(&factory, config, flavor);
        Ok(())
    };
    Trial::test(format!("{name}/{flavor:?}/{}", case.name), test)
}

pub(crate) fn main(in_virtual_time: bool) {
    let mut arguments = Arguments::from_args();
    let time = in_virtual_time.then(|| ByHand(SetClock::new()));
    BY_HAND.set(time).ok().expect("set once");
    if in_virtual_time {
        // There is one lwIP.
        arguments.test_threads = Some(1);
    }
    if arguments.filter.is_none() && arguments.format.is_none() {
        arguments.format = Some(FormatSetting::Terse);
    }
    let mut trials = Vec::new();
    for world in if in_virtual_time { VIRTUAL } else { WORLDS } {
        for case in conformance::cases() {
            let flavors = case.flavors.iter();
            trials.extend(flavors.map(|flavor| trial(world, case, *flavor)));
        }
    }
    let conclusion = libtest_mimic::run(&arguments, trials);
    if !conclusion.has_failed() {
        none_is_left();
    }
    conclusion.exit();
}

/// No connection is left when its sockets are dropped. Resets may still be on their way.
fn none_is_left() {
    layer();
    // SAFETY: lwIP's thread runs.
    let mut open = (0..1_000_000).map(|_| unsafe { pair_open() });
    assert!(open.any(|open| open == 0), "connections are left");
}
