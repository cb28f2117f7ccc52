//! What passes between the guest and the gateway, in a file for tcpdump and Wireshark.
//!
//! Written by hand, since the format (pcap) is two headers of 24 and 16 bytes: smoltcp's writer has no nanoseconds and
//! panics when the disk is full, and `pcap-file` needs an old parser of Rust to be built.

use parking_lot::Mutex;
use sosplice::link::{
    Capabilities, Flow, Frame, Interest, Link, LinkEvent, Packet, ReceiveError, TransmitError,
};
use std::fs;
use std::io::{self, BufWriter, Write};
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// The mark of a file with nanoseconds, in this machine's order of bytes.
const MAGIC: u32 = 0xa1b2_3c4d;
const VERSION: [u16; 2] = [2, 4];
/// More than the largest frame.
const SNAP_LEN: u32 = 262_144;
const ETHERNET: u32 = 1;

type File = Pcap<BufWriter<fs::File>>;

/// A transport of frames that writes them to a file, if there is one.
#[derive(Debug)]
pub(crate) struct Capture<T> {
    transport: T,
    /// Empty once the capture has ended.
    file: Option<Mutex<Option<File>>>,
}

impl<T> Capture<T> {
    /// Writes to a new file of at most this many bytes.
    pub(crate) fn new(transport: T, path: Option<&Path>, limit: u64) -> io::Result<Capture<T>> {
        let create = |path| Pcap::new(BufWriter::new(fs::File::create(path)?), limit);
        let file = path.map(create).transpose()?;
        let file = file.map(|file| Mutex::new(Some(file)));
        Ok(Capture { transport, file })
    }

    pub(crate) fn transport(&self) -> &T {
        &self.transport
    }

    pub(crate) fn flush(&self) {
        if let Some(file) = &self.file {
            write(&mut file.lock(), |file| file.out.flush());
        }
    }
}

/// Writes something. An error, as that the disk is full, ends the capture and nothing else.
fn write(file: &mut Option<File>, work: impl FnOnce(&mut File) -> io::Result<()>) {
    if let Some(Err(error)) = file.as_mut().map(work) {
        eprintln!("the capture ends: {error}");
        *file = None;
    }
}

/// A file in the format of pcap, with nanoseconds.
#[derive(Debug)]
struct Pcap<W> {
    out: W,
    /// Bytes that may still be written.
    left: u64,
}

impl<W: Write> Pcap<W> {
    fn new(out: W, limit: u64) -> io::Result<Pcap<W>> {
        let mut pcap = Pcap { out, left: limit };
        let [major, minor] = VERSION.map(u16::to_ne_bytes);
        let [zone, accuracy] = [[0; 4]; 2];
        pcap.write(&[
            &MAGIC.to_ne_bytes(),
            &major,
            &minor,
            &zone,
            &accuracy,
            &SNAP_LEN.to_ne_bytes(),
            &ETHERNET.to_ne_bytes(),
        ])?;
        pcap.out.flush()?;
        Ok(pcap)
    }

    fn frame(&mut self, frame: &[u8]) -> io::Result<()> {
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        let since = since.unwrap_or_default();
        // Like the format until 2106.
        let seconds = u32::try_from(since.as_secs()).unwrap_or(u32::MAX);
        let len = u32::try_from(frame.len()).map_err(io::Error::other)?;
        self.write(&[
            &seconds.to_ne_bytes(),
            &since.subsec_nanos().to_ne_bytes(),
            &len.to_ne_bytes(),
            &len.to_ne_bytes(),
            frame,
        ])
    }

    /// Writes all or nothing, so that the file ends with a whole frame at its limit.
    fn write(&mut self, parts: &[&[u8]]) -> io::Result<()> {
        let count = parts.iter().map(|part| part.len() as u64).sum();
        let Some(left) = self.left.checked_sub(count) else {
            self.out.flush()?;
            return Err(io::Error::other("the file has reached its limit"));
        };
        self.left = left;
        parts.iter().try_for_each(|part| self.out.write_all(part))
    }
}

impl<T: Link> Link for Capture<T> {
    fn capabilities(&self) -> Capabilities {
        self.transport.capabilities()
    }

