//! The client, message by message in virtual time, and with the crate's own server, frame by frame.

use super::*;
use crate::clock::{Clock, SystemClock};
use crate::link::ethernet::frame::{self, HEADER};
use crate::link::ethernet::wire::ip;
use crate::link::ethernet::{Edge, EdgeConfig};
use crate::link::{Frame, Link, Packet, memory};
use ipnet::Ipv4Net;
use proptest::prelude::*;

const MAC: Mac = Mac([2, 0, 0, 0, 0, 9]);
const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);
const SERVER_A: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 1);
const SERVER_B: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
const DAY: u32 = 86_400;

const fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// A client and the time.
struct Scene {
    client: DhcpClient,
    start: Instant,
    now: Instant,
}

impl Scene {
    fn with(remembered: Option<Ipv4Addr>, seed: u64) -> Scene {
        let now = SystemClock.now();
        let settings = DhcpSettings {
            remembered,
            mtu: 1500,
        };
        Scene {
            client: DhcpClient::new(MAC, settings, seed, now),
            start: now,
            now,
        }
    }

    fn new() -> Scene {
        Scene::with(None, 1)
    }

    /// With an address for this time.
    fn bound(lease: u32) -> Scene {
        let mut scene = Scene::new();
        let offer = Reply::new(OFFER).lease(lease);
        let request = scene.answered(offer);
        scene.receive(&Reply::new(ACK).lease(lease).to(&request));
        assert!(matches!(scene.event(), DhcpEvent::Bound(_)));
        scene
    }

    /// The message that is due now.
    fn sent(&mut self) -> ToSend {
        let sent = self.client.poll(self.now).expect("a message is due");
        assert_eq!(self.client.poll(self.now), None);
        assert!(self.client.deadline().is_none_or(|at| at > self.now));
        sent
    }

    /// Goes to the next time, and returns the message that is due then.
    fn next(&mut self) -> ToSend {
        let deadline = self.client.deadline().expect("there is a next time");
        assert_eq!(self.client.poll(deadline - Duration::from_nanos(1)), None);
        self.now = deadline;
        self.sent()
    }

    /// Time since the last one, and the message.
    fn next_after(&mut self) -> (Duration, ToSend) {
        let before = self.now;
        let sent = self.next();
        (self.now - before, sent)
    }

    fn receive(&mut self, payload: &[u8]) {
        let before = self.client.stats;
        self.client.receive(payload, self.now);
        assert_eq!(self.client.stats.accepted, before.accepted + 1);
    }

    fn ignores(&mut self, payload: &[u8]) {
        let before = self.client.stats;
        let state = self.client.state;
        self.client.receive(payload, self.now);
        assert_eq!(self.client.stats.ignored, before.ignored + 1);
        assert_eq!((self.client.state, self.client.event()), (state, None));
    }

    /// Answers the message that is due, and returns the next one.
    fn answered(&mut self, reply: Reply) -> ToSend {
        let sent = self.sent();
        self.receive(&reply.to(&sent));
        self.sent()
    }

    fn event(&mut self) -> DhcpEvent {
        let event = self.client.event().expect("something has happened");
        assert_eq!(self.client.event(), None);
        event
    }

    fn is_lost(&mut self) {
        assert_eq!(self.event(), DhcpEvent::Lost);
        assert_eq!(self.client.lease(), None);
    }
}

/// Kind, address asked for, server, and ciaddr of a client's message.
fn parts(sent: &ToSend) -> (u8, Option<Ipv4Addr>, Option<Ipv4Addr>, Option<Ipv4Addr>) {
    let message = Message::parse(&sent.payload).unwrap();
    assert_eq!(message.mac(), Some(MAC));
    assert_eq!(message.client, Some(&[1, 2, 0, 0, 0, 0, 9][..]));
    assert!(sent.payload.len() >= 300);
    (
        message.kind,
        message.requested,
        message.server,
        message.ciaddr(),
    )
}

fn secs(sent: &ToSend) -> u16 {
    frame::be16(&sent.payload, 8)
}

/// A server's answer.
#[derive(Clone)]
struct Reply {
    kind: u8,
    address: Ipv4Addr,
    server: Ipv4Addr,
    options: Vec<(u8, Vec<u8>)>,
    change: fn(&mut Vec<u8>),
}

impl Reply {
    fn new(kind: u8) -> Reply {
        Reply {
            kind,
            address: ADDRESS,
            server: SERVER_A,
            options: Vec::new(),
            change: |_| (),
        }
    }

    fn option(mut self, kind: u8, value: &[u8]) -> Reply {
        self.options.push((kind, value.to_vec()));
        self
    }

