//! What the driver has to do besides receiving: timers, connections that wait for room in the link,
//! and connections that users' threads have handed over.

use crate::tcp::conn::Conn;
use crate::tcp::host::TimerKey;
use std::collections::BTreeMap;
use std::sync::{Arc, Weak};
use std::time::Instant;

/// Under one leaf lock, which also decides whether the driver must be woken.
#[derive(Debug, Default)]
pub(crate) struct Agenda {
    timers: BTreeMap<TimerKey, Weak<Conn>>,
    serial: u64,
    blocked: Vec<Arc<Conn>>,
    handed_over: Vec<Weak<Conn>>,
    /// The driver sleeps, or is about to.
    asleep: bool,
    /// There is no driver any more: nothing is added.
    over: bool,
}

impl Agenda {
    /// Adds a timer in the place of the connection's former one, so that each connection has one at
    /// most. `true`: wake the driver.
    pub(crate) fn arm(
        &mut self,
        conn: &Arc<Conn>,
        at: Instant,
        former: Option<TimerKey>,
    ) -> (TimerKey, bool) {
        if let Some(former) = former {
            self.timers.remove(&former);
        }
        let first = self.next().is_none_or(|next| at < next);
        self.serial += 1;
        let key = (at, self.serial);
        if !self.over {
            self.timers.insert(key, Arc::downgrade(conn));
        }
        (key, self.asleep && first)
    }

    pub(crate) fn timers(&self) -> usize {
        self.timers.len()
    }

    /// Connections that wait for room in the link.
    pub(crate) fn blocked(&self) -> usize {
        self.blocked.len()
    }

    /// Connections that were handed over.
    pub(crate) fn handed_over(&self) -> usize {
        self.handed_over.len()
    }

    /// Adds a connection that waits for room. `true`: wake the driver.
    pub(crate) fn block(&mut self, conn: &Arc<Conn>) -> bool {
        if !self.over && !self.blocked.iter().any(|other| Arc::ptr_eq(other, conn)) {
            self.blocked.push(conn.clone());
        }
        self.asleep
    }

    /// Adds a connection whose backlog is not empty. `true`: wake the driver.
    pub(crate) fn hand_over(&mut self, conn: &Arc<Conn>) -> bool {
        if !self.over {
            self.handed_over.push(Arc::downgrade(conn));
        }
        self.asleep
    }

    /// There is no driver any more. What it had to do is given back, to be dropped with no lock held.
    pub(crate) fn end(&mut self) -> Agenda {
        let over = Agenda {
            over: true,
            ..Agenda::default()
        };
        std::mem::replace(self, over)
    }

    /// Takes what is due, and what may try the link again.
    pub(crate) fn take(&mut self, now: Instant) -> (Vec<Weak<Conn>>, Vec<Arc<Conn>>) {
        let mut due = std::mem::take(&mut self.handed_over);
        while let Some(entry) = self.timers.first_entry() {
            if entry.key().0 > now {
                break;
            }
            due.push(entry.remove());
        }
        (due, std::mem::take(&mut self.blocked))
    }

    /// When the first timer is due.
    pub(crate) fn next(&self) -> Option<Instant> {
        self.timers.first_key_value().map(|((at, _), _)| *at)
    }

    pub(crate) fn has_blocked(&self) -> bool {
        !self.blocked.is_empty()
    }

    /// `false`: there is something to do after all.
    pub(crate) fn fall_asleep(&mut self) -> bool {
        self.asleep = self.handed_over.is_empty();
        self.asleep
    }

    pub(crate) fn wake_up(&mut self) {
        self.asleep = false;
    }
}
