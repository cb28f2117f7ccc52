//! Sockets and listeners for tasks: who waits is woken, by all that a thread would be woken by.

use super::*;
use crate::sockbuf::{Addresses, Datagram};
use crate::stack::PingListener;
use crossbeam_channel::{Receiver, Sender, unbounded};
use futures_lite::future::{block_on, poll_fn};
use std::task::{Context, Poll, Wake, Waker};

#[derive(Debug)]
struct Bell(Sender<()>);

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.0.send(()).ok();
    }
}

/// A waker that reports its calls.
fn bell() -> (Waker, Receiver<()>) {
    let (sender, rung) = unbounded();
    (Arc::new(Bell(sender)).into(), rung)
}

fn ready<T>(poll: Poll<io::Result<T>>) -> io::Result<T> {
    match poll {
        Poll::Ready(result) => result,
        Poll::Pending => panic!("it is there"),
    }
}

#[test]
fn a_waiting_task_receives_and_sends() {
    let mut net = Net::new();
    let socket = net.bound("10.0.0.1:7");
    let (waker, rung) = bell();
    let mut cx = Context::from_waker(&waker);
    let mut out = [0; 9];
    for _ in 0..3 {
        assert!(socket.poll_recv_from(&mut cx, &mut out).is_pending());
        net.arrives("10.0.0.2:9", "10.0.0.1:7", b"hello");
        rung.recv().unwrap();
        let seen = ready(socket.poll_peek_from(&mut cx, &mut out)).unwrap();
        let taken = ready(socket.poll_recv_from(&mut cx, &mut out)).unwrap();
        assert_eq!((seen, taken), ((5, at("10.0.0.2:9")), seen));
    }
    assert!(socket.poll_recv(&mut cx, &mut out).is_pending());
    net.arrives("10.0.0.2:9", "10.0.0.1:7", b"");
    rung.recv().unwrap();
    assert_eq!(ready(socket.poll_peek(&mut cx, &mut out)).unwrap(), 0);
    assert_eq!(ready(socket.poll_recv(&mut cx, &mut out)).unwrap(), 0);
    // Batches.
    let mut batch = Vec::new();
    assert!(
        socket
            .poll_recv_datagrams(&mut cx, &mut batch, 9)
            .is_pending()
    );
    net.raw(&datagram_of("10.0.0.2:9", "10.0.0.1:7", b"1"));
    net.arrives("10.0.0.2:9", "10.0.0.1:7", b"2");
    rung.recv().unwrap();
    assert_eq!(block_on(socket.recv_many_async(&mut batch, 9)).unwrap(), 2);
    assert_eq!(block_on(socket.send_many_async(&mut batch)).unwrap(), 2);
    let sent = ready(socket.poll_send_to(&mut cx, b"3", at("10.0.0.2:9")));
    assert_eq!(sent.unwrap(), 1);
    assert_eq!(net.sent().len(), 3);
}

/// The calls fail as those of threads do, at once.
#[test]
fn errors_are_those_of_the_other_calls() {
    let mut net = Net::new();
    let socket = net.bound("10.0.0.1:7");
    let sent = block_on(socket.send_async(b"to whom?"));
    assert_eq!(kind(sent), ErrorKind::NotConnected);
    for (to, expected) in [
        ("10.0.0.2:0", ErrorKind::AddrNotAvailable),
        ("224.0.0.1:1", ErrorKind::HostUnreachable),
    ] {
        assert_eq!(kind(block_on(socket.send_to_async(b"x", at(to)))), expected);
        let mut one = vec![Datagram::new([], Addresses::to(at(to)))];
        assert_eq!(kind(block_on(socket.send_many_async(&mut one))), expected);
    }
    let listener = net.flows(Intercept::all(), FlowOptions::default());
    net.arrives("10.0.0.2:9", "192.0.2.1:53", b"?");
    let (flow, from) = block_on(listener.accept_async()).unwrap();
    let other = block_on(flow.send_to_async(b"x", at("10.0.0.3:9")));
    assert_eq!(kind(other), ErrorKind::InvalidInput);
    let mut out = [0; 9];
    assert_eq!(block_on(flow.recv_from_async(&mut out)).unwrap(), (1, from));
    // Its end wakes who waits.
    let (waker, rung) = bell();
    let mut cx = Context::from_waker(&waker);
    assert!(flow.poll_recv(&mut cx, &mut out).is_pending());
    net.pass(Duration::from_secs(31));
    rung.recv().unwrap();
    assert_eq!(
        kind(block_on(flow.recv_async(&mut out))),
        ErrorKind::UnexpectedEof
    );
    assert_eq!(
        kind(block_on(flow.peek_from_async(&mut out))),
        ErrorKind::UnexpectedEof
    );
    assert_eq!(kind(block_on(flow.send_async(b"x"))), ErrorKind::BrokenPipe);
    assert_eq!(net.sent(), []);
}

