//! How a stack is built, and what it is told.

use super::control::Control;
use super::driver::Running;
use super::numbers::{self, Numbers};
use super::route::{Network, Route, RouteError};
use super::stats::Received;
use super::table::Table;
use super::unclaimed::Unclaimed;
use super::uplink::Uplink;
use super::{Driver, Handle, Shared, Stack};
use crate::clock::Clock;
use crate::error::Flavor;
use crate::events::{Seldom, tell};
use crate::keep_alive::KeepAlive;
use crate::link::{Frame, Link};
use crate::lock::Mutex;
use crate::tcp::host::Counters;
use crate::tcp::limits::Limits;
use ipnet::IpNet;
use std::io;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize};
use std::thread;
use std::time::Duration;

/// Smallest and largest receive and send buffer in bytes.
const BUFFER: RangeInclusive<usize> = 2048..=(1 << 30) - 1;
/// Smallest MTU of an IPv6 link (RFC 8200 5), which is enough for IPv4 too, and the largest packet.
const MTU: RangeInclusive<usize> = 1280..=65_535;
/// Smallest and largest MSS: what every host takes (RFC 9293 3.7.1), and what IPv4 can carry.
const MSS: RangeInclusive<usize> = 536..=65_495;
/// Longer times are as good as for ever, and can be added to any other.
pub(super) const LONGEST: Duration = Duration::from_secs(10 * 365 * 86_400);
/// FreeBSD's `net.inet.tcp.delacktime`, Linux' `TCP_DELACK_MIN`.
const ACK_DELAY: Duration = Duration::from_millis(40);
const LONGEST_ACK_DELAY: Duration = Duration::from_millis(500);

/// Why a stack was not built.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BuildError {
    /// No address was given.
    #[error("a stack needs at least one address: give one with address(\"10.0.0.2/24\".parse()?)")]
    NoAddress,
    /// Addresses or routes that make no sense.
    #[error(transparent)]
    Route(#[from] RouteError),
    /// A range of ephemeral ports without a port, or with port 0.
    #[error("ephemeral ports {}..={} are out of range: use 1 to 65535, the first not above the last", .0.start(), .0.end())]
    EphemeralPorts(RangeInclusive<u16>),
    /// A buffer size out of range.
    #[error("a buffer of {0} bytes is out of range: use 2048 to 1073741823")]
    BufferSize(usize),
    /// An MTU that IP does not work with.
    #[error("the link's MTU of {0} bytes is out of range: use 1280 to 65535")]
    Mtu(usize),
    /// A segment size that no host must take, or that no packet can carry.
    #[error("a maximum segment size of {0} bytes is out of range: use 536 to 65495")]
    Mss(usize),
    /// A keep-alive that would never or always be due.
    #[error("a keep-alive with a zero in it: give times above zero and one probe at least")]
    KeepAlive,
    /// A time limit that would end every connection at once; the setter is named.
    #[error("a {0} of zero would end every connection at once: give a time above zero")]
    Timeout(&'static str),
    /// No randomness from the system.
    #[error("no randomness from the operating system: {0}")]
    Random(getrandom::Error),
    /// The driver thread could not be started.
    #[error("the driver thread could not be started: {0}")]
    Thread(io::Error),
}

/// How a stack is built. Made by [`Stack::builder`].
#[derive(Debug)]
pub struct Builder {
    pub(super) link: Arc<dyn Link>,
    pub(super) addresses: Vec<IpNet>,
    pub(super) routes: Vec<(IpNet, Route)>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) config: Config,
    pub(super) seed: Option<u64>,
    pub(super) unclaimed: Unclaimed,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Config {
    pub(super) rcv_buffer: usize,
    pub(super) snd_buffer: usize,
    /// The engine's send ring: what can be in flight.
    pub(super) snd_ring: usize,
    pub(super) shared_rings: bool,
    pub(super) nagle: bool,
    pub(super) ack_delay: Option<Duration>,
    /// Largest segment announced and sent.
    pub(super) mss: Option<usize>,
    pub(super) limits: Limits,
    pub(super) keep_alive: Option<KeepAlive>,
    pub(super) flavor: Flavor,
    pub(super) time_wait: Duration,
    pub(super) time_wait_limit: usize,
    /// First and last ephemeral port.
    pub(super) ports: (u16, u16),
    pub(super) syn_cookies: bool,
    /// How long the driver's thread looks on before it sleeps.
    pub(super) busy_poll: Duration,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            rcv_buffer: crate::sockbuf::DEFAULT_HIWAT,
            snd_buffer: crate::sockbuf::DEFAULT_HIWAT,
            snd_ring: crate::sockbuf::DEFAULT_HIWAT,
            shared_rings: true,
            nagle: false,
            ack_delay: Some(ACK_DELAY),
            mss: None,
            limits: Limits::default(),
            keep_alive: None,
            flavor: Flavor::default(),
            time_wait: Duration::from_secs(60),
            time_wait_limit: 65_536,
            ports: (*numbers::EPHEMERAL.start(), *numbers::EPHEMERAL.end()),
            syn_cookies: true,
            busy_poll: Duration::ZERO,
        }
    }
}

