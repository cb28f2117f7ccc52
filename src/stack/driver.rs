//! The driver: the thread that receives for a stack, and its timers. With several receive queues there
//! is one for each (`queue`).
//!
//! One [`poll`](Driver::poll) takes a batch of frames, sorts them by connection, then lets these
//! connections process their segments. Then the splices of this thread run, with no lock held. Last
//! come one service step for each connection that no splice has served, so that a batch causes one
//! acknowledgement; timers; connections that threads of the program handed over; and connections that
//! wait for room in the link.

pub(in crate::stack) mod backoff;
mod batch;
mod collected;
#[cfg(any(target_os = "linux", target_os = "android"))]
mod multi;
pub(in crate::stack) mod queue;
pub(in crate::stack) mod run_queue;

use crate::buf;
use crate::busy::Busy;
use crate::events::report;
use crate::ip::icmp::Kind;
use crate::ip::{self, Malformed, PROTO_UDP};
use crate::link::{Frame, Interest, Link, ReceiveError};
use crate::run_list::{self, Budget};
use crate::stack::accept::backlog::Listening;
use crate::stack::accept::begin::Begun;
use crate::stack::demux::conn_table::Entry;
use crate::stack::demux::stateless;
use crate::stack::driver::backoff::Backoff;
use crate::stack::driver::batch::Batch;
use crate::stack::driver::collected::Collected;
use crate::stack::driver::queue::Queue;
use crate::stack::fused_link::FusedLink;
use crate::stack::udp::Outcome;
use crate::stack::{Down, Shared};
use crate::sync::{Protection, intact};
use crate::tcp::block::time_wait::Answer;
use crate::tcp::conn::{Conn, Host, Runner};
use crate::tcp::icmp::{self, IcmpError};
use crate::tcp::service::Work;
use crate::tcp::time_wait::TimeWait;
use crate::tcp::wire::{self, Parsed, SYN, Segment};
use crate::udp;
use crate::udp::wire::Received;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Maximum number of frames of a batch.
const BATCH: usize = 32;
/// How often frames that belonged to no connection, or were small datagrams, are replaced in a batch by receiving more.
const REFILLS: usize = 3;
/// The driver lags behind when this many batches in a row were full, with this many bytes in each: with
/// less, waking a worker would cost more than it saves.
const LAG: (u32, usize) = (4, 32 * 1024);
/// After this many bytes of datagrams their splices run, before the batch is over: super-frames would fill the buffers
/// of a flow, and what was received is still in the caches.
const DATAGRAMS: usize = 48 * 1024;
/// How long a stack without handles may take to deliver sent data.
const LINGER: Duration = Duration::from_secs(5);

/// Runs a stack that was built with [`build_with_driver`](crate::stack::Builder::build_with_driver):
/// call by call, or beside others in a thread ([`run_all`](Self::run_all)). Dropping it ends every
/// connection with [`DriverDropped`](crate::error::SoError::DriverDropped), even if the stack has other
/// drivers, unless its link was gone before.
#[derive(Debug)]
pub struct Driver {
    shared: Arc<Shared>,
    queue: u16,
    frames: Vec<Frame>,
    touched: Batch,
    /// Frames of this batch that belonged to no connection, or were small datagrams.
    strangers: usize,
    /// Full batches in a row.
    full: u32,
    /// Number of segments of this batch and their payload bytes; added to the counters together.
    segments: (u64, u64),
    /// Payload bytes of datagrams since splices last ran.
    datagrams: usize,
    /// Small datagrams of one flow.
    collected: Option<Collected>,
    backoff: Backoff,
    /// Refused packets that were reported.
    refused: u64,
    busy: Arc<Busy>,
}

impl Drop for Driver {
    fn drop(&mut self) {
        // A driver whose link is gone has ended already, without effect on the others.
        if !self.home().is_gone() {
            let unheld = self.shared.is_abandoned();
            let why = if unheld { Down::Unheld } else { Down::Driver };
            self.shared.go_down(why);
        }
        buf::give_back();
    }
}

