//! The example `proxy`: its output and exit status.
#![allow(clippy::unwrap_used, reason = "tests")]

#[path = "support/example.rs"]
mod example;

use std::process::{Command, Output};

fn proxy(arguments: &[&str]) -> Output {
    let path = example::path("proxy");
    Command::new(path).args(arguments).output().unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

/// The numbers of a row of the table.
fn row<'a>(said: &'a str, name: &str) -> Vec<&'a str> {
    let mut rows = said.lines().map(|line| line.split_whitespace());
    let row = rows.find_map(|mut row| (row.next() == Some(name)).then(|| row.collect()));
    row.unwrap_or_else(|| panic!("no row {name} in\n{said}"))
}

/// What it has printed.
fn whole_job(arguments: &[&str], connections: u64, bytes: u64) -> String {
    let output = proxy(arguments);
    let (said, complaints) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{said}{complaints}");
    for (name, directions) in [("up", 1), ("down", 1), ("total", 2)] {
        let row = row(said, name);
        let splices = connections * directions;
        assert_eq!(row[0], (splices * bytes).to_string(), "{said}");
        assert_eq!(
            row[4..],
            [&format!("{splices}:"), &*splices.to_string(), "Eof"]
        );
        let passes: u64 = row[2].parse().unwrap();
        assert!(passes >= splices, "{said}");
    }
    let streams = connections * 2;
    let digests = format!("{streams} of {streams} digests are equal");
    assert!(said.contains(&digests), "{said}");
    assert_eq!(complaints, "");
    said.to_owned()
}

#[test]
fn the_whole_job_on_workers() {
    whole_job(&["--bytes", "2M"], 8, 2 << 20);
}

#[test]
fn the_whole_job_on_receiving_threads() {
    whole_job(&["--bytes", "2M", "--dispatch", "direct"], 8, 2 << 20);
}

#[test]
fn the_whole_job_on_several_queues() {
    for dispatch in ["worker", "direct"] {
        let arguments = [
            "--bytes",
            "2M",
            "--connections",
            "16",
            "--queues",
            "2",
            "--dispatch",
            dispatch,
        ];
        let said = whole_job(&arguments, 16, 2 << 20);
        let queues = said.lines().filter(|line| line.contains("queue 1: "));
        let astray = queues.filter(|line| line.ends_with(", 0 for another queue"));
        assert_eq!(astray.count(), 4, "{said}");
    }
}

#[test]
fn the_whole_job_with_each_congestion_control() {
    for name in ["reno", "bbr"] {
        whole_job(&["--bytes", "2M", "--congestion", name], 8, 2 << 20);
    }
    let output = proxy(&["--congestion", "vegas"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("it is one of cubic, reno, bbr"));
}

#[test]
fn one_byte_on_many_connections() {
    let arguments = ["--bytes", "1", "--connections", "50", "--workers", "1"];
    whole_job(&arguments, 50, 1);
}

#[test]
fn small_buffers_and_odd_sizes() {
    let arguments = [
        "--bytes",
        "300001",
        "--connections",
        "3",
        "--buffer",
        "5000",
    ];
    whole_job(&arguments, 3, 300_001);
}

#[test]
fn sockets_splices_and_counters_are_shown() {
    let output = proxy(&["--bytes", "1M", "--connections", "3", "--stats", "3600"]);
    let (said, shown) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{said}{shown}");
    for expected in [
        "front: ",
        "3 by peers",
        "back: ",
        "3 connections opened",
        "Proto  Recv-Q  Send-Q  Local address",
        "splices: 6 begun, 6 ended, 6291456 bytes",
        "worker 0: ",
        "Splice  Source  Sink  Bytes  Limit  Idle  Passes  Worker  State",
    ] {
        assert!(shown.contains(expected), "{expected}: {shown}");
    }
    let often = proxy(&["--bytes", "32M", "--connections", "2", "--stats", "0.001"]);
    assert!(often.status.success());
    let shown = text(&often.stderr);
    assert!(shown.matches("splices: ").count() > 1, "{shown}");
    assert!(shown.contains("<-> tcp 10.0.2.2:"), "{shown}");
}

#[test]
fn bad_arguments_are_explained() {
    let real = ["--listen", "10.9.0.2:80", "--backend", "10.9.0.1:80"];
    let with_tun = |tun| [&["--tun", tun], &real[..]].concat();
    let nobody = ["--tun", "t=10.9.0.3/24", real[0], real[1], real[2], real[3]];
    let cases: [(&[&str], &str); 11] = [
        (&["--bytes", "0"], "at least 1 byte"),
        (&["--bytes", "12Q"], "K, M, G or T"),
        (&["--bytes", "many"], "K, M, G or T"),
        (&["--bytes", "99999999T"], "too large"),
        (&["--bytes", "16777215T"], "smaller --bytes"),
        (&["--connections", "0"], "1..=1000"),
        (&["--dispatch", "magic"], "worker, direct"),
        (&["--buffer", "1K"], "2K to 1G"),
        (&real, "--tun"),
        (&with_tun("tun0=10.9.0.2"), "no address with a prefix"),
        (&nobody, "none of the --tun has this address"),
    ];
    for (arguments, expected) in cases {
        let output = proxy(arguments);
        let complaints = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {complaints}");
        assert!(complaints.contains(expected), "{arguments:?}: {complaints}");
        assert!(complaints.starts_with("error: "), "{complaints}");
    }
}

#[test]
#[cfg(target_os = "linux")]
fn a_missing_device_is_one_clear_line() {
    let tun = "sosplice-none=10.9.0.2/24";
    let output = proxy(&[
        "--tun",
        tun,
        "--listen",
        "10.9.0.2:80",
        "--backend",
        "10.9.0.1:80",
    ]);
    let complaints = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{complaints}");
    assert_eq!(complaints.lines().count(), 1, "{complaints}");
    assert!(
        complaints.contains("there is no interface sosplice-none"),
        "{complaints}"
    );
}
