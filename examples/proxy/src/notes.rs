//! Notes for the operator on stderr, which no thread waits for: a terminal or a pipe that takes nothing must not stop
//! what the notes are about.

use crossbeam_channel::{Sender, bounded};
use std::io::Write;
use std::sync::OnceLock;
use std::thread;
use std::time::Duration;

/// Notes that wait; further ones are lost.
const MOST: usize = 256;
/// How long the last ones may take.
const LAST: Duration = Duration::from_millis(500);

/// A line, or the wish to know when those before it are written.
enum Note {
    Line(String),
    Flush(Sender<()>),
}

/// Writes a line, soon.
pub(crate) fn note(line: String) {
    send(Note::Line(line));
}

/// Waits until all notes are written, for a short time at most.
pub(crate) fn flush() {
    let (done, wait) = bounded(1);
    send(Note::Flush(done));
    wait.recv_timeout(LAST).ok();
}

fn send(note: Note) {
    static NOTES: OnceLock<Option<Sender<Note>>> = OnceLock::new();
    let start = || {
        let (notes, wait) = bounded(MOST);
        let write = move || wait.iter().for_each(write);
        let started = thread::Builder::new().name("notes".into()).spawn(write);
        started.is_ok().then_some(notes)
    };
    if let Some(notes) = NOTES.get_or_init(start) {
        notes.try_send(note).ok();
    }
}

fn write(note: Note) {
    match note {
        // In one piece, and ignored if stderr is closed.
        Note::Line(line) => {
            let line = format!("{line}\n");
            std::io::stderr().lock().write_all(line.as_bytes()).ok();
        }
        Note::Flush(done) => drop(done),
    }
}
