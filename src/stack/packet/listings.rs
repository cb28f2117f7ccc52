//! Listings of sockets and splices, before, during and after a splice.

use super::*;
use crate::splice::{Dispatch, Options, SplicePool, SpliceState, SpliceTable};

fn listing(net: &Net) -> String {
    SocketTable(&net.stack.sockets()).to_string()
}

/// Replaces the port that the stack has chosen, which differs each time.
fn without_port(table: &str, stream: &TcpStream) -> String {
    let port = stream.local_addr().port().to_string();
    assert_eq!(port.len(), 5);
    table.replace(&port, "50000")
}

#[test]
fn sockets_of_a_proxied_connection() {
    let mut net = Net::new();
    let (mut raw, client) = net.accepted();
    let (mut backend, server) = net.dialled();
    let pool = SplicePool::builder().clock(net.clock.clone()).workers(2);
    let pool = pool.dispatch(Dispatch::Worker).manual().build();
    let options = || Options {
        pool: Some(pool.clone()),
        limit: Some(1000),
        idle: Some(Duration::from_millis(1500)),
        ..Options::default()
    };
    raw.send_data(&net, &[1; 10]);
    net.seen();
    *net.clock.0.lock() += Duration::from_millis(700);
    let before = "\
Proto  Recv-Q  Send-Q  Local address   Foreign address  State        Received  Sent  Idle  Splices
tcp4       10       0  10.0.0.1:80     10.0.0.2:5000    ESTABLISHED        10     0   0.7
tcp4        0       0  10.0.0.1:50000  10.0.0.2:9       SYN_SENT            0     0   0.7";
    assert_eq!(without_port(&listing(&net), &server), before);
    assert!(pool.splices().is_empty());

    let up = client.splice_to(&server, options()).unwrap();
    let down = server.splice_to(
        &client,
        Options {
            pool: Some(pool.clone()),
            ..Options::default()
        },
    );
    let down = down.unwrap();
    let table = SpliceTable(&pool.splices()).to_string();
    let (a, b) = (up.id(), down.id());
    let shown = without_port(&table, &server)
        .replacen(&format!("{a:>6}"), "     1", 1)
        .replacen(&format!("{b:>6}"), "     2", 1);
    let while_it_connects = "\
Splice  Source                         Sink                           Bytes  Limit  Idle  Passes  Worker  State
     1  tcp 10.0.0.1:80-10.0.0.2:5000  tcp 10.0.0.1:50000-10.0.0.2:9      0   1000   1.5       1       0  room
     2  tcp 10.0.0.1:50000-10.0.0.2:9  tcp 10.0.0.1:80-10.0.0.2:5000      0      -     -       1       0  data";
    assert_eq!(shown, while_it_connects);

    backend.send(&net, SYN | ACK, b"");
    backend.seq = backend.seq.wrapping_add(1);
    net.turn();
    assert_eq!(pool.splices()[0].state, SpliceState::Queued);
    while pool.run_one() {}
    let seen = net.seen();
    assert_eq!(backend.take(&seen), [1; 10]);
    let while_it_runs = "\
Proto  Recv-Q  Send-Q  Local address   Foreign address  State        Received  Sent  Idle  Splices
tcp4        0       0  10.0.0.1:80     10.0.0.2:5000    ESTABLISHED        10     0   0.7  <-> tcp 10.0.0.1:50000-10.0.0.2:9
tcp4        0      10  10.0.0.1:50000  10.0.0.2:9       ESTABLISHED         0     0   0.0  <-> tcp 10.0.0.1:80-10.0.0.2:5000";
    assert_eq!(without_port(&listing(&net), &server), while_it_runs);
    let splices = pool.splices();
    assert_eq!((splices[0].bytes, splices[1].bytes), (10, 0));
    assert_eq!(splices[0].state, SpliceState::WaitsForData);
    backend.send(&net, ACK, b"");
    net.turn();

    up.unsplice().unwrap();
    let sockets = net.stack.sockets();
    let ids = [client.end().id(), server.end().id()];
    assert_eq!(sockets[0].splice_to, None);
    assert_eq!(sockets[0].splice_from.map(|name| name.id), Some(ids[1]));
    assert_eq!(sockets[1].splice_to.map(|name| name.id), Some(ids[0]));
    assert_eq!((sockets[1].sent, sockets[1].splice_from), (10, None));
    assert_eq!(pool.splices().len(), 1);
    down.unsplice().unwrap();
    assert!(pool.splices().is_empty());
    assert!(!listing(&net).contains('>'));
}

