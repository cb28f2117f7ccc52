//! The adapter, in virtual time, between two interfaces: a proxy's with adopted sockets, and a host's without.

use super::wire::{FRAMES, Wire, address, interface, socket, wires};
use super::*;
use crate::splice::{Cause, Options, Splice, SplicePool};
use crate::{Socket, local};
use smoltcp::iface::Interface;
use smoltcp::phy::Medium;
use smoltcp::wire::{HardwareAddress, IpEndpoint};
use std::io::ErrorKind;
use std::net::Shutdown;
use std::sync::atomic::{AtomicUsize, Ordering};

const RING: usize = 4096;

/// An interface, and its set.
struct Host {
    wire: Wire,
    interface: Interface,
    sockets: SocketSet<'static>,
}

impl Host {
    fn new(host: u8, mut wire: Wire) -> Host {
        let interface = interface(host, &mut wire, HardwareAddress::Ip);
        Host {
            wire,
            interface,
            sockets: SocketSet::new(Vec::new()),
        }
    }

    fn tcp(&mut self, handle: SocketHandle) -> &mut tcp::Socket<'static> {
        self.sockets.get_mut(handle)
    }

    fn poll(&mut self, now: Instant) {
        self.interface.poll(now, &mut self.wire, &mut self.sockets);
    }

    fn listen(&mut self, port: u16) -> SocketHandle {
        let mut socket = socket(RING, RING);
        socket.listen(port).unwrap();
        self.sockets.add(socket)
    }

    fn dial(&mut self, to: u8, port: u16) -> SocketHandle {
        let mut socket = socket(RING, RING);
        let context = self.interface.context();
        socket.connect(context, (address(to), port), port).unwrap();
        self.sockets.add(socket)
    }

    fn read(&mut self, handle: SocketHandle) -> Vec<u8> {
        let mut bytes = vec![0; 2 * RING];
        let count = self.tcp(handle).recv_slice(&mut bytes).unwrap_or(0);
        bytes.truncate(count);
        bytes
    }
}

/// A program with adopted sockets (10.0.0.1), and its peer, plain smoltcp (10.0.0.2).
struct Pair {
    near: Host,
    far: Host,
    adapter: Adapter,
    woken: Arc<AtomicUsize>,
    now: Instant,
    port: u16,
}

impl Pair {
    fn new() -> Pair {
        let [near, far] = wires(Medium::Ip);
        let woken: Arc<AtomicUsize> = Arc::default();
        let counts = woken.clone();
        let wake = move || {
            counts.fetch_add(1, Ordering::SeqCst);
        };
        Pair {
            near: Host::new(1, near),
            far: Host::new(2, far),
            adapter: Adapter::new(wake),
            woken,
            now: Instant::from_secs(1),
            port: 1000,
        }
    }

    fn turn(&mut self) {
        self.near.poll(self.now);
        self.adapter.polled(&mut self.near.sockets, self.now);
        self.far.poll(self.now);
    }

    /// All that needs no time.
    fn run(&mut self) {
        (0..50).for_each(|_| self.turn());
    }

    fn sleep(&mut self, time: Duration) {
        let until = self.now + time;
        while self.now < until {
            self.run();
            self.now += Duration::from_millis(100);
        }
        self.run();
    }

    /// A connection that the peer has dialled; not adopted yet.
    fn connection(&mut self) -> (SocketHandle, SocketHandle) {
        self.port += 1;
        let near = self.near.listen(self.port);
        let far = self.far.dial(1, self.port);
        self.run();
        assert_eq!(self.near.tcp(near).state(), State::Established);
        (near, far)
    }

    /// One that is adopted.
    fn adopted(&mut self) -> (Socket, SocketHandle, SocketHandle) {
        let (near, far) = self.connection();
        let socket = self.adapter.adopt(&self.near.sockets, near).unwrap();
        socket.set_nonblocking(true);
        (socket, near, far)
    }

