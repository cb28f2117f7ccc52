//! Building a stack; its settings.

use crate::affinity::Affinity;
use crate::clock::{self, Clock};
use crate::congestion::Congestion;
use crate::error::Flavor;
use crate::events::report;
use crate::ip::icmp::Allowance;
use crate::keep_alive::KeepAlive;
#[cfg(doc)]
use crate::link::Checksum;
use crate::link::{Capabilities, Frame, Link};
use crate::lock::{Condvar, Mutex};
use crate::stack::config::{Config, LONGEST};
use crate::stack::demux::conn_table::Table;
use crate::stack::demux::unhandled::Unclaimed;
use crate::stack::driver::Running;
use crate::stack::driver::queue::Queue;
use crate::stack::ephemeral_ports::EphemeralPorts;
use crate::stack::fragments::Fragments;
use crate::stack::identification::Identifications;
use crate::stack::isn::IsnSecret;
use crate::stack::paths::Paths;
use crate::stack::routes::{Network, Route, RouteError};
use crate::stack::seed::Seed;
use crate::stack::shared::{Accepting, Addressing, Lifecycle, Reports};
use crate::stack::stats::Received;
use crate::stack::udp::UdpTable;
use crate::stack::{Driver, Handle, Shared, Stack};
use crate::tcp::limits::Limits;
use crate::tcp::memory::Memory;
use ipnet::IpNet;
use std::io;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::thread;
use std::time::Duration;

/// Smallest and largest receive and send buffer in bytes.
const BUFFER: RangeInclusive<usize> = 2048..=(1 << 30) - 1;
/// Smallest MTU of an IPv6 link (RFC 8200 5), which is enough for IPv4 too, and the largest packet.
const MTU: RangeInclusive<usize> = 1280..=65_535;
/// Smallest and largest MSS: accepted by every host (RFC 9293 3.7.1), and the largest that IPv4 can carry.
const MSS: RangeInclusive<usize> = 536..=65_495;
/// Number of receive queues: more than any link has (a TUN 256).
const QUEUES: RangeInclusive<usize> = 1..=1024;
const LONGEST_ACK_DELAY: Duration = Duration::from_millis(500);

/// Why a stack was not built.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BuildError {
    /// No address was given.
    #[error("a stack needs at least one address: give one with address(\"10.0.0.2/24\".parse()?)")]
    NoAddress,
    /// No receive queue, or too many.
    #[error("a link with {0} receive queues: give 1 to 1024")]
    QueueCount(usize),
    /// Receive queues with different capabilities.
    #[error(
        "receive queue {queue} has other capabilities than the first, {this:?} and not {first:?}: give the queues of one device, opened in the same way"
    )]
    UnlikeQueues {
        /// Which queue, counted from 0.
        queue: usize,
        /// Its capabilities.
        this: Box<Capabilities>,
        /// The capabilities of the first one.
        first: Box<Capabilities>,
    },
    /// Several receive queues, but only one driver was requested.
    #[error("a link with {0} receive queues needs as many drivers: use build_with_drivers()")]
    SeveralDrivers(usize),
    /// Invalid addresses or routes.
    #[error(transparent)]
    Route(#[from] RouteError),
    /// The range of ephemeral ports is empty or includes port 0.
    #[error("ephemeral ports {}..={} are out of range: use 1 to 65535, the first not above the last", .0.start(), .0.end())]
    EphemeralPorts(RangeInclusive<u16>),
    /// A buffer size out of range.
    #[error("a buffer of {0} bytes is out of range: use 2048 to 1073741823")]
    BufferSize(usize),
    /// An MTU outside the limits of IP.
    #[error("the link's MTU of {0} bytes is out of range: use 1280 to 65535")]
    Mtu(usize),
    /// A segment size below the minimum of every host, or too large for a packet.
    #[error("a maximum segment size of {0} bytes is out of range: use 536 to 65495")]
    Mss(usize),
    /// A keep-alive with a zero in it.
    #[error("a keep-alive with a zero in it: give times above zero and one probe at least")]
    KeepAlive,
    /// A time limit that would end every connection at once; the setter is named.
    #[error("a {0} of zero would end every connection at once: give a time above zero")]
    Timeout(&'static str),
    /// The operating system returned no random bytes.
    #[error("no randomness from the operating system: {0}")]
    Random(getrandom::Error),
    /// A driver thread cannot run on the requested processor.
    #[error(
        "no thread can run on processor {cpu} ({error}): give those that are online and that this process may use"
    )]
    NoProcessor {
        /// Its number.
        cpu: usize,
        /// The error of the operating system.
        error: io::Error,
    },
    /// A driver thread could not be started.
    #[error("the driver thread could not be started: {0}")]
    Thread(io::Error),
}

/// Settings of a new stack. Made by [`Stack::builder`].
#[derive(Debug)]
pub struct Builder {
    /// One for each receive queue.
    pub(super) links: Vec<Arc<dyn Link>>,
    pub(super) addresses: Vec<IpNet>,
    pub(super) routes: Vec<(IpNet, Route)>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) config: Config,
    pub(super) seed: Option<u64>,
    pub(super) unclaimed: Unclaimed,
    pub(super) affinity: Affinity,
}

impl Builder {
    fn limits(&mut self) -> &mut Limits {
        Arc::make_mut(&mut self.config.limits)
    }

