//! Acts with pools and stacks that live for a short time.

use crate::random::Random;
use crate::stage::Stage;
use crate::verdict::{Verdict, forbidden, nothing_there};
use anyhow::Context;
use sosplice::link::memory;
use sosplice::splice::{Cause, SpliceError, SplicePool};
use sosplice::{Stack, TcpListener, TcpSocket, TcpStream};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

/// How long a splice may take to end after its pool was dropped: a pass may have to finish.
const PATIENCE: Duration = Duration::from_secs(20);
/// Turns of a driver that are enough for a handshake.
const TURNS: usize = 1_000_000;

/// Splices in a pool that is then dropped: they end, and soon.
pub(super) fn guest_pool(stage: &Arc<Stage>, random: &mut Random) -> Verdict {
    let pool = SplicePool::builder().workers(1 + random.below(2)).build();
    let mut splices = Vec::new();
    for _ in 0..random.size(4) {
        let source = stage.arena.sockets.get(random).ok_or_else(nothing_there)?;
        let sink = stage.arena.sockets.get(random).ok_or_else(nothing_there)?;
        let options = stage.options(random, &stage.world.chaos).pool(pool.clone());
        match source.splice_to(&sink, options) {
            Ok(splice) => {
                stage.guest_splices.fetch_add(1, Ordering::Relaxed);
                let guests = stage.guests.clone();
                splice.on_end(move |end| guests.add(end));
                splices.push(splice);
            }
            Err(SpliceError::NotConnected(_) | SpliceError::Busy(_)) => {}
            Err(error) => return Err(forbidden(format!("{error:?}"))),
        }
    }
    drop(pool);
    for splice in splices {
        let Some(end) = splice.wait_timeout(PATIENCE) else {
            return Err(forbidden(format!(
                "it continues without its pool: {splice:?}"
            )));
        };
        if end.cause == Cause::Unspliced && splice.unsplice().is_ok() {
            return Err(forbidden(format!("unspliced twice: {splice:?}")));
        }
    }
    Ok(())
}

/// Two stacks that live as long as the two sockets, which all threads share.
pub(super) fn guest_stacks(stage: &Arc<Stage>, random: &mut Random) -> Verdict {
    let connect = || -> anyhow::Result<[TcpStream; 2]> {
        let (a, b) = memory::pair(memory::Config::default());
        let client = Stack::builder(a).address("10.9.0.1/24".parse()?).build()?;
        let server = Stack::builder(b).address("10.9.0.2/24".parse()?).build()?;
        let listener = TcpListener::bind(&server, "10.9.0.2:80")?;
        let dialled = TcpStream::connect(&client, "10.9.0.2:80")?;
        Ok([dialled, listener.accept()?.0])
    };
    share(stage, random, connect())
}

/// As [`guest_stacks`], but the driver of one of them is dropped: its connections fail.
pub(super) fn lost_link(stage: &Arc<Stage>, random: &mut Random) -> Verdict {
    let connect = || -> anyhow::Result<[TcpStream; 2]> {
        let (a, b) = memory::pair(memory::Config::default());
        let client = Stack::builder(a).address("10.9.0.1/24".parse()?).build()?;
        let builder = Stack::builder(b).address("10.9.0.2/24".parse()?);
        let (server, mut driver) = builder.build_with_driver()?;
        let listener = TcpListener::bind(&server, "10.9.0.2:80")?;
        listener.set_nonblocking(true);
        let dialled = TcpSocket::new(&client).start("10.9.0.2:80".parse()?)?;
        for _ in 0..TURNS {
            driver.poll()?;
            if let Ok((accepted, _)) = listener.accept() {
                return Ok([dialled, accepted]);
            }
            thread::yield_now();
        }
        anyhow::bail!("no connection after {TURNS} turns of the driver")
    };
    share(stage, random, connect().context("with a driver by hand"))
}

fn share(stage: &Stage, random: &mut Random, pair: anyhow::Result<[TcpStream; 2]>) -> Verdict {
    let pair = pair.map_err(|error| forbidden(format!("{error:#}")))?;
    stage.connections.fetch_add(1, Ordering::Relaxed);
    for stream in pair {
        super::share(stage, random, stream);
    }
    Ok(())
}
