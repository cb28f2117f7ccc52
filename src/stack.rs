//! A TCP/IP stack over one link: addresses, ports, connections, and the threads that receive.
//!
//! A [`Stack`] is a handle; clones are the same stack. Its driver (a thread, or, built with
//! [`Builder::manual`], calls of [`Driver::run_once`]) receives frames and finds each connection by a
//! hash look-up; each connection has a control block and a lock of its own, so nothing global is locked
//! or walked for a segment.
//!
//! **Several receiving threads.** A link with several receive queues ([`Stack::over`],
//! [`Builder::queue`]) has a driver for each. A connection has one queue as its home, by which it
//! transmits; the link is to give what its peer sends to that queue (a TUN does, it learns from what is
//! sent; [`memory::queues`](crate::link::memory::queues) do by a hash). Nothing but speed depends on
//! it: a segment that arrives by any other queue finds its connection too.
//! [`TcpStream::connect_on`] connects so that answers come to a given queue, e.g. that of the
//! connection which the new one is to be spliced to.
//!
//! **Endings.** Sockets and listeners keep their stack running. When the last of them and the last
//! `Stack` handle are gone, the driver delivers what was sent for up to five seconds, resets what is left
//! and ends. When the link is gone, or a [`Driver`] is dropped before, every connection ends with
//! [`NetworkDown`](SoError::NetworkDown) or [`DriverDropped`](SoError::DriverDropped) (both are
//! [`ErrorKind::NetworkDown`](std::io::ErrorKind::NetworkDown)), and so does every attempt to connect or to
//! accept one. What had arrived until then can be read. Of several receive queues, one whose link is gone
//! takes only the connections along whose home it is. A frame that a link cannot receive or send is lost
//! and counted ([`Stats::receive_errors`], [`Stats::transmit_errors`]), and ends nothing.
//!
//! **ICMP errors** about a connection count only if they quote a segment that is in flight (RFC 5927);
//! [`Stats`] counts both kinds. While connecting, an unreachable port or protocol and a prohibited way
//! end the attempt at once, with [`ConnectionRefused`](crate::error::SoError::ConnectionRefused) (port)
//! or [`HostUnreachable`](crate::error::SoError::HostUnreachable). An unreachable net or host and an
//! exceeded hop limit do so only if they are still told when the SYN has been sent five times, after 15
//! seconds, as in BSD; and nothing of the kind ends a connection that stands (RFC 1122 4.2.3.9);
//! if it times out before the peer answers again, its error is `HostUnreachable` instead of `TimedOut`.
//!
//! **Path MTU.** A packet that was too big makes its connection send smaller ones at once (RFC 1191, 8201),
//! of the size that the router reports, down to packets of 552 bytes (IPv4; where a router reports less, it
//! may cut them) or 1,280 (IPv6; a smaller report is ignored). Where routers drop packets without a report,
//! full segments that time out twice in a row become smaller: packets of 1,064 and then of 552 bytes (IPv4),
//! or of 1,280 (IPv6) (RFC 4821, 8899). The former size is tried again with one segment as soon as a
//! smaller one is acknowledged, and then every ten minutes. After a router's report a connection does not
//! return to larger packets.
//!
//! What a connection has found out is remembered for its destination, for ten minutes (RFC 1191 6.3, 8201
//! 5.3), and connections that begin later begin with it, over whichever queue; those that are there already
//! find out for themselves. Where it was a guess they try the former size once more, and if that passes the
//! guess is forgotten. Of more than 1,024 destinations the one that was learnt first goes. [`Builder::mss`]
//! and [`Route`] set a smaller size from the start; [`Builder::unclaimed`] is for frames that are not TCP's.
//!
//! # Timers
//!
#![doc = include_str!("doc/timers.md")]
//!
//! # TCP: which standards hold
//!
#![doc = include_str!("doc/standards.md")]
//!
//! # Addresses and routes
//!
//! A stack has addresses of both families ([`Builder::address`], [`Stack::add_address`]) and one link,
//! point to point: there are no gateways, and everything leaves by it. A [`Route`] says what else holds
//! for a network ([`Builder::route`], [`Stack::set_routes`]): the source address, a smaller MTU, or that
//! nobody is to be reached there. The longest prefix counts.
//!
//! [`TcpStream::connect_from`] takes the source address that it is given; else the route's; else the
//! stack chooses by RFC 6724 section 5, rules 1, 2, 6 and 8, among IPv4 addresses by network (RFC 1122
//! 3.3.4.3). A link-local destination is on the only link: the scope of a
//! [`SocketAddrV6`](std::net::SocketAddrV6) does not count. Who cannot be reached is not heard either:
//! segments from there that would begin a connection, or be reset, are dropped and counted. Connections
//! that stand, and pings, do not ask the routes.
//!
//! What no host on the link has is no destination and no source ("martians"): this network (0/8), loopback,
//! multicast, reserved addresses (240/4), IPv4 addresses in the form of IPv6, the broadcast address of a
//! network of the stack, and, as a source, the stack's own addresses; nor does a packet count whose source
//! has chosen the route (IPv4's options LSRR and SSRR). Connecting there fails with
//! [`InvalidInput`](std::io::ErrorKind::InvalidInput), no rule intercepts it, and what comes from there, or
//! is an ICMP error from or about there, is dropped and counted ([`Stats::frames_bad_address`]): it begins
//! nothing, draws no answer, and [`Builder::unclaimed`] is not asked.
//!
//! **A stack's own addresses** are reached inside the stack, whatever the routes say, as on any host: such a
//! connection goes from one of its sockets to another, with its segments looped back to the driver of its
//! queue ([`TcpStream::connect_on`] chooses that; the link is not asked). Listeners of every kind accept it,
//! a closed port refuses at once, and the wire sees nothing. All else is as over a link, with segments of the
//! link's MTU in packets of 64 KiB. [`Stats`] and [`Stack::sockets`] count and show both ends. A socket
//! connected to itself, which BSD and Linux make by a simultaneous open, is refused with `InvalidInput`.
//! When an address is removed, both ends go.
//!
//! # Numbers and reuse
//!
//! Initial sequence numbers are those of RFC 6528: a clock of 4 us ticks, and a hash of both ends with
//! a secret of the stack. Ports for connections that ask for none are chosen by RFC 6056 3.3.4 (double
//! hash) in the range of [`Builder::ephemeral_ports`]: a port to one destination comes again after all
//! others. By then the clock has passed the numbers of its former connection, unless all of them
//! together sent more than 250,000 bytes a second for each port of the range (4 GB/s).
//!
//! Timestamps (RFC 7323) are offered in every SYN and used if the peer offers them too. They count
//! milliseconds from a number that is not to be guessed, another one for each pair of ends (RFC 7323 5.4): those
//! of a connection are later than those of a former one between the same ends.
//!
//! A connection that this side closed first is remembered ([`Builder::time_wait`]) by a record without
//! control block or buffers. It answers as RFC 9293 3.10.7 says, with timestamps if the connection had
//! them, and ignores resets (RFC 1337). A SYN takes its place, if a listener takes the SYN, when its
//! timestamp is newer than the last one received; if one of the two connections has no timestamps, or
//! both are equal, when it is beyond the last sequence number received, or has the first timestamp
//! between these ends (RFC 6191 2). The new connection's numbers are larger than the old one's (RFC 1122
//! 4.2.2.13). Any other SYN, also one with a FIN or an acknowledgement, draws the last acknowledgement.
//! Connecting takes the port of one that is at least a second old, again with larger numbers, where the
//! ports to a destination are used up: a proxy may open as many connections a second to one server as there
//! are ports. Of too many records ([`Builder::time_wait_limit`]) the oldest goes.
//!
//! # Locks
//!
//! All leaves: the table's shards, addresses and routes, path MTUs, listeners, half-open connections, held SYNs,
//! the agenda, the control interface.

