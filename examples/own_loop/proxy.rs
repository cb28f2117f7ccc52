//! The proxy, which is the same in each loop, and the command line.

use crate::{demo, in_epoll, in_mio, in_tokio};
use clap::{Parser, ValueEnum};
use ipnet::IpNet;
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
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Instant;

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
    /// The loop
    #[arg(long = "loop", value_enum, default_value_t)]
    pub(crate) which: Which,
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

/// The loops, each in a file of its own.
#[derive(Clone, Copy, Default, ValueEnum)]
pub(crate) enum Which {
    /// Linux's epoll, level-triggered
    #[default]
    Epoll,
    /// mio, edge-triggered
    Mio,
    /// A task of tokio
    Tokio,
}

/// A proxy that works only in its turns.
pub(crate) struct Proxy {
    pub(crate) link: Arc<dyn Link>,
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
    pub(crate) fn turn(&mut self, watch: impl Fn(SocketAddr, Join)) -> io::Result<bool> {
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
    pub(crate) fn fall_asleep(&self) -> (Option<Instant>, Interest) {
        let deadlines = [self.driver.poll_at(), self.pool.poll_at()];
        let deadline = deadlines.into_iter().flatten().min();
        (deadline, self.driver.interest())
    }

    /// Must be called after a sleep: clears a wake-up. Fails if the link is gone.
    pub(crate) fn woken(&self) -> io::Result<()> {
        self.link.wait(Interest::NONE, Some(SystemClock.now()))
    }
}

/// Runs one of the loops until `stop` is readable, or the link is gone.
pub(crate) fn run_loop(mut proxy: Proxy, stop: &UnixStream, which: Which) -> io::Result<()> {
    match which {
        Which::Epoll => in_epoll::run(&mut proxy, stop),
        Which::Mio => in_mio::run(&mut proxy, stop),
        Which::Tokio => in_tokio::run(&mut proxy, stop),
    }
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
    Ok(run_loop(proxy, &stop, arguments.which)?)
}

/// Runs the command line.
pub(crate) fn run() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    match &arguments.tun {
        Some(name) => on_a_tun(name, &arguments),
        None => demo::run(&arguments),
    }
}
