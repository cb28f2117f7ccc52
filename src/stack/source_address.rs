//! Source address selection (RFC 6724 section 5). Pure.
//!
//! Rules 1 (the destination itself), 2 (scope), 3 (deprecated addresses last), 6 (label: a unique local
//! address is the source for unique local destinations, not for the internet) and 8 (longest prefix),
//! then the order in which the addresses were given. Rules 4, 5 and 7 concern features that a stack over
//! one link does not have: home and temporary addresses, other links. Among IPv4 addresses of one scope the one
//! whose network has the destination comes first (RFC 1122 3.3.4.3); if none has, common prefix bits
//! mean nothing in IPv4, and the first address is taken, as in BSD.

use ipnet::IpNet;
use std::net::IpAddr;

/// How well an address suits; larger is better.
type Rank = (bool, (bool, i8), bool, bool, u8);

/// The best source for a destination among addresses, if one has its family; some are deprecated.
pub(in crate::stack) fn select<'a>(
    addresses: impl DoubleEndedIterator<Item = &'a IpNet>,
    deprecated: &[IpAddr],
    destination: IpAddr,
) -> Option<IpAddr> {
    let family = |net: &&IpNet| net.addr().is_ipv4() == destination.is_ipv4();
    // `max_by_key` returns the last of equals, so the order is reversed.
    let best = addresses.filter(family).rev();
    best.max_by_key(|net| rank(net, deprecated, destination))
        .map(IpNet::addr)
}

fn rank(net: &IpNet, deprecated: &[IpAddr], destination: IpAddr) -> Rank {
    let address = net.addr();
    let same_label = label(address) == label(destination);
    let near = match address {
        IpAddr::V4(_) if !net.contains(&destination) => 0,
        IpAddr::V4(_) => 1 + net.prefix_len(),
        // RFC 6724 2.2: limited by the prefix of the source.
        IpAddr::V6(_) => common(address, destination).min(net.prefix_len()),
    };
    (
        address == destination,
        reach(address, destination),
        !deprecated.contains(&address),
        same_label,
        near,
    )
}

/// Rule 2: the smallest scope that has the destination in it, else the largest.
fn reach(source: IpAddr, destination: IpAddr) -> (bool, i8) {
    let (source, destination) = (scope(source), scope(destination));
    let enough = source >= destination;
    (enough, if enough { -source } else { source })
}

/// RFC 6724 3.1 and 3.2, with the numbers of RFC 4291 2.7.
fn scope(address: IpAddr) -> i8 {
    const LINK: i8 = 0x2;
    const SITE: i8 = 0x5;
    const GLOBAL: i8 = 0xe;
    match address {
        IpAddr::V4(v4) if v4.is_loopback() || v4.is_link_local() => LINK,
        IpAddr::V6(v6) if v6.is_loopback() || v6.is_unicast_link_local() => LINK,
        IpAddr::V6(v6) if v6.segments()[0] & 0xffc0 == 0xfec0 => SITE,
        _ => GLOBAL,
    }
}

/// The default policy table (RFC 6724 2.1).
fn label(address: IpAddr) -> u8 {
    let IpAddr::V6(v6) = address else { return 4 };
    match v6.segments() {
        [0, 0, 0, 0, 0, 0, 0, 1] => 0,
        [0, 0, 0, 0, 0, 0xffff, ..] => 4,
        [0, 0, 0, 0, 0, 0, ..] => 3,
        [0x2002, ..] => 2,
        [0x2001, 0, ..] => 5,
        [0x3ffe, ..] => 12,
        [first, ..] if first & 0xfe00 == 0xfc00 => 13,
        [first, ..] if first & 0xffc0 == 0xfec0 => 11,
        _ => 1,
    }
}

