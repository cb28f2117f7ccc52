//! What an operator sees: the log, and the histograms.

use super::{FRONT, Scene, until};
use crate::example;
use crate::program::{Program, output};
use serde_json::Value;
use sosplice::clock::{Clock, SystemClock};
use std::collections::HashMap;
use std::fs;
use std::io::Write;
use std::process::{Command, Stdio};
use std::time::Duration;

const LONG: Duration = Duration::from_secs(20);

impl Scene {
    /// The proxy, whose stderr is `stderr`.
    fn proxy_with(&self, more: &[&str], stderr: Stdio) -> Program {
        let mut command = Command::new(example::path("proxy"));
        command.args(["--tun", &format!("tc@{}=10.78.1.2/24", self.client.name())]);
        command.args(["--tun", &format!("ts@{}=10.78.2.2/24", self.server.name())]);
        command.args(["--listen", FRONT]).args(more).stderr(stderr);
        Program::start(command, "dispatch")
    }
}

/// The lines of a log, each of which is JSON.
fn lines(log: &str) -> Vec<Value> {
    let parse = |line: &str| match serde_json::from_str(line) {
        Ok(value) => value,
        Err(error) => panic!("{error}: {line:?}"),
    };
    log.lines().map(parse).collect()
}

/// The fields of the first line about this event.
fn first<'a>(lines: &'a [Value], event: &str) -> &'a Value {
    let mut all = lines.iter();
    let found = all.find(|line| line["event"] == event);
    found.unwrap_or_else(|| panic!("no {event} in {lines:?}"))
}

fn count(lines: &[Value], event: &str) -> usize {
    lines.iter().filter(|line| line["event"] == event).count()
}

/// nginx as one backend; the other one does not exist.
#[test]
fn each_connection_is_in_the_log_and_in_the_histograms() {
    let Some(scene) = Scene::new("each_connection_is_in_the_log_and_in_the_histograms") else {
        return;
    };
    let _server = scene.nginx(8081);
    let config = scene.place.join("proxy.toml");
    let log = scene.place.join("log");
    let backends = "send_proxy = \"v1\"\n\
                    [check]\ninterval = 0.2\n\
                    [[backend]]\naddress = \"10.78.2.1:8083\"\n\
                    [[backend]]\naddress = \"10.78.2.1:8081\"\n";
    fs::write(&config, backends).unwrap();
    let file = scene.place.join("log").display().to_string();
    let mut arguments = vec!["--log", "json", "--log-file", &file];
    arguments.extend(["--metrics", "127.0.0.1:0", "--config"]);
    arguments.push(config.to_str().unwrap());
    let mut proxy = scene.proxy_with(&arguments, Stdio::inherit());
    let read = || lines(&fs::read_to_string(&log).unwrap());
    let times = 20;
    for _ in 0..times {
        assert_eq!(scene.curl(&[]), "8081 10.78.1.1\n");
    }
    until(|| count(&read(), "backend_down") == 1);
    until(|| count(&read(), "ended") == times);
    fs::write(&config, "[[backend]]\naddres = 1\n").unwrap();
    proxy.signal(rustix::process::Signal::HUP);
    until(|| count(&read(), "configuration_rejected") == 1);
    fs::write(
        &config,
        backends.replace("8083", "8081").replacen("8081", "8082", 1),
    )
    .unwrap();
    proxy.signal(rustix::process::Signal::HUP);
    until(|| count(&read(), "configuration") == 1);
    fs::write(&config, backends).unwrap();
    proxy.signal(rustix::process::Signal::HUP);
    until(|| count(&read(), "configuration") == 2);

    let all = read();
    let address = first(&all, "metrics")["address"].as_str().unwrap();
    let url = format!("http://{address}/metrics");
    let page = output(Command::new("curl").args(["--silent", "--max-time", "20", &url]));
    assert!(proxy.terminate(LONG).success());
    let all = read();

    assert_connections(&all, times);
    assert_life(&all, times);
    assert_histograms(&page, times);
}

