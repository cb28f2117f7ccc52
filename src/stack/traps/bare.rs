//! The engine alone, established, with a receive ring of this size.

use super::*;
use crate::tcp::engine::Engine;

pub(super) struct Bare {
    engine: Engine,
    pub(super) iss: u32,
    tuple: Tuple,
}

#[derive(Default)]
struct Frames(Vec<u32>);

impl Outlet for Frames {
    fn ready(&self) -> bool {
        true
    }
    fn emit(&mut self, emitted: Emitted<'_>) {
        self.0.push(emitted.emission.header.seq);
    }
}

pub(super) const IRS: u32 = 1000;

impl Bare {
    pub(super) fn established(rcv_ring: usize) -> Bare {
        let tuple = Tuple {
            local: [10, 0, 0, 1].into(),
            remote: [10, 0, 0, 2].into(),
            local_port: 80,
            remote_port: 5000,
        };
        let config = EngineConfig {
            rcv_ring,
            snd_ring: 10_000,
            shared_rings: None,
            nagle: false,
            seed: 0,
        };
        let caps: Capabilities = memory::Config::default().capabilities;
        let mut bare = Bare {
            engine: Engine::listening(&caps, &config, &tuple),
            iss: 0,
            tuple,
        };
        bare.feed(IRS, 0, SYN, 0);
        bare.iss = bare.egress()[0];
        bare.feed(IRS + 1, bare.iss.wrapping_add(1), ACK, 0);
        assert_eq!(bare.state(), State::Established);
        bare
    }

    pub(super) fn feed(&mut self, seq: u32, ack: u32, flags: u8, len: usize) {
        let header = Header {
            seq,
            ack,
            flags,
            window: 10,
            options: if flags & SYN == 0 {
                SynOptions::default()
            } else {
                OPTIONS
            },
        };
        let now = smoltcp::time::Instant::from_millis(1);
        let tuple = self.tuple;
        self.engine
            .feed(now, &tuple, &header, len, &mut Frames::default());
    }

    pub(super) fn egress(&mut self) -> Vec<u32> {
        let mut frames = Frames::default();
        let now = smoltcp::time::Instant::from_millis(1);
        while self.engine.egress(now, &mut frames) {}
        frames.0
    }

    pub(super) fn enqueue(&mut self, count: usize) {
        self.engine.enqueue(count);
    }

    pub(super) fn state(&self) -> State {
        self.engine.state()
    }

    pub(super) fn snd_queue(&self) -> usize {
        self.engine.snd_queue()
    }
}
