//! Models of sending: threads that bring datagrams at the same time, and a driver that gives a full link room. All
//! datagrams are sent, in the order of `so_snd`.

#![cfg(sosplice_loom)]

use super::*;
use crate::buf::Buf;
use crate::clock;
use crate::link::{Frame, Interest, ReceiveError};
use crate::sync::Protection;
use crate::sync::model::{claim, explore, explore_without, join, spawn};
use std::io;

/// The stack, and a link with room for some packets, that keeps the last byte of each.
#[derive(Debug)]
struct Stack {
    now: Instant,
    counters: UdpCounters,
    /// The link's: packets that it takes, and what it has taken.
    link: Mutex<(usize, Vec<u8>), LEAF>,
    blocked: Mutex<bool, LEAF>,
}

impl Link for Stack {
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            mtu: 1500,
            checksum: true,
            segment_v4: None,
            segment_v6: None,
            datagrams_v4: None,
            datagrams_v6: None,
        }
    }

    fn receive(&self, _frames: &mut Vec<Frame>, _max: usize) -> Result<usize, ReceiveError> {
        Ok(0)
    }

    fn transmit(&self, packet: &Packet<'_>) -> Result<(), TransmitError> {
        let mut link = self.link.lock();
        let (room, sent) = &mut *link;
        if *room == 0 {
            return Err(TransmitError::Full);
        }
        *room -= 1;
        sent.extend(packet.payload.last().and_then(|buf| buf.last()));
        drop(link);
        Ok(())
    }

    fn wait(&self, _interest: Interest, _deadline: Option<Instant>) -> io::Result<()> {
        Ok(())
    }

    fn wake(&self) {}
}

impl Host for Stack {
    fn way(&self, from: Source, _to: IpAddr) -> Result<Way, SoError> {
        let Source::Named(source) = from else {
            return Err(SoError::HostUnreachable);
        };
        Ok(Way {
            source,
            looped: false,
            mtu: 1500,
        })
    }

    fn link(&self, _queue: u16, _looped: bool) -> &dyn Link {
        self
    }

    fn queues(&self) -> usize {
        1
    }

    fn now(&self) -> Instant {
        self.now
    }

    fn since_epoch(&self, _now: Instant) -> Duration {
        Duration::ZERO
    }

    fn fragment(
        &self,
        _link: &dyn Link,
        _packet: (&Packet<'_>, usize),
        _progress: &mut Option<Progress>,
    ) -> Result<(), TransmitError> {
        Ok(())
    }

    fn blocked(&self, _udp: &Arc<Udp>) {
        *self.blocked.lock() = true;
    }

    fn refuse(&self, _udp: &Udp, _why: SoError) {}
    fn connected(&self, _udp: &Udp, _names: Names) {}
    fn closed(&self, _udp: &Udp) {}
    fn detached(&self) {}

    fn counters(&self, _of: Transport) -> &UdpCounters {
        &self.counters
    }

    fn is_pressed(&self) -> (bool, bool) {
        (false, false)
    }

    fn holds(&self, _before: usize, _after: usize) {}
}

/// A flow, and its stack, whose link has room for so many packets.
fn flow(room: usize) -> (Arc<Udp>, Arc<Stack>) {
    let now = clock::system().now();
    let stack = Arc::new(Stack {
        now,
        counters: UdpCounters::default(),
        link: Mutex::new((room, Vec::new())),
        blocked: Mutex::default(),
    });
    let tuple = Tuple {
        local: [10, 0, 0, 1].into(),
        remote: [10, 0, 0, 2].into(),
        local_port: 53,
        remote_port: 4000,
    };
    let timeouts = Timeouts {
        unanswered: Duration::MAX,
        answered: Duration::MAX,
    };
    let end = SocketEnd::for_datagrams(100, 100, 10);
    let kind = (Transport::Udp, Kind::Flow(tuple), 0);
    let udp = Udp::new(stack.clone(), end, kind, timeouts);
    (udp, stack)
}

/// A datagram of one byte, as a program sends it.
fn bring(udp: &Udp, byte: u8) {
    let payload = [Buf::copy_of(&[byte])];
    udp.end
        .snd()
        .buf
        .append_record(payload, Addresses::default());
    udp.output();
}

/// The driver: what was blocked goes on.
fn drive(udp: &Udp, stack: &Stack) {
    let blocked = std::mem::take(&mut *stack.blocked.lock());
    if blocked {
        udp.resume();
    }
}

/// All were sent, and those of one thread in its order.
fn judge(udp: &Udp, stack: &Stack, count: usize) {
    let sent = std::mem::take(&mut stack.link.lock().1);
    let place = |byte| sent.iter().position(|sent| *sent == byte);
    claim(sent.len() == count, "each datagram is sent once");
    claim(place(1) < place(2), "the order is kept");
    claim(udp.waiting.lock().is_empty(), "none waits");
    claim(udp.end.snd().buf.is_empty(), "none is left");
}

/// Two threads with datagrams.
fn senders() {
    let (udp, stack) = flow(10);
    let other = udp.clone();
    let other = spawn(move || bring(&other, 3));
    bring(&udp, 1);
    bring(&udp, 2);
    join(other);
    judge(&udp, &stack, 3);
}

/// The link is full after the first datagram; a driver gives it room while the second one is brought.
fn full_link() {
    let (udp, stack) = flow(0);
    let (other, of_other) = (udp.clone(), stack.clone());
    let driver = spawn(move || {
        of_other.link.lock().0 += 2;
        drive(&other, &of_other);
    });
    bring(&udp, 1);
    bring(&udp, 2);
    join(driver);
    // A driver that has been told of a blocked socket looks once more before it waits.
    drive(&udp, &stack);
    judge(&udp, &stack, 2);
}

#[test]
fn datagrams_of_two_threads_are_sent() {
    explore("senders of datagrams", senders);
}

#[test]
fn datagrams_wait_for_a_full_link_in_order() {
    explore("a full link, datagrams", full_link);
}

#[test]
#[should_panic(expected = "each datagram is sent once")]
fn fails_if_no_word_is_left() {
    explore_without(Protection::LeaveWord, senders);
}

#[test]
#[should_panic(expected = "each datagram is sent once")]
fn fails_if_a_resumed_socket_leaves_no_word() {
    explore_without(Protection::LeaveWord, full_link);
}
