//! Other callbacks: wakers, upcalls and what they hold, pollers, the hook for frames, subscribers of
//! events.

use super::*;
use sosplice::Stack;
use sosplice::link::{Link, Packet, memory};
use sosplice::protocol::{SocketEnd, Upcall, Wakeup};
use sosplice::socket::poller::{Events, Interest, Mode, Poller, Token};
use sosplice::splice::{Cause, End, Role};
use std::future::Future;
use std::pin::pin;
use std::sync::Mutex;
use std::task::{Context, Wake, Waker};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};

/// Splices and unsplices two sockets.
struct Sockets {
    source: Socket,
    sink: Socket,
    options: Options,
    calls: Calls,
    _peers: [Socket; 2],
}

impl Sockets {
    fn new(calls: Calls) -> Arc<Sockets> {
        let [a, source, sink, d] = pairs();
        Arc::new(Sockets {
            source,
            sink,
            options: options(&pool(Dispatch::default())),
            calls,
            _peers: [a, d],
        })
    }

    fn splice(&self) -> sosplice::Splice {
        self.source
            .splice_to(&self.sink, self.options.clone())
            .unwrap()
    }

    fn again(self: &Arc<Self>) {
        let splice = self.splice();
        let next = self.clone();
        splice.on_end(move |_| {
            if next.calls.count() {
                next.again();
            }
        });
        splice.unsplice().unwrap();
    }
}

/// A task that is polled by its waker, and waits for the end of one splice after the other.
struct Task(Arc<Sockets>);

impl Task {
    fn poll(self: Arc<Self>) {
        let splice = self.0.splice();
        let waker = Waker::from(self);
        let ended = pin!(splice.ended());
        assert!(ended.poll(&mut Context::from_waker(&waker)).is_pending());
        splice.unsplice().unwrap();
    }
}

impl Wake for Task {
    fn wake(self: Arc<Self>) {
        if self.0.calls.count() {
            self.poll();
        }
    }
}

/// A task that is polled by its waker, and sends the byte for which it waits.
struct Echo {
    near: Socket,
    far: Socket,
    calls: Calls,
}

impl Echo {
    fn poll(self: Arc<Self>) {
        let waker = Waker::from(self.clone());
        let mut cx = Context::from_waker(&waker);
        let mut byte = [0];
        while self.far.poll_recv(&mut cx, &mut byte).is_ready() {}
        self.near.send(b"!").unwrap();
    }
}

impl Wake for Echo {
    fn wake(self: Arc<Self>) {
        if self.calls.count() {
            self.poll();
        }
    }
}

/// Holds a socket, in a waker or an upcall.
struct Holds {
    _socket: Socket,
    calls: Calls,
}

impl Drop for Holds {
    fn drop(&mut self) {
        self.calls.count();
    }
}

impl Wake for Holds {
    fn wake(self: Arc<Self>) {}
}

impl Upcall for Holds {
    fn wakeup(&self, _what: Wakeup) {}
}

/// Diverts a buffer and holds another socket, which it drops when its own is closed.
struct Passes(Mutex<Option<Socket>>, Calls);

impl Upcall for Passes {
    fn wakeup(&self, _what: Wakeup) {}

    fn closing(&self, end: &SocketEnd) {
        drop(end.take_diversion(Role::Source));
        drop(self.0.lock().unwrap().take());
        self.1.count();
    }
}

/// Counts reported ends.
struct Counts(AtomicUsize);

impl Upcall for Counts {
    fn wakeup(&self, _what: Wakeup) {}

