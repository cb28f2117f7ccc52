use super::*;
use crate::local;
use std::io::{ErrorKind, Read, Write};
use std::sync::mpsc;
use std::thread;

/// A protocol that does nothing and counts.
#[derive(Debug, Default)]
struct Silent {
    idle: AtomicU64,
}

impl Protocol for Silent {
    fn output(&self) {
        lock::assert_none_held();
    }
    fn rcvd(&self, idle: bool) {
        lock::assert_none_held();
        self.idle.fetch_add(idle.into(), Ordering::SeqCst);
    }
    fn abort(&self) {}
    fn detach(&self) {}
    fn name(&self) -> &'static str {
        "silent"
    }
}

fn silent() -> (Socket, Arc<Silent>) {
    let protocol = Arc::new(Silent::default());
    (
        Socket::new(SocketEnd::new(10, 10), protocol.clone()),
        protocol,
    )
}

#[test]
fn a_connecting_socket_takes_no_bytes() {
    let (socket, _) = silent();
    socket.set_nonblocking(true);
    assert_eq!(socket.send(b"x").unwrap_err().kind(), ErrorKind::WouldBlock);
    socket.end().connected();
    assert_eq!(socket.send(b"x").unwrap(), 1);
}

#[test]
fn wait_connected_returns_the_result() {
    let (socket, _) = silent();
    let now = SystemClock.now();
    assert_eq!(socket.wait_connected(Some(now)), Err(ConnectError::Pending));
    thread::scope(|scope| {
        scope.spawn(|| socket.end().connected());
        assert_eq!(socket.wait_connected(None), Ok(()));
    });

    let (socket, _) = silent();
    socket.end().set_error(SoError::ConnectionRefused);
    socket.end().cantrcvmore();
    socket.end().cantsendmore();
    let refused = ConnectError::Failed(SoError::ConnectionRefused);
    assert_eq!(socket.wait_connected(None), Err(refused));
    assert_eq!(socket.take_error(), None);
}

#[test]
fn a_reader_notifies_the_protocol_before_it_sleeps() {
    let (socket, protocol) = silent();
    socket
        .set_read_timeout(Some(Duration::from_nanos(1)))
        .unwrap();
    let mut bytes = [0; 1];
    let error = socket.recv(&mut bytes).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::WouldBlock);
    assert_eq!(protocol.idle.load(Ordering::SeqCst), 1);
    socket.set_nonblocking(true);
    assert!(socket.recv(&mut bytes).is_err());
    assert_eq!(protocol.idle.load(Ordering::SeqCst), 1);
}

#[test]
fn a_write_times_out() {
    let (socket, _) = silent();
    socket.end().connected();
    socket
        .set_write_timeout(Some(Duration::from_nanos(1)))
        .unwrap();
    assert_eq!(socket.send(&[0; 20]).unwrap(), 10);
    assert_eq!(socket.send(b"x").unwrap_err().kind(), ErrorKind::WouldBlock);
    assert!(socket.set_write_timeout(Some(Duration::ZERO)).is_err());
}

#[test]
fn error_then_end_of_file() {
    let (a, b) = local::pair();
    b.send(b"last words").unwrap();
    b.abort();
    let mut bytes = [0; 4];
    assert_eq!(a.peek(&mut bytes).unwrap(), 4);
    assert_eq!(a.recv_chain(100).unwrap().to_vec(), b"last words");
    assert_eq!(
        a.recv(&mut bytes).unwrap_err().kind(),
        ErrorKind::ConnectionReset
    );
    assert_eq!(a.recv(&mut bytes).unwrap(), 0);
}

