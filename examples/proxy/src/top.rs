//! `--top`: a live table in the terminal, with the feature `top`.

#[cfg(feature = "top")]
mod screen;
#[cfg(feature = "top")]
mod table;

use crate::arguments::{Arguments, usage};
use crate::log::Form;
use std::io::{IsTerminal, stderr, stdin, stdout};

/// Ends the process if the table is asked for and cannot be shown.
pub(crate) fn check(arguments: &Arguments) {
    if !arguments.top {
        return;
    }
    if !cfg!(feature = "top") {
        usage(
            "--top is not part of this program: build it with it, by cargo build --release --example proxy \
             -p sosplice-proxy --features top",
        );
    }
    if !(stdout().is_terminal() && stdin().is_terminal()) {
        usage(
            "--top needs a terminal for its table and for its keys: stdin and stdout are not both one",
        );
    }
    let in_the_table = arguments.log_file.is_none() && stderr().is_terminal();
    if arguments.log != Form::Off && in_the_table {
        usage("--top needs the terminal: give --log-file FILE for the log, or --log off");
    }
    if in_the_table && arguments.stats.is_some() {
        usage("--top needs the terminal: give --log-file FILE for --stats, or leave it out");
    }
}

#[cfg(feature = "top")]
pub(crate) use screen::{close, start};

#[cfg(not(feature = "top"))]
pub(crate) fn close() {}

#[cfg(not(feature = "top"))]
pub(crate) fn start(
    _relay: std::sync::Arc<crate::relay::Shared>,
    _stop: std::sync::Arc<crate::real::Stop>,
) -> std::io::Result<()> {
    Ok(())
}
