//! Frames over stream sockets.

use super::*;
use crate::link::ethernet::socket_file::Place;
use std::io::{Read, Write};

fn limit() -> Option<Instant> {
    Some(SystemClock.now() + Duration::from_secs(20))
}

fn frame(bytes: &[u8]) -> Packet<'_> {
    Packet::new(bytes, &[], HEADER)
}

/// Receives `count` frames.
fn receive(link: &FrameStream, count: usize) -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    let deadline = limit();
    while frames.len() < count {
        link.wait(Interest::READABLE, deadline).unwrap();
        assert!(
            Some(SystemClock.now()) < deadline,
            "{} of {count} frames",
            frames.len()
        );
        link.receive(&mut frames, 3).unwrap();
    }
    frames.iter().map(Frame::to_vec).collect()
}

fn pair() -> (FrameStream, UnixStream) {
    let (near, far) = UnixStream::pair().unwrap();
    (FrameStream::from_stream(near).unwrap(), far)
}

fn encoded(frames: &[Vec<u8>]) -> Vec<u8> {
    let one = |frame: &Vec<u8>| {
        [
            &u32::try_from(frame.len()).unwrap().to_be_bytes()[..],
            frame,
        ]
        .concat()
    };
    frames.iter().flat_map(one).collect()
}

fn of_lengths(lens: &[usize]) -> Vec<Vec<u8>> {
    let bytes = |len: &usize| {
        (0..*len)
            .map(|at| u8::try_from(at * 7 % 251).unwrap())
            .collect()
    };
    lens.iter().map(bytes).collect()
}

#[test]
fn frames_arrive_whole_however_the_stream_is_cut() {
    let sent = of_lengths(&[60, 1, 1514, MAX_FRAME, 14, 40_000, 60, 60, 60, 60, 9014]);
    for cut in [1, 1000, 70_000, usize::MAX] {
        let (near, mut far) = pair();
        let sent = if cut == 1 { &sent[..3] } else { &sent };
        let bytes = encoded(sent);
        std::thread::scope(move |scope| {
            scope.spawn(move || {
                bytes
                    .chunks(cut)
                    .for_each(|part| far.write_all(part).unwrap())
            });
            assert!(receive(&near, sent.len()) == *sent, "pieces of {cut}");
        });
    }
}

#[test]
fn a_frame_that_is_written_in_part_is_completed_first() {
    let (near, mut far) = pair();
    let sent = of_lengths(&[MAX_FRAME; 40]);
    let mut count = 0;
    while near.transmit(&frame(&sent[count])).is_ok() {
        count += 1;
    }
    assert!((1..40).contains(&count), "{count} frames fill the socket");
    assert!(matches!(
        near.transmit(&frame(&sent[0])),
        Err(TransmitError::Full)
    ));
    let expected = encoded(&sent[..count]);
    std::thread::scope(|scope| {
        let reader = scope.spawn(move || {
            let mut bytes = vec![0; expected.len()];
            far.read_exact(&mut bytes).unwrap();
            (bytes == expected, far)
        });
        // No further frame is sent: the waiting thread writes the rest.
        let deadline = limit();
        while near.unfinished.load(Ordering::Acquire) {
            near.wait(Interest::READABLE, deadline).unwrap();
            assert!(Some(SystemClock.now()) < deadline);
        }
        assert!(reader.join().unwrap().0);
    });
}

#[test]
fn lengths_of_no_frame_end_the_connection() {
    for len in [0, MAX_FRAME + 1, 0xffff_ffff] {
        let (near, mut far) = pair();
        far.write_all(&encoded(&of_lengths(&[60]))).unwrap();
        far.write_all(&u32::try_from(len).unwrap().to_be_bytes())
            .unwrap();
        assert_eq!(receive(&near, 1).len(), 1);
        let mut frames = Vec::new();
        while near.receive(&mut frames, 9).is_ok() {}
        assert!(frames.is_empty());
        assert_eq!(
            near.stats(),
            StreamStats {
                connects: 1,
                disconnects: 1,
                bad_lengths: 1
            }
        );
    }
}

