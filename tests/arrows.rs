//! The dependencies between the crate's modules point downwards only.
//!
//! Reads the paths in `src` that begin at the crate's root (`crate::…`, and `super::…` that gets
//! there), without comments and without code for tests.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::str::Chars;

/// A module and the modules that it may use. A row may use only rows above it; the longest matching row
/// applies.
const ARROWS: &str = "
    affinity        ->
    clock           ->
    error           ->
    sync            ->
    lock            -> sync
    callbacks       -> lock sync
    events          -> callbacks lock
    timer           ->
    interest        ->
    busy            ->
    probe           -> busy
    text_table         ->
    congestion      ->
    keep_alive      ->
    counter         ->
    checksum        ->
    random          ->
    turn            -> sync
    buf             -> lock sync
    sockbuf         -> buf
    end             -> error
    protocol        -> sockbuf buf end error lock sync
    run_list        -> lock sync
    link            -> checksum buf clock counter random interest lock
    socket          -> protocol run_list callbacks sockbuf buf clock end error interest lock
    socket::poller  -> protocol clock end error interest lock sync
    kernel          -> checksum socket protocol run_list sockbuf buf clock keep_alive error lock sync turn counter
    smoltcp         -> socket protocol run_list buf error lock sync
    local           -> socket protocol sockbuf buf error lock sync
    splice          -> socket protocol run_list timer busy probe text_table events callbacks sockbuf buf affinity clock end error lock sync
    splice::machine -> protocol error sync
    splice::xfer    -> sockbuf buf
    splice::token_bucket ->
    sockopt         -> splice socket error lock
    sockopt::layout -> error
    conformance     -> splice socket protocol sockbuf buf clock error lock
    ip              -> checksum link buf clock lock error sync
    tcp             -> checksum ip protocol link sockbuf buf congestion keep_alive events error lock sync counter
    udp             -> checksum protocol link sockbuf buf ip counter turn error lock sync
    stack           -> checksum random udp counter ip tcp socket protocol link run_list timer busy probe text_table congestion events callbacks sockbuf buf affinity clock end keep_alive error lock sync
";

/// The modules that may name the engine.
const ENGINE: &str = "smoltcp";
const KNOW_THE_ENGINE: [&str; 2] = ["checksum", "smoltcp"];

#[derive(Debug)]
struct Row {
    module: Vec<&'static str>,
    knows: Vec<&'static str>,
}

fn table() -> Vec<Row> {
    let lines = ARROWS.lines().filter_map(|line| line.split_once("->"));
    lines
        .map(|(module, knows)| Row {
            module: module.trim().split("::").collect(),
            knows: knows.split_whitespace().collect(),
        })
        .collect()
}

/// Attributes of code for tests.
const FOR_TESTS: [&str; 1] = ["#[cfg(test)]"];

/// A source file, without tests and comments.
#[derive(Debug)]
struct Source {
    /// `["stack", "driver"]` for `src/stack/driver.rs`.
    module: Vec<String>,
    lines: Vec<String>,
    /// Modules in other files that are for tests only.
    tests: Vec<String>,
}

impl Source {
    fn new(module: &[&str], text: &str) -> Source {
        let mut source = Source {
            module: module.iter().map(|name| (*name).to_owned()).collect(),
            lines: Vec::new(),
            tests: Vec::new(),
        };
        let mut lines = text.lines().map(without_comment);
        while let Some(line) = lines.next() {
            if FOR_TESTS.contains(&line.trim()) {
                source.skip_item(&mut lines);
            } else {
                source.lines.push(line.to_owned());
            }
        }
        source
    }

