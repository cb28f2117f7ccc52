//! One of the two connections fails while it is spliced: OpenBSD's `args-server-abort` and
//! `args-server-exit`, and the same for the client.
//!
//! In all of them bytes that the sink has not taken are still on the source, and bytes that the source
//! had received still go to a working sink.

use super::args::{DEFAULT, assert_same};
use super::harness::{Turn, pattern, turns};
use crate::conformance::{Outcome, RESETS, World};
use crate::error::{Flavor, SoError};
use crate::socket::Socket;
use crate::splice::{Cause, Splice};
use std::io::ErrorKind;

struct Relayed {
    client: Socket,
    source: Socket,
    drain: Socket,
    splice: Splice,
}

/// Also returns the server's socket.
fn relayed(world: &World<'_>) -> (Relayed, Socket) {
    let [client, source] = world.connect(DEFAULT.buffers);
    let [drain, server] = world.connect(DEFAULT.buffers);
    client.set_nonblocking(true);
    server.set_nonblocking(true);
    let splice = source.splice_to(&drain, world.options());
    let splice = splice.expect("nothing is wrong with these sockets");
    let relayed = Relayed {
        client,
        source,
        drain,
        splice,
    };
    (relayed, server)
}

/// Sends as much as there is room for; `true` if there was some.
fn send(socket: &Socket, data: &[u8], sent: &mut usize) -> bool {
    match socket.send(&data[*sent..]) {
        Ok(count) => {
            *sent += count;
            count > 0
        }
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::WouldBlock, "client: {error}");
            false
        }
    }
}

/// Reads the available bytes; `true` if there were some.
fn read(world: &World<'_>, socket: &Socket, into: &mut Vec<u8>) -> bool {
    match world.try_read(socket) {
        Ok(bytes) => {
            into.extend(&bytes);
            !bytes.is_empty()
        }
        Err(error) => {
            assert_eq!(error, ErrorKind::WouldBlock);
            false
        }
    }
}

/// The server ends in this way, in the middle of the data.
fn server_goes(world: &World<'_>, go: impl FnOnce(Socket)) -> Outcome {
    if !world.factory().resets() {
        return RESETS;
    }
    let (relayed, server) = relayed(world);
    let data = pattern(131_072);
    let mut sent = 0;
    turns(world, "some bytes are with the server", || {
        let acted = send(&relayed.client, &data, &mut sent);
        match server.readable_bytes() >= 1000 {
            true => Turn::Done,
            false => Turn::acted(acted),
        }
    });
    // It has read some bytes, and leaves more unread.
    let mut head = [0; 500];
    let count = server.recv(&mut head).expect("bytes are there");
    assert_same("server", &head[..count], &data[..count]);
    go(server);
    turns(world, "the splice has ended", || {
        let acted = send(&relayed.client, &data, &mut sent);
        match relayed.splice.is_ended() {
            true => Turn::Done,
            false => Turn::acted(acted),
        }
    });
    let end = relayed.splice.wait();
    assert_eq!(end.cause, Cause::SinkError(SoError::ConnectionReset));
    let copied = (world.flavor() == Flavor::OpenBsd).then_some(SoError::ConnectionReset);
    assert_eq!(relayed.source.take_error(), copied, "copied to the source");
    assert_eq!(relayed.source.take_error(), None, "read once");
    let kept = relayed.drain.take_error();
    assert_eq!(kept, Some(SoError::ConnectionReset), "kept on the drain");
    let mut rest = Vec::new();
    let counted = usize::try_from(end.bytes).expect("less than was sent");
    turns(world, "the rest is read", || {
        let acted = send(&relayed.client, &data, &mut sent);
        match read(world, &relayed.source, &mut rest) || acted {
            true => Turn::Acted,
            false if counted + rest.len() >= data.len() => Turn::Done,
            false => Turn::Waits,
        }
    });
    assert_same("left on the source", &rest, &data[counted..]);
    Outcome::Passed
}

pub(super) fn server_aborts(world: &World<'_>) -> Outcome {
    server_goes(world, |server| server.abort())
}

pub(super) fn server_exits(world: &World<'_>) -> Outcome {
    server_goes(world, drop)
}

