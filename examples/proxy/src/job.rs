//! The whole job in one process:
//!
//! ```text
//! clients --link-- front stack [ relay ] back stack --link-- server
//! ```
//!
//! Each connection carries different bytes both ways at once; each end stops sending when it has
//! sent its own (half-close). A thread for each end of each direction makes or checks bytes.

use crate::arguments::{self, Arguments};
use crate::backends::{Balance, Spec};
use crate::pattern::{Digest, Print, Source};
use crate::relay::{Event, Means, Relay, Terms};
use crate::report;
use crate::services::{Offer, Services};
use crate::totals::Totals;
use crate::watch::Watch;
use anyhow::{Context, anyhow, bail};
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, unbounded};
use sosplice::clock::{Clock, SystemClock};
use sosplice::link::memory::{self, MemoryLink};
use sosplice::splice::SplicePool;
use sosplice::stack::Congestion;
use sosplice::{Stack, TcpListener, TcpStream};
use std::io::{self, IsTerminal};
use std::net::Shutdown;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// Default size of socket buffers in bytes: fits the nearer caches.
const BUFFER: usize = 512 * 1024;
const FRONT: &str = "10.0.1.2:80";
const SERVER: &str = "10.0.2.1:80";
/// Bytes that a receiver takes at a time.
const CHUNK: usize = 256 * 1024;
/// If no byte arrives for this time, the job has failed.
const STALL: Duration = Duration::from_secs(30);
/// How often progress is shown.
const TICK: Duration = Duration::from_millis(100);
/// Stack of a thread that makes or checks bytes.
const STACK_SIZE: usize = 256 * 1024;

