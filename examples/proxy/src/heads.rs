//! The first bytes of a client: a header of the PROXY protocol (HAProxy, versions 1 and 2), and the server name of a
//! TLS ClientHello (RFC 8446 4.1.2, RFC 6066 3).
//!
//! Pure: [`parse`] is given the bytes that have arrived so far. Neither is needed to be in one segment.

#[cfg(test)]
mod tests;

use crc::{CRC_32_ISCSI, Crc};
use proxy_header::{ParseConfig, Protocol, ProxiedAddress, ProxyHeader, Tlv};
use std::net::SocketAddr;
use thiserror::Error;
use tls_parser::{SNIType, TlsExtension, TlsExtensionType, TlsMessage, TlsMessageHandshake};

/// The largest head in bytes: that of a ClientHello in one record, and a header before it.
pub(crate) const MOST: usize = 20 * 1024;
/// The largest header of the PROXY protocol.
const MOST_HEADER: usize = 4 * 1024;
/// The longest line of version 1, with its end.
const MOST_LINE: usize = 107;
const V1: &[u8] = b"PROXY ";
const V2: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
/// Bytes of a header of version 2 that all have: up to the length of the rest.
const FIXED: usize = 16;
const LOCAL: u8 = 0x20;
const PROXY: u8 = 0x21;
const UNIX_DATAGRAMS: u8 = 0x32;
/// The type of the extension with the checksum, and the length of that.
const CRC32C: u8 = 3;
const SUM: usize = 4;
const TLS_HANDSHAKE: u8 = 22;
const CLIENT_HELLO: u8 = 1;

/// What a client is to begin with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Expected {
    pub(crate) proxy: bool,
    pub(crate) tls: bool,
}

/// The first bytes of a client.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Head {
    /// Bytes of the PROXY header, which are not the backend's.
    pub(crate) header_len: usize,
    pub(crate) header: Option<ProxyHeader<'static>>,
    /// In lower case.
    pub(crate) server_name: Option<String>,
}

/// What is wrong with the first bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub(crate) enum Fault {
    #[error("it does not begin with a header of the PROXY protocol (version 1 or 2)")]
    NoHeader,
    #[error("a header of the PROXY protocol that is malformed, or not for a TCP connection")]
    Header,
    #[error("a header of the PROXY protocol whose CRC32c is wrong")]
    Checksum,
    #[error("it does not begin with a TLS handshake")]
    NoTls,
    #[error("a TLS ClientHello that is malformed")]
    Hello,
    #[error("a head of more than {MOST} bytes (a PROXY header of more than {MOST_HEADER})")]
    Long,
    #[error("the first bytes did not arrive in time")]
    Late,
    #[error("too many clients whose first bytes are missing (--head-clients, --head-memory)")]
    Crowded,
    #[error("it ended before its first bytes were complete")]
    Ended,
}

/// The head, `None` if it is not complete.
pub(crate) fn parse(bytes: &[u8], expected: Expected) -> Result<Option<Head>, Fault> {
    let mut head = Head::default();
    if expected.proxy {
        match header(bytes)? {
            Some((header, len)) => (head.header, head.header_len) = (Some(header), len),
            None => return Ok(None),
        }
    }
    if expected.tls {
        match hello(&bytes[head.header_len..])? {
            Some(name) => head.server_name = name,
            None if bytes.len() < MOST => return Ok(None),
            None => return Err(Fault::Long),
        }
    }
    Ok(Some(head))
}

fn header(bytes: &[u8]) -> Result<Option<(ProxyHeader<'static>, usize)>, Fault> {
    let begins = |with: &[u8]| {
        let len = bytes.len().min(with.len());
        bytes[..len] == with[..len]
    };
    if begins(V1) {
        return text(bytes);
    }
    if begins(V2) {
        return binary(bytes);
    }
    Err(Fault::NoHeader)
}

