//! Counters and listings of a pool.

use super::*;

fn sizes(pool: &SplicePool) -> Vec<(u64, u64)> {
    let sizes = pool.stats().passes_by_size();
    sizes.filter(|(_, passes)| *passes > 0).collect()
}

#[test]
fn each_pass_counts_once_by_its_size_and_by_why_it_stopped() {
    let bench = Bench::with(|builder| builder.dispatch(Dispatch::Worker).quantum(40));
    bench.splice();
    let stats = bench.pool.stats();
    assert_eq!((stats.passes, stats.stalls_no_data), (1, 1));
    assert_eq!(sizes(&bench.pool), [(0, 1)]);
    // Passes of 40, 40 and 20 bytes. The sink sent them during the passes, but no pass waits for its space.
    bench.left[0].send(&[1; 100]).unwrap();
    let queued = |at: usize| bench.pool.worker_stats()[at].queued;
    assert_eq!([queued(0), queued(1)], [1, 0]);
    bench.run();
    assert_eq!(queued(0), 0);
    let stats = bench.pool.stats();
    assert_eq!((stats.passes, stats.bytes, stats.requeues), (4, 100, 2));
    assert_eq!(stats.bytes_per_pass(), 25);
    assert_eq!((stats.stalls_no_data, stats.stalls_no_room), (2, 0));
    assert_eq!(sizes(&bench.pool), [(0, 1), (1, 3)]);
    let workers = bench.pool.worker_stats();
    assert_eq!([workers[0].splices, workers[1].splices], [1, 0]);
    assert!(
        workers.iter().all(|worker| worker.busy.is_zero()),
        "by hand"
    );
}