impl Driver {
    pub(crate) fn new(shared: Arc<Shared>, queue: u16) -> Driver {
        let busy = Arc::new(Busy::new(shared.epoch));
        shared.drivers.lock().push(busy.clone());
        Driver {
            shared,
            queue,
            frames: Vec::new(),
            touched: Batch::default(),
            strangers: 0,
            full: 0,
            segments: (0, 0),
            datagrams: 0,
            collected: None,
            backoff: Backoff::default(),
            refused: 0,
            busy,
        }
    }

    /// The number of its receive queue, counted from 0.
    pub fn queue(&self) -> usize {
        self.queue.into()
    }

    fn home(&self) -> &Queue {
        &self.shared.queues[usize::from(self.queue)]
    }

    /// Does a bounded part of the present work. `false` if there was none.
    ///
    /// A frame that the link could not receive is counted
    /// ([`Stats::receive_errors`](crate::stack::Stats)), but is not an error.
    ///
    /// # Errors
    /// If the link is gone. All connections of its queue have ended with
    /// [`NetworkDown`](crate::error::SoError::NetworkDown), and all further calls fail. Other queues
    /// continue with their drivers; with the last one the stack is down.
    /// [`DriverDropped`](crate::error::SoError::DriverDropped) if another driver of the stack was
    /// dropped.
    pub fn poll(&mut self) -> io::Result<bool> {
        self.wake_up();
        let done = self
            .batch()
            .map(|(received, worked)| received > 0 || worked);
        if !matches!(done, Ok(true)) {
            buf::give_back();
        }
        done
    }

    /// As [`poll`](Self::poll): the number of frames, and whether there was other work.
    fn batch(&mut self) -> io::Result<(usize, bool)> {
        // A failure is final, even if the link works again.
        if self.shared.is_down(self.queue) {
            return Err(self.shared.why_down().into());
        }
        let _at_work = buf::at_work();
        let mut frames = std::mem::take(&mut self.frames);
        self.receive(&mut frames, BATCH)
            .map_err(|gone| self.link_gone(gone))?;
        let now = self.shared.now();
        let undelivered: Vec<_> = self.shared.heed(&self.home().link).collect();
        for error in undelivered {
            self.icmp_error(error, None, false);
        }
        let mut received = frames.len();
        let looped = self.home().loopback.take(&mut frames, BATCH);
        let budget = if self.lags(&frames) {
            Budget::LAGGING_DRIVER
        } else {
            Budget::DRIVER
        };
        let mut gone = None;
        run_list::scope(budget, || {
            let by_link = received;
            let mut left = budget;
            for (at, frame) in frames.drain(..).enumerate() {
                self.input(frame, at >= by_link, now);
                if self.datagrams >= DATAGRAMS {
                    self.datagrams = 0;
                    self.deliver_collected(now);
                    run_list::drain(&mut left);
                }
            }
            // A flood of frames for no connection must not make the batches of connections smaller:
            // each connection's share of a batch is served together, with one acknowledgement. Small datagrams are
            // worth larger batches: each is sent on with a system call.
            for _ in 0..REFILLS {
                let wanted = std::mem::take(&mut self.strangers);
                if received < BATCH || wanted == 0 || gone.is_some() {
                    break;
                }
                gone = self.receive(&mut frames, wanted).err();
                received += frames.len();
                let more = frames.drain(..);
                more.for_each(|frame| self.input(frame, false, now));
            }
            self.deliver_collected(now);
            self.strangers = 0;
            self.home().frames.add((received + looped) as u64);
            self.count();
            // One connection after the other, each with the splices that it wakes, while it is in the
            // caches.
            let mut touched = std::mem::take(&mut self.touched);
            for (conn, segments) in touched.each() {
                if conn.receive(segments) > 0 {
                    self.segments_dropped(conn, now);
                }
                run_list::drain(&mut left);
                // Usually this finds little work.
                conn.catch_up();
            }
            touched.clear();
            self.touched = touched;
        });
        let worked = run_list::scope(budget, || self.serve_run_queue(now));
        self.frames = frames;
        self.report_refusals(now);
        self.busy.turned();
        match gone {
            Some(gone) => Err(self.link_gone(gone)),
            None => Ok((
                received,
                worked || looped > 0 || self.home().loopback.has_frames(),
            )),
        }
    }

