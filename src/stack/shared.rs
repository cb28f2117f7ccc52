//! The state shared by the handles of a stack, its connections and its drivers.

use crate::busy::Busy;
use crate::callbacks::{self, Once};
use crate::clock::Clock;
use crate::error::SoError;
use crate::events::{RateLimited, report};
use crate::ip::icmp::Allowance;
use crate::link::{Capabilities, Link};
use crate::lock::{Condvar, LEAF, Mutex};
use crate::protocol::SocketEnd;
use crate::stack::accept::admission::Peers;
use crate::stack::accept::backlog::Listening;
use crate::stack::accept::syn_marks::SynMarks;
use crate::stack::accept::syn_queue::SynQueue;
use crate::stack::config::Config;
use crate::stack::demux::conn_table::Table;
use crate::stack::demux::unhandled::Unclaimed;
use crate::stack::driver::queue::Queue;
use crate::stack::ephemeral_ports::EphemeralPorts;
use crate::stack::fragments::Fragments;
use crate::stack::identification::Identifications;
use crate::stack::isn::IsnSecret;
use crate::stack::paths::Paths;
use crate::stack::routes::Network;
use crate::stack::stats::Received;
use crate::stack::udp::UdpTable;
use crate::tcp::block::path_mtu::Finding;
use crate::tcp::block::time::Clocked;
use crate::tcp::conn::{Conn, Connected, Host, Runner};
use crate::tcp::conn_state::{ConnConfig, Opening};
use crate::tcp::counters::Counters;
use crate::tcp::home::{Home, TimerKey};
use crate::tcp::memory::Memory;
use crate::tcp::options::Options;
use crate::tcp::service::Work;
use crate::tcp::time_wait::TimeWait;
use crate::tcp::wire::{TCP_HEADER, Tuple};
use std::collections::HashMap;
use std::net::IpAddr;
use std::panic::{self, AssertUnwindSafe};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::thread;
use std::time::{Duration, Instant};

/// The shared state of a stack.
pub(crate) struct Shared {
    /// At least one.
    pub(crate) queues: Box<[Queue]>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) epoch: Instant,
    pub(super) config: Config,
    pub(crate) table: Table,
    /// Sockets for datagrams, and flows.
    pub(super) udp: UdpTable,
    /// Flows of pings.
    pub(super) pings: UdpTable,
    pub(super) unclaimed: Unclaimed,
    /// Memory of the buffers of all connections.
    pub(super) memory: Memory,
    pub(crate) received: Received,
    pub(super) icmp_allowance: Allowance,
    pub(super) fragments: Fragments,
    /// Busy time of each driver's thread.
    pub(super) drivers: Mutex<Vec<Arc<Busy>>, LEAF>,
    pub(crate) accepting: Accepting,
    pub(super) addressing: Addressing,
    pub(super) lifecycle: Lifecycle,
    pub(super) reports: Reports,
}

/// Connections that peers open, until they are established: owned by `stack::accept`.
#[derive(Default)]
pub(crate) struct Accepting {
    /// The most precise rules first.
    pub(super) listeners: Mutex<Vec<Arc<Listening>>, LEAF>,
    /// Half-open connections by the numbers of their sockets, with their listeners.
    pub(super) half_open: Mutex<HashMap<u64, (Tuple, Arc<Listening>)>, LEAF>,
    /// Connections of each peer, if there is a limit of them.
    pub(super) peers: Peers,
    /// SYNs that wait for a decision of the program.
    pub(crate) held: Mutex<SynQueue, LEAF>,
    /// Set once there was a conditional listener: SYNs may be held.
    pub(super) decides: AtomicBool,
    /// Set once there was a listener with a callback for connections.
    pub(super) has_acceptors: AtomicBool,
    /// SYNs that were not answered, during a flood.
    pub(super) syn_marks: SynMarks,
    /// The time slot in which a SYN was last answered with a cookie.
    pub(super) cookies_sent_in: AtomicU64,
}

/// Addresses, routes, ports, initial sequence numbers and path MTUs: for new connections.
pub(super) struct Addressing {
    pub(super) network: Mutex<Network, LEAF>,
    /// An address was added, or the stack is down.
    pub(super) changed: Condvar,
    pub(super) isn: IsnSecret,
    pub(super) ephemeral_ports: EphemeralPorts,
    pub(super) identifications: Identifications,
    /// The path MTU cache.
    pub(super) paths: Paths,
    /// The path MTUs from reports about datagrams. Who forges one need not know a segment in flight, so connections
    /// do not use them.
    pub(super) datagram_paths: Paths,
    /// Active opens without a requested home.
    pub(super) dialled: AtomicUsize,
}

/// Whether the stack is up, and its handles.
#[derive(Default)]
pub(super) struct Lifecycle {
    pub(super) closing: AtomicBool,
    /// The link or a driver is gone.
    pub(super) down: AtomicBool,
    /// The reason; set before `down`.
    pub(super) why_down: OnceLock<Down>,
    /// Sockets with a handle.
    pub(super) attached: AtomicUsize,
}

