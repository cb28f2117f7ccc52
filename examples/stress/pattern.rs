//! Position-dependent bytes: each one is a function of its stream and its offset.

use crate::random::mix;

/// Length of the run of bytes that one word decides.
const WORD: u64 = 8;

fn byte(stream: u64, offset: u64) -> u8 {
    let word = mix(stream ^ (offset / WORD).wrapping_mul(0x9e37_79b9_7f4a_7c15)).to_le_bytes();
    word[usize::try_from(offset % WORD).unwrap_or(0)]
}

/// The bytes of a stream from an offset on.
pub(crate) fn fill(stream: u64, offset: u64, out: &mut [u8]) {
    for (at, place) in (offset..).zip(out) {
        *place = byte(stream, at);
    }
}

/// The first offset at which these are not the bytes of the stream.
pub(crate) fn differs(stream: u64, offset: u64, bytes: &[u8]) -> Option<u64> {
    let mut places = (offset..).zip(bytes);
    places.find_map(|(at, found)| (*found != byte(stream, at)).then_some(at))
}
