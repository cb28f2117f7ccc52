//! A TCP proxy that does not touch the bytes.
//!
//! Without arguments it runs a complete job in this process and checks every byte; with `--tun` it is a
//! proxy between real networks. Both use the same [`relay`].

mod arguments;
mod job;
mod pattern;
#[cfg(target_os = "linux")]
mod real;
mod relay;
mod report;
mod watch;

use arguments::Arguments;
use clap::Parser;
use std::process::ExitCode;

fn main() -> ExitCode {
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
    #[cfg(target_os = "linux")]
    return real::run(arguments);
    #[cfg(not(target_os = "linux"))]
    anyhow::bail!("--tun needs Linux; without it the proxy runs in memory, on any system");
}