    fn unspliced(&self, _role: Role, end: End) {
        assert_eq!(end.cause, Cause::Unspliced);
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

/// Splices again at each end.
struct Ear(Arc<Sockets>);

struct Message(String);

impl Visit for Message {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        if field.name() == "message" {
            self.0 = format!("{value:?}");
        }
    }
}

impl Subscriber for Ear {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target() == "sosplice::splice"
    }
    fn new_span(&self, _span: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }
    fn record(&self, _span: &Id, _values: &Record<'_>) {}
    fn record_follows_from(&self, _span: &Id, _follows: &Id) {}
    fn event(&self, event: &Event<'_>) {
        let mut message = Message(String::new());
        event.record(&mut message);
        if message.0 == "splice ended" && self.0.calls.count() {
            self.0.splice().unsplice().unwrap();
        }
    }
    fn enter(&self, _span: &Id) {}
    fn exit(&self, _span: &Id) {}
}

/// A UDP packet from 10.0.0.2 to 10.0.0.1, which a TCP stack does not claim.
const UDP: [u8; 28] = [
    0x45, 0, 0, 28, 0, 0, 0, 0, 64, 17, 0x66, 0xcf, 10, 0, 0, 2, 10, 0, 0, 1, 0, 7, 0, 7, 0, 8, 0,
    0,
];

tests! {
    fn a_task_that_is_polled_by_its_waker_for_ends() {
        let (calls, done) = Calls::new(deep());
        Arc::new(Task(Sockets::new(calls))).poll();
        done.recv_timeout(LIMIT).unwrap();
    }

    fn a_task_that_is_polled_by_its_waker_for_bytes() {
        let (calls, done) = Calls::new(deep());
        let (near, far) = local::pair();
        Arc::new(Echo { near, far, calls }).poll();
        done.recv_timeout(LIMIT).unwrap();
    }

    fn wakers_that_hold_sockets_that_tasks_wait_for() {
        let (calls, done) = Calls::new(deep());
        let (mut last, first_peer) = local::pair();
        let mut peers = vec![first_peer];
        for _ in 0..deep() {
            let (socket, peer) = local::pair();
            let waker = Waker::from(Arc::new(Holds { _socket: last, calls: calls.clone() }));
            let polled = socket.poll_recv(&mut Context::from_waker(&waker), &mut [0]);
            assert!(polled.is_pending());
            peers.push(peer);
            last = socket;
        }
        drop(last);
        done.recv_timeout(LIMIT).unwrap();
    }

    fn upcalls_that_hold_sockets_with_upcalls() {
        let (calls, done) = Calls::new(deep());
        let (mut last, first_peer) = local::pair();
        let mut peers = vec![first_peer];
        for _ in 0..deep() {
            let (socket, peer) = local::pair();
            socket.add_rcv_upcall(Arc::new(Holds { _socket: last, calls: calls.clone() }));
            peers.push(peer);
            last = socket;
        }
        drop(last);
        done.recv_timeout(LIMIT).unwrap();
    }

    fn diversions_that_close_diverted_sockets() {
        let (calls, done) = Calls::new(deep());
        let (mut last, first_peer) = local::pair();
        let mut peers = vec![first_peer];
        for _ in 0..deep() {
            let (socket, peer) = local::pair();
            let passes = Passes(Mutex::new(Some(last)), calls.clone());
            assert!(socket.end().divert(Role::Source, Arc::new(passes)));
            peers.push(peer);
            last = socket;
        }
        drop(last);
        done.recv_timeout(LIMIT).unwrap();
    }

    /// They are called under the buffers' locks and must not call the crate: here beside callbacks that
    /// do.
    fn upcalls_and_pollers_get_every_end() {
        let (calls, done) = Calls::new(deep());
        let sockets = Sockets::new(calls);
        let counts = Arc::new(Counts(AtomicUsize::new(0)));
        sockets.source.add_rcv_upcall(counts.clone());
        let poller = Poller::new();
        poller.add(&sockets.source, Token(0), Interest::READABLE, Mode::Edge).unwrap();
        sockets.again();
        done.recv_timeout(LIMIT).unwrap();
        assert_eq!(counts.0.load(Ordering::SeqCst), deep());
        let mut events = Events::default();
        let mut ends = 0;
        while poller.wait(&mut events, Some(Duration::ZERO)).unwrap() > 0 {
            ends += events.iter().filter(|event| event.source_end().is_some()).count();
        }
        assert_eq!(ends, deep());
    }

    /// A program that splices again for each event of a poller does it in its own loop.
    fn a_poller_whose_user_splices_again() {
        let (calls, _done) = Calls::new(deep());
        let sockets = Sockets::new(calls);
        let poller = Poller::new();
        poller.add(&sockets.source, Token(0), Interest::READABLE, Mode::Edge).unwrap();
        let mut events = Events::default();
        loop {
            sockets.splice().unsplice().unwrap();
            while poller.wait(&mut events, None).unwrap() == 0 {}
            let ends = events.iter().filter(|event| event.source_end().is_some()).count();
            assert_eq!(ends, 1);
            if !sockets.calls.count() {
                return;
            }
        }
    }

    fn a_hook_in_which_splices_end() {
        let (calls, done) = Calls::new(deep());
        let sockets = Sockets::new(calls);
        let (link, far) = memory::pair(memory::Config::default());
        let builder = Stack::builder(link).address("10.0.0.1/24".parse().unwrap());
        let hook = move |_: &_| {
            sockets.again();
            true
        };
        let _stack = builder.on_unhandled(hook).build().unwrap();
        far.transmit(&Packet::new(&UDP, &[], 20))
        .unwrap();
        done.recv_timeout(LIMIT).unwrap();
    }

    fn a_subscriber_that_splices_again_at_every_end() {
        let (calls, done) = Calls::new(deep());
        let sockets = Sockets::new(calls);
        tracing::subscriber::set_global_default(Ear(sockets.clone())).unwrap();
        sockets.splice().unsplice().unwrap();
        done.recv_timeout(LIMIT).unwrap();
    }
}

/// A callback may wait for a task of another thread, which it has given something to do.
#[cfg(feature = "async")]
#[test]
fn a_callback_may_wait_for_a_task() {
    use std::task::Poll;
    for dispatch in [Dispatch::Worker, Dispatch::Adaptive] {
        let ((a, b), (c, _d)) = (local::pair(), local::pair());
        let (near, far) = local::pair();
        let waits = Arc::new(std::sync::Barrier::new(2));
        let at = waits.clone();
        let mut first = true;
        let task = thread::Builder::new().spawn(move || {
            let mut byte = [0];
            let told = std::future::poll_fn(|cx| {
                let polled = far.poll_recv(cx, &mut byte);
                if std::mem::replace(&mut first, false) {
                    assert!(matches!(polled, Poll::Pending));
                    at.wait();
                }
                polled
            });
            futures_lite::future::block_on(told).unwrap();
            far.send(&byte).unwrap();
        });
        waits.wait();
        let options = Options::default().limit(1).dispatch(dispatch);
        let splice = b.splice_to(&c, options).unwrap();
        let (sender, heard) = std::sync::mpsc::channel();
        splice.on_end(move |_| {
            near.send(b"?").unwrap();
            near.set_read_timeout(Some(Duration::from_secs(30)))
                .unwrap();
            sender.send(near.recv(&mut [0])).unwrap();
        });
        a.send(b"x").unwrap();
        assert_eq!(heard.recv().unwrap().unwrap(), 1);
        task.unwrap().join().unwrap();
    }
}
