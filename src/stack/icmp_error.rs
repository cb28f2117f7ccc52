//! ICMP errors about received packets: source address and rate limit. Format and conditions are in [`ip::icmp`].
//! They are dropped when the link is full.

use crate::ip::icmp::{self, Kind};
use crate::ip::{self, IPV4_HEADER, IPV6_HEADER};
use crate::link::{Frame, Link};
use crate::stack::Shared;
use crate::stack::demux::stateless;
use std::net::IpAddr;
use std::time::Instant;

impl Shared {
    /// Sends an error about a received packet, if it may be sent. Its source is the packet's destination, unless that
    /// is a multicast address. The caller decides whether the stack answers for that destination.
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

    /// The source of an error about a packet. `None` if the packet's source is not reachable, or if it was a
    /// broadcast.
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
