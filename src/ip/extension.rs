//! IPv6 extension headers: those that are skipped, and those for which a packet is dropped (RFC 8200 4).
//!
//! Headers are processed in order, up to the upper-layer header, or up to the fragment header of an incomplete
//! packet. Only padding is a known option; the two highest bits of others determine the result (4.2). Number and
//! length of the headers are bounded, as RFC 8504 5.3 allows. Pure.

use super::header::{Fragment, IPV6_HEADER, Malformed, be16, be32};

pub(crate) const HOP_BY_HOP: u8 = 0;
pub(crate) const ROUTING: u8 = 43;
pub(crate) const FRAGMENT: u8 = 44;
pub(crate) const NO_NEXT_HEADER: u8 = 59;
pub(crate) const DESTINATION_OPTIONS: u8 = 60;

/// Largest number of extension headers of a packet, and their largest total length.
pub(crate) const MOST_HEADERS: usize = 8;
pub(crate) const MOST_BYTES: usize = 2048;

/// Codes of a parameter problem (RFC 4443 3.4).
pub(crate) const ERRONEOUS_FIELD: u8 = 0;
pub(crate) const UNKNOWN_NEXT_HEADER: u8 = 1;
pub(crate) const UNKNOWN_OPTION: u8 = 2;
/// RFC 7112 5.
pub(crate) const INCOMPLETE_CHAIN: u8 = 3;

/// Whether a next-header value is that of an extension header that is processed here.
pub(crate) fn is_extension(kind: u8) -> bool {
    matches!(kind, HOP_BY_HOP | ROUTING | FRAGMENT | DESTINATION_OPTIONS)
}

/// A header in a chain.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place {
    /// Its next-header value.
    pub(crate) kind: u8,
    /// Offset of the field with that value.
    pub(crate) kind_at: usize,
    pub(crate) at: usize,
}

impl Place {
    /// The header after the IPv6 header.
    fn first(packet: &[u8]) -> Place {
        Place {
            kind: packet[6],
            kind_at: 6,
            at: IPV6_HEADER,
        }
    }

    /// The extension header, if it is complete.
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

/// The first header that is no extension header, or is incomplete, and whether it is part of a later fragment.
/// The contents of the headers are not checked.
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

/// A checked chain of extension headers.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Chain {
    pub(crate) last: Place,
    /// The fragment header, if the packet is incomplete: the headers after it are not checked.
    pub(crate) fragment: Option<Fragment>,
}

/// Why a chain has no last header.
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

/// Checks the extension headers in the first bytes of a packet.
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
            // Fragments of fragments are not reassembled.
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
            // Of any type (RFC 8200 4.4, RFC 5095 3).
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

/// `None` for an atomic fragment (RFC 6946).
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

/// Checks the options of a header at this offset. The two highest bits of an unknown option's kind determine the
/// result (RFC 8200 4.2).
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
