//! Whole files, every mistake in one, and any bytes.

use super::*;
use proptest::prelude::*;
use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

fn frame() -> Frame {
    Frame {
        addresses: vec!["10.2.0.2".parse().unwrap()],
        own: vec!["10.1.0.2".parse().unwrap(), "10.2.0.2".parse().unwrap()],
        listen: "10.1.0.2:443".parse().unwrap(),
        buffer: 1 << 20,
    }
}

fn parse(text: &str) -> Result<Settings, String> {
    Settings::parse(text, &frame()).map_err(|error| format!("{error:#}"))
}

const WHOLE: &str = r#"
balance = "client"
idle = 300
max_bytes = 1_000_000
accept_proxy = true
send_proxy = "v2"
head_timeout = 4
head_clients = 200
head_memory = 8_388_608
per_client = 100
queue = 50
queue_timeout = 2.5
[check]
interval = 2
rise = 3
fall = 5
[[backend]]
address = "10.2.0.1:80"
weight = 2
limit = 100
[[backend]]
address = "10.2.0.1:443"
name = "*.Example.org"
"#;

#[test]
fn a_whole_file() {
    let settings = parse(WHOLE).unwrap();
    let second = Duration::from_secs(1);
    assert_eq!(settings.balance, Balance::Client);
    assert_eq!(settings.terms.queue, (50, second * 5 / 2));
    assert_eq!(settings.terms.idle, Some(300 * second));
    assert_eq!(settings.terms.limit, Some(1_000_000));
    assert_eq!(settings.terms.head_timeout, 4 * second);
    let Room { clients, memory } = settings.terms.head_room;
    assert_eq!((clients, memory), (200, 8 << 20));
    let Expected { proxy, tls } = settings.terms.expected;
    assert!(proxy && tls);
    let checks = settings.checks.unwrap();
    assert_eq!(
        (checks.interval, checks.rise, checks.fall),
        (2 * second, 3, 5)
    );
    assert_eq!(settings.offers[0].spec.limit, Some(100));
    assert_eq!(settings.offers[1].name.as_deref(), Some("*.example.org"));
    assert_eq!(settings.offers[1].spec.weight, 1);
}

#[test]
fn nearly_all_may_be_left_out() {
    let settings = parse("[[backend]]\naddress = \"10.2.0.1:80\"").unwrap();
    let (terms, usual) = (settings.terms, Terms::default());
    assert_eq!(terms.head_timeout, usual.head_timeout);
    assert_eq!(terms.head_room, usual.head_room);
    assert_eq!(terms.queue, usual.queue);
    assert!(settings.checks.is_none());
}

