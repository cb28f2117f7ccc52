//! The table of behaviours in the documentation (`src/doc/behaviour.md`) is made from the tests: from
//! the cases of the conformance suite, and from tests in `src` and `tests` that carry a line
//! `// Row: behaviour | FreeBSD | OpenBSD | here`.
//!
//! `SOSPLICE_BLESS=1 cargo test --test behaviour` writes it anew.

#![allow(
    clippy::unwrap_used,
    reason = "a test says by panicking what it did not expect"
)]

use sosplice::{SplicePool, Stack, conformance};
use std::collections::BTreeSet;
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

const HEAD: &str = "\
The behaviour of a splice, beside both kernels'. Each row is a test; the table is generated from the tests.

Rows of the suite are run over pairs in memory and over TCP, IPv4 and IPv6 and mixed, with one and
several workers, with direct and adaptive dispatch, in real and in virtual time, as far as they apply, and in
both flavors if they hold in both: `cargo test --test conformance -- 'name'`. Other protocols run
them with the feature `conformance`. An empty cell means: as in the column before.
";

/// A line of the table.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Row {
    cells: [String; 4],
    test: String,
}

impl Row {
    fn print(&self, table: &mut String) {
        let [behaviour, freebsd, openbsd, here] = &self.cells;
        let test = &self.test;
        writeln!(
            table,
            "| {behaviour} | {freebsd} | {openbsd} | {here} | `{test}` |"
        )
        .unwrap();
    }
}

fn print(title: &str, rows: &[Row], table: &mut String) {
    write!(table, "\n# {title}\n\n").unwrap();
    table.push_str("| behaviour | FreeBSD | OpenBSD | here | test |\n|---|---|---|---|---|\n");
    rows.iter().for_each(|row| row.print(table));
}

fn suite() -> Vec<Row> {
    let cell = |text: &str| text.replace('|', "\\|");
    conformance::cases()
        .map(|case| Row {
            cells: [case.behaviour, case.freebsd, case.openbsd, case.here].map(cell),
            test: case.name.to_owned(),
        })
        .collect()
}

fn files(folder: &Path, into: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files(&path, into);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            into.push(path);
        }
    }
}

/// The rows that tests carry, in order of files and lines.
fn carried() -> Vec<Row> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut paths = Vec::new();
    files(&root.join("src"), &mut paths);
    files(&root.join("tests"), &mut paths);
    paths.sort();
    let mut rows = Vec::new();
    for path in paths {
        let text = fs::read_to_string(&path).unwrap();
        let mut lines = text.lines().map(str::trim);
        while let Some(line) = lines.next() {
            let Some(row) = line.strip_prefix("// Row: ") else {
                continue;
            };
            let mut row = row.to_owned();
            let mut test = None;
            for line in lines.by_ref() {
                if let Some(more) = line.strip_prefix("// ") {
                    row.push(' ');
                    row.push_str(more);
                } else if let Some((_, name)) = line.split_once("fn ") {
                    test = name.split('(').next();
                    break;
                }
            }
            let cells: Vec<_> = row
                .split(" | ")
                .map(|cell| cell.trim().to_owned())
                .collect();
            let shown = path.strip_prefix(root).unwrap().display();
            let cells = cells
                .try_into()
                .unwrap_or_else(|cells| panic!("{shown}: a row has four cells, not {cells:?}"));
            let test = test.unwrap_or_else(|| panic!("{shown}: no test below {row}"));
            rows.push(Row {
                cells,
                test: test.to_owned(),
            });
        }
    }
    rows
}

/// Words in backquotes that look like names of tests must be tests: in the last column of each page's
/// table, and in its text.
#[test]
fn each_test_that_a_page_names_is_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut paths = Vec::new();
    files(&root.join("src"), &mut paths);
    files(&root.join("tests"), &mut paths);
    let mut tests = BTreeSet::new();
    for path in paths {
        let text = fs::read_to_string(path).unwrap();
        let names = text
            .lines()
            .filter_map(|line| line.trim().strip_prefix("fn "));
        tests.extend(names.filter_map(|rest| Some(rest.split_once('(')?.0.to_owned())));
    }
    for (page, from, least) in [
        ("security.md", "", 40),
        ("endings.md", "", 25),
        ("standards.md", "Of IP and ICMP:", 20),
    ] {
        let page = fs::read_to_string(root.join("src/doc").join(page)).unwrap();
        let (_, page) = page.split_once(from).unwrap();
        let named = named(page, &tests);
        assert!(named > least, "{named}");
    }
}

