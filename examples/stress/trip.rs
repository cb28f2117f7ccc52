//! One chain of splices and the stream that goes through it. See [`courier`](crate::courier).

use crate::ends::Pool;
use crate::handle::Handle;
use crate::pattern;
use crate::random::Random;
use crate::stage::Stage;
use crate::verdict::so_error;
use crate::world::Arrival;
use anyhow::{Context, bail, ensure};
use sosplice::buf::{Buf, Chain};
use sosplice::clock::{Clock, SystemClock};
use sosplice::error::{Flavor, SoError};
use sosplice::local;
use sosplice::splice::{Cause, End, Role, Splice};
use std::io::ErrorKind;
use std::net::Shutdown;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Most splices of a chain, and most bytes of a stream.
const HOPS: u64 = 8;
const BYTES: u64 = 1_000_000;
/// Maximum length of a stream in smallest buffers of its path, or a trip would take hours.
const FILLS: usize = 200;
/// Bytes that a turn sends and receives at most.
const PIECE: usize = 32 * 1024;
/// How long a receiver waits.
const PATIENCE: Duration = Duration::from_millis(2);
/// Bytes that are carried by hand at most.
const ARMFUL: usize = 4096;
/// Without progress for this time the trip has failed.
const STALL: Duration = Duration::from_secs(8);

/// A place where a splice is to be: between the end of one connection and the begin of the next.
#[derive(Debug)]
struct Hop {
    source: Handle,
    sink: Handle,
    splice: Option<Splice>,
    limit: Option<u64>,
    forwards_eof: bool,
    /// Bytes that have passed, by splices that have ended and by hand.
    passed: u64,
    /// The end of the stream has been forwarded.
    over: bool,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Trip {
    stage: Arc<Stage>,
    stream: u64,
    length: u64,
    sender: Handle,
    hops: Vec<Hop>,
    receiver: Handle,
    /// Splices whose sockets were closed.
    orphans: Vec<Splice>,
    sent: u64,
    shut: bool,
    arrived: u64,
    /// A connection was lost on purpose, or the run has failed.
    cut: bool,
    /// Without interference: bytes that are not moved stay where they are.
    calm: bool,
    /// When the trip loses a connection: after this many bytes sent.
    cut_at: Option<u64>,
    moved: (u64, Instant),
    began: Instant,
}

/// Keeps the longest time, in microseconds.
fn note(longest: &AtomicU64, time: Duration) {
    let micros = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
    longest.fetch_max(micros, Ordering::Relaxed);
}

/// The near end of a new connection, and the far end on demand.
enum Far {
    Here(Handle),
    OnTheWay(Arrival),
}

impl Far {
    fn wait(self, stage: &Stage) -> anyhow::Result<Handle> {
        let handle = match self {
            Far::Here(handle) => return Ok(handle),
            Far::OnTheWay(arrival) => arrival.wait().context("accept")?,
        };
        stage.arena.register(&handle);
        Ok(handle)
    }
}

fn connection(stage: &Stage, random: &mut Random) -> anyhow::Result<(Handle, Far)> {
    stage.connections.fetch_add(1, Ordering::Relaxed);
    let (near, far) = match random.one_in(2) {
        true => {
            let hiwat = |random: &mut Random| match random.one_in(8) {
                true => random.length(1000),
                false => 1000 + random.length(64 * 1024),
            };
            let (a, b) = local::pair_with_hiwat(hiwat(random), hiwat(random));
            let far = Handle::from(b);
            stage.arena.register(&far);
            (Handle::from(a), Far::Here(far))
        }
        false => {
            let network = random.pick(&stage.world.networks);
            let (near, arrival) = network.connect(random.below(2)).context(network.name)?;
            (near, Far::OnTheWay(arrival))
        }
    };
    stage.arena.register(&near);
    near.set_nonblocking(true);
    if random.one_in(4) {
        near.set_snd_lowat(random.length(16 * 1024));
    }
    Ok((near, far))
}

impl Trip {
    /// Connects, and splices most of the hops, some of them before their sink is connected.
    pub(crate) fn begin(
        stage: &Arc<Stage>,
        stream: u64,
        random: &mut Random,
    ) -> anyhow::Result<Trip> {
        let calm = random.one_in(2);
        let (sender, mut far) = connection(stage, random)?;
        let mut hops = Vec::new();
        for _ in 0..random.between(1..=HOPS) {
            let source = far.wait(stage)?;
            source.set_nonblocking(true);
            source.set_flavor(*random.pick(&[Flavor::FreeBsd, Flavor::OpenBsd]));
            let (sink, next) = connection(stage, random)?;
            let mut hop = Hop::new(source, sink);
            if !random.one_in(4) {
                hop.join(stage, random, calm)?;
            }
            hops.push(hop);
            far = next;
        }
        let receiver = far.wait(stage)?;
        receiver.set_read_timeout(Some(PATIENCE))?;
        let ends = hops.iter().flat_map(|hop: &Hop| [&hop.source, &hop.sink]);
        let ends = ends.chain([&sender, &receiver]);
        let smallest = ends.map(|end| end.rcv_hiwat().min(end.snd_hiwat())).min();
        let most = smallest.unwrap_or(0).saturating_mul(FILLS) as u64;
        let length = random.between(0..=random.clone().size(BYTES)).min(most);
        let cut_at = random.maybe(4, |random| random.between(0..=length));
        Ok(Trip {
            stage: stage.clone(),
            stream,
            length,
            sender,
            hops,
            receiver,
            orphans: Vec::new(),
            sent: 0,
            shut: false,
            arrived: 0,
            cut: false,
            calm,
            cut_at,
            moved: (0, SystemClock.now()),
            began: SystemClock.now(),
        })
    }

