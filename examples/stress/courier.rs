//! Couriers: threads that send bytes through chains of splices and check each one.
//!
//! ```text
//! sender --conn--> [ splice ] --conn--> [ splice ] --conn--> receiver
//! ```
//!
//! A [`Trip`] is one such chain, with connections of any kind, which no other thread uses. On the way
//! splices are ended, end by themselves and are set up again, and some bytes are copied. All bytes must
//! arrive, in order; each splice must have counted its bytes, and the bytes that it left on its source
//! must be the next ones. Some trips lose a connection: then a prefix arrives.

use crate::datagrams;
use crate::random::Random;
use crate::stage::Stage;
use crate::trip::Trip;
use crate::watch::Post;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// A courier's thread, until the run is stopped.
pub(crate) fn courier(stage: &Arc<Stage>, thread: u64, post: &Post) {
    for number in 0.. {
        if stage.faults.is_stopped() {
            return;
        }
        let stream = (thread << 32) | number;
        let mut random = Random::of(stage.seed, thread, number);
        post.begin(format!("begin trip {number}"));
        let one_trip = if random.one_in(4) {
            datagrams::trip
        } else {
            trip
        };
        match one_trip(stage, stream, &mut random, post) {
            Ok(()) => stage.trips.fetch_add(1, Ordering::Relaxed),
            Err(fault) => {
                let why = fault.root_cause();
                let fault = format!("trip {number} of thread {thread}: {why}: {fault:#}");
                stage.faults.report(fault);
                return;
            }
        };
    }
}

fn trip(stage: &Arc<Stage>, stream: u64, random: &mut Random, post: &Post) -> anyhow::Result<()> {
    let mut trip = Trip::begin(stage, stream, random)?;
    loop {
        post.begin(trip.what());
        if trip.turn(random)? {
            break;
        }
        // At the end of the run bytes in flight still have to arrive.
        if stage.faults.any() {
            trip.give_up();
            break;
        }
    }
    post.begin("end a trip");
    trip.end()
}
