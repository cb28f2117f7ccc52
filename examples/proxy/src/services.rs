//! Which backends serve a client, by the server name that it asks for.

use crate::backends::{Backend, Backends, Balance, Choice, Id, Spec, Tried};
use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

/// A backend and the server name that it serves, as configured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Offer {
    /// `None`: any name that no other backend serves, and clients without one. Otherwise a name, or `*.` and a
    /// name: those below it.
    pub(crate) name: Option<String>,
    pub(crate) spec: Spec,
}

/// A name as it is configured, in lower case.
///
/// # Errors
/// What would be right.
pub(crate) fn name(text: &str) -> Result<String, String> {
    let name = text.strip_prefix("*.").unwrap_or(text);
    let is_letter = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    let is_label = |label: &str| (1..=63).contains(&label.len()) && label.bytes().all(is_letter);
    // RFC 6066 3: no addresses; RFC 1035 2.3.4: its length.
    let is_one =
        name.len() <= 253 && name.split('.').all(is_label) && name.parse::<IpAddr>().is_err();
    let right = "give one like example.org or *.example.org, in ASCII (xn--...)";
    let why = || format!("{text:?} is no name: {right}");
    is_one.then(|| text.to_ascii_lowercase()).ok_or_else(why)
}

/// The backends that serve one name.
#[derive(Debug)]
pub(crate) struct Service {
    pub(crate) name: Option<String>,
    pub(crate) backends: Backends,
}

/// A chosen backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Chosen {
    pub(crate) id: Id,
    pub(crate) at: SocketAddr,
}

/// A backend to be checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Listed {
    pub(crate) id: Id,
    pub(crate) address: SocketAddr,
    pub(crate) up: bool,
}

/// Why there is no backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lack {
    /// No service has the name.
    Name,
    Full,
    Down,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Services {
    all: Vec<Service>,
    last_id: u64,
}

impl Services {
    pub(crate) fn new(offers: impl IntoIterator<Item = Offer>, balance: Balance) -> Services {
        let mut services = Services::default();
        services.renew(offers, balance);
        services
    }

    /// Other backends from now on. What is known of those that stay is kept: their state, and their connections.
    pub(crate) fn renew(&mut self, offers: impl IntoIterator<Item = Offer>, balance: Balance) {
        let mut former: Vec<(Option<String>, Backend)> = Vec::new();
        for Service { name, backends } in self.all.drain(..) {
            let with_name = |backend| (name.clone(), backend);
            former.extend(backends.into_all().into_iter().map(with_name));
        }
        let mut groups: Vec<(Option<String>, Vec<Backend>)> = Vec::new();
        for Offer { name, spec } in offers {
            let same = |(of, one): &(Option<String>, Backend)| {
                *of == name && one.spec.address == spec.address
            };
            let backend = match former.iter().position(same) {
                Some(index) => former.swap_remove(index).1.with(spec),
                None => {
                    self.last_id += 1;
                    Backend::new(Id(self.last_id), spec)
                }
            };
            match groups.iter_mut().find(|(other, _)| *other == name) {
                Some((_, backends)) => backends.push(backend),
                None => groups.push((name, vec![backend])),
            }
        }
        let service = |(name, backends)| Service {
            name,
            backends: Backends::new(backends, balance),
        };
        self.all = groups.into_iter().map(service).collect();
    }

    /// A backend for a client that asks for this name, and was tried with those.
    pub(crate) fn choose(
        &mut self,
        name: Option<&str>,
        (client, tried): (IpAddr, &Tried),
        now: Instant,
    ) -> Result<Chosen, Lack> {
        let service = self.find(name).ok_or(Lack::Name)?;
        let backends = &mut self.all[service].backends;
        match backends.choose(client, tried, now) {
            Choice::Backend(index) => {
                let backend = &backends.all()[index];
                Ok(Chosen {
                    id: backend.id,
                    at: backend.spec.address,
                })
            }
            Choice::Full => Err(Lack::Full),
            Choice::None => Err(Lack::Down),
        }
    }