    /// Receives, unless the link is in back-off. A lost frame is no error; the frames received with it
    /// are kept.
    fn receive(&mut self, frames: &mut Vec<Frame>, max: usize) -> io::Result<()> {
        if self.backoff.holds(|| self.shared.now()) {
            return Ok(());
        }
        let before = frames.len();
        match self.home().link.receive(frames, max) {
            Ok(_) => {}
            Err(ReceiveError::Gone(gone)) => return Err(gone),
            Err(ReceiveError::Lost(error)) => {
                let now = self.shared.now();
                self.frame_lost(&error, now);
                if frames.len() == before {
                    self.backoff.failed(now);
                    return Ok(());
                }
            }
        }
        self.backoff.succeeded();
        Ok(())
    }

    fn frame_lost(&self, error: &io::Error, now: Instant) {
        self.shared.received.lost.add(1);
        if self.shared.reports.frames_lost.is_due(now) {
            let so_far = self.shared.received.lost.get();
            let (error, queue) = (error.to_string(), self.queue);
            report!(warn, "stack", %error, queue, so_far, "frame lost: the link failed to receive it");
        }
    }

    /// The transmitting thread cannot report refusals, since it holds a lock.
    fn report_refusals(&mut self, now: Instant) {
        let so_far = self.home().link.refused();
        if so_far == self.refused || !self.shared.reports.packets_refused.is_due(now) {
            return;
        }
        self.refused = so_far;
        if let Some(error) = self.home().link.take_refusal() {
            let (error, queue) = (error.to_string(), self.queue);
            report!(warn, "stack", %error, queue, so_far, "packet lost: the link refused it");
        }
    }

    fn link_gone(&self, gone: io::Error) -> io::Error {
        let (error, queue) = (gone.to_string(), self.queue);
        report!(warn, "stack", %error, queue, "link gone");
        self.shared.queue_gone(self.queue);
        gone
    }

    /// Adds the segments of a batch to the counters.
    fn count(&mut self) {
        let (segments, bytes) = std::mem::take(&mut self.segments);
        if segments > 0 {
            self.shared.received.segments.add(segments);
            self.shared.received.bytes.add(bytes);
        }
    }

    /// Records a batch; `true` if the driver lags behind.
    fn lags(&mut self, frames: &[Frame]) -> bool {
        let (batches, bytes) = LAG;
        let full = frames.len() >= BATCH && frames.iter().map(Frame::len).sum::<usize>() >= bytes;
        self.full = if full {
            (self.full + 1).min(batches)
        } else {
            0
        };
        self.full == batches
    }

    /// When [`poll`](Self::poll) has work again if no frame arrives before. Until its next call the
    /// driver counts as asleep: a thread that adds other work, e.g. a timer that is due earlier,
    /// [wakes](Link::wake) its link. So this loop misses no event:
    ///
    /// ```
    /// use sosplice::{Stack, TcpListener, TcpStream, link::{Link, memory}};
    /// use std::{sync::Arc, thread};
    /// let (link, other) = memory::pair(memory::Config::default());
    /// let link = Arc::new(link);
    /// let builder = Stack::builder(link.clone()).address("10.0.0.1/24".parse()?);
    /// let (stack, mut driver) = builder.build_with_driver()?;
    /// let driving = thread::spawn(move || {
    ///     while let Ok(busy) = driver.poll() {
    ///         // In this order: a connection that blocks after `poll_at` wakes the link.
    ///         let deadline = driver.poll_at();
    ///         if !busy && link.wait(driver.interest(), deadline).is_err() {
    ///             break; // the link is gone
    ///         }
    ///     }
    /// });
    /// let listener = TcpListener::bind(&stack, "10.0.0.1:80")?;
    /// TcpStream::connect(&stack, "10.0.0.1:80")?;
    /// drop(other);
    /// driving.join().ok();
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn poll_at(&self) -> Option<Instant> {
        match self.fall_asleep() {
            Some((deadline, _)) => deadline,
            None => Some(self.shared.now()),
        }
    }

