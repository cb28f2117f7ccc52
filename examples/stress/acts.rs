//! The acts of a chaos thread: one after the other, each on sockets that other threads use too.
//!
//! The acts and their frequencies are in [`WEIGHTS`]; [`perform`] does one of them and checks its
//! result. The act and its random numbers depend only on seed, thread and number of the act.

mod connections;
mod guests;
mod options;
mod splices;
mod transfer;

pub(crate) use connections::share;

use crate::random::Random;
use crate::stage::Stage;
use crate::verdict::{Refusal, Verdict};
use crate::watch::Post;
use std::collections::BTreeMap;
use std::sync::Arc;

/// The acts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Act {
    LocalPair,
    Connect,
    ConnectTimeout,
    Start,
    WaitConnected,
    ConnectToNobody,
    ConnectRefused,
    ConnectBadly,
    Relisten,
    ListenTwice,
    Duplicate,
    Close,
    Abort,
    Send,
    SendChain,
    Recv,
    RecvChain,
    Peek,
    Shutdown,
    Timeouts,
    ZeroTimeout,
    Nonblocking,
    HighWater,
    LowWater,
    Flavor,
    Nodelay,
    TakeError,
    Look,
    AddUpcall,
    RemoveUpcall,
    Splice,
    SpliceItself,
    SpliceBothWays,
    Ring,
    Chain,
    Resplice,
    Unsplice,
    UnspliceHandle,
    WaitForEnd,
    PollForEnd,
    LookAtSplice,
    ForgetSplice,
    SpliceBadly,
    GuestPool,
    GuestStacks,
    LostLink,
}

/// Relative frequencies.
const WEIGHTS: [(Act, u64); 46] = [
    (Act::LocalPair, 50),
    (Act::Connect, 20),
    (Act::ConnectTimeout, 15),
    (Act::Start, 40),
    (Act::WaitConnected, 10),
    (Act::ConnectToNobody, 1),
    (Act::ConnectRefused, 3),
    (Act::ConnectBadly, 3),
    (Act::Relisten, 2),
    (Act::ListenTwice, 3),
    (Act::Duplicate, 10),
    (Act::Close, 20),
    (Act::Abort, 4),
    (Act::Send, 150),
    (Act::SendChain, 80),
    (Act::Recv, 150),
    (Act::RecvChain, 80),
    (Act::Peek, 40),
    (Act::Shutdown, 8),
    (Act::Timeouts, 20),
    (Act::ZeroTimeout, 3),
    (Act::Nonblocking, 20),
    (Act::HighWater, 20),
    (Act::LowWater, 20),
    (Act::Flavor, 20),
    (Act::Nodelay, 10),
    (Act::TakeError, 20),
    (Act::Look, 20),
    (Act::AddUpcall, 20),
    (Act::RemoveUpcall, 20),
    (Act::Splice, 120),
    (Act::SpliceItself, 10),
    (Act::SpliceBothWays, 40),
    (Act::Ring, 5),
    (Act::Chain, 10),
    (Act::Resplice, 20),
    (Act::Unsplice, 30),
    (Act::UnspliceHandle, 30),
    (Act::WaitForEnd, 10),
    (Act::PollForEnd, 10),
    (Act::LookAtSplice, 20),
    (Act::ForgetSplice, 10),
    (Act::SpliceBadly, 5),
    (Act::GuestPool, 2),
    (Act::GuestStacks, 1),
    (Act::LostLink, 1),
];

fn choose(random: &mut Random) -> Act {
    let sum: u64 = WEIGHTS.iter().map(|(_, weight)| weight).sum();
    let mut left = random.between(0..=sum - 1);
    let chosen = WEIGHTS.iter().find(|(_, weight)| {
        let here = left < *weight;
        left = left.saturating_sub(*weight);
        here
    });
    chosen.map_or(Act::Look, |(act, _)| *act)
}

/// Results of a thread's acts.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub(crate) acts: BTreeMap<Act, Counts>,
}

/// Results of the acts of one kind.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub(crate) done: u64,
    pub(crate) refused: BTreeMap<String, u64>,
}

