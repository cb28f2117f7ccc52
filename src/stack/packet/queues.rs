//! Several receive queues: the raw peer chooses the queue of each segment.

use super::*;
use crate::stack::ConditionalListener;
use crate::stack::accept::syn_queue::Syn;
use crate::stack::driver::Running;
use crate::tcp::conn::Conn;
use std::sync::Barrier;

/// A stack over two queues: a driver and a wire for each.
pub(super) fn nets(build: impl FnOnce(Builder) -> Builder) -> [Net; 2] {
    let clock = Arc::new(TestClock(Mutex::new(SystemClock.now())));
    let pairs = [(); 2].map(|()| memory::pair(one_packet_each()));
    let (links, wires): (Vec<_>, Vec<_>) = pairs.into_iter().unzip();
    let builder = Stack::with_queues(links)
        .address("10.0.0.1/24".parse().unwrap())
        .clock(clock.clone());
    let (stack, drivers) = build(builder).build_with_drivers().unwrap();
    let nets = drivers.into_iter().zip(wires).map(|(driver, wire)| Net {
        clock: clock.clone(),
        stack: stack.clone(),
        driver,
        wire,
    });
    let nets: Vec<Net> = nets.collect();
    nets.try_into().ok().unwrap()
}

fn two() -> [Net; 2] {
    nets(|builder| builder)
}

/// A connection whose home is the first queue.
fn accepted(nets: &mut [Net; 2]) -> (Raw, TcpStream) {
    nets[0].accepted()
}

fn astray(net: &Net) -> [u64; 2] {
    let stats = net.stack.queue_stats();
    [stats[0].segments_astray, stats[1].segments_astray]
}

/// Guards rule 1: any driver can queue a segment at its connection, which answers on its home queue.
#[test]
fn a_segment_finds_its_connection_by_any_queue() {
    let mut nets = two();
    let (mut raw, stream) = accepted(&mut nets);
    assert_eq!(stream.queue(), 0);
    raw.send_data(&nets[1], b"by the other");
    assert!(nets[1].seen().is_empty(), "nothing is sent on this queue");
    let ack = nets[0].soon();
    assert_eq!(ack.header.ack, raw.seq);
    assert_eq!(read(&stream), b"by the other");
    raw.send_data(&nets[0], b"by its own");
    assert_eq!(nets[0].soon().header.ack, raw.seq);
    assert_eq!(read(&stream), b"by its own");
    (&stream).write_all(b"back").unwrap();
    assert_eq!(raw.take(&nets[0].seen()), b"back");
    raw.send(&nets[1], ACK, b"");
    raw.fin(&nets[1]);
    nets[1].turn();
    assert!(is_end(&stream));
    assert_eq!(astray(&nets[0]), [0, 3]);
    nets[0].healthy();
}

/// Guards the home of an active open: chosen by the program, or in turns.
#[test]
fn an_active_open_may_choose_its_home() {
    let mut nets = two();
    let to = "10.0.0.2:9".parse().unwrap();
    let mut streams = Vec::new();
    for queue in [1, 0, 1] {
        let stream = TcpSocket::new(&nets[0].stack)
            .queue(queue)
            .start(to)
            .unwrap();
        assert_eq!(stream.queue(), queue);
        assert_eq!(nets[queue].one().header.flags, SYN);
        assert!(nets[1 - queue].seen().is_empty());
        streams.push(stream);
    }
    let dialled = [(); 4].map(|()| TcpSocket::new(&nets[0].stack).start(to).unwrap());
    let homes = dialled.each_ref().map(TcpStream::queue);
    assert_eq!(homes.iter().sum::<usize>(), 2, "{homes:?}");
    for queue in [2, usize::MAX] {
        let error = TcpSocket::new(&nets[0].stack)
            .queue(queue)
            .start(to)
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        assert!(error.to_string().ends_with("use 0 to 1"), "{error}");
    }
}