    fn lease(self, seconds: u32) -> Reply {
        self.option(LEASE, &seconds.to_be_bytes())
    }

    fn to(&self, sent: &ToSend) -> Vec<u8> {
        let request = &sent.payload;
        let mut fixed = [0; FIXED];
        fixed[..3].copy_from_slice(&FROM_SERVER);
        fixed[4..8].copy_from_slice(&request[4..8]);
        fixed[16..20].copy_from_slice(&self.address.octets());
        fixed[28..44].copy_from_slice(&request[28..44]);
        let mut writer = Writer::new(&fixed).option(KIND, &[self.kind]);
        if !self.server.is_unspecified() {
            writer = writer.option(SERVER, &self.server.octets());
        }
        for (kind, value) in &self.options {
            writer = writer.option(*kind, value);
        }
        let mut bytes = writer.finish();
        (self.change)(&mut bytes);
        bytes
    }
}

#[test]
fn a_discovery_has_the_fields_of_table_5() {
    let mut scene = Scene::new();
    let sent = scene.sent();
    assert_eq!(
        (sent.from, sent.to),
        (Ipv4Addr::UNSPECIFIED, Ipv4Addr::BROADCAST)
    );
    assert_eq!(parts(&sent), (DISCOVER, None, None, None));
    let bytes = &sent.payload;
    assert_eq!(bytes[..4], [1, 1, 6, 0]);
    assert_ne!(bytes[4..8], [0; 4], "a random transaction");
    assert!(bytes[8..28].iter().all(|byte| *byte == 0));
    assert!(bytes[34..FIXED].iter().all(|byte| *byte == 0));
    let message = Message::parse(bytes).unwrap();
    assert_eq!(message.option(MAX_SIZE), Some(&1500_u16.to_be_bytes()[..]));
    assert_eq!(
        message.option(PARAMETERS),
        Some(&[1, 121, 3, 6, 26, 51, 58, 59][..])
    );
}

#[test]
fn an_offer_is_requested_and_acknowledged() {
    let mut scene = Scene::new();
    let discover = scene.sent();
    scene.now += seconds(3);
    scene.receive(&Reply::new(OFFER).lease(DAY).to(&discover));
    let request = scene.sent();
    assert_eq!(
        parts(&request),
        (REQUEST, Some(ADDRESS), Some(SERVER_A), None)
    );
    assert_eq!(request.payload[4..8], discover.payload[4..8]);
    assert_eq!(secs(&request), secs(&discover), "RFC 2131 4.1");
    assert_eq!(request.to, Ipv4Addr::BROADCAST);
    assert_eq!(scene.client.lease(), None);
    let servers = [SERVER_A.octets(), SERVER_B.octets()].concat();
    let ack = Reply::new(ACK)
        .lease(DAY)
        .option(MASK, &[255, 255, 254, 0])
        .option(ROUTER, &servers)
        .option(DNS, &servers)
        .option(MTU, &1400_u16.to_be_bytes());
    scene.receive(&ack.to(&request));
    let lease = Lease {
        address: Ipv4Net::new(ADDRESS, 23).unwrap(),
        routes: [SERVER_A, SERVER_B]
            .map(|router| (Ipv4Net::default(), Some(router)))
            .to_vec(),
        dns: vec![SERVER_A, SERVER_B],
        mtu: Some(1400),
        server: SERVER_A,
        expires: Some(scene.now + seconds(DAY.into())),
    };
    assert_eq!(scene.client.lease(), Some(&lease));
    assert_eq!(scene.event(), DhcpEvent::Bound(lease));
    assert_eq!(scene.client.poll(scene.now), None);
}

/// RFC 2131 4.1.
#[test]
fn a_discovery_is_sent_again_after_4_8_16_32_64_64_seconds() {
    for seed in 0..100 {
        let mut scene = Scene::with(None, seed);
        let first = scene.sent();
        for expected in [4, 8, 16, 32, 64, 64, 64] {
            let (after, again) = scene.next_after();
            assert!(after >= seconds(expected - 1) && after < seconds(expected + 1));
            assert_eq!(again.payload[4..8], first.payload[4..8]);
            let since = (scene.now - scene.start).as_secs();
            assert_eq!(u64::from(secs(&again)), since);
        }
    }
}

#[test]
fn a_late_offer_is_taken() {
    let mut scene = Scene::new();
    let first = scene.sent();
    scene.next();
    scene.next();
    scene.receive(&Reply::new(OFFER).lease(DAY).to(&first));
    assert_eq!(parts(&scene.sent()).0, REQUEST);
}

