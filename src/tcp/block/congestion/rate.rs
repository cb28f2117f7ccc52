//! Delivery rate samples, one for each acknowledgement.
//!
//! draft-ietf-ccwg-bbr 4.1 (formerly draft-cheng-iccrg-delivery-rate-estimation). With each packet a
//! snapshot of the delivered amount is kept, in the order of transmission; the transmit record has only
//! the packet's number ([`Sent::packet`]). Only a controller that needs samples has this.
//! Deterministic; time is an argument.

use crate::tcp::block::recovery::record::{Record, Sent};
use crate::tcp::block::time::Instant;
use std::collections::VecDeque;
use std::time::Duration;

/// Number of snapshots that are kept in any case.
const FEW: usize = 64;

/// The state when a packet was sent (P).
#[derive(Debug, Clone, Copy)]
struct Snapshot {
    /// P.first_send_time.
    first_send_time: Instant,
    /// P.delivered_time.
    delivered_time: Instant,
    /// P.delivered.
    delivered: u64,
    /// P.lost.
    lost: u64,
    /// P.tx_in_flight, the packet included.
    tx_in_flight: u64,
    /// P.is_app_limited.
    is_app_limited: bool,
}

/// The sample of a lost packet (RS in HandleLostPacket).
#[derive(Debug, Clone, Copy)]
pub(crate) struct Loss {
    /// Bytes of the packet.
    pub(crate) size: u64,
    /// RS.tx_in_flight.
    pub(crate) tx_in_flight: u64,
    /// RS.lost: bytes lost since it was sent, its own included.
    pub(crate) lost: u64,
    /// RS.is_app_limited.
    pub(crate) is_app_limited: bool,
}

/// The sample of an acknowledgement (RS). Sizes in bytes, rates in bytes per second.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RateSample {
    /// RS.newly_acked.
    pub(crate) newly_acked: u64,
    /// RS.delivered, from the transmission of the latest packet on.
    pub(crate) delivered: u64,
    /// RS.prior_delivered.
    pub(crate) prior_delivered: u64,
    /// RS.delivery_rate; `None` if the interval is too short.
    pub(crate) delivery_rate: Option<f64>,
    /// RS.rtt.
    pub(crate) rtt: Option<Duration>,
    /// RS.tx_in_flight.
    pub(crate) tx_in_flight: u64,
    /// RS.lost.
    pub(crate) lost: u64,
    /// RS.is_app_limited.
    pub(crate) is_app_limited: bool,
}

/// The latest packet delivered by an acknowledgement.
#[derive(Debug, Clone, Copy)]
struct Newest {
    at: Instant,
    packet: u32,
    snapshot: Snapshot,
}

/// A sent packet.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Departure<'a> {
    pub(crate) bytes: u64,
    /// In flight, the packet included.
    pub(crate) in_flight: u64,
    pub(crate) record: &'a Record,
    pub(crate) now: Instant,
}

/// See the module.
#[derive(Debug, Clone, Default)]
pub(crate) struct Rate {
    /// C.delivered.
    delivered: u64,
    /// C.lost.
    lost: u64,
    /// C.delivered_time.
    delivered_time: Option<Instant>,
    /// C.first_send_time.
    first_send_time: Option<Instant>,
    /// C.app_limited: application-limited until this much is delivered; 0 if not.
    app_limited: u64,
    /// Snapshots of packets with consecutive numbers, beginning with `first`.
    snapshots: VecDeque<Snapshot>,
    first: u32,
    /// At this number of snapshots those that no entry of the record needs are dropped.
    full: usize,
    /// The latest packet of the present acknowledgement.
    newest: Option<Newest>,
    newly_acked: u64,
}

impl Rate {
    pub(crate) fn delivered(&self) -> u64 {
        self.delivered
    }

    pub(crate) fn is_app_limited(&self) -> bool {
        self.app_limited > 0
    }

    /// The sender is application-limited from now on (MarkConnectionAppLimited, 4.1.2.4).
    pub(crate) fn limit_by_app(&mut self, in_flight: u64) {
        self.app_limited = (self.delivered + in_flight).max(1);
    }

