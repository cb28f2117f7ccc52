//! The proxy and its two loops.

use crate::demo;
use clap::Parser;
use ipnet::IpNet;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::low_level::pipe;
use sosplice::clock::{Clock, SystemClock};
use sosplice::link::tun::Tun;
use sosplice::link::{Interest, Link};
use sosplice::splice::{self, Dispatch, Join, Options, SplicePool};
use sosplice::stack::Driver;
use sosplice::{Stack, TcpListener, TcpSocket, TcpStream};
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Instant;
use tokio::io::Interest as Events;
use tokio::io::unix::AsyncFd;

/// Splices connections to a backend, in the program's own loop.
#[derive(Parser)]
#[command(
    name = "own_loop",
    version,
    max_term_width = 100,
    after_help = "\
Exit status: 0 if all went well, 1 if not (a byte differed, a device is missing), 2 for a wrong
command line."
)]
pub(crate) struct Arguments {
    /// As a task of tokio, in place of a loop with poll(2)
    #[arg(long)]
    pub(crate) tokio: bool,
    /// Without a device: connections
    #[arg(long, value_name = "N", default_value_t = 8, conflicts_with = "tun")]
    #[arg(value_parser = clap::value_parser!(u16).range(1..=100))]
    pub(crate) connections: u16,
    /// Without a device: bytes each way on each of them
    #[arg(long, value_name = "N", default_value_t = 1 << 20, conflicts_with = "tun")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=1 << 30))]
    pub(crate) bytes: u32,
    /// A TUN device: NAME, or NAME@NETNS for one in a network namespace of `ip netns`
    #[arg(long, value_name = "NAME[@NETNS]")]
    tun: Option<String>,
    /// The proxy's address behind the device, with its prefix length
    #[arg(long, value_name = "ADDRESS/PREFIX", default_value = "10.0.0.2/24")]
    address: IpNet,
    /// The proxy's port
    #[arg(long, value_name = "PORT", default_value_t = 80)]
    #[arg(value_parser = clap::value_parser!(u16).range(1..))]
    port: u16,
    /// The backend
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "10.0.0.1:8080")]
    pub(crate) backend: SocketAddr,
}

/// A proxy that works only in its turns.
pub(crate) struct Proxy {
    link: Arc<dyn Link>,
    stack: Stack,
    driver: Driver,
    pub(crate) listener: TcpListener,
    backend: SocketAddr,
    pool: SplicePool,
}

impl Proxy {
    pub(crate) fn new(link: Arc<dyn Link>, arguments: &Arguments) -> anyhow::Result<Proxy> {
        let builder = Stack::builder(link.clone()).address(arguments.address);
        let (stack, driver) = builder.build_with_driver()?;
        let listener = TcpListener::bind(&stack, (arguments.address.addr(), arguments.port))?;
        listener.set_nonblocking(true);
        let pool = SplicePool::builder().workers(1).dispatch(Dispatch::Direct);
        Ok(Proxy {
            link,
            stack,
            driver,
            listener,
            backend: arguments.backend,
            pool: pool.manual().build(),
        })
    }

    /// Does a bounded part of the present work. `false` if there was none.
    fn turn(&mut self, watch: impl Fn(SocketAddr, Join)) -> io::Result<bool> {
        let mut busy = self.driver.poll()?;
        while let Ok((client, peer)) = self.listener.accept() {
            busy = true;
            match self.splice(client) {
                Ok(join) => watch(peer, join),
                Err(error) => eprintln!("{peer}: {error}"),
            }
        }
        Ok(self.pool.run_one() || busy)
    }

    /// Both ways, to a backend that may still be connecting.
    fn splice(&self, client: TcpStream) -> io::Result<Join> {
        let server = TcpSocket::new(&self.stack).start(self.backend)?;
        let options = Options::default()
            .forward_eof(true)
            .forward_reset(true)
            .pool(self.pool.clone());
        splice::join(client, server, options).map_err(io::Error::other)
    }

    /// The deadline and events that end the following sleep. Until the next turn the driver counts as
    /// asleep.
    fn fall_asleep(&self) -> (Option<Instant>, Interest) {
        let deadlines = [self.driver.poll_at(), self.pool.poll_at()];
        let deadline = deadlines.into_iter().flatten().min();
        (deadline, self.driver.interest())
    }

    /// Must be called after a sleep: clears a wake-up. Fails if the link is gone.
    fn woken(&self) -> io::Result<()> {
        self.link.wait(Interest::NONE, Some(SystemClock.now()))
    }
}

