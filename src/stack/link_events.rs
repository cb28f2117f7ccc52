//! Events of the link: addresses that it has found or lost, and packets that it could not deliver.
//!
//! Called by the drivers with no lock held. A packet that was not delivered is treated like an ICMP error about it: it
//! ends no established connection, and counts only if its segment is in flight.

use crate::error::SoError;
use crate::events::report;
use crate::link::{Frame, Link, LinkEvent, Undelivered};
use crate::stack::routes::RouteError;
use crate::stack::shared::Shared;
use crate::tcp::conn::{Conn, Runner};
use crate::tcp::icmp::{self, IcmpError, IcmpErrorKind};
use crate::tcp::service::Work;
use crate::udp::{self, Udp};
use ipnet::IpNet;
use std::net::IpAddr;
use std::sync::Arc;

impl Shared {
    /// Takes the events of a link. Returns the errors about packets that were not delivered.
    pub(in crate::stack) fn heed(&self, link: &dyn Link) -> impl Iterator<Item = IcmpError> {
        let mut events = Vec::new();
        link.take_events(&mut events);
        events.into_iter().filter_map(|event| match event {
            LinkEvent::AddressAdded(net) => {
                self.address_found(net);
                None
            }
            LinkEvent::AddressRemoved(address) => {
                self.address_lost(address);
                None
            }
            LinkEvent::AddressDeprecated {
                address,
                deprecated,
            } => {
                let mut network = self.addressing.network.lock();
                network.set_deprecated(address, deprecated);
                None
            }
            LinkEvent::Undelivered { packet, why } => error_about(&packet, why),
        })
    }

    fn address_found(&self, net: IpNet) {
        match self.add_address(net) {
            // The program may have given it, too.
            Ok(()) | Err(RouteError::DuplicateAddress(_)) => {
                report!(info, "stack", address = %net, "address added by the link");
            }
            Err(error) => {
                report!(warn, "stack", %error, "the link's address cannot be used");
            }
        }
    }

    fn address_lost(&self, address: IpAddr) {
        match self.remove_address(address, Runner::Driver) {
            Ok(()) => report!(info, "stack", %address, "address removed by the link"),
            Err(error) => report!(warn, "stack", %error, "the link's address was not removed"),
        }
    }

    pub(in crate::stack) fn add_address(&self, net: IpNet) -> Result<(), RouteError> {
        self.addressing.network.lock().add_address(net)?;
        self.addressing.changed.notify_all();
        Ok(())
    }

    /// Removes an address, and ends its connections and sockets.
    pub(in crate::stack) fn remove_address(
        &self,
        address: IpAddr,
        runner: Runner,
    ) -> Result<(), RouteError> {
        self.addressing.network.lock().remove_address(address)?;
        let of_address = |conn: &Arc<Conn>| {
            let tuple = &conn.tuple;
            tuple.local == address || conn.home.looped && tuple.remote == address
        };
        // Connections with this address as peer come first, so that none of them is reset by its other
        // end.
        let mut all: Vec<_> = self.table.all().into_iter().filter(of_address).collect();
        all.sort_by_key(|conn| conn.tuple.local == address);
        for conn in all {
            conn.run(Work::ADDRESS_REMOVED, runner);
        }
        let removed = |udp: &Udp| {
            let bound = matches!(udp.kind, udp::Kind::Bound(_));
            bound && udp.names().0.is_some_and(|local| local.ip() == address)
        };
        self.end_datagrams(SoError::AddressRemoved, removed);
        Ok(())
    }
}

/// A local error is a hard one: an attempt to connect ends at once, as in Linux.
fn error_about(packet: &Frame, why: Undelivered) -> Option<IcmpError> {
    icmp::about(
        packet,
        match why {
            Undelivered::NoRoute | Undelivered::HostUnreachable => {
                IcmpErrorKind::Hard(SoError::HostUnreachable)
            }
            Undelivered::TooBig(mtu) => IcmpErrorKind::TooBig(mtu),
        },
    )
}

#[cfg(test)]
mod tests;