/// Version 1: a line, which is looked at once it is complete, so that the result does not depend on the segments.
fn text(bytes: &[u8]) -> Result<Option<(ProxyHeader<'static>, usize)>, Fault> {
    let most = &bytes[..bytes.len().min(MOST_LINE)];
    let Some(end) = most.iter().position(|byte| *byte == b'\n') else {
        return match most.len() {
            MOST_LINE => Err(Fault::Header),
            _ => Ok(None),
        };
    };
    let line = &bytes[..=end];
    match ProxyHeader::parse(line, ParseConfig::default()) {
        Ok((header, len)) if len == line.len() => Ok(Some((header.into_owned(), len))),
        _ => Err(Fault::Header),
    }
}

/// Version 2: its length is known after 16 bytes.
fn binary(bytes: &[u8]) -> Result<Option<(ProxyHeader<'static>, usize)>, Fault> {
    let Some(&[command, family, high, low]) = bytes.get(V2.len()..FIXED) else {
        return Ok(None);
    };
    let is_local = command == LOCAL;
    if !is_local && command != PROXY {
        return Err(Fault::Header);
    }
    let len = FIXED + usize::from(u16::from_be_bytes([high, low]));
    if len > MOST_HEADER {
        return Err(Fault::Long);
    }
    let Some(whole) = bytes.get(..len) else {
        return Ok(None);
    };
    verify(whole, family)?;
    match ProxyHeader::parse(whole, ParseConfig::default()) {
        Ok((header, _)) if is_usable(&header, family) => Ok(Some((header.into_owned(), len))),
        // Whatever follows is to be ignored.
        _ if is_local => Ok(Some((ProxyHeader::with_local(), len))),
        _ => Err(Fault::Header),
    }
}

fn is_usable(header: &ProxyHeader<'_>, family: u8) -> bool {
    let is_stream = |address: &ProxiedAddress| address.protocol == Protocol::Stream;
    header.proxied_address().is_none_or(is_stream)
        && family != UNIX_DATAGRAMS
        && header.tlvs().all(|tlv| tlv.is_ok())
}

/// Verifies the CRC32c of a whole header, if it has one: that of all its bytes, with zeros in the place of the sum.
fn verify(whole: &[u8], family: u8) -> Result<(), Fault> {
    let addresses = match family >> 4 {
        1 => 12,
        2 => 36,
        3 => 216,
        _ => 0,
    };
    let mut at = FIXED + addresses;
    let mut sum = None;
    while let Some(&[kind, high, low]) = whole.get(at..at + 3) {
        let from = at + 3;
        at = from + usize::from(u16::from_be_bytes([high, low]));
        if kind == CRC32C {
            let is_second = sum.replace(from..at).is_some();
            if is_second || at - from != SUM || at > whole.len() {
                return Err(Fault::Header);
            }
        }
    }
    let Some(sum) = sum else { return Ok(()) };
    match crc32c(whole, sum.start).to_be_bytes() == whole[sum] {
        true => Ok(()),
        false => Err(Fault::Checksum),
    }
}

/// The CRC32c of these bytes, with zeros in the place of the sum itself.
fn crc32c(bytes: &[u8], sum_at: usize) -> u32 {
    const CRC: Crc<u32> = Crc::<u32>::new(&CRC_32_ISCSI);
    let mut digest = CRC.digest();
    digest.update(&bytes[..sum_at]);
    digest.update(&[0; SUM]);
    digest.update(&bytes[sum_at + SUM..]);
    digest.finalize()
}

/// The server name of a ClientHello, which may be in several records. `None` if it is not complete; without the
/// extension the name is `None`.
#[expect(clippy::option_option, reason = "incomplete, and without a name")]
fn hello(mut bytes: &[u8]) -> Result<Option<Option<String>>, Fault> {
    let mut message = Vec::new();
    loop {
        if bytes.first().is_some_and(|kind| *kind != TLS_HANDSHAKE)
            || bytes.get(1).is_some_and(|major| *major != 3)
        {
            return Err(Fault::NoTls);
        }
        let Some(len) = bytes.get(3..5) else {
            return Ok(None);
        };
        let len = usize::from(u16::from_be_bytes([len[0], len[1]]));
        // RFC 8446 5.1: not empty, at most 2^14 bytes.
        if len == 0 || len > 1 << 14 {
            return Err(Fault::Hello);
        }
        let record = &bytes[5..bytes.len().min(5 + len)];
        message.extend_from_slice(record);
        if let Some(whole) = whole(&message)? {
            return name(whole).map(Some);
        }
        if record.len() < len {
            return Ok(None);
        }
        bytes = &bytes[5 + len..];
    }
}

