//! A connection that stands still gives its engine back, rings and all, and takes another when
//! something happens.
//!
//! An engine that has nothing in flight, nothing to deliver and no timer holds nothing that is not
//! here too, or is worthless by then: the congestion window of a connection that was idle for longer than a
//! retransmission timeout is not to be used again (RFC 5681 4.1). The next engine is brought to where
//! the former one was by a handshake of which nobody else hears. It takes a round trip, so that the
//! engine knows how long to wait before it sends again. Its sequence numbers are others; the guard and
//! the offset carry them over, so on the wire nothing has changed.

use super::{Env, Tcb, Work};
#[cfg(any(test, sosplice_fuzz))]
use crate::buf::Buf;
use crate::link::Capabilities;
use crate::tcp::engine::{Emitted, Engine, EngineConfig, Outlet};
use crate::tcp::guard::Emission;
use crate::tcp::wire::Header;
use smoltcp::socket::tcp::State;
use std::time::{Duration, Instant};

/// Three times this is the engine's largest retransmission timeout.
const LONGEST_TRIP: Duration = Duration::from_secs(20);

/// What another engine needs to know of the former one.
#[derive(Debug)]
pub(super) struct Rest {
    mtu: usize,
    snd_ring: usize,
    shared_rings: Option<u8>,
}

impl Tcb {
    /// When the connection gives its engine back, if nothing happens before.
    pub(super) fn rest_at(&self) -> Option<Instant> {
        let after = self.limits.rest?;
        let still = self.state() == State::Established
            && self.ended.is_none()
            && self.said_established
            && !self.detached
            && !self.outstanding
            && self.guard.is_at_rest()
            && self.inbox.is_empty()
            && self.waiting.is_empty();
        let engine = self.engine.as_ref().filter(|_| still)?;
        // Limits of how often it answers are the engine's.
        let since = self.moved.1.max(self.rose);
        (engine.rcv_queue() == 0 && engine.snd_queue() == 0).then(|| since + after)
    }

    /// Gives its engine back, unless that has a timer, and the memory for more buffers than there are.
    pub(super) fn rest(&mut self, env: &Env<'_>) {
        let now = self.engine_time(env.now);
        let engine = self.engine.take_if(|engine| engine.poll_at(now).is_none());
        let Some(engine) = engine else { return };
        self.rest = Some(Rest {
            mtu: engine.mtu(),
            snd_ring: engine.snd_capacity(),
            shared_rings: engine.shares_rings(),
        });
        self.inbox.shrink();
        self.waiting.shrink_to_fit();
        env.end.rcv().buf.shrink();
        env.end.snd().buf.shrink();
    }

    /// It has no engine, and needs none for this.
    pub(super) fn stays_at_rest(&self, work: Work, env: &Env<'_>) -> bool {
        let mut quiet = Work::SERVE;
        quiet.add(Work::IDLE);
        let due = [self.own_deadline(), self.vigil.deadline()];
        let due = due.into_iter().flatten().any(|at| env.now >= at);
        if self.rest.is_none() || !work.is_within(quiet) || self.broken || due {
            return false;
        }
        let snd = env.end.snd();
        snd.buf.chain().end() == self.queued && !snd.buf.is_closed()
    }

    /// Takes another engine, if it has none.
    pub(super) fn rise(&mut self, env: &Env<'_>) {
        let Some(rest) = self.rest.take() else { return };
        self.rose = env.now;
        let link = Capabilities {
            mtu: rest.mtu,
            ..env.link.capabilities()
        };
        let config = EngineConfig {
            rcv_ring: usize::try_from(self.guard.capacity()).unwrap_or(usize::MAX),
            snd_ring: rest.snd_ring,
            shared_rings: rest.shared_rings,
            nagle: !env.options.nodelay(),
            // Nobody sees its sequence numbers.
            seed: 0,
        };
        let mut engine = Box::new(Engine::listening(&link, &config, &self.tuple));
        let now = self.engine_time(env.now);
        #[cfg(any(test, sosplice_fuzz))]
        self.tap.reborn(config, link);
        // Its timer for acknowledgements does not run.
        self.ack.settled();
        let trip = self.recovery.round_trip().unwrap_or_default();
        let trip = smoltcp::time::Duration::from(trip.min(LONGEST_TRIP));
        let mut past = Past::new(now, trip);
        self.say(&mut engine, Some((&self.guard.syn_again(), 0)), past.at);
        let syn = self.say(&mut engine, None, past.at);
        if let Some(syn) = &syn {
            self.move_to(syn.header.seq);
        }
        let ack = self.guard.ack_again();
        self.say(&mut engine, Some((&ack, 0)), past.later());
        self.open_window(&mut engine, rest.mtu, &mut past);
        // It answers with the window that it counts from now on.
        let below = self.guard.below_window();
        let answer = self.say(&mut engine, Some((&below, 1)), now);
        if let Some(answer) = &answer {
            self.guard.emitted(answer);
        }
        let stands = engine.state() == State::Established
            && engine.snd_queue() == 0
            && engine.poll_at(now).is_none();
        self.engine = Some(engine);
        self.fit_segments();
        self.check(
            stands && syn.is_some() && answer.is_some(),
            "I7: an engine takes the place of the one before",
        );
    }

