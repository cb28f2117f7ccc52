//! Pairs of sockets in memory: the reference [`Protocol`], and one for datagrams.
//!
//! Two sockets whose bytes go from one's `so_snd` into the other's `so_rcv`, by reference, as far as
//! there is space. It behaves as TCP: half-close, reset when unread bytes are discarded, delivery of
//! bytes written before a close.
//!
//! Neighbours: [`socket`](crate::socket) above, [`protocol`](crate::protocol) below. Locks: the
//! receiver's `so_rcv` (2), then the sender's `so_snd` (3). Wake-ups only enqueue, so nothing here
//! recurses.

mod datagrams;

pub use datagrams::{datagram_pair, datagram_pair_with};

use crate::error::SoError;
use crate::protocol::{Protocol, SocketEnd, Wakeup};
use crate::sockbuf::DEFAULT_HIWAT;
use crate::socket::Socket;
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sync::{Protection, intact};
use std::sync::Arc;

/// Two connected sockets with the default high-water marks.
///
/// ```
/// let (a, b) = sosplice::local::pair();
/// a.send(b"hello")?;
/// let mut bytes = [0; 16];
/// let count = b.recv(&mut bytes)?;
/// assert_eq!(&bytes[..count], b"hello");
/// # std::io::Result::Ok(())
/// ```
pub fn pair() -> (Socket, Socket) {
    pair_with_hiwat(DEFAULT_HIWAT, DEFAULT_HIWAT)
}

/// Two connected sockets with these high-water marks in bytes.
///
/// ```
/// let (a, b) = sosplice::local::pair_with_hiwat(100, 50);
/// a.set_nonblocking(true);
/// assert_eq!(a.send(&[0; 1000])?, 50);
/// assert_eq!(b.readable_bytes(), 50);
/// # std::io::Result::Ok(())
/// ```
pub fn pair_with_hiwat(rcv: usize, snd: usize) -> (Socket, Socket) {
    let (a, b) = (Port::new(rcv, snd), Port::new(rcv, snd));
    (socket(a.clone(), b.clone()), socket(b, a))
}

/// Two sockets, the first of which is still connecting: it sends nothing before
/// [`connected`](SocketEnd::connected) is called on its end.
///
/// ```
/// let (a, b) = sosplice::local::connecting_pair();
/// a.set_nonblocking(true);
/// assert!(a.send(b"too early").is_err());
/// a.end().connected();
/// assert_eq!(a.send(b"now")?, 3);
/// assert_eq!(b.readable_bytes(), 3);
/// # std::io::Result::Ok(())
/// ```
pub fn connecting_pair() -> (Socket, Socket) {
    let port = || Port::new(DEFAULT_HIWAT, DEFAULT_HIWAT);
    let (a, b) = (port(), port());
    b.end.connected();
    (unconnected(a.clone(), b.clone()), unconnected(b, a))
}

fn socket(own: Port, peer: Port) -> Socket {
    own.end.connected();
    unconnected(own, peer)
}

fn unconnected(own: Port, peer: Port) -> Socket {
    Socket::new(own.end.clone(), Arc::new(Local { own, peer }))
}

/// One of the two ends.
#[derive(Debug, Clone)]
struct Port {
    end: Arc<SocketEnd>,
    /// The socket was closed: bytes for it are answered with a reset.
    detached: Arc<AtomicBool>,
    /// Its connection has failed, so the end of its stream is no end of file (model: `local::loom`).
    failed: Arc<AtomicBool>,
}

impl Port {
    fn new(rcv: usize, snd: usize) -> Port {
        Port {
            end: SocketEnd::new(rcv, snd),
            detached: Arc::default(),
            failed: Arc::default(),
        }
    }

    /// The connection has failed: received bytes stay readable, unsent ones are dropped.
    fn fail(&self, error: SoError) {
        self.failed
            .store(intact(Protection::FailureFirst), Ordering::Release);
        self.end.disconnected(Some(error));
        self.end.flush_snd();
    }
}

/// The protocol of one end.
#[derive(Debug)]
struct Local {
    own: Port,
    peer: Port,
}

/// Moves the bytes that fit; after the last byte of a closed `so_snd`, the end of file.
fn deliver(from: &Port, to: &Port) {
    let mut rcv = to.end.rcv();
    let mut snd = from.end.snd();
    if rcv.buf.is_closed() {
        let count = snd.buf.len();
        let refused = snd.buf.take(count);
        from.end.sowwakeup(&snd, Wakeup::Space);
        drop(snd);
        drop(rcv);
        if !refused.is_empty() && to.detached.load(Ordering::Acquire) {
            from.fail(SoError::ConnectionReset);
        }
        return;
    }
    let count = snd.buf.len().min(rcv.buf.space());
    if count > 0 {
        snd.buf.move_to(&mut rcv.buf, count);
        from.end.sowwakeup(&snd, Wakeup::Space);
        to.end.sorwakeup(&rcv, Wakeup::Data);
    }
    if snd.buf.is_finished() && !from.failed.load(Ordering::Acquire) {
        rcv.buf.close();
        to.end.sorwakeup(&rcv, Wakeup::RcvClosed);
    }
}

impl Protocol for Local {
    fn output(&self) {
        deliver(&self.own, &self.peer);
    }

