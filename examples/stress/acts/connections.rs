//! Acts that make connections, listen, and end connections.

use crate::handle::Handle;
use crate::random::Random;
use crate::stage::Stage;
use crate::verdict::{self, Verdict, forbidden, nothing_there};
use crate::world::Host;
use sosplice::clock::{Clock, SystemClock};
use sosplice::{TcpListener, TcpSocket, TcpStream, local};
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// Shares a new socket. Readers and writers wait for a short time or, rarely, until the reaper ends the
/// socket.
pub(crate) fn share(stage: &Stage, random: &mut Random, socket: impl Into<Handle>) {
    let socket = socket.into();
    let patience = |random: &mut Random| {
        let time = Duration::from_micros(random.size(10_000));
        (!random.one_in(16)).then_some(time)
    };
    let read = socket.set_read_timeout(patience(random));
    let write = socket.set_write_timeout(patience(random));
    if let Err(error) = read.and(write) {
        stage
            .faults
            .report(format!("a timeout that is not 0: {error}"));
    }
    stage.arena.share(random, socket);
}

pub(super) fn local_pair(stage: &Stage, random: &mut Random) -> Verdict {
    let hiwat = |random: &mut Random| random.length(256 * 1024);
    let (a, b) = match random.one_in(3) {
        true => local::pair(),
        false => local::pair_with_hiwat(hiwat(random), hiwat(random)),
    };
    share(stage, random, a);
    share(stage, random, b);
    stage.connections.fetch_add(1, Ordering::Relaxed);
    Ok(())
}

/// The connecting host, and the one at the other end of its link.
fn ends<'a>(stage: &'a Stage, random: &mut Random) -> (&'a Host, &'a Host) {
    let network = random.pick(&stage.world.networks);
    let from = random.below(2);
    (&network.hosts[from], &network.hosts[1 - from])
}

fn connected(stage: &Stage, random: &mut Random, stream: std::io::Result<TcpStream>) -> Verdict {
    let stream = stream.map_err(|error| verdict::of_connect(&error))?;
    stage.connections.fetch_add(1, Ordering::Relaxed);
    share(stage, random, stream);
    Ok(())
}

pub(super) fn connect(stage: &Stage, random: &mut Random) -> Verdict {
    let (from, to) = ends(stage, random);
    connected(stage, random, TcpStream::connect(&from.stack, to.service()))
}

pub(super) fn connect_timeout(stage: &Stage, random: &mut Random) -> Verdict {
    let (from, to) = ends(stage, random);
    let timeout = Duration::from_micros(random.size(50_000));
    let stream = TcpStream::connect_timeout(&from.stack, to.service(), timeout);
    connected(stage, random, stream)
}

pub(super) fn start(stage: &Stage, random: &mut Random) -> Verdict {
    let (from, to) = ends(stage, random);
    connected(
        stage,
        random,
        TcpSocket::new(&from.stack).start(to.service()),
    )
}

pub(super) fn wait_connected(stage: &Stage, random: &mut Random) -> Verdict {
    let socket = stage.arena.sockets.get(random).ok_or_else(nothing_there)?;
    let deadline = SystemClock.now() + random.millis(0..=20);
    socket
        .wait_connected(Some(deadline))
        .map_err(verdict::of_wait)
}

/// No answer: the frames go to a stack that does not have the address.
pub(super) fn connect_to_an_unused_address(stage: &Stage, random: &mut Random) -> Verdict {
    let (from, _) = ends(stage, random);
    let timeout = random.millis(1..=20);
    match TcpStream::connect_timeout(&from.stack, from.unused_address(9), timeout) {
        Ok(_) => Err(forbidden("an unused address answered")),
        Err(error) if error.kind() == ErrorKind::TimedOut => Err(verdict::of_connect(&error)),
        Err(error) => Err(forbidden(format!("{error:?}"))),
    }
}

/// A closed port. The reset is dropped when the link is full, so it may be lost each time.
pub(super) fn connect_refused(stage: &Stage, random: &mut Random) -> Verdict {
    let (from, to) = ends(stage, random);
    match TcpStream::connect(&from.stack, to.at(9)) {
        Err(error) if error.kind() == ErrorKind::TimedOut => Err(verdict::of_connect(&error)),
        stream => verdict::of_mistake(stream, ErrorKind::ConnectionRefused),
    }
}

pub(super) fn connect_badly(stage: &Stage, random: &mut Random) -> Verdict {
    let (from, to) = ends(stage, random);
    let other_family: SocketAddr = match to.address.is_ipv4() {
        true => ([0xfd00, 0, 0, 0, 0, 0, 0, 2], 80).into(),
        false => ([10, 0, 0, 2], 80).into(),
    };
    let (address, right) = match random.below(3) {
        0 => (to.at(0), ErrorKind::InvalidInput),
        1 => (([224, 0, 0, 1], 80).into(), ErrorKind::InvalidInput),
        _ => (other_family, ErrorKind::AddrNotAvailable),
    };
    verdict::of_mistake(TcpSocket::new(&from.stack).start(address), right)
}

/// Threads in `accept` return, and connections that were not accepted are reset.
pub(super) fn relisten(stage: &Stage, random: &mut Random) -> Verdict {
    let (host, _) = ends(stage, random);
    host.listen().map_err(|error| verdict::of_bind(&error))
}

/// At a port of its own, and at the same port again.
pub(super) fn listen_twice(stage: &Stage, random: &mut Random) -> Verdict {
    let (host, _) = ends(stage, random);
    let listener = TcpListener::bind(&host.stack, host.at(0));
    let listener = listener.map_err(|error| forbidden(format!("port 0: {error:?}")))?;
    let again = TcpListener::bind(&host.stack, listener.local_addr());
    verdict::of_mistake(again, ErrorKind::AddrInUse)?;
    listener.set_nonblocking(true);
    verdict::of_mistake(listener.accept(), ErrorKind::WouldBlock)?;
    listener.close();
    verdict::of_mistake(listener.accept(), ErrorKind::InvalidInput)
}

/// The same socket in another slot too.
pub(super) fn duplicate(stage: &Stage, random: &mut Random) -> Verdict {
    let socket = stage.arena.sockets.get(random).ok_or_else(nothing_there)?;
    drop(stage.arena.sockets.put(random, socket));
    Ok(())
}

/// Drops a slot's handle; the last one of a socket closes it.
pub(super) fn close(stage: &Stage, random: &mut Random) -> Verdict {
    let socket = stage.arena.sockets.take(random).ok_or_else(nothing_there)?;
    drop(socket);
    Ok(())
}

pub(super) fn abort(stage: &Stage, random: &mut Random) -> Verdict {
    let socket = stage.arena.sockets.get(random).ok_or_else(nothing_there)?;
    socket.abort();
    Ok(())
}
