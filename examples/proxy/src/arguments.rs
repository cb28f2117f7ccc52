//! The command line.

use crate::backends::{Balance, Spec};
use crate::heads::Version;
use crate::lobby::Room;
use crate::log;
use crate::services::{self, Offer};
use clap::builder::{Styles, styling::AnsiColor};
use clap::error::ErrorKind;
use clap::{CommandFactory, Parser, ValueEnum};
use ipnet::IpNet;
use sosplice::splice::{Dispatch, SplicePool};
use sosplice::stack::Congestion;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;
use tracing_subscriber::filter::Targets;

const STYLES: Styles = Styles::styled()
    .header(AnsiColor::Green.on_default().bold())
    .usage(AnsiColor::Green.on_default().bold())
    .literal(AnsiColor::Cyan.on_default().bold())
    .placeholder(AnsiColor::Cyan.on_default());

const REAL: &str = "With TUN devices (Linux)";
const JOB: &str = "Without TUN devices";

/// A TCP proxy on userspace TCP: both directions of each connection are splices.
///
/// Without --tun all parts run in this process, on links in memory: clients, the proxy and a server.
/// Each connection carries --bytes both ways at once, and every byte is checked.
///
/// With --tun the proxy answers on real networks: it is the host behind the device, so give it an
/// address of the device's subnet that the kernel does not have itself.
#[derive(Debug, Parser)]
#[command(name = "proxy", version, styles = STYLES, max_term_width = 100)]
#[command(after_help = "\
Examples:
  proxy --connections 64 --bytes 16M --dispatch direct
  proxy --tun tun0=10.1.0.2/24 --listen 10.1.0.2:80 --backend 10.1.0.1:8080
  proxy --tun tc@client=10.1.0.2/24,fd01::2/64 --tun ts@server=10.2.0.2/24 \\
        --listen [fd01::2]:80 --backend 10.2.0.1:80 --idle 300

Exit status: 0 if all went well, 1 if not (a byte differed, a device is missing), 2 for a wrong
command line.")]
pub(crate) struct Arguments {
    /// Which threads move the bytes: workers of their own, or those that receive
    #[arg(long, value_enum, default_value_t = Mode::Adaptive)]
    pub(crate) dispatch: Mode,

    /// Worker threads; one for each processor if not given
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    workers: Option<u16>,