    fn send(&mut self, far: SocketHandle, bytes: &[u8]) {
        assert_eq!(self.far.tcp(far).send_slice(bytes), Ok(bytes.len()));
        self.run();
    }
}

fn read(socket: &Socket) -> Result<Vec<u8>, ErrorKind> {
    let chain = socket.recv_chain(usize::MAX);
    Ok(chain.map_err(|error| error.kind())?.to_vec())
}

#[test]
fn bytes_and_ends_pass_both_ways() {
    let mut pair = Pair::new();
    let (socket, near, far) = pair.adopted();
    assert_eq!(socket.protocol().addresses().unwrap().0.port(), pair.port);
    pair.send(far, b"hello");
    assert_eq!(read(&socket).unwrap(), b"hello");
    assert_eq!(socket.send(b"world").unwrap(), 5);
    pair.run();
    assert_eq!(pair.far.read(far), b"world");
    socket.shutdown(Shutdown::Write).unwrap();
    pair.run();
    assert_eq!(pair.far.tcp(far).state(), State::CloseWait);
    pair.send(far, b"half-closed");
    pair.far.tcp(far).close();
    pair.run();
    assert_eq!(read(&socket).unwrap(), b"half-closed");
    assert_eq!(read(&socket).unwrap(), b"");
    assert_eq!((socket.take_error(), pair.adapter.finished()), (None, None));
    pair.sleep(Duration::from_secs(11));
    assert_eq!(pair.adapter.finished(), Some(near), "after TIME-WAIT");
    assert_eq!(pair.adapter.finished(), None);
}

#[test]
fn an_orderly_end_of_the_peer_first_is_no_error() {
    let mut pair = Pair::new();
    let (socket, near, far) = pair.adopted();
    pair.far.tcp(far).close();
    pair.run();
    assert_eq!(read(&socket).unwrap(), b"");
    socket.send(b"last words").unwrap();
    let end = socket.end().clone();
    drop(socket);
    pair.run();
    assert_eq!(pair.far.read(far), b"last words");
    assert_eq!(pair.near.tcp(near).state(), State::Closed);
    assert_eq!((end.error(), pair.adapter.finished()), (None, Some(near)));
}

#[test]
fn a_reset_is_told_from_an_end_and_received_bytes_stay() {
    let mut pair = Pair::new();
    let (socket, near, far) = pair.adopted();
    pair.far.tcp(far).send_slice(b"before").unwrap();
    pair.far.poll(pair.now);
    pair.far.tcp(far).abort();
    pair.run();
    assert_eq!(read(&socket).unwrap(), b"before");
    assert_eq!(read(&socket), Err(ErrorKind::ConnectionReset));
    assert_eq!(read(&socket).unwrap(), b"");
    assert_eq!(socket.send(b"x").unwrap_err().kind(), ErrorKind::BrokenPipe);
    assert_eq!(pair.adapter.finished(), Some(near));
}

#[test]
fn a_reset_after_the_end_of_the_peer_is_one() {
    let mut pair = Pair::new();
    let (socket, _, far) = pair.adopted();
    pair.far.tcp(far).close();
    pair.run();
    assert_eq!(read(&socket).unwrap(), b"");
    pair.far.sockets.remove(far);
    socket.send(b"for nobody").unwrap();
    pair.run();
    assert_eq!(socket.take_error(), Some(SoError::ConnectionReset));
}

#[test]
fn bytes_before_a_reset_are_all_read_though_there_is_no_room_at_first() {
    let mut pair = Pair::new();
    let (socket, _, far) = pair.adopted();
    let sent = vec![7; RING];
    for _ in 0..2 {
        pair.send(far, &sent);
    }
    assert_eq!(socket.readable_bytes(), RING, "the rest is in the ring");
    pair.far.tcp(far).abort();
    pair.run();
    assert_eq!(read(&socket).unwrap().len(), 2 * RING);
    assert_eq!(read(&socket), Err(ErrorKind::ConnectionReset));
}