/// Rate limits of warnings: one a second.
pub(super) struct Reports {
    pub(super) syns_dropped: RateLimited,
    pub(super) segments_dropped: RateLimited,
    pub(super) cookies_sent: RateLimited,
    pub(super) cookies_withheld: RateLimited,
    pub(super) frames_lost: RateLimited,
    pub(super) packets_refused: RateLimited,
}

impl Reports {
    pub(super) fn new(epoch: Instant) -> Reports {
        Reports {
            syns_dropped: RateLimited::new(epoch),
            segments_dropped: RateLimited::new(epoch),
            cookies_sent: RateLimited::new(epoch),
            cookies_withheld: RateLimited::new(epoch),
            frames_lost: RateLimited::new(epoch),
            packets_refused: RateLimited::new(epoch),
        }
    }
}

/// Why a stack is down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Down {
    /// Its link is gone.
    Link,
    /// A driver was dropped.
    Driver,
    /// There is no handle of it or of its sockets.
    Unheld,
}

impl Down {
    /// The last work of connections, and the error they end with.
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
            .field("network", &self.addressing.network)
            .field("queues", &self.queues)
            .finish_non_exhaustive()
    }
}

impl Shared {
    pub(crate) fn is_own(&self, address: IpAddr) -> bool {
        self.addressing.network.lock().is_own(address)
    }

    /// There is no handle of the stack or of its sockets any more.
    pub(crate) fn is_abandoned(&self) -> bool {
        self.lifecycle.closing.load(Ordering::Acquire)
            && self.lifecycle.attached.load(Ordering::Acquire) == 0
    }

    /// The link of a queue is gone: ends the connections whose home that is. Others continue; with the
    /// last queue the stack goes down.
    pub(crate) fn queue_gone(&self, queue: u16) {
        self.queues[usize::from(queue)]
            .gone
            .store(true, Ordering::SeqCst);
        if self.queues.iter().all(Queue::is_gone) {
            return self.go_down(Down::Link);
        }
        // Another driver takes over the expiry of records.
        self.wake_all();
        self.end_connections(Work::NETWORK_DOWN, |conn| conn.home.queue == queue);
        self.end_datagrams(SoError::NetworkDown, |udp| udp.queue == queue);
        self.end_run_queue(&self.queues[usize::from(queue)]);
    }

    pub(super) fn end_connections(&self, work: Work, which: impl Fn(&Conn) -> bool) {
        for conn in self.table.all().into_iter().filter(|conn| which(conn)) {
            let end = || conn.run(work, Runner::Driver);
            if thread::panicking() {
                // The connection at fault may panic again; that must not stop the end of the others.
                drop(panic::catch_unwind(AssertUnwindSafe(end)));
            } else {
                end();
            }
        }
    }

    pub(super) fn end_run_queue(&self, queue: &Queue) {
        let mut forgotten = queue.run_queue.lock().end();
        queue.loopback.end();
        let (handed_over, _) = forgotten.take(self.clock.now());
        for conn in handed_over.iter().filter_map(Weak::upgrade) {
            conn.resume();
        }
    }

    /// A driver has ended for this reason: ends every connection, and refuses new ones. The other
    /// drivers end too, each with a call of this.
    pub(super) fn go_down(&self, why: Down) {
        let (work, error) = self.lifecycle.why_down.get_or_init(|| why).of_connections();
        let was_up = !self.lifecycle.down.swap(true, Ordering::SeqCst);
        // A thread that has seen the stack up waits by now.
        drop(self.addressing.network.lock());
        self.addressing.changed.notify_all();
        self.wake_all();
        self.end_connections(work, |_| true);
        let listeners = self.accepting.listeners.lock().clone();
        listeners
            .iter()
            .for_each(|listening| listening.go_down(error));
        let intercepting = [self.udp.listeners(), self.pings.listeners()].concat();
        intercepting.iter().for_each(|flows| flows.go_down(error));
        self.end_datagrams(error, |_| true);
        self.drop_syns();
        self.fragments.forget();
        self.queues
            .iter()
            .for_each(|queue| self.end_run_queue(queue));
        if was_up && !thread::panicking() {
            report!(info, "stack", %why, "stack down");
        }
    }

    /// Whether something waits for room in a link.
    pub(super) fn has_blocked(&self) -> bool {
        let mut queues = self.queues.iter();
        queues.any(|queue| queue.run_queue.lock().has_blocked())
    }

    /// Whether nothing can be sent or received by a queue any more.
    pub(super) fn is_down(&self, queue: u16) -> bool {
        self.lifecycle.down.load(Ordering::SeqCst) || self.queues[usize::from(queue)].is_gone()
    }

    /// The queue whose driver expires records: the first that is up.
    pub(super) fn first_up(&self) -> u16 {
        let mut up = (0..)
            .zip(&self.queues)
            .filter(|(_, queue)| !queue.is_gone());
        up.next().map_or(0, |(first, _)| first)
    }

    /// The error of calls on a stack that is down.
    pub(crate) fn why_down(&self) -> SoError {
        self.down_for_connections().1
    }

