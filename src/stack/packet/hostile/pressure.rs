//! Memory near its limit: windows close, and open again; acknowledged data is kept, and connections
//! that are read continue.

use super::*;
use crate::local;
use crate::long::times;
use crate::socket::poller::{Events, Interest, Mode, Poller, Token};
use crate::splice::{Dispatch, Options, SplicePool};
use crate::tcp::conn::Conn;

/// Of each socket.
const BUFFER: usize = 64 * 1024;
/// An eighth of it is less than the least floor.
const FLOOR: u32 = 16 * 1024;
const LIMIT: usize = 400_000;

struct Peer {
    raw: Raw,
    stream: TcpStream,
    shift: u8,
    /// Bytes that it has sent.
    sent: usize,
    /// Bytes that were read.
    got: usize,
}

impl Peer {
    fn new(net: &mut Net, listener: &TcpListener, port: u16) -> Peer {
        let mut raw = Raw::new(port);
        let answer = raw.syn(net);
        raw.send(net, ACK, b"");
        net.turn();
        let (stream, _) = listener.accept().unwrap();
        stream.set_nonblocking(true);
        Peer {
            raw,
            stream,
            shift: answer.header.options.window_scale.unwrap_or(0),
            sent: 0,
            got: 0,
        }
    }

    /// Sends data, which the stack accepts or drops.
    fn send_data(&mut self, net: &Net, len: usize) {
        let data = pattern(self.sent, len);
        for part in data.chunks(1460) {
            self.raw.send_data(net, part);
        }
        self.sent += len;
    }

    fn read(&mut self) {
        let got = read(&self.stream);
        assert!(got == pattern(self.got, got.len()), "other bytes");
        self.got += got.len();
    }

    /// The window in the last of these frames, beyond all sent data.
    fn window(&self, seen: &[Seen]) -> u32 {
        let mine = |frame: &&Seen| frame.tuple.local_port == self.raw.from.1;
        let last = seen.iter().rfind(mine).unwrap();
        let edge = last
            .header
            .ack
            .wrapping_add(u32::from(last.header.window) << self.shift);
        edge.wrapping_sub(self.raw.seq)
    }
}

fn pressed(peers: u16) -> (Net, TcpListener, Vec<Peer>) {
    let mut net = Net::with(one_packet_each(), |builder| {
        let builder = builder.receive_buffer(BUFFER).send_buffer(BUFFER);
        builder.max_buffer_memory(LIMIT)
    });
    let listener = net.listen(80);
    let all = (0..peers).map(|i| Peer::new(&mut net, &listener, 5000 + i));
    let all = all.collect();
    (net, listener, all)
}

/// Fill, the window closes, drain, it opens, and every byte arrives.
#[test]
fn near_its_limit_a_stack_closes_windows_and_opens_them_again() {
    let (mut net, _listener, mut peers) = pressed(6);
    for peer in &mut peers[..5] {
        peer.send_data(&net, 60_000);
        net.turn();
    }
    let stats = net.stack.stats();
    assert_eq!((stats.buffer_memory, stats.memory_pressures), (300_000, 0));
    peers[5].send_data(&net, 1460);
    net.turn();
    let stats = net.stack.stats();
    assert_eq!((stats.buffer_memory, stats.memory_pressures), (301_460, 1));
    // A connection that is read gets a window of the floor, besides the former window.
    net.drain();
    peers[0].read();
    let open = peers[0].window(&net.seen());
    assert!(open <= FLOOR && open > FLOOR / 2, "{open}");
    // And continues with that, for as long as the pressure lasts.
    for _ in 0..100 {
        peers[0].send_data(&net, 8 * 1460);
        net.turn();
        peers[0].read();
        assert_eq!(peers[0].got, peers[0].sent, "all in-order data is accepted");
        assert!(peers[0].window(&net.seen()) <= FLOOR);
    }
    let stats = net.stack.stats();
    assert_eq!((stats.memory_pressures, stats.segments_pressed), (1, 0));
    // The others read: with the next segment, the window is as before.
    for peer in &mut peers {
        peer.read();
    }
    net.turn();
    net.drain();
    assert_eq!(net.stack.stats().buffer_memory, 0);
    peers[0].send_data(&net, 1460);
    net.turn();
    peers[0].read();
    let open = peers[0].window(&net.seen());
    assert!(open as usize > BUFFER - 2000, "{open}");
    assert!(peers.iter().all(|peer| peer.got == peer.sent));
    net.healthy();
}

