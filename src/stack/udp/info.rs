//! Sockets for datagrams and flows, at one moment.

use crate::stack::Stack;
use crate::text_table::{self, Column};
use crate::udp::Kind;
use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

/// A socket for datagrams, or a flow, at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct DatagramInfo {
    /// Number of the socket ([`SocketEnd::id`](crate::protocol::SocketEnd::id)).
    pub id: u64,
    /// This side's address: of a flow its destination, of one with an endpoint-independent mapping none.
    pub local: Option<SocketAddr>,
    /// The peer: of a flow its client.
    pub peer: Option<SocketAddr>,
    /// Whether it is a flow that a listener has intercepted.
    pub is_flow: bool,
    /// Bytes that were received and not read, and those that wait to be sent.
    pub queued: [usize; 2],
    /// Received datagrams that were dropped, since the buffer was full.
    pub dropped: u64,
    /// Time since a datagram last passed.
    pub idle: Duration,
}

impl Stack {
    /// The sockets for datagrams and the flows of the stack, by their numbers. Locks each one's buffers in turn.
    ///
    /// ```
    /// use sosplice::{link::memory, stack::{DatagramTable, Stack, UdpSocket}};
    /// let (link, _other) = memory::pair(memory::Config::default());
    /// let stack = Stack::builder(link).address("10.0.0.1/24".parse()?).build()?;
    /// let socket = UdpSocket::bind(&stack, "10.0.0.1:53")?;
    /// let sockets = stack.datagram_sockets();
    /// assert_eq!((sockets.len(), sockets[0].local), (1, Some(socket.local_addr())));
    /// assert_eq!(DatagramTable(&sockets).to_string(), "\
    /// Kind   Local        Peer  Recv-Q  Send-Q  Dropped  Idle
    /// bound  10.0.0.1:53  *          0       0        0     0");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn datagram_sockets(&self) -> Vec<DatagramInfo> {
        let shared = self.shared();
        let now = shared.since_epoch(shared.clock.now());
        let all = shared.udp.all();
        let mut found: Vec<DatagramInfo> = all
            .iter()
            .map(|udp| {
                let (local, peer) = udp.names();
                let (received, dropped) = udp.end.with_rcv(|rcv| (rcv.len(), rcv.dropped()));
                let waiting = udp.end.with_snd(|snd| snd.len()) + udp.waiting();
                DatagramInfo {
                    id: udp.end.id(),
                    local,
                    peer,
                    is_flow: !matches!(udp.kind, Kind::Bound(_)),
                    queued: [received, waiting],
                    dropped,
                    idle: now.saturating_sub(udp.last_used()),
                }
            })
            .collect();
        found.sort_by_key(|info| info.id);
        found
    }
}

/// Sockets as netstat might print them, a line for each below one with the names of the columns. The idle time is in
/// seconds.
#[derive(Debug, Clone, Copy)]
#[expect(clippy::exhaustive_structs, reason = "a list to be shown")]
pub struct DatagramTable<'a>(pub &'a [DatagramInfo]);

const COLUMNS: [Column; 7] = [
    ("Kind", false),
    ("Local", false),
    ("Peer", false),
    ("Recv-Q", true),
    ("Send-Q", true),
    ("Dropped", true),
    ("Idle", true),
];

impl DatagramInfo {
    fn row(&self) -> [String; COLUMNS.len()] {
        let shown = |address: Option<SocketAddr>| {
            address.map_or_else(|| "*".to_owned(), |address| address.to_string())
        };
        [
            if self.is_flow { "flow" } else { "bound" }.to_owned(),
            shown(self.local),
            shown(self.peer),
            self.queued[0].to_string(),
            self.queued[1].to_string(),
            self.dropped.to_string(),
            self.idle.as_secs().to_string(),
        ]
    }
}

impl fmt::Display for DatagramTable<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rows: Vec<_> = self.0.iter().map(DatagramInfo::row).collect();
        text_table::write(f, COLUMNS, &rows)
    }
}
