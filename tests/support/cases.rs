//! How property tests choose their values.

use crate::long::times;
use proptest::test_runner::{Config, RngAlgorithm};

/// `few` cases, or `many` as for [`times`]. The generator is the fast one: the other takes longer than what
/// many of these tests test.
pub(crate) fn cases(few: u32, many: u32) -> Config {
    Config {
        cases: times(few, many),
        failure_persistence: None,
        rng_algorithm: RngAlgorithm::XorShift,
        ..Config::default()
    }
}
