//! The command line.

use crate::rule::Rule;
use anyhow::Context;
use clap::{Args, Parser};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use sosplice::link::ethernet::EdgeConfig;
use std::net::{AddrParseError, IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// The network of a virtual machine, by sockets of this process.
#[derive(Parser)]
pub(crate) struct Arguments {
    #[command(flatten)]
    place: Place,
    /// The guest may reach only these: NETWORK, ADDRESS, NAME or *.NAME, each also with :PORT. May be repeated
    #[arg(long, value_name = "RULE")]
    pub(crate) allow: Vec<Rule>,
    /// The gateway's address, with the prefix length of the guest's network
    #[arg(long, default_value = "10.0.2.1/24")]
    pub(crate) gateway: Ipv4Net,
    /// The guest's address. A range, like 10.0.2.15-10.0.2.99, for several guests behind the socket or the device
    #[arg(long, value_name = "ADDRESS[-LAST]", default_value = "10.0.2.15")]
    pub(crate) guest: Pool,
    /// The gateway's IPv6 address, in a prefix of 64 bits
    #[arg(long, default_value = "fd00:7370:6c69::1/64")]
    gateway_v6: Ipv6Net,
    /// The guest has no IPv6
    #[arg(long)]
    no_v6: bool,
    /// Largest packet in bytes. A guest that heeds it sends large segments, at less cost
    #[arg(long, default_value_t = 65_520)]
    mtu: usize,
    /// Send segments of TCP of up to 64 KiB whatever the guest's MTU: less cost, for a guest that forwards nothing.
    /// Not with --datagrams
    #[arg(long)]
    pub(crate) large_frames: bool,
    /// The host's name server; by default the first one of /etc/resolv.conf
    #[arg(long)]
    dns: Option<IpAddr>,
    /// Connections to this address of the host go to a port of the guest, the first one if there are several
    #[arg(long, value_name = "ADDRESS:PORT:[GUEST:]PORT")]
    pub(crate) forward: Vec<Forward>,
    /// How many seconds a destination may take to answer
    #[arg(long, default_value_t = 10)]
    pub(crate) connect_timeout: u64,
    /// End connections that were idle for this many seconds
    #[arg(long, default_value_t = 7200)]
    pub(crate) idle: u64,
    /// Ask a guest that was silent for this many seconds whether it still has a connection: one that was reset has not
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    pub(crate) keep_alive: u64,
    /// Show what passes, every second. SIGUSR1 shows it once, with counters
    #[arg(long)]
    pub(crate) top: bool,
    /// Write the guest's frames to this file, for tcpdump and Wireshark
    #[arg(long, value_name = "FILE")]
    pub(crate) pcap: Option<PathBuf>,
    /// The file ends before it is larger than this, in bytes
    #[arg(long, value_name = "BYTES", default_value_t = 1 << 30)]
    pub(crate) pcap_limit: u64,
}

/// The socket for frames.
#[derive(Args)]
#[group(required = true, multiple = false)]
struct Place {
    /// Connect to this Unix stream socket of QEMU (server=on), and again when it is gone
    #[arg(long, value_name = "PATH")]
    qemu: Option<PathBuf>,
    /// Accept machines at this Unix stream socket, one after the other (QEMU's server=off, libkrun)
    #[arg(long, value_name = "PATH")]
    listen: Option<PathBuf>,
    /// Receive frames at this Unix datagram socket (QEMU's dgram, vfkit)
    #[arg(long, value_name = "PATH")]
    datagrams: Option<PathBuf>,
    /// Receive frames from this TAP device, e.g. in a bridge with those of several guests
    #[arg(long, value_name = "NAME")]
    tap: Option<String>,
}

pub(crate) enum Transport<'a> {
    Qemu(&'a Path),
    Listen(&'a Path),
    Datagrams(&'a Path),
    Tap(&'a str),
}

impl Transport<'_> {
    /// The options of QEMU that belong to it; behind a TAP device are several machines.
    pub(crate) fn qemu(&self) -> Option<String> {
        let escaped = |path: &Path| path.display().to_string().replace(',', ",,");
        let netdev = match self {
            Transport::Qemu(path) => {
                format!(
                    "stream,id=n,server=on,addr.type=unix,addr.path={}",
                    escaped(path)
                )
            }
            Transport::Listen(path) => {
                format!(
                    "stream,id=n,server=off,addr.type=unix,addr.path={}",
                    escaped(path)
                )
            }
            Transport::Datagrams(path) => {
                let path = escaped(path);
                let local = format!("local.type=unix,local.path={path}.guest");
                format!("dgram,id=n,{local},remote.type=unix,remote.path={path}")
            }
            Transport::Tap(_) => return None,
        };
        Some(format!(
            "-device virtio-net-pci,netdev=n,romfile= -netdev {netdev}"
        ))
    }
}

/// The addresses of guests.
#[derive(Clone)]
pub(crate) struct Pool {
    pub(crate) first: Ipv4Addr,
    /// None: there is one guest.
    pub(crate) last: Option<Ipv4Addr>,
}

impl FromStr for Pool {
    type Err = AddrParseError;

    fn from_str(string: &str) -> Result<Pool, AddrParseError> {
        Ok(match string.split_once('-') {
            Some((first, last)) => Pool {
                first: first.parse()?,
                last: Some(last.parse()?),
            },
            None => Pool {
                first: string.parse()?,
                last: None,
            },
        })
    }
}

/// A port of a guest that host programs can connect to.
#[derive(Clone)]
pub(crate) struct Forward {
    pub(crate) host: SocketAddr,
    pub(crate) guest: Option<Ipv4Addr>,
    pub(crate) port: u16,
}

impl FromStr for Forward {
    type Err = anyhow::Error;

    fn from_str(string: &str) -> anyhow::Result<Forward> {
        let (rest, port) = string
            .rsplit_once(':')
            .context("ADDRESS:PORT:PORT is expected, or ADDRESS:PORT:GUEST:PORT")?;
        let guest = rest.rsplit_once(':');
        let guest = guest.and_then(|(rest, guest)| Some((rest, guest.parse().ok()?)));
        let (host, guest) = match guest {
            Some((host, guest)) => (host, Some(guest)),
            None => (rest, None),
        };
        Ok(Forward {
            host: host.parse()?,
            guest,
            port: port.parse()?,
        })
    }
}

impl Arguments {
    pub(crate) fn transport(&self) -> anyhow::Result<Transport<'_>> {
        let Place {
            qemu,
            listen,
            datagrams,
            tap,
        } = &self.place;
        let qemu = qemu.as_deref().map(Transport::Qemu);
        let listen = listen.as_deref().map(Transport::Listen);
        let datagrams = datagrams.as_deref().map(Transport::Datagrams);
        let tap = tap.as_deref().map(Transport::Tap);
        let transport = qemu.or(listen).or(datagrams).or(tap);
        transport.context("one of --qemu, --listen, --datagrams and --tap is needed")
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
        let pool = self.guest.last.map(|last| self.guest.first..=last);
        EdgeConfig::new(self.gateway, self.guest.first)
            .pool(pool)
            .gateway_v6(self.gateway_v6())
            .dns(servers)
            .mtu(self.mtu)
    }

    /// The guest's networks.
    pub(crate) fn inside(&self) -> Vec<IpNet> {
        let v4 = std::iter::once(self.gateway.into());
        v4.chain(self.addresses_v6()).collect()
    }

    /// The host's name server, if it has one.
    pub(crate) fn resolver(&self) -> anyhow::Result<Option<SocketAddr>> {
        let address = match self.dns {
            Some(address) => Some(address),
            None => first_name_server()?,
        };
        Ok(address.map(|address| (address, 53).into()))
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
