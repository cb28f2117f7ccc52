//! The guest's queries and their answers, as messages: which queries are asked, and what an answer says.
//!
//! A query is passed on with another number, which is not to be guessed, and an answer counts only if it has that
//! number and repeats the question. Queries for names that are not allowed are REFUSED: that is "for policy reasons"
//! (RFC 1035 4.1.1), and unlike NXDOMAIN does not say that there is no such name, which the guest would remember. What
//! is no query with one question, such as an update, is not passed on.

use crate::message::{HEADER, OWN, host_name, is_query, reply_to};
use crate::policy::Policy;
use simple_dns::{Packet, RCODE};
use std::time::Instant;

/// Type and class after the name of a question.
const KIND: usize = 4;
/// Bits of the third byte.
const RESPONSE: u8 = 0x80;
const OPCODE: u8 = 0x78;
/// How often there are questions: once.
const ONE: [u8; 2] = [0, 1];

/// What becomes of a message of the guest.
#[derive(Debug)]
pub(crate) enum Verdict {
    /// The resolver is to answer this message.
    Ask(Asked, Vec<u8>),
    Reply(Vec<u8>),
    /// It is no query.
    Drop,
}

/// A query that the resolver is to answer.
#[derive(Debug)]
pub(crate) struct Asked {
    /// The guest's message.
    query: Vec<u8>,
    /// The number of the message for the resolver.
    id: [u8; 2],
    name: Option<String>,
    /// The end of the question.
    end: usize,
}

/// Decides about a message of the guest. `id` is for the resolver.
pub(crate) fn judge(policy: &Policy, query: Vec<u8>, id: u16) -> Verdict {
    if !is_query(&query) {
        return Verdict::Drop;
    }
    if query[2] & OPCODE != 0 {
        return reply(&query, RCODE::NotImplemented);
    }
    // Many may wait for answers.
    let question = question(&query).filter(|_| query.len() <= OWN.into());
    let Some((name, end)) = question else {
        return reply(&query, RCODE::FormatError);
    };
    policy.counters.queries.add();
    if !policy.allows_name(name.as_deref()) {
        policy.counters.queries_refused.add();
        return reply(&query, RCODE::Refused);
    }
    let id = id.to_be_bytes();
    let mut message = query.clone();
    message[..2].copy_from_slice(&id);
    let asked = Asked {
        query,
        id,
        name,
        end,
    };
    Verdict::Ask(asked, message)
}

fn reply(query: &[u8], code: RCODE) -> Verdict {
    error(query, code).map_or(Verdict::Drop, Verdict::Reply)
}

/// A reply with an error, and with the question if it can be parsed.
fn error(query: &[u8], code: RCODE) -> Option<Vec<u8>> {
    let mut reply = match Packet::parse(query) {
        Ok(query) => reply_to(&query),
        Err(_) => Packet::new_reply(u16::from_be_bytes([query[0], query[1]])),
    };
    *reply.rcode_mut() = code;
    reply.build_bytes_vec_compressed().ok()
}

/// The name in the only question, if it is a host's, and where the question ends. A name in pieces (compressed) is
/// none: another reader may find other labels in it.
fn question(query: &[u8]) -> Option<(Option<String>, usize)> {
    let mut labels = Vec::new();
    let mut at = HEADER;
    loop {
        let len = usize::from(*query.get(at)?);
        at += 1;
        match len {
            0 => break,
            1..64 => labels.push(query.get(at..at + len)?),
            _ => return None,
        }
        at += len;
    }
    let end = at + KIND;
    let is_whole = at - HEADER <= 255 && end <= query.len();
    (is_whole && query[4..6] == ONE).then(|| (host_name(labels), end))
}

impl Asked {
    /// Whether a message is the answer.
    pub(crate) fn is_answered_by(&self, message: &[u8]) -> bool {
        let (name, kind) = (HEADER..self.end - KIND, self.end - KIND..self.end);
        message.len() >= self.end
            && message[..2] == self.id
            && message[2] & (RESPONSE | OPCODE) == RESPONSE
            && message[4..6] == ONE
            && message[name.clone()].eq_ignore_ascii_case(&self.query[name])
            && message[kind.clone()] == self.query[kind]
    }

    /// The answer for the guest. What it says is known from then on.
    pub(crate) fn answer(&self, policy: &Policy, mut message: Vec<u8>, now: Instant) -> Vec<u8> {
        if let (Some(name), Ok(answer)) = (&self.name, Packet::parse(&message)) {
            policy.learn(name, &answer, now);
        }
        message[..2].copy_from_slice(&self.query[..2]);
        message
    }

