//! Active opens: which source address, port and home a connection that is dialled gets.

use super::quota::Refusal;
use super::route::Route;
use super::{Shared, Stack};
use crate::error::SoError;
use crate::events::tell;
use crate::link::{Flow, Link};
use crate::tcp::conn::{Conn, Runner};
use crate::tcp::engine::Engine;
use crate::tcp::host::Host;
use crate::tcp::tcb::Work;
use crate::tcp::wire::{self, Tuple};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering;

impl Stack {
    /// Begins to connect. An unspecified address and port of `from` are chosen, the port so that
    /// answers come to `queue`, if the link can say that.
    pub(crate) fn dial(
        &self,
        from: SocketAddr,
        to: SocketAddr,
        queue: Option<usize>,
    ) -> io::Result<Arc<Conn>> {
        let shared = self.shared();
        let queue = queue.map(|queue| shared.queue_number(queue)).transpose()?;
        let local = shared.source_of(from.ip(), to)?;
        if shared.is_down(queue.unwrap_or(shared.first_up())) {
            return Err(SoError::NetworkDown.into());
        }
        let error = |kind, why| Err(io::Error::new(kind, why));
        if from.port() != 0 {
            let why = format!(
                "the connection from {local}:{} to {to} is there, or was lately",
                from.port()
            );
            let conn = shared.connect(local, from.port(), to, (queue, Place::Free))?;
            return conn.map_or_else(|| error(io::ErrorKind::AddrInUse, why), Ok);
        }
        // The port that was used longest ago comes first. If that and some behind it are in TIME-WAIT,
        // so are most of the others, and a look at all of them would cost more than the connection.
        const ENOUGH: usize = 8;
        let mut reusable = None;
        for (looked, port) in shared.numbers.ports_to(local, to).enumerate() {
            if let Some(conn) = shared.connect(local, port, to, (queue, Place::Free))? {
                return Ok(conn);
            }
            let now = shared.clock.now();
            let old = |port: &u16| {
                let tuple = tuple_of(local, *port, to);
                let home = shared.home_for(&tuple, queue);
                home.is_some() && shared.table.reusable(&tuple, now).is_some()
            };
            reusable = reusable.or_else(|| Some(port).filter(old));
            if let Some(port) = reusable.filter(|_| looked >= ENOUGH)
                && let Some(conn) = shared.connect(local, port, to, (queue, Place::TimeWait))?
            {
                return Ok(conn);
            }
        }
        if let Some(port) = reusable
            && let Some(conn) = shared.connect(local, port, to, (queue, Place::TimeWait))?
        {
            return Ok(conn);
        }
        let by = queue.map_or_else(String::new, |queue| format!(" by queue {queue}"));
        let why = format!("all ephemeral ports to {to}{by} are in use");
        error(io::ErrorKind::AddrNotAvailable, why)
    }
}

/// What may have the tuple of a new connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// Nothing.
    Free,
    /// A record that is old enough.
    TimeWait,
}

fn tuple_of(local: IpAddr, local_port: u16, to: SocketAddr) -> Tuple {
    Tuple {
        local,
        remote: to.ip(),
        local_port,
        remote_port: to.port(),
    }
}

impl Shared {
    /// The address to connect from: the given one, or else one that is chosen.
    fn source_of(&self, from: IpAddr, to: SocketAddr) -> io::Result<IpAddr> {
        let destination = to.ip();
        let error = |kind, why| Err(io::Error::new(kind, why));
        let network = self.network.lock();
        if to.port() == 0 || !wire::is_endpoint(destination) || network.is_broadcast(destination) {
            let why = format!(
                "no host can be reached at {to}: give a port and the address of one host (not a loopback, \
                 multicast, broadcast or reserved one, nor an IPv4 address in the form of IPv6)"
            );
            return error(io::ErrorKind::InvalidInput, why);
        }
        let why = |what: &str| format!("the route to {destination} says: {what}");
        match network.route_to(destination) {
            Route::Link { .. } => {}
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
                Ok(from)
            } else {
                let why = format!("{from} is not an address of this stack");
                error(io::ErrorKind::AddrNotAvailable, why)
            };
        }
        let why = format!("the stack has no address to reach {destination} from");
        let source = network.source_for(destination);
        source.map_or_else(|| error(io::ErrorKind::AddrNotAvailable, why), Ok)
    }

    /// The number of a queue that a user has named.
    fn queue_number(&self, queue: usize) -> io::Result<u16> {
        let number = u16::try_from(queue).ok();
        let number = number.filter(|_| queue < self.queues.len());
        number.ok_or_else(|| {
            let last = self.queues.len() - 1;
            let why = format!("the stack has no queue {queue}: use 0 to {last}");
            io::Error::new(io::ErrorKind::InvalidInput, why)
        })
    }

    /// The home of a connection that is dialled. `None`: answers would come by another queue than the
    /// one that is wanted.
    fn home_for(&self, tuple: &Tuple, wanted: Option<u16>) -> Option<u16> {
        let count = self.queues.len();
        if count == 1 {
            return Some(0);
        }
        let flow = Flow {
            local: SocketAddr::new(tuple.local, tuple.local_port),
            remote: SocketAddr::new(tuple.remote, tuple.remote_port),
        };
        let steered = self.queues[0].link.steer(&flow).filter(|one| *one < count);
        let is_up = |queue: &usize| !self.queues[*queue].is_gone();
        let Some(steered) = steered else {
            // They take turns, those whose link is gone left out.
            let turn = self.dialled.fetch_add(1, Ordering::Relaxed);
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

    /// Begins to connect from a port. `None`: the tuple is taken, maybe by a record in TIME-WAIT, or
    /// answers would not come by the queue that is wanted.
    fn connect(
        self: &Arc<Self>,
        local: IpAddr,
        local_port: u16,
        to: SocketAddr,
        (queue, place): (Option<u16>, Place),
    ) -> io::Result<Option<Arc<Conn>>> {
        let tuple = tuple_of(local, local_port, to);
        let Some(home) = self.home_for(&tuple, queue) else {
            return Ok(None);
        };
        let to_itself = local == to.ip() && local_port == to.port();
        if to_itself || place == Place::Free && self.table.contains(&tuple) {
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
        let engine = self.engine(home, &tuple, |link, config| {
            Engine::connecting(link, config, &tuple)
        });
        let number = self.initial_sequence_number(&tuple, former.as_ref());
        let conn = self.connection(home, (tuple, false), engine, number);
        match self.table.insert(&conn, former.as_ref()) {
            Ok(()) => {}
            Err(Refusal::Connections) => return Err(self.too_many_connections()),
            Err(_) => return Ok(None),
        }
        self.counters(home).active_opens.add(1);
        let reused = u64::from(former.is_some());
        self.received.time_wait_reused.add(reused);
        tell!(debug, "tcp", local = %tuple.ends().0, peer = %to, "connecting");
        // remove_address() either has found the connection too, or this finds the address gone.
        if !self.is_own(local) {
            conn.run(Work::NETWORK_DOWN, Runner::User);
            return Err(SoError::NetworkDown.into());
        }
        if self.end_if_down(&conn, Runner::User) {
            return Err(SoError::NetworkDown.into());
        }
        conn.run(Work::SERVE, Runner::User);
        Ok(Some(conn))
    }
}