/// What stands in the file, what is written in its place, the line of the message, and what would be right.
type Mistake = (&'static str, &'static str, usize, &'static str);

/// A value of another type, or out of range, for each key.
const VALUES: &[Mistake] = &[
    (
        "\"client\"",
        "\"clever\"",
        2,
        "`round-robin`, `least` or `client`",
    ),
    ("\"client\"", "3", 2, "give one of"),
    ("= 300", "= \"300\"", 3, "give seconds"),
    ("= 300", "= 0", 3, "more than 0"),
    ("= 300", "= -1", 3, "more than 0"),
    ("= 300", "= nan", 3, "more than 0"),
    ("= 300", "= inf", 3, "up to a year"),
    ("= 300", "= 1e300", 3, "up to a year"),
    ("= 300", "= 31536001", 3, "up to a year"),
    ("= 300", "= 9223372036854775807", 3, "up to a year"),
    ("= 300", "= 99999999999999999999", 3, "up to a year"),
    ("= 300", "= 2024-01-01", 3, "give seconds"),
    ("1_000_000", "0", 4, "bytes, at least 1"),
    ("1_000_000", "-5", 4, "bytes, at least 1"),
    ("1_000_000", "\"1M\"", 4, "bytes, at least 1"),
    ("1_000_000", "1.5", 4, "bytes, at least 1"),
    ("= true", "= 1", 5, "expected a boolean"),
    ("= true", "= \"yes\"", 5, "expected a boolean"),
    ("\"v2\"", "\"v3\"", 6, "`v1` or `v2`"),
    ("\"v2\"", "2", 6, "give one of"),
    ("head_timeout = 4", "head_timeout = 0", 7, "more than 0"),
    ("head_timeout = 4", "head_timeout = []", 7, "give seconds"),
    ("= 200", "= 0", 8, "at least 1"),
    ("= 200", "= \"200\"", 8, "at least 1"),
    ("8_388_608", "4096", 9, "at least 1048576"),
    ("8_388_608", "\"8M\"", 9, "at least 1048576"),
    ("per_client = 100", "per_client = 0", 10, "at least 1"),
    ("per_client = 100", "per_client = 4294967296", 10, "at most"),
    ("queue = 50", "queue = -1", 11, "0 for none"),
    ("queue = 50", "queue = true", 11, "0 for none"),
    ("= 2.5", "= 0.0", 12, "more than 0"),
    ("= 2.5", "= \"soon\"", 12, "give seconds"),
    ("interval = 2", "interval = 0", 14, "more than 0"),
    ("interval = 2", "interval = \"2s\"", 14, "give seconds"),
    ("rise = 3", "rise = 0", 15, "1 to 1000"),
    ("fall = 5", "fall = 1001", 16, "1 to 1000"),
    ("fall = 5", "fall = \"5\"", 16, "1 to 1000"),
    ("10.2.0.1:80", "10.2.0.1", 18, "with a port"),
    (
        "10.2.0.1:80",
        "server.example:80",
        18,
        "names are not looked up",
    ),
    ("\"10.2.0.1:80\"", "80", 18, "with a port"),
    ("\"10.2.0.1:80\"", "[\"10.2.0.1:80\"]", 18, "with a port"),
    ("10.2.0.1:80", "10.2.0.1:70000", 18, "with a port"),
    ("weight = 2", "weight = 257", 19, "0 to 256"),
    ("weight = 2", "weight = -1", 19, "0 to 256"),
    ("weight = 2", "weight = \"2\"", 19, "0 to 256"),
    ("limit = 100", "limit = 0", 20, "at least 1"),
    ("limit = 100", "limit = \"many\"", 20, "at least 1"),
    ("*.Example.org", "*", 23, "*.example.org"),
    ("*.Example.org", "a.*.org", 23, "*.example.org"),
    ("*.Example.org", "", 23, "*.example.org"),
    ("*.Example.org", "*.", 23, "example.org"),
    ("*.Example.org", "an example.org", 23, "example.org"),
    ("*.Example.org", "b\u{fc}cher.example", 23, "xn--"),
    ("*.Example.org", "10.2.0.1", 23, "example.org"),
    ("\"*.Example.org\"", "7", 23, "\"example.org\""),
];

/// A key that is not known, or there twice; brackets; keys that are missing.
const KEYS: &[Mistake] = &[
    ("idle = 300", "idel = 300", 3, "`idle`"),
    ("idle = 300", "Idle = 300", 3, "`idle`"),
    ("idle = 300", "balance = \"least\"", 3, "duplicate key"),
    ("idle = 300", "idle 300", 3, "="),
    ("idle = 300", "idle = 300 400", 3, "must be quoted"),
    ("idle = 300", "idle = ", 3, "must be quoted"),
    ("rise = 3", "raise = 3", 15, "`rise`"),
    ("rise = 3", "fall = 3", 16, "duplicate key"),
    ("interval = 2", "", 13, "missing field `interval`"),
    ("weight = 2", "wait = 2", 19, "`weight`"),
    (
        "weight = 2",
        "address = \"10.2.0.9:80\"",
        19,
        "duplicate key",
    ),
    (
        "address = \"10.2.0.1:80\"",
        "",
        17,
        "missing field `address`",
    ),
    (
        "[check]\ninterval = 2\nrise = 3\nfall = 5",
        "check = 2",
        13,
        "as [check]",
    ),
    ("[check]", "[[check]]", 13, "as [check]"),
    ("[check]", "[check", 13, "]"),
    ("limit = 100", "limit = 100 [", 20, ""),
    (
        "[[backend]]\naddress = \"10.2.0.1:80\"\nweight = 2\nlimit = 100\n[[backend]]\naddress = \"10.2.0.1:443\"\nname = \"*.Example.org\"",
        "[[backend]]\naddress = 5",
        18,
        "with a port",
    ),
    (
        "[check]\ninterval = 2\nrise = 3\nfall = 5",
        "[check.more]",
        13,
        "`interval`",
    ),
    (
        "[[backend]]\naddress = \"10.2.0.1:80\"",
        "[backend]\naddress = \"10.2.0.1:80\"",
        21,
        "[[backend]]",
    ),
    ("*.Example.org\"", "*.Example.org", 23, "\""),
    ("*.Example.org", "\\x", 23, "hexadecimal"),
    ("*.Example.org", "a\0b", 23, ""),
];

/// Values that do not fit to each other, or to the devices.
const TOGETHER: &[Mistake] = &[
    (
        "10.2.0.1:80",
        "[fd00::1]:80",
        17,
        "no --tun has an address of its family",
    ),
    ("10.2.0.1:80", "10.2.0.1:0", 17, "give a port"),
    ("10.2.0.1:80", "127.0.0.1:80", 17, "address of one host"),
    ("10.2.0.1:80", "0.0.0.0:80", 17, "address of one host"),
    ("10.2.0.1:80", "224.0.0.1:80", 17, "address of one host"),
    (
        "10.2.0.1:80",
        "255.255.255.255:80",
        17,
        "address of one host",
    ),
    (
        "10.2.0.1:80",
        "10.1.0.2:443",
        17,
        "this proxy listens there",
    ),
    (
        "10.2.0.1:443",
        "10.1.0.2:443",
        21,
        "this proxy listens there",
    ),
    (
        "10.2.0.1:80",
        "10.1.0.2:80",
        17,
        "the proxy itself has this address",
    ),
    (
        "10.2.0.1:80",
        "10.2.0.2:80",
        17,
        "the proxy itself has this address",
    ),
    (
        "10.2.0.1:443\"\nname = \"*.Example.org",
        "10.2.0.1:80",
        21,
        "give it once, with a weight",
    ),
];

fn mistaken(mistake: &Mistake) -> String {
    let (right, wrong, _, _) = *mistake;
    assert!(WHOLE.contains(right), "{right}");
    WHOLE.replacen(right, wrong, 1)
}

#[test]
fn each_mistake_with_its_line_and_what_would_be_right() {
    let mut bad = Vec::new();
    for mistake in [VALUES, KEYS, TOGETHER].concat() {
        let (_, wrong, line, advice) = mistake;
        let why = parse(&mistaken(&mistake)).map(drop).unwrap_err();
        let at = why.contains(&format!("line {line},")) || why.contains(&format!("line {line}:"));
        if !at || !why.contains(advice) {
            bad.push(format!("{wrong:?} in line {line}, {advice:?}: {why}"));
        }
    }
    assert!(bad.is_empty(), "{}", bad.join("\n"));
    // The same address for another name: not twice.
    let other = WHOLE.replacen("10.2.0.1:443", "10.2.0.1:80", 1);
    assert!(parse(&other).is_ok());
}

#[test]
fn mistakes_of_the_whole() {
    for none in ["", "# nothing\n", "idle = 1\n", "backend = []\n"] {
        let why = parse(none).unwrap_err();
        assert!(why.contains("no [[backend]]: give at least one"), "{why}");
    }
    for list in [
        "[\"10.2.0.1:80\"]",
        "[[\"10.2.0.1:80\"]]",
        "\"10.2.0.1:80\"",
    ] {
        let why = parse(&format!("backend = {list}")).unwrap_err();
        assert!(
            why.contains("line 1,") && why.contains("[[backend]]"),
            "{why}"
        );
    }
    let why = parse("check = [2]").unwrap_err();
    assert!(why.contains("line 1,") && why.contains("[check]"), "{why}");
    let twice = "[[backend]]\naddress = \"10.2.0.1:80\"\n".repeat(2);
    let why = parse(&twice).unwrap_err();
    assert!(why.contains("line 3") && why.contains("twice"), "{why}");
    let many: String = (0..=backends::MOST)
        .map(|number| format!("[[backend]]\naddress = \"10.2.1.{number}:80\"\n"))
        .collect();
    let why = parse(&many).unwrap_err();
    assert!(
        why.contains("line 129") && why.contains("more than 64"),
        "{why}"
    );
    let idle = WHOLE.replacen("weight = 2", "weight = 0", 1);
    let why = parse(&idle).unwrap_err();
    assert!(why.contains("any name have weight 0"), "{why}");
    let idle = WHOLE.replacen("name = \"*.", "weight = 0\nname = \"*.", 1);
    let why = parse(&idle).unwrap_err();
    assert!(why.contains("*.example.org have weight 0"), "{why}");
    // With another one it is to be drained.
    let drained = "[[backend]]\naddress = \"10.2.0.1:80\"\nweight = 0\n[[backend]]\naddress = \"10.2.0.3:80\"\n";
    assert!(parse(drained).is_ok());
    // An opening of a table in each table.
    for nested in ["[", "{a=", "[[a]]\n[a.a."] {
        let why = parse(&format!("idle = {}", nested.repeat(20_000))).unwrap_err();
        assert!(why.contains("line 1"), "{why}");
    }
}

#[test]
fn a_small_buffer_does_not_do_for_heads() {
    let small = Frame {
        buffer: 4096,
        ..frame()
    };
    for (text, line) in [
        (
            "idle = 1\naccept_proxy = true\n[[backend]]\naddress = \"10.2.0.1:80\"\n",
            2,
        ),
        (
            "[[backend]]\naddress = \"10.2.0.1:80\"\nname = \"a.b\"\n",
            1,
        ),
    ] {
        let why = format!("{:#}", Settings::parse(text, &small).unwrap_err());
        assert!(
            why.contains(&format!("line {line}:")) && why.contains("--buffer"),
            "{why}"
        );
    }
    let neither = "accept_proxy = false\n[[backend]]\naddress = \"10.2.0.1:80\"\n";
    assert!(Settings::parse(neither, &small).is_ok());
}

/// A directory of the test's own.
struct Place(PathBuf);

impl Place {
    fn new() -> Place {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("sosplice-settings-{}-{count}", std::process::id());
        let place = std::env::temp_dir().join(name);
        fs::create_dir_all(&place).unwrap();
        Place(place)
    }

    fn file(&self, bytes: &[u8]) -> PathBuf {
        let path = self.0.join("proxy.toml");
        fs::write(&path, bytes).unwrap();
        path
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).ok();
    }
}

