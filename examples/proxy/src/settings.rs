//! Backends and what holds for connections: from the command line, or from a file, which can be read again.

use crate::arguments::Arguments;
use crate::backends::{self, Balance, Spec};
use crate::checks::Schedule;
use crate::heads::{self, Expected, Version};
use crate::relay::Terms;
use crate::services::{self, Offer};
use anyhow::{Context, anyhow, bail};
use serde::de::Error;
use serde::{Deserialize, Deserializer};
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::path::Path;
use std::time::Duration;
use toml::Spanned;

/// See the module.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    pub(crate) terms: Terms,
    pub(crate) offers: Vec<Offer>,
    pub(crate) balance: Balance,
    pub(crate) checks: Option<Schedule>,
}

/// What settings must fit to, which is known at the start and does not change.
#[derive(Debug, Clone)]
pub(crate) struct Frame {
    /// The proxy's addresses on the side of the backends.
    pub(crate) addresses: Vec<IpAddr>,
    /// Size of a receive buffer in bytes.
    pub(crate) buffer: usize,
}

impl Settings {
    pub(crate) fn of(arguments: &Arguments) -> Settings {
        let checks = arguments.check.map(|interval| Schedule {
            interval,
            rise: arguments.rise,
            fall: arguments.fall,
        });
        Settings {
            terms: Terms {
                idle: arguments.idle,
                limit: arguments.max_bytes.map(|size| size.0),
                expected: expected(arguments.accept_proxy, &arguments.backend),
                head_timeout: arguments.head_timeout,
                send_proxy: arguments.send_proxy,
                per_client: arguments.per_client,
                queue: (arguments.queue, arguments.queue_timeout),
            },
            offers: arguments.backend.clone(),
            balance: arguments.balance,
            checks,
        }
    }

    /// Reads a file. The error names the line, and what would be right.
    pub(crate) fn read(path: &Path, frame: &Frame) -> anyhow::Result<Settings> {
        let text =
            fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        Settings::parse(&text, frame).with_context(|| path.display().to_string())
    }

    fn parse(text: &str, frame: &Frame) -> anyhow::Result<Settings> {
        // Its message shows the line.
        let file: File =
            toml::from_str(text).map_err(|error| anyhow!("{}", error.to_string().trim_end()))?;
        let line = |at: Range<usize>| text[..at.start].matches('\n').count() + 1;
        let mut offers: Vec<Offer> = Vec::new();
        for backend in file.backend {
            let at = line(backend.span());
            offers.push(backend.into_inner().into());
            fits(&offers, frame).map_err(|why| anyhow!("line {at}: {why}"))?;
        }
        if offers.is_empty() {
            bail!("no [[backend]]: give at least one, with its address");
        }
        let terms = Terms {
            idle: file.idle,
            limit: file.max_bytes,
            expected: expected(file.accept_proxy, &offers),
            head_timeout: file.head_timeout.unwrap_or(Terms::default().head_timeout),
            send_proxy: file.send_proxy,
            per_client: file.per_client,
            queue: (
                file.queue,
                file.queue_timeout.unwrap_or(Terms::default().queue.1),
            ),
        };
        let settings = Settings {
            terms,
            offers,
            balance: file.balance,
            checks: file.check.map(Schedule::from),
        };
        settings.fit(frame).map_err(|why| anyhow!("{why}"))?;
        Ok(settings)
    }

    /// Whether they fit to the devices; if not, why.
    pub(crate) fn fit(&self, frame: &Frame) -> Result<(), String> {
        for count in 1..=self.offers.len() {
            fits(&self.offers[..count], frame)?;
        }
        if self.terms.expected != Expected::default() && frame.buffer < heads::MOST {
            return Err(format!(
                "the first bytes of a client are read, up to {}, into a buffer of {}: give a larger --buffer",
                heads::MOST,
                frame.buffer
            ));
        }
        Ok(())
    }
}

