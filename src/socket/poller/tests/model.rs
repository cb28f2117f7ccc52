//! Random operations, compared with a model of the events.
//!
//! The model computes conditions from the buffers, keeps the pending events of each registration
//! (changes and ends), and gets ends from the handles of the splices. Levels are compared exactly. An
//! edge must be reported if a condition has become true, or more has arrived, since the last wait; it
//! must not be reported if the condition does not hold, or twice without an operation in between.

use super::*;
use crate::cases::cases;
use crate::error::Flavor;
use crate::splice::{End, Options, Role, Splice, SplicePool};
use proptest::prelude::*;
use std::collections::{BTreeMap, VecDeque};

const SOCKETS: usize = 6;
const POLLERS: usize = 2;

#[derive(Debug, Clone)]
enum Op {
    Send(usize, usize),
    Recv(usize, usize),
    Shutdown(usize, Shutdown),
    Abort(usize),
    Close(usize),
    Marks(usize, usize, usize),
    Sizes(usize, usize, usize),
    Splice(usize, usize, Option<u64>),
    Unsplice(usize),
    Run(usize),
    Add(usize, usize, Interest, Mode),
    Modify(usize, usize, Interest, Mode),
    Delete(usize, usize),
    Wait(usize),
}

fn op() -> impl Strategy<Value = Op> {
    let socket = || 0..SOCKETS;
    let poller = || 0..POLLERS;
    let interest = || {
        prop_oneof![
            Just(Interest::READABLE),
            Just(Interest::WRITABLE),
            Just(Interest::BOTH)
        ]
    };
    let mode = || prop_oneof![Just(Mode::Level), Just(Mode::Edge)];
    let how = prop_oneof![
        Just(Shutdown::Read),
        Just(Shutdown::Write),
        Just(Shutdown::Both)
    ];
    let limit = prop_oneof![Just(None), (1..20_u64).prop_map(Some)];
    prop_oneof![
        8 => (socket(), 1..12_usize).prop_map(|(at, count)| Op::Send(at, count)),
        6 => (socket(), 1..12_usize).prop_map(|(at, count)| Op::Recv(at, count)),
        1 => (socket(), how).prop_map(|(at, how)| Op::Shutdown(at, how)),
        1 => socket().prop_map(Op::Abort),
        1 => socket().prop_map(Op::Close),
        2 => (socket(), 1..12_usize, 1..12_usize).prop_map(|(at, r, s)| Op::Marks(at, r, s)),
        1 => (socket(), 1..12_usize, 1..12_usize).prop_map(|(at, r, s)| Op::Sizes(at, r, s)),
        4 => (socket(), socket(), limit).prop_map(|(a, b, limit)| Op::Splice(a, b, limit)),
        2 => socket().prop_map(Op::Unsplice),
        6 => (1..4_usize).prop_map(Op::Run),
        6 => (poller(), socket(), interest(), mode()).prop_map(|(p, s, i, m)| Op::Add(p, s, i, m)),
        2 => (poller(), socket(), interest(), mode())
            .prop_map(|(p, s, i, m)| Op::Modify(p, s, i, m)),
        1 => (poller(), socket()).prop_map(|(p, s)| Op::Delete(p, s)),
        10 => poller().prop_map(Op::Wait),
    ]
}

/// The visible state of a socket.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Sight {
    ready: [bool; 2],
    closed: [bool; 2],
    error: Option<SoError>,
    /// Bytes that have arrived, unless spliced; space.
    amount: [u64; 2],
}

fn see(socket: &Socket) -> Sight {
    let end = socket.end();
    let error = end.error();
    let mut sight = Sight {
        error,
        ..Sight::default()
    };
    let rcv = end.rcv();
    if rcv.diversion().is_none() {
        let unread = rcv.buf.len();
        let closed = rcv.buf.is_closed();
        sight.closed[0] = closed;
        sight.ready[0] = unread >= rcv.buf.lowat() || closed || error.is_some();
        sight.amount[0] = rcv.buf.chain().start() + unread as u64;
    }
    drop(rcv);
    let snd = end.snd();
    if snd.diversion().is_none() {
        let closed = snd.buf.is_closed();
        let space = snd.buf.hiwat().saturating_sub(snd.buf.len());
        sight.closed[1] = closed;
        sight.ready[1] = space >= snd.buf.lowat() || closed || error.is_some();
        sight.amount[1] = if closed { 0 } else { space as u64 };
    }
    sight
}