#[test]
fn requests_without_an_answer_lead_to_discovery_after_a_minute() {
    let mut scene = Scene::new();
    let first = scene.answered(Reply::new(OFFER).lease(DAY));
    let began = scene.now;
    for expected in [4, 8, 16] {
        let (after, again) = scene.next_after();
        assert!(after >= seconds(expected - 1) && after < seconds(expected + 1));
        assert_eq!(again, first);
    }
    let discover = scene.next();
    assert!((seconds(56)..seconds(64)).contains(&(scene.now - began)));
    assert_eq!(parts(&discover).0, DISCOVER);
    assert_ne!(discover.payload[4..8], first.payload[4..8]);
}

#[test]
fn a_lease_is_renewed_by_its_server_then_by_any_and_ends() {
    let mut scene = Scene::bound(DAY);
    let bound = scene.now;
    let request = scene.next();
    let at = |scene: &Scene| (scene.now - bound).as_secs();
    assert!((43_200 - 1350..=43_200).contains(&at(&scene)));
    assert_eq!((request.from, request.to), (ADDRESS, SERVER_A));
    assert_eq!(parts(&request), (REQUEST, None, None, Some(ADDRESS)));
    // Half of the time that is left until T2.
    let (after, again) = scene.next_after();
    assert!((15_900..16_300).contains(&after.as_secs()), "{after:?}");
    assert_eq!(again.payload[4..8], request.payload[4..8]);
    let mut rebinding = scene.next();
    while rebinding.to == SERVER_A {
        rebinding = scene.next();
    }
    assert!((75_600 - 1050..=75_600).contains(&at(&scene)));
    assert_eq!(
        (rebinding.from, rebinding.to),
        (ADDRESS, Ipv4Addr::BROADCAST)
    );
    assert_eq!(parts(&rebinding), (REQUEST, None, None, Some(ADDRESS)));
    assert_eq!(scene.client.event(), None);
    let mut count = 0;
    let discover = loop {
        let (after, sent) = scene.next_after();
        if parts(&sent).0 == DISCOVER {
            break sent;
        }
        assert!(after >= seconds(60));
        count += 1;
    };
    assert!((7..=9).contains(&count), "{count}");
    assert_eq!(at(&scene), 86_400);
    assert_eq!(parts(&discover).1, Some(ADDRESS), "the same, if it is free");
    scene.is_lost();
    assert_eq!(scene.client.stats().expired, 1);
}

#[test]
fn renewals_begin_the_lease_anew() {
    let mut scene = Scene::bound(120);
    for _ in 0..50 {
        let request = scene.next();
        assert_eq!(request.to, SERVER_A);
        scene.receive(&Reply::new(ACK).lease(120).to(&request));
        let DhcpEvent::Renewed(lease) = scene.event() else {
            panic!()
        };
        assert_eq!(lease.expires, Some(scene.now + seconds(120)));
    }
    // Another server keeps the address.
    let request = loop {
        let request = scene.next();
        if request.to == Ipv4Addr::BROADCAST {
            break request;
        }
    };
    let mut ack = Reply::new(ACK).lease(120);
    ack.server = SERVER_B;
    scene.receive(&ack.to(&request));
    assert!(matches!(scene.event(), DhcpEvent::Renewed(_)));
    assert_eq!(scene.next().to, SERVER_B);
}

/// A late answer to a renewal counts while any server is asked.
#[test]
fn a_server_that_answers_late_renews() {
    let mut scene = Scene::bound(120);
    let first = scene.next();
    while scene.next().to != Ipv4Addr::BROADCAST {}
    scene.receive(&Reply::new(ACK).lease(120).to(&first));
    assert!(matches!(scene.event(), DhcpEvent::Renewed(_)));
}

#[test]
fn a_lease_without_end_has_no_times() {
    let mut scene = Scene::bound(u32::MAX);
    assert_eq!(scene.client.deadline(), None);
    scene.now += seconds(1 << 33);
    assert_eq!(scene.client.poll(scene.now), None);
    assert_eq!(scene.client.lease().unwrap().expires, None);
}