#[test]
fn refused_and_timed_out() {
    let mut pair = Pair::new();
    let dial = |pair: &mut Pair, to| {
        let handle = pair.near.dial(to, 80);
        pair.near
            .tcp(handle)
            .set_timeout(Some(Duration::from_secs(5)));
        let socket = pair.adapter.adopt(&pair.near.sockets, handle).unwrap();
        socket.set_nonblocking(true);
        (socket, handle)
    };
    let (refused, handle) = dial(&mut pair, 2);
    assert_eq!(
        refused.send(b"early").unwrap_err().kind(),
        ErrorKind::WouldBlock
    );
    pair.run();
    assert_eq!(refused.take_error(), Some(SoError::ConnectionRefused));
    assert_eq!(pair.adapter.finished(), Some(handle));
    pair.near.sockets.remove(handle);
    let (silent, handle) = dial(&mut pair, 3);
    pair.sleep(Duration::from_secs(4));
    assert_eq!(silent.take_error(), None);
    pair.sleep(Duration::from_secs(2));
    assert_eq!(silent.take_error(), Some(SoError::TimedOut));
    assert_eq!(pair.adapter.finished(), Some(handle));
}

#[test]
fn a_peer_that_vanishes_is_a_timeout_and_a_reset_before_is_not() {
    let mut pair = Pair::new();
    let (socket, near, _) = pair.adopted();
    pair.near
        .tcp(near)
        .set_timeout(Some(Duration::from_secs(5)));
    socket.send(b"to nobody").unwrap();
    for _ in 0..100 {
        pair.near.poll(pair.now);
        pair.adapter.polled(&mut pair.near.sockets, pair.now);
        pair.far.wire.lose();
        pair.now += Duration::from_millis(100);
    }
    assert_eq!(socket.take_error(), Some(SoError::TimedOut));
    let (socket, near, far) = pair.adopted();
    pair.near
        .tcp(near)
        .set_timeout(Some(Duration::from_secs(5)));
    pair.sleep(Duration::from_secs(4));
    pair.far.tcp(far).abort();
    pair.run();
    assert_eq!(socket.take_error(), Some(SoError::ConnectionReset));
}

#[test]
fn a_full_so_rcv_closes_smoltcps_window() {
    let mut pair = Pair::new();
    let (socket, near, far) = pair.adopted();
    let (mut sent, data) = (0, vec![1; RING]);
    for _ in 0..20 {
        sent += pair.far.tcp(far).send_slice(&data).unwrap();
        pair.run();
    }
    assert_eq!((sent, socket.readable_bytes()), (3 * RING, RING));
    assert_eq!(pair.near.tcp(near).recv_queue(), RING);
    assert_eq!(pair.far.tcp(far).send_queue(), RING, "not acknowledged");
    let mut got = 0;
    while got < sent {
        got += read(&socket).unwrap().len();
        pair.run();
    }
    assert_eq!(pair.woken.load(Ordering::SeqCst), got / RING - 1);
}

#[test]
fn what_arrived_before_time_wait_ends_is_not_lost() {
    let mut pair = Pair::new();
    let (socket, near, far) = pair.adopted();
    socket.shutdown(Shutdown::Write).unwrap();
    pair.send(far, &[1; RING]);
    pair.send(far, &[2; RING]);
    pair.far.tcp(far).close();
    pair.run();
    assert_eq!(pair.near.tcp(near).state(), State::TimeWait);
    pair.sleep(Duration::from_secs(30));
    assert_eq!(pair.near.tcp(near).state(), State::Closed);
    assert_eq!(read(&socket).unwrap().len(), 2 * RING);
    assert_eq!(
        (read(&socket).unwrap(), socket.take_error()),
        (vec![], None)
    );
}

#[test]
fn unread_and_later_bytes_of_a_closed_socket_are_answered_with_a_reset() {
    for early in [false, true] {
        let mut pair = Pair::new();
        let (socket, near, far) = pair.adopted();
        if early {
            pair.send(far, b"unread");
        }
        drop(socket);
        pair.run();
        if !early {
            assert_eq!(pair.far.tcp(far).state(), State::CloseWait, "orderly");
            pair.send(far, b"late");
        }
        assert_eq!(pair.far.tcp(far).state(), State::Closed, "reset");
        assert_eq!(pair.adapter.finished(), Some(near));
    }
}

