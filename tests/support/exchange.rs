//! Bytes of two clients of the kernel, in a namespace with the device `t0`, whose connections a stack behind it joins.

use crate::namespace::Namespace;
use sosplice::link::Link;
use sosplice::splice::{self, Options};
use sosplice::{Stack, TcpListener};
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

pub(crate) const LIMIT: Duration = Duration::from_secs(30);

/// Two clients of the kernel, which the stack joins, send each other bytes. The devices come back when nothing else uses
/// them.
pub(crate) fn exchange(
    namespace: &Namespace,
    queues: Vec<Arc<dyn Link>>,
    count: usize,
) -> Vec<Arc<dyn Link>> {
    let stack = Stack::with_queues(queues.clone()).address("10.99.1.2/24".parse().unwrap());
    let stack = stack.build().unwrap();
    let listener = TcpListener::bind(&stack, "10.99.1.2:7").unwrap();
    namespace.wait_until_up("t0");
    let [mut one, mut other] = namespace.enter(|| [(); 2].map(|()| connect()));
    let [(a, _), (b, _)] = [(); 2].map(|()| listener.accept().unwrap());
    let options = Options::default().forward_eof(true);
    let join = splice::join(a, b, options).unwrap();
    swap(&mut one, &mut other, count);
    join.wait();
    drop(listener);
    let stats = stack.stats();
    assert_eq!((stats.receive_errors, stats.transmit_errors), (0, 0));
    drop((stack, one, other, join));
    while queues.iter().any(|queue| Arc::strong_count(queue) > 1) {
        thread::yield_now();
    }
    queues
}

pub(crate) fn connect() -> TcpStream {
    let client = TcpStream::connect("10.99.1.2:7").unwrap();
    client.set_read_timeout(Some(LIMIT)).unwrap();
    client
}

/// Both send random bytes and read those of the other one, at once.
pub(crate) fn swap(one: &mut TcpStream, other: &mut TcpStream, count: usize) {
    let mut rng = fastrand::Rng::with_seed(7);
    let mut bytes = || (0..count).map(|_| rng.u8(..)).collect::<Vec<u8>>();
    let (up, down) = (bytes(), bytes());
    thread::scope(|scope| {
        for (client, bytes) in [(&*one, &up), (&*other, &down)] {
            let mut client = client.try_clone().unwrap();
            let send = move || {
                client.write_all(bytes).unwrap();
                client.shutdown(Shutdown::Write).unwrap();
            };
            thread::Builder::new().spawn_scoped(scope, send).unwrap();
        }
        for (client, bytes) in [(other, &up), (one, &down)] {
            let receive = move || {
                let mut received = Vec::new();
                client.read_to_end(&mut received).unwrap();
                assert!(received == *bytes, "{} of {count}", received.len());
            };
            thread::Builder::new().spawn_scoped(scope, receive).unwrap();
        }
    });
}
