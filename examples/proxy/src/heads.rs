//! The first bytes of a client: a header of the PROXY protocol (HAProxy, versions 1 and 2), and the server name of a
//! TLS ClientHello (RFC 8446 4.1.2, RFC 6066 3).
//!
//! Pure: [`parse`] is given the bytes that have arrived so far. Neither is needed to be in one segment.

use proxy_header::{ParseConfig, Protocol, ProxiedAddress, ProxyHeader, Tlv};
use std::net::SocketAddr;
use thiserror::Error;
use tls_parser::{SNIType, TlsExtension, TlsExtensionType, TlsMessage, TlsMessageHandshake};

/// The largest head in bytes: that of a ClientHello in one record, and a header before it.
pub(crate) const MOST: usize = 20 * 1024;
/// The largest header of the PROXY protocol.
const MOST_HEADER: usize = 4 * 1024;
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
    #[error("it does not begin with a TLS handshake")]
    NoTls,
    #[error("a TLS ClientHello that is malformed")]
    Hello,
    #[error("a head of more than {MOST} bytes (a PROXY header of more than {MOST_HEADER})")]
    Long,
    #[error("the first bytes did not arrive in time")]
    Late,
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
    const V1: &[u8] = b"PROXY ";
    const V2: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
    let begins = |with: &[u8]| {
        let len = bytes.len().min(with.len());
        bytes[..len] == with[..len]
    };
    if !begins(V1) && !begins(V2) {
        return Err(Fault::NoHeader);
    }
    match ProxyHeader::parse(bytes, ParseConfig::default()) {
        Ok((_, len)) if len > MOST_HEADER => Err(Fault::Long),
        Ok((header, _)) if !is_usable(&header) => Err(Fault::Header),
        Ok((header, len)) => Ok(Some((header.into_owned(), len))),
        Err(proxy_header::Error::BufferTooShort) if bytes.len() < MOST_HEADER => Ok(None),
        Err(proxy_header::Error::BufferTooShort) => Err(Fault::Long),
        Err(_) => Err(Fault::Header),
    }
}

fn is_usable(header: &ProxyHeader<'_>) -> bool {
    let is_stream = |address: &ProxiedAddress| address.protocol == Protocol::Stream;
    header.proxied_address().is_none_or(is_stream) && header.tlvs().all(|tlv| tlv.is_ok())
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
/// extensions (TLVs) but for those that concern the received header alone.
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
            header.encode_v2(&mut bytes)
        }
    };
    debug_assert!(
        encoded.is_ok(),
        "addresses of one family, and no more TLVs than were received"
    );
    bytes
}

