//! The events of a proxied connection; a subscriber may use its sockets.
//!
//! A program of its own with one test, since a subscriber is global. Without threads, in virtual time.
#![allow(missing_docs, clippy::unwrap_used, reason = "tests")]

#[path = "support/clock.rs"]
mod clock;

use clock::SetClock;
use sosplice::link::memory;
use sosplice::splice::{Dispatch, Options, SplicePool, SpliceTable};
use sosplice::stack::{Driver, SocketTable};
use sosplice::{Stack, TcpListener, TcpSocket, TcpStream};
use std::cell::Cell;
use std::fmt::{Debug, Write};
use std::net::Shutdown;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};

/// The received events, and a reaction.
#[derive(Default)]
struct Ear {
    heard: Mutex<Vec<String>>,
    /// Taken out while it runs: the events of its own calls are recorded too.
    reaction: Mutex<Option<Box<dyn Fn() + Send>>>,
}

thread_local! {
    static REACTS: Cell<bool> = const { Cell::new(false) };
}

struct Line(String);

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        match field.name() {
            "message" => self.0.insert_str(0, &format!("{value:?}")),
            name => write!(self.0, " {name}={value:?}").unwrap(),
        }
    }
}

impl Subscriber for &'static Ear {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target().starts_with("sosplice::")
    }
    fn new_span(&self, _span: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }
    fn record(&self, _span: &Id, _values: &Record<'_>) {}
    fn record_follows_from(&self, _span: &Id, _follows: &Id) {}
    fn event(&self, event: &Event<'_>) {
        let mut line = Line(String::new());
        event.record(&mut line);
        let metadata = event.metadata();
        let target = metadata.target().strip_prefix("sosplice::").unwrap();
        let line = format!("{} {target}: {}", metadata.level(), line.0);
        self.heard.lock().unwrap().push(line);
        if REACTS.replace(true) {
            return;
        }
        let reaction = self.reaction.lock().unwrap().take();
        if let Some(react) = reaction {
            react();
            *self.reaction.lock().unwrap() = Some(react);
        }
        REACTS.set(false);
    }
    fn enter(&self, _span: &Id) {}
    fn exit(&self, _span: &Id) {}
}

impl Ear {
    /// The events since the last call, without numbers that vary.
    fn heard(&self, hide: &[(String, &str)]) -> Vec<String> {
        let heard = std::mem::take(&mut *self.heard.lock().unwrap());
        let plain = |line: String| {
            let hidden = hide.iter();
            hidden.fold(line, |line, (number, name)| line.replace(number, name))
        };
        heard.into_iter().map(plain).collect()
    }
}

struct World {
    sides: Vec<(Stack, Driver)>,
    pool: SplicePool,
    clock: Arc<SetClock>,
}

impl World {
    fn new() -> World {
        let config = memory::Config::default();
        let ((a, b), (c, d)) = (memory::pair(config), memory::pair(config));
        let clock = SetClock::new();
        let addresses = ["10.0.1.1/24", "10.0.1.2/24", "10.0.2.2/24", "10.0.2.1/24"];
        let links = [a, b, c, d].into_iter().zip(addresses);
        let build = |(link, address): (_, &str)| {
            let builder = Stack::builder(link).address(address.parse().unwrap());
            builder.clock(clock.clone()).build_with_driver().unwrap()
        };
        let sides = links.map(build).collect();
        let pool = SplicePool::builder().workers(1).clock(clock.clone());
        let pool = pool.dispatch(Dispatch::Worker).manual().build();
        World { sides, pool, clock }
    }

    fn drive(&mut self) {
        loop {
            let mut worked = false;
            for (_, driver) in &mut self.sides {
                worked |= driver.poll().unwrap();
            }
            if !(worked | self.pool.run_one()) {
                return;
            }
        }
    }

    fn listen(&self, side: usize, at: &str) -> TcpListener {
        let listener = TcpListener::bind_with_backlog(&self.sides[side].0, at, 2).unwrap();
        listener.set_nonblocking(true);
        listener
    }

    fn connect(&self, side: usize, to: &str) -> TcpStream {
        let stream = TcpSocket::new(&self.sides[side].0)
            .start(to.parse().unwrap())
            .unwrap();
        stream.set_nonblocking(true);
        stream
    }

    fn options(&self) -> Options {
        Options::default().pool(self.pool.clone())
    }
}

fn port(stream: &TcpStream) -> String {
    format!(":{}", stream.local_addr().port())
}

