//! The link: full, refusing, gone; and super-frames out.

use super::*;
use crate::link::{Frame, Interest, Link, ReceiveError, TransmitError};
use crate::sockbuf::{Addresses, Datagram};
use std::sync::atomic::{AtomicU8, Ordering};

/// A link of which no packet gets through while it is told so.
#[derive(Debug)]
struct Moody(MemoryLink, Arc<AtomicU8>);

const WELL: u8 = 0;
const REFUSES: u8 = 1;
const GONE: u8 = 2;

impl Link for Moody {
    fn capabilities(&self) -> Capabilities {
        self.0.capabilities()
    }
    fn receive(&self, frames: &mut Vec<Frame>, max: usize) -> Result<usize, ReceiveError> {
        self.0.receive(frames, max)
    }
    fn transmit(&self, packet: &Packet<'_>) -> Result<(), TransmitError> {
        match self.1.load(Ordering::Relaxed) {
            REFUSES => Err(TransmitError::Refused(ErrorKind::InvalidInput.into())),
            GONE => Err(TransmitError::Gone(ErrorKind::BrokenPipe.into())),
            _ => self.0.transmit(packet),
        }
    }
    fn wait(&self, interest: Interest, deadline: Option<Instant>) -> io::Result<()> {
        self.0.wait(interest, deadline)
    }
    fn wake(&self) {
        self.0.wake();
    }
}

fn moody() -> (Net, Arc<AtomicU8>) {
    let mood = Arc::<AtomicU8>::default();
    let clock = Arc::new(TestClock(Mutex::new(SystemClock.now())));
    let (link, wire) = memory::pair(one_packet_each());
    let (stack, driver) = Stack::builder(Moody(link, mood.clone()))
        .address("10.0.0.1/24".parse().unwrap())
        .clock(clock.clone())
        .build_with_driver()
        .unwrap();
    let net = Net {
        clock,
        stack,
        driver,
        wire,
    };
    (net, mood)
}

/// Nothing is lost or overtakes: what the link has no room for waits, then `so_snd` fills, then the caller waits.
#[test]
fn a_full_link_makes_datagrams_wait() {
    for (close, frames) in [(false, 4), (true, 4), (false, 100)] {
        let mut config = one_packet_each();
        config.frames = frames;
        let mut net = Net::with(config, |builder| builder);
        let socket = net.bound("10.0.0.1:7");
        socket.connect("10.0.0.2:9").unwrap();
        let mut count = 0_usize;
        let blocked = loop {
            match socket.send(&count.to_be_bytes()) {
                Ok(8) => count += 1,
                other => break other,
            }
        };
        assert_eq!(kind(blocked), ErrorKind::WouldBlock);
        // A batch that was taken, and what the buffer holds.
        assert!(count >= frames + 1024, "{count}");
        assert!(net.driver.interest().overlaps(Interest::WRITABLE));
        if close {
            drop(socket);
        }
        let mut found = Vec::new();
        while found.len() < count {
            let sent = net.sent();
            assert!(!sent.is_empty() && sent.len() <= frames, "{}", found.len());
            found.extend(sent);
        }
        for (number, datagram) in found.iter().enumerate() {
            assert_eq!(datagram.payload, number.to_be_bytes());
        }
        net.turn();
        assert!(!net.driver.interest().overlaps(Interest::WRITABLE));
        let stats = net.stack.stats();
        assert_eq!(
            (stats.datagrams_sent, stats.datagrams_unsent),
            (count as u64, 0)
        );
        assert_eq!(net.listed().len(), usize::from(!close));
    }
}

/// The batch that waits for the link is shown as unsent.
#[test]
fn what_waits_for_the_link_is_listed() {
    let mut config = one_packet_each();
    config.frames = 2;
    let net = Net::with(config, |builder| builder);
    let socket = net.bound("10.0.0.1:7");
    socket.connect("10.0.0.2:9").unwrap();
    for _ in 0..5 {
        socket.send(&[0; 100]).unwrap();
    }
    assert_eq!(net.listed()[0].queued, [0, 300]);
}

/// A link that takes a datagram never: lost, counted, and the next ones go on.
#[test]
fn a_refused_datagram_is_lost_and_counted() {
    let (mut net, mood) = moody();
    let socket = net.bound("10.0.0.1:7");
    mood.store(REFUSES, Ordering::Relaxed);
    for _ in 0..3 {
        socket.send_to(b"lost", "10.0.0.2:9").unwrap();
    }
    mood.store(WELL, Ordering::Relaxed);
    socket.send_to(b"sent", "10.0.0.2:9").unwrap();
    assert_eq!(net.sent(), [got("10.0.0.1:7", "10.0.0.2:9", b"sent")]);
    let stats = net.stack.stats();
    assert_eq!((stats.datagrams_sent, stats.datagrams_unsent), (1, 3));
}

