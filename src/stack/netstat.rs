//! The list of all sockets of a stack, as in netstat.
//!
//! A listing does not take ownership of connections, so it never waits for one: the state is the one
//! that the owner published after its latest step. The table's shards are locked one after the other,
//! each to copy references; then the buffers of each connection. So the list is not an atomic snapshot.

use crate::end::Role;
use crate::protocol::{SocketName, Upcall};
use crate::stack::accept::backlog::Listening;
use crate::stack::demux::conn_table::{Entry, Term};
use crate::stack::{Stack, TcpState};
use crate::tcp::conn::Conn;
use crate::tcp::time_wait::TimeWait;
use crate::text_table::{self, Column};
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A socket of a stack: a connection, a listener, or a record in TIME-WAIT.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct SocketInfo {
    /// This side's address; for a listener,
    /// [`TcpListener::local_addr`](crate::stack::TcpListener::local_addr).
    pub local: SocketAddr,
    /// The peer's; `None` for a listener.
    pub peer: Option<SocketAddr>,
    /// The state after the latest segment, call or timer.
    pub state: TcpState,
    /// Bytes in the receive buffer, not read yet.
    pub receive_queue: usize,
    /// Bytes in the send buffer, not acknowledged yet.
    pub send_queue: usize,
    /// Bytes received in order so far.
    pub received: u64,
    /// Bytes sent and acknowledged so far.
    pub sent: u64,
    /// Further values of a listener.
    pub listening: Option<ListenInfo>,
    /// The sink of the splice whose source is this socket.
    pub splice_to: Option<SocketName>,
    /// The source of the splice whose sink is this socket.
    pub splice_from: Option<SocketName>,
    /// Age of the connection; `None` for other sockets.
    pub age: Option<Duration>,
    /// Time since new data was last received, acknowledged or given to send; `None` for other sockets.
    pub idle: Option<Duration>,
    /// Time until a record in TIME-WAIT expires, if no segment restarts it.
    pub expires: Option<Duration>,
}

/// Further values of a listener.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ListenInfo {
    /// The destinations it accepts: addresses or `*`, a colon, and ports or `*`.
    pub accepts: String,
    /// Half-open connections, and SYNs that wait for a decision.
    pub half_open: usize,
    /// Connections that wait to be accepted, and SYNs that wait for
    /// [`pending`](crate::stack::ConditionalListener::pending).
    pub waiting: usize,
    /// The maximum of both together.
    pub backlog: usize,
}

/// Sockets in the style of netstat: a line for each below a header line.
///
/// For a listener, `Recv-Q` is the number of connections that wait to be accepted and `Send-Q` its
/// backlog, as in `ss`. `Idle` is in seconds.
///
/// ```
/// use sosplice::{Stack, TcpListener, link::memory, stack::SocketTable};
/// let (link, _other) = memory::pair(memory::Config::default());
/// let stack = Stack::builder(link).address("10.0.0.1/24".parse()?).build()?;
/// let listener = TcpListener::bind(&stack, "10.0.0.1:80")?;
/// assert_eq!(
///     SocketTable(&stack.sockets()).to_string(),
///     "Proto  Recv-Q  Send-Q  Local address  Foreign address  State   Received  Sent  Idle  Splices\n\
///      tcp4        0     128  10.0.0.1:80    *:*              LISTEN"
/// );
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, Copy)]
#[expect(clippy::exhaustive_structs, reason = "a list to be shown")]
pub struct SocketTable<'a>(pub &'a [SocketInfo]);

impl Stack {
    /// All sockets of the stack: listeners first, then connections and records in TIME-WAIT by their
    /// addresses. Includes connections that wait to be accepted, and those without handles.
    ///
    /// Must not be called in an upcall: it locks buffers of sockets, one after the other.
    ///
    /// ```
    /// use sosplice::{Stack, TcpListener, TcpStream, link::memory, stack::TcpState};
    /// let (a, b) = memory::pair(memory::Config::default());
    /// let server = Stack::builder(a).address("10.0.0.1/24".parse()?).build()?;
    /// let client = Stack::builder(b).address("10.0.0.2/24".parse()?).build()?;
    /// let listener = TcpListener::bind(&server, "10.0.0.1:80")?;
    /// let stream = TcpStream::connect(&client, "10.0.0.1:80")?;
    /// let sockets = client.sockets();
    /// assert_eq!(sockets.len(), 1);
    /// assert_eq!(sockets[0].state, TcpState::Established);
    /// assert_eq!(sockets[0].peer, Some(listener.local_addr()));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn sockets(&self) -> Vec<SocketInfo> {
        let shared = self.shared();
        let now = self.now();
        let listeners = shared.accepting.listeners.lock().clone();
        let mut sockets: Vec<_> = listeners.iter().map(|one| listener(one)).collect();
        let first = sockets.len();
        let entries = shared.table.entries();
        sockets.extend(entries.iter().filter_map(|entry| match entry {
            Entry::Conn(conn) => Some(connection(conn, now)),
            // One that was restarted stays in the table for longer.
            Entry::TimeWait(_, term) if term.until <= now => None,
            Entry::TimeWait(record, term) => Some(remembered(record, term, now)),
        }));
        sockets[first..].sort_by_key(|socket| (socket.local, socket.peer));
        sockets
    }
}