mod accept;
mod builder;
mod conditional;
mod config;
mod connect;
mod demux;
mod driver;
mod fused_link;
mod listener;
mod loopback;
mod netstat;
mod numbers;
#[cfg(test)]
mod packet;
mod paths;
mod routes;
mod source_address;
mod stats;
mod stream;

pub use crate::congestion::{Congestion, UnknownCongestion};
pub use crate::keep_alive::KeepAlive;
pub use crate::tcp::state::TcpState;
pub use accept::intercept::Intercept;
pub use builder::{BuildError, Builder};
pub use conditional::{DecidingListener, Pending};
pub use driver::Driver;
pub use listener::{DEFAULT_BACKLOG, TcpListener};
pub use netstat::{ListenInfo, SocketInfo, SocketTable};
pub use routes::{Route, RouteError};
pub use stats::{DriverStats, QueueStats, Stats};
pub use stream::TcpStream;

use crate::busy::Busy;
use crate::clock::Clock;
use crate::error::SoError;
use crate::events::{Seldom, tell};
use crate::link::{Capabilities, Link};
use crate::lock::{LEAF, Mutex};
use crate::protocol::SocketEnd;
use crate::tcp::block::path_mtu::Finding;
use crate::tcp::block::time::Clocked;
use crate::tcp::conn::Host;
use crate::tcp::conn::{Conn, Runner};
use crate::tcp::conn_state::{ConnConfig, Opening};
use crate::tcp::counters::Counters;
use crate::tcp::home::{Home, TimerKey};
use crate::tcp::memory::Memory;
use crate::tcp::options::Options;
use crate::tcp::service::Work;
use crate::tcp::time_wait::TimeWait;
use crate::tcp::wire::{TCP_HEADER, Tuple};
use accept::admission::Peers;
use accept::backlog::Listening;
use accept::syn_queue::HeldSyns;
use config::Config;
use demux::conn_table::Table;
use demux::stateless::Control;
use demux::unhandled::Unclaimed;
use driver::queue::Queue;
use ipnet::IpNet;
use numbers::Numbers;
use paths::Paths;
use routes::Network;
use stats::Received;
use std::collections::HashMap;
use std::net::IpAddr;
use std::panic::{self, AssertUnwindSafe};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::thread;
use std::time::{Duration, Instant};

