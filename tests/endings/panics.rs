//! Panics of foreign code: callbacks, protocols, upcalls. They end only the object concerned; threads
//! continue.

use super::*;
use sosplice::protocol::{Protocol, SocketEnd, Upcall, Wakeup};
use sosplice::splice::{Cause, Dispatch, Options, SplicePool};
use sosplice::{Socket, local};
use std::sync::Arc;

/// A pool of one worker: a failure there concerns all splices.
fn one_worker(dispatch: Dispatch) -> (SplicePool, Options) {
    let pool = SplicePool::builder().workers(1).build();
    let options = Options::default().pool(pool.clone()).dispatch(dispatch);
    (pool, options)
}

const BOTH: [Dispatch; 2] = [Dispatch::Worker, Dispatch::Direct];

/// Another splice of the pool works.
#[track_caller]
fn others_go_on(options: &Options) {
    let ((a, b), (c, d)) = (local::pair(), local::pair());
    d.set_read_timeout(Some(LIMIT)).unwrap();
    b.splice_to(&c, options.clone()).unwrap();
    a.send(b"through").unwrap();
    assert_eq!(d.recv_chain(7).unwrap().to_vec(), b"through");
}

#[test]
fn a_callback_that_panics_is_counted_and_the_others_are_called() {
    for dispatch in BOTH {
        let (pool, options) = one_worker(dispatch);
        let ((a, b), (c, _d)) = (local::pair(), local::pair());
        let limited = options.clone().limit(3);
        let splice = b.splice_to(&c, limited).unwrap();
        let (told, tell) = crossbeam_channel::unbounded();
        splice.on_end(|_| panic!("on purpose"));
        splice.on_end(move |end| told.send(end.cause).unwrap());
        a.send(b"end").unwrap();
        assert_eq!(tell.recv_timeout(LIMIT), Ok(Cause::Limit));
        assert_eq!(splice.wait_timeout(LIMIT).unwrap().cause, Cause::Limit);
        assert_eq!(pool.stats().panics, 1);
        others_go_on(&options);
    }
}

/// Takes bytes, then panics.
#[derive(Debug)]
struct Faulty(Arc<SocketEnd>);

impl Protocol for Faulty {
    fn output(&self) {
        panic!("on purpose: {} bytes", self.0.with_snd(|buf| buf.len()));
    }
    fn rcvd(&self, _idle: bool) {}
    fn abort(&self) {}
    fn detach(&self) {}
    fn name(&self) -> &'static str {
        "faulty"
    }
}

#[test]
fn a_protocol_that_panics_ends_its_splice_and_no_other() {
    for dispatch in BOTH {
        let (pool, options) = one_worker(dispatch);
        let end = SocketEnd::new(1000, 1000);
        end.connected();
        let faulty = Socket::new(end.clone(), Arc::new(Faulty(end)));
        let (a, b) = local::pair();
        let splice = b.splice_to(&faulty, options.clone()).unwrap();
        let (told, tell) = crossbeam_channel::unbounded();
        splice.on_end(move |end| told.send(end).unwrap());
        a.send(b"three").unwrap();
        let end = splice.wait_timeout(LIMIT).expect("it ends");
        assert_eq!((end.cause, end.bytes), (Cause::Panicked, 5));
        assert_eq!(tell.recv_timeout(LIMIT), Ok(end));
        assert_eq!(
            (pool.stats().panics, pool.stats().ended_by(Cause::Panicked)),
            (1, 1)
        );
        // The source is an ordinary socket again.
        a.send(b"later").unwrap();
        assert_eq!(b.recv_chain(5).unwrap().to_vec(), b"later");
        others_go_on(&options);
    }
}

#[test]
fn a_panic_of_a_callback_does_not_end_a_stack() {
    let (server, client) = stacks();
    let (far, near) = connection(&server, &client);
    let (a, b) = local::pair();
    let (pool, options) = one_worker(Dispatch::Direct);
    let limited = options.limit(3);
    // This one ends in the thread that receives for the stack.
    far.splice_to(&a, limited)
        .unwrap()
        .on_end(|_| panic!("on purpose"));
    near.send(b"end").unwrap();
    assert_eq!(b.recv_chain(3).unwrap().to_vec(), b"end");
    eventually("the callback was called", || pool.stats().panics == 1);
    near.send(b"more").unwrap();
    assert_eq!(far.recv_chain(4).unwrap().to_vec(), b"more");
}

#[test]
fn a_hook_that_panics_ends_its_stack_and_no_other() {
    use sosplice::link::{Link, Packet};

    let (link, far) = memory::pair(memory::Config::default());
    let stack = Stack::builder(link)
        .address("10.0.0.1/24".parse().unwrap())
        .on_unhandled(|_| panic!("on purpose"))
        .build()
        .unwrap();
    let listener = TcpListener::bind(&stack, "10.0.0.1:80").unwrap();
    // UDP, which is not handled.
    let udp = [
        0x45, 0, 0, 28, 0, 0, 0, 0, 64, 17, 0x66, 0xcf, 10, 0, 0, 2, 10, 0, 0, 1, 0, 7, 0, 7, 0, 8,
        0, 0,
    ];
    far.transmit(&Packet::new(&udp, &[], 20)).unwrap();
    let error = listener.accept().map(drop).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::NetworkDown);
    let (server, client) = stacks();
    let (far, near) = connection(&server, &client);
    near.send(b"still").unwrap();
    assert_eq!(far.recv_chain(5).unwrap().to_vec(), b"still");
}

#[test]
#[cfg(target_os = "linux")]
fn an_upcall_that_panics_ends_its_kernel_connection_and_no_other() {
    use sosplice::kernel::KernelStream;
    use std::io::Write;
    use std::net::{TcpListener, TcpStream};

    struct Panics;
    impl Upcall for Panics {
        fn wakeup(&self, _what: Wakeup) {
            panic!("on purpose");
        }
    }

    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let open = || {
        let user = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (
            user,
            KernelStream::from_std(listener.accept().unwrap().0).unwrap(),
        )
    };
    let ((mut bad, faulty), (mut good, sound)) = (open(), open());
    faulty.add_rcv_upcall(Arc::new(Panics));
    bad.write_all(b"?").unwrap();
    eventually("the connection is over", || faulty.local_addr().is_err());
    good.write_all(b"served").unwrap();
    sound.set_read_timeout(Some(LIMIT)).unwrap();
    assert_eq!(sound.recv_chain(6).unwrap().to_vec(), b"served");
}
