//! A stack and its splices in a loop of the program's own, which can wait for other events too: no
//! thread of the library runs. The same proxy in three loops: `--loop epoll`, `mio` and `tokio`.
//!
//! A turn of each: the driver receives and sends (`poll`), new clients are spliced to the backend,
//! and the pool makes a pass (`run_one`; most splices have moved their bytes in `poll` already).
//! Without work, the loop sleeps until the earlier one of two deadlines, or until the link is ready in
//! the directions that the driver returns. *The deadline is read first*: from then on a thread that
//! adds work for the driver wakes the link.
//!
//! | file | contents |
//! |---|---|
//! | `proxy` | a turn of the proxy, and what ends a sleep |
//! | `in_epoll`, `in_mio`, `in_tokio` | the loops |
//! | `demo` | clients and a backend |
//!
//! With `--tun` the proxy is a host behind a TUN device. Without it clients and a backend run beside it,
//! at the other end of a link of this program's own (`demo.rs`), and every byte is checked.

#[cfg(any(target_os = "linux", target_os = "android"))]
mod demo;
#[cfg(any(target_os = "linux", target_os = "android"))]
mod in_epoll;
#[cfg(any(target_os = "linux", target_os = "android"))]
mod in_mio;
#[cfg(any(target_os = "linux", target_os = "android"))]
mod in_tokio;
#[cfg(any(target_os = "linux", target_os = "android"))]
mod proxy;

use std::process::ExitCode;

#[cfg(any(target_os = "linux", target_os = "android"))]
fn main() -> ExitCode {
    match proxy::run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
fn main() -> ExitCode {
    eprintln!("error: only links of Linux have descriptors to wait for");
    ExitCode::FAILURE
}