/// See the module.
#[derive(Debug, Clone)]
pub struct Stack {
    handle: Arc<Handle>,
}

#[derive(Debug)]
struct Handle {
    shared: Arc<Shared>,
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.shared.closing.store(true, Ordering::Release);
        self.shared.wake_all();
    }
}

/// What handles, connections and the drivers share.
pub(crate) struct Shared {
    /// One at least.
    pub(crate) queues: Box<[Queue]>,
    clock: Arc<dyn Clock>,
    epoch: Instant,
    network: Mutex<Network, LEAF>,
    config: Config,
    pub(crate) table: Table,
    /// The most precise rules first.
    listeners: Mutex<Vec<Arc<Listening>>, LEAF>,
    /// Connections whose handshake is not over, by the numbers of their sockets, and their listeners.
    half_open: Mutex<HashMap<u64, (Tuple, Arc<Listening>)>, LEAF>,
    /// Connections of each peer, if there is a limit of them.
    peers: Peers,
    /// SYNs about which a user is to decide.
    pub(crate) held: Mutex<HeldSyns, LEAF>,
    pub(crate) control: Mutex<Control, LEAF>,
    unclaimed: Unclaimed,
    /// What the buffers of all connections hold.
    memory: Memory,
    pub(crate) received: Received,
    numbers: Numbers,
    /// What is known of the paths to peers.
    paths: Paths,
    /// Connections dialled that may have any home.
    dialled: AtomicUsize,
    /// In which slot of time a SYN was last answered with a cookie.
    cookies_sent_in: AtomicU64,
    /// A listener whose user decides was there, so SYNs may be held.
    decides: AtomicBool,
    closing: AtomicBool,
    /// The link or a driver is gone.
    down: AtomicBool,
    /// Why, and before that is said.
    why_down: OnceLock<Down>,
    /// Sockets whose last handle is still there.
    attached: AtomicUsize,
    /// How long each driver's thread has been at work.
    drivers: Mutex<Vec<Arc<Busy>>, LEAF>,
    syns_dropped: Seldom,
    segments_dropped: Seldom,
    cookies_sent: Seldom,
    frames_lost: Seldom,
    packets_refused: Seldom,
}

