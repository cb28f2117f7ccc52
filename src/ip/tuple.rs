//! Both ends of a connection or a flow.

use super::{IPV4_HEADER, IPV6_HEADER};
use std::hash::{Hash, Hasher};
use std::net::{IpAddr, SocketAddr};

/// Both ends of a connection, seen from here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Tuple {
    pub(crate) local: IpAddr,
    pub(crate) remote: IpAddr,
    pub(crate) local_port: u16,
    pub(crate) remote_port: u16,
}

impl Hash for Tuple {
    /// In one piece: a hasher takes a dozen small ones for many times as long.
    fn hash<H: Hasher>(&self, state: &mut H) {
        let mut all = [0; 36];
        all[..2].copy_from_slice(&self.local_port.to_ne_bytes());
        all[2..4].copy_from_slice(&self.remote_port.to_ne_bytes());
        let len = match (self.local, self.remote) {
            (IpAddr::V4(local), IpAddr::V4(remote)) => {
                all[4..8].copy_from_slice(&local.octets());
                all[8..12].copy_from_slice(&remote.octets());
                12
            }
            (IpAddr::V6(local), IpAddr::V6(remote)) => {
                all[4..20].copy_from_slice(&local.octets());
                all[20..36].copy_from_slice(&remote.octets());
                36
            }
            _ => unreachable!("invariant: both ends of a connection are of one family"),
        };
        state.write(&all[..len]);
    }
}

impl Tuple {
    pub(crate) fn ip_header_len(&self) -> usize {
        if self.local.is_ipv4() {
            IPV4_HEADER
        } else {
            IPV6_HEADER
        }
    }

    /// This side's address, and the peer's.
    pub(crate) fn ends(&self) -> (SocketAddr, SocketAddr) {
        let local = SocketAddr::new(self.local, self.local_port);
        (local, SocketAddr::new(self.remote, self.remote_port))
    }
}
