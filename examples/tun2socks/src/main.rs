//! A tun2socks tool: the TCP connections and UDP datagrams that enter a TUN device leave through a SOCKS5 proxy.
//!
//! * A connection is made by the proxy before the client's SYN is answered, so what the proxy refuses is refused here
//!   too (`tcp.rs`). Then both are spliced.
//! * The datagrams of one address and port of a client are an association with the proxy (`udp.rs`). If it has none for
//!   them, the client is told by ICMP.
//! * Names, by `--dns`: `udp` carries queries as any datagram; `tcp` sends them over one connection by way of the proxy
//!   (`resolver.rs`), for proxies without UDP; `fake` answers them with addresses of its own (`dns.rs`, `names.rs`),
//!   and what is sent to these goes to the proxy by name, which resolves it.
//!
//! To try it, with clients in one namespace, and a proxy and a server in another one:
//!
//! ```sh
//! cargo build --release -p tun2socks
//! sudo -s    # everything below needs root
//! apt-get install microsocks bind9-dnsutils
//! ip netns add client
//! ip netns add server
//! ip -n client tuntap add tun0 mode tun
//! ip -n client address add 10.98.0.1/24 dev tun0
//! ip -n client link set tun0 up
//! ip -n client route add default dev tun0
//! ip -n server link set lo up
//! ip -n server address add 10.99.0.1/32 dev lo
//! ip netns exec server microsocks -i 127.0.0.1 -p 1080 &
//! ip netns exec server python3 -m http.server --bind 10.99.0.1 8080 --directory src &
//! ip netns exec server target/release/tun2socks tun0@client --proxy 127.0.0.1:1080 --dns fake &
//! sleep 1
//! ip netns exec client curl -sS http://10.99.0.1:8080/lib.rs | head -3
//! ip netns exec client dig +short @198.18.0.1 www.example.org
//! kill %3 %2 %1
//! ip netns del client
//! ip netns del server
//! ```
//!
//! (The connections to the proxy must not be routed into the device again.)

#[cfg(any(target_os = "linux", target_os = "android"))]
mod dns;
#[cfg(any(target_os = "linux", target_os = "android"))]
#[path = "../../support/dns.rs"]
mod message;
#[cfg(any(target_os = "linux", target_os = "android"))]
mod names;
#[cfg(any(target_os = "linux", target_os = "android"))]
mod proxy;
#[cfg(any(target_os = "linux", target_os = "android"))]
mod resolver;
#[cfg(any(target_os = "linux", target_os = "android"))]
mod tcp;
#[cfg(any(target_os = "linux", target_os = "android"))]
mod tool;
#[cfg(any(target_os = "linux", target_os = "android"))]
mod udp;

#[cfg(any(target_os = "linux", target_os = "android"))]
fn main() -> anyhow::Result<()> {
    tool::run()
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
fn main() {
    eprintln!("error: TUN devices are implemented for Linux only");
}
