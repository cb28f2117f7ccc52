//! Backends and what holds for connections: from the command line, or from a file, which can be read again.

mod file;
#[cfg(test)]
mod tests;

use crate::arguments::Arguments;
use crate::backends::{self, Balance};
use crate::checks::Schedule;
use crate::heads::{self, Expected};
use crate::lobby::Room;
use crate::relay::Terms;
use crate::services::Offer;
use anyhow::{Context, anyhow};
use file::File;
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::path::Path;

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
    /// All its addresses.
    pub(crate) own: Vec<IpAddr>,
    /// Where it listens.
    pub(crate) listen: SocketAddr,
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
                head_room: Room {
                    clients: arguments.head_clients,
                    memory: arguments.head_memory,
                },
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
        Settings::parse(&file::read(path)?, frame).with_context(|| path.display().to_string())
    }

    fn parse(text: &str, frame: &Frame) -> anyhow::Result<Settings> {
        // Its message shows the line.
        let file: File =
            toml::from_str(text).map_err(|error| anyhow!("{}", error.to_string().trim_end()))?;
        let at_line = |at: Range<usize>, why: String| {
            let line = 1 + text[..at.start].matches('\n').count();
            anyhow!("line {line}: {why}")
        };
        let mut offers: Vec<Offer> = Vec::new();
        for backend in file.backend {
            let at = backend.span();
            offers.push(backend.into_inner().0.into());
            fits(&offers, frame).map_err(|why| at_line(at.clone(), why))?;
            reads_heads(expected(false, &offers), frame).map_err(|why| at_line(at, why))?;
        }
        all_serve(&offers).map_err(|why| anyhow!(why))?;
        let accept_proxy = file.accept_proxy.as_ref();
        let expected = expected(accept_proxy.is_some_and(|key| *key.get_ref()), &offers);
        let at = accept_proxy.map_or(0..0, toml::Spanned::span);
        reads_heads(expected, frame).map_err(|why| at_line(at, why))?;
        let usual = Terms::default();
        let terms = Terms {
            idle: file.idle,
            limit: file.max_bytes,
            expected,
            head_timeout: file.head_timeout.unwrap_or(usual.head_timeout),
            head_room: Room {
                clients: file.head_clients.unwrap_or(usual.head_room.clients),
                memory: file.head_memory.unwrap_or(usual.head_room.memory),
            },
            send_proxy: file.send_proxy,
            per_client: file.per_client,
            queue: (file.queue, file.queue_timeout.unwrap_or(usual.queue.1)),
        };
        Ok(Settings {
            terms,
            offers,
            balance: file.balance.unwrap_or_default(),
            checks: file.check.map(|check| check.0.into()),
        })
    }

    /// Whether they fit to the devices; if not, why.
    pub(crate) fn fit(&self, frame: &Frame) -> Result<(), String> {
        for count in 1..=self.offers.len() {
            fits(&self.offers[..count], frame)?;
        }
        all_serve(&self.offers)?;
        reads_heads(self.terms.expected, frame)
    }
}

/// Whether the buffer is large enough for the first bytes of clients, if those are read.
fn reads_heads(expected: Expected, frame: &Frame) -> Result<(), String> {
    if expected == Expected::default() || frame.buffer >= heads::MOST {
        return Ok(());
    }
    Err(format!(
        "the first bytes of a client are read, up to {}, into a buffer of {}: give a larger --buffer",
        heads::MOST,
        frame.buffer
    ))
}

/// Whether each name has a backend that gets connections.
fn all_serve(offers: &[Offer]) -> Result<(), String> {
    if offers.is_empty() {
        return Err("no [[backend]]: give at least one, with its address".into());
    }
    for offer in offers {
        let serves = |other: &Offer| other.name == offer.name && other.spec.weight > 0;
        if !offers.iter().any(serves) {
            let name = offer.name.as_deref().unwrap_or("any name");
            return Err(format!(
                "all backends for {name} have weight 0, so its clients would be reset: give one of them at least 1"
            ));
        }
    }
    Ok(())
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
    if at == frame.listen {
        return Err(format!(
            "backend {at}: this proxy listens there, so each connection would come back to it: give the address of a server"
        ));
    }
    if frame.own.contains(&at.ip()) {
        return Err(format!(
            "backend {at}: the proxy itself has this address: give that of a server"
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