fn read(path: &Path) -> Result<Settings, String> {
    Settings::read(path, &frame()).map_err(|error| format!("{error:#}"))
}

#[test]
fn files_that_cannot_be_read_are_named() {
    let place = Place::new();
    let file = place.file(WHOLE.as_bytes());
    assert!(read(&file).is_ok());
    let missing = place.0.join("none.toml");
    let (below, name) = (file.join("below"), file.display().to_string());
    for (path, advice) in [
        (&missing, "No such file"),
        (&below, "Not a directory"),
        (&place.0, "no regular file"),
        #[cfg(target_os = "linux")]
        (&PathBuf::from("/dev/zero"), "no regular file"),
    ] {
        let why = read(path).unwrap_err();
        let path = path.display().to_string();
        assert!(why.contains(&path) && why.contains(advice), "{why}");
    }
    let long = [WHOLE.as_bytes(), &vec![b'\n'; 1 << 20]].concat();
    let why = read(&place.file(&long)).unwrap_err();
    assert!(
        why.contains(&name) && why.contains("more than 1048576 bytes"),
        "{why}"
    );
    let why = read(&place.file(&long[..1 << 20])).map(drop);
    assert_eq!(why, Ok(()));
    let why = read(&place.file(b"idle = 1\n# caf\xe9\n")).unwrap_err();
    assert!(
        why.contains(&name) && why.contains("line 2: it is no UTF-8"),
        "{why}"
    );
    let why = read(&place.file(b"idle = 0\n")).unwrap_err();
    assert!(why.contains(&name) && why.contains("line 1"), "{why}");
    let mark = [b"\xef\xbb\xbf", WHOLE.as_bytes()].concat();
    assert!(read(&place.file(&mark)).is_ok());
}