/// The link is full: the task that sends is woken when there is room.
#[test]
fn a_task_waits_for_room() {
    let mut config = one_packet_each();
    config.frames = 4;
    let mut net = Net::with(config, |builder| builder);
    let socket = net.bound("10.0.0.1:7");
    socket.connect("10.0.0.2:9").unwrap();
    let (waker, rung) = bell();
    let mut cx = Context::from_waker(&waker);
    while let Poll::Ready(sent) = socket.poll_send(&mut cx, b"more") {
        sent.unwrap();
    }
    let mut batch = vec![Datagram::new(
        [Buf::copy_of(b"batch")],
        Addresses::default(),
    )];
    assert!(socket.poll_send_datagrams(&mut cx, &mut batch).is_pending());
    assert!(rung.try_recv().is_err());
    let mut last = Vec::new();
    while rung.try_recv().is_err() {
        last = net.sent();
        thread::yield_now();
    }
    assert!(!last.is_empty());
    assert_eq!(block_on(socket.send_many_async(&mut batch)).unwrap(), 1);
    assert_eq!(batch.len(), 0);
}

#[test]
fn a_waiting_task_accepts_flows() {
    let mut net = Net::new();
    let listener = net.flows(Intercept::all(), FlowOptions::default());
    let (waker, rung) = bell();
    let mut cx = Context::from_waker(&waker);
    for port in 1..4 {
        assert!(listener.poll_accept(&mut cx).is_pending());
        let client = format!("10.0.0.2:{port}");
        net.arrives(&client, "192.0.2.1:53", b"?");
        rung.recv().unwrap();
        let (flow, from) = ready(listener.poll_accept(&mut cx)).unwrap();
        assert_eq!((flow.local_addr(), from), (at("192.0.2.1:53"), at(&client)));
    }
    let pings = PingListener::intercept(&net.stack, Intercept::all(), PingListener::options());
    let pings = pings.unwrap();
    assert!(pings.poll_accept(&mut cx).is_pending());
    let ends = ([10, 0, 0, 2].into(), [192, 0, 2, 1].into());
    let echo = message(ends, 8, 0, &[0, 7, 0, 1]);
    net.raw(&from_to(ends, 1, &echo));
    net.turn();
    rung.recv().unwrap();
    let flow = block_on(pings.accept_async()).unwrap();
    assert_eq!(flow.destination(), ends.1);
}

#[test]
fn a_close_and_a_stack_that_is_down_wake_tasks() {
    let net = Net::new();
    let socket = net.bound("10.0.0.1:7");
    let closes = net.flows(Intercept::all(), FlowOptions::default());
    let stays = net.flows(Intercept::all().ports(53..=53), FlowOptions::default());
    let (waker, rung) = bell();
    let mut cx = Context::from_waker(&waker);
    assert!(closes.poll_accept(&mut cx).is_pending());
    closes.close();
    rung.recv().unwrap();
    let closed = ready(closes.poll_accept(&mut cx));
    assert_eq!(kind(closed), ErrorKind::InvalidInput);
    assert!(stays.poll_accept(&mut cx).is_pending());
    let mut out = [0; 9];
    assert!(socket.poll_recv_from(&mut cx, &mut out).is_pending());
    drop(net.driver);
    for _ in 0..2 {
        rung.recv().unwrap();
    }
    assert_eq!(
        kind(ready(stays.poll_accept(&mut cx))),
        ErrorKind::NetworkDown
    );
    let received = ready(socket.poll_recv_from(&mut cx, &mut out));
    assert_eq!(kind(received), ErrorKind::NetworkDown);
}

/// Dropping a future that waits loses nothing, and who polls next gets it.
#[test]
fn a_dropped_future_loses_nothing() {
    let mut net = Net::new();
    let socket = net.bound("10.0.0.1:7");
    let mut out = [0; 9];
    let once = |future: &mut dyn FnMut(&mut Context<'_>) -> bool| {
        block_on(poll_fn(|cx| Poll::Ready(future(cx))))
    };
    for _ in 0..3 {
        let waits = once(&mut |cx| {
            let future = std::pin::pin!(socket.recv_from_async(&mut out));
            future.poll(cx).is_pending()
        });
        assert!(waits);
        net.arrives("10.0.0.2:9", "10.0.0.1:7", b"kept");
        assert_eq!(block_on(socket.recv_async(&mut out)).unwrap(), 4);
    }
}