/// T1 and T2 of a lease of 800 s in seconds, for the ones that the server names.
#[test]
fn times_of_the_server_are_heeded_if_they_are_in_order() {
    let cases = [
        ((None, None), (400, 700)),
        ((Some(100), Some(200)), (100, 200)),
        ((Some(100), None), (100, 700)),
        ((None, Some(600)), (400, 600)),
        ((Some(300), Some(200)), (400, 700)),
        ((Some(300), Some(801)), (400, 700)),
        ((Some(701), None), (400, 700)),
        ((None, Some(399)), (400, 700)),
        ((Some(0), Some(0)), (400, 700)),
        ((Some(u32::MAX), Some(u32::MAX)), (400, 700)),
    ];
    for ((renew, rebind), expected) in cases {
        let scene = Scene::new();
        let mut ack = Reply::new(ACK).lease(800);
        for (kind, value) in [(RENEW, renew), (REBIND, rebind)] {
            if let Some(value) = value {
                ack = ack.option(kind, &u32::to_be_bytes(value));
            }
        }
        let payload = ack.to(&Scene::new().sent());
        let message = Message::parse_reply(&payload).unwrap();
        let times = Lease::parse(&message, scene.now).unwrap().1.unwrap();
        let since = |at: Instant| (at - scene.now).as_secs();
        assert_eq!((since(times.renew), since(times.rebind)), expected);
        for seed in 0..50 {
            let early = times.earlier(&mut Random::new(seed));
            assert!(early.renew <= times.renew && early.renew >= times.renew - seconds(13));
            assert!(early.renew <= early.rebind && early.rebind <= times.rebind);
        }
    }
}

#[test]
fn after_a_restart_the_former_address_is_asked_for() {
    let mut scene = Scene::with(Some(ADDRESS), 1);
    let request = scene.sent();
    assert_eq!(parts(&request), (REQUEST, Some(ADDRESS), None, None));
    assert_eq!(request.to, Ipv4Addr::BROADCAST);
    scene.receive(&Reply::new(ACK).lease(DAY).to(&request));
    assert!(matches!(scene.event(), DhcpEvent::Bound(_)));
}

/// E.g. in another network.
#[test]
fn a_former_address_that_is_refused_is_forgotten() {
    let mut scene = Scene::with(Some(ADDRESS), 1);
    let discover = scene.answered(Reply::new(NAK));
    assert_eq!(parts(&discover), (DISCOVER, None, None, None));
    assert_eq!(scene.client.event(), None, "it was not in use");
    assert_eq!(scene.client.stats().refused, 1);
}

#[test]
fn a_former_address_without_an_answer_becomes_a_wish() {
    let mut scene = Scene::with(Some(ADDRESS), 1);
    let first = scene.sent();
    assert_eq!(scene.next().payload[4..8], first.payload[4..8]);
    scene.next();
    let discover = scene.next();
    assert!((seconds(25)..seconds(31)).contains(&(scene.now - scene.start)));
    assert_eq!(parts(&discover), (DISCOVER, Some(ADDRESS), None, None));
}

/// A server that offers and refuses in turn.
#[test]
fn refusals_are_answered_more_and_more_slowly() {
    let mut scene = Scene::new();
    let mut waits = Vec::new();
    let mut discover = scene.sent();
    for _ in 0..10 {
        scene.receive(&Reply::new(OFFER).lease(DAY).to(&discover));
        let request = scene.sent();
        scene.receive(&Reply::new(NAK).to(&request));
        let before = scene.now;
        discover = scene.next();
        waits.push((scene.now - before).as_secs());
    }
    assert_eq!(waits, [0, 1, 2, 4, 8, 16, 32, 64, 64, 64]);
    scene.receive(&Reply::new(OFFER).lease(DAY).to(&discover));
    let request = scene.sent();
    scene.receive(&Reply::new(ACK).lease(DAY).to(&request));
    let renewal = scene.next();
    scene.event();
    scene.receive(&Reply::new(NAK).to(&renewal));
    scene.is_lost();
    assert_eq!(parts(&scene.sent()).0, DISCOVER, "at once again");
}

#[test]
fn an_address_in_use_is_declined() {
    let mut scene = Scene::bound(DAY);
    scene.client.conflict(scene.now);
    scene.is_lost();
    assert_eq!(scene.client.deadline(), Some(scene.now));
    let decline = scene.sent();
    assert_eq!(
        parts(&decline),
        (DECLINE, Some(ADDRESS), Some(SERVER_A), None)
    );
    assert_eq!(
        (decline.from, decline.to),
        (Ipv4Addr::UNSPECIFIED, Ipv4Addr::BROADCAST)
    );
    let message = Message::parse(&decline.payload).unwrap();
    assert_eq!(message.option(PARAMETERS), None, "RFC 2131, table 5");
    let (after, discover) = scene.next_after();
    assert_eq!(after, seconds(10));
    assert_eq!(parts(&discover), (DISCOVER, None, None, None));
    // Without an address there is none to decline.
    scene.client.conflict(scene.now);
    assert_eq!(scene.client.poll(scene.now), None);
    assert_eq!(scene.client.stats().declined, 1);
}

