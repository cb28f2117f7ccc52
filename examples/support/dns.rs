//! Messages of DNS (RFC 1035, 6891, 7766), by `simple-dns`, as programs between clients and resolvers need them.

use simple_dns::rdata::OPT;
use simple_dns::{Packet, PacketFlag};
use std::io;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

pub(crate) const HEADER: usize = 12;
/// What this side takes over UDP: no fragments on usual paths.
pub(crate) const OWN: u16 = 1232;
/// Longest label and longest name, as a string.
const MAX_LABEL: usize = 63;
const MAX_NAME: usize = 253;

/// Whether it has a query's header.
pub(crate) fn is_query(message: &[u8]) -> bool {
    message.len() >= HEADER && message[2] & 0x80 == 0
}

/// A reply without a record.
pub(crate) fn reply_to<'a>(query: &Packet<'a>) -> Packet<'a> {
    let mut reply = Packet::new_reply(query.id());
    *reply.opcode_mut() = query.opcode();
    reply.questions.clone_from(&query.questions);
    reply.set_flags(PacketFlag::RECURSION_AVAILABLE);
    if query.has_flags(PacketFlag::RECURSION_DESIRED) {
        reply.set_flags(PacketFlag::RECURSION_DESIRED);
    }
    *reply.opt_mut() = query.opt().map(|_| OPT {
        opt_codes: Vec::new(),
        udp_packet_size: OWN,
        version: 0,
    });
    reply
}

/// The name of a host, in lower case, if the labels are those of one. An address is none.
pub(crate) fn host_name<'a>(labels: impl IntoIterator<Item = &'a [u8]>) -> Option<String> {
    let allowed = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    let mut name = String::new();
    let mut is_number = true;
    for label in labels {
        if !(1..=MAX_LABEL).contains(&label.len()) || !label.iter().all(allowed) {
            return None;
        }
        if !name.is_empty() {
            name.push('.');
        }
        name.extend(
            label
                .iter()
                .map(|byte| char::from(byte.to_ascii_lowercase())),
        );
        is_number = label.iter().all(u8::is_ascii_digit);
    }
    (!is_number && name.len() <= MAX_NAME).then_some(name)
}

/// A message of a stream, which has its length in front.
pub(crate) async fn read_message(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Vec<u8>> {
    let mut message = vec![0; stream.read_u16().await?.into()];
    stream.read_exact(&mut message).await?;
    Ok(message)
}

/// Writes a message with its length in front, in one piece.
pub(crate) async fn write_message(
    stream: &mut (impl AsyncWrite + Unpin),
    message: &[u8],
) -> io::Result<()> {
    let length = u16::try_from(message.len()).map_err(io::Error::other)?;
    let bytes = [&length.to_be_bytes(), message].concat();
    stream.write_all(&bytes).await?;
    stream.flush().await
}
