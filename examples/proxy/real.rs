//! The proxy between real networks, on TUN devices.

use crate::arguments::{Arguments, Mode, TunSpec, usage};
use crate::relay::{Config, Event, Failure, Relay, Totals};
use crate::report;
use crate::watch::Watch;
use anyhow::Context;
use crossbeam_channel::Sender;
use signal_hook::consts::{SIGINT, SIGTERM, SIGUSR1};
use signal_hook::iterator::Signals;
use sosplice::clock::{Clock, SystemClock};
use sosplice::link::tun::Tun;
use sosplice::stack::{Builder, Driver};
use sosplice::{Stack, TcpListener};
use std::io::{self, Write};
use std::net::IpAddr;
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

/// Socket buffers, in bytes, by default. Smaller ones fill and empty in turns, and each turn wakes
/// threads.
const BUFFER: usize = 4 * 1024 * 1024;
/// Connections that wait to be accepted.
const BACKLOG: usize = 1024;
/// Number of probes to a silent peer.
const PROBES: u32 = 6;
/// Time for sending resets.
const LAST_RESETS: Duration = Duration::from_secs(1);
/// How often to check whether the last bytes were sent.
const LOOK: Duration = Duration::from_millis(5);

/// A stack and how to call it.
struct Side {
    name: String,
    stack: Stack,
}

/// Runs until a signal ends it.
pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let (listen, backend) = match (arguments.listen, arguments.backend) {
        (Some(listen), Some(backend)) => (listen, backend),
        _ => usage("--tun needs --listen and --backend"),
    };
    let (front, back) = choose(&arguments.tun, listen.ip(), backend.ip());
    let signals = Signals::new([SIGINT, SIGTERM]).context("signals")?;
    let wishes = Signals::new([SIGUSR1]).context("signals")?;
    let sides = open_all(arguments)?;
    let pool = arguments.pool();
    let config = Config {
        dial: sides[back].stack.clone(),
        backend,
        pool: pool.clone(),
        idle: arguments.idle,
        limit: arguments.max_bytes.map(|size| size.0),
    };
    let listener = TcpListener::bind_with_backlog(&sides[front].stack, listen, BACKLOG)
        .with_context(|| format!("cannot listen on {listen}"))?;
    let at = listener.local_addr();
    let (relay, events) = Relay::new(listener, config);
    stop_on(signals, events, arguments.grace)?;
    eprintln!("listening on {at}");
    println!(
        "{at} on {} to {backend} through {}; {:?} dispatch, {} worker(s)",
        sides[front].name,
        sides[back].name,
        arguments.dispatch,
        pool.workers()
    );
    let watch = Watch {
        stacks: sides
            .iter()
            .map(|side| (side.name.clone(), side.stack.clone()))
            .collect(),
        pool,
    };
    watch.every(arguments.stats)?;
    show_on(wishes, watch)?;
    let start = SystemClock.now();
    let (totals, deadline) = relay.run()?;
    // Those that were reset a moment ago may still have resets to send.
    flush(&sides, deadline.max(SystemClock.now() + LAST_RESETS));
    print(&totals, &sides, start)?;
    match totals.failure {
        Some(Failure::Listening(error)) => Err(error).context(sides[front].name.clone()),
        Some(Failure::Dialling(error)) => Err(error).context(sides[back].name.clone()),
        None => Ok(ExitCode::SUCCESS),
    }
}

/// The devices for listening and for the backend.
fn choose(specs: &[TunSpec], listen: IpAddr, backend: IpAddr) -> (usize, usize) {
    if specs.len() > 2 {
        usage("--tun can be given once or twice, not more often");
    }
    let has = |spec: &TunSpec| spec.addresses.iter().any(|net| net.addr() == listen);
    let Some(front) = specs.iter().position(has) else {
        usage(&format!(
            "--listen {listen}: none of the --tun has this address, give one of theirs"
        ));
    };
    let near = |spec: &TunSpec| spec.addresses.iter().any(|net| net.contains(&backend));
    let other = if specs.len() == 2 { 1 - front } else { front };
    let back = specs.iter().position(near).unwrap_or(other);
    let same_family = |net: &ipnet::IpNet| net.addr().is_ipv4() == backend.is_ipv4();
    if !specs[back].addresses.iter().any(same_family) {
        usage(&format!(
            "--backend {backend}: no --tun has an address of its family to reach it from"
        ));
    }
    (front, back)
}

