//! Goodput in virtual time, by loss and delay, through proxy and splice. The table is kept as text
//! beside this file: a change in behaviour shows as a difference.
//!
//! After an intended change: `SOSPLICE_SIM_UPDATE=1 .ci/sim 0`.

use crate::network::Path;
use crate::plan::{ConnPlan, Hears, Manners, Plan, PoolPlan, StackPlan};
use crate::run;
use sosplice::link::Capabilities;
use std::fmt::Write;
use std::time::Duration;

const BYTES: u64 = 2_000_000;
const SEEDS: u64 = 5;
const LOSS: [f64; 5] = [0.0, 0.1, 0.3, 1.0, 3.0];
/// There and back, in milliseconds.
const DELAYS: [u64; 4] = [1, 10, 50, 200];
const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/sim/goodput.txt");

/// One download or upload between a network with loss and delay and one without.
fn plan(loss: f64, delay: u64, jitter: bool, upload: bool) -> Plan {
    let delay = Duration::from_micros(delay * 500);
    let path = Path {
        delay,
        jitter: if jitter {
            delay.mul_f64(0.2)
        } else {
            Duration::ZERO
        },
        rate: Some(100_000_000 / 8),
        queue: 200,
        loss: loss / 100.0,
        ..Path::PERFECT
    };
    let stack = StackPlan {
        seed: 1,
        receive_buffer: 256 * 1024,
        send_buffer: 256 * 1024,
        time_wait: Duration::from_secs(1),
        ack_delay: None,
        capabilities: Capabilities::new(1500).segment_v4(65_535),
    };
    Plan {
        manners: Manners::Polite,
        hears: Hears::Edges,
        paths: [[path, path], [Path::PERFECT, Path::PERFECT]],
        stacks: std::array::from_fn(|_| stack.clone()),
        pools: vec![PoolPlan {
            workers: 1,
            quantum: 256 * 1024,
            direct: false,
        }],
        conns: vec![ConnPlan {
            begins: Duration::ZERO,
            totals: if upload { [BYTES, 0] } else { [0, BYTES] },
            v6: false,
            detour: false,
            pauses: [0, 0],
            breaks: [None, None],
            unsplices: 0,
            by_hand: 0,
            relay_breaks: None,
        }],
        hesitates: 0,
        laziness: 0,
        link_goes: None,
        pool_goes: None,
    }
}

/// Of several seeds, the median in Mbit/s.
fn goodput(loss: f64, delay: u64, jitter: bool, upload: bool) -> f64 {
    let mut rates: Vec<_> = (0..SEEDS)
        .map(|seed| {
            let outcome = run(seed, plan(loss, delay, jitter, upload), false).unwrap();
            assert_eq!(outcome.bytes, BYTES);
            BYTES as f64 * 8e-6 / outcome.delivered_at.as_secs_f64()
        })
        .collect();
    rates.sort_by(f64::total_cmp);
    rates[rates.len() / 2]
}

fn table(title: &str, jitter: bool, upload: bool) -> String {
    let mut text = format!("{title}\n{:>10}", "loss %");
    LOSS.iter()
        .for_each(|loss| write!(text, "{loss:>8}").unwrap());
    text.push('\n');
    for delay in DELAYS {
        write!(text, "{:>10}", format!("{delay} ms")).unwrap();
        for loss in LOSS {
            write!(text, "{:>8.2}", goodput(loss, delay, jitter, upload)).unwrap();
        }
        text.push('\n');
    }
    text
}

#[test]
#[ignore = "half a minute: .ci/sim"]
fn goodput_is_as_it_was() {
    let text = [
        format!(
            "Mbit/s of virtual time: {BYTES} bytes over 100 Mbit/s through the proxy, median of {SEEDS} seeds.\n\
             Rows: the round trip between client and proxy. Buffers 256 KiB, queue 200 packets.\n"
        ),
        table("client to server", false, true),
        table("server to client", false, false),
        table("client to server, packets overtake each other (each late by up to a fifth)", true, true),
    ]
    .join("\n");
    if std::env::var_os("SOSPLICE_SIM_UPDATE").is_some() {
        std::fs::write(FILE, &text).unwrap();
    }
    let kept = std::fs::read_to_string(FILE).unwrap();
    assert!(
        kept == text,
        "goodput has changed: {FILE} has\n{kept}\nbut now it is\n{text}"
    );
}
