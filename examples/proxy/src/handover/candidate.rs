//! The second process, until it serves.

use super::control::{self, Connection, Device, Found, Message};
use super::lane::Passage;
use super::{ANSWER, Start, common};
use crate::arguments::Arguments;
use anyhow::{Context, bail};
use rustix::event::{PollFd, PollFlags};
use sosplice::clock::{Clock, SystemClock};
use sosplice::link::tun::DeviceSettings;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

/// A device that another process has open: its queues, and the way to it for packets of its connections.
#[derive(Debug)]
pub(crate) struct Given {
    pub(crate) queues: Vec<OwnedFd>,
    pub(crate) settings: DeviceSettings,
    pub(crate) passage: Arc<Passage>,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Candidate {
    connection: Connection,
    pid: u32,
    process: OwnedFd,
    pub(super) devices: Vec<Option<Given>>,
    passages: Vec<Arc<Passage>>,
    listener: OwnedFd,
    pub(super) upper: bool,
    /// The former process uses this device for clients.
    front: usize,
}

impl Candidate {
    /// Asks the process that listens at the path, if there is one. `None` if nothing is to be handed over.
    pub(crate) fn begin(arguments: &Arguments, front: usize) -> anyhow::Result<Option<Start>> {
        let Some(path) = &arguments.handover else {
            return Ok(None);
        };
        let end = SystemClock.now() + ANSWER;
        loop {
            match control::connect(path)? {
                Found::Nothing => return Ok(Some(Start::Alone)),
                Found::Listener(connection) => {
                    if let Some(candidate) = Candidate::ask(connection, arguments, front)? {
                        return Ok(Some(Start::Second(Box::new(candidate))));
                    }
                }
            }
            // It ended as it was asked. The next attempt finds its socket without a listener.
            if SystemClock.now() > end {
                bail!(
                    "handover: the process at {} closes the connection without an answer",
                    path.display()
                );
            }
        }
    }

    /// `None` if the other process has ended.
    fn ask(
        connection: Connection,
        arguments: &Arguments,
        front: usize,
    ) -> anyhow::Result<Option<Candidate>> {
        let hello = Message::Hello {
            common: common(arguments),
            pid: std::process::id(),
        };
        let this = control::this_process().context("handover: pidfd_open")?;
        if connection.send(&hello, &[this.as_fd()]).is_err() {
            return Ok(None);
        }
        let (answer, mut fds) = match connection.receive(SystemClock.now() + ANSWER) {
            Ok(Some((answer, fds))) => (answer, fds.into_iter()),
            Ok(None) => return Ok(None),
            Err(error) => return Err(error).context("handover: the other process"),
        };
        let (pid, upper, devices) = match answer {
            Message::Offered {
                pid,
                upper,
                devices,
            } => (pid, upper, devices),
            Message::Refused { why } => bail!("handover refused: {why}"),
            other => bail!("handover: the other process answers with {other:?}"),
        };
        let mut given = Vec::new();
        for Device { queues, settings } in devices {
            let queues: Vec<_> = fds.by_ref().take(queues).collect();
            let passage = fds.next().context("handover: descriptors are missing")?;
            given.push(Given {
                queues,
                settings: settings.into(),
                passage: Arc::new(Passage::new(passage)),
            });
        }
        let listener = fds.next().context("handover: descriptors are missing")?;
        if given.len() != arguments.tun.len() {
            bail!("handover: the other process gives {} devices", given.len());
        }
        let process = fds.next().context("handover: descriptors are missing")?;
        Ok(Some(Candidate {
            connection,
            pid,
            process,
            passages: given.iter().map(|one| one.passage.clone()).collect(),
            devices: given.into_iter().map(Some).collect(),
            listener,
            upper,
            front,
        }))
    }

