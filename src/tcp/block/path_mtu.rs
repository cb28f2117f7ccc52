//! Path MTU discovery: the packet size, and the payload of a full segment.
//!
//! RFC 1191 and 8201: reports of routers. For IPv4, packets become no smaller than [`LEAST_V4`], as in
//! the kernel; if a router reports less, routers may fragment them. For IPv6, reports below 1280 are
//! ignored (RFC 8201 4).
//!
//! RFC 4821 and 8899 for paths without reports: when full segments time out twice in a row, they become
//! smaller step by step. The cause may have been an outage, so the former size is tried again, with one
//! segment, once a smaller one is acknowledged, and then every ten minutes.
//!
//! Results are reported ([`Finding`]) for later connections to the same destination. Pure: time is an
//! argument.

use crate::tcp::block::time::Instant;
use std::ops::Range;
use std::time::Duration;

/// Linux's `min_pmtu`.
const LEAST_V4: usize = 552;
/// RFC 8200 5.
const LEAST_V6: usize = 1280;
/// RFC 791 3.1: the smallest valid report.
const LEAST_REPORTED: usize = 68;
/// RFC 4821 7.2: a size that passes nearly everywhere.
const BASE: usize = 1064;
/// Timeouts in a row after which a black hole is suspected.
const SUSPECT_AFTER: u32 = 2;
/// RFC 1191 6.3, 8201 5.3, 4821 7.6, 8899 5.1.1: after this time a size that did not pass is tried again.
pub(crate) const LIFE: Duration = Duration::from_secs(600);
/// The smallest accepted MSS: a smaller one would cost a packet for a few bytes (CVE-2019-11479).
/// FreeBSD's `net.inet.tcp.minmss`.
const LEAST_MSS: u16 = 216;
/// The MSS of a peer without the option (RFC 9293 3.7.1).
const DEFAULT_V4: u16 = 536;
const DEFAULT_V6: u16 = 1220;

/// How a smaller packet size was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum By {
    /// A router's report.
    Router,
    /// Full segments timed out and smaller ones pass; possibly an outage.
    Silence,
    /// A probe of the former size was lost since.
    Probe,
}

/// A known path MTU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Known {
    /// Packet size in bytes; a router's report may be less than the size that is used.
    pub(crate) mtu: usize,
    pub(crate) by: By,
}

/// The finding of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Finding {
    Smaller(Known),
    /// The former size, abandoned without a report, passes.
    Larger,
}

/// See the module.
#[derive(Debug, Clone)]
pub(crate) struct PathMtu {
    /// Bytes of a packet.
    mtu: usize,
    /// The link's MTU.
    link_mtu: usize,
    v6: bool,
    /// The peer's MSS, including TCP options.
    peer_mss: u16,
    /// Bytes of options in each segment.
    options: usize,
    dont_fragment: bool,
    /// A router has reported a size: the path has reports.
    reported: bool,
    suspicion: Option<Suspicion>,
    /// The latest finding.
    finding: Option<Finding>,
}

/// A suspected black hole: packets became smaller without a report.
#[derive(Debug, Clone)]
struct Suspicion {
    /// The size before.
    former_mtu: usize,
    /// When it is tried again.
    retry_at: Option<Instant>,
    /// Positions of the probing segment.
    probe: Option<Range<u64>>,
}

impl PathMtu {
    pub(crate) fn new(mtu: usize, v6: bool) -> PathMtu {
        PathMtu {
            mtu,
            link_mtu: mtu,
            v6,
            peer_mss: if v6 { DEFAULT_V6 } else { DEFAULT_V4 },
            options: 0,
            dont_fragment: true,
            reported: false,
            suspicion: None,
            finding: None,
        }
    }

    /// Starts with the finding of an earlier connection.
    pub(crate) fn begin(&mut self, known: Known, now: Instant) {
        let before = self.mtu;
        self.lower(known.mtu);
        let again = match known.by {
            By::Router => {
                self.reported = true;
                return;
            }
            By::Silence => now,
            By::Probe => now + LIFE,
        };
        if self.mtu < before {
            self.suspicion = Some(Suspicion {
                former_mtu: before,
                retry_at: Some(again),
                probe: None,
            });
        }
    }

    /// The finding since the last call.
    pub(crate) fn take_finding(&mut self) -> Option<Finding> {
        self.finding.take()
    }

    pub(crate) fn has_finding(&self) -> bool {
        self.finding.is_some()
    }

    fn found(&mut self, mtu: usize, by: By) {
        self.finding = Some(Finding::Smaller(Known { mtu, by }));
    }

    /// Length of the headers without options.
    fn headers(&self) -> usize {
        20 + if self.v6 { 40 } else { 20 }
    }

    fn least(&self) -> usize {
        if self.v6 { LEAST_V6 } else { LEAST_V4 }
    }

