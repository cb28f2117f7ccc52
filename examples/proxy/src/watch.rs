//! The state of the running proxy for its administrator: sockets, splices and counters, beside the log.

use crate::log;
use crate::report;
use crossbeam_channel::tick;
use sosplice::Stack;
use sosplice::splice::{SplicePool, SpliceTable};
use sosplice::stack::SocketTable;
use std::fmt::Write as _;
use std::io;
use std::thread;
use std::time::Duration;

/// The watched stacks and pool.
#[derive(Debug, Clone)]
pub(crate) struct Watch {
    pub(crate) stacks: Vec<(String, Stack)>,
    pub(crate) pool: SplicePool,
}

impl Watch {
    /// Shows the state periodically, if there is a period, until the process ends.
    pub(crate) fn every(&self, period: Option<Duration>) -> io::Result<()> {
        let Some(period) = period else { return Ok(()) };
        let watch = self.clone();
        let show = move || tick(period).iter().for_each(|_| watch.show());
        thread::Builder::new().name("stats".into()).spawn(show)?;
        Ok(())
    }

    /// Shows the state now.
    pub(crate) fn show(&self) {
        log::show_state(&self.text());
    }

    fn text(&self) -> String {
        let mut text = String::new();
        for (name, stack) in &self.stacks {
            let busy: Vec<_> = stack.driver_stats().iter().map(|one| one.busy).collect();
            let stats = report::counters(name, stack);
            // Writing to a String does not fail.
            writeln!(text, "{stats}, drivers busy {busy:.1?}").ok();
            writeln!(text, "{}", SocketTable(&stack.sockets())).ok();
        }
        writeln!(text, "{}", report::passes(&self.pool.stats())).ok();
        for (number, worker) in self.pool.worker_stats().iter().enumerate() {
            let (queued, splices, busy) = (worker.queued, worker.splices, worker.busy);
            writeln!(
                text,
                "worker {number}: {splices} splices, {queued} queued, busy {busy:.1?}"
            )
            .ok();
        }
        writeln!(text, "{}", SpliceTable(&self.pool.splices())).ok();
        text
    }
}
