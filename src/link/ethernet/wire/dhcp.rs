//! Messages of DHCPv4 (RFC 2131, 2132).

use crate::link::ethernet::frame::{self, Mac};
use std::net::Ipv4Addr;

pub(in crate::link::ethernet) const SERVER_PORT: u16 = 67;
pub(in crate::link::ethernet) const CLIENT_PORT: u16 = 68;

/// Length of the fixed fields, after which the magic number and the options follow.
pub(in crate::link::ethernet) const FIXED: usize = 236;
const MAGIC: [u8; 4] = [99, 130, 83, 99];
/// Some clients refuse shorter messages, as those of BOOTP are not (RFC 1542 2.1).
const LEAST: usize = 300;
pub(in crate::link::ethernet) const BROADCAST_FLAG: u16 = 0x8000;

pub(in crate::link::ethernet) const DISCOVER: u8 = 1;
pub(in crate::link::ethernet) const OFFER: u8 = 2;
pub(in crate::link::ethernet) const REQUEST: u8 = 3;
pub(in crate::link::ethernet) const DECLINE: u8 = 4;
pub(in crate::link::ethernet) const ACK: u8 = 5;
pub(in crate::link::ethernet) const NAK: u8 = 6;
pub(in crate::link::ethernet) const RELEASE: u8 = 7;
pub(in crate::link::ethernet) const INFORM: u8 = 8;

const PAD: u8 = 0;
pub(in crate::link::ethernet) const MASK: u8 = 1;
pub(in crate::link::ethernet) const ROUTER: u8 = 3;
pub(in crate::link::ethernet) const DNS: u8 = 6;
pub(in crate::link::ethernet) const MTU: u8 = 26;
pub(in crate::link::ethernet) const REQUESTED: u8 = 50;
pub(in crate::link::ethernet) const LEASE: u8 = 51;
pub(in crate::link::ethernet) const OVERLOAD: u8 = 52;
pub(in crate::link::ethernet) const KIND: u8 = 53;
pub(in crate::link::ethernet) const SERVER: u8 = 54;
/// The options that the client asks for.
pub(in crate::link::ethernet) const PARAMETERS: u8 = 55;
/// Largest message that the client takes.
pub(in crate::link::ethernet) const MAX_SIZE: u8 = 57;
pub(in crate::link::ethernet) const RENEW: u8 = 58;
pub(in crate::link::ethernet) const REBIND: u8 = 59;
pub(in crate::link::ethernet) const CLIENT: u8 = 61;
/// Classless routes (RFC 3442).
pub(in crate::link::ethernet) const ROUTES: u8 = 121;
pub(in crate::link::ethernet) const END: u8 = 255;

/// The first fixed fields: who sends it, Ethernet, length of its addresses.
pub(in crate::link::ethernet) const FROM_CLIENT: [u8; 3] = [1, 1, 6];
pub(in crate::link::ethernet) const FROM_SERVER: [u8; 3] = [2, 1, 6];

/// A message, and the options that both sides use.
#[derive(Debug)]
pub(in crate::link::ethernet) struct Message<'a> {
    pub(in crate::link::ethernet) kind: u8,
    /// All fixed fields.
    pub(in crate::link::ethernet) fixed: &'a [u8; FIXED],
    pub(in crate::link::ethernet) requested: Option<Ipv4Addr>,
    pub(in crate::link::ethernet) server: Option<Ipv4Addr>,
    pub(in crate::link::ethernet) client: Option<&'a [u8]>,
    /// The places of options, in their order (RFC 3396 5).
    places: [&'a [u8]; 3],
}

/// Options up to the end option. One that is cut off ends them too.
fn options(mut bytes: &[u8]) -> impl Iterator<Item = (u8, &[u8])> {
    std::iter::from_fn(move || {
        loop {
            match *bytes {
                [PAD, ref rest @ ..] => bytes = rest,
                [END, ..] | [] | [_] => return None,
                [kind, len, ref rest @ ..] => {
                    let (value, rest) = rest.split_at_checked(len.into())?;
                    bytes = rest;
                    return Some((kind, value));
                }
            }
        }
    })
}

pub(in crate::link::ethernet) fn address(bytes: &[u8]) -> Option<Ipv4Addr> {
    bytes.try_into().map(|octets: [u8; 4]| octets.into()).ok()
}

