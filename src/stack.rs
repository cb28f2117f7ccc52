//! A TCP/IP stack over one link: addresses, ports, connections, and the threads that receive.
//!
//! A [`Stack`] is a handle; clones are the same stack. Its driver (a thread, or, built with
//! [`Builder::build_with_driver`], calls of [`Driver::poll`]) receives frames and finds each connection
//! by a hash look-up; each connection has a control block and a lock of its own, so no global lock or
//! list is involved in a segment.
//!
//! **Several receiving threads.** A link with several receive queues ([`Stack::with_queues`],
//! [`Builder::queue`]) has a driver for each. A connection is pinned to one queue, its home, on which
//! it transmits; the link should deliver the peer's packets to that queue (a TUN learns it from sent
//! packets; [`memory::queues`](crate::link::memory::queues) use a hash). Only speed depends on it: a
//! segment on any other queue reaches its connection too. [`TcpSocket::queue`] connects so that answers
//! arrive on a given queue, e.g. that of the connection to which the new one is to be spliced.
//!
//! **Endings.** Sockets and listeners keep their stack running. When the last of them and the last
//! `Stack` handle are dropped, the driver delivers sent data for up to five seconds, resets the
//! remaining connections and ends. When the link is gone, or a [`Driver`] is dropped earlier, every
//! connection ends with [`NetworkDown`](crate::error::SoError::NetworkDown) or
//! [`DriverDropped`](crate::error::SoError::DriverDropped) (both are
//! [`ErrorKind::NetworkDown`](std::io::ErrorKind::NetworkDown)), and so does every attempt to connect
//! or to accept one. Data received until then can be read. If the link of one of several receive queues
//! is gone, only the connections with that home end. A frame that a link cannot receive or send is lost
//! and counted ([`Stats::receive_errors`], [`Stats::transmit_errors`]); no connection ends by that.
//!
//! **ICMP errors** about a connection count only if they quote a segment that is in flight (RFC 5927);
//! [`Stats`] counts both kinds. While connecting, "port unreachable", "protocol unreachable" and
//! "prohibited" end the attempt at once, with
//! [`ConnectionRefused`](crate::error::SoError::ConnectionRefused) (port) or
//! [`HostUnreachable`](crate::error::SoError::HostUnreachable). "Net unreachable", "host unreachable"
//! and an exceeded hop limit do so only if they are still reported after five SYNs, 15 seconds later,
//! as in BSD. No ICMP error ends an established connection (RFC 1122 4.2.3.9); if that times out before
//! the peer answers again, its error is `HostUnreachable` instead of `TimedOut`.
//!
//! **Path MTU.** After a report that a packet was too big, its connection at once sends packets of the
//! reported size (RFC 1191, 8201), down to packets of 552 bytes (IPv4; where a router reports less, it
//! may cut them) or 1,280 (IPv6; a smaller report is ignored). Where routers drop packets without a
//! report, full segments that time out twice in a row become smaller: packets of 1,064 and then of 552
//! bytes (IPv4), or of 1,280 (IPv6) (RFC 4821, 8899). The former size is tried again with one segment
//! as soon as a smaller one is acknowledged, and then every ten minutes. After a router's report a
//! connection does not return to larger packets.
//!
//! The path MTU that a connection has found is cached for its destination for ten minutes (RFC 1191
//! 6.3, 8201 5.3). New connections start with it, on any queue; existing ones find it by themselves. If
//! it was found by time-outs, a new connection tries the former size once, and if that succeeds the
//! entry is removed. The cache holds 1,024 destinations; then the oldest entry is evicted.
//! [`Builder::mss`] and [`Route`] set a smaller size from the start; [`Builder::on_unhandled`] is for
//! frames of other protocols than TCP.
//!
//! # Timers
//!
#![doc = include_str!("doc/timers.md")]
//!
//! # TCP: which standards hold
//!
#![doc = include_str!("doc/standards.md")]
//!
//! # IP
//!
//! **Fragments.** Packets of any protocol are reassembled (RFC 791 3.2, RFC 8200 4.5), whether or not their
//! destination is an address of the stack: segments, datagrams, pings, and frames for
//! [`Builder::on_unhandled`], which is called with the whole packet. A packet that is incomplete after 30
//! seconds is dropped; so are packets whose fragments overlap (RFC 5722), and packets beyond the
//! [limits](crate::security#fragments-and-icmp). Exact duplicates are ignored, and atomic fragments are
//! handled alone (RFC 6946). Datagrams and answers to pings that are larger than the MTU of the link, the
//! route or the path are sent in fragments, with identifications that cannot be guessed (RFC 6864, 7739).
//!
//! **IPv6 extension headers** (RFC 8200 4): hop-by-hop options, destination options, routing headers without
//! segments left and atomic fragments are skipped, up to 8 headers and 2,048 bytes in total. An option that
//! the stack does not know is handled as its two highest bits require; it knows only padding. Routing
//! headers with segments left, of any type (RFC 5095), and unknown next headers are refused with a parameter
//! problem.
//!
//! **ICMP errors that the stack sends:** protocol unreachable, port unreachable, parameter problem, and time
//! exceeded for reassembly. They quote as much of the packet as fits into 576 (IPv4) or 1,280 bytes, and are
//! not sent about ICMP errors, later fragments, and packets to or from more than one host (RFC 1122 3.2.2, RFC
//! 4443 2.4). At most 1,000 a second are sent, and 50 at once.
//!
//! # UDP and pings
//!
//! A [`UdpSocket`] is bound to an address of the stack, or is a *flow*: datagrams of one client that a [`UdpListener`]
//! has intercepted on their way to another destination, as a [`TcpListener`] intercepts connections. A flow has its
//! original destination for a local address, ends when no datagram has passed for a while (see *Timers*), and counts
//! against limits ([`FlowOptions`]). By default each destination of a client is a flow of its own; with
//! [`Mapping::Endpoint`] all datagrams of a client's port are one (RFC 4787 4.1). [`Stack::datagram_sockets`] lists
//! sockets and flows.
//!
//! A datagram goes to the flow with its addresses, else to the most precisely bound socket, else to the flow of its
//! sender, else to the listener with the most precise rule, where it begins a flow. Otherwise it draws "port
//! unreachable", if it was for an address of the stack. A full receive buffer drops datagrams and counts them. Datagrams
//! to be sent wait while the link is full, and so do their writers; those larger than the path MTU leave in fragments;
//! several of one length leave as one packet where the link cuts it ([`Capabilities`](crate::link::Capabilities)). A
//! received ICMP error is an error of the socket, once.
//!
//! Pings to own addresses are answered by the stack; those to other destinations are flows of a [`PingListener`].
//!
//! # Addresses and routes
//!
//! A stack has addresses of both families ([`Builder::address`], [`Stack::add_address`]) and one link,
//! on which all packets are sent. To the stack it is point to point: neighbours and gateways are the matter of a
//! link that is a [host](crate::link::ethernet::Host) in a LAN. Such a link also finds addresses
//! ([`Stack::wait_for_address`]) and reports packets that it could not deliver: an attempt to connect then fails with
//! [`HostUnreachable`](std::io::ErrorKind::HostUnreachable), and a connection goes on. A [`Route`] sets properties
//! of a network ([`Builder::route`], [`Stack::set_routes`]): the source address, a smaller MTU, or that
//! it is unreachable. The longest prefix wins.
//!
//! The source address of a connection is the one it is bound to ([`TcpSocket::bind`]), else the
//! route's, else the stack chooses it by RFC 6724 section 5, rules 1, 2, 3, 6 and 8, among IPv4 addresses
//! by network (RFC 1122 3.3.4.3). A link-local destination is on the only link: the scope of a
//! [`SocketAddrV6`](std::net::SocketAddrV6) is ignored. From unreachable networks, segments that would
//! begin a connection, or be reset, are dropped and counted. Routes do not apply to established
//! connections and pings.
//!
//! Addresses that no host on the link can have ("martians") are neither destinations nor sources: this
//! network (0/8), loopback, multicast, reserved addresses (240/4), IPv4 addresses in the form of IPv6,
//! the broadcast address of a network of the stack, and, as a source, the stack's own addresses;
//! source-routed packets (IPv4's options LSRR and SSRR) are treated alike. Connecting there fails with
//! [`InvalidInput`](std::io::ErrorKind::InvalidInput), no rule intercepts such a destination, and
//! packets from there, or ICMP errors from or about there, are dropped and counted
//! ([`Stats::frames_bad_address`]), without an answer and without a call of [`Builder::on_unhandled`].
//!
//! **A stack's own addresses** are reached inside the stack, independently of routes, as on any host:
//! the connection is between two of its sockets, and its segments are looped back to the driver of its
//! queue ([`TcpSocket::queue`] chooses it). Listeners of every kind accept it, a closed port refuses at
//! once, and no packet is sent on the link. Otherwise it is as over a link, with segments of the link's
//! MTU in packets of 64 KiB. [`Stats`] and [`Stack::sockets`] count and show both ends. A socket
//! connected to itself, which BSD and Linux make by a simultaneous open, is refused with
//! `InvalidInput`. When an address is removed, both ends are closed.
//!
//! # Numbers and reuse
//!
//! Initial sequence numbers follow RFC 6528: a clock of 4 us ticks, plus a hash of addresses and ports
//! with a secret of the stack. Ephemeral ports are chosen by RFC 6056 3.3.4 (double hash) in the range
//! of [`Builder::ephemeral_ports`]: a port is reused for a destination only after all others. By then
//! the clock has passed the sequence numbers of the port's former connection, unless the connections
//! together sent more than 250,000 bytes a second for each port of the range (4 GB/s).
//!
//! Timestamps (RFC 7323) are offered in every SYN and used if the peer offers them too. They count
//! milliseconds from an unpredictable offset for each pair of ends (RFC 7323 5.4), so those of a
//! connection are later than those of a former one between the same ends.
//!
//! A connection that this side closed first stays in TIME-WAIT ([`Builder::time_wait`]) as a record
//! without control block or buffers. It answers as RFC 9293 3.10.7 requires, with timestamps if the
//! connection had them, and ignores resets (RFC 1337). A SYN that a listener accepts replaces it if its
//! timestamp is newer than the last one received; or, if one of the two connections has no timestamps
//! or both are equal, if it is beyond the last sequence number received, or has the first timestamp
//! between these ends (RFC 6191 2). The new connection's initial sequence number is larger than the old
//! one's (RFC 1122 4.2.2.13). Any other SYN, also one with a FIN or an acknowledgement, is answered
//! with the last acknowledgement. When all ports to a destination are in use, connecting reuses the
//! port of a record that is at least a second old, also with larger sequence numbers: a proxy may open
//! as many connections a second to one server as there are ports. Beyond the limit
//! ([`Builder::time_wait_limit`]) the oldest record is dropped.
//!
//! # Files
//!
//! | file | contents |
//! |---|---|
//! | `builder`, `config` | building a stack; its settings |
//! | `shared` | state shared by handles, connections and drivers, by owner |
//! | `driver` | receiving: a batch; several stacks in one thread (`multi`), queues, timers (`run_queue`) |
//! | `demux` | look-up of a packet's connection (`conn_table`); answers without one (`stateless`, `echo`); the hook (`unhandled`) |
//! | `accept` | connections that peers open: backlog, SYN queue, cookies, limits, rules of interception |
//! | `connect`, `tcp_socket` | connections that this side opens |
//! | `stream`, `listener`, `conditional`, `aio` | the program's handles |
//! | `routes`, `source_address`, `paths`, `isn`, `ephemeral_ports`, `seed` | addresses and routes, path MTUs, ports and initial sequence numbers; the secrets behind them |
//! | `fragments`, `identification`, `icmp_error` | fragments received and sent, and their identifications; ICMP errors |
//! | `loopback`, `fused_link` | the two outputs: to the stack itself, and to the link |
//! | `link_events` | addresses that the link finds itself, and packets that it could not deliver |
//! | `udp` | UDP sockets, flows, pings |
//! | `stats`, `netstat` | counters and listings |
//! | `packet` | tests that read like packet traces |
//!
//! # Locks
//!
//! All leaves: the table's shards, addresses and routes, path MTUs, listeners, half-open connections,
//! held SYNs, the run queue, the ICMP interface.

