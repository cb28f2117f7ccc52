//! Ends of splices whose callbacks splice again.

use super::*;
use sosplice::buf::{Buf, Chain};
use sosplice::link::memory;
use sosplice::splice::Cause;
use sosplice::{Stack, TcpListener, TcpStream};
use std::net::Shutdown;

/// Sockets that are spliced again and again.
struct Again {
    source: Socket,
    sink: Socket,
    options: Options,
    calls: Calls,
}

impl Again {
    fn new(source: &Socket, sink: &Socket, options: Options, calls: Calls) -> Arc<Again> {
        Arc::new(Again {
            source: source.clone(),
            sink: sink.clone(),
            options,
            calls,
        })
    }

    /// Byte by byte.
    fn by_bytes(self: Arc<Self>) {
        let limited = self.options.clone().limit(1);
        let splice = self.source.splice_to(&self.sink, limited).unwrap();
        splice.on_end(move |end| {
            assert_eq!((end.cause, end.bytes), (Cause::Limit, 1));
            if self.calls.count() {
                self.by_bytes();
            }
        });
    }

    /// Without a byte.
    fn by_unsplicing(self: Arc<Self>) {
        let splice = self.source.splice_to(&self.sink, self.options.clone());
        let splice = splice.unwrap();
        let next = self.clone();
        splice.on_end(move |end| {
            assert_eq!(end.cause, Cause::Unspliced);
            if next.calls.count() {
                next.by_unsplicing();
            }
        });
        splice.unsplice().unwrap();
    }
}

fn bytes(count: usize) -> Chain {
    Buf::copy_of(&vec![7; count]).into()
}

/// All bytes arrive at once, in this thread's call.
fn by_bytes_in_a_call(dispatch: Dispatch) {
    let [a, b, c, d] = pairs();
    let pool = pool(dispatch);
    let (calls, done) = Calls::new(many());
    Again::new(&b, &c, options(&pool), calls).by_bytes();
    a.send_chain(&mut bytes(many())).unwrap();
    done.recv_timeout(LIMIT).unwrap();
    assert_eq!(d.readable_bytes(), many());
}

/// All bytes are there before the first splice.
fn by_bytes_that_are_there(dispatch: Dispatch) {
    let [a, b, c, d] = pairs();
    a.send_chain(&mut bytes(many())).unwrap();
    let pool = pool(dispatch);
    let (calls, done) = Calls::new(many());
    Again::new(&b, &c, options(&pool), calls).by_bytes();
    done.recv_timeout(LIMIT).unwrap();
    assert_eq!(d.readable_bytes(), many());
}

/// The first in the thread that receives for this stream.
fn by_unsplicing_in_the_receiving_thread(
    (far, near): (&Socket, &Socket),
    dispatch: Dispatch,
    times: usize,
) {
    let [_a, b, c, _d] = pairs();
    let pool = pool(dispatch);
    let (calls, done) = Calls::new(times);
    let again = Again::new(&b, &c, options(&pool), calls);
    let (e, _f) = local::pair();
    let limited = options(&pool).limit(1);
    let first = far.splice_to(&e, limited).unwrap();
    first.on_end(move |_| again.by_unsplicing());
    near.send(b"!").unwrap();
    done.recv_timeout(LIMIT).unwrap();
}

fn stacks() -> [Stack; 2] {
    let (left, right) = memory::pair(memory::Config::default());
    let links = [(left, "10.0.0.1/24"), (right, "10.0.0.2/24")];
    links.map(|(link, address)| {
        let builder = Stack::builder(link).address(address.parse().unwrap());
        builder.build().unwrap()
    })
}

fn in_a_driver(dispatch: Dispatch, times: usize) {
    let [server, client] = stacks();
    let listener = TcpListener::bind(&server, "10.0.0.1:80").unwrap();
    let near = TcpStream::connect(&client, "10.0.0.1:80").unwrap();
    let (far, _) = listener.accept().unwrap();
    by_unsplicing_in_the_receiving_thread((&far, &near), dispatch, times);
}

#[cfg(target_os = "linux")]
fn in_the_thread_of_kernel_sockets(dispatch: Dispatch, times: usize) {
    use sosplice::kernel::KernelStream;

    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let near = KernelStream::connect(listener.local_addr().unwrap()).unwrap();
    let far = KernelStream::from_std(listener.accept().unwrap().0).unwrap();
    by_unsplicing_in_the_receiving_thread((&far, &near), dispatch, times);
}

