//! Faults: links that fail, refuse, or have no room, at every moment in turn.
#![allow(missing_docs, clippy::unwrap_used, reason = "tests")]

#[path = "faults/blocks.rs"]
mod blocks;
#[path = "support/clock.rs"]
mod clock;
#[path = "faults/gone.rs"]
mod gone;
#[path = "faults/world.rs"]
mod world;
