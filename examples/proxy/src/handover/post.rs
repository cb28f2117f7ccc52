//! The thread that waits for a process to take over, and for the ends of the processes before and after this one.

use super::candidate::Former;
use super::control::{self, Connection, Device, Message};
use super::lane::{Lane, Passage};
use super::{ANSWER, PREPARE, common};
use crate::arguments::Arguments;
use crate::log::PROXY;
use crate::relay::Event;
use anyhow::{Context, bail};
use crossbeam_channel::Sender;
use rustix::event::{PollFd, PollFlags};
use sosplice::Stack;
use sosplice::clock::{Clock, SystemClock};
use sosplice::stack::TcpState;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::Duration;
use tracing::{info, warn};

/// How long the first message of a connection may take.
const HELLO: Duration = Duration::from_secs(1);
/// How long packets that were read may take to be handled.
const SETTLE: Duration = Duration::from_secs(5);
/// How often to check that, and how long to wait after an error of the system.
const LOOK: Duration = Duration::from_millis(1);
/// Most clients that are named to the second process.
pub(super) const NAMED: usize = 1500;

/// What this process has, to be handed over.
pub(crate) struct Terms {
    /// The queues of each device.
    pub(crate) lanes: Vec<Vec<Arc<Lane>>>,
    /// The stack for clients.
    pub(crate) front: Stack,
    /// This process has the upper half of the ports.
    pub(crate) upper: bool,
    pub(crate) events: Sender<Event>,
    /// How long it may take to drain then.
    pub(crate) grace: Duration,
    /// Called when another process has taken over.
    pub(crate) left: Box<dyn Fn() + Send>,
}

/// See the module.
pub(crate) struct Post {
    listener: OwnedFd,
    common: Vec<String>,
    terms: Terms,
}

/// A process that has taken over.
struct Successor {
    /// Ends with that process.
    process: OwnedFd,
    pid: u32,
}

impl Post {
    /// Listens at the path, or as the process did from which this one has taken over; until this process ends.
    pub(crate) fn start(
        (path, arguments): (&Path, &Arguments),
        former: Option<Former>,
        terms: Terms,
    ) -> anyhow::Result<()> {
        let (listener, former) = match former {
            Some(former) => {
                for lane in terms.lanes.iter().flatten() {
                    lane.read(true);
                }
                let pid = former.pid;
                info!(target: PROXY, event = "taken_over", process = pid, "taken over from process {pid}");
                (
                    former.listener,
                    Some((former.process, former.pid, former.passages)),
                )
            }
            None => (control::listen(path)?, None),
        };
        let post = Post {
            listener,
            common: common(arguments),
            terms,
        };
        let run = move || {
            if let Some((process, pid, passages)) = former {
                post.until_drained(&process, pid, &passages);
            }
            post.run();
        };
        // The former process may have left already.
        if let Err(error) = thread::Builder::new().name("handover".into()).spawn(run) {
            warn!(target: PROXY, event = "failed", "handover: {error}: no other process can take over");
        }
        Ok(())
    }

    fn lanes(&self) -> impl Iterator<Item = &Lane> {
        self.terms.lanes.iter().flatten().map(|lane| &**lane)
    }

    /// Refuses others while the former process drains.
    fn until_drained(&self, process: &OwnedFd, pid: u32, passages: &[Arc<Passage>]) {
        let busy = format!(
            "process {} has taken over from process {pid}, which still drains: try again when that one has ended",
            std::process::id()
        );
        while !self.wait(process.as_fd()) {
            self.refuse_next(&busy);
        }
        passages.iter().for_each(|passage| passage.close());
        self.lanes()
            .for_each(|lane| lane.tun().restore_at_end(true));
        info!(target: PROXY, event = "former_ended", process = pid, "process {pid} has drained and ended");
    }

