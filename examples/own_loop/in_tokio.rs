//! The loop as a task of tokio, beside one for each connection that waits for its splices.

use crate::proxy::Proxy;
use sosplice::link::Interest;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use tokio::io::Interest as Events;
use tokio::io::unix::AsyncFd;

#[allow(
    deprecated,
    reason = "its successor is unsafe for the sake of types that lie about their descriptor, and this is none"
)]
fn register(fd: BorrowedFd<'_>, events: Events) -> io::Result<AsyncFd<BorrowedFd<'_>>> {
    AsyncFd::with_interest(fd, events)
}

async fn task(proxy: &mut Proxy, stop: &UnixStream) -> io::Result<()> {
    let link = proxy.link.clone();
    let [device, wake] = link.descriptors().ok_or(io::ErrorKind::Unsupported)?;
    let all = Events::READABLE | Events::WRITABLE | Events::ERROR;
    let device = register(device, all)?;
    let wake = register(wake, Events::READABLE)?;
    let stop = register(stop.as_fd(), Events::READABLE)?;
    loop {
        let busy = proxy.turn(|peer, join| {
            tokio::spawn(async move {
                let ends = join.ended().await;
                let (up, down) = (ends.a_to_b.bytes, ends.b_to_a.bytes);
                println!("{peer}: {up} bytes up, {down} down");
            });
        })?;
        if busy {
            tokio::task::yield_now().await;
            continue;
        }
        let (deadline, interest) = proxy.fall_asleep();
        let timer = async {
            match deadline {
                Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
                None => std::future::pending().await,
            }
        };
        let mut wanted = Events::ERROR;
        if interest.overlaps(Interest::READABLE) {
            wanted |= Events::READABLE;
        }
        if interest.overlaps(Interest::WRITABLE) {
            wanted |= Events::WRITABLE;
        }
        // These are edges: readiness cleared here is used up by the following turns, until one finds no
        // work.
        tokio::select! {
            () = timer => {}
            event = device.ready(wanted) => event?.clear_ready(),
            event = wake.readable() => event?.clear_ready(),
            _ = stop.readable() => return Ok(()),
        }
        proxy.woken()?;
    }
}

pub(crate) fn run(proxy: &mut Proxy, stop: &UnixStream) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(task(proxy, stop))
}