    /// Skips the item of an attribute. The layout is rustfmt's.
    fn skip_item<'a>(&mut self, lines: &mut impl Iterator<Item = &'a str>) {
        let mut lines = lines.skip_while(|line| line.trim().starts_with("#["));
        let Some(first) = lines.next() else { return };
        let item = first.trim_end();
        if let Some((_, name)) = item.rsplit_once("mod ")
            && let Some(name) = name.strip_suffix(';')
        {
            self.tests.push(name.to_owned());
        }
        if !item.ends_with([';', ',', '}']) {
            let indent = &item[..item.len() - item.trim_start().len()];
            let ends = |line: &str| {
                let rest = line.strip_prefix(indent).map(str::trim_end);
                rest.is_some_and(|rest| ["}", "};", "},"].contains(&rest))
            };
            lines.find(|line| ends(line));
        }
    }

    /// The top-level modules that it names.
    fn knows(&self) -> BTreeSet<String> {
        let text = self.lines.join("\n");
        let mut known = BTreeSet::new();
        let root = "super::".repeat(self.module.len());
        for start in ["crate::", &root] {
            for (at, _) in text.match_indices(start) {
                let is_path_start = |c: char| !c.is_alphanumeric() && !"_:$".contains(c);
                if text[..at].chars().next_back().is_none_or(is_path_start) {
                    known.extend(names(&text[at + start.len()..]));
                }
            }
        }
        known
    }
}

impl Source {
    /// The files that it names, but for itself and those that it is declared by.
    fn files<'a>(&self, all: &'a [Source]) -> BTreeSet<&'a [String]> {
        let text = self.lines.join("\n");
        let mut found = BTreeSet::new();
        for up in 0..=self.module.len() {
            let (start, base) = match up {
                0 => ("crate::".to_owned(), 0),
                up => ("super::".repeat(up), self.module.len() - up),
            };
            for (at, _) in text.match_indices(&start) {
                let is_path_start = |c: char| !c.is_alphanumeric() && !"_:$".contains(c);
                if text[..at].chars().next_back().is_none_or(is_path_start) {
                    let mut path = self.module[..base].to_vec();
                    let mut paths = Vec::new();
                    tree(&mut text[at + start.len()..].chars(), &mut path, &mut paths);
                    found.extend(paths.iter().filter_map(|path| file_of(path, all)));
                }
            }
        }
        found.retain(|file| !self.module.starts_with(file));
        found
    }
}

/// Adds a path, or each path of a tree in braces.
fn tree(rest: &mut Chars<'_>, path: &mut Vec<String>, into: &mut Vec<Vec<String>>) {
    let is_name = |c: &char| c.is_alphanumeric() || *c == '_';
    let text = rest.as_str().trim_start();
    *rest = text.chars();
    if let Some(group) = text.strip_prefix('{') {
        *rest = group.chars();
        loop {
            tree(rest, path, into);
            let text = rest.as_str();
            let end = text.find([',', '{', '}', ';']).unwrap_or(text.len());
            *rest = text[end..].chars();
            if rest.next() != Some(',') {
                return;
            }
        }
    }
    let name: String = text.chars().take_while(is_name).collect();
    if name.is_empty() {
        return;
    }
    *rest = text[name.len()..].chars();
    path.push(name);
    match rest.as_str().strip_prefix("::") {
        Some(behind) => {
            *rest = behind.chars();
            tree(rest, path, into);
        }
        None => into.push(path.clone()),
    }
    path.pop();
}

/// The file that a path leads to: the longest beginning of it that is a module.
fn file_of<'a>(path: &[String], all: &'a [Source]) -> Option<&'a [String]> {
    let leads = all.iter().filter(|source| path.starts_with(&source.module));
    let longest = leads.max_by_key(|source| source.module.len());
    longest.map(|source| &source.module[..])
}

/// The files that are left after repeatedly removing those that use none of the rest: circles, and the
/// users of circles.
fn circles(sources: &[Source]) -> Vec<String> {
    let known: Vec<_> = sources.iter().map(|source| source.files(sources)).collect();
    let mut left: BTreeSet<usize> = (0..sources.len()).collect();
    loop {
        let modules: BTreeSet<&[String]> = left.iter().map(|at| &sources[*at].module[..]).collect();
        let before = left.len();
        left.retain(|at| known[*at].iter().any(|file| modules.contains(file)));
        if left.len() == before {
            break;
        }
    }
    let line = |at: &usize| {
        let left = left.iter().map(|at| &sources[*at].module[..]);
        let left: BTreeSet<_> = left.filter(|file| known[*at].contains(file)).collect();
        let names: Vec<_> = left.iter().map(|file| file.join("::")).collect();
        format!(
            "{} knows {}",
            sources[*at].module.join("::"),
            names.join(", ")
        )
    };
    left.iter().map(line).collect()
}

