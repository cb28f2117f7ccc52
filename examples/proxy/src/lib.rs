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
mod histogram;
mod job;
mod lobby;
mod log;
#[cfg(any(target_os = "linux", target_os = "android"))]
mod managed;
mod measures;
mod metrics;
mod pattern;
#[cfg(any(target_os = "linux", target_os = "android"))]
mod real;
mod relay;
mod report;
mod services;
mod settings;
#[cfg(any(target_os = "linux", target_os = "android"))]
mod top;
mod totals;
mod watch;
mod writer;

use arguments::Arguments;
use clap::Parser;
use std::process::ExitCode;

/// The program.
pub fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let code = run(&arguments).unwrap_or_else(|error| {
        #[cfg(any(target_os = "linux", target_os = "android"))]
        top::close();
        let is_logged = tracing::enabled!(target: log::PROXY, tracing::Level::ERROR);
        tracing::error!(target: log::PROXY, event = "failed", "{error:#}");
        if !is_logged {
            log::show(&format!("error: {error:#}\n"));
        }
        ExitCode::FAILURE
    });
    log::finish();
    code
}

fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let levels = arguments.log_level.as_ref();
    #[cfg(any(target_os = "linux", target_os = "android"))]
    top::check(arguments);
    log::start(arguments.log, levels, arguments.log_file.as_deref())?;
    if arguments.tun.is_empty() {
        return job::run(arguments);
    }
    #[cfg(any(target_os = "linux", target_os = "android"))]
    return real::run(arguments);
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    anyhow::bail!("--tun needs Linux; without it the proxy runs in memory, on any system");
}
