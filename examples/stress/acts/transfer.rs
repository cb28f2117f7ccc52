//! Acts that send, receive and shut down.

use crate::random::Random;
use crate::stage::Stage;
use crate::verdict::{self, Verdict, forbidden, nothing_there};
use crate::watch::Post;
use sosplice::buf::{Buf, Chain};
use std::net::Shutdown;
use std::sync::atomic::Ordering;

/// Maximum bytes of a call.
const MOST: usize = 64 * 1024;

pub(super) fn send(stage: &Stage, random: &mut Random, post: &Post) -> Verdict {
    let socket = stage.arena.sockets.get(random).ok_or_else(nothing_there)?;
    let bytes = vec![0x5a; random.length(MOST)];
    let sent = post.sleeping_on(&socket, |socket| socket.send(&bytes));
    let sent = sent.map_err(|error| verdict::of_transfer(&error))?;
    stage.sent.fetch_add(sent as u64, Ordering::Relaxed);
    within(sent, 1, bytes.len())
}

pub(super) fn send_chain(stage: &Stage, random: &mut Random, post: &Post) -> Verdict {
    let socket = stage.arena.sockets.get(random).ok_or_else(nothing_there)?;
    let mut chain = Chain::default();
    for _ in 0..random.size(8) {
        let bytes = vec![0xa5; random.length(MOST / 8)];
        match random.one_in(2) {
            true => chain.append(Buf::copy_of(&bytes)),
            false => chain.append(Buf::from(bytes)),
        }
    }
    let whole = chain.len();
    let sent = post.sleeping_on(&socket, |socket| socket.send_chain(&mut chain));
    if sent.as_ref().map_or(0, |sent| *sent) + chain.len() != whole {
        let left = chain.len();
        return Err(forbidden(format!(
            "{sent:?} of {whole} bytes, but {left} are left"
        )));
    }
    let sent = sent.map_err(|error| verdict::of_transfer(&error))?;
    stage.sent.fetch_add(sent as u64, Ordering::Relaxed);
    within(sent, 1, whole)
}

pub(super) fn recv(stage: &Stage, random: &mut Random, post: &Post) -> Verdict {
    let socket = stage.arena.sockets.get(random).ok_or_else(nothing_there)?;
    let mut bytes = vec![0; random.length(MOST)];
    let received = post.sleeping_on(&socket, |socket| socket.recv(&mut bytes));
    let received = received.map_err(|error| verdict::of_transfer(&error))?;
    stage.received.fetch_add(received as u64, Ordering::Relaxed);
    within(received, 0, bytes.len())
}

pub(super) fn recv_chain(stage: &Stage, random: &mut Random, post: &Post) -> Verdict {
    let socket = stage.arena.sockets.get(random).ok_or_else(nothing_there)?;
    let most = random.length(MOST);
    let received = post.sleeping_on(&socket, |socket| socket.recv_chain(most));
    let received = received
        .map_err(|error| verdict::of_transfer(&error))?
        .len();
    stage.received.fetch_add(received as u64, Ordering::Relaxed);
    within(received, 0, most)
}

pub(super) fn peek(stage: &Stage, random: &mut Random, post: &Post) -> Verdict {
    let socket = stage.arena.sockets.get(random).ok_or_else(nothing_there)?;
    let mut bytes = vec![0; random.length(MOST)];
    let seen = post.sleeping_on(&socket, |socket| socket.peek(&mut bytes));
    within(
        seen.map_err(|error| verdict::of_transfer(&error))?,
        0,
        bytes.len(),
    )
}

pub(super) fn shutdown(stage: &Stage, random: &mut Random) -> Verdict {
    let socket = stage.arena.sockets.get(random).ok_or_else(nothing_there)?;
    let how = *random.pick(&[
        Shutdown::Read,
        Shutdown::Write,
        Shutdown::Write,
        Shutdown::Both,
    ]);
    let done = socket.shutdown(how);
    done.map_err(|error| forbidden(format!("{error:?}")))
}

fn within(count: usize, least: usize, most: usize) -> Verdict {
    if (least..=most).contains(&count) {
        Ok(())
    } else {
        Err(forbidden(format!(
            "{count} bytes, but {least} to {most} can be"
        )))
    }
}