    /// Changes a backend, unless it is there no longer.
    pub(crate) fn change(&mut self, id: Id, change: impl FnOnce(&mut Backends, usize)) {
        for Service { backends, .. } in &mut self.all {
            if let Some(index) = backends.find(id) {
                return change(backends, index);
            }
        }
    }

    /// The number of the service for this name: the name itself, the longest name above it, or the one for any.
    pub(crate) fn find(&self, name: Option<&str>) -> Option<usize> {
        let fits = |service: &Service| match (&service.name, name) {
            (None, _) => Some(0),
            (Some(mine), Some(name)) if mine == name => Some(usize::MAX),
            (Some(mine), Some(name)) => {
                let above = mine.strip_prefix('*')?;
                name.ends_with(above).then_some(above.len())
            }
            (Some(_), None) => None,
        };
        let all = self.all.iter().enumerate();
        let fitting = all.filter_map(|(index, service)| Some((fits(service)?, index)));
        Some(fitting.max()?.1)
    }

    /// All backends in a fixed order.
    pub(crate) fn list(&self) -> Vec<Listed> {
        let all = self.all.iter().flat_map(|service| service.backends.all());
        let listed = |backend: &Backend| Listed {
            id: backend.id,
            address: backend.spec.address,
            up: backend.up,
        };
        all.map(listed).collect()
    }

    pub(crate) fn all(&self) -> &[Service] {
        &self.all
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sosplice::clock::{Clock, SystemClock};

    fn offer(name: Option<&str>, number: u8, limit: Option<u32>) -> Offer {
        Offer {
            name: name.map(str::to_owned),
            spec: Spec {
                address: SocketAddr::new([10, 0, 0, number].into(), 80),
                weight: 1,
                limit,
            },
        }
    }

    #[test]
    fn backends_that_stay_keep_what_is_known_of_them() {
        let (now, client) = (SystemClock.now(), [10, 0, 0, 9].into());
        let mut services =
            Services::new([offer(None, 1, None), offer(None, 2, None)], Balance::Least);
        let choose =
            |services: &mut Services| services.choose(None, (client, &Tried::default()), now);
        let both = [0; 2].map(|_| choose(&mut services).unwrap());
        let stays = both
            .iter()
            .find(|chosen| chosen.at.ip() == IpAddr::from([10, 0, 0, 2]));
        let goes = both
            .iter()
            .find(|chosen| Some(*chosen) != stays)
            .unwrap()
            .id;
        let stays = stays.unwrap().id;
        services.renew(
            [offer(None, 3, None), offer(None, 2, Some(1))],
            Balance::RoundRobin,
        );
        // The one that stays has a connection, which counts for its new limit.
        for _ in 0..3 {
            assert_eq!(
                choose(&mut services).unwrap().at.ip(),
                IpAddr::from([10, 0, 0, 3])
            );
        }
        services.change(goes, |_, _| panic!("it is gone"));
        services.change(stays, Backends::leave);
        let next = [0; 2].map(|_| choose(&mut services).unwrap().id);
        assert!(next.contains(&stays));
    }

    #[test]
    fn names_are_found_by_the_most_precise_entry() {
        let names = [None, Some("a.org"), Some("*.a.org"), Some("*.b.a.org")];
        let offer = |name| offer(name, 1, None);
        let services = Services::new(names.map(offer), Balance::Least);
        let find = |name| services.find(name);
        assert_eq!(find(None), Some(0));
        assert_eq!(find(Some("b.org")), Some(0));
        assert_eq!(find(Some("a.org")), Some(1));
        assert_eq!(find(Some("x.a.org")), Some(2));
        assert_eq!(find(Some("b.a.org")), Some(2));
        assert_eq!(find(Some("y.b.a.org")), Some(3));
        assert_eq!(find(Some("xa.org")), Some(0));
        let services = Services::new(names[1..].iter().copied().map(offer), Balance::Least);
        assert_eq!(
            (services.find(None), services.find(Some("b.org"))),
            (None, None)
        );
    }
}
