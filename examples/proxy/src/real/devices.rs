//! The devices of both sides, each with its stack, and the threads that receive from them.

use super::settings::BUFFER;
use crate::arguments::{Arguments, Mode, TunSpec};
use crate::handover::{self, Given, Origin, Start, lane::Lane};
use crate::log::PROXY;
use crate::managed::Passed;
use anyhow::{Context, bail};
use sosplice::Stack;
use sosplice::link::tun::{self, Tun};
use sosplice::stack::{Builder, Driver};
use std::ops::RangeInclusive;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread;
use std::time::Duration;
use tracing::error;

/// Local ports of connections to the backend. One is used again a second after its connection has ended, so this is the
/// number of connections in a second; with fewer, all ports are looked at for each connection.
const PORTS: RangeInclusive<u16> = 1024..=65_535;
/// Number of probes to a silent peer.
const PROBES: u32 = 6;

/// A stack and how to call it. With `--handover`, its device can change hands.
pub(super) struct Side {
    pub(super) name: String,
    pub(super) stack: Stack,
    pub(super) lanes: Vec<Arc<Lane>>,
}

/// If the receiving thread moves the bytes, one thread receives from all devices, so that forwarding
/// wakes no second thread. With several queues there is one for each.
pub(super) fn open_all(
    arguments: &Arguments,
    passed: &mut Passed,
    mut start: Option<&mut Start>,
) -> anyhow::Result<Vec<Side>> {
    let mut sides = Vec::new();
    let queues = usize::from(arguments.queues.unwrap_or(1));
    let mut drivers: Vec<Vec<Driver>> = (0..queues).map(|_| Vec::new()).collect();
    for (index, spec) in arguments.tun.iter().enumerate() {
        let origin = start.as_mut().map(|start| start.origin(index));
        let Opened {
            name,
            builder,
            lanes,
        } = open(spec, arguments, passed, origin)?;
        let stack = if arguments.dispatch != Mode::Worker {
            let (stack, all) = builder.build_with_drivers().with_context(|| name.clone())?;
            for driver in all {
                drivers[driver.queue()].push(driver);
            }
            stack
        } else {
            builder.build().with_context(|| name.clone())?
        };
        sides.push(Side { name, stack, lanes });
    }
    for (queue, drivers) in drivers.into_iter().enumerate() {
        if drivers.is_empty() {
            continue;
        }
        let receive = || {
            if let Err(error) = Driver::run_all(drivers) {
                error!(target: PROXY, event = "receiving_failed", "receiving: {error}");
            }
        };
        let name = match queue {
            0 => "receive".into(),
            queue => format!("receive:{queue}"),
        };
        thread::Builder::new().name(name).spawn(receive)?;
    }
    Ok(sides)
}

struct Opened {
    name: String,
    builder: Builder,
    lanes: Vec<Arc<Lane>>,
}

fn open(
    spec: &TunSpec,
    arguments: &Arguments,
    passed: &mut Passed,
    origin: Option<Origin>,
) -> anyhow::Result<Opened> {
    let (ports, given) = match origin {
        Some(Origin { upper, given, .. }) => (handover::ports(upper), given),
        None => (PORTS, None),
    };
    let passage = given.as_ref().map(|given| given.passage.clone());
    let fds = passed.tun(&spec.name, arguments.queues.unwrap_or(1).into())?;
    let queues = match given {
        Some(Given {
            queues, settings, ..
        }) => builder(spec, arguments).build_queues_from(queues, settings)?,
        None if !fds.is_empty() => from_passed(spec, arguments, fds)?,
        None if arguments.handover.is_some() => handover::open_left(&builder(spec, arguments))?,
        None => builder(spec, arguments).build_queues()?,
    };
    let name = queues[0].place().to_string();
    let mut lanes = Vec::new();
    let mut builder = match arguments.handover {
        Some(_) => {
            for queue in queues {
                let lane = Lane::new(queue, passage.is_none(), passage.clone());
                lanes.push(Arc::new(lane.context("a socket for packets")?));
            }
            Stack::with_queues(lanes.clone())
        }
        None => Stack::with_queues(queues),
    };
    if let Some(passage) = passage {
        builder = builder
            .on_unhandled(move |frame| passage.pass(frame))
            .unhandled_tcp(true);
    }
    builder = builder
        .receive_buffer(arguments.buffer.unwrap_or(BUFFER))
        .send_buffer(arguments.buffer.unwrap_or(BUFFER))
        .ephemeral_ports(ports)
        .busy_poll(Duration::from_micros(arguments.busy_poll))
        .congestion(arguments.congestion)
        .connect_timeout(arguments.connect_timeout)
        .keep_alive(arguments.keep_alive, arguments.keep_alive / PROBES, PROBES);
    for address in &spec.addresses {
        builder = builder.address(*address);
    }
    Ok(Opened {
        name,
        builder,
        lanes,
    })
}

/// The settings of a device.
fn builder(spec: &TunSpec, arguments: &Arguments) -> tun::Builder {
    let mut builder = Tun::builder(&spec.name).offload(!arguments.no_offload);
    if let Some(bytes) = arguments.super_frame {
        builder = builder.super_frame(bytes);
    }
    if let Some(netns) = &spec.netns {
        builder = builder.netns(netns);
    }
    if let Some(queues) = arguments.queues {
        builder = builder.queues(queues.into());
    }
    builder
}

/// The queues of a device that another program has attached.
fn from_passed(
    spec: &TunSpec,
    arguments: &Arguments,
    fds: Vec<OwnedFd>,
) -> anyhow::Result<Vec<Tun>> {
    let name = &spec.name;
    if let Some(netns) = &spec.netns {
        bail!("{name}@{netns}: a descriptor with the name {name} was passed: leave out @{netns}");
    }
    let mut builder = Tun::fd_builder().offload(!arguments.no_offload);
    if let Some(bytes) = arguments.super_frame {
        builder = builder.super_frame(bytes);
    }
    let queues = builder.build_queues(fds);
    queues.with_context(|| format!("the passed descriptor with the name {name}"))
}
