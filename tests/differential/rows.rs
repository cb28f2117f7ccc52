//! Each row of [`EXCUSES`](super::EXCUSES): a difference of plain smoltcp, where ours follows the RFC.

use super::*;
use smoltcp::phy::{Device, TxToken};

const SETTING: Setting = Setting {
    dials: false,
    stamps: false,
    receive_buffer: 5000,
    send_buffer: 5000,
};

fn cast(start: u64, len: u64) -> Cast {
    Cast {
        start,
        len,
        fin: false,
        ack: Ack::All,
        window: WINDOW,
        stamp: Stamp::Fresh,
        push: false,
    }
}

impl Twins {
    /// The acknowledgements of both.
    fn next(&self) -> [u64; 2] {
        [self.sides[OURS].next, self.sides[PLAIN].next]
    }

    fn states(&self) -> [State; 2] {
        [OURS, PLAIN].map(|index| self.sides[index].end.state())
    }

    /// The application closes, and the FIN has left.
    fn shuts(&mut self) {
        self.shuts = true;
        self.settle();
        assert!(self.sides.iter().all(|side| side.fin == Some(0)));
    }
}

#[test]
fn a_reset_in_the_window() {
    let mut twins = Twins::new(SETTING);
    twins.reset(1);
    assert_eq!(twins.states(), [State::Open, State::Gone]);
    assert_eq!(twins.excuses, [Excuse::ResetInWindow]);
    twins.finish();
}

#[test]
fn an_old_acknowledgement() {
    let mut twins = Twins::new(SETTING);
    twins.to_write = 1000;
    twins.settle();
    twins.cast(&cast(0, 10));
    twins.cast(&Cast {
        ack: Ack::Old(500),
        ..cast(10, 10)
    });
    assert_eq!(twins.next(), [20, 10]);
    assert_eq!(twins.excuses, [Excuse::OldAck]);
    twins.finish();
}

#[test]
fn timestamps_that_are_missing_or_old() {
    for stamp in [Stamp::Old, Stamp::Missing] {
        let mut twins = Twins::new(Setting {
            stamps: true,
            ..SETTING
        });
        twins.cast(&cast(0, 10));
        twins.cast(&Cast {
            stamp,
            ..cast(10, 10)
        });
        assert_eq!(twins.next(), [10, 20]);
        assert_eq!(twins.excuses, [Excuse::Timestamps]);
        twins.finish();
    }
}

#[test]
fn a_segment_that_straddles_the_window() {
    let mut twins = Twins::new(SETTING);
    for start in 0..4 {
        twins.cast(&cast(1000 * start, 1000));
    }
    twins.cast(&cast(3900, 1400));
    assert_eq!(twins.next(), [5000, 4000]);
    assert_eq!(twins.excuses, [Excuse::Straddles]);
    twins.finish();
}

#[test]
fn a_fin_that_is_cut() {
    let mut twins = Twins::new(SETTING);
    for start in 0..4 {
        twins.cast(&cast(1000 * start, 1000));
    }
    twins.fin = Some(5300);
    twins.cast(&Cast {
        fin: true,
        ..cast(4000, 1300)
    });
    // It accepts the FIN after the payload that it has cut.
    assert_eq!(twins.next(), [5000, 5001]);
    assert_eq!(twins.excuses, [Excuse::CutFin]);
    twins.finish();
}

#[test]
fn an_empty_segment_at_the_edge() {
    let mut twins = Twins::new(SETTING);
    twins.to_read = MOST;
    twins.shuts();
    for start in 1..5 {
        twins.cast(&Cast {
            ack: Ack::Same,
            ..cast(1000 * start, 1000)
        });
    }
    // The first segment was lost, and all that the window allows is sent.
    twins.cast(&cast(5000, 0));
    let before = Ack::Old(1);
    twins.cast(&Cast {
        ack: before,
        ..cast(0, 1000)
    });
    twins.fin = Some(5000);
    twins.cast(&Cast {
        fin: true,
        ack: before,
        ..cast(5000, 0)
    });
    assert_eq!(twins.next(), [5001, 5001]);
    // Only ours has its FIN acknowledged.
    assert_eq!(twins.states(), [State::TimeWait, State::Open]);
    twins.finish();
}

#[test]
fn a_repeated_fin() {
    let mut twins = Twins::new(SETTING);
    twins.cast(&cast(0, 100));
    twins.fin = Some(100);
    let last = Cast {
        fin: true,
        ack: Ack::Same,
        ..cast(100, 0)
    };
    twins.cast(&last);
    twins.shuts();
    twins.cast(&Cast {
        ack: Ack::All,
        ..last
    });
    assert_eq!(twins.states(), [State::Gone, State::Open]);
    assert_eq!(twins.excuses, [Excuse::FinAgain]);
    twins.finish();
}

