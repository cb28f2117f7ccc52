//! The choice of congestion control.

/// The congestion control of a stack's connections, for all of them
/// ([`Builder::congestion`](crate::stack::Builder::congestion)) or for one
/// ([`TcpStream::set_congestion`](crate::TcpStream::set_congestion)). It limits the amount of
/// unacknowledged data.
///
/// # Examples
///
/// ```
/// use sosplice::stack::Congestion;
///
/// assert_eq!(Congestion::default(), Congestion::Cubic);
/// assert_eq!(Congestion::Bbr.to_string(), "bbr");
/// assert_eq!("reno".parse(), Ok(Congestion::Reno));
/// assert!("vegas".parse::<Congestion>().is_err());
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Congestion {
    /// CUBIC (RFC 9438), with HyStart++ (RFC 9406): a loss means that the path is full. The usual
    /// choice, fair to other hosts' connections.
    #[default]
    Cubic,
    /// Reno (RFC 5681), with HyStart++: as CUBIC, but slower on paths with a large bandwidth-delay
    /// product.
    Reno,
    /// BBR, version 3 (draft-ietf-ccwg-bbr): a model of the path's rate and round-trip time. It uses a
    /// path on which packets are lost at random, and keeps queues short. It needs a peer that supports
    /// SACK; all packets are paced. Beside connections with CUBIC it may take more than its share of a
    /// path with a short queue, and less of one with a long one.
    Bbr,
}

impl Congestion {
    const NAMES: [(&'static str, Congestion); 3] = [
        ("cubic", Congestion::Cubic),
        ("reno", Congestion::Reno),
        ("bbr", Congestion::Bbr),
    ];

    /// Its index.
    pub(crate) fn number(self) -> u8 {
        self as u8
    }

    pub(crate) fn numbered(number: u8) -> Congestion {
        let named = Congestion::NAMES.get(usize::from(number));
        named.map_or_else(Congestion::default, |(_, kind)| *kind)
    }
}

impl std::fmt::Display for Congestion {
    /// The name, as in Linux.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let named = Congestion::NAMES.iter().find(|(_, one)| one == self);
        f.pad(named.map_or("", |(name, _)| name))
    }
}

/// An unknown name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no such congestion control: it is one of cubic, reno, bbr")]
pub struct UnknownCongestion(());

impl std::str::FromStr for Congestion {
    type Err = UnknownCongestion;

    fn from_str(name: &str) -> Result<Congestion, UnknownCongestion> {
        let known = Congestion::NAMES.iter().find(|(one, _)| *one == name);
        known.map(|(_, kind)| *kind).ok_or(UnknownCongestion(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers() {
        for (place, (name, kind)) in (0..).zip(Congestion::NAMES) {
            assert_eq!((kind.to_string().as_str(), kind.number()), (name, place));
            assert_eq!(
                (name.parse(), Congestion::numbered(place)),
                (Ok(kind), kind)
            );
        }
        assert!("Cubic".parse::<Congestion>().is_err());
    }
}
