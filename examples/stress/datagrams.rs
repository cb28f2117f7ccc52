//! Numbered datagrams through a splice, from one pair of sockets to another one, in memory or over a stack's UDP.
//!
//! Splices end by themselves, are ended and are set up again. Datagrams may be lost, where a buffer is full; one that
//! arrives must be whole, and behind those that were sent before it.

use crate::handle::Handle;
use crate::pattern;
use crate::random::Random;
use crate::stage::Stage;
use crate::watch::Post;
use anyhow::{Context, ensure};
use sosplice::splice::Splice;
use sosplice::{Socket, UdpSocket, local};
use std::io::ErrorKind;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// Datagrams of a trip.
const MOST: u64 = 300;
/// The number in front of each one.
const NUMBER: usize = 8;

/// Two connected sockets, and what keeps them open.
fn pair(stage: &Stage, random: &mut Random) -> anyhow::Result<[Handle; 2]> {
    if random.one_in(2) {
        let (a, b) = local::datagram_pair();
        return Ok([a.into(), b.into()]);
    }
    let hosts = &random.pick(&stage.world.networks).hosts;
    let [a, b] = [&hosts[0], &hosts[1]].map(|host| UdpSocket::bind(&host.stack, host.at(0)));
    let (a, b) = (a?, b?);
    a.connect(b.local_addr())?;
    b.connect(a.local_addr())?;
    Ok([a, b].map(|socket| Socket::clone(&socket).into()))
}

/// One trip. The last datagrams are repeated until one of them has arrived.
pub(crate) fn trip(
    stage: &Arc<Stage>,
    stream: u64,
    random: &mut Random,
    post: &Post,
) -> anyhow::Result<()> {
    let ([sender, source], [sink, receiver]) = (pair(stage, random)?, pair(stage, random)?);
    receiver.set_read_timeout(Some(Duration::from_millis(5)))?;
    let mut splice: Option<Splice> = None;
    let (mut arrived, mut buffer) = (0, vec![0; 70_000]);
    let most = random.between(1..=MOST);
    let mut number = 0;
    while arrived < most && !stage.faults.is_stopped() {
        post.begin("a turn with datagrams");
        if splice.as_ref().is_none_or(Splice::is_ended) {
            source.take_error();
            let pool = &stage.world.couriers;
            let options = stage.options(random, pool);
            let joined = source.splice_to(&sink, options)?;
            let ends = pool.clone();
            joined.on_end(move |end| ends.ends.add(end));
            splice = Some(joined);
        } else if random.one_in(50)
            && let Some(splice) = &splice
        {
            splice.unsplice().ok();
        }
        for _ in 0..random.between(1..=20) {
            number = most.min(number + 1);
            let len = random.maybe(4, |random| random.length(1100)).unwrap_or(60);
            let mut datagram = number.to_be_bytes().to_vec();
            datagram.resize(NUMBER + len, 0);
            pattern::fill(stream, number, &mut datagram[NUMBER..]);
            match sender.send(&datagram) {
                Ok(count) => ensure!(count == datagram.len(), "a part of a datagram was sent"),
                Err(error) => return Err(error).context("send"),
            }
        }
        loop {
            let count = match receiver.recv(&mut buffer) {
                Ok(count) => count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error).context("receive"),
            };
            let (head, payload) = buffer[..count]
                .split_first_chunk()
                .context("a short datagram")?;
            let this = u64::from_be_bytes(*head);
            ensure!(
                (arrived..=most).contains(&this),
                "{this} came behind {arrived}"
            );
            let wrong = pattern::differs(stream, this, payload);
            ensure!(wrong.is_none(), "a byte of datagram {this} is wrong");
            arrived = this;
            stage.checked.fetch_add(count as u64, Ordering::Relaxed);
        }
    }
    Ok(())
}