    pub(super) fn new(links: Vec<Arc<dyn Link>>) -> Builder {
        Builder {
            links,
            addresses: Vec::new(),
            routes: Vec::new(),
            clock: clock::system(),
            config: Config::default(),
            seed: None,
            unclaimed: Unclaimed::default(),
            affinity: Affinity::default(),
        }
    }

    /// Appends a receive queue of the link: the results of `tun::Builder::build_queues` (Linux) or
    /// [`memory::queues`](crate::link::memory::queues), in that order. All queues have the same
    /// [capabilities](Link::capabilities). Each has a driver of its own. See also
    /// [`Stack::with_queues`].
    ///
    /// ```
    /// use sosplice::{Stack, link::memory};
    /// let (links, _far) = memory::queues(2, memory::Config::default());
    /// let mut links = links.into_iter();
    /// let (Some(first), Some(second)) = (links.next(), links.next()) else { unreachable!() };
    /// let builder = Stack::builder(first).queue(second);
    /// let stack = builder.address("10.0.0.1/24".parse()?).build()?;
    /// assert_eq!(stack.queues(), 2);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn queue(mut self, link: impl Link + 'static) -> Builder {
        self.links.push(Arc::new(link));
        self
    }

    /// Adds an address with its prefix length. The prefix is used for choosing a source address, and
    /// determines the network and broadcast addresses, which no other host has.
    ///
    /// [`build`](Self::build) refuses loopback, multicast, unspecified and reserved addresses
    /// (240.0.0.0/4), IPv4-mapped IPv6 addresses, the network's own address (all bits after the prefix
    /// zero; in IPv6, the subnet-router anycast address) and its broadcast address. In networks of two
    /// addresses (/31, /127) or one, hosts can have all.
    ///
    /// The address belongs to the stack alone: packets from it that arrive on the link are dropped. The
    /// host at the other end of a TUN has another address.
    ///
    /// ```
    /// use sosplice::{Stack, link::memory};
    /// let (link, _other) = memory::pair(memory::Config::default());
    /// let error = Stack::builder(link).address("10.0.0.0/24".parse()?).build().unwrap_err();
    /// assert!(error.to_string().starts_with("10.0.0.0/24 is the network itself: give the address"));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn address(mut self, address: IpNet) -> Builder {
        self.addresses.push(address);
        self
    }

    /// Sets how a network is reached; the longest prefix wins. Without routes, all destinations are
    /// reached over the link. The network of each address is reached over the link unless a route has
    /// its prefix or a longer one. To restrict a stack to some networks, add an unreachable route with
    /// prefix length 0 for each family.
    ///
    /// A route holds for both directions: segments of new connections from an unreachable network are
    /// dropped unanswered and counted ([`Stats::frames_unrouted`](crate::stack::Stats)). A look-up
    /// walks the list of routes, once for each new connection.
    ///
    /// ```
    /// use sosplice::stack::Route;
    /// use sosplice::{Stack, link::memory};
    /// let (link, _other) = memory::pair(memory::Config::default());
    /// let office = Route::LINK.with_source("10.8.0.2".parse()?).with_mtu(1360);
    /// let stack = Stack::builder(link)
    ///     .address("10.0.0.1/24".parse()?)
    ///     .address("10.8.0.2/32".parse()?)
    ///     .route("192.168.0.0/16".parse()?, office)
    ///     .route("0.0.0.0/0".parse()?, Route::Unreachable)
    ///     .build()?;
    /// assert_eq!(stack.routes().len(), 2);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn route(mut self, network: IpNet, route: Route) -> Builder {
        self.routes.push((network, route));
        self
    }

    /// The ports for connections and listeners without a chosen port; 49152 to 65535 by default (RFC
    /// 6335). With a smaller range a port is reused earlier for a peer.
    ///
    /// ```
    /// use sosplice::{Stack, TcpListener, link::memory};
    /// let (link, _other) = memory::pair(memory::Config::default());
    /// let builder = Stack::builder(link).address("10.0.0.1/24".parse()?);
    /// let stack = builder.ephemeral_ports(32_768..=60_999).build()?;
    /// let listener = TcpListener::bind(&stack, "10.0.0.1:0")?;
    /// assert!((32_768..=60_999).contains(&listener.local_addr().port()));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn ephemeral_ports(mut self, ports: RangeInclusive<u16>) -> Builder {
        self.config.ports = (*ports.start(), *ports.end());
        self
    }

    /// Size of the receive buffer of each connection in bytes: the largest window it advertises.
    /// 256 KiB by default, 2 KiB to just below 1 GiB
    /// (RFC 7323's largest window).
    #[must_use]
    pub fn receive_buffer(mut self, bytes: usize) -> Builder {
        self.config.rcv_buffer = bytes;
        self
    }

    /// Size of the send buffer of each connection in bytes: data not sent yet or not acknowledged. 256
    /// KiB by default, 2 KiB to just below 1 GiB (RFC 7323's largest window).
    #[must_use]
    pub fn send_buffer(mut self, bytes: usize) -> Builder {
        self.config.snd_buffer = bytes;
        self
    }

    /// How long an attempt to connect may take before it ends with `TimedOut`; 75 s by default, as in
    /// BSD (FreeBSD's `net.inet.tcp.keepinit`). RFC 9293 3.8.3 asks for 3 minutes at least, which no
    /// kernel does by default. [`TcpStream::connect_timeout`](crate::TcpStream::connect_timeout) ends
    /// it earlier; [`syn_retries`](Self::syn_retries) may too. Zero is refused by `build`.
    #[must_use]
    pub fn connect_timeout(mut self, timeout: Duration) -> Builder {
        self.limits().connect = timeout.min(LONGEST);
        self
    }

    /// How often a SYN is sent again before the attempt to connect ends with `TimedOut`, unless the
    /// connect timeout ends it first. By default there is no such limit. Linux has 6
    /// (`tcp_syn_retries`).
    ///
    /// A SYN is sent again after 1 s, and then after twice as long each time, up to 60 s (RFC 6298). So
    /// 0 retries end after 1 s, 1 after 3 s, 2 after 7 s, 3 after 15 s, 4 after 31 s, 5 after 63 s, 6
    /// after 123 s, and each further one adds 60 s.
    ///
    /// ```
    /// use sosplice::{Stack, link::memory};
    /// use std::time::Duration;
    /// let (link, _other) = memory::pair(memory::Config::default());
    /// let stack = Stack::builder(link)
    ///     .address("10.0.0.1/24".parse()?)
    ///     .syn_retries(3) // 15 s
    ///     .syn_ack_retries(2) // 7 s
    ///     .user_timeout(Duration::from_secs(120))
    ///     .half_closed_timeout(Some(Duration::from_secs(3600)))
    ///     .fin_wait_timeout(Duration::from_secs(30))
    ///     .build()?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn syn_retries(mut self, retries: u32) -> Builder {
        self.limits().syn_retries = Some(retries);
        self
    }

    /// How long a peer's handshake may take before it is reset and its place in the backlog is
    /// released; 20 s by default, enough for five SYN|ACKs (FreeBSD's syncache gives up after four,
    /// `net.inet.tcp.syncache.rexmtlimit`; Linux after 63 s). Never longer than the connect timeout.
    /// Zero is refused by `build`.
    #[must_use]
    pub fn half_open_timeout(mut self, timeout: Duration) -> Builder {
        self.limits().half_open = timeout.min(LONGEST);
        self
    }

    /// How often a SYN|ACK is sent again before the handshake is aborted, unless the [half-open
    /// timeout](Self::half_open_timeout) ends it first. By default there is no such limit. FreeBSD has
    /// 3 (`net.inet.tcp.syncache.rexmtlimit`), Linux 5 (`tcp_synack_retries`). The times are those of
    /// [`syn_retries`](Self::syn_retries). A repeated SYN is answered at once, which does not count.
    #[must_use]
    pub fn syn_ack_retries(mut self, retries: u32) -> Builder {
        self.limits().syn_ack_retries = Some(retries);
        self
    }

    /// How long data may stay unacknowledged without any segment from the peer before the connection
    /// ends with `TimedOut`; 5 minutes by default (RFC 793's user timeout; RFC 9293 3.8.3 asks for 100
    /// s at least; Linux has about 15 minutes, `tcp_retries2`). A FIN is data too; a peer that
    /// advertises a closed window does answer. The timeout is not sent to the peer (RFC 5482).
    /// [`TcpStream::set_user_timeout`](crate::TcpStream::set_user_timeout) sets it for one connection.
    /// Zero is refused by `build`.
    #[must_use]
    pub fn user_timeout(mut self, timeout: Duration) -> Builder {
        self.limits().user = timeout.min(LONGEST);
        self
    }

    /// How long the driver's thread polls for frames before it sleeps; zero by default. It saves the
    /// time to wake a thread, tens of microseconds on a virtual machine, but keeps a processor busy
    /// (Linux's `net.core.busy_poll`). Time counts by the stack's clock. A driver that the program
    /// calls itself does not sleep.
    ///
    /// ```
    /// use sosplice::{Stack, link::memory};
    /// use std::time::Duration;
    /// let (link, _other) = memory::pair(memory::Config::default());
    /// let builder = Stack::builder(link).address("10.0.0.1/24".parse()?);
    /// let stack = builder.busy_poll(Duration::from_micros(100)).build()?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn busy_poll(mut self, time: Duration) -> Builder {
        self.config.busy_poll = time.min(LONGEST);
        self
    }

    /// How long a half-closed connection may be idle before it ends with `TimedOut`; `None`, without
    /// limit, by default, as in RFC 9293 3.6 and in kernels. It closes connections that proxies would
    /// leak (haproxy's `timeout client-fin`).
    ///
    /// A connection is idle while no new data is received in order, acknowledged, or accepted for
    /// sending. Answers to keep-alive probes and a closed window do not count. The timeout applies
    /// while there is a handle, after the peer's FIN (CLOSE-WAIT) or after this side's was acknowledged
    /// (FIN-WAIT-2); without a handle see [`fin_wait_timeout`](Self::fin_wait_timeout).
    /// [`TcpStream::set_half_closed_timeout`](crate::TcpStream::set_half_closed_timeout) sets it for
    /// one connection. Zero is refused by `build`.
    #[must_use]
    pub fn half_closed_timeout(mut self, timeout: Option<Duration>) -> Builder {
        self.limits().half_closed = timeout.map(|timeout| timeout.min(LONGEST));
        self
    }

    /// How long a connection without a handle waits for its peer's FIN (FIN-WAIT-2) before it is reset;
    /// 60 s by default (Linux's `tcp_fin_timeout`, FreeBSD's `net.inet.tcp.finwait2_timeout`; RFC 9293
    /// has no limit). [`TcpStream::set_fin_wait_timeout`](crate::TcpStream::set_fin_wait_timeout) sets
    /// it for one connection. Zero is refused by `build`.
    #[must_use]
    pub fn fin_wait_timeout(mut self, timeout: Duration) -> Builder {
        self.limits().fin_wait = timeout.min(LONGEST);
        self
    }

    /// How long data may stay unacknowledged by a peer that answers (e.g. with a closed window) before
    /// the connection ends with `TimedOut`. `None`, the default, has no limit, as RFC 9293 3.8.6.1
    /// requires; RFC 6429 allows a host to abort such connections as a defence against peers that never
    /// open their window. A peer that reads a byte now and then makes progress. After the socket is
    /// closed, the user timeout applies to this case too.
    ///
    /// ```
    /// use sosplice::{Stack, link::memory};
    /// use std::time::Duration;
    /// let (link, _other) = memory::pair(memory::Config::default());
    /// let stack = Stack::builder(link)
    ///     .address("10.0.0.1/24".parse()?)
    ///     .stall_timeout(Some(Duration::from_secs(120)))
    ///     .build()?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn stall_timeout(mut self, timeout: Option<Duration>) -> Builder {
        self.limits().stall = timeout.map(|timeout| timeout.min(LONGEST));
        self
    }

    /// Probes the peer of a connection that was idle for `idle`, up to `probes` times, `interval`
    /// apart. If it does not answer, the connection ends with `TimedOut` after `idle + probes *
    /// interval`. Off by default (RFC 1122 4.2.3.6).
    /// [`TcpStream::set_keep_alive`](crate::TcpStream::set_keep_alive) sets it for one connection.
    ///
    /// ```
    /// use sosplice::{Stack, link::memory};
    /// use std::time::Duration;
    /// let (link, _other) = memory::pair(memory::Config::default());
    /// let stack = Stack::builder(link)
    ///     .address("10.0.0.1/24".parse()?)
    ///     .keep_alive(Duration::from_secs(600), Duration::from_secs(10), 6)
    ///     .build()?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn keep_alive(mut self, idle: Duration, interval: Duration, probes: u32) -> Builder {
        let keep_alive = KeepAlive {
            idle,
            interval,
            probes,
        };
        self.limits().keep_alive = Some(keep_alive.clamped(LONGEST));
        self
    }

    /// How long a closed connection stays in TIME-WAIT to answer its peer (2 MSL); 60 s by default.
    #[must_use]
    pub fn time_wait(mut self, duration: Duration) -> Builder {
        self.config.time_wait = duration.min(LONGEST);
        self
    }

    /// Maximum number of records in TIME-WAIT; 65,536 by default, of less than 256 bytes each. Beyond
    /// it the oldest is dropped and counted ([`Stats::time_wait_dropped`](crate::stack::Stats)); with 0
    /// there is no TIME-WAIT.
    ///
    /// ```
    /// use sosplice::{Stack, link::memory};
    /// let (link, _other) = memory::pair(memory::Config::default());
    /// let builder = Stack::builder(link).address("10.0.0.1/24".parse()?);
    /// let stack = builder.time_wait_limit(1000).build()?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn time_wait_limit(mut self, records: usize) -> Builder {
        self.config.time_wait_limit = records;
        self
    }

    /// Whether SYNs are answered with cookies (RFC 4987 3.6) while half-open connections fill a
    /// listener's backlog, or have reached the [stack's limit](Self::max_half_open), so that other
    /// clients can connect during a flood; on by default. Such a connection takes no memory before its
    /// handshake is complete, and lacks only a maximum segment size above 1460 and congestion
    /// notification. With `false` such SYNs are dropped, as are always those that a
    /// [`ConditionalListener`](crate::ConditionalListener) would hold.
    ///
    /// ```
    /// use sosplice::{Stack, link::memory};
    /// let (link, _other) = memory::pair(memory::Config::default());
    /// let address = "10.0.0.1/24".parse()?;
    /// let stack = Stack::builder(link).address(address).syn_cookies(false).build()?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn syn_cookies(mut self, send: bool) -> Builder {
        self.config.syn_cookies = send;
        self
    }

    /// How many [cookies](Self::syn_cookies) are sent in a second; 10,000 by default. Beyond that a SYN is answered only
    /// when it comes again after 0.6 to 0.8 s or more, as clients retransmit it after a second: most of what a flood
    /// costs are the answers, and a forger does not repeat its SYNs. So clients connect a second later while a flood
    /// lasts, and established connections keep their share of the processor. The SYNs that were not answered are
    /// remembered in a table of 1 MiB, which is allocated with the first one, and counted
    /// ([`Stats::syn_cookies_withheld`](crate::stack::Stats)).
    ///
    /// With `Some(0)` every SYN that needs a cookie must be repeated; with `None` all are answered at once. The limit is
    /// that of the whole stack. A listener with more honest connections a second than this needs a larger backlog (one
    /// of 128 holds the handshakes of 2,560 connections a second at a round trip of 50 ms), or `None`. The table is made for
    /// floods of some 100,000 SYNs a second, through which 99 % of the clients connect with their second SYN; of a million a
    /// second it remembers about 40 % of the clients at each try.
    ///
    /// ```
    /// use sosplice::{Stack, link::memory};
    /// let (link, _other) = memory::pair(memory::Config::default());
    /// let address = "10.0.0.1/24".parse()?;
    /// let stack = Stack::builder(link).address(address).max_syn_cookies(Some(1000)).build()?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn max_syn_cookies(mut self, each_second: Option<u32>) -> Builder {
        self.config.max_syn_cookies = each_second;
        self
    }

    /// Maximum number of connections, including half-open ones, without those in TIME-WAIT; 1,048,576
    /// by default, the limit of descriptors of a process in Linux (`fs.nr_open`). Beyond it SYNs and
    /// acknowledgements of cookies are dropped, and attempts to connect fail with
    /// [`QuotaExceeded`](io::ErrorKind::QuotaExceeded); both are counted
    /// ([`Stats::connections_refused`](crate::stack::Stats)). A connection that ends makes room for
    /// another.
    ///
    /// ```
    /// use sosplice::{Stack, TcpSocket, link::memory};
    /// use std::io::ErrorKind;
    /// let (link, _other) = memory::pair(memory::Config::default());
    /// let builder = Stack::builder(link).address("10.0.0.1/24".parse()?);
    /// let (stack, _driver) = builder.max_connections(1).build_with_driver()?;
    /// let first = TcpSocket::new(&stack).start("10.0.0.2:80".parse()?)?;
    /// let second = TcpSocket::new(&stack).start("10.0.0.2:80".parse()?);
    /// assert_eq!(second.unwrap_err().kind(), ErrorKind::QuotaExceeded);
    /// first.abort();
    /// TcpSocket::new(&stack).start("10.0.0.2:80".parse()?)?;
    /// assert_eq!(stack.stats().connections_refused, 1);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn max_connections(mut self, most: usize) -> Builder {
        self.config.max_connections = most;
        self
    }

    /// Maximum number of connections opened by one peer: an IPv4 address, or a /64 of IPv6, in which a
    /// host can have any number of addresses. `None`, without limit, by default: one address may be
    /// that of a NAT or a load balancer. With a limit below the listeners' backlogs no single peer can
    /// fill one.
    ///
    /// Only established connections count, so that forged SYNs cannot exhaust the limit of an address.
    /// At the limit SYNs of the peer are dropped; connections of handshakes already under way are reset
    /// when they are established. Both are counted
    /// ([`Stats::peer_connections_refused`](crate::stack::Stats)). Connections that the stack opens do
    /// not count.
    ///
    /// ```
    /// use sosplice::{Stack, link::memory};
    /// let (link, _other) = memory::pair(memory::Config::default());
    /// let stack = Stack::builder(link)
    ///     .address("10.0.0.1/24".parse()?)
    ///     .max_connections_per_peer(Some(100))
    ///     .build()?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn max_connections_per_peer(mut self, most: Option<usize>) -> Builder {
        self.config.max_connections_per_peer = most;
        self
    }

    /// Maximum number of half-open connections of all listeners together; 4,096 by default (Linux's
    /// `tcp_max_syn_backlog`), which take about 20 MB. Each listener also has a
    /// [backlog](crate::TcpListener) of its own. A SYN beyond either is answered with a
    /// [cookie](Self::syn_cookies) or dropped, without affecting the present handshakes. It is counted
    /// ([`Stats::half_open_full`](crate::stack::Stats)). SYNs held by a
    /// [`ConditionalListener`](crate::ConditionalListener) do not count.
    ///
    /// ```
    /// use sosplice::{Stack, link::memory};
    /// let (link, _other) = memory::pair(memory::Config::default());
    /// let address = "10.0.0.1/24".parse()?;
    /// let stack = Stack::builder(link).address(address).max_half_open(256).build()?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn max_half_open(mut self, most: usize) -> Builder {
        self.config.max_half_open = most;
        self
    }

    /// Limit of the memory of all connections' buffers, and of the receive buffers of datagrams, together, in bytes; 4 GiB by default (1 GiB on
    /// 32-bit systems), a fixed number that is seldom reached. It counts real memory: `so_rcv`,
    /// `so_snd`, and out-of-order data ([`Stats::buffer_memory`](crate::stack::Stats)).
    ///
    /// Near the limit connections become slower, but none ends. Beyond three quarters, until half of it
    /// is free again, each connection opens its window only up to a floor (an eighth of its buffer, at
    /// least 16 KiB and four packets) and fills `so_snd` only up to that, and out-of-order data is
    /// dropped. Beyond the limit in-order data is dropped too, for connections that hold more than the
    /// floor. Dropped data is not acknowledged, so its sender retransmits it, and it is counted
    /// ([`Stats::segments_pressed`](crate::stack::Stats)). The limit is not exact: windows advertised
    /// before, and the floor of each connection, come on top.
    ///
    /// ```
    /// use sosplice::{Stack, link::memory};
    /// let (link, _other) = memory::pair(memory::Config::default());
    /// let address = "10.0.0.1/24".parse()?;
    /// let stack = Stack::builder(link).address(address).max_buffer_memory(256 << 20).build()?;
    /// assert_eq!((stack.stats().buffer_memory, stack.stats().memory_pressures), (0, 0));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn max_buffer_memory(mut self, bytes: usize) -> Builder {
        self.config.max_buffer_memory = bytes;
        self
    }

    /// The congestion control of all connections, passive and active; [`Congestion::Cubic`] by default.
    /// [`TcpStream::set_congestion`](crate::TcpStream::set_congestion) sets it for one connection.
    ///
    /// ```
    /// use sosplice::{Stack, link::memory, stack::Congestion};
    /// let (link, _other) = memory::pair(memory::Config::default());
    /// let address = "10.0.0.1/24".parse()?;
    /// let stack = Stack::builder(link).address(address).congestion(Congestion::Bbr).build()?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn congestion(mut self, congestion: Congestion) -> Builder {
        self.config.congestion = congestion;
        self
    }

    /// Whether connections offer and accept explicit congestion notification (RFC 3168); off by
    /// default. If the peer accepts it, routers can mark packets instead of dropping them, and the
    /// window is reduced for a mark as for a loss. An unanswered SYN is retransmitted without the
    /// offer, so a path that drops such SYNs costs a second. Connections from a
    /// [cookie](Self::syn_cookies) do not use it.
    ///
    /// ```
    /// use sosplice::{Stack, link::memory};
    /// let (link, _other) = memory::pair(memory::Config::default());
    /// let stack = Stack::builder(link).address("10.0.0.1/24".parse()?).ecn(true).build()?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn ecn(mut self, ecn: bool) -> Builder {
        self.config.ecn = ecn;
        self
    }

    /// Maximum time that an acknowledgement is delayed so that a data segment can carry it: 40 ms by
    /// default, at most 500 ms (RFC 9293 3.8.6.3, SHLD-18); `None`: no delay.
    ///
    /// The acknowledgement of less than a full segment is delayed only if the last answer came in time,
    /// as in Linux: on a connection on which both sides send in turns. After one delay without an
    /// answer there is none until an answer is in time again. The acknowledgement of a single full
    /// segment is delayed until a second one arrives, except for the first sixteen of a connection, and
    /// one with PSH (RFC 5681 4.2). Out-of-order data, data that fills a hole, the peer's FIN, and
    /// every second full segment are acknowledged at once, with one acknowledgement for a connection's
    /// share of a batch of frames.
    #[must_use]
    pub fn ack_delay(mut self, delay: Option<Duration>) -> Builder {
        self.config.ack_delay = delay.map(|delay| delay.min(LONGEST_ACK_DELAY));
        self
    }

    /// Largest payload of a segment in bytes, 536 to 65,495 (an MSS clamp): no connection announces
    /// (RFC 9293 3.7.1) or sends more; the options of a segment (12 bytes with timestamps) count as
    /// payload here. The default, and the maximum, follows from the link's MTU. For links to a tunnel:
    /// a connection finds the path MTU of its own packets, at once if routers report it (RFC 1191,
    /// 8201), after two timeouts if they do not (RFC 4821), but only the announced MSS limits its
    /// peers' packets.
    ///
    /// ```
    /// use sosplice::{Stack, link::memory};
    /// let (link, _other) = memory::pair(memory::Config::default());
    /// let stack = Stack::builder(link).address("10.0.0.1/24".parse()?).mss(1360).build()?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn mss(mut self, max: usize) -> Builder {
        self.config.mss = Some(max);
        self
    }

    /// The system that the stack's sockets behave like where FreeBSD and OpenBSD differ; FreeBSD by
    /// default.
    #[must_use]
    pub fn flavor(mut self, flavor: Flavor) -> Builder {
        self.config.flavor = flavor;
        self
    }

    /// The stack's clock; the system's by default.
    #[must_use]
    pub fn clock(mut self, clock: Arc<dyn Clock>) -> Builder {
        self.clock = clock;
        self
    }

    /// Makes sequence numbers and ports repeatable. For tests only: they must not be guessable.
    #[must_use]
    pub fn seed(mut self, seed: u64) -> Builder {
        self.seed = Some(seed);
        self
    }

    /// A hook that is called for unhandled frames before they are dropped: other protocols than TCP and
    /// ICMP, ICMP that is neither a ping for the stack nor an error of one of its connections. A packet that
    /// arrived in fragments is offered whole, also if its destination is no address of the stack; one with
    /// [extension headers](crate::stack#ip) that the stack refuses is not offered. It is not called for packets with addresses that no host on the link
    /// has, which are dropped ([`Stats::frames_bad_address`](crate::stack::Stats)); it is called for
    /// those to a broadcast or multicast address, also from the unspecified one (DHCP, neighbour
    /// discovery). It returns `true` if it has taken the frame; otherwise the frame is dropped and
    /// counted as without a hook. So a second stack can run beside this one on the same link: share it
    /// in an `Arc`. It sends with [`Link::transmit`], which any thread may call at any time; when the
    /// link is full it must try again itself.
    ///
    /// The hook is called in the driver's thread, one frame at a time, with no lock held; with several
    /// receive queues, in each driver's. It blocks the driver, so it should only queue the frame (a
    /// clone shares its memory, which comes from the link's pool) and return. It may transmit, send
    /// into a channel, and use sockets of any stack without waiting; callbacks that become due in it
    /// are called when it has returned. It must not wait for this stack, and must not own a handle or a
    /// socket of it, which would keep the stack running for ever. A panic ends the driver, and with it
    /// every connection. IP lengths and the IPv4 header's checksum have been checked, but nothing after
    /// the IP header. [`Frame::checksum`] has the state of the transport checksum: over a TUN with
    /// offload it is [partial](Checksum::Partial) for packets of programs on this machine. A protocol
    /// that verifies it uses [`Frame::to_complete_vec`]; one that forwards or returns the frame copies
    /// the state to the packet.
    ///
    /// A second stack that answers UDP:
    ///
    /// ```
    /// use sosplice::Stack;
    /// use sosplice::link::{Checksum, Frame, Link, Packet, memory};
    /// use std::sync::Arc;
    ///
    /// let (link, far) = memory::pair(memory::Config::default());
    /// let link = Arc::new(link);
    /// let second = link.clone();
    /// let answer_udp = move |frame: &Frame| {
    ///     let mut packet = frame.to_vec();
    ///     if packet.len() < 28 || packet[0] != 0x45 || packet[9] != 17 {
    ///         return false;
    ///     }
    ///     // Back to where it came from: addresses and ports change places, which changes no sum.
    ///     packet[12..20].rotate_left(4);
    ///     packet[20..24].rotate_left(2);
    ///     let answer = Packet::new(&packet, &[], 20).checksum(frame.checksum).segment(frame.segment);
    ///     second.transmit(&answer).is_ok()
    /// };
    /// let (stack, mut driver) = Stack::builder(link)
    ///     .address("10.0.0.1/24".parse()?)
    ///     .on_unhandled(answer_udp)
    ///     .build_with_driver()?;
    ///
    /// let mut udp = [
    ///     0x45, 0, 0, 32, 0, 0, 0, 0, 64, 17, 0x66, 0xcb, 10, 0, 0, 2, 10, 0, 0, 1, // IPv4
    ///     0xc0, 0, 0, 7, 0, 12, 0, 0, b'e', b'c', b'h', b'o',
    /// ];
    /// far.transmit(&Packet::new(&udp, &[], 20))?;
    /// driver.poll()?;
    /// assert_eq!(stack.stats().frames_claimed, 1);
    /// let mut answers = Vec::new();
    /// assert_eq!(far.receive(&mut answers, 1)?, 1);
    /// assert_eq!(answers[0].to_vec()[20..24], [0, 7, 0xc0, 0]);
    /// assert_eq!(answers[0].to_vec()[28..], *b"echo");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn on_unhandled(
        mut self,
        hook: impl Fn(&Frame) -> bool + Send + Sync + 'static,
    ) -> Builder {
        self.unclaimed.hook = Some(Box::new(hook));
        self
    }

    /// Whether the hook ([`on_unhandled`](Self::on_unhandled)) is also called for TCP segments that
    /// belong to no connection and no listener, before they are reset; off by default. It is not called
    /// for segments that the stack has sent to itself. It costs a clone of each received frame.
    ///
    /// ```
    /// use sosplice::{Stack, link::memory};
    /// let (link, _other) = memory::pair(memory::Config::default());
    /// let stack = Stack::builder(link)
    ///     .address("10.0.0.1/24".parse()?)
    ///     .on_unhandled(|frame| frame.head[0] == 0x45 && frame.head[9] == 6)
    ///     .unhandled_tcp(true)
    ///     .build()?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn unhandled_tcp(mut self, ask: bool) -> Builder {
        self.unclaimed.tcp = ask;
        self
    }

    /// The processors that the driver threads run on which [`build`](Self::build) starts, counted from
    /// 0 as in `/proc/cpuinfo`: that of the first receive queue on the first of them, and so on,
    /// beginning again when there are more queues. By default the system decides. It does not apply to
    /// drivers that the program calls itself.
    ///
    /// ```
    /// use sosplice::{Stack, link::memory, stack::BuildError};
    /// let (link, _other) = memory::pair(memory::Config::default());
    /// let builder = Stack::builder(link).address("10.0.0.1/24".parse()?);
    /// let error = builder.affinity([5000]).build().unwrap_err();
    /// assert!(matches!(error, BuildError::NoProcessor { cpu: 5000, .. }));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[cfg(any(target_os = "linux", target_os = "android"))]
    #[must_use]
    pub fn affinity(mut self, cpus: impl IntoIterator<Item = usize>) -> Builder {
        self.affinity = Affinity::new(cpus);
        self
    }

    /// Builds the stack and starts its driver thread, or one for each receive queue of the link
    /// (`sosplice:driver`, `sosplice:driver:1` and so on).
    ///
    /// # Errors
    /// See [`BuildError`].
    pub fn build(self) -> Result<Stack, BuildError> {
        let affinity = self.affinity.clone();
        let checked = affinity.check();
        checked.map_err(|(cpu, error)| BuildError::NoProcessor { cpu, error })?;
        let (stack, drivers) = self.build_with_drivers()?;
        // If one does not start, its driver is dropped, which ends the stack and the other drivers.
        for driver in drivers {
            let name = match driver.queue() {
                0 => "sosplice:driver".into(),
                queue => format!("sosplice:driver:{queue}"),
            };
            let affinity = affinity.clone();
            let run = move || {
                affinity.pin(driver.queue());
                Running::new(driver).run();
            };
            thread::Builder::new()
                .name(name)
                .spawn(run)
                .map_err(BuildError::Thread)?;
        }
        Ok(stack)
    }

    /// Builds the stack without a thread: the program runs the [`Driver`].
    ///
    /// ```
    /// use sosplice::{Stack, link::memory};
    /// let (link, _other) = memory::pair(memory::Config::default());
    /// let (stack, mut driver) = Stack::builder(link).address("10.0.0.1/24".parse()?).build_with_driver()?;
    /// assert!(!driver.poll()?, "nothing has arrived");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// See [`BuildError`]; [`SeveralDrivers`](BuildError::SeveralDrivers) if the link has several
    /// receive queues.
    pub fn build_with_driver(self) -> Result<(Stack, Driver), BuildError> {
        if self.links.len() > 1 {
            return Err(BuildError::SeveralDrivers(self.links.len()));
        }
        let (stack, drivers) = self.build_with_drivers()?;
        let driver = drivers.into_iter().next();
        Ok((stack, driver.ok_or(BuildError::QueueCount(0))?))
    }

    /// As [`build_with_driver`](Self::build_with_driver), for a link with any number of receive queues:
    /// a driver for each, in their order. They may run in separate threads or several in one; all must
    /// be run, since each connection has its timers in one of them. Dropping one ends the stack.
    ///
    /// A proxy between two links may run the drivers of both for a queue in one thread
    /// ([`Driver::run_all`]), and connect to the backend on the client's queue
    /// ([`TcpSocket::queue`](crate::TcpSocket::queue)): then one thread does all the work for a client.
    ///
    /// ```
    /// use sosplice::{Stack, link::memory};
    /// let (links, _far) = memory::queues(2, memory::Config::default());
    /// let builder = Stack::with_queues(links).address("10.0.0.1/24".parse()?);
    /// let (stack, mut drivers) = builder.build_with_drivers()?;
    /// for driver in &mut drivers {
    ///     assert!(!driver.poll()?, "nothing has arrived");
    /// }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// See [`BuildError`].
    pub fn build_with_drivers(self) -> Result<(Stack, Vec<Driver>), BuildError> {
        let caps = self.check()?;
        let seed = Seed::draw(self.seed).map_err(BuildError::Random)?;
        let network = Network::new(self.addresses, self.routes)?;
        let (first, last) = self.config.ports;
        let epoch = self.clock.now() - Duration::from_secs(1);
        let shared = Arc::new(Shared {
            queues: self.links.into_iter().map(Queue::new).collect(),
            epoch,
            clock: self.clock,
            config: self.config.clone(),
            table: Table::new(
                self.config.time_wait,
                self.config.time_wait_limit,
                self.config.max_connections,
            ),
            udp: UdpTable::default(),
            pings: UdpTable::default(),
            unclaimed: self.unclaimed,
            memory: Memory::new(self.config.max_buffer_memory),
            received: Received::default(),
            icmp_allowance: Allowance::default(),
            fragments: Fragments::default(),
            drivers: Mutex::default(),
            accepting: Accepting::default(),
            addressing: Addressing {
                network: Mutex::new(network),
                changed: Condvar::new(),
                isn: IsnSecret::new(&seed),
                ephemeral_ports: EphemeralPorts::new(&seed, first..=last),
                identifications: Identifications::default(),
                paths: Paths::default(),
                datagram_paths: Paths::default(),
                dialled: AtomicUsize::new(0),
            },
            lifecycle: Lifecycle::default(),
            reports: Reports::new(epoch),
        });
        for queue in &shared.queues {
            // Nothing was sent yet that could not be delivered.
            shared.heed(&queue.link).for_each(drop);
        }
        let addresses = shared.addressing.network.lock().addresses().to_vec();
        report!(info, "stack", ?addresses, mtu = caps.mtu, "stack up");
        let numbers = (0..).take(shared.queues.len());
        let drivers = numbers.map(|queue| Driver::new(shared.clone(), queue));
        let drivers = drivers.collect();
        Ok((
            Stack {
                handle: Arc::new(Handle { shared }),
            },
            drivers,
        ))
    }

    /// Checks the settings; returns the link's capabilities.
    fn check(&self) -> Result<Capabilities, BuildError> {
        let managed = self.links.iter().any(|link| link.manages_addresses());
        if self.addresses.is_empty() && !managed {
            return Err(BuildError::NoAddress);
        }
        let (first, last) = self.config.ports;
        if first == 0 || first > last {
            return Err(BuildError::EphemeralPorts(first..=last));
        }
        let buffers = [self.config.rcv_buffer, self.config.snd_buffer];
        if let Some(bad) = buffers.into_iter().find(|bytes| !BUFFER.contains(bytes)) {
            return Err(BuildError::BufferSize(bad));
        }
        if let Some(bad) = self.config.mss.filter(|mss| !MSS.contains(mss)) {
            return Err(BuildError::Mss(bad));
        }
        if self
            .config
            .limits
            .keep_alive
            .is_some_and(|one| !one.is_valid())
        {
            return Err(BuildError::KeepAlive);
        }
        if let Some(zero) = self.config.limits.zero() {
            return Err(BuildError::Timeout(zero));
        }
        let caps = self.check_links()?;
        if MTU.contains(&caps.mtu) {
            Ok(caps)
        } else {
            Err(BuildError::Mtu(caps.mtu))
        }
    }

    fn check_links(&self) -> Result<Capabilities, BuildError> {
        let count = self.links.len();
        let mut all = self.links.iter().map(|link| link.capabilities());
        let first = all.next().filter(|_| QUEUES.contains(&count));
        let first = first.ok_or(BuildError::QueueCount(count))?;
        match (1..).zip(all).find(|(_, this)| *this != first) {
            None => Ok(first),
            Some((queue, this)) => Err(BuildError::UnlikeQueues {
                queue,
                this: Box::new(this),
                first: Box::new(first),
            }),
        }
    }
}
