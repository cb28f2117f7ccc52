//! Several stacks in one process, each with a link, a driver and tables of its own, and splices between
//! them.
//!
//! Every site is one stack of ours and its peer on the other end of a memory link. All sites have the
//! same two addresses and use the same ports, so a look-up by address alone would fail.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "tests"
)]

use sosplice::error::SoError;
use sosplice::link::memory;
use sosplice::splice::{Cause, Dispatch, Options, Splice, SplicePool};
use sosplice::stack::Driver;
use sosplice::{Stack, TcpListener, TcpStream};
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(30);
const SITES: usize = 4;
const BYTES: usize = 100_000;

/// A stack of ours and its peer.
struct Site {
    ours: Stack,
    peer: Stack,
    /// Where ours is dialled, and where its peer is.
    inside: TcpListener,
    outside: TcpListener,
    driver: Option<JoinHandle<()>>,
    end: Arc<AtomicBool>,
}

impl Site {
    fn new() -> Site {
        let (near, far) = memory::pair(memory::Config::default());
        let ours = Stack::builder(near).address("10.0.0.1/24".parse().unwrap());
        let (ours, mut driver) = ours.build_with_driver().unwrap();
        let peer = Stack::builder(far).address("10.0.0.2/24".parse().unwrap());
        let peer = peer.build().unwrap();
        let end = Arc::new(AtomicBool::new(false));
        let ended = end.clone();
        Site {
            inside: TcpListener::bind(&ours, "10.0.0.1:80").unwrap(),
            outside: TcpListener::bind(&peer, "10.0.0.2:80").unwrap(),
            driver: Some(thread::spawn(move || {
                // Dropped, a driver takes its stack down.
                while !ended.load(Ordering::Acquire) && run(&mut driver) {}
            })),
            ours,
            peer,
            end,
        }
    }

    /// The peer dials: its end, and ours.
    fn accepted(&self) -> (TcpStream, TcpStream) {
        let theirs = TcpStream::connect(&self.peer, self.inside.local_addr()).unwrap();
        (theirs, self.inside.accept().unwrap().0)
    }

    /// We dial the peer: our end, and its.
    fn dialled(&self) -> (TcpStream, TcpStream) {
        let to: SocketAddr = self.outside.local_addr();
        let ours = TcpStream::connect(&self.ours, to).unwrap();
        (ours, self.outside.accept().unwrap().0)
    }

    /// Ends our stack, as if its link had failed.
    fn pull(&mut self) {
        self.end.store(true, Ordering::Release);
        self.driver.take().unwrap().join().unwrap();
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Release);
    }
}

/// `false`: the stack has ended.
fn run(driver: &mut Driver) -> bool {
    match driver.poll() {
        Ok(true) => true,
        Ok(false) => {
            thread::yield_now();
            true
        }
        Err(_) => false,
    }
}

/// A connection that is accepted at one site and continues from another, spliced both ways.
struct Relay {
    client: TcpStream,
    server: TcpStream,
    /// Kept: the last handle of a socket closes it.
    between: [TcpStream; 2],
    splices: [Splice; 2],
}

impl Relay {
    fn new(from: &Site, to: &Site, options: &Options) -> Relay {
        let ((client, inner), (outer, server)) = (from.accepted(), to.dialled());
        client.set_read_timeout(Some(LIMIT)).unwrap();
        server.set_read_timeout(Some(LIMIT)).unwrap();
        let forward = inner.splice_to(&outer, options.clone()).unwrap();
        let back = outer.splice_to(&inner, options.clone()).unwrap();
        Relay {
            client,
            server,
            between: [inner, outer],
            splices: [forward, back],
        }
    }

    fn carries(&self, mark: u8) {
        carry(&self.client, &self.server, mark);
    }
}

/// Bytes of its own each way at the same time, and all of them arrive.
fn carry(client: &TcpStream, server: &TcpStream, mark: u8) {
    thread::scope(|scope| {
        for (mut from, mut to, mark) in [(client, server, mark), (server, client, !mark)] {
            scope.spawn(move || from.write_all(&bytes(mark)).unwrap());
            scope.spawn(move || {
                let mut got = vec![0; BYTES];
                to.read_exact(&mut got).unwrap();
                assert!(got == bytes(mark), "of {mark}");
            });
        }
    });
}

/// Each side closes in turn, and the other gets the end.
fn end(mut client: &TcpStream, mut server: &TcpStream) {
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(server.read(&mut [0]).unwrap(), 0);
    server.shutdown(Shutdown::Write).unwrap();
    assert_eq!(client.read(&mut [0]).unwrap(), 0);
}

fn bytes(mark: u8) -> Vec<u8> {
    let mut state = u32::from(mark) + 1;
    let next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    std::iter::repeat_with(next).take(BYTES).collect()
}

