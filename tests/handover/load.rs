//! Connections that never pause, idle ones, a transfer in both directions, and new ones all the time.

use crate::scene::{LIMIT, Scene, until};
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

/// Time between new connections.
const PACE: Duration = Duration::from_millis(5);
/// Bytes of a piece of the transfer.
const PIECE: usize = 64 * 1024;

/// How many connections of each kind.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Size {
    pub(crate) busy: usize,
    pub(crate) idle: usize,
}

/// What clients have seen.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    /// Busy connections that have exchanged bytes.
    begun: AtomicUsize,
    idle: AtomicUsize,
    exchanges: AtomicU64,
    /// Connections that were served from beginning to end.
    new: AtomicU64,
    carried: AtomicU64,
    lost: Mutex<Vec<String>>,
    refused: Mutex<Vec<String>>,
    /// The slowest new connection before the mark, and after it.
    slowest: Mutex<[Duration; 2]>,
    marked: AtomicUsize,
}

impl Seen {
    fn exchanged(&self) -> u64 {
        self.exchanges.load(Ordering::Relaxed)
    }

    fn of(&self, lost: &Mutex<Vec<String>>, result: io::Result<()>) {
        if let Err(error) = result {
            lost.lock().unwrap().push(error.to_string());
        }
    }

    /// All is well; what there was.
    pub(crate) fn check(&self) -> String {
        let (lost, refused) = (self.lost.lock().unwrap(), self.refused.lock().unwrap());
        let [before, after] = *self.slowest.lock().unwrap();
        let summary = format!(
            "{} exchanges, {} new connections (slowest {before:.1?} before, {after:.1?} then), {} bytes carried, {} lost, {} refused",
            self.exchanged(),
            self.new.load(Ordering::Relaxed),
            self.carried.load(Ordering::Relaxed),
            lost.len(),
            refused.len(),
        );
        assert!(
            lost.is_empty() && refused.is_empty(),
            "{summary}: {lost:?} {refused:?}"
        );
        assert!(self.carried.load(Ordering::Relaxed) > 0, "{summary}");
        summary
    }
}

/// Runs the load, and `during` meanwhile, which may wait for progress with [`Progress`]; ends all connections then.
pub(crate) fn run(scene: &Scene, size: Size, during: impl FnOnce(&Progress<'_>)) -> Arc<Seen> {
    let seen = Arc::new(Seen::default());
    let (stop, stopped) = watch::channel(false);
    let served = AtomicBool::new(false);
    thread::scope(|scope| {
        let (served, stopped) = (&served, &stopped);
        let (listens, ready) = mpsc::channel();
        let at = scene.back();
        scope.spawn(move || {
            scene
                .server
                .enter(move || on_runtime(serve(at, listens, served)))
        });
        ready.recv_timeout(LIMIT).unwrap();
        let clients = {
            let seen = seen.clone();
            scope.spawn(move || {
                scene
                    .client
                    .enter(|| on_runtime(clients(scene.front(), size, seen, stopped.clone())))
            })
        };
        let progress = Progress { seen: &seen, size };
        // The rest ends also if this fails.
        let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| during(&progress)));
        stop.send(true).unwrap();
        clients.join().unwrap();
        served.store(true, Ordering::Relaxed);
        if let Err(why) = done {
            eprintln!("{seen:?}");
            std::panic::resume_unwind(why);
        }
    });
    seen
}

/// See [`run`].
pub(crate) struct Progress<'a> {
    seen: &'a Seen,
    size: Size,
}

impl Progress<'_> {
    /// All connections are there.
    pub(crate) fn begun(&self) {
        let Size { busy, idle } = self.size;
        until("connections", || {
            self.seen.begun.load(Ordering::Relaxed) >= busy
                && self.seen.idle.load(Ordering::Relaxed) >= idle
        });
    }

    /// From now on the slowest new connection is looked for anew.
    pub(crate) fn mark(&self) {
        self.seen.marked.store(1, Ordering::Relaxed);
    }

    /// Much more has been done: several exchanges for each busy connection, several new ones.
    pub(crate) fn more(&self) {
        let (exchanges, new) = (self.seen.exchanged(), self.seen.new.load(Ordering::Relaxed));
        let carried = self.seen.carried.load(Ordering::Relaxed);
        let enough = 4 * self.size.busy as u64;
        until("progress", || {
            self.seen.exchanged() >= exchanges + enough
                && self.seen.new.load(Ordering::Relaxed) >= new + 20
                && self.seen.carried.load(Ordering::Relaxed) > carried + 4 * PIECE as u64
        });
    }
}

fn on_runtime(work: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    runtime.unwrap().block_on(work);
}

/// Sends back all it receives.
async fn serve(at: SocketAddr, listens: mpsc::Sender<()>, end: &AtomicBool) {
    let listener = TcpListener::bind(at).await.unwrap();
    listens.send(()).unwrap();
    while !end.load(Ordering::Relaxed) {
        let Ok(Ok((stream, _))) = timeout(Duration::from_millis(50), listener.accept()).await
        else {
            continue;
        };
        tokio::spawn(async move {
            let (mut from, mut to) = stream.into_split();
            tokio::io::copy(&mut from, &mut to).await.ok();
        });
    }
}