fn without_comment(line: &str) -> &str {
    let mut comments = line.match_indices("//");
    let comment = comments.find(|(at, _)| !line[..*at].ends_with(':'));
    comment.map_or(line, |(at, _)| &line[..at])
}

/// The first name of a path, or of each path in braces.
fn names(path: &str) -> Vec<String> {
    let name = |text: &str| {
        let name = text.trim_start().chars();
        name.take_while(|c| c.is_alphanumeric() || *c == '_')
            .collect::<String>()
    };
    let Some(group) = path.strip_prefix('{') else {
        return vec![name(path)];
    };
    let mut depth = 0;
    let mut found = vec![name(group)];
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => found.push(name(&group[at + 1..])),
            _ => {}
        }
    }
    found.retain(|name| !name.is_empty());
    found
}

/// The violations of a file.
fn violations(source: &Source, table: &[Row]) -> Vec<String> {
    let module = source.module.join("::");
    let rows = table.iter().filter(|row| {
        source
            .module
            .iter()
            .zip(&row.module)
            .filter(|(a, b)| a == *b)
            .count()
            == row.module.len()
    });
    let Some(row) = rows.max_by_key(|row| row.module.len()) else {
        return vec![format!("{module} is not in the table")];
    };
    let own = &source.module[0];
    let known = source.knows();
    let wrong = known
        .iter()
        .filter(|name| *name != own && !row.knows.contains(&name.as_str()));
    let mut wrong: Vec<_> = wrong.map(|name| format!("{module} knows {name}")).collect();
    if !KNOW_THE_ENGINE.contains(&own.as_str()) {
        let lines = source.lines.iter().filter(|line| line.contains(ENGINE));
        wrong.extend(lines.map(|line| format!("{module} names the engine: {}", line.trim())));
    }
    wrong
}

fn files(folder: &Path, into: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("a folder of sources") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            files(&path, into);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            into.push(path);
        }
    }
}

/// All modules but the crate's root and those for tests.
fn sources() -> Vec<Source> {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut paths = Vec::new();
    files(&src, &mut paths);
    let read = |path: &PathBuf| {
        let module = path
            .strip_prefix(&src)
            .expect("it is in src")
            .with_extension("");
        let module: Vec<_> = module
            .iter()
            .map(|name| name.to_str().expect("names are ASCII"))
            .collect();
        Source::new(&module, &fs::read_to_string(path).expect("a source"))
    };
    let mut sources: Vec<_> = paths.iter().map(read).collect();
    let tests: Vec<Vec<String>> = sources
        .iter()
        .flat_map(|source| {
            let path =
                |name: &String| [source.module.as_slice(), std::slice::from_ref(name)].concat();
            source.tests.iter().map(path)
        })
        .collect();
    sources.retain(|source| {
        source.module != ["lib"] && !tests.iter().any(|test| source.module.starts_with(test))
    });
    sources
}

#[test]
fn the_table_has_no_cycle() {
    let table = table();
    for (at, row) in table.iter().enumerate() {
        for known in &row.knows {
            let above = table[..at].iter().any(|other| other.module == [*known]);
            assert!(above, "{:?} -> {known}: not a row above", row.module);
        }
    }
}

