//! Times and a description of the machine.

use std::process::Command;
use std::time::Duration;

/// This thread's time on a processor: less affected by the other load of the machine.
#[cfg(target_os = "linux")]
pub(crate) fn busy() -> Duration {
    use rustix::time::{ClockId, clock_gettime};
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::try_from(time).expect("time goes forwards")
}

/// Time.
#[cfg(not(target_os = "linux"))]
pub(crate) fn busy() -> Duration {
    use sosplice::clock::{Clock, SystemClock};
    use std::sync::LazyLock;
    use std::time::Instant;
    static START: LazyLock<Instant> = LazyLock::new(|| SystemClock.now());
    SystemClock.now() - *START
}

/// Pins this thread to a processor, if there is one of that number.
#[allow(dead_code, reason = "not every bench has several threads")]
pub(crate) fn stay_on(cpu: usize) {
    #[cfg(target_os = "linux")]
    if cpu < std::thread::available_parallelism().map_or(1, usize::from) {
        let mut set = rustix::thread::CpuSet::new();
        set.set(cpu);
        rustix::thread::sched_setaffinity(None, &set).ok();
    }
    #[cfg(not(target_os = "linux"))]
    let _ = cpu;
}

/// Median, least and largest.
pub(crate) fn summary(mut values: Vec<f64>) -> (f64, f64, f64) {
    values.sort_by(f64::total_cmp);
    (
        values[values.len() / 2],
        values[0],
        values[values.len() - 1],
    )
}

fn output(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
    text.ok()
        .filter(|text| !text.is_empty())
        .unwrap_or_else(|| "unknown".into())
}

/// Prints the title, and the machine.
pub(crate) fn caption(what: &str) {
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpu.lines().find_map(|line| line.strip_prefix("model name"));
    let model = model
        .unwrap_or("unknown processor")
        .trim_start_matches([':', '\t', ' ']);
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    println!("\n{what}");
    println!("{model}, {cores} cores, load {}", load.trim());
    let commit = output("git", &["describe", "--always", "--dirty"]);
    println!("{}, commit {commit}", output("rustc", &["--version"]));
}
