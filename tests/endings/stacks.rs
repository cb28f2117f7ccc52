//! Stacks, their drivers and their links.

use super::*;
use sosplice::error::SoError;
use sosplice::link::{Capabilities, Frame, Interest, Link, Packet, ReceiveError, TransmitError};
use sosplice::socket::poller::{Events, Mode, Poller, Token};
use sosplice::splice::{Cause, Dispatch, Options};
use sosplice::{ConditionalListener, Intercept, local};
use std::io::{self, ErrorKind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// A call of a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Call {
    Receive,
    Transmit,
    Wait,
}

/// A link that can be made to fail, in one kind of call.
#[derive(Debug, Clone)]
struct Failing {
    link: Arc<memory::MemoryLink>,
    fails: Call,
    failed: Arc<AtomicBool>,
}

impl Failing {
    fn new(link: memory::MemoryLink, fails: Call) -> Failing {
        Failing {
            link: Arc::new(link),
            fails,
            failed: Arc::default(),
        }
    }

    fn fail(&self) {
        self.failed.store(true, Ordering::Release);
        self.link.wake();
    }

    fn look(&self, call: Call) -> io::Result<()> {
        match self.failed.load(Ordering::Acquire) && self.fails == call {
            true => Err(io::Error::other("the card was pulled")),
            false => Ok(()),
        }
    }
}

impl Link for Failing {
    fn capabilities(&self) -> Capabilities {
        self.link.capabilities()
    }
    fn receive(&self, frames: &mut Vec<Frame>, max: usize) -> Result<usize, ReceiveError> {
        self.look(Call::Receive).map_err(ReceiveError::Gone)?;
        self.link.receive(frames, max)
    }
    fn transmit(&self, packet: &Packet<'_>) -> Result<(), TransmitError> {
        self.look(Call::Transmit).map_err(TransmitError::Gone)?;
        self.link.transmit(packet)
    }
    fn wait(&self, interest: Interest, deadline: Option<Instant>) -> io::Result<()> {
        self.look(Call::Wait)?;
        self.link.wait(interest, deadline)?;
        self.look(Call::Wait)
    }
    fn wake(&self) {
        self.link.wake();
    }
}

#[test]
fn sockets_keep_their_stack_running() {
    let (server, client) = stacks();
    let (far, near) = connection(&server, &client);
    let (a, b) = local::pair();
    far.splice_to(&a, Options::default()).unwrap();
    drop((server, client));
    near.send(b"still").unwrap();
    assert_eq!(b.recv_chain(5).unwrap().to_vec(), b"still");
}

#[test]
fn listeners_keep_their_stack_running() {
    let (server, client) = stacks();
    let listener = TcpListener::bind(&server, "10.0.0.1:80").unwrap();
    drop(server);
    let near = TcpStream::connect(&client, "10.0.0.1:80").unwrap();
    let (far, _) = listener.accept().unwrap();
    near.send(b"still").unwrap();
    assert_eq!(far.recv_chain(5).unwrap().to_vec(), b"still");
}

#[test]
fn a_stack_without_handles_delivers_and_ends() {
    let (left, right) = memory::pair(memory::Config::default());
    let (left, right) = [left, right]
        .map(|link| Failing::new(link, Call::Wait))
        .into();
    let build = |link: &Failing, address: &str| {
        let builder = Stack::builder(link.clone()).address(address.parse().unwrap());
        builder.build().unwrap()
    };
    let (server, client) = (build(&left, "10.0.0.1/24"), build(&right, "10.0.0.2/24"));
    let (far, near) = connection(&server, &client);
    near.send(&[7; 100_000]).unwrap();
    drop((near, client));
    assert_eq!(far.recv_chain(1).unwrap().len(), 1);
    let mut all = 1;
    loop {
        match far.recv_chain(100_000).unwrap().len() {
            0 => break,
            some => all += some,
        }
    }
    assert_eq!(all, 100_000);
    drop((far, server));
    eventually("both drivers let their links go", || {
        Arc::strong_count(&left.failed) + Arc::strong_count(&right.failed) == 2
    });
}

/// The error of a stack that is down has the reason.
#[track_caller]
fn says(error: &io::Error, down: SoError) {
    assert_eq!(error.kind(), ErrorKind::NetworkDown);
    assert_eq!(error.to_string(), down.to_string());
}