/// Beyond the limit data is dropped as if it had been lost, but its acknowledgement is processed.
#[test]
fn beyond_its_limit_a_stack_drops_data_but_no_acknowledgement() {
    let (mut net, _listener, mut peers) = pressed(8);
    for peer in &mut peers[..6] {
        peer.send_data(&net, 64_240);
        net.turn();
    }
    (&peers[6].stream).write_all(b"hello").unwrap();
    peers[6].send_data(&net, 40_880);
    net.turn();
    net.drain();
    let before = net.stack.stats();
    assert!(before.buffer_memory > LIMIT && before.segments_pressed == 0);
    // It holds more than twice the floor.
    let mut late = peers[6].raw.clone();
    late.ack = late.ack.wrapping_add(5);
    late.send(&net, ACK | FIN, &pattern(40_880, 1000));
    assert!(net.seen().is_empty(), "not acknowledged");
    let stats = net.stack.stats();
    assert_eq!(stats.segments_pressed, 1);
    assert!(peers[6].stream.as_ref().end().snd().buf.is_empty());
    // One that holds less is served.
    peers[7].send_data(&net, 10_000);
    net.turn();
    peers[7].read();
    assert_eq!(peers[7].got, 10_000);
    assert_eq!(net.stack.stats().segments_pressed, 1);
    // When there is room again, dropped data is retransmitted, and none is missing.
    peers.iter_mut().for_each(Peer::read);
    net.seen();
    late.send(&net, ACK | FIN, &pattern(40_880, 1000));
    let answer = net.soon();
    assert_eq!(answer.header.ack, late.seq.wrapping_add(1001));
    peers[6].read();
    assert_eq!(peers[6].got, 41_880);
    assert!(is_end(&peers[6].stream));
    assert!(peers[..6].iter().all(|peer| peer.got == 64_240));
    net.healthy();
}

/// Out-of-order data is dropped first.
#[test]
fn out_of_order_data_is_not_kept_under_pressure() {
    let (mut net, _listener, mut peers) = pressed(7);
    for peer in &mut peers[..5] {
        peer.send_data(&net, 62_000);
        net.turn();
    }
    net.drain();
    assert_eq!(net.stack.stats().memory_pressures, 1);
    let data = pattern(0, 2000);
    peers[6].raw.send_at(&net, 1000, ACK, &data[1000..]);
    let answer = net.one();
    assert_eq!(answer.header.ack, peers[6].raw.seq, "a duplicate");
    assert_eq!(net.stack.stats().segments_pressed, 1);
    peers[6].send_data(&net, 1000);
    net.turn();
    peers[6].read();
    assert_eq!(peers[6].got, 1000);
    peers[6].send_data(&net, 1000);
    net.turn();
    peers[6].read();
    assert_eq!(peers[6].got, 2000);
    // Without pressure it is kept.
    peers.iter_mut().for_each(Peer::read);
    net.seen();
    peers[6].raw.send_at(&net, 1000, ACK, &pattern(3000, 1000));
    net.turn();
    peers[6].send_data(&net, 1000);
    net.turn();
    let got = read(&peers[6].stream);
    assert_eq!(got, pattern(2000, 2000));
}

/// Guards `SockBuf::ceiling`: a writer is slowed down, and continues with each acknowledgement.
#[test]
fn writers_are_slowed_down_too() {
    let (mut net, _listener, mut peers) = pressed(7);
    for peer in &mut peers[..5] {
        peer.send_data(&net, 62_000);
        net.turn();
    }
    net.drain();
    // One more step, in which it notices the pressure.
    peers[6].send_data(&net, 1);
    net.turn();
    net.drain();
    let data = pattern(0, 100_000);
    let mut written = 0;
    let mut got = Vec::new();
    while got.len() < data.len() {
        let peer = &mut peers[6];
        while let Ok(count) = (&peer.stream).write(&data[written..]) {
            written += count;
            if count == 0 {
                break;
            }
        }
        assert!(
            written <= got.len() + FLOOR as usize,
            "{written} {}",
            got.len()
        );
        let seen = net.seen();
        assert!(!seen.is_empty(), "it makes progress");
        let peer = &mut peers[6];
        got.extend(peer.raw.take(&seen));
        peer.raw.send(&net, ACK, b"");
        net.turn();
    }
    assert!(got == data);
    // Later it may fill the buffer again.
    peers.iter_mut().for_each(Peer::read);
    net.seen();
    (&peers[6].stream).write_all(b"x").unwrap();
    net.seen();
    assert_eq!((&peers[6].stream).write(&data).unwrap(), BUFFER - 1);
}