proptest! {
    /// Neither files with a few other bytes, nor lines in another order, nor any at all.
    #[test]
    fn no_file_panics(
        any: String,
        changes in prop::collection::vec((any::<prop::sample::Index>(), "\\PC{0,6}"), 1..4),
        lines in prop::collection::vec(any::<prop::sample::Index>(), 0..30),
    ) {
        let _any = parse(&any);
        let mut text: Vec<char> = WHOLE.chars().collect();
        for (at, with) in &changes {
            let at = at.index(text.len());
            text.splice(at..=at, with.chars());
        }
        let text: String = text.into_iter().collect();
        let all: Vec<&str> = WHOLE.lines().collect();
        let mixed: Vec<&str> = lines.iter().map(|at| all[at.index(all.len())]).collect();
        for text in [text, mixed.join("\n")] {
            if let Ok(settings) = parse(&text) {
                // Whatever is taken fits.
                prop_assert_eq!(settings.fit(&frame()), Ok(()));
                prop_assert!(!settings.offers.is_empty());
            }
        }
    }

    #[test]
    fn numbers_are_in_range(number: i64, float: f64, key in 0_usize..12) {
        const PLACES: [(&str, usize); 12] = [
            ("idle = 300", 3), ("max_bytes = 1_000_000", 4), ("head_timeout = 4", 7),
            ("head_clients = 200", 8), ("head_memory = 8_388_608", 9), ("per_client = 100", 10),
            ("queue = 50", 11), ("queue_timeout = 2.5", 12), ("interval = 2", 14), ("rise = 3", 15),
            ("fall = 5", 16), ("limit = 100", 20),
        ];
        let (place, line) = PLACES[key];
        let (name, _) = place.split_once(" = ").unwrap();
        for value in [number.to_string(), format!("{float:?}").to_lowercase()] {
            let text = WHOLE.replacen(place, &format!("{name} = {value}"), 1);
            match parse(&text) {
                Ok(settings) => {
                    let terms = settings.terms;
                    prop_assert!(terms.idle.unwrap() <= Duration::from_secs(365 * 86_400));
                    prop_assert!(terms.head_room.memory >= Room::LEAST);
                }
                Err(why) => {
                    let told = why.contains(&format!("line {line}"));
                    prop_assert!(told && why.contains("give "), "{}", why);
                }
            }
        }
    }
}
