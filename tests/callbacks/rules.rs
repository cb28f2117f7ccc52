//! The order and the thread of callbacks, and the effect of a panic.

use super::*;
use sosplice::Splice;
use sosplice::splice::Cause;
use std::cell::RefCell;
use std::sync::Mutex;
use std::task::{Context, Wake, Waker};

/// A manual pool of one worker.
fn manual() -> SplicePool {
    SplicePool::builder().workers(1).manual().build()
}

/// A splice between two pairs, and its sockets.
struct Kept {
    splice: Splice,
    sockets: [Socket; 4],
}

fn kept(pool: &SplicePool) -> Kept {
    let ((a, b), (c, d)) = (local::pair(), local::pair());
    let splice = b.splice_to(&c, options(pool)).unwrap();
    Kept {
        splice,
        sockets: [a, b, c, d],
    }
}

/// The calls, in order.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<&'static str>>>);

impl Log {
    fn note(&self, what: &'static str) {
        self.0.lock().unwrap().push(what);
    }

    fn on_end(&self, splice: &Splice, what: &'static str) {
        let log = self.clone();
        splice.on_end(move |_| log.note(what));
    }

    fn all(&self) -> Vec<&'static str> {
        self.0.lock().unwrap().clone()
    }
}

// Row: a callback brings about the next one | has it not | has it not | that is called after it, in
// order: they do not nest, however many there are
#[test]
fn callbacks_caused_by_a_callback_follow_it_in_order() {
    let pool = manual();
    let log = Log::default();
    let [first, second, third] = [(); 3].map(|()| kept(&pool));
    log.on_end(&second.splice, "second");
    log.on_end(&third.splice, "third");
    let inner = log.clone();
    first.splice.on_end(move |_| {
        inner.note("first begins");
        third.splice.unsplice().unwrap();
        inner.on_end(&third.splice, "third, again");
        second.splice.unsplice().unwrap();
        // Calls outside of callbacks are not deferred.
        assert_eq!(second.splice.wait().cause, Cause::Unspliced);
        assert!(third.splice.is_ended());
        inner.note("first ends");
    });
    log.on_end(&first.splice, "first, another one");
    first.splice.unsplice().unwrap();
    let expected = [
        "first begins",
        "first ends",
        "first, another one",
        "third",
        "third, again",
        "second",
    ];
    assert_eq!(log.all(), expected);
}

#[test]
fn a_callback_for_an_end_that_is_there_is_called_at_once_outside_of_callbacks() {
    let pool = manual();
    let log = Log::default();
    let first = kept(&pool);
    first.splice.unsplice().unwrap();
    log.on_end(&first.splice, "at once");
    assert_eq!(log.all(), ["at once"]);
}

#[test]
fn sockets_that_a_callback_drops_are_closed_at_once() {
    let pool = manual();
    let log = Log::default();
    let [first, second] = [(); 2].map(|()| kept(&pool));
    log.on_end(&second.splice, "the end of the second");
    let inner = log.clone();
    first.splice.on_end(move |_| {
        let [a, b, c, d] = second.sockets;
        drop((b, c));
        assert_eq!(a.recv(&mut [0]).unwrap(), 0);
        assert_eq!(d.recv(&mut [0]).unwrap(), 0);
        inner.note("the peers have seen the close");
    });
    first.splice.unsplice().unwrap();
    let expected = ["the peers have seen the close", "the end of the second"];
    assert_eq!(log.all(), expected);
}

#[test]
fn a_panic_prevents_no_callback_and_is_counted() {
    let pool = manual();
    let log = Log::default();
    let [first, second, third] = [(); 3].map(|()| kept(&pool));
    second.splice.on_end(|_| panic!("on purpose"));
    log.on_end(&second.splice, "second");
    log.on_end(&third.splice, "third");
    first.splice.on_end(move |_| {
        second.splice.unsplice().unwrap();
        third.splice.unsplice().unwrap();
        panic!("on purpose");
    });
    log.on_end(&first.splice, "first");
    first.splice.unsplice().unwrap();
    assert_eq!(log.all(), ["first", "second", "third"]);
    assert_eq!(pool.stats().panics, 2);
    // The same for an end that is there already, and the thread is as before.
    first.splice.on_end(|_| panic!("on purpose"));
    assert_eq!(pool.stats().panics, 3);
    log.on_end(&first.splice, "at once");
    assert_eq!(log.all().last(), Some(&"at once"));
}

