//! Sequence numbers on the wire and absolute positions inside.
//!
//! Byte *k* of a direction has position *k*, its FIN the position after the last byte, its SYN the
//! position -1. Positions have 64 bits and only grow. A sequence number is a position modulo 2^32
//! counted from the initial one (RFC 9293 3.4). Wrapping arithmetic is confined to this file. Pure.

/// The sequence numbers of one direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Space {
    /// ISS or IRS: the number of the SYN.
    initial: u32,
}

impl Space {
    pub(crate) fn new(initial: u32) -> Space {
        Space { initial }
    }

    /// ISS or IRS.
    pub(crate) fn initial(self) -> u32 {
        self.initial
    }

    /// The sequence number of a position.
    #[expect(
        clippy::cast_possible_truncation,
        reason = "sequence numbers are positions modulo 2^32"
    )]
    pub(crate) fn seq(self, position: u64) -> u32 {
        self.initial.wrapping_add(1).wrapping_add(position as u32)
    }

    /// The position with this sequence number that is nearest to `near`; negative before the first byte.
    pub(crate) fn position(self, seq: u32, near: u64) -> i64 {
        let distance = seq.wrapping_sub(self.seq(near)).cast_signed();
        signed(near) + i64::from(distance)
    }
}

/// A position as a signed number, for differences.
pub(crate) fn signed(position: u64) -> i64 {
    i64::try_from(position).expect("invariant: no connection carries 2^63 bytes")
}

/// Whether a timestamp is older than another (RFC 7323 5.2: modulo 2^32).
pub(crate) fn older(this: u32, than: u32) -> bool {
    this.wrapping_sub(than).cast_signed() < 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Positions within 2 GiB survive the round trip, at any wrap.
        #[test]
        fn a_number_is_the_nearest_position(
            initial: u32,
            near in 0u64..1 << 40,
            distance in -0x7fff_ffffi64..0x7fff_ffff,
        ) {
            let space = Space::new(initial);
            let position = signed(near) + distance;
            if let Ok(position) = u64::try_from(position) {
                prop_assert_eq!(space.position(space.seq(position), near), signed(position));
            }
        }
    }

    #[test]
    fn a_syn_is_one_before_the_first_byte() {
        let space = Space::new(u32::MAX);
        assert_eq!(space.seq(0), 0);
        assert_eq!(space.position(u32::MAX, 0), -1);
        assert!(older(u32::MAX, 0) && !older(0, u32::MAX) && !older(5, 5));
    }
}
