//! The sending half: acknowledgements, the peer's window, and the choice of new data to send.
//!
//! RFC 9293 3.10.7.4 and 5961 5 (acknowledgements), 3.8.6 (the peer's window; 3.8.6.1 probes, 3.8.6.2.1
//! against silly windows), 3.7.4 (Nagle, in Minshall's variant: one small segment in flight), 3.10.4
//! (the FIN follows the last byte at once), 7323 2 (scale). Losses are handled in
//! [`recovery`](super::recovery). Pure.
//!
//! Invariants: `snd_una <= snd_nxt <= snd_max <= end()`, `snd_max <= snd_nxt + 2`, `snd_nxt <=
//! snd_wnd_end` unless the peer has shrunk its window.

use super::seq::{Space, signed};

/// See the module.
#[derive(Debug)]
pub(crate) struct Sender {
    /// Sequence numbers from ISS.
    space: Space,
    /// SND.UNA.
    snd_una: u64,
    /// SND.NXT, without probes.
    snd_nxt: u64,
    /// SND.MAX, the end of all data ever sent: a probe may be beyond `snd_nxt`.
    snd_max: u64,
    /// SND.UNA + SND.WND: the right edge of the peer's window.
    snd_wnd_end: u64,
    /// SND.WL1, SND.WL2: SEQ and ACK of the segment that advertised it.
    snd_wl1: i64,
    snd_wl2: u64,
    /// MAX.SND.WND (RFC 5961 5.2).
    max_snd_wnd: u64,
    /// Snd.Wind.Shift.
    snd_wind_shift: u8,
    /// Bytes written by the program.
    written: u64,
    /// They are followed by a FIN, at position `written`.
    fin_queued: bool,
    /// The end of the latest small segment (Minshall; Linux's `snd_sml`).
    snd_small: u64,
    nodelay: bool,
    /// The persist timer has expired: a probe is due.
    probe_due: bool,
    /// Probes in a row.
    probes: u32,
}

/// The choice of new data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Choice {
    /// Send this many bytes, and the FIN.
    Send { len: u64, fin: bool },
    /// There is no new data.
    Nothing,
    /// The congestion window is full.
    Congested,
    /// The peer's window is closed, or too small for a segment (silly window avoidance).
    Closed,
    /// A small segment is in flight, and this one would be small too.
    Nagle,
}

impl Sender {
    /// A value of each cache line.
    pub(crate) fn lines(&self) -> impl Sized + use<> {
        (self.snd_una, self.probes)
    }

    pub(crate) fn new(iss: u32, nodelay: bool) -> Sender {
        Sender {
            space: Space::new(iss),
            snd_una: 0,
            snd_nxt: 0,
            snd_max: 0,
            snd_wnd_end: 0,
            snd_wl1: -1,
            snd_wl2: 0,
            max_snd_wnd: 0,
            snd_wind_shift: 0,
            written: 0,
            fin_queued: false,
            snd_small: 0,
            nodelay,
            probe_due: false,
            probes: 0,
        }
    }

    pub(crate) fn iss(&self) -> u32 {
        self.space.initial()
    }

    pub(crate) fn seq(&self, position: u64) -> u32 {
        self.space.seq(position)
    }

    pub(crate) fn position(&self, seq: u32) -> i64 {
        self.space.position(seq, self.snd_una)
    }

    pub(crate) fn una(&self) -> u64 {
        self.snd_una
    }

    pub(crate) fn nxt(&self) -> u64 {
        self.snd_nxt
    }

    /// SND.MAX.
    pub(crate) fn max(&self) -> u64 {
        self.snd_max
    }

    /// Bytes written by the program.
    pub(crate) fn written(&self) -> u64 {
        self.written
    }

    /// The end of all data to send, including the FIN.
    pub(crate) fn end(&self) -> u64 {
        self.written + u64::from(self.fin_queued)
    }

    /// Bytes that are acknowledged: SND.UNA without the FIN.
    pub(crate) fn acknowledged_bytes(&self) -> u64 {
        self.snd_una.min(self.written)
    }

    pub(crate) fn edge(&self) -> u64 {
        self.snd_wnd_end
    }

    /// Whether all data and the FIN are acknowledged.
    pub(crate) fn fin_acknowledged(&self) -> bool {
        self.fin_queued && self.snd_una > self.written
    }

    #[cfg(test)]
    pub(crate) fn fin_sent(&self) -> bool {
        self.fin_queued && self.snd_max > self.written
    }

    /// SEG.SEQ of an empty segment: SND.NXT, but within the peer's window, which may have shrunk (RFC
    /// 9293 3.10.7.4: else the peer would refuse it).
    pub(crate) fn bare_seq(&self) -> u32 {
        let rounded = self.snd_wnd_end + (1 << self.snd_wind_shift) > self.snd_nxt;
        let at = if rounded {
            self.snd_nxt
        } else {
            self.snd_wnd_end.max(self.snd_una)
        };
        self.seq(at)
    }