    pub(crate) fn what(&self) -> String {
        let (stream, hops) = (self.stream, self.hops.len());
        let (sent, arrived, length) = (self.sent, self.arrived, self.length);
        format!("stream {stream:x}: {arrived} of {sent} of {length} bytes over {hops} splices")
    }

    /// Sends, receives, and looks after the hops. `true` if the trip has ended.
    pub(crate) fn turn(&mut self, random: &mut Random) -> anyhow::Result<bool> {
        self.send(random).with_context(|| self.describe())?;
        let over = self.receive(random).with_context(|| self.describe())?;
        if over || (self.cut && self.arrived == self.moved.0) {
            return Ok(true);
        }
        if self.cut_at.is_some_and(|at| self.sent >= at) {
            self.lose_a_connection(random);
        }
        self.look_after_hops(random)
            .with_context(|| self.describe())?;
        self.check_progress()?;
        Ok(false)
    }

    fn send(&mut self, random: &mut Random) -> anyhow::Result<()> {
        if self.shut || self.cut {
            return Ok(());
        }
        let left = usize::try_from(self.length - self.sent)?;
        if left == 0 {
            self.sender.shutdown(Shutdown::Write)?;
            self.shut = true;
            return Ok(());
        }
        let mut bytes = vec![0; random.length(PIECE).min(left)];
        pattern::fill(self.stream, self.sent, &mut bytes);
        let sent = match random.one_in(2) {
            true => self.sender.send(&bytes),
            false => self.sender.send_chain(&mut Chain::from(Buf::from(bytes))),
        };
        match sent {
            Ok(sent) => self.sent += sent as u64,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return Err(error).context("send"),
        }
        Ok(())
    }

    /// Checks received bytes. `true` at the end of the stream.
    fn receive(&mut self, random: &mut Random) -> anyhow::Result<bool> {
        let most = random.length(PIECE);
        let bytes = match self.receiver.recv_chain(most) {
            Ok(bytes) => bytes.to_vec(),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
            Err(error) if self.cut && so_error(&error).is_some() => return Ok(true),
            Err(error) => return Err(error).context("receive"),
        };
        if bytes.is_empty() {
            let whole = self.arrived == self.length;
            ensure!(whole || self.cut, "the stream has ended too early");
            return Ok(true);
        }
        if let Some(at) = pattern::differs(self.stream, self.arrived, &bytes) {
            bail!("the byte at {at} is not that of the stream");
        }
        self.arrived += bytes.len() as u64;
        ensure!(self.arrived <= self.sent, "more has arrived than was sent");
        self.stage
            .checked
            .fetch_add(bytes.len() as u64, Ordering::Relaxed);
        Ok(false)
    }

    fn look_after_hops(&mut self, random: &mut Random) -> anyhow::Result<()> {
        for hop in &mut self.hops {
            let ended = if random.one_in(32) && !self.calm {
                hop.undo(random)?
            } else {
                hop.splice.as_ref().and_then(Splice::end)
            };
            if let Some(end) = ended {
                if self.cut {
                    self.orphans.extend(hop.splice.take());
                    continue;
                }
                hop.check(self.stream, end)?;
            }
            if hop.splice.is_none() && !hop.over && !self.cut {
                if random.one_in(2) {
                    hop.carry(self.stream)?;
                }
                hop.join(&self.stage, random, self.calm)?;
            }
        }
        Ok(())
    }

