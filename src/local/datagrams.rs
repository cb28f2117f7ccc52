//! A pair of sockets for datagrams, in memory.

use crate::buf::Gather;
use crate::error::SoError;
use crate::protocol::{Protocol, SoState, SocketEnd, Wakeup};
use crate::sockbuf::Addresses;
use crate::socket::Socket;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Bytes of each buffer, of payload: some of the longest datagrams.
const HIWAT: usize = 256 * 1024;
/// Datagrams of each buffer.
const LIMIT: usize = 1024;

/// Two sockets for datagrams, each connected to the other. A datagram that finds the other one's `so_rcv` full
/// is dropped there; a closed peer is an error, as a port of the same host is.
///
/// ```
/// let (a, b) = sosplice::local::datagram_pair();
/// a.send(b"one")?;
/// a.send(b"")?;
/// let mut bytes = [0; 16];
/// assert_eq!((b.recv(&mut bytes)?, b.recv(&mut bytes)?), (3, 0));
/// # std::io::Result::Ok(())
/// ```
pub fn datagram_pair() -> (Socket, Socket) {
    datagram_pair_with(HIWAT, HIWAT, LIMIT)
}

/// As [`datagram_pair`], with these high-water marks in bytes, and at most so many datagrams in each buffer.
///
/// ```
/// let (a, b) = sosplice::local::datagram_pair_with(100, 50, 10);
/// assert!(a.send(&[0; 51]).is_err());
/// assert_eq!(a.send(&[0; 50])?, 50);
/// assert_eq!(b.readable_bytes(), 50);
/// # std::io::Result::Ok(())
/// ```
pub fn datagram_pair_with(rcv: usize, snd: usize, limit: usize) -> (Socket, Socket) {
    let port = || Port {
        end: SocketEnd::for_datagrams(rcv, snd, limit),
        detached: Arc::default(),
    };
    let (a, b) = (port(), port());
    (socket(a.clone(), b.clone()), socket(b, a))
}

fn socket(own: Port, peer: Port) -> Socket {
    own.end.connected();
    Socket::new(own.end.clone(), Arc::new(LocalDatagrams { own, peer }))
}

#[derive(Debug, Clone)]
struct Port {
    end: Arc<SocketEnd>,
    detached: Arc<AtomicBool>,
}

#[derive(Debug)]
struct LocalDatagrams {
    own: Port,
    peer: Port,
}

impl LocalDatagrams {
    /// Moves everything, and drops what finds no room. `true` if there was anything.
    fn deliver(&self) -> bool {
        let mut rcv = self.peer.end.rcv();
        let mut snd = self.own.end.snd();
        let mut dropped: Vec<Gather> = Vec::new();
        let (mut any, mut delivered) = (false, false);
        while let Some((len, _)) = snd.buf.first_record() {
            any = true;
            if !rcv.buf.is_closed() && rcv.buf.has_room_for(len) {
                snd.buf.pass_record_to(&mut rcv.buf);
                delivered = true;
            } else if let Some((payload, _)) = snd.buf.take_record() {
                if !rcv.buf.is_closed() {
                    // Counted there.
                    rcv.buf
                        .append_record(payload.iter().cloned(), Addresses::default());
                }
                dropped.push(payload);
            }
        }
        if any {
            self.own.end.sowwakeup(&snd, Wakeup::Space);
        }
        drop(snd);
        if delivered {
            self.peer.end.sorwakeup(&rcv, Wakeup::Data);
        }
        drop(rcv);
        drop(dropped);
        any
    }
}

impl Protocol for LocalDatagrams {
    fn output(&self) {
        if self.deliver() && self.peer.detached.load(Ordering::Acquire) {
            self.own.end.fail_once(SoError::ConnectionRefused);
        }
    }

    fn rcvd(&self, _idle: bool) {}

    fn abort(&self) {
        self.own.end.disconnected(Some(SoError::ConnectionAborted));
        self.own.end.flush_rcv();
        self.own.end.flush_snd();
        self.peer.end.fail_once(SoError::ConnectionRefused);
    }

    fn detach(&self) {
        self.own.detached.store(true, Ordering::Release);
        self.own.end.flush_rcv();
        self.own.end.cantsendmore();
        self.deliver();
    }

