//! Measures the cost of a segment: `cargo test --release cost_of_a_segment -- --ignored --nocapture`.

use crate::clock::{Clock, SystemClock};
use crate::tcp::block::tcb::{Config, Tcb};
use std::time::Duration;

/// Two blocks without a path: each receives the other's packets at once.
fn rounds(count: u32, len: u64, mtu: usize) -> Duration {
    let start = crate::tcp::block::time::start();
    let config = Config {
        mtu,
        receive_buffer: 4 << 20,
        ..Config::default()
    };
    let mut now = start;
    let mut one = Tcb::connect(&config, now);
    let syn = one.poll_transmit(1, now).unwrap().segment;
    let mut other = Tcb::accept(&config, &syn, now).unwrap();
    let (mut written, mut step) = (0, |one: &mut Tcb, other: &mut Tcb| {
        now += Duration::from_micros(1);
        let mut any = false;
        while let Some(emission) = one.poll_transmit(65_000, now) {
            other.handle_segment(&emission.segment, now);
            other.read(other.in_order(), true, now);
            any = true;
        }
        while let Some(emission) = other.poll_transmit(65_000, now) {
            one.handle_segment(&emission.segment, now);
            any = true;
        }
        any
    });
    while step(&mut one, &mut other) {}
    let begin = SystemClock.now();
    for _ in 0..count {
        written += len;
        one.written(written, start);
        while step(&mut one, &mut other) {}
        assert_eq!(one.acknowledged(), written);
    }
    SystemClock.now() - begin
}

#[test]
#[ignore = "figures"]
fn cost_of_a_segment() {
    println!("a control block has {} bytes", size_of::<Tcb>());
    for (len, mtu) in [(1448, 1500), (64_000, 65_535), (14_480, 1500)] {
        let count = 200_000;
        let nanos = rounds(count, len, mtu).as_nanos() / u128::from(count);
        println!(
            "{len} bytes in packets of {mtu}: {nanos} ns for data and acknowledgement, both ends"
        );
    }
}