    /// The driver is about to sleep: returns the deadline, and whether a connection waits for room.
    /// `None` if there is work.
    fn fall_asleep(&self) -> Option<(Option<Instant>, bool)> {
        let home = self.home();
        let run_queue = &home.run_queue;
        let too_early = (!intact(Protection::SleepFirst)).then(|| self.next_expiry());
        let (timer, blocked) = {
            let mut run_queue = run_queue.lock();
            if !run_queue.fall_asleep() {
                return None;
            }
            (run_queue.next(), run_queue.has_blocked())
        };
        if !home.loopback.fall_asleep() {
            run_queue.lock().wake_up();
            return None;
        }
        // The sleep is visible to other threads now: one that adds an expiry after this check wakes the
        // driver.
        let expiry = too_early.unwrap_or_else(|| self.next_expiry());
        if let Some(expiry) = expiry {
            run_queue.lock().sleeps_until(expiry);
        }
        let own = home.link.deadline();
        let all = [timer, expiry, own, self.backoff.until()];
        let all = all.into_iter().flatten();
        Some((all.min(), blocked))
    }

    fn wake_up(&self) {
        let home = self.home();
        home.run_queue.lock().wake_up();
        home.loopback.wake_up();
    }

    /// The events of the link to [wait](Link::wait) for before the next [`poll`](Self::poll): readable,
    /// unless it has just failed to receive a frame; writable, if a connection waits for room. Call it
    /// after [`poll_at`](Self::poll_at).
    ///
    /// ```
    /// use sosplice::{Stack, link::{Interest, memory}};
    /// let (link, _other) = memory::pair(memory::Config::default());
    /// let (stack, mut driver) = Stack::builder(link).address("10.0.0.1/24".parse()?).build_with_driver()?;
    /// driver.poll()?;
    /// assert_eq!(driver.interest(), Interest::READABLE);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn interest(&self) -> Interest {
        let blocked = self.home().run_queue.lock().has_blocked();
        self.interest_if(blocked)
    }

    fn interest_if(&self, blocked: bool) -> Interest {
        let readable = match self.backoff.until() {
            Some(_) => Interest::NONE,
            None => Interest::READABLE,
        };
        let writable = match blocked {
            true => Interest::WRITABLE,
            false => Interest::NONE,
        };
        readable | writable
    }

    /// Whether this driver expires records (TIME-WAIT and held SYNs).
    fn is_first(&self) -> bool {
        self.shared.first_up() == self.queue
    }

    /// When the next record expires, for the first driver; `None` for others.
    fn next_expiry(&self) -> Option<Instant> {
        if !self.is_first() {
            return None;
        }
        let held = self.shared.accepting.held.lock().next();
        let record = self.shared.table.next_expiry();
        let flow = [&self.shared.udp, &self.shared.pings].map(|table| table.next_expiry());
        let fragments = self.shared.fragments.next_expiry();
        let later = flow.into_iter().flatten().chain(fragments);
        held.into_iter().chain(record).chain(later).min()
    }

    fn serve_run_queue(&mut self, now: Instant) -> bool {
        let (due, blocked) = self.home().run_queue.lock().take(now);
        let worked = !due.is_empty();
        for conn in due
            .into_iter()
            .filter_map(|conn| conn.upgrade())
            .chain(blocked)
        {
            conn.resume();
        }
        let waiting = self.home().run_queue.lock().take_datagrams();
        waiting.iter().for_each(|udp| udp.resume());
        if self.is_first() {
            self.shared.table.expire(now);
            self.shared.expire_syns(now);
            self.shared.expire_flows(now);
            self.shared.expire_fragments(&self.home().link, now);
        }
        worked
    }

    /// `looped`: it was sent by the stack itself.
    fn input(&mut self, frame: Frame, looped: bool, now: Instant) {
        let counters = &self.shared.received;
        let spare = (!looped).then(|| self.shared.unclaimed.keep_segment(&frame));
        let spare = spare.flatten();
        match wire::parse(frame) {
            Parsed::Tcp(mut segment) => {
                segment.looped = looped;
                self.segments.0 += 1;
                self.segments.1 += segment.payload_len as u64;
                self.segment(segment, spare, now);
            }
            Parsed::Icmp {
                ip_header_len,
                frame,
            } => self.icmp(ip_header_len, &frame, (looped, now)),
            Parsed::Udp(frame, ip) => self.datagram(frame, &ip, (looped, now)),
            Parsed::Foreign(frame, _) if !looped && self.is_martian(&frame) => {
                counters.bad_address.add(1);
            }
            Parsed::Foreign(frame, why) => self.foreign(&frame, why, (looped, now)),
            Parsed::Fragment(frame) => self.fragment(frame, looped, now),
            Parsed::Dropped(why) => counters.dropped(why).add(1),
        }
    }

    /// A part of a packet.
    #[cold]
    fn fragment(&mut self, frame: Frame, looped: bool, now: Instant) {
        if !looped && self.is_martian(&frame) {
            self.shared.received.bad_address.add(1);
            return;
        }
        let link = self.home().way_back(looped);
        if let Some(whole) = self.shared.put_together(link, frame, now) {
            self.input(whole, looped, now);
        }
    }

    #[cold]
    fn foreign(&self, frame: &Frame, why: Malformed, (looped, now): (bool, Instant)) {
        let kind = match why {
            Malformed::Parameter { code, pointer } => Kind::Parameter { code, pointer },
            _ if self.claimed(frame) => return,
            _ => match Kind::unknown_protocol(&frame.head) {
                Some(kind) => kind,
                None => return self.shared.received.dropped(why).add(1),
            },
        };
        self.shared.received.dropped(why).add(1);
        self.complain(kind, frame, (looped, now));
    }

    /// Reports an error in a packet for this host, or for a multicast group, to its sender.
    fn complain(&self, kind: Kind, about: &Frame, (looped, now): (bool, Instant)) {
        let (_, destination) = ip::addresses(&about.head);
        if destination.is_multicast() || self.shared.is_own(destination) {
            let link = self.home().way_back(looped);
            self.shared.icmp_error(link, kind, about, now);
        }
    }

    /// Whether a packet of another protocol than TCP has an impossible source or destination. A
    /// multicast or broadcast destination is possible, and then also the unspecified source (DHCP, RFC
    /// 4862 5.4.2).
    fn is_martian(&self, frame: &Frame) -> bool {
        let (source, destination) = ip::addresses(&frame.head);
        let to_many = is_for_many(frame);
        let nowhere = !to_many && !ip::is_endpoint(destination);
        let beginner = to_many && source.is_unspecified();
        nowhere || !beginner && self.shared.addressing.network.lock().is_martian(source)
    }

    fn datagram(&mut self, mut frame: Frame, ip: &ip::Packet, (looped, now): (bool, Instant)) {
        frame.pull_up(ip.header_len + udp::wire::UDP_HEADER);
        let received = match udp::wire::parse(&frame, ip) {
            Ok(received) => received,
            // For many hosts: the hook's, or dropped.
            Err(Malformed::Address) if is_for_many(&frame) && !self.is_martian(&frame) => {
                if !self.claimed(&frame) {
                    self.shared.received.stray.add(1);
                }
                return;
            }
            Err(why) => return self.shared.received.dropped(why).add(1),
        };
        let count = received.count();
        self.datagrams += received.len;
        if !looped && self.collect(&received, now) {
            self.strangers += 1;
            return;
        }
        let outcome = self.shared.datagram(self.queue, (received, looped), now);
        let Outcome::Nobody { own } = outcome else {
            return;
        };
        if !looped && self.claimed(&frame) {
            return;
        }
        self.shared.udp.counters.no_port.add(count as u64);
        self.shared.received.stray.add(1);
        if own {
            let link = self.home().way_back(looped);
            self.shared
                .icmp_error(link, Kind::PortUnreachable, &frame, now);
        }
    }

    /// Whether a datagram was put to others of its flow.
    fn collect(&mut self, received: &Received, now: Instant) -> bool {
        if let Some(collected) = &mut self.collected
            && collected.add(received)
        {
            return true;
        }
        self.deliver_collected(now);
        self.collected = Collected::begin(received, |tuple| self.shared.udp.flow(tuple));
        self.collected.is_some()
    }

    fn deliver_collected(&mut self, now: Instant) {
        if let Some(collected) = self.collected.take() {
            collected.deliver(now);
        }
    }

    fn icmp(&mut self, ip_header_len: usize, frame: &Frame, (looped, now): (bool, Instant)) {
        if !looped && self.is_martian(frame) {
            self.shared.received.bad_address.add(1);
            return;
        }
        // Also for addresses that are not ours, which intercepted connections have.
        if let Some(error) = icmp::parse(frame, ip_header_len) {
            self.icmp_error(error, Some(frame), looped);
            return;
        }
        let (_, destination) = ip::addresses(&frame.head);
        if !self.shared.is_own(destination) {
            let ping = udp::echo::parse(frame, ip_header_len).filter(|_| !looped);
            if ping.is_some_and(|ping| self.shared.ping(self.queue, ping, now)) {
                return;
            }
            if !self.claimed(frame) {
                self.shared.received.stray.add(1);
            }
            return;
        }
        let link = self.home().way_back(looped);
        if !self.shared.pong(link, frame, ip_header_len) {
            self.claimed(frame);
        }
    }

    /// `frame`: the ICMP packet, if there is one.
    fn icmp_error(&mut self, error: IcmpError, frame: Option<&Frame>, looped: bool) {
        let is_martian = |address| self.shared.addressing.network.lock().is_martian(address);
        // It quotes a packet to an impossible address.
        if !looped && is_martian(error.tuple.remote) {
            self.shared.received.bad_address.add(1);
            return;
        }
        if error.protocol == PROTO_UDP {
            if !self.shared.datagram_error(&error)
                && !frame.is_some_and(|frame| self.claimed(frame))
            {
                self.home().counters.icmp_ignored.add(1);
            }
            return;
        }
        match self.shared.table.get(&error.tuple) {
            Some(Entry::Conn(conn)) if !conn.home.looped => {
                if conn.leave_error(error) {
                    self.touched.add(conn, None);
                }
            }
            _ if frame.is_some_and(|frame| self.claimed(frame)) => {}
            _ => self.home().counters.icmp_ignored.add(1),
        }
    }

    /// Whether the hook takes an unhandled frame.
    fn claimed(&self, frame: &Frame) -> bool {
        let claimed = self.shared.unclaimed.takes(frame);
        self.shared.received.claimed.add(u64::from(claimed));
        claimed
    }

    /// `spare` is the segment's frame, if the hook is to be called.
    fn segment(&mut self, segment: Segment, spare: Option<Frame>, now: Instant) {
        match self.shared.table.get(&segment.tuple) {
            Some(Entry::Conn(conn)) => self.deliver(conn, segment),
            Some(Entry::TimeWait(record, term)) if now < term.until => {
                self.time_wait(&record, segment, now);
            }
            Some(Entry::TimeWait(record, _)) => {
                self.shared.table.remove(&record);
                self.unknown(segment, spare, None, now);
            }
            None => self.unknown(segment, spare, None, now),
        }
    }

    fn deliver(&mut self, conn: Arc<Conn>, segment: Segment) {
        if conn.home.looped != segment.looped {
            // A forged packet from our own address.
            self.shared.received.bad_address.add(1);
            return;
        }
        if conn.home.queue != self.queue {
            self.home().astray.add(1);
        }
        // The connection is run after the batch.
        self.touched.add(conn, Some(segment));
    }

    fn segments_dropped(&self, conn: &Conn, now: Instant) {
        if self.shared.reports.segments_dropped.is_due(now) {
            let (local, peer) = conn.tuple.ends();
            let so_far = self.home().counters.backlog_full.get();
            report!(warn, "stack", %local, %peer, so_far, "segment dropped: backlog of its connection full");
        }
    }

    fn time_wait(&mut self, record: &TimeWait, segment: Segment, now: Instant) {
        let tuple = &record.tuple;
        let (own, looped) = {
            let network = self.shared.addressing.network.lock();
            (network.is_own(tuple.local), network.is_own(tuple.remote))
        };
        if looped != segment.looped {
            self.shared.received.bad_address.add(1);
            return;
        }
        match record.answer(&segment) {
            Answer::Ignore => {}
            Answer::MakeRoom if self.shared.listener_for(tuple, own).is_some() => {
                self.unknown(segment, None, Some(*record), now);
            }
            Answer::MakeRoom => self.acknowledge(record, looped),
            Answer::Acknowledge { restart } => {
                self.acknowledge(record, looped);
                if restart {
                    self.shared.table.restart(record, now);
                }
            }
        }
    }

    fn acknowledge(&self, record: &TimeWait, looped: bool) {
        let ack = record.acknowledgement(false);
        let link = self.home().way_back(looped);
        stateless::send(link, &ack, record.tuple.ip_header_len());
    }

    /// A segment without a connection: a SYN for a listener, or a segment to reset. `after` is the
    /// record of a former connection with its tuple.
    fn unknown(
        &mut self,
        segment: Segment,
        spare: Option<Frame>,
        after: Option<TimeWait>,
        now: Instant,
    ) {
        self.strangers += usize::from(!segment.looped);
        let tuple = segment.tuple;
        let header = &segment.header;
        let (own, routed, martian) = {
            let network = self.shared.addressing.network.lock();
            let nobody = network.is_martian(tuple.remote) || network.is_broadcast(tuple.local);
            let martian = !segment.looped && (nobody || tuple.local == tuple.remote);
            let routed = segment.looped || network.is_routed(tuple.remote);
            (network.is_own(tuple.local), routed, martian)
        };
        // Checked only here: no connection can have such a peer.
        if martian {
            self.shared.received.bad_address.add(1);
            return;
        }
        // Strict reverse path filter (RFC 3704 2.2).
        if routed
            && header.flags & (SYN | wire::ACK | wire::RST) == wire::ACK
            && let Some(syn) = self.shared.cookie_of(&segment, now)
            && let Some(listening) = self.shared.listener_for(&tuple, own)
        {
            let begun = (self.shared).accept_cookie(self.queue, &listening, (&segment, syn), now);
            match begun {
                Ok(conn) => self.deliver(conn, segment),
                // Its sender believes that the connection is established, and will retransmit.
                Err(refusal) => self.shared.count_dropped(refusal, now),
            }
            return;
        }
        if routed && header.flags & (SYN | wire::ACK | wire::RST | wire::FIN) == SYN {
            // First, also if its listener is closed: a `ConnectionRequest` may still exist.
            if self.shared.refresh_syn(&segment, now) {
                return;
            }
            if let Some(listening) = self.shared.listener_for(&tuple, own) {
                self.syn(&listening, segment, after, now);
                return;
            }
        }
        if spare.is_some_and(|frame| self.claimed(&frame)) {
            return;
        }
        if !routed {
            self.shared.received.unrouted.add(1);
            return;
        }
        self.shared.received.stray.add(1);
        // An intercepting listener stands for the destination: a peer may have a connection from before this
        // stack was started, which it is to learn.
        let listens = || self.shared.listener_for(&tuple, own).is_some();
        // RFC 9293 3.10.7.2: in LISTEN only an acknowledgement is reset; a segment with neither ACK nor
        // SYN is dropped.
        let answered = match header.has(wire::ACK) {
            true => own || listens(),
            false => own && !listens(),
        };
        if answered {
            stateless::reset(self.home().way_back(segment.looped), &segment);
        }
    }

    fn syn(
        &mut self,
        listening: &Arc<Listening>,
        segment: Segment,
        after: Option<TimeWait>,
        now: Instant,
    ) {
        let tuple = &segment.tuple;
        if let Err(refusal) = self.shared.admits(tuple) {
            self.shared.count_dropped(refusal, now);
        } else if listening.decides {
            if let Some(conn) = self.shared.hold_syn(self.queue, listening, &segment, now) {
                self.deliver(conn, segment);
            }
        } else {
            let syn = (&segment, now);
            let begun = (self.shared).accept_syn(self.queue, listening, syn, after.as_ref());
            match begun {
                Ok(Begun::Runs(conn)) => self.touched.add(conn, None),
                Ok(Begun::Nothing) => {}
                Err(refusal) => {
                    let syn = (&segment, after.is_some(), now);
                    (self.shared).turn_away(self.home(), refusal, listening, syn);
                }
            }
        }
    }
}

