//! Acts that splice, unsplice and watch splices.

use crate::ends::Pool;
use crate::random::Random;
use crate::stage::Stage;
use crate::verdict::{self, Verdict, forbidden, nothing_there};
use sosplice::Socket;
use sosplice::splice::{Cause, Splice, SpliceError, SplicePool};
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

/// Splices in the pool of chaos, and shares the handle.
pub(super) fn join(
    stage: &Arc<Stage>,
    random: &mut Random,
    source: &impl AsRef<Socket>,
    sink: &impl AsRef<Socket>,
) -> Verdict {
    let options = stage.options(random, &stage.world.chaos);
    let limit = options.limit;
    let splice = source.as_ref().splice_to(sink, options);
    let splice = splice.map_err(verdict::of_splice)?;
    watch(stage, random, &stage.world.chaos, &splice, limit);
    drop(stage.arena.splices.put(random, Arc::new(splice)));
    Ok(())
}

/// Counts the end, and sometimes performs an act on the thread that ends the splice.
fn watch(
    stage: &Arc<Stage>,
    random: &mut Random,
    pool: &Arc<Pool>,
    splice: &Splice,
    limit: Option<u64>,
) {
    let (pool, faults) = (pool.clone(), stage.faults.clone());
    let mut random = random.clone();
    // The stage has the sockets, and sockets keep the callbacks of their splices.
    let stage: Weak<Stage> = Arc::downgrade(stage);
    splice.on_end(move |end| {
        pool.ends.add(end);
        let right = match (limit, end.cause) {
            (Some(limit), Cause::Limit) => end.bytes == limit,
            (None, Cause::Limit) => false,
            (Some(limit), _) => end.bytes <= limit,
            (None, _) => true,
        };
        if !right {
            faults.report(format!("a splice with limit {limit:?} has ended: {end:?}"));
        }
        if let Some(stage) = stage.upgrade().filter(|_| !faults.is_stopped()) {
            afterwards(&stage, &mut random);
        }
    });
}

/// In the callback of a splice, where all calls are allowed.
fn afterwards(stage: &Arc<Stage>, random: &mut Random) {
    let verdict = match random.below(16) {
        0 => splice(stage, random),
        1 => super::connections::close(stage, random),
        2 => unsplice(stage, random),
        _ => Ok(()),
    };
    if let Err(verdict::Refusal::Forbidden(why)) = verdict {
        stage
            .faults
            .report(format!("in the callback of a splice: {why}"));
    }
}

pub(super) fn splice(stage: &Arc<Stage>, random: &mut Random) -> Verdict {
    let source = stage.arena.sockets.get(random).ok_or_else(nothing_there)?;
    let sink = stage.arena.sockets.get(random).ok_or_else(nothing_there)?;
    join(stage, random, &source, &sink)
}

pub(super) fn splice_itself(stage: &Arc<Stage>, random: &mut Random) -> Verdict {
    let socket = stage.arena.sockets.get(random).ok_or_else(nothing_there)?;
    join(stage, random, &socket, &socket)
}

pub(super) fn both_ways(stage: &Arc<Stage>, random: &mut Random) -> Verdict {
    let one = stage.arena.sockets.get(random).ok_or_else(nothing_there)?;
    let other = stage.arena.sockets.get(random).ok_or_else(nothing_there)?;
    join(stage, random, &one, &other)?;
    join(stage, random, &other, &one)
}

/// Each to the next one, and the last one to the first one.
pub(super) fn ring(stage: &Arc<Stage>, random: &mut Random) -> Verdict {
    let count = random.between(2..=5);
    let sockets = (0..count).map(|_| stage.arena.sockets.get(random));
    let sockets: Vec<_> = sockets.collect::<Option<_>>().ok_or_else(nothing_there)?;
    let next = sockets.iter().cycle().skip(1);
    let links = sockets.iter().zip(next);
    let verdicts = links.map(|(source, sink)| join(stage, random, source, sink));
    verdicts.collect::<Vec<_>>().into_iter().collect()
}

pub(super) fn chain(stage: &Arc<Stage>, random: &mut Random) -> Verdict {
    let count = random.between(3..=8);
    let sockets = (0..count).map(|_| stage.arena.sockets.get(random));
    let sockets: Vec<_> = sockets.collect::<Option<_>>().ok_or_else(nothing_there)?;
    let links = sockets.windows(2);
    let verdicts = links.map(|link| join(stage, random, &link[0], &link[1]));
    verdicts.collect::<Vec<_>>().into_iter().collect()
}

