//! A stack and its splices in a loop of the program's own, which can wait for other events too: no
//! thread of the library runs. The same proxy in two loops, with `poll(2)` and as a task of tokio
//! (`--tokio`).
//!
//! A turn of either: the driver receives and sends (`poll`), new clients are spliced to the backend,
//! and the pool makes a pass (`run_one`; most splices have moved their bytes in `poll` already).
//! Without work, the loop sleeps until the earlier one of two deadlines, or until the link is ready in
//! the directions that the driver returns. *The deadline is read first*: from then on a thread that
//! adds work for the driver wakes the link.
//!
//! With `--tun` the proxy is a host behind a TUN device. Without it clients and a backend run beside it,
//! at the other end of a link of this program's own (`demo.rs`), and every byte is checked.

#[cfg(target_os = "linux")]
mod demo;
#[cfg(target_os = "linux")]
mod proxy;

use std::process::ExitCode;

#[cfg(target_os = "linux")]
fn main() -> ExitCode {
    match proxy::run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(not(target_os = "linux"))]
fn main() -> ExitCode {
    eprintln!("error: only links of Linux have descriptors to wait for");
    ExitCode::FAILURE
}
