//! The conformance suite over everything that this crate can splice: pairs in memory, TCP over
//! links in memory, also of Ethernet frames, and mixed, in real and in virtual time, on workers, direct and adaptive.
//!
//! Each case over each of them is a test: `cargo test --test conformance -- tcp4/direct`.

#![allow(
    clippy::unwrap_used,
    reason = "a test says by panicking what it did not expect"
)]

#[path = "../../../support/clock.rs"]
mod clock;
#[cfg(target_os = "linux")]
mod kernel;
mod memory;
mod smoltcp;
#[path = "../../../support/smoltcp_wire.rs"]
mod smoltcp_wire;
mod tcp;

use libtest_mimic::{Arguments, FormatSetting, Trial};
use sosplice::Socket;
use sosplice::conformance::{self, Case, Config, Connecting, Factory, Setup};
use sosplice::error::Flavor;
use sosplice::splice::Dispatch;
use std::sync::atomic::{AtomicBool, Ordering};

/// A world's name, its sockets, and how its splices work.
type World = (&'static str, fn() -> Box<dyn Factory>, Dispatch, usize);

const WORLDS: &[World] = &[
    ("memory/worker", memory::real, Dispatch::Worker, 1),
    ("memory/workers", memory::real, Dispatch::Worker, 3),
    ("memory/direct", memory::real, Dispatch::Direct, 1),
    ("memory/adaptive", memory::real, Dispatch::Adaptive, 1),
    (
        "virtual/worker",
        memory::in_virtual_time,
        Dispatch::Worker,
        1,
    ),
    (
        "virtual/workers",
        memory::in_virtual_time,
        Dispatch::Worker,
        3,
    ),
    (
        "virtual/direct",
        memory::in_virtual_time,
        Dispatch::Direct,
        2,
    ),
    (
        "virtual/adaptive",
        memory::in_virtual_time,
        Dispatch::Adaptive,
        2,
    ),
    ("tcp4/worker", tcp::v4, Dispatch::Worker, 1),
    ("tcp4/workers", tcp::v4, Dispatch::Worker, 3),
    ("tcp4/direct", tcp::v4, Dispatch::Direct, 1),
    ("tcp4/adaptive", tcp::v4, Dispatch::Adaptive, 2),
    ("tcp6/worker", tcp::v6, Dispatch::Worker, 2),
    ("tcp6/adaptive", tcp::v6, Dispatch::Adaptive, 1),
    (
        "tcp-virtual/worker",
        tcp::in_virtual_time,
        Dispatch::Worker,
        1,
    ),
    (
        "tcp-virtual/direct",
        tcp::in_virtual_time,
        Dispatch::Direct,
        1,
    ),
    (
        "tcp-virtual/adaptive",
        tcp::in_virtual_time,
        Dispatch::Adaptive,
        2,
    ),
    ("tcp-self/workers", tcp::looped, Dispatch::Worker, 2),
    ("tcp-self/adaptive", tcp::looped, Dispatch::Adaptive, 2),
    (
        "tcp-self-virtual/direct",
        tcp::looped_in_virtual_time,
        Dispatch::Direct,
        1,
    ),
    ("ethernet/workers", tcp::ethernet, Dispatch::Worker, 2),
    ("ethernet/adaptive", tcp::ethernet, Dispatch::Adaptive, 1),
    (
        "ethernet-virtual/worker",
        tcp::ethernet_in_virtual_time,
        Dispatch::Worker,
        1,
    ),
    (
        "ethernet-virtual/direct",
        tcp::ethernet_in_virtual_time,
        Dispatch::Direct,
        2,
    ),
    ("smoltcp/worker", smoltcp::real, Dispatch::Worker, 2),
    ("smoltcp/direct", smoltcp::real, Dispatch::Direct, 1),
    ("smoltcp/adaptive", smoltcp::real, Dispatch::Adaptive, 2),
    (
        "smoltcp-virtual/worker",
        smoltcp::in_virtual_time,
        Dispatch::Worker,
        1,
    ),
    (
        "smoltcp-virtual/direct",
        smoltcp::in_virtual_time,
        Dispatch::Direct,
        1,
    ),
    (
        "smoltcp-virtual/adaptive",
        smoltcp::in_virtual_time,
        Dispatch::Adaptive,
        2,
    ),
    ("smoltcp-tcp/worker", smoltcp_and_tcp, Dispatch::Worker, 2),
    (
        "smoltcp-tcp/adaptive",
        smoltcp_and_tcp,
        Dispatch::Adaptive,
        1,
    ),
    (
        "smoltcp-memory/adaptive",
        smoltcp_and_memory,
        Dispatch::Adaptive,
        2,
    ),
    ("v4-v6/worker", v4_and_v6, Dispatch::Worker, 2),
    ("v6-v4/direct", v6_and_v4, Dispatch::Direct, 2),
    ("v6-v4/adaptive", v6_and_v4, Dispatch::Adaptive, 1),
    ("memory-tcp/worker", memory_and_tcp, Dispatch::Worker, 2),
    ("memory-tcp/adaptive", memory_and_tcp, Dispatch::Adaptive, 2),
    ("tcp-memory/direct", tcp_and_memory, Dispatch::Direct, 2),
];

#[cfg(target_os = "linux")]
const KERNEL: &[World] = &[
    ("kernel/worker", kernel::loopback, Dispatch::Worker, 2),
    ("kernel/direct", kernel::loopback, Dispatch::Direct, 1),
    ("kernel/adaptive", kernel::loopback, Dispatch::Adaptive, 1),
    ("kernel-tcp/worker", kernel_and_tcp, Dispatch::Worker, 1),
    ("kernel-tcp/direct", kernel_and_tcp, Dispatch::Direct, 2),
    ("kernel-tcp/adaptive", kernel_and_tcp, Dispatch::Adaptive, 2),
    ("unix/worker", kernel::unix, Dispatch::Worker, 2),
    ("unix/direct", kernel::unix, Dispatch::Direct, 1),
    ("unix/adaptive", kernel::unix, Dispatch::Adaptive, 1),
    ("unix-tcp/worker", unix_and_tcp, Dispatch::Worker, 1),
    ("unix-tcp/adaptive", unix_and_tcp, Dispatch::Adaptive, 2),
    ("vsock/worker", kernel::vsock, Dispatch::Worker, 1),
    ("vsock/direct", kernel::vsock, Dispatch::Direct, 2),
    ("vsock/adaptive", kernel::vsock, Dispatch::Adaptive, 1),
];

/// Whether this machine has its sockets.
fn is_here(world: &World) -> bool {
    #[cfg(target_os = "linux")]
    if world.0.starts_with("vsock") {
        return kernel::has_vsock();
    }
    let _ = world;
    true
}

#[cfg(not(target_os = "linux"))]
const KERNEL: &[World] = &[];

#[cfg(target_os = "linux")]
fn kernel_and_tcp() -> Box<dyn Factory> {
    Mixed::of([kernel::loopback(), tcp::v4()])
}

#[cfg(target_os = "linux")]
fn unix_and_tcp() -> Box<dyn Factory> {
    Mixed::of([kernel::unix(), tcp::v4()])
}

fn v4_and_v6() -> Box<dyn Factory> {
    Mixed::of([tcp::v4(), tcp::v6()])
}

fn v6_and_v4() -> Box<dyn Factory> {
    Mixed::of([tcp::v6(), tcp::v4()])
}

fn memory_and_tcp() -> Box<dyn Factory> {
    Mixed::of([memory::real(), tcp::v4()])
}

fn smoltcp_and_tcp() -> Box<dyn Factory> {
    Mixed::of([smoltcp::real(), tcp::v4()])
}

fn smoltcp_and_memory() -> Box<dyn Factory> {
    Mixed::of([smoltcp::real(), memory::real()])
}

fn tcp_and_memory() -> Box<dyn Factory> {
    Mixed::of([tcp::v6(), memory::real()])
}

/// Takes turns: the two connections of a proxy are of different kinds.
struct Mixed {
    kinds: [Box<dyn Factory>; 2],
    second: AtomicBool,
}

impl Mixed {
    fn of(kinds: [Box<dyn Factory>; 2]) -> Box<dyn Factory> {
        let second = AtomicBool::new(false);
        Box::new(Mixed { kinds, second })
    }
}

impl Factory for Mixed {
    fn stands_still(&self) -> bool {
        self.kinds.iter().all(|kind| kind.stands_still())
    }

    fn resets(&self) -> bool {
        self.kinds.iter().all(|kind| kind.resets())
    }

    fn connect(&self, setup: Setup) -> (Socket, Socket) {
        let second = self.second.fetch_xor(true, Ordering::SeqCst);
        self.kinds[usize::from(second)].connect(setup)
    }

    fn connecting(&self) -> Option<Connecting> {
        let mut kinds = self.kinds.iter();
        kinds.find_map(|kind| kind.connecting())
    }

    fn listening(&self) -> Option<Socket> {
        let mut kinds = self.kinds.iter();
        kinds.find_map(|kind| kind.listening())
    }

    fn unconnected(&self) -> Option<Socket> {
        let mut kinds = self.kinds.iter();
        kinds.find_map(|kind| kind.unconnected())
    }
}

fn trial(world: &'static World, case: &'static Case, flavor: Flavor) -> Trial {
    let (name, factory, dispatch, workers) = *world;
    let config = Config::default().dispatch(dispatch).workers(workers);
    let test = move || {
        // Cases that do not apply are skipped; the others run.
        let _ = case.run(&factory().into(), config, flavor);
        Ok(())
    };
    Trial::test(format!("{name}/{flavor:?}/{}", case.name), test)
}

/// Sockets in memory, TCP and the kernel's are run with every dispatch.
fn every_dispatch() -> Trial {
    let test = || {
        let all = Config::ALL.map(|config| config.dispatch);
        for kind in [
            "memory",
            "virtual",
            "tcp4",
            "tcp-virtual",
            "smoltcp",
            "smoltcp-virtual",
            "kernel",
        ] {
            let of_kind = |name: &str| name.split('/').next() == Some(kind);
            let worlds = WORLDS.iter().chain(KERNEL);
            let worlds: Vec<_> = worlds.filter(|world| of_kind(world.0)).collect();
            let has = |dispatch| worlds.iter().any(|world| world.2 == dispatch);
            let here = kind != "kernel" || cfg!(target_os = "linux");
            assert_eq!(all.iter().all(|dispatch| has(*dispatch)), here, "{kind}");
        }
        Ok(())
    };
    Trial::test("every dispatch", test)
}

fn main() {
    let mut arguments = Arguments::from_args();
    if arguments.filter.is_none() && arguments.format.is_none() {
        arguments.format = Some(FormatSetting::Terse);
    }
    let mut trials = vec![every_dispatch()];
    for world in WORLDS.iter().chain(KERNEL).filter(|world| is_here(world)) {
        for case in conformance::cases() {
            let flavors = case.flavors.iter();
            trials.extend(flavors.map(|flavor| trial(world, case, *flavor)));
        }
    }
    libtest_mimic::run(&arguments, trials).exit();
}
