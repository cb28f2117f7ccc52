//! Addresses and settings of a host.

#[cfg(doc)]
use super::Host;
use crate::link::ethernet::frame::{Mac, Vlan};
use ipnet::IpNet;
use std::net::{IpAddr, Ipv4Addr};

/// Maximum number of addresses, gateways, routes and networks of each kind.
const MAX_ROWS: usize = 256;
/// Limits of the MTU: hosts accept packets of 576 bytes (RFC 791), and links of IPv6 carry 1,280 (RFC 8200 5).
const LEAST_MTU: usize = 1280;

/// Addresses and settings of a [`Host`].
///
/// ```
/// use sosplice::link::ethernet::HostConfig;
/// let config = HostConfig::new("02:00:00:00:00:05".parse()?)
///     .address("192.168.7.5/24".parse()?)
///     .gateway("192.168.7.1".parse()?)
///     .route("10.0.0.0/8".parse()?, "192.168.7.2".parse()?);
/// assert_eq!(config.mtu, 1500);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct HostConfig {
    /// The hardware address.
    pub mac: Mac,
    /// Addresses with the prefix lengths of their networks, which are on the link. With an address or
    /// [`slaac`](field@Self::slaac) of IPv6 the host also has a link-local one, made of its hardware address (RFC 4862
    /// 5.3).
    pub addresses: Vec<IpNet>,
    /// Default gateways, the preferred ones first: the first of each family that answers is used. A gateway is on the
    /// link, also if it is in no network of the addresses.
    pub gateways: Vec<IpAddr>,
    /// Networks that are reached by another gateway. The longest prefix wins, and of several gateways for one network
    /// the first that answers.
    pub routes: Vec<(IpNet, IpAddr)>,
    /// Networks whose addresses the host answers for although they are not its own (proxy ARP, RFC 1027, and proxy
    /// neighbour discovery, RFC 4389).
    pub proxy: Vec<IpNet>,
    /// Largest IP packet in bytes, 1,280 to 65,535.
    pub mtu: usize,
    /// What happens to frames with tags of virtual LANs.
    pub vlan: Vlan,
    /// Whether an address is used only after no other host has answered for it, which takes 4 to 7 seconds over IPv4
    /// (RFC 5227) and 1 to 2 over IPv6 (RFC 4862 5.4).
    pub probe: bool,
    /// Whether an IPv4 address is defended for as long as it is configured (RFC 5227 2.4 c). Otherwise the host gives it
    /// up when another one claims it twice in ten seconds, and probes it again after a minute.
    pub keep: bool,
    /// Whether DHCPv4 gives an address, gateways, name servers and the MTU.
    pub dhcp: bool,
    /// The address that DHCPv4 asks for first, e.g. that from before a restart.
    pub dhcp_address: Option<Ipv4Addr>,
    /// Whether router advertisements give addresses, gateways, name servers and the MTU of IPv6 (SLAAC, RFC 4862).
    pub slaac: bool,
    /// Where random times and numbers begin, for repeatable tests. By default the operating system chooses.
    pub seed: Option<u64>,
}

impl HostConfig {
    /// A host without addresses, MTU 1500.
    pub const fn new(mac: Mac) -> HostConfig {
        HostConfig {
            mac,
            addresses: Vec::new(),
            gateways: Vec::new(),
            routes: Vec::new(),
            proxy: Vec::new(),
            mtu: 1500,
            vlan: Vlan::Drop,
            probe: true,
            keep: false,
            dhcp: false,
            dhcp_address: None,
            slaac: false,
            seed: None,
        }
    }

    /// Adds an [address](field@Self::addresses).
    #[must_use]
    pub fn address(mut self, address: IpNet) -> HostConfig {
        self.addresses.push(address);
        self
    }

    /// Adds a default [gateway](field@Self::gateways).
    #[must_use]
    pub fn gateway(mut self, gateway: IpAddr) -> HostConfig {
        self.gateways.push(gateway);
        self
    }

    /// Adds a [route](field@Self::routes) to a network by a gateway.
    #[must_use]
    pub fn route(mut self, network: IpNet, gateway: IpAddr) -> HostConfig {
        self.routes.push((network, gateway));
        self
    }

    /// Adds a network whose addresses the host [answers for](field@Self::proxy).
    #[must_use]
    pub fn proxy(mut self, network: IpNet) -> HostConfig {
        self.proxy.push(network);
        self
    }

    /// Sets [`mtu`](field@Self::mtu).
    #[must_use]
    pub fn mtu(mut self, bytes: usize) -> HostConfig {
        self.mtu = bytes;
        self
    }

    /// Sets [`vlan`](field@Self::vlan).
    #[must_use]
    pub fn vlan(mut self, vlan: Vlan) -> HostConfig {
        self.vlan = vlan;
        self
    }

