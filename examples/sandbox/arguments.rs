//! The command line.

use crate::relay::Network;
use anyhow::{Context, bail};
use clap::Parser;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use sosplice::link::ethernet::EdgeConfig;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

/// The network of a virtual machine, by sockets of this process.
#[derive(Parser)]
pub(crate) struct Arguments {
    /// Connect to this Unix stream socket of the machine (QEMU's server=on), and again when it is gone
    #[arg(long, value_name = "PATH")]
    connect: Option<PathBuf>,
    /// Accept machines at this Unix stream socket, one after the other (QEMU's server=off, libkrun)
    #[arg(long, value_name = "PATH")]
    listen: Option<PathBuf>,
    /// Receive frames at this Unix datagram socket (QEMU's dgram, vfkit)
    #[arg(long, value_name = "PATH")]
    datagrams: Option<PathBuf>,
    /// The gateway's address, with the prefix length of the guest's network
    #[arg(long, default_value = "10.0.2.1/24")]
    pub(crate) gateway: Ipv4Net,
    /// The guest's address
    #[arg(long, default_value = "10.0.2.15")]
    pub(crate) guest: Ipv4Addr,
    /// The gateway's IPv6 address, in a prefix of 64 bits
    #[arg(long, default_value = "fd00:7370:6c69::1/64")]
    gateway_v6: Ipv6Net,
    /// The guest has no IPv6
    #[arg(long)]
    no_v6: bool,
    /// Largest packet in bytes. A guest that heeds it sends large segments, at less cost
    #[arg(long, default_value_t = 65_520)]
    mtu: usize,
    /// The host's name server; by default the first one of /etc/resolv.conf
    #[arg(long)]
    dns: Option<IpAddr>,
    /// Connections to this address of the host go to a port of the guest
    #[arg(long, value_name = "ADDRESS:PORT:GUESTPORT")]
    pub(crate) forward: Vec<Forward>,
    /// How many seconds a destination may take to answer
    #[arg(long, default_value_t = 10)]
    connect_timeout: u64,
    /// End connections that were idle for this many seconds
    #[arg(long, default_value_t = 7200)]
    idle: u64,
}

pub(crate) enum Transport<'a> {
    Listen(&'a Path),
    Connect(&'a Path),
    Datagrams(&'a Path),
}

/// A port of the guest that host programs can connect to.
#[derive(Clone)]
pub(crate) struct Forward {
    pub(crate) host: SocketAddr,
    pub(crate) guest: u16,
}

impl FromStr for Forward {
    type Err = anyhow::Error;

    fn from_str(string: &str) -> anyhow::Result<Forward> {
        let parts = string
            .rsplit_once(':')
            .context("ADDRESS:PORT:GUESTPORT is expected")?;
        Ok(Forward {
            host: parts.0.parse()?,
            guest: parts.1.parse()?,
        })
    }
}

impl Arguments {
    pub(crate) fn transport(&self) -> anyhow::Result<Transport<'_>> {
        match (&self.connect, &self.listen, &self.datagrams) {
            (Some(path), None, None) => Ok(Transport::Connect(path)),
            (None, Some(path), None) => Ok(Transport::Listen(path)),
            (None, None, Some(path)) => Ok(Transport::Datagrams(path)),
            _ => bail!("one of --connect, --listen and --datagrams is needed"),
        }
    }

    fn gateway_v6(&self) -> Option<Ipv6Net> {
        (!self.no_v6).then_some(self.gateway_v6)
    }

    /// Of the stack behind the gateway.
    pub(crate) fn addresses_v6(&self) -> Vec<IpNet> {
        let link_local = Ipv6Net::new_assert([0xfe80, 0, 0, 0, 0, 0, 0, 1].into(), 64);
        let addresses = self
            .gateway_v6()
            .map(|gateway| [gateway.into(), link_local.into()]);
        addresses.into_iter().flatten().collect()
    }

    pub(crate) fn edge(&self) -> EdgeConfig {
        let servers = [self.gateway.addr().into()].into_iter();
        let servers = servers.chain(self.gateway_v6().map(|gateway| gateway.addr().into()));
        EdgeConfig::new(self.gateway, self.guest)
            .gateway_v6(self.gateway_v6())
            .dns(servers)
            .mtu(self.mtu)
    }

    pub(crate) fn network(&self) -> anyhow::Result<Network> {
        let resolver = match self.dns {
            Some(address) => Some(address),
            None => first_name_server()?,
        };
        let own = [IpAddr::from(self.gateway.addr())].into_iter();
        Ok(Network {
            own: own
                .chain(self.addresses_v6().iter().map(IpNet::addr))
                .collect(),
            resolver: resolver.map(|address| (address, 53).into()),
            connect_timeout: Duration::from_secs(self.connect_timeout),
            idle: Duration::from_secs(self.idle),
        })
    }
}

/// From /etc/resolv.conf. None if there is none.
fn first_name_server() -> anyhow::Result<Option<IpAddr>> {
    let path = "/etc/resolv.conf";
    let lines = std::fs::read_to_string(path).context(path)?;
    let servers = lines
        .lines()
        .filter_map(|line| line.trim().strip_prefix("nameserver"));
    Ok(servers
        .filter_map(|server| server.trim().parse().ok())
        .next())
}
