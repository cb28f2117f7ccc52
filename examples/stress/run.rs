//! A run: starts the threads, reports progress, joins them, and makes the checks.

use crate::acts::{self, Tally};
use crate::arena::Arena;
use crate::arguments::Arguments;
use crate::checks;
use crate::courier::courier;
use crate::random::Random;
use crate::report;
use crate::stage::{Faults, Stage};
use crate::watch::{Post, Posts};
use crate::world::World;
use anyhow::bail;
use crossbeam_channel::{Receiver, Sender, bounded, never};
use sosplice::clock::{Clock, SystemClock};
use std::io;
use std::panic;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// Interval of the main thread's checks.
const TICK: Duration = Duration::from_millis(100);
/// How often all listeners are closed, so that no thread waits in `accept` for ever.
const RELISTEN: Duration = Duration::from_secs(5);

/// The whole program.
pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let faults = Arc::new(Faults::default());
    count_panics(&faults);
    let stage = Arc::new(stage(arguments, &faults)?);
    let seed = stage.seed;
    println!("{}", report::headline(arguments, seed));
    let start = SystemClock.now();
    let watchdog = Service::start("watchdog", &stage, |stage, done| stage.posts.guard(done))?;
    let main = stage.posts.open("main".into());

    let crew = Crew::start(&stage, arguments.threads)?;
    wait(&stage, arguments, start, &main);
    main.begin("join the threads");
    let tally = crew.join(&stage, &main);
    let time = SystemClock.now() - start;

    checks::nothing_is_left(&stage, &main);
    print!("{}", report::table(&stage, &tally, time));
    main.begin("end the watchdog");
    watchdog.stop(&faults);
    checks::end_of_the_world(stage, &faults);
    let found = faults.found();
    found.iter().for_each(|fault| eprintln!("fault: {fault}"));
    if !found.is_empty() {
        bail!("{} fault(s); try again with --seed {seed}", found.len());
    }
    let time = SystemClock.now() - start;
    println!("no fault in {:.1} s", time.as_secs_f64());
    Ok(())
}

/// A panic anywhere is a fault, also in the threads of stacks and pools.
fn count_panics(faults: &Arc<Faults>) {
    let (faults, show) = (faults.clone(), panic::take_hook());
    panic::set_hook(Box::new(move |info| {
        let thread = thread::current();
        let name = thread.name().unwrap_or("a thread without a name");
        faults.report(format!("panic in {name}: {info}"));
        show(info);
    }));
}

fn stage(arguments: &Arguments, faults: &Arc<Faults>) -> anyhow::Result<Stage> {
    let seed = match arguments.seed {
        Some(seed) => seed,
        None => getrandom::u64()?,
    };
    Ok(Stage {
        seed,
        dispatch: arguments.dispatch,
        world: World::new(arguments.workers.into())?,
        arena: Arena::new(usize::try_from(arguments.sockets)?),
        guests: Arc::default(),
        guest_splices: AtomicU64::new(0),
        connections: AtomicU64::new(0),
        sent: AtomicU64::new(0),
        received: AtomicU64::new(0),
        checked: AtomicU64::new(0),
        trips: AtomicU64::new(0),
        longest_pause: AtomicU64::new(0),
        longest_trip: AtomicU64::new(0),
        posts: Posts::default(),
        faults: faults.clone(),
    })
}

/// Until the time is over or there is a fault.
fn wait(stage: &Arc<Stage>, arguments: &Arguments, start: Instant, main: &Post) {
    let mut next_report = start + arguments.report_every;
    let mut next_relisten = start + RELISTEN;
    loop {
        main.begin("wait");
        pause(TICK);
        let now = SystemClock.now();
        if now - start >= arguments.seconds || stage.faults.is_stopped() {
            break;
        }
        stage.arena.living();
        if now >= next_report {
            next_report = now + arguments.report_every;
            println!("{}", report::progress(stage, now - start));
        }
        if now >= next_relisten {
            next_relisten = now + RELISTEN;
            // Another thread may be listening again at the same time.
            stage
                .world
                .hosts()
                .for_each(|host| host.listen().unwrap_or(()));
        }
    }
    stage.faults.stop();
}

/// Sleeps.
pub(crate) fn pause(time: Duration) {
    let nobody = never::<()>();
    // It can only be late.
    nobody.recv_timeout(time).unwrap_or(());
}

