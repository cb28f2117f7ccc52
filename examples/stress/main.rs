//! Random operations from many threads, for a given time.
//!
//! *Chaos* threads share sockets and apply all operations of the crate to them ([`acts`]). *Couriers*
//! send position-dependent bytes through chains of splices of their own ([`courier`]), and numbered datagrams
//! ([`datagrams`]). A watchdog
//! checks that all of them make progress ([`watch`]), every error is compared with the documentation
//! ([`verdict`]), and at the end nothing may be left over ([`checks`]).
//!
//! Neighbours: [`world`] has the stacks and links, [`arena`] the shared sockets, [`ends`] counts how
//! splices end.

mod acts;
mod arena;
mod arguments;
mod checks;
mod courier;
mod datagrams;
mod ends;
mod handle;
mod pattern;
mod random;
mod report;
mod run;
mod stage;
mod trip;
mod verdict;
mod watch;
mod world;

use arguments::Arguments;
use clap::Parser;
use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run::run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
