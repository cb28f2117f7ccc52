//! A TCP segment as it is on the wire, read with smoltcp's formats.

use smoltcp::wire::{IpAddress, IpProtocol, Ipv4Packet, Ipv6Packet, TcpOption, TcpPacket};
use sosplice::link::Checksum;
use std::fmt;
use std::net::{IpAddr, SocketAddr};

/// A parsed segment.
#[derive(Debug, Clone)]
pub(super) struct Segment {
    pub(super) source: SocketAddr,
    pub(super) destination: SocketAddr,
    pub(super) seq: u32,
    /// `None`: without the flag.
    pub(super) ack: Option<u32>,
    pub(super) syn: bool,
    pub(super) fin: bool,
    pub(super) rst: bool,
    pub(super) window: u16,
    pub(super) mss: Option<u16>,
    pub(super) scale: Option<u8>,
    pub(super) sack_permitted: bool,
    /// TSval and TSecr.
    pub(super) stamps: Option<(u32, u32)>,
    blocks: [(u32, u32); 4],
    block_count: usize,
    /// Bytes of options.
    pub(super) options: usize,
    /// Bytes of headers, those of IP included.
    pub(super) headers: usize,
    /// Bytes of payload, which are the last ones of the packet.
    pub(super) len: usize,
}

/// Why a packet is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unread {
    /// Another protocol.
    Other,
    /// Lengths or options that make no sense.
    Malformed,
    /// A wrong checksum.
    Checksum,
}

impl From<smoltcp::wire::Error> for Unread {
    fn from(_: smoltcp::wire::Error) -> Unread {
        Unread::Malformed
    }
}

impl Segment {
    /// Reads a packet. `checksum`: the state of TCP's.
    pub(super) fn read(packet: &[u8], checksum: Checksum) -> Result<Segment, Unread> {
        let (ends, transport) = if packet.first().is_some_and(|first| first >> 4 == 6) {
            let ip = Ipv6Packet::new_checked(packet)?;
            if ip.next_header() != IpProtocol::Tcp {
                return Err(Unread::Other);
            }
            let ends = (ip.src_addr().into(), ip.dst_addr().into());
            (ends, &packet[40..40 + usize::from(ip.payload_len())])
        } else {
            let ip = Ipv4Packet::new_checked(packet)?;
            if !ip.verify_checksum() {
                return Err(Unread::Checksum);
            }
            if ip.next_header() != IpProtocol::Tcp {
                return Err(Unread::Other);
            }
            let ends = (ip.src_addr().into(), ip.dst_addr().into());
            (ends, ip.payload())
        };
        let whole = packet.len();
        Segment::read_tcp(ends, transport, whole - transport.len(), checksum)
    }

    fn read_tcp(
        (source, destination): (IpAddr, IpAddr),
        bytes: &[u8],
        ip_header: usize,
        checksum: Checksum,
    ) -> Result<Segment, Unread> {
        let tcp = TcpPacket::new_checked(bytes)?;
        let ends: (IpAddress, IpAddress) = (source.into(), destination.into());
        let right = match checksum {
            Checksum::Complete => tcp.verify_checksum(&ends.0, &ends.1),
            Checksum::Verified => true,
            Checksum::Partial { .. } => tcp.verify_partial_checksum(&ends.0, &ends.1),
        };
        if !right {
            return Err(Unread::Checksum);
        }
        let header = usize::from(tcp.header_len());
        let mut segment = Segment {
            source: SocketAddr::new(source, tcp.src_port()),
            destination: SocketAddr::new(destination, tcp.dst_port()),
            seq: tcp.seq_number().0.cast_unsigned(),
            ack: tcp.ack().then(|| tcp.ack_number().0.cast_unsigned()),
            syn: tcp.syn(),
            fin: tcp.fin(),
            rst: tcp.rst(),
            window: tcp.window_len(),
            mss: None,
            scale: None,
            sack_permitted: false,
            stamps: None,
            blocks: [(0, 0); 4],
            block_count: 0,
            options: header - 20,
            headers: ip_header + header,
            len: bytes.len() - header,
        };
        segment.read_options(tcp.options())?;
        Ok(segment)
    }

    fn read_options(&mut self, mut options: &[u8]) -> Result<(), Unread> {
        while !options.is_empty() {
            let (rest, option) = TcpOption::parse(options)?;
            match option {
                TcpOption::EndOfList => break,
                TcpOption::MaxSegmentSize(mss) => self.mss = Some(mss),
                TcpOption::WindowScale(shift) => self.scale = Some(shift),
                TcpOption::SackPermitted => self.sack_permitted = true,
                // smoltcp's has no room for the fourth.
                TcpOption::SackRange(_) => self.read_blocks(&options[2..options[1].into()]),
                TcpOption::TimeStamp { tsval, tsecr } => self.stamps = Some((tsval, tsecr)),
                TcpOption::NoOperation | TcpOption::Unknown { .. } => {}
            }
            options = rest;
        }
        Ok(())
    }

    fn read_blocks(&mut self, bytes: &[u8]) {
        let word = |bytes: &[u8]| u32::from_be_bytes(bytes.try_into().unwrap());
        for (block, bytes) in self.blocks.iter_mut().zip(bytes.chunks_exact(8)) {
            *block = (word(&bytes[..4]), word(&bytes[4..]));
            self.block_count += 1;
        }
    }

    /// Blocks of a SACK option.
    pub(super) fn blocks(&self) -> &[(u32, u32)] {
        &self.blocks[..self.block_count]
    }

    /// It takes part of the sequence space.
    pub(super) fn occupies(&self) -> bool {
        self.len > 0 || self.syn || self.fin
    }
}

impl fmt::Display for Segment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let flags = [(self.syn, 'S'), (self.fin, 'F'), (self.rst, 'R')];
        let flags = flags.iter().filter(|(set, _)| *set).map(|(_, flag)| flag);
        let flags: String = flags.collect();
        let ack = self.ack.map_or("-".into(), |ack| ack.to_string());
        let Segment {
            seq, window, len, ..
        } = self;
        write!(f, "{flags:>2} seq {seq} len {len} ack {ack} win {window}")?;
        if let Some((value, echo)) = self.stamps {
            write!(f, " ts {value}/{echo}")?;
        }
        for (start, end) in self.blocks() {
            write!(f, " {start}-{end}")?;
        }
        if self.syn {
            let Segment { mss, scale, .. } = self;
            write!(f, " mss {mss:?} scale {scale:?}")?;
        }
        Ok(())
    }
}