tests! {
    fn bytes_through_a_worker() {
        by_bytes_in_a_call(Dispatch::Worker);
    }

    fn bytes_direct_in_a_call() {
        by_bytes_in_a_call(Dispatch::Direct);
    }

    fn bytes_that_are_there_in_the_callers_thread() {
        by_bytes_that_are_there(Dispatch::default());
    }

    fn unspliced_in_a_driver_direct() {
        in_a_driver(Dispatch::Direct, deep());
    }

    fn unspliced_in_a_driver_adaptive() {
        in_a_driver(Dispatch::Adaptive, many());
    }

    #[cfg(target_os = "linux")]
    fn unspliced_in_the_thread_of_kernel_sockets() {
        in_the_thread_of_kernel_sockets(Dispatch::default(), deep());
    }

    fn unspliced_in_the_callers_thread() {
        let [_a, b, c, _d] = pairs();
        let (calls, done) = Calls::new(deep());
        Again::new(&b, &c, Options::default(), calls).by_unsplicing();
        done.recv_timeout(LIMIT).unwrap();
    }

    /// Records of a peer, which arrive at a proxy over TCP and are spliced one by one.
    fn records_of_a_peer() {
        const RECORDS: usize = 20_000;
        for dispatch in [Dispatch::Worker, Dispatch::Direct, Dispatch::Adaptive] {
            let [server, client] = stacks();
            let listener = TcpListener::bind(&server, "10.0.0.1:80").unwrap();
            let near = TcpStream::connect(&client, "10.0.0.1:80").unwrap();
            let (far, _) = listener.accept().unwrap();
            let (c, d) = local::pair_with_hiwat(many(), many());
            let pool = pool(dispatch);
            let (calls, done) = Calls::new(RECORDS);
            Again::new(&far, &c, options(&pool), calls).by_bytes();
            near.send_chain(&mut bytes(RECORDS)).unwrap();
            done.recv_timeout(LIMIT).unwrap();
            assert_eq!(d.readable_bytes(), RECORDS);
        }
    }

    /// A callback for an end that is there already, in a callback for it.
    fn callbacks_of_one_end() {
        fn again(splice: Arc<sosplice::Splice>, calls: Calls) {
            let next = splice.clone();
            splice.on_end(move |_| if calls.count() {
                again(next, calls);
            });
        }
        let [_a, b, c, _d] = pairs();
        let splice = b.splice_to(&c, Options::default()).unwrap();
        splice.unsplice().unwrap();
        let (calls, done) = Calls::new(deep());
        again(Arc::new(splice), calls);
        done.recv_timeout(LIMIT).unwrap();
    }

    /// Each callback holds the last handle of the next splice's source.
    fn callbacks_that_close_sockets() {
        let pool = pool(Dispatch::default());
        let (calls, done) = Calls::new(deep());
        let mut peers = Vec::new();
        let mut next: Option<Socket> = None;
        for _ in 0..deep() {
            let ((a, b), (c, d)) = (local::pair(), local::pair());
            let splice = b.splice_to(&c, options(&pool)).unwrap();
            let (calls, held) = (calls.clone(), next.take());
            splice.on_end(move |end| {
                assert_eq!(end.cause, Cause::SourceClosed);
                drop(held);
                calls.count();
            });
            next = Some(b);
            peers.push((a, c, d));
        }
        drop(next);
        done.recv_timeout(LIMIT).unwrap();
    }

    /// As many splices end with the pool, which is dropped in a callback.
    fn a_pool_that_is_dropped_in_a_callback() {
        let pool = pool(Dispatch::Worker);
        let (calls, done) = Calls::new(deep());
        let mut sockets = Vec::new();
        for _ in 0..deep() {
            let ((a, b), (c, d)) = (local::pair(), local::pair());
            let splice = b.splice_to(&c, options(&pool)).unwrap();
            let calls = calls.clone();
            splice.on_end(move |end| {
                assert_eq!(end.cause, Cause::PoolClosed);
                calls.count();
            });
            sockets.push((a, b, c, d));
        }
        let [_a, b, c, _d] = pairs();
        let splice = b.splice_to(&c, options(&pool)).unwrap();
        splice.on_end(move |_| drop(pool));
        splice.unsplice().unwrap();
        done.recv_timeout(LIMIT).unwrap();
    }

    /// From each pair to the next one, all in the thread that sends.
    fn a_chain_of_ten_thousand_splices() {
        const SPLICES: usize = 10_000;
        for dispatch in [Dispatch::Direct, Dispatch::Adaptive, Dispatch::Worker] {
            let pool = pool(dispatch);
            let pairs: Vec<_> = (0..=SPLICES).map(|_| local::pair()).collect();
            for both in pairs.windows(2) {
                both[0].1.splice_to(&both[1].0, options(&pool)).unwrap();
            }
            let (first, last) = (&pairs[0].0, &pairs[SPLICES].1);
            first.send(b"from one end to the other").unwrap();
            assert_eq!(last.recv_chain(100).unwrap().to_vec(), b"from one end to the other");
        }
    }

    /// The same, each passing its end on.
    fn a_chain_of_ten_thousand_ends() {
        const SPLICES: usize = 10_000;
        for dispatch in [Dispatch::Direct, Dispatch::Adaptive, Dispatch::Worker] {
            let pool = pool(dispatch);
            let (calls, done) = Calls::new(SPLICES);
            let pairs: Vec<_> = (0..=SPLICES).map(|_| local::pair()).collect();
            for both in pairs.windows(2) {
                let forwarding = options(&pool).forward_eof(true);
                let splice = both[0].1.splice_to(&both[1].0, forwarding).unwrap();
                let calls = calls.clone();
                splice.on_end(move |end| {
                    assert_eq!(end.cause, Cause::Eof);
                    calls.count();
                });
            }
            pairs[0].0.shutdown(Shutdown::Write).unwrap();
            done.recv_timeout(LIMIT).unwrap();
        }
    }
}
