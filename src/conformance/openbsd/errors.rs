//! Two faults in one call: which of them is reported, in either system's order.
//!
//! Single faults are FreeBSD's `F03` and `F07`; the option as bytes, with its own faults, is
//! `sockopt`'s. Neighbours: `harness` for the buffers.

use super::args::DEFAULT;
use crate::conformance::{Outcome, World};
use crate::error::{Errno, Flavor};
use crate::splice::{Role, SpliceError, UnspliceError};

/// FreeBSD checks the source completely first; OpenBSD makes each check for both: listening, connected,
/// free.
pub(super) fn order(world: &World<'_>) -> Outcome {
    let Some(listening) = world.factory().listening() else {
        return Outcome::NotApplicable("a listening socket");
    };
    let listening = world.adopt(listening);
    let flavor = world.flavor();
    let check = |result: Result<_, SpliceError>, freebsd, openbsd| {
        let (error, errno) = match flavor {
            Flavor::FreeBsd => freebsd,
            Flavor::OpenBsd => openbsd,
        };
        let said = result.expect_err("two faults");
        assert_eq!((said, said.errno(flavor)), (error, errno));
    };
    let [client, busy] = world.connect(DEFAULT.buffers);
    let [drain, server] = world.connect(DEFAULT.buffers);
    let splice = busy.splice_to(&drain, world.options());
    let splice = splice.expect("nothing is wrong with these sockets");
    world.exchange(&client, &server, b"foo");
    check(
        busy.splice_to(&listening, world.options()),
        (SpliceError::Busy(Role::Source), Errno::EBUSY),
        (SpliceError::Listening(Role::Sink), Errno::EOPNOTSUPP),
    );
    if let Some(unconnected) = world.factory().unconnected() {
        let unconnected = world.adopt(unconnected);
        check(
            unconnected.splice_to(&listening, world.options()),
            (SpliceError::NotConnected(Role::Source), Errno::ENOTCONN),
            (SpliceError::Listening(Role::Sink), Errno::EOPNOTSUPP),
        );
        check(
            busy.splice_to(&unconnected, world.options()),
            (SpliceError::Busy(Role::Source), Errno::EBUSY),
            (SpliceError::NotConnected(Role::Sink), Errno::ENOTCONN),
        );
    }
    let not_spliced = [listening.unsplice(), drain.unsplice()];
    let said = not_spliced.map(|result| result.map_err(|error| error.errno(flavor)));
    let expected = match flavor {
        Flavor::FreeBsd => [Errno::EINVAL, Errno::ENOTCONN],
        Flavor::OpenBsd => [Errno::EPROTO, Errno::EPROTO],
    };
    assert_eq!(said, expected.map(Err));
    assert_eq!(drain.unsplice(), Err(UnspliceError::NotSpliced));
    assert_eq!((splice.bytes(), busy.spliced()), (3, 3), "nothing changed");
    world.exchange(&client, &server, b"bar");
    Outcome::Passed
}
