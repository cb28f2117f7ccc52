//! ICMP errors about received packets: to whom, from which address, how many.
//!
//! Which packets may draw one, and what it looks like, is in [`ip::icmp`]. They are not worth waiting for:
//! when the link is full they are dropped.

use crate::ip::icmp::{self, Kind};
use crate::ip::{self, IPV4_HEADER, IPV6_HEADER};
use crate::link::{Frame, Link};
use crate::stack::Shared;
use crate::stack::demux::stateless;
use std::net::IpAddr;
use std::time::Instant;

impl Shared {
    /// Sends an error about a received packet, from the packet's destination, if that is one host's, and if
    /// the packet may draw one. Whether the stack speaks for that host is for the caller.
    pub(in crate::stack) fn icmp_error(
        &self,
        link: &dyn Link,
        kind: Kind,
        about: &Frame,
        now: Instant,
    ) {
        if !icmp::may_answer(kind, about) {
            return;
        }
        let (to, destination) = ip::addresses(&about.head);
        let Some(from) = self.speaker(to, destination) else {
            return;
        };
        let since_epoch = self.since_epoch(now);
        let count = self.received.icmp_errors_sent.get() + self.received.icmp_errors_limited.get();
        let random = self.addressing.isn.keyed_hash((since_epoch, count));
        if !self.icmp_allowance.take(since_epoch, random) {
            self.received.icmp_errors_limited.add(1);
            return;
        }
        let packet = icmp::compose(kind, from, about);
        let ip_header_len = match to {
            IpAddr::V4(_) => IPV4_HEADER,
            IpAddr::V6(_) => IPV6_HEADER,
        };
        if stateless::send(link, &packet, ip_header_len) {
            self.received.icmp_errors_sent.add(1);
        }
    }

    /// From which address a packet is answered. None: it is not, since its source cannot be reached or it went
    /// to all hosts of a network.
    fn speaker(&self, to: IpAddr, destination: IpAddr) -> Option<IpAddr> {
        let network = self.addressing.network.lock();
        if !network.is_routed(to) || network.is_broadcast(to) || network.is_broadcast(destination) {
            return None;
        }
        match destination.is_multicast() {
            true => network.source_for(to),
            false => Some(destination),
        }
    }
}
