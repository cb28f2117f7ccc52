//! Options of a splice.

use super::{Dispatch, Rate, SplicePool};
use std::time::Duration;

/// Options of a splice.
///
/// ```
/// use sosplice::splice::Options;
/// let options = Options::default().limit(1000).forward_eof(true);
/// assert_eq!(options.idle, None);
/// ```
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct Options {
    /// Ends after exactly this many bytes; later bytes stay on the source.
    pub limit: Option<u64>,
    /// Ends when no byte has moved for so long (OpenBSD's meaning of the timeout).
    pub idle: Option<Duration>,
    /// Ends after this time, whether or not bytes have been moved (FreeBSD's meaning).
    pub lifetime: Option<Duration>,
    /// When the source's stream has ended and its last byte is moved, shut the sink down for writing.
    /// Neither kernel does. (Not when the source has failed.)
    pub forward_eof: bool,
    /// Datagrams keep their addresses: each goes to the peer, and from the address, that it came with in the place
    /// of the one that the sink is connected to, which then need not be connected. Neither kernel does. Of a
    /// stream this says nothing.
    pub addresses: bool,
    /// When one of the sockets has failed, abort the other one: its peer gets a reset. Neither
    /// kernel does.
    pub forward_reset: bool,
    /// With fewer bytes than this on the source, wait for more before moving them. The end of the
    /// stream and the limit override it; it is capped at half of the source's high-water mark. For bulk
    /// data only: when the peer pauses, its last bytes wait until it sends more.
    pub lowat: usize,
    /// Moves no more bytes than this rate allows.
    pub rate: Option<Rate>,
    /// The thread in which it moves its bytes; the pool's setting by default.
    pub dispatch: Option<Dispatch>,
    /// The pool it runs in; [`SplicePool::global`] by default.
    pub pool: Option<SplicePool>,
}

impl Options {
    /// Sets [`limit`](field@Self::limit); `None` removes it.
    #[must_use]
    pub fn limit(mut self, limit: impl Into<Option<u64>>) -> Options {
        self.limit = limit.into();
        self
    }

    /// Sets [`idle`](field@Self::idle); `None` removes it.
    #[must_use]
    pub fn idle(mut self, idle: impl Into<Option<Duration>>) -> Options {
        self.idle = idle.into();
        self
    }

    /// Sets [`lifetime`](field@Self::lifetime); `None` removes it.
    #[must_use]
    pub fn lifetime(mut self, lifetime: impl Into<Option<Duration>>) -> Options {
        self.lifetime = lifetime.into();
        self
    }

    /// Sets [`rate`](field@Self::rate); `None` removes it.
    #[must_use]
    pub fn rate(mut self, rate: impl Into<Option<Rate>>) -> Options {
        self.rate = rate.into();
        self
    }

    /// Sets [`dispatch`](field@Self::dispatch); `None` removes it.
    #[must_use]
    pub fn dispatch(mut self, dispatch: impl Into<Option<Dispatch>>) -> Options {
        self.dispatch = dispatch.into();
        self
    }

    /// Sets [`pool`](field@Self::pool); `None` removes it.
    #[must_use]
    pub fn pool(mut self, pool: impl Into<Option<SplicePool>>) -> Options {
        self.pool = pool.into();
        self
    }

    /// Sets [`addresses`](field@Self::addresses).
    #[must_use]
    pub fn addresses(mut self, addresses: bool) -> Options {
        self.addresses = addresses;
        self
    }

    /// Sets [`forward_eof`](field@Self::forward_eof).
    #[must_use]
    pub fn forward_eof(mut self, forward_eof: bool) -> Options {
        self.forward_eof = forward_eof;
        self
    }

    /// Sets [`forward_reset`](field@Self::forward_reset).
    #[must_use]
    pub fn forward_reset(mut self, forward_reset: bool) -> Options {
        self.forward_reset = forward_reset;
        self
    }

    /// Sets [`lowat`](field@Self::lowat).
    #[must_use]
    pub fn lowat(mut self, lowat: usize) -> Options {
        self.lowat = lowat;
        self
    }
}
