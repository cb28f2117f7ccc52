//! Relays of datagrams, for `benches/datagrams.py`: each UDP flow into a TUN goes to its original destination.
//!
//! * `tun_datagrams --tun tc@client` by a socket of the kernel.
//! * `tun_datagrams --tun tc@client --to ts@server=10.0.2.2/24` by a socket of a second stack, over a second TUN.
//!
//! Without arguments it explains itself.
#![allow(missing_docs, reason = "a program")]

#[cfg(target_os = "linux")]
mod program {
    use anyhow::Context;
    use clap::{CommandFactory, Parser, ValueEnum};
    use ipnet::IpNet;
    use sosplice::kernel::KernelUdp;
    use sosplice::link::tun::Tun;
    use sosplice::splice::{self, Dispatch, Options};
    use sosplice::stack::{Builder, Driver, FlowOptions};
    use sosplice::{Intercept, Stack, UdpListener, UdpSocket};
    use std::net::SocketAddr;

    #[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
    enum Mode {
        Worker,
        Direct,
        Adaptive,
    }

    /// Relays datagrams from a TUN.
    #[derive(Parser)]
    struct Arguments {
        /// NAME@NAMESPACE of the clients' device
        #[arg(long)]
        tun: Option<String>,
        /// NAME@NAMESPACE=ADDRESS/PREFIX of the servers' device
        #[arg(long)]
        to: Option<String>,
        #[arg(long, value_enum, default_value = "adaptive")]
        dispatch: Mode,
        /// Payload bytes of each buffer of a flow
        #[arg(long)]
        buffer: Option<usize>,
        /// One thread receives from both devices
        #[arg(long)]
        together: bool,
        /// Without offloads: no super-frames
        #[arg(long)]
        plain: bool,
        /// Given by `cargo bench`
        #[arg(long, hide = true)]
        bench: bool,
    }

    fn open(device: &str, offload: bool) -> anyhow::Result<Tun> {
        let (name, namespace) = device.split_once('@').context("NAME@NAMESPACE")?;
        Ok(Tun::builder(name)
            .netns(namespace)
            .offload(offload)
            .build()?)
    }

    pub(super) fn main() -> anyhow::Result<()> {
        let arguments = Arguments::parse();
        let Some(tun) = &arguments.tun else {
            return Ok(Arguments::command().print_help()?);
        };
        let mut drivers = Vec::new();
        let mut build = |builder: Builder| {
            if !arguments.together {
                return anyhow::Ok(builder.build()?);
            }
            let (stack, driver) = builder.build_with_driver()?;
            drivers.push(driver);
            Ok(stack)
        };
        let builder = Stack::builder(open(tun, !arguments.plain)?)
            .address("198.18.0.1/15".parse()?)
            .address("2001:2::1/48".parse()?);
        let stack = build(builder)?;
        let second = arguments.to.as_deref().map(|to| {
            let (device, address) = to.split_once('=').context("=ADDRESS/PREFIX")?;
            let address: IpNet = address.parse()?;
            let builder = Stack::builder(open(device, !arguments.plain)?).address(address);
            let stack = build(builder)?;
            anyhow::Ok((stack, SocketAddr::new(address.addr(), 0)))
        });
        let second = second.transpose()?;
        if !drivers.is_empty() {
            std::thread::Builder::new().spawn(|| Driver::run_all(drivers))?;
        }
        let mut flows = FlowOptions::default();
        if let Some(bytes) = arguments.buffer {
            flows = flows.hiwat(bytes);
        }
        let listener = UdpListener::intercept(&stack, Intercept::all(), flows)?;
        let options = Options::default()
            .forward_reset(true)
            .dispatch(match arguments.dispatch {
                Mode::Worker => Dispatch::Worker,
                Mode::Direct => Dispatch::Direct,
                Mode::Adaptive => Dispatch::Adaptive,
            });
        println!("listening");
        for client in listener.incoming() {
            let (client, _) = client?;
            let to = client.local_addr();
            match &second {
                None => drop(splice::join(
                    client,
                    KernelUdp::connect(to)?,
                    options.clone(),
                )?),
                Some((stack, from)) => {
                    let server = UdpSocket::bind(stack, *from)?;
                    server.connect(to)?;
                    drop(splice::join(client, server, options.clone())?);
                }
            }
        }
        Ok(())
    }
}

#[cfg(target_os = "linux")]
fn main() -> anyhow::Result<()> {
    program::main()
}

#[cfg(not(target_os = "linux"))]
fn main() {
    println!("TUN devices are for Linux only");
}
