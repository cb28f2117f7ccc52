//! The semantics of calls: forms, buffers, time, flavors, threads.

use crate::{FREEBSD, OPENBSD, Process, Splice, abi, posed_stream, read};
use sosplice::Socket;
use sosplice::error::{Errno, Flavor, SoError};
use sosplice::protocol::SoState;
use sosplice::sockopt::{
    self, Abi, DescriptorError, Descriptors, Layout, Rights, SO_ERROR, SO_SPLICE, SOL_SOCKET,
    SockoptError,
};
use sosplice::splice::{Cause, Options, Role, SplicePool};
use std::sync::{Barrier, Mutex};
use std::thread;

const ALL: [Abi; 4] = [
    FREEBSD,
    OPENBSD,
    abi(Flavor::FreeBsd, Layout::Ilp32),
    abi(Flavor::OpenBsd, Layout::Ilp32),
];

// Row: forms of the option | the struct | none, an `int`, the struct | as the program's system
#[test]
fn forms_are_those_of_the_system() {
    for abi in ALL {
        for length in 0..40 {
            let process = Process::new(abi);
            let ((s, _a), (ss, _b)) = (process.connect(), process.connect());
            let mut bytes = Splice::to(ss).bytes(abi);
            bytes.resize(40, 0xee);
            let result = process.errno(process.set(s, Some(&bytes[..length])));
            let expected = match (abi.flavor, length) {
                (Flavor::FreeBsd, _) if length < abi.size() => Err(Errno::EINVAL),
                (Flavor::OpenBsd, 0) => Err(Errno::EPROTO),
                (Flavor::OpenBsd, 1..4) => Err(Errno::EINVAL),
                _ => Ok(()),
            };
            assert_eq!(result, expected, "{abi:?}, {length} bytes");
            assert_eq!(process.is_source(s), expected.is_ok());
        }
    }
}

#[test]
fn the_int_form_has_no_limit_and_no_timeout() {
    let process = Process::new(OPENBSD);
    let ((s, user), (ss, server)) = (process.connect(), process.connect());
    let limited = Splice {
        fd: ss,
        max: 1,
        idle: (1, 0),
    };
    // The same bytes, without the last one.
    let bytes = limited.bytes(OPENBSD);
    assert_eq!(process.set(s, Some(&bytes[..31])), Ok(()));
    process.sleep(3_600_000);
    user.send(b"all of it").unwrap();
    process.run();
    assert_eq!(read(&server), b"all of it");
    assert!(process.is_source(s));
}

#[test]
fn a_short_buffer_gets_a_part_of_the_counter() {
    for abi in ALL {
        let process = Process::new(abi);
        let ((s, user), (ss, _server)) = (process.connect(), process.connect());
        assert_eq!(process.splice(s, Splice::to(ss)), Ok(()));
        user.send(&[7; 300]).unwrap();
        process.run();
        let whole = 300_i64.to_ne_bytes();
        for length in 0..=16 {
            let mut out = [0xee; 16];
            let copied = sockopt::get_splice(&process.table, s, &mut out[..length], abi);
            let expected = length.min(8);
            assert_eq!(copied, Ok(expected));
            assert_eq!(out[..expected], whole[..expected]);
            assert_eq!(out[expected..], [0xee; 16][expected..]);
        }
        // It outlives the splice, and is the source's.
        assert_eq!(process.splice(s, Splice::UNSPLICE), Ok(()));
        assert_eq!((process.count(s), process.count(ss)), (300, 0));
    }
}

#[test]
fn so_error_is_a_number_and_read_once() {
    for abi in [FREEBSD, OPENBSD] {
        let process = Process::new(abi);
        let (s, peer) = process.connect();
        let get =
            |out: &mut [u8]| sockopt::getsockopt(&process.table, s, SOL_SOCKET, SO_ERROR, out, abi);
        let mut out = [0xee; 6];
        assert_eq!(get(&mut out), Ok(4));
        assert_eq!(out, [0, 0, 0, 0, 0xee, 0xee]);
        peer.abort();
        assert_eq!(get(&mut out), Ok(4));
        assert_eq!(out[..4], 54_i32.to_ne_bytes());
        process.socket(s).end().set_error(SoError::ConnectionReset);
        assert_eq!(get(&mut out[..2]), Ok(2), "cleared all the same");
        assert_eq!(get(&mut out), Ok(4));
        assert_eq!(out[..4], [0; 4]);
    }
}

