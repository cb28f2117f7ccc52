//! Everything at once, at random, from many threads, for a given time: what breaks?
//!
//! Threads of *chaos* share sockets and do to them whatever the crate offers ([`acts`]). *Couriers*
//! send bytes that know their place through chains of splices that nobody else touches
//! ([`courier`]). A watchdog sees that all of them get on ([`watch`]), every error is compared with
//! what the documentation allows ([`verdict`]), and in the end nothing may be left of anything
//! ([`checks`]).
//!
//! Neighbours: [`world`] has the stacks and links, [`arena`] the shared sockets, [`ends`] counts how
//! splices end.

mod acts;
mod arena;
mod arguments;
mod checks;
mod courier;
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
