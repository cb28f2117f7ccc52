//! The file: how it is read, its keys, and what their values may be. Times are in seconds.

use crate::backends::{Balance, Spec};
use crate::checks::Schedule;
use crate::heads::Version;
use crate::lobby::Room;
use crate::services::{self, Offer};
use anyhow::{Context, anyhow, bail};
use clap::ValueEnum;
use serde::de::value::MapAccessDeserializer;
use serde::de::{Error, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use std::fmt;
use std::fs;
use std::io::Read;
use std::marker::PhantomData;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::Path;
use std::time::Duration;
use toml::{Spanned, Value};

/// The largest file in bytes.
pub(super) const MOST: u64 = 1 << 20;

/// The bytes of a file. Neither a directory, nor one without an end, nor one that lets the reader wait.
pub(super) fn read(path: &Path) -> anyhow::Result<String> {
    let name = path.display();
    let about = || format!("cannot read {name}");
    if !fs::metadata(path).with_context(about)?.is_file() {
        bail!("{name} is no regular file: give one, which can be read again");
    }
    let mut bytes = Vec::new();
    let file = fs::File::open(path).with_context(about)?;
    let read = file.take(MOST + 1).read_to_end(&mut bytes);
    if read.with_context(about)? as u64 > MOST {
        bail!("{name} has more than {MOST} bytes: give a file of settings");
    }
    String::from_utf8(bytes).map_err(|error| {
        let before = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        let line = 1 + before.iter().filter(|byte| **byte == b'\n').count();
        anyhow!("{name}: line {line}: it is no UTF-8: write it in that")
    })
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct File {
    #[serde(default, deserialize_with = "choice")]
    pub(super) balance: Option<Balance>,
    #[serde(default, deserialize_with = "maybe_seconds")]
    pub(super) idle: Option<Duration>,
    #[serde(default, deserialize_with = "bytes")]
    pub(super) max_bytes: Option<u64>,
    #[serde(default)]
    pub(super) accept_proxy: Option<Spanned<bool>>,
    #[serde(default, deserialize_with = "choice")]
    pub(super) send_proxy: Option<Version>,
    #[serde(default, deserialize_with = "maybe_seconds")]
    pub(super) head_timeout: Option<Duration>,
    #[serde(default, deserialize_with = "count")]
    pub(super) head_clients: Option<usize>,
    #[serde(default, deserialize_with = "head_memory")]
    pub(super) head_memory: Option<usize>,
    #[serde(default, deserialize_with = "at_least_one")]
    pub(super) per_client: Option<u32>,
    #[serde(default, deserialize_with = "queue")]
    pub(super) queue: usize,
    #[serde(default, deserialize_with = "maybe_seconds")]
    pub(super) queue_timeout: Option<Duration>,
    pub(super) check: Option<Table<Check>>,
    #[serde(default, deserialize_with = "backends")]
    pub(super) backend: Vec<Spanned<Table<Backend>>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Check {
    #[serde(deserialize_with = "seconds")]
    interval: Duration,
    #[serde(default, deserialize_with = "times")]
    rise: Option<u32>,
    #[serde(default, deserialize_with = "times")]
    fall: Option<u32>,
}

impl From<Check> for Schedule {
    fn from(check: Check) -> Schedule {
        Schedule {
            interval: check.interval,
            rise: check.rise.unwrap_or(2),
            fall: check.fall.unwrap_or(3),
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Backend {
    #[serde(deserialize_with = "address")]
    address: SocketAddr,
    #[serde(default = "one", deserialize_with = "weight")]
    weight: u16,
    #[serde(default, deserialize_with = "at_least_one")]
    limit: Option<u32>,
    #[serde(default, deserialize_with = "name")]
    name: Option<String>,
}

impl From<Backend> for Offer {
    fn from(backend: Backend) -> Offer {
        Offer {
            name: backend.name,
            spec: Spec {
                address: backend.address,
                weight: backend.weight,
                limit: backend.limit,
            },
        }
    }
}

/// Values with keys. (serde would take a list of values too.)
#[derive(Debug)]
pub(super) struct Table<T>(pub(super) T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Table<T> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Table<T>, D::Error> {
        struct Keys<T>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>> Visitor<'de> for Keys<T> {
            type Value = Table<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a table with keys, as [check] or [[backend]] begins")
            }

            fn visit_map<A: MapAccess<'de>>(self, keys: A) -> Result<Table<T>, A::Error> {
                T::deserialize(MapAccessDeserializer::new(keys)).map(Table)
            }
        }

        from.deserialize_map(Keys(PhantomData))
    }
}

fn one() -> u16 {
    1
}

fn backends<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<Spanned<Table<Backend>>>, D::Error> {
    struct All;

    impl<'de> Visitor<'de> for All {
        type Value = Vec<Spanned<Table<Backend>>>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("[[backend]] above each one, in two brackets")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut all: A) -> Result<Self::Value, A::Error> {
            let mut backends = Vec::new();
            while let Some(backend) = all.next_element()? {
                backends.push(backend);
            }
            Ok(backends)
        }
    }

    from.deserialize_seq(All)
}

/// A value of any type, `None` if there is none for it (an integer of more than 64 bits).
fn value<'de, D: Deserializer<'de>>(from: D) -> Option<Value> {
    Value::deserialize(from).ok()
}

/// One of the words that the option has on the command line.
fn choice<'de, D: Deserializer<'de>, T: ValueEnum>(from: D) -> Result<Option<T>, D::Error> {
    let value = value(from);
    let word = value
        .as_ref()
        .and_then(Value::as_str)
        .and_then(|word| T::from_str(word, false).ok());
    let right = || {
        let words = T::value_variants().iter().filter_map(T::to_possible_value);
        let words: Vec<_> = words.map(|word| format!("`{}`", word.get_name())).collect();
        let (last, before) = words.split_last().expect("invariant: a choice has words");
        D::Error::custom(format!("give one of {} or {last}", before.join(", ")))
    };
    word.map(Some).ok_or_else(right)
}

fn address<'de, D: Deserializer<'de>>(from: D) -> Result<SocketAddr, D::Error> {
    let value = value(from);
    let address = value
        .as_ref()
        .and_then(Value::as_str)
        .and_then(|text| text.parse().ok());
    let right = "no address with a port (names are not looked up): give one like \"10.2.0.1:80\" or \"[fd00::1]:80\"";
    address.ok_or_else(|| D::Error::custom(right))
}

fn name<'de, D: Deserializer<'de>>(from: D) -> Result<Option<String>, D::Error> {
    let value = value(from);
    let text = value.as_ref().and_then(Value::as_str);
    let text = text.ok_or_else(|| D::Error::custom("give a name like \"example.org\""))?;
    services::name(text).map(Some).map_err(D::Error::custom)
}

/// A whole number in this range, or what would be right.
fn number<'de, D, T>(from: D, range: RangeInclusive<i64>, right: &str) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: TryFrom<i64>,
{
    let number = value(from).and_then(|value| value.as_integer());
    let number = number.filter(|number| range.contains(number));
    let number = number.and_then(|number| T::try_from(number).ok());
    number.ok_or_else(|| D::Error::custom(right))
}

fn weight<'de, D: Deserializer<'de>>(from: D) -> Result<u16, D::Error> {
    number(from, 0..=256, "give a weight from 0 to 256")
}

fn at_least_one<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u32>, D::Error> {
    let right = "give a number of at least 1 (and at most 4294967295)";
    number(from, 1..=i64::MAX, right).map(Some)
}

fn times<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u32>, D::Error> {
    number(from, 1..=1000, "give a number from 1 to 1000").map(Some)
}

fn count<'de, D: Deserializer<'de>>(from: D) -> Result<Option<usize>, D::Error> {
    number(from, 1..=i64::MAX, "give a number of at least 1").map(Some)
}

fn queue<'de, D: Deserializer<'de>>(from: D) -> Result<usize, D::Error> {
    number(from, 0..=i64::MAX, "give a number of clients, 0 for none")
}

fn bytes<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u64>, D::Error> {
    number(from, 1..=i64::MAX, "give a number of bytes, at least 1").map(Some)
}

fn head_memory<'de, D: Deserializer<'de>>(from: D) -> Result<Option<usize>, D::Error> {
    let least = i64::try_from(Room::LEAST).unwrap_or(i64::MAX);
    let right = format!("give a number of bytes, at least {least}");
    number(from, least..=i64::MAX, &right).map(Some)
}

fn seconds<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
    let range = 0.001..=365.0 * 86_400.0;
    let seconds = match value(from) {
        Some(Value::Integer(seconds)) => i32::try_from(seconds).ok().map(f64::from),
        Some(Value::Float(seconds)) => Some(seconds),
        _ => None,
    };
    let seconds = seconds.filter(|seconds| range.contains(seconds));
    let time = seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    time.ok_or_else(|| D::Error::custom("give seconds, more than 0 and up to a year, like 2.5"))
}

fn maybe_seconds<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Duration>, D::Error> {
    seconds(from).map(Some)
}