/// A splice, a poller or a thread that waits for a low-water mark cannot know that it is lower while memory is short.
#[test]
fn what_waits_for_a_low_water_mark_is_woken_when_memory_becomes_short() {
    const HELD: usize = 28_000;
    let (mut net, _listener, mut peers) = pressed(7);
    let (near, far) = local::pair();
    let pool = SplicePool::builder().manual().dispatch(Dispatch::Worker);
    let pool = pool.build();
    let options = Options::default().pool(pool.clone()).lowat(30_000);
    let splice = peers[0].stream.splice_to(&near, options).unwrap();
    peers[1].stream.set_rcv_lowat(30_000);
    let poller = Poller::new();
    let (token, interest) = (Token(1), Interest::READABLE);
    poller
        .add(&peers[1].stream, token, interest, Mode::Level)
        .unwrap();
    for peer in &mut peers[..2] {
        peer.send_data(&net, HELD);
    }
    net.turn();
    while pool.run_one() {}
    let mut events = Events::default();
    let mut readable = || poller.wait(&mut events, Some(Duration::ZERO)).unwrap();
    assert_eq!((splice.bytes(), readable()), (0, 0), "less than the mark");
    for peer in &mut peers[2..] {
        peer.send_data(&net, 60_000);
    }
    net.turn();
    assert_eq!(net.stack.stats().memory_pressures, 1);
    // Any segment, without data: the service step after it takes the window back.
    for peer in &mut peers[..2] {
        peer.raw.send(&net, ACK, b"");
    }
    net.turn();
    while pool.run_one() {}
    assert_eq!(splice.bytes(), HELD as u64);
    assert_eq!(far.recv_chain(HELD + 1).unwrap().len(), HELD);
    assert_eq!(readable(), 1, "as many as the lower mark");
}

/// Guards the early return of `Tcb::serve` and `Conn::drop`: readable data still holds memory.
#[test]
fn unread_bytes_count_until_their_socket_is_dropped() {
    let (mut net, _listener, mut peers) = pressed(2);
    for peer in &mut peers {
        peer.send_data(&net, 10_000);
    }
    peers[0].raw.send(&net, RST, b"");
    net.seen();
    let stats = net.stack.stats();
    assert_eq!((stats.connections, stats.buffer_memory), (1, 20_000));
    (&peers[0].stream).read_exact(&mut [0; 5840]).unwrap();
    assert_eq!(net.stack.stats().buffer_memory, 14_160);
    drop(peers.remove(0));
    assert_eq!(net.stack.stats().buffer_memory, 10_000);
    drop(peers);
    net.seen();
    assert_eq!(net.stack.stats().buffer_memory, 0);
}

/// The count is exact for any order of events.
#[test]
fn random_steps_leave_no_memory_counted() {
    let mut random = fastrand::Rng::with_seed(0xfeed);
    let (mut net, listener, mut peers) = pressed(8);
    let mut port = 6000;
    let mut most = 0;
    for _ in 0..times(4_000, 10_000) {
        let at = random.usize(..peers.len());
        match random.u8(..8) {
            0 => peers[at].send_data(&net, random.usize(1..30_000)),
            1 => {
                let data = pattern(0, random.usize(1..1400));
                peers[at]
                    .raw
                    .send_at(&net, random.i32(0..50_000), ACK, &data);
            }
            2 => drop(read(&peers[at].stream)),
            3 => drop((&peers[at].stream).write(&pattern(0, random.usize(1..30_000)))),
            4 => peers[at].raw.send(&net, ACK, b""),
            5 => net.pass(Duration::from_millis(random.u64(..300))),
            6 => {
                let seen = net.seen();
                let mine = |frame: &&Seen| frame.tuple.local_port == peers[at].raw.from.1;
                if let Some(last) = seen.iter().rfind(mine) {
                    let len = last.payload.len() as u32;
                    peers[at].raw.ack = last.header.seq.wrapping_add(len);
                    peers[at].raw.seq = last.header.ack;
                }
            }
            _ => {
                peers[at].raw.send(&net, RST, b"");
                net.turn();
                net.drain();
                port += 1;
                peers[at] = Peer::new(&mut net, &listener, port);
            }
        }
        net.turn();
        net.drain();
        let mut held = 0;
        for peer in &peers {
            let end = peer.stream.as_ref().end();
            held += end.rcv().buf.memory() + end.snd().buf.memory();
            held += conn_of(&peer.stream).reassembly_memory();
        }
        let counted = net.stack.stats().buffer_memory;
        // Writes are counted at once; reads too, in each thread.
        assert!(counted >= held, "{counted} {held}");
        most = most.max(counted);
    }
    let stats = net.stack.stats();
    assert!(
        stats.memory_pressures > 10 && stats.segments_pressed > 10,
        "{stats:?}"
    );
    assert!(most < LIMIT + 8 * 2 * BUFFER, "{most}");
    drop((peers, listener));
    net.pass(Duration::from_secs(600));
    let stats = net.stack.stats();
    assert_eq!((stats.connections, stats.buffer_memory), (0, 0));
    net.healthy();
}

fn conn_of(stream: &TcpStream) -> &Conn {
    stream.conn()
}