/// Each connection is opened, routed and ends, in this order.
fn assert_connections(all: &[Value], times: usize) {
    let mut connections: HashMap<u64, Vec<&Value>> = HashMap::new();
    for line in all.iter().filter(|line| line["target"] == "connection") {
        let number = line["connection"].as_u64().unwrap();
        connections.entry(number).or_default().push(line);
    }
    assert_eq!(connections.len(), times);
    for lines in connections.values() {
        let mut events: Vec<_> = lines
            .iter()
            .map(|line| line["event"].as_str().unwrap())
            .collect();
        events.retain(|event| *event != "not_taken");
        assert_eq!(events, ["opened", "routed", "ended"], "{lines:?}");
        assert!(
            lines[0]["client"]
                .as_str()
                .unwrap()
                .starts_with("10.78.1.1:")
        );
        let last = lines[lines.len() - 1];
        assert_eq!(last["backend"], "10.78.2.1:8081");
        assert_eq!(last["cause"], "both sides have closed");
        let number = |field: &str| last[field].as_f64().unwrap();
        assert!(
            number("up_bytes") > 50.0 && number("down_bytes") > 100.0 && number("seconds") > 0.0
        );
    }
}

fn assert_life(all: &[Value], times: usize) {
    let not_taken = count(all, "not_taken");
    assert!(not_taken > 0, "{all:?}");
    assert!(
        first(all, "not_taken")["cause"]
            .as_str()
            .unwrap()
            .contains("refused")
    );
    assert_eq!(first(all, "start")["listen"], FRONT);
    let rejected = first(all, "configuration_rejected");
    assert!(
        rejected["cause"].as_str().unwrap().contains("line 2"),
        "{rejected}"
    );
    assert_eq!(rejected["level"], "ERROR");
    assert_eq!(
        first(all, "configuration")["backends"],
        "10.78.2.1:8082, 10.78.2.1:8081"
    );
    assert_eq!(first(all, "backend_down")["backend"], "10.78.2.1:8083");
    assert_eq!(count(all, "drain_begin"), 1);
    assert_eq!(first(all, "drain_end")["connections"], times);
}

fn assert_histograms(page: &str, times: usize) {
    let backend = |port: u16| format!("{{backend=\"10.78.2.1:{port}\",name=\"\"}}");
    for sample in [
        format!("sosplice_connection_seconds_count {times}"),
        format!("sosplice_wait_seconds_count {times}"),
        format!("sosplice_connection_bytes_count{{direction=\"up\"}} {times}"),
        format!("sosplice_connection_bytes_count{{direction=\"down\"}} {times}"),
        format!(
            "sosplice_backend_connect_seconds_count{} {times}",
            backend(8081)
        ),
        "sosplice_log_lines_lost_total 0".to_owned(),
    ] {
        let found = page.lines().any(|line| line == sample);
        assert!(found, "{sample} in {page}");
    }
}

/// A pipe that is full, and that is not read: what would wait for it is nothing that traffic needs.
#[test]
fn a_log_that_is_not_read_stops_nothing() {
    let Some(scene) = Scene::new("a_log_that_is_not_read_stops_nothing") else {
        return;
    };
    let _server = scene.nginx(8081);
    let (reader, mut writer) = std::io::pipe().unwrap();
    let room = rustix::pipe::fcntl_getpipe_size(&writer).unwrap();
    writer.write_all(&vec![b'\n'; room]).unwrap();
    // The receiving thread complains about the backend that does not exist, for every other client.
    let mut arguments = vec!["--backend", "10.78.2.1:8083", "--backend", "10.78.2.1:8081"];
    arguments.extend(["--send-proxy", "v1", "--check", "0.2", "--stats", "0.1"]);
    arguments.extend(["--log-level", "trace"]);
    let mut proxy = scene.proxy_with(&arguments, Stdio::from(writer));
    let serves = || assert_eq!(scene.curl(&[]), "8081 10.78.1.1\n");
    (0..10).for_each(|_| serves());
    proxy.signal(rustix::process::Signal::USR1);
    proxy.signal(rustix::process::Signal::HUP);
    (0..10).for_each(|_| serves());
    let start = SystemClock.now();
    assert!(proxy.terminate(LONG).success());
    assert!(
        proxy.said().contains("20 connections in"),
        "{}",
        proxy.said()
    );
    // Only so that it is a bound at all: the log has a second, the last resets another.
    assert!(SystemClock.now() - start < LONG);

    // One whose reader is gone.
    let (gone, writer) = std::io::pipe().unwrap();
    drop((gone, reader));
    let mut proxy = scene.proxy_with(&arguments, Stdio::from(writer));
    (0..4).for_each(|_| serves());
    assert!(proxy.terminate(LONG).success());
}

#[test]
fn a_table_that_cannot_be_shown_is_refused_with_words() {
    let mut command = Command::new(example::path("proxy"));
    command.args(["--tun", "t=10.1.0.2/24", "--listen", "10.1.0.2:80"]);
    command.args(["--backend", "10.1.0.1:80", "--top", "--log", "off"]);
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(
        said.contains("--features top") || said.contains("needs a terminal"),
        "{said}"
    );
}
