//! Several drivers in one thread.

use crate::clock::{Clock, SystemClock};
use crate::link::{Interest, Link, poll_flags, poll_until};
use crate::stack::driver::{Driver, Running, Turn};
use rustix::event::{PollFd, PollFlags};
use smallvec::SmallVec;
use std::io;
use std::time::Instant;

impl Driver {
    /// Runs several stacks in the calling thread, until all of them have ended: a stack ends with its
    /// link, or when there are no handles of it and its sockets. The others continue.
    ///
    /// Forwarding from one link to another then wakes one thread and not two. This is for splices of
    /// [`Dispatch::Adaptive`](crate::splice::Dispatch::Adaptive) and
    /// [`Direct`](crate::splice::Dispatch::Direct); with [`Worker`](crate::splice::Dispatch::Worker),
    /// receiving in several threads can be faster.
    ///
    /// If the links have several receive queues, each thread may run the drivers of one queue of all
    /// stacks ([`build_with_drivers`](crate::stack::Builder::build_with_drivers)); a thread may also
    /// run several drivers of one stack.
    ///
    /// ```no_run
    /// use sosplice::{Stack, link::tun::Tun, stack::Driver};
    /// let (front, driver) = Stack::builder(Tun::open("tun0")?).address("10.1.0.2/24".parse()?).build_with_driver()?;
    /// let (back, other) = Stack::builder(Tun::open("tun1")?).address("10.2.0.2/24".parse()?).build_with_driver()?;
    /// std::thread::spawn(|| Driver::run_all([driver, other]));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// [`InvalidInput`](io::ErrorKind::InvalidInput) if there are several and a link has no
    /// [`descriptors`](Link::descriptors); errors of `poll(2)`. All stacks have ended then, as with a
    /// link that fails.
    ///
    /// # Panics
    /// If a hook or an upcall panics; all stacks have ended then.
    pub fn run_all(drivers: impl IntoIterator<Item = Driver>) -> io::Result<()> {
        let mut running: Vec<Running> = drivers.into_iter().map(Running::new).collect();
        if running.len() == 1 {
            running.pop().into_iter().for_each(Running::run);
            return Ok(());
        }
        if running.iter().any(|one| one.link().descriptors().is_none()) {
            let why = "a link without descriptors cannot share a thread: run its driver alone";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
        }
        while !running.is_empty() {
            let mut busy = false;
            running.retain_mut(|one| {
                let turn = one.turn();
                busy |= turn == Turn::Busy;
                turn != Turn::Over
            });
            if !busy && !running.is_empty() {
                sleep(&mut running)?;
            }
        }
        Ok(())
    }
}

/// Sleeps until one of them has work. Removes those whose link is gone.
fn sleep(running: &mut Vec<Running>) -> io::Result<()> {
    let asleep: SmallVec<[_; 4]> = running.iter().map_while(Running::fall_asleep).collect();
    let result = if asleep.len() == running.len() {
        let deadline = asleep.iter().filter_map(|(deadline, _)| *deadline).min();
        let interests = asleep.iter().map(|(_, interest)| *interest);
        wait(running, interests, deadline)
    } else {
        Ok(SmallVec::new())
    };
    running.iter().for_each(Running::wake_up);
    let mut called = result?.into_iter();
    running.retain(|one| {
        // The link's own `wait` clears its wake-up and reports whether it is gone.
        let call = called.next().unwrap_or(false);
        !call || one.waited(one.link().wait(Interest::NONE, Some(SystemClock.now())))
    });
    Ok(())
}

/// Waits for all links. Returns for each whether its own `wait` must be called.
fn wait(
    running: &[Running],
    interests: impl Iterator<Item = Interest>,
    deadline: Option<Instant>,
) -> io::Result<SmallVec<[bool; 4]>> {
    let mut fds: SmallVec<[PollFd<'_>; 8]> = SmallVec::new();
    for (one, interest) in running.iter().zip(interests) {
        let Some([device, wake]) = one.link().descriptors() else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        fds.push(PollFd::from_borrowed_fd(device, poll_flags(interest)));
        fds.push(PollFd::from_borrowed_fd(wake, PollFlags::IN));
    }
    poll_until(&mut fds, deadline)?;
    let plain = PollFlags::IN | PollFlags::OUT;
    let called =
        |pair: &[PollFd<'_>]| !plain.contains(pair[0].revents()) || !pair[1].revents().is_empty();
    Ok(fds.chunks(2).map(called).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Stack;
    use crate::link::{Capabilities, Frame, Packet, ReceiveError, TransmitError};
    use rustix::fd::{AsFd, BorrowedFd};
    use std::os::unix::net::UnixDatagram;
    use std::time::Duration;

    /// A link that is writable and never readable.
    #[derive(Debug)]
    struct Quiet([UnixDatagram; 2]);

    impl Link for Quiet {
        fn capabilities(&self) -> Capabilities {
            Capabilities {
                mtu: 1500,
                checksum: false,
                segment_v4: None,
                segment_v6: None,
                datagrams_v4: None,
                datagrams_v6: None,
            }
        }
        fn receive(&self, _frames: &mut Vec<Frame>, _max: usize) -> Result<usize, ReceiveError> {
            Ok(0)
        }
        fn transmit(&self, _packet: &Packet<'_>) -> Result<(), TransmitError> {
            Err(TransmitError::Full)
        }
        fn wait(&self, _interest: Interest, _deadline: Option<Instant>) -> io::Result<()> {
            Ok(())
        }
        fn wake(&self) {}
        fn descriptors(&self) -> Option<[BorrowedFd<'_>; 2]> {
            Some([self.0[0].as_fd(), self.0[1].as_fd()])
        }
    }

    fn running() -> Running {
        let (a, b) = UnixDatagram::pair().unwrap();
        let stack = Stack::builder(Quiet([a, b])).address("10.0.0.1/24".parse().unwrap());
        Running::new(stack.build_with_driver().unwrap().1)
    }

    #[test]
    fn a_link_without_room_is_called_when_it_has_room() {
        let (short, content) = (running(), running());
        let start = SystemClock.now();
        let limit = start + Duration::from_secs(60);
        let interests = [Interest::READABLE, Interest::BOTH].into_iter();
        let called = wait(&[content, short], interests, Some(limit)).unwrap();
        assert!(SystemClock.now() < limit, "it waited for another event");
        assert_eq!(&called[..], [false, false]);
    }

    #[test]
    fn without_interest_it_sleeps_until_the_deadline() {
        let start = SystemClock.now();
        let deadline = start + Duration::from_millis(20);
        let all = [running(), running()];
        let interests = [Interest::READABLE; 2].into_iter();
        wait(&all, interests, Some(deadline)).unwrap();
        assert!(SystemClock.now() >= deadline);
    }
}
