//! Threads for connections of host programs, which wait for the guest.

use crossbeam_channel::{Receiver, Sender, bounded};
use std::io;
use std::thread;
use std::time::Duration;

/// A thread that has had nothing to do for this long ends.
const IDLE: Duration = Duration::from_secs(5);

type Work = Box<dyn FnOnce() + Send>;

/// As many threads as there is work at once; to make one for each connection costs more than the connection.
#[derive(Clone)]
pub(crate) struct Threads {
    idle: Sender<Work>,
    work: Receiver<Work>,
}

impl Threads {
    pub(crate) fn new() -> Threads {
        // Without room: it takes something only if a thread waits for it.
        let (idle, work) = bounded(0);
        Threads { idle, work }
    }

    /// Does something in a thread that is idle, or a new one.
    pub(crate) fn run(&self, work: impl FnOnce() + Send + 'static) -> io::Result<()> {
        let Err(busy) = self.idle.try_send(Box::new(work)) else {
            return Ok(());
        };
        let (work, more) = (busy.into_inner(), self.work.clone());
        let run = move || {
            work();
            while let Ok(work) = more.recv_timeout(IDLE) {
                work();
            }
        };
        thread::Builder::new().spawn(run).map(drop)
    }
}
