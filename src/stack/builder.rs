//! How a stack is built, and what it is told.

use super::control::Control;
use super::stats::Received;
use super::table::Table;
use super::unclaimed::Unclaimed;
use super::{Driver, Handle, Shared, Stack};
use crate::clock::Clock;
use crate::error::Flavor;
use crate::link::{Frame, Link};
use crate::lock::Mutex;
use crate::tcp::host::Counters;
use crate::tcp::keep_alive::KeepAlive;
use crate::tcp::tcb::Limits;
use ipnet::IpNet;
use std::hash::RandomState;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize};
use std::thread;
use std::time::Duration;

/// Smallest and largest receive and send buffer in bytes.
const BUFFER: std::ops::RangeInclusive<usize> = 2048..=(1 << 30) - 1;
/// Smallest MTU of an IPv6 link (RFC 8200 5), which is enough for IPv4 too, and the largest packet.
const MTU: std::ops::RangeInclusive<usize> = 1280..=65_535;
/// Smallest and largest MSS: what every host takes (RFC 9293 3.7.1), and what IPv4 can carry.
const MSS: std::ops::RangeInclusive<usize> = 536..=65_495;
/// Longer times are as good as for ever, and can be added to any other.
pub(super) const LONGEST: Duration = Duration::from_secs(10 * 365 * 86_400);

/// Why a stack was not built.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BuildError {
    /// No address was given.
    #[error("a stack needs at least one address: give one with address(\"10.0.0.2/24\".parse()?)")]
    NoAddress,
    /// An address that no host can have.
    #[error("{0} cannot be a stack's address: it must be a unicast host address")]
    BadAddress(IpAddr),
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
    pub(super) syn_cookies: bool,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            rcv_buffer: crate::sockbuf::DEFAULT_HIWAT,
            snd_buffer: crate::sockbuf::DEFAULT_HIWAT,
            snd_ring: crate::sockbuf::DEFAULT_HIWAT,
            shared_rings: true,
            nagle: false,
            ack_delay: None,
            mss: None,
            limits: Limits {
                connect: Duration::from_secs(75),
                user: Duration::from_secs(300),
                stall: None,
                fin_wait: Duration::from_secs(60),
            },
            keep_alive: None,
            flavor: Flavor::default(),
            time_wait: Duration::from_secs(60),
            syn_cookies: true,
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

    /// How long to wait for the answer to a SYN; 75 s by default, as in BSD.
    #[must_use]
    pub fn connect_timeout(mut self, timeout: Duration) -> Builder {
        self.config.limits.connect = timeout.min(LONGEST);
        self
    }

    /// How long data may stay unacknowledged without any sign of the peer before the connection
    /// ends with `TimedOut` (RFC 793's user timeout); 5 minutes by default.
    #[must_use]
    pub fn user_timeout(mut self, timeout: Duration) -> Builder {
        self.config.limits.user = timeout.min(LONGEST);
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

    /// Delays acknowledgements by this much; by default they are not, since a batch draws one.
    #[must_use]
    pub fn ack_delay(mut self, delay: Option<Duration>) -> Builder {
        self.config.ack_delay = delay.map(|delay| delay.min(LONGEST));
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
            .spawn(move || driver.run())
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
        let shared = Arc::new(Shared {
            link: self.link,
            epoch: self.clock.now() - Duration::from_secs(1),
            clock: self.clock,
            addresses: self.addresses,
            config: self.config,
            table: Table::new(self.config.time_wait),
            listeners: Mutex::default(),
            half_open: Mutex::default(),
            held: Mutex::default(),
            agenda: Mutex::default(),
            control: Mutex::new(Control::new(&caps)),
            unclaimed: self.unclaimed,
            counters: Counters::default(),
            received: Received::default(),
            secret: RandomState::new(),
            repeatable: self.seed.is_some(),
            port_secret: seed.rotate_left(32),
            dialled: AtomicU64::new(seed),
            cookies_sent_in: AtomicU64::new(0),
            random: AtomicU64::new(seed),
            closing: AtomicBool::new(false),
            down: AtomicBool::new(false),
            attached: AtomicUsize::new(0),
        });
        let driver = Driver::new(shared.clone());
        Ok((
            Stack {
                handle: Arc::new(Handle { shared }),
            },
            driver,
        ))
    }

    fn check(&self) -> Result<(), BuildError> {
        let first = self.addresses.first().ok_or(BuildError::NoAddress)?;
        let unicast = |address: IpAddr| !address.is_unspecified() && !address.is_multicast();
        if let Some(bad) = self.addresses.iter().find(|net| !unicast(net.addr())) {
            return Err(BuildError::BadAddress(bad.addr()));
        }
        debug_assert!(unicast(first.addr()));
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
        let mtu = self.link.capabilities().mtu;
        if MTU.contains(&mtu) {
            Ok(())
        } else {
            Err(BuildError::Mtu(mtu))
        }
    }
}
