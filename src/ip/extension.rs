//! IPv6 extension headers: which are passed over, and which end a packet (RFC 8200 4).
//!
//! Headers are looked at in the order in which they come, up to the upper-layer header or to a fragment
//! that is not whole. Options mean nothing here, so of each only its action counts (4.2). There are bounds,
//! as RFC 8504 5.3 allows. Pure.

use super::header::{Fragment, IPV6_HEADER, Malformed, be16, be32};

pub(crate) const HOP_BY_HOP: u8 = 0;
pub(crate) const ROUTING: u8 = 43;
pub(crate) const FRAGMENT: u8 = 44;
pub(crate) const NO_NEXT_HEADER: u8 = 59;
pub(crate) const DESTINATION_OPTIONS: u8 = 60;

/// Most extension headers of a packet, and most bytes of them.
pub(crate) const MOST_HEADERS: usize = 8;
pub(crate) const MOST_BYTES: usize = 2048;

/// Codes of a parameter problem (RFC 4443 3.4).
pub(crate) const ERRONEOUS_FIELD: u8 = 0;
pub(crate) const UNKNOWN_NEXT_HEADER: u8 = 1;
pub(crate) const UNKNOWN_OPTION: u8 = 2;
/// RFC 7112 5.
pub(crate) const INCOMPLETE_CHAIN: u8 = 3;

/// Whether a header of this kind is looked at here.
pub(crate) fn is_extension(kind: u8) -> bool {
    matches!(kind, HOP_BY_HOP | ROUTING | FRAGMENT | DESTINATION_OPTIONS)
}

/// A place in a row of headers.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place {
    /// What is there.
    pub(crate) kind: u8,
    /// Where that is said.
    pub(crate) kind_at: usize,
    pub(crate) at: usize,
}

impl Place {
    /// Behind the IPv6 header of a packet.
    fn first(packet: &[u8]) -> Place {
        Place {
            kind: packet[6],
            kind_at: 6,
            at: IPV6_HEADER,
        }
    }

    /// The extension header here, if it is whole.
    fn header<'a>(&self, packet: &'a [u8]) -> Option<&'a [u8]> {
        let rest = packet.get(self.at..)?;
        let units = match self.kind {
            FRAGMENT => 0,
            _ => usize::from(*rest.get(1)?),
        };
        rest.get(..(units + 1) * 8)
    }

    fn behind(&self, header: &[u8]) -> Place {
        Place {
            kind: header[0],
            kind_at: self.at,
            at: self.at + header.len(),
        }
    }
}

/// What is behind the extension headers, as far as they are there, and whether that begins in an earlier
/// fragment. Nothing is asked of the headers.
pub(crate) fn last(packet: &[u8]) -> (Place, bool) {
    let mut place = Place::first(packet);
    let mut fragmented = false;
    for _ in 0..MOST_HEADERS {
        if !is_extension(place.kind) || place.kind == FRAGMENT && fragmented {
            break;
        }
        let Some(header) = place.header(packet) else {
            break;
        };
        fragmented |= place.kind == FRAGMENT;
        let later = place.kind == FRAGMENT && be16(header, 2) & !0b111 != 0;
        place = place.behind(header);
        if later {
            return (place, true);
        }
    }
    (place, false)
}

/// What the extension headers of a packet have come to.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Chain {
    pub(crate) last: Place,
    /// Of a packet that is a fragment: what is behind it is not looked at.
    pub(crate) fragment: Option<Fragment>,
}

/// Why the headers have no end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stop {
    /// More bytes of the packet are needed.
    Short,
    Malformed(Malformed),
}

fn problem(code: u8, pointer: usize) -> Stop {
    let pointer = u32::try_from(pointer).unwrap_or(u32::MAX);
    Stop::Malformed(Malformed::Parameter { code, pointer })
}

/// Looks at the extension headers of a packet, of which these are the first bytes.
pub(crate) fn chain(packet: &[u8]) -> Result<Chain, Stop> {
    let mut last = Place::first(packet);
    let mut fragmented = false;
    for count in 0.. {
        if !is_extension(last.kind) {
            break;
        }
        if count == MOST_HEADERS {
            return Err(Stop::Malformed(Malformed::Header));
        }
        if last.kind == HOP_BY_HOP && last.at > IPV6_HEADER {
            return Err(problem(UNKNOWN_NEXT_HEADER, last.kind_at));
        }
        let header = last.header(packet).ok_or(Stop::Short)?;
        let next = last.behind(header);
        if next.at > IPV6_HEADER + MOST_BYTES {
            return Err(Stop::Malformed(Malformed::Header));
        }
        match last.kind {
            // What has been put together has none any more.
            FRAGMENT if fragmented => return Err(Stop::Malformed(Malformed::Header)),
            FRAGMENT => {
                fragmented = true;
                let fragment = fragment(header, &last);
                if fragment.is_some() {
                    return Ok(Chain {
                        last: next,
                        fragment,
                    });
                }
            }
            // Whatever its type (RFC 8200 4.4, RFC 5095 3).
            ROUTING if header[3] > 0 => return Err(problem(ERRONEOUS_FIELD, last.at + 2)),
            ROUTING => {}
            _ => options(header, last.at, packet[24] == 0xff)?,
        }
        last = next;
    }
    Ok(Chain {
        last,
        fragment: None,
    })
}

/// `None`: it is the whole packet (RFC 6946).
fn fragment(header: &[u8], place: &Place) -> Option<Fragment> {
    let field = be16(header, 2);
    let fragment = Fragment {
        identification: be32(header, 4),
        offset: usize::from(field & !0b111),
        more: field & 1 != 0,
        unfragmentable_len: place.at,
        next_header: header[0],
        next_header_at: place.kind_at,
    };
    (fragment.more || fragment.offset > 0).then_some(fragment)
}

/// Passes over the options of a header that is at this place in its packet. The highest bits of a kind say
/// what becomes of the packet where that is unknown (RFC 8200 4.2).
fn options(header: &[u8], at: usize, to_many: bool) -> Result<(), Stop> {
    const PAD_1: u8 = 0;
    const PAD_N: u8 = 1;
    let mut here = 2;
    while let Some(&kind) = header.get(here) {
        if kind == PAD_1 {
            here += 1;
            continue;
        }
        let end = header.get(here + 1).map(|len| here + 2 + usize::from(*len));
        let Some(end) = end.filter(|end| *end <= header.len()) else {
            return Err(Stop::Malformed(Malformed::Header));
        };
        match kind >> 6 {
            _ if kind == PAD_N => {}
            0b00 => {}
            0b10 => return Err(problem(UNKNOWN_OPTION, at + here)),
            0b11 if !to_many => return Err(problem(UNKNOWN_OPTION, at + here)),
            _ => return Err(Stop::Malformed(Malformed::Protocol)),
        }
        here = end;
    }
    Ok(())
}
