//! The secrets of a stack, drawn at once, and replaced in a copy of the machine.
//!
//! All are atomic, there are no locks.

use super::Stack;
use crate::link::Link;
use crate::random::{Random, mix};
use std::io;
use std::sync::atomic::Ordering;

/// The numbers from which all secrets of a stack follow.
#[derive(Debug, Clone, Copy)]
pub(in crate::stack) struct Seed {
    /// The key of hashes: initial sequence numbers, timestamps, SYN cookies, identifications.
    pub(in crate::stack) hashes: [u64; 2],
    pub(in crate::stack) ports: u64,
    /// Of the links.
    links: u64,
    /// Nothing else is random.
    pub(in crate::stack) repeatable: bool,
}

impl Seed {
    /// From the operating system, unless one is given.
    pub(in crate::stack) fn draw(given: Option<u64>) -> Result<Seed, getrandom::Error> {
        if let Some(seed) = given {
            return Ok(Seed::repeatable(seed));
        }
        Ok(Seed {
            hashes: [getrandom::u64()?, getrandom::u64()?],
            ports: getrandom::u64()?,
            links: getrandom::u64()?,
            repeatable: false,
        })
    }

    pub(in crate::stack) fn repeatable(seed: u64) -> Seed {
        Seed {
            hashes: [seed.rotate_left(32), 0],
            ports: seed,
            links: mix(seed),
            repeatable: true,
        }
    }
}

impl Stack {
    /// Replaces all secrets by new ones from the operating system: in a copy of a virtual machine, or in one that
    /// continues from a snapshot for a second time. Without the call two copies choose the same numbers, and who owns
    /// one of them can guess those of the other: see
    /// ["Snapshots and clones"](crate::security#snapshots-and-clones).
    ///
    /// | secret | after the call |
    /// |---|---|
    /// | initial sequence numbers (RFC 6528), offsets of timestamps (RFC 7323) | new; connections that exist, also half-open ones, keep theirs and go on |
    /// | SYN cookies | those sent before are not accepted: a client that answers one is reset |
    /// | ephemeral ports (RFC 6056) | new; sockets that exist keep theirs |
    /// | identifications of fragments (RFC 6864, 7739) | new |
    /// | the random part of the limit of ICMP errors | new |
    /// | random numbers of the links ([`Link::reseed`]): e.g. transactions of a DHCP client | new |
    ///
    /// The secrets are those of the whole stack, whatever the number of its queues. The call takes no lock; numbers
    /// that other threads choose while it runs may still be the former ones. So call it before packets arrive
    /// from the link, or before those that the copy has sent count.
    ///
    /// A stack that was made repeatable ([`Builder::seed`](crate::stack::Builder::seed)) is not so after it.
    ///
    /// ```
    /// use sosplice::{Stack, link::memory};
    /// let (link, _other) = memory::pair(memory::Config::default());
    /// let stack = Stack::builder(link).address("10.0.0.1/24".parse()?).build()?;
    /// // The machine was copied, and runs again.
    /// stack.reseed()?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// If the operating system returns no random bytes. The secrets are the former ones then.
    pub fn reseed(&self) -> io::Result<()> {
        self.replace_secrets(&Seed::draw(None).map_err(io::Error::other)?);
        Ok(())
    }

    /// As [`reseed`](Self::reseed), with secrets that follow from `seed`, as with
    /// [`Builder::seed`](crate::stack::Builder::seed). For tests only: they can be guessed.
    ///
    /// ```
    /// use sosplice::{Stack, link::memory};
    /// let (link, _other) = memory::pair(memory::Config::default());
    /// let stack = Stack::builder(link).address("10.0.0.1/24".parse()?).seed(1).build()?;
    /// stack.reseed_repeatably(2);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn reseed_repeatably(&self, seed: u64) {
        self.replace_secrets(&Seed::repeatable(seed));
    }

    fn replace_secrets(&self, seed: &Seed) {
        let shared = self.shared();
        shared.addressing.isn.reseed(seed);
        shared.addressing.ephemeral_ports.reseed(seed);
        // Until the next cookie is sent none is valid, so that none need be guessed.
        shared.accepting.cookies_sent_in.store(0, Ordering::Relaxed);
        let mut links = Random::new(seed.links);
        for queue in &shared.queues {
            queue.link.reseed(links.next());
        }
    }
}