    /// An engine begins with a congestion window of 2 KiB, and there is no other way to open it than text
    /// that is acknowledged. After idle time it may be what it is for a new connection (RFC 5681 4.1,
    /// 6928 2).
    fn open_window(&mut self, engine: &mut Engine, mtu: usize, past: &mut Past) {
        const FROM: usize = 2048;
        let segment = self.segment_size(mtu);
        let to = (10 * segment).min(14_600.max(2 * segment));
        if segment > engine.snd_capacity() || segment > self.guard.window() {
            return;
        }
        // Each acknowledgement opens it by a segment (RFC 5681 3.1).
        for _ in 0..to.saturating_sub(FROM) / segment {
            #[cfg(any(test, sosplice_fuzz))]
            self.tap.primed(segment);
            engine.enqueue(segment);
            while engine.snd_queue() > 0 {
                let Some(sent) = self.say(engine, None, past.at) else {
                    return;
                };
                let len = u32::try_from(sent.len).unwrap_or(0);
                self.move_to(sent.header.seq.wrapping_add(len).wrapping_sub(1));
                let ack = self.guard.ack_again();
                self.say(engine, Some((&ack, 0)), past.later());
            }
        }
    }

    /// The engine's next sequence number comes right behind this one.
    fn move_to(&mut self, seq: u32) {
        let moved = self.guard.move_iss(seq);
        self.offset = self.offset.map(|offset| offset.wrapping_sub(moved));
    }

    /// Feeds something, or asks for what there is to emit. What the engine says stays here.
    fn say(
        &mut self,
        engine: &mut Engine,
        said: Option<(&Header, usize)>,
        now: smoltcp::time::Instant,
    ) -> Option<Emission> {
        let mut heard = Quiet::default();
        match said {
            Some((header, len)) => {
                #[cfg(any(test, sosplice_fuzz))]
                self.tap.fed(now, &self.tuple, header, len, &[]);
                engine.feed(now, &self.tuple, header, len, &mut heard);
            }
            None => {
                #[cfg(any(test, sosplice_fuzz))]
                self.tap.egress(now);
                engine.egress(now, &mut heard);
            }
        }
        #[cfg(any(test, sosplice_fuzz))]
        if heard.last.is_some() {
            let zeros = vec![0; heard.last.as_ref().map_or(0, |last| last.len)];
            self.tap.emitted(&heard.header, &[Buf::copy_of(&zeros)]);
        }
        heard.last
    }
}

/// When what the engine is told has happened: each answer took a round trip, and the last one is here.
struct Past {
    at: smoltcp::time::Instant,
    trip: smoltcp::time::Duration,
    now: smoltcp::time::Instant,
}

impl Past {
    /// More answers than are given.
    const ANSWERS: u32 = 16;

    fn new(now: smoltcp::time::Instant, trip: smoltcp::time::Duration) -> Past {
        let micros = i64::try_from((trip * Past::ANSWERS).total_micros()).unwrap_or(0);
        let at = smoltcp::time::Instant::from_micros((now.total_micros() - micros).max(0));
        Past { at, trip, now }
    }

    /// An answer to what was sent at that time.
    fn later(&mut self) -> smoltcp::time::Instant {
        self.at = (self.at + self.trip).min(self.now);
        self.at
    }
}

/// Keeps the last frame to itself.
#[derive(Default)]
struct Quiet {
    last: Option<Emission>,
    #[cfg(any(test, sosplice_fuzz))]
    header: Vec<u8>,
}

impl Outlet for Quiet {
    fn ready(&self) -> bool {
        true
    }

    fn emit(&mut self, emitted: Emitted<'_>) {
        #[cfg(any(test, sosplice_fuzz))]
        self.header.extend_from_slice(emitted.header);
        self.last = Some(emitted.emission);
    }
}