    pub(crate) fn set_nodelay(&mut self, nodelay: bool) {
        self.nodelay = nodelay;
    }

    /// The program has written all bytes up to a position.
    pub(crate) fn write(&mut self, to: u64) {
        debug_assert!(!self.fin_queued && to >= self.written);
        self.written = self.written.max(to);
    }

    /// No more bytes will be written.
    pub(crate) fn close(&mut self) {
        self.fin_queued = true;
    }

    /// The window of the peer's SYN, not scaled (RFC 7323 2.2), and its window scale.
    pub(crate) fn synchronise(&mut self, window: u16, scale: u8) {
        self.snd_wind_shift = scale;
        self.snd_wnd_end = u64::from(window);
        self.max_snd_wnd = self.snd_wnd_end;
    }

    // Acknowledgements.

    /// The position of an acknowledgement, also of an old one; `None` if it is not acceptable (RFC 5961
    /// 5.2).
    pub(crate) fn acceptable(&self, ack: u32) -> Option<i64> {
        let ack = self.position(ack);
        let oldest = signed(self.snd_una) - signed(self.max_snd_wnd);
        (ack >= oldest && ack <= signed(self.snd_max)).then_some(ack)
    }

    /// All below a position is acknowledged. `true` if SND.UNA advances.
    pub(crate) fn acknowledge(&mut self, to: u64) -> bool {
        if to <= self.snd_una {
            return false;
        }
        self.snd_una = to;
        // The data of a probe was accepted.
        self.snd_nxt = self.snd_nxt.max(to);
        self.probes = 0;
        true
    }

    /// Updates the window, if the segment is not older than the one before (RFC 9293 3.10.7.4). One
    /// that acknowledges new data is not older at any SEG.SEQ, since it may be a retransmission (as in
    /// Linux). `true` if the right edge has moved.
    pub(crate) fn update_window(&mut self, start: i64, ack: u64, window: u16) -> bool {
        let newer = ack > self.snd_wl2
            || start > self.snd_wl1
            || (start == self.snd_wl1 && ack >= self.snd_wl2);
        if !newer {
            return false;
        }
        (self.snd_wl1, self.snd_wl2) = (start, ack);
        let window = u64::from(window) << self.snd_wind_shift;
        self.max_snd_wnd = self.max_snd_wnd.max(window);
        let before = std::mem::replace(&mut self.snd_wnd_end, ack + window);
        if self.snd_wnd_end > self.snd_nxt {
            self.probes = 0;
        }
        before != self.snd_wnd_end
    }

    // New data.

    /// The new data to send now, if `room` more bytes may be in flight and a packet carries at most
    /// `most` bytes.
    pub(crate) fn choose(&self, room: u64, (mss, most): (u64, u64)) -> Choice {
        if self.snd_nxt == self.end() {
            return Choice::Nothing;
        }
        let queued = self.written - self.snd_nxt;
        let usable = self.snd_wnd_end.saturating_sub(self.snd_nxt);
        if queued == 0 {
            // A FIN without data is not limited by cwnd, which counts bytes.
            return match usable {
                0 => Choice::Closed,
                _ => Choice::Send { len: 0, fin: true },
            };
        }
        let mut len = queued.min(usable);
        let cut = len < queued && len < mss;
        if len == 0 || (cut && 2 * len < self.max_snd_wnd && !self.is_override(len)) {
            return Choice::Closed;
        }
        len = len.min(most.max(mss));
        if len > room {
            len = room / mss * mss;
        }
        if len == 0 {
            return Choice::Congested;
        }
        let part = len % mss;
        if part > 0 && !(len == queued && self.may_be_small()) && !(cut && part == len) {
            len -= part;
            if len == 0 {
                return Choice::Nagle;
            }
        }
        let fin = self.fin_queued && len == queued && usable > len;
        Choice::Send { len, fin }
    }

    /// Whether the override timer of silly-window avoidance has expired.
    fn is_override(&self, len: u64) -> bool {
        self.probe_due && len > 0
    }

    /// Nagle: whether a small segment may be sent.
    fn may_be_small(&self) -> bool {
        self.nodelay || self.fin_queued || self.snd_small <= self.snd_una
    }

    /// This much was sent from SND.NXT on.
    pub(crate) fn sent(&mut self, len: u64, fin: bool, mss: u64) {
        self.snd_nxt += len + u64::from(fin);
        self.snd_max = self.snd_max.max(self.snd_nxt);
        self.probe_due = false;
        if !len.is_multiple_of(mss) {
            self.snd_small = self.snd_nxt;
        }
    }

    // Probes of a closed window (RFC 9293 3.8.6.1).

    /// The persist timer has expired.
    pub(crate) fn demand_probe(&mut self) {
        self.probe_due = true;
    }

    pub(crate) fn probe_due(&self) -> bool {
        self.probe_due
    }

    /// Probes in a row.
    pub(crate) fn probes(&self) -> u32 {
        self.probes
    }