#[test]
fn low_water_marks_are_waited_for_but_not_beyond_the_end() {
    let (a, b) = local::pair();
    b.set_rcv_lowat(4);
    b.set_nonblocking(true);
    a.send(b"ab").unwrap();
    let mut bytes = [0; 10];
    assert_eq!(
        b.peek(&mut bytes).unwrap(),
        2,
        "a call that does not wait gets all"
    );
    b.set_nonblocking(false);
    thread::scope(|scope| {
        let reader = scope.spawn(|| b.recv(&mut bytes).unwrap());
        a.send(b"cd").unwrap();
        assert_eq!(reader.join().unwrap(), 4);
    });
    a.send(b"e").unwrap();
    a.shutdown(Shutdown::Write).unwrap();
    assert_eq!(b.recv(&mut bytes).unwrap(), 1);
    assert_eq!(b.recv(&mut bytes).unwrap(), 0);
}

#[test]
fn the_last_handle_closes() {
    let (mut a, mut b) = local::pair();
    let other = a.clone();
    a.write_all(b"still").unwrap();
    a.close();
    let mut bytes = [0; 10];
    assert_eq!(b.read(&mut bytes).unwrap(), 5);
    b.set_nonblocking(true);
    assert_eq!(
        b.recv(&mut bytes).unwrap_err().kind(),
        ErrorKind::WouldBlock
    );
    drop(other);
    assert_eq!(b.recv(&mut bytes).unwrap(), 0);
}

#[test]
fn bytes_go_round_between_threads() {
    let (a, b) = local::pair_with_hiwat(100, 100);
    thread::scope(|scope| {
        scope.spawn(|| {
            (&a).write_all(&[7; 100_000]).unwrap();
            a.shutdown(Shutdown::Write).unwrap();
        });
        let mut all = Vec::new();
        (&b).read_to_end(&mut all).unwrap();
        assert_eq!(all, [7; 100_000]);
    });
}

struct Tell(mpsc::Sender<Wakeup>);

impl Upcall for Tell {
    fn wakeup(&self, what: Wakeup) {
        self.0.send(what).unwrap();
    }
}

#[test]
fn upcalls_are_called_for_each_change() {
    let (a, b) = local::pair();
    let (sender, heard) = mpsc::channel();
    let upcall: Arc<dyn Upcall> = Arc::new(Tell(sender));
    b.add_rcv_upcall(upcall.clone());
    a.send(b"x").unwrap();
    a.close();
    assert!(b.remove_rcv_upcall(&*upcall).is_some());
    drop(upcall);
    assert_eq!(
        heard.iter().collect::<Vec<_>>(),
        [Wakeup::Data, Wakeup::RcvClosed]
    );
}

/// A writer that has seen the end of the connection must not succeed afterwards.
#[test]
fn after_the_error_nothing_is_sent() {
    for _ in 0..2000 {
        let (a, b) = local::pair();
        let reader = thread::Builder::new()
            .spawn(move || {
                let error = b.recv(&mut [0]).unwrap_err().kind();
                (error, b.send(b"x").map_err(|error| error.kind()))
            })
            .unwrap();
        a.abort();
        let (told, sent) = reader.join().unwrap();
        assert_eq!(told, ErrorKind::ConnectionReset);
        assert_eq!(sent, Err(ErrorKind::BrokenPipe));
    }
}

/// Records whether `so_snd` was closed when `detach` was called.
#[derive(Debug)]
struct Told {
    end: Arc<SocketEnd>,
    was_closed: Arc<AtomicBool>,
}

impl Protocol for Told {
    fn output(&self) {}
    fn rcvd(&self, _idle: bool) {}
    fn abort(&self) {}
    fn detach(&self) {
        let closed = self.end.snd().buf.is_closed();
        self.was_closed.store(closed, Ordering::Relaxed);
    }
    fn name(&self) -> &'static str {
        "told"
    }
}

/// Otherwise the protocol's threads could send a FIN although unread bytes require a reset.
#[test]
fn a_close_is_no_end_before_the_protocol_is_notified() {
    let end = SocketEnd::new(10, 10);
    let was_closed = Arc::new(AtomicBool::new(true));
    let protocol = Arc::new(Told {
        end: end.clone(),
        was_closed: was_closed.clone(),
    });
    Socket::new(end, protocol).close();
    assert!(!was_closed.load(Ordering::Relaxed));
}