#[test]
fn events_of_a_proxied_connection() {
    let ear: &'static Ear = Box::leak(Box::default());
    tracing::subscriber::set_global_default(ear).unwrap();

    let mut world = World::new();
    let [front, service] = [
        world.listen(1, "10.0.1.2:80"),
        world.listen(3, "10.0.2.1:80"),
    ];
    let expected = [
        "INFO stack: stack up addresses=[10.0.1.1/24] mtu=1500",
        "INFO stack: stack up addresses=[10.0.1.2/24] mtu=1500",
        "INFO stack: stack up addresses=[10.0.2.2/24] mtu=1500",
        "INFO stack: stack up addresses=[10.0.2.1/24] mtu=1500",
        "INFO stack: listener bound accepts=10.0.1.2:80 backlog=2 decides=false",
        "INFO stack: listener bound accepts=10.0.2.1:80 backlog=2 decides=false",
    ];
    assert_eq!(ear.heard(&[]), expected);

    let client = world.connect(0, "10.0.1.2:80");
    let outside = world.connect(2, "10.0.2.1:80");
    let hide = vec![(port(&client), ":c"), (port(&outside), ":o")];
    world.drive();
    let expected = [
        "DEBUG tcp: connecting local=10.0.1.1:c peer=10.0.1.2:80",
        "DEBUG tcp: connecting local=10.0.2.2:o peer=10.0.2.1:80",
        "DEBUG tcp: peer is connecting local=10.0.1.2:80 peer=10.0.1.1:c",
        "DEBUG tcp: peer is connecting local=10.0.2.1:80 peer=10.0.2.2:o",
        "DEBUG tcp: connection established local=10.0.1.1:c peer=10.0.1.2:80",
        "DEBUG tcp: connection established local=10.0.1.2:80 peer=10.0.1.1:c",
        "DEBUG tcp: connection established local=10.0.2.2:o peer=10.0.2.1:80",
        "DEBUG tcp: connection established local=10.0.2.1:80 peer=10.0.2.2:o",
    ];
    assert_eq!(ear.heard(&hide), expected);

    let accepted = [front.accept().unwrap().0, service.accept().unwrap().0];
    splices(ear, &mut world, (&client, accepted, &outside), hide);
    refusals_limits_and_ends(ear, world, front, client);
    the_subscriber_uses_the_sockets_of_events(ear);
}

