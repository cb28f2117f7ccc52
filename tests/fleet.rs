//! `examples/fleet`: proxies behind one address, in namespaces that its script makes and removes. BIRD announces them, and a
//! resilient next-hop group of the kernel keeps connections with their proxy. Needs root, `bird2` and a kernel with such
//! groups, otherwise skipped with a message.
#![cfg(target_os = "linux")]
#![allow(missing_docs, clippy::unwrap_used, reason = "tests")]

#[path = "support/example.rs"]
mod example;
#[path = "support/long.rs"]
mod long;
#[path = "support/namespace.rs"]
#[allow(dead_code, reason = "the script makes the namespaces")]
mod namespace;

use namespace::{available_with, skip};
use std::process::Command;

/// How the script says that it cannot run here.
const SKIPPED: i32 = 77;
/// A small form of it: few connections, and short times.
const SMALL: &str =
    "--connections 60 --interval 1 --keep-alive 2 --idle 5 --watch 10 --new 10 --buckets 4096";

/// A row of the script's table.
#[derive(Debug)]
struct Row {
    event: String,
    /// Open connections of the proxy that the event is about.
    own: u32,
    lost_own: u32,
    lost_others: u32,
    /// New connections that were not opened.
    failed: u32,
}

/// Runs the script, with options for another network than BGP, IPv4 and one router. `None` if this machine or user cannot.
fn fleet(test: &str, routes: &str, events: &[&str], network: &str) -> Option<Vec<Row>> {
    if std::env::var("SOSPLICE_SKIP").is_ok_and(|name| name == "fleet") {
        skip(test, "left out by SOSPLICE_SKIP");
        return None;
    }
    if !available_with(test, &["bird", "birdc", "python3"]) {
        return None;
    }
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/fleet/run");
    let mut command = Command::new("timeout");
    command.args(["-k", "10", "400", script, "--routes", routes, "--events"]);
    command
        .args(events)
        .arg("--proxy")
        .arg(example::path("proxy"));
    command.args(SMALL.split_whitespace());
    command.args(network.split_whitespace());
    let output = command.output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    if output.status.code() == Some(SKIPPED) {
        skip(test, said.trim());
        return None;
    }
    println!("{said}");
    let rows: Vec<Row> = said.lines().skip(1).map(row).collect();
    let complaints = String::from_utf8_lossy(&output.stderr);
    assert_eq!(rows.len(), events.len(), "{}: {complaints}", output.status);
    Some(rows)
}

/// Columns are two spaces apart or more: network, routes, event, open (of the proxy), lost own, lost others, new, failed, ...
fn row(line: &str) -> Row {
    let cells: Vec<&str> = line.split("  ").map(str::trim).collect();
    let cells: Vec<&str> = cells.into_iter().filter(|cell| !cell.is_empty()).collect();
    let own = cells[3].split(['(', ')']).nth(1);
    Row {
        event: cells[2].to_owned(),
        own: own.unwrap().parse().unwrap(),
        lost_own: cells[4].parse().unwrap(),
        lost_others: cells[5].parse().unwrap(),
        failed: cells[7].parse().unwrap(),
    }
}

#[test]
fn a_resilient_group_loses_only_connections_of_proxies_that_die() {
    let test = "a_resilient_group_loses_only_connections_of_proxies_that_die";
    let events: &[&str] = match long::times(1, 2) {
        1 => &["drain", "join", "stall", "kill"],
        _ => &["drain", "leave", "join", "restart", "stall", "kill", "hang"],
    };
    let Some(rows) = fleet(test, "resilient", events, "") else {
        return;
    };
    rows.iter().for_each(loses_only_its_own);
}

fn loses_only_its_own(row: &Row) {
    assert_eq!(row.lost_others, 0, "{row:?}");
    match row.event.as_str() {
        "kill" => assert!(row.own > 0 && row.lost_own == row.own, "{row:?}"),
        "hang" => assert!(row.lost_own > 0, "{row:?}"),
        _ => assert_eq!((row.lost_own, row.failed), (0, 0), "{row:?}"),
    }
}

/// What differs from the first test at once: OSPF, IPv6, and two routers of which one dies.
#[test]
fn routers_with_one_seed_send_connections_to_the_same_proxies() {
    let test = "routers_with_one_seed_send_connections_to_the_same_proxies";
    let events: &[&str] = match long::times(1, 2) {
        1 => &["router"],
        _ => &["router", "drain", "kill"],
    };
    let network = "--routing ospf --family 6 --routers 2 --watch 5";
    if let Some(rows) = fleet(test, "resilient", events, network) {
        rows.iter().for_each(loses_only_its_own);
    }
}

/// So the losses that the test before excludes would be seen.
#[test]
fn routers_with_seeds_of_their_own_do_not() {
    let test = "routers_with_seeds_of_their_own_do_not";
    let network = "--routers 2 --seeds own --watch 3";
    if let Some(rows) = fleet(test, "resilient", &["router"], network) {
        assert!(rows[0].lost_others > 0, "{rows:?}");
    }
}

/// So the losses that the other test excludes would be seen.
#[test]
fn plain_multipath_loses_connections_of_all_proxies() {
    let test = "plain_multipath_loses_connections_of_all_proxies";
    let Some(rows) = fleet(test, "plain", &["drain", "join"], "") else {
        return;
    };
    let [drain, join] = rows.as_slice() else {
        panic!("{rows:?}");
    };
    assert!(
        drain.own > 0 && drain.lost_own == drain.own && drain.lost_others > 0,
        "{drain:?}"
    );
    assert!(join.lost_others > 0, "{join:?}");
}
