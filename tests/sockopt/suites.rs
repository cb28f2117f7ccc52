//! The cases of the systems' own suites that are about calls: FreeBSD's F03, F05, F10, OpenBSD's
//! `error` ones, by name.

use crate::{FREEBSD, OPENBSD, Process, Splice, abi, read};
use sosplice::error::Errno;
use sosplice::protocol::SoState;
use sosplice::sockopt::{self, Layout, SO_ERROR, SOL_SOCKET};

/// F03 `splice_error`
#[test]
fn f03_splice_error() {
    for layout in [Layout::Lp64, Layout::Ilp32] {
        let process = Process::new(abi(FREEBSD.flavor, layout));
        let ((left, _a), (right, _b)) = (process.connect(), process.connect());
        let (third, _c) = process.connect();
        let file = process.table.insert_file().unwrap();
        let closed = 23;
        let unix = process.posed(SoState::NotAStream);
        let unconnected = process.posed(SoState::Unconnected);

        let negative = Splice {
            max: -3,
            ..Splice::to(right)
        };
        assert_eq!(process.splice(left, negative), Err(Errno::EINVAL));
        let unsplice = || process.splice(left, Splice::UNSPLICE);
        assert_eq!(unsplice(), Err(Errno::ENOTCONN), "never spliced");
        assert_eq!(process.splice(left, Splice::to(right)), Ok(()));
        assert_eq!(unsplice(), Ok(()));
        assert_eq!(unsplice(), Err(Errno::ENOTCONN), "twice");
        assert_eq!(process.splice(left, Splice::to(right)), Ok(()));
        let answers = [
            (left, third, Errno::EBUSY),
            (third, right, Errno::EBUSY),
            (third, file, Errno::ENOTSOCK),
            (third, closed, Errno::EBADF),
            (third, unix, Errno::EPROTONOSUPPORT),
            (unix, third, Errno::EPROTONOSUPPORT),
            (third, unconnected, Errno::ENOTCONN),
            (unconnected, third, Errno::ENOTCONN),
        ];
        for (source, sink, errno) in answers {
            let splice = process.splice(source, Splice::to(sink));
            assert_eq!(splice, Err(errno), "{source} to {sink}");
        }
        // Only the source can be unspliced.
        let at_the_sink = process.splice(right, Splice::UNSPLICE);
        assert_eq!(at_the_sink, Err(Errno::ENOTCONN));
    }
}

/// F05 `splice_limit_bytes`: 129 is not a limit that any buffer has.
#[test]
fn f05_splice_limit_bytes() {
    let process = Process::new(FREEBSD);
    let ((left, user), (right, server)) = (process.connect(), process.connect());
    let limited = Splice {
        max: 129,
        ..Splice::to(right)
    };
    assert_eq!(process.splice(left, limited), Ok(()));
    user.send(&[7; 128]).unwrap();
    process.run();
    assert_eq!((process.count(left), read(&server).len()), (128, 128));
    user.send(b"ab").unwrap();
    process.run();
    assert_eq!((process.count(left), read(&server)), (129, b"a".to_vec()));
    assert_eq!(read(&process.socket(left)), b"b");
    assert_eq!(error(&process, left), 0, "FreeBSD ends silently");
    assert!(!process.is_source(left));
}

/// F10 `splice_resplice`
#[test]
fn f10_splice_resplice() {
    let process = Process::new(FREEBSD);
    let ((left, user), (right, server)) = (process.connect(), process.connect());
    for _ in 0..3 {
        assert_eq!(process.splice(left, Splice::to(right)), Ok(()));
        assert_eq!(process.count(left), 0);
        user.send(b"x").unwrap();
        process.run();
        assert_eq!((process.count(left), read(&server)), (1, b"x".to_vec()));
        assert_eq!(process.splice(left, Splice::UNSPLICE), Ok(()));
        assert_eq!(process.count(left), 1);
    }
}

/// `SO_ERROR`, read and cleared.
fn error(process: &Process, fd: i32) -> i32 {
    let mut bytes = [0xee; 4];
    let (table, abi) = (&process.table, process.abi);
    let length = sockopt::getsockopt(table, fd, SOL_SOCKET, SO_ERROR, &mut bytes, abi);
    assert_eq!(length, Ok(4));
    i32::from_ne_bytes(bytes)
}

/// The sequence of OpenBSD's relay: splice, wait, ask for the error and the count, splice again.
#[test]
fn openbsds_relay_splices_again_for_the_rest() {
    for layout in [Layout::Lp64, Layout::Ilp32] {
        let process = Process::new(abi(OPENBSD.flavor, layout));
        let ((left, user), (right, server)) = (process.connect(), process.connect());
        user.send(b"0123456789").unwrap();
        for expected in ["0123", "4567"] {
            let limited = Splice {
                max: 4,
                ..Splice::to(right)
            };
            assert_eq!(process.splice(left, limited), Ok(()));
            assert_eq!(process.count(left), 4);
            assert_eq!(error(&process, left), Errno::EFBIG as i32);
            assert_eq!(error(&process, left), 0);
            assert_eq!(read(&server), expected.as_bytes());
        }
        // The former limit does not apply any more.
        assert_eq!(
            process.errno(process.set(left, Some(&right.to_ne_bytes()))),
            Ok(())
        );
        user.send(b"more").unwrap();
        user.close();
        process.run();
        assert_eq!(
            (process.count(left), read(&server)),
            (6, b"89more".to_vec())
        );
        assert_eq!(
            error(&process, left),
            0,
            "the end of the stream is no error"
        );
        assert_eq!(process.splice(left, Splice::UNSPLICE), Err(Errno::EPROTO));
    }
}