/// The model of a registration.
#[derive(Debug)]
struct Watch {
    token: usize,
    interest: Interest,
    mode: Mode,
    owed: [bool; 2],
    ends: [VecDeque<End>; 2],
}

struct World {
    pool: SplicePool,
    sockets: Vec<Option<Socket>>,
    pollers: Vec<Poller>,
    watches: BTreeMap<(usize, usize), Watch>,
    splices: Vec<(Splice, usize, usize)>,
    tokens: usize,
    /// The poller has waited, without an operation since.
    quiet: [bool; POLLERS],
}

impl World {
    fn new() -> World {
        let mut sockets = Vec::new();
        for at in 0..SOCKETS / 2 {
            let (a, b) = pair();
            if at > 0 {
                a.set_flavor(Flavor::OpenBsd);
                b.set_flavor(Flavor::OpenBsd);
            }
            sockets.extend([Some(a), Some(b)]);
        }
        World {
            pool: SplicePool::builder().manual().build(),
            sockets,
            pollers: (0..POLLERS).map(|_| Poller::new()).collect(),
            watches: BTreeMap::new(),
            splices: Vec::new(),
            tokens: 0,
            quiet: [false; POLLERS],
        }
    }

    fn sights(&self) -> Vec<Sight> {
        let see = |socket: &Option<Socket>| socket.as_ref().map(see).unwrap_or_default();
        self.sockets.iter().map(see).collect()
    }

    /// Applies an operation to sockets and splices, and to the model.
    fn act(&mut self, op: &Op) {
        let before = self.sights();
        self.perform(op);
        self.quiet = [false; POLLERS];
        let after = self.sights();
        for ((_, at), watch) in &mut self.watches {
            for direction in 0..2 {
                let (was, is) = (before[*at], after[*at]);
                let risen = is.ready[direction] && !was.ready[direction];
                let more = is.amount[direction] > was.amount[direction];
                watch.owed[direction] |= risen || more;
            }
        }
        let watches = &mut self.watches;
        self.splices.retain(|(splice, source, sink)| {
            let Some(end) = splice.end() else { return true };
            for ((_, at), watch) in &mut *watches {
                for (role, party) in [source, sink].into_iter().enumerate() {
                    if at == party {
                        watch.ends[role].push_back(end);
                        watch.owed = [true; 2];
                    }
                }
            }
            false
        });
    }

    fn perform(&mut self, op: &Op) {
        match *op {
            Op::Run(times) => {
                for _ in 0..times {
                    self.pool.run_one();
                }
            }
            Op::Close(at) => {
                self.watches.retain(|(_, socket), _| *socket != at);
                self.sockets[at] = None;
            }
            Op::Splice(from, to, limit) => {
                let (Some(source), Some(sink)) = (&self.sockets[from], &self.sockets[to]) else {
                    return;
                };
                let options = Options {
                    limit,
                    pool: Some(self.pool.clone()),
                    ..Options::default()
                };
                if let Ok(splice) = source.splice_to(sink, options) {
                    self.splices.push((splice, from, to));
                }
            }
            Op::Send(at, ..)
            | Op::Recv(at, ..)
            | Op::Shutdown(at, ..)
            | Op::Abort(at)
            | Op::Marks(at, ..)
            | Op::Sizes(at, ..)
            | Op::Unsplice(at) => {
                if let Some(socket) = &self.sockets[at] {
                    touch(socket, op);
                }
            }
            Op::Add(..) | Op::Modify(..) | Op::Delete(..) | Op::Wait(_) => {}
        }
    }

    fn add(&mut self, poller: usize, at: usize, interest: Interest, mode: Mode) {
        let Some(socket) = &self.sockets[at] else {
            return;
        };
        let added = self.pollers[poller].add(socket, Token(self.tokens), interest, mode);
        if self.watches.contains_key(&(poller, at)) {
            assert_eq!(added.unwrap_err().kind(), ErrorKind::AlreadyExists);
            return;
        }
        added.unwrap();
        let watch = Watch {
            token: self.tokens,
            interest,
            mode,
            owed: [true; 2],
            ends: Default::default(),
        };
        self.watches.insert((poller, at), watch);
        self.tokens += 1;
        self.quiet[poller] = false;
    }