#[test]
fn a_socket_without_a_handle_waits_a_minute_in_fin_wait_2() {
    let mut pair = Pair::new();
    let (socket, near, far) = pair.adopted();
    drop(socket);
    pair.run();
    assert_eq!(pair.near.tcp(near).state(), State::FinWait2);
    let delay = pair.adapter.poll_delay(pair.now);
    assert_eq!(delay, Some(Duration::from_secs(60)));
    pair.sleep(Duration::from_secs(59));
    assert_eq!(pair.adapter.finished(), None);
    pair.sleep(Duration::from_secs(2));
    assert_eq!(pair.adapter.finished(), Some(near));
    assert_eq!(pair.far.tcp(far).state(), State::Closed);
    assert_eq!(pair.adapter.poll_delay(pair.now), None);
}

#[test]
fn an_abort_resets_the_peer_and_is_finished_when_that_is_sent() {
    let mut pair = Pair::new();
    let (socket, near, far) = pair.adopted();
    socket.abort();
    assert_eq!(socket.take_error(), Some(SoError::ConnectionAborted));
    assert!(pair.adapter.polled(&mut pair.near.sockets, pair.now));
    assert_eq!(pair.adapter.finished(), None, "the reset is not sent yet");
    pair.run();
    assert_eq!(pair.far.tcp(far).state(), State::Closed);
    assert_eq!(pair.adapter.finished(), Some(near));
}

#[test]
fn a_socket_closed_while_it_connects_is_given_up() {
    let mut pair = Pair::new();
    let handle = pair.near.dial(3, 80);
    let socket = pair.adapter.adopt(&pair.near.sockets, handle).unwrap();
    pair.run();
    drop(socket);
    pair.run();
    assert_eq!(pair.adapter.finished(), Some(handle));
}

#[test]
fn what_cannot_be_adopted_is_refused() {
    let mut pair = Pair::new();
    let (_kept, near, _) = pair.adopted();
    let adopt = |pair: &mut Pair, handle| pair.adapter.adopt(&pair.near.sockets, handle).map(drop);
    assert_eq!(adopt(&mut pair, near), Err(AdoptError::Adopted(near)));
    let listening = pair.near.listen(7);
    let refused = adopt(&mut pair, listening);
    assert_eq!(refused, Err(AdoptError::NotConnected(State::Listen)));
    pair.near.sockets.remove(listening);
    let refused = adopt(&mut pair, listening);
    assert_eq!(refused, Err(AdoptError::NotInSet(listening)));
    let closed = pair.near.sockets.add(socket(RING, RING));
    let refused = adopt(&mut pair, closed);
    assert_eq!(refused, Err(AdoptError::NotConnected(State::Closed)));
    assert_eq!(
        refused.unwrap_err().to_string(),
        "socket is in state CLOSED: connect it, or wait until it has accepted a connection"
    );
}

/// Two adopted connections that are spliced, with a pool that works only when told to.
fn spliced(pair: &mut Pair) -> ([SocketHandle; 2], [SocketHandle; 2], [Socket; 2], Splice) {
    let (a, near_a, far_a) = pair.adopted();
    let (b, near_b, far_b) = pair.adopted();
    let splice = a.splice_to(&b, Options::default()).unwrap();
    pair.send(far_a, b"spliced");
    assert_eq!(pair.far.read(far_b), b"spliced");
    ([near_a, near_b], [far_a, far_b], [a, b], splice)
}

