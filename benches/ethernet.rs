//! A proxy between two devices that are TUNs, TAPs, or Ethernet interfaces with packet sockets; and the lower bound
//! for it: every frame that is read from one is written to the other, unchanged, with its virtio-net header.
//!
//! `ethernet --kind packet --port tc@c=10.77.1.2/24 --port ts@s=10.77.2.2/24 --listen 10.77.1.2:80 --backend
//! 10.77.2.1:80`, or with `--forward` in place of the last two; without arguments it explains itself. Started by
//! `benches/compare.py`.
#![allow(missing_docs, reason = "a program")]

#[cfg(target_os = "linux")]
mod ethernet {
    use anyhow::{Context, anyhow};
    use clap::{CommandFactory, Parser, ValueEnum};
    use ipnet::IpNet;
    use rustix::buffer::spare_capacity;
    use rustix::event::{PollFd, PollFlags, poll};
    use rustix::fd::AsFd;
    use rustix::io::{Errno, read, write};
    use sosplice::link::Link;
    use sosplice::link::ethernet::{AfPacket, Edge, EdgeConfig, Host, HostConfig, Mac, Tap};
    use sosplice::link::tun::Tun;
    use sosplice::splice::{self, Options};
    use sosplice::stack::{Builder, Driver};
    use sosplice::{Stack, TcpListener, TcpStream};
    use std::net::{Ipv4Addr, SocketAddr};
    use std::str::FromStr;

    #[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
    enum Kind {
        Tun,
        Tap,
        Packet,
    }

    /// `NAME@NETNS=ADDRESS/PREFIX`.
    #[derive(Debug, Clone)]
    struct Port {
        name: String,
        netns: String,
        address: IpNet,
    }

    impl FromStr for Port {
        type Err = anyhow::Error;

        fn from_str(text: &str) -> anyhow::Result<Port> {
            let (device, address) = text.split_once('=').context("no =ADDRESS")?;
            let (name, netns) = device.split_once('@').context("no @NETNS")?;
            Ok(Port {
                name: name.into(),
                netns: netns.into(),
                address: address.parse()?,
            })
        }
    }

    /// Proxies TCP, or forwards frames, between two devices.
    #[derive(Debug, Parser)]
    struct Arguments {
        #[arg(long, value_enum, default_value = "packet")]
        kind: Kind,
        /// NAME@NETNS=ADDRESS/PREFIX: clients', then servers'.
        #[arg(long)]
        port: Vec<Port>,
        /// The stacks are hosts in the network, not gateways of the other host.
        #[arg(long)]
        host: bool,
        /// Frames pass unchanged.
        #[arg(long)]
        forward: bool,
        /// Where to listen on the first.
        #[arg(long)]
        listen: Option<SocketAddr>,
        /// Where to connect to over the second.
        #[arg(long)]
        backend: Option<SocketAddr>,
        /// Bytes of each socket buffer.
        #[arg(long, default_value_t = 4 << 20)]
        buffer: usize,
        /// Given by `cargo bench`.
        #[arg(long, hide = true)]
        bench: bool,
    }

    pub(super) fn main() -> anyhow::Result<()> {
        let arguments = Arguments::parse();
        let [a, b] = arguments.port.as_slice() else {
            Arguments::command().print_help()?;
            return Ok(());
        };
        if arguments.forward {
            let [a, b] = [a, b].map(|port| port.open(arguments.kind));
            return forward([a?, b?]);
        }
        let listen = arguments.listen.context("no --listen")?;
        let backend = arguments.backend.context("no --backend")?;
        let (front, driver) = a.stack(&arguments)?;
        let (back, other) = b.stack(&arguments)?;
        // As the example `proxy` does it: forwarding wakes no second thread.
        let receive = move || Driver::run_all([driver, other]);
        std::thread::Builder::new()
            .name("receive".into())
            .spawn(receive)?;
        let listener = TcpListener::bind(&front, listen)?;
        println!("ready");
        for client in listener.incoming() {
            let server = TcpStream::connect(&back, backend)?;
            let options = Options::default().forward_eof(true).forward_reset(true);
            splice::join(client?, server, options)?;
        }
        Ok(())
    }

