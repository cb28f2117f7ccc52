//! Frames of Ethernet: checksums, and what a gateway sends.

/// The checksum of IP over these bytes; all but the last piece have an even length.
pub fn sum(bytes: &[&[u8]]) -> u16 {
    let words = bytes.iter().flat_map(|bytes| bytes.chunks(2));
    let word = |word: &[u8]| u32::from(word[0]) << 8 | u32::from(*word.get(1).unwrap_or(&0));
    let mut sum: u32 = words.map(word).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap()
}

/// A frame of the gateway, an answer or a packet of its stack, is well formed.
pub fn check_sent(bytes: &[u8], gateway: [u8; 6]) {
    assert!(bytes.len() >= 14 && bytes[6..12] == gateway);
    let packet = &bytes[14..];
    match u16::from_be_bytes([bytes[12], bytes[13]]) {
        0x0806 => assert_eq!(packet.len(), 28),
        0x0800 => {
            assert_eq!(packet[0], 0x45);
            assert_eq!(
                usize::from(u16::from_be_bytes([packet[2], packet[3]])),
                packet.len()
            );
            assert_eq!(sum(&[&packet[..20]]), 0);
        }
        0x86dd => {
            assert_eq!(packet[0] >> 4, 6);
            assert_eq!(
                usize::from(u16::from_be_bytes([packet[4], packet[5]])) + 40,
                packet.len()
            );
        }
        kind => panic!("a frame of kind {kind:#06x}"),
    }
}