#[test]
fn the_next_peer_is_accepted_when_one_is_gone() {
    let place = Place::new("accept");
    drop(UnixListener::bind(&place.0).unwrap());
    let link = FrameStream::listen(&place.0).expect("a file without a listener is replaced");
    assert!(matches!(
        link.transmit(&frame(&[0; 60])),
        Err(TransmitError::Refused(_))
    ));
    for _ in 0..3 {
        let mut far = UnixStream::connect(&place.0).unwrap();
        let sent = of_lengths(&[60, 100]);
        far.write_all(&encoded(&sent)).unwrap();
        // A part of a frame is not continued by the next peer.
        far.write_all(&[0, 0, 1, 0, 7]).unwrap();
        assert!(receive(&link, 2) == sent);
        link.transmit(&frame(&sent[0])).unwrap();
        let mut bytes = [0; 64];
        far.read_exact(&mut bytes).unwrap();
        assert_eq!(bytes[..], encoded(&sent[..1]));
        drop(far);
        while link.is_connected() {
            link.wait(Interest::READABLE, limit()).unwrap();
            link.receive(&mut Vec::new(), 1).unwrap();
        }
    }
    assert_eq!(
        link.stats(),
        StreamStats {
            connects: 3,
            disconnects: 3,
            bad_lengths: 0
        }
    );
}

#[test]
fn a_peer_that_listens_again_is_connected_again() {
    let place = Place::new("connect");
    let link = FrameStream::connect(&place.0).unwrap();
    link.wait(Interest::READABLE, Some(SystemClock.now()))
        .unwrap();
    assert!(!link.is_connected(), "no socket is there yet");
    for round in 0..2 {
        let listener = UnixListener::bind(&place.0).unwrap();
        std::thread::scope(|scope| {
            let sent = of_lengths(&[60 + round]);
            let bytes = encoded(&sent);
            scope.spawn(move || listener.accept().unwrap().0.write_all(&bytes).unwrap());
            assert!(receive(&link, 1) == sent);
        });
        std::fs::remove_file(&place.0).unwrap();
        while link.is_connected() {
            link.wait(Interest::READABLE, limit()).unwrap();
            link.receive(&mut Vec::new(), 1).unwrap();
        }
    }
    assert_eq!(link.stats().connects, 2);
}

#[test]
fn a_socket_in_use_is_not_replaced() {
    let place = Place::new("in-use");
    let _link = FrameStream::listen(&place.0).unwrap();
    let error = FrameStream::listen(&place.0).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
}

#[test]
fn wake_ends_a_wait_without_a_peer() {
    let place = Place::new("wake");
    let link = FrameStream::listen(&place.0).unwrap();
    link.wake();
    link.wait(Interest::READABLE, limit()).unwrap();
}

/// E.g. QEMU, which serves one connection, and others wait for its end.
#[test]
fn a_listener_that_accepts_no_more_is_not_waited_for() {
    let place = Place::new("queue");
    let listener = UnixListener::bind(&place.0).unwrap();
    rustix::net::listen(&listener, 0).unwrap();
    let first = UnixStream::connect(&place.0).unwrap();
    let link = FrameStream::connect(&place.0).unwrap();
    assert_eq!(link.receive(&mut Vec::new(), 9).unwrap(), 0);
    assert!(!link.is_connected());
    assert!(FrameStream::listen(&place.0).is_err(), "it is in use");
    drop((listener.accept().unwrap(), first));
    link.receive(&mut Vec::new(), 9).unwrap();
    assert!(link.is_connected());
}

/// A thread that sends has looked up the peer, and sends when the receiving one has disconnected it.
#[test]
fn the_next_peer_gets_nothing_of_a_frame_of_the_former_one() {
    let place = Place::new("former");
    let link = FrameStream::listen(&place.0).unwrap();
    let _first = UnixStream::connect(&place.0).unwrap();
    link.receive(&mut Vec::new(), 9).unwrap();
    let former = link.peer().unwrap();
    link.disconnect(&former);
    let sent = of_lengths(&[MAX_FRAME, 60]);
    while link.output.lock().rest.is_empty() {
        link.output.lock().write(&former, &frame(&sent[0])).unwrap();
    }
    let mut second = UnixStream::connect(&place.0).unwrap();
    link.receive(&mut Vec::new(), 9).unwrap();
    link.transmit(&frame(&sent[1])).unwrap();
    let mut received = [0; PREFIX + 60];
    second.read_exact(&mut received).unwrap();
    assert_eq!(received[..], encoded(&sent[1..]));
}