/// Guards the run queue of the home: its driver, and no other, has the timers.
#[test]
fn timers_are_the_home_drivers() {
    let mut nets = two();
    let (mut raw, stream) = accepted(&mut nets);
    (&stream).write_all(b"lost").unwrap();
    assert_eq!(nets[0].drain().len(), 1);
    nets[1].pass(Duration::from_secs(3));
    assert!(nets[0].drain().is_empty());
    nets[0].pass(Duration::from_secs(3));
    let again = nets[0].drain();
    assert_eq!(again[0].payload, b"lost");
    raw.take(&again[..1]);
    raw.send(&nets[1], ACK, b"");
    nets[1].turn();
    nets[0].pass(Duration::from_secs(30));
    assert!(nets[0].drain().is_empty(), "it was acknowledged");
}

/// Both drivers run at the same time.
fn turn_at_once(nets: &mut [Net]) {
    let barrier = Barrier::new(nets.len());
    thread::scope(|scope| {
        for net in nets {
            let barrier = &barrier;
            let body = move || {
                barrier.wait();
                net.turn();
            };
            drop(thread::Builder::new().spawn_scoped(scope, body).unwrap());
        }
    });
}

/// Guards `Shared::accept_syn`: a SYN takes one place of the backlog and one connection, however often
/// it arrives. (`queue::loom` has all interleavings.)
#[test]
fn a_syn_by_two_queues_is_one_connection() {
    let mut nets = two();
    let at = "10.0.0.1:80";
    let listener = TcpListener::bind_with_backlog(&nets[0].stack, at, 2).unwrap();
    listener.set_nonblocking(true);
    for port in 1000..1300 {
        let mut raw = Raw::new(port);
        raw.send(&nets[0], SYN, b"");
        raw.send(&nets[1], SYN, b"");
        turn_at_once(&mut nets);
        let answers = [nets[0].drain(), nets[1].drain()].concat();
        let first = &answers[0].header;
        assert_eq!(first.flags, SYN | ACK);
        for answer in &answers {
            assert_eq!(answer.header.seq, first.seq, "one connection");
        }
        raw.seq = raw.seq.wrapping_add(1);
        raw.ack = first.seq.wrapping_add(1);
        raw.send_data(&nets[usize::from(port % 2)], b"hello");
        nets.iter_mut().for_each(Net::turn);
        let (stream, _) = listener.accept().unwrap();
        stream.set_nonblocking(true);
        assert_eq!(read(&stream), b"hello");
        assert!(listener.accept().is_err(), "no other connection");
        stream.abort();
        nets.iter_mut().for_each(|net| drop(net.seen()));
    }
    let shared = nets[0].stack.shared();
    assert!(shared.accepting.half_open.lock().is_empty());
    assert_eq!(nets[0].stack.stats().connections, 0);
    assert_eq!(nets[0].stack.stats().syns_dropped, 0, "no place was lost");
    nets[0].healthy();
}

/// Guards `SynQueue::insert`: two drivers that have both found no record make one.
#[test]
fn a_held_syn_by_two_queues_is_one_decision() {
    let mut nets = two();
    let at = "10.0.0.1:80".parse().unwrap();
    let listener = ConditionalListener::bind_with_backlog(&nets[0].stack, at, 2).unwrap();
    listener.set_nonblocking(true);
    let shared = nets[0].stack.shared().clone();
    for port in 1000..1300 {
        let mut raw = Raw::new(port);
        raw.send(&nets[0], SYN, b"");
        raw.send(&nets[1], SYN, b"");
        turn_at_once(&mut nets);
        assert_eq!(shared.accepting.held.lock().len(), (1, 1));
        let pending = listener.pending().unwrap();
        assert!(listener.pending().is_err(), "one decision");
        if port % 2 == 0 {
            pending.refuse();
            let reset = [nets[0].drain(), nets[1].drain()].concat();
            assert_eq!((reset.len(), reset[0].header.flags), (1, RST | ACK));
            continue;
        }
        let home = pending.queue();
        let stream = pending.accept().unwrap();
        assert_eq!(stream.queue(), home);
        let answer = nets[home].one();
        raw.seq = raw.seq.wrapping_add(1);
        raw.ack = answer.header.seq.wrapping_add(1);
        raw.send_data(&nets[1 - home], b"hello");
        nets[1 - home].turn();
        stream.set_nonblocking(true);
        assert_eq!(read(&stream), b"hello");
        stream.abort();
        nets.iter_mut().for_each(|net| drop(net.seen()));
    }
    assert_eq!(shared.accepting.held.lock().len(), (0, 0));
    assert_eq!(nets[0].stack.stats().syns_dropped, 0, "no place was lost");
}

