//! CUBIC (RFC 9438): the window grows by a cubic function of the time since the last reduction.
//!
//! Windows are counted in segments here, as in the RFC. Pure: time is an argument.

use super::controller::{Controller, Growth};
use crate::tcp::block::time::Instant;

/// RFC 9438 4.1, 5: C.
const C: f64 = 0.4;
/// RFC 9438 4.6: beta_cubic.
const BETA: f64 = 0.7;
/// RFC 9438 4.3: alpha_cubic.
const ALPHA: f64 = 3.0 * (1.0 - BETA) / (1.0 + BETA);

/// The congestion avoidance epoch since the last reduction.
#[derive(Debug, Clone, Copy)]
struct Epoch {
    /// t_epoch.
    t_epoch: Instant,
    /// K, in seconds.
    k: f64,
    /// W_est.
    w_est: f64,
}

/// See the module.
#[derive(Debug, Clone, Default)]
pub(crate) struct Cubic {
    /// W_max.
    w_max: f64,
    /// cwnd_prior.
    cwnd_prior: f64,
    epoch: Option<Epoch>,
}

impl Cubic {
    /// RFC 9438 4.2.
    fn begin(&mut self, window: f64, now: Instant) -> Epoch {
        if window >= self.w_max {
            self.w_max = window;
        }
        Epoch {
            t_epoch: now,
            k: ((self.w_max - window) / C).cbrt(),
            w_est: window,
        }
    }
}

/// A number of bytes.
#[expect(
    clippy::cast_possible_truncation,
    reason = "a window is far below 2^53 bytes, and never negative"
)]
fn bytes(segments: f64, mss: u64) -> u64 {
    (segments.max(0.0) * mss as f64) as u64
}

impl Controller for Cubic {
    fn avoid(&mut self, growth: &Growth) -> u64 {
        let window = growth.window as f64 / growth.mss as f64;
        let delivered = growth.delivered as f64 / growth.mss as f64;
        let mut epoch = match self.epoch {
            Some(epoch) => epoch,
            None => self.begin(window, growth.now),
        };
        let t = growth.now.saturating_duration_since(epoch.t_epoch);
        let cubic = |t: f64| C * (t - epoch.k).powi(3) + self.w_max;
        let now = cubic(t.as_secs_f64());
        // RFC 9438 4.2: the target window after the next RTT.
        let target = cubic((t + growth.rtt).as_secs_f64()).clamp(window, 1.5 * window);
        // RFC 9438 4.3: no slower than Reno.
        let alpha = if epoch.w_est >= self.cwnd_prior {
            1.0
        } else {
            ALPHA
        };
        epoch.w_est += alpha * delivered / window;
        self.epoch = Some(epoch);
        let next = if now < epoch.w_est {
            window.max(epoch.w_est)
        } else {
            window + (target - window) / window * delivered
        };
        // Growth is limited by the delivered bytes.
        growth
            .window
            .max(bytes(next, growth.mss))
            .min(growth.window + growth.delivered)
    }

    fn reduce(&mut self, window: u64, mss: u64) -> u64 {
        let segments = window as f64 / mss as f64;
        // RFC 9438 4.7: fast convergence.
        self.w_max = if segments < self.w_max {
            segments * (1.0 + BETA) / 2.0
        } else {
            segments
        };
        self.cwnd_prior = segments;
        self.epoch = None;
        bytes(segments * BETA, mss).max(2 * mss)
    }

    fn restart(&mut self) {
        self.epoch = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tcp::block::time::start as any_time;
    use std::time::Duration;

    /// The window this many seconds after a reduction from 1000 segments, with an RTT of 100 ms.
    fn grown(seconds: u32) -> f64 {
        let start = any_time();
        let mss = 1000;
        let mut cubic = Cubic::default();
        let mut window = cubic.reduce(1_000_000, mss);
        assert_eq!(window, 700_000);
        let rtt = Duration::from_millis(100);
        for round in 0..seconds * 10 {
            let mut left = window;
            while left > 0 {
                let delivered = left.min(2 * mss);
                left -= delivered;
                window = cubic.avoid(&Growth {
                    window,
                    delivered,
                    mss,
                    rtt,
                    now: start + rtt * round,
                });
            }
        }
        window as f64 / 1000.0
    }

    /// RFC 9438 4.2: K = cbrt((1000 - 700) / 0.4) = 9.09 s.
    #[test]
    fn it_comes_back_to_where_it_was_after_k_seconds() {
        assert!((880.0..925.0).contains(&grown(3)), "{}", grown(3));
        assert!((995.0..1005.0).contains(&grown(9)), "{}", grown(9));
        assert!((1000.0..1040.0).contains(&grown(13)), "{}", grown(13));
        assert!(grown(20) > 1400.0, "{}", grown(20));
    }

    #[test]
    fn with_a_small_window_it_is_as_reno() {
        let start = any_time();
        let mut cubic = Cubic::default();
        let mut window = cubic.reduce(20_000, 1000);
        assert_eq!(window, 14_000);
        let rtt = Duration::from_millis(10);
        for round in 0..20 {
            let delivered = window;
            window = cubic.avoid(&Growth {
                window,
                delivered,
                mss: 1000,
                rtt,
                now: start + rtt * round,
            });
        }
        assert!((27_000..30_000).contains(&window), "{window}");
    }

    #[test]
    fn a_second_loss_below_the_maximum_gives_way() {
        let mut cubic = Cubic::default();
        cubic.reduce(1_000_000, 1000);
        cubic.reduce(800_000, 1000);
        assert!((cubic.w_max - 680.0).abs() < 1e-6);
        assert_eq!(cubic.reduce(1000, 1000), 2000);
    }
}