    fn receive(&self, frames: &mut Vec<Frame>, max: usize) -> Result<usize, ReceiveError> {
        let before = frames.len();
        let result = self.transport.receive(frames, max);
        if let Some(file) = &self.file {
            let mut received = frames[before..].iter().map(Frame::to_complete_vec);
            write(&mut file.lock(), |file| {
                received.try_for_each(|frame| file.frame(&frame))
            });
        }
        result
    }

    fn transmit(&self, packet: &Packet<'_>) -> Result<(), TransmitError> {
        let Some(file) = &self.file else {
            return self.transport.transmit(packet);
        };
        // Locked meanwhile: the answer is to be behind it in the file.
        let mut file = file.lock();
        self.transport.transmit(packet)?;
        let frame = Frame::new(&packet.to_vec()).checksum(packet.checksum);
        write(&mut file, |file| file.frame(&frame.to_complete_vec()));
        Ok(())
    }

    fn wait(&self, interest: Interest, deadline: Option<Instant>) -> io::Result<()> {
        // A reader of the file sees all that has passed while nothing happens.
        self.flush();
        self.transport.wait(interest, deadline)
    }

    fn deadline(&self) -> Option<Instant> {
        self.transport.deadline()
    }

    fn wake(&self) {
        self.transport.wake();
    }

    fn descriptors(&self) -> Option<[BorrowedFd<'_>; 2]> {
        self.transport.descriptors()
    }

    fn take_events(&self, events: &mut Vec<LinkEvent>) {
        self.transport.take_events(events);
    }

    fn reseed(&self, seed: u64) {
        self.transport.reseed(seed);
    }

    fn steer(&self, flow: &Flow) -> Option<usize> {
        self.transport.steer(flow)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sosplice::link::memory;

    struct Full(usize);

    impl Write for Full {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            match self.0.checked_sub(bytes.len()) {
                None => Err(io::ErrorKind::StorageFull.into()),
                Some(left) => {
                    self.0 = left;
                    Ok(bytes.len())
                }
            }
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_file_has_a_header_and_frames() {
        let mut pcap = Pcap::new(Vec::new(), 1000).unwrap();
        pcap.frame(&[7; 60]).unwrap();
        let expected = [MAGIC.to_ne_bytes().as_slice(), &2_u16.to_ne_bytes()].concat();
        assert_eq!(pcap.out[..6], expected);
        assert_eq!(pcap.out.len(), 24 + 16 + 60);
        assert_eq!(pcap.out[40..], [7; 60]);
        assert_eq!(pcap.out[32..36], 60_u32.to_ne_bytes());
    }

    #[test]
    fn a_file_ends_before_its_limit() {
        let mut pcap = Pcap::new(Vec::new(), 24 + 2 * 76).unwrap();
        assert!(pcap.frame(&[7; 60]).is_ok() && pcap.frame(&[7; 60]).is_ok());
        assert!(pcap.frame(&[7; 14]).is_err());
        assert_eq!(pcap.out.len(), 24 + 2 * 76);
        assert!(Pcap::new(Vec::new(), 23).is_err());
    }

    #[test]
    fn a_full_disk_is_an_error() {
        let mut pcap = Pcap::new(Full(100), 1000).unwrap();
        assert!(pcap.frame(&[7; 60]).is_ok());
        let error = pcap.frame(&[7; 60]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    }

    #[test]
    fn frames_pass_when_the_capture_has_ended() {
        let (near, far) = memory::pair(memory::Config::default());
        // Everything written to this device fails.
        let near = Capture {
            transport: near,
            file: Some(Mutex::new(Some(Pcap {
                out: BufWriter::with_capacity(0, fs::File::create("/dev/full").unwrap()),
                left: u64::MAX,
            }))),
        };
        let mut frames = Vec::new();
        for count in 1..3 {
            near.transmit(&Packet::new(&[7; 60], &[], 14)).unwrap();
            far.receive(&mut frames, 9).unwrap();
            assert_eq!(frames.len(), count);
            assert!(near.file.as_ref().unwrap().lock().is_none());
        }
    }
}