/// Runs the job and prints the result.
pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let streams = 2 * u64::from(arguments.connections);
    let Some(expected) = arguments.bytes.0.checked_mul(streams) else {
        arguments::usage("more bytes than can be counted: give a smaller --bytes");
    };
    let buffer = arguments.buffer.unwrap_or(BUFFER);
    let network = Network::new(
        buffer,
        arguments.queues.unwrap_or(1).into(),
        arguments.congestion,
    )?;
    let pool = arguments.pool();
    println!("{}", headline(arguments, &pool, buffer));

    let shown = network.watch(&pool);
    shown.every(arguments.stats)?;
    let start = SystemClock.now();
    let (relaying, events) = network.relay(arguments, &pool)?;
    let (traffic, done) = Traffic::new(arguments.bytes.0);
    let service = listen(&network.server, SERVER, arguments.connections)?;
    let (connections, serving) = (arguments.connections, traffic.clone());
    let serving = spawn("serve", move || {
        let accept = |_| Ok(service.accept()?.0);
        serving.through((0..connections).map(accept), connections)
    })?;
    let connect = |_| Ok(TcpStream::connect(&network.client, FRONT)?);
    let up = traffic.through((0..connections).map(connect), 0)?;
    let found = watch(expected, traffic, &done).and_then(|()| {
        let down = join(serving)?;
        Ok((up.prints()?, down.prints()?))
    });
    let (up, down) = found.inspect_err(|_| {
        network.report();
    })?;
    let time = SystemClock.now() - start;
    events.send(Event::Stop(STALL)).ok();
    let (totals, _) = join(relaying)?;

    if arguments.stats.is_some() {
        shown.show();
    }
    print!("{}", report::table(&totals, Some(time)));
    let broken = network.report();
    // The server received the clients' bytes, and the other way round.
    let equal = equal(up.sent, down.received) + equal(down.sent, up.received);
    println!(
        "{equal} of {streams} digests are equal, {:.2} s",
        time.as_secs_f64()
    );
    let counted = totals.up.bytes + totals.down.bytes == expected;
    let right = equal as u64 == streams && counted && !broken && totals.cut_off == 0;
    Ok(if right {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn headline(arguments: &Arguments, pool: &SplicePool, buffer: usize) -> String {
    format!(
        "{} connections, {} bytes each way on each; {:?} dispatch, {} worker(s), buffers of {} bytes",
        arguments.connections,
        arguments.bytes.0,
        arguments.dispatch,
        pool.workers(),
        buffer,
    )
}

fn listen(stack: &Stack, at: &str, backlog: u16) -> anyhow::Result<TcpListener> {
    Ok(TcpListener::bind_with_backlog(stack, at, backlog.into())?)
}

/// Four stacks on two links.
struct Network {
    client: Stack,
    front: Stack,
    back: Stack,
    server: Stack,
}

impl Network {
    fn new(buffer: usize, queues: usize, congestion: Congestion) -> anyhow::Result<Network> {
        let stack = |links: Vec<MemoryLink>, address: &str| -> anyhow::Result<Stack> {
            let builder = Stack::with_queues(links)
                .address(address.parse()?)
                .congestion(congestion);
            Ok(builder.receive_buffer(buffer).send_buffer(buffer).build()?)
        };
        let (left, right) = memory::queues(queues, memory::Config::default());
        let (client, front) = (stack(left, "10.0.1.1/24")?, stack(right, "10.0.1.2/24")?);
        let (left, right) = memory::queues(queues, memory::Config::default());
        let (back, server) = (stack(left, "10.0.2.2/24")?, stack(right, "10.0.2.1/24")?);
        Ok(Network {
            client,
            front,
            back,
            server,
        })
    }

    fn relay(
        &self,
        arguments: &Arguments,
        pool: &SplicePool,
    ) -> anyhow::Result<(Relaying, Sender<Event>)> {
        let means = Means {
            dial: self.back.clone(),
            pool: pool.clone(),
        };
        let server = Offer {
            name: None,
            spec: Spec {
                address: SERVER.parse()?,
                weight: 1,
                limit: None,
            },
        };
        let services = Services::new([server], Balance::default());
        let listener = listen(&self.front, FRONT, arguments.connections)?;
        let (relay, events) = Relay::new(listener, means, Terms::default(), services);
        Ok((spawn("relay", move || Ok(relay.run()))?, events))
    }

    fn watch(&self, pool: &SplicePool) -> Watch {
        let proxy = [("front", &self.front), ("back", &self.back)];
        let stacks = proxy.map(|(name, stack)| (name.to_owned(), stack.clone()));
        Watch {
            stacks: stacks.into(),
            pool: pool.clone(),
        }
    }

    /// Prints the counters; `true` if an invariant was broken.
    fn report(&self) -> bool {
        let named = [
            ("client", &self.client),
            ("front", &self.front),
            ("back", &self.back),
            ("server", &self.server),
        ];
        for (name, stack) in named {
            println!("{}", report::counters(name, stack));
        }
        named.iter().any(|(_, stack)| stack.stats().broken > 0)
    }
}

/// Sends and receives on both ends of every connection.
#[derive(Clone)]
struct Traffic {
    bytes: u64,
    arrived: Arc<AtomicU64>,
    /// Disconnected when the last thread is done.
    working: Sender<()>,
}

type Task = JoinHandle<anyhow::Result<Print>>;
type Relaying = JoinHandle<anyhow::Result<(Totals, Instant)>>;

/// The threads of one side.
#[derive(Default)]
struct Ends {
    sending: Vec<Task>,
    receiving: Vec<Task>,
}

/// The digests of the threads of one side.
struct Prints {
    sent: Vec<Print>,
    received: Vec<Print>,
}

impl Ends {
    fn prints(self) -> anyhow::Result<Prints> {
        let all = |tasks: Vec<Task>| tasks.into_iter().map(join).collect::<Result<_, _>>();
        Ok(Prints {
            sent: all(self.sending)?,
            received: all(self.receiving)?,
        })
    }
}

impl Traffic {
    fn new(bytes: u64) -> (Traffic, Receiver<()>) {
        let (working, done) = unbounded();
        let arrived = Arc::default();
        let traffic = Traffic {
            bytes,
            arrived,
            working,
        };
        (traffic, done)
    }

    /// Both directions of each of these connections, numbered from `first` on.
    fn through(
        &self,
        connections: impl Iterator<Item = anyhow::Result<TcpStream>>,
        first: u16,
    ) -> anyhow::Result<Ends> {
        let mut ends = Ends::default();
        for (number, stream) in (u64::from(first)..).zip(connections) {
            let stream = stream?;
            let (writer, traffic) = (stream.clone(), self.clone());
            let send = move || traffic.send(&writer, number);
            ends.sending.push(spawn("send", send)?);
            let traffic = self.clone();
            ends.receiving
                .push(spawn("receive", move || traffic.receive(&stream))?);
        }
        Ok(ends)
    }

    fn send(self, stream: &TcpStream, number: u64) -> anyhow::Result<Print> {
        let mut source = Source::new(number, self.bytes);
        while let Some(mut chain) = source.next() {
            while !chain.is_empty() {
                stream.send_chain(&mut chain)?;
            }
        }
        stream.shutdown(Shutdown::Write)?;
        Ok(source.print())
    }

    fn receive(self, stream: &TcpStream) -> anyhow::Result<Print> {
        let mut digest = Digest::default();
        loop {
            let chain = stream.recv_chain(CHUNK)?;
            if chain.is_empty() {
                return Ok(digest.finish());
            }
            self.arrived
                .fetch_add(chain.len() as u64, Ordering::Relaxed);
            chain.iter().for_each(|buf| digest.update(buf));
        }
    }
}

fn spawn<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> anyhow::Result<T> + Send + 'static,
) -> io::Result<JoinHandle<anyhow::Result<T>>> {
    thread::Builder::new()
        .name(name.into())
        .stack_size(STACK_SIZE)
        .spawn(work)
}

fn join<T>(task: JoinHandle<anyhow::Result<T>>) -> anyhow::Result<T> {
    let name = task.thread().name().unwrap_or("a thread").to_owned();
    let result = task.join().map_err(|_| anyhow!("{name} panicked"))?;
    result.context(name)
}

/// Number of equal digests.
fn equal(mut sent: Vec<Print>, mut received: Vec<Print>) -> usize {
    sent.sort_unstable();
    received.sort_unstable();
    let pairs = sent.iter().zip(&received);
    pairs.filter(|(sent, received)| sent == received).count()
}

/// Shows progress until all threads are done.
fn watch(expected: u64, traffic: Traffic, done: &Receiver<()>) -> anyhow::Result<()> {
    let arrived = traffic.arrived;
    drop(traffic.working);
    let shown = io::stderr().is_terminal();
    let mut last = (0, SystemClock.now());
    while done.recv_timeout(TICK) == Err(RecvTimeoutError::Timeout) {
        let (now, count) = (SystemClock.now(), arrived.load(Ordering::Relaxed));
        if shown {
            eprint!("\r{count:>14} of {expected} bytes");
        }
        if count != last.0 {
            last = (count, now);
        } else if now - last.1 > STALL {
            bail!("nothing has arrived for {STALL:?}, after {count} of {expected} bytes");
        }
    }
    if shown {
        // Clears the line.
        eprint!("\r\x1b[2K");
    }
    Ok(())
}
