//! The final report.

use crate::relay::BackendStats;
use crate::totals::{Tally, Totals};
use sosplice::{Stack, splice};
use std::fmt::Write;
use std::time::Duration;

/// A table of both directions and their sum. Without a time there is no rate.
pub(crate) fn table(totals: &Totals, time: Option<Duration>) -> String {
    let mut sum = totals.up.clone();
    sum.bytes += totals.down.bytes;
    sum.passes += totals.down.passes;
    for (cause, times) in &totals.down.causes {
        sum.count(*cause, *times);
    }
    let mut table = format!(
        "{:<9} {:>15} {:>8} {:>10} {:>12}  splices ended\n",
        "", "bytes", "Gbit/s", "passes", "bytes/pass"
    );
    let rows = [("up", &totals.up), ("down", &totals.down), ("total", &sum)];
    for (name, tally) in rows {
        let rate = time.map_or_else(|| "-".into(), |time| rate(tally.bytes, time));
        let per_pass = tally.bytes.checked_div(tally.passes).unwrap_or(0);
        // Writing to a String does not fail.
        writeln!(
            table,
            "{name:<9} {:>15} {rate:>8} {:>10} {per_pass:>12}  {}",
            tally.bytes,
            tally.passes,
            causes(tally)
        )
        .ok();
    }
    table
}

/// Clients that were refused, and connections that were tried again.
pub(crate) fn refused(totals: &Totals) -> String {
    let mut text = String::new();
    if totals.retried > 0 {
        writeln!(text, "{} tried with another backend", totals.retried).ok();
    }
    for (why, times) in &totals.refused {
        writeln!(text, "{times} refused: {why}").ok();
    }
    text
}

/// A line for each backend.
pub(crate) fn backends(all: &[BackendStats]) -> String {
    let mut text = String::new();
    for one in all {
        let name = one.name.as_deref().unwrap_or("any");
        let state = if one.up { "up" } else { "down" };
        writeln!(
            text,
            "backend {} ({name}, weight {}): {state}, {} connections, {} served, {} not taken",
            one.at, one.weight, one.active, one.served, one.failed
        )
        .ok();
    }
    text
}

#[expect(clippy::cast_precision_loss, reason = "two digits are shown")]
fn rate(bytes: u64, time: Duration) -> String {
    format!("{:.2}", bytes as f64 * 8.0 / 1e9 / time.as_secs_f64())
}

/// How many splices ended, and why: `16: 16 Eof`.
fn causes(tally: &Tally) -> String {
    let mut causes = tally.causes.clone();
    causes.sort_by_key(|(_, times)| std::cmp::Reverse(*times));
    let all: u64 = causes.iter().map(|(_, times)| times).sum();
    let each = causes
        .iter()
        .map(|(cause, times)| format!("{times} {cause:?}"));
    let each: Vec<String> = each.collect();
    format!("{all}: {}", each.join(", "))
}

/// Counters of a pool.
pub(crate) fn passes(stats: &splice::Stats) -> String {
    let sizes = stats.passes_by_size().filter(|(_, passes)| *passes > 0);
    let sizes: Vec<String> = sizes
        .map(|(bytes, passes)| format!("{passes} from {bytes}"))
        .collect();
    format!(
        "splices: {} begun, {} ended, {} bytes in {} passes, {} each ({}), {} requeued, stopped for \
         data {}, room {}, rate {}",
        stats.started,
        stats.ended(),
        stats.bytes,
        stats.passes,
        stats.bytes_per_pass(),
        sizes.join(", "),
        stats.requeues,
        stats.stalls_no_data,
        stats.stalls_no_room,
        stats.stalls_rate,
    )
}

/// The counters of a stack that are not zero, and, with several queues, the frames of each.
pub(crate) fn counters(name: &str, stack: &Stack) -> String {
    let stats = stack.stats();
    let all = [
        (stats.connections as u64, "connections"),
        (stats.frames_received, "frames received"),
        (stats.frames_malformed, "malformed"),
        (stats.frames_fragments, "fragments"),
        (stats.frames_bad_checksum, "with a wrong checksum"),
        (stats.frames_stray, "stray"),
        (stats.segments_received, "segments received"),
        (stats.bytes_received, "bytes in them"),
        (stats.segments_sent, "segments sent"),
        (stats.bytes_sent, "bytes in them"),
        (stats.segments_retransmitted, "of them again"),
        (stats.segments_lost, "lost at the link"),
        (stats.segments_refused, "not acceptable"),
        (stats.segments_backlog_full, "dropped for a full backlog"),
        (stats.syns_dropped, "SYNs dropped"),
        (stats.link_full, "times the link was full"),
        (stats.active_opens, "connections opened"),
        (stats.passive_opens, "by peers"),
        (stats.attempts_failed, "attempts failed"),
        (stats.connections_reset, "connections reset"),
        (stats.buffer_memory as u64, "bytes of buffers"),
        (stats.reassembly_memory as u64, "bytes out of order"),
        (stats.broken, "BROKEN INVARIANTS"),
    ];
    let shown = all.iter().filter(|(count, _)| *count > 0);
    let shown: Vec<String> = shown
        .map(|(count, what)| format!("{count} {what}"))
        .collect();
    let mut text = format!("{name}: {}", shown.join(", "));
    for (queue, one) in stack.queue_stats().iter().enumerate() {
        if stack.queues() > 1 {
            let (frames, astray) = (one.frames_received, one.segments_astray);
            write!(
                text,
                "\n  queue {queue}: {frames} frames received, {astray} for another queue"
            )
            .ok();
        }
    }
    text
}