/// RFC 5227 2.1.1: MAX_CONFLICTS, RATE_LIMIT_INTERVAL.
#[test]
fn many_conflicts_are_followed_by_longer_pauses() {
    let mut scene = Scene::bound(DAY);
    for count in 1..20 {
        scene.client.conflict(scene.now);
        scene.sent();
        let (after, discover) = scene.next_after();
        assert_eq!(after, seconds(if count < 10 { 10 } else { 60 }));
        scene.receive(&Reply::new(OFFER).lease(DAY).to(&discover));
        let request = scene.sent();
        scene.receive(&Reply::new(ACK).lease(DAY).to(&request));
    }
}

#[test]
fn an_address_is_released() {
    let mut scene = Scene::bound(DAY);
    scene.client.release(scene.now);
    scene.is_lost();
    let release = scene.sent();
    assert_eq!(
        parts(&release),
        (RELEASE, None, Some(SERVER_A), Some(ADDRESS))
    );
    assert_eq!((release.from, release.to), (ADDRESS, SERVER_A));
    assert_eq!(scene.client.deadline(), None);
    // Until it is wanted again.
    scene.client.confirm(scene.now);
    assert_eq!(
        parts(&scene.sent()),
        (REQUEST, Some(ADDRESS), None, None),
        "the former one"
    );
    scene.client.release(scene.now);
    assert_eq!(scene.client.poll(scene.now), None, "it was not in use");
    assert_eq!(scene.client.deadline(), None);
}

#[test]
fn a_link_that_was_away_leads_to_a_question() {
    let mut scene = Scene::bound(DAY);
    scene.client.confirm(scene.now);
    let request = scene.sent();
    assert_eq!(parts(&request), (REQUEST, Some(ADDRESS), None, None));
    assert!(
        scene.client.lease().is_some(),
        "it stays in use until refused"
    );
    scene.receive(&Reply::new(ACK).lease(DAY).to(&request));
    assert!(matches!(scene.event(), DhcpEvent::Renewed(_)));

    scene.client.confirm(scene.now);
    let discover = scene.answered(Reply::new(NAK));
    scene.is_lost();
    assert_eq!(parts(&discover), (DISCOVER, None, None, None));
}

/// RFC 2131 3.2, 4.
#[test]
fn without_an_answer_an_address_stays_in_use_until_its_lease_ends() {
    let mut scene = Scene::bound(DAY);
    scene.client.confirm(scene.now);
    for _ in 0..3 {
        scene.now = scene.client.deadline().unwrap();
        assert!(scene.client.poll(scene.now).is_some());
    }
    scene.now = scene.client.deadline().unwrap();
    assert_eq!(scene.client.poll(scene.now), None);
    assert_eq!(scene.client.state, State::Bound);
    assert_eq!(scene.next().to, SERVER_A, "it is renewed");
}

#[test]
fn messages_that_are_no_answers_are_ignored() {
    let changes: [fn(&mut Vec<u8>); 15] = [
        |bytes| bytes[0] = 1,
        |bytes| bytes[1] = 6,
        |bytes| bytes[2] = 16,
        |bytes| bytes[7] ^= 1,
        |bytes| bytes[33] ^= 1,
        |bytes| bytes[236] ^= 1,
        // Not one host's address.
        |bytes| bytes[16..20].fill(0),
        |bytes| bytes[16..20].fill(255),
        |bytes| bytes[16] = 224,
        |bytes| bytes[16] = 127,
        |bytes| bytes[16] = 240,
        // Of the network, and of all its hosts: 10.0.0.0/8, or with a mask.
        |bytes| bytes[16..20].copy_from_slice(&[10, 0, 0, 0]),
        |bytes| bytes[16..20].copy_from_slice(&[10, 255, 255, 255]),
        // The kind is cut off.
        |bytes| bytes.truncate(241),
        |bytes| bytes.clear(),
    ];
    let offers = changes.map(|change| Reply {
        change,
        ..Reply::new(OFFER).lease(DAY)
    });
    let mut nameless = Reply::new(OFFER).lease(DAY);
    nameless.server = Ipv4Addr::UNSPECIFIED;
    let others = [
        nameless,
        Reply::new(OFFER),
        Reply::new(OFFER).lease(0),
        Reply::new(OFFER).option(LEASE, &[1]),
        // RFC 6842 3: another client behind the same address.
        Reply::new(OFFER).lease(DAY).option(CLIENT, &[1, 2, 3]),
        Reply::new(ACK).lease(DAY),
        Reply::new(NAK),
        Reply::new(9),
    ];
    let mut scene = Scene::new();
    let unsolicited = Reply::new(OFFER).lease(DAY).to(&Scene::new().sent());
    scene.client.receive(&unsolicited, scene.now);
    assert_eq!(scene.client.stats().ignored, 1, "nothing was sent");
    let discover = scene.sent();
    for reply in offers.iter().chain(&others) {
        scene.ignores(&reply.to(&discover));
    }
    let own = [1, 2, 0, 0, 0, 0, 9];
    let echoed = Reply::new(OFFER).lease(DAY).option(CLIENT, &own);
    scene.receive(&echoed.to(&discover));
    let request = scene.sent();
    let other = |kind, server, address| {
        Reply {
            server,
            address,
            ..Reply::new(kind).lease(DAY)
        }
        .to(&request)
    };
    scene.ignores(&other(ACK, SERVER_B, ADDRESS));
    scene.ignores(&other(NAK, SERVER_B, ADDRESS));
    scene.ignores(&other(OFFER, SERVER_A, ADDRESS));
    scene.ignores(&other(ACK, SERVER_A, SERVER_B));
    scene.ignores(&Reply::new(ACK).lease(0).to(&request));
    scene.receive(&other(ACK, SERVER_A, ADDRESS));
    scene.event();
    // Nothing is asked now.
    scene.ignores(&other(NAK, SERVER_A, ADDRESS));
    scene.ignores(&other(ACK, SERVER_A, ADDRESS));
    let request = scene.next();
    let mut nak = Reply::new(NAK);
    nak.server = SERVER_B;
    scene.ignores(&nak.to(&request));
}