/// Splices and unsplices for ever, each time in the callback of the time before.
fn for_ever(source: Socket, sink: Socket, options: Options, calls: Arc<AtomicUsize>) {
    let splice = source.splice_to(&sink, options.clone());
    // Until its pool is closed.
    let Ok(splice) = splice else { return };
    let (next_source, next_sink) = (source.clone(), sink.clone());
    splice.on_end(move |_| {
        calls.fetch_add(1, Ordering::SeqCst);
        for_ever(next_source, next_sink, options, calls);
    });
    splice.unsplice().ok();
}

#[test]
fn callbacks_that_wait_in_a_queue_are_called_when_its_pool_is_closed() {
    let pool = manual();
    let log = Log::default();
    let first = kept(&pool);
    let more: Vec<_> = (0..1000).map(|_| kept(&pool)).collect();
    let calls = Arc::new(AtomicUsize::new(0));
    for one in &more {
        let calls = calls.clone();
        one.splice.on_end(move |end| {
            assert_eq!(end.cause, Cause::Unspliced);
            calls.fetch_add(1, Ordering::SeqCst);
        });
    }
    first.splice.on_end(move |_| {
        for one in &more {
            one.splice.unsplice().unwrap();
        }
    });
    log.on_end(&first.splice, "first");
    first.splice.unsplice().unwrap();
    let so_far = calls.load(Ordering::SeqCst);
    assert!(so_far > 0 && so_far < 1000, "{so_far}");
    drop(pool);
    assert_eq!(calls.load(Ordering::SeqCst), 1000);
}

#[test]
fn a_waker_that_panics_keeps_no_other_from_being_called() {
    struct Panics;
    impl Wake for Panics {
        fn wake(self: Arc<Self>) {
            panic!("on purpose");
        }
    }
    struct Tells(Sender<()>);
    impl Wake for Tells {
        fn wake(self: Arc<Self>) {
            self.0.send(()).unwrap();
        }
    }
    let (sender, woken) = unbounded();
    let tells = Waker::from(Arc::new(Tells(sender)));
    let panics = Waker::from(Arc::new(Panics));
    let (a, b) = local::pair();
    let end = a.end().clone();
    for waker in [&panics, &tells] {
        let polled = b.poll_recv(&mut Context::from_waker(waker), &mut [0]);
        assert!(polled.is_pending());
    }
    // Bytes that arrive outside of all calls: the thread for wakers calls the wakers, and continues.
    let bytes = [sosplice::buf::Buf::copy_of(b"!")];
    b.end().append_rcv(bytes);
    woken.recv_timeout(LIMIT).unwrap();
    let polled = a.poll_recv(&mut Context::from_waker(&tells), &mut [0]);
    assert!(polled.is_pending());
    end.append_rcv([sosplice::buf::Buf::copy_of(b"!")]);
    woken.recv_timeout(LIMIT).unwrap();
}

tests! {
    // Row: callbacks bring about the next ones without end | has it not | has it not | 64 in a row, then
    // others have their turn
    fn endless_callbacks_do_not_block_other_threads() {
        let pool = manual();
        let [_a, b, c, _d] = pairs();
        let calls = Arc::new(AtomicUsize::new(0));
        // This thread returns: the worker does the rest.
        for_ever(b, c, options(&pool), calls.clone());
        let so_far = calls.load(Ordering::SeqCst);
        assert!(so_far > 0);
        let other = kept(&pool);
        let [a, _, _, d] = &other.sockets;
        a.send(b"its turn").unwrap();
        d.set_nonblocking(true);
        let turns = (1..10).find(|_| pool.run_one() && d.readable_bytes() > 0);
        assert!(turns.is_some(), "the worker has others too");
        assert!(calls.load(Ordering::SeqCst) > so_far);
    }

    /// The library's thread-local storage is destroyed before the thread's own.
    fn a_thread_that_ends_drops_sockets_that_it_has_kept() {
        thread_local! {
            static KEPT: RefCell<Option<Kept>> = const { RefCell::new(None) };
        }
        let (calls, done) = Calls::new(1);
        let pool = pool(Dispatch::Direct);
        let ends = thread::Builder::new().spawn(move || {
            // First, so that it is dropped last.
            KEPT.set(None);
            let kept = kept(&pool);
            kept.splice.on_end(move |_| {
                calls.count();
            });
            kept.sockets[0].send(b"used before").unwrap();
            KEPT.set(Some(kept));
        });
        ends.unwrap().join().unwrap();
        done.recv_timeout(LIMIT).unwrap();
    }
}
