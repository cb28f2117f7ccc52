//! Congestion avoidance of RFC 5681 3.1, counted in bytes (RFC 3465 2.1).

use super::controller::{Controller, Growth};

/// See the module.
#[derive(Debug, Clone, Default)]
pub(crate) struct Reno {
    /// bytes_acked: less than the window.
    bytes_acked: u64,
}

impl Controller for Reno {
    fn avoid(&mut self, growth: &Growth) -> u64 {
        self.bytes_acked += growth.delivered;
        if self.bytes_acked < growth.window {
            return growth.window;
        }
        self.bytes_acked -= growth.window;
        growth.window + growth.mss
    }

    fn reduce(&mut self, window: u64, mss: u64) -> u64 {
        self.bytes_acked = 0;
        (window / 2).max(2 * mss)
    }

    fn restart(&mut self) {
        self.bytes_acked = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tcp::block::time::start as any_time;
    use std::time::Duration;

    #[test]
    fn a_segment_more_in_each_round_trip_and_half_after_a_loss() {
        let mut reno = Reno::default();
        let mut window = 10_000;
        for _ in 0..10 {
            window = reno.avoid(&Growth {
                window,
                delivered: 1000,
                mss: 1000,
                rtt: Duration::from_millis(1),
                now: any_time(),
            });
        }
        assert_eq!(window, 11_000);
        assert_eq!(reno.reduce(window, 1000), 5500);
        assert_eq!(reno.reduce(2000, 1000), 2000);
    }
}