    fn name(&self) -> &'static str {
        "local"
    }

    fn so_state(&self) -> SoState {
        SoState::Datagrams
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::splice::{Cause, Options, Rate, SpliceError};
    use std::io::ErrorKind;
    use std::net::Shutdown;
    use std::num::NonZeroU64;

    fn read(socket: &Socket) -> Result<Vec<u8>, ErrorKind> {
        let mut bytes = vec![0; 70_000];
        let count = socket.recv(&mut bytes).map_err(|error| error.kind())?;
        bytes.truncate(count);
        Ok(bytes)
    }

    fn nonblocking() -> [Socket; 2] {
        let (a, b) = datagram_pair_with(100, 100, 4);
        [a, b].map(|socket| {
            socket.set_nonblocking(true);
            socket
        })
    }

    #[test]
    fn boundaries_stay_and_what_finds_no_room_is_dropped() {
        let [a, b] = nonblocking();
        for payload in [&b"one"[..], b"", b"three", b"4", b"lost"] {
            assert_eq!(a.send(payload).unwrap(), payload.len());
        }
        assert_eq!(
            b.end().with_rcv(|rcv| (rcv.records(), rcv.dropped())),
            (4, 1)
        );
        for payload in [&b"one"[..], b"", b"three", b"4"] {
            assert_eq!(read(&b).unwrap(), payload);
        }
        assert_eq!(read(&b), Err(ErrorKind::WouldBlock));
    }

    #[test]
    fn a_short_read_cuts_its_datagram_and_no_other_one() {
        let [a, b] = nonblocking();
        a.send(b"abcdef").unwrap();
        a.send(b"ghi").unwrap();
        let mut three = [0; 3];
        assert_eq!((b.peek(&mut three).unwrap(), &three), (3, b"abc"));
        assert_eq!((b.recv(&mut three).unwrap(), &three), (3, b"abc"));
        let mut two = [[0; 2]; 2];
        let [first, second] = &mut two;
        let mut slices = [first, second].map(|buf| std::io::IoSliceMut::new(buf));
        assert_eq!(b.recv_vectored(&mut slices).unwrap(), 3);
        assert_eq!(two, [*b"gh", *b"i\0"]);
        a.send(b"abcdef").unwrap();
        a.send(b"ghi").unwrap();
        assert_eq!(b.recv_chain(2).unwrap().to_vec(), b"ab");
        assert_eq!(b.recv_chain(100).unwrap().to_vec(), b"ghi");
    }

    #[test]
    fn a_closed_peer_is_an_error_that_ends_nothing() {
        let [a, b] = nonblocking();
        drop(b);
        a.send(b"to nowhere").unwrap();
        assert_eq!(
            a.send(b"x").unwrap_err().kind(),
            ErrorKind::ConnectionRefused
        );
        assert!(a.send(b"x").is_ok());
    }

    #[test]
    fn shut_down_for_reading_it_takes_nothing_more() {
        let [a, b] = nonblocking();
        a.send(b"lost").unwrap();
        b.shutdown(Shutdown::Read).unwrap();
        a.send(b"lost").unwrap();
        assert_eq!((read(&b), read(&b)), (Ok(vec![]), Ok(vec![])));
        a.shutdown(Shutdown::Write).unwrap();
        assert_eq!(a.send(b"x").unwrap_err().kind(), ErrorKind::BrokenPipe);
    }

    #[test]
    fn a_splice_moves_datagrams_whole_until_one_would_exceed_its_limit() {
        let ([a, b], [c, d]) = (nonblocking(), nonblocking());
        let splice = b.splice_to(&c, Options::default().limit(7)).unwrap();
        for payload in [&b"abc"[..], b"", b"def", b"gh"] {
            a.send(payload).unwrap();
        }
        let end = splice.wait();
        assert_eq!((end.cause, end.bytes, end.residual), (Cause::Limit, 6, 2));
        assert_eq!(
            [read(&d), read(&d), read(&d)].map(Result::unwrap),
            [&b"abc"[..], b"", b"def"]
        );
        assert_eq!(
            b.take_error(),
            None,
            "the limit was not reached to the byte"
        );
        assert_eq!(read(&b).unwrap(), b"gh");
        let splice = b.splice_to(&c, Options::default().limit(2)).unwrap();
        a.send(b"gh").unwrap();
        assert_eq!(splice.wait().cause, Cause::Limit);
        assert_eq!(b.take_error(), Some(SoError::SpliceLimit));
    }

    #[test]
    fn one_that_the_sink_never_takes_ends_the_splice_and_stays() {
        let (a, b) = datagram_pair();
        let [c, d] = nonblocking();
        b.set_nonblocking(true);
        let splice = b.splice_to(&c, Options::default()).unwrap();
        a.send(b"fits").unwrap();
        a.send(&[0; 101]).unwrap();
        let end = splice.wait();
        assert_eq!(
            (end.cause, end.bytes, end.residual),
            (Cause::MessageSize, 4, 101)
        );
        assert_eq!(b.take_error(), Some(SoError::MessageSize));
        assert_eq!(
            (read(&b).unwrap().len(), read(&d).unwrap()),
            (101, b"fits".to_vec())
        );
    }

    #[test]
    fn streams_and_datagrams_do_not_mix_and_freebsd_has_no_datagrams() {
        let ([_a, b], [c, _d]) = (nonblocking(), nonblocking());
        let (stream, _peer) = crate::local::pair();
        stream.set_flavor(crate::error::Flavor::OpenBsd);
        for (source, sink) in [(&b, &stream), (&stream, &c)] {
            let refused = source.splice_to(sink, Options::default()).unwrap_err();
            assert_eq!(refused, SpliceError::DifferentKinds);
        }
        b.set_flavor(crate::error::Flavor::FreeBsd);
        let refused = b.splice_to(&c, Options::default()).unwrap_err();
        assert_eq!(
            refused,
            SpliceError::NotAStream(crate::splice::Role::Source)
        );
    }

    #[test]
    fn an_empty_datagram_in_a_ring_ends_it_too() {
        let ([a, b], [c, d]) = (nonblocking(), nonblocking());
        let splices = [
            b.splice_to(&c, Options::default()),
            d.splice_to(&a, Options::default()),
        ];
        let [there, back] = splices.map(Result::unwrap);
        // What `d` receives leaves by `a`, and arrives at `b` again.
        c.send(b"").unwrap();
        let (ended, ends) = std::sync::mpsc::channel();
        for splice in [there, back] {
            let ended = ended.clone();
            splice.on_end(move |end| ended.send(end).unwrap_or(()));
        }
        assert_eq!(ends.recv().unwrap().cause, Cause::Loop);
    }

    #[test]
    fn a_rate_passes_datagrams_that_are_longer_than_its_burst() {
        let ((a, b), (c, d)) = (datagram_pair(), datagram_pair());
        let rate = Rate {
            bytes_per_second: NonZeroU64::new(100_000).unwrap(),
            burst: NonZeroU64::new(10).unwrap(),
        };
        b.splice_to(&c, Options::default().rate(rate)).unwrap();
        for byte in 0..3 {
            a.send(&[byte; 50]).unwrap();
        }
        for byte in 0..3 {
            assert_eq!(read(&d).unwrap(), [byte; 50]);
        }
    }
}
