//! Received frames that are passed on or dropped.

use super::*;
use crate::link::ethernet::Vlan;
use proptest::prelude::*;

#[test]
fn packets_for_the_host_are_passed_on() {
    let mut scene = Scene::new(v4().address(IpNet::new(OWN_V6.into(), 64).unwrap()));
    let all = Mac::BROADCAST;
    let group = group_mac(ndp_wire::ALL_NODES);
    let rows = [
        (MAC, packet(PEER, OWN, 1)),
        (MAC, packet(PEER_V6, OWN_V6, 1)),
        // Whether it is for the host the stack knows: it may intercept.
        (MAC, packet(PEER, Ipv4Addr::new(8, 8, 8, 8), 1)),
        (all, packet(PEER, Ipv4Addr::BROADCAST, 1)),
        (all, packet(PEER, Ipv4Addr::new(10, 0, 0, 255), 1)),
        (
            Mac([1, 0, 0x5e, 0, 0, 1]),
            packet(PEER, Ipv4Addr::new(224, 0, 0, 1), 1),
        ),
        (group, packet(PEER_V6, ndp_wire::ALL_NODES, 1)),
        // RFC 6085.
        (MAC, packet(PEER_V6, ndp_wire::ALL_NODES, 1)),
    ];
    for (to, packet) in &rows {
        let frame = in_frame(*to, OTHER, packet);
        assert_eq!(scene.receive(&frame).as_ref(), Some(packet));
        // Padding is removed.
        let padded = [&frame[..], &[0; 9]].concat();
        assert_eq!(scene.receive(&padded).as_ref(), Some(packet));
    }
    assert_eq!(scene.station.stats.passed, 2 * rows.len() as u64);
    assert_eq!(scene.sent(), Vec::<Vec<u8>>::new());
}

type Counter = fn(&HostStats) -> u64;

#[test]
fn other_frames_are_dropped_and_counted() {
    let own = packet(PEER, OWN, 1);
    let short = packet(PEER_V6, OWN_V6, 1);
    let mut cut = own.clone();
    cut.truncate(20);
    let other_group = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0xfb);
    let rows: [(Vec<u8>, Counter); 12] = [
        (in_frame(OTHER, THIRD, &own), |stats| stats.not_for_us),
        (in_frame(MAC, MAC, &own), |stats| stats.looped),
        (
            in_frame(
                Mac([1, 0, 0x5e, 0, 0, 9]),
                OTHER,
                &packet(PEER, Ipv4Addr::new(224, 0, 0, 9), 1),
            ),
            |stats| stats.multicast,
        ),
        (
            in_frame(
                group_mac(other_group),
                OTHER,
                &packet(PEER_V6, other_group, 1),
            ),
            |stats| stats.multicast,
        ),
        // RFC 1122 3.3.6.
        (in_frame(Mac::BROADCAST, OTHER, &own), |stats| {
            stats.multicast
        }),
        (in_frame(MAC, Mac::BROADCAST, &own), |stats| stats.malformed),
        (in_frame(MAC, OTHER, &cut), |stats| stats.malformed),
        (in_frame(MAC, OTHER, &short[..39]), |stats| stats.malformed),
        (header(MAC, OTHER, IPV4)[..13].to_vec(), |stats| {
            stats.malformed
        }),
        (header(MAC, OTHER, ARP).to_vec(), |stats| stats.malformed),
        (header(MAC, OTHER, 0x88cc).to_vec(), |stats| stats.unknown),
        (
            [&header(MAC, OTHER, 0x8100)[..], &[0, 5, 8, 0], &own].concat(),
            |stats| stats.tagged,
        ),
    ];
    for (at, (frame, counter)) in rows.iter().enumerate() {
        let mut scene = Scene::new(v4().address(IpNet::new(OWN_V6.into(), 64).unwrap()));
        scene.nothing(frame);
        let stats = scene.station.stats;
        assert_eq!((counter(&stats), stats.passed), (1, 0), "row {at}");
    }
    let mut scene = Scene::new(v4().vlan(Vlan::Strip));
    assert_eq!(scene.receive(&rows[11].0), Some(own));
}

/// RFC 4861 7.1: the hop limit, the checksum, the code, the lengths, and the options.
#[test]
fn invalid_messages_of_neighbour_discovery_are_dropped() {
    let good = solicitation((OTHER, PEER_V6), OWN_V6, Some(OTHER.0), None);
    let mut scene = Scene::new(v6());
    let mut bad = Vec::new();
    for (at, value) in [(21, 254), (55, 1), (57, 0x77), (79, 0), (62, 0xff)] {
        let mut frame = good.clone();
        frame[at] = value;
        bad.push(frame);
    }
    for len in 58..good.len() {
        let mut frame = good[..len].to_vec();
        frame[18..20].copy_from_slice(&u16::try_from(len - 54).unwrap().to_be_bytes());
        bad.push(frame);
    }
    let count = bad.len() as u64;
    bad.iter().for_each(|frame| scene.nothing(frame));
    assert_eq!(scene.station.stats.malformed, count);
    scene.answer(&good);
}