/// Why a stack is down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Down {
    /// Its link is gone.
    Link,
    /// A driver was dropped.
    Driver,
    /// Nobody holds it, or a socket of it.
    Unheld,
}

impl Down {
    /// What it leaves connections to do, and what they end with.
    fn of_connections(self) -> (Work, SoError) {
        match self {
            Down::Driver => (Work::DRIVER_DROPPED, SoError::DriverDropped),
            Down::Link | Down::Unheld => (Work::NETWORK_DOWN, SoError::NetworkDown),
        }
    }
}

impl std::fmt::Display for Down {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Down::Link => "link gone",
            Down::Driver => "driver dropped",
            Down::Unheld => "nobody holds it",
        })
    }
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stack")
            .field("network", &self.network)
            .field("queues", &self.queues)
            .finish_non_exhaustive()
    }
}

impl Stack {
    /// Begins to build a stack over a link.
    ///
    /// ```
    /// use sosplice::{Stack, link::memory};
    /// let (link, _other) = memory::pair(memory::Config::default());
    /// let stack = Stack::builder(link)
    ///     .address("10.0.0.1/24".parse()?)
    ///     .address("fd00::1/64".parse()?)
    ///     .build()?;
    /// assert_eq!(stack.addresses().len(), 2);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn builder(link: impl Link + 'static) -> Builder {
        Builder::new(vec![Arc::new(link)])
    }

    /// Begins to build a stack over a link with several receive queues, in their order: all queues of
    /// one device, or of [`memory::queues`](crate::link::memory::queues).
    ///
    /// ```
    /// use sosplice::{Stack, TcpListener, TcpStream, link::memory};
    /// let (near, far) = memory::queues(2, memory::Config::default());
    /// let server = Stack::over(near).address("10.0.0.1/24".parse()?).build()?;
    /// let client = Stack::over(far).address("10.0.0.2/24".parse()?).build()?;
    /// let listener = TcpListener::bind(&server, "10.0.0.1:80")?;
    /// for queue in 0..client.queues() {
    ///     let near = TcpStream::connect_on(&client, queue, "10.0.0.1:80".parse()?)?;
    ///     let (far, _) = listener.accept()?;
    ///     assert_eq!((near.queue(), far.queue()), (queue, queue));
    /// }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn over<L: Link + 'static>(queues: impl IntoIterator<Item = L>) -> Builder {
        let queues = queues.into_iter();
        Builder::new(queues.map(|link| Arc::new(link) as Arc<dyn Link>).collect())
    }

    /// How many receive queues the link has, and so how many drivers the stack.
    pub fn queues(&self) -> usize {
        self.shared().queues.len()
    }

    /// Counters of each receive queue at this moment, in their order.
    ///
    /// ```
    /// use sosplice::{Stack, link::memory};
    /// let (links, _far) = memory::queues(3, memory::Config::default());
    /// let stack = Stack::over(links).address("10.0.0.1/24".parse()?).build()?;
    /// let counters = stack.queue_stats();
    /// assert!(counters.iter().map(|one| one.frames_received).eq([0, 0, 0]));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn queue_stats(&self) -> Vec<QueueStats> {
        let queues = self.shared().queues.iter();
        queues.map(QueueStats::of).collect()
    }

    /// The stack's addresses at this moment.
    pub fn addresses(&self) -> Vec<IpNet> {
        self.shared().network.lock().addresses().to_vec()
    }

    /// Adds an address with its prefix length, as [`Builder::address`] does.
    ///
    /// ```
    /// use sosplice::{Stack, TcpListener, link::memory};
    /// let (link, _other) = memory::pair(memory::Config::default());
    /// let stack = Stack::builder(link).address("10.0.0.1/24".parse()?).build()?;
    /// stack.add_address("fd00::1/64".parse()?)?;
    /// let listener = TcpListener::bind(&stack, "[fd00::1]:80")?;
    /// stack.remove_address("fd00::1".parse()?)?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// [`BadAddress`](RouteError::BadAddress), [`NetworkAddress`](RouteError::NetworkAddress),
    /// [`BroadcastAddress`](RouteError::BroadcastAddress) and
    /// [`DuplicateAddress`](RouteError::DuplicateAddress).
    pub fn add_address(&self, address: IpNet) -> Result<(), RouteError> {
        self.shared().network.lock().add_address(address)
    }

    /// Takes an address away, also the last one. The connections of the address end with
    /// [`AddressRemoved`](SoError::AddressRemoved), and their peers get a reset, but for those on
    /// the stack itself, which end alike; listeners stay, and hear nothing until the address is back.
    ///
    /// # Errors
    /// [`NoSuchAddress`](RouteError::NoSuchAddress), and [`InUse`](RouteError::InUse) if a route names
    /// it.
    pub fn remove_address(&self, address: IpAddr) -> Result<(), RouteError> {
        let shared = self.shared();
        shared.network.lock().remove_address(address)?;
        let of_address = |conn: &Arc<Conn>| {
            let tuple = &conn.tuple;
            tuple.local == address || conn.home.looped && tuple.remote == address
        };
        // Those of whom it is the peer come first, so that none of them is reset by the other end.
        let mut all: Vec<_> = shared.table.all().into_iter().filter(of_address).collect();
        all.sort_by_key(|conn| conn.tuple.local == address);
        for conn in all {
            conn.run(Work::ADDRESS_REMOVED, Runner::User);
        }
        Ok(())
    }

    /// The routes that were given, the longest prefixes first.
    pub fn routes(&self) -> Vec<(IpNet, Route)> {
        self.shared().network.lock().routes().to_vec()
    }

    /// Replaces all routes at once, see [`Builder::route`]. What holds for a connection is decided when
    /// it begins: those that stand go on as before.
    ///
    /// ```
    /// use sosplice::stack::Route;
    /// use sosplice::{Stack, TcpStream, link::memory};
    /// use std::io::ErrorKind;
    /// let (link, _other) = memory::pair(memory::Config::default());
    /// let stack = Stack::builder(link).address("10.0.0.1/24".parse()?).build()?;
    /// // Nothing beyond the own network.
    /// stack.set_routes([("0.0.0.0/0".parse()?, Route::Unreachable)])?;
    /// let error = TcpStream::connect(&stack, "192.0.2.1:80").unwrap_err();
    /// assert_eq!(error.kind(), ErrorKind::HostUnreachable);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// See [`RouteError`]; the former routes are there as before.
    pub fn set_routes(
        &self,
        routes: impl IntoIterator<Item = (IpNet, Route)>,
    ) -> Result<(), RouteError> {
        // The author's iterator runs with no lock held.
        let routes: Vec<_> = routes.into_iter().collect();
        self.shared().network.lock().set_routes(routes)
    }

    /// Counters, and what there is at this moment. Looks at every connection, and locks none: its
    /// buffers are locked one after the other, each for a moment.
    pub fn stats(&self) -> Stats {
        let shared = self.shared();
        let frames = shared.queues.iter().map(|queue| queue.frames.get()).sum();
        let counters = Counters::sum(shared.queues.iter().map(|queue| &queue.counters));
        let mut stats = Stats {
            time_wait: shared.table.records(),
            time_wait_dropped: shared.table.dropped(),
            time_wait_reused: shared.received.time_wait_reused.get(),
            frames_received: frames,
            receive_errors: shared.received.lost.get(),
            transmit_errors: shared.queues.iter().map(|queue| queue.link.refused()).sum(),
            frames_malformed: shared.received.malformed.get(),
            frames_fragments: shared.received.fragments.get(),
            frames_unsupported: shared.received.unsupported.get(),
            frames_bad_checksum: shared.received.bad_checksum.get(),
            frames_bad_address: shared.received.bad_address.get(),
            frames_stray: shared.received.stray.get(),
            frames_unrouted: shared.received.unrouted.get(),
            frames_claimed: shared.received.claimed.get(),
            segments_sent: counters.sent.get(),
            segments_lost: counters.lost.get(),
            segments_refused: counters.refused.get(),
            segments_backlog_full: counters.backlog_full.get(),
            syns_dropped: shared.received.backlog_full.get(),
            syn_cookies_sent: shared.received.cookies_sent.get(),
            syn_cookies_accepted: shared.received.cookies_accepted.get(),
            link_full: counters.link_full.get(),
            icmp_errors: counters.icmp_errors.get(),
            mtu_lowered: counters.mtu_lowered.get(),
            icmp_ignored: counters.icmp_ignored.get(),
            broken: counters.broken.get(),
            connections_refused: shared.received.connections_refused.get(),
            peer_connections_refused: shared.received.peers_refused.get(),
            half_open_full: shared.received.half_open_full.get(),
            segments_received: shared.received.segments.get(),
            bytes_received: shared.received.bytes.get(),
            bytes_sent: counters.bytes_sent.get(),
            segments_retransmitted: counters.sent_again.get(),
            bytes_retransmitted: counters.bytes_sent_again.get(),
            active_opens: counters.active_opens.get(),
            passive_opens: counters.passive_opens.get(),
            attempts_failed: counters.attempts_failed.get(),
            connections_reset: counters.resets.get(),
            buffer_memory: shared.memory.in_use(),
            memory_pressures: shared.memory.entered.get(),
            segments_pressed: shared.memory.dropped.get(),
            ..Stats::default()
        };
        for queue in &shared.queues {
            let agenda = queue.agenda.lock();
            stats.timers += agenda.timers();
            stats.blocked += agenda.blocked();
            stats.handed_over += agenda.handed_over();
        }
        stats.add_sockets(TcpState::TimeWait, stats.time_wait);
        for conn in shared.table.all() {
            stats.add_connection(&conn);
        }
        let listeners = shared.listeners.lock().clone();
        for listening in listeners {
            stats.add_listener(listening.queued());
        }
        stats
    }

    /// What each driver of the stack has done.
    ///
    /// ```
    /// use sosplice::{Stack, link::memory};
    /// let (link, _other) = memory::pair(memory::Config::default());
    /// let stack = Stack::builder(link).address("10.0.0.1/24".parse()?).build()?;
    /// let drivers = stack.driver_stats();
    /// assert_eq!(drivers.len(), 1);
    /// println!("{:?} at work", drivers[0].busy);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn driver_stats(&self) -> Vec<DriverStats> {
        let now = self.now();
        let drivers = self.shared().drivers.lock();
        let stats = drivers.iter().map(|busy| DriverStats::new(busy, now));
        stats.collect()
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.handle.shared
    }

    pub(crate) fn now(&self) -> Instant {
        self.shared().clock.now()
    }
}