#[test]
fn a_source_or_sink_that_is_removed_from_the_set_ends_its_splice() {
    let mut pair = Pair::new();
    let (near, far, [a, b], splice) = spliced(&mut pair);
    pair.near.sockets.remove(near[0]);
    pair.run();
    let end = splice.wait();
    assert_eq!(end.cause, Cause::SourceError(SoError::SocketRemoved));
    assert_eq!(
        (end.bytes, a.take_error()),
        (7, Some(SoError::SocketRemoved))
    );
    b.send(b"still here").unwrap();
    pair.run();
    assert_eq!(pair.far.read(far[1]), b"still here");
    assert_eq!(
        pair.adapter.finished(),
        None,
        "it is not there to be removed"
    );

    let mut pair = Pair::new();
    let (near, far, [a, b], splice) = spliced(&mut pair);
    pair.near.sockets.remove(near[1]);
    pair.far.tcp(far[0]).send_slice(b"stays").unwrap();
    pair.run();
    let end = splice.wait();
    assert_eq!(end.cause, Cause::SinkError(SoError::SocketRemoved));
    assert_eq!(read(&a).unwrap(), b"stays");
    assert_eq!(
        b.send(b"x").unwrap_err().kind(),
        ErrorKind::ConnectionAborted
    );
}

#[test]
fn another_socket_in_the_place_of_a_removed_one_is_left_alone() {
    for listens in [false, true] {
        let mut pair = Pair::new();
        let (socket, near, _) = pair.adopted();
        pair.near.sockets.remove(near);
        let other = if listens {
            pair.near.listen(99)
        } else {
            pair.near.dial(2, 99)
        };
        assert_eq!(other, near, "smoltcp uses a place again");
        socket.send(b"for the other?").unwrap();
        pair.adapter.polled(&mut pair.near.sockets, pair.now);
        assert_eq!(socket.take_error(), Some(SoError::SocketRemoved));
        assert_eq!(pair.near.tcp(near).send_queue(), 0);
        assert!(pair.near.tcp(near).is_open());
    }
}

#[test]
fn a_closed_socket_in_the_place_of_a_removed_one_looks_like_a_reset_unless_polled_between() {
    for is_polled in [false, true] {
        let mut pair = Pair::new();
        let (old, near, _) = pair.adopted();
        pair.near.sockets.remove(near);
        if is_polled {
            pair.adapter.polled(&mut pair.near.sockets, pair.now);
        }
        let other = pair.near.sockets.add(socket(RING, RING));
        assert_eq!(other, near, "smoltcp uses a place again");
        pair.adapter.polled(&mut pair.near.sockets, pair.now);
        let expected = if is_polled {
            (SoError::SocketRemoved, None)
        } else {
            (SoError::ConnectionReset, Some(near))
        };
        let found = (old.take_error(), pair.adapter.finished());
        assert_eq!(found, (Some(expected.0), expected.1));
        assert_eq!(pair.near.tcp(near).state(), State::Closed);
    }
}

#[test]
fn a_foreign_set_ends_connections_and_touches_no_socket_of_it() {
    let mut pair = Pair::new();
    let (socket, _, far) = pair.adopted();
    socket.send(b"for the set").unwrap();
    pair.adapter.polled(&mut pair.far.sockets, pair.now);
    assert_eq!(socket.take_error(), Some(SoError::SocketRemoved));
    assert_eq!(pair.far.tcp(far).send_queue(), 0);
}

#[test]
fn an_adapter_that_is_dropped_ends_its_sockets_and_leaves_smoltcps() {
    let mut pair = Pair::new();
    let (_, far, [a, b], splice) = spliced(&mut pair);
    let (waits, near, other) = pair.adopted();
    pair.send(other, b"received");
    pair.adapter = Adapter::new(|| {});
    let end = splice.wait();
    assert_eq!(end.bytes, 7);
    for socket in [&a, &b, &waits] {
        assert_eq!(socket.end().error(), Some(SoError::AdapterDropped));
    }
    assert_eq!(read(&waits).unwrap(), b"received");
    assert_eq!(read(&waits), Err(ErrorKind::ConnectionAborted));
    drop([a, b, waits]);
    pair.run();
    assert_eq!(pair.far.tcp(far[0]).state(), State::Established);
    assert_eq!(pair.near.tcp(near).send_slice(b"by hand"), Ok(7));
    pair.run();
    assert_eq!(pair.far.read(other), b"by hand");
}