    /// Takes over: the former process reads no more when this returns.
    pub(crate) fn take(self) -> anyhow::Result<Former> {
        // The former one first handles what it has read.
        let end = SystemClock.now() + 2 * ANSWER;
        let taken = self.connection.send(&Message::Take, &[]);
        let answer = match taken {
            Ok(()) => self.connection.receive(end),
            Err(_) => Ok(None),
        };
        match answer.context("handover: the other process")? {
            // From its next message on it drains, so this one has to be the last that can fail.
            Some((Message::Yours { half_open }, _)) => {
                self.passages[self.front].divert(half_open);
                let sent = self.connection.send(&Message::Serving, &[]);
                if sent.is_err() && !self.has_ended() {
                    bail!("handover: too late, the other process goes on");
                }
            }
            Some((Message::Refused { why }, _)) => bail!("handover refused: {why}"),
            Some((other, _)) => bail!("handover: the other process answers with {other:?}"),
            // It has ended meanwhile: the devices are here already.
            None if self.has_ended() => {}
            None => bail!("handover: the other process has closed the connection and goes on"),
        }
        Ok(Former {
            process: self.process,
            pid: self.pid,
            passages: self.passages,
            listener: self.listener,
        })
    }

    /// Whether the former process has ended, or does so soon.
    fn has_ended(&self) -> bool {
        let mut fds = [PollFd::new(&self.process, PollFlags::IN)];
        control::poll_until(&mut fds, SystemClock.now() + ANSWER).is_ok()
            && !fds[0].revents().is_empty()
    }
}

/// The process that was taken over from, as long as it drains.
#[derive(Debug)]
pub(crate) struct Former {
    /// Ends with it.
    pub(super) process: OwnedFd,
    pub(super) pid: u32,
    pub(super) passages: Vec<Arc<Passage>>,
    pub(super) listener: OwnedFd,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::handover::lane::Passage;
    use sosplice::link::Frame;
    use std::process::Command;

    /// One that has been offered one device, the other end of the connection, and that of the passage.
    fn offered(process: OwnedFd) -> (Candidate, Connection, OwnedFd) {
        let (connection, former) = Connection::pair().unwrap();
        let (giving, passed) = Connection::pair().unwrap();
        let candidate = Candidate {
            connection,
            pid: 1,
            process,
            devices: Vec::new(),
            passages: vec![Arc::new(Passage::new(giving.into()))],
            listener: std::fs::File::open("/dev/null").unwrap().into(),
            upper: true,
            front: 0,
        };
        (candidate, former, passed.into())
    }

    /// A process that has ended.
    fn ended() -> OwnedFd {
        let mut child = Command::new("true").spawn().unwrap();
        let pid = rustix::process::Pid::from_child(&child);
        let flags = rustix::process::PidfdFlags::empty();
        let process = rustix::process::pidfd_open(pid, flags).unwrap();
        child.wait().unwrap();
        process
    }

    #[test]
    fn it_serves_when_the_former_reads_no_more() {
        let (candidate, former, _passed) = offered(control::this_process().unwrap());
        let half_open = vec!["10.0.0.1:7000".parse().unwrap()];
        let yours = Message::Yours { half_open };
        former.send(&yours, &[]).unwrap();
        let taken = candidate.take().unwrap();
        for expected in [Message::Take, Message::Serving] {
            let (message, _) = former.receive_now().unwrap().unwrap();
            assert_eq!(message, expected);
        }
        assert!(taken.passages[0].pass(&Frame::new(b"packet")));
    }

    /// Before and after its answer.
    #[test]
    fn it_goes_on_when_the_former_has_ended() {
        let (candidate, former, passed) = offered(ended());
        drop((former, passed));
        assert!(!candidate.take().unwrap().passages[0].pass(&Frame::new(b"packet")));
        let (candidate, former, passed) = offered(ended());
        let half_open = Vec::new();
        former.send(&Message::Yours { half_open }, &[]).unwrap();
        drop((former, passed));
        assert!(!candidate.take().unwrap().passages[0].pass(&Frame::new(b"packet")));
    }

    /// It must not read what the former one reads.
    #[test]
    fn it_gives_up_when_the_former_goes_on() {
        let refused = Message::Refused {
            why: "too late".into(),
        };
        let (candidate, former, _passed) = offered(control::this_process().unwrap());
        former.send(&refused, &[]).unwrap();
        let why = candidate.take().unwrap_err().to_string();
        assert!(why.contains("too late"), "{why}");
        let (candidate, former, _passed) = offered(control::this_process().unwrap());
        former.close();
        let why = candidate.take().unwrap_err().to_string();
        assert!(why.contains("goes on"), "{why}");
    }
}