mod accept;
#[cfg(feature = "async")]
mod aio;
mod builder;
mod conditional;
mod config;
mod connect;
mod demux;
mod driver;
mod ephemeral_ports;
mod fragments;
mod fused_link;
mod icmp_error;
mod identification;
mod isn;
mod link_events;
mod listener;
mod loopback;
mod netstat;
#[cfg(test)]
mod packet;
mod paths;
mod routes;
mod seed;
mod shared;
mod source_address;
mod stats;
mod stream;
mod tcp_socket;
mod udp;

pub use crate::congestion::{Congestion, UnknownCongestion};
pub use crate::keep_alive::KeepAlive;
pub use crate::tcp::state::TcpState;
pub use accept::intercept::Intercept;
pub use builder::{BuildError, Builder};
pub use conditional::{ConditionalListener, ConnectionRequest};
pub use driver::Driver;
pub use listener::{DEFAULT_BACKLOG, TcpListener};
pub use netstat::{ListenInfo, SocketInfo, SocketTable};
pub use routes::{Route, RouteError};
pub use stats::{DriverStats, QueueStats, Stats};
pub use stream::TcpStream;
pub use tcp_socket::TcpSocket;
pub use udp::{
    DatagramInfo, DatagramTable, FlowOptions, Mapping, PingFlow, PingListener, UdpListener,
    UdpSocket,
};