#[test]
fn an_interface_that_is_never_polled_again_stops_and_hangs_nothing() {
    let mut pair = Pair::new();
    let (socket, _, far) = pair.adopted();
    let (inside, outside) = local::pair();
    inside.set_nonblocking(true);
    outside.set_nonblocking(true);
    let pool = SplicePool::builder().manual().build();
    let options = Options {
        pool: Some(pool.clone()),
        ..Options::default()
    };
    let splice = outside.splice_to(&socket, options).unwrap();
    let mut sent = 0;
    while let Ok(count) = inside.send(&[1; 1000]) {
        sent += count;
        while pool.run_one() {}
    }
    assert!(sent > RING && pair.adapter.wants_poll());
    assert_eq!(pair.woken.load(Ordering::SeqCst), 1, "woken once");
    assert_eq!(pair.adapter.poll_delay(pair.now), Some(Duration::ZERO));
    splice.unsplice().unwrap();
    let moved = usize::try_from(splice.wait().bytes).unwrap();
    let left = std::iter::from_fn(|| read(&outside).ok());
    let left: usize = left.map(|bytes| bytes.len()).sum();
    assert_eq!(moved + left, sent, "none is lost");
    drop((socket, inside, outside));
    let mut got = 0;
    while got < moved {
        pair.run();
        got += pair.far.read(far).len();
    }
    assert_eq!(got, moved, "late, and all of them");
}

#[test]
fn a_program_that_closes_or_aborts_smoltcps_socket_itself() {
    let mut pair = Pair::new();
    let (socket, near, far) = pair.adopted();
    pair.near.tcp(near).close();
    pair.run();
    assert_eq!(socket.send(b"x").unwrap_err().kind(), ErrorKind::BrokenPipe);
    pair.send(far, b"the other half");
    assert_eq!(read(&socket).unwrap(), b"the other half");

    let (socket, near, far) = pair.adopted();
    socket.send(b"not taken yet").unwrap();
    pair.near.tcp(near).close();
    pair.run();
    assert_eq!(socket.take_error(), Some(SoError::ConnectionAborted));
    assert_eq!(pair.far.tcp(far).state(), State::Closed, "no orderly end");

    let (socket, near, _) = pair.adopted();
    pair.near.tcp(near).abort();
    pair.adapter.polled(&mut pair.near.sockets, pair.now);
    assert_eq!(socket.take_error(), Some(SoError::ConnectionAborted));
}

#[test]
fn an_address_that_the_interface_loses_ends_its_connections() {
    let mut pair = Pair::new();
    let (socket, near, _) = pair.adopted();
    pair.near
        .interface
        .update_ip_addrs(|addresses| addresses.clear());
    pair.run();
    assert_eq!(socket.take_error(), Some(SoError::ConnectionReset));
    assert_eq!(pair.adapter.finished(), Some(near));
}

#[test]
fn a_finished_socket_can_be_used_again() {
    let mut pair = Pair::new();
    let (socket, near, _) = pair.adopted();
    socket.abort();
    pair.run();
    assert_eq!(pair.adapter.finished(), Some(near));
    pair.near.tcp(near).listen(5000).unwrap();
    let far = pair.far.dial(1, 5000);
    pair.run();
    let again = pair.adapter.adopt(&pair.near.sockets, near).unwrap();
    assert!(socket.send(b"old").is_err());
    again.send(b"new").unwrap();
    pair.run();
    assert_eq!(pair.far.read(far), b"new");
    let expected = IpEndpoint::new(address(2).into(), 5000);
    assert_eq!(again.protocol().addresses().unwrap().1, expected.into());
}