/// The lease of an ACK with these options.
fn leased(options: &[(u8, &[u8])], change: fn(&mut Vec<u8>)) -> Lease {
    let mut scene = Scene::new();
    let request = scene.answered(Reply::new(OFFER).lease(DAY));
    let mut ack = Reply::new(ACK).lease(DAY);
    ack.change = change;
    for (kind, value) in options {
        ack = ack.option(*kind, value);
    }
    scene.receive(&ack.to(&request));
    scene.client.lease().unwrap().clone()
}

/// RFC 2132 9.3: options in the fields for names. RFC 3396: an option in parts.
#[test]
fn options_in_other_fields_and_in_parts_are_found() {
    let lease = leased(&[(OVERLOAD, &[3]), (DNS, &[10, 0])], |bytes| {
        bytes[108..115].copy_from_slice(&[DNS, 3, 0, 1, 9, END, 0]);
        bytes[44..51].copy_from_slice(&[DNS, 3, 9, 9, 9, END, 0]);
    });
    assert_eq!(lease.dns, [[10, 0, 0, 1], [9, 9, 9, 9]].map(Ipv4Addr::from));
    let lease = leased(&[(OVERLOAD, &[1])], |bytes| {
        bytes[44..51].copy_from_slice(&[DNS, 4, 9, 9, 9, 9, END]);
    });
    assert_eq!(lease.dns, Vec::<Ipv4Addr>::new(), "that field is a name");
}

/// RFC 3442: its examples, a gateway 0.0.0.0, and routers beside them.
#[test]
fn classless_routes_take_the_place_of_routers() {
    let net = |net: &str| net.parse::<Ipv4Net>().unwrap();
    let router = [10, 0, 2, 9];
    let routes = |bytes: &[u8]| leased(&[(ROUTER, &router), (ROUTES, bytes)], |_| ()).routes;
    let bytes = [
        &[0, 10, 0, 2, 1][..],
        &[8, 10, 10, 0, 2, 2],
        &[24, 10, 0, 3, 10, 0, 2, 1],
        &[25, 10, 17, 0, 129, 10, 0, 2, 1],
        &[32, 10, 0, 9, 9, 0, 0, 0, 0],
    ];
    let expected = [
        (net("0.0.0.0/0"), Some(SERVER_A)),
        (net("10.0.0.0/8"), Some(SERVER_B)),
        (net("10.0.3.0/24"), Some(SERVER_A)),
        (net("10.17.0.128/25"), Some(SERVER_A)),
        (net("10.0.9.9/32"), None),
    ];
    assert_eq!(routes(&bytes.concat()), expected);
    let by_router = [(Ipv4Net::default(), Some(Ipv4Addr::from(router)))];
    for malformed in [
        &[33, 1, 2, 3, 4, 5, 6, 7, 8, 9][..],
        &[24, 10, 0, 3, 10, 0, 2],
        &[0, 10, 0, 2, 1, 8],
        &[],
        &[0, 224, 0, 0, 1],
    ] {
        assert_eq!(routes(malformed), by_router, "{malformed:?}");
    }
    // Across two options.
    let (first, rest) = bytes[2].split_at(3);
    let split = leased(&[(ROUTES, first), (ROUTES, rest)], |_| ()).routes;
    assert_eq!(split, [(net("10.0.3.0/24"), Some(SERVER_A))]);
}

