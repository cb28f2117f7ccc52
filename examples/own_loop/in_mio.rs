//! The loop with mio. It is edge-triggered: an edge is used up by the turns that follow it, until one finds no work. So
//! both directions can stay registered.

use crate::proxy::Proxy;
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use sosplice::clock::{Clock, SystemClock};
use std::io::{self, ErrorKind};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;

const DEVICE: Token = Token(0);
const WAKE: Token = Token(1);
const STOP: Token = Token(2);

pub(crate) fn run(proxy: &mut Proxy, stop: &UnixStream) -> io::Result<()> {
    let link = proxy.link.clone();
    let [device, wake] = link.descriptors().ok_or(ErrorKind::Unsupported)?;
    let mut poll = Poll::new()?;
    for (descriptor, token, interest) in [
        (
            device.as_raw_fd(),
            DEVICE,
            Interest::READABLE | Interest::WRITABLE,
        ),
        (wake.as_raw_fd(), WAKE, Interest::READABLE),
        (stop.as_raw_fd(), STOP, Interest::READABLE),
    ] {
        let mut source = SourceFd(&descriptor);
        poll.registry().register(&mut source, token, interest)?;
    }
    let mut events = Events::with_capacity(8);
    loop {
        // A join continues without its handle.
        if proxy.turn(|_, join| drop(join))? {
            continue;
        }
        let (deadline, _) = proxy.fall_asleep();
        let left = deadline.map(|deadline| deadline.saturating_duration_since(SystemClock.now()));
        match poll.poll(&mut events, left) {
            Err(error) if error.kind() != ErrorKind::Interrupted => return Err(error),
            _ => {}
        }
        if events.iter().any(|event| event.token() == STOP) {
            return Ok(());
        }
        proxy.woken()?;
    }
}
