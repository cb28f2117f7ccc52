//! Counters, gauges and histograms for Prometheus (OpenMetrics text), on a port of the operating system.

use crate::histogram::Histogram;
use crate::log;
use crate::relay::{BackendStats, Shared};
use crate::watch::Watch;
use anyhow::{Context, anyhow};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;
use std::fmt::Error;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::thread;
use tiny_http::{Header, Method, Response, Server};

/// Answers requests for `/metrics` until the process ends, or its listener is shut down. Returns the address.
pub(crate) fn serve(
    listener: TcpListener,
    relay: Arc<Shared>,
    watch: Watch,
) -> anyhow::Result<SocketAddr> {
    let at = listener.local_addr()?;
    let server = Server::from_listener(listener, None).map_err(|error| anyhow!("{error}"));
    let server = server.with_context(|| format!("metrics: cannot serve at {at}"))?;
    relay.measures().read_times();
    let registry = registry(relay, watch);
    let answer = move || {
        for request in server.incoming_requests() {
            let known = *request.method() == Method::Get && request.url() == "/metrics";
            let mut page = String::new();
            let sent = if known && text::encode(&mut page, &registry).is_ok() {
                let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
                let kind = Header::from_bytes("Content-Type", kind).ok();
                let response = Response::from_string(page);
                request.respond(kind.into_iter().fold(response, Response::with_header))
            } else {
                request.respond(Response::from_string("GET /metrics\n").with_status_code(404))
            };
            // Who asked may have gone.
            sent.ok();
        }
    };
    thread::Builder::new()
        .name("metrics".into())
        .spawn(answer)?;
    Ok(at)
}

fn registry(relay: Arc<Shared>, watch: Watch) -> Registry {
    let mut registry = Registry::with_prefix("sosplice");
    registry.register_collector(Box::new(Source { relay, watch }));
    registry
}

/// The page of this moment.
#[cfg(test)]
pub(crate) fn page(relay: Arc<Shared>, watch: Watch) -> String {
    let mut page = String::new();
    text::encode(&mut page, &registry(relay, watch)).unwrap();
    page
}

/// What is counted elsewhere.
#[derive(Debug)]
struct Source {
    relay: Arc<Shared>,
    watch: Watch,
}

/// The samples of one metric: its labels, and its value.
type Samples<'a> = Vec<(Vec<(&'static str, String)>, u64)>;

fn counters(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    samples: Samples<'_>,
) -> Result<(), Error> {
    let kind = ConstCounter::new(0_u64).metric_type();
    let mut metric = encoder.encode_descriptor(name, help, None, kind)?;
    for (labels, value) in samples {
        if labels.is_empty() {
            return ConstCounter::new(value).encode(metric);
        }
        ConstCounter::new(value).encode(metric.encode_family(&labels)?)?;
    }
    Ok(())
}

fn gauges(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    samples: Samples<'_>,
) -> Result<(), Error> {
    let kind = ConstGauge::new(0_i64).metric_type();
    let mut metric = encoder.encode_descriptor(name, help, None, kind)?;
    for (labels, value) in samples {
        let value = i64::try_from(value).unwrap_or(i64::MAX);
        if labels.is_empty() {
            return ConstGauge::new(value).encode(metric);
        }
        ConstGauge::new(value).encode(metric.encode_family(&labels)?)?;
    }
    Ok(())
}

/// The samples of a histogram: its labels, and its counts.
type Counts<'a> = Vec<(Vec<(&'static str, String)>, &'a Histogram)>;

fn histograms(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    samples: Counts<'_>,
) -> Result<(), Error> {
    let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Histogram)?;
    for (labels, histogram) in samples {
        if labels.is_empty() {
            return histogram.encode(metric);
        }
        histogram.encode(metric.encode_family(&labels)?)?;
    }
    Ok(())
}

fn labels(backend: &BackendStats) -> Vec<(&'static str, String)> {
    let name = backend.name.clone().unwrap_or_default();
    vec![("backend", backend.at.to_string()), ("name", name)]
}

impl Collector for Source {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), Error> {
        let encoder = &mut encoder;
        self.clients(encoder)?;
        self.connections(encoder)?;
        self.backends(encoder)?;
        self.stacks(encoder)?;
        self.pool(encoder)
    }
}

impl Source {
    fn clients(&self, encoder: &mut DescriptorEncoder<'_>) -> Result<(), Error> {
        let counts = self.relay.counts();
        let one = |value| vec![(Vec::new(), value)];
        counters(
            encoder,
            "clients",
            "Clients that have connected; those with wrong first bytes are refused only",
            one(counts.connections),
        )?;
        counters(
            encoder,
            "retries",
            "Connections that were tried with another backend",
            one(counts.retried),
        )?;
        let refused = counts.refused.iter();
        let refused = refused.map(|(why, times)| (vec![("reason", why.to_string())], *times));
        counters(
            encoder,
            "refused",
            "Clients that were reset before a backend served them",
            refused.collect(),
        )?;
        let result = |result: &str, count| (vec![("result", result.to_owned())], count);
        counters(
            encoder,
            "reloads",
            "Settings that were read again, and whether they hold since",
            vec![
                result("renewed", counts.renewed),
                result("rejected", counts.rejected),
            ],
        )?;
        counters(
            encoder,
            "checks_failed",
            "Times that the checks did not go on, so that all backends count as up",
            one(counts.checks_failed),
        )?;
        gauges(
            encoder,
            "connections",
            "Present connections of clients",
            one(counts.present),
        )?;
        gauges(
            encoder,
            "waiting",
            "Clients that wait for a backend with room",
            one(counts.waiting),
        )?;
        let (clients, memory) = counts.heads;
        gauges(
            encoder,
            "heads",
            "Clients whose first bytes are not complete",
            one(clients as u64),
        )?;
        gauges(
            encoder,
            "heads_bytes",
            "Memory of their receive buffers",
            one(memory as u64),
        )
    }