/// Leading bits in common.
fn common(a: IpAddr, b: IpAddr) -> u8 {
    let bits = match (a, b) {
        (IpAddr::V4(a), IpAddr::V4(b)) => (a.to_bits() ^ b.to_bits()).leading_zeros(),
        (IpAddr::V6(a), IpAddr::V6(b)) => (a.to_bits() ^ b.to_bits()).leading_zeros(),
        _ => 0,
    };
    u8::try_from(bits).expect("invariant: 128 at most")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(rows: &[(&str, &str, &str)]) {
        for (addresses, destination, source) in rows {
            let nets = addresses.split_whitespace();
            let old = nets.clone().filter_map(|net| net.strip_prefix("old:"));
            let old: Vec<IpNet> = old.map(|net| net.parse().unwrap()).collect();
            let old: Vec<IpAddr> = old.iter().map(IpNet::addr).collect();
            let nets = nets.map(|net| net.trim_start_matches("old:"));
            let nets: Vec<IpNet> = nets.map(|net| net.parse().unwrap()).collect();
            let selected = select(nets.iter(), &old, destination.parse().unwrap());
            let source = source.parse().ok();
            assert_eq!(selected, source, "{addresses} to {destination}");
        }
    }

    /// The examples of RFC 6724 10.1, except those of rules that a stack does not need.
    #[test]
    fn rfc_6724() {
        check(&[
            (
                "2001:db8:3::1/64 fe80::1/64",
                "2001:db8:1::1",
                "2001:db8:3::1",
            ),
            (
                "fe80::1/64 2001:db8:3::1/64",
                "2001:db8:1::1",
                "2001:db8:3::1",
            ),
            ("2001:db8:3::1/64 fe80::1/64", "fe80::2", "fe80::1"),
            ("fec0::1/64 fe80::1/64", "2001:db8:1::1", "fec0::1"),
            ("fe80::1/64 fec0::1/64", "fe80::2", "fe80::1"),
            (
                "2001:db8:1::2/64 2001:db8:3::2/64",
                "2001:db8:1::1",
                "2001:db8:1::2",
            ),
            (
                "2001:db8:3::2/64 2001:db8:1::2/64",
                "2001:db8:1::1",
                "2001:db8:1::2",
            ),
            (
                "2002:c633:6401:0:d5e3::1/64 2001:db8:1::2/64",
                "2002:c633:6401::1",
                "2002:c633:6401:0:d5e3::1",
            ),
            (
                "old:2001:db8:1::2/64 2001:db8:3::2/64",
                "2001:db8:1::1",
                "2001:db8:3::2",
            ),
            // Rules 1 and 2 before rule 3.
            ("old:fd00::1/64 fd00::2/64", "fd00::1", "fd00::1"),
            (
                "old:2001:db8::1/64 fe80::1/64",
                "2001:db8:1::1",
                "2001:db8::1",
            ),
            // Rule 1 before rule 2.
            ("fe80::9/64 fd00::1/64", "fd00::1", "fd00::1"),
            ("fd00::1/64 2001:db8::1/64", "fd77::1", "fd00::1"),
            ("fd00::1/64 2001:db8::1/64", "ff00:1::1", "2001:db8::1"),
            ("fd00::1/64 2001:db8::1/64", "2606:4700::1", "2001:db8::1"),
            // Rule 8 ignores bits beyond the prefix, so these are equal and the first is taken.
            (
                "2001:db8::9/32 2001:db8:1::9/32",
                "2001:db8:1::1",
                "2001:db8::9",
            ),
            // Nothing else is there.
            ("fe80::1/64 10.0.0.1/24", "2001:db8::1", "fe80::1"),
            ("10.0.0.1/24", "2001:db8::1", ""),
            ("2001:db8::1/64", "10.0.0.1", ""),
        ]);
    }

    #[test]
    fn ipv4() {
        check(&[
            (
                "10.0.0.1/8 10.1.0.1/16 192.168.0.1/24",
                "10.1.2.3",
                "10.1.0.1",
            ),
            (
                "10.0.0.1/8 10.1.0.1/16 192.168.0.1/24",
                "10.2.2.3",
                "10.0.0.1",
            ),
            ("10.0.0.1/8 192.168.0.1/24", "192.169.0.1", "10.0.0.1"),
            ("10.0.0.1/24 10.0.0.2/24", "10.0.0.9", "10.0.0.1"),
            ("10.0.0.1/24 10.0.0.2/24", "10.0.0.2", "10.0.0.2"),
            ("169.254.0.1/16 10.0.0.1/24", "8.8.8.8", "10.0.0.1"),
            ("10.0.0.1/24 169.254.0.1/16", "169.254.7.7", "169.254.0.1"),
        ]);
    }
}
