//! Queries that are not merely carried: those that a resolver gets over TCP (`resolver`), and those that are answered
//! here, with fake addresses (`names`). Messages: RFC 1035, 6891, 7766, by `simple-dns`.

use crate::message::{HEADER, host_name, is_query, read_message, reply_to, write_message};
use crate::names::Names;
use crate::resolver::Query;
use crate::tool::{Target, Tool};
use crate::udp;
use fast_socks5::util::target_addr::TargetAddr;
use simple_dns::rdata::{A, PTR, RData};
use simple_dns::{CLASS, Name, OPCODE, Packet, PacketFlag, QCLASS, QTYPE, RCODE};
use simple_dns::{ResourceRecord, SimpleDnsError, TYPE};
use sosplice::{TcpStream, UdpSocket};
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;
use tokio::time::timeout;

/// How long a connection for queries is kept open without one, and how long an answer may take.
pub(crate) const IDLE: Duration = Duration::from_secs(10);
/// How long a client may remember a fake address, in seconds.
const TTL: u32 = 10;
/// The longest answer for a client that says nothing about it.
const SHORT: usize = 512;

/// Answers the queries of a flow, or has them answered.
pub(crate) async fn serve(tool: &Tool, flow: UdpSocket) -> anyhow::Result<()> {
    flow.set_nonblocking(true);
    loop {
        let datagrams = udp::received(&flow).await;
        if datagrams.is_empty() {
            return Ok(());
        }
        for bytes in datagrams.iter().map(|datagram| datagram.to_vec()) {
            match (&tool.names, tool.target(flow.local_addr())) {
                (Some(names), _) => {
                    let answer = answer(&mut names.lock(), &bytes);
                    answer.map(|answer| flow.send(&fit(&bytes, answer)));
                }
                (None, Target::Proxied(TargetAddr::Ip(resolver))) => {
                    let query = Query::new(bytes, flow.clone());
                    tool.resolvers.ask(&tool.proxy, resolver, query);
                }
                (None, _) => {}
            }
        }
    }
}

/// Answers the queries of a connection with fake addresses.
pub(crate) async fn serve_stream(tool: &Tool, mut stream: TcpStream) -> anyhow::Result<()> {
    while let Ok(message) = timeout(IDLE, read_message(&mut stream)).await {
        let query = match message {
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => break,
            other => other?,
        };
        let answer = tool
            .names
            .as_ref()
            .and_then(|names| answer(&mut names.lock(), &query));
        if let Some(answer) = answer {
            timeout(IDLE, write_message(&mut stream, &answer)).await??;
        }
    }
    Ok(())
}

/// The answer to a query over UDP, or one that says that it is too long for that (TC), so that the client asks over
/// TCP.
pub(crate) fn fit(query: &[u8], answer: Vec<u8>) -> Vec<u8> {
    let parsed = Packet::parse(query).ok();
    let size = parsed
        .as_ref()
        .and_then(|query| query.opt())
        .map(|opt| opt.udp_packet_size.into());
    if answer.len() <= size.unwrap_or(SHORT).max(SHORT) {
        return answer;
    }
    let short = parsed.and_then(|query| {
        let mut reply = reply_to(&query);
        reply.set_flags(PacketFlag::TRUNCATION);
        reply.build_bytes_vec().ok()
    });
    short.unwrap_or_else(|| {
        let mut header = answer[..HEADER].to_vec();
        header[2] |= 0x02;
        header[4..].fill(0);
        header
    })
}

/// The answer with a fake address; `None` to what is not a query.
fn answer(names: &mut Names, bytes: &[u8]) -> Option<Vec<u8>> {
    if !is_query(bytes) {
        return None;
    }
    let id = u16::from_be_bytes([bytes[0], bytes[1]]);
    let (mut reply, code) = match Packet::parse(bytes) {
        Ok(query) => {
            let mut reply = reply_to(&query);
            let code = fill(names, &mut reply);
            (reply, code)
        }
        Err(SimpleDnsError::InvalidQType(_)) => (Packet::new_reply(id), RCODE::NotImplemented),
        Err(_) => (Packet::new_reply(id), RCODE::FormatError),
    };
    *reply.rcode_mut() = code;
    reply.build_bytes_vec_compressed().ok()
}