    /// The answer if the resolver cannot be reached.
    pub(crate) fn failure(&self) -> Option<Vec<u8>> {
        error(&self.query, RCODE::ServerFailure)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;
    use simple_dns::rdata::{A, RData};
    use simple_dns::{CLASS, Name, QCLASS, QTYPE, Question, ResourceRecord, TYPE};
    use sosplice::clock::{Clock, SystemClock};
    use std::net::IpAddr;

    const ID: u16 = 0x0708;

    fn policy(rules: &[&str]) -> Policy {
        let rules = rules.iter().map(|rule| rule.parse().unwrap());
        Policy::new(rules.collect(), vec!["10.0.2.0/24".parse().unwrap()])
    }

    fn packet<'a>(mut packet: Packet<'a>, name: &'a str, kind: TYPE) -> Packet<'a> {
        let class = QCLASS::CLASS(CLASS::IN);
        let name = Name::new(name).unwrap();
        let question = Question::new(name, QTYPE::TYPE(kind), class, false);
        packet.questions.push(question);
        packet
    }

    fn query(name: &str) -> Vec<u8> {
        let query = packet(Packet::new_query(5), name, TYPE::A);
        query.build_bytes_vec().unwrap()
    }

    fn answer(id: u16, name: &str, address: [u8; 4]) -> Packet<'_> {
        let mut answer = packet(Packet::new_reply(id), name, TYPE::A);
        let data = RData::A(A {
            address: u32::from_be_bytes(address),
        });
        let name = Name::new(name).unwrap();
        let record = ResourceRecord::new(name, CLASS::IN, 60, data);
        answer.answers.push(record);
        answer
    }

    fn asked(policy: &Policy, query: Vec<u8>) -> Asked {
        match judge(policy, query, ID) {
            Verdict::Ask(asked, _) => asked,
            other => panic!("{other:?}"),
        }
    }

    /// The code of the reply, which has the query's number and question.
    fn refused(policy: &Policy, query: Vec<u8>) -> RCODE {
        match judge(policy, query, ID) {
            Verdict::Reply(reply) => {
                let reply = Packet::parse(&reply).unwrap();
                assert!(reply.id() == 5 && !is_query(&reply.build_bytes_vec().unwrap()));
                reply.rcode()
            }
            other => panic!("{other:?}"),
        }
    }

    fn allows(policy: &Policy, address: [u8; 4]) -> bool {
        policy.allows(IpAddr::from(address), Some(80), SystemClock.now())
    }

    #[test]
    fn names_that_are_not_allowed_are_refused() {
        let policy = policy(&["example.org", "*.example.net:443"]);
        for name in ["Example.ORG", "www.example.net"] {
            asked(&policy, query(name));
        }
        for name in [
            "www.example.org",
            "example.net",
            "org",
            "example.org.evil.test",
            "1.2",
        ] {
            assert_eq!(refused(&policy, query(name)), RCODE::Refused, "{name}");
        }
        // A dot in a label is no other label.
        let mut dotted = query("www.example.net");
        dotted[HEADER] = 11;
        dotted[HEADER + 4] = b'.';
        assert_eq!(refused(&policy, dotted), RCODE::Refused);
    }

    #[test]
    fn without_rules_all_names_and_kinds_are_asked_for() {
        let policy = policy(&[]);
        let mut odd = query("a b\u{e9}.example.org");
        let len = odd.len();
        // TLSA, which the parser does not know.
        odd[len - KIND..len - 2].copy_from_slice(&[0, 52]);
        let Verdict::Ask(_, message) = judge(&policy, odd.clone(), ID) else {
            panic!("not asked");
        };
        assert_eq!((&message[..2], &message[2..]), (&[7, 8][..], &odd[2..]));
    }

    #[test]
    fn messages_that_are_no_plain_queries() {
        let policy = policy(&[]);
        let good = query("example.org");
        let changed = |at: usize, byte: u8| {
            let mut query = good.clone();
            query[at] = byte;
            query
        };
        // More bytes than anyone sends who asks for one name.
        let mut long = good.clone();
        long.resize(usize::from(OWN) + 1, 0);
        assert_eq!(refused(&policy, long), RCODE::FormatError);
        // A notification; two questions; none; a name in pieces; a label of an unknown form.
        assert_eq!(refused(&policy, changed(2, 0x20)), RCODE::NotImplemented);
        for query in [
            changed(5, 2),
            changed(5, 0),
            changed(12, 0xc0),
            changed(12, 0x41),
        ] {
            assert_eq!(refused(&policy, query), RCODE::FormatError);
        }
        assert_eq!(
            refused(&policy, good[..good.len() - 1].to_vec()),
            RCODE::FormatError
        );
        assert!(matches!(
            judge(&policy, changed(2, 0x80), ID),
            Verdict::Drop
        ));
        assert!(matches!(
            judge(&policy, good[..11].to_vec(), ID),
            Verdict::Drop
        ));
    }

