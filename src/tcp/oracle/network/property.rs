//! The property: in any weather, the engine without payload does as smoltcp with payload.

use super::{Weather, run};
use proptest::prelude::*;

fn weather() -> impl Strategy<Value = Weather> {
    let bad = prop_oneof![Just(0u64), 0u64..150];
    let buffer = || prop_oneof![2048usize..6000, Just(65_536usize), 66_000usize..80_000];
    (
        (1u64.., bad, 0u64..100, 0u64..300, 0u64..200),
        (buffer(), buffer()),
        (0u64..25_000, 0u64..25_000),
        any::<(bool, bool, bool)>(),
    )
        .prop_map(
            |((seed, loss, duplication, delay, overlap), buffers, totals, flags)| {
                let (v6, segment, nagle) = flags;
                Weather {
                    seed,
                    loss,
                    duplication,
                    delay,
                    overlap,
                    buffers,
                    totals,
                    v6,
                    segment,
                    nagle,
                    restless: false,
                    abort: None,
                }
            },
        )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 10_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn engine_without_payload_does_as_smoltcp_with_payload(weather in weather()) {
        run(weather, &[]);
    }
}
