//! Active opens: the choice of source address, port and home.

use crate::error::SoError;
use crate::events::report;
use crate::ip;
use crate::link::{Flow, Link};
use crate::stack::accept::admission::Refusal;
use crate::stack::routes::Route;
use crate::stack::{Shared, Stack};
use crate::tcp::conn::{Conn, Host, Runner};
use crate::tcp::conn_state::Opening;
use crate::tcp::home::Home;
use crate::tcp::preset::Preset;
use crate::tcp::service::Work;
use crate::tcp::wire::Tuple;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering;

impl Stack {
    /// Begins to connect. An unspecified address and port of `from` are chosen, the port so that
    /// answers arrive on `queue`, if the link can predict that. The preset applies from the SYN on.
    pub(crate) fn dial(
        &self,
        from: SocketAddr,
        to: SocketAddr,
        queue: Option<usize>,
        preset: &Preset,
    ) -> io::Result<Arc<Conn>> {
        let shared = self.shared();
        let queue = queue.map(|queue| shared.queue_number(queue)).transpose()?;
        let (local, looped) = shared.source_of(from.ip(), to)?;
        if shared.is_down(queue.unwrap_or(shared.first_up())) {
            return Err(shared.why_down().into());
        }
        let error = |kind, why| Err(io::Error::new(kind, why));
        let way = Way {
            local,
            to,
            queue,
            looped,
            preset,
        };
        if way.is_itself(from.port()) {
            let why = format!("a connection from {to} to itself: give another port");
            return error(io::ErrorKind::InvalidInput, why);
        }
        if from.port() != 0 {
            let why = format!(
                "the connection from {local}:{} to {to} exists, or is in TIME-WAIT",
                from.port()
            );
            let conn = shared.connect(&way, from.port(), Place::Free)?;
            return conn.map_or_else(|| error(io::ErrorKind::AddrInUse, why), Ok);
        }
        // The port that was used longest ago comes first. If that and some after it are in TIME-WAIT,
        // so are most of the others, and checking all of them would cost more than the connection.
        const ENOUGH: usize = 8;
        let mut reusable = None;
        let ports = shared.addressing.ephemeral_ports.ports_to(local, to);
        let ports = ports.filter(|port| !way.is_itself(*port));
        for (looked, port) in ports.enumerate() {
            if let Some(conn) = shared.connect(&way, port, Place::Free)? {
                return Ok(conn);
            }
            let now = shared.clock.now();
            let old = |port: &u16| {
                let tuple = way.tuple(*port);
                let home = shared.home_for(&tuple, &way);
                home.is_some() && shared.table.reusable(&tuple, now).is_some()
            };
            reusable = reusable.or_else(|| Some(port).filter(old));
            if let Some(port) = reusable.filter(|_| looked >= ENOUGH)
                && let Some(conn) = shared.connect(&way, port, Place::TimeWait)?
            {
                return Ok(conn);
            }
        }
        if let Some(port) = reusable
            && let Some(conn) = shared.connect(&way, port, Place::TimeWait)?
        {
            return Ok(conn);
        }
        let by = queue.map_or_else(String::new, |queue| format!(" by queue {queue}"));
        let why = format!("all ephemeral ports to {to}{by} are in use");
        error(io::ErrorKind::AddrNotAvailable, why)
    }
}

/// Addresses and queue of a new connection, without the local port.
#[derive(Debug)]
struct Way<'a> {
    local: IpAddr,
    to: SocketAddr,
    /// The requested home.
    queue: Option<u16>,
    /// The other end is an address of the stack.
    looped: bool,
    preset: &'a Preset,
}

impl Way<'_> {
    fn tuple(&self, local_port: u16) -> Tuple {
        Tuple {
            local: self.local,
            remote: self.to.ip(),
            local_port,
            remote_port: self.to.port(),
        }
    }

    /// Both ends would be one.
    fn is_itself(&self, local_port: u16) -> bool {
        self.local == self.to.ip() && local_port == self.to.port()
    }
}

/// The present holder of the tuple of a new connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// Nothing.
    Free,
    /// A record in TIME-WAIT that is old enough to be replaced.
    TimeWait,
}

