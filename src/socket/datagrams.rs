//! Datagrams: what a socket for them sends and receives.
//!
//! A call takes or gives one datagram, whole; one that is read into too little room is cut, as in BSD. The
//! methods for streams do the same on such a socket: [`Socket::send`] sends one datagram.

use super::{Socket, Wait, would_block};
use crate::buf::FrameMut;
use crate::error::SoError;
use crate::lock::{Guard, SND};
use crate::protocol::Side;
use crate::sockbuf::{Addresses, Datagram};
use std::io::{self, IoSlice};

fn at_end() -> io::Error {
    io::Error::new(
        io::ErrorKind::UnexpectedEof,
        "the socket is at its end: no datagram comes any more",
    )
}

/// Sockets for datagrams. On the socket of a stream these fail with
/// [`Unsupported`](io::ErrorKind::Unsupported).
impl Socket {
    /// Receives one datagram: waits for it, and copies it as far as there is room; the rest of it is lost. Returns
    /// how much was copied, and its addresses; those of a flow have none. Once the socket is shut down for reading,
    /// `Ok` of 0 and no addresses.
    ///
    /// # Errors
    /// As for [`recv`](Self::recv); once, what has happened to a datagram that was sent before, for example
    /// that no program listens at the peer's port.
    pub fn recv_datagram(&self, out: &mut [u8]) -> io::Result<(usize, Addresses)> {
        self.receive_datagram(self.wait_for_bytes(), out)
    }

    pub(super) fn receive_datagram(
        &self,
        wait: Wait,
        out: &mut [u8],
    ) -> io::Result<(usize, Addresses)> {
        let taken = self.receive_before_end(wait, out)?;
        Ok(taken.unwrap_or_default())
    }

    /// `None` once the socket is shut down for reading.
    fn receive_before_end(
        &self,
        wait: Wait,
        out: &mut [u8],
    ) -> io::Result<Option<(usize, Addresses)>> {
        self.for_datagrams()?;
        let taken = self.receive(wait, 1, |rcv| {
            let (copied, _, addresses) = rcv.buf.peek_record(out)?;
            Some((copied, addresses, rcv.buf.drop_record()))
        })?;
        Ok(taken
            .flatten()
            .map(|(copied, addresses, _)| (copied, addresses)))
    }

    fn peek_before_end(
        &self,
        wait: Wait,
        out: &mut [u8],
    ) -> io::Result<Option<(usize, Addresses)>> {
        self.for_datagrams()?;
        let rcv = self.wait_readable(wait, 1)?;
        let seen = rcv.and_then(|rcv| rcv.buf.peek_record(out));
        Ok(seen.map(|(copied, _, addresses)| (copied, addresses)))
    }

    /// As [`recv_datagram`](Self::recv_datagram); the end is an error, so that it is no empty datagram.
    pub(crate) fn recv_whole(&self, out: &mut [u8]) -> io::Result<(usize, Addresses)> {
        self.receive_whole(self.wait_for_bytes(), out)
    }

    pub(super) fn receive_whole(
        &self,
        wait: Wait,
        out: &mut [u8],
    ) -> io::Result<(usize, Addresses)> {
        self.receive_before_end(wait, out)?.ok_or_else(at_end)
    }

    /// As [`recv_whole`](Self::recv_whole), and leaves the datagram.
    pub(crate) fn peek_whole(&self, out: &mut [u8]) -> io::Result<(usize, Addresses)> {
        self.see_whole(self.wait_for_bytes(), out)
    }

    pub(super) fn see_whole(&self, wait: Wait, out: &mut [u8]) -> io::Result<(usize, Addresses)> {
        self.peek_before_end(wait, out)?.ok_or_else(at_end)
    }

    /// As [`recv_datagram`](Self::recv_datagram), and leaves the datagram (`MSG_PEEK`).
    ///
    /// # Errors
    /// As for [`recv_datagram`](Self::recv_datagram).
    pub fn peek_datagram(&self, out: &mut [u8]) -> io::Result<(usize, Addresses)> {
        let seen = self.peek_before_end(self.wait_for_bytes(), out)?;
        Ok(seen.unwrap_or_default())
    }

