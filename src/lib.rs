//! BSD socket splicing (SO_SPLICE) for userspace TCP stacks.

pub mod buf;
pub mod clock;
pub mod error;
pub mod link;
pub mod lock;
pub mod protocol;
pub mod sockbuf;
mod tcp;
