//! Two raw peers and a splice between them (OpenBSD's `scapy`): the segments on the wire.
//!
//! One stack, so one link: the raw source connects to the stack, the stack connects to the raw drain.

use super::*;
use crate::splice::{Cause, Dispatch, Options, Splice, SplicePool};

struct Spliced {
    net: Net,
    pool: SplicePool,
    /// The peer of the splice's source, and the source.
    client: (Raw, TcpStream),
    /// The peer of the splice's sink, and the sink.
    server: (Raw, TcpStream),
    splice: Splice,
}

impl Spliced {
    /// The source is established; the sink has sent its SYN, which is not answered yet.
    fn connecting(limit: Option<u64>) -> Spliced {
        let mut net = Net::with(one_packet_each(), |b| {
            b.receive_buffer(4096).send_buffer(4096)
        });
        let client = net.accepted();
        let server = net.dialled();
        let pool = SplicePool::builder()
            .clock(net.clock.clone())
            .manual()
            .build();
        let options = Options {
            pool: Some(pool.clone()),
            dispatch: Some(Dispatch::Worker),
            limit,
            ..Options::default()
        };
        let splice = client.1.splice_to(&server.1, options).unwrap();
        Spliced {
            net,
            pool,
            client,
            server,
            splice,
        }
    }

    fn new(limit: Option<u64>) -> Spliced {
        let mut spliced = Spliced::connecting(limit);
        spliced.answer_syn();
        let [server, client] = spliced.seen();
        assert_eq!((server.len(), client.len()), (1, 0));
        assert_eq!(server[0].header.flags, ACK, "the handshake is complete");
        spliced
    }

    fn answer_syn(&mut self) {
        let raw = &mut self.server.0;
        raw.send(&self.net, SYN | ACK, b"");
        raw.seq = raw.seq.wrapping_add(1);
    }

    fn turn(&mut self) {
        self.net.turn();
        while self.pool.run_one() {
            self.net.turn();
        }
    }

    /// The segments sent to the server, and to the client.
    fn seen(&mut self) -> [Vec<Seen>; 2] {
        self.turn();
        let port = self.server.0.from.1;
        let seen = self.net.drain().into_iter();
        let (server, client) = seen.partition(|frame| frame.tuple.local_port == port);
        [server, client]
    }

    /// The only segment to the server has this data, is in order and has no FIN. Returns the segments
    /// sent to the client meanwhile.
    fn server_takes(&mut self, data: &[u8]) -> Vec<Seen> {
        let [server, mut client] = self.seen();
        assert_eq!(server.len(), 1, "{server:#?}");
        assert_eq!(server[0].header.flags, ACK | PSH);
        assert_eq!(self.server.0.take(&server), data);
        self.server.0.send(&self.net, ACK, b"");
        client.extend(self.net.seen());
        client
    }

    fn ended(&self) -> Option<(Cause, u64, usize)> {
        let end = self.splice.end();
        end.map(|end| (end.cause, end.bytes, end.residual))
    }
}

const DATA: &[u8] = b"0123456789";

/// Both handshakes, then ten bytes: the same length, the next sequence number.
#[test]
fn a_segment_is_forwarded_unchanged() {
    let mut spliced = Spliced::new(None);
    for total in [10, 20] {
        spliced.client.0.send_data(&spliced.net, DATA);
        let mut acks = spliced.server_takes(DATA);
        assert_eq!(spliced.splice.bytes(), total);
        spliced.net.pass(Duration::from_secs(1));
        acks.extend(spliced.net.drain());
        let ack = acks.last().expect("the client's bytes are acknowledged");
        assert_eq!(ack.header.ack, spliced.client.0.seq);
        // Sent before the pass; the later window update of ten bytes is withheld (RFC 9293 3.8.6.2.2).
        let told = total;
        assert_eq!(u64::from(ack.header.window), 4096 - told);
    }
    assert_eq!(spliced.ended(), None);
}

/// The client's data waits on the source, inside its window, until the drain's handshake is complete.
#[test]
fn a_late_syn_ack_holds_the_data() {
    let mut spliced = Spliced::connecting(None);
    spliced.client.0.send_data(&spliced.net, DATA);
    spliced.turn();
    spliced.net.pass(Duration::from_millis(500));
    let [server, client] = spliced.seen();
    assert!(server.iter().all(|frame| frame.header.flags == SYN));
    let ack = client.last().expect("it is acknowledged");
    assert_eq!(ack.header.window, 4096 - 10);
    assert_eq!(spliced.client.1.readable_bytes(), 10);
    spliced.answer_syn();
    spliced.turn();
    let [mut server, _] = spliced.seen();
    server.retain(|frame| !frame.payload.is_empty());
    assert_eq!(spliced.server.0.take(&server), DATA);
    assert_eq!((spliced.ended(), spliced.splice.bytes()), (None, 10));
}

/// As above, and the client has closed meanwhile: the end follows the last byte.
#[test]
fn a_late_syn_ack_holds_the_end() {
    let mut spliced = Spliced::connecting(None);
    spliced.client.0.send_data(&spliced.net, DATA);
    spliced.client.0.fin(&spliced.net);
    spliced.turn();
    assert_eq!(spliced.ended(), None);
    spliced.answer_syn();
    let [server, _] = spliced.seen();
    assert_eq!(spliced.server.0.take(&server), DATA);
    assert!(server.iter().all(|frame| !frame.has(FIN)), "{server:#?}");
    assert_eq!(spliced.ended(), Some((Cause::Eof, 10, 0)));
}