    /// Receives up to `max` datagrams without copying: waits for the first one, and appends those that are there.
    /// Returns how many; 0 once the socket is shut down for reading.
    ///
    /// # Errors
    /// As for [`recv_datagram`](Self::recv_datagram).
    pub fn recv_datagrams(&self, datagrams: &mut Vec<Datagram>, max: usize) -> io::Result<usize> {
        self.receive_datagrams(self.wait_for_bytes(), datagrams, max)
    }

    pub(super) fn receive_datagrams(
        &self,
        wait: Wait,
        datagrams: &mut Vec<Datagram>,
        max: usize,
    ) -> io::Result<usize> {
        self.for_datagrams()?;
        if max == 0 {
            return Ok(0);
        }
        let before = datagrams.len();
        self.receive(wait, 1, |rcv| {
            let taken = std::iter::from_fn(|| rcv.buf.take_record()).take(max);
            datagrams.extend(taken.map(|(payload, addresses)| Datagram { payload, addresses }));
        })?;
        Ok(datagrams.len() - before)
    }

    /// Sends one datagram: waits until all of it finds room in the send buffer.
    ///
    /// # Errors
    /// [`SoError::MessageSize`] if it is longer than the send buffer ever takes; else as for
    /// [`send`](Self::send).
    pub fn send_datagram(&self, bytes: &[u8], addresses: Addresses) -> io::Result<usize> {
        self.send_slices(self.wait_for_space(), &[IoSlice::new(bytes)], addresses)
    }

    pub(super) fn send_slices(
        &self,
        wait: Wait,
        bufs: &[IoSlice<'_>],
        addresses: Addresses,
    ) -> io::Result<usize> {
        let len = bufs.iter().map(|buf| buf.len()).sum();
        let mut snd = self.wait_room_for(wait, len)?;
        let mut frame = FrameMut::with_capacity(len);
        bufs.iter()
            .for_each(|buf| frame.bytes_mut().extend_from_slice(buf));
        snd.buf.append_record([frame.freeze()], addresses);
        drop(snd);
        self.enter(|protocol| protocol.output());
        Ok(len)
    }

    /// Sends datagrams from the front of the list without copying: waits until the first one finds room, and takes
    /// as many as do. Returns how many; the others stay in the list.
    ///
    /// # Errors
    /// As for [`send_datagram`](Self::send_datagram), about the first one; the list is as it was then.
    pub fn send_datagrams(&self, datagrams: &mut Vec<Datagram>) -> io::Result<usize> {
        self.give_datagrams(self.wait_for_space(), datagrams)
    }

    pub(super) fn give_datagrams(
        &self,
        wait: Wait,
        datagrams: &mut Vec<Datagram>,
    ) -> io::Result<usize> {
        self.for_datagrams()?;
        let Some(first) = datagrams.first() else {
            return Ok(0);
        };
        let mut snd = self.wait_room_for(wait, first.len())?;
        let mut count = 0;
        for datagram in &*datagrams {
            // One that does not fit stays in the list, and does not count as dropped.
            if !snd.buf.has_room_for(datagram.len()) {
                break;
            }
            let payload = datagram.payload.iter().cloned();
            snd.buf.append_record(payload, datagram.addresses);
            count += 1;
        }
        drop(snd);
        datagrams.drain(..count);
        self.enter(|protocol| protocol.output());
        Ok(count)
    }

    fn for_datagrams(&self) -> io::Result<()> {
        match self.end().is_for_datagrams() {
            true => Ok(()),
            false => Err(io::Error::new(
                io::ErrorKind::Unsupported,
                "the socket is that of a stream: use send and recv",
            )),
        }
    }

    /// `so_snd` with room for a datagram of so many bytes, locked.
    fn wait_room_for(&self, wait: Wait, len: usize) -> io::Result<Guard<'_, Side, SND>> {
        self.for_datagrams()?;
        let end = self.end();
        let mut timed_out = wait == Wait::Never;
        let mut snd = end.snd();
        loop {
            if let Some(error) = end.take_error() {
                return Err(error.into());
            }
            if snd.buf.is_closed() {
                return Err(SoError::BrokenPipe.into());
            }
            if len > snd.buf.hiwat() {
                return Err(SoError::MessageSize.into());
            }

            if snd.is_connected() && snd.buf.has_room_for(len) {
                return Ok(snd);
            }
            if timed_out {
                return Err(would_block("no room for the datagram"));
            }
            timed_out = end.snd_wait().wait_until(&mut snd, wait.deadline());
        }
    }
}