    /// Receive queues of each device, and number of receiving threads; with --tun, devices made with
    /// `ip tuntap add ... multi_queue`. Both connections of a client are on the same queue
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=64))]
    pub(crate) queues: Option<u16>,

    /// Size of each connection's receive buffer, and of its send buffer [default: 4M over TUN, 512K in
    /// memory]. A busy connection may come to use that much memory for each
    #[arg(long, value_name = "SIZE", value_parser = buffer)]
    pub(crate) buffer: Option<usize>,

    /// Congestion control of all connections: cubic, reno or bbr
    #[arg(long, value_name = "NAME", default_value_t)]
    pub(crate) congestion: Congestion,

    /// Prints sockets, splices and counters to stderr every so often; with --tun, on SIGUSR1 too
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub(crate) stats: Option<Duration>,

    /// Number of connections
    #[arg(long, value_name = "N", default_value_t = 8, help_heading = JOB, conflicts_with = "tun")]
    #[arg(value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub(crate) connections: u16,

    /// Bytes of each connection in each direction
    #[arg(long, value_name = "SIZE", default_value = "256M", help_heading = JOB)]
    #[arg(conflicts_with = "tun")]
    pub(crate) bytes: Size,

    /// A TUN device and the proxy's addresses behind it; once, or twice for two networks
    #[arg(long, value_name = "NAME[@NETNS]=ADDRESS/PREFIX[,...]", help_heading = REAL)]
    #[arg(requires = "listen", requires = "backends")]
    pub(crate) tun: Vec<TunSpec>,

    /// Where clients connect to: one of the addresses given with --tun
    #[arg(long, value_name = "ADDRESS:PORT", help_heading = REAL, requires = "tun")]
    pub(crate) listen: Option<SocketAddr>,

    /// A file with the backends and with all that holds for connections, in place of those options. It is read again
    /// at SIGHUP
    #[arg(long, value_name = "FILE", help_heading = REAL, requires = "tun", group = "backends")]
    #[arg(conflicts_with_all = ["backend", "balance", "check", "accept_proxy", "send_proxy", "head_timeout"])]
    #[arg(conflicts_with_all = ["head_clients", "head_memory"])]
    #[arg(conflicts_with_all = ["per_client", "queue", "queue_timeout", "idle", "max_bytes"])]
    pub(crate) config: Option<PathBuf>,

    /// A backend, reached through the device whose subnet contains the first one; once for each. With a weight
    /// (its share of the connections, 1 if not given), a maximum number of connections, and the TLS server name
    /// that it serves (`*.` for those below a name)
    #[arg(long, help_heading = REAL, requires = "tun")]
    #[arg(value_name = "ADDRESS:PORT[,weight=N][,limit=N][,name=NAME]")]
    #[arg(value_parser = offer, group = "backends")]
    pub(crate) backend: Vec<Offer>,

    /// How a backend is chosen
    #[arg(long, value_enum, default_value_t, help_heading = REAL)]
    pub(crate) balance: Balance,

    /// Checks each backend by a connection at this interval; three failures in a row (--fall) and it gets no more
    /// clients, until two checks (--rise) have succeeded
    #[arg(long, value_name = "SECONDS", help_heading = REAL, requires = "tun")]
    #[arg(value_parser = seconds)]
    pub(crate) check: Option<Duration>,

    /// Successful checks until a backend is up
    #[arg(long, value_name = "N", default_value_t = 2, help_heading = REAL, requires = "check")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) rise: u32,

    /// Failed checks until a backend is down
    #[arg(long, value_name = "N", default_value_t = 3, help_heading = REAL, requires = "check")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) fall: u32,

    /// Clients begin with a header of the PROXY protocol, of version 1 or 2; others are reset
    #[arg(long, help_heading = REAL, requires = "tun")]
    pub(crate) accept_proxy: bool,

    /// Backends get a header of the PROXY protocol of this version
    #[arg(long, value_enum, value_name = "VERSION", help_heading = REAL, requires = "tun")]
    pub(crate) send_proxy: Option<Version>,

    /// How long the first bytes of a client may take, if they are read (--accept-proxy, name=)
    #[arg(long, value_name = "SECONDS", default_value = "5", help_heading = REAL)]
    #[arg(value_parser = seconds)]
    pub(crate) head_timeout: Duration,

    /// Clients whose first bytes are read and not complete; of more, the one that waits for the longest time is reset
    #[arg(long, value_name = "N", default_value_t = Room::default().clients, help_heading = REAL)]
    #[arg(value_parser = head_clients)]
    pub(crate) head_clients: usize,

    /// Memory of their receive buffers
    #[arg(long, value_name = "SIZE", default_value = "64M", help_heading = REAL)]
    #[arg(value_parser = head_memory)]
    pub(crate) head_memory: usize,

    /// Maximum number of connections of each client's address (of IPv6, of its /64); more are reset
    #[arg(long, value_name = "N", help_heading = REAL, requires = "tun")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) per_client: Option<u32>,

    /// Clients that wait for a backend with room (limit=); more are reset
    #[arg(long, value_name = "N", default_value_t = 0, help_heading = REAL, requires = "tun")]
    pub(crate) queue: usize,

    /// How long they wait
    #[arg(long, value_name = "SECONDS", default_value = "10", help_heading = REAL)]
    #[arg(value_parser = seconds)]
    pub(crate) queue_timeout: Duration,

    /// Ends a connection that carries no bytes in either direction for this time, after twice that at
    /// most
    #[arg(long, value_name = "SECONDS", help_heading = REAL, requires = "tun")]
    #[arg(value_parser = seconds)]
    pub(crate) idle: Option<Duration>,

    /// Ends a connection after exactly this many bytes in one direction
    #[arg(long, value_name = "SIZE", help_heading = REAL, requires = "tun")]
    pub(crate) max_bytes: Option<Size>,

    /// Probes a peer that has been silent for this time, and ends the connection if six such probes, at
    /// intervals of a sixth of that time, are not answered
    #[arg(long, value_name = "SECONDS", default_value = "60", help_heading = REAL)]
    #[arg(value_parser = seconds)]
    pub(crate) keep_alive: Duration,

    /// How long a receiving thread polls for packets before it sleeps. Lowers latency, but keeps a
    /// processor busy
    #[arg(long, value_name = "MICROSECONDS", default_value = "0", help_heading = REAL)]
    #[arg(value_parser = clap::value_parser!(u64).range(..=1_000_000))]
    pub(crate) busy_poll: u64,

    /// How long the backend may take to answer
    #[arg(long, value_name = "SECONDS", default_value = "10", help_heading = REAL)]
    #[arg(value_parser = seconds)]
    pub(crate) connect_timeout: Duration,

    /// After SIGINT or SIGTERM, or when another process has taken over (--handover), how long open connections may
    /// take to end
    #[arg(long, value_name = "SECONDS", default_value = "5", help_heading = REAL)]
    #[arg(value_parser = grace)]
    pub(crate) grace: Duration,

    /// Restart without losing a connection: the same command again takes over from the process that listens on this
    /// Unix socket, which drains (--grace)
    #[arg(long, value_name = "SOCKET", help_heading = REAL, requires = "tun")]
    #[cfg_attr(
        not(any(target_os = "linux", target_os = "android")),
        expect(dead_code, reason = "only Linux has TUNs")
    )]
    pub(crate) handover: Option<PathBuf>,

    /// Serves counters for Prometheus at this address of the operating system
    #[arg(long, value_name = "ADDRESS:PORT", help_heading = REAL, requires = "tun")]
    pub(crate) metrics: Option<SocketAddr>,

    /// The form of the log, which is on stderr. It is never waited for: if it is not read, lines are lost, and counted
    #[arg(long, value_enum, value_name = "FORM", default_value = "text")]
    pub(crate) log: log::Form,

    /// The least important lines: a level (error, warn, info, debug, trace, off), or several for targets (`proxy`,
    /// `connection`, those of the library: `sosplice`) [default: info,sosplice=warn; with text info,connection=warn,sosplice=off]
    #[arg(long, value_name = "LEVEL[,TARGET=LEVEL...]", value_parser = log::levels)]
    pub(crate) log_level: Option<Targets>,

    /// The log is appended to this file in place of stderr
    #[arg(long, value_name = "FILE")]
    pub(crate) log_file: Option<PathBuf>,

    /// Shows a live table of the backends in the terminal, if the program is built with that (`--features top`)
    #[arg(long, help_heading = REAL, requires = "tun")]
    pub(crate) top: bool,

    /// Compute checksums and cut segments here instead of leaving them to the kernel
    #[arg(long, help_heading = REAL, requires = "tun")]
    pub(crate) no_offload: bool,
    /// Largest packet that is given to a device to be cut into segments: up to 500,000 bytes for receivers
    /// on this host; packets that are forwarded are best left as they are
    #[arg(long, value_name = "BYTES", help_heading = REAL, requires = "tun")]
    pub(crate) super_frame: Option<usize>,
}

