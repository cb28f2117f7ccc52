//! A writer that never waits: what it is given is written by a thread of its own.
//!
//! A receiving thread that waits for whatever reads the log would stop the traffic. So lines are appended to a bounded
//! buffer; if that is full they are lost, and counted. The thread takes the whole buffer at once, and rests after that, so
//! that many lines wake it a few times.
//!
//! A mutex of std around the buffer, which is never held while something is written.

use sosplice::clock::{Clock, SystemClock};
use std::io::{self, ErrorKind, Write};
use std::mem;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;
use tracing_subscriber::fmt::MakeWriter;

/// Bytes that may wait, and one more line.
const MOST: usize = 1024 * 1024;
/// How long the thread rests.
const REST: Duration = Duration::from_millis(10);

#[derive(Debug, Default)]
struct Waiting {
    bytes: Vec<u8>,
    /// The thread waits for bytes.
    idle: bool,
    /// The thread has written all that it took.
    written: bool,
    /// It is to rest no more.
    last: bool,
}

#[derive(Debug, Default)]
struct Shared {
    waiting: Mutex<Waiting>,
    changed: Condvar,
    lost: AtomicU64,
}

/// See the module. Clones are the same writer.
#[derive(Debug, Clone, Default)]
pub(crate) struct Writer(Arc<Shared>);

impl Writer {
    /// Writes to `out`. `lost` is called after something could be written again, with the number of lines that were lost
    /// meanwhile.
    pub(crate) fn start(
        mut out: impl Write + Send + 'static,
        lost: impl Fn(u64) + Send + 'static,
    ) -> io::Result<Writer> {
        let writer = Writer::default();
        let shared = Arc::clone(&writer.0);
        let run = move || shared.run(&mut out, lost);
        thread::Builder::new().name("log".into()).spawn(run)?;
        Ok(writer)
    }

    /// Writes whole lines, soon; if too many wait, they are lost.
    pub(crate) fn append(&self, lines: &[u8]) {
        let mut waiting = self.0.lock();
        if waiting.bytes.len() >= MOST {
            self.0.lose(lines);
            return;
        }
        waiting.bytes.extend_from_slice(lines);
        if mem::take(&mut waiting.idle) {
            drop(waiting);
            self.0.changed.notify_all();
        }
    }

    /// The number of lines that were lost.
    pub(crate) fn lost(&self) -> u64 {
        self.0.lost.load(Ordering::Relaxed)
    }

    /// Waits until all is written, but no longer than this.
    pub(crate) fn flush(&self, limit: Duration) {
        let deadline = SystemClock.now() + limit;
        let mut waiting = self.0.lock();
        waiting.last = true;
        self.0.changed.notify_all();
        while !(waiting.bytes.is_empty() && waiting.written) {
            let rest = deadline.saturating_duration_since(SystemClock.now());
            if rest.is_zero() {
                return;
            }
            let woken = self.0.changed.wait_timeout(waiting, rest);
            waiting = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, waiting: MutexGuard<'a, Waiting>) -> MutexGuard<'a, Waiting> {
        self.changed
            .wait(waiting)
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn lose(&self, lines: &[u8]) {
        let count = lines.iter().filter(|byte| **byte == b'\n').count();
        self.lost.fetch_add(count as u64, Ordering::Relaxed);
    }

    fn run(&self, out: &mut impl Write, lost: impl Fn(u64)) {
        let mut bytes = Vec::new();
        let mut told = 0;
        loop {
            self.take(&mut bytes);
            let rest = write_all(out, &bytes);
            self.lose(&bytes[bytes.len() - rest..]);
            let all = self.lost.load(Ordering::Relaxed);
            if rest == 0 && all > told {
                lost(all - told);
                told = all;
            }
            // Else one burst would keep its memory.
            bytes = Vec::new();
            self.rest();
        }
    }

    /// Waits for bytes and takes them.
    fn take(&self, bytes: &mut Vec<u8>) {
        let mut waiting = self.lock();
        while waiting.bytes.is_empty() {
            waiting.written = true;
            waiting.idle = true;
            self.changed.notify_all();
            waiting = self.wait(waiting);
        }
        waiting.idle = false;
        waiting.written = false;
        mem::swap(bytes, &mut waiting.bytes);
    }

    fn rest(&self) {
        let waiting = self.lock();
        if !waiting.last {
            // Woken early at the end only, for it is not idle.
            drop(self.changed.wait_timeout(waiting, REST));
        }
    }
}

/// Returns the number of bytes that could not be written.
#[expect(
    clippy::disallowed_methods,
    reason = "a pipe that another program has made non-blocking does not say when it has room"
)]
fn write_all(out: &mut impl Write, mut bytes: &[u8]) -> usize {
    while !bytes.is_empty() {
        match out.write(bytes) {
            Ok(0) => break,
            Ok(count) => bytes = &bytes[count..],
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => thread::sleep(REST),
            Err(_) => break,
        }
    }
    out.flush().ok();
    bytes.len()
}

/// One event of the log.
impl Write for &Writer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.append(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Writer {
    type Writer = &'a Writer;

    fn make_writer(&'a self) -> &'a Writer {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crossbeam_channel::{Receiver, Sender, bounded, unbounded};

    const LONG: Duration = Duration::from_secs(60);

    /// Each write waits for a permit.
    struct Slow(Receiver<()>, Sender<Vec<u8>>);

    impl Write for Slow {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            match self.0.recv() {
                Ok(()) => {}
                Err(_) => return Err(ErrorKind::BrokenPipe.into()),
            }
            self.1.send(bytes.to_vec()).ok();
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn lines_are_written_in_order_and_all_before_the_end() {
        let (permit, permits) = unbounded();
        let (sender, written) = unbounded();
        let writer = Writer::start(Slow(permits, sender), |_| {}).unwrap();
        for number in 0..1000 {
            writer.append(format!("{number}\n").as_bytes());
        }
        (0..1000).for_each(|_| permit.send(()).unwrap());
        writer.flush(LONG);
        let all: Vec<u8> = written.try_iter().flatten().collect();
        let expected: String = (0..1000).map(|number| format!("{number}\n")).collect();
        assert_eq!(String::from_utf8(all).unwrap(), expected);
        assert_eq!(writer.lost(), 0);
    }

    #[test]
    fn too_many_lines_are_lost_and_counted_and_nothing_waits() {
        let (permit, permits) = bounded(0);
        let (sender, _written) = unbounded();
        let (tell, told) = unbounded();
        let writer = Writer::start(Slow(permits, sender), move |lines| {
            tell.send(lines).unwrap();
        });
        let writer = writer.unwrap();
        let line = [&[b'x'; 1023][..], b"\n"].concat();
        // Each mebibyte: the one that is being written, and the one that waits.
        for _ in 0..3 * MOST / line.len() {
            writer.append(&line);
        }
        let lost = writer.lost();
        let each = (MOST / line.len()) as u64;
        assert!((each..=2 * each).contains(&lost), "{lost} lost");
        writer.flush(Duration::from_millis(1));
        permit.send(()).unwrap();
        assert_eq!(told.recv_timeout(LONG), Ok(lost));
    }

    #[test]
    fn a_reader_that_is_gone_costs_lines_only() {
        let (permit, permits) = unbounded();
        let (sender, written) = unbounded();
        let writer = Writer::start(Slow(permits, sender), |_| {}).unwrap();
        drop(permit);
        writer.append(b"one\ntwo\n");
        writer.flush(LONG);
        assert_eq!((writer.lost(), written.try_iter().count()), (2, 0));
    }
}