/// Whether a packet goes to many hosts: multicast, or all of the link.
fn is_for_many(frame: &Frame) -> bool {
    let (_, destination) = ip::addresses(&frame.head);
    destination.is_multicast() || destination == IpAddr::V4(Ipv4Addr::BROADCAST)
}

impl Shared {
    /// Drops a SYN, or an acknowledged cookie, beyond the backlog.
    pub(super) fn drop_syn(&self, listening: &Listening, now: Instant) {
        self.received.backlog_full.add(1);
        if self.reports.syns_dropped.is_due(now) {
            let so_far = self.received.backlog_full.get();
            let accepts = listening.rule.clone();
            report!(warn, "stack", %accepts, so_far, "SYN dropped: backlog full");
        }
    }

    pub(super) fn report_cookies(&self, listening: &Listening, now: Instant) {
        if self.reports.cookies_sent.is_due(now) {
            let so_far = self.received.cookies_sent.get();
            let accepts = listening.rule.clone();
            report!(warn, "stack", %accepts, so_far, "SYN answered with a cookie: backlog full");
        }
    }

    pub(super) fn report_withheld(&self, listening: &Listening, now: Instant) {
        if self.reports.cookies_withheld.is_due(now) {
            let so_far = self.received.cookies_withheld.get();
            let accepts = listening.rule.clone();
            report!(warn, "stack", %accepts, so_far, "SYN not answered until it is repeated: too many a second");
        }
    }
}

