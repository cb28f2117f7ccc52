//! Acts that set options, read state, or add and remove upcalls.

use crate::arena::Bell;
use crate::handle::Handle;
use crate::random::Random;
use crate::stage::Stage;
use crate::verdict::{self, Verdict, forbidden, nothing_there};
use sosplice::error::Flavor;
use sosplice::local;
use sosplice::splice::Role;
use std::sync::Arc;
use std::time::Duration;

pub(super) fn timeouts(stage: &Stage, random: &mut Random) -> Verdict {
    let socket = stage.arena.sockets.get(random).ok_or_else(nothing_there)?;
    let timeout = (!random.one_in(16)).then(|| Duration::from_micros(random.size(30_000)));
    let set = match random.one_in(2) {
        true => socket.set_read_timeout(timeout),
        false => socket.set_write_timeout(timeout),
    };
    verdict::of_timeout(set, false)
}

pub(super) fn zero_timeout(stage: &Stage, random: &mut Random) -> Verdict {
    let socket = stage.arena.sockets.get(random).ok_or_else(nothing_there)?;
    verdict::of_timeout(socket.set_read_timeout(Some(Duration::ZERO)), true)
}

pub(super) fn nonblocking(stage: &Stage, random: &mut Random) -> Verdict {
    let socket = stage.arena.sockets.get(random).ok_or_else(nothing_there)?;
    socket.set_nonblocking(random.one_in(2));
    Ok(())
}

pub(super) fn high_water(stage: &Stage, random: &mut Random) -> Verdict {
    let socket = stage.arena.sockets.get(random).ok_or_else(nothing_there)?;
    let bytes = random.length(512 * 1024);
    match random.one_in(2) {
        true => socket.set_rcv_hiwat(bytes),
        false => socket.set_snd_hiwat(bytes),
    }
    Ok(())
}

pub(super) fn low_water(stage: &Stage, random: &mut Random) -> Verdict {
    let socket = stage.arena.sockets.get(random).ok_or_else(nothing_there)?;
    let bytes = random.length(64 * 1024);
    match random.one_in(2) {
        true => socket.set_rcv_lowat(bytes),
        false => socket.set_snd_lowat(bytes),
    }
    Ok(())
}

pub(super) fn flavor(stage: &Stage, random: &mut Random) -> Verdict {
    let socket = stage.arena.sockets.get(random).ok_or_else(nothing_there)?;
    socket.set_flavor(*random.pick(&[Flavor::FreeBsd, Flavor::OpenBsd]));
    Ok(())
}

pub(super) fn nodelay(stage: &Stage, random: &mut Random) -> Verdict {
    let socket = stage.arena.sockets.get(random).ok_or_else(nothing_there)?;
    if let Handle::Tcp(stream) = &socket {
        stream.set_nodelay(random.one_in(2));
    }
    Ok(())
}

pub(super) fn take_error(stage: &Stage, random: &mut Random) -> Verdict {
    let socket = stage.arena.sockets.get(random).ok_or_else(nothing_there)?;
    socket
        .take_error()
        .map_or(Ok(()), |error| Err(verdict::of_so_error(error)))
}

/// Reads state under every lock.
pub(super) fn look(stage: &Stage, random: &mut Random) -> Verdict {
    let socket = stage.arena.sockets.get(random).ok_or_else(nothing_there)?;
    let (memory, bytes) = socket.end().with_rcv(|rcv| (rcv.memory(), rcv.len()));
    let low = (socket.rcv_lowat(), socket.snd_lowat());
    if memory < bytes || low.0 == 0 || low.1 == 0 {
        let why = format!("{bytes} bytes in {memory}, low-water marks {low:?}");
        return Err(forbidden(why));
    }
    for role in [Role::Source, Role::Sink] {
        if let Some(end) = socket.splice_end(role) {
            // Formatting reads all fields.
            drop(format!("{end:?}"));
        }
    }
    drop(format!(
        "{socket:?} {} {:?}",
        socket.spliced(),
        socket.read_timeout()
    ));
    Ok(())
}

/// One in four holds a socket, whose peer is shared: dropping the upcall closes it.
pub(super) fn add_upcall(stage: &Stage, random: &mut Random) -> Verdict {
    let socket = stage.arena.sockets.get(random).ok_or_else(nothing_there)?;
    let holds = random.maybe(4, |random| {
        let (held, shared) = local::pair();
        let held = Handle::from(held);
        stage.arena.register(&held);
        stage.arena.share(random, shared);
        held
    });
    let bell = Arc::new(Bell {
        rings: stage.arena.rings.clone(),
        holds,
    });
    match random.one_in(2) {
        true => socket.add_rcv_upcall(bell.clone()),
        false => socket.add_snd_upcall(bell.clone()),
    }
    // A bell with a socket stays with its buffer, to be dropped when that is closed.
    if bell.holds.is_none() {
        drop(stage.arena.bells.put(random, bell));
    }
    Ok(())
}

/// Most often the upcall is on another socket than this.
pub(super) fn remove_upcall(stage: &Stage, random: &mut Random) -> Verdict {
    let socket = stage.arena.sockets.get(random).ok_or_else(nothing_there)?;
    let bell = stage.arena.bells.take(random).ok_or_else(nothing_there)?;
    let removed = (
        socket.remove_rcv_upcall(&*bell),
        socket.remove_snd_upcall(&*bell),
    );
    drop(removed);
    Ok(())
}