fn listener(listening: &Listening) -> SocketInfo {
    let queued = listening.queued();
    SocketInfo {
        listening: Some(ListenInfo {
            accepts: listening.rule.to_string(),
            half_open: queued.half_open,
            waiting: queued.waiting,
            backlog: listening.backlog(),
        }),
        ..SocketInfo::new(listening.rule.address(), None, TcpState::Listen)
    }
}

fn connection(conn: &Conn, now: Instant) -> SocketInfo {
    let (receive_queue, received, source) = {
        let rcv = conn.end.rcv();
        (
            rcv.buf.len(),
            rcv.buf.chain().end(),
            rcv.diversion().cloned(),
        )
    };
    let (send_queue, sent, sink) = {
        let snd = conn.end.snd();
        (
            snd.buf.len(),
            snd.buf.chain().start(),
            snd.diversion().cloned(),
        )
    };
    let other = |upcall: Option<Arc<dyn Upcall>>, role| upcall.and_then(|one| one.joined(role));
    let (local, peer) = conn.tuple.ends();
    SocketInfo {
        receive_queue,
        send_queue,
        received,
        sent,
        splice_to: other(source, Role::Source),
        splice_from: other(sink, Role::Sink),
        age: Some(now.saturating_duration_since(conn.began())),
        idle: Some(now.saturating_duration_since(conn.moved_at())),
        ..SocketInfo::new(local, Some(peer), conn.state())
    }
}

fn remembered(record: &TimeWait, term: &Term, now: Instant) -> SocketInfo {
    let (local, peer) = record.tuple.ends();
    SocketInfo {
        expires: Some(term.until.saturating_duration_since(now)),
        ..SocketInfo::new(local, Some(peer), TcpState::TimeWait)
    }
}

impl SocketInfo {
    fn new(local: SocketAddr, peer: Option<SocketAddr>, state: TcpState) -> SocketInfo {
        SocketInfo {
            local,
            peer,
            state,
            receive_queue: 0,
            send_queue: 0,
            received: 0,
            sent: 0,
            listening: None,
            splice_to: None,
            splice_from: None,
            age: None,
            idle: None,
            expires: None,
        }
    }

    fn row(&self) -> [String; COLUMNS.len()] {
        let any = |listening: &ListenInfo| listening.accepts.starts_with('*');
        let family = match self.local {
            _ if self.listening.as_ref().is_some_and(any) => "tcp46",
            SocketAddr::V4(_) => "tcp4",
            SocketAddr::V6(_) => "tcp6",
        };
        let peer = self
            .peer
            .map_or_else(|| "*:*".to_owned(), |peer| peer.to_string());
        let (local, receive, send) = match &self.listening {
            Some(listening) => (
                listening.accepts.clone(),
                listening.waiting,
                listening.backlog,
            ),
            None => (self.local.to_string(), self.receive_queue, self.send_queue),
        };
        let of_connection = |count: u64| match self.age {
            Some(_) => count.to_string(),
            None => String::new(),
        };
        let idle = self.idle.map(|idle| format!("{:.1}", idle.as_secs_f64()));
        [
            family.to_owned(),
            receive.to_string(),
            send.to_string(),
            local,
            peer,
            self.state.to_string(),
            of_connection(self.received),
            of_connection(self.sent),
            idle.unwrap_or_default(),
            self.splices(),
        ]
    }

    fn splices(&self) -> String {
        match (&self.splice_to, &self.splice_from) {
            (None, None) => String::new(),
            (Some(to), None) => format!("-> {to}"),
            (None, Some(from)) => format!("<- {from}"),
            (Some(to), Some(from)) if to == from => format!("<-> {to}"),
            (Some(to), Some(from)) => format!("-> {to} <- {from}"),
        }
    }
}

const COLUMNS: [Column; 10] = [
    ("Proto", false),
    ("Recv-Q", true),
    ("Send-Q", true),
    ("Local address", false),
    ("Foreign address", false),
    ("State", false),
    ("Received", true),
    ("Sent", true),
    ("Idle", true),
    ("Splices", false),
];

impl fmt::Display for SocketTable<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rows: Vec<_> = self.0.iter().map(SocketInfo::row).collect();
        text_table::write(f, COLUMNS, &rows)
    }
}
