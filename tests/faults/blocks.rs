//! Links that have no room for long, and links that give and take little at a time: everything
//! arrives, once.

use crate::world::{BACK, FRONT, Fault, Plan, World};
use sosplice::splice::Dispatch;
use std::sync::atomic::Ordering;
use std::time::Duration;

const BOTH: [Dispatch; 2] = [Dispatch::Worker, Dispatch::Direct];

fn transmits(side: usize, dispatch: Dispatch) -> usize {
    let mut world = World::new(side, None, dispatch);
    assert!(world.run(World::is_complete));
    world.faulty.transmitted.load(Ordering::Relaxed)
}

#[test]
fn packets_delayed_by_a_full_link_arrive_when_it_has_room() {
    for dispatch in BOTH {
        for side in [FRONT, BACK] {
            for at in 0..transmits(side, dispatch) {
                for seconds in [1, 15] {
                    let fault = Fault::Full(Duration::from_secs(seconds));
                    let plan = Plan {
                        fault,
                        at,
                        for_good: false,
                    };
                    let mut world = World::new(side, Some(plan), dispatch);
                    assert!(world.run(World::is_complete), "{plan:?}");
                    let stats = world.stats(side);
                    assert!(stats.link_full > 0, "{plan:?}");
                    assert_eq!(stats.segments_lost, 0, "{plan:?}");
                    world.nothing_is_left();
                }
            }
        }
    }
}

#[test]
fn a_link_that_gives_one_frame_at_a_time_loses_nothing() {
    for dispatch in BOTH {
        for side in [FRONT, BACK] {
            let plan = Plan {
                fault: Fault::Single,
                at: 0,
                for_good: true,
            };
            let mut world = World::new(side, Some(plan), dispatch);
            assert!(world.run(World::is_complete));
            world.nothing_is_left();
        }
    }
}
