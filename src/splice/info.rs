//! A snapshot of the splices of a pool.

use super::machine::{Reason, State};
use super::task::{Endpoint, Task};
use super::worker::Spliced;
use super::{Dispatch, SplicePool};
use crate::protocol::SocketName;
use crate::text_table::{self, Column};
use std::any::Any;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// The state of a splice in listings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum SpliceState {
    /// Waits for a thread: in the queue of its worker, or for the end of a batch or a call.
    Queued,
    /// Bytes are being moved.
    Running,
    /// Waits for bytes from the source.
    WaitsForData,
    /// Waits for room in the sink, or for it to connect.
    WaitsForRoom,
    /// Waits until its rate allows more.
    WaitsForRate,
    /// Detached, while its last pass still runs.
    Ending,
}

impl SpliceState {
    fn of(state: State) -> SpliceState {
        match state {
            State::Queued => SpliceState::Queued,
            State::Running { .. } => SpliceState::Running,
            State::Idle(Reason::NoData) => SpliceState::WaitsForData,
            State::Idle(Reason::NoRoom) => SpliceState::WaitsForRoom,
            State::Idle(Reason::Rate) => SpliceState::WaitsForRate,
            State::Closing | State::Ended => SpliceState::Ending,
        }
    }
}

/// One word: `queued`, `running`, `data`, `room`, `rate`, `ending`.
impl fmt::Display for SpliceState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            SpliceState::Queued => "queued",
            SpliceState::Running => "running",
            SpliceState::WaitsForData => "data",
            SpliceState::WaitsForRoom => "room",
            SpliceState::WaitsForRate => "rate",
            SpliceState::Ending => "ending",
        })
    }
}

/// A snapshot of a splice.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct SpliceInfo {
    /// A number that no other splice of this process has or had ([`Splice::id`](super::Splice::id)).
    pub id: u64,
    /// The socket whose bytes it moves.
    pub source: SocketName,
    /// The socket that sends them.
    pub sink: SocketName,
    /// Bytes moved so far.
    pub bytes: u64,
    /// Passes so far.
    pub passes: u64,
    /// Ends after so many bytes.
    pub limit: Option<u64>,
    /// Ends when no byte has moved for so long.
    pub idle: Option<Duration>,
    /// Its state.
    pub state: SpliceState,
    /// Number of its worker in the pool, from 0.
    pub worker: usize,
    /// The thread in which it moves its bytes.
    pub dispatch: Dispatch,
}

/// Splices in the style of netstat: a line for each below a header line. The idle timeout is in
/// seconds.
///
/// ```
/// use sosplice::{local, splice::{Options, SplicePool, SpliceTable}};
/// let pool = SplicePool::builder().workers(1).build();
/// let ((a, b), (c, d)) = (local::pair(), local::pair());
/// b.splice_to(&c, Options::default().pool(pool.clone()))?;
/// println!("{}", SpliceTable(&pool.splices()));
/// # Ok::<_, Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, Copy)]
#[expect(clippy::exhaustive_structs, reason = "a list to be shown")]
pub struct SpliceTable<'a>(pub &'a [SpliceInfo]);

impl SplicePool {
    /// The splices of the pool that have not ended, ordered by their numbers. Locks no buffer.
    ///
    /// ```
    /// use sosplice::{local, splice::{Options, SplicePool, SpliceState}};
    /// let pool = SplicePool::builder().workers(1).manual().build();
    /// let ((a, b), (c, d)) = (local::pair(), local::pair());
    /// let splice = b.splice_to(&c, Options::default().pool(pool.clone()))?;
    /// let splices = pool.splices();
    /// assert_eq!(splices.len(), 1);
    /// assert_eq!((splices[0].id, splices[0].state), (splice.id(), SpliceState::WaitsForData));
    /// assert_eq!((splices[0].source.protocol, splices[0].bytes), ("local", 0));
    /// # Ok::<_, Box<dyn std::error::Error>>(())
    /// ```
    pub fn splices(&self) -> Vec<SpliceInfo> {
        let tasks = self.shared().tasks();
        let info = |task: Arc<dyn Spliced>| {
            let task: Arc<dyn Any + Send + Sync> = task;
            task.downcast::<Task>().ok()?.info()
        };
        let mut splices: Vec<_> = tasks.into_iter().filter_map(info).collect();
        splices.sort_by_key(|splice| splice.id);
        splices
    }
}

impl Endpoint {
    pub(super) fn name(&self) -> SocketName {
        SocketName::of(&self.end, &*self.protocol)
    }
}

impl Task {
    /// `None` if it has ended.
    fn info(&self) -> Option<SpliceInfo> {
        // Read first: as long as no end is recorded, the source's counter belongs to this splice and
        // not to a later one.
        let bytes = self.source.end.spliced();
        let (state, passes) = self.status.standing()?;
        Some(SpliceInfo {
            id: self.status.id(),
            source: self.source.name(),
            sink: self.sink.name(),
            bytes,
            passes,
            limit: self.limit,
            idle: self.idle,
            state: SpliceState::of(state),
            worker: self.worker,
            dispatch: self.dispatch,
        })
    }
}

impl SpliceInfo {
    fn row(&self) -> [String; COLUMNS.len()] {
        let seconds = |time: Duration| time.as_secs_f64().to_string();
        [
            self.id.to_string(),
            self.source.to_string(),
            self.sink.to_string(),
            self.bytes.to_string(),
            self.limit
                .map_or_else(|| "-".into(), |limit| limit.to_string()),
            self.idle.map_or_else(|| "-".into(), seconds),
            self.passes.to_string(),
            self.worker.to_string(),
            self.state.to_string(),
        ]
    }
}

const COLUMNS: [Column; 9] = [
    ("Splice", true),
    ("Source", false),
    ("Sink", false),
    ("Bytes", true),
    ("Limit", true),
    ("Idle", true),
    ("Passes", true),
    ("Worker", true),
    ("State", false),
];

impl fmt::Display for SpliceTable<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rows: Vec<_> = self.0.iter().map(SpliceInfo::row).collect();
        text_table::write(f, COLUMNS, &rows)
    }
}