    /// An open device.
    #[derive(Debug)]
    enum Device {
        Tun(Tun),
        Tap(Tap),
        Packet(AfPacket),
    }

    impl Port {
        fn open(&self, kind: Kind) -> anyhow::Result<Device> {
            let (name, netns) = (&self.name, &self.netns);
            Ok(match kind {
                Kind::Tun => Device::Tun(Tun::builder(name).netns(netns).build()?),
                Kind::Tap => Device::Tap(Tap::builder(name).netns(netns).build()?),
                Kind::Packet => Device::Packet(AfPacket::builder(name).netns(netns).build()?),
            })
        }

        fn stack(&self, arguments: &Arguments) -> anyhow::Result<(Stack, Driver)> {
            let builder = match self.open(arguments.kind)? {
                Device::Tun(tun) => Stack::builder(tun),
                Device::Tap(tap) if arguments.host => self.host(tap)?,
                Device::Packet(socket) if arguments.host => self.host(socket)?,
                Device::Tap(tap) => self.edge(tap)?,
                Device::Packet(socket) => self.edge(socket)?,
            };
            let builder = match arguments.host {
                true => builder,
                false => builder.address(self.address),
            };
            let builder = builder
                .receive_buffer(arguments.buffer)
                .send_buffer(arguments.buffer);
            Ok(builder.build_with_driver()?)
        }

        /// A stack that is the gateway of the host at the device.
        fn edge(&self, transport: impl Link + 'static) -> anyhow::Result<Builder> {
            let guest = |gateway: Ipv4Addr| Ipv4Addr::from_bits(gateway.to_bits() ^ 3);
            let config = match self.address {
                IpNet::V4(net) => EdgeConfig::new(net, guest(net.addr())),
                IpNet::V6(net) => {
                    let unused = "192.0.2.1/24".parse()?;
                    EdgeConfig::new(unused, "192.0.2.2".parse()?).gateway_v6(net)
                }
            };
            let mtu = transport.capabilities().mtu - 14;
            Ok(Stack::builder(Edge::new(transport, config.mtu(mtu))?))
        }
    }

    impl Port {
        /// A stack that is a host.
        fn host(&self, transport: impl Link + 'static) -> anyhow::Result<Builder> {
            let mtu = transport.capabilities().mtu - 14;
            let config = HostConfig::new(Mac([2, 0, 0, 0, 0, 5])).probe(false);
            let config = config.address(self.address).mtu(mtu);
            Ok(Stack::builder(Host::new(transport, config)?))
        }
    }

    impl AsFd for Device {
        fn as_fd(&self) -> rustix::fd::BorrowedFd<'_> {
            match self {
                Device::Tun(tun) => tun.as_fd(),
                Device::Tap(tap) => tap.as_fd(),
                Device::Packet(socket) => socket.as_fd(),
            }
        }
    }

    /// Forwards in both directions, up to 64 frames from one device before the other's turn.
    fn forward(devices: [Device; 2]) -> anyhow::Result<()> {
        println!("ready");
        let mut frame = Vec::with_capacity(65_700);
        loop {
            let mut fds = [0, 1].map(|n: usize| PollFd::new(&devices[n], PollFlags::IN));
            match poll(&mut fds, None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            let ready = fds.map(|fd| fd.revents().contains(PollFlags::IN));
            for (from, to) in [(0, 1), (1, 0)] {
                for _ in 0..if ready[from] { 64 } else { 0 } {
                    frame.clear();
                    match read(&devices[from], spare_capacity(&mut frame)) {
                        Ok(_) => drop(write(&devices[to], &frame)),
                        Err(Errno::AGAIN) => break,
                        Err(error) => return Err(anyhow!(error)),
                    }
                }
            }
        }
    }
}

#[cfg(target_os = "linux")]
fn main() -> anyhow::Result<()> {
    ethernet::main()
}

#[cfg(not(target_os = "linux"))]
fn main() {
    println!("TAP devices and packet sockets are for Linux only");
}