#[test]
fn other_options_are_unknown() {
    for abi in ALL {
        let process = Process::new(abi);
        let (s, _peer) = process.connect();
        let file = process.table.insert_file().unwrap();
        let set = |fd, level, name| {
            let (table, options) = (&process.table, Options::default());
            sockopt::setsockopt(table, fd, level, name, None, abi, &options)
        };
        let get = |fd, level, name| {
            sockopt::getsockopt(&process.table, fd, level, name, &mut [0; 8], abi).map(drop)
        };
        let to_set = [(SOL_SOCKET, SO_ERROR), (SOL_SOCKET, 4), (6, SO_SPLICE)];
        let to_get = [
            (SOL_SOCKET, 0),
            (SOL_SOCKET, 4),
            (6, SO_SPLICE),
            (6, SO_ERROR),
        ];
        for (level, name) in to_set {
            let unknown = Err(SockoptError::UnknownOption { level, name });
            assert_eq!(set(s, level, name), unknown);
            let result = process.errno(set(file, level, name));
            assert_eq!(result, Err(Errno::ENOTSOCK));
        }
        for (level, name) in to_get {
            let unknown = get(s, level, name);
            assert_eq!(unknown, Err(SockoptError::UnknownOption { level, name }));
            assert_eq!(process.errno(unknown), Err(Errno::ENOPROTOOPT));
            assert_eq!(process.errno(get(63, level, name)), Err(Errno::EBADF));
        }
        assert_eq!(get(s, SOL_SOCKET, SO_SPLICE), Ok(()));
    }
}

// Row: `sp_idle`, while bytes move | ends all the same | goes on | as the program's system
#[test]
fn idle_is_a_lifetime_on_freebsd_and_idle_on_openbsd() {
    for (abi, goes_on) in ALL.map(|abi| (abi, abi.flavor == Flavor::OpenBsd)) {
        let process = Process::new(abi);
        let ((s, user), (ss, server)) = (process.connect(), process.connect());
        let half_a_second = Splice {
            idle: (0, 500_000),
            ..Splice::to(ss)
        };
        assert_eq!(process.splice(s, half_a_second), Ok(()));
        user.send(&[7; 128]).unwrap();
        process.sleep(400);
        user.send(&[7; 128]).unwrap();
        process.run();
        process.sleep(150);
        assert_eq!(process.is_source(s), goes_on, "{abi:?}");
        assert_eq!(read(&server).len(), 256);
        process.sleep(400);
        assert!(
            !process.is_source(s),
            "{abi:?}: nothing moved for half a second"
        );
        // F06: the next byte is the user's.
        user.send(b"x").unwrap();
        process.run();
        let cause = if goes_on {
            Cause::Idle
        } else {
            Cause::Lifetime
        };
        let socket = process.socket(s);
        assert_eq!(
            socket.splice_end(Role::Source).map(|end| end.cause),
            Some(cause)
        );
        let left = socket.take_error().map(|error| error.errno());
        assert_eq!(left, goes_on.then_some(Errno::ETIMEDOUT));
        assert_eq!((read(&socket), read(&server)), (b"x".to_vec(), vec![]));
    }
}

/// The program's system applies to the call, the source's flavor to the splice.
#[test]
fn a_call_has_its_programs_flavor_and_a_splice_its_sources() {
    for (caller, source) in [(FREEBSD, Flavor::OpenBsd), (OPENBSD, Flavor::FreeBsd)] {
        let process = Process::new(caller);
        let ((s, user), (ss, _server)) = (process.connect(), process.connect());
        process.socket(s).set_flavor(source);
        let timed = Splice {
            idle: (1, 0),
            ..Splice::to(ss)
        };
        assert_eq!(process.splice(s, timed), Ok(()));
        process.sleep(1000);
        let socket = process.socket(s);
        let cause = socket.splice_end(Role::Source).map(|end| end.cause);
        let expected = match caller.flavor {
            Flavor::FreeBsd => Cause::Lifetime,
            _ => Cause::Idle,
        };
        assert_eq!(cause, Some(expected));
        assert_eq!(socket.take_error().is_some(), source == Flavor::OpenBsd);
        let errno = match caller.flavor {
            Flavor::FreeBsd => Errno::ENOTCONN,
            _ => Errno::EPROTO,
        };
        assert_eq!(process.splice(s, Splice::UNSPLICE), Err(errno));
        drop(user);

        // The order is the program's too.
        let (unconnected, posed) = posed_stream();
        posed.pose(SoState::Unconnected);
        unconnected.set_flavor(source);
        let unconnected = process.table.insert(unconnected).unwrap();
        let listening = process.posed(SoState::Listening);
        let errno = match caller.flavor {
            Flavor::FreeBsd => Errno::ENOTCONN,
            _ => Errno::EOPNOTSUPP,
        };
        let result = process.splice(unconnected, Splice::to(listening));
        assert_eq!(result, Err(errno));
    }
}

#[test]
fn settings_missing_in_the_option_come_from_the_defaults() {
    let process = Process::new(FREEBSD);
    let ((s, user), (ss, server)) = (process.connect(), process.connect());
    // The option has no limit and no timeout.
    let defaults = Options::default()
        .pool(process.pool.clone())
        .forward_eof(true)
        .limit(1)
        .lifetime(std::time::Duration::from_secs(1))
        .idle(std::time::Duration::from_secs(1));
    let bytes = Splice::to(ss).bytes(FREEBSD);
    let splice = sockopt::set_splice(&process.table, s, Some(&bytes), FREEBSD, &defaults);
    let splice = splice.unwrap().expect("a handle");
    assert_eq!(splice.end(), None);
    process.sleep(5000);
    user.send(b"hello").unwrap();
    user.close();
    process.run();
    assert_eq!(read(&server), b"hello");
    assert_eq!(server.recv(&mut [0]).unwrap(), 0, "the end of the stream");
}