#[test]
fn masks_and_mtus_that_are_none() {
    let prefix = |mask: &[u8]| leased(&[(MASK, mask)], |_| ()).address.prefix_len();
    assert_eq!(prefix(&[255, 255, 255, 255]), 32);
    assert_eq!(prefix(&[255, 128, 0, 0]), 9);
    for none in [&[255, 0, 255, 0][..], &[0; 4], &[255], &[]] {
        assert_eq!(prefix(none), 8, "by class: {none:?}");
    }
    let mtu = |mtu: u16| leased(&[(MTU, &mtu.to_be_bytes())], |_| ()).mtu;
    assert_eq!((mtu(575), mtu(576)), (None, Some(576)));
}

#[test]
fn lists_are_bounded() {
    let many: Vec<u8> = (0..50).flat_map(|host| [10, 0, 1, host]).collect();
    let lease = leased(&[(ROUTER, &many), (DNS, &many), (DNS, &[0; 40])], |_| ());
    assert_eq!((lease.routes.len(), lease.dns.len()), (32, 8));
    let none = leased(&[(DNS, &[0, 0, 0, 0, 224, 0, 0, 1])], |_| ());
    assert_eq!(none.dns, Vec::<Ipv4Addr>::new());
}

/// The crate's server, and the client before it.
struct Lan {
    edge: Edge<memory::MemoryLink>,
    guest: memory::MemoryLink,
    scene: Scene,
    /// Messages so far, of both sides.
    count: usize,
    lost: Option<usize>,
}

impl Lan {
    fn new(remembered: Option<Ipv4Addr>, lease: u64) -> Lan {
        let (transport, guest) = memory::pair(memory::Config::default().mtu(1514));
        let config = EdgeConfig::new(Ipv4Net::new(SERVER_A, 24).unwrap(), ADDRESS);
        Lan {
            edge: Edge::new(transport, config.lease(seconds(lease))).unwrap(),
            guest,
            scene: Scene::with(remembered, 1),
            count: 0,
            lost: None,
        }
    }

    fn is_lost(&mut self) -> bool {
        self.count += 1;
        self.lost == Some(self.count - 1)
    }

    /// Everything that is due now.
    fn run(&mut self) {
        while let Some(sent) = self.scene.client.poll(self.scene.now) {
            if self.is_lost() {
                continue;
            }
            let to = match sent.to {
                Ipv4Addr::BROADCAST => Mac::BROADCAST,
                _ => EdgeConfig::new(Ipv4Net::new(SERVER_A, 24).unwrap(), ADDRESS).mac,
            };
            let mut bytes = frame::header(to, MAC, frame::IPV4).to_vec();
            let (from, to) = ((sent.from, CLIENT_PORT), (sent.to, SERVER_PORT));
            ip::emit_udp(&mut bytes, from, to, &sent.payload);
            self.guest
                .transmit(&Packet::new(&bytes, &[], HEADER))
                .unwrap();
            self.edge.receive(&mut Vec::new(), 64).unwrap();
            self.answers();
        }
    }

    fn answers(&mut self) {
        let mut frames: Vec<Frame> = Vec::new();
        self.guest.receive(&mut frames, 64).unwrap();
        for frame in frames {
            if self.is_lost() {
                continue;
            }
            let payload = ip::udp_payload(&frame.to_vec()[HEADER..]).unwrap().to_vec();
            self.scene.client.receive(&payload, self.scene.now);
        }
    }

    fn run_until_deadline(&mut self) {
        self.scene.now = self.scene.client.deadline().unwrap();
        self.run();
    }

    fn is_bound(&self) -> bool {
        self.scene.client.lease().is_some()
    }
}

#[test]
fn the_own_server_gives_and_renews_an_address() {
    let mut lan = Lan::new(None, 1000);
    lan.run();
    let DhcpEvent::Bound(lease) = lan.scene.event() else {
        panic!()
    };
    assert_eq!(lease.address, Ipv4Net::new(ADDRESS, 24).unwrap());
    assert_eq!(lease.routes, [(Ipv4Net::default(), Some(SERVER_A))]);
    assert_eq!((lease.dns, lease.mtu), (vec![SERVER_A], Some(1500)));
    for _ in 0..5 {
        lan.run_until_deadline();
        assert!(matches!(lan.scene.event(), DhcpEvent::Renewed(_)));
    }
    // A renewal is lost until all servers are asked.
    let times = lan.scene.client.held.as_ref().unwrap().times.unwrap();
    while lan.scene.now < times.rebind {
        lan.lost = Some(lan.count);
        lan.run_until_deadline();
    }
    lan.run_until_deadline();
    assert!(matches!(lan.scene.event(), DhcpEvent::Renewed(_)));
}