    pub(super) fn down_for_connections(&self) -> (Work, SoError) {
        let why = self.lifecycle.why_down.get().copied();
        why.unwrap_or(Down::Link).of_connections()
    }

    /// For a connection that was put into the table: either `go_down` or `queue_gone` has seen it
    /// there, or this sees that its home is down.
    pub(super) fn end_if_down(&self, conn: &Arc<Conn>, runner: Runner) -> bool {
        let down = self.is_down(conn.home.queue);
        if down {
            conn.run(self.down_for_connections().0, runner);
        }
        down
    }

    /// A record that the first driver is to expire at this time was added.
    pub(super) fn expires_at(&self, at: Instant) {
        let first = &self.queues[usize::from(self.first_up())];
        let wake = first.run_queue.lock().expires_at(at);
        first.wake_if(wake);
    }

    /// Counts a new socket.
    pub(crate) fn attach(&self) {
        self.lifecycle.attached.fetch_add(1, Ordering::AcqRel);
    }

    /// Makes a connection, which is not in the table yet.
    pub(super) fn connection(
        self: &Arc<Self>,
        home: Home,
        (tuple, opening): (Tuple, Opening),
        iss: u32,
        now: Instant,
    ) -> Arc<Conn> {
        let end = SocketEnd::new(self.config.rcv_buffer, self.config.snd_buffer);
        end.set_flavor(self.config.flavor);
        // There are no path MTUs to the stack's own addresses.
        let known = (!home.looped).then(|| self.addressing.paths.get(tuple.remote, now));
        let config = ConnConfig {
            home,
            rcv_buffer: self.config.rcv_buffer,
            iss,
            mtu: self.mtu_for(&tuple),
            path: known.flatten(),
            timestamp: self
                .addressing
                .isn
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

    /// The MTU for a connection, which determines the MSS that it announces and sends.
    pub(super) fn mtu_for(&self, tuple: &Tuple) -> usize {
        let mtu = self.capabilities().mtu;
        let route = self.addressing.network.lock().mtu_to(tuple.remote);
        let clamp = self.config.mss;
        let clamp = clamp.map(|mss| tuple.ip_header_len() + TCP_HEADER + mss);
        [route, clamp].into_iter().flatten().fold(mtu, usize::min)
    }

    /// RFC 6528; RFC 1122 4.2.2.13: beyond the last one of a former connection, which may have been
    /// faster than the clock.
    pub(super) fn initial_sequence_number(
        &self,
        tuple: &Tuple,
        former: Option<&TimeWait>,
        now: Instant,
    ) -> u32 {
        if let Some(former) = former {
            return self
                .addressing
                .isn
                .number_after(tuple, former.record.snd_nxt);
        }
        self.addressing
            .isn
            .initial_sequence_number(tuple, self.since_epoch(now))
    }

    pub(super) fn since_epoch(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.epoch)
    }

    /// The capabilities of the link, the same for all queues.
    pub(super) fn capabilities(&self) -> Capabilities {
        self.queues[0].link.capabilities()
    }

    /// Wakes every driver, so that it checks whether it is to end.
    pub(super) fn wake_all(&self) {
        self.queues.iter().for_each(|queue| queue.link.wake());
    }

    pub(super) fn wake_all_if_abandoned(&self) {
        if self.is_abandoned() {
            self.wake_all();
        }
    }

    pub(super) fn home(&self, conn: &Conn) -> &Queue {
        &self.queues[usize::from(conn.home.queue)]
    }
}

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
        let (key, wake) = home.run_queue.lock().arm(conn, at, former);
        home.wake_if(wake);
        key
    }

    fn blocked(&self, conn: &Arc<Conn>) {
        let home = self.home(conn);
        let wake = home.run_queue.lock().block(conn);
        home.wake_if(wake);
    }

    fn hand_over(&self, conn: &Arc<Conn>) {
        let home = self.home(conn);
        let wake = home.run_queue.lock().hand_over(conn);
        home.wake_if(wake);
        if self.is_down(conn.home.queue) {
            conn.resume();
        }
    }

    fn established(&self, conn: &Arc<Conn>) {
        let half_open = self.accepting.half_open.lock().remove(&conn.end.id());
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

    fn announce(&self, conn: &Arc<Conn>) {
        if self.accepting.has_acceptors.load(Ordering::Acquire) {
            let own = self.is_own(conn.tuple.local);
            let listening = self.listener_for(&conn.tuple, own);
            listening.into_iter().for_each(|one| one.announce());
        }
    }

    fn tell(&self, callback: Connected, result: Result<(), SoError>) {
        callbacks::call(Once::new(move || callback(result)));
    }

    fn path_found(&self, to: IpAddr, finding: Finding) {
        self.addressing.paths.learn(to, finding, self.clock.now());
    }

    fn detached(&self) {
        self.lifecycle.attached.fetch_sub(1, Ordering::AcqRel);
        self.wake_all_if_abandoned();
    }

    fn closed(&self, conn: &Arc<Conn>, record: Option<TimeWait>) {
        let half_open = self.accepting.half_open.lock().remove(&conn.end.id());
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
