//! Arbitrary bytes: no call panics, and a failed one changes nothing.

use crate::cases::cases;
use crate::{FREEBSD, OPENBSD, Process, Splice, abi, read};
use proptest::prelude::*;
use sosplice::protocol::SoState;
use sosplice::sockopt::{self, Abi, Layout};
use sosplice::splice::Options;

fn abis() -> impl Strategy<Value = Abi> {
    let layout = prop_oneof![Just(Layout::Lp64), Just(Layout::Ilp32)];
    let flavor = prop_oneof![Just(FREEBSD.flavor), Just(OPENBSD.flavor)];
    (flavor, layout).prop_map(|(flavor, layout)| abi(flavor, layout))
}

/// The value of a call: none, arbitrary bytes, or a nearly valid one.
#[derive(Debug, Clone)]
enum Value {
    Null,
    Bytes(Vec<u8>),
    Struct(Splice, usize),
}

fn values() -> impl Strategy<Value = Value> {
    let fd = prop_oneof![-2..10_i32, any::<i32>()];
    let max = prop_oneof![Just(0), -2..20_i64, any::<i64>()];
    let long = || {
        prop_oneof![
            Just(0),
            Just(-1),
            Just(1_000_000),
            any::<i32>().prop_map(i64::from)
        ]
    };
    let splice = (fd, max, (long(), long()));
    let splice = splice.prop_map(|(fd, max, idle)| Splice { fd, max, idle });
    prop_oneof![
        1 => Just(Value::Null),
        2 => prop::collection::vec(any::<u8>(), 0..40).prop_map(Value::Bytes),
        6 => (splice, prop_oneof![3 => Just(usize::MAX), 1 => 0..40_usize])
            .prop_map(|(splice, length)| Value::Struct(splice, length)),
    ]
}

impl Value {
    fn bytes(&self, abi: Abi) -> Option<Vec<u8>> {
        match self {
            Value::Null => None,
            Value::Bytes(bytes) => Some(bytes.clone()),
            Value::Struct(splice, length) => {
                let mut bytes = splice.bytes(abi);
                bytes.truncate(*length);
                Some(bytes)
            }
        }
    }
}

proptest! {
    #![proptest_config(cases(2_000, 2_000))]

    #[test]
    fn no_bytes_panic_and_failures_change_nothing(
        calls in prop::collection::vec((-1..9_i32, values(), abis(), 0..17_usize), 1..20),
    ) {
        let process = Process::new(FREEBSD);
        let ((s, user), (ss, server)) = (process.connect(), process.connect());
        let _peers = [process.connect(), process.connect()];
        process.table.insert_file().unwrap();
        process.posed(SoState::Listening);
        process.posed(SoState::NotAStream);
        let limited = Splice { max: 10, ..Splice::to(ss) };
        prop_assert_eq!(process.splice(s, limited), Ok(()));
        user.send(b"1234").unwrap();
        process.run();
        let defaults = Options::default().pool(process.pool.clone());
        for (fd, value, abi, length) in calls {
            let before = process.trace();
            let value = value.bytes(abi);
            let set = sockopt::set_splice(&process.table, fd, value.as_deref(), abi, &defaults);
            if set.is_err() {
                prop_assert_eq!(process.trace(), before);
            }
            // The effects of these calls' splices are not tested here.
            let before = process.trace();
            let mut out = vec![0; length];
            let got = sockopt::get_splice(&process.table, fd, &mut out, abi);
            prop_assert_eq!(got.is_ok(), matches!(fd, 0 | 1 | 2 | 3 | 5 | 6));
            prop_assert_eq!(process.trace(), before);
            if fd == s && set.is_ok() {
                // It was unspliced.
                return Ok(());
            }
        }
        // The limit is unchanged.
        user.send(b"567890abc").unwrap();
        process.run();
        prop_assert_eq!(process.count(s), 10);
        prop_assert_eq!(read(&server), b"1234567890");
        prop_assert!(!process.is_source(s));
    }
}