    fn connections(&self, encoder: &mut DescriptorEncoder<'_>) -> Result<(), Error> {
        let measures = self.relay.measures();
        histograms(
            encoder,
            "connection_seconds",
            "Time from the admission of a client to the end of its connection",
            vec![(Vec::new(), &measures.lengths)],
        )?;
        histograms(
            encoder,
            "wait_seconds",
            "Time from the admission of a client until a backend has taken its connection",
            vec![(Vec::new(), &measures.waits)],
        )?;
        let directions = ["up", "down"].into_iter().zip(&measures.bytes);
        let each = directions.map(|(name, bytes)| (vec![("direction", name.to_owned())], bytes));
        histograms(
            encoder,
            "connection_bytes",
            "Bytes of a connection, from the client (up) and to it (down)",
            each.collect(),
        )?;
        counters(
            encoder,
            "log_lines_lost",
            "Lines of the log that came faster than they were read",
            vec![(Vec::new(), log::lost())],
        )
    }

    fn backends(&self, encoder: &mut DescriptorEncoder<'_>) -> Result<(), Error> {
        let all = self.relay.backends();
        let times = |histogram: fn(&BackendStats) -> &Histogram| -> Counts<'_> {
            let all = all.iter();
            all.map(|one| (labels(one), histogram(one))).collect()
        };
        histograms(
            encoder,
            "backend_connect_seconds",
            "Time from the SYN until the backend has taken the connection",
            times(|one| &one.account.connects),
        )?;
        histograms(
            encoder,
            "backend_not_taken_seconds",
            "Time from the SYN until it has refused, or has not answered in time",
            times(|one| &one.account.failures),
        )?;
        let each = |value: fn(&BackendStats) -> u64| -> Samples<'_> {
            all.iter().map(|one| (labels(one), value(one))).collect()
        };
        gauges(
            encoder,
            "backend_up",
            "1 if it is up by its checks",
            each(|one| one.up.into()),
        )?;
        gauges(
            encoder,
            "backend_connections",
            "Present connections",
            each(|one| one.active.into()),
        )?;
        counters(
            encoder,
            "backend_served",
            "Connections that it took and that have ended",
            each(|one| one.served),
        )?;
        counters(
            encoder,
            "backend_not_taken",
            "Connections that it refused or did not answer",
            each(|one| one.failed),
        )
    }

    fn stacks(&self, encoder: &mut DescriptorEncoder<'_>) -> Result<(), Error> {
        let all: Vec<_> = self
            .watch
            .stacks
            .iter()
            .map(|(name, stack)| (name, stack.stats()))
            .collect();
        let each = |value: fn(&sosplice::stack::Stats) -> u64| -> Samples<'_> {
            let sample =
                |(name, stats): &(&String, _)| (vec![("device", (*name).clone())], value(stats));
            all.iter().map(sample).collect()
        };
        counters(
            encoder,
            "frames_received",
            "Packets from the device",
            each(|stats| stats.frames_received),
        )?;
        counters(
            encoder,
            "bytes_received",
            "Payload in received segments",
            each(|stats| stats.bytes_received),
        )?;
        counters(
            encoder,
            "bytes_sent",
            "Payload in sent segments",
            each(|stats| stats.bytes_sent),
        )?;
        counters(
            encoder,
            "segments_sent",
            "TCP segments",
            each(|stats| stats.segments_sent),
        )?;
        counters(
            encoder,
            "segments_retransmitted",
            "Of them sent again",
            each(|stats| stats.segments_retransmitted),
        )?;
        counters(
            encoder,
            "syns_dropped",
            "For a full backlog, or a limit",
            each(|stats| stats.syns_dropped),
        )?;
        counters(
            encoder,
            "connections_reset",
            "By peers, or by this side",
            each(|stats| stats.connections_reset),
        )?;
        counters(
            encoder,
            "link_full",
            "Times the device had no room",
            each(|stats| stats.link_full),
        )?;
        gauges(
            encoder,
            "buffer_bytes",
            "Memory of socket buffers",
            each(|stats| stats.buffer_memory as u64),
        )
    }

    fn pool(&self, encoder: &mut DescriptorEncoder<'_>) -> Result<(), Error> {
        let stats = self.watch.pool.stats();
        let one = |value| vec![(Vec::new(), value)];
        counters(encoder, "splices", "Set up", one(stats.started))?;
        counters(encoder, "spliced_bytes", "Moved", one(stats.bytes))?;
        counters(
            encoder,
            "splice_passes",
            "Runs that moved bytes or looked for them",
            one(stats.passes),
        )?;
        gauges(
            encoder,
            "splices_running",
            "Present splices",
            one(stats.running as u64),
        )
    }
}
