//! The checksum of IP and its transports, of bytes in pieces.
//!
//! RFC 1071. Pure. Each piece is summed by smoltcp, whose loop compiles to vector instructions.

use smoltcp::wire::checksum::data;

/// Bytes of one sum: smoltcp adds words of 16 bits in a number of 32.
const PIECE: usize = 1 << 16;

/// The sum of some bytes.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Checksum {
    sum: u64,
    /// The number of bytes is odd: the next one is the second of a word.
    odd: bool,
}

impl Checksum {
    pub(crate) fn new() -> Checksum {
        Checksum::default()
    }

    /// Continues with these bytes.
    pub(crate) fn add_bytes(&mut self, bytes: &[u8]) {
        for piece in bytes.chunks(PIECE) {
            let sum = match self.odd {
                true => data(piece).swap_bytes(),
                false => data(piece),
            };
            self.sum += u64::from(sum);
            self.odd ^= piece.len() % 2 == 1;
        }
    }

    /// The checksum, in the order of the wire: 0 if the bytes contain their own checksum.
    pub(crate) fn checksum(&self) -> [u8; 2] {
        let mut sum = self.sum;
        while sum >> 16 != 0 {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        let sum = u16::try_from(sum).expect("invariant: the carries are added");
        (!sum).to_be_bytes()
    }
}

/// The checksum of bytes.
pub(crate) fn checksum(bytes: &[u8]) -> [u8; 2] {
    let mut sum = Checksum::new();
    sum.add_bytes(bytes);
    sum.checksum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn pieces_of_any_length_have_the_sum_of_the_whole(
            bytes in proptest::collection::vec(any::<u8>(), 0..300),
            mut cuts in proptest::collection::vec(0..300usize, 0..5),
        ) {
            cuts.sort_unstable();
            let mut sum = Checksum::new();
            let mut before = 0;
            for cut in cuts.into_iter().chain([bytes.len()]).map(|cut| cut.min(bytes.len())) {
                sum.add_bytes(&bytes[before..cut]);
                before = cut;
            }
            prop_assert_eq!(sum.checksum(), internet_checksum::checksum(&bytes));
        }
    }

    #[test]
    fn carries_of_the_longest_packets_are_not_lost() {
        for len in [65_535, 65_536, 65_537, 200_001, 600_000] {
            let bytes = vec![0xff; len];
            assert_eq!(
                checksum(&bytes),
                internet_checksum::checksum(&bytes),
                "{len} bytes"
            );
        }
    }
}
