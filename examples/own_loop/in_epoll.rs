//! The loop with Linux's epoll. It is level-triggered, so the events that end a sleep are those that the driver asks
//! for, and no others.

use crate::proxy::Proxy;
use rustix::event::{Timespec, epoll};
use rustix::io::Errno;
use sosplice::clock::{Clock, SystemClock};
use sosplice::link::Interest;
use std::io;
use std::os::unix::net::UnixStream;

const DEVICE: u64 = 0;
const WAKE: u64 = 1;
const STOP: u64 = 2;

/// What epoll reports if the driver waits for this.
fn flags(interest: Interest) -> epoll::EventFlags {
    let mut flags = epoll::EventFlags::empty();
    let has = |direction| interest.overlaps(direction);
    flags.set(epoll::EventFlags::IN, has(Interest::READABLE));
    flags.set(epoll::EventFlags::OUT, has(Interest::WRITABLE));
    flags
}

pub(crate) fn run(proxy: &mut Proxy, stop: &UnixStream) -> io::Result<()> {
    let link = proxy.link.clone();
    let [device, wake] = link.descriptors().ok_or(io::ErrorKind::Unsupported)?;
    let mut watched = Interest::READABLE;
    let poll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    let readable = flags(Interest::READABLE);
    epoll::add(&poll, device, epoll::EventData::new_u64(DEVICE), readable)?;
    epoll::add(&poll, wake, epoll::EventData::new_u64(WAKE), readable)?;
    epoll::add(&poll, stop, epoll::EventData::new_u64(STOP), readable)?;
    let mut events = Vec::with_capacity(8);
    loop {
        // A join continues without its handle.
        if proxy.turn(|_, join| drop(join))? {
            continue;
        }
        let (deadline, interest) = proxy.fall_asleep();
        if interest != watched {
            let data = epoll::EventData::new_u64(DEVICE);
            epoll::modify(&poll, device, data, flags(interest))?;
            watched = interest;
        }
        let left = deadline.map(|deadline| deadline.saturating_duration_since(SystemClock.now()));
        let left = left.and_then(|left| Timespec::try_from(left).ok());
        events.clear();
        match epoll::wait(
            &poll,
            rustix::buffer::spare_capacity(&mut events),
            left.as_ref(),
        ) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        if events.iter().any(|event| event.data.u64() == STOP) {
            return Ok(());
        }
        proxy.woken()?;
    }
}