/// The server has read all bytes so far, so its exit causes no reset until more arrive.
pub(super) fn server_exits_politely(world: &World<'_>) -> Outcome {
    let (relayed, server) = relayed(world);
    relayed.client.send(b"read").expect("room");
    assert_eq!(world.receive(&server, 4), b"read");
    drop(server);
    let mut drained = false;
    world.until("the drain is at its end", || {
        drained = drained || world.try_read(&relayed.drain).is_ok();
        drained
    });
    assert!(!relayed.splice.is_ended(), "the drain can still send");
    let mut unread = 0;
    world.until("the drain is reset", || {
        // Unread bytes: the first of them is answered with a reset.
        let sent = relayed.client.send(b"unread");
        unread += sent.unwrap_or(0);
        relayed.splice.is_ended()
    });
    let end = relayed.splice.wait();
    assert_eq!(end.cause, Cause::SinkError(SoError::ConnectionReset));
    assert!(end.bytes > 4 && unread > 0, "{end:?}");
    let copied = (world.flavor() == Flavor::OpenBsd).then_some(SoError::ConnectionReset);
    assert_eq!(relayed.source.take_error(), copied);
    let kept = relayed.drain.take_error();
    assert_eq!(kept, Some(SoError::ConnectionReset));
    Outcome::Passed
}

/// Bytes that the source has received before the reset are still forwarded, though the drain was full.
pub(super) fn client_aborts(world: &World<'_>) -> Outcome {
    if !world.factory().stands_still() {
        return Outcome::NotApplicable("buffers that stand still");
    }
    let (relayed, server) = relayed(world);
    let data = pattern(40_000);
    let mut sent = 0;
    turns(world, "everything is with the relay, or beyond", || {
        let acted = send(&relayed.client, &data, &mut sent);
        let forwarded = usize::try_from(relayed.source.spliced()).expect("less than was sent");
        match forwarded + relayed.source.readable_bytes() == data.len() {
            true => Turn::Done,
            false => Turn::acted(acted),
        }
    });
    relayed.client.abort();
    let is_reset = || relayed.source.end().error() == Some(SoError::ConnectionReset);
    world.until("the reset has arrived", is_reset);
    let waits = relayed.source.readable_bytes() > 0;
    assert!(waits && !relayed.splice.is_ended(), "the drain is full");
    let mut got = Vec::new();
    turns(world, "the splice has ended", || {
        let acted = read(world, &server, &mut got);
        match relayed.splice.is_ended() {
            true => Turn::Done,
            false => Turn::acted(acted),
        }
    });
    let end = relayed.splice.wait();
    assert_eq!(end.cause, Cause::SourceError(SoError::ConnectionReset));
    assert_eq!(end.bytes, data.len() as u64);
    let left = relayed.source.take_error();
    assert_eq!(left, Some(SoError::ConnectionReset), "the protocol's");
    assert_eq!(relayed.drain.take_error(), None);
    got.extend(world.receive(&server, data.len() - got.len()));
    assert_same("server", &got, &data);
    let more = world.try_read(&server);
    assert_eq!(
        more,
        Err(ErrorKind::WouldBlock),
        "the drain is not shut down"
    );
    Outcome::Passed
}

/// A limit before a reset does not hide the reset.
pub(super) fn client_aborts_before_the_limit(world: &World<'_>) -> Outcome {
    if !world.factory().resets() {
        return RESETS;
    }
    let [client, source] = world.connect(DEFAULT.buffers);
    let [drain, server] = world.connect(DEFAULT.buffers);
    let data = pattern(300);
    world.send(&client, &data);
    world.until("it is with the relay", || source.readable_bytes() == 300);
    client.abort();
    world.until("the reset has arrived", || {
        source.end().error() == Some(SoError::ConnectionReset)
    });
    let mut causes = Vec::new();
    while causes.len() < 3 {
        let mut options = world.options();
        options.limit = Some(113);
        let splice = source.splice_to(&drain, options).expect("unread bytes");
        world.until("the splice has ended", || splice.is_ended());
        causes.push(splice.wait().cause);
    }
    let reset = Cause::SourceError(SoError::ConnectionReset);
    assert_eq!(causes, [Cause::Limit, Cause::Limit, reset]);
    assert_eq!(source.take_error(), Some(SoError::ConnectionReset));
    assert_eq!(drain.take_error(), None);
    assert_same("server", &world.receive(&server, 300), &data);
    Outcome::Passed
}

/// The error that a splice has left on its source does not end the other direction, whose drain that
/// is.
pub(super) fn errors_apart(world: &World<'_>) -> Outcome {
    let [client, inside] = world.connect(DEFAULT.buffers);
    let [outside, server] = world.connect(DEFAULT.buffers);
    let mut options = world.options();
    options.limit = Some(3);
    let up = inside.splice_to(&outside, options).expect("fine sockets");
    let down = outside.splice_to(&inside, world.options());
    let down = down.expect("fine sockets");
    world.exchange(&client, &server, b"foo");
    world.until("the limit has ended one", || up.is_ended());
    let said = inside.end().error();
    let openbsd = world.flavor() == Flavor::OpenBsd;
    assert_eq!(said, openbsd.then_some(SoError::SpliceLimit));
    world.exchange(&server, &client, b"bar");
    assert!(!down.is_ended(), "the other direction continues");
    assert_eq!(inside.take_error(), said, "and does not clear the error");
    Outcome::Passed
}