impl Arguments {
    /// The splice pool they ask for.
    pub(crate) fn pool(&self) -> SplicePool {
        let builder = SplicePool::builder().dispatch(self.dispatch.into());
        match self.workers {
            Some(workers) => builder.workers(workers.into()).build(),
            None => builder.build(),
        }
    }
}

/// Ends the process because of conflicting arguments.
pub(crate) fn usage(why: &str) -> ! {
    Arguments::command()
        .error(ErrorKind::ValueValidation, why)
        .exit()
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Mode {
    /// The receiving thread while it keeps up, worker threads when it does not; one receives for all
    /// devices (one for each of their queues)
    Adaptive,
    /// Worker threads: receiving and sending overlap; each device has a receiving thread
    Worker,
    /// The receiving thread, after its batch; one receives for all devices
    Direct,
}

impl From<Mode> for Dispatch {
    fn from(mode: Mode) -> Dispatch {
        match mode {
            Mode::Adaptive => Dispatch::Adaptive,
            Mode::Worker => Dispatch::Worker,
            Mode::Direct => Dispatch::Direct,
        }
    }
}

/// A number of bytes, at least 1.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Size(pub(crate) u64);

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Size, String> {
        let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
        let shift = match text[digits.len()..].to_ascii_uppercase().as_str() {
            "" | "B" => 0,
            "K" | "KIB" => 10,
            "M" | "MIB" => 20,
            "G" | "GIB" => 30,
            "T" | "TIB" => 40,
            _ => return Err("give a number with K, M, G or T behind it, like 64M".into()),
        };
        let number: u64 = digits
            .parse()
            .map_err(|_| "give a whole number, with K, M, G or T behind it if need be, like 64M")?;
        match number.checked_mul(1 << shift) {
            Some(0) => Err("give at least 1 byte".into()),
            Some(bytes) => Ok(Size(bytes)),
            None => Err("too large: the most is 16777215T".into()),
        }
    }
}