/// The present MTU may be smaller than the link's.
#[test]
fn a_packet_that_is_too_big_comes_back() {
    let mut scene = Scene::new(v4());
    let mut large = packet(OWN, PEER, 3);
    large.resize(1501, 0);
    assert_eq!(scene.send(&large), None);
    assert_eq!(
        scene.events(),
        [Event::Undelivered(3, Undelivered::TooBig(1500))]
    );
    assert_eq!(scene.send(b"no packet"), None);
    assert_eq!(scene.send(&[0x45; 19]), None);
    assert_eq!(scene.station.stats.malformed, 2);
}

fn configs() -> impl Strategy<Value = HostConfig> {
    let flags = (any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>());
    flags.prop_map(|(probe, keep, dhcp, slaac)| {
        let config = v4().address(IpNet::new(OWN_V6.into(), 64).unwrap());
        let config = config.proxy("10.0.0.64/26".parse().unwrap());
        config.probe(probe).keep(keep).dhcp(dhcp).slaac(slaac)
    })
}

/// Frames that are nearly valid, or of any content.
fn frames() -> impl Strategy<Value = Vec<u8>> {
    let samples = vec![
        arp(REQUEST, (OTHER, PEER), (NOBODY, OWN)),
        arp(REPLY, (OTHER, PEER), (MAC, OWN)),
        arp(REQUEST, (OTHER, OWN), (NOBODY, OWN)),
        solicitation((OTHER, PEER_V6), OWN_V6, Some(OTHER.0), None),
        probe_v6(OTHER, LINK_LOCAL, [1; 6]),
        advertisement((OTHER, PEER_V6), None, OVERRIDE),
        in_frame(MAC, OTHER, &packet(PEER, OWN, 1)),
        in_frame(MAC, OTHER, &packet(PEER_V6, OWN_V6, 1)),
    ];
    let changes = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4);
    let near = (
        prop::sample::select(samples),
        changes,
        any::<prop::sample::Index>(),
    );
    let near = near.prop_map(|(mut frame, changes, len)| {
        for (at, value) in changes {
            let at = at.index(frame.len());
            frame[at] = value;
        }
        if len.index(4) == 0 {
            frame.truncate(len.index(frame.len()));
        }
        frame
    });
    prop_oneof![4 => near, 1 => prop::collection::vec(any::<u8>(), 0..200)]
}

proptest! {
    /// Each frame is passed on, counted, or answered; memory is bounded.
    #[test]
    fn any_frames(config in configs(), frames in prop::collection::vec((frames(), 0..5000_u64), 0..60)) {
        let mut scene = Scene::probing(config);
        for (frame, millis) in frames {
            if scene.receive(&frame).is_none() {
                scene.sent();
            }
            scene.pass(Duration::from_millis(millis));
            prop_assert!(scene.station.neighbours.list(scene.now).len() <= 1300);
        }
        prop_assert!(scene.events().len() <= 512);
    }
}

/// A transport with a timer of its own, as one that connects again.
#[derive(Debug)]
struct Timed(memory::MemoryLink, Instant);

impl Link for Timed {
    fn capabilities(&self) -> Capabilities {
        self.0.capabilities()
    }
    fn receive(&self, frames: &mut Vec<Frame>, max: usize) -> Result<usize, ReceiveError> {
        self.0.receive(frames, max)
    }
    fn transmit(&self, packet: &Packet<'_>) -> Result<(), TransmitError> {
        self.0.transmit(packet)
    }
    fn wait(&self, interest: Interest, deadline: Option<Instant>) -> io::Result<()> {
        self.0.wait(interest, deadline)
    }
    fn wake(&self) {
        self.0.wake();
    }
    fn deadline(&self) -> Option<Instant> {
        Some(self.1)
    }
}

#[test]
fn a_timer_of_the_transport_is_one_of_the_host() {
    let (transport, _) = memory::pair(memory::Config::default().mtu(1514));
    let at = SystemClock.now();
    let config = HostConfig::new(MAC).slaac(true).seed(7);
    let host = Host::new(Timed(transport, at), config).unwrap();
    assert_eq!(host.deadline(), Some(at));
}