    /// One connection is aborted at one of its ends, or closed.
    fn lose_a_connection(&mut self, random: &mut Random) {
        self.cut = true;
        self.cut_at = None;
        let at = random.below(self.hops.len());
        let hop = &self.hops[at];
        match random.below(3) {
            0 => hop.source.abort(),
            1 => hop.sink.abort(),
            _ => {
                let hop = self.hops.swap_remove(at);
                self.orphans.extend(hop.splice);
            }
        }
    }

    /// The run has failed elsewhere.
    pub(crate) fn give_up(&mut self) {
        self.cut = true;
    }

    fn progress(&self) -> u64 {
        let passed = |hop: &Hop| hop.passed + hop.splice.as_ref().map_or(0, Splice::bytes);
        self.sent + self.arrived + self.hops.iter().map(passed).sum::<u64>()
    }

    fn check_progress(&mut self) -> anyhow::Result<()> {
        let now = SystemClock.now();
        if self.cut {
            self.moved = (self.arrived, now);
            return Ok(());
        }
        let pause = now.saturating_duration_since(self.moved.1);
        note(&self.stage.longest_pause, pause);
        let progress = self.progress();
        if progress != self.moved.0 {
            self.moved = (progress, now);
            return Ok(());
        }
        ensure!(pause < STALL, "nothing moves: {}", self.describe());
        Ok(())
    }

    /// Describes a failed trip.
    fn describe(&self) -> String {
        let mut text = format!("{}\n  sender {:?}", self.what(), self.sender);
        for hop in &self.hops {
            let queued = hop.source.readable_bytes();
            let room = hop.sink.end().with_snd(|buf| buf.space());
            text += &format!("\n  {queued} bytes wait, room for {room}: {hop:?}");
        }
        text + &format!("\n  receiver {:?}", self.receiver)
    }

    /// Ends the trip: checks the counters and waits for the ends of all splices.
    pub(crate) fn end(mut self) -> anyhow::Result<()> {
        if !self.cut {
            note(&self.stage.longest_trip, SystemClock.now() - self.began);
            for at in 0..self.hops.len() {
                let last = |hop: &mut Hop, stream, length| hop.finish(stream, length);
                let checked = last(&mut self.hops[at], self.stream, self.length);
                checked.with_context(|| self.describe())?;
            }
        }
        let splices = self.hops.iter_mut().filter_map(|hop| hop.splice.take());
        self.orphans.extend(splices);
        let (what, orphans) = (self.what(), std::mem::take(&mut self.orphans));
        drop(self);
        for splice in orphans {
            // Closing a socket ends its splices before it returns.
            ensure!(splice.is_ended(), "{what}: closed, but there is {splice:?}");
            let ended = splice.wait_timeout(STALL).is_some();
            ensure!(ended, "{what}: closed, but there is still {splice:?}");
        }
        Ok(())
    }
}

impl Hop {
    fn new(source: Handle, sink: Handle) -> Hop {
        Hop {
            source,
            sink,
            splice: None,
            limit: None,
            forwards_eof: false,
            passed: 0,
            over: false,
        }
    }

    fn join(&mut self, stage: &Stage, random: &mut Random, calm: bool) -> anyhow::Result<()> {
        let pool: &Arc<Pool> = &stage.world.couriers;
        let mut options = stage.options(random, pool);
        if let Some(rate) = &mut options.rate {
            // A pass moves a burst; one pass for each byte would take hours.
            rate.burst = rate.burst.saturating_add(4096);
        }
        if calm {
            (options.limit, options.idle, options.lifetime) = (None, None, None);
        }
        self.limit = options.limit;
        self.forwards_eof = options.forward_eof;
        let splice = self.source.splice_to(&self.sink, options)?;
        let pool = pool.clone();
        splice.on_end(move |end| pool.ends.add(end));
        self.splice = Some(splice);
        Ok(())
    }

