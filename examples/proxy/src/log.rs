//! The log: events of `tracing`, as text or as JSON, a line each, by a [`Writer`] that never waits.
//!
//! An event with a message is shown by that in the text; one without, of which there may be many, by its fields. JSON has
//! both, and the name of what happened in `event`.

use crate::writer::Writer;
use anyhow::Context;
use clap::ValueEnum;
use std::fmt::{self, Debug};
use std::fs::OpenOptions;
use std::io;
use std::path::Path;
use std::sync::OnceLock;
use std::time::Duration;
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::format::Writer as Line;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;

/// Lines about the proxy as a whole.
pub(crate) const PROXY: &str = "proxy";
/// Lines about single connections.
pub(crate) const CONNECTION: &str = "connection";

/// How long the process waits at its end for what reads the log.
const LAST_LINES: Duration = Duration::from_secs(1);

/// The form of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Form {
    /// Messages for people
    Text,
    /// An object on each line
    Json,
    Off,
}

impl Form {
    /// What is logged if nothing else is said: with text no line for each connection that goes well.
    fn levels(self) -> &'static str {
        match self {
            Form::Text => "info,connection=warn,sosplice=off",
            Form::Json => "info,sosplice=warn",
            Form::Off => "off",
        }
    }
}

/// Which levels of which targets: `info,connection=off`.
///
/// # Errors
/// What would be right.
pub(crate) fn levels(text: &str) -> Result<Targets, String> {
    let wrong = || {
        "give off, error, warn, info, debug or trace, or that for a target, like \
         info,connection=warn or warn,sosplice::tcp=debug"
    };
    let is_level = |part: &str| {
        let level = part.rsplit_once('=').map_or(part, |(_, level)| level);
        let known = ["off", "error", "warn", "info", "debug", "trace"];
        known.contains(&level.to_ascii_lowercase().as_str())
    };
    if !text.split(',').all(is_level) {
        return Err(wrong().into());
    }
    text.parse().map_err(|_| wrong().into())
}

/// There is one for the process.
static WRITER: OnceLock<Writer> = OnceLock::new();

/// Of the log.
static FORM: OnceLock<Form> = OnceLock::new();

/// Begins the log, once for the process. Without a file it is on stderr.
pub(crate) fn start(
    form: Form,
    levels: Option<&Targets>,
    file: Option<&Path>,
) -> anyhow::Result<()> {
    let writer = match file {
        None => Writer::start(io::stderr(), lines_were_lost),
        Some(path) => {
            let file = OpenOptions::new().append(true).create(true).open(path);
            let file = file.with_context(|| format!("--log-file {}", path.display()))?;
            Writer::start(file, lines_were_lost)
        }
    };
    let writer = writer.context("log")?;
    WRITER.set(writer.clone()).ok();
    FORM.set(form).ok();
    if form == Form::Off {
        return Ok(());
    }
    let levels = match levels {
        Some(levels) => levels.clone(),
        None => form.levels().parse()?,
    };
    tracing::subscriber::set_global_default(subscriber(form, levels, writer))?;
    Ok(())
}

fn subscriber(form: Form, levels: Targets, writer: Writer) -> Box<dyn Subscriber + Send + Sync> {
    let registry = tracing_subscriber::registry().with(levels);
    let layer = tracing_subscriber::fmt::layer().with_writer(writer);
    if form == Form::Text {
        return Box::new(registry.with(layer.event_format(Text)));
    }
    let layer = layer.json().flatten_event(true);
    let layer = layer.with_current_span(false).with_span_list(false);
    Box::new(registry.with(layer))
}

fn lines_were_lost(lines: u64) {
    tracing::warn!(
        target: PROXY,
        event = "lines_lost",
        lines,
        "{lines} lines of the log were lost: they came faster than they were read"
    );
}

/// The number of lines that were lost.
pub(crate) fn lost() -> u64 {
    WRITER.get().map_or(0, Writer::lost)
}

/// Tables for people, which are no events.
pub(crate) fn show(text: &str) {
    match WRITER.get() {
        Some(writer) => writer.append(text.as_bytes()),
        None => eprint!("{text}"),
    }
}

/// Tables about the state of the proxy: beside a text, and in a line of JSON an event.
pub(crate) fn show_state(tables: &str) {
    match FORM.get() {
        Some(Form::Json) => tracing::info!(target: PROXY, event = "statistics", tables),
        _ => show(tables),
    }
}

/// The process ends: waits for a while until all is written.
pub(crate) fn finish() {
    if let Some(writer) = WRITER.get() {
        writer.flush(LAST_LINES);
    }
}

