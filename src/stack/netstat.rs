//! What netstat shows: all sockets of a stack.
//!
//! A listing owns no connection, so it waits for none: the state is what the owner left behind after its
//! latest step. The table's shards are locked one after the other, each for a copy of references; then
//! the buffers of each connection, one after the other. So the sockets are not all from the same moment.

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

/// A socket of a stack: a connection, a listener, or what is remembered of a connection in TIME-WAIT.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct SocketInfo {
    /// This side's address; of a listener, [`TcpListener::local_addr`](crate::stack::TcpListener::local_addr).
    pub local: SocketAddr,
    /// The peer's; none of a listener.
    pub peer: Option<SocketAddr>,
    /// The state after the latest segment, call or timer.
    pub state: TcpState,
    /// Bytes in the receive buffer, which nobody has read yet.
    pub receive_queue: usize,
    /// Bytes in the send buffer, which the peer has not acknowledged yet.
    pub send_queue: usize,
    /// Bytes received in order so far.
    pub received: u64,
    /// Bytes sent and acknowledged so far.
    pub sent: u64,
    /// What a listener has besides.
    pub listening: Option<ListenInfo>,
    /// Where a splice sends what this socket receives.
    pub splice_to: Option<SocketName>,
    /// Whence a splice takes what this socket sends.
    pub splice_from: Option<SocketName>,
    /// Since when the connection has been there; none of other sockets.
    pub age: Option<Duration>,
    /// Since when nothing new was received, acknowledged or to be sent; none of other sockets.
    pub idle: Option<Duration>,
    /// When a record in TIME-WAIT will be forgotten, if nothing more comes.
    pub expires: Option<Duration>,
}

/// What a listener has besides.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ListenInfo {
    /// The destinations it accepts: addresses or `*`, a colon, and ports or `*`.
    pub accepts: String,
    /// Connections whose handshake is not over, and SYNs that nobody has decided about.
    pub half_open: usize,
    /// Connections that wait to be accepted, and SYNs that wait to be handed out.
    pub waiting: usize,
    /// How many there may be.
    pub backlog: usize,
}

/// Sockets as netstat prints them, a line for each below one with the names of the columns.
///
/// Of a listener, `Recv-Q` is how many connections wait to be accepted and `Send-Q` its backlog, as
/// `ss` has it. `Idle` is in seconds.
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
    /// addresses. Connections that wait to be accepted, and those whose handles are gone, are among them.
    ///
    /// Not for an upcall: it locks buffers of sockets, one after the other.
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
        sockets.extend(entries.iter().map(|entry| match entry {
            Entry::Conn(conn) => connection(conn, now),
            Entry::TimeWait(record, term) => remembered(record, term, now),
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
