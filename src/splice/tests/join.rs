//! Both directions at once, with the sockets passed by value: [`join`].

use super::*;

/// The peers of both sockets, and the join between these.
fn joined(bench: Bench, options: Options) -> (Peers, Join) {
    let Bench {
        clock,
        pool,
        left: [client, inside],
        right: [outside, server],
    } = bench;
    let join = join(inside, outside, options).unwrap();
    let peers = Peers {
        clock,
        pool,
        client,
        server,
    };
    (peers, join)
}

struct Peers {
    clock: Arc<TestClock>,
    pool: SplicePool,
    client: Socket,
    server: Socket,
}

impl Peers {
    fn run(&self) {
        while self.pool.run_one() {}
    }

    fn advance(&self, millis: u64) {
        self.clock.advance(millis);
        self.run();
    }
}

fn causes(join: &Join) -> Option<[Cause; 2]> {
    let ends = join.end()?;
    Some([ends.a_to_b.cause, ends.b_to_a.cause])
}

#[test]
fn the_sockets_live_as_long_as_a_direction_of_a_join_that_was_dropped() {
    let bench = Bench::new();
    let options = Options {
        forward_eof: true,
        ..bench.options()
    };
    let (peers, join) = joined(bench, options);
    drop(join);
    peers.client.send(b"ping").unwrap();
    peers.client.shutdown(Shutdown::Write).unwrap();
    peers.run();
    assert_eq!(read(&peers.server).unwrap(), b"ping");
    assert_eq!(read(&peers.server).unwrap(), b"", "the end was forwarded");
    // One direction has ended, and the sockets are open.
    peers.server.send(b"pong").unwrap();
    peers.run();
    assert_eq!(read(&peers.client).unwrap(), b"pong");
    assert_eq!(peers.pool.stats().running, 1);
    peers.server.shutdown(Shutdown::Write).unwrap();
    peers.run();
    assert_eq!(read(&peers.client).unwrap(), b"");
    assert_eq!(peers.pool.stats().running, 0);
    // They are closed now.
    assert!(peers.client.send(b"more").is_err());
}

#[test]
fn without_a_forwarded_end_the_last_one_closes_the_sockets() {
    let bench = Bench::new();
    let options = bench.options();
    let (peers, join) = joined(bench, options);
    drop(join);
    peers.client.shutdown(Shutdown::Write).unwrap();
    peers.run();
    assert_eq!(read(&peers.server), Err(ErrorKind::WouldBlock));
    peers.server.shutdown(Shutdown::Write).unwrap();
    peers.run();
    assert_eq!(read(&peers.server).unwrap(), b"");
}

#[test]
fn a_handle_keeps_the_sockets_and_what_is_left_on_them() {
    let bench = Bench::new();
    let options = Options {
        limit: Some(3),
        ..bench.options()
    };
    let (peers, join) = joined(bench, options);
    peers.client.send(b"abcdef").unwrap();
    peers.server.send(b"12").unwrap();
    peers.run();
    assert_eq!((join.bytes(), join.end()), ((3, 2), None));
    peers.server.send(b"34").unwrap();
    peers.run();
    assert_eq!(causes(&join), Some([Cause::Limit; 2]));
    let ends = join.wait();
    assert_eq!((ends.a_to_b.residual, ends.b_to_a.residual), (3, 1));
    let (inside, outside) = join.sockets();
    assert_eq!(read(inside).unwrap(), b"def");
    assert_eq!(read(outside).unwrap(), b"4");
}

#[test]
fn one_busy_direction_keeps_the_other_from_ending_idle() {
    let bench = Bench::new();
    let options = Options {
        idle: Some(Duration::from_millis(100)),
        limit: Some(12),
        ..bench.options()
    };
    let (peers, join) = joined(bench, options);
    peers.server.send(b"first").unwrap();
    peers.run();
    // Nothing but a download for much longer than the idle time.
    for _ in 0..10 {
        peers.advance(60);
        peers.client.send(b"!").unwrap();
        peers.run();
        assert_eq!(join.end(), None);
    }
    peers.server.send(b"second_").unwrap();
    peers.run();
    assert_eq!(read(&peers.client).unwrap(), b"firstsecond_");
    assert_eq!(join.bytes(), (10, 12), "the limit counts over idle times");
    for _ in 0..4 {
        peers.advance(60);
    }
    let ends = join.end().unwrap();
    assert_eq!((ends.a_to_b.cause, ends.a_to_b.bytes), (Cause::Idle, 10));
    assert_eq!((ends.b_to_a.cause, ends.b_to_a.bytes), (Cause::Limit, 12));
}