#[test]
fn the_own_server_confirms_and_refuses_former_addresses() {
    let mut lan = Lan::new(Some(ADDRESS), 1000);
    lan.run();
    assert_eq!((lan.count, lan.is_bound()), (2, true), "a request, an ACK");
    let mut lan = Lan::new(Some(Ipv4Addr::new(192, 168, 7, 7)), 1000);
    lan.run();
    assert_eq!(lan.scene.client.stats().refused, 1);
    assert_eq!(
        lan.scene.client.lease().unwrap().address.addr(),
        ADDRESS,
        "after a refusal"
    );
}

#[test]
fn the_own_server_takes_declines_and_releases() {
    let mut lan = Lan::new(None, 1000);
    lan.run();
    lan.scene.client.conflict(lan.scene.now);
    lan.run();
    assert_eq!((lan.edge.stats().declined, lan.is_bound()), (1, false));
    lan.run_until_deadline();
    let ignored = lan.edge.stats().ignored;
    lan.scene.client.release(lan.scene.now);
    lan.run();
    assert_eq!(lan.edge.stats().malformed, 0);
    assert!(!lan.is_bound() && lan.edge.stats().ignored > ignored);
    lan.scene.client.confirm(lan.scene.now);
    lan.run();
}

#[test]
fn the_loss_of_any_message_is_made_good() {
    for remembered in [None, Some(ADDRESS)] {
        for lost in 0..8 {
            let mut lan = Lan::new(remembered, 1000);
            lan.lost = Some(lost);
            lan.run();
            while lan.count < 12 {
                lan.run_until_deadline();
                assert!(
                    lan.scene.now - lan.scene.start < seconds(10_000),
                    "{lost} is never made good"
                );
            }
            assert!(lan.is_bound(), "{lost}");
            assert_eq!(lan.scene.client.stats().expired, 0);
        }
    }
}

/// Replies with random changes, and random bytes.
fn hostile() -> impl Strategy<Value = (u8, Vec<u8>, Vec<(usize, u8)>)> {
    let kind = prop::sample::select(vec![OFFER, ACK, ACK, NAK]);
    let options = prop::collection::vec(
        prop_oneof![
            prop::sample::select(WANTED.to_vec()),
            Just(OVERLOAD),
            any::<u8>()
        ],
        0..40,
    );
    (
        kind,
        options,
        prop::collection::vec((0..400_usize, any::<u8>()), 0..4),
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    /// Nothing panics, the states go on, and what is kept is bounded.
    #[test]
    fn messages_of_any_content(
        replies in prop::collection::vec((hostile(), 0..200_000_u64, 0..8_u8), 1..40),
        noise in prop::collection::vec(any::<u8>(), 0..600),
        seed: u64,
    ) {
        let mut scene = Scene::with((seed & 1 == 0).then_some(ADDRESS), seed);
        let mut last = scene.sent();
        scene.client.receive(&noise, scene.now);
        for ((kind, options, changes), wait, act) in replies {
            let mut bytes = Reply::new(kind).lease(u32::from_be_bytes([0, act, 1, 0])).to(&last);
            let end = bytes.iter().rposition(|byte| *byte == END).unwrap();
            bytes.splice(end..end, options);
            for (at, value) in changes {
                let len = bytes.len();
                bytes[at % len] = value;
            }
            match act {
                0 => scene.client.conflict(scene.now),
                1 => scene.client.release(scene.now),
                2 => scene.client.confirm(scene.now),
                _ => scene.client.receive(&bytes, scene.now),
            }
            let mut sent = 0;
            while let Some(message) = scene.client.poll(scene.now) {
                parts(&message);
                last = message;
                sent += 1;
                prop_assert!(sent < 3 && last.payload.len() < 400);
            }
            prop_assert!(scene.client.deadline().is_none_or(|at| at > scene.now));
            prop_assert!(scene.client.events.len() <= 3);
            if let Some(lease) = scene.client.lease() {
                prop_assert!(lease.routes.len() <= 32 && lease.dns.len() <= 8);
            }
            let next = scene.client.deadline().unwrap_or(scene.now);
            scene.now = next.min(scene.now + Duration::from_millis(wait));
        }
    }

    #[test]
    fn noise(payload in prop::collection::vec(any::<u8>(), 0..600)) {
        let mut scene = Scene::new();
        scene.sent();
        scene.ignores(&payload);
    }
}