/// A loop with `poll(2)`. It ends when `stop` is readable, or with the link.
fn plain(proxy: &mut Proxy, stop: &UnixStream) -> io::Result<()> {
    let link = proxy.link.clone();
    let [device, wake] = link.descriptors().ok_or(io::ErrorKind::Unsupported)?;
    loop {
        // A join continues without its handle.
        if proxy.turn(|_, join| drop(join))? {
            continue;
        }
        let (deadline, interest) = proxy.fall_asleep();
        let mut wanted = PollFlags::empty();
        wanted.set(PollFlags::IN, interest.overlaps(Interest::READABLE));
        wanted.set(PollFlags::OUT, interest.overlaps(Interest::WRITABLE));
        let mut fds = [
            PollFd::from_borrowed_fd(device, wanted),
            PollFd::from_borrowed_fd(wake, PollFlags::IN),
            PollFd::new(stop, PollFlags::IN),
        ];
        let left = deadline.map(|deadline| deadline.saturating_duration_since(SystemClock.now()));
        let left = left.and_then(|left| Timespec::try_from(left).ok());
        match poll(&mut fds, left.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        if !fds[2].revents().is_empty() {
            return Ok(());
        }
        proxy.woken()?;
    }
}

#[allow(
    deprecated,
    reason = "its successor is unsafe for the sake of types that lie about their descriptor, and this is none"
)]
fn register(fd: BorrowedFd<'_>, events: Events) -> io::Result<AsyncFd<BorrowedFd<'_>>> {
    AsyncFd::with_interest(fd, events)
}

/// The same as a task, beside one for each connection that waits for its splices.
async fn in_tokio(proxy: &mut Proxy, stop: &UnixStream) -> io::Result<()> {
    let link = proxy.link.clone();
    let [device, wake] = link.descriptors().ok_or(io::ErrorKind::Unsupported)?;
    let all = Events::READABLE | Events::WRITABLE | Events::ERROR;
    let device = register(device, all)?;
    let wake = register(wake, Events::READABLE)?;
    let stop = register(stop.as_fd(), Events::READABLE)?;
    loop {
        let busy = proxy.turn(|peer, join| {
            tokio::spawn(async move {
                let ends = join.ended().await;
                let (up, down) = (ends.a_to_b.bytes, ends.b_to_a.bytes);
                println!("{peer}: {up} bytes up, {down} down");
            });
        })?;
        if busy {
            tokio::task::yield_now().await;
            continue;
        }
        let (deadline, interest) = proxy.fall_asleep();
        let timer = async {
            match deadline {
                Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
                None => std::future::pending().await,
            }
        };
        let mut wanted = Events::ERROR;
        if interest.overlaps(Interest::READABLE) {
            wanted |= Events::READABLE;
        }
        if interest.overlaps(Interest::WRITABLE) {
            wanted |= Events::WRITABLE;
        }
        // These are edges: readiness cleared here is used up by the following turns, until one finds no
        // work.
        tokio::select! {
            () = timer => {}
            event = device.ready(wanted) => event?.clear_ready(),
            event = wake.readable() => event?.clear_ready(),
            _ = stop.readable() => return Ok(()),
        }
        proxy.woken()?;
    }
}

/// Runs one of the loops until `stop` is readable.
pub(crate) fn run_loop(mut proxy: Proxy, stop: &UnixStream, in_task: bool) -> io::Result<()> {
    if !in_task {
        return plain(&mut proxy, stop);
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(in_tokio(&mut proxy, stop))
}

/// Until SIGINT or SIGTERM, or until the device is gone.
fn on_a_tun(name: &str, arguments: &Arguments) -> anyhow::Result<()> {
    let (stop, signal) = UnixStream::pair()?;
    pipe::register(SIGINT, signal.try_clone()?)?;
    pipe::register(SIGTERM, signal)?;
    let builder = match name.split_once('@') {
        Some((name, namespace)) => Tun::builder(name).netns(namespace),
        None => Tun::builder(name),
    };
    let proxy = Proxy::new(Arc::new(builder.build()?), arguments)?;
    println!("listening on {}", proxy.listener.local_addr());
    Ok(run_loop(proxy, &stop, arguments.tokio)?)
}

/// Runs the command line.
pub(crate) fn run() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    match &arguments.tun {
        Some(name) => on_a_tun(name, &arguments),
        None => demo::run(&arguments),
    }
}