/// Words in backquotes, and targets of links, that are written as paths.
#[test]
fn each_file_that_a_page_names_is_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    if !root.join(".ci").exists() {
        // A package, which does not have every file.
        return;
    }
    let pages = ["README", "CONTRIBUTING", "CHANGELOG", "tests/README"];
    let mut pages: Vec<_> = pages.map(|page| root.join(page.to_owned() + ".md")).into();
    let manual = fs::read_dir(root.join("src/doc")).unwrap();
    pages.extend(manual.map(|page| page.unwrap().path()));
    pages.retain(|page| page.extension().is_some_and(|kind| kind == "md"));
    let folders = [
        "src", "tests", "benches", "examples", "include", ".ci", "findings",
    ];
    let mut checked = 0;
    for page in pages {
        let text = fs::read_to_string(&page).unwrap();
        for word in text.split(['`', '(', ')', ' ', '\n', '#', ',']) {
            let is_path = word
                .split_once('/')
                .is_some_and(|(folder, _)| folders.contains(&folder));
            if is_path {
                let path = root.join(word.trim_end_matches(['.', ':']));
                assert!(path.exists(), "{}: no file {word}", page.display());
                checked += 1;
            }
        }
    }
    assert!(checked > 60, "{checked}");
}

/// The table of limits: its settings exist with the stated defaults, and so do its counters.
#[test]
fn the_table_of_limits_is_that_of_the_builders() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = fs::read_to_string(root.join("src/doc/security.md")).unwrap();
    let (_, page) = page.split_once("# Limits").unwrap();
    let (table, _) = page.split_once("\n# ").unwrap();
    let (link, _far) = sosplice::link::memory::pair(Default::default());
    let stack = Stack::builder(link);
    let said = format!("{stack:?} {:?}", SplicePool::builder());
    // Where a builder calls it otherwise, or the default is not the builder's.
    let named = [
        ("receive_buffer", "rcv_buffer"),
        ("send_buffer", "snd_buffer"),
    ];
    let stats = ["src/stack/stats.rs", "src/splice/stats.rs"];
    let stats = stats.map(|path| fs::read_to_string(root.join(path)).unwrap());
    let rows = table.lines().filter(|line| line.starts_with("| "));
    let mut checked = 0;
    for row in rows.skip(1) {
        let cells: Vec<_> = row.split(" | ").collect();
        let default = match cells[1] {
            "none" => "None".to_owned(),
            number => number.replace(',', ""),
        };
        let setting = cells[2].trim_matches('`');
        if setting == "TcpListener::bind_with_backlog" {
            assert_eq!(default, sosplice::stack::DEFAULT_BACKLOG.to_string());
        } else {
            let known = named.iter().find(|(name, _)| *name == setting);
            let field = known.map_or(setting, |(_, field)| field);
            let entry = format!(" {field}: {default}");
            assert!(said.contains(&entry), "{entry} is not in {said}");
        }
        for counter in cells[3].split(", ").filter(|name| name.starts_with('`')) {
            let field = format!("pub {}: ", counter.trim_matches('`'));
            assert!(stats.iter().any(|file| file.contains(&field)), "{counter}");
        }
        checked += 1;
    }
    assert_eq!(checked, 9);
}

/// How many tests a page names, all of which there are.
fn named(page: &str, tests: &BTreeSet<String>) -> usize {
    let mut named = 0;
    for line in page.lines().filter(|line| !line.starts_with("|---")) {
        let cells: Vec<_> = line
            .strip_prefix("| ")
            .map_or(vec![], |row| row.split(" | ").collect());
        let column = cells.last().copied().unwrap_or(line);
        let is_row = !cells.is_empty();
        for name in column.split('`').skip(1).step_by(2) {
            let is_name = name.bytes().all(|b| b == b'_' || b.is_ascii_alphanumeric());
            if is_row || (is_name && name.matches('_').count() > 2) {
                assert!(tests.contains(name), "no test {name}: {line}");
                named += 1;
            }
        }
    }
    named
}

#[test]
fn the_table_of_behaviours_is_that_of_the_tests() {
    let (suite, carried) = (suite(), carried());
    let names: BTreeSet<_> = suite.iter().chain(&carried).map(|row| &row.test).collect();
    assert_eq!(names.len(), suite.len() + carried.len(), "names are unique");
    let mut table = HEAD.to_owned();
    print("The conformance suite", &suite, &mut table);
    print("Further tests", &carried, &mut table);
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/doc/behaviour.md");
    if std::env::var_os("SOSPLICE_BLESS").is_some() {
        fs::write(&path, &table).unwrap();
    }
    let kept = fs::read_to_string(&path).unwrap_or_default();
    assert!(
        kept == table,
        "src/doc/behaviour.md is not up to date: SOSPLICE_BLESS=1 cargo test --test behaviour"
    );
}