/// Whether the last one fits to the devices and to those before it.
fn fits(offers: &[Offer], frame: &Frame) -> Result<(), String> {
    let Some((last, before)) = offers.split_last() else {
        return Ok(());
    };
    let at = last.spec.address;
    if !frame
        .addresses
        .iter()
        .any(|own| own.is_ipv4() == at.is_ipv4())
    {
        return Err(format!(
            "backend {at}: no --tun has an address of its family to reach it from"
        ));
    }
    if at.port() == 0 || !is_host(at.ip()) {
        return Err(format!(
            "backend {at}: no host can be reached there, give a port and the address of one host"
        ));
    }
    if before
        .iter()
        .any(|other| other.spec.address == at && other.name == last.name)
    {
        return Err(format!(
            "backend {at} is given twice for one name: give it once, with a weight"
        ));
    }
    if before.len() >= backends::MOST {
        return Err(format!("more than {} backends: give fewer", backends::MOST));
    }
    Ok(())
}

/// Whether it is the address of one host that a stack can connect to.
fn is_host(address: IpAddr) -> bool {
    let is_of_none = address.is_unspecified() || address.is_loopback() || address.is_multicast();
    let is_reserved = match address {
        IpAddr::V4(v4) => matches!(v4.octets()[0], 0 | 240..),
        IpAddr::V6(v6) => v6.to_ipv4_mapped().is_some(),
    };
    !is_of_none && !is_reserved
}

fn expected(proxy: bool, offers: &[Offer]) -> Expected {
    Expected {
        proxy,
        tls: offers.iter().any(|offer| offer.name.is_some()),
    }
}