    fn modify(&mut self, poller: usize, at: usize, interest: Interest, mode: Mode) {
        let Some(socket) = &self.sockets[at] else {
            return;
        };
        let modified = self.pollers[poller].modify(socket, Token(self.tokens), interest, mode);
        let Some(watch) = self.watches.get_mut(&(poller, at)) else {
            assert_eq!(modified.unwrap_err().kind(), ErrorKind::NotFound);
            return;
        };
        modified.unwrap();
        watch.token = self.tokens;
        (watch.interest, watch.mode, watch.owed) = (interest, mode, [true; 2]);
        self.tokens += 1;
        self.quiet[poller] = false;
    }

    fn delete(&mut self, poller: usize, at: usize) {
        let Some(socket) = &self.sockets[at] else {
            return;
        };
        let deleted = self.pollers[poller].delete(socket);
        match self.watches.remove(&(poller, at)) {
            Some(_) => deleted.unwrap(),
            None => assert_eq!(deleted.unwrap_err().kind(), ErrorKind::NotFound),
        }
    }

    fn wait(&mut self, poller: usize) {
        let sights = self.sights();
        let mut events: BTreeMap<usize, Event> = BTreeMap::new();
        for event in poll(&self.pollers[poller]) {
            let former = events.insert(event.token().0, event);
            assert_eq!(former, None, "one event for each registration");
        }
        for ((of, at), watch) in &mut self.watches {
            if *of == poller {
                let event = events.remove(&watch.token);
                watch.compare(event, &sights[*at], self.quiet[poller]);
                watch.owed = [false; 2];
            }
        }
        assert!(
            events.is_empty(),
            "events without a registration: {events:?}"
        );
        self.quiet[poller] = true;
    }
}

impl Watch {
    fn compare(&mut self, event: Option<Event>, sight: &Sight, quiet: bool) {
        let wanted = [Interest::READABLE, Interest::WRITABLE].map(|i| self.interest.overlaps(i));
        let may = [0, 1].map(|direction| sight.ready[direction] && wanted[direction]);
        let must = match self.mode {
            Mode::Level => may,
            Mode::Edge => [0, 1].map(|direction| may[direction] && self.owed[direction]),
        };
        let ends = [Role::Source, Role::Sink].map(|role| self.ends[role as usize].pop_front());
        let is_due = must != [false; 2] || ends != [None; 2];
        let Some(event) = event else {
            assert!(!is_due, "missed: {self:?}, {ends:?}, {sight:?}");
            return;
        };
        let is = [event.is_readable(), event.is_writable()];
        assert_eq!([event.source_end(), event.sink_end()], ends, "{self:?}");
        assert!(
            is != [false; 2] || ends != [None; 2],
            "event without cause: {self:?}"
        );
        for direction in 0..2 {
            assert!(
                is[direction] || !must[direction],
                "missed: {self:?}, {event:?}"
            );
            assert!(
                !is[direction] || may[direction],
                "wrong: {self:?}, {event:?}"
            );
        }
        if self.mode == Mode::Edge && quiet {
            assert_eq!(is, [false; 2], "reported twice: {self:?}");
        }
        assert_eq!(
            [event.is_read_closed(), event.is_write_closed()],
            sight.closed
        );
        assert_eq!(event.error(), sight.error);
    }
}

fn touch(socket: &Socket, op: &Op) {
    match *op {
        Op::Send(_, count) => drop(socket.send(&vec![7; count])),
        Op::Recv(_, count) => drop(socket.recv(&mut vec![0; count])),
        Op::Shutdown(_, how) => socket.shutdown(how).unwrap(),
        Op::Abort(_) => socket.abort(),
        Op::Marks(_, rcv, snd) => {
            socket.set_rcv_lowat(rcv);
            socket.set_snd_lowat(snd);
        }
        Op::Sizes(_, rcv, snd) => {
            socket.set_rcv_hiwat(rcv);
            socket.set_snd_hiwat(snd);
        }
        Op::Unsplice(_) => drop(socket.unsplice()),
        _ => unreachable!("not about one socket"),
    }
}

proptest! {
    #![proptest_config(cases(500, 2_000))]

    #[test]
    fn events_match_the_model(ops in prop::collection::vec(op(), 1..80)) {
        let mut world = World::new();
        for op in &ops {
            match *op {
                Op::Add(poller, at, interest, mode) => world.add(poller, at, interest, mode),
                Op::Modify(poller, at, interest, mode) => world.modify(poller, at, interest, mode),
                Op::Delete(poller, at) => world.delete(poller, at),
                Op::Wait(poller) => world.wait(poller),
                _ => world.act(op),
            }
        }
        (0..POLLERS).for_each(|poller| world.wait(poller));
    }
}
