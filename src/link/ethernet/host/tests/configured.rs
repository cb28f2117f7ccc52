//! Settings.

use super::*;

#[test]
fn impossible_settings_are_refused() {
    let net = |net: &str| net.parse::<IpNet>().unwrap();
    let ip = |address: &str| address.parse::<IpAddr>().unwrap();
    let good = || v4().gateway(ip("10.0.0.1"));
    assert!(good().check().is_ok());
    let mut many = good();
    many.routes = vec![(net("10.1.0.0/16"), ip("10.0.0.1")); 257];
    let bad = [
        HostConfig::new(Mac::BROADCAST),
        good().mtu(1279),
        good().mtu(65_536),
        good().address(net("10.0.0.0/24")),
        good().address(net("10.0.0.255/24")),
        good().address(net("224.0.0.1/24")),
        good().address(net("127.0.0.1/8")),
        good().address(net("::/64")),
        good().address(net("ff02::1/64")),
        good().gateway(ip("0.0.0.0")),
        good().gateway(ip("255.255.255.255")),
        good().gateway(OWN.into()),
        good().route(net("10.1.0.0/16"), OWN.into()),
        good().route(net("10.1.0.0/16"), ip("fd00::1")),
        many,
    ];
    for config in bad {
        let (transport, _far) = memory::pair(memory::Config::default());
        let error = Host::new(transport, config.clone()).unwrap_err();
        assert!(!error.to_string().is_empty(), "{config:?}");
    }
    for fine in [
        "10.0.0.5/31",
        "10.0.0.4/31",
        "10.0.0.5/32",
        "fd00::1/128",
        "fe80::7/64",
    ] {
        assert!(
            HostConfig::new(MAC).address(net(fine)).check().is_ok(),
            "{fine}"
        );
    }
}

/// A copy of a machine: guards each line of `Station::reseed`.
#[test]
fn all_random_numbers_are_replaced() {
    let now = SystemClock.now();
    let states = [None, None, Some(8), Some(9)].map(|seed| {
        let config = HostConfig::new(MAC).dhcp(true).slaac(true);
        let mut station = Station::new(config, 7);
        station.begin(now);
        if let Some(seed) = seed {
            station.reseed(seed);
        }
        let dhcp = format!("{:?}", station.dhcp);
        let autoconf = format!("{:?}", station.autoconf);
        let groups = format!("{:?}", station.groups);
        [dhcp, autoconf, groups, format!("{:?}", station.random)]
    });
    let [one, same, copy, other] = states;
    assert_eq!(one, same);
    for (at, state) in one.iter().enumerate() {
        assert!(*state != copy[at] && *state != other[at] && copy[at] != other[at]);
    }
}