    fn run(&self) {
        loop {
            let mut fds = [PollFd::new(&self.listener, PollFlags::IN)];
            control::poll_for_ever(&mut fds).ok();
            let accepted = Connection::accept(&self.listener);
            let served = match accepted {
                Ok(Some(connection)) => self.serve(&connection),
                Ok(None) => continue,
                Err(error) => Err(error.into()),
            };
            match served {
                Ok(successor) => self.leave(&successor),
                Err(why) => {
                    warn!(
                        target: PROXY,
                        event = "not_handed_over",
                        cause = format!("{why:#}"),
                        "not handed over: {why:#}"
                    );
                    // Not as fast as possible, if it is an error of the system.
                    control::poll_until(&mut [], SystemClock.now() + LOOK).ok();
                }
            }
        }
    }

    /// Waits for an event of `other`, or of the listener. `true` for the first.
    fn wait(&self, other: BorrowedFd<'_>) -> bool {
        let mut fds = [
            PollFd::from_borrowed_fd(other, PollFlags::IN),
            PollFd::new(&self.listener, PollFlags::IN),
        ];
        control::poll_for_ever(&mut fds).is_ok() && !fds[0].revents().is_empty()
    }

    fn refuse_next(&self, why: &str) {
        match Connection::accept(&self.listener) {
            Ok(Some(connection)) => {
                // Read first: what is unread at the end would be an error there instead of the answer.
                connection.receive(SystemClock.now() + HELLO).ok();
                refuse(&connection, why.to_owned());
            }
            Ok(None) => {}
            // Not as fast as possible.
            Err(_) => drop(control::poll_until(&mut [], SystemClock.now() + LOOK)),
        }
    }

    /// Hands over to the process of a connection.
    fn serve(&self, connection: &Connection) -> anyhow::Result<Successor> {
        let successor = self.hear(connection)?;
        self.offer(connection)?;
        self.wait_until_taken(connection, successor.pid)?;
        self.lanes().for_each(|lane| lane.read(false));
        if let Err(why) = self.release(connection) {
            self.lanes().for_each(|lane| lane.read(true));
            return Err(why.context("this process goes on"));
        }
        Ok(successor)
    }

    /// The first message.
    fn hear(&self, connection: &Connection) -> anyhow::Result<Successor> {
        let (common, pid, fds) = match connection.receive(SystemClock.now() + HELLO) {
            Ok(Some((Message::Hello { common, pid }, fds))) => (common, pid, fds),
            Ok(Some((other, _))) => bail!("a process begins with {other:?}"),
            Ok(None) => bail!("a process has closed the connection at once"),
            Err(error) => {
                refuse(connection, format!("of this process, {error}"));
                return Err(error).context("a process that asked");
            }
        };
        if common != self.common {
            let why = format!(
                "the command lines differ: {} here, {} there; these must be the same for a handover",
                self.common.join(", "),
                common.join(", ")
            );
            refuse(connection, why.clone());
            bail!(why);
        }
        let process = fds.into_iter().next();
        Ok(Successor {
            process: process.context("a process gives no descriptor of itself")?,
            pid,
        })
    }

    fn offer(&self, connection: &Connection) -> anyhow::Result<()> {
        let mut devices = Vec::new();
        let mut fds = Vec::new();
        for lanes in &self.terms.lanes {
            fds.extend(lanes.iter().map(|lane| lane.tun().as_fd()));
            let first = lanes.first().context("a device without queues")?;
            // One queue gets what is for all of them: any of them finds the connection.
            fds.push(first.giving());
            let settings = first
                .tun()
                .device_settings()
                .context("no virtio-net header")?;
            devices.push(Device {
                queues: lanes.len(),
                settings: settings.into(),
            });
        }
        fds.push(self.listener.as_fd());
        let this = control::this_process().context("pidfd_open")?;
        fds.push(this.as_fd());
        let offered = Message::Offered {
            pid: std::process::id(),
            upper: !self.terms.upper,
            devices,
        };
        Ok(connection.send(&offered, &fds)?)
    }