impl Tally {
    pub(crate) fn add(&mut self, other: Tally) {
        for (act, counts) in other.acts {
            let own = self.acts.entry(act).or_default();
            own.done += counts.done;
            for (why, times) in counts.refused {
                *own.refused.entry(why).or_default() += times;
            }
        }
    }
}

/// A thread of chaos, until the run is stopped.
pub(crate) fn chaos(stage: &Arc<Stage>, thread: u64, post: &Post) -> Tally {
    let mut tally = Tally::default();
    for number in 0.. {
        if stage.faults.is_stopped() {
            break;
        }
        let mut random = Random::of(stage.seed, thread, number);
        let act = choose(&mut random);
        post.begin(format!("{act:?}"));
        let counts = tally.acts.entry(act).or_default();
        match perform(act, stage, &mut random, post) {
            Ok(()) => counts.done += 1,
            Err(Refusal::Allowed(why)) => *counts.refused.entry(why).or_default() += 1,
            Err(Refusal::Forbidden(why)) => {
                let fault = format!("{act:?} (act {number} of thread {thread}): {why}");
                stage.faults.report(fault);
            }
        }
    }
    tally
}

fn perform(act: Act, stage: &Arc<Stage>, random: &mut Random, post: &Post) -> Verdict {
    match act {
        Act::LocalPair => connections::local_pair(stage, random),
        Act::Connect => connections::connect(stage, random),
        Act::ConnectTimeout => connections::connect_timeout(stage, random),
        Act::Start => connections::start(stage, random),
        Act::WaitConnected => connections::wait_connected(stage, random),
        Act::ConnectToNobody => connections::connect_to_an_unused_address(stage, random),
        Act::ConnectRefused => connections::connect_refused(stage, random),
        Act::ConnectBadly => connections::connect_badly(stage, random),
        Act::Relisten => connections::relisten(stage, random),
        Act::ListenTwice => connections::listen_twice(stage, random),
        Act::Duplicate => connections::duplicate(stage, random),
        Act::Close => connections::close(stage, random),
        Act::Abort => connections::abort(stage, random),
        Act::Send => transfer::send(stage, random, post),
        Act::SendChain => transfer::send_chain(stage, random, post),
        Act::Recv => transfer::recv(stage, random, post),
        Act::RecvChain => transfer::recv_chain(stage, random, post),
        Act::Peek => transfer::peek(stage, random, post),
        Act::Shutdown => transfer::shutdown(stage, random),
        Act::Timeouts => options::timeouts(stage, random),
        Act::ZeroTimeout => options::zero_timeout(stage, random),
        Act::Nonblocking => options::nonblocking(stage, random),
        Act::HighWater => options::high_water(stage, random),
        Act::LowWater => options::low_water(stage, random),
        Act::Flavor => options::flavor(stage, random),
        Act::Nodelay => options::nodelay(stage, random),
        Act::TakeError => options::take_error(stage, random),
        Act::Look => options::look(stage, random),
        Act::AddUpcall => options::add_upcall(stage, random),
        Act::RemoveUpcall => options::remove_upcall(stage, random),
        Act::Splice => splices::splice(stage, random),
        Act::SpliceItself => splices::splice_itself(stage, random),
        Act::SpliceBothWays => splices::both_ways(stage, random),
        Act::Ring => splices::ring(stage, random),
        Act::Chain => splices::chain(stage, random),
        Act::Resplice => splices::resplice(stage, random),
        Act::Unsplice => splices::unsplice(stage, random),
        Act::UnspliceHandle => splices::unsplice_handle(stage, random),
        Act::WaitForEnd => splices::wait_for_end(stage, random),
        Act::PollForEnd => splices::poll_for_end(stage, random),
        Act::LookAtSplice => splices::look_at_splice(stage, random),
        Act::ForgetSplice => splices::forget_splice(stage, random),
        Act::SpliceBadly => splices::splice_badly(stage, random),
        Act::GuestPool => guests::guest_pool(stage, random),
        Act::GuestStacks => guests::guest_stacks(stage, random),
        Act::LostLink => guests::lost_link(stage, random),
    }
}
