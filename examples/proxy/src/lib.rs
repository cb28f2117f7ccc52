//! A TCP proxy that does not touch the bytes.
//!
//! Without arguments it runs a complete job in this process and checks every byte; with `--tun` it is a
//! proxy between real networks. Both use the same relay.

mod arguments;
mod backends;
mod checks;
#[cfg(any(target_os = "linux", target_os = "android"))]
mod ending;
#[cfg(any(target_os = "linux", target_os = "android"))]
mod handover;
mod heads;
mod job;
mod lobby;
#[cfg(any(target_os = "linux", target_os = "android"))]
mod managed;
mod metrics;
#[cfg(any(target_os = "linux", target_os = "android"))]
mod notes;
mod pattern;
#[cfg(any(target_os = "linux", target_os = "android"))]
mod real;
mod relay;
mod report;
mod services;
mod settings;
mod totals;
mod watch;

use arguments::Arguments;
use clap::Parser;
use std::process::ExitCode;

/// The program.
pub fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(&arguments) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    if arguments.tun.is_empty() {
        return job::run(arguments);
    }
    #[cfg(any(target_os = "linux", target_os = "android"))]
    return real::run(arguments);
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    anyhow::bail!("--tun needs Linux; without it the proxy runs in memory, on any system");
}