/// The bytes of the ClientHello, once they are complete.
fn whole(message: &[u8]) -> Result<Option<&[u8]>, Fault> {
    if message.first().is_some_and(|kind| *kind != CLIENT_HELLO) {
        return Err(Fault::Hello);
    }
    let Some(&[high, middle, low]) = message.get(1..4) else {
        return Ok(None);
    };
    let len = 4 + usize::try_from(u32::from_be_bytes([0, high, middle, low])).unwrap_or(MOST);
    if len > MOST {
        return Err(Fault::Long);
    }
    Ok(message.get(..len))
}

fn name(hello: &[u8]) -> Result<Option<String>, Fault> {
    let parsed = tls_parser::parse_tls_message_handshake(hello);
    let Ok((_, TlsMessage::Handshake(TlsMessageHandshake::ClientHello(hello)))) = parsed else {
        return Err(Fault::Hello);
    };
    let Some(extensions) = hello.ext else {
        return Ok(None);
    };
    let Some(name) = sni(extensions)? else {
        return Ok(None);
    };
    let name = std::str::from_utf8(name).map_err(|_| Fault::Hello)?;
    Ok(Some(name.to_ascii_lowercase()))
}

/// The first host name of the extension for it. The contents of others are not looked into: one that the parser does not
/// know in its present form would hide those behind it.
fn sni(mut extensions: &[u8]) -> Result<Option<&[u8]>, Fault> {
    while !extensions.is_empty() {
        let parsed = tls_parser::parse_tls_extension_unknown(extensions);
        let Ok((rest, TlsExtension::Unknown(kind, content))) = parsed else {
            return Err(Fault::Hello);
        };
        if kind == TlsExtensionType::ServerName {
            let parsed = tls_parser::parse_tls_extension_sni_content(content);
            let Ok((&[], TlsExtension::SNI(names))) = parsed else {
                return Err(Fault::Hello);
            };
            let host = |(kind, name)| (kind == SNIType::HostName).then_some(name);
            let host = names.into_iter().find_map(host);
            return host.map(Some).ok_or(Fault::Hello);
        }
        extensions = rest;
    }
    Ok(None)
}

/// A header for the backend: the client's address, the one that it has connected to, and, in version 2, the received
/// extensions (TLVs) but for padding. A checksum (CRC32c) is computed anew.
pub(crate) fn for_backend(
    version: Version,
    (client, service): (SocketAddr, SocketAddr),
    received: Option<&ProxyHeader<'_>>,
) -> Vec<u8> {
    let proxied = received.and_then(ProxyHeader::proxied_address).cloned();
    let address = proxied.unwrap_or_else(|| ProxiedAddress::stream(client, service));
    let mut header = ProxyHeader::with_address(address);
    let mut bytes = Vec::new();
    let encoded = match version {
        Version::V1 => header.encode_v1(&mut bytes),
        Version::V2 => {
            let tlvs = received.into_iter().flat_map(ProxyHeader::tlvs).flatten();
            for tlv in tlvs {
                if !matches!(tlv, Tlv::Crc32c(_) | Tlv::Noop(_)) {
                    header.append_tlv(tlv);
                }
            }
            let has_sum = received.and_then(ProxyHeader::crc32c).is_some();
            if has_sum {
                header.append_tlv(Tlv::Crc32c(0));
            }
            let encoded = header.encode_v2(&mut bytes);
            if has_sum && let Some(at) = bytes.len().checked_sub(SUM) {
                let sum = crc32c(&bytes, at);
                bytes[at..].copy_from_slice(&sum.to_be_bytes());
            }
            encoded
        }
    };
    debug_assert!(
        encoded.is_ok(),
        "addresses of one family, and no more TLVs than were received"
    );
    bytes
}

/// A version of the PROXY protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Version {
    /// Text
    V1,
    /// Binary, with the client's extensions (TLVs)
    V2,
}
