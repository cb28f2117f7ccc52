//! The reports.

use crate::acts::Tally;
use crate::arguments::Arguments;
use crate::checks;
use crate::ends;
use crate::stage::Stage;
use sosplice::buf;
use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

fn load(count: &AtomicU64) -> u64 {
    count.load(Ordering::Relaxed)
}

pub(crate) fn headline(arguments: &Arguments, seed: u64) -> String {
    let Arguments {
        seconds,
        threads,
        workers,
        dispatch,
        sockets,
        ..
    } = arguments;
    let checks = if cfg!(debug_assertions) { "on" } else { "off" };
    format!(
        "{seconds:?}, {threads} threads, {sockets} sockets, {workers} worker(s), {dispatch:?} \
         dispatch, checks of locks and invariants {checks}, seed {seed}"
    )
}

pub(crate) fn progress(stage: &Stage, time: Duration) -> String {
    let splices =
        stage.world.chaos.pool.stats().started + stage.world.couriers.pool.stats().started;
    format!(
        "{:>5.0} s: {} operations, {} connections, {} sockets, {splices} splices, {} moved, {} checked in {} trips",
        time.as_secs_f64(),
        stage.posts.operations(),
        load(&stage.connections),
        stage.arena.living(),
        bytes(moved(stage)),
        bytes(load(&stage.checked)),
        load(&stage.trips),
    )
}

fn moved(stage: &Stage) -> u64 {
    stage.world.chaos.pool.stats().bytes + stage.world.couriers.pool.stats().bytes
}

fn seconds(micros: &AtomicU64) -> String {
    let time = Duration::from_micros(load(micros));
    format!("{:.2} s", time.as_secs_f64())
}

fn bytes(count: u64) -> String {
    match count.checked_ilog2().unwrap_or(0) {
        0..20 => format!("{} KiB", count >> 10),
        20..34 => format!("{} MiB", count >> 20),
        _ => format!("{} GiB", count >> 30),
    }
}

/// All counters.
pub(crate) fn table(stage: &Stage, tally: &Tally, time: Duration) -> String {
    let mut text = String::new();
    // Writing to a String does not fail.
    operations(&mut text, tally).ok();
    causes(&mut text, stage).ok();
    stacks(&mut text, stage).ok();
    totals(&mut text, stage, time).ok();
    text
}

fn operations(text: &mut String, tally: &Tally) -> std::fmt::Result {
    writeln!(
        text,
        "{:<16} {:>9} {:>9}  errors",
        "operation", "ok", "error"
    )?;
    for (act, counts) in &tally.acts {
        let refused: u64 = counts.refused.values().sum();
        let mut reasons: Vec<_> = counts.refused.iter().collect();
        reasons.sort_by_key(|(_, times)| std::cmp::Reverse(**times));
        let reasons = reasons.iter().map(|(why, times)| format!("{times} {why}"));
        let reasons: Vec<_> = reasons.collect();
        let (name, done) = (format!("{act:?}"), counts.done);
        writeln!(
            text,
            "{name:<16} {done:>9} {refused:>9}  {}",
            reasons.join(", ")
        )?;
    }
    Ok(())
}

fn causes(text: &mut String, stage: &Stage) -> std::fmt::Result {
    writeln!(
        text,
        "{:<16} {:>9} {:>9} {:>9}",
        "ends of splices", "chaos", "couriers", "guests"
    )?;
    let (chaos, couriers) = (&stage.world.chaos.ends, &stage.world.couriers.ends);
    let rows = chaos
        .by_cause()
        .zip(couriers.by_cause())
        .zip(stage.guests.by_cause());
    for (((cause, chaos), (_, couriers)), (_, guests)) in rows {
        writeln!(
            text,
            "{:<16} {chaos:>9} {couriers:>9} {guests:>9}",
            ends::name(cause)
        )?;
    }
    let all = [chaos, couriers, &*stage.guests].map(ends::Ends::all);
    writeln!(
        text,
        "{:<16} {:>9} {:>9} {:>9}",
        "all", all[0], all[1], all[2]
    )
}

fn stacks(text: &mut String, stage: &Stage) -> std::fmt::Result {
    let (head, refused) = ("stack", "refused");
    let row = format!(
        "{:>9} {:>9} {:>9} {:>9} {:>9}",
        "received", "sent", refused, "full", "no SYN"
    );
    writeln!(text, "{head:<16} {row}")?;
    for (host, stats) in checks::stats(stage) {
        let (received, sent) = (stats.frames_received, stats.segments_sent);
        let (refused, full) = (stats.segments_refused, stats.link_full);
        let dropped = stats.syns_dropped + stats.segments_backlog_full;
        writeln!(
            text,
            "{host:<16} {received:>9} {sent:>9} {refused:>9} {full:>9} {dropped:>9}"
        )?;
    }
    Ok(())
}

fn totals(text: &mut String, stage: &Stage, time: Duration) -> std::fmt::Result {
    let (chaos, couriers) = (
        stage.world.chaos.pool.stats(),
        stage.world.couriers.pool.stats(),
    );
    let rows = [
        ("operations", stage.posts.operations().to_string()),
        ("connections made", load(&stage.connections).to_string()),
        ("sockets made", stage.arena.made().to_string()),
        ("sockets at once, at most", stage.arena.peak().to_string()),
        (
            "splices set up",
            (chaos.started + couriers.started).to_string(),
        ),
        ("passes", (chaos.passes + couriers.passes).to_string()),
        ("bytes moved by splices", bytes(moved(stage))),
        ("bytes sent by chaos", bytes(load(&stage.sent))),
        ("bytes received by chaos", bytes(load(&stage.received))),
        ("bytes checked", bytes(load(&stage.checked))),
        ("trips", load(&stage.trips).to_string()),
        ("longest trip", seconds(&stage.longest_trip)),
        ("longest pause of a trip", seconds(&stage.longest_pause)),
        ("upcalls", load(&stage.arena.rings).to_string()),
        ("free frames kept", bytes(buf::pooled_bytes() as u64)),
        ("time", format!("{:.1} s", time.as_secs_f64())),
    ];
    for (what, count) in rows {
        writeln!(text, "{what:<26} {count:>12}")?;
    }
    Ok(())
}