    fn rcvd(&self, _idle: bool) {
        deliver(&self.peer, &self.own);
    }

    fn abort(&self) {
        self.own.fail(SoError::ConnectionAborted);
        self.own.end.flush_rcv();
        self.peer.fail(SoError::ConnectionReset);
    }

    fn detach(&self) {
        self.own.detached.store(true, Ordering::Release);
        if self.own.end.flush_rcv() > 0 {
            self.own.fail(SoError::ConnectionAborted);
            self.peer.fail(SoError::ConnectionReset);
            return;
        }
        self.own.end.cantsendmore();
        deliver(&self.peer, &self.own);
        deliver(&self.own, &self.peer);
    }

    fn name(&self) -> &'static str {
        "local"
    }
}

#[cfg(test)]
mod loom;

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::ErrorKind;
    use std::net::Shutdown;

    fn read(socket: &Socket) -> Result<Vec<u8>, ErrorKind> {
        let mut bytes = vec![0; 1000];
        let count = socket.recv(&mut bytes).map_err(|error| error.kind())?;
        bytes.truncate(count);
        Ok(bytes)
    }

    fn nonblocking() -> (Socket, Socket) {
        let (a, b) = pair_with_hiwat(10, 10);
        a.set_nonblocking(true);
        b.set_nonblocking(true);
        (a, b)
    }

    #[test]
    fn bytes_arrive_by_reference_and_in_order() {
        let (a, b) = nonblocking();
        assert_eq!(a.send(b"0123456789").unwrap(), 10);
        assert_eq!(a.send(b"abcdefghijkl").unwrap(), 10);
        assert_eq!(a.send(b"x").unwrap_err().kind(), ErrorKind::WouldBlock);
        assert_eq!(read(&b).unwrap(), b"0123456789");
        assert_eq!(read(&b).unwrap(), b"abcdefghij");
        assert_eq!(read(&b), Err(ErrorKind::WouldBlock));
    }

    #[test]
    fn half_close_comes_after_the_last_byte() {
        let (a, b) = nonblocking();
        a.send(b"0123456789").unwrap();
        a.send(b"abc").unwrap();
        a.shutdown(Shutdown::Write).unwrap();
        assert_eq!(a.send(b"x").unwrap_err().kind(), ErrorKind::BrokenPipe);
        assert_eq!(read(&b).unwrap(), b"0123456789");
        assert_eq!(read(&b).unwrap(), b"abc");
        assert_eq!(read(&b).unwrap(), b"");
        b.send(b"back").unwrap();
        assert_eq!(read(&a).unwrap(), b"back");
    }

    #[test]
    fn close_delivers_written_bytes() {
        let (a, b) = nonblocking();
        a.send(b"0123456789").unwrap();
        a.send(b"abc").unwrap();
        a.close();
        assert_eq!(read(&b).unwrap(), b"0123456789");
        assert_eq!(read(&b).unwrap(), b"abc");
        assert_eq!(read(&b).unwrap(), b"");
        assert!(
            b.send(b"x").is_ok(),
            "the peer gets the reset later, as in TCP"
        );
        assert_eq!(b.send(b"y").unwrap_err().kind(), ErrorKind::ConnectionReset);
    }

    #[test]
    fn close_with_unread_bytes_resets_the_peer() {
        let (a, b) = nonblocking();
        b.send(b"for b").unwrap();
        a.send(b"for a").unwrap();
        a.close();
        assert_eq!(read(&b).unwrap(), b"for a", "received bytes stay readable");
        assert_eq!(read(&b), Err(ErrorKind::ConnectionReset));
        assert_eq!(read(&b).unwrap(), b"", "the error is reported once");
    }

    /// The peer's thread may run between the failure of the two sides.
    #[test]
    fn the_end_of_a_failed_stream_is_no_end_of_file() {
        let (a, b) = (Port::new(10, 10), Port::new(10, 10));
        a.fail(SoError::ConnectionAborted);
        deliver(&a, &b);
        assert!(!b.end.rcv().buf.is_closed());
    }

    #[test]
    fn abort_resets_the_peer() {
        let (a, b) = nonblocking();
        a.abort();
        assert_eq!(read(&a), Err(ErrorKind::ConnectionAborted));
        assert_eq!(read(&b), Err(ErrorKind::ConnectionReset));
        assert_eq!(b.send(b"x").unwrap_err().kind(), ErrorKind::BrokenPipe);
    }

    #[test]
    fn shutdown_read_drops_bytes_and_continues() {
        let (a, b) = nonblocking();
        a.send(b"lost").unwrap();
        b.shutdown(Shutdown::Read).unwrap();
        assert_eq!(read(&b).unwrap(), b"");
        assert_eq!(a.send(b"lost too").unwrap(), 8);
        assert_eq!(read(&b).unwrap(), b"");
        b.send(b"back").unwrap();
        assert_eq!(read(&a).unwrap(), b"back");
    }

    #[test]
    fn both_ends_are_freed() {
        let (a, b) = pair();
        a.send(b"unread").unwrap();
        let ends = [a.end(), b.end()].map(Arc::downgrade);
        drop(a);
        drop(b);
        assert!(ends.iter().all(|end| end.upgrade().is_none()));
    }
}