/// A connection, another one, and the int form: OpenBSD's `error` tests.
struct Errors {
    process: Process,
    s: i32,
    ss: i32,
    _peers: [sosplice::Socket; 2],
}

impl Errors {
    fn new() -> Errors {
        let process = Process::new(OPENBSD);
        let ((s, a), (ss, b)) = (process.connect(), process.connect());
        Errors {
            process,
            s,
            ss,
            _peers: [a, b],
        }
    }

    fn set(&self, fd: i32, value: Option<&[u8]>) -> Result<(), Errno> {
        self.process.errno(self.process.set(fd, value))
    }

    fn int(&self, fd: i32, sink: i32) -> Result<(), Errno> {
        self.set(fd, Some(&sink.to_ne_bytes()))
    }
}

#[test]
fn e01_args_ebusy() {
    let e = Errors::new();
    let (third, _c) = e.process.connect();
    assert_eq!(e.int(e.s, e.ss), Ok(()));
    assert_eq!(e.int(e.s, third), Err(Errno::EBUSY));
    assert_eq!(e.int(third, e.ss), Err(Errno::EBUSY));
}

// Row: `sp_idle` is no time (-1 s, 1000000 us) | accepted | `EINVAL` | `EINVAL`
#[test]
fn e05_args_idle_einval() {
    let splice = |abi, idle| {
        let process = Process::new(abi);
        let ((s, _a), (ss, _b)) = (process.connect(), process.connect());
        let max = 0;
        process.splice(s, Splice { fd: ss, max, idle })
    };
    for flavor in [FREEBSD.flavor, OPENBSD.flavor] {
        for layout in [Layout::Lp64, Layout::Ilp32] {
            let abi = abi(flavor, layout);
            for wrong in [(-1, -1), (-1, 0), (0, -1), (0, 1_000_000), (5, 1_000_000)] {
                assert_eq!(splice(abi, wrong), Err(Errno::EINVAL), "{abi:?} {wrong:?}");
            }
            for right in [(0, 0), (0, 1), (0, 999_999), (i64::from(i32::MAX), 0)] {
                assert_eq!(splice(abi, right), Ok(()), "{abi:?} {right:?}");
            }
        }
    }
    // Seconds of more than 31 bits, where the layout has them.
    for abi in [FREEBSD, OPENBSD, abi(OPENBSD.flavor, Layout::Ilp32)] {
        for seconds in [1 << 31, 1 << 32, 1 << 62, i64::MAX] {
            assert_eq!(splice(abi, (seconds, 999_999)), Ok(()), "{abi:?} {seconds}");
        }
    }
}

#[test]
fn e06_args_max_einval() {
    let e = Errors::new();
    let option = Splice {
        max: -1,
        ..Splice::to(e.ss)
    };
    assert_eq!(e.process.splice(e.s, option), Err(Errno::EINVAL));
}

#[test]
fn e07_args_splice_ebadf() {
    let e = Errors::new();
    assert_eq!(e.int(e.s, 23), Err(Errno::EBADF));
}

#[test]
fn e09_args_splice_einval() {
    let e = Errors::new();
    let unconnected = e.process.posed(SoState::Unconnected);
    let bytes = unconnected.to_ne_bytes();
    for length in 1..4 {
        assert_eq!(e.set(e.s, Some(&bytes[..length])), Err(Errno::EINVAL));
    }
    assert_eq!(e.set(e.s, Some(&bytes)), Err(Errno::ENOTCONN));
}

#[test]
fn e11_args_splice_enotsock() {
    let e = Errors::new();
    let file = e.process.table.insert_file().unwrap();
    assert_eq!(e.int(e.s, file), Err(Errno::ENOTSOCK));
    assert_eq!(e.int(file, e.s), Err(Errno::ENOTSOCK));
}

#[test]
fn e17_args_unix_eprotonosupport() {
    let e = Errors::new();
    let unix = [(); 2].map(|()| e.process.posed(SoState::NotAStream));
    assert_eq!(e.int(unix[0], unix[1]), Err(Errno::EPROTONOSUPPORT));
    // Before anything else is looked at.
    assert_eq!(e.int(unix[0], -1), Err(Errno::EPROTONOSUPPORT));
}

#[test]
fn e_args_unsplice_eproto() {
    let e = Errors::new();
    for value in [None, Some(&[][..]), Some(&[0xff; 4]), Some(&[0xff; 5])] {
        assert_eq!(e.set(e.s, value), Err(Errno::EPROTO), "{value:?}");
        assert_eq!(e.int(e.s, e.ss), Ok(()));
        assert_eq!(e.set(e.s, value), Ok(()), "{value:?}");
        assert!(!e.process.is_source(e.s));
    }
}