/// A thread that runs until it is stopped.
struct Service {
    name: &'static str,
    done: Sender<()>,
    thread: JoinHandle<()>,
}

impl Service {
    fn start(
        name: &'static str,
        stage: &Arc<Stage>,
        work: impl FnOnce(&Stage, &Receiver<()>) + Send + 'static,
    ) -> io::Result<Service> {
        let (done, ended) = bounded(0);
        let stage = stage.clone();
        let thread = spawn(name.into(), move || work(&stage, &ended))?;
        Ok(Service { name, done, thread })
    }

    fn stop(self, faults: &Faults) {
        drop(self.done);
        if self.thread.join().is_err() {
            faults.report(format!("{} has panicked", self.name));
        }
    }
}

/// The worker threads of the run.
struct Crew {
    chaos: Vec<JoinHandle<Tally>>,
    couriers: Vec<JoinHandle<()>>,
    acceptors: Vec<JoinHandle<()>>,
    reaper: Service,
}

impl Crew {
    fn start(stage: &Arc<Stage>, threads: u16) -> io::Result<Crew> {
        let couriers = threads / 4;
        let mut crew = Crew {
            chaos: Vec::new(),
            couriers: Vec::new(),
            acceptors: Vec::new(),
            reaper: Service::start("reaper", stage, |stage, done| {
                let post = stage.posts.open("reaper".into());
                stage.posts.reap(&post, done);
            })?,
        };
        for host in 0..stage.world.hosts().count() {
            let name = format!("acceptor {host}");
            let work = move |stage: &Arc<Stage>, post: &Post| acceptor(stage, host, post);
            crew.acceptors.push(employ(stage, name, work)?);
        }
        for thread in 0..u64::from(couriers) {
            let work = move |stage: &Arc<Stage>, post: &Post| courier(stage, thread, post);
            let courier = employ(stage, format!("courier {thread}"), work)?;
            crew.couriers.push(courier);
        }
        for thread in u64::from(couriers)..threads.into() {
            let work = move |stage: &Arc<Stage>, post: &Post| acts::chaos(stage, thread, post);
            crew.chaos
                .push(employ(stage, format!("chaos {thread}"), work)?);
        }
        Ok(crew)
    }

    /// Waits for all of them. The watchdog ensures that this ends.
    fn join(self, stage: &Stage, main: &Post) -> Tally {
        let mut tally = Tally::default();
        // A panic has been reported by the hook.
        let chaos = self.chaos.into_iter().map(|thread| joined(thread, main));
        chaos.flatten().for_each(|other| tally.add(other));
        // Couriers finish their trips, which takes a while, without new connections.
        stage.world.hosts().for_each(|host| host.close());
        for thread in self.acceptors {
            joined(thread, main);
        }
        for thread in self.couriers {
            joined(thread, main);
        }
        self.reaper.stop(&stage.faults);
        tally
    }
}

fn joined<T>(thread: JoinHandle<T>, main: &Post) -> Option<T> {
    while !thread.is_finished() {
        main.begin("join the threads");
        pause(Duration::from_millis(5));
    }
    thread.join().ok()
}

fn employ<T: Send + 'static>(
    stage: &Arc<Stage>,
    name: String,
    work: impl FnOnce(&Arc<Stage>, &Post) -> T + Send + 'static,
) -> io::Result<JoinHandle<T>> {
    let (stage, post) = (stage.clone(), stage.posts.open(name.clone()));
    spawn(name, move || {
        let result = work(&stage, &post);
        post.leave();
        result
    })
}

fn spawn<T: Send + 'static>(
    name: String,
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<JoinHandle<T>> {
    thread::Builder::new().name(name).spawn(work)
}

/// Accepts at one host, blocking, until its listener is closed for good.
fn acceptor(stage: &Arc<Stage>, host: usize, post: &Post) {
    let Some(host) = stage.world.hosts().nth(host) else {
        return;
    };
    // Not a thread of chaos: its acts depend on arriving connections.
    let mut random = Random::of(stage.seed, u64::MAX, u64::from(host.service().port()));
    loop {
        post.begin("accept");
        let Some(listener) = host.listener() else {
            if stage.faults.is_stopped() {
                return;
            }
            pause(Duration::from_millis(1));
            continue;
        };
        match listener.accept() {
            Ok((stream, _)) => acts::share(stage, &mut random, stream),
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => {}
            Err(error) => stage.faults.report(format!("accept: {error:?}")),
        }
    }
}
