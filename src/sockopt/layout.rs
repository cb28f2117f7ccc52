//! The bytes of the option: lengths, forms, and the C layout of the fields. Pure.

use super::SockoptError;
use crate::error::Flavor;
use std::ops::Range;
use std::time::Duration;

/// The system and machine that a program was compiled for, which determine the layout of its calls,
/// their semantics, and its error numbers. The byte order is this machine's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[expect(clippy::exhaustive_structs, reason = "the facts that decide a layout")]
pub struct Abi {
    /// The system.
    pub flavor: Flavor,
    /// The sizes of C's types.
    pub layout: Layout,
}

/// The sizes of C's types.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[expect(clippy::exhaustive_enums, reason = "the layouts that exist")]
pub enum Layout {
    /// `long` has 64 bits (amd64, arm64).
    Lp64,
    /// `int` and `long` have 32 bits, and 64-bit fields are aligned to 32 (i386).
    Ilp32,
}

/// The offsets of the fields. The descriptor is an `int` at 0.
struct Fields {
    size: usize,
    max: Range<usize>,
    seconds: Range<usize>,
    microseconds: Range<usize>,
}

impl Abi {
    /// Length of `struct splice` in bytes.
    ///
    /// ```
    /// use sosplice::{error::Flavor, sockopt::{Abi, Layout}};
    /// let abi = Abi { flavor: Flavor::FreeBsd, layout: Layout::Lp64 };
    /// assert_eq!(abi.size(), 32);
    /// ```
    pub const fn size(self) -> usize {
        self.fields().size
    }

    const fn fields(self) -> Fields {
        let (size, max, seconds, microseconds) = match (self.flavor, self.layout) {
            (_, Layout::Lp64) => (32, 8..16, 16..24, 24..32),
            (Flavor::FreeBsd, Layout::Ilp32) => (20, 4..12, 12..16, 16..20),
            // `time_t` has 64 bits there, `suseconds_t` is a long.
            (Flavor::OpenBsd, Layout::Ilp32) => (24, 4..12, 12..20, 20..24),
        };
        Fields {
            size,
            max,
            seconds,
            microseconds,
        }
    }

    /// Parses the value of a call.
    pub(super) fn read(self, value: Option<&[u8]>) -> Result<Request, SockoptError> {
        let bytes = value.unwrap_or_default();
        let fields = self.fields();
        let needed = match self.flavor {
            Flavor::FreeBsd => fields.size,
            Flavor::OpenBsd => INT,
        };
        if self.flavor == Flavor::OpenBsd && bytes.is_empty() {
            return Ok(Request::of(UNSPLICE));
        }
        if bytes.len() < needed {
            let length = bytes.len();
            return Err(SockoptError::ShortOption { length, needed });
        }
        let fd = int(&bytes[..INT]);
        if bytes.len() < fields.size {
            return Ok(Request::of(fd));
        }
        Ok(Request {
            max: signed(&bytes[fields.max]),
            seconds: signed(&bytes[fields.seconds]),
            microseconds: signed(&bytes[fields.microseconds]),
            ..Request::of(fd)
        })
    }
}

const INT: usize = size_of::<i32>();

/// Any negative descriptor means unsplice.
const UNSPLICE: i32 = -1;

/// `struct splice`, of any layout.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Request {
    pub(super) fd: i32,
    max: i64,
    seconds: i64,
    microseconds: i64,
}

impl Request {
    fn of(fd: i32) -> Request {
        Request {
            fd,
            max: 0,
            seconds: 0,
            microseconds: 0,
        }
    }

    pub(super) fn is_unsplice(&self) -> bool {
        self.fd < 0
    }

    /// 0 is none.
    pub(super) fn limit(&self) -> Result<Option<u64>, SockoptError> {
        let max = u64::try_from(self.max).map_err(|_| SockoptError::NegativeLimit(self.max))?;
        Ok((max > 0).then_some(max))
    }

    /// 0.0 is none.
    pub(super) fn timeout(&self) -> Result<Option<Duration>, SockoptError> {
        let wrong = SockoptError::BadTimeout {
            seconds: self.seconds,
            microseconds: self.microseconds,
        };
        let seconds = u64::try_from(self.seconds).map_err(|_| wrong)?;
        let microseconds = u32::try_from(self.microseconds).map_err(|_| wrong)?;
        if microseconds > 999_999 {
            return Err(wrong);
        }
        let timeout = Duration::new(seconds, microseconds * 1000);
        Ok((!timeout.is_zero()).then_some(timeout))
    }
}

fn int(bytes: &[u8]) -> i32 {
    let bytes = bytes.try_into();
    i32::from_ne_bytes(bytes.expect("invariant: an int has 4 bytes"))
}