    /// The MSS option of our SYN (RFC 9293 3.7.1, 6691).
    pub(crate) fn offer(&self) -> u16 {
        let mss = self.link_mtu.saturating_sub(self.headers());
        u16::try_from(mss).unwrap_or(u16::MAX)
    }

    /// The MSS option of the peer's SYN, and the bytes of options in each segment.
    pub(crate) fn agree(&mut self, mss: Option<u16>, options: usize) {
        if let Some(mss) = mss {
            self.peer_mss = mss.max(LEAST_MSS);
        }
        self.options = options;
    }

    /// Length of the TCP header of each segment, without SACK blocks.
    pub(crate) fn tcp_header_len(&self) -> usize {
        20 + self.options
    }

    /// Bytes of payload in a full segment (Eff.snd.MSS).
    pub(crate) fn mss(&self) -> usize {
        self.mss_of(self.mtu)
    }

    fn mss_of(&self, mtu: usize) -> usize {
        let path = mtu.saturating_sub(self.headers());
        path.min(self.peer_mss.into())
            .saturating_sub(self.options)
            .max(1)
    }

    /// Payload of a full segment from the peer, by the link's MTU.
    pub(crate) fn link_mss(&self) -> usize {
        self.link_mtu.saturating_sub(self.headers()).max(1)
    }

    pub(crate) fn dont_fragment(&self) -> bool {
        self.dont_fragment
    }

    /// A router's report; 0 if it has no size. `true` if packets become smaller.
    pub(crate) fn too_big(&mut self, reported: usize) -> bool {
        if self.v6 && reported < LEAST_V6 {
            return false;
        }
        let reported = match reported {
            0 => self.least(),
            reported => reported.max(LEAST_REPORTED),
        };
        self.reported = true;
        self.suspicion = None;
        let smaller = self.lower(reported);
        if smaller {
            self.found(reported, By::Router);
        }
        smaller
    }

    /// Limits packets to this size or to the minimum; at the minimum routers may fragment them. `true`
    /// if packets become smaller.
    fn lower(&mut self, mtu: usize) -> bool {
        let before = (self.mss(), self.dont_fragment);
        if mtu < self.least() {
            self.dont_fragment = false;
        }
        self.mtu = self.mtu.min(mtu.max(self.least()));
        before != (self.mss(), self.dont_fragment)
    }

    /// Segments of this size have timed out this many times in a row. `true` if they become smaller.
    pub(crate) fn timed_out(&mut self, timeouts: u32, size: usize) -> bool {
        let full = size >= self.mss();
        if timeouts < SUSPECT_AFTER || !full || self.reported || self.mtu <= self.least() {
            return false;
        }
        let before = self
            .suspicion
            .as_ref()
            .map_or(self.mtu, |one| one.former_mtu);
        self.suspicion = Some(Suspicion {
            former_mtu: before,
            retry_at: None,
            probe: None,
        });
        self.mtu = match self.mtu {
            mtu if mtu > BASE.max(self.least()) => BASE.max(self.least()),
            mtu => (mtu / 2).max(self.least()),
        };
        true
    }

    // Probing the former size (RFC 4821 7.3).

    /// Payload of a segment that is to probe the former size now.
    pub(crate) fn probe_size(&self, now: Instant) -> Option<usize> {
        let suspicion = self.suspicion.as_ref()?;
        let due = suspicion.probe.is_none() && suspicion.retry_at.is_some_and(|at| at <= now);
        due.then(|| self.mss_of(suspicion.former_mtu))
    }

    /// The probe was sent.
    pub(crate) fn probe_sent(&mut self, range: Range<u64>) {
        if let Some(suspicion) = &mut self.suspicion {
            suspicion.probe = Some(range);
        }
    }

    /// A range is retransmitted.
    pub(crate) fn resent(&mut self, range: &Range<u64>, now: Instant) {
        let Some(suspicion) = &mut self.suspicion else {
            return;
        };
        let overlaps = |probe: &Range<u64>| probe.start < range.end && range.start < probe.end;
        if suspicion.probe.take_if(|probe| overlaps(probe)).is_some() {
            suspicion.retry_at = Some(now + LIFE);
            self.found(self.mtu, By::Probe);
        }
    }

