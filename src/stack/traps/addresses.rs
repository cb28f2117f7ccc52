//! Addresses that no host has on a network ("martians", RFC 1122 3.2.1.3, RFC 1812 5.3.7): nobody is answered
//! there, nobody is reached there, and the stack does not take them for its own.

use super::*;

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// Where no other host sends from, whatever addresses a stack has.
const NOBODY: [&str; 16] = [
    "0.0.0.0",
    "0.1.2.3",
    "127.0.0.1",
    "127.255.255.255",
    "224.0.0.1",
    "239.1.2.3",
    "240.0.0.1",
    "255.255.255.254",
    "255.255.255.255",
    "::",
    "::1",
    "::ffff:10.0.0.2",
    "::ffff:127.0.0.1",
    "ff02::1",
    "ff05::2",
    "ff0e::1",
];

/// The stack's own, its networks', and their broadcast addresses.
const OWN: [&str; 4] = ["10.0.0.1", "10.0.0.0", "10.0.0.255", "fd00::1"];

fn own_of(address: IpAddr) -> IpAddr {
    ip(if address.is_ipv4() {
        "10.0.0.1"
    } else {
        "fd00::1"
    })
}

/// Guards `Shared::source_of`: every way to dial says so at once, and nothing is sent.
#[test]
fn connecting_to_where_no_host_is_is_refused_at_once() {
    let mut net = Net::new();
    let all = NOBODY.into_iter().chain(["10.0.0.0", "10.0.0.255"]);
    let ports = all.map(|address| (ip(address), 80));
    for (address, port) in ports.chain([(ip("10.0.0.2"), 0), (ip("fd00::2"), 0)]) {
        let to = SocketAddr::new(address, port);
        let from = SocketAddr::new(own_of(address), 7000);
        let stack = &net.stack;
        let second = Duration::from_secs(1);
        let results = [
            TcpStream::connect(stack, to),
            TcpStream::connect_timeout(stack, to, second),
            TcpStream::connect_from(stack, from, to),
            TcpStream::connect_on(stack, 0, to),
            TcpStream::start(stack, to),
            TcpStream::start_from(stack, from, to),
            TcpStream::start_on(stack, 0, to),
        ];
        for error in results.map(Result::unwrap_err) {
            assert_eq!(error.kind(), ErrorKind::InvalidInput, "{to}");
            let said = format!("no host can be reached at {to}: give a port and the address");
            assert!(error.to_string().starts_with(&said), "{error}");
        }
    }
    assert!(net.seen().is_empty(), "nothing was sent");
    assert_eq!(net.stack.stats().active_opens, 0);
}

/// Guards `Network::add_address`: both when a stack is built and later.
#[test]
fn a_stack_has_only_addresses_that_a_host_can_have() {
    let bad = NOBODY.map(|address| IpNet::from(ip(address)));
    let networks = ["10.7.0.0/24", "10.7.0.255/24", "fd77::/64"].map(|net| net.parse().unwrap());
    let net = Net::new();
    for address in bad.into_iter().chain(networks) {
        let later = net.stack.add_address(address).unwrap_err();
        let (link, _far) = memory::pair(memory::Config::default());
        let built = Stack::builder(link).address(address).build().unwrap_err();
        assert_eq!(built.to_string(), later.to_string());
        assert!(later.to_string().starts_with(&match address.prefix_len() {
            24 | 64 => address.to_string(),
            _ => address.addr().to_string(),
        }));
    }
    assert_eq!(net.stack.addresses().len(), 2);
}