    /// OnPacketSent (4.1.2.2).
    pub(crate) fn sent(&mut self, departure: &Departure<'_>) {
        let Departure { now, record, .. } = *departure;
        if departure.in_flight <= departure.bytes {
            (self.first_send_time, self.delivered_time) = (Some(now), Some(now));
        }
        let packet = record.latest_packet();
        let expected = self.first.wrapping_add(count(self.snapshots.len()));
        if packet.wrapping_add(1) == expected && !self.snapshots.is_empty() {
            // A probe of a closed window, which is not in the record.
            return;
        }
        if self.snapshots.is_empty() || packet != expected {
            self.snapshots.clear();
            self.first = packet;
        }
        self.snapshots.push_back(Snapshot {
            first_send_time: self.first_send_time.unwrap_or(now),
            delivered_time: self.delivered_time.unwrap_or(now),
            delivered: self.delivered,
            lost: self.lost,
            tx_in_flight: departure.in_flight,
            is_app_limited: self.is_app_limited(),
        });
        if self.snapshots.len() > self.full.max(FEW) {
            self.purge(record);
        }
    }

    /// Drops the snapshots before the oldest that an entry of the record needs.
    fn purge(&mut self, record: &Record) {
        let first = self.first;
        let places = record.iter().map(|sent| sent.packet.wrapping_sub(first));
        let oldest = places.min().unwrap_or(0);
        self.snapshots.drain(..oldest as usize);
        self.first = first.wrapping_add(oldest);
        self.full = 2 * self.snapshots.len();
    }

    /// Nothing is in flight: drops the snapshots.
    pub(crate) fn release_memory(&mut self) {
        self.snapshots = VecDeque::new();
        self.full = 0;
    }

    fn snapshot(&self, packet: u32) -> Option<Snapshot> {
        let place = packet.wrapping_sub(self.first);
        self.snapshots.get(place as usize).copied()
    }

    /// UpdateRateSample (4.1.2.3): a packet, or a part of it, was delivered.
    pub(crate) fn arrived(&mut self, sent: &Sent, now: Instant) {
        self.delivered += sent.len();
        self.newly_acked += sent.len();
        self.delivered_time = Some(now);
        let Some(snapshot) = self.snapshot(sent.packet) else {
            return;
        };
        let later = match self.newest {
            None => true,
            Some(newest) => (sent.xmit_ts, sent.packet) > (newest.at, newest.packet),
        };
        if later {
            self.first_send_time = self.first_send_time.max(Some(sent.xmit_ts));
            self.newest = Some(Newest {
                at: sent.xmit_ts,
                packet: sent.packet,
                snapshot,
            });
        }
    }

    /// A packet, or a part of it, was lost.
    pub(crate) fn lost(&mut self, sent: &Sent) -> Option<Loss> {
        self.lost += sent.len();
        let snapshot = self.snapshot(sent.packet)?;
        Some(Loss {
            size: sent.len(),
            tx_in_flight: snapshot.tx_in_flight,
            lost: self.lost - snapshot.lost,
            is_app_limited: snapshot.is_app_limited,
        })
    }

    /// GenerateRateSample (4.1.2.3), for all packets that have [arrived](Self::arrived) since the last
    /// one. `None` if none has.
    pub(crate) fn sample(
        &mut self,
        rtt: Option<Duration>,
        least: Option<Duration>,
    ) -> Option<RateSample> {
        if self.app_limited > 0 && self.delivered > self.app_limited {
            self.app_limited = 0;
        }
        let newly_acked = std::mem::take(&mut self.newly_acked);
        let Newest { at, snapshot, .. } = self.newest.take()?;
        let send_elapsed = at.saturating_duration_since(snapshot.first_send_time);
        let ack_elapsed = self
            .delivered_time?
            .saturating_duration_since(snapshot.delivered_time);
        let interval = send_elapsed.max(ack_elapsed);
        let delivered = self.delivered - snapshot.delivered;
        let reliable = !interval.is_zero() && least.is_none_or(|least| interval >= least);
        Some(RateSample {
            newly_acked,
            delivered,
            prior_delivered: snapshot.delivered,
            delivery_rate: reliable.then(|| delivered as f64 / interval.as_secs_f64()),
            rtt,
            tx_in_flight: snapshot.tx_in_flight,
            lost: self.lost - snapshot.lost,
            is_app_limited: snapshot.is_app_limited,
        })
    }
}