/// Few bytes are counted until the connection is next served; here nothing but their reader causes that.
#[test]
fn bytes_that_waited_long_are_not_counted_once_a_splice_has_taken_them() {
    for is_closed in [false, true] {
        let mut spliced = Spliced::connecting(None);
        spliced.client.0.send_data(&spliced.net, DATA);
        if is_closed {
            spliced.client.0.fin(&spliced.net);
        }
        spliced.net.pass(Duration::from_secs(10));
        assert_ne!(spliced.net.stack.stats().buffer_memory, 0);
        spliced.answer_syn();
        let [server, _] = spliced.seen();
        assert_eq!(spliced.server.0.take(&server), DATA);
        spliced.server.0.send(&spliced.net, ACK, b"");
        spliced.net.pass(Duration::from_secs(60));
        assert_eq!(spliced.net.stack.stats().buffer_memory, 0, "{is_closed}");
    }
}

#[test]
fn a_refused_drain_leaves_the_data() {
    let mut spliced = Spliced::connecting(None);
    spliced.client.0.send_data(&spliced.net, DATA);
    spliced.turn();
    spliced.server.0.send(&spliced.net, RST | ACK, b"");
    spliced.turn();
    let refused = Cause::SinkError(SoError::ConnectionRefused);
    assert_eq!(spliced.ended(), Some((refused, 0, 10)));
    assert_eq!(read(&spliced.client.1), DATA);
}

/// The data of a segment with a FIN is forwarded, the FIN is not.
#[test]
fn a_fin_with_data_ends_the_splice_only() {
    let mut spliced = Spliced::new(None);
    spliced.client.0.send(&spliced.net, ACK | PSH | FIN, DATA);
    spliced.server_takes(DATA);
    assert_eq!(spliced.ended(), Some((Cause::Eof, 10, 0)));
    assert!(is_end(&spliced.client.1));
    spliced.net.pass(Duration::from_secs(1));
    let [server, _] = spliced.seen();
    assert!(server.is_empty(), "{server:#?}");
}

/// Data and a reset in one batch: the data is forwarded, the reset is not.
#[test]
fn a_reset_of_the_source_ends_the_splice_only() {
    let mut spliced = Spliced::new(None);
    spliced.client.0.send_data(&spliced.net, DATA);
    spliced.client.0.send(&spliced.net, RST, b"");
    spliced.server_takes(DATA);
    let reset = Cause::SourceError(SoError::ConnectionReset);
    assert_eq!(spliced.ended(), Some((reset, 10, 0)));
}

/// Data and a reset of the drain in one batch: the data stays on the source.
#[test]
fn a_reset_of_the_drain_leaves_the_data() {
    let mut spliced = Spliced::new(None);
    spliced.server.0.send(&spliced.net, RST, b"");
    spliced.client.0.send_data(&spliced.net, DATA);
    spliced.turn();
    let reset = Cause::SinkError(SoError::ConnectionReset);
    assert_eq!(spliced.ended(), Some((reset, 0, 10)));
    assert_eq!(read(&spliced.client.1), DATA);
    let [_, client] = spliced.seen();
    assert!(client.iter().all(|frame| !frame.has(RST)), "{client:#?}");
}

#[test]
fn a_limit_cuts_a_segment() {
    let mut spliced = Spliced::new(Some(4));
    spliced.client.0.send_data(&spliced.net, DATA);
    spliced.server_takes(b"0123");
    assert_eq!(spliced.ended(), Some((Cause::Limit, 4, 6)));
    assert_eq!(read(&spliced.client.1), b"456789");
}

/// Guards `Driver::lags`: the thread that moves the bytes of an adaptive splice.
#[test]
fn a_worker_moves_the_bytes_while_the_driver_lags_behind() {
    const BATCH: usize = 32;
    let mut net = Net::with(one_packet_each(), |builder| builder);
    let (mut raw, source) = net.accepted();
    let (mut drain, sink) = net.dialled();
    drain.send(&net, SYN | ACK, b"");
    drain.seq = drain.seq.wrapping_add(1);
    net.turn();
    let pool = SplicePool::builder().manual().build();
    let options = Options {
        pool: Some(pool.clone()),
        ..Options::default()
    };
    let splice = source.splice_to(&sink, options).unwrap();
    while pool.run_one() {}
    let mut sent = 0;
    // Whether a worker had work, and how much is moved, after each batch of such segments.
    let mut behind_each = |net: &mut Net, batches: usize, count: usize, len: usize| {
        for _ in 0..batches * count {
            raw.send_data(net, &pattern(0, len));
        }
        let mut workers = Vec::new();
        for _ in 0..batches {
            assert!(net.driver.poll().unwrap());
            workers.push(std::iter::from_fn(|| pool.run_one().then_some(())).count() > 0);
            sent += (count * len) as u64;
            assert_eq!(splice.bytes(), sent, "all bytes were moved");
        }
        for _ in 0..20 {
            let port = drain.from.1;
            let mut seen = net.seen();
            seen.retain(|frame| frame.tuple.local_port == port);
            drain.take(&seen);
            drain.send(net, ACK, b"");
        }
        net.turn();
        workers
    };
    let lags = [false, false, false, true];
    assert_eq!(behind_each(&mut net, 4, BATCH, 1200), lags);
    assert_eq!(
        behind_each(&mut net, 1, 1, 1200),
        [false],
        "it keeps up again"
    );
    assert_eq!(behind_each(&mut net, 4, BATCH, 1200), lags);
    assert_eq!(
        behind_each(&mut net, 5, BATCH, 600),
        [false; 5],
        "small batches are moved directly"
    );
}