#[test]
fn a_link_that_is_gone_is_an_error_of_the_next_call() {
    let (net, mood) = moody();
    let socket = net.bound("10.0.0.1:7");
    mood.store(GONE, Ordering::Relaxed);
    socket.send_to(b"lost", "10.0.0.2:9").unwrap();
    let error = socket.send_to(b"lost", "10.0.0.2:9");
    assert_eq!(kind(error), ErrorKind::NetworkDown);
    assert_eq!(net.stack.stats().datagrams_unsent, 1);
}

fn offloading(most: usize, checksum: bool) -> memory::Config {
    let mut config = one_packet_each();
    config.capabilities = Capabilities::new(1500)
        .checksum(checksum)
        .datagrams_v4(most)
        .datagrams_v6(most);
    config
}

/// Datagrams of these lengths, to these peers.
fn batch(parts: &[(&str, usize)]) -> Vec<Datagram> {
    let one = |(number, (to, len)): (usize, &(&str, usize))| {
        Datagram::new(
            [Buf::copy_of(&pattern(number, *len))],
            Addresses::to(at(to)),
        )
    };
    parts.iter().enumerate().map(one).collect()
}

/// The frames of the stack: payload bytes, and the size of each datagram.
fn frames(net: &mut Net) -> Vec<(usize, Option<u16>)> {
    net.turn();
    let mut frames = Vec::new();
    while net.wire.receive(&mut frames, 10_000).unwrap() > 0 {}
    let size = |frame: &Frame| {
        let headers = if frame.head[0] >> 4 == 4 { 28 } else { 48 };
        (frame.len() - headers, frame.segment.map(NonZeroU16::get))
    };
    frames.iter().map(size).collect()
}

/// `UDP_SEGMENT` of Linux: one pair of addresses, equal sizes, the last one shorter; at most 128.
#[test]
fn datagrams_leave_in_super_frames() {
    for (own, a, b) in [
        ("10.0.0.1:7", "10.0.0.2:9", "10.0.0.3:9"),
        ("[fd00::1]:7", "[fd00::2]:9", "[fd00::3]:9"),
    ] {
        let mut net = Net::with(offloading(65_535, true), |builder| builder);
        let socket = net.bound(own);
        let mut sent = |parts: &[(&str, usize)]| {
            let mut all = batch(parts);
            while !all.is_empty() {
                socket.send_many(&mut all).unwrap();
            }
            frames(&mut net)
        };
        assert_eq!(sent(&[(a, 500); 3]), [(1500, Some(500))]);
        assert_eq!(
            sent(&[(a, 500), (a, 500), (a, 20)]),
            [(1020, Some(500))],
            "the last one is shorter"
        );
        assert_eq!(
            sent(&[(a, 500), (a, 20), (a, 20), (a, 500)]),
            [(520, Some(500)), (20, None), (500, None)]
        );
        assert_eq!(sent(&[(a, 20), (a, 500)]), [(20, None), (500, None)]);
        assert_eq!(
            sent(&[(a, 500), (b, 500), (b, 500)]),
            [(500, None), (1000, Some(500))],
            "each to its own"
        );
        assert_eq!(
            sent(&[(a, 0), (a, 0), (a, 5), (a, 0)]),
            [(0, None), (0, None), (5, None), (0, None)],
            "empty ones by themselves"
        );
        assert_eq!(
            sent(&[(a, 1); 300]),
            [(128, Some(1)), (128, Some(1)), (44, Some(1))]
        );
        let large = sent(&[(a, 1400); 100]);
        let payload: usize = large.iter().map(|(len, _)| len).sum();
        assert_eq!(payload, 140_000);
        assert!(
            large.iter().all(|(len, _)| *len + 48 <= 65_521),
            "{large:?}"
        );
        assert_eq!(large.len(), 3, "46 go into 65,000 bytes");
        let stats = net.stack.stats();
        assert_eq!(stats.datagrams_sent, 3 + 3 + 4 + 2 + 3 + 4 + 300 + 100);
    }
}

