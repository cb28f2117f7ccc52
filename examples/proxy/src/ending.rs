//! The end of the process, whatever its threads wait for: an output that takes nothing must not keep it alive.

use crossbeam_channel::after;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;
use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread;
use std::time::Duration;

/// Time for what is still waited for at the end: the log, the service manager, the totals. A process that cannot print
/// these ends without.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// Whether there was a signal to end; with `at_once` a second one ends the process, whatever its threads wait for.
pub(crate) fn at_second_signal(at_once: bool) -> io::Result<Arc<AtomicBool>> {
    let stopping = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        if at_once {
            flag::register_conditional_shutdown(signal, 128 + signal, Arc::clone(&stopping))?;
        }
        flag::register(signal, Arc::clone(&stopping))?;
    }
    Ok(stopping)
}

/// Ends the process if it has not ended by itself: something may take no output.
pub(crate) fn after_time(time: Duration) {
    let end = move || {
        after(time + LAST_WORDS).recv().ok();
        crate::top::close();
        signal_hook::low_level::exit(1);
    };
    // Without the thread there is the second signal.
    thread::Builder::new()
        .name("deadline".into())
        .spawn(end)
        .ok();
}
