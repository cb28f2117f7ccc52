//! BSD socket splicing (SO_SPLICE) for userspace TCP stacks.

pub mod buf;
pub mod clock;
pub mod error;
pub mod link;
pub mod local;
pub mod lock;
pub mod protocol;
mod run_list;
pub mod sockbuf;
pub mod socket;
pub mod splice;
pub mod stack;
mod tcp;
mod timer;

pub use socket::Socket;
pub use splice::{Splice, SplicePool};
pub use stack::{Stack, TcpListener, TcpStream};
