//! Programs that a test starts, and ends with itself.

use crossbeam_channel::{Receiver, RecvTimeoutError, unbounded};
use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, kill_process, prlimit};
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

/// The output of a command; on failure panics with its output.
pub(crate) fn output(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let complaints = String::from_utf8_lossy(&output.stderr);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "{command:?}: {}: {complaints}\n{text}",
        output.status
    );
    text
}

/// A running program. Dropping it kills it.
#[derive(Debug)]
pub(crate) struct Program {
    child: Child,
    said: Arc<Mutex<String>>,
    /// Ends when the program closed its standard output.
    silence: Receiver<()>,
}

impl Program {
    /// Starts it and waits for a line with `ready` on its standard output.
    pub(crate) fn start(mut command: Command, ready: &'static str) -> Program {
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let said = Arc::new(Mutex::new(String::new()));
        let (started, wait) = unbounded();
        let (end, silence) = unbounded();
        let text = Arc::clone(&said);
        let listen = move || {
            let _end = end;
            for line in lines.map_while(Result::ok) {
                let is_ready = line.contains(ready);
                let mut text = text.lock().unwrap_or_else(PoisonError::into_inner);
                text.push_str(&line);
                text.push('\n');
                drop(text);
                if is_ready {
                    started.send(()).ok();
                }
            }
        };
        thread::Builder::new().spawn(listen).unwrap();
        let program = Program {
            child,
            said,
            silence,
        };
        let waited = wait.recv_timeout(Duration::from_secs(20));
        assert!(waited.is_ok(), "{command:?} did not start");
        program
    }

    /// All that it has printed.
    pub(crate) fn said(&self) -> String {
        let said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        said.clone()
    }

    #[allow(dead_code, reason = "one test uses it")]
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// From now on it gets no descriptor of this number or a higher one.
    #[allow(dead_code, reason = "one test uses it")]
    pub(crate) fn limit_descriptors(&self, most: u64) {
        let limit = Rlimit {
            current: Some(most),
            ..getrlimit(Resource::Nofile)
        };
        prlimit(Some(Pid::from_child(&self.child)), Resource::Nofile, limit).unwrap();
    }

    /// Sends it SIGTERM, and waits for its end.
    pub(crate) fn terminate(&mut self, limit: Duration) -> ExitStatus {
        self.signal(Signal::TERM);
        self.ended(limit)
    }

    /// Waits until it has ended.
    pub(crate) fn ended(&mut self, limit: Duration) -> ExitStatus {
        let waited = self.silence.recv_timeout(limit);
        assert!(
            waited != Err(RecvTimeoutError::Timeout),
            "it did not end in {limit:?}"
        );
        self.child.wait().unwrap()
    }

    /// Number of its open sockets.
    #[allow(dead_code, reason = "not every test needs it")]
    pub(crate) fn sockets(&self) -> usize {
        let folder = format!("/proc/{}/fd", self.child.id());
        let entries = std::fs::read_dir(folder).unwrap().map_while(Result::ok);
        let targets = entries.filter_map(|entry| std::fs::read_link(entry.path()).ok());
        let sockets = targets.filter(|target| target.to_string_lossy().starts_with("socket:"));
        sockets.count()
    }

    /// Number of its threads.
    #[allow(dead_code, reason = "one test uses it")]
    pub(crate) fn threads(&self) -> usize {
        let folder = format!("/proc/{}/task", self.child.id());
        std::fs::read_dir(folder).unwrap().count()
    }

    /// Resident memory in bytes.
    #[allow(dead_code, reason = "one test uses it")]
    pub(crate) fn resident(&self) -> usize {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kilobytes = line.unwrap().trim().trim_end_matches(" kB");
        kilobytes.parse::<usize>().unwrap() * 1024
    }

    /// User and system time of all its threads.
    #[allow(dead_code, reason = "one test uses it")]
    pub(crate) fn cpu(&self) -> Duration {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap();
        let fields: Vec<_> = stat
            .rsplit(')')
            .next()
            .unwrap()
            .split_whitespace()
            .collect();
        let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
        Duration::from_secs(ticks) / u32::try_from(rustix::param::clock_ticks_per_second()).unwrap()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}
