//! Stacks, links between them, and splice pools.
//!
//! Three networks of two stacks each: an ordinary one; a narrow one with small buffers, a short queue
//! and no offload; one with IPv6 and jumbo frames. Each stack has a listener for all threads, and that
//! is closed and opened again at random.

use crate::ends::{Ends, Pool};
use crate::handle::Handle;
use anyhow::Context;
use parking_lot::Mutex;
use sosplice::error::Flavor;
use sosplice::link::memory;
use sosplice::splice::SplicePool;
use sosplice::{Stack, TcpListener, TcpSocket};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

/// The port of all listeners.
const PORT: u16 = 80;
/// Connections that wait to be accepted: few, so that SYNs are dropped now and then.
const BACKLOG: usize = 16;
/// Connect timeout. Longer than the first retransmission of a SYN.
pub(crate) const CONNECT: Duration = Duration::from_secs(3);

/// A stack and its listener.
#[derive(Debug)]
pub(crate) struct Host {
    pub(crate) stack: Stack,
    pub(crate) address: IpAddr,
    listener: Mutex<Option<Arc<TcpListener>>>,
}

impl Host {
    fn new(stack: Stack) -> io::Result<Host> {
        let address = stack.addresses()[0].addr();
        let host = Host {
            stack,
            address,
            listener: Mutex::new(None),
        };
        host.listen()?;
        Ok(host)
    }

    /// Closes the listener and opens another one: threads in `accept` return.
    pub(crate) fn listen(&self) -> io::Result<()> {
        self.close();
        let listener = TcpListener::bind_with_backlog(&self.stack, self.at(PORT), BACKLOG)?;
        *self.listener.lock() = Some(Arc::new(listener));
        Ok(())
    }

    pub(crate) fn close(&self) {
        let former = self.listener.lock().take();
        if let Some(listener) = former {
            listener.close();
        }
    }

    pub(crate) fn listener(&self) -> Option<Arc<TcpListener>> {
        self.listener.lock().clone()
    }

    pub(crate) fn at(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.address, port)
    }

    /// An unused address of its network.
    pub(crate) fn unused_address(&self, port: u16) -> SocketAddr {
        let address = match self.address {
            IpAddr::V4(address) => {
                let [a, b, c, _] = address.octets();
                [a, b, c, 77].into()
            }
            IpAddr::V6(address) => {
                let mut octets = address.octets();
                octets[15] = 77;
                octets.into()
            }
        };
        SocketAddr::new(address, port)
    }

    pub(crate) fn service(&self) -> SocketAddr {
        self.at(PORT)
    }
}

/// Two stacks with a link between them.
#[derive(Debug)]
pub(crate) struct Network {
    pub(crate) name: &'static str,
    pub(crate) hosts: [Host; 2],
}

impl Network {
    /// Both ends of a new connection, made by a listener of its own; the second one on demand.
    pub(crate) fn connect(&self, from: usize) -> io::Result<(Handle, Arrival)> {
        let (dialler, server) = (&self.hosts[from % 2], &self.hosts[(from + 1) % 2]);
        let listener = TcpListener::bind(&server.stack, server.at(0))?;
        let stream = TcpSocket::new(&dialler.stack).start(listener.local_addr())?;
        let dialled = stream.local_addr();
        Ok((stream.into(), Arrival { listener, dialled }))
    }
}

/// The other end of a connection, on its way.
#[derive(Debug)]
pub(crate) struct Arrival {
    listener: TcpListener,
    dialled: SocketAddr,
}

impl Arrival {
    /// Waits for it.
    pub(crate) fn wait(self) -> io::Result<Handle> {
        let (stream, peer) = self.listener.accept()?;
        if peer != self.dialled {
            let why = format!("accepted {peer} in place of {}", self.dialled);
            return Err(io::Error::other(why));
        }
        Ok(stream.into())
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) networks: Vec<Network>,
    /// For splices of shared sockets.
    pub(crate) chaos: Arc<Pool>,
    /// For splices of the couriers.
    pub(crate) couriers: Arc<Pool>,
}

impl World {
    pub(crate) fn new(workers: usize) -> anyhow::Result<World> {
        let pool = |name, quantum| {
            Arc::new(Pool {
                name,
                pool: SplicePool::builder()
                    .workers(workers)
                    .quantum(quantum)
                    .build(),
                ends: Ends::default(),
            })
        };
        Ok(World {
            networks: vec![ordinary()?, narrow()?, jumbo()?],
            chaos: pool("chaos", 64 * 1024),
            couriers: pool("couriers", 10_000),
        })
    }

    pub(crate) fn hosts(&self) -> impl Iterator<Item = &Host> {
        self.networks.iter().flat_map(|network| &network.hosts)
    }
}

fn network(
    name: &'static str,
    config: memory::Config,
    addresses: [&str; 2],
    set_up: fn(sosplice::stack::Builder) -> sosplice::stack::Builder,
) -> anyhow::Result<Network> {
    let (a, b) = memory::pair(config);
    let host = |link, address: &str| -> anyhow::Result<Host> {
        let builder = Stack::builder(link).address(address.parse()?);
        let stack = set_up(builder.connect_timeout(CONNECT)).build()?;
        Ok(Host::new(stack)?)
    };
    let hosts = || Ok::<_, anyhow::Error>([host(a, addresses[0])?, host(b, addresses[1])?]);
    Ok(Network {
        name,
        hosts: hosts().context(name)?,
    })
}

fn ordinary() -> anyhow::Result<Network> {
    let config = memory::Config::default();
    network(
        "ordinary",
        config,
        ["10.0.0.1/24", "10.0.0.2/24"],
        |builder| builder,
    )
}

fn narrow() -> anyhow::Result<Network> {
    let mut config = memory::Config::default().frames(8).bytes(16 * 1024);
    config.capabilities.mtu = 1280;
    config.capabilities.checksum = false;
    config.capabilities.segment_v4 = None;
    network(
        "narrow",
        config,
        ["10.0.1.1/24", "10.0.1.2/24"],
        |builder| {
            let builder = builder.receive_buffer(8192).send_buffer(4096);
            let builder = builder.time_wait(Duration::from_millis(200));
            let builder = builder.ack_delay(Some(Duration::from_millis(10)));
            builder.flavor(Flavor::OpenBsd)
        },
    )
}

fn jumbo() -> anyhow::Result<Network> {
    let mut config = memory::Config::default().frames(64);
    config.capabilities.mtu = 9000;
    config.capabilities.segment_v6 = Some(65_535);
    network("jumbo", config, ["fd00::1/64", "fd00::2/64"], |builder| {
        let builder = builder.receive_buffer(64 * 1024).send_buffer(100_000);
        builder.time_wait(Duration::from_secs(1))
    })
}