/// From every site to every other.
fn all_ways(sites: &[Site], options: &Options) -> Vec<(usize, usize, Relay)> {
    let mut relays = Vec::new();
    for (from, source) in sites.iter().enumerate() {
        for (to, sink) in sites.iter().enumerate().filter(|(to, _)| *to != from) {
            relays.push((from, to, Relay::new(source, sink, options)));
        }
    }
    relays
}

fn options(dispatch: Dispatch, pool: &SplicePool) -> Options {
    Options::default()
        .forward_eof(true)
        .dispatch(dispatch)
        .pool(pool.clone())
}

fn from_all_to_all(dispatch: Dispatch) {
    let sites: Vec<Site> = std::iter::repeat_with(Site::new).take(SITES).collect();
    let pool = SplicePool::builder().workers(2).build();
    let relays = all_ways(&sites, &options(dispatch, &pool));
    thread::scope(|scope| {
        for (mark, (_, _, relay)) in (0..).zip(&relays) {
            scope.spawn(move || relay.carries(mark));
        }
    });
    for site in &sites {
        // Each is the source of three relays and the sink of three.
        assert_eq!(site.ours.stats().connections, 2 * (SITES - 1));
    }
    assert_eq!(pool.splices().len(), 2 * relays.len());
    for (_, _, relay) in &relays {
        end(&relay.client, &relay.server);
        for (splice, socket) in relay.splices.iter().zip(&relay.between) {
            let end = splice.wait_timeout(LIMIT).unwrap();
            assert_eq!((end.cause, end.bytes), (Cause::Eof, BYTES as u64));
            assert_eq!(socket.spliced(), BYTES as u64);
        }
    }
}

#[test]
fn splices_from_all_to_all_on_workers() {
    from_all_to_all(Dispatch::Worker);
}

#[test]
fn splices_from_all_to_all_in_the_drivers() {
    from_all_to_all(Dispatch::Direct);
}

#[test]
fn a_stack_that_ends_takes_its_own_splices_only() {
    for dispatch in [Dispatch::Worker, Dispatch::Direct] {
        let mut sites: Vec<Site> = std::iter::repeat_with(Site::new).take(SITES).collect();
        let pool = SplicePool::builder().workers(2).build();
        let relays = all_ways(&sites, &options(dispatch, &pool));
        sites[1].pull();
        for (mark, (from, to, relay)) in (0..).zip(&relays) {
            let [forward, back] = &relay.splices;
            let down = SoError::DriverDropped;
            let (first, second) = match (from, to) {
                (1, _) => (Cause::SourceError(down), Cause::SinkError(down)),
                (_, 1) => (Cause::SinkError(down), Cause::SourceError(down)),
                _ => {
                    assert!(!forward.is_ended() && !back.is_ended());
                    relay.carries(mark);
                    continue;
                }
            };
            assert_eq!(forward.wait_timeout(LIMIT).unwrap().cause, first);
            assert_eq!(back.wait_timeout(LIMIT).unwrap().cause, second);
            // The socket on the other side can be used as usual again.
            let (ours, theirs) = match from {
                1 => (&relay.between[1], &relay.server),
                _ => (&relay.between[0], &relay.client),
            };
            (&*ours).write_all(b"sorry").unwrap();
            let mut got = [0; 5];
            (&*theirs).read_exact(&mut got).unwrap();
            assert_eq!(&got, b"sorry");
        }
    }
}

/// Through every stack in turn: each forwards bytes and the end to the next.
#[test]
fn a_chain_through_all_of_them() {
    for dispatch in [Dispatch::Worker, Dispatch::Direct] {
        let sites: Vec<Site> = std::iter::repeat_with(Site::new).take(SITES).collect();
        let pool = SplicePool::builder().workers(2).build();
        let (client, mut last) = sites[0].accepted();
        client.set_read_timeout(Some(LIMIT)).unwrap();
        let mut splices = Vec::new();
        let mut kept = Vec::new();
        for site in &sites[1..] {
            // To the site's peer, which comes back by another connection.
            let (out, at_peer) = site.dialled();
            let (from_peer, back) = site.accepted();
            for (source, sink) in [(&last, &out), (&at_peer, &from_peer)] {
                for (source, sink) in [(source, sink), (sink, source)] {
                    let options = options(dispatch, &pool);
                    splices.push(source.splice_to(sink, options).unwrap());
                }
            }
            kept.extend([last, out, at_peer, from_peer]);
            last = back;
        }
        last.set_read_timeout(Some(LIMIT)).unwrap();
        carry(&client, &last, 1);
        end(&client, &last);
        for splice in &splices {
            let end = splice.wait_timeout(LIMIT).unwrap();
            assert_eq!((end.cause, end.bytes), (Cause::Eof, BYTES as u64));
        }
    }
}