impl Shared {
    pub(crate) fn is_own(&self, address: IpAddr) -> bool {
        self.network.lock().is_own(address)
    }

    /// Nobody holds the stack, or a socket of it, any more.
    pub(crate) fn is_abandoned(&self) -> bool {
        self.closing.load(Ordering::Acquire) && self.attached.load(Ordering::Acquire) == 0
    }

    /// The link of a queue is gone, and with it the connections whose home that is. The others go on; with
    /// the last queue the stack goes down.
    pub(crate) fn queue_gone(&self, queue: u16) {
        self.queues[usize::from(queue)]
            .gone
            .store(true, Ordering::SeqCst);
        if self.queues.iter().all(Queue::is_gone) {
            return self.go_down(Down::Link);
        }
        // One of them has something to forget now that this one did.
        self.wake_all();
        self.end_connections(Work::NETWORK_DOWN, |conn| conn.home.queue == queue);
        self.end_agenda(&self.queues[usize::from(queue)]);
    }

    fn end_connections(&self, work: Work, which: impl Fn(&Conn) -> bool) {
        for conn in self.table.all().into_iter().filter(|conn| which(conn)) {
            let end = || conn.run(work, Runner::Driver);
            if thread::panicking() {
                // The connection at fault may do it again; the others' users are not to wait.
                drop(panic::catch_unwind(AssertUnwindSafe(end)));
            } else {
                end();
            }
        }
    }

