//! The table: rows of a moment, in an order, drawn.

use crate::relay::Snapshot;
use ratatui::Frame;
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use ratatui::layout::{Alignment, Constraint, Layout};
use ratatui::style::{Color, Style, Stylize};
use ratatui::text::{Line, Text};
use ratatui::widgets::{Cell, Row, Table, TableState};
use std::cmp::Ordering;
use std::time::Duration;

/// The columns, and their widths.
const COLUMNS: [(&str, u16); 9] = [
    ("ADDRESS", 22),
    ("STATE", 8),
    ("NOW", 7),
    ("TOTAL", 9),
    ("UP/s", 8),
    ("DOWN/s", 8),
    ("p50", 8),
    ("p99", 8),
    ("REFUSED", 8),
];
const HELP: &str =
    "q ends the proxy   left, right: order by a column   r reverses it   up, down: rows";

/// The listener, or a backend.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Entry {
    name: String,
    state: &'static str,
    now: u64,
    total: u64,
    /// Bytes in a second.
    rates: [f64; 2],
    /// Seconds of connecting: median, and 99 of 100.
    times: [Option<f64>; 2],
    refused: u64,
}

impl Entry {
    /// The listener, then its backends. The rates are those since the earlier moment.
    pub(super) fn all(now: &Snapshot<'_>, earlier: &Snapshot<'_>, time: Duration) -> Vec<Entry> {
        let rate = |now: u64, before: u64| per_second(now.saturating_sub(before), time);
        let sum = |snapshot: &Snapshot<'_>, direction: usize| {
            let bytes = snapshot.backends.iter().map(|one| one.bytes[direction]);
            bytes.sum::<u64>()
        };
        let counts = &now.counts;
        let listener = Entry {
            name: now.at.to_string(),
            state: if now.stopped { "stopping" } else { "open" },
            now: counts.present + counts.waiting,
            total: counts.connections,
            rates: [0, 1].map(|direction| rate(sum(now, direction), sum(earlier, direction))),
            times: [0.5, 0.99].map(|part| seconds(now.waits.quantile(part))),
            refused: counts.refused.iter().map(|(_, times)| times).sum(),
        };
        let backend = |one: &crate::relay::BackendStats| {
            let same = |other: &&crate::relay::BackendStats| one.is_same(other);
            let before = earlier.backends.iter().find(same);
            let before = before.map_or(one.bytes, |before| before.bytes);
            let name = one.name.as_deref();
            Entry {
                name: name.map_or(one.at.to_string(), |name| format!("{} {name}", one.at)),
                state: match (one.up, one.rests) {
                    (false, _) => "down",
                    (true, true) => "rests",
                    (true, false) => "up",
                },
                now: one.active.into(),
                total: one.served + u64::from(one.active),
                rates: [0, 1].map(|direction| rate(one.bytes[direction], before[direction])),
                times: [0.5, 0.99].map(|part| seconds(one.account.connects.quantile(part))),
                refused: one.failed,
            }
        };
        let backends = now.backends.iter().map(backend);
        std::iter::once(listener).chain(backends).collect()
    }

    fn cells(&self) -> [String; COLUMNS.len()] {
        [
            self.name.clone(),
            self.state.to_owned(),
            self.now.to_string(),
            self.total.to_string(),
            amount(self.rates[0]),
            amount(self.rates[1]),
            self.times[0].map_or("-".into(), duration),
            self.times[1].map_or("-".into(), duration),
            self.refused.to_string(),
        ]
    }

    /// By this column.
    fn compare(&self, other: &Entry, column: usize) -> Ordering {
        let float = |one: f64, other: f64| one.total_cmp(&other);
        let time = |at: usize| {
            let [one, other] = [self, other].map(|entry| entry.times[at].unwrap_or(-1.0));
            float(one, other)
        };
        match column {
            0 => self.name.cmp(&other.name),
            1 => self.state.cmp(other.state),
            2 => self.now.cmp(&other.now),
            3 => self.total.cmp(&other.total),
            4 => float(self.rates[0], other.rates[0]),
            5 => float(self.rates[1], other.rates[1]),
            6 => time(0),
            7 => time(1),
            _ => self.refused.cmp(&other.refused),
        }
    }
}