impl Builder {
    /// Adds an address with its prefix length. The prefix matters for the choice of a source address.
    #[must_use]
    pub fn address(mut self, address: IpNet) -> Builder {
        self.addresses.push(address);
        self
    }

    /// Says how a network is reached; the longest prefix counts. Without any route, everything leaves
    /// by the link; each address's own network does, unless a route has its prefix or a longer one. A
    /// stack that is to reach nothing else needs a route for all the rest, for each family.
    ///
    /// A route holds for both directions: segments of new connections that come from where nobody can
    /// be reached are dropped unanswered and counted ([`Stats::frames_unrouted`](super::Stats)).
    /// A look-up walks the routes; there is one for each connection that begins.
    ///
    /// ```
    /// use sosplice::stack::Route;
    /// use sosplice::{Stack, link::memory};
    /// let (link, _other) = memory::pair(memory::Config::default());
    /// let office = Route::Link { source: Some("10.8.0.2".parse()?), mtu: Some(1360) };
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

    /// The ports for connections and listeners that do not ask for one; 49152 to 65535 by default
    /// (RFC 6335). With fewer, a peer sees the same port again earlier.
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

    /// Size of the send buffer of each connection in bytes: what can wait and be in flight.
    /// 256 KiB by default, 2 KiB to just below 1 GiB
    /// (RFC 7323's largest window).
    #[must_use]
    pub fn send_buffer(mut self, bytes: usize) -> Builder {
        self.config.snd_buffer = bytes;
        self.config.snd_ring = bytes;
        self
    }