/// Everything that waits on a stack, and its error.
fn all_waits_end_with_the_error(
    end: impl FnOnce(),
    down: SoError,
    stack: &Stack,
    near: &TcpStream,
) {
    let listener = TcpListener::bind(stack, "10.0.0.1:81").unwrap();
    let deciding = ConditionalListener::intercept(stack, Intercept::all(), 10).unwrap();
    let (a, b) = local::pair();
    let out = near.splice_to(&a, Options::default()).unwrap();
    let direct = Options::default().dispatch(Dispatch::Direct);
    let back = a.splice_to(near, direct).unwrap();
    let poller = Poller::new();
    poller
        .add(&listener, Token(1), Interest::READABLE, Mode::Level)
        .unwrap();
    poller
        .add(near, Token(2), Interest::READABLE, Mode::Edge)
        .unwrap();
    let dialling = TcpSocket::new(stack)
        .start("10.0.0.77:1".parse().unwrap())
        .unwrap();
    thread::scope(|scope| {
        let accepting = scope.spawn(|| listener.accept().map(drop).unwrap_err());
        let deciding = scope.spawn(|| deciding.pending().map(drop).unwrap_err());
        let connecting = scope.spawn(|| dialling.wait_connected(None).unwrap_err());
        end();
        for waiting in [accepting, deciding] {
            says(&waiting.join().unwrap(), down);
        }
        let error = io::Error::from(connecting.join().unwrap());
        says(&error, down);
    });
    let cause = out.wait_timeout(LIMIT).unwrap().cause;
    assert_eq!(cause, Cause::SourceError(down));
    assert_eq!(
        back.wait_timeout(LIMIT).unwrap().cause,
        Cause::SinkError(down)
    );
    let mut events = Events::default();
    let mut seen = [false; 3];
    while !(seen[1] && seen[2]) {
        poller.wait(&mut events, Some(LIMIT)).unwrap();
        assert!(!events.is_empty(), "an event is missing: {seen:?}");
        events.iter().for_each(|event| seen[event.token().0] = true);
    }
    says(
        &TcpSocket::new(stack)
            .start("10.0.0.2:1".parse().unwrap())
            .unwrap_err(),
        down,
    );
    says(&TcpListener::bind(stack, "10.0.0.1:82").unwrap_err(), down);
    says(&near.recv(&mut [0; 9]).unwrap_err(), down);
    b.send(b"alive").unwrap();
    assert_eq!(a.recv_chain(5).unwrap().to_vec(), b"alive");
}

#[test]
fn a_link_that_fails_ends_all_connections_and_reports_the_error() {
    bounded("users of a link that fails", || {
        for call in [Call::Receive, Call::Transmit, Call::Wait] {
            let (left, right) = memory::pair(memory::Config::default());
            let link = Failing::new(left, call);
            let stack = Stack::builder(link.clone()).address("10.0.0.1/24".parse().unwrap());
            let stack = stack.build().unwrap();
            let peer = Stack::builder(right).address("10.0.0.2/24".parse().unwrap());
            let peer = peer.build().unwrap();
            let (far, _near) = connection(&stack, &peer);
            all_waits_end_with_the_error(|| link.fail(), SoError::NetworkDown, &stack, &far);
            drop((far, stack));
            eventually("the driver has ended", || {
                Arc::strong_count(&link.failed) == 1
            });
        }
    });
}

#[test]
fn a_driver_that_is_dropped_ends_all() {
    let (left, right) = memory::pair(memory::Config::default());
    let stack = Stack::builder(left).address("10.0.0.1/24".parse().unwrap());
    let (stack, mut driver) = stack.build_with_driver().unwrap();
    let peer = Stack::builder(right).address("10.0.0.2/24".parse().unwrap());
    let peer = peer.build().unwrap();
    let listener = TcpListener::bind(&peer, "10.0.0.2:80").unwrap();
    let near = TcpSocket::new(&stack)
        .start("10.0.0.2:80".parse().unwrap())
        .unwrap();
    while near.wait_connected(Some(now())).is_err() {
        driver.poll().unwrap();
    }
    all_waits_end_with_the_error(move || drop(driver), SoError::DriverDropped, &stack, &near);
    drop(listener);
}

/// A driver that its author has dropped, by mistake maybe: nothing is wrong with the link.
#[test]
fn errors_of_a_dropped_driver_do_not_blame_the_link() {
    let (links, _far) = memory::queues(2, memory::Config::default());
    let stack = Stack::with_queues(links).address("10.0.0.1/24".parse().unwrap());
    let (stack, mut drivers) = stack.build_with_drivers().unwrap();
    let listener = TcpListener::bind(&stack, "10.0.0.1:80").unwrap();
    let to = "10.0.0.2:80".parse().unwrap();
    let [stream, other] = [(); 2].map(|()| TcpSocket::new(&stack).start(to).unwrap());
    drop(drivers.pop());
    let said = [
        drivers[0].poll().map(drop).unwrap_err(),
        stream.wait_connected(None).unwrap_err().into(),
        other.recv(&mut [0; 1]).map(drop).unwrap_err(),
        listener.accept().map(drop).unwrap_err(),
        TcpListener::bind(&stack, "10.0.0.1:81")
            .map(drop)
            .unwrap_err(),
        TcpSocket::new(&stack).start(to).map(drop).unwrap_err(),
    ];
    for error in said.map(|error| error.to_string()) {
        assert!(
            error.contains("a driver of the stack was dropped"),
            "{error}"
        );
        assert!(!error.contains("link"), "{error}");
    }
}
