//! The terminal, and the thread that draws. Whatever ends the process calls [`close`]: then the terminal is as it was.

use super::table::{Entry, View, Wish};
use crate::real::Stop;
use crate::relay::Shared;
use ratatui::backend::CrosstermBackend;
use ratatui::crossterm::event::{self, Event, KeyEventKind};
use ratatui::crossterm::execute;
use ratatui::crossterm::terminal::{self, EnterAlternateScreen};
use ratatui::{DefaultTerminal, Terminal};
use rustix::event::{PollFd, PollFlags, Timespec};
use sosplice::clock::{Clock, SystemClock};
use std::io;
use std::panic;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, TryLockError};
use std::thread;
use std::time::Duration;

/// How often the table is drawn, keys apart.
const TICK: Duration = Duration::from_secs(1);
/// How long a frame may take to be drawn; a terminal that is stopped takes none.
const FRAME: Duration = Duration::from_millis(500);
/// Status of a process that is ended by keys.
const ENDED: i32 = 130;

/// The terminal, while it is the table's.
static SCREEN: Mutex<Option<DefaultTerminal>> = Mutex::new(None);
/// It is no longer, even if it is still there.
static CLOSED: AtomicBool = AtomicBool::new(false);

/// Shows the table until [`close`].
pub(crate) fn start(relay: Arc<Shared>, stop: Arc<Stop>) -> io::Result<()> {
    relay.measures().read_times();
    open()?;
    let show = move || {
        if show(&relay, &stop).is_err() {
            // The terminal is gone; the proxy needs none.
            close();
        }
    };
    thread::Builder::new().name("top".into()).spawn(show)?;
    Ok(())
}

fn open() -> io::Result<()> {
    // At a panic of any thread, too, before it is reported.
    let hook = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        CLOSED.store(true, Ordering::Relaxed);
        give_back();
        hook(info);
    }));
    terminal::enable_raw_mode()?;
    execute!(io::stdout(), EnterAlternateScreen)?;
    let terminal = Terminal::new(CrosstermBackend::new(io::stdout()))?;
    with_screen(|screen| *screen = Some(terminal));
    Ok(())
}

/// Gives the terminal back, if it was taken.
pub(crate) fn close() {
    CLOSED.store(true, Ordering::Relaxed);
    if let Some(mut terminal) = with_screen(Option::take).flatten() {
        terminal.show_cursor().ok();
        give_back();
    }
}

/// Not by ratatui's function for that, which panics if stderr is the terminal and that is gone.
fn give_back() {
    ratatui::try_restore().ok();
}

/// `None` if a frame is being drawn and takes too long.
fn with_screen<R>(use_it: impl FnOnce(&mut Option<DefaultTerminal>) -> R) -> Option<R> {
    let deadline = SystemClock.now() + FRAME;
    loop {
        match SCREEN.try_lock() {
            Ok(mut screen) => return Some(use_it(&mut screen)),
            Err(TryLockError::Poisoned(poisoned)) => {
                return Some(use_it(&mut poisoned.into_inner()));
            }
            Err(TryLockError::WouldBlock) if SystemClock.now() < deadline => thread::yield_now(),
            Err(TryLockError::WouldBlock) => {
                give_back();
                return None;
            }
        }
    }
}

/// `false` if there was none for this time. Not by crossterm, which reads a terminal that has hung up for ever.
fn wait_for_keys(limit: Duration) -> io::Result<bool> {
    let stdin = io::stdin();
    let mut fds = [PollFd::new(&stdin, PollFlags::IN)];
    let limit = Timespec::try_from(limit).ok();
    match rustix::event::poll(&mut fds, limit.as_ref()) {
        Ok(0) | Err(rustix::io::Errno::INTR) => Ok(false),
        Ok(_) => {
            let hung_up = PollFlags::HUP | PollFlags::ERR | PollFlags::NVAL;
            match fds[0].revents().intersects(hung_up) {
                true => Err(io::ErrorKind::BrokenPipe.into()),
                false => Ok(true),
            }
        }
        Err(error) => Err(error.into()),
    }
}

fn show(relay: &Shared, stop: &Stop) -> io::Result<()> {
    let mut view = View::default();
    let (mut before, mut since) = (relay.snapshot(), SystemClock.now());
    let mut entries = Entry::all(&before, &before, Duration::ZERO);
    loop {
        if CLOSED.load(Ordering::Relaxed) {
            return Ok(());
        }
        let drawn = with_screen(|screen| {
            let terminal = screen.as_mut()?;
            Some(
                terminal
                    .draw(|frame| view.draw(frame, entries.clone()))
                    .map(drop),
            )
        });
        match drawn.flatten() {
            Some(result) => result?,
            None => return Ok(()),
        }
        let rest = TICK.saturating_sub(SystemClock.now() - since);
        if wait_for_keys(rest)? {
            while event::poll(Duration::ZERO)? {
                if let Event::Key(key) = event::read()?
                    && key.kind == KeyEventKind::Press
                    && view.press(key) == Wish::Quit
                {
                    stop.now(ENDED);
                }
            }
            continue;
        }
        let (now, time) = (relay.snapshot(), SystemClock.now() - since);
        entries = Entry::all(&now, &before, time);
        (before, since) = (now, since + time);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::env;
    use std::process::Command;

    /// Set in the process that is to panic.
    const CHILD: &str = "SOSPLICE_TOP_CHILD";

    /// In a terminal that util-linux's `script` makes. What the process writes comes in this order.
    #[test]
    fn a_panic_of_any_thread_gives_the_terminal_back() {
        if env::var_os(CHILD).is_some() {
            open().unwrap();
            let panics = thread::Builder::new().spawn(|| panic!("it has failed"));
            assert!(panics.unwrap().join().is_err() && CLOSED.load(Ordering::Relaxed));
            close();
            return;
        }
        let test = env::current_exe().unwrap();
        let name = "top::screen::tests::a_panic_of_any_thread_gives_the_terminal_back";
        let line = format!("{} --exact --nocapture {name} && stty -a", test.display());
        let mut command = Command::new("script");
        command.args(["--quiet", "--return", "--command", &line, "/dev/null"]);
        let output = command.env(CHILD, "1").output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        let at = |part: &str| {
            said.find(part)
                .unwrap_or_else(|| panic!("{part:?} in {said:?}"))
        };
        let order = ["\x1b[?1049h", "\x1b[?1049l", "it has failed", " icanon"].map(at);
        assert!(order.is_sorted(), "{order:?} in {said:?}");
        assert!(
            output.status.success() && said.contains(" echo "),
            "{said:?}"
        );
    }
}
