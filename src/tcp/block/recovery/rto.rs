//! The retransmission timeout (RFC 6298), with a smaller minimum of 200 ms.
//!
//! RTO = SRTT + max(minimum, 4 * RTTVAR): the minimum is a floor of the variance term, as in Linux,
//! since its purpose is delayed acknowledgements, which add to the RTT. Doubled after each timeout
//! (5.5), and reset when new data is acknowledged (5.7). Pure.

use super::rtt::Rtt;
use std::time::Duration;

/// RFC 6298 2.1.
const FIRST: Duration = Duration::from_secs(1);
/// RFC 6298 2.5.
pub(crate) const LARGEST: Duration = Duration::from_secs(60);

/// See the module.
#[derive(Debug, Clone)]
pub(crate) struct Rto {
    minimum: Duration,
    /// Timeouts in a row.
    backoff: u32,
}

impl Rto {
    pub(crate) fn new(minimum: Duration) -> Rto {
        Rto {
            minimum,
            backoff: 0,
        }
    }

    /// The present timeout.
    pub(crate) fn timeout(&self, rtt: &Rtt) -> Duration {
        let once = match rtt.smoothed() {
            None => FIRST.max(self.minimum),
            Some(smoothed) => smoothed + self.minimum.max(rtt.variance() * 4),
        };
        let doubled = once.saturating_mul(1 << self.backoff.min(16));
        doubled.min(LARGEST.max(self.minimum))
    }

    /// It has expired.
    pub(crate) fn back_off(&mut self) {
        self.backoff += 1;
    }

    /// New data was acknowledged.
    pub(crate) fn reset(&mut self) {
        self.backoff = 0;
    }

    /// Timeouts in a row.
    pub(crate) fn backoff(&self) -> u32 {
        self.backoff
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tcp::block::time::start as any_time;

    #[test]
    fn it_doubles_up_to_a_minute() {
        let mut rto = Rto::new(Duration::from_millis(200));
        let mut rtt = Rtt::default();
        assert_eq!(rto.timeout(&rtt), Duration::from_secs(1));
        for _ in 0..40 {
            rtt.sample(Duration::from_millis(50), any_time());
        }
        assert_eq!(rto.timeout(&rtt).as_millis(), 250);
        let mut all = Vec::new();
        for _ in 0..10 {
            rto.back_off();
            all.push(rto.timeout(&rtt).as_millis());
        }
        assert_eq!(all[..4], [500, 1000, 2000, 4000]);
        assert_eq!(all[7..], [60_000; 3]);
        rto.reset();
        assert_eq!(rto.timeout(&rtt).as_millis(), 250);
        assert_eq!(
            Rto::new(Duration::from_secs(3)).timeout(&rtt).as_millis(),
            3050
        );
    }
}