#[test]
fn arrows_run_downwards() {
    let (table, sources) = (table(), sources());
    for row in &table {
        let there = sources.iter().any(|source| source.module == row.module);
        assert!(
            there,
            "{:?} is in the table, but there is no such module",
            row.module
        );
    }
    assert!(
        sources
            .iter()
            .map(|source| source.knows().len())
            .sum::<usize>()
            > 50
    );
    let wrong: Vec<_> = sources
        .iter()
        .flat_map(|source| violations(source, &table))
        .collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn no_file_depends_on_its_users() {
    let circles = circles(&sources());
    assert!(circles.is_empty(), "{circles:#?}");
}

#[test]
fn circles_are_found() {
    let found = |texts: &[(&str, &str)]| {
        let source = |(module, text): &(&str, &str)| {
            Source::new(&module.split("::").collect::<Vec<_>>(), text)
        };
        circles(&texts.iter().map(source).collect::<Vec<_>>())
    };
    let one = ("a::b", "use super::{c::{self, D}, e};");
    assert_eq!(
        found(&[
            one,
            ("a::c", "use crate::a::b::F;"),
            ("a::e", ""),
            ("a", "use b::F;")
        ]),
        ["a::b knows a::c", "a::c knows a::b"]
    );
    assert_eq!(
        found(&[one, ("a::c", "use super::G;"), ("a::e", ""), ("a", "")]),
        [""; 0]
    );
    let three = [
        ("a", "use crate::b::X;"),
        ("b", "fn f() {\n    crate::c::g()\n}"),
        ("c", "use crate::{d, a::{self}};"),
        ("d", ""),
    ];
    assert_eq!(found(&three).len(), 3);
}

#[test]
fn wrong_arrows_are_found() {
    let wrong = |module: &[&str], text: &str| violations(&Source::new(module, text), &table());
    assert_eq!(
        wrong(&["buf"], "use crate::socket::Socket;"),
        ["buf knows socket"]
    );
    assert_eq!(
        wrong(&["tcp", "tcb"], "    crate::stack::f();"),
        ["tcp::tcb knows stack"]
    );
    assert_eq!(
        wrong(&["socket"], "use super::splice::Splice;"),
        ["socket knows splice"]
    );
    assert_eq!(
        wrong(&["tcp", "a"], "use super::super::stack;"),
        ["tcp::a knows stack"]
    );
    assert_eq!(
        wrong(
            &["splice"],
            "use crate::{\n    lock::{A, tcp},\n    stack::{B},\n    tcp,\n};"
        ),
        ["splice knows stack", "splice knows tcp"]
    );
    assert_eq!(
        wrong(&["splice", "xfer"], "use crate::lock;"),
        ["splice::xfer knows lock"]
    );
    assert_eq!(wrong(&["link"], "use smoltcp::phy;").len(), 1);
    assert_eq!(wrong(&["new"], ""), ["new is not in the table"]);
}

#[test]
fn right_arrows_are_not() {
    let wrong = |module: &[&str], text: &str| violations(&Source::new(module, text), &table());
    assert!(wrong(&["stack"], "use crate::tcp;").is_empty());
    assert!(wrong(&["checksum"], "use smoltcp::wire;").is_empty());
    assert!(wrong(&["smoltcp", "port"], "use smoltcp::iface;").is_empty());
    assert!(wrong(&["buf"], "// crate::stack, smoltcp\nuse crate::buf::X;").is_empty());
    assert!(wrong(&["tcp", "a"], "use super::stack;\nuse $crate::stack;").is_empty());
    let tests = "#[cfg(test)]\nmod tests {\n    use crate::stack;\n}\n\
        #[cfg(test)]\nuse crate::stack;\nuse crate::lock;\n\
        impl A {\n    #[cfg(test)]\n    #[inline]\n    fn f() {\n        crate::stack::f()\n    }\n}";
    assert!(wrong(&["buf"], tests).is_empty());
    let file = "#[cfg(test)]\npub(crate) mod oracle;\nuse crate::lock;";
    let file = Source::new(&["buf"], file);
    assert_eq!(file.tests, ["oracle"]);
    let after = "#[cfg(test)]\nmod tests {\n    use crate::tcp;\n}\nuse crate::stack;";
    assert_eq!(wrong(&["buf"], after), ["buf knows stack"]);
}