    #[test]
    fn only_the_answer_to_the_question_opens_addresses() {
        let policy = policy(&["example.org"]);
        let asked = asked(&policy, query("example.org"));
        let bytes = |answer: Packet<'_>| answer.build_bytes_vec().unwrap();
        let right = bytes(answer(ID, "EXAMPLE.org", [192, 0, 2, 1]));
        let mut other_kind = right.clone();
        other_kind[asked.end - 3] = 28;
        let mut no_reply = right.clone();
        no_reply[2] &= 0x7f;
        for wrong in [
            bytes(answer(ID + 1, "example.org", [192, 0, 2, 1])),
            bytes(answer(5, "example.org", [192, 0, 2, 1])),
            bytes(answer(ID, "example.net", [192, 0, 2, 1])),
            bytes(answer(ID, "www.example.org", [192, 0, 2, 1])),
            other_kind,
            no_reply,
            right[..asked.end - 1].to_vec(),
        ] {
            assert!(!asked.is_answered_by(&wrong), "{wrong:?}");
        }
        assert!(asked.is_answered_by(&right) && !allows(&policy, [192, 0, 2, 1]));
        let for_guest = asked.answer(&policy, right.clone(), SystemClock.now());
        assert_eq!(
            (&for_guest[..2], &for_guest[2..]),
            (&[0, 5][..], &right[2..])
        );
        assert!(allows(&policy, [192, 0, 2, 1]));
        assert!(!allows(&policy, [192, 0, 2, 2]));
    }

    #[test]
    fn an_answer_opens_no_address_of_the_host_or_the_gateway() {
        let policy = policy(&["example.org"]);
        for address in [[127, 0, 0, 1], [10, 0, 2, 1], [169, 254, 169, 254]] {
            let asked = asked(&policy, query("example.org"));
            let message = answer(ID, "example.org", address);
            asked.answer(
                &policy,
                message.build_bytes_vec().unwrap(),
                SystemClock.now(),
            );
            assert!(!allows(&policy, address), "{address:?}");
        }
        assert_eq!(format!("{:?}", policy.counters.addresses_ignored), "3");
    }

    #[test]
    fn a_failure_is_reported_to_the_guest() {
        let policy = policy(&[]);
        let reply = asked(&policy, query("example.org")).failure().unwrap();
        let reply = Packet::parse(&reply).unwrap();
        assert_eq!((reply.id(), reply.rcode()), (5, RCODE::ServerFailure));
        assert_eq!(reply.questions.len(), 1);
    }

    /// A message with some bytes changed, cut off somewhere.
    fn damaged(good: Vec<u8>) -> impl Strategy<Value = Vec<u8>> {
        let len = good.len();
        (vec((0..len, any::<u8>()), 0..6), 0..=len).prop_map(move |(changes, end)| {
            let mut bytes = good.clone();
            changes.into_iter().for_each(|(at, byte)| bytes[at] = byte);
            bytes.truncate(end);
            bytes
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(2_000) })]

        #[test]
        fn a_question_is_the_parsers(bytes in prop_oneof![damaged(query("www.example.org")), vec(any::<u8>(), 0..100)]) {
            let policy = policy(&["www.example.org"]);
            match judge(&policy, bytes.clone(), ID) {
                Verdict::Ask(..) => if let Ok(packet) = Packet::parse(&bytes) {
                    let name = packet.questions[0].qname.to_string();
                    prop_assert_eq!(name.to_ascii_lowercase(), "www.example.org");
                }
                Verdict::Reply(reply) => {
                    prop_assert_eq!(&reply[..2], &bytes[..2]);
                    prop_assert!(Packet::parse(&reply).is_ok());
                }
                Verdict::Drop => prop_assert!(!is_query(&bytes)),
            }
        }

        #[test]
        fn no_answer_does_harm(bytes in prop_oneof![
            damaged(answer(ID, "example.org", [192, 0, 2, 1]).build_bytes_vec().unwrap()),
            damaged(answer(ID, "example.org", [192, 0, 2, 1]).build_bytes_vec_compressed().unwrap()),
            vec(any::<u8>(), 0..100),
        ]) {
            let policy = policy(&["example.org"]);
            let asked = asked(&policy, query("example.org"));
            if asked.is_answered_by(&bytes) {
                let len = bytes.len();
                prop_assert_eq!(asked.answer(&policy, bytes, SystemClock.now()).len(), len);
            }
        }
    }
}