#[test]
fn listeners_and_records() {
    let mut net = Net::new();
    let (_raw, listener) = in_time_wait(&mut net);
    let wide = Intercept::all().addresses("203.0.113.0/24".parse().unwrap());
    let wide = TcpListener::intercept(&net.stack, wide, 7).unwrap();
    let mut waiting = Raw::new(5001);
    waiting.handshake(&mut net);
    net.pass(Duration::from_secs(2));
    let table = "\
Proto  Recv-Q  Send-Q  Local address     Foreign address  State        Received  Sent  Idle  Splices
tcp46       1     128  *:80              *:*              LISTEN
tcp4        0       7  203.0.113.0/24:*  *:*              LISTEN
tcp4        0       0  10.0.0.1:80       10.0.0.2:5000    TIME_WAIT
tcp4        0       0  10.0.0.1:80       10.0.0.2:5001    ESTABLISHED         0     0   2.0";
    assert_eq!(listing(&net), table);
    let sockets = net.stack.sockets();
    let expires = sockets[2].expires.unwrap();
    assert_eq!(expires, Duration::from_secs(58));
    assert_eq!(sockets[3].age, Some(Duration::from_secs(2)));
    let stats = net.stack.stats();
    for state in TcpState::ALL {
        let count = sockets.iter().filter(|socket| socket.state == state);
        assert_eq!(count.count(), stats.in_state(state), "{state}");
    }
    drop((listener, wide));
}

/// A listing does not wait for the owner of a connection.
#[test]
fn a_listing_waits_for_no_owner() {
    #[derive(Debug)]
    struct Looks {
        link: MemoryLink,
        stack: Mutex<Option<Stack>, LEAF>,
        seen: Mutex<Vec<SocketInfo>, LEAF>,
    }

    impl Link for Looks {
        fn capabilities(&self) -> Capabilities {
            self.link.capabilities()
        }
        fn receive(
            &self,
            frames: &mut Vec<crate::link::Frame>,
            max: usize,
        ) -> Result<usize, crate::link::ReceiveError> {
            self.link.receive(frames, max)
        }
        fn transmit(&self, packet: &Packet<'_>) -> Result<(), crate::link::TransmitError> {
            // The transmitting thread owns the connection. Another thread makes a listing meanwhile.
            let stack = self.stack.lock().clone();
            if let Some(stack) = stack {
                let looking = || stack.sockets();
                let seen = thread::scope(|scope| scope.spawn(looking).join().unwrap());
                *self.seen.lock() = seen;
            }
            self.link.transmit(packet)
        }
        fn wait(
            &self,
            _interest: crate::link::Interest,
            _deadline: Option<Instant>,
        ) -> io::Result<()> {
            Ok(())
        }
        fn wake(&self) {}
    }

    let (link, _far) = memory::pair(one_packet_each());
    let link = Arc::new(Looks {
        link,
        stack: Mutex::default(),
        seen: Mutex::default(),
    });
    let builder = Stack::builder(link.clone()).address("10.0.0.1/24".parse().unwrap());
    let (stack, driver) = builder.build_with_driver().unwrap();
    *link.stack.lock() = Some(stack.clone());
    let stream = TcpSocket::new(&stack)
        .start("10.0.0.2:9".parse().unwrap())
        .unwrap();
    let seen = std::mem::take(&mut *link.seen.lock());
    assert_eq!(seen.len(), 1);
    assert_eq!(
        (seen[0].state, seen[0].local),
        (TcpState::SynSent, stream.local_addr())
    );
    // The stack keeps the link.
    drop(link.stack.lock().take());
    drop((stream, driver));
}
