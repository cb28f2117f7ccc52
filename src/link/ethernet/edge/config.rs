//! Addresses and settings of a gateway.

#[cfg(doc)]
use super::Edge;
use super::leases::size;
use crate::link::ethernet::frame::{Mac, Vlan};
use ipnet::{Ipv4Net, Ipv6Net};
use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr};
use std::ops::RangeInclusive;
use std::time::Duration;

/// Maximum number of addresses in a pool, and of reservations.
const MAX_POOL: usize = 4096;
/// The message has whole seconds, and a lease of 0 s is none.
const LEAST_LEASE: Duration = Duration::from_secs(1);
/// Maximum number of name servers.
const MAX_DNS: usize = 8;

/// Addresses and settings of an [`Edge`].
///
/// ```
/// use sosplice::link::ethernet::EdgeConfig;
/// let config = EdgeConfig::new("10.0.2.1/24".parse()?, "10.0.2.15".parse()?)
///     .gateway_v6("fd00::1/64".parse::<ipnet::Ipv6Net>()?)
///     .dns(["10.0.2.1".parse()?, "fd00::1".parse()?])
///     .mtu(9000);
/// assert_eq!(config.mtu, 9000);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct EdgeConfig {
    /// The gateway's address and the network's prefix length.
    pub gateway: Ipv4Net,
    /// The address that DHCP gives to the guest, whatever its hardware address. Not used if there is a
    /// [`pool`](field@Self::pool).
    pub guest: Ipv4Addr,
    /// The addresses that DHCP gives to several guests on one transport, at most 4,096. `None`: there is one guest.
    pub pool: Option<RangeInclusive<Ipv4Addr>>,
    /// Addresses that only the guests with these hardware addresses get, in the pool or elsewhere in the network; with
    /// a pool only, and at most 4,096.
    pub reservations: Vec<(Mac, Ipv4Addr)>,
    /// How many guests that have had no address before get one of the pool in a minute. `None`: no limit.
    pub new_guests_per_minute: Option<u32>,
    /// The gateway's IPv6 address, and the prefix of 64 bits from which the guest makes its own (SLAAC). `None`:
    /// no IPv6. In addition the gateway has the address fe80::1.
    pub gateway_v6: Option<Ipv6Net>,
    /// The gateway's hardware address.
    pub mac: Mac,
    /// The name servers that DHCP and router advertisements name; at most 8.
    pub dns: Vec<IpAddr>,
    /// Largest IP packet in bytes, also announced to the guest: 576 (with IPv6 1,280) to 65,535.
    pub mtu: usize,
    /// How long a lease of DHCP lasts, at least a second; the guest renews it after half of this time. A time that does
    /// not fit its message, 136 years, has no end.
    pub lease: Duration,
    /// What happens to frames with tags of virtual LANs.
    pub vlan: Vlan,
}

impl EdgeConfig {
    /// A network of IPv4 with a gateway and a guest, the gateway as its name server, MTU 1500, leases of a day. For
    /// several guests see [`pool`](Self::pool).
    pub fn new(gateway: Ipv4Net, guest: Ipv4Addr) -> EdgeConfig {
        EdgeConfig {
            gateway,
            guest,
            pool: None,
            reservations: Vec::new(),
            new_guests_per_minute: None,
            gateway_v6: None,
            mac: Mac([0x02, 0x73, 0x70, 0x6c, 0x69, 0x01]),
            dns: vec![gateway.addr().into()],
            mtu: 1500,
            lease: Duration::from_secs(86_400),
            vlan: Vlan::Drop,
        }
    }