/// Whether the first descriptor is readable.
fn is_ready(link: &FrameStream) -> bool {
    let mut fds = [PollFd::from_borrowed_fd(
        link.descriptors().unwrap()[0],
        PollFlags::IN,
    )];
    rustix::event::poll(&mut fds, Some(&rustix::event::Timespec::default())).unwrap() == 1
}

#[test]
fn the_descriptor_reports_a_peer_its_frames_and_its_end() {
    let place = Place::new("ready");
    let link = FrameStream::listen(&place.0).unwrap();
    let mut frames = Vec::new();
    for _ in 0..2 {
        assert!(!is_ready(&link));
        let mut far = UnixStream::connect(&place.0).unwrap();
        assert!(is_ready(&link), "a peer");
        link.receive(&mut frames, 9).unwrap();
        assert!(!is_ready(&link));
        let other = UnixStream::connect(&place.0).unwrap();
        assert!(!is_ready(&link), "the next peer has to wait");
        far.write_all(&encoded(&of_lengths(&[60]))).unwrap();
        assert!(is_ready(&link), "a frame");
        assert_eq!(link.receive(&mut frames, 9).unwrap(), 1);
        assert!(!is_ready(&link));
        drop(far);
        assert!(is_ready(&link), "the end");
        link.receive(&mut frames, 9).unwrap();
        assert!(is_ready(&link), "the next peer");
        link.receive(&mut frames, 9).unwrap();
        drop(other);
        link.receive(&mut frames, 9).unwrap();
    }
    assert_eq!(link.stats().disconnects, 4);
}

#[test]
fn the_descriptor_reports_room_while_a_packet_waits_for_it() {
    let (near, mut far) = pair();
    let sent = of_lengths(&[MAX_FRAME; 200]);
    let mut count = 0;
    while near.transmit(&frame(&sent[count])).is_ok() {
        assert!(near.unfinished.load(Ordering::Acquire) || !is_ready(&near));
        count += 1;
    }
    near.receive(&mut Vec::new(), 9).unwrap();
    assert!(!is_ready(&near), "the peer has read nothing");
    let expected = encoded(&sent[..count]);
    let mut bytes = vec![0; expected.len()];
    let (first, rest) = bytes.split_at_mut(expected.len() - MAX_FRAME);
    far.read_exact(first).unwrap();
    assert!(is_ready(&near));
    // This writes the rest of the last frame, and there is nothing more to write.
    near.receive(&mut Vec::new(), 9).unwrap();
    assert!(!is_ready(&near));
    far.read_exact(rest).unwrap();
    assert!(bytes == expected);
}

#[test]
fn attempts_to_connect_are_the_links_own_deadlines() {
    let place = Place::new("retries");
    let link = FrameStream::connect(&place.0).unwrap();
    link.receive(&mut Vec::new(), 9).unwrap();
    let first = link.deadline().unwrap();
    assert!(Some(first) <= limit());
    let listener = UnixListener::bind(&place.0).unwrap();
    link.receive(&mut Vec::new(), 9).unwrap();
    assert_eq!(link.deadline(), None, "connected");
    drop(listener.accept().unwrap());
    link.receive(&mut Vec::new(), 9).unwrap();
    let mut wake = [PollFd::from_borrowed_fd(
        link.descriptors().unwrap()[1],
        PollFlags::IN,
    )];
    rustix::event::poll(&mut wake, Some(&rustix::event::Timespec::default())).unwrap();
    assert!(
        wake[0].revents().contains(PollFlags::IN),
        "it is to be called"
    );
}