    fn end_agenda(&self, queue: &Queue) {
        let mut forgotten = queue.agenda.lock().end();
        queue.loopback.end();
        let (handed_over, _) = forgotten.take(self.clock.now());
        for conn in handed_over.iter().filter_map(Weak::upgrade) {
            conn.resume();
        }
    }

    /// A driver is gone, for this reason: ends every connection, and nothing new begins. The other drivers
    /// end too, each with a call of this.
    fn go_down(&self, why: Down) {
        let (work, error) = self.why_down.get_or_init(|| why).of_connections();
        let was_up = !self.down.swap(true, Ordering::SeqCst);
        self.wake_all();
        self.end_connections(work, |_| true);
        let listeners = self.listeners.lock().clone();
        listeners
            .iter()
            .for_each(|listening| listening.go_down(error));
        self.forget_syns();
        self.queues.iter().for_each(|queue| self.end_agenda(queue));
        if was_up && !thread::panicking() {
            tell!(info, "stack", %why, "stack down");
        }
    }

    /// Whether nothing can be sent or received by a queue any more.
    fn is_down(&self, queue: u16) -> bool {
        self.down.load(Ordering::SeqCst) || self.queues[usize::from(queue)].is_gone()
    }

    /// The queue whose driver forgets what is no connection: the first that there is.
    fn first_up(&self) -> u16 {
        let mut up = (0..)
            .zip(&self.queues)
            .filter(|(_, queue)| !queue.is_gone());
        up.next().map_or(0, |(first, _)| first)
    }