    /// Waits while the other process prepares itself; refuses others.
    fn wait_until_taken(&self, connection: &Connection, pid: u32) -> anyhow::Result<()> {
        let deadline = SystemClock.now() + PREPARE;
        loop {
            let mut fds = [
                PollFd::new(connection, PollFlags::IN),
                PollFd::new(&self.listener, PollFlags::IN),
            ];
            control::poll_until(&mut fds, deadline)?;
            if !fds[0].revents().is_empty() {
                return match connection.receive_now()? {
                    Some((Message::Take, _)) => Ok(()),
                    Some((other, _)) => bail!("process {pid} answers with {other:?}"),
                    None => bail!("process {pid} has given up"),
                };
            }
            if !fds[1].revents().is_empty() {
                self.refuse_next(&format!(
                    "process {pid} is about to take over from process {}: try again later",
                    std::process::id()
                ));
            }
            if SystemClock.now() >= deadline {
                let why = format!("process {pid} has not taken over within {PREPARE:?}");
                refuse(connection, why.clone());
                bail!(why);
            }
        }
    }

    /// Nothing reads the devices any more; when this returns, the other process does.
    fn release(&self, connection: &Connection) -> anyhow::Result<()> {
        let end = SystemClock.now() + SETTLE;
        while !self.lanes().all(Lane::is_settled) && SystemClock.now() < end {
            control::poll_until(&mut [], SystemClock.now() + LOOK)?;
        }
        let half_open = self.half_open();
        connection.send(&Message::Yours { half_open }, &[])?;
        let answer = match connection.receive(SystemClock.now() + ANSWER) {
            Err(error) if error.kind() == io::ErrorKind::TimedOut => {
                // It can send nothing from now on, and reads nothing if it could not; but it may have just before.
                connection.close();
                connection.receive_now()
            }
            answer => answer,
        };
        match answer.context("the other process")? {
            Some((Message::Serving, _)) => Ok(()),
            Some((other, _)) => bail!("the other process answers with {other:?}"),
            None => bail!("the other process has ended"),
        }
    }

    /// Clients that may repeat their first segment: those whose handshakes have begun, and those that were heard of last.
    /// (With several queues that segment may be behind one that has ended the handshake.)
    fn half_open(&self) -> Vec<SocketAddr> {
        let mut sockets = self.terms.front.sockets();
        sockets.retain(|socket| !matches!(socket.state, TcpState::Listen | TcpState::TimeWait));
        sockets.sort_by_key(|socket| (socket.state != TcpState::SynReceived, socket.idle));
        let peers = sockets.into_iter().filter_map(|socket| socket.peer);
        peers.take(NAMED).collect()
    }

    /// Drains, until this process ends or that one does.
    fn leave(&self, successor: &Successor) {
        let Terms { events, grace, .. } = &self.terms;
        self.lanes()
            .for_each(|lane| lane.tun().restore_at_end(false));
        (self.terms.left)();
        let grace = *grace;
        // Before the relay is told, which may end the process at once.
        let pid = successor.pid;
        info!(
            target: PROXY,
            event = "handed_over",
            process = pid,
            grace_seconds = grace.as_secs_f64(),
            "handed over to process {pid}: open connections may take {grace:?}"
        );
        let front = self.terms.front.clone();
        // Fails only when the relay has ended.
        events.send(Event::Leave { grace, front }).ok();
        let mut fds = [PollFd::new(&successor.process, PollFlags::IN)];
        while fds[0].revents().is_empty() {
            control::poll_for_ever(&mut fds).ok();
        }
        self.lanes().for_each(|lane| {
            lane.read(true);
            lane.tun().restore_at_end(true);
        });
        // It accepts nothing, in any case.
        events.send(Event::Left).ok();
        warn!(
            target: PROXY,
            event = "successor_ended",
            process = pid,
            "process {pid} has ended: no process accepts, open connections of this one go on"
        );
    }
}

fn refuse(connection: &Connection, why: String) {
    // It may have left.
    connection.send(&Message::Refused { why }, &[]).ok();
}