    /// Ends the splice, by its handle or by its source.
    fn undo(&self, random: &mut Random) -> anyhow::Result<Option<End>> {
        let Some(splice) = &self.splice else {
            return Ok(None);
        };
        let undone = match random.one_in(2) {
            true => splice.unsplice(),
            false => self.source.unsplice(),
        };
        match (undone, splice.end()) {
            (Ok(end), _) if end.cause == Cause::Unspliced => Ok(Some(end)),
            (Err(_), Some(end)) if end.cause != Cause::Unspliced => Ok(Some(end)),
            (undone, end) => bail!("unspliced: {undone:?}, its end: {end:?}"),
        }
    }

    /// The splice has ended: checks that all reports of its end agree.
    fn check(&mut self, stream: u64, end: End) -> anyhow::Result<()> {
        let Some(splice) = self.splice.take() else {
            return Ok(());
        };
        // The last pass may still notify the protocols; the sink must not be shut before.
        let waited = splice.wait_timeout(STALL);
        ensure!(waited == Some(end), "{end:?}, then {waited:?}");
        ensure!(
            splice.bytes() == end.bytes,
            "{end:?}, but {} bytes",
            splice.bytes()
        );
        ensure!(
            self.source.spliced() == end.bytes,
            "{end:?}: {}",
            self.source.spliced()
        );
        for (socket, role) in [(&self.source, Role::Source), (&self.sink, Role::Sink)] {
            let told = socket.splice_end(role);
            ensure!(
                told == Some(end),
                "{end:?}, but the {role} reports {told:?}"
            );
        }
        self.passed += end.bytes;
        let waiting = self.source.readable_bytes();
        ensure!(
            waiting >= end.residual,
            "{end:?}, but {waiting} bytes are left"
        );
        let left = match (end.cause, self.source.flavor()) {
            (Cause::Limit, Flavor::OpenBsd) => Some(SoError::SpliceLimit),
            (Cause::Idle | Cause::Lifetime, Flavor::OpenBsd) => Some(SoError::SpliceTimedOut),
            _ => None,
        };
        let error = self.source.take_error();
        ensure!(
            error == left,
            "{end:?} has left {error:?} instead of {left:?}"
        );
        match end.cause {
            Cause::Limit => ensure!(Some(end.bytes) == self.limit, "{end:?}: {:?}", self.limit),
            Cause::Unspliced | Cause::Idle | Cause::Lifetime => {}
            Cause::Eof => {
                ensure!(end.residual == 0, "{end:?}");
                self.over = true;
                if !self.forwards_eof {
                    self.sink.shutdown(Shutdown::Write)?;
                }
            }
            _ => bail!("{end:?}, without a cause in this trip"),
        }
        self.peek(stream).map(drop)
    }

    /// Checks that the next bytes wait on the source.
    fn peek(&self, stream: u64) -> anyhow::Result<Vec<u8>> {
        let mut bytes = vec![0; ARMFUL];
        let count = match self.source.peek(&mut bytes) {
            Ok(count) => count,
            Err(error) if error.kind() == ErrorKind::WouldBlock => 0,
            Err(error) => return Err(error).context("peek at a source"),
        };
        bytes.truncate(count);
        if let Some(at) = pattern::differs(stream, self.passed, &bytes) {
            let passed = self.passed;
            bail!("{passed} bytes have passed, but the source goes on with others at {at}");
        }
        Ok(bytes)
    }

    /// Carries some bytes from the source to the sink while there is no splice.
    fn carry(&mut self, stream: u64) -> anyhow::Result<()> {
        let bytes = self.peek(stream)?;
        if bytes.is_empty() {
            return Ok(());
        }
        let sent = match self.sink.send(&bytes) {
            Ok(sent) => sent,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error).context("carry to a sink"),
        };
        let mut taken = vec![0; sent];
        let received = self
            .source
            .recv(&mut taken)
            .context("carry from a source")?;
        ensure!(
            received == sent && taken == bytes[..sent],
            "{received} of {sent} bytes peeked at"
        );
        self.passed += sent as u64;
        Ok(())
    }

    /// The stream has ended: checks that all bytes and the end have passed here.
    fn finish(&mut self, stream: u64, length: u64) -> anyhow::Result<()> {
        if let Some(splice) = &self.splice {
            // The end passed here before it arrived.
            let Some(end) = splice.wait_timeout(STALL) else {
                bail!("the stream is over, but not this splice: {splice:?}");
            };
            self.check(stream, end)?;
        }
        ensure!(self.over, "the end of the stream has not passed here");
        let passed = self.passed;
        ensure!(
            passed == length,
            "{passed} of {length} bytes have passed here"
        );
        Ok(())
    }
}