    /// The error of who wants something of a stack that is down.
    pub(crate) fn why_down(&self) -> SoError {
        self.down_for_connections().1
    }

    fn down_for_connections(&self) -> (Work, SoError) {
        let why = self.why_down.get().copied();
        why.unwrap_or(Down::Link).of_connections()
    }

    /// A connection that was put into the table. Either `go_down` or `queue_gone` has found it there, or
    /// this finds its home down.
    fn end_if_down(&self, conn: &Arc<Conn>, runner: Runner) -> bool {
        let down = self.is_down(conn.home.queue);
        if down {
            conn.run(self.down_for_connections().0, runner);
        }
        down
    }

    /// Something that the first driver is to forget at this time was added.
    fn expires_at(&self, at: Instant) {
        let first = &self.queues[usize::from(self.first_up())];
        let wake = first.agenda.lock().expires_at(at);
        first.wake_if(wake);
    }

    /// A socket is handed out.
    pub(crate) fn attach(&self) {
        self.attached.fetch_add(1, Ordering::AcqRel);
    }

    /// A connection that is in no table yet.
    fn connection(
        self: &Arc<Self>,
        home: Home,
        (tuple, opening): (Tuple, Opening),
        iss: u32,
        now: Instant,
    ) -> Arc<Conn> {
        let end = SocketEnd::new(self.config.rcv_buffer, self.config.snd_buffer);
        end.set_flavor(self.config.flavor);
        // Of one to an address of the stack's own nothing is learnt.
        let known = (!home.looped).then(|| self.paths.get(tuple.remote, now));
        let config = ConnConfig {
            home,
            rcv_ring: self.config.rcv_buffer,
            iss,
            mtu: self.mtu_for(&tuple),
            path: known.flatten(),
            timestamp: self
                .numbers
                .initial_timestamp(&tuple, self.since_epoch(now)),
            ack_delay: self.config.ack_delay,
            opening,
            ecn: self.config.ecn,
            began: now,
        };
        let options = Options::new(!self.config.nagle, self.config.limits.clone());
        options.set_congestion(self.config.congestion);
        Conn::new(tuple, end, (&config, options), self.clone())
    }

