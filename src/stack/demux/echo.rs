//! Answers to pings. They are dropped when the link is full.

use crate::ip::{self, echo};
use crate::link::{Frame, Link, Packet};
use crate::stack::Shared;
use crate::udp::{Host as _, Source};

/// No path MTU is smaller.
const SMALL: usize = 552;

impl Shared {
    /// Answers a ping. `false`: it is none.
    pub(in crate::stack) fn pong(
        &self,
        link: &dyn Link,
        ping: &Frame,
        ip_header_len: usize,
    ) -> bool {
        let Some(answer) = echo::Answer::to(ping, ip_header_len) else {
            return false;
        };
        let packet = Packet::new(answer.header(), &answer.payload, answer.ip_header_len);
        let mtu = match packet.len() <= SMALL {
            true => SMALL,
            false => self.mtu_to(packet.header),
        };
        match packet.len() <= mtu {
            true => link.transmit(&packet).ok(),
            false => self.send_fragments(link, (&packet, mtu), &mut None).ok(),
        };
        true
    }

    /// The MTU to a packet's destination.
    fn mtu_to(&self, header: &[u8]) -> usize {
        let (from, to) = ip::addresses(header);
        let way = self.way(Source::Own(from), to);
        way.map_or(self.capabilities().mtu, |way| way.mtu)
    }
}
