//! Hostile peers. Each test is a row of the page `security` of the documentation, or part of one: its
//! limit or rule holds, and well-behaved peers are still served.

mod cookies;
mod copies;
mod flood;
mod limits;
mod memory;
mod pressure;
mod reflection;
mod time;

use super::*;
use crate::tcp::conn::Conn;

/// The connection that the stack has with this peer.
fn conn(net: &Net, raw: &Raw) -> Arc<Conn> {
    let tuple = Tuple {
        local: raw.to.0,
        remote: raw.from.0,
        local_port: raw.to.1,
        remote_port: raw.from.1,
    };
    match net.stack.shared().table.get(&tuple) {
        Some(Entry::Conn(conn)) => conn,
        other => panic!("not a connection: {other:?}"),
    }
}

/// Data can be sent in both directions.
fn works(net: &mut Net, raw: &mut Raw, mut stream: &TcpStream) {
    net.drain();
    raw.send_data(net, b"ping");
    net.turn();
    net.drain();
    assert_eq!(read(stream), b"ping");
    stream.write_all(b"pong").unwrap();
    let seen = net.seen();
    assert_eq!(raw.take(&seen), b"pong");
    raw.send(net, ACK, b"");
    assert!(net.seen().is_empty());
    net.healthy();
}
