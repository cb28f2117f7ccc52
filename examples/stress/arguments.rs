//! The command line.

use clap::builder::{Styles, styling::AnsiColor};
use clap::{Parser, ValueEnum};
use sosplice::splice::Dispatch;
use std::time::Duration;

const STYLES: Styles = Styles::styled()
    .header(AnsiColor::Green.on_default().bold())
    .usage(AnsiColor::Green.on_default().bold())
    .literal(AnsiColor::Cyan.on_default().bold())
    .placeholder(AnsiColor::Cyan.on_default());

/// Sockets and splices under everything at once: many threads, at random, for a given time.
///
/// Threads share sockets (TCP over links in memory, and pairs in memory) and connect, accept, send,
/// receive, splice, unsplice, set, shut down, close and abort them at random. A quarter of the threads
/// carries bytes through chains of splices of their own, and checks every one of them.
///
/// Nothing may hang or panic, every error must be documented, no byte may be lost, and at the end no
/// connection, splice, socket, buffer, timer or thread may be left.
#[derive(Debug, Parser)]
#[command(name = "stress", version, styles = STYLES, max_term_width = 100)]
#[command(after_help = "\
Examples:
  stress --seconds 300 --threads 8
  stress --seed 17 --threads 1 --dispatch direct
  stress --sockets 16 --workers 1 --report-every 1

A seed gives each thread the same operations in the same order; how threads meet is up to the
machine. Built for debugging (without --release) the crate checks its locks and invariants too.

Exit status: 0 if all went well, 1 if not (what was found is printed), 2 for a wrong command line.")]
pub(crate) struct Arguments {
    /// Length of the run, before all is closed and checked
    #[arg(long, value_name = "SECONDS", default_value = "10", value_parser = seconds)]
    pub(crate) seconds: Duration,

    /// Threads; a quarter of them, but at least one, are couriers that check bytes
    #[arg(long, value_name = "N", default_value_t = 8)]
    #[arg(value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub(crate) threads: u16,

    /// Seed of the random numbers; a new one each time by default
    #[arg(long, value_name = "NUMBER")]
    pub(crate) seed: Option<u64>,

    /// Worker threads of each of the two pools
    #[arg(long, value_name = "N", default_value_t = 2)]
    #[arg(value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub(crate) workers: u16,

    /// Which threads move the bytes of splices
    #[arg(long, value_enum, default_value_t = Mode::Mixed)]
    pub(crate) dispatch: Mode,

    /// Sockets that the threads share: approximate number at a time
    #[arg(long, value_name = "N", default_value_t = 64)]
    #[arg(value_parser = clap::value_parser!(u32).range(2..=100_000))]
    pub(crate) sockets: u32,

    /// Interval of progress reports
    #[arg(long, value_name = "SECONDS", default_value = "5", value_parser = seconds)]
    pub(crate) report_every: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Mode {
    /// Worker threads
    Worker,
    /// The thread that brings bytes or space
    Direct,
    /// One or the other for each splice
    Mixed,
}

impl Mode {
    /// Where a splice runs; `heads` decides if both are wanted.
    pub(crate) fn dispatch(self, heads: bool) -> Dispatch {
        match (self, heads) {
            (Mode::Worker, _) | (Mode::Mixed, true) => Dispatch::Worker,
            (Mode::Direct, _) | (Mode::Mixed, false) => Dispatch::Direct,
        }
    }
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "give a number of seconds")?;
    Duration::try_from_secs_f64(seconds)
        .ok()
        .filter(|time| {
            (Duration::from_millis(100)..=Duration::from_secs(7 * 86_400)).contains(time)
        })
        .ok_or_else(|| "give 0.1 seconds to a week (604800)".into())
}
