//! The registration of a socket or listener with a poller.
//!
//! A [`Registration`] is an upcall on all buffers of the watched object ([`Watched`]); that reference
//! keeps it alive until the object is closed. It collects changes and puts itself on the poller's list,
//! once. The poller then calls [`look`](Registration::look), which returns the event: the present
//! conditions, and the stored ends of splices.
//!
//! Locks: upcalls run under `so_rcv` (2) or `so_snd` (3) and take the registration's leaf lock (5),
//! then, after it, the list's (5). A look locks the buffers with neither held.

use super::{Interest, Mode, Token, ready_list};
use crate::end::{End, Role};
use crate::error::SoError;
use crate::lock::{LEAF, Mutex};
use crate::protocol::{SocketEnd, Upcall, Upcalls, Wakeup, is_same};
use std::any::Any;
use std::collections::VecDeque;
use std::fmt;
use std::mem;
use std::sync::{Arc, Weak};

/// An object that can be watched: with upcalls, and conditions whose changes they report.
pub trait Watched: Send + Sync {
    /// Calls `edit` with each list of upcalls, all of them locked; not at all if it is closed. `edit`
    /// must not drop upcalls; the caller drops removed ones afterwards.
    fn edit(&self, edit: &mut dyn FnMut(&mut Upcalls));

    /// The conditions now, for this upcall; `None` if it is no longer there.
    fn condition(&self, upcall: &dyn Upcall) -> Option<Condition>;
}

/// The state of a watched object.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Condition {
    pub(crate) readable: bool,
    pub(crate) writable: bool,
    pub(crate) read_closed: bool,
    pub(crate) write_closed: bool,
    pub(crate) error: Option<SoError>,
}

impl Watched for SocketEnd {
    fn edit(&self, edit: &mut dyn FnMut(&mut Upcalls)) {
        let mut rcv = self.rcv();
        let mut snd = self.snd();
        edit(rcv.upcalls_mut());
        edit(snd.upcalls_mut());
    }

    /// `soreadable` and `sowriteable`.
    fn condition(&self, upcall: &dyn Upcall) -> Option<Condition> {
        let mut condition = Condition::default();
        {
            let rcv = self.rcv();
            rcv.upcalls().iter().find(|other| is_same(other, upcall))?;
            if !rcv.is_diverted() {
                let has_bytes = rcv.buf.has(rcv.buf.lowat());
                condition.read_closed = rcv.buf.is_closed();
                condition.readable = has_bytes || rcv.buf.is_closed() || self.error().is_some();
            }
        }
        let snd = self.snd();
        if !snd.is_diverted() {
            let has_space = snd.is_connected() && snd.buf.space() >= snd.buf.lowat();
            condition.write_closed = snd.buf.is_closed();
            condition.writable = has_space || snd.buf.is_closed() || self.error().is_some();
        }
        condition.error = self.error();
        Some(condition)
    }
}

/// An event of a socket or a listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Event {
    token: Token,
    readable: bool,
    writable: bool,
    read_closed: bool,
    write_closed: bool,
    error: Option<SoError>,
    source_end: Option<End>,
    sink_end: Option<End>,
}

impl Event {
    /// The token of the registration.
    pub fn token(&self) -> Token {
        self.token
    }

    /// A read or an accept would not wait. Only with [`Interest::READABLE`].
    pub fn is_readable(&self) -> bool {
        self.readable
    }

    /// A write would not wait. Only with [`Interest::WRITABLE`].
    pub fn is_writable(&self) -> bool {
        self.writable
    }

    /// No more bytes will arrive; queued ones can be read. Independent of the interests; not for the
    /// source of a splice.
    pub fn is_read_closed(&self) -> bool {
        self.read_closed
    }

    /// No more bytes can be written. Independent of the interests; not for the sink of a splice.
    pub fn is_write_closed(&self) -> bool {
        self.write_closed
    }

    /// The socket's error, independent of the interests. It stays on the socket
    /// ([`Socket::take_error`](crate::Socket::take_error)).
    pub fn error(&self) -> Option<SoError> {
        self.error
    }

    /// The end of a splice whose source was this socket; each end is reported once.
    pub fn source_end(&self) -> Option<End> {
        self.source_end
    }

    /// The end of a splice whose sink was this socket; each end is reported once.
    pub fn sink_end(&self) -> Option<End> {
        self.sink_end
    }
}

/// Interests and mode of a registration.
#[derive(Debug, Clone, Copy)]
pub(super) struct XferLimits {
    pub(super) token: Token,
    pub(super) interest: Interest,
    pub(super) mode: Mode,
}

/// Those with changes. Weak: deleted and closed ones are skipped.
pub(super) type ReadyList = ready_list::ReadyList<Weak<Registration>>;

/// Connects a poller with a watched object.
pub(super) struct Registration {
    me: Weak<Registration>,
    list: Weak<ReadyList>,
    watched: Weak<dyn Watched>,
    news: Mutex<News, LEAF>,
}

