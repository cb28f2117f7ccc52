//! Hardware addresses and the header of Ethernet frames, with tags of virtual LANs (IEEE 802.1Q).

use std::fmt;
use std::str::FromStr;

/// Largest frame of the transports in bytes: an IP packet of 65,535 bytes after the header.
pub const MAX_FRAME: usize = HEADER + 65_535;

/// Length of a header without tags.
pub(in crate::link) const HEADER: usize = 14;
/// Length of a tag.
const TAG: usize = 4;
/// A frame with more tags is dropped.
const MAX_TAGS: usize = 2;

/// A hardware address of Ethernet.
///
/// ```
/// use sosplice::link::ethernet::Mac;
/// let mac: Mac = "02:00:5e:10:00:01".parse()?;
/// assert_eq!(mac, Mac([2, 0, 0x5e, 0x10, 0, 1]));
/// assert_eq!(mac.to_string(), "02:00:5e:10:00:01");
/// assert!(mac.is_unicast() && !Mac::BROADCAST.is_unicast());
/// # Ok::<(), sosplice::link::ethernet::ParseMacError>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[expect(clippy::exhaustive_structs, reason = "an address has six bytes")]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// The address of all hosts.
    pub const BROADCAST: Mac = Mac([0xff; 6]);

    /// Whether it is the address of one host: neither a group's nor zero.
    pub const fn is_unicast(self) -> bool {
        self.0[0] & 1 == 0 && !matches!(self.0, [0, 0, 0, 0, 0, 0])
    }

    /// As a number that is zero for no unicast address.
    pub(super) fn to_bits(self) -> u64 {
        let [a, b, c, d, e, f] = self.0;
        u64::from_be_bytes([0, 0, a, b, c, d, e, f])
    }

    /// Nothing for zero.
    pub(super) fn from_bits(bits: u64) -> Option<Mac> {
        let [_, _, a, b, c, d, e, f] = bits.to_be_bytes();
        (bits != 0).then_some(Mac([a, b, c, d, e, f]))
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [first, rest @ ..] = self.0;
        write!(f, "{first:02x}")?;
        rest.iter().try_for_each(|byte| write!(f, ":{byte:02x}"))
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A string that is no hardware address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is no hardware address: six bytes in hexadecimal with colons are, like 02:00:5e:10:00:01"
)]
pub struct ParseMacError(String);

impl FromStr for Mac {
    type Err = ParseMacError;

    fn from_str(string: &str) -> Result<Mac, ParseMacError> {
        let error = || ParseMacError(string.to_owned());
        let mut mac = [0; 6];
        let mut parts = string.split(':');
        for byte in &mut mac {
            let part = parts
                .next()
                .filter(|part| part.len() == 2)
                .ok_or_else(error)?;
            let hexadecimal = part.bytes().all(|digit| digit.is_ascii_hexdigit());
            let value = u8::from_str_radix(part, 16).ok().filter(|_| hexadecimal);
            *byte = value.ok_or_else(error)?;
        }
        match parts.next() {
            None => Ok(Mac(mac)),
            Some(_) => Err(error()),
        }
    }
}

/// What happens to a frame with tags of virtual LANs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Vlan {
    /// It is dropped and counted. A tag for priority alone (VLAN 0) is removed.
    #[default]
    Drop,
    /// Up to two tags are removed, and the frame is treated like one without. Frames that are sent have none.
    Strip,
}

/// The kinds of payload that are known.
pub(in crate::link) const IPV4: u16 = 0x0800;
pub(in crate::link) const ARP: u16 = 0x0806;
pub(in crate::link) const IPV6: u16 = 0x86dd;
pub(super) const TAGGED: u16 = 0x8100;
const OUTER_TAGGED: u16 = 0x88a8;

/// A parsed header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) destination: Mac,
    pub(super) source: Mac,
    pub(super) kind: u16,
    /// Its length, including tags.
    pub(super) len: usize,
}

/// Why a header was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refused {
    Short,
    /// A group's address, or none, as the source.
    Source,
    Tagged,
}

