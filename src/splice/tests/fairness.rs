//! Ten thousand splices on one worker, one of them with a sink that takes nothing.

use super::*;

const SPLICES: usize = 10_000;
const STALLED: usize = 1234;
const ROUND: usize = 50;

struct Many {
    pool: SplicePool,
    ends: Vec<[Socket; 4]>,
    splices: Vec<Splice>,
}

impl Many {
    fn new(pool: SplicePool) -> Many {
        let ends: Vec<_> = (0..SPLICES)
            .map(|_| {
                let (a, b) = local::pair_with_hiwat(1000, 1000);
                let (c, d) = local::pair_with_hiwat(100, 100);
                [a, b, c, d].map(|socket| {
                    socket.set_nonblocking(true);
                    socket
                })
            })
            .collect();
        let splice = |[_, source, sink, _]: &[Socket; 4]| {
            let options = Options {
                pool: Some(pool.clone()),
                ..Options::default()
            };
            source.splice_to(sink, options).unwrap()
        };
        let splices = ends.iter().map(splice).collect();
        Many {
            pool,
            ends,
            splices,
        }
    }

    /// All clients send as much as fits, all passes run, all servers but the stalled one read. Returns
    /// the number of the pass after which each had its bytes, and the number of passes.
    fn round(&self, stalled: bool) -> (Vec<usize>, usize) {
        for [client, ..] in &self.ends {
            drop(client.send(&[7; ROUND]));
        }
        let before: Vec<_> = self.splices.iter().map(Splice::bytes).collect();
        let mut late = vec![usize::MAX; SPLICES];
        let (mut passes, mut next) = (0, 0);
        while self.pool.run_one() {
            passes += 1;
            let skip = |i| stalled && i == STALLED;
            while next < SPLICES && (skip(next) || self.splices[next].bytes() > before[next]) {
                late[next] = passes;
                next += 1;
            }
        }
        for (i, [.., server]) in self.ends.iter().enumerate() {
            if !(stalled && i == STALLED) {
                assert_eq!(server.recv_chain(1000).unwrap().len(), ROUND, "splice {i}");
            }
        }
        (late, passes)
    }
}

/// Guards rule 7 of the scheduler: a stalled splice sleeps until its sink has room. It costs the others
/// no pass, and is not checked repeatedly.
#[test]
fn one_stalled_sink_of_ten_thousand_does_not_slow_the_others() {
    let many = Many::new(SplicePool::builder().workers(1).manual().build());
    let (free, all) = many.round(false);
    // Until its sink is full, and bytes wait in its source.
    for _ in 0..6 {
        many.round(true);
    }
    let source = &many.ends[STALLED][1];
    let waiting = source.readable_bytes();
    let before = many.pool.stats();
    let (late, passes) = many.round(true);
    let after = many.pool.stats();
    assert_eq!(passes, all - all / SPLICES, "none for the stalled one");
    assert_eq!(after.stalls_no_room, before.stalls_no_room);
    assert_eq!(source.readable_bytes(), waiting + ROUND, "wakes no thread");
    let bytes = after.bytes - before.bytes;
    assert_eq!(bytes, (SPLICES as u64 - 1) * ROUND as u64);
    // Splices after it are a pass earlier than without it.
    for i in (0..SPLICES).filter(|i| *i != STALLED) {
        assert_eq!(late[i], free[i] - usize::from(i > STALLED), "splice {i}");
    }
    assert!(many.splices[STALLED].end().is_none(), "it waits");
    let server = &many.ends[STALLED][3];
    let stuck = server.recv_chain(10_000).unwrap().len();
    let mut all = ROUND + stuck;
    while many.pool.run_one() {}
    while let Ok(more) = server.recv_chain(10_000) {
        all += more.len();
        while many.pool.run_one() {}
    }
    assert_eq!(all as u64, many.splices[STALLED].bytes());
    assert!(all > ROUND + stuck, "it continues when its sink has room");
}

/// Measures a round with and without the stalled one.
#[test]
#[ignore = "measures time"]
fn rounds_with_and_without_a_stalled_sink() {
    let many = Many::new(SplicePool::builder().workers(1).manual().build());
    for stalled in [false, true, false, true] {
        for _ in 0..8 {
            many.round(stalled);
        }
        let mut times: Vec<_> = (0..21)
            .map(|_| {
                let start = SystemClock.now();
                many.round(stalled);
                SystemClock.now() - start
            })
            .collect();
        times.sort();
        eprintln!("stalled {stalled}: median {:?} of a round", times[10]);
        if stalled {
            while many.ends[STALLED][3].recv_chain(10_000).is_ok() {
                while many.pool.run_one() {}
            }
        }
    }
}