/// A count of snapshots, as a difference of numbers.
#[expect(
    clippy::cast_possible_truncation,
    reason = "numbers wrap, and there are fewer snapshots than that"
)]
fn count(snapshots: usize) -> u32 {
    snapshots as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tcp::block::time::start as any_time;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    /// A record and its rate, with packets of 1000 bytes.
    #[derive(Default)]
    struct Flight {
        record: Record,
        rate: Rate,
        nxt: u64,
    }

    impl Flight {
        fn send(&mut self, now: Instant) {
            self.record.push(self.nxt..self.nxt + 1000, 1000, now);
            self.nxt += 1000;
            self.depart(now);
        }

        fn depart(&mut self, now: Instant) {
            self.rate.sent(&Departure {
                bytes: 1000,
                in_flight: self.record.in_flight(),
                record: &self.record,
                now,
            });
        }

        fn acknowledge(&mut self, una: u64, now: Instant) -> Option<RateSample> {
            let rate = &mut self.rate;
            self.record.acknowledge(una, |sent| rate.arrived(sent, now));
            self.rate.sample(None, Some(ms(10)))
        }
    }

    #[test]
    fn the_rate_is_that_of_the_slower_of_sending_and_acknowledging() {
        let start = any_time();
        let mut flight = Flight::default();
        for k in 0..10 {
            flight.send(start + ms(k));
        }
        // A packet arrives every 2 ms.
        let first = flight.acknowledge(1000, start + ms(100)).unwrap();
        assert_eq!(first.delivery_rate, Some(10_000.0));
        for k in 1..10 {
            flight.acknowledge(1000 * (k + 1), start + ms(100 + 2 * k));
        }
        for k in 0..10 {
            flight.send(start + ms(118 + k));
        }
        // Compressed acknowledgements do not exceed the sending rate.
        let sample = flight.acknowledge(20_000, start + ms(220)).unwrap();
        assert_eq!(sample.delivered, 10_000);
        assert_eq!(sample.prior_delivered, 10_000);
        assert_eq!(sample.tx_in_flight, 10_000);
        assert_eq!(sample.delivery_rate, Some(10_000.0 / 0.102));
        assert_eq!(flight.rate.sample(None, None).map(|_| ()), None);
    }

    #[test]
    fn application_limited_samples_are_marked_until_delivery() {
        let start = any_time();
        let mut flight = Flight::default();
        flight.send(start);
        flight.rate.limit_by_app(1000);
        flight.send(start + ms(1));
        assert!(
            !flight
                .acknowledge(1000, start + ms(20))
                .unwrap()
                .is_app_limited
        );
        assert!(
            flight
                .acknowledge(2000, start + ms(21))
                .unwrap()
                .is_app_limited
        );
        flight.send(start + ms(22));
        assert!(
            !flight
                .acknowledge(3000, start + ms(42))
                .unwrap()
                .is_app_limited
        );
    }

    #[test]
    fn a_lost_packet_reports_the_losses_since_it_was_sent() {
        let start = any_time();
        let mut flight = Flight::default();
        for _ in 0..4 {
            flight.send(start);
        }
        let lost: Vec<Loss> = flight
            .record
            .iter()
            .take(2)
            .filter_map(|sent| flight.rate.lost(sent))
            .collect();
        assert_eq!((lost[0].lost, lost[0].tx_in_flight), (1000, 1000));
        assert_eq!((lost[1].lost, lost[1].tx_in_flight), (2000, 2000));
        // It is retransmitted: earlier losses are not counted.
        flight.record.lose_first(1000, |_| ());
        flight.record.resent(&(0..1000), 1000, start + ms(30));
        flight.depart(start + ms(30));
        let again = flight.record.first().unwrap();
        assert_eq!(flight.rate.lost(again).unwrap().lost, 1000);
    }

    #[test]
    fn snapshots_that_no_packet_needs_are_dropped() {
        let start = any_time();
        let mut flight = Flight::default();
        for k in 0..1000 {
            flight.send(start + ms(k));
            if k >= 10 {
                assert!(flight.acknowledge(1000 * (k - 9), start + ms(k)).is_some());
            }
        }
        assert!(flight.rate.snapshots.len() <= FEW + 1);
        flight.rate.release_memory();
        assert_eq!(flight.rate.snapshots.capacity(), 0);
    }
}