    /// Sets [`probe`](field@Self::probe).
    #[must_use]
    pub fn probe(mut self, probe: bool) -> HostConfig {
        self.probe = probe;
        self
    }

    /// Sets [`keep`](field@Self::keep).
    #[must_use]
    pub fn keep(mut self, keep: bool) -> HostConfig {
        self.keep = keep;
        self
    }

    /// Sets [`dhcp`](field@Self::dhcp).
    #[must_use]
    pub fn dhcp(mut self, dhcp: bool) -> HostConfig {
        self.dhcp = dhcp;
        self
    }

    /// Sets [`dhcp_address`](field@Self::dhcp_address).
    #[must_use]
    pub fn dhcp_address(mut self, address: impl Into<Option<Ipv4Addr>>) -> HostConfig {
        self.dhcp_address = address.into();
        self
    }

    /// Sets [`slaac`](field@Self::slaac).
    #[must_use]
    pub fn slaac(mut self, slaac: bool) -> HostConfig {
        self.slaac = slaac;
        self
    }

    /// Sets [`seed`](field@Self::seed).
    #[must_use]
    pub fn seed(mut self, seed: u64) -> HostConfig {
        self.seed = Some(seed);
        self
    }

    /// Whether the host uses IPv6.
    pub(super) fn has_v6(&self) -> bool {
        self.slaac || self.addresses.iter().any(|net| net.addr().is_ipv6())
    }

    pub(super) fn check(&self) -> Result<(), HostConfigError> {
        if !self.mac.is_unicast() {
            return Err(HostConfigError::Mac(self.mac));
        }
        if !(LEAST_MTU..=65_535).contains(&self.mtu) {
            return Err(HostConfigError::Mtu(self.mtu));
        }
        for rows in [
            self.addresses.len(),
            self.gateways.len(),
            self.routes.len(),
            self.proxy.len(),
        ] {
            if rows > MAX_ROWS {
                return Err(HostConfigError::TooMany(rows));
            }
        }
        if let Some(net) = self.addresses.iter().find(|net| !is_address(net)) {
            return Err(HostConfigError::Address(*net));
        }
        let gateways = self.gateways.iter();
        let mut gateways = gateways.chain(self.routes.iter().map(|(_, gateway)| gateway));
        let is_own = |gateway: IpAddr| self.addresses.iter().any(|net| net.addr() == gateway);
        if let Some(gateway) = gateways.find(|gateway| !is_host(**gateway) || is_own(**gateway)) {
            return Err(HostConfigError::Gateway(*gateway));
        }
        let mut routes = self.routes.iter();
        let other = routes.find(|(net, gateway)| net.addr().is_ipv4() != gateway.is_ipv4());
        match other {
            Some((net, gateway)) => Err(HostConfigError::Family(*net, *gateway)),
            None => Ok(()),
        }
    }
}

/// Whether it can be the address of one host in an Ethernet.
pub(super) fn is_host(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => {
            let [first, ..] = address.octets();
            first != 0 && first < 224 && !address.is_loopback()
        }
        IpAddr::V6(address) => {
            let mapped = address.to_ipv4_mapped().is_some();
            !address.is_unspecified()
                && !address.is_loopback()
                && !address.is_multicast()
                && !mapped
        }
    }
}

/// Whether it can be an address of this host in its network: neither the network's, nor that of all hosts.
pub(super) fn is_address(net: &IpNet) -> bool {
    let is_network = net.max_prefix_len() - net.prefix_len() > 1 && net.addr() == net.network();
    is_host(net.addr()) && !is_network && !means_all(net, net.addr())
}

/// Whether it is the broadcast address of a network, if the network has one (RFC 3021: not with two addresses).
pub(super) fn means_all(net: &IpNet, address: IpAddr) -> bool {
    net.addr().is_ipv4() && net.prefix_len() < 31 && net.broadcast() == address
}

/// Why no [`Host`] was made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HostConfigError {
    /// The hardware address.
    #[error("{0} is not the hardware address of one host")]
    Mac(Mac),
    /// The MTU.
    #[error("an MTU of {0} bytes: it is to be between {LEAST_MTU} and 65535")]
    Mtu(usize),
    /// More than 256 addresses, gateways, routes or networks.
    #[error("{0} addresses, gateways, routes or networks: give at most {MAX_ROWS} of each")]
    TooMany(usize),
    /// An address that no host can have.
    #[error(
        "{0} cannot be a host's address: give one of a host in a network, with the prefix length"
    )]
    Address(IpNet),
    /// A gateway that is no other host.
    #[error("{0} cannot be a gateway: give the address of another host on the link")]
    Gateway(IpAddr),
    /// A route by a gateway of the other family.
    #[error("a route to {0} by {1}: give a gateway of the same family")]
    Family(IpNet, IpAddr),
    /// The operating system returned no random bytes.
    #[error("no randomness from the operating system: {0}")]
    Random(getrandom::Error),
}
