//! CPU affinity of the crate's threads, if it is set (Linux).
//!
//! Threads of the program are not affected. Locks: none.

use std::io;

/// Processors for the threads of one kind, taken in turns; empty: the system decides.
#[derive(Debug, Clone, Default)]
pub(crate) struct Affinity {
    #[cfg(any(target_os = "linux", target_os = "android"))]
    cpus: Vec<usize>,
}

#[cfg(any(target_os = "linux", target_os = "android"))]
impl Affinity {
    pub(crate) fn new(cpus: impl IntoIterator<Item = usize>) -> Affinity {
        Affinity {
            cpus: cpus.into_iter().collect(),
        }
    }

    /// Checks that a thread can run on each of them. Returns the first on which that fails, and the
    /// error.
    pub(crate) fn check(&self) -> Result<(), (usize, io::Error)> {
        if self.cpus.is_empty() {
            return Ok(());
        }
        // In a thread of its own, so that the caller's affinity does not change.
        let try_all = || {
            let mut cpus = self.cpus.iter();
            cpus.try_for_each(|cpu| run_on(*cpu).map_err(|error| (*cpu, error)))
        };
        std::thread::scope(|scope| {
            let thread = std::thread::Builder::new().name("sosplice-cpus".into());
            let thread = thread.spawn_scoped(scope, try_all);
            let thread = thread.map_err(|error| (self.cpus[0], error))?;
            thread
                .join()
                .expect("invariant: asking for processors does not panic")
        })
    }

    /// Pins the calling thread, one of several, to its processor. Does nothing if that has gone offline
    /// since the check.
    pub(crate) fn pin(&self, thread: usize) {
        if !self.cpus.is_empty() {
            run_on(self.cpus[thread % self.cpus.len()]).ok();
        }
    }
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
#[expect(clippy::unused_self, reason = "as on Linux")]
impl Affinity {
    pub(crate) fn check(&self) -> Result<(), (usize, io::Error)> {
        Ok(())
    }

    pub(crate) fn pin(&self, _thread: usize) {}
}

/// Pins the calling thread to a processor.
#[cfg(any(target_os = "linux", target_os = "android"))]
fn run_on(cpu: usize) -> io::Result<()> {
    use rustix::thread::{CpuSet, sched_setaffinity};
    if cpu >= CpuSet::MAX_CPU {
        return Err(rustix::io::Errno::INVAL.into());
    }
    let mut set = CpuSet::new();
    set.set(cpu);
    Ok(sched_setaffinity(None, &set)?)
}

#[cfg(test)]
#[cfg(any(target_os = "linux", target_os = "android"))]
mod tests {
    use super::*;
    use rustix::thread::sched_getaffinity;

    /// The processors that this thread may run on.
    fn here() -> Vec<usize> {
        let set = sched_getaffinity(None).unwrap();
        (0..1024).filter(|cpu| set.is_set(*cpu)).collect()
    }

    #[test]
    fn threads_take_processors_in_turns() {
        let all = here();
        let affinity = Affinity::new(all.clone());
        affinity.check().unwrap();
        assert_eq!(here(), all, "the caller is not affected");
        for thread in 0..2 * all.len() {
            let pinned = std::thread::scope(|scope| {
                let body = || {
                    affinity.pin(thread);
                    here()
                };
                let builder = std::thread::Builder::new();
                builder.spawn_scoped(scope, body).unwrap().join().unwrap()
            });
            assert_eq!(pinned, [all[thread % all.len()]]);
        }
        Affinity::default().check().unwrap();
        Affinity::default().pin(7);
        assert_eq!(here(), all);
    }

    #[test]
    fn a_processor_that_is_not_there_is_named() {
        let there = here()[0];
        for wrong in [1023, 1024, usize::MAX] {
            let (cpu, _) = Affinity::new([there, wrong]).check().unwrap_err();
            assert_eq!(cpu, wrong);
        }
    }
}