/// The result of a turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Turn {
    /// There may be more work.
    Busy,
    /// There is no work until the next event.
    Idle,
    /// The link is gone, or the stack has no handles left and has finished.
    Over,
}

/// A driver in its thread.
#[derive(Debug)]
pub(super) struct Running {
    driver: Driver,
    /// The deadline for delivering sent data, once the stack has no handles.
    until: Option<Instant>,
    /// The time of the last work, with busy polling.
    busy_at: Option<Instant>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.driver.busy.sleep(self.driver.shared.now());
    }
}

impl Running {
    pub(super) fn new(driver: Driver) -> Running {
        driver.busy.wake(driver.shared.now());
        Running {
            driver,
            until: None,
            busy_at: None,
        }
    }

    /// The driver's thread.
    pub(super) fn run(mut self) {
        loop {
            match self.turn() {
                Turn::Over => return,
                Turn::Busy => {}
                Turn::Idle => {
                    if !self.sleep() {
                        return;
                    }
                }
            }
        }
    }

    pub(super) fn link(&self) -> &FusedLink {
        &self.driver.home().link
    }

    pub(super) fn turn(&mut self) -> Turn {
        let Ok((received, worked)) = self.driver.batch() else {
            return Turn::Over;
        };
        // Less than a batch: the link was drained, so waiting is next.
        if received >= BATCH || worked {
            return self.busy();
        }
        let shared = &self.driver.shared;
        if shared.is_abandoned() {
            let now = shared.now();
            let until = *self.until.get_or_insert(now + LINGER);
            let sent = shared.table.connections() == 0 && !shared.has_blocked();
            if sent || now >= until {
                for conn in shared.table.all() {
                    conn.run(Work::ABORT, Runner::Driver);
                }
                return Turn::Over;
            }
        }
        match (received, self.busy_at) {
            (1.., _) if !shared.config.busy_poll.is_zero() => self.busy(),
            (_, Some(at)) if shared.now() < at + shared.config.busy_poll => Turn::Busy,
            _ => Turn::Idle,
        }
    }

