//! The cost of handing a splice over to a worker, compared with `Direct`, where the thread that
//! delivers the bytes moves them.
//!
//! One byte at a time goes through splices between stream pairs in memory, so there is no TCP in it.
//! *Asleep*: one splice, whose worker sleeps between two bytes and has to be woken. *Awake*: a byte
//! through each of 64 splices, so the worker has more work after each. Processor time is that of the
//! whole process. `cargo bench --bench handover` prints the table.
#![allow(missing_docs, reason = "a program")]

#[cfg(target_os = "linux")]
mod handover {
    use rustix::time::{ClockId, clock_gettime};
    use sosplice::clock::{Clock, SystemClock};
    use sosplice::splice::{Dispatch, Options};
    use sosplice::{Socket, SplicePool, local};
    use std::time::Duration;

    const ROUNDS: usize = 5;
    /// Between two bytes: longer than a worker needs to fall asleep.
    const PAUSE: Duration = Duration::from_micros(200);

    /// Bytes written to one end arrive at the other.
    struct Path {
        near: Socket,
        far: Socket,
        _between: [Socket; 2],
    }

    impl Path {
        fn new(pool: &SplicePool) -> Path {
            let ((near, source), (sink, far)) = (local::pair(), local::pair());
            let options = Options::default().pool(pool.clone());
            source.splice_to(&sink, options).expect("a splice");
            far.set_nonblocking(true);
            Path {
                near,
                far,
                _between: [source, sink],
            }
        }

        fn write(&self) {
            assert_eq!(self.near.send(b"x").expect("room"), 1);
        }

        fn read(&self) {
            while self.far.recv_chain(1).is_err() {
                std::hint::spin_loop();
            }
        }
    }

    fn pool(dispatch: Dispatch) -> SplicePool {
        let builder = SplicePool::builder();
        builder.workers(1).dispatch(dispatch).build()
    }

    fn busy(clock: ClockId) -> Duration {
        Duration::try_from(clock_gettime(clock)).expect("time goes forwards")
    }

    /// Microseconds from the write of a byte to its arrival, p50 and p99, and the worker's processor time
    /// for it.
    fn asleep(dispatch: Dispatch, bytes: u32) -> [f64; 3] {
        let pool = pool(dispatch);
        let path = Path::new(&pool);
        let others = || busy(ClockId::ProcessCPUTime).saturating_sub(busy(ClockId::ThreadCPUTime));
        let before = others();
        let mut taken: Vec<Duration> = (0..bytes)
            .map(|_| {
                let pause = SystemClock.now() + PAUSE;
                while SystemClock.now() < pause {
                    std::hint::spin_loop();
                }
                let start = SystemClock.now();
                path.write();
                path.read();
                SystemClock.now() - start
            })
            .collect();
        let worker = others().saturating_sub(before) / bytes;
        taken.sort();
        let micros = |time: Duration| time.as_secs_f64() * 1e6;
        let at = |percent| micros(taken[taken.len() * percent / 100]);
        [at(50), at(99), micros(worker)]
    }

    /// Microseconds of processor time for each byte.
    fn awake(dispatch: Dispatch, turns: u32) -> f64 {
        const PATHS: u32 = 64;
        let pool = pool(dispatch);
        let paths: Vec<Path> = (0..PATHS).map(|_| Path::new(&pool)).collect();
        let before = busy(ClockId::ProcessCPUTime);
        // All are written before the first is read, so that waiting hardly counts.
        for _ in 0..turns {
            paths.iter().for_each(Path::write);
            paths.iter().for_each(Path::read);
        }
        let taken = busy(ClockId::ProcessCPUTime) - before;
        taken.as_secs_f64() * 1e6 / f64::from(turns * PATHS)
    }

    fn spread(mut values: Vec<f64>) -> String {
        values.sort_by(f64::total_cmp);
        let (least, most) = (values[0], values[values.len() - 1]);
        format!("{:.2} ({least:.2} to {most:.2})", values[values.len() / 2])
    }

    pub(crate) fn main(smoke: bool) {
        let (rounds, bytes, turns) = if smoke {
            (1, 10, 1)
        } else {
            (ROUNDS, 5000, 3000)
        };
        println!("Microseconds, median (range) of {rounds} rounds");
        println!("| | asleep: p50 | p99 | CPU of the worker | awake: CPU of all |");
        println!("|---|---|---|---|---|");
        let both = [Dispatch::Direct, Dispatch::Worker];
        let mut figures = [const { [const { Vec::new() }; 4] }; 2];
        for _ in 0..rounds {
            for (dispatch, columns) in both.iter().zip(&mut figures) {
                let [p50, p99, worker] = asleep(*dispatch, bytes);
                let row = [p50, p99, worker, awake(*dispatch, turns)];
                columns
                    .iter_mut()
                    .zip(row)
                    .for_each(|(column, one)| column.push(one));
            }
        }
        for (dispatch, columns) in both.iter().zip(figures) {
            let cells = columns.map(spread).join(" | ");
            println!("| {dispatch:?} | {cells} |");
        }
    }
}

fn main() {
    #[cfg(target_os = "linux")]
    handover::main(!std::env::args().any(|argument| argument == "--bench"));
}
