//! F02 `splice_capsicum`: descriptors with reduced rights.

use crate::{FREEBSD, OPENBSD, Process, Splice};
use sosplice::Socket;
use sosplice::error::{Errno, Flavor};
use sosplice::sockopt::{Abi, Rights};

/// Two connections, of which the process has one end each, and their descriptors.
struct Pairs {
    process: Process,
    left: i32,
    right: i32,
    _peers: [Socket; 2],
}

fn pairs(abi: Abi) -> Pairs {
    let process = Process::new(abi);
    let ((left, a), (right, b)) = (process.connect(), process.connect());
    let _peers = [a, b];
    Pairs {
        process,
        left,
        right,
        _peers,
    }
}

impl Pairs {
    /// The left descriptor, with these rights only.
    fn left(&self, rights: Rights) -> i32 {
        self.process.table.dup(self.left, rights).unwrap()
    }
}

// Row: the source's descriptor lacks `CAP_RECV` | `ENOTCAPABLE` | - | `ENOTCAPABLE` by the option
#[test]
fn f02_capsicum_a_a_source_needs_recv() {
    let pairs = pairs(FREEBSD);
    let to_right = Splice::to(pairs.right);
    let poor = pairs.left(Rights::SEND | Rights::SETSOCKOPT);
    assert_eq!(
        pairs.process.splice(poor, to_right),
        Err(Errno::ENOTCAPABLE)
    );
    let enough = pairs.left(Rights::RECV | Rights::SETSOCKOPT);
    assert_eq!(pairs.process.splice(enough, to_right), Ok(()));
}

#[test]
fn f02_capsicum_b_the_same_descriptor_is_a_sink() {
    let pairs = pairs(FREEBSD);
    let poor = pairs.left(Rights::SEND | Rights::SETSOCKOPT);
    let splice = |fd| pairs.process.splice(pairs.right, Splice::to(fd));
    assert_eq!(splice(poor), Ok(()));
    assert_eq!(pairs.process.splice(pairs.right, Splice::UNSPLICE), Ok(()));
    assert_eq!(splice(pairs.left(Rights::SEND)), Ok(()));
}

// Row: the sink's descriptor lacks `CAP_SEND` | `ENOTCAPABLE` | - | `ENOTCAPABLE` by the option
#[test]
fn f02_capsicum_c_a_sink_needs_send() {
    let pairs = pairs(FREEBSD);
    let poor = pairs.left(Rights::all() - Rights::SEND);
    let splice = pairs.process.splice(pairs.right, Splice::to(poor));
    assert_eq!(splice, Err(Errno::ENOTCAPABLE));
}

#[test]
fn f02_capsicum_d_the_counter_needs_getsockopt() {
    let pairs = pairs(FREEBSD);
    assert_eq!(pairs.process.count(pairs.left(Rights::GETSOCKOPT)), 0);
    let poor = pairs.left(Rights::all() - Rights::GETSOCKOPT);
    let table = &pairs.process.table;
    let read = sosplice::sockopt::get_splice(table, poor, &mut [0; 8], FREEBSD);
    assert_eq!(pairs.process.errno(read), Err(Errno::ENOTCAPABLE));
}

#[test]
fn f02_capsicum_e_unsplicing_needs_only_setsockopt() {
    let pairs = pairs(FREEBSD);
    let to_right = Splice::to(pairs.right);
    assert_eq!(pairs.process.splice(pairs.left, to_right), Ok(()));
    let unsplice = |rights| pairs.process.splice(pairs.left(rights), Splice::UNSPLICE);
    let others = Rights::all() - Rights::SETSOCKOPT;
    assert_eq!(unsplice(others), Err(Errno::ENOTCAPABLE));
    assert_eq!(unsplice(Rights::SETSOCKOPT), Ok(()));
}

#[test]
fn openbsd_asks_for_no_rights() {
    let pairs = pairs(OPENBSD);
    let [source, sink] = [pairs.left(Rights::empty()), {
        let table = &pairs.process.table;
        table.dup(pairs.right, Rights::empty()).unwrap()
    }];
    assert_eq!(pairs.process.splice(source, Splice::to(sink)), Ok(()));
    assert_eq!(pairs.process.count(source), 0);
    assert_eq!(pairs.process.splice(source, Splice::UNSPLICE), Ok(()));
    // A custom table may return it: the number is OpenBSD's EPERM.
    assert_eq!(Errno::ENOTCAPABLE.number(Flavor::OpenBsd), 1);
}
