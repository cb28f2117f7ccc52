//! Peers that connect, send a short message, receive its echo and close, or send the next message.

use crate::peers::{
    ACK, BACK, CLIENT, FIN, FRONT, Header, OPTIONS, PROXY_PORT, Proxy, RST, SERVER, SERVER_PORT,
    SYN, Seen, Wire,
};
use std::collections::VecDeque;

/// Length of the message in bytes.
pub(crate) const WORD: u32 = 64;
const FIRST_PORT: u16 = 1024;

/// One side of a connection, as its peer keeps it.
struct Call {
    header: Header,
    next: u32,
    ack: u32,
    heard: u32,
}

impl Call {
    fn say(&mut self, wire: &mut dyn Wire, flags: u8, len: u32) {
        let header = self
            .header
            .segment(flags, self.next, self.ack, len as usize);
        assert!(wire.send(header, len as usize), "the link is large enough");
        self.next = self.next.wrapping_add(len);
        if flags & (SYN | FIN) != 0 {
            self.next = self.next.wrapping_add(1);
        }
    }

    fn hear(&mut self, seen: &Seen) {
        let len = u32::try_from(seen.len).expect("64 KiB");
        assert!(len == 0 || seen.seq == self.ack, "in order: {seen:?}");
        self.heard += len;
        self.ack = self.ack.wrapping_add(len);
        if seen.flags & FIN != 0 {
            self.ack = self.ack.wrapping_add(1);
        }
    }
}

/// By the peer's port.
type Calls = Vec<Option<Box<Call>>>;

fn no_calls() -> Calls {
    std::iter::repeat_with(|| None).take(1 << 16).collect()
}

pub(crate) struct Visits<P> {
    pub(crate) proxy: P,
    clients: Calls,
    servers: Calls,
    /// Free client ports, the least recently used one first.
    free: VecDeque<u16>,
    under_way: usize,
    /// Messages that are to be sent on established connections.
    more: usize,
    /// Messages that the client waits for.
    waiting: usize,
    /// Connections are kept after their last message.
    keeps: bool,
    seen: Vec<Seen>,
}

impl<P: Proxy> Visits<P> {
    pub(crate) fn new(proxy: P) -> Visits<P> {
        Visits {
            proxy,
            clients: no_calls(),
            servers: no_calls(),
            free: (FIRST_PORT..=u16::MAX).collect(),
            under_way: 0,
            more: 0,
            waiting: 0,
            keeps: false,
            seen: Vec::new(),
        }
    }

    /// Runs `count` connections, `at_a_time` at a time, from the first SYN to the last acknowledgement.
    pub(crate) fn run(&mut self, count: usize, at_a_time: usize) {
        let mut left = count;
        let mut turns = 0_usize;
        while left > 0 || self.under_way > 0 {
            while left > 0 && self.under_way < at_a_time {
                self.dial();
                left -= 1;
            }
            self.proxy.turn();
            self.serve();
            self.hear();
            turns += 1;
            assert!(
                turns < 1000 * count + 100_000,
                "no connection makes progress"
            );
        }
    }

    /// Sends `count` messages there and back on so many connections, one at a time on each, and keeps the
    /// connections. Not inlined, so that `valgrind --tool=callgrind` can select it by name.
    #[inline(never)]
    pub(crate) fn talk(&mut self, count: usize, connections: usize) {
        (self.more, self.keeps) = (count, true);
        while self.under_way < connections && self.more > 0 {
            self.dial();
            self.more -= 1;
        }
        for call in self.clients.iter_mut().flatten() {
            if call.heard == WORD && self.more > 0 {
                call.heard = 0;
                call.say(self.proxy.front(), ACK, WORD);
                self.more -= 1;
                self.waiting += 1;
            }
        }
        while self.waiting > 0 {
            self.proxy.turn();
            self.serve();
            self.hear();
        }
    }

    fn dial(&mut self) {
        self.waiting += 1;
        let port = self.free.pop_front().expect("some port is free");
        let header = |options: &[u8]| Header::new((CLIENT, port), (FRONT, PROXY_PORT), options);
        let mut call = Box::new(Call {
            header: header(&OPTIONS),
            next: u32::from(port),
            ack: 0,
            heard: 0,
        });
        call.say(self.proxy.front(), SYN, 0);
        call.header = header(&[]);
        self.clients[usize::from(port)] = Some(call);
        self.under_way += 1;
    }

    fn hear(&mut self) {
        let wire = self.proxy.front();
        wire.take(&mut self.seen);
        for seen in self.seen.drain(..) {
            assert_eq!(seen.flags & RST, 0, "{seen:?}");
            let slot = &mut self.clients[usize::from(seen.peer_port)];
            let Some(call) = slot else {
                assert!(seen.len == 0, "no connection for this segment: {seen:?}");
                continue;
            };
            if seen.flags & SYN != 0 {
                call.ack = seen.seq.wrapping_add(1);
                call.say(wire, ACK, 0);
                call.say(wire, ACK, WORD);
                continue;
            }
            let before = call.heard;
            call.hear(&seen);
            if seen.flags & FIN != 0 {
                call.say(wire, ACK, 0);
                *slot = None;
                self.free.push_back(seen.peer_port);
                self.under_way -= 1;
            } else if before < WORD && call.heard == WORD {
                self.waiting -= 1;
                if self.more > 0 {
                    (self.more, self.waiting, call.heard) = (self.more - 1, self.waiting + 1, 0);
                    call.say(wire, ACK, WORD);
                } else if !self.keeps {
                    call.say(wire, ACK | FIN, 0);
                }
            }
        }
    }

    fn serve(&mut self) {
        let wire = self.proxy.back();
        wire.take(&mut self.seen);
        for seen in self.seen.drain(..) {
            assert_eq!(seen.flags & RST, 0, "{seen:?}");
            let slot = &mut self.servers[usize::from(seen.proxy_port)];
            if seen.flags & SYN != 0 {
                let ends = ((SERVER, SERVER_PORT), (BACK, seen.proxy_port));
                let mut call = Box::new(Call {
                    header: Header::new(ends.0, ends.1, &OPTIONS),
                    next: seen.seq ^ 0x5555_5555,
                    ack: seen.seq.wrapping_add(1),
                    heard: 0,
                });
                call.say(wire, SYN | ACK, 0);
                call.header = Header::new(ends.0, ends.1, &[]);
                *slot = Some(call);
                continue;
            }
            let Some(call) = slot else { continue };
            call.hear(&seen);
            if seen.len > 0 {
                call.say(wire, ACK, WORD);
            }
            if seen.flags & FIN != 0 {
                call.say(wire, ACK | FIN, 0);
            }
        }
    }
}
