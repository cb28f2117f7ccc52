//! The maximum number of splices of a pool: [`Builder::max_splices`].

use super::*;

fn pool(most: usize) -> (SplicePool, impl Fn() -> Options) {
    let pool = SplicePool::builder().workers(1).manual().max_splices(most);
    let pool = pool.build();
    let its = pool.clone();
    let options = move || Options {
        pool: Some(its.clone()),
        ..Options::default()
    };
    (pool, options)
}

#[test]
fn a_pool_has_no_more_splices_than_its_limit() {
    let (pool, options) = pool(2);
    let (left, right) = (local::pair(), local::pair());
    let there = left.1.splice_to(&right.0, options()).unwrap();
    let _back = right.0.splice_to(&left.1, options()).unwrap();
    let more = (local::pair(), local::pair());
    let refused = more.0.1.splice_to(&more.1.0, options()).unwrap_err();
    assert_eq!(refused, SpliceError::TooManySplices(2));
    assert_eq!(refused.errno(Flavor::FreeBsd), Errno::ENOBUFS);
    assert!(refused.to_string().contains("has 2 splices"), "{refused}");
    let stats = pool.stats();
    assert_eq!((stats.started, stats.running, stats.refused), (2, 2, 1));
    // The sockets are as before, and an end makes room.
    assert!(!more.0.1.end().rcv().is_diverted());
    there.unsplice().unwrap();
    assert_eq!(pool.stats().running, 1);
    more.0.1.splice_to(&more.1.0, options()).unwrap();
    more.0.0.send(b"hello").unwrap();
    while pool.run_one() {}
    assert_eq!(more.1.1.recv_chain(9).unwrap().to_vec(), b"hello");
    assert_eq!(pool.stats().refused, 1);
}

#[test]
fn a_splice_that_is_not_set_up_takes_no_place() {
    let (pool, options) = pool(1);
    let (left, right) = (local::pair(), local::pair());
    // An error during attachment: another upcall diverts the buffer.
    struct Other;
    impl Upcall for Other {
        fn wakeup(&self, _what: Wakeup) {}
    }
    assert!(right.0.end().snd().divert(Arc::new(Other)));
    let busy = left.1.splice_to(&right.0, options()).unwrap_err();
    assert_eq!(busy, SpliceError::Busy(Role::Sink));
    assert_eq!((pool.stats().running, pool.stats().refused), (0, 0));
}

#[test]
fn ten_thousand_random_splices_leave_no_place_taken() {
    let mut random = fastrand::Rng::with_seed(7);
    let (pool, options) = pool(5);
    let mut pairs: Vec<_> = (0..16).map(|_| local::pair()).collect();
    let mut refused = 0;
    for _ in 0..10_000 {
        let (one, other) = (random.usize(..16), random.usize(..16));
        match random.u8(..5) {
            0..=2 => {
                let splice = pairs[one].1.splice_to(&pairs[other].0, options());
                let full = matches!(splice, Err(SpliceError::TooManySplices(5)));
                assert!(!full || pool.stats().running == 5);
                refused += u64::from(full);
            }
            3 => drop(pairs[one].1.unsplice()),
            _ => pairs[one] = local::pair(),
        }
        while pool.run_one() {}
        let on = |pair: &&(Socket, Socket)| pair.1.end().rcv().is_diverted();
        assert_eq!(pool.stats().running, pairs.iter().filter(on).count());
    }
    assert!(refused > 100, "{refused}");
    assert_eq!(pool.stats().refused, refused);
    drop(pairs);
    let stats = pool.stats();
    assert_eq!((stats.running, stats.ended()), (0, stats.started));
}