    /// Sets [`pool`](field@Self::pool): there are several guests on the transport, e.g. on a bridge.
    ///
    /// ```
    /// use sosplice::link::ethernet::{Edge, EdgeConfig};
    /// use sosplice::link::memory;
    /// let printer = ("02:00:00:00:00:05".parse()?, "10.0.2.9".parse()?);
    /// let config = EdgeConfig::new("10.0.2.1/24".parse()?, "10.0.2.10".parse()?)
    ///     .pool("10.0.2.10".parse()?..="10.0.2.250".parse()?)
    ///     .reservations([printer]);
    /// let (transport, _bridge) = memory::pair(memory::Config::default().mtu(1514));
    /// let edge = Edge::new(transport, config)?;
    /// assert!(edge.guests().is_empty(), "none has been seen yet");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn pool(mut self, addresses: impl Into<Option<RangeInclusive<Ipv4Addr>>>) -> EdgeConfig {
        self.pool = addresses.into();
        self
    }

    /// Sets [`reservations`](field@Self::reservations).
    #[must_use]
    pub fn reservations(mut self, all: impl IntoIterator<Item = (Mac, Ipv4Addr)>) -> EdgeConfig {
        self.reservations = all.into_iter().collect();
        self
    }

    /// Sets [`new_guests_per_minute`](field@Self::new_guests_per_minute).
    #[must_use]
    pub fn new_guests_per_minute(mut self, count: impl Into<Option<u32>>) -> EdgeConfig {
        self.new_guests_per_minute = count.into();
        self
    }

    /// Sets [`gateway_v6`](field@Self::gateway_v6).
    #[must_use]
    pub fn gateway_v6(mut self, gateway: impl Into<Option<Ipv6Net>>) -> EdgeConfig {
        self.gateway_v6 = gateway.into();
        self
    }

    /// Sets [`mac`](field@Self::mac).
    #[must_use]
    pub fn mac(mut self, mac: Mac) -> EdgeConfig {
        self.mac = mac;
        self
    }

    /// Sets [`dns`](field@Self::dns).
    #[must_use]
    pub fn dns(mut self, servers: impl IntoIterator<Item = IpAddr>) -> EdgeConfig {
        self.dns = servers.into_iter().collect();
        self
    }

    /// Sets [`mtu`](field@Self::mtu).
    #[must_use]
    pub fn mtu(mut self, bytes: usize) -> EdgeConfig {
        self.mtu = bytes;
        self
    }

    /// Sets [`lease`](field@Self::lease).
    #[must_use]
    pub fn lease(mut self, lease: Duration) -> EdgeConfig {
        self.lease = lease;
        self
    }

    /// Sets [`vlan`](field@Self::vlan).
    #[must_use]
    pub fn vlan(mut self, vlan: Vlan) -> EdgeConfig {
        self.vlan = vlan;
        self
    }

    pub(super) fn check(&self) -> Result<(), ConfigError> {
        let least = if self.gateway_v6.is_some() { 1280 } else { 576 };
        self.check_guests()?;
        if let Some(gateway) = self.gateway_v6.filter(|gateway| gateway.prefix_len() != 64) {
            return Err(ConfigError::Prefix(gateway));
        }
        if !(least..=65_535).contains(&self.mtu) {
            return Err(ConfigError::Mtu {
                mtu: self.mtu,
                least,
            });
        }
        if !self.mac.is_unicast() {
            return Err(ConfigError::Mac(self.mac));
        }
        if self.lease < LEAST_LEASE {
            return Err(ConfigError::Lease(self.lease));
        }
        match self.dns.len() {
            0..=MAX_DNS => Ok(()),
            count => Err(ConfigError::Dns(count)),
        }
    }

    fn check_guests(&self) -> Result<(), ConfigError> {
        let gateway = self.gateway;
        let Some(pool) = &self.pool else {
            return match gateway.contains(&self.guest) && self.guest != gateway.addr() {
                true if self.reservations.is_empty() => Ok(()),
                true => Err(ConfigError::Reservations),
                false => Err(ConfigError::Guest {
                    guest: self.guest,
                    gateway,
                }),
            };
        };
        let (first, last) = (*pool.start(), *pool.end());
        let is_host = |address| self.is_host(address);
        let has_gateway = pool.contains(&gateway.addr());
        if first > last || !is_host(first) || !is_host(last) || has_gateway || size(pool) > MAX_POOL
        {
            return Err(ConfigError::Pool {
                first,
                last,
                gateway,
            });
        }
        let mut macs = HashSet::new();
        let mut addresses = HashSet::new();
        let differ = self.reservations.iter().all(|(mac, address)| {
            let other = macs.insert(*mac) && addresses.insert(*address);
            mac.is_unicast() && is_host(*address) && other
        });
        match differ && self.reservations.len() <= MAX_POOL {
            true => Ok(()),
            false => Err(ConfigError::Reservations),
        }
    }

    /// Whether it may be the address of a guest of several.
    pub(super) fn is_host(&self, address: Ipv4Addr) -> bool {
        let network = self.gateway;
        let special = [network.addr(), network.network(), network.broadcast()];
        network.contains(&address) && !special.contains(&address)
    }
}

/// Why no [`Edge`] was made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The guest's address.
    #[error("the guest's address {guest} is to be another one than the gateway's in {gateway}")]
    Guest {
        /// The guest's address.
        guest: Ipv4Addr,
        /// The gateway's.
        gateway: Ipv4Net,
    },
    /// The addresses for several guests.
    #[error(
        "the guests' addresses {first} to {last} are to be at most 4096 in {gateway}, without the gateway's, the \
         network's and the broadcast address"
    )]
    Pool {
        /// The first one.
        first: Ipv4Addr,
        /// The last one.
        last: Ipv4Addr,
        /// The gateway's.
        gateway: Ipv4Net,
    },
    /// The reservations.
    #[error(
        "reservations are to be at most 4096, of different guests' hardware addresses and different addresses in the \
         network, and need a pool"
    )]
    Reservations,
    /// The IPv6 prefix.
    #[error("{0}: a guest makes its own addresses in prefixes of 64 bits only")]
    Prefix(Ipv6Net),
    /// The MTU.
    #[error("an MTU of {mtu} bytes: it is to be between {least} and 65535")]
    Mtu {
        /// The MTU.
        mtu: usize,
        /// The least one.
        least: usize,
    },
    /// The gateway's hardware address.
    #[error("{0} is not the hardware address of one host")]
    Mac(Mac),
    /// The time of a lease.
    #[error("a lease of {0:?}: it is to last for a second or longer")]
    Lease(Duration),
    /// Too many name servers.
    #[error("{0} name servers: at most 8 fit in the answers to the guest")]
    Dns(usize),
}