/// Unsplices, and splices the same source again.
pub(super) fn resplice(stage: &Arc<Stage>, random: &mut Random) -> Verdict {
    let source = stage.arena.sockets.get(random).ok_or_else(nothing_there)?;
    let sink = stage.arena.sockets.get(random).ok_or_else(nothing_there)?;
    source.unsplice().map_err(verdict::of_unsplice)?;
    join(stage, random, &source, &sink)
}

pub(super) fn unsplice(stage: &Arc<Stage>, random: &mut Random) -> Verdict {
    let source = stage.arena.sockets.get(random).ok_or_else(nothing_there)?;
    let end = source.unsplice().map_err(verdict::of_unsplice)?;
    match end.cause {
        Cause::Unspliced => Ok(()),
        _ => Err(forbidden(format!("{end:?}"))),
    }
}

pub(super) fn unsplice_handle(stage: &Arc<Stage>, random: &mut Random) -> Verdict {
    let splice = stage.arena.splices.get(random).ok_or_else(nothing_there)?;
    let end = splice.unsplice().map_err(verdict::of_unsplice)?;
    if end.cause == Cause::Unspliced && splice.end() == Some(end) && splice.bytes() == end.bytes {
        return Ok(());
    }
    let then = splice.end();
    Err(forbidden(format!(
        "{end:?}, then {then:?} with {} bytes",
        splice.bytes()
    )))
}

pub(super) fn wait_for_end(stage: &Arc<Stage>, random: &mut Random) -> Verdict {
    let splice = stage.arena.splices.get(random).ok_or_else(nothing_there)?;
    let waited = splice.wait_timeout(Duration::from_micros(random.size(20_000)));
    if waited.is_some() && waited != splice.end() {
        return Err(forbidden(format!("{waited:?}, then {:?}", splice.end())));
    }
    Ok(())
}

pub(super) fn poll_for_end(stage: &Arc<Stage>, random: &mut Random) -> Verdict {
    let splice = stage.arena.splices.get(random).ok_or_else(nothing_there)?;
    let mut ended = splice.ended();
    let mut context = Context::from_waker(Waker::noop());
    for _ in 0..random.size(3) {
        if let Poll::Ready(end) = Pin::new(&mut ended).poll(&mut context)
            && Some(end) != splice.end()
        {
            return Err(forbidden(format!("{end:?}, then {:?}", splice.end())));
        }
    }
    Ok(())
}

/// Counts never decrease, and an end does not change.
pub(super) fn look_at_splice(stage: &Arc<Stage>, random: &mut Random) -> Verdict {
    let splice = stage.arena.splices.get(random).ok_or_else(nothing_there)?;
    let before = (splice.end(), splice.bytes());
    let after = (splice.bytes(), splice.end());
    let stays = before.0.is_none() || (before.0 == after.1 && before.1 == after.0);
    if !stays || (before.0.is_some() && !splice.is_ended()) {
        return Err(forbidden(format!("{before:?}, then {after:?}: {splice:?}")));
    }
    Ok(())
}

pub(super) fn forget_splice(stage: &Arc<Stage>, random: &mut Random) -> Verdict {
    let splice = stage.arena.splices.take(random).ok_or_else(nothing_there)?;
    drop(splice);
    Ok(())
}

/// Invalid options: nothing may change.
pub(super) fn splice_badly(stage: &Arc<Stage>, random: &mut Random) -> Verdict {
    let source = stage.arena.sockets.get(random).ok_or_else(nothing_there)?;
    let sink = stage.arena.sockets.get(random).ok_or_else(nothing_there)?;
    let mut options = stage.options(random, &stage.world.chaos);
    let right = match random.below(4) {
        0 => {
            options.limit = Some(0);
            SpliceError::ZeroLimit
        }
        1 => {
            options.idle = Some(Duration::ZERO);
            SpliceError::ZeroTimeout
        }
        2 => {
            options.lifetime = Some(Duration::ZERO);
            SpliceError::ZeroTimeout
        }
        _ => {
            options = options.pool(SplicePool::builder().workers(0).build());
            SpliceError::PoolDisabled
        }
    };
    match source.splice_to(&sink, options) {
        Err(error) if error == right => Err(verdict::Refusal::Allowed(format!("{error:?}"))),
        other => Err(forbidden(format!("{other:?} instead of {right:?}"))),
    }
}