async fn clients(at: SocketAddr, size: Size, seen: Arc<Seen>, stopped: watch::Receiver<bool>) {
    let mut all = JoinSet::new();
    for _ in 0..size.busy {
        let (task, stopped) = (seen.clone(), stopped.clone());
        all.spawn(async move { task.of(&task.lost, busy(&task, at, stopped).await) });
    }
    for _ in 0..size.idle {
        let (task, stopped) = (seen.clone(), stopped.clone());
        all.spawn(async move { task.of(&task.lost, idle(&task, at, stopped).await) });
    }
    for _ in 0..2 {
        let (task, stopped) = (seen.clone(), stopped.clone());
        all.spawn(async move { task.of(&task.lost, transfer(&task, at, stopped).await) });
    }
    let mut pace = tokio::time::interval(PACE);
    while !*stopped.borrow() {
        pace.tick().await;
        let task = seen.clone();
        all.spawn(async move { task.of(&task.refused, once(&task, at).await) });
        // Those that have ended.
        while all.try_join_next().is_some() {}
    }
    while all.join_next().await.is_some() {}
}

/// Nothing takes longer.
async fn bounded<R>(what: &str, work: impl Future<Output = io::Result<R>>) -> io::Result<R> {
    let named = |error| io::Error::other(format!("{what}: {error}"));
    match timeout(LIMIT, work).await {
        Ok(result) => result.map_err(named),
        Err(_) => Err(named(io::ErrorKind::TimedOut.into())),
    }
}

async fn connect(to: SocketAddr) -> io::Result<TcpStream> {
    let stream = bounded("connect", TcpStream::connect(to)).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

async fn exchange(stream: &mut TcpStream, value: u64) -> io::Result<()> {
    let sent = value.to_be_bytes().repeat(8);
    let mut back = vec![0; sent.len()];
    let both = async {
        stream.write_all(&sent).await?;
        stream.read_exact(&mut back).await
    };
    bounded("exchange", both).await?;
    match back == sent {
        true => Ok(()),
        false => Err(io::Error::other("other bytes")),
    }
}

/// No byte may follow.
async fn finish(mut stream: TcpStream) -> io::Result<()> {
    bounded("shutdown", stream.shutdown()).await?;
    match bounded("end", stream.read(&mut [0])).await? {
        0 => Ok(()),
        _ => Err(io::Error::other("a byte more")),
    }
}

async fn busy(seen: &Seen, at: SocketAddr, stopped: watch::Receiver<bool>) -> io::Result<()> {
    let mut stream = connect(at).await?;
    for value in 0.. {
        exchange(&mut stream, value).await?;
        seen.exchanges.fetch_add(1, Ordering::Relaxed);
        if value == 0 {
            seen.begun.fetch_add(1, Ordering::Relaxed);
        }
        if *stopped.borrow() {
            break;
        }
    }
    finish(stream).await
}

async fn idle(seen: &Seen, at: SocketAddr, mut stopped: watch::Receiver<bool>) -> io::Result<()> {
    let mut stream = connect(at).await?;
    exchange(&mut stream, 1).await?;
    seen.idle.fetch_add(1, Ordering::Relaxed);
    stopped.wait_for(|stopped| *stopped).await.ok();
    exchange(&mut stream, 2).await?;
    finish(stream).await
}

async fn transfer(seen: &Seen, at: SocketAddr, stopped: watch::Receiver<bool>) -> io::Result<()> {
    let (mut from, mut to) = connect(at).await?.into_split();
    let send = async move {
        let mut count = 0_u64;
        while !*stopped.borrow() {
            let value = (count % 251).to_le_bytes()[0];
            bounded("transfer", to.write_all(&vec![value; PIECE])).await?;
            count += 1;
        }
        to.shutdown().await?;
        io::Result::Ok(count)
    };
    let receive = async {
        let mut piece = vec![0; PIECE];
        for count in 0_u64.. {
            match bounded("transfer back", from.read_exact(&mut piece)).await {
                Ok(_) => {}
                Err(_) if from.read(&mut [0]).await? == 0 => return Ok(count),
                Err(error) => return Err(error),
            }
            let value = (count % 251).to_le_bytes()[0];
            if piece.iter().any(|byte| *byte != value) {
                return Err(io::Error::other("other bytes"));
            }
            seen.carried.fetch_add(PIECE as u64, Ordering::Relaxed);
        }
        unreachable!("the end of the transfer")
    };
    let (sent, received) = tokio::try_join!(send, receive)?;
    match sent == received {
        true => Ok(()),
        false => Err(io::Error::other(format!("{received} of {sent} pieces"))),
    }
}

async fn once(seen: &Seen, at: SocketAddr) -> io::Result<()> {
    let start = Instant::now();
    let phase = seen.marked.load(Ordering::Relaxed);
    let mut stream = connect(at).await?;
    exchange(&mut stream, 7).await?;
    {
        let mut slowest = seen.slowest.lock().unwrap();
        slowest[phase] = start.elapsed().max(slowest[phase]);
    }
    finish(stream).await?;
    seen.new.fetch_add(1, Ordering::Relaxed);
    Ok(())
}