/// Events of splices and their connections. There are none for a segment or a pass.
fn splices(
    ear: &'static Ear,
    world: &mut World,
    (client, [inside, server], outside): (&TcpStream, [TcpStream; 2], &TcpStream),
    mut hide: Vec<(String, &'static str)>,
) {
    let idle = Some(Duration::from_millis(2500));
    let up = inside.splice_to(&outside, world.options().idle(idle).forward_eof(true));
    let up = up.unwrap();
    let limit = Some(1000);
    let down = outside.splice_to(&inside, world.options().limit(limit));
    let down = down.unwrap();
    for (splice, name) in [(&up, "splice=U"), (&down, "splice=D")] {
        hide.push((format!("splice={}", splice.id()), name));
    }
    for _ in 0..5 {
        client.send(&[1; 100]).unwrap();
        world.drive();
    }
    let (ends, other) = ("10.0.1.2:80-10.0.1.1:c", "10.0.2.2:o-10.0.2.1:80");
    let expected = [
        format!(
            "DEBUG splice: splice set up splice=U source=tcp {ends} sink=tcp {other} idle=2.5 worker=0"
        ),
        format!(
            "DEBUG splice: splice set up splice=D source=tcp {other} sink=tcp {ends} limit=1000 worker=0"
        ),
    ];
    assert_eq!(ear.heard(&hide), expected);

    client.shutdown(Shutdown::Write).unwrap();
    world.drive();
    server.recv(&mut [0; 500]).unwrap();
    drop(server);
    world.drive();
    let passes = up.wait().passes;
    let expected = [
        format!(
            "DEBUG splice: splice ended splice=U cause=Eof bytes=500 passes={passes} residual=0"
        ),
        "DEBUG tcp: connection in TIME-WAIT local=10.0.2.2:o peer=10.0.2.1:80".into(),
        "DEBUG tcp: connection ended local=10.0.2.1:80 peer=10.0.2.2:o".into(),
        "DEBUG splice: splice ended splice=D cause=Eof bytes=0 passes=2 residual=0".into(),
    ];
    assert_eq!(ear.heard(&hide), expected);
    client.abort();
    world.drive();
    let expected = [
        "DEBUG tcp: connection failed local=10.0.1.1:c peer=10.0.1.2:80 error=ConnectionAborted was_established=true",
        "DEBUG tcp: connection failed local=10.0.1.2:80 peer=10.0.1.1:c error=ConnectionReset was_established=true",
    ];
    assert_eq!(ear.heard(&hide), expected);
    assert_eq!(down.wait().bytes, 0);
}

/// The reported value is the effective one.
fn a_backlog_of_nothing(ear: &'static Ear, stack: &Stack) {
    let narrow = TcpListener::bind_with_backlog(stack, "10.0.1.2:82", 0).unwrap();
    let expected = ["INFO stack: listener bound accepts=10.0.1.2:82 backlog=1 decides=false"];
    assert_eq!(ear.heard(&[]), expected);
    drop(narrow);
    ear.heard(&[]);
}

/// A refused attempt, a full backlog, a listener that is closed, and how stacks end.
fn refusals_limits_and_ends(
    ear: &'static Ear,
    mut world: World,
    front: TcpListener,
    client: TcpStream,
) {
    let refused = world.connect(0, "10.0.1.2:81");
    let hidden = [(port(&refused), ":r")];
    world.drive();
    let expected = [
        "DEBUG tcp: connecting local=10.0.1.1:r peer=10.0.1.2:81",
        "DEBUG tcp: connection failed local=10.0.1.1:r peer=10.0.1.2:81 error=ConnectionRefused was_established=false",
    ];
    assert_eq!(ear.heard(&hidden), expected);
    let many = [(); 6].map(|()| world.connect(0, "10.0.1.2:80"));
    world.drive();
    let dropped = |heard: Vec<String>| {
        let lines = heard.into_iter().filter(|line| line.contains("WARN"));
        lines.collect::<Vec<_>>()
    };
    let expected = ["WARN stack: SYN dropped: backlog full accepts=10.0.1.2:80 so_far=1"];
    let warned = dropped(ear.heard(&[]));
    let cookies =
        "WARN stack: SYN answered with a cookie: backlog full accepts=10.0.1.2:80 so_far=1";
    assert!(
        warned
            .iter()
            .all(|line| line == expected[0] || line == cookies),
        "{warned:?}"
    );
    assert!(warned.len() <= 2 && !warned.is_empty(), "{warned:?}");
    world.clock.advance(Duration::from_millis(1500));
    drop(many);
    world.drive();
    ear.heard(&[]);
    front.close();
    front.close();
    let heard = ear.heard(&[]);
    let closed = heard
        .iter()
        .filter(|line| !line.contains("connection failed"));
    let expected = ["INFO stack: listener closed accepts=10.0.1.2:80"];
    assert_eq!(
        closed.collect::<Vec<_>>(),
        expected,
        "those in its backlog are reset"
    );
    world.drive();
    ear.heard(&[]);

    a_backlog_of_nothing(ear, &world.sides[1].0);
    let side = world.sides.remove(0);
    drop(side.1);
    assert_eq!(
        ear.heard(&[]),
        ["INFO stack: stack down why=driver dropped"]
    );
    // Their end of the link is dropped with them.
    drop((side.0, client, refused));
    let (_, gone) = &mut world.sides[0];
    let turns = (0..1000).take_while(|_| gone.poll().is_ok());
    assert!(turns.count() < 1000);
    let expected = [
        "WARN stack: link gone error=",
        "INFO stack: stack down why=link gone",
    ];
    let heard = ear.heard(&[]);
    assert_eq!(heard.len(), 2, "{heard:?}");
    assert!(
        heard
            .iter()
            .zip(expected)
            .all(|(line, start)| line.starts_with(start)),
        "{heard:?}"
    );
}

/// A subscriber that uses all sockets, in every event of a whole connection.
fn the_subscriber_uses_the_sockets_of_events(ear: &'static Ear) {
    let mut world = World::new();
    let [front, service] = [
        world.listen(1, "10.0.1.2:80"),
        world.listen(3, "10.0.2.1:80"),
    ];
    let client = world.connect(0, "10.0.1.2:80");
    let outside = world.connect(2, "10.0.2.1:80");
    ear.heard(&[]);
    let streams = Arc::new(Mutex::new(vec![client.clone(), outside.clone()]));
    let stacks: Vec<Stack> = world.sides.iter().map(|(stack, _)| stack.clone()).collect();
    let (all, pool) = (streams.clone(), world.pool.clone());
    let reactions = Arc::new(AtomicUsize::new(0));
    let count = reactions.clone();
    *ear.reaction.lock().unwrap() = Some(Box::new(move || {
        count.fetch_add(1, Ordering::Relaxed);
        for stack in &stacks {
            assert!(!SocketTable(&stack.sockets()).to_string().is_empty());
            stack.stats();
        }
        assert!(!SpliceTable(&pool.splices()).to_string().is_empty());
        let streams = all.lock().unwrap().clone();
        for stream in streams {
            stream.send(b"!").ok();
            stream.recv(&mut [0; 10]).ok();
            stream.set_nodelay(false);
        }
    }));
    world.drive();
    let (inside, server) = (front.accept().unwrap().0, service.accept().unwrap().0);
    for stream in [&inside, &server] {
        stream.set_nonblocking(true);
        streams.lock().unwrap().push(stream.clone());
    }
    let up = inside.splice_to(&outside, world.options()).unwrap();
    let down = outside.splice_to(&inside, world.options()).unwrap();
    client.send(b"hello").unwrap();
    world.drive();
    up.unsplice().unwrap();
    down.unsplice().unwrap();
    server.abort();
    world.drive();
    client.shutdown(Shutdown::Write).unwrap();
    world.drive();
    inside.abort();
    world.drive();
    front.close();
    let heard = ear.heard(&[]);
    for what in [
        "established",
        "splice set up",
        "splice ended",
        "ConnectionReset",
        "listener closed",
    ] {
        assert!(
            heard.iter().any(|line| line.contains(what)),
            "{what}: {heard:#?}"
        );
    }
    assert!(reactions.load(Ordering::Relaxed) > 8, "{reactions:?}");
    *ear.reaction.lock().unwrap() = None;
}