#[test]
fn both_end_idle_when_neither_moves() {
    let bench = Bench::new();
    let options = Options {
        idle: Some(Duration::from_millis(100)),
        ..bench.options()
    };
    let (peers, join) = joined(bench, options);
    peers.advance(99);
    assert_eq!(join.end(), None);
    peers.client.send(b"x").unwrap();
    peers.run();
    peers.advance(2);
    assert_eq!(join.end(), None, "it was not idle");
    peers.advance(100);
    assert_eq!(causes(&join), Some([Cause::Idle; 2]));
    assert_eq!(peers.pool.stats().running, 0);
}

#[test]
fn the_lifetime_counts_from_the_beginning() {
    let bench = Bench::new();
    let options = Options {
        idle: Some(Duration::from_millis(100)),
        lifetime: Some(Duration::from_millis(250)),
        ..bench.options()
    };
    let (peers, join) = joined(bench, options);
    for _ in 0..4 {
        peers.client.send(b"x").unwrap();
        peers.run();
        peers.advance(60);
        assert_eq!(join.end(), None);
    }
    peers.advance(10);
    assert_eq!(causes(&join), Some([Cause::Lifetime; 2]));
}

#[test]
fn a_reset_is_forwarded_and_an_abort_ends_both() {
    let bench = Bench::new();
    let options = bench.options();
    let (peers, join) = joined(bench, options);
    join.abort();
    peers.run();
    assert!(join.end().is_some());
    for peer in [&peers.client, &peers.server] {
        assert_eq!(peer.take_error(), Some(SoError::ConnectionReset));
    }
}

#[test]
fn a_join_that_is_not_set_up_changes_nothing() {
    let bench = Bench::new();
    let [_, inside] = &bench.left;
    let [outside, _] = &bench.right;
    let back = outside.splice_to(inside, bench.options()).unwrap();
    let refused = join(inside, outside, bench.options()).unwrap_err();
    assert_eq!(refused, SpliceError::Busy(Role::Source));
    assert!(!inside.end().rcv().is_diverted() && back.end().is_none());
    back.unsplice().unwrap();
    let one = Bench::with(|builder| builder.max_splices(1));
    let refused = join(&one.left[1], &one.right[0], one.options()).unwrap_err();
    assert_eq!(refused, SpliceError::TooManySplices(1));
    assert!(!one.left[1].end().rcv().is_diverted());
    assert_eq!(one.pool.stats().running, 0);
}

#[test]
fn two_streams_that_are_over_already_are_joined_too() {
    let bench = Bench::new();
    bench.left[0].send(b"hello").unwrap();
    bench.left[0].shutdown(Shutdown::Write).unwrap();
    bench.right[1].shutdown(Shutdown::Write).unwrap();
    let options = Options {
        forward_eof: true,
        ..bench.options()
    };
    let (peers, join) = joined(bench, options);
    peers.run();
    assert_eq!(causes(&join), Some([Cause::Eof; 2]));
    assert_eq!(read(&peers.server).unwrap(), b"hello");
}

#[test]
fn dropping_a_pool_ends_a_join_without_handle() {
    let bench = Bench::new();
    let options = bench.options();
    let (peers, join) = joined(bench, options);
    let (sender, ended) = mpsc::channel();
    join.on_end(move |ends| sender.send(ends).unwrap());
    drop(join);
    let Peers { pool, client, .. } = peers;
    drop(pool);
    let ends = ended.try_recv().unwrap();
    assert_eq!(ends.a_to_b.cause, Cause::PoolClosed);
    assert_eq!(read(&client).unwrap(), b"", "its socket was closed");
}

#[test]
fn callbacks_of_a_join_are_called_once_and_after_its_end_at_once() {
    let bench = Bench::new();
    let options = bench.options();
    let (peers, join) = joined(bench, options);
    let (sender, ended) = mpsc::channel();
    join.on_end(|_| panic!("as a test wants it"));
    let early = sender.clone();
    join.on_end(move |_| early.send("early").unwrap());
    join.unsplice();
    join.unsplice();
    assert_eq!(causes(&join), Some([Cause::Unspliced; 2]));
    join.on_end(move |_| sender.send("late").unwrap());
    assert_eq!(ended.try_iter().collect::<Vec<_>>(), ["early", "late"]);
    assert_eq!(peers.pool.stats().panics, 1);
}