#[test]
fn a_splice_in_other_threads_wakes_the_loop() {
    let mut pair = Pair::new();
    let (socket, _, far) = pair.adopted();
    let pool = SplicePool::builder().workers(1).build();
    let (inside, outside) = local::pair();
    let options = Options {
        pool: Some(pool.clone()),
        ..Options::default()
    };
    let splice = outside.splice_to(&socket, options).unwrap();
    inside.send(b"by a worker").unwrap();
    drop(inside);
    let end = splice.wait();
    assert_eq!((end.cause, end.bytes), (Cause::Eof, 11));
    assert!(pair.woken.load(Ordering::SeqCst) > 0);
    pair.run();
    assert_eq!(pair.far.read(far), b"by a worker");
}

#[test]
fn held_bytes_do_not_hide_the_end_of_a_connection_that_has_closed() {
    let mut pair = Pair::new();
    let (socket, near, far) = pair.adopted();
    pair.send(far, &[1; RING]);
    pair.send(far, &[2; RING / 2]);
    pair.far.tcp(far).close();
    pair.run();
    socket.shutdown(Shutdown::Write).unwrap();
    pair.run();
    assert_eq!(pair.near.tcp(near).state(), State::Closed);
    let mut all = 0;
    for _ in 0..9 {
        all += read(&socket).map_or(0, |bytes| bytes.len());
        pair.run();
    }
    assert_eq!(all, RING + RING / 2);
    assert_eq!(read(&socket), Ok(vec![]));
    assert_eq!(socket.take_error(), None);
}

#[test]
fn a_reset_that_cannot_be_sent_now_does_not_keep_the_loop_polling() {
    let mut pair = Pair::new();
    let (socket, near, _far) = pair.adopted();
    socket.abort();
    assert!(pair.adapter.polled(&mut pair.near.sockets, pair.now));
    // The interface cannot send, and says itself when to try again.
    assert!(!pair.adapter.polled(&mut pair.near.sockets, pair.now));
    assert_eq!(pair.adapter.finished(), None);
    let delay = pair.near.interface.poll_delay(pair.now, &pair.near.sockets);
    assert_eq!(delay, Some(Duration::ZERO));
    pair.run();
    assert_eq!(pair.adapter.finished(), Some(near));
}

#[test]
fn a_reset_before_the_first_look_is_no_timeout() {
    let mut pair = Pair::new();
    pair.now = Instant::from_secs(1000);
    let (near, far) = pair.connection();
    pair.near
        .tcp(near)
        .set_timeout(Some(Duration::from_secs(5)));
    let socket = pair.adapter.adopt(&pair.near.sockets, near).unwrap();
    pair.far.tcp(far).abort();
    pair.far.poll(pair.now);
    pair.near.poll(pair.now);
    pair.run();
    assert_eq!(socket.take_error(), Some(SoError::ConnectionReset));
}

#[test]
fn after_a_shutdown_for_reading_bytes_that_were_held_back_are_dropped_too() {
    let mut pair = Pair::new();
    let (socket, near, far) = pair.adopted();
    pair.send(far, &[1; RING]);
    pair.send(far, &[2; RING]);
    assert_eq!(pair.near.tcp(near).recv_queue(), RING);
    socket.shutdown(Shutdown::Read).unwrap();
    pair.run();
    for _ in 0..10 {
        pair.send(far, &[3; RING]);
    }
    assert_eq!(pair.near.tcp(near).recv_queue(), 0);
}

#[test]
fn a_full_device_ends_a_poll_and_loses_nothing() {
    let mut pair = Pair::new();
    let (socket, near, far) = pair.adopted();
    // A segment for each byte, which the peer does not take.
    for _ in 0..2 * FRAMES {
        assert_eq!(socket.send(b"x").unwrap(), 1);
        pair.adapter.polled(&mut pair.near.sockets, pair.now);
        pair.near.poll(pair.now);
    }
    assert_eq!(pair.far.wire.waiting(), FRAMES);
    assert_eq!(pair.near.tcp(near).send_queue(), 2 * FRAMES);
    pair.run();
    assert_eq!(pair.far.read(far), [b'x'; 2 * FRAMES]);
}
