//! What the guest may reach: one rule of the allow-list, by network or name, and port.

use crate::message::host_name;
use ipnet::IpNet;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

/// A rule: `10.0.0.0/8`, `192.0.2.1:443`, `[2001:db8::]/32:443`, `example.org`, `*.example.org:443`, `*`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Rule {
    target: Target,
    /// `None`: all ports, and pings.
    port: Option<u16>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Target {
    Network(IpNet),
    Name(String),
    /// All names that end with this: it begins with a dot, or is empty.
    Below(String),
}

/// Why a string is no rule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum RuleError {
    #[error("{0:?} is no port: 1 to 65535 is")]
    Port(String),
    #[error("{0:?} is no network: an address and the length of a prefix are, like 10.0.0.0/8")]
    Network(String),
    #[error("{0} has bits after its prefix: the network is {1}")]
    Host(IpNet, IpNet),
    #[error("{0:?} has an opening bracket only: an address in brackets is to be before a port")]
    Bracket(String),
    #[error(
        "an IPv6 address with a port needs brackets, like [2001:db8::1]:443 or [2001:db8::]/32:443"
    )]
    Colons,
    #[error(
        "{0:?} is neither an address nor a name: names have letters, digits, - and _, and may begin with \"*.\""
    )]
    Name(String),
}

impl FromStr for Rule {
    type Err = RuleError;

    fn from_str(string: &str) -> Result<Rule, RuleError> {
        let (target, port) = split(string)?;
        let port = match port.map(|port| port.parse::<u16>().map_err(|_| port)) {
            None => None,
            Some(Ok(port)) if port != 0 => Some(port),
            Some(Ok(_)) => return Err(RuleError::Port("0".to_owned())),
            Some(Err(port)) => return Err(RuleError::Port(port.to_owned())),
        };
        let target = match target.parse::<IpAddr>() {
            Ok(address) => Target::Network(address.to_canonical().into()),
            Err(_) if target.contains('/') => network(target)?,
            Err(_) => name(target)?,
        };
        Ok(Rule { target, port })
    }
}

/// Address or name, without brackets, and the port behind them.
fn split(string: &str) -> Result<(&str, Option<&str>), RuleError> {
    if let Ok(SocketAddr::V6(_)) = string.parse() {
        let (address, port) = string.rsplit_once(':').unwrap_or((string, ""));
        return Ok((address.trim_matches(['[', ']']), Some(port)));
    }
    if string.parse::<IpAddr>().is_ok() {
        return Ok((string, None));
    }
    // In a network, colons after the slash are not those of an address.
    let slash = string.find('/').unwrap_or(0);
    let Some(colon) = string[slash..].rfind(':').map(|at| slash + at) else {
        return Ok((string, None));
    };
    let (target, port) = (&string[..colon], &string[colon + 1..]);
    match slash {
        0 if target.starts_with('[') => Err(RuleError::Bracket(string.to_owned())),
        0 if target.contains(':') => Err(RuleError::Colons),
        _ => Ok((target, Some(port))),
    }
}

fn network(string: &str) -> Result<Target, RuleError> {
    let plain = string.replacen(['[', ']'], "", 2);
    let network: IpNet = plain
        .parse()
        .map_err(|_| RuleError::Network(string.to_owned()))?;
    match network.trunc() {
        trunc if trunc == network => Ok(Target::Network(network)),
        trunc => Err(RuleError::Host(network, trunc)),
    }
}

fn name(string: &str) -> Result<Target, RuleError> {
    let error = || RuleError::Name(string.to_owned());
    if string == "*" {
        return Ok(Target::Below(String::new()));
    }
    let (below, name) = match string.strip_prefix("*.") {
        Some(name) => (".", name),
        None => ("", string),
    };
    let name = name.strip_suffix('.').unwrap_or(name);
    let labels = name.split('.').map(str::as_bytes);
    let name = host_name(labels).ok_or_else(error)?;
    Ok(match below {
        "" => Target::Name(name),
        dot => Target::Below(format!("{dot}{name}")),
    })
}