/// A version of the PROXY protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Version {
    /// Text
    V1,
    /// Binary, with the client's extensions (TLVs)
    V2,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PROXY: Expected = Expected {
        proxy: true,
        tls: false,
    };
    const TLS: Expected = Expected {
        proxy: false,
        tls: true,
    };
    const BOTH: Expected = Expected {
        proxy: true,
        tls: true,
    };

    fn addresses() -> (SocketAddr, SocketAddr) {
        let parse = |address: &str| address.parse().unwrap();
        (parse("10.1.0.9:1234"), parse("10.1.0.1:443"))
    }

    fn with_tlvs() -> ProxyHeader<'static> {
        let (client, service) = addresses();
        let mut header = ProxyHeader::with_address(ProxiedAddress::stream(client, service));
        header.append_tlv(Tlv::Authority("example.org".into()));
        header.append_tlv(Tlv::Crc32c(1));
        header.append_tlv(Tlv::Custom(0xe1, vec![1, 2, 3].into()));
        header
    }

    /// A handshake message in records of this size.
    fn records(message: &[u8], size: usize) -> Vec<u8> {
        let record = |part: &[u8]| {
            let len = u16::try_from(part.len()).unwrap().to_be_bytes();
            [&[TLS_HANDSHAKE, 3, 1, len[0], len[1]], part].concat()
        };
        message.chunks(size).flat_map(record).collect()
    }

    fn block(kind: u16, bytes: &[u8]) -> Vec<u8> {
        let len = u16::try_from(bytes.len()).unwrap();
        [&kind.to_be_bytes()[..], &len.to_be_bytes(), bytes].concat()
    }

    fn hello(name: Option<&str>, padding: usize) -> Vec<u8> {
        with_extensions(block(21, &vec![0; padding]), name)
    }

    fn with_extensions(mut extensions: Vec<u8>, name: Option<&str>) -> Vec<u8> {
        if let Some(name) = name {
            let len = u16::try_from(name.len()).unwrap();
            let entry = [&[0][..], &len.to_be_bytes(), name.as_bytes()].concat();
            let list = u16::try_from(entry.len()).unwrap();
            extensions.extend(block(0, &[&list.to_be_bytes()[..], &entry].concat()));
        }
        let len = u16::try_from(extensions.len()).unwrap();
        let mut body = [&[3, 3][..], &[7; 32], &[0, 0, 2, 0x13, 0x01, 1, 0]].concat();
        body.extend(len.to_be_bytes());
        body.extend(extensions);
        let len = u32::try_from(body.len()).unwrap().to_be_bytes();
        [&[CLIENT_HELLO, len[1], len[2], len[3]], &body[..]].concat()
    }

    /// The result for the whole, after checking that no shorter part is complete.
    fn whole(bytes: &[u8], expected: Expected) -> Head {
        for len in 0..bytes.len() {
            assert_eq!(
                parse(&bytes[..len], expected),
                Ok(None),
                "{len} of {}",
                bytes.len()
            );
        }
        parse(bytes, expected).unwrap().unwrap()
    }

    #[test]
    fn headers_of_both_versions_in_any_number_of_parts() {
        let header = with_tlvs();
        let mut v2 = Vec::new();
        header.encode_v2(&mut v2).unwrap();
        let head = whole(&v2, PROXY);
        assert_eq!((head.header_len, head.header), (v2.len(), Some(header)));
        let v1 = b"PROXY TCP6 fd00::9 fd00::1 1234 443\r\n";
        let head = whole(v1, PROXY);
        let header = head.header.unwrap();
        assert_eq!(head.header_len, v1.len());
        assert_eq!(
            header.proxied_address().unwrap().source,
            "[fd00::9]:1234".parse().unwrap()
        );
    }

    #[test]
    fn the_backend_gets_the_extensions_that_still_hold() {
        let received = with_tlvs();
        let bytes = for_backend(Version::V2, addresses(), Some(&received));
        let (sent, _) = ProxyHeader::parse(&bytes, ParseConfig::default()).unwrap();
        assert_eq!(sent.proxied_address(), received.proxied_address());
        let tlvs: Vec<_> = sent.tlvs().map(Result::unwrap).collect();
        assert_eq!(
            tlvs,
            [
                Tlv::Authority("example.org".into()),
                Tlv::Custom(0xe1, vec![1, 2, 3].into())
            ]
        );
        let text = for_backend(Version::V1, addresses(), Some(&received));
        assert_eq!(text, b"PROXY TCP4 10.1.0.9 10.1.0.1 1234 443\r\n");
        // A check of the load balancer before: its own address.
        let local = for_backend(Version::V1, addresses(), Some(&ProxyHeader::with_local()));
        assert_eq!(local, text);
    }

    #[test]
    fn the_server_name_of_a_hello_in_any_number_of_records() {
        for size in [1 << 14, 100, 7] {
            let bytes = records(&hello(Some("Example.ORG"), 30), size);
            let head = whole(&bytes, TLS);
            assert_eq!(head.server_name.as_deref(), Some("example.org"), "{size}");
        }
        assert_eq!(
            whole(&records(&hello(None, 0), 1 << 14), TLS),
            Head::default()
        );
        let v1 = b"PROXY TCP4 10.1.0.9 10.1.0.1 1234 443\r\n";
        let bytes = [&v1[..], &records(&hello(Some("a.b"), 5), 1 << 14)].concat();
        let head = whole(&bytes, BOTH);
        assert_eq!(
            (head.header_len, head.server_name.unwrap()),
            (v1.len(), "a.b".into())
        );
    }

    #[test]
    fn wrong_heads_say_why() {
        let long = [b"PROXY TCP4 ".to_vec(), vec![b'1'; MOST_HEADER]].concat();
        let datagram =
            b"\r\n\r\n\0\r\nQUIT\n\x21\x12\0\x0c\x0a\x01\0\x09\x0a\x01\0\x01\0\x01\0\x02";
        let proxy: [(&[u8], Fault); 5] = [
            (b"GET / HTTP/1.1", Fault::NoHeader),
            (b"PROXY TCP4 10.1.0.9 nowhere 1 2\r\n", Fault::Header),
            (b"\r\n\r\n\0\r\nQUIT\n\x31\x11\0\0", Fault::Header),
            (datagram, Fault::Header),
            (&long, Fault::Header),
        ];
        for (bytes, fault) in proxy {
            assert_eq!(parse(bytes, PROXY), Err(fault), "{bytes:?}");
        }
        let huge = records(&hello(Some("a.b"), MOST), 1 << 14);
        let tls: [(&[u8], Fault); 5] = [
            (b"GET / HTTP/1.1", Fault::NoTls),
            (b"\x16\x03\x01\x00\x00", Fault::Hello),
            (b"\x16\x03\x01\xff\xff", Fault::Hello),
            (b"\x16\x03\x01\x00\x04\x02", Fault::Hello),
            (&huge, Fault::Long),
        ];
        for (bytes, fault) in tls {
            assert_eq!(parse(bytes, TLS), Err(fault), "{:?}", &bytes[..6]);
        }
    }

    /// Contents of a pre-shared key and of a supported group, as the parser does not expect them; a GREASE value.
    #[test]
    fn other_extensions_do_not_hide_the_server_name() {
        for kind in [10_u16, 13, 16, 41, 51, 0x0a0a, 0xfe0d, 0xffce] {
            for content in [&[][..], &[0], &[0, 9, 1], &[255; 7]] {
                let extension = block(kind, content);
                let bytes = records(&with_extensions(extension, Some("a.b")), 1 << 14);
                let head = parse(&bytes, TLS).unwrap().unwrap();
                assert_eq!(
                    head.server_name.as_deref(),
                    Some("a.b"),
                    "{kind} {content:?}"
                );
            }
        }
        for (extension, name) in [
            (vec![0, 21, 0], None),
            (block(0, &[]), None),
            (block(0, &[0, 9, 0, 0, 1]), None),
        ] {
            let bytes = records(&with_extensions(extension, name), 1 << 14);
            assert_eq!(parse(&bytes, TLS), Err(Fault::Hello));
        }
    }

    proptest! {
        /// Whatever is taken from a client can be told to a backend, and says the same.
        #[test]
        fn a_header_that_was_taken_can_be_sent(
            command in prop::sample::select(vec![0x20_u8, 0x21]),
            family in prop::sample::select(vec![0_u8, 0x11, 0x21, 0x31]),
            addresses in prop::collection::vec(any::<u8>(), 216),
            tlvs in prop::collection::vec((any::<u8>(), prop::collection::vec(any::<u8>(), 0..40)), 0..6),
        ) {
            let addresses = match family {
                0x11 => &addresses[..12],
                0x21 => &addresses[..36],
                0x31 => &addresses[..],
                _ => &[],
            };
            let tlv = |(kind, value): (u8, Vec<u8>)| {
                let kind = if kind % 2 == 0 { kind / 2 % 0x30 } else { kind };
                let len = u16::try_from(value.len()).unwrap().to_be_bytes();
                [&[kind], &len[..], &value].concat()
            };
            let tlvs: Vec<u8> = tlvs.into_iter().flat_map(tlv).collect();
            let len = u16::try_from(addresses.len() + tlvs.len()).unwrap().to_be_bytes();
            let bytes = [b"\r\n\r\n\0\r\nQUIT\n", &[command, family][..], &len, addresses, &tlvs].concat();
            if let Ok(Some(head)) = parse(&bytes, PROXY) {
                prop_assert_eq!(head.header_len, bytes.len());
                let own = self::addresses();
                let received = head.header.as_ref().unwrap();
                let told = received.proxied_address().cloned();
                let told = told.unwrap_or_else(|| ProxiedAddress::stream(own.0, own.1));
                for version in [Version::V1, Version::V2] {
                    let sent = for_backend(version, own, Some(received));
                    let (sent, len) = ProxyHeader::parse(&sent, ParseConfig::default())
                        .map(|(header, len)| (header.into_owned(), len == sent.len()))
                        .unwrap();
                    prop_assert!(len);
                    prop_assert_eq!(sent.proxied_address(), Some(&told));
                    let still = |tlv: &Tlv<'_>| !matches!(tlv, Tlv::Crc32c(_) | Tlv::Noop(_));
                    let wanted = received.tlvs().map(Result::unwrap).filter(still);
                    if version == Version::V2 {
                        prop_assert!(sent.tlvs().map(Result::unwrap).eq(wanted));
                    }
                }
            }
        }

        #[test]
        fn no_bytes_panic(bytes: Vec<u8>, cut in 0usize..200, at in 0usize..200, with: u8) {
            for expected in [PROXY, TLS, BOTH] {
                let _any = parse(&bytes, expected);
            }
            let mut v2 = Vec::new();
            with_tlvs().encode_v2(&mut v2).unwrap();
            v2.extend(records(&hello(Some("example.org"), 20), 60));
            if let Some(byte) = v2.get_mut(at) {
                *byte = with;
            }
            v2.truncate(v2.len() - cut.min(v2.len()));
            let _any = parse(&v2, BOTH);
        }
    }
}