impl Shared {
    /// The address to connect from: the given one, else a chosen one. `true` if the destination is an
    /// address of the stack: then routes do not apply, and the default source is the same address.
    fn source_of(&self, from: IpAddr, to: SocketAddr) -> io::Result<(IpAddr, bool)> {
        let destination = to.ip();
        let error = |kind, why| Err(io::Error::new(kind, why));
        let network = self.addressing.network.lock();
        if to.port() == 0 || !ip::is_endpoint(destination) || network.is_broadcast(destination) {
            let why = format!(
                "no host can be reached at {to}: give a port and the address of one host (not a loopback, \
                 multicast, broadcast or reserved one, nor an IPv4 address in the form of IPv6)"
            );
            return error(io::ErrorKind::InvalidInput, why);
        }
        let looped = network.is_own(destination);
        let why = |what: &str| format!("the route to {destination} says: {what}");
        match network.route_to(destination) {
            Route::Link { .. } => {}
            _ if looped => {}
            Route::Unreachable => {
                return error(io::ErrorKind::HostUnreachable, why("unreachable"));
            }
            Route::Prohibited => {
                return error(io::ErrorKind::PermissionDenied, why("prohibited"));
            }
        }
        if !from.is_unspecified() {
            return if from.is_ipv4() != destination.is_ipv4() {
                let why = format!("{destination} cannot be reached from {from}: use one family");
                error(io::ErrorKind::InvalidInput, why)
            } else if network.is_own(from) {
                Ok((from, looped))
            } else {
                let why = format!("{from} is not an address of this stack");
                error(io::ErrorKind::AddrNotAvailable, why)
            };
        }
        let why = format!("the stack has no address to reach {destination} from");
        let source = if looped {
            Some(destination)
        } else {
            network.source_for(destination)
        };
        let none = || error(io::ErrorKind::AddrNotAvailable, why);
        source.map_or_else(none, |source| Ok((source, looped)))
    }

    /// Checks the number of a queue.
    fn queue_number(&self, queue: usize) -> io::Result<u16> {
        let number = u16::try_from(queue).ok();
        let number = number.filter(|_| queue < self.queues.len());
        number.ok_or_else(|| {
            let last = self.queues.len() - 1;
            let why = format!("the stack has no queue {queue}: use 0 to {last}");
            io::Error::new(io::ErrorKind::InvalidInput, why)
        })
    }

    /// The home of a new connection. `None` if answers would arrive on another queue than the requested
    /// one.
    fn home_for(&self, tuple: &Tuple, way: &Way<'_>) -> Option<u16> {
        let wanted = way.queue;
        let count = self.queues.len();
        if count == 1 {
            return Some(0);
        }
        let flow = Flow {
            local: SocketAddr::new(tuple.local, tuple.local_port),
            remote: SocketAddr::new(tuple.remote, tuple.remote_port),
        };
        let link = Some(&self.queues[0].link).filter(|_| !way.looped);
        let steered = link.and_then(|link| link.steer(&flow));
        let steered = steered.filter(|one| *one < count);
        let is_up = |queue: &usize| !self.queues[*queue].is_gone();
        let Some(steered) = steered else {
            // Queues take turns, except those whose link is gone.
            let turn = self.addressing.dialled.fetch_add(1, Ordering::Relaxed);
            let turns = (0..count).map(|next| (turn + next) % count);
            let any = || turns.clone().find(is_up).unwrap_or(turn % count);
            return wanted.or_else(|| u16::try_from(any()).ok());
        };
        let home = u16::try_from(steered).ok();
        match wanted {
            Some(wanted) => home.filter(|home| wanted == *home),
            None => home.filter(|_| is_up(&steered)),
        }
    }

    /// Begins to connect from a port. `None` if the tuple is taken, possibly by a record in TIME-WAIT,
    /// or answers would not arrive on the requested queue.
    fn connect(
        self: &Arc<Self>,
        way: &Way<'_>,
        local_port: u16,
        place: Place,
    ) -> io::Result<Option<Arc<Conn>>> {
        let tuple = way.tuple(local_port);
        let Some(queue) = self.home_for(&tuple, way) else {
            return Ok(None);
        };
        if place == Place::Free && self.table.contains(&tuple) {
            return Ok(None);
        }
        let now = self.clock.now();
        let former = match place {
            Place::Free => None,
            Place::TimeWait => self.table.reusable(&tuple, now),
        };
        if place == Place::TimeWait && former.is_none() {
            return Ok(None);
        }
        if !self.table.has_room() {
            return Err(self.too_many_connections());
        }
        let looped = way.looped;
        let home = Home { queue, looped };
        let number = self.initial_sequence_number(&tuple, former.as_ref(), now);
        let conn = self.connection(home, (tuple, Opening::Active), number, now);
        way.preset.apply(&conn.options);
        match self.table.insert(&conn, former.as_ref()) {
            Ok(()) => {}
            Err(Refusal::Connections) => return Err(self.too_many_connections()),
            Err(_) => return Ok(None),
        }
        self.counters(queue).active_opens.add(1);
        let reused = u64::from(former.is_some());
        self.received.time_wait_reused.add(reused);
        let peer = way.to;
        report!(debug, "tcp", local = %tuple.ends().0, %peer, "connecting");
        // Either remove_address() has seen the connection, or this sees that the address was removed.
        if !self.is_own(way.local) || looped && !self.is_own(tuple.remote) {
            conn.run(Work::ADDRESS_REMOVED, Runner::User);
            return Err(SoError::AddressRemoved.into());
        }
        if self.end_if_down(&conn, Runner::User) {
            return Err(self.why_down().into());
        }
        let mut work = Work::SERVE;
        if !way.preset.is_empty() {
            work.add(Work::OPTIONS);
        }
        conn.run(work, Runner::User);
        Ok(Some(conn))
    }
}