#[test]
fn a_failed_call_does_not_affect_a_running_splice() {
    for abi in ALL {
        let process = Process::new(abi);
        let ((s, user), (ss, server)) = (process.connect(), process.connect());
        let limited = Splice {
            max: 10,
            ..Splice::to(ss)
        };
        assert_eq!(process.splice(s, limited), Ok(()));
        user.send(b"12345678").unwrap();
        process.run();
        let before = process.trace();
        assert_eq!(process.splice(s, Splice::to(ss)), Err(Errno::EBUSY));
        assert_eq!(process.splice(ss, Splice::to(99)), Err(Errno::EBADF));
        assert_eq!(process.trace(), before);
        user.send(b"90abc").unwrap();
        process.run();
        assert_eq!(
            (process.count(s), read(&server)),
            (10, b"1234567890".to_vec())
        );
        assert_eq!(read(&process.socket(s)), b"abc");
    }
}

/// A splice does not keep a socket open, and a number is resolved at the time of the call.
#[test]
fn closing_a_descriptor_ends_the_splice() {
    let process = Process::new(OPENBSD);
    let ((s, user), (ss, _server)) = (process.connect(), process.connect());
    assert_eq!(process.splice(s, Splice::to(ss)), Ok(()));
    process.table.close(ss).unwrap();
    process.run();
    assert!(!process.is_source(s));
    let (reused, _other) = process.connect();
    assert_eq!(reused, ss);
    assert_eq!(process.splice(s, Splice::to(reused)), Ok(()));
    drop(user);
}

#[test]
fn a_socket_can_be_spliced_to_itself() {
    let process = Process::new(FREEBSD);
    let (echo, user) = process.connect();
    assert_eq!(process.splice(echo, Splice::to(echo)), Ok(()));
    user.send(b"echo").unwrap();
    process.run();
    assert_eq!(read(&user), b"echo");
}

#[test]
fn of_two_threads_that_unsplice_one_succeeds() {
    for (abi, errno) in [(FREEBSD, Errno::ENOTCONN), (OPENBSD, Errno::EPROTO)] {
        let process = Process::new(abi);
        let ((s, _user), (ss, _server)) = (process.connect(), process.connect());
        let threads = SplicePool::builder().workers(1).build();
        let defaults = Options::default().pool(threads);
        let set = |splice: Splice| {
            let bytes = splice.bytes(abi);
            let set = sockopt::set_splice(&process.table, s, Some(&bytes), abi, &defaults);
            process.errno(set).map(drop)
        };
        for _ in 0..200 {
            assert_eq!(set(Splice::to(ss)), Ok(()));
            let start = Barrier::new(2);
            let unsplice = || {
                start.wait();
                set(Splice::UNSPLICE)
            };
            let mut results = thread::scope(|scope| {
                let threads = [scope.spawn(unsplice), scope.spawn(unsplice)];
                threads.map(|thread| thread.join().unwrap())
            });
            results.sort_by_key(Result::is_err);
            assert_eq!(results, [Ok(()), Err(errno)]);
        }
    }
}

/// A custom table, in which another thread replaces the socket of a number.
struct Changing {
    sockets: Mutex<Vec<Socket>>,
    asked: Mutex<Vec<(i32, Rights)>>,
}

impl Descriptors for Changing {
    fn get(&self, fd: i32, need: Rights) -> Result<Socket, DescriptorError> {
        self.asked.lock().unwrap().push((fd, need));
        let next = self.sockets.lock().unwrap().pop();
        next.ok_or(DescriptorError::BadDescriptor)
    }
}

#[test]
fn the_socket_that_has_the_right_is_the_one_that_is_spliced() {
    let process = Process::new(FREEBSD);
    let [(first, _a), (second, _b), (sink, _c)] = [(); 3].map(|()| process.connect());
    let [first, second, sink] = [first, second, sink].map(|fd| process.socket(fd));
    let table = Changing {
        sockets: Mutex::new(vec![sink, second.clone(), first.clone()]),
        asked: Mutex::default(),
    };
    let defaults = Options::default().pool(process.pool.clone());
    let bytes = Splice::to(8).bytes(FREEBSD);
    let set = sockopt::set_splice(&table, 7, Some(&bytes), FREEBSD, &defaults);
    assert_eq!(set.map(drop), Ok(()));
    let is_source = [&first, &second].map(|socket| socket.end().is_diverted(Role::Source));
    assert_eq!(is_source, [false, true]);
    let asked = [
        (7, Rights::SETSOCKOPT),
        (7, Rights::SETSOCKOPT | Rights::RECV),
        (8, Rights::SEND),
    ];
    assert_eq!(*table.asked.lock().unwrap(), asked);
}
