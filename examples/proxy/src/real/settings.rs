//! The settings at the start, and those that are read again.

use crate::arguments::{Arguments, TunSpec, usage};
use crate::checks::{Checker, Schedule};
use crate::log::PROXY;
use crate::managed::Manager;
use crate::relay::Shared;
use crate::services::Offer;
use crate::settings::{Frame, Settings};
use anyhow::Context;
use signal_hook::iterator::Signals;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use tracing::{error, info};

/// Socket buffers, in bytes, by default. Smaller ones fill and empty in turns, and each turn wakes
/// threads.
pub(super) const BUFFER: usize = 4 * 1024 * 1024;

/// The devices of both sides, and the settings at the start.
pub(super) struct Plan {
    pub(super) front: usize,
    pub(super) back: usize,
    pub(super) frame: Frame,
    pub(super) settings: Settings,
}

impl Plan {
    pub(super) fn new(arguments: &Arguments, listen: SocketAddr) -> anyhow::Result<Plan> {
        let front = front(&arguments.tun, listen.ip());
        let buffer = arguments.buffer.unwrap_or(BUFFER);
        // The device of the backends depends on them; that they fit to it is checked then.
        let own: Vec<IpAddr> = arguments.tun.iter().flat_map(addresses).collect();
        let any = Frame {
            addresses: own.clone(),
            own: own.clone(),
            listen,
            buffer,
        };
        let settings = match &arguments.config {
            Some(path) => Settings::read(path, &any)?,
            None => Settings::of(arguments),
        };
        let first = settings
            .offers
            .first()
            .context("no backend: give --backend")?;
        let back = back(&arguments.tun, front, first.spec.address.ip());
        let frame = Frame {
            addresses: addresses(&arguments.tun[back]).collect(),
            own,
            listen,
            buffer,
        };
        let settings = match &arguments.config {
            // Its mistakes have lines.
            Some(path) => Settings::read(path, &frame)?,
            None => settings
                .fit(&frame)
                .map_or_else(|why| usage(&why), |()| settings),
        };
        Ok(Plan {
            front,
            back,
            frame,
            settings,
        })
    }
}

/// Reads the file again.
pub(super) struct Renewing {
    pub(super) relay: Arc<Shared>,
    pub(super) checker: Checker,
    pub(super) path: Option<PathBuf>,
    pub(super) frame: Frame,
}

impl Renewing {
    /// At each signal, until the process ends.
    pub(super) fn on(mut self, mut signals: Signals, manager: Manager) -> io::Result<()> {
        let renew = move || {
            for _ in signals.forever() {
                manager.reloading();
                match self.renew() {
                    Ok(backends) => info!(
                        target: PROXY,
                        event = "configuration",
                        backends,
                        "renewed: {backends}"
                    ),
                    Err(error) => {
                        self.relay.reject();
                        error!(
                            target: PROXY,
                            event = "configuration_rejected",
                            cause = format!("{error:#}"),
                            "nothing is changed: {error:#}"
                        );
                    }
                }
                manager.ready();
            }
        };
        thread::Builder::new().name("renew".into()).spawn(renew)?;
        Ok(())
    }

    fn renew(&mut self) -> anyhow::Result<String> {
        let path = self.path.as_ref();
        let path = path.context("there is no file: give one by --config")?;
        let settings = Settings::read(path, &self.frame)?;
        let backends = addresses_of(&settings.offers);
        let relay = &self.relay;
        relay.renew(settings.terms, settings.offers, settings.balance);
        self.check(settings.checks);
        Ok(backends)
    }

    /// Begins the checks.
    pub(super) fn check(&mut self, checks: Option<Schedule>) {
        if let Err(error) = self.checker.start(checks) {
            error!(
                target: PROXY,
                event = "checks_failed",
                cause = %error,
                "no checks: {error}: all backends count as up"
            );
        }
    }
}

pub(super) fn addresses_of(offers: &[Offer]) -> String {
    list(offers.iter().map(|offer| offer.spec.address))
}

fn list(all: impl Iterator<Item = impl ToString>) -> String {
    let all: Vec<_> = all.map(|one| one.to_string()).collect();
    all.join(", ")
}

fn addresses(spec: &TunSpec) -> impl Iterator<Item = IpAddr> {
    spec.addresses.iter().map(ipnet::IpNet::addr)
}

/// The device for listening.
fn front(specs: &[TunSpec], listen: IpAddr) -> usize {
    if specs.len() > 2 {
        usage("--tun can be given once or twice, not more often");
    }
    let has = |spec: &TunSpec| spec.addresses.iter().any(|net| net.addr() == listen);
    specs.iter().position(has).unwrap_or_else(|| {
        usage(&format!(
            "--listen {listen}: none of the --tun has this address, give one of theirs"
        ))
    })
}

/// The device for the backends.
fn back(specs: &[TunSpec], front: usize, backend: IpAddr) -> usize {
    let near = |spec: &TunSpec| spec.addresses.iter().any(|net| net.contains(&backend));
    let other = if specs.len() == 2 { 1 - front } else { front };
    specs.iter().position(near).unwrap_or(other)
}