impl<'a> Message<'a> {
    /// A client's message.
    pub(in crate::link::ethernet) fn parse(bytes: &'a [u8]) -> Option<Message<'a>> {
        Message::parse_from(FROM_CLIENT, bytes)
    }

    /// A server's message.
    pub(in crate::link::ethernet) fn parse_reply(bytes: &'a [u8]) -> Option<Message<'a>> {
        Message::parse_from(FROM_SERVER, bytes)
    }

    fn parse_from(sender: [u8; 3], bytes: &'a [u8]) -> Option<Message<'a>> {
        let (fixed, rest) = bytes.split_first_chunk::<FIXED>()?;
        let rest = rest.strip_prefix(&MAGIC)?;
        if fixed[..3] != sender {
            return None;
        }
        let overload = options(rest).find(|option| option.0 == OVERLOAD);
        let overload = overload.and_then(|option| option.1.first().copied());
        let overload = overload.unwrap_or(0);
        let place = |bit, end| &fixed[if overload & bit == 0 { 0..0 } else { end }];
        let mut message = Message {
            kind: 0,
            fixed,
            requested: None,
            server: None,
            client: None,
            places: [rest, place(1, 108..FIXED), place(2, 44..108)],
        };
        message.kind = *message.option(KIND)?.first()?;
        message.requested = message.option(REQUESTED).and_then(address);
        message.server = message.option(SERVER).and_then(address);
        message.client = message.option(CLIENT);
        Some(message)
    }

    fn all(&self, kind: u8) -> impl Iterator<Item = &'a [u8]> {
        let all = self.places.into_iter().flat_map(options);
        all.filter(move |option| option.0 == kind)
            .map(|option| option.1)
    }

    /// The value of an option.
    pub(in crate::link::ethernet) fn option(&self, kind: u8) -> Option<&'a [u8]> {
        self.all(kind).next()
    }

    /// The value of an option that may be split (RFC 3396); empty if it is not there.
    pub(in crate::link::ethernet) fn joined(&self, kind: u8) -> Vec<u8> {
        self.all(kind).flatten().copied().collect()
    }

    /// The value of an option of four bytes.
    pub(in crate::link::ethernet) fn number(&self, kind: u8) -> Option<u32> {
        let value = self.option(kind)?.try_into();
        value.map(u32::from_be_bytes).ok()
    }

    /// The transaction.
    pub(in crate::link::ethernet) fn transaction(&self) -> &'a [u8] {
        &self.fixed[4..8]
    }

    /// The address that the server gives.
    pub(in crate::link::ethernet) fn yiaddr(&self) -> Option<Ipv4Addr> {
        self.field(16)
    }

    /// A fixed field, or nothing for 0.0.0.0.
    pub(in crate::link::ethernet) fn field(&self, at: usize) -> Option<Ipv4Addr> {
        address(&self.fixed[at..at + 4]).filter(|address| !address.is_unspecified())
    }

    /// The address that the client has.
    pub(in crate::link::ethernet) fn ciaddr(&self) -> Option<Ipv4Addr> {
        self.field(12)
    }

    pub(in crate::link::ethernet) fn relay(&self) -> Option<Ipv4Addr> {
        self.field(24)
    }

    pub(in crate::link::ethernet) fn mac(&self) -> Option<Mac> {
        let mac = self.fixed[28..34].try_into().map(Mac).ok();
        mac.filter(|mac| mac.is_unicast())
    }

    pub(in crate::link::ethernet) fn wants_broadcast(&self) -> bool {
        frame::be16(self.fixed, 10) & BROADCAST_FLAG != 0
    }
}

/// A message that is written.
#[derive(Debug)]
pub(in crate::link::ethernet) struct Writer(Vec<u8>);

impl Writer {
    pub(in crate::link::ethernet) fn new(fixed: &[u8; FIXED]) -> Writer {
        Writer([&fixed[..], &MAGIC].concat())
    }

    pub(in crate::link::ethernet) fn option(mut self, kind: u8, value: &[u8]) -> Writer {
        let len = u8::try_from(value.len()).expect("invariant: an option has at most 255 bytes");
        self.0.extend([kind, len]);
        self.0.extend(value);
        self
    }

    pub(in crate::link::ethernet) fn finish(mut self) -> Vec<u8> {
        self.0.push(END);
        self.0.resize(self.0.len().max(LEAST), PAD);
        self.0
    }
}