pub(super) fn parse(frame: &[u8], vlan: Vlan) -> Result<Header, Refused> {
    let mac = |at: usize| {
        frame[at..at + 6]
            .try_into()
            .map(Mac)
            .expect("invariant: six bytes")
    };
    if frame.len() < HEADER {
        return Err(Refused::Short);
    }
    let mut len = HEADER;
    let mut kind = be16(frame, len - 2);
    while matches!(kind, TAGGED | OUTER_TAGGED) {
        if frame.len() < len + TAG {
            return Err(Refused::Short);
        }
        let priority_alone = be16(frame, len) & 0x0fff == 0;
        if len == HEADER + MAX_TAGS * TAG || (vlan == Vlan::Drop && !priority_alone) {
            return Err(Refused::Tagged);
        }
        len += TAG;
        kind = be16(frame, len - 2);
    }
    let source = mac(6);
    match source.is_unicast() {
        false => Err(Refused::Source),
        true => Ok(Header {
            destination: mac(0),
            source,
            kind,
            len,
        }),
    }
}

/// The kind of a frame's payload behind any number of tags, and where it begins. `None` for a frame that ends before.
#[cfg(any(target_os = "linux", target_os = "android", feature = "tun-rs"))]
pub(in crate::link) fn kind(frame: &[u8]) -> Option<(u16, usize)> {
    let mut len = HEADER;
    loop {
        let field = frame.get(len - 2..len)?;
        match be16(field, 0) {
            TAGGED | OUTER_TAGGED => len += TAG,
            kind => return Some((kind, len)),
        }
    }
}

/// The header of a frame to send.
pub(super) fn header(destination: Mac, source: Mac, kind: u16) -> [u8; HEADER] {
    let mut header = [0; HEADER];
    header[..6].copy_from_slice(&destination.0);
    header[6..12].copy_from_slice(&source.0);
    header[12..].copy_from_slice(&kind.to_be_bytes());
    header
}

pub(in crate::link) fn be16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Mac = Mac([2, 0, 0, 0, 0, 1]);
    const B: Mac = Mac([2, 0, 0, 0, 0, 2]);

    fn tagged(tags: &[u16]) -> Vec<u8> {
        let mut frame = header(A, B, IPV4)[..12].to_vec();
        for tag in tags {
            frame.extend(TAGGED.to_be_bytes());
            frame.extend(tag.to_be_bytes());
        }
        frame.extend(IPV4.to_be_bytes());
        frame
    }

    #[test]
    fn tags_are_removed_or_refused() {
        let len =
            |tags: &[u16], vlan| parse(&tagged(tags), vlan).map(|header| (header.kind, header.len));
        assert_eq!(len(&[], Vlan::Drop), Ok((IPV4, 14)));
        assert_eq!(len(&[7], Vlan::Strip), Ok((IPV4, 18)));
        assert_eq!(len(&[7, 8], Vlan::Strip), Ok((IPV4, 22)));
        assert_eq!(len(&[7, 8, 9], Vlan::Strip), Err(Refused::Tagged));
        assert_eq!(len(&[7], Vlan::Drop), Err(Refused::Tagged));
        assert_eq!(len(&[0xe000], Vlan::Drop), Ok((IPV4, 18)), "a priority");
    }

    #[test]
    fn no_prefix_of_a_frame_panics() {
        let frame = tagged(&[7, 8]);
        for len in 0..frame.len() {
            assert_eq!(parse(&frame[..len], Vlan::Strip), Err(Refused::Short));
        }
    }

    #[test]
    fn the_source_is_one_host() {
        for source in [Mac::BROADCAST, Mac([0; 6]), Mac([3, 0, 0, 0, 0, 1])] {
            assert_eq!(
                parse(&header(A, source, IPV4), Vlan::Drop),
                Err(Refused::Source)
            );
        }
    }

    #[test]
    fn strings_that_are_no_addresses() {
        for string in [
            "",
            "02:00:00:00:00",
            "02:00:00:00:00:01:02",
            "2:0:0:0:0:1",
            "+2:00:00:00:00:01",
        ] {
            assert!(string.parse::<Mac>().is_err(), "{string}");
        }
    }
}