fn seconds(nanos: Option<f64>) -> Option<f64> {
    nanos.map(|nanos| nanos / 1e9)
}

#[expect(clippy::cast_precision_loss, reason = "three digits are shown")]
fn per_second(bytes: u64, time: Duration) -> f64 {
    match time.is_zero() {
        true => 0.0,
        false => bytes as f64 / time.as_secs_f64(),
    }
}

/// `1.50M`: three digits and a unit.
fn amount(mut value: f64) -> String {
    for unit in ["", "k", "M", "G"] {
        if value < 999.5 {
            return with_digits(value, unit);
        }
        value /= 1000.0;
    }
    with_digits(value, "T")
}

fn with_digits(value: f64, unit: &str) -> String {
    match value {
        _ if unit.is_empty() => format!("{value:.0}"),
        0.0..9.995 => format!("{value:.2}{unit}"),
        0.0..99.95 => format!("{value:.1}{unit}"),
        _ => format!("{value:.0}{unit}"),
    }
}

fn duration(seconds: f64) -> String {
    match seconds {
        0.0..0.001 => format!("{:.0} us", seconds * 1e6),
        0.0..1.0 => format!("{:.1} ms", seconds * 1e3),
        _ => format!("{seconds:.1} s"),
    }
}

/// What a key asks for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Wish {
    Quit,
    Nothing,
}

/// The order of the rows, and which one is marked.
#[derive(Debug, Default)]
pub(super) struct View {
    column: usize,
    descending: bool,
    rows: TableState,
}

impl View {
    pub(super) fn press(&mut self, key: KeyEvent) -> Wish {
        let columns = COLUMNS.len();
        match key.code {
            KeyCode::Char('q') => return Wish::Quit,
            KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => {
                return Wish::Quit;
            }
            KeyCode::Char('r') => self.descending = !self.descending,
            KeyCode::Left => self.column = (self.column + columns - 1) % columns,
            KeyCode::Right => self.column = (self.column + 1) % columns,
            KeyCode::Up => self.rows.select_previous(),
            KeyCode::Down => self.rows.select_next(),
            _ => {}
        }
        Wish::Nothing
    }

    /// The listener stays the first one.
    fn sort(&self, entries: &mut [Entry]) {
        if let [_listener, backends @ ..] = entries {
            backends.sort_by(|one, other| {
                let order = one.compare(other, self.column);
                match self.descending {
                    true => order.reverse(),
                    false => order,
                }
            });
        }
    }

    pub(super) fn draw(&mut self, frame: &mut Frame<'_>, mut entries: Vec<Entry>) {
        self.sort(&mut entries);
        let [table, help] =
            Layout::vertical([Constraint::Min(2), Constraint::Length(1)]).areas(frame.area());
        let head = COLUMNS.iter().enumerate().map(|(at, (name, _))| {
            let sorted = match (at == self.column, self.descending) {
                (false, _) => "",
                (true, false) => "^",
                (true, true) => "v",
            };
            cell(at, format!("{name}{sorted}"))
        });
        let head = Row::new(head.collect::<Vec<_>>()).reversed();
        let rows = entries.iter().map(|entry| {
            let cells = entry.cells().into_iter().enumerate();
            let row = Row::new(cells.map(|(at, text)| cell(at, text)).collect::<Vec<_>>());
            match entry.state {
                "down" => row.style(Style::new().fg(Color::Red)),
                "rests" | "stopping" => row.style(Style::new().fg(Color::Yellow)),
                _ => row,
            }
        });
        let widths = COLUMNS.iter().enumerate().map(|(at, (_, width))| match at {
            0 => Constraint::Min(*width),
            _ => Constraint::Length(*width),
        });
        let all = Table::new(rows.collect::<Vec<_>>(), widths.collect::<Vec<_>>())
            .header(head)
            .row_highlight_style(Style::new().bold());
        frame.render_stateful_widget(all, table, &mut self.rows);
        frame.render_widget(Line::from(HELP).dim(), help);
    }
}