#[test]
fn one_thread_serves_the_stacks_of_several_streams() {
    /// With packets of usual size in place of frames.
    #[derive(Debug)]
    struct Packets(FrameStream);
    impl Link for Packets {
        fn capabilities(&self) -> Capabilities {
            Capabilities::new(1500)
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
        fn descriptors(&self) -> Option<[BorrowedFd<'_>; 2]> {
            self.0.descriptors()
        }
    }
    let builder = |link, address: &str| {
        let builder = crate::Stack::builder(Packets(link));
        builder.address(address.parse().unwrap())
    };
    let (mut drivers, mut clients) = (Vec::new(), Vec::new());
    for _ in 0..2 {
        let (near, far) = pair();
        let (stack, driver) = builder(near, "10.0.0.1/24").build_with_driver().unwrap();
        let echo = crate::TcpListener::bind(&stack, "10.0.0.1:7").unwrap();
        let far = FrameStream::from_stream(far).unwrap();
        clients.push((builder(far, "10.0.0.2/24").build().unwrap(), echo));
        drivers.push(driver);
    }
    std::thread::scope(|scope| {
        let driving = scope.spawn(move || crate::stack::Driver::run_all(drivers));
        let talking = clients.into_iter().map(|(stack, echo)| {
            scope.spawn(move || {
                let mut client = crate::TcpStream::connect(&stack, "10.0.0.1:7").unwrap();
                let mut server = echo.accept().unwrap().0;
                let sent: Vec<u8> = of_lengths(&[3_000_000]).remove(0);
                std::thread::scope(|scope| {
                    scope.spawn(|| client.write_all(&sent).unwrap());
                    let mut bytes = vec![0; sent.len()];
                    server.read_exact(&mut bytes).unwrap();
                    assert!(bytes == sent);
                });
            })
        });
        talking
            .collect::<Vec<_>>()
            .into_iter()
            .for_each(|one| one.join().unwrap());
        // The clients' ends are closed, so the links are gone.
        driving.join().unwrap().unwrap();
    });
}

#[test]
fn the_peer_may_be_trusted_with_checksums() {
    let (near, far) = UnixStream::pair().unwrap();
    let near = FrameStream::from_stream(near).unwrap().trust_checksums();
    (&far)
        .write_all(&encoded(&of_lengths(&[60, 40_000])))
        .unwrap();
    let mut frames = Vec::new();
    assert_eq!(near.receive(&mut frames, 9).unwrap(), 2);
    assert!(
        frames
            .iter()
            .all(|frame| frame.checksum == Checksum::Verified)
    );
}

#[test]
fn short_frames_share_no_memory_and_long_ones_are_where_they_were_read() {
    let (near, mut far) = pair();
    far.write_all(&encoded(&of_lengths(&[1514, 9014, 9014])))
        .unwrap();
    let mut frames = Vec::new();
    assert_eq!(near.receive(&mut frames, 9).unwrap(), 3);
    assert_eq!(frames[0].head.footprint(), 1514);
    let [first, second] = [&frames[1], &frames[2]].map(|frame| frame.head.as_ptr());
    assert_eq!(first.wrapping_add(9014 + PREFIX), second);
    // A long frame in two parts is read into memory of its own, once.
    let long = encoded(&of_lengths(&[60_000]));
    far.write_all(&long[..50_000]).unwrap();
    assert_eq!(near.receive(&mut frames, 9).unwrap(), 0);
    let memory = near
        .input
        .lock()
        .partial
        .as_mut()
        .unwrap()
        .memory
        .bytes_mut()
        .as_ptr();
    far.write_all(&long[50_000..]).unwrap();
    assert_eq!(near.receive(&mut frames, 9).unwrap(), 1);
    let frame = frames[3].head.as_ptr();
    assert!((memory..memory.wrapping_add(READ)).contains(&frame));
}

#[test]
fn a_super_frame_is_one_frame_if_the_peer_takes_it() {
    let bytes = [7; 40_000];
    let packet = frame(&bytes).segment(std::num::NonZeroU16::new(1460));
    let (near, _far) = pair();
    let refused = near.transmit(&packet);
    assert!(matches!(refused, Err(TransmitError::Refused(_))));
    let (near, mut far) = pair();
    near.large_frames().transmit(&packet).unwrap();
    let mut received = vec![0; PREFIX + bytes.len()];
    far.read_exact(&mut received).unwrap();
    assert!(received == encoded(&[bytes.to_vec()]));
}