/// A socket buffer's size; the stack checks its range too, but it cannot name the option.
fn buffer(text: &str) -> Result<usize, String> {
    let Size(bytes) = text.parse()?;
    let size = usize::try_from(bytes).unwrap_or(usize::MAX);
    let range = 2048..=1 << 30;
    range
        .contains(&size)
        .then_some(size)
        .ok_or_else(|| "give 2K to 1G".into())
}

fn head_clients(text: &str) -> Result<usize, String> {
    let number = text.parse().ok().filter(|number| *number > 0);
    number.ok_or_else(|| "give a number of at least 1".into())
}

fn head_memory(text: &str) -> Result<usize, String> {
    let Size(bytes) = text.parse()?;
    let size = usize::try_from(bytes).unwrap_or(usize::MAX);
    (size >= Room::LEAST)
        .then_some(size)
        .ok_or_else(|| "give at least 1M".into())
}

fn grace(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "give a number of seconds")?;
    Duration::try_from_secs_f64(seconds)
        .ok()
        .filter(|time| *time <= Duration::from_secs(365 * 86_400))
        .ok_or_else(|| "give 0 seconds to a year".into())
}

fn seconds(text: &str) -> Result<Duration, String> {
    let time = grace(text)?;
    (time >= Duration::from_millis(1))
        .then_some(time)
        .ok_or_else(|| "give more than 0 seconds".into())
}

/// `ADDRESS:PORT[,weight=N][,limit=N][,name=NAME]`
fn offer(text: &str) -> Result<Offer, String> {
    let mut parts = text.split(',');
    let address = parts.next().unwrap_or_default();
    let address: SocketAddr = address
        .parse()
        .map_err(|_| format!("{address:?} is no address with a port, like 10.2.0.1:80"))?;
    let mut spec = Spec {
        address,
        weight: 1,
        limit: None,
    };
    let mut name = None;
    for part in parts {
        let (key, value) = part.split_once('=').unwrap_or((part, ""));
        let number = |range: RangeInclusive<u32>| {
            let number = value.parse().ok().filter(|number| range.contains(number));
            let (least, most) = range.into_inner();
            number.ok_or_else(|| format!("{key}={value:?}: give a number from {least} to {most}"))
        };
        match key {
            "weight" => spec.weight = u16::try_from(number(0..=256)?).unwrap_or(1),
            "limit" => spec.limit = Some(number(1..=u32::MAX)?),
            "name" => name = Some(services::name(value)?),
            _ => {
                return Err(format!(
                    "{part:?} is unknown: give weight=N, limit=N or name=NAME"
                ));
            }
        }
    }
    Ok(Offer { name, spec })
}

/// `NAME[@NETNS]=ADDRESS/PREFIX[,ADDRESS/PREFIX...]`
#[derive(Debug, Clone)]
#[cfg_attr(
    not(any(target_os = "linux", target_os = "android")),
    expect(dead_code, reason = "only Linux has TUNs")
)]
pub(crate) struct TunSpec {
    pub(crate) name: String,
    pub(crate) netns: Option<String>,
    pub(crate) addresses: Vec<IpNet>,
}

impl FromStr for TunSpec {
    type Err = String;

    fn from_str(text: &str) -> Result<TunSpec, String> {
        let (device, addresses) = text
            .split_once('=')
            .ok_or("no '=': give a device and an address, like tun0=10.1.0.2/24")?;
        let (name, netns) = match device.split_once('@') {
            Some((name, netns)) => (name, Some(netns.to_owned())),
            None => (device, None),
        };
        let address = |text: &str| {
            let net = text.trim().parse::<IpNet>();
            net.map_err(|_| format!("{text:?} is no address with a prefix, like 10.1.0.2/24"))
        };
        Ok(TunSpec {
            name: name.to_owned(),
            netns,
            addresses: addresses
                .split(',')
                .map(address)
                .collect::<Result<_, _>>()?,
        })
    }
}
