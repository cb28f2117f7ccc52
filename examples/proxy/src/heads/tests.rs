//! Heads in any number of parts, and wrong ones.

use super::*;
use proptest::prelude::*;

const HEADER: Expected = Expected {
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
    header.append_tlv(Tlv::Noop(2));
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
    let head = whole(&v2, HEADER);
    assert_eq!((head.header_len, head.header), (v2.len(), Some(header)));
    let v1 = b"PROXY TCP6 fd00::9 fd00::1 1234 443\r\n";
    let head = whole(v1, HEADER);
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

/// A header of version 2 with this command, family, addresses and these extensions.
fn v2(command: u8, family: u8, addresses: &[u8], tlvs: &[(u8, &[u8])]) -> Vec<u8> {
    let tlv = |(kind, value): &(u8, &[u8])| {
        let len = u16::try_from(value.len()).unwrap().to_be_bytes();
        [&[*kind], &len[..], value].concat()
    };
    let tlvs: Vec<u8> = tlvs.iter().flat_map(tlv).collect();
    let len = u16::try_from(addresses.len() + tlvs.len()).unwrap();
    [V2, &[command, family], &len.to_be_bytes(), addresses, &tlvs].concat()
}

/// The same with the right checksum in place of its last four bytes, computed bit by bit (RFC 3720 B.4).
fn with_sum(mut bytes: Vec<u8>) -> Vec<u8> {
    let at = bytes.len() - SUM;
    bytes[at..].fill(0);
    let bit = |crc: u32, _| (crc >> 1) ^ (0x82f6_3b78 * (crc & 1));
    let byte = |crc: u32, byte: &u8| (0..8).fold(crc ^ u32::from(*byte), bit);
    let sum = !bytes.iter().fold(u32::MAX, byte);
    bytes[at..].copy_from_slice(&sum.to_be_bytes());
    bytes
}

const ADDRESSES: [u8; 12] = [10, 1, 0, 9, 10, 1, 0, 1, 4, 210, 1, 187];

#[test]
fn a_checksum_is_verified_and_computed_anew() {
    let sum: (u8, &[u8]) = (CRC32C, &[0; SUM]);
    let name: (u8, &[u8]) = (2, b"example.org");
    let unix = [7; 216];
    let families = [(0_u8, &[][..]), (0x11, &ADDRESSES), (0x31, &unix)];
    for command in [LOCAL, PROXY] {
        for (family, addresses) in families {
            let right = with_sum(v2(command, family, addresses, &[name, (4, &[1; 3]), sum]));
            let head = whole(&right, HEADER);
            let received = head.header.unwrap();
            let own = self::addresses();
            let sent = for_backend(Version::V2, own, Some(&received));
            assert_eq!(sent, with_sum(sent.clone()));
            let again = parse(&sent, HEADER).unwrap().unwrap().header.unwrap();
            assert_eq!(again.authority(), Some("example.org"));
            assert!(again.crc32c().is_some());
            for at in 14..right.len() {
                let mut wrong = right.clone();
                wrong[at] ^= 1;
                let result = parse(&wrong, HEADER);
                let is_told = matches!(result, Err(_) | Ok(None));
                // The type of the extension, or the length of one before it: there is no checksum then.
                let sum_is_gone = || {
                    let mut fields = result.clone().unwrap().unwrap().header.unwrap();
                    fields = fields.into_owned();
                    fields.crc32c().is_none()
                };
                assert!(is_told || sum_is_gone(), "{at} of {}", right.len());
            }
            let mut wrong = right.clone();
            *wrong.last_mut().unwrap() ^= 0x80;
            assert_eq!(parse(&wrong, HEADER), Err(Fault::Checksum));
        }
    }
    for tlvs in [[sum, sum], [(CRC32C, &[0; 3][..]), name]] {
        let bytes = v2(PROXY, 0x11, &ADDRESSES, &tlvs);
        assert_eq!(parse(&bytes, HEADER), Err(Fault::Header));
    }
}

/// The connection is one of the sender's own: what else the header has is ignored.
#[test]
fn a_local_header_tells_nothing() {
    for (family, addresses) in [(0x41, &[1; 7][..]), (0x11, &[1; 3]), (0x32, &[1; 216])] {
        let bytes = v2(LOCAL, family, addresses, &[]);
        let head = whole(&bytes, HEADER);
        assert_eq!(head.header, Some(ProxyHeader::with_local()));
        assert_eq!(
            parse(&v2(PROXY, family, addresses, &[]), HEADER),
            Err(Fault::Header)
        );
    }
}

#[test]
fn the_length_of_a_header_is_bounded_at_once() {
    let line = |fill: usize| [b"PROXY UNKNOWN ", &vec![b'x'; fill][..], b"\r\n"].concat();
    assert_eq!(whole(&line(91), HEADER).header_len, MOST_LINE);
    let longer = line(92);
    for len in MOST_LINE..=longer.len() {
        assert_eq!(parse(&longer[..len], HEADER), Err(Fault::Header));
    }
    let most = MOST_HEADER - FIXED - ADDRESSES.len() - 3;
    let bytes = v2(PROXY, 0x11, &ADDRESSES, &[(0xe0, &vec![0; most])]);
    assert_eq!(
        parse(&bytes, HEADER).unwrap().unwrap().header_len,
        MOST_HEADER
    );
    let bytes = v2(PROXY, 0x11, &ADDRESSES, &[(0xe0, &vec![0; most + 1])]);
    for len in [FIXED, MOST_HEADER, bytes.len()] {
        assert_eq!(parse(&bytes[..len], HEADER), Err(Fault::Long));
    }
    assert_eq!(
        parse(&[V2, &[PROXY, 0x11, 255, 255]].concat(), HEADER),
        Err(Fault::Long)
    );
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
    let datagram = b"\r\n\r\n\0\r\nQUIT\n\x21\x12\0\x0c\x0a\x01\0\x09\x0a\x01\0\x01\0\x01\0\x02";
    let proxy: [(&[u8], Fault); 5] = [
        (b"GET / HTTP/1.1", Fault::NoHeader),
        (b"PROXY TCP4 10.1.0.9 nowhere 1 2\r\n", Fault::Header),
        (b"\r\n\r\n\0\r\nQUIT\n\x31\x11\0\0", Fault::Header),
        (datagram, Fault::Header),
        (&long, Fault::Header),
    ];
    for (bytes, fault) in proxy {
        assert_eq!(parse(bytes, HEADER), Err(fault), "{bytes:?}");
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
        if let Ok(Some(head)) = parse(&bytes, HEADER) {
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
        for expected in [HEADER, TLS, BOTH] {
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

    /// The first result that is one does not change by further bytes, so it is the same for every segmentation; and there is
    /// one before more bytes are needed than the buffer has.
    #[test]
    fn the_result_does_not_depend_on_the_segments(
        (mut bytes, cuts) in any_head(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..3),
        expected in prop::sample::select(vec![HEADER, TLS, BOTH]),
    ) {
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        bytes.truncate(MOST);
        let last = parse(&bytes, expected);
        if bytes.len() == MOST {
            prop_assert_ne!(&last, &Ok(None));
        }
        let mut cuts: Vec<_> = cuts.iter().map(|cut| cut.index(bytes.len())).collect();
        if bytes.len() < 400 {
            cuts.extend(0..bytes.len());
        }
        for cut in cuts {
            let result = parse(&bytes[..cut], expected);
            prop_assert!(result == Ok(None) || result == last, "{} of {}", cut, bytes.len());
            if let Ok(Some(head)) = result {
                prop_assert!(head.header_len <= cut.min(MOST_HEADER));
            }
        }
    }
}

/// Bytes that are a head for the most part, and where to cut them.
fn any_head() -> impl Strategy<Value = (Vec<u8>, Vec<prop::sample::Index>)> {
    let tlv = (any::<u8>(), prop::collection::vec(any::<u8>(), 0..20));
    let line = prop::sample::select(vec![
        "PROXY TCP4 10.1.0.9 10.1.0.1 1234 443\r\n",
        "PROXY TCP6 fd00::9 fd00::1 1234 443\r\n",
        "PROXY UNKNOWN\r\n",
        "PROXY UNKNOWN ffff:f...f:ffff ffff:f...f:ffff 65535 65535\r\n",
        "PROXY TCP4 10.1.0.9 10.1.0.1 1234 443\n",
        "PROXY \r\n",
    ]);
    let line = line.prop_map(|line| line.as_bytes().to_vec());
    let binary = (
        prop::sample::select(vec![LOCAL, PROXY]),
        prop::sample::select(vec![0_u8, 0x11, 0x12, 0x21, 0x31, 0x32, 0x41]),
        prop::collection::vec(tlv, 0..4),
        any::<bool>(),
    );
    let binary = binary.prop_map(|(command, family, tlvs, has_sum)| {
        let addresses = vec![9; [0, 12, 36, 216, 0][usize::from(family >> 4)]];
        let mut tlvs: Vec<_> = tlvs
            .iter()
            .map(|(kind, value)| (*kind, &value[..]))
            .collect();
        if !has_sum {
            return v2(command, family, &addresses, &tlvs);
        }
        tlvs.push((CRC32C, &[0; SUM]));
        with_sum(v2(command, family, &addresses, &tlvs))
    });
    let header = prop_oneof![2 => line, 3 => binary, 1 => Just(Vec::new())];
    let padding = prop_oneof![3 => 0_usize..60, 1 => 0..MOST];
    let client_hello = (prop::option::of("[a-z.]{1,20}"), padding, 1_usize..400);
    let client_hello = client_hello.prop_map(|(name, padding, size)| {
        records(&hello(name.as_deref(), padding), size.max(padding / 8))
    });
    let rest = prop_oneof![3 => client_hello, 1 => prop::collection::vec(any::<u8>(), 0..60)];
    let cuts = prop::collection::vec(any::<prop::sample::Index>(), 0..20);
    (header, rest, cuts).prop_map(|(header, rest, cuts)| {
        let mut bytes = [header, rest].concat();
        bytes.push(0);
        (bytes, cuts)
    })
}