    /// A probe: a byte beyond the right edge, or the FIN; both if nothing else is left.
    pub(crate) fn probe(&mut self) -> (u64, bool) {
        let queued = self.written - self.snd_nxt;
        let len = queued.min(1);
        let fin = self.fin_queued && queued <= 1;
        self.snd_max = self.snd_max.max(self.snd_nxt + len + u64::from(fin));
        self.probe_due = false;
        self.probes += 1;
        (len, fin)
    }

    /// Cancels the probe.
    pub(crate) fn cancel_probe(&mut self) {
        self.probe_due = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MSS: u64 = 1000;
    const MOST: u64 = 64_000;

    fn sender(written: u64, window: u16) -> Sender {
        let mut sender = Sender::new(7, false);
        sender.synchronise(window, 0);
        sender.write(written);
        sender
    }

    fn send(len: u64) -> Choice {
        Choice::Send { len, fin: false }
    }

    fn choose(sender: &Sender) -> Choice {
        sender.choose(u64::MAX, (MSS, MOST))
    }

    #[test]
    fn whole_segments_and_a_small_one_at_the_end() {
        let mut sender = sender(5500, 60_000);
        assert_eq!(choose(&sender), send(5500));
        sender.sent(5500, false, MSS);
        sender.write(5600);
        assert_eq!(choose(&sender), Choice::Nagle, "one small one is in flight");
        sender.write(7700);
        assert_eq!(choose(&sender), send(2000));
        sender.sent(2000, false, MSS);
        assert_eq!(choose(&sender), Choice::Nagle);
        sender.acknowledge(5500);
        assert_eq!(choose(&sender), send(200));
        sender.set_nodelay(true);
        sender.sent(200, false, MSS);
        sender.write(7701);
        assert_eq!(choose(&sender), send(1));
    }

    #[test]
    fn the_congestion_window_is_filled_with_whole_segments() {
        let sender = sender(10_000, 60_000);
        assert_eq!(sender.choose(999, (MSS, MOST)), Choice::Congested);
        assert_eq!(sender.choose(3999, (MSS, MOST)), send(3000));
        assert_eq!(sender.choose(u64::MAX, (MSS, 4000)), send(4000));
        assert_eq!(sender.choose(u64::MAX, (MSS, 1)), send(1000));
    }

    /// RFC 9293 3.8.6.2.1.
    #[test]
    fn no_silly_segments_into_a_window_that_opens_by_little() {
        let mut sender = sender(60, 10_000);
        sender.sent(60, false, MSS);
        sender.acknowledge(60);
        sender.write(20_000);
        sender.update_window(0, 60, 300);
        assert_eq!(choose(&sender), Choice::Closed);
        sender.demand_probe();
        assert_eq!(choose(&sender), send(300), "the override");
        sender.cancel_probe();
        sender.update_window(0, 60, 1300);
        assert_eq!(choose(&sender), send(1000));
        // A peer with a small buffer.
        let mut small = Sender::new(7, false);
        small.synchronise(100, 0);
        small.write(1000);
        assert_eq!(choose(&small), send(100));
    }

    #[test]
    fn a_fin_comes_with_the_last_byte_if_the_window_has_room() {
        let mut sender = sender(2000, 2000);
        sender.close();
        assert_eq!(choose(&sender), send(2000));
        sender.sent(2000, false, MSS);
        assert_eq!(choose(&sender), Choice::Closed);
        sender.update_window(0, 0, 2001);
        assert_eq!(choose(&sender), Choice::Send { len: 0, fin: true });
        sender.sent(0, true, MSS);
        assert!(sender.fin_sent() && choose(&sender) == Choice::Nothing);
        sender.acknowledge(2001);
        assert!(sender.fin_acknowledged() && sender.acknowledged_bytes() == 2000);
    }

    #[test]
    fn a_probe_is_a_byte_that_counts_if_it_is_taken() {
        let mut sender = sender(2, 0);
        assert_eq!(choose(&sender), Choice::Closed);
        assert_eq!(sender.probe(), (1, false));
        assert_eq!((sender.nxt(), sender.max()), (0, 1));
        assert_eq!(sender.acceptable(sender.seq(1)), Some(1));
        assert_eq!(sender.acceptable(sender.seq(2)), None);
        sender.close();
        sender.acknowledge(1);
        assert_eq!(sender.nxt(), 1);
        assert_eq!(sender.probe(), (1, true));
        assert_eq!(sender.bare_seq(), sender.seq(1));
        sender.acknowledge(3);
        assert!(sender.fin_acknowledged());
    }

    #[test]
    fn an_older_segment_does_not_update_the_window() {
        let mut sender = sender(0, 1000);
        assert!(sender.update_window(100, 0, 500));
        assert!(!sender.update_window(99, 0, 900));
        assert!(sender.update_window(100, 0, 600));
        assert_eq!(sender.edge(), 600);
    }
}
