//! The driver's work besides receiving: timers, connections that wait for room in the link, and
//! connections that threads of the program have handed over.

use crate::tcp::conn::Conn;
use crate::tcp::home::TimerKey;
use crate::udp::Udp;
use std::collections::BTreeMap;
use std::sync::{Arc, Weak};
use std::time::Instant;

/// The run queue. Its lock, a leaf, also decides whether the driver must be woken.
#[derive(Debug, Default)]
pub(crate) struct RunQueue {
    timers: BTreeMap<TimerKey, Weak<Conn>>,
    serial: u64,
    blocked: Vec<Arc<Conn>>,
    /// Sockets for datagrams that wait for room in the link.
    blocked_datagrams: Vec<Arc<Udp>>,
    handed_over: Vec<Weak<Conn>>,
    /// The driver sleeps, or is about to.
    asleep: bool,
    /// When a sleeping driver wakes to expire records, if it does.
    expiry: Option<Instant>,
    /// The driver has ended: nothing is added any more.
    over: bool,
}

impl RunQueue {
    /// Adds a timer in the place of the connection's former one, so that each connection has one at
    /// most. `true` if the driver must be woken.
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

    /// Adds a connection that waits for room. `true` if the driver must be woken.
    pub(crate) fn block(&mut self, conn: &Arc<Conn>) -> bool {
        if !self.over && !self.blocked.iter().any(|other| Arc::ptr_eq(other, conn)) {
            self.blocked.push(conn.clone());
        }
        self.asleep
    }

    /// Adds a socket for datagrams that waits for room. `true` if the driver must be woken.
    pub(crate) fn block_datagrams(&mut self, udp: &Arc<Udp>) -> bool {
        let is_there = |other: &Arc<Udp>| Arc::ptr_eq(other, udp);
        if !self.over && !self.blocked_datagrams.iter().any(is_there) {
            self.blocked_datagrams.push(udp.clone());
        }
        self.asleep
    }

    /// Takes the sockets for datagrams that may try the link again.
    pub(crate) fn take_datagrams(&mut self) -> Vec<Arc<Udp>> {
        std::mem::take(&mut self.blocked_datagrams)
    }

    /// Adds a connection whose backlog is not empty. `true` if the driver must be woken.
    pub(crate) fn hand_over(&mut self, conn: &Arc<Conn>) -> bool {
        if !self.over {
            self.handed_over.push(Arc::downgrade(conn));
        }
        self.asleep
    }

    /// The driver has ended. Returns its remaining work, to be dropped with no lock held.
    pub(crate) fn end(&mut self) -> RunQueue {
        let over = RunQueue {
            over: true,
            ..RunQueue::default()
        };
        std::mem::replace(self, over)
    }

    /// Takes the connections whose timers are due, and those that may try the link again.
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
        !self.blocked.is_empty() || !self.blocked_datagrams.is_empty()
    }

    /// `false` if there is work. (A blocked looped connection waits for the driver itself.)
    pub(crate) fn fall_asleep(&mut self) -> bool {
        let waits_for_us = self.blocked.iter().any(|conn| conn.home.looped);
        self.asleep = self.handed_over.is_empty() && !waits_for_us;
        self.expiry = None;
        self.asleep
    }

    /// Sets when the driver, which is marked asleep, will wake.
    pub(crate) fn sleeps_until(&mut self, expiry: Instant) {
        self.expiry = Some(expiry);
    }

    /// A record that expires at this time was added. `true` if the driver must be woken.
    pub(crate) fn expires_at(&self, at: Instant) -> bool {
        self.asleep && self.expiry.is_none_or(|expiry| at < expiry)
    }

    pub(crate) fn wake_up(&mut self) {
        self.asleep = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::{Clock, SystemClock};
    use crate::link::memory;
    use crate::stack::{Stack, TcpSocket};
    use std::time::Duration;

    /// Cost of re-arming a timer (which cancels the former one) and of firing it, beside others. `cargo
    /// test --release --lib -- --ignored --nocapture beside_many_timers`
    #[test]
    #[ignore = "measures time"]
    fn beside_many_timers() {
        let (link, _far) = memory::pair(memory::Config::default());
        let builder = Stack::builder(link).address("10.0.0.1/24".parse().unwrap());
        let (stack, _driver) = builder.build_with_driver().unwrap();
        let stream = TcpSocket::new(&stack)
            .start("10.0.0.2:80".parse().unwrap())
            .unwrap();
        let conn = stack.shared().table.conn(&stream.conn().tuple);
        let start = SystemClock.now();
        let at = |micros: u64| start + Duration::from_micros(micros.wrapping_mul(7919) % 1_000_000);
        for count in [1_u64, 1_000, 100_000, 1_000_000] {
            let mut run_queue = RunQueue::default();
            let mut keys: Vec<_> = (0..count)
                .map(|i| run_queue.arm(&conn, at(i), None).0)
                .collect();
            let rounds = 1_000_000_u64;
            let begun = SystemClock.now();
            for i in 0..rounds {
                let slot = usize::try_from(i.wrapping_mul(7919) % count).unwrap();
                keys[slot] = run_queue.arm(&conn, at(i), Some(keys[slot])).0;
            }
            let armed = (SystemClock.now() - begun) / u32::try_from(rounds).unwrap();
            let begun = SystemClock.now();
            let (due, _) = run_queue.take(start + Duration::from_secs(1));
            let fired = (SystemClock.now() - begun) / u32::try_from(due.len()).unwrap();
            assert_eq!(due.len() as u64, count);
            println!("{count:>8} armed: arming anew {armed:?}, firing {fired:?}");
        }
    }
}
