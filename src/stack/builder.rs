//! How a stack is built, and what it is told.

use super::control::Control;
use super::stats::Received;
use super::table::Table;
use super::{Driver, Handle, Shared, Stack};
use crate::clock::Clock;
use crate::error::Flavor;
use crate::link::Link;
use crate::lock::Mutex;
use crate::tcp::host::Counters;
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
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Config {
    pub(super) rcv_buffer: usize,
    pub(super) snd_buffer: usize,
    /// The engine's send ring: what can be in flight.
    pub(super) snd_ring: usize,
    pub(super) nagle: bool,
    pub(super) ack_delay: Option<Duration>,
    pub(super) limits: Limits,
    pub(super) flavor: Flavor,
    pub(super) time_wait: Duration,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            rcv_buffer: crate::sockbuf::DEFAULT_HIWAT,
            snd_buffer: crate::sockbuf::DEFAULT_HIWAT,
            snd_ring: crate::sockbuf::DEFAULT_HIWAT,
            nagle: false,
            ack_delay: None,
            limits: Limits {
                connect: Duration::from_secs(75),
                user: Duration::from_secs(300),
                fin_wait: Duration::from_secs(60),
            },
            flavor: Flavor::default(),
            time_wait: Duration::from_secs(60),
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

    /// How long a closed connection remembers itself to answer its peer (2 MSL); 60 s by default.
    #[must_use]
    pub fn time_wait(mut self, duration: Duration) -> Builder {
        self.config.time_wait = duration.min(LONGEST);
        self
    }

    /// Delays acknowledgements by this much; by default they are not, since a batch draws one.
    #[must_use]
    pub fn ack_delay(mut self, delay: Option<Duration>) -> Builder {
        self.config.ack_delay = delay.map(|delay| delay.min(LONGEST));
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
            counters: Counters::default(),
            received: Received::default(),
            secret: RandomState::new(),
            repeatable: self.seed.is_some(),
            port_secret: seed.rotate_left(32),
            dialled: AtomicU64::new(seed),
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
        let mtu = self.link.capabilities().mtu;
        if MTU.contains(&mtu) {
            Ok(())
        } else {
            Err(BuildError::Mtu(mtu))
        }
    }
}