impl Rule {
    /// Whether it is about this name, of lower case.
    pub(crate) fn has_name(&self, name: &str) -> bool {
        match &self.target {
            Target::Network(_) => false,
            Target::Name(allowed) => name == allowed,
            Target::Below(suffix) => name.ends_with(suffix.as_str()),
        }
    }

    /// Whether it is about this address.
    pub(crate) fn has_address(&self, address: IpAddr) -> bool {
        matches!(&self.target, Target::Network(network) if network.contains(&address))
    }

    /// Whether it is about this port; `None` is a ping.
    pub(crate) fn has_port(&self, port: Option<u16>) -> bool {
        self.port.is_none() || self.port == port
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(string: &str) -> Rule {
        string
            .parse()
            .unwrap_or_else(|error| panic!("{string}: {error}"))
    }

    #[test]
    fn networks_and_addresses() {
        for (string, inside, outside) in [
            ("10.0.0.0/8", "10.255.0.1", "11.0.0.1"),
            ("192.0.2.1", "192.0.2.1", "192.0.2.2"),
            ("192.0.2.0/24:443", "192.0.2.9", "192.0.3.9"),
            ("2001:db8::1", "2001:db8::1", "2001:db8::2"),
            ("[2001:db8::1]:443", "2001:db8::1", "2001:db8::2"),
            ("2001:db8::/32:443", "2001:db8::1", "2001:db9::2"),
            ("[2001:db8::]/32:443", "2001:db8::1", "2001:db9::2"),
            ("[2001:db8::/32]:443", "2001:db8::1", "2001:db9::2"),
            ("0.0.0.0/0", "192.0.2.1", "::1"),
        ] {
            let rule = rule(string);
            assert!(rule.has_address(inside.parse().unwrap()), "{string}");
            assert!(!rule.has_address(outside.parse().unwrap()), "{string}");
            assert!(!rule.has_name("example.org"));
            let with_port = string.ends_with(":443");
            assert!(rule.has_port(Some(443)), "{string}");
            assert_eq!(rule.has_port(Some(80)), !with_port, "{string}");
            assert_eq!(rule.has_port(None), !with_port, "{string}");
        }
    }

    #[test]
    fn names_and_all_below_them() {
        for (string, yes, no) in [
            (
                "example.org",
                &["example.org"][..],
                &["www.example.org", "xexample.org", "org", ""][..],
            ),
            (
                "*.Example.ORG.",
                &["www.example.org", "a.b.example.org"],
                &["example.org", "xexample.org", "example.org.evil.test"],
            ),
            ("*", &["example.org", "localhost"], &[]),
            ("_srv._tcp.x-y.test", &["_srv._tcp.x-y.test"], &["x-y.test"]),
            ("intranet:443", &["intranet"], &[]),
        ] {
            let rule = rule(string);
            assert!(yes.iter().all(|name| rule.has_name(name)), "{string}");
            assert!(!no.iter().any(|name| rule.has_name(name)), "{string}");
            assert!(!rule.has_address("192.0.2.1".parse().unwrap()));
            assert_eq!(rule.has_port(Some(80)), !string.ends_with(":443"));
        }
    }

    #[test]
    fn mistakes_are_explained() {
        for (string, part) in [
            ("", "neither an address nor a name"),
            ("10.0.0.1/8", "the network is 10.0.0.0/8"),
            ("10.0.0.0/33", "is no network"),
            ("10.0.0.0/8:http", "\"http\" is no port"),
            ("10.0.0.0/8:0", "\"0\" is no port"),
            ("10.0.0.300", "neither an address nor a name"),
            ("10.0.0.1:", "\"\" is no port"),
            ("example.org:70000", "\"70000\" is no port"),
            ("example..org", "neither"),
            ("*example.org", "neither"),
            ("www.*.org", "neither"),
            ("*.", "neither"),
            ("b\u{fc}cher.example", "neither"),
            ("https://example.org", "is no network"),
            ("[2001:db8::1", "opening bracket only"),
            ("2001:db8::1:44300", "needs brackets"),
            ("-- allow", "neither"),
        ] {
            let error = string.parse::<Rule>().unwrap_err().to_string();
            assert!(error.contains(part), "{string}: {error}");
        }
        let long = format!("{}.org", "a".repeat(64));
        assert!(long.parse::<Rule>().is_err());
    }
}
