//! The Internet Protocol, versions 4 and 6, below every transport.
//!
//! | file | what |
//! |---|---|
//! | `header` | headers: parsed once for each frame, written once for each packet; addresses; checksums |
//! | `tuple` | both ends of a connection |

pub(crate) mod header;
pub(crate) mod tuple;

pub(crate) use header::{
    IPV4_HEADER, IPV6_HEADER, MAX_LENGTH, Malformed, PROTO_TCP, PROTO_UDP, Packet, addresses, be16,
    be32, is_endpoint, parse,
};
pub(crate) use tuple::Tuple;
