//! Histograms without a lock, whose quantiles can be read.
//!
//! Values are whole numbers: nanoseconds, or bytes. For Prometheus they are multiplied by a scale.

use prometheus_client::encoding::{EncodeMetric, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use std::fmt::Error;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

const MICRO: u64 = 1_000;
const MILLI: u64 = 1_000 * MICRO;
const SECOND: u64 = 1_000 * MILLI;

/// Upper bounds for the time of connecting: 100 microseconds to 10 seconds.
const SHORT: &[u64] = &[
    100 * MICRO,
    250 * MICRO,
    500 * MICRO,
    MILLI,
    2_500 * MICRO,
    5 * MILLI,
    10 * MILLI,
    25 * MILLI,
    50 * MILLI,
    100 * MILLI,
    250 * MILLI,
    500 * MILLI,
    SECOND,
    2_500 * MILLI,
    5 * SECOND,
    10 * SECOND,
];
/// For the length of connections: a millisecond to a day.
const LONG: &[u64] = &[
    MILLI,
    10 * MILLI,
    100 * MILLI,
    SECOND,
    10 * SECOND,
    60 * SECOND,
    600 * SECOND,
    3_600 * SECOND,
    86_400 * SECOND,
];
/// For bytes: none, then 100 bytes to 10 gigabytes.
const BYTES: &[u64] = &[
    0,
    100,
    1_000,
    10_000,
    100_000,
    1_000_000,
    10_000_000,
    100_000_000,
    1_000_000_000,
    10_000_000_000,
];

/// See the module.
#[derive(Debug)]
pub(crate) struct Histogram {
    bounds: &'static [u64],
    /// One for each bound, and one for values above.
    counts: Box<[AtomicU64]>,
    sum: AtomicU64,
    scale: f64,
}

impl Histogram {
    fn new(bounds: &'static [u64], scale: f64) -> Histogram {
        let counts = (0..=bounds.len()).map(|_| AtomicU64::new(0));
        Histogram {
            bounds,
            counts: counts.collect(),
            sum: AtomicU64::new(0),
            scale,
        }
    }

    pub(crate) fn of_short_times() -> Histogram {
        Histogram::new(SHORT, 1e-9)
    }

    pub(crate) fn of_long_times() -> Histogram {
        Histogram::new(LONG, 1e-9)
    }

    pub(crate) fn of_bytes() -> Histogram {
        Histogram::new(BYTES, 1.0)
    }

    pub(crate) fn observe(&self, value: u64) {
        let at = self.bounds.partition_point(|bound| *bound < value);
        self.counts[at].fetch_add(1, Relaxed);
        self.sum.fetch_add(value, Relaxed);
    }

    pub(crate) fn observe_time(&self, time: Duration) {
        self.observe(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
    }

    #[cfg(test)]
    pub(crate) fn count(&self) -> u64 {
        self.counts.iter().map(|count| count.load(Relaxed)).sum()
    }

    /// The value below which this part of all values is, 0.5 for the median: within its bucket by interpolation. Above
    /// the last bound that bound. `None` without values.
    #[cfg(any(test, feature = "top"))]
    #[expect(clippy::cast_precision_loss, reason = "it is an estimate")]
    pub(crate) fn quantile(&self, part: f64) -> Option<f64> {
        let counts: Vec<u64> = self
            .counts
            .iter()
            .map(|count| count.load(Relaxed))
            .collect();
        let all: u64 = counts.iter().sum();
        let wanted = part * all as f64;
        let mut below = 0.0;
        for (at, count) in counts.iter().enumerate().filter(|(_, count)| **count > 0) {
            let count = *count as f64;
            if below + count >= wanted {
                let lower = at.checked_sub(1).map_or(0, |at| self.bounds[at]) as f64;
                let upper = self.bounds.get(at).map_or(lower, |bound| *bound as f64);
                return Some(lower + (upper - lower) * (wanted - below) / count);
            }
            below += count;
        }
        None
    }
}

impl EncodeMetric for Histogram {
    #[expect(clippy::cast_precision_loss, reason = "Prometheus has floats only")]
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> Result<(), Error> {
        let bounds = self.bounds.iter().map(|bound| *bound as f64 * self.scale);
        let bounds = bounds.chain([f64::MAX]);
        let counts = self.counts.iter().map(|count| count.load(Relaxed));
        let buckets: Vec<(f64, u64)> = bounds.zip(counts).collect();
        let all = buckets.iter().map(|(_, count)| count).sum();
        let sum = self.sum.load(Relaxed) as f64 * self.scale;
        encoder.encode_histogram::<NoLabelSet>(sum, all, &buckets, None)
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Histogram
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use prometheus_client::encoding::text;
    use prometheus_client::registry::Registry;

    #[test]
    fn values_are_in_the_bucket_of_the_next_bound() {
        let bytes = Histogram::of_bytes();
        for value in [0, 0, 1, 100, 101, u64::MAX >> 1] {
            bytes.observe(value);
        }
        let times = Histogram::of_short_times();
        for nanos in [100_000, 100_001] {
            times.observe_time(Duration::from_nanos(nanos));
        }
        let mut registry = Registry::default();
        registry.register("bytes", "B", bytes);
        registry.register("seconds", "S", times);
        let mut page = String::new();
        text::encode(&mut page, &registry).unwrap();
        for line in [
            "bytes_count 6",
            "bytes_bucket{le=\"0.0\"} 2",
            "bytes_bucket{le=\"100.0\"} 4",
            "bytes_bucket{le=\"1000.0\"} 5",
            "bytes_bucket{le=\"10000000000.0\"} 5",
            "bytes_bucket{le=\"+Inf\"} 6",
            "seconds_bucket{le=\"0.0001\"} 1",
            "seconds_bucket{le=\"0.00025\"} 2",
            "seconds_bucket{le=\"10.0\"} 2",
        ] {
            assert!(page.lines().any(|other| other == line), "{line} in {page}");
        }
    }

    #[test]
    fn quantiles_are_interpolated() {
        let all = Histogram::of_bytes();
        assert_eq!((all.quantile(0.5), all.count()), (None, 0));
        (0..100).for_each(|_| all.observe(50_000));
        assert_eq!(all.quantile(0.5), Some(55_000.0));
        assert_eq!(all.quantile(0.0), Some(10_000.0));
        assert_eq!(all.quantile(1.0), Some(100_000.0));
        all.observe(u64::MAX >> 1);
        assert_eq!(all.quantile(1.0), Some(10_000_000_000.0), "the last bound");
        (0..101).for_each(|_| all.observe(0));
        assert_eq!(all.quantile(0.25), Some(0.0));
        assert_eq!(all.count(), 202);
    }
}