/// Adds the record that is asked for, if there is one.
fn fill(names: &mut Names, reply: &mut Packet<'_>) -> RCODE {
    if reply.opcode() != OPCODE::StandardQuery {
        return RCODE::NotImplemented;
    }
    let [question] = &reply.questions[..] else {
        return RCODE::FormatError;
    };
    let (QTYPE::TYPE(kind), QCLASS::CLASS(CLASS::IN)) = (question.qtype, question.qclass) else {
        return RCODE::NotImplemented;
    };
    let labels = question.qname.get_labels().iter().map(AsRef::as_ref);
    let Some(name) = host_name(labels) else {
        return RCODE::NameError;
    };
    let data = match kind {
        TYPE::A => match names.address(&name) {
            Some(address) => RData::A(A {
                address: address.into(),
            }),
            None => return RCODE::ServerFailure,
        },
        TYPE::PTR => match reverse(&name).and_then(|address| names.name(address)) {
            Some(name) => RData::PTR(PTR(Name::new_unchecked(&name).into_owned())),
            None => return RCODE::NameError,
        },
        // Without these, clients use the fake address of IPv4.
        TYPE::AAAA | TYPE::HTTPS | TYPE::SVCB => return RCODE::NoError,
        _ => return RCODE::NotImplemented,
    };
    let record = ResourceRecord::new(question.qname.clone(), CLASS::IN, TTL, data);
    reply.answers.push(record);
    RCODE::NoError
}

/// The address whose name is asked for.
fn reverse(name: &str) -> Option<IpAddr> {
    let reversed: Ipv4Addr = name.strip_suffix(".in-addr.arpa")?.parse().ok()?;
    let [a, b, c, d] = reversed.octets();
    Some(Ipv4Addr::new(d, c, b, a).into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    /// A query with some bytes changed, cut off somewhere.
    fn damaged() -> impl Strategy<Value = Vec<u8>> {
        let query = Packet::parse(b"\x00\x07\x01\x00\x00\x01\x00\x00\x00\x00\x00\x01\x03www\x04test\x00\x00\x01\x00\x01\x00\x00\x29\x04\xd0\x00\x00\x00\x00\x00\x00");
        let good = query.unwrap().build_bytes_vec().unwrap();
        let len = good.len();
        (vec((0..len, any::<u8>()), 0..6), 0..=len).prop_map(move |(changes, end)| {
            let mut bytes = good.clone();
            changes.into_iter().for_each(|(at, byte)| bytes[at] = byte);
            bytes.truncate(end);
            bytes
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(1_000) })]

        #[test]
        fn every_query_is_answered_and_nothing_else(bytes in prop_oneof![damaged(), vec(any::<u8>(), 0..100)]) {
            let mut names = Names::new("198.18.0.0/24".parse().unwrap(), Vec::new());
            let answer = answer(&mut names, &bytes);
            prop_assert_eq!(answer.is_some(), is_query(&bytes));
            if let Some(answer) = answer {
                prop_assert_eq!(&answer[..2], &bytes[..2]);
                prop_assert!(answer[2] & 0x80 != 0 && Packet::parse(&answer).is_ok());
            }
        }

        #[test]
        fn what_is_too_long_is_cut(bytes in damaged(), len in 12_usize..3000) {
            let answer = vec![0x80; len];
            let fitting = fit(&bytes, answer.clone());
            prop_assert!(fitting == answer || (fitting.len() < answer.len() && fitting[2] & 2 != 0));
            prop_assert!(fitting.len() <= SHORT || Packet::parse(&bytes).is_ok());
        }
    }
}