/// Messages, and events without one by their fields.
struct Text;

impl<S, N> FormatEvent<S, N> for Text
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        _context: &FmtContext<'_, S, N>,
        mut line: Line<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let has_message = event.fields().any(|field| field.name() == "message");
        let mut shown = Shown {
            line: line.by_ref(),
            only_message: has_message,
            result: Ok(()),
        };
        if has_message && *event.metadata().level() == tracing::Level::ERROR {
            shown.line.write_str("error: ")?;
        }
        event.record(&mut shown);
        shown.result?;
        line.write_char('\n')
    }
}

struct Shown<'a> {
    line: Line<'a>,
    only_message: bool,
    result: fmt::Result,
}

impl Shown<'_> {
    fn show(&mut self, field: &Field, value: fmt::Arguments<'_>) {
        let written = match (self.only_message, field.name()) {
            (true, "message") => self.line.write_fmt(value),
            (true, _) => return,
            (false, "event") => self.line.write_fmt(value),
            (false, name) => self.line.write_fmt(format_args!(" {name}={value}")),
        };
        self.result = self.result.and(written);
    }
}

impl Visit for Shown<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.show(field, format_args!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            "message" | "event" => self.show(field, format_args!("{value}")),
            // What a peer has sent.
            _ => self.show(field, format_args!("{value:?}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};

    #[derive(Debug, Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// The lines of a log of this form, at the levels that it has by default.
    fn lines(form: Form, log: impl FnOnce()) -> Vec<String> {
        let sink = Sink::default();
        let writer = Writer::start(sink.clone(), lines_were_lost).unwrap();
        let levels = form.levels().parse().unwrap();
        tracing::subscriber::with_default(subscriber(form, levels, writer.clone()), log);
        writer.flush(Duration::from_secs(60));
        let bytes = sink.0.lock().unwrap().clone();
        let text = String::from_utf8(bytes).unwrap();
        text.lines().map(str::to_owned).collect()
    }

    fn log() {
        tracing::info!(target: PROXY, event = "start", queues = 2, "it begins");
        tracing::info!(target: CONNECTION, event = "opened", connection = 7, client = %"10.0.0.1:4000");
        tracing::warn!(target: CONNECTION, event = "refused", client = "a\nb", "refused it is");
        tracing::error!(target: PROXY, event = "failed", "no\tdevice");
        tracing::debug!(target: PROXY, "too much");
    }

    #[test]
    fn text_is_messages() {
        assert_eq!(
            lines(Form::Text, log),
            ["it begins", "refused it is", "error: no\tdevice"]
        );
    }

    #[test]
    fn events_without_a_message_are_shown_by_their_fields() {
        let sink = Sink::default();
        let writer = Writer::start(sink.clone(), lines_were_lost).unwrap();
        let levels = levels("connection=info").unwrap();
        let all = subscriber(Form::Text, levels, writer.clone());
        tracing::subscriber::with_default(all, || {
            log();
            tracing::info!(target: CONNECTION, event = "opened", name = "a\nb", seconds = 0.5);
        });
        writer.flush(Duration::from_secs(60));
        let bytes = sink.0.lock().unwrap().clone();
        let expected = "opened connection=7 client=10.0.0.1:4000\nrefused it is\n\
                        opened name=\"a\\nb\" seconds=0.5\n";
        assert_eq!(String::from_utf8(bytes).unwrap(), expected);
    }

    #[test]
    fn json_has_an_object_on_each_line() {
        let lines = lines(Form::Json, log);
        assert_eq!(lines.len(), 4);
        let parts = [
            r#""level":"INFO""#,
            r#""event":"opened""#,
            r#""connection":7"#,
            r#""client":"10.0.0.1:4000""#,
            r#""target":"connection""#,
        ];
        for part in parts {
            assert!(lines[1].contains(part), "{part} in {}", lines[1]);
        }
        assert!(lines[2].contains(r#""client":"a\nb""#), "{}", lines[2]);
        assert!(
            lines[3].contains(r#""message":"no\tdevice""#),
            "{}",
            lines[3]
        );
        assert!(
            lines
                .iter()
                .all(|line| line.starts_with('{') && line.ends_with('}'))
        );
    }

    #[test]
    fn wrong_levels_are_answered_with_right_ones() {
        for right in ["info", "off", "connection=OFF,warn", "sosplice::tcp=debug"] {
            assert!(levels(right).is_ok(), "{right}");
        }
        for wrong in ["", "loud", "connection=", "info,connection=loud", "7"] {
            assert!(levels(wrong).unwrap_err().contains("like info"), "{wrong}");
        }
    }
}