/// Guards `Shared::accept_cookie`: two segments of the peer, on two queues, both acknowledge the
/// cookie.
#[test]
fn a_cookie_by_two_queues_is_one_connection() {
    let mut nets = two();
    let at = "10.0.0.1:80";
    let listener = TcpListener::bind_with_backlog(&nets[0].stack, at, 4).unwrap();
    listener.set_nonblocking(true);
    for port in 1..=10 {
        Raw::new(port).send(&nets[0], SYN, b"");
    }
    nets[0].seen();
    for port in 1000..1300 {
        let mut raw = Raw::new(port);
        raw.syn(&mut nets[0]);
        raw.send(&nets[0], ACK, b"");
        raw.send_data(&nets[1], b"hello");
        turn_at_once(&mut nets);
        let (stream, _) = listener.accept().unwrap();
        assert!(listener.accept().is_err(), "no other connection");
        stream.set_nonblocking(true);
        assert_eq!(read(&stream), b"hello");
        let answers = [nets[0].drain(), nets[1].drain()].concat();
        assert!(answers.iter().all(|answer| !answer.has(RST)), "{answers:?}");
        stream.abort();
        nets.iter_mut().for_each(|net| drop(net.seen()));
    }
    let stats = nets[0].stack.stats();
    assert_eq!((stats.syn_cookies_accepted, stats.syns_dropped), (300, 0));
    assert_eq!(nets[0].stack.shared().accepting.half_open.lock().len(), 4);
    nets[0].healthy();
}

/// Guards rule 5: the first driver expires records, also those that begin while it sleeps.
#[test]
fn time_wait_ends_whichever_queue_it_began_on() {
    let mut nets = two();
    let listener = nets[1].listen(80);
    let mut raw = Raw::new(5000);
    raw.handshake(&mut nets[1]);
    let [first, mut second] = nets;
    let start = first.clock.now();
    let until = start + Duration::from_secs(60);
    let sleeper = Running::new(first.driver);
    assert_eq!(
        sleeper.fall_asleep(),
        Some((None, crate::link::Interest::READABLE))
    );
    drop(listener.accept().unwrap());
    raw.take(&second.seen());
    raw.fin(&second);
    second.seen();
    assert_eq!(second.stack.stats().time_wait, 1);
    // The first driver was woken: this returns at once, and not at the deadline.
    let limit = SystemClock.now() + Duration::from_secs(20);
    sleeper
        .link()
        .wait(crate::link::Interest::READABLE, Some(limit))
        .unwrap();
    assert!(SystemClock.now() < limit);
    sleeper.wake_up();
    assert_eq!(
        sleeper.fall_asleep(),
        Some((Some(until), crate::link::Interest::READABLE))
    );
    // A second record expires later, so no driver is woken for it.
    let mut other = Raw::new(5001);
    other.handshake(&mut second);
    drop(listener.accept().unwrap());
    other.take(&second.seen());
    other.fin(&second);
    second.seen();
    assert_eq!(second.stack.stats().time_wait, 2);
    let soon = SystemClock.now() + Duration::from_millis(20);
    sleeper
        .link()
        .wait(crate::link::Interest::READABLE, Some(soon))
        .unwrap();
    assert!(SystemClock.now() >= soon);
    sleeper.wake_up();
    // The second driver does not do it, the first one does.
    *second.clock.0.lock() = until;
    second.turn();
    assert_eq!(second.stack.stats().time_wait, 2);
    let mut sleeper = sleeper;
    sleeper.turn();
    assert_eq!(second.stack.stats().time_wait, 0);
}

