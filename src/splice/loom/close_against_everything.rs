//! A socket is closed while a worker moves bytes and another thread acts on the splice, the other
//! socket or the pool.

use super::*;

/// Closes one of the two and returns the other one.
type Close = fn(Socket, Socket) -> Socket;

fn source(b: Socket, c: Socket) -> Socket {
    b.close();
    c
}

fn sink(b: Socket, c: Socket) -> Socket {
    c.close();
    b
}

/// The final state, independent of the order.
struct Outcome {
    told: Told,
    ends: [Weak<SocketEnd>; 4],
    causes: &'static [Cause],
}

impl Outcome {
    fn new(world: &World, splice: &Splice, causes: &'static [Cause]) -> Outcome {
        let World { a, b, c, d, .. } = world;
        Outcome {
            told: Told::listen(splice, d),
            ends: [a, b, c, d].map(|socket| Arc::downgrade(socket.end())),
            causes,
        }
    }

    fn check(&self, splice: &Splice, d: &Socket) {
        let (end, moved) = self.check_end(splice, d);
        let told = self.told.all() == [(end, moved)];
        claim(told, "one end is notified, when all bytes have left");
    }

    fn check_end(&self, splice: &Splice, d: &Socket) -> (End, usize) {
        let end = splice.wait();
        claim(self.causes.contains(&end.cause), "it has ended");
        let moved = d.readable_bytes();
        claim(end.bytes == moved as u64, "what was moved arrives");
        (end, moved)
    }

    fn check_that_nothing_is_left(&self) {
        let left = self.ends.iter().any(|end| end.strong_count() > 0);
        claim(!left, "nothing is left of the sockets");
    }
}

fn close(close: Close, other: fn(&Socket, &Splice), causes: &'static [Cause]) {
    let world = World::new(2);
    let splice = world.splice();
    let outcome = Outcome::new(&world, &splice, causes);
    world.a.send(b"x").unwrap();
    let kept = world.keep();
    let worker = work(&world.pool);
    let World { a, b, c, d, pool } = world;
    let other = spawn(move || {
        other(&a, &splice);
        (a, splice)
    });
    let open = close(b, c);
    let (a, splice) = join(other);
    join(worker);
    outcome.check(&splice, &d);
    drop((a, open, d, pool, kept));
    outcome.check_that_nothing_is_left();
}

fn send(a: &Socket, _: &Splice) {
    drop(a.send(b"y"));
}

fn end(a: &Socket, _: &Splice) {
    a.shutdown(Shutdown::Write).unwrap();
}

fn reset(a: &Socket, _: &Splice) {
    a.abort();
}

fn unsplice(_: &Socket, splice: &Splice) {
    splice.unsplice().ok();
}

/// The model, and its failure without waiting for the last pass.
macro_rules! against {
    ($($name:ident: $model:expr;)*) => {
        $(mod $name {
            use super::*;

            #[test]
            fn it_ends_once() {
                explore(concat!("close against everything, ", stringify!($name)), || $model);
            }

            #[test]
            #[should_panic(expected = "one end is notified, when all bytes have left")]
            fn fails_if_the_last_pass_is_not_waited_for() {
                explore_without(Protection::LastPass, || $model);
            }
        })*
    };
}

const RESET: Cause = Cause::SourceError(SoError::ConnectionReset);

against! {
    source_and_bytes: close(source, send, &[Cause::SourceClosed]);
    source_and_eof: close(source, end, &[Cause::SourceClosed, Cause::Eof]);
    source_and_reset: close(source, reset, &[Cause::SourceClosed, RESET]);
    source_and_unsplice: close(source, unsplice, &[Cause::SourceClosed, Cause::Unspliced]);
    sink_and_bytes: close(sink, send, &[Cause::SinkClosed]);
    sink_and_unsplice: close(sink, unsplice, &[Cause::SinkClosed, Cause::Unspliced]);
    source_and_sink: both();
}

/// Both at once.
fn both() {
    let world = World::new(2);
    let splice = world.splice();
    let outcome = Outcome::new(&world, &splice, &[Cause::SourceClosed, Cause::SinkClosed]);
    world.a.send(b"x").unwrap();
    let kept = world.keep();
    let worker = work(&world.pool);
    let World { a, b, c, d, pool } = world;
    let other = spawn(move || c.close());
    b.close();
    join(other);
    join(worker);
    outcome.check(&splice, &d);
    drop((a, d, pool, kept));
    outcome.check_that_nothing_is_left();
}

/// The worker is a thread here, and the last handle of its pool is dropped.
fn pool() {
    let world = World::with(2, SplicePool::builder().workers(1).build());
    let splice = world.splice();
    let outcome = Outcome::new(&world, &splice, &[Cause::SourceClosed, Cause::PoolClosed]);
    world.a.send(b"x").unwrap();
    let kept = world.keep();
    let World { a, b, c, d, pool } = world;
    let other = spawn(move || drop(pool));
    b.close();
    join(other);
    outcome.check_end(&splice, &d);
    drop((a, c, d, kept));
}

#[test]
fn source_and_pool() {
    explore("close against everything, source_and_pool", pool);
}

#[test]
#[should_panic(expected = "deadlock")]
fn source_and_pool_fail_without_waking_the_worker() {
    explore_without(Protection::LastLook, pool);
}