/// The file. Times are in seconds.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    balance: Balance,
    #[serde(default, deserialize_with = "maybe_seconds")]
    idle: Option<Duration>,
    max_bytes: Option<u64>,
    #[serde(default)]
    accept_proxy: bool,
    send_proxy: Option<Version>,
    #[serde(default, deserialize_with = "maybe_seconds")]
    head_timeout: Option<Duration>,
    #[serde(default, deserialize_with = "at_least_one")]
    per_client: Option<u32>,
    #[serde(default)]
    queue: usize,
    #[serde(default, deserialize_with = "maybe_seconds")]
    queue_timeout: Option<Duration>,
    check: Option<Check>,
    #[serde(default)]
    backend: Vec<Spanned<Backend>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Check {
    #[serde(deserialize_with = "seconds")]
    interval: Duration,
    #[serde(default, deserialize_with = "at_least_one")]
    rise: Option<u32>,
    #[serde(default, deserialize_with = "at_least_one")]
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
struct Backend {
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

fn one() -> u16 {
    1
}

fn address<'de, D: Deserializer<'de>>(from: D) -> Result<SocketAddr, D::Error> {
    let text = String::deserialize(from)?;
    let why = |_| D::Error::custom("no address with a port: give one like \"10.2.0.1:80\"");
    text.parse().map_err(why)
}

fn weight<'de, D: Deserializer<'de>>(from: D) -> Result<u16, D::Error> {
    let weight = i64::deserialize(from)?;
    let weight = u16::try_from(weight).ok().filter(|weight| *weight <= 256);
    weight.ok_or_else(|| D::Error::custom("give a weight from 0 to 256"))
}

fn name<'de, D: Deserializer<'de>>(from: D) -> Result<Option<String>, D::Error> {
    let name = String::deserialize(from)?;
    services::name(&name).map(Some).map_err(D::Error::custom)
}

fn at_least_one<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u32>, D::Error> {
    let number = i64::deserialize(from)?;
    let number = u32::try_from(number).ok().filter(|number| *number > 0);
    let why = || D::Error::custom("give a number of at least 1");
    number.map(Some).ok_or_else(why)
}

fn seconds<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
    let seconds = f64::deserialize(from)?;
    let range = 0.001..=365.0 * 86_400.0;
    let time = Duration::try_from_secs_f64(seconds).ok();
    let why = || D::Error::custom("give seconds, more than 0 and up to a year");
    time.filter(|_| range.contains(&seconds)).ok_or_else(why)
}

fn maybe_seconds<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Duration>, D::Error> {
    seconds(from).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Settings, String> {
        let frame = Frame {
            addresses: vec!["10.2.0.2".parse().unwrap()],
            buffer: 1 << 20,
        };
        Settings::parse(text, &frame).map_err(|error| format!("{error:#}"))
    }

    const WHOLE: &str = r#"
        balance = "client"
        idle = 300
        queue = 50
        queue_timeout = 2.5
        per_client = 100
        accept_proxy = true
        send_proxy = "v2"

        [check]
        interval = 2
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
        assert_eq!(settings.balance, Balance::Client);
        assert_eq!(settings.terms.queue, (50, Duration::from_millis(2500)));
        assert_eq!(settings.terms.idle, Some(Duration::from_secs(300)));
        assert_eq!(settings.terms.head_timeout, Duration::from_secs(5));
        let Expected { proxy, tls } = settings.terms.expected;
        assert!(proxy && tls);
        let checks = settings.checks.unwrap();
        assert_eq!(
            (checks.interval, checks.rise, checks.fall),
            (Duration::from_secs(2), 2, 5)
        );
        assert_eq!(settings.offers[0].spec.limit, Some(100));
        assert_eq!(settings.offers[1].name.as_deref(), Some("*.example.org"));
        assert_eq!(settings.offers[1].spec.weight, 1);
    }

    #[test]
    fn each_mistake_with_its_line_and_what_would_be_right() {
        let mistakes = [
            ("idle = 300", "idel = 300", "line 3", "`idle`"),
            ("idle = 300", "idle = -1", "line 3", "more than 0"),
            ("\"client\"", "\"clever\"", "line 2", "`least`"),
            ("per_client = 100", "per_client = 0", "line 6", "at least 1"),
            ("\"v2\"", "\"v3\"", "line 8", "`v1`"),
            ("10.2.0.1:80", "10.2.0.1", "line 15", "with a port"),
            ("weight = 2", "weight = 1000", "line 16", "0 to 256"),
            ("10.2.0.1:80", "[fd00::1]:80", "line 14", "family"),
            ("10.2.0.1:80", "10.2.0.1:0", "line 14", "a port"),
            ("10.2.0.1:80", "127.0.0.1:80", "line 14", "one host"),
            ("10.2.0.1:80", "0.0.0.0:80", "line 14", "one host"),
            ("10.2.0.1:80", "224.0.0.1:80", "line 14", "one host"),
            ("*.Example.org", "*", "line 21", "*.example.org"),
            ("*.Example.org", "a.*.org", "line 21", "*.example.org"),
            ("*.Example.org", "", "line 21", "*.example.org"),
            (
                "name = \"*.Example.org\"",
                "name = \"*.\"",
                "line 21",
                "example.org",
            ),
            ("10.2.0.1:443\"\n", "10.2.0.1:80\" #\n", "", ""),
            ("limit = 100", "limit = 100 [", "line 17", ""),
        ];
        for (right, wrong, line, advice) in mistakes {
            assert!(WHOLE.contains(right), "{right}");
            let result = parse(&WHOLE.replacen(right, wrong, 1));
            if line.is_empty() {
                // Another name: not twice.
                assert!(result.is_ok());
                continue;
            }
            let why = result.unwrap_err();
            assert!(why.contains(line) && why.contains(advice), "{wrong}: {why}");
        }
        let twice = "[[backend]]\naddress = \"10.2.0.1:80\"\n".repeat(2);
        let why = parse(&twice).unwrap_err();
        assert!(why.contains("line 3") && why.contains("twice"), "{why}");
        assert!(parse("").unwrap_err().contains("at least one"));
    }
}