/// Numbers are on the right.
fn cell(column: usize, text: String) -> Cell<'static> {
    let side = match column {
        0 | 1 => Alignment::Left,
        _ => Alignment::Right,
    };
    Cell::from(Text::from(text).alignment(side))
}

#[cfg(test)]
mod tests {
    use super::*;
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    fn entry(name: &str, state: &'static str, now: u64) -> Entry {
        Entry {
            name: name.into(),
            state,
            now,
            total: 10 * now,
            rates: [1_500_000.0, 999.4],
            times: [Some(0.000_25), None],
            refused: 0,
        }
    }

    fn entries() -> Vec<Entry> {
        vec![
            entry("10.1.0.2:80", "open", 9),
            entry("10.2.0.1:80", "up", 2),
            entry("10.2.0.2:80", "down", 7),
        ]
    }

    fn drawn(view: &mut View, width: u16) -> String {
        let mut terminal = Terminal::new(TestBackend::new(width, 6)).unwrap();
        terminal.draw(|frame| view.draw(frame, entries())).unwrap();
        terminal.backend().to_string()
    }

    fn press(view: &mut View, code: KeyCode) -> Wish {
        view.press(KeyEvent::new(code, KeyModifiers::NONE))
    }

    #[test]
    fn a_row_for_the_listener_and_for_each_backend() {
        let expected = r#"
"ADDRESS^               STATE        NOW     TOTAL     UP/s   DOWN/s      p50      p99  REFUSED"
"10.1.0.2:80            open           9        90    1.50M      999   250 us        -        0"
"10.2.0.1:80            up             2        20    1.50M      999   250 us        -        0"
"10.2.0.2:80            down           7        70    1.50M      999   250 us        -        0"
"                                                                                              "
"q ends the proxy   left, right: order by a column   r reverses it   up, down: rows            "
"#;
        assert_eq!(drawn(&mut View::default(), 94), expected[1..]);
    }

    #[test]
    fn keys_choose_the_order_and_the_row() {
        let mut view = View::default();
        for code in [KeyCode::Right, KeyCode::Right, KeyCode::Char('r')] {
            assert_eq!(press(&mut view, code), Wish::Nothing);
        }
        let page = drawn(&mut view, 94);
        let rows: Vec<&str> = page.lines().map(|line| &line[1..12]).collect();
        assert_eq!(rows[1..4], ["10.1.0.2:80", "10.2.0.2:80", "10.2.0.1:80"]);
        assert!(page.contains(" NOWv "), "{page}");
        press(&mut view, KeyCode::Left);
        press(&mut view, KeyCode::Left);
        press(&mut view, KeyCode::Left);
        assert!(drawn(&mut view, 94).contains(" REFUSEDv\""));
        press(&mut view, KeyCode::Down);
        drawn(&mut view, 94);
        assert_eq!(view.rows.selected(), Some(0));
        assert_eq!(press(&mut view, KeyCode::Char('q')), Wish::Quit);
        let control = KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL);
        assert_eq!(view.press(control), Wish::Quit);
    }

    #[test]
    fn a_small_terminal_is_no_error() {
        for width in [1, 10, 40] {
            drawn(&mut View::default(), width);
        }
        let mut terminal = Terminal::new(TestBackend::new(1, 1)).unwrap();
        let mut view = View::default();
        terminal.draw(|frame| view.draw(frame, entries())).unwrap();
    }

    #[test]
    fn amounts_have_three_digits() {
        let amounts = [0.0, 999.4, 999.5, 9_994.0, 99_940.0, 1.5e6, 2e9, 5e12, 1e15];
        let shown = amounts.map(amount);
        let expected = [
            "0", "999", "1.00k", "9.99k", "99.9k", "1.50M", "2.00G", "5.00T", "1000T",
        ];
        assert_eq!(shown, expected);
        let times = [0.0, 0.000_25, 0.0015, 2.5].map(duration);
        assert_eq!(times, ["0 us", "250 us", "1.5 ms", "2.5 s"]);
    }
}