    /// All below a position is acknowledged. `true` if the former size passes.
    pub(crate) fn acknowledged(&mut self, una: u64, now: Instant) -> bool {
        let Some(suspicion) = &mut self.suspicion else {
            return false;
        };
        let first = suspicion.retry_at.is_none();
        suspicion.retry_at.get_or_insert(now);
        if first {
            // The smaller size passes.
            self.found(self.mtu, By::Silence);
            return false;
        }
        if suspicion.probe.as_ref().is_none_or(|probe| una < probe.end) {
            return false;
        }
        self.mtu = suspicion.former_mtu;
        self.suspicion = None;
        self.finding = Some(Finding::Larger);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tcp::block::time::start as any_time;

    #[test]
    fn the_former_size_is_tried_again() {
        let now = any_time();
        let mut path = PathMtu::new(1500, false);
        path.agree(Some(1460), 0);
        assert!(path.timed_out(2, 1460) && path.timed_out(3, 1024));
        assert_eq!((path.mss(), path.probe_size(now)), (512, None));
        assert!(
            !path.acknowledged(512, now),
            "the path carries the smaller one"
        );
        assert_eq!(path.probe_size(now), Some(1460));
        path.probe_sent(1000..2460);
        assert_eq!(path.probe_size(now), None);
        // It is lost.
        path.resent(&(0..1000), now);
        path.resent(&(2000..2512), now);
        assert!(!path.acknowledged(3000, now));
        assert_eq!(path.probe_size(now + LIFE / 2), None);
        assert_eq!(path.probe_size(now + LIFE), Some(1460));
        path.probe_sent(3000..4460);
        assert!(!path.acknowledged(4000, now));
        assert!(path.acknowledged(4460, now));
        assert_eq!(path.mss(), 1460);
        // On a path with reports no black hole is suspected.
        path.too_big(1400);
        assert!(!path.timed_out(5, 1360));
    }

    #[test]
    fn findings_are_reported() {
        let now = any_time();
        let smaller = |mtu, by| Some(Finding::Smaller(Known { mtu, by }));
        let mut path = PathMtu::new(1500, false);
        path.agree(Some(1460), 0);
        path.timed_out(2, 1460);
        assert_eq!(path.take_finding(), None, "not before a smaller one passes");
        path.acknowledged(1000, now);
        assert_eq!(path.take_finding(), smaller(1064, By::Silence));
        path.probe_sent(1000..2460);
        path.resent(&(1000..2460), now);
        assert_eq!(path.take_finding(), smaller(1064, By::Probe));
        path.probe_sent(3000..4460);
        path.acknowledged(4460, now);
        assert_eq!(path.take_finding(), Some(Finding::Larger));
        assert_eq!(path.take_finding(), None);
        path.too_big(300);
        assert_eq!(path.take_finding(), smaller(300, By::Router));
        path.too_big(300);
        assert_eq!(path.take_finding(), None, "unchanged");
    }

    #[test]
    fn a_known_path_mtu_applies_from_the_beginning() {
        let now = any_time();
        let begun = |mtu, by| {
            let mut path = PathMtu::new(1500, false);
            path.begin(Known { mtu, by }, now);
            path.agree(Some(1460), 0);
            assert_eq!(path.offer(), 1460, "the other direction is independent");
            path
        };
        let mut path = begun(1400, By::Router);
        assert_eq!((path.mss(), path.probe_size(now)), (1360, None));
        assert!(path.dont_fragment() && !path.timed_out(2, 1360));
        let path = begun(300, By::Router);
        assert_eq!((path.mss(), path.dont_fragment()), (512, false));
        let path = begun(1064, By::Silence);
        assert_eq!((path.mss(), path.probe_size(now)), (1024, Some(1460)));
        let path = begun(1064, By::Probe);
        assert_eq!((path.mss(), path.probe_size(now)), (1024, None));
        assert_eq!(path.probe_size(now + LIFE), Some(1460));
        let path = begun(9000, By::Probe);
        assert_eq!((path.mss(), path.probe_size(now + LIFE)), (1460, None));
    }

    #[test]
    fn reports_of_routers() {
        let mut path = PathMtu::new(1500, false);
        assert_eq!((path.offer(), path.mss()), (1460, 536));
        path.agree(Some(1460), 12);
        assert_eq!(path.mss(), 1448);
        assert!(path.too_big(1400) && path.mss() == 1348);
        assert!(!path.too_big(1450), "never larger");
        assert!(path.too_big(576) && path.mss() == 524);
        assert!(path.dont_fragment());
        assert!(path.too_big(300) && path.mss() == 500);
        assert!(!path.dont_fragment(), "below the floor routers cut");
        assert!(!path.too_big(68));
        let mut path = PathMtu::new(1500, true);
        path.agree(Some(1440), 12);
        assert!(!path.too_big(1279));
        assert!(path.too_big(1280) && path.mss() == 1208);
    }

    #[test]
    fn black_holes_are_detected() {
        let mut path = PathMtu::new(9000, false);
        path.agree(Some(8960), 0);
        assert!(!path.timed_out(1, 8960));
        assert!(!path.timed_out(2, 100), "it was small");
        assert!(path.timed_out(2, 8960));
        assert_eq!(path.mss(), 1024);
        assert!(path.timed_out(3, 1024));
        assert_eq!(path.mss(), 512);
        assert!(!path.timed_out(4, 512));
    }

    #[test]
    fn the_mss_of_a_peer() {
        let mut path = PathMtu::new(1500, false);
        path.agree(Some(1), 12);
        assert_eq!(path.mss(), 204);
        path.agree(None, 0);
        assert_eq!(path.mss(), 204 + 12);
    }
}