#[test]
fn the_end_after_time_wait() {
    let mut twins = Twins::new(SETTING);
    twins.shuts();
    twins.fin = Some(0);
    twins.cast(&Cast {
        fin: true,
        ..cast(0, 0)
    });
    twins.cast(&cast(1, 0));
    assert_eq!(twins.states(), [State::TimeWait; 2]);
    twins.pass(Duration::from_secs(11));
    assert_eq!(twins.states(), [State::TimeWait, State::Gone]);
    let read = |side: &mut Side| side.end.read(&mut [0]);
    let found: Vec<_> = twins.sides.iter_mut().map(read).collect();
    assert_eq!(found, [Read::End, Read::Forgotten]);
    twins.finish();
    assert_eq!(twins.excuses, [Excuse::ForgottenEnd]);
}

/// Both have received 4000 bytes and advertised a window up to 5000, then 900 bytes were read. Ours does not move the
/// right edge by so little, smoltcp does in a zero-window probe.
fn probed() -> Twins {
    let mut twins = Twins::new(SETTING);
    for start in 0..4 {
        twins.cast(&cast(1000 * start, 1000));
    }
    twins.cast(&Cast {
        window: 0,
        ..cast(4000, 0)
    });
    (twins.to_write, twins.to_read) = (1000, 900);
    twins.settle();
    let edges = |twins: &Twins| [OURS, PLAIN].map(|index| twins.sides[index].edge);
    assert_eq!(edges(&twins), [5000; 2], "too little for a window update");
    twins.pass(Duration::from_secs(2));
    assert!(twins.sides.iter().all(|side| side.sent == 1), "a probe");
    assert_eq!(edges(&twins), [5000, 5900]);
    twins
}

#[test]
fn a_segment_in_the_window_of_a_probe() {
    // The older window has room for a part of it.
    let mut twins = probed();
    twins.cast(&cast(4000, 1400));
    assert_eq!(twins.next(), [5000; 2]);
    assert_eq!(twins.excuses, [Excuse::ProbedWindow]);
    twins.finish();
    // It begins before the windows, and fits in that of the probe: smoltcp drops it.
    let mut twins = probed();
    twins.cast(&cast(3900, 1400));
    assert_eq!(twins.next(), [5000, 4000]);
    assert_eq!(twins.excuses, [Excuse::ProbedWindow]);
    twins.finish();
}

/// Bytes that the peer was allowed to send are lost: `findings/smoltcp_forgets_the_window_of_a_probe.sh`.
#[test]
fn a_fin_in_the_window_of_a_probe() {
    let mut twins = probed();
    twins.fin = Some(5400);
    twins.cast(&Cast {
        fin: true,
        ..cast(4000, 1400)
    });
    // Its end of the stream is in the middle of the payload.
    assert_eq!(twins.next(), [5000, 5001]);
    assert!(twins.excuses.contains(&Excuse::ProbedWindow));
    twins.finish();
}

/// An end that sends each packet so often that its device is full.
struct Repeats(Box<dyn End>);

impl End for Repeats {
    fn packet(&mut self, packet: &[u8]) {
        self.0.packet(packet);
    }

    fn poll(&mut self) -> Vec<Vec<u8>> {
        let packets = self.0.poll();
        let first = packets.first();
        first.map_or(Vec::new(), |first| vec![first.clone(); MOST_PACKETS])
    }

    fn write(&mut self, bytes: &[u8]) -> usize {
        self.0.write(bytes)
    }

    fn read(&mut self, bytes: &mut [u8]) -> Read {
        self.0.read(bytes)
    }

    fn shutdown(&mut self) {
        self.0.shutdown();
    }

    fn abort(&mut self) {
        self.0.abort();
    }

    fn state(&self) -> State {
        self.0.state()
    }
}

fn repeats(index: usize) -> Twins {
    let mut twins = Twins::new(SETTING);
    let clock = twins.clock.clone();
    let other = Box::new(Plain::new(&SETTING, &clock));
    let end = std::mem::replace(&mut twins.sides[index].end, other);
    twins.sides[index].end = Box::new(Repeats(end));
    twins.cast(&cast(0, 100));
    twins.finish();
    twins
}

#[test]
fn segments_without_end() {
    let mut twins = repeats(PLAIN);
    twins.check_endless();
    assert_eq!(twins.excuses, [Excuse::Endless]);
    let side = &twins.sides[OURS];
    assert!(side.at_end && side.read == 100, "the other goes on");
}

#[test]
#[should_panic(expected = "ours: segments without end")]
fn ours_may_not() {
    repeats(OURS).check_endless();
}

#[test]
fn the_device_is_full_at_some_time() {
    let mut device = ends::Device::default();
    let now = smoltcp::time::Instant::ZERO;
    let mut count = 0;
    while let Some(token) = device.transmit(now) {
        token.consume(20, |_| ());
        count += 1;
        assert!(count <= MOST_PACKETS);
    }
    assert_eq!(count, MOST_PACKETS);
}