/// A signed field of 4 or 8 bytes.
fn signed(bytes: &[u8]) -> i64 {
    match bytes.try_into() {
        Ok(bytes) => i64::from_ne_bytes(bytes),
        Err(_) => int(bytes).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Flavor::{FreeBsd, OpenBsd};
    use Layout::{Ilp32, Lp64};
    use proptest::prelude::*;

    const fn abi(flavor: Flavor, layout: Layout) -> Abi {
        Abi { flavor, layout }
    }

    /// fd 7, max 0x1122334455667788, idle 5 s 250001 us, in the layout of compilers for little-endian
    /// machines; `..` is padding with any value.
    const BYTES: [(Abi, &str); 4] = [
        (
            abi(FreeBsd, Lp64),
            "07000000 ........ 8877665544332211 0500000000000000 91d0030000000000",
        ),
        (
            abi(FreeBsd, Ilp32),
            "07000000 8877665544332211 05000000 91d00300",
        ),
        (
            abi(OpenBsd, Lp64),
            "07000000 ........ 8877665544332211 0500000000000000 91d0030000000000",
        ),
        (
            abi(OpenBsd, Ilp32),
            "07000000 8877665544332211 0500000000000000 91d00300",
        ),
    ];

    fn from_hex(text: &str) -> Vec<u8> {
        let digits: Vec<_> = text.chars().filter(|digit| *digit != ' ').collect();
        let bytes = digits.chunks(2).map(|pair| {
            let byte: String = pair.iter().collect();
            u8::from_str_radix(&byte, 16).unwrap_or(0xaa)
        });
        bytes.collect()
    }

    #[test]
    #[cfg(target_endian = "little")]
    fn a_compilers_bytes_are_read() {
        for (abi, text) in BYTES {
            let mut bytes = from_hex(text);
            assert_eq!(bytes.len(), abi.size(), "{abi:?}");
            let expected = Request {
                fd: 7,
                max: 0x1122_3344_5566_7788,
                seconds: 5,
                microseconds: 250_001,
            };
            assert_eq!(abi.read(Some(&bytes)), Ok(expected), "{abi:?}");
            bytes.extend([0xff; 9]);
            assert_eq!(abi.read(Some(&bytes)), Ok(expected), "{abi:?}: a tail");
        }
    }

    #[test]
    fn forms_go_by_the_length() {
        for layout in [Lp64, Ilp32] {
            let (freebsd, openbsd) = (abi(FreeBsd, layout), abi(OpenBsd, layout));
            let bytes = [1; 32];
            let short = |length, needed| Err(SockoptError::ShortOption { length, needed });
            assert_eq!(freebsd.read(None), short(0, freebsd.size()));
            for length in 0..freebsd.size() {
                let read = freebsd.read(Some(&bytes[..length]));
                assert_eq!(read, short(length, freebsd.size()));
            }
            assert!(freebsd.read(Some(&bytes[..freebsd.size()])).is_ok());

            let unsplice = Ok(Request::of(UNSPLICE));
            assert_eq!([openbsd.read(None), openbsd.read(Some(&[]))], [unsplice; 2]);
            for length in 1..INT {
                assert_eq!(openbsd.read(Some(&bytes[..length])), short(length, INT));
            }
            for length in INT..openbsd.size() {
                let read = openbsd.read(Some(&bytes[..length]));
                assert_eq!(read, Ok(Request::of(0x0101_0101)));
            }
            let read = openbsd.read(Some(&bytes[..openbsd.size()])).unwrap();
            assert_ne!(read.max, 0);
        }
    }

    #[test]
    fn values_out_of_range() {
        let request = |max, seconds, microseconds| Request {
            fd: 0,
            max,
            seconds,
            microseconds,
        };
        assert_eq!(request(0, 0, 0).limit(), Ok(None));
        assert_eq!(request(i64::MAX, 0, 0).limit(), Ok(Some(u64::MAX / 2)));
        let negative = request(-3, 0, 0).limit();
        assert_eq!(negative, Err(SockoptError::NegativeLimit(-3)));
        assert_eq!(request(0, 0, 0).timeout(), Ok(None));
        let micro = Duration::from_micros(1);
        assert_eq!(request(0, 0, 1).timeout(), Ok(Some(micro)));
        assert!(request(0, i64::MAX, 999_999).timeout().is_ok());
        for (seconds, microseconds) in [
            (-1, 0),
            (-1, -1),
            (0, -1),
            (0, 1_000_000),
            (i64::MIN, 0),
            (0, i64::MAX),
            (0, 1 << 32),
        ] {
            let wrong = SockoptError::BadTimeout {
                seconds,
                microseconds,
            };
            assert_eq!(request(0, seconds, microseconds).timeout(), Err(wrong));
        }
    }

    /// The reverse, without the table of fields.
    fn written(abi: Abi, request: Request) -> Vec<u8> {
        let Request {
            fd,
            max,
            seconds,
            microseconds,
        } = request;
        let narrow = |value: i64| i32::try_from(value).unwrap().to_ne_bytes();
        let mut bytes = fd.to_ne_bytes().to_vec();
        if abi.layout == Lp64 {
            bytes.extend([0xaa; 4]);
        }
        bytes.extend(max.to_ne_bytes());
        match (abi.flavor, abi.layout) {
            (FreeBsd, Ilp32) => bytes.extend(narrow(seconds)),
            _ => bytes.extend(seconds.to_ne_bytes()),
        }
        match abi.layout {
            Ilp32 => bytes.extend(narrow(microseconds)),
            Lp64 => bytes.extend(microseconds.to_ne_bytes()),
        }
        bytes
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn values_survive_the_round_trip(
            fd: i32,
            max: i64,
            seconds: i32,
            microseconds: i32,
            which in 0..BYTES.len(),
        ) {
            let (abi, _) = BYTES[which];
            let request = Request {
                fd,
                max,
                seconds: seconds.into(),
                microseconds: microseconds.into(),
            };
            prop_assert_eq!(abi.read(Some(&written(abi, request))), Ok(request));
        }
    }
}
