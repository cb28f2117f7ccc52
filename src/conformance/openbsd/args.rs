//! The arguments of a run, and its expected bytes.

use crate::conformance::Setup;
use std::time::Duration;

/// OpenBSD's socket buffer size.
const BUFFERS: usize = 16_384;
const SMALL: usize = 4096;

/// The arguments of a run.
#[derive(Debug, Clone, Copy)]
pub(super) struct Args {
    /// Bytes that the client sends.
    pub(super) len: usize,
    /// Bytes in one call of client and server, and of a relay that copies.
    pub(super) block: usize,
    /// Bytes that the relay forwards.
    pub(super) limit: Option<usize>,
    pub(super) idle: Option<Duration>,
    /// The relay splices again after a limit or a timeout, with the same limit, up to the end.
    pub(super) again: bool,
    /// How often the timeout ends a splice.
    pub(super) timeouts: usize,
    /// The timeout occurs after this many bytes.
    pub(super) timeout_after: Option<usize>,
    pub(super) client_sleep: Duration,
    /// The client sleeps after each block.
    pub(super) client_pause: Duration,
    pub(super) relay_sleep: Duration,
    pub(super) server_sleep: Duration,
    /// The relay's sockets are non-blocking.
    pub(super) nonblock: bool,
    /// The connections are made the other way round.
    pub(super) reverse: bool,
    pub(super) buffers: Setup,
    /// The relay tries to read while it splices: it gets nothing (OpenBSD).
    pub(super) reads: bool,
    /// The relay writes while it splices: [`MARK`]s.
    pub(super) writes: bool,
}

pub(super) const DEFAULT: Args = Args {
    len: 251,
    block: 8192,
    limit: None,
    idle: None,
    again: false,
    timeouts: 0,
    timeout_after: None,
    client_sleep: Duration::ZERO,
    client_pause: Duration::ZERO,
    relay_sleep: Duration::ZERO,
    server_sleep: Duration::ZERO,
    nonblock: false,
    reverse: false,
    buffers: Setup {
        rcv_hiwat: BUFFERS,
        snd_hiwat: BUFFERS,
    },
    reads: false,
    writes: false,
};

/// More than all buffers together hold.
pub(super) const LONG: Args = Args {
    len: 131_072,
    ..DEFAULT
};

pub(super) const SMALL_BUFFERS: Setup = Setup {
    rcv_hiwat: SMALL,
    snd_hiwat: SMALL,
};

pub(super) const SMALL_RECEIVE: Setup = Setup {
    rcv_hiwat: SMALL,
    ..DEFAULT.buffers
};

pub(super) const SMALL_SEND: Setup = Setup {
    snd_hiwat: SMALL,
    ..DEFAULT.buffers
};

/// What the relay writes itself; not in the pattern.
pub(super) const MARK: u8 = b'\n';

/// Changes, to be chained.
impl Args {
    pub(super) fn len(self, len: usize) -> Args {
        Args { len, ..self }
    }

    pub(super) fn block(self, block: usize) -> Args {
        Args { block, ..self }
    }

    pub(super) fn limit(self, limit: usize) -> Args {
        let limit = Some(limit);
        Args { limit, ..self }
    }

    /// A timeout that does not occur.
    pub(super) fn idle(self, seconds: u64) -> Args {
        let idle = Some(Duration::from_secs(seconds));
        Args { idle, ..self }
    }

    /// A timeout that occurs after this many bytes.
    pub(super) fn times_out(self, seconds: u64, after: usize) -> Args {
        Args {
            timeouts: 1,
            timeout_after: Some(after),
            ..self.idle(seconds)
        }
    }

    /// The relay splices again after each limit or timeout; `timeouts` is the number of the latter.
    pub(super) fn again(self, timeouts: usize) -> Args {
        Args {
            again: true,
            timeouts,
            ..self
        }
    }

    pub(super) fn client_sleeps(self, millis: u64) -> Args {
        let client_sleep = Duration::from_millis(millis);
        Args {
            client_sleep,
            ..self
        }
    }

    pub(super) fn client_pauses(self, millis: u64) -> Args {
        let client_pause = Duration::from_millis(millis);
        Args {
            client_pause,
            ..self
        }
    }

    pub(super) fn relay_sleeps(self, millis: u64) -> Args {
        let relay_sleep = Duration::from_millis(millis);
        Args {
            relay_sleep,
            ..self
        }
    }

    pub(super) fn server_sleeps(self, millis: u64) -> Args {
        let server_sleep = Duration::from_millis(millis);
        Args {
            server_sleep,
            ..self
        }
    }

    pub(super) fn nonblock(self) -> Args {
        let nonblock = true;
        Args { nonblock, ..self }
    }

    pub(super) fn reverse(self) -> Args {
        let reverse = true;
        Args { reverse, ..self }
    }

    pub(super) fn buffers(self, buffers: Setup) -> Args {
        Args { buffers, ..self }
    }

    pub(super) fn reads(self) -> Args {
        let reads = true;
        Args { reads, ..self }
    }

    pub(super) fn writes(self) -> Args {
        let writes = true;
        Args { writes, ..self }
    }
}

impl Args {
    /// Bytes that arrive at the server.
    pub(super) fn forwarded(&self) -> usize {
        match (self.timeout_after, self.limit) {
            _ if self.again => self.len,
            (Some(count), _) => count,
            (None, limit) => limit.map_or(self.len, |limit| limit.min(self.len)),
        }
    }

    pub(super) fn sleeps(&self) -> bool {
        let sleeps = [
            self.client_sleep,
            self.client_pause,
            self.relay_sleep,
            self.server_sleep,
        ];
        sleeps.iter().any(|sleep| !sleep.is_zero())
    }

    /// Whether it is only possible with a splice.
    pub(super) fn needs_splice(&self) -> bool {
        self.idle.is_some() || self.again || self.reads || self.writes
    }
}

/// Reports the first difference instead of printing both.
#[track_caller]
pub(super) fn assert_same(what: &str, got: &[u8], expected: &[u8]) {
    if got == expected {
        return;
    }
    let same = got.iter().zip(expected).take_while(|(a, b)| a == b).count();
    panic!(
        "{what}: {} bytes instead of {}, the first {same} are right",
        got.len(),
        expected.len()
    );
}