/// Each datagram of a super-frame is what it would be by itself.
#[test]
fn a_super_frame_that_is_cut_again_is_the_datagrams() {
    let mut net = Net::with(offloading(65_535, true), |builder| builder);
    let (link, wire) = memory::pair(offloading(65_535, true));
    let builder = Stack::builder(link).address("10.0.0.2/24".parse().unwrap());
    let (stack, driver) = builder.build_with_driver().unwrap();
    let mut other = Net {
        clock: net.clock.clone(),
        stack,
        driver,
        wire,
    };
    let receiver = other.bound("10.0.0.2:9");
    let socket = net.bound("10.0.0.1:7");
    let parts = [("10.0.0.2:9", 700), ("10.0.0.2:9", 700), ("10.0.0.2:9", 33)];
    socket.send_many(&mut batch(&parts)).unwrap();
    net.turn();
    let mut frames = Vec::new();
    net.wire.receive(&mut frames, 10).unwrap();
    assert_eq!(frames.len(), 1);
    let frame = &frames[0];
    let packet = Packet::new(&frame.head, &frame.rest, 20)
        .checksum(frame.checksum)
        .segment(frame.segment);
    other.wire.transmit(&packet).unwrap();
    other.turn();
    for (number, (_, len)) in parts.into_iter().enumerate() {
        let (payload, from) = received(&receiver).unwrap();
        assert_eq!((payload, from), (pattern(number, len), at("10.0.0.1:7")));
    }
}

/// Links that cannot, or can little.
#[test]
fn without_segmentation_they_leave_one_by_one() {
    let parts = [("10.0.0.2:9", 500); 3];
    let plain = |config| {
        let mut net = Net::with(config, |builder| builder);
        let socket = net.bound("10.0.0.1:7");
        socket.send_many(&mut batch(&parts)).unwrap();
        frames(&mut net)
    };
    assert_eq!(plain(one_packet_each()), [(500, None); 3]);
    for most in [0, 20, 28, 600] {
        assert_eq!(plain(offloading(most, true)), [(500, None); 3], "{most}");
    }
    assert_eq!(
        plain(offloading(1100, true)),
        [(1000, Some(500)), (500, None)]
    );
    // Who cuts has to compute checksums.
    assert_eq!(plain(offloading(65_535, false)), [(500, None); 3]);
}

/// RFC 768: a checksum that comes to 0 is sent as ones, by the stack and by a link that completes it.
#[test]
fn a_checksum_of_zero_is_never_sent() {
    for checksum in [true, false] {
        for (own, peer, headers) in OWN {
            let mut net = Net::with(offloading(65_535, checksum), |builder| builder);
            let socket = net.bound(own);
            socket.send_to(&[0, 0], peer).unwrap();
            let packet = &net.complete()[0];
            let sum = packet[headers - 2..headers].to_vec();
            socket.send_to(&sum, peer).unwrap();
            let packet = &net.complete()[0];
            assert_eq!(packet[headers - 2..headers], [0xff, 0xff], "{checksum}");
            assert_eq!(parsed(packet, 64).payload, sum);
        }
    }
}

const OWN: [(&str, &str, usize); 2] = [
    ("10.0.0.1:7", "10.0.0.2:9", 28),
    ("[fd00::1]:7", "[fd00::2]:9", 48),
];

/// A stack that is dropped delivers what was sent before, as it does for connections.
#[test]
fn what_was_sent_before_the_stack_was_dropped_is_delivered() {
    let mut config = one_packet_each();
    config.frames = 4;
    let (link, wire) = memory::pair(config);
    let stack = Stack::builder(link)
        .address("10.0.0.1/24".parse().unwrap())
        .build()
        .unwrap();
    let socket = UdpSocket::bind(&stack, "10.0.0.1:7").unwrap();
    for _ in 0..20 {
        socket.send_to(b"sent", "10.0.0.2:9").unwrap();
    }
    drop(socket);
    drop(stack);
    let mut found = Vec::new();
    let late = SystemClock.now() + Duration::from_secs(3);
    while found.len() < 20 && SystemClock.now() < late {
        let mut frames = Vec::new();
        if wire.receive(&mut frames, 100).is_err() {
            break;
        }
        found.extend(frames);
    }
    assert_eq!(found.len(), 20);
}

/// The last one of a run is shorter, and fits into a packet although the others do not: it is no fragment.
#[test]
fn a_short_datagram_behind_long_ones_is_no_fragment() {
    let mut net = Net::new();
    let socket = net.bound("[fd00::1]:7");
    let to = Addresses::to(at("[fd00::2]:9"));
    let of_len = |len| Datagram::new([Buf::copy_of(&vec![7; len])], to);
    let mut batch = vec![of_len(2000), of_len(2000), of_len(500)];
    assert_eq!(socket.send_many(&mut batch).unwrap(), 3);
    let packets = net.packets();
    let next: Vec<u8> = packets.iter().map(|packet| packet[6]).collect();
    assert_eq!(next, [44, 44, 44, 44, 17]);
}