/// Changes since the last look.
#[derive(Debug)]
struct News {
    terms: XferLimits,
    /// It is in the poller's list.
    queued: bool,
    /// The directions that have changed.
    fresh: Interest,
    source_ends: VecDeque<End>,
    sink_ends: VecDeque<End>,
}

impl Registration {
    pub(super) fn new(
        list: &Arc<ReadyList>,
        watched: &Arc<dyn Watched>,
        terms: XferLimits,
    ) -> Arc<Registration> {
        Arc::new_cyclic(|me| Registration {
            me: me.clone(),
            list: Arc::downgrade(list),
            watched: Arc::downgrade(watched),
            news: Mutex::new(News {
                terms,
                queued: false,
                fresh: Interest::NONE,
                source_ends: VecDeque::new(),
                sink_ends: VecDeque::new(),
            }),
        })
    }

    /// The registration behind an upcall.
    pub(super) fn of(upcall: &Arc<dyn Upcall>) -> Option<&Registration> {
        let upcall: &dyn Any = &**upcall;
        upcall.downcast_ref()
    }

    pub(super) fn is_of(&self, list: &Arc<ReadyList>) -> bool {
        std::ptr::eq(self.list.as_ptr(), Arc::as_ptr(list))
    }

    /// Its poller was dropped.
    pub(super) fn is_orphan(&self) -> bool {
        self.list.strong_count() == 0
    }

    pub(super) fn set_terms(&self, terms: XferLimits) {
        self.news.lock().terms = terms;
    }

    /// Queues it as if both directions had changed.
    pub(super) fn touch(&self) {
        self.enqueue(|news| {
            news.fresh = Interest::BOTH;
            true
        });
    }

    /// Records a change; puts the registration on the list if `note` returns `true`.
    fn enqueue(&self, note: impl FnOnce(&mut News) -> bool) {
        let is_new = {
            let mut news = self.news.lock();
            note(&mut news) && !mem::replace(&mut news.queued, true)
        };
        if is_new && let Some(list) = self.list.upgrade() {
            list.push(self.me.clone());
        }
    }

    /// The event to report now, and whether the registration goes to the back of the list (it is marked
    /// then). Called with no lock held, by the thread that has taken it off the list.
    pub(super) fn look(&self) -> (Option<Event>, bool) {
        // The mark is cleared first: changes from here on put it on the list again.
        let (terms, fresh) = {
            let mut news = self.news.lock();
            news.queued = false;
            let fresh = mem::replace(&mut news.fresh, Interest::NONE);
            (news.terms, fresh)
        };
        let watched = self.watched.upgrade();
        let Some(now) = watched.and_then(|watched| watched.condition(self)) else {
            return (None, false);
        };
        let wants = |direction| {
            let is_due = terms.mode == Mode::Level || fresh.overlaps(direction);
            is_due && terms.interest.overlaps(direction)
        };
        let (readable, writable) = (
            now.readable && wants(Interest::READABLE),
            now.writable && wants(Interest::WRITABLE),
        );
        let is_ready = readable || writable;
        let mut news = self.news.lock();
        // After the conditions: a condition must not show the end of a splice before that end is
        // reported.
        let (source_end, sink_end) = (news.source_ends.pop_front(), news.sink_ends.pop_front());
        let has_more = !news.source_ends.is_empty() || !news.sink_ends.is_empty();
        let again = has_more || (is_ready && terms.mode == Mode::Level);
        let again = again && !mem::replace(&mut news.queued, true);
        drop(news);
        let is_event = is_ready || source_end.is_some() || sink_end.is_some();
        let event = is_event.then_some(Event {
            token: terms.token,
            readable,
            writable,
            read_closed: now.read_closed,
            write_closed: now.write_closed,
            error: now.error,
            source_end,
            sink_end,
        });
        (event, again)
    }
}

impl Upcall for Registration {
    fn wakeup(&self, what: Wakeup) {
        let directions = match what {
            Wakeup::Data => Interest::READABLE,
            Wakeup::Space => Interest::WRITABLE,
            // An error, which concerns both directions, may come with a close, even if a direction is
            // closed already.
            Wakeup::RcvClosed | Wakeup::SndClosed | Wakeup::Failed => Interest::BOTH,
        };
        self.enqueue(|news| {
            news.fresh = news.fresh | directions;
            news.terms.interest.overlaps(directions)
        });
    }

    fn unspliced(&self, role: Role, end: End) {
        if self.is_orphan() {
            return;
        }
        self.enqueue(|news| {
            match role {
                Role::Source => news.source_ends.push_back(end),
                Role::Sink => news.sink_ends.push_back(end),
            }
            // In the OpenBSD flavor an error may come with it.
            news.fresh = Interest::BOTH;
            true
        });
    }
}

impl fmt::Debug for Registration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registration")
            .field("news", &*self.news.lock())
            .finish_non_exhaustive()
    }
}