/// Guards `Table::remove`: a driver that has seen a former record does not remove a later one.
#[test]
fn a_replaced_record_is_not_removed() {
    let mut net = Net::new();
    let (_raw, _listener) = in_time_wait(&mut net);
    let table = &net.stack.shared().table;
    let tuple = Tuple {
        local: [10, 0, 0, 1].into(),
        remote: [10, 0, 0, 2].into(),
        local_port: 80,
        remote_port: 5000,
    };
    let Some(Entry::TimeWait(record, _)) = table.get(&tuple) else {
        panic!("no record");
    };
    let mut former = record;
    former.record.rcv_nxt = record.record.rcv_nxt.wrapping_sub(1);
    table.remove(&former);
    assert_eq!(table.records(), 1);
    table.remove(&record);
    assert_eq!(table.records(), 0);
}

/// Guards rule 6: the stack goes down with one driver, and the others are notified.
#[test]
fn one_driver_that_is_dropped_ends_the_stack() {
    let mut nets = two();
    let (_raw, stream) = accepted(&mut nets);
    let [first, mut second] = nets;
    drop(first.driver);
    assert_eq!(error_kind(&stream), Some(ErrorKind::NetworkDown));
    assert_eq!(
        second.driver.poll().unwrap_err().kind(),
        ErrorKind::NetworkDown
    );
    let limit = SystemClock.now() + Duration::from_secs(20);
    second.driver.poll().unwrap_err();
    Running::new(second.driver)
        .link()
        .wait(crate::link::Interest::READABLE, Some(limit))
        .unwrap();
    assert!(SystemClock.now() < limit, "the sleeping driver was woken");
}

/// Guards `Shared::end_if_down`: a connection that begins while another driver goes down ends too.
#[test]
fn a_connection_that_begins_while_the_stack_goes_down_ends() {
    let nets = two();
    let listener = nets[1].listen(80);
    for port in 1000..1100 {
        Raw::new(port).send(&nets[1], SYN, b"");
    }
    let [first, mut second] = nets;
    let barrier = Barrier::new(2);
    thread::scope(|scope| {
        let fall = || {
            barrier.wait();
            drop(first.driver);
        };
        drop(thread::Builder::new().spawn_scoped(scope, fall).unwrap());
        barrier.wait();
        while second.driver.poll().is_ok() {}
    });
    assert_eq!(second.stack.stats().connections, 0);
    assert!(second.stack.shared().accepting.half_open.lock().is_empty());
    assert_eq!(
        listener.accept().unwrap_err().kind(),
        ErrorKind::NetworkDown
    );
}

/// A clock that queues a segment for a connection whenever its owner reads the time, as another driver
/// could.
#[derive(Debug)]
struct Bringing {
    time: Instant,
    conn: Mutex<Option<(Arc<Conn>, Header)>, LEAF>,
    count: AtomicUsize,
}

impl Clock for Bringing {
    fn now(&self) -> Instant {
        let to = self.conn.lock().clone();
        // The driver reads the time once before it takes the segments.
        if let Some((conn, header)) = to
            && (1..10_000).contains(&self.count.fetch_add(1, Ordering::Relaxed))
        {
            conn.leave(Syn::from(header).segment(conn.tuple));
        }
        self.time
    }
}

/// Guards rule 4 of `tcp::conn`: a driver that runs a connection to which another one keeps bringing
/// segments returns to its other connections.
#[test]
fn an_owner_that_never_comes_to_an_end_hands_over() {
    let clock = Arc::new(Bringing {
        time: SystemClock.now(),
        conn: Mutex::default(),
        count: AtomicUsize::new(0),
    });
    let mut nets = nets(|builder| builder.clock(clock.clone()));
    let (mut raw, stream) = accepted(&mut nets);
    let tuple = stream.conn().tuple;
    let Some(Entry::Conn(conn)) = nets[0].stack.shared().table.get(&tuple) else {
        panic!("no connection");
    };
    let header = Header {
        seq: raw.seq.wrapping_add(5),
        ack: raw.ack,
        flags: ACK,
        window: 1000,
        options: SynOptions::default(),
    };
    raw.send_data(&nets[1], b"hello");
    *clock.conn.lock() = Some((conn, header));
    assert!(nets[1].driver.poll().unwrap());
    let rounds = clock.count.load(Ordering::Relaxed);
    assert!(rounds < 1000, "it ran for {rounds} rounds");
    *clock.conn.lock() = None;
    assert_eq!(read(&stream), b"hello");
    assert!(nets[0].driver.poll().unwrap(), "its own driver has it");
}
