//! The Internet Protocol, versions 4 and 6, below every transport.
//!
//! | file | what |
//! |---|---|
//! | `header` | headers: their fields, how they are written; addresses; checksums |
//! | `packet` | received headers, parsed once for each frame |
//! | `extension` | the extension headers of IPv6 |
//! | `reassembly` | packets from fragments |
//! | `fragment` | packets larger than the MTU, in fragments |
//! | `echo` | answers to pings |
//! | `icmp` | ICMP errors that this host sends, and their rate limit |
//! | `tuple` | both ends of a connection |

pub(crate) mod echo;
pub(crate) mod extension;
pub(crate) mod fragment;
pub(crate) mod header;
pub(crate) mod icmp;
pub(crate) mod packet;
pub(crate) mod reassembly;
#[cfg(test)]
pub(crate) mod samples;
pub(crate) mod tuple;

pub(crate) use header::{
    IPV4_HEADER, IPV6_HEADER, MAX_LENGTH, Malformed, PROTO_TCP, PROTO_UDP, addresses, be16, be32,
    is_endpoint,
};
pub(crate) use packet::{Packet, parse};
pub(crate) use tuple::Tuple;