/// If the receiving thread moves the bytes, one thread receives from all devices, so that forwarding
/// wakes no second thread. With several queues there is one for each.
fn open_all(arguments: &Arguments) -> anyhow::Result<Vec<Side>> {
    let mut sides = Vec::new();
    let queues = usize::from(arguments.queues.unwrap_or(1));
    let mut drivers: Vec<Vec<Driver>> = (0..queues).map(|_| Vec::new()).collect();
    for spec in &arguments.tun {
        let (name, builder) = open(spec, arguments)?;
        let stack = if arguments.dispatch != Mode::Worker {
            let (stack, all) = builder.build_with_drivers().with_context(|| name.clone())?;
            for driver in all {
                drivers[driver.queue()].push(driver);
            }
            stack
        } else {
            builder.build().with_context(|| name.clone())?
        };
        sides.push(Side { name, stack });
    }
    for (queue, drivers) in drivers.into_iter().enumerate() {
        if drivers.is_empty() {
            continue;
        }
        let receive = || {
            if let Err(error) = Driver::run_all(drivers) {
                eprintln!("error: receiving: {error}");
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

fn open(spec: &TunSpec, arguments: &Arguments) -> anyhow::Result<(String, Builder)> {
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
    let queues = builder.build_queues()?;
    let name = queues[0].place().to_string();
    let mut builder = Stack::with_queues(queues)
        .receive_buffer(arguments.buffer.unwrap_or(BUFFER))
        .send_buffer(arguments.buffer.unwrap_or(BUFFER))
        .busy_poll(Duration::from_micros(arguments.busy_poll))
        .congestion(arguments.congestion)
        .connect_timeout(arguments.connect_timeout)
        .keep_alive(arguments.keep_alive, arguments.keep_alive / PROBES, PROBES);
    for address in &spec.addresses {
        builder = builder.address(*address);
    }
    Ok((name, builder))
}

/// The first signal stops the relay, the second one the process.
fn stop_on(mut signals: Signals, events: Sender<Event>, grace: Duration) -> io::Result<()> {
    let watch = move || {
        for (count, signal) in signals.forever().enumerate() {
            if count > 0 || events.send(Event::Stop(grace)).is_err() {
                std::process::exit(128 + signal);
            }
            eprintln!(
                "stopping: open connections may take {grace:?}, a second signal ends at once"
            );
        }
    };
    thread::Builder::new().name("signals".into()).spawn(watch)?;
    Ok(())
}

/// Shows the state at each signal.
fn show_on(mut wishes: Signals, watch: Watch) -> io::Result<()> {
    let show = move || wishes.forever().for_each(|_| watch.show());
    thread::Builder::new().name("wishes".into()).spawn(show)?;
    Ok(())
}

/// Gives the last bytes of closed connections time to reach their peers.
#[expect(
    clippy::disallowed_methods,
    reason = "stacks do not say when they are done"
)]
fn flush(sides: &[Side], deadline: Instant) {
    let busy = |side: &Side| side.stack.stats().connections > 0;
    while sides.iter().any(busy) && SystemClock.now() < deadline {
        thread::sleep(LOOK);
    }
}

fn print(totals: &Totals, sides: &[Side], start: Instant) -> io::Result<()> {
    let mut out = io::stdout().lock();
    let time = SystemClock.now() - start;
    writeln!(
        out,
        "{} connections in {time:.1?}, {} reset at the end",
        totals.connections, totals.cut_off
    )?;
    write!(out, "{}", report::table(totals, None))?;
    for side in sides {
        writeln!(out, "{}", report::counters(&side.name, &side.stack))?;
    }
    Ok(())
}