    fn busy(&mut self) -> Turn {
        let shared = &self.driver.shared;
        if !shared.config.busy_poll.is_zero() {
            self.busy_at = Some(shared.now());
        }
        Turn::Busy
    }

    /// The driver is about to sleep: returns the deadline and the events to wait for. `None` if there
    /// is work.
    pub(super) fn fall_asleep(&self) -> Option<(Option<Instant>, Interest)> {
        let (deadline, blocked) = self.driver.fall_asleep()?;
        buf::give_back();
        self.driver.busy.sleep(self.driver.shared.now());
        let deadline = deadline.into_iter().chain(self.until).min();
        Some((deadline, self.driver.interest_if(blocked)))
    }

    /// Handles the result of the link's `wait`. `false` if the link is gone.
    pub(super) fn waited(&self, result: io::Result<()>) -> bool {
        result.map_err(|gone| self.driver.link_gone(gone)).is_ok()
    }

    pub(super) fn wake_up(&self) {
        self.driver.wake_up();
        self.driver.busy.wake(self.driver.shared.now());
    }

    /// Sleeps until there is work. `false` if the link is gone.
    fn sleep(&self) -> bool {
        let Some((deadline, interest)) = self.fall_asleep() else {
            return true;
        };
        let result = self.link().wait(interest, deadline);
        self.wake_up();
        self.waited(result)
    }
}