use crate::clock::{Clock, SystemClock};
use crate::link::Link;
use crate::probe::Probe;
use crate::tcp::conn::Runner;
use crate::tcp::counters::Counters;
use ipnet::IpNet;
use shared::{Down, Shared};
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// The handle of a stack; see the module.
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
        self.shared.lifecycle.closing.store(true, Ordering::Release);
        self.shared.wake_all();
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
    /// use sosplice::{Stack, TcpListener, TcpSocket, link::memory};
    /// let (near, far) = memory::queues(2, memory::Config::default());
    /// let server = Stack::with_queues(near).address("10.0.0.1/24".parse()?).build()?;
    /// let client = Stack::with_queues(far).address("10.0.0.2/24".parse()?).build()?;
    /// let listener = TcpListener::bind(&server, "10.0.0.1:80")?;
    /// for queue in 0..client.queues() {
    ///     let near = TcpSocket::new(&client).queue(queue).connect("10.0.0.1:80".parse()?)?;
    ///     let (far, _) = listener.accept()?;
    ///     assert_eq!((near.queue(), far.queue()), (queue, queue));
    /// }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn with_queues<L: Link + 'static>(queues: impl IntoIterator<Item = L>) -> Builder {
        let queues = queues.into_iter();
        Builder::new(queues.map(|link| Arc::new(link) as Arc<dyn Link>).collect())
    }

    /// Number of the link's receive queues, and of the stack's drivers.
    pub fn queues(&self) -> usize {
        self.shared().queues.len()
    }

    /// A snapshot of the counters of each receive queue, in their order.
    ///
    /// ```
    /// use sosplice::{Stack, link::memory};
    /// let (links, _far) = memory::queues(3, memory::Config::default());
    /// let stack = Stack::with_queues(links).address("10.0.0.1/24".parse()?).build()?;
    /// let counters = stack.queue_stats();
    /// assert!(counters.iter().map(|one| one.frames_received).eq([0, 0, 0]));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn queue_stats(&self) -> Vec<QueueStats> {
        let queues = self.shared().queues.iter();
        queues.map(QueueStats::of).collect()
    }

    /// The stack's present addresses.
    pub fn addresses(&self) -> Vec<IpNet> {
        self.shared().addressing.network.lock().addresses().to_vec()
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
        self.shared().add_address(address)
    }

    /// Waits until the stack has an address for which `wanted` returns `true`, and returns it: one that the link
    /// [finds](Link::manages_addresses), e.g. a [host](crate::link::ethernet::Host) in a LAN by DHCP, or one that another
    /// thread adds. `None` waits without limit.
    ///
    /// ```
    /// use sosplice::link::ethernet::{Host, HostConfig};
    /// use sosplice::{Stack, link::memory};
    /// use std::time::Duration;
    /// let (transport, _lan) = memory::pair(memory::Config::default().mtu(1514));
    /// let config = HostConfig::new("02:00:00:00:00:05".parse()?).address("10.0.0.5/24".parse()?);
    /// let stack = Stack::builder(Host::new(transport, config.probe(false))?).build()?;
    /// let address = stack.wait_for_address(|net| net.addr().is_ipv4(), Duration::from_secs(30))?;
    /// assert_eq!(address, "10.0.0.5/24".parse()?);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// [`TimedOut`](std::io::ErrorKind::TimedOut); [`NetworkDown`](std::io::ErrorKind::NetworkDown) if the stack is
    /// down.
    pub fn wait_for_address(
        &self,
        wanted: impl Fn(&IpNet) -> bool,
        timeout: impl Into<Option<Duration>>,
    ) -> io::Result<IpNet> {
        let timeout = timeout.into();
        let deadline = timeout.and_then(|time| SystemClock.now().checked_add(time));
        let addressing = &self.shared().addressing;
        loop {
            let seen = self.addresses();
            if let Some(found) = seen.iter().find(|net| wanted(net)) {
                return Ok(*found);
            }
            let mut network = addressing.network.lock();
            while network.addresses() == seen {
                if self.shared().lifecycle.down.load(Ordering::SeqCst) {
                    return Err(self.shared().why_down().into());
                }
                if addressing.changed.wait_until(&mut network, deadline) {
                    return Err(io::ErrorKind::TimedOut.into());
                }
            }
        }
    }

    /// Removes an address, also the last one. The connections of the address end with
    /// [`AddressRemoved`](crate::error::SoError::AddressRemoved), and their peers get a reset (peers on
    /// the stack itself end with the same error). Listeners stay, and accept no connection until the
    /// address is added again.
    ///
    /// # Errors
    /// [`NoSuchAddress`](RouteError::NoSuchAddress), and [`InUse`](RouteError::InUse) if it is the
    /// source of a route.
    pub fn remove_address(&self, address: IpAddr) -> Result<(), RouteError> {
        self.shared().remove_address(address, Runner::User)
    }

    /// The configured routes, the longest prefixes first.
    pub fn routes(&self) -> Vec<(IpNet, Route)> {
        self.shared().addressing.network.lock().routes().to_vec()
    }

    /// Replaces all routes at once, see [`Builder::route`]. Existing connections are not affected.
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
    /// See [`RouteError`]; the former routes stay in force.
    pub fn set_routes(
        &self,
        routes: impl IntoIterator<Item = (IpNet, Route)>,
    ) -> Result<(), RouteError> {
        // The caller's iterator runs with no lock held.
        let routes: Vec<_> = routes.into_iter().collect();
        self.shared().addressing.network.lock().set_routes(routes)
    }

    /// Counters and present quantities. Visits every connection without owning it; its buffers are
    /// locked one after the other, each for a moment.
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
            packets_reassembled: shared.received.reassembled.get(),
            reassembly_timeouts: shared.received.reassembly_timeouts.get(),
            reassembly_overlaps: shared.received.reassembly_overlaps.get(),
            reassembly_evicted: shared.received.reassembly_evicted.get(),
            fragment_memory: shared.fragments.memory(),
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
            syn_cookies_withheld: shared.received.cookies_withheld.get(),
            syn_cookies_accepted: shared.received.cookies_accepted.get(),
            link_full: counters.link_full.get(),
            icmp_errors: counters.icmp_errors.get(),
            mtu_lowered: counters.mtu_lowered.get(),
            icmp_ignored: counters.icmp_ignored.get(),
            icmp_errors_sent: shared.received.icmp_errors_sent.get(),
            icmp_errors_limited: shared.received.icmp_errors_limited.get(),
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
            let run_queue = queue.run_queue.lock();
            stats.timers += run_queue.timers();
            stats.blocked += run_queue.blocked();
            stats.handed_over += run_queue.handed_over();
        }
        stats.add_datagrams(&shared.udp);
        stats.add_sockets(TcpState::TimeWait, stats.time_wait);
        for conn in shared.table.all() {
            stats.add_connection(&conn);
        }
        let listeners = shared.accepting.listeners.lock().clone();
        let queued = listeners.iter().map(|listening| listening.queued());
        queued.for_each(|queued| stats.add_listener(queued));
        stats
    }

    /// Counters of each driver of the stack.
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

    /// Asks each driver for a sign of life: wakes it, so that it completes a turn.
    ///
    /// ```
    /// use sosplice::{Stack, link::memory};
    /// use std::thread;
    /// let (link, _other) = memory::pair(memory::Config::default());
    /// let stack = Stack::builder(link).address("10.0.0.1/24".parse()?).build()?;
    /// let probe = stack.probe();
    /// while !probe.silent().is_empty() {
    ///     thread::yield_now(); // a watchdog would sleep
    /// }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn probe(&self) -> Probe {
        let probe = Probe::new(self.shared().drivers.lock().iter());
        self.shared().wake_all();
        probe
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.handle.shared
    }

    pub(crate) fn now(&self) -> Instant {
        self.shared().clock.now()
    }

    /// Bytes of the send buffer of each new connection.
    fn send_buffer(&self) -> usize {
        self.shared().config.snd_buffer
    }
}

#[cfg(test)]
mod tests;
