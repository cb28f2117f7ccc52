//! A fuzzer's input as weather: its head is the weather, the rest are the first decisions.

use super::{Weather, run};

/// Bytes of the weather.
const HEAD: usize = 16;

/// Runs an engine beside its plain twin; panics if they differ. For `tests/fuzz`.
pub fn engine(input: &[u8]) {
    let Some((head, rest)) = input.split_first_chunk::<HEAD>() else {
        return;
    };
    run(weather(head), rest);
}

fn weather(head: &[u8; HEAD]) -> Weather {
    let byte = |at: usize| u64::from(head[at]);
    let two = |at: usize| byte(at) << 8 | byte(at + 1);
    let buffer = |at: usize| match byte(at) {
        255 => 65_536,
        254 => 66_000 + 50 * byte(at + 1) as usize,
        _ => 2048 + (two(at) % 4096) as usize,
    };
    let flags = head[0];
    let is = |bit: u8| flags & 1 << bit != 0;
    Weather {
        seed: two(1),
        loss: byte(3) % 150,
        duplication: byte(4) % 100,
        delay: byte(5),
        overlap: byte(6) % 200,
        buffers: (buffer(7), buffer(9)),
        totals: (two(11) % 8192, two(13) % 8192),
        v6: is(0),
        segment: is(1),
        nagle: is(2),
        restless: is(3),
        abort: (is(4) && is(5)).then(|| head[15].into()),
    }
}