    /// Whether the engines' rings, which hold nothing but zeros, lie on the same few pages of memory
    /// (Linux). They do by default: what passes through them then stays in the nearest caches, and a
    /// ring takes no memory. It takes one of the process's mappings (`vm.max_map_count`) for each
    /// 64 KiB, 32,768 in all; further rings have memory of their own, as all have with `false`.
    ///
    /// ```
    /// use sosplice::{Stack, link::memory};
    /// let (link, _other) = memory::pair(memory::Config::default());
    /// let address = "10.0.0.1/24".parse()?;
    /// let stack = Stack::builder(link).address(address).shared_rings(false).build()?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn shared_rings(mut self, shared: bool) -> Builder {
        self.config.shared_rings = shared;
        self
    }

    /// How long an attempt to connect may take before it ends with `TimedOut`; 75 s by default, as in
    /// BSD (FreeBSD's `net.inet.tcp.keepinit`). RFC 9293 3.8.3 asks for 3 minutes at least, which no
    /// kernel does by default. [`TcpStream::connect_timeout`](crate::TcpStream::connect_timeout) gives
    /// up earlier; [`syn_retries`](Self::syn_retries) may too. Zero is refused by `build`.
    #[must_use]
    pub fn connect_timeout(mut self, timeout: Duration) -> Builder {
        self.config.limits.connect = timeout.min(LONGEST);
        self
    }

    /// How often a SYN is sent again before the attempt to connect ends with `TimedOut`, if the connect
    /// timeout has not ended it before. By default there is no such limit. Linux has 6
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
        self.config.limits.syn_retries = Some(retries);
        self
    }

    /// How long a handshake that a peer has begun may take before it is reset and its place in the
    /// backlog is free again; 20 s by default, enough for five SYN|ACKs (FreeBSD's syncache gives up
    /// after four, `net.inet.tcp.syncache.rexmtlimit`; Linux after 63 s). Never longer than the connect
    /// timeout. Zero is refused by `build`.
    #[must_use]
    pub fn half_open_timeout(mut self, timeout: Duration) -> Builder {
        self.config.limits.half_open = timeout.min(LONGEST);
        self
    }

    /// How often a SYN|ACK is sent again before the handshake is given up, if the
    /// [half-open timeout](Self::half_open_timeout) has not ended it before. By default there is no
    /// such limit. FreeBSD has 3 (`net.inet.tcp.syncache.rexmtlimit`), Linux 5 (`tcp_synack_retries`).
    /// The times are those of [`syn_retries`](Self::syn_retries). A SYN that comes again is answered at
    /// once, and this does not count.
    #[must_use]
    pub fn syn_ack_retries(mut self, retries: u32) -> Builder {
        self.config.limits.syn_ack_retries = Some(retries);
        self
    }

    /// How long data may stay unacknowledged without any sign of the peer before the connection
    /// ends with `TimedOut`; 5 minutes by default (RFC 793's user timeout; RFC 9293 3.8.3 asks for
    /// 100 s at least; Linux has about 15 minutes, `tcp_retries2`). A FIN is data too; a peer that says
    /// that its window is closed gives a sign. The peer is not told (RFC 5482).
    /// [`TcpStream::set_user_timeout`](crate::TcpStream::set_user_timeout) sets it for one connection.
    /// Zero is refused by `build`.
    #[must_use]
    pub fn user_timeout(mut self, timeout: Duration) -> Builder {
        self.config.limits.user = timeout.min(LONGEST);
        self
    }

    /// How long the driver's thread looks for frames again and again, after there was something to do,
    /// before it sleeps; not at all by default. It saves the time that it takes to wake a thread, tens of
    /// microseconds on a virtual machine, and takes a processor meanwhile (Linux's `net.core.busy_poll`).
    /// Time counts by the stack's clock. A driver that is run by hand does not sleep anyway.
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

    /// How long a connection, one direction of which has ended, may stand still before it ends with
    /// `TimedOut`; `None`, for ever, by default, as RFC 9293 3.6 has it and kernels do. What proxies
    /// leak is closed by it (haproxy calls it `timeout client-fin`).
    ///
    /// It stands still while nothing new is received in order, acknowledged, or taken over for sending.
    /// Answers to keep-alive, and a window that stays closed, are no motion. It holds while a user has
    /// a handle, after the peer's end (CLOSE-WAIT) or after this side's was acknowledged (FIN-WAIT-2);
    /// without a handle see [`fin_wait_timeout`](Self::fin_wait_timeout).
    /// [`TcpStream::set_half_closed_timeout`](crate::TcpStream::set_half_closed_timeout) sets it for one
    /// connection. Zero is refused by `build`.
    #[must_use]
    pub fn half_closed_timeout(mut self, timeout: Option<Duration>) -> Builder {
        self.config.limits.half_closed = timeout.map(|timeout| timeout.min(LONGEST));
        self
    }

    /// How long a connection that nobody has a handle of any more waits for its peer's end
    /// (FIN-WAIT-2) before it is reset; 60 s by default (Linux's `tcp_fin_timeout`, FreeBSD's
    /// `net.inet.tcp.finwait2_timeout`; RFC 9293 has no limit).
    /// [`TcpStream::set_fin_wait_timeout`](crate::TcpStream::set_fin_wait_timeout) sets it for one
    /// connection. Zero is refused by `build`.
    #[must_use]
    pub fn fin_wait_timeout(mut self, timeout: Duration) -> Builder {
        self.config.limits.fin_wait = timeout.min(LONGEST);
        self
    }

    /// How long data may wait although the peer answers, because it acknowledges none of it: then the
    /// connection ends with `TimedOut`. `None`, the default, waits for ever, as RFC 9293 3.8.6.1 asks
    /// for; RFC 6429 says that a host may give it up to defend itself against peers that never open
    /// their window. A peer that reads a byte now and then makes progress. Once the socket is closed,
    /// the user timeout says this too.
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
        self.config.limits.stall = timeout.map(|timeout| timeout.min(LONGEST));
        self
    }

    /// Asks the peer of a connection that was `idle` for so long whether it is still there, up to
    /// `probes` times, `interval` apart. If it does not answer, the connection ends with `TimedOut`
    /// after `idle + probes * interval`; one that answers notices nothing else. Off by default
    /// (RFC 1122 4.2.3.6). [`TcpStream::set_keep_alive`](crate::TcpStream::set_keep_alive) sets it
    /// for one connection.
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
        self.config.keep_alive = Some(keep_alive.clamped(LONGEST));
        self
    }

    /// How long a closed connection remembers itself to answer its peer (2 MSL); 60 s by default.
    #[must_use]
    pub fn time_wait(mut self, duration: Duration) -> Builder {
        self.config.time_wait = duration.min(LONGEST);
        self
    }

    /// How many connections in TIME-WAIT are remembered; 65,536 by default, of less than 256 bytes
    /// each. Beyond it the oldest is forgotten and counted
    /// ([`Stats::time_wait_dropped`](super::Stats)); 0 forgets each at once.
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
    /// listener's backlog, so that a flood of them shuts nobody out; they are by default. Such a
    /// connection takes no memory before its handshake is over, and has all it would have otherwise
    /// but a maximum segment size above 1460. With `false` such SYNs are dropped. SYNs that a
    /// [`DecidingListener`](crate::DecidingListener) would hold are always dropped.
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

    /// How long an acknowledgement waits at most for an answer that it can ride on, 40 ms by default
    /// and 500 ms at most (RFC 9293 3.8.6.3, SHLD-18); `None`: it never waits.
    ///
    /// Only where the last answer came in time, as in Linux: of text that takes no whole segment, on a
    /// connection on which both sides talk in turns. One acknowledgement that waits in vain ends
    /// that until an answer is in time again. All others go at once, one for what a batch of frames
    /// has brought to a connection.
    #[must_use]
    pub fn ack_delay(mut self, delay: Option<Duration>) -> Builder {
        self.config.ack_delay = delay.map(|delay| delay.min(LONGEST_ACK_DELAY));
        self
    }

    /// Largest payload of a segment in bytes, 536 to 65,495 (an MSS clamp): no connection announces
    /// (RFC 9293 3.7.1) or sends more. By default, and at most, what fits in the link's MTU. For a link
    /// behind which there is a tunnel: routers that drop what does not fit, and do not say so
    /// (RFC 2923 2.1), leave no other way. If they say so, a connection sends less by itself (RFC 1191,
    /// 8201).
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

    /// Whose behaviour the stack's sockets have where FreeBSD and OpenBSD differ; FreeBSD's by
    /// default.
    #[must_use]
    pub fn flavor(mut self, flavor: Flavor) -> Builder {
        self.config.flavor = flavor;
        self
    }

    /// Where time comes from; the system's clock by default.
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

    /// Who is asked about frames that nobody here claims, before they are dropped: other protocols
    /// than TCP and ICMP, fragments, IPv6 extension headers, ICMP that is neither a ping for the stack
    /// nor an error of one of its connections. `true` means that the hook has taken the frame; what it
    /// does not take is dropped and counted as without a hook. So a second stack can stand beside this
    /// one, on the same link: share it in an `Arc`. It sends through [`Link::transmit`], which any
    /// thread may call at any time; when the link is full it has to try again itself.
    ///
    /// The hook is called by the driver's thread, one frame at a time, with no lock held. The stack
    /// stands still meanwhile, so it is to be quick: queue the frame (a clone shares its memory, which
    /// comes from the link's pool) and return. It may transmit, send into a channel, and use sockets
    /// of any stack without waiting. It must not wait for anything that this stack is to do, and must
    /// not own a handle or a socket of it, which would keep the stack running for ever. A panic ends
    /// the driver, and with it every connection. IP lengths and the IPv4 header's checksum have been
    /// checked, nothing behind the IP header has; see [`Frame::checksum_ok`].
    ///
    /// A stack of one's own that answers UDP:
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
    ///     if packet[0] != 0x45 || packet[9] != 17 {
    ///         return false;
    ///     }
    ///     for i in 12..16 {
    ///         packet.swap(i, i + 4); // back to where it came from
    ///     }
    ///     let answer = Packet {
    ///         header: &packet,
    ///         payload: &[],
    ///         ip_header_len: 20,
    ///         checksum: Checksum::Complete,
    ///         segment: None,
    ///     };
    ///     second.transmit(&answer).is_ok()
    /// };
    /// let (stack, mut driver) = Stack::builder(link)
    ///     .address("10.0.0.1/24".parse()?)
    ///     .unclaimed(answer_udp)
    ///     .manual()?;
    ///
    /// let mut udp = [
    ///     0x45, 0, 0, 32, 0, 0, 0, 0, 64, 17, 0x66, 0xcb, 10, 0, 0, 2, 10, 0, 0, 1, // IPv4
    ///     0, 7, 0, 7, 0, 12, 0, 0, b'e', b'c', b'h', b'o',
    /// ];
    /// far.transmit(&Packet {
    ///     header: &udp,
    ///     payload: &[],
    ///     ip_header_len: 20,
    ///     checksum: Checksum::Complete,
    ///     segment: None,
    /// })?;
    /// driver.run_once()?;
    /// assert_eq!(stack.stats().frames_claimed, 1);
    /// let mut answers = Vec::new();
    /// assert_eq!(far.receive(&mut answers, 1)?, 1);
    /// assert_eq!(answers[0].to_vec()[28..], *b"echo");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn unclaimed(mut self, hook: impl Fn(&Frame) -> bool + Send + Sync + 'static) -> Builder {
        self.unclaimed.hook = Some(Box::new(hook));
        self
    }

    /// Whether the hook ([`unclaimed`](Self::unclaimed)) is asked about TCP segments too that belong to no
    /// connection and no listener, before they are reset; by default it is not. It costs each
    /// received segment a clone of its frame.
    ///
    /// ```
    /// use sosplice::{Stack, link::memory};
    /// let (link, _other) = memory::pair(memory::Config::default());
    /// let stack = Stack::builder(link)
    ///     .address("10.0.0.1/24".parse()?)
    ///     .unclaimed(|frame| frame.head[0] == 0x45 && frame.head[9] == 6)
    ///     .unclaimed_tcp(true)
    ///     .build()?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn unclaimed_tcp(mut self, ask: bool) -> Builder {
        self.unclaimed.tcp = ask;
        self
    }

    /// Builds the stack and starts its driver thread.
    ///
    /// # Errors
    /// See [`BuildError`].
    pub fn build(self) -> Result<Stack, BuildError> {
        let (stack, driver) = self.manual()?;
        thread::Builder::new()
            .name("sosplice:driver".into())
            .spawn(|| Running::new(driver).run())
            .map_err(BuildError::Thread)?;
        Ok(stack)
    }

    /// Builds the stack without a thread: the caller runs the [`Driver`].
    ///
    /// ```
    /// use sosplice::{Stack, link::memory};
    /// let (link, _other) = memory::pair(memory::Config::default());
    /// let (stack, mut driver) = Stack::builder(link).address("10.0.0.1/24".parse()?).manual()?;
    /// assert!(!driver.run_once()?, "nothing has arrived");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// See [`BuildError`].
    pub fn manual(self) -> Result<(Stack, Driver), BuildError> {
        self.check()?;
        let seed = match self.seed {
            Some(seed) => seed,
            None => getrandom::u64().map_err(BuildError::Random)?,
        };
        let caps = self.link.capabilities();
        let network = Network::new(self.addresses, self.routes)?;
        let (first, last) = self.config.ports;
        let repeatable = self.seed.is_some();
        let addresses = network.addresses().to_vec();
        let epoch = self.clock.now() - Duration::from_secs(1);
        let shared = Arc::new(Shared {
            link: Uplink::new(self.link),
            epoch,
            clock: self.clock,
            network: Mutex::new(network),
            config: self.config,
            table: Table::new(self.config.time_wait, self.config.time_wait_limit),
            listeners: Mutex::default(),
            half_open: Mutex::default(),
            held: Mutex::default(),
            agenda: Mutex::default(),
            control: Mutex::new(Control::new(&caps)),
            unclaimed: self.unclaimed,
            counters: Counters::default(),
            received: Received::default(),
            numbers: Numbers::new(seed, repeatable, first..=last),
            cookies_sent_in: AtomicU64::new(0),
            closing: AtomicBool::new(false),
            down: AtomicBool::new(false),
            attached: AtomicUsize::new(0),
            drivers: Mutex::default(),
            syns_dropped: Seldom::new(epoch),
            segments_dropped: Seldom::new(epoch),
            cookies_sent: Seldom::new(epoch),
        });
        tell!(info, "stack", ?addresses, mtu = caps.mtu, "stack up");
        let driver = Driver::new(shared.clone());
        Ok((
            Stack {
                handle: Arc::new(Handle { shared }),
            },
            driver,
        ))
    }

    fn check(&self) -> Result<(), BuildError> {
        if self.addresses.is_empty() {
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
        if self.config.keep_alive.is_some_and(|one| !one.is_valid()) {
            return Err(BuildError::KeepAlive);
        }
        if let Some(zero) = self.config.limits.zero() {
            return Err(BuildError::Timeout(zero));
        }
        let mtu = self.link.capabilities().mtu;
        if MTU.contains(&mtu) {
            Ok(())
        } else {
            Err(BuildError::Mtu(mtu))
        }
    }
}