    /// A connection announces and sends what this has room for.
    fn mtu_for(&self, tuple: &Tuple) -> usize {
        let mtu = self.capabilities().mtu;
        let route = self.network.lock().mtu_to(tuple.remote);
        let clamp = self.config.mss;
        let clamp = clamp.map(|mss| tuple.ip_header_len() + TCP_HEADER + mss);
        [route, clamp].into_iter().flatten().fold(mtu, usize::min)
    }

    /// RFC 6528; RFC 1122 4.2.2.13: behind the last one of a former connection, which a fast
    /// connection's are soon.
    fn initial_sequence_number(
        &self,
        tuple: &Tuple,
        former: Option<&TimeWait>,
        now: Instant,
    ) -> u32 {
        if let Some(former) = former {
            return former.record.snd_nxt.wrapping_add(1 << 16);
        }
        self.numbers
            .initial_sequence_number(tuple, self.since_epoch(now))
    }

    fn since_epoch(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.epoch)
    }

    /// What the link can do; all queues are alike.
    fn capabilities(&self) -> Capabilities {
        self.queues[0].link.capabilities()
    }

    /// Has every driver look whether it is to end.
    fn wake_all(&self) {
        self.queues.iter().for_each(|queue| queue.link.wake());
    }

    fn wake_all_if_abandoned(&self) {
        if self.is_abandoned() {
            self.wake_all();
        }
    }

    fn home(&self, conn: &Conn) -> &Queue {
        &self.queues[usize::from(conn.home.queue)]
    }
}

#[cfg(test)]
mod tests;

impl Host for Shared {
    fn link(&self, home: Home) -> &dyn Link {
        let queue = &self.queues[usize::from(home.queue)];
        if home.looped {
            &queue.loopback
        } else {
            &queue.link
        }
    }

    fn queues(&self) -> usize {
        self.queues.len()
    }

    fn now(&self) -> Instant {
        self.clock.now()
    }

    fn clocked(&self) -> Clocked {
        Clocked { epoch: self.epoch }
    }

    fn memory(&self) -> &Memory {
        &self.memory
    }

    fn counters(&self, queue: u16) -> &Counters {
        &self.queues[usize::from(queue)].counters
    }

    fn arm(&self, conn: &Arc<Conn>, at: Instant, former: Option<TimerKey>) -> TimerKey {
        let home = self.home(conn);
        let (key, wake) = home.agenda.lock().arm(conn, at, former);
        home.wake_if(wake);
        key
    }

    fn blocked(&self, conn: &Arc<Conn>) {
        let home = self.home(conn);
        let wake = home.agenda.lock().block(conn);
        home.wake_if(wake);
    }

    fn hand_over(&self, conn: &Arc<Conn>) {
        let home = self.home(conn);
        let wake = home.agenda.lock().hand_over(conn);
        home.wake_if(wake);
        if self.is_down(conn.home.queue) {
            conn.resume();
        }
    }

    fn established(&self, conn: &Arc<Conn>) {
        let half_open = self.half_open.lock().remove(&conn.end.id());
        let listening = half_open.map(|(_, listening)| listening);
        let admitted = self.admit(conn);
        let wanted = match listening {
            Some(listening) if admitted => listening.ready(conn),
            Some(listening) => {
                listening.release();
                false
            }
            None => admitted,
        };
        if !wanted {
            conn.leave_work(Work::ABORT);
        }
    }

    fn path_found(&self, to: IpAddr, finding: Finding) {
        self.paths.learn(to, finding, self.clock.now());
    }

    fn detached(&self) {
        self.attached.fetch_sub(1, Ordering::AcqRel);
        self.wake_all_if_abandoned();
    }

    fn closed(&self, conn: &Arc<Conn>, record: Option<TimeWait>) {
        let half_open = self.half_open.lock().remove(&conn.end.id());
        if let Some((_, listening)) = half_open {
            listening.release();
        }
        self.dismiss(conn);
        let now = self.clock.now();
        drop(self.table.end(conn, record, now));
        if record.is_some() {
            self.expires_at(now + self.config.time_wait);
        }
        // The drivers may wait for the last connection to end.
        self.wake_all_if_abandoned();
    }
}
