//! A connection that rests whenever it can is not to be told from one that never does.

#![expect(
    clippy::cast_possible_truncation,
    clippy::too_many_lines,
    reason = "a test, of small numbers; its steps belong together"
)]

use super::*;

/// A peer that keeps to the rules, and a user, both at random. What is seen of the connection.
fn at_random(seed: u64, rests: bool, delay: Option<Duration>) -> Vec<String> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut random = move |below: u64| {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        (state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % below
    };
    let ring = [2048, 4096, 65_535, 65_536, 70_001, 300_000][random(6) as usize];
    let shift = [None, Some(0), Some(3), Some(7)][random(4) as usize];
    let options = SynOptions {
        mss: [None, Some(0), Some(1460), Some(9000)][random(4) as usize],
        window_scale: shift,
        sack_permitted: random(2) == 0,
    };
    let scale = u32::from(shift.unwrap_or(0));
    let ours = match shift {
        None => 0,
        Some(_) => u32::from(wire::shift_for(ring)),
    };
    let window = 40_000u16 >> scale;
    let mut world;
    if random(2) == 0 {
        world = World::dialled(ring, 40_000, options);
        if random(2) == 0 {
            world.input(ACK, 1, 1, window, 0);
        }
    } else {
        world = World::new(ring, memory::Config::default());
        world.hear(SYN, 0, 0, 40_000, 0, options);
        world.serve(Work::SERVE);
        world.input(ACK, 1, 1, window, 0);
    }
    world.serve(Work::SERVE);
    world.sent();
    world.tcb.ack = AckPolicy::new(delay);
    world.tcb.limits.rest = rests.then_some(Duration::ZERO);
    // What the peer has sent and received, and what it may send.
    let (mut seq, mut received, mut told) = (1u32, 1u32, 1u32);
    let mut window = window;
    let mut seen = Vec::new();
    let mut written = 0u32;
    let mut last = (0, 0, 0);
    // The peer's window may be closed.
    let narrow = seed.is_multiple_of(2);
    for step in 0..300 {
        let what = random(12);
        let mut work = Work::SERVE;
        match what {
            0..=2 => {
                let most = told.wrapping_sub(seq).min(1 + random(5000) as u32);
                let most = if random(5) == 0 {
                    told.wrapping_sub(seq).min(60_000)
                } else {
                    most
                };
                world.input(ACK, seq, received, window, most as usize);
                seq += most;
            }
            3 => {
                // The second half first.
                let most = told.wrapping_sub(seq).min(2 + random(3000) as u32);
                let half = most / 2;
                world.input(ACK, seq + half, received, window, (most - half) as usize);
                if random(2) == 0 {
                    world.serve(Work::SERVE);
                }
                world.input(ACK, seq, received, window, half as usize);
                seq += most;
            }
            4 => {
                window = [if narrow { 0 } else { 300 }, 10, 300, 40_000u16 >> scale]
                    [random(4) as usize]
                    .max((1 + written - received).div_ceil(1 << scale) as u16);
                world.input(ACK, seq, received, window, 0);
            }
            5 => world.input(ACK, seq.wrapping_sub(1), received, window, 0),
            6 => {
                // Again what was acknowledged, and something new behind it.
                let old = (seq - 1).min(random(200) as u32);
                let new = told.wrapping_sub(seq).min(random(200) as u32);
                world.input(ACK, seq - old, received, window, (old + new) as usize);
                seq += new;
            }
            7..=8 => {
                let unread = world.end.rcv().buf.len();
                let count = if random(2) == 0 {
                    unread
                } else {
                    random(1 + unread as u64) as usize
                };
                drop(world.end.rcv().buf.take(count));
                if random(2) == 0 {
                    work.add(Work::IDLE);
                }
            }
            9..=10 if written + 1 == received => {
                let len = 2 + random(1200) as u32;
                world.end.snd().buf.append_copy(&vec![3; len as usize]);
                written += len;
                if random(20) == 0 {
                    world.serve(work);
                    world.too_big(received, [1400, 1000, 0][random(3) as usize]);
                }
            }
            _ => {}
        }
        world.serve(work);
        let waits = [1, 1, 30, 100][random(4) as usize];
        let mut quiet = 0;
        let mut text = false;
        loop {
            let sent = world.sent();
            for one in &sent {
                let header = &one.header;
                assert_eq!(header.flags & (SYN | RST | FIN), 0, "{step}: {header:?}");
                let at = header.seq.wrapping_sub(world.iss);
                if at <= received && at + one.payload_len as u32 > received {
                    received = at + one.payload_len as u32;
                }
                let edge = header.ack.wrapping_sub(IRS) + (u32::from(header.window) << ours);
                if edge.wrapping_sub(told).cast_signed() > 0 {
                    told = edge;
                }
                // Behind what may be a window probe an engine is reminded of its window.
                let bare = (at, header.ack.wrapping_sub(IRS), header.window);
                let new = if narrow {
                    bare.1 != last.1
                } else {
                    bare != last
                };
                // How text is cut, and what of it is sent again, depends on the congestion window.
                let more = text && (bare.1, bare.2) == (last.1, last.2);
                text |= one.payload_len > 0;
                if !more && (new || one.payload_len > 0) {
                    seen.push(format!("{step} {what}: {bare:?}"));
                }
                last = bare;
            }
            if sent.iter().any(|one| one.payload_len > 0) {
                world.now += Duration::from_millis(10);
                world.input(ACK, seq, received, window, 0);
                world.serve(Work::SERVE);
                continue;
            }
            if quiet >= waits {
                break;
            }
            quiet += 10;
            world.now += Duration::from_millis(10);
            world.serve(Work::SERVE);
        }
        seen.push(format!("{step} {what}: {received} out"));
        assert_eq!(world.counters.broken.get(), 0);
    }
    // The end of it.
    match random(4) {
        0 => world.end.cantsendmore(),
        1 => world.input(ACK | FIN, seq, received, window, 0),
        2 => world.input(RST, seq, 0, 0, 0),
        _ => drop(world.serve(Work::ABORT)),
    }
    world.serve(Work::SERVE);
    for one in world.sent() {
        let mut header = one.header;
        header.seq = header.seq.wrapping_sub(world.iss);
        seen.push(format!("end: {header:?} + {}", one.payload_len));
    }
    seen.push(format!(
        "{} bytes in, {} out",
        world.end.rcv().buf.chain().end(),
        received
    ));
    seen
}

/// Guards all of `rest`: what is seen of a connection does not depend on it.
#[test]
fn a_rest_is_not_seen() {
    for seed in 1..200 {
        // Acknowledgements that ride on answers: the peer's next step is another then.
        drop(at_random(seed, true, Some(Duration::from_millis(40))));
        let (with, without) = (at_random(seed, true, None), at_random(seed, false, None));
        if with != without {
            let at = with
                .iter()
                .zip(&without)
                .take_while(|(a, b)| a == b)
                .count();
            let from = at.saturating_sub(8);
            panic!(
                "seed {seed}: with\n{:#?}\nwithout\n{:#?}",
                &with[from..(at + 3).min(with.len())],
                &without[from..(at + 3).min(without.len())]
            );
        }
    }
}
