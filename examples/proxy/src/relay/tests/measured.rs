//! What is measured of connections, and the list of that in the manual.

use super::*;
use crate::histogram::Histogram;
use crate::metrics;
use crate::watch::Watch;

/// A connection each: with a backend that takes it, after one that does not.
#[test]
fn histograms_have_each_connection_once() {
    let net = Net::new();
    let server = net.serve(2);
    let relay = net.relay(Terms::default(), vec![offer(1), offer(2)]);
    let shared = Arc::clone(&relay.shared);
    assert_eq!(net.ask(b"before").unwrap(), "2:before");
    until(|| shared.measures().lengths.count() == 1);
    shared.measures().read_times();
    for _ in 0..10 {
        assert_eq!(net.ask(b"hello").unwrap(), "2:hello");
    }
    until(|| shared.measures().lengths.count() == 11);
    let measures = shared.measures();
    assert_eq!(measures.waits.count(), 10, "the times cost a callback each");
    assert_eq!(measures.bytes.each_ref().map(Histogram::count), [11, 11]);
    let backends = shared.backends();
    let counts = |one: &BackendStats| (one.account.connects.count(), one.account.failures.count());
    assert_eq!((counts(&backends[0]).0, counts(&backends[1])), (0, (10, 0)));
    assert_eq!(counts(&backends[0]).1, backends[0].failed);
    drop(server);
    // A client that no backend serves is in none of them.
    let failed = backends[0].failed + backends[1].failed;
    assert!(net.ask(b"nobody").is_err());
    until(|| !shared.counts().refused.is_empty());
    let backends = shared.backends();
    assert!(
        backends
            .iter()
            .map(|one| one.account.failures.count())
            .sum::<u64>()
            > failed
    );
    let totals = relay.stop();
    assert_eq!((totals.connections, measures.lengths.count()), (12, 11));
    assert_eq!(measures.waits.count(), 10);
}

/// Bytes that a splice has left before the proxy stops are counted as those of others.
#[test]
fn a_connection_that_is_cut_off_is_measured() {
    let net = Net::new();
    let _server = net.serve(1);
    let relay = net.relay(Terms::default(), vec![offer(1)]);
    let shared = Arc::clone(&relay.shared);
    let mut open = TcpStream::connect(&net.client, FRONT).unwrap();
    open.write_all(b"four").unwrap();
    let carried = || relay.pair().carried(Direction::Up);
    until(|| !lock(&shared.state).pairs.is_empty() && carried() == 4);
    relay.events.send(Event::Stop(Duration::ZERO)).unwrap();
    until(|| shared.measures().lengths.count() == 1);
    let up = &shared.measures().bytes[Direction::Up as usize];
    assert_eq!(
        up.quantile(1.0),
        Some(100.0),
        "four bytes, up to the bound of the bucket"
    );
    assert_eq!(relay.thread.join().unwrap().cut_off, 1);
}

#[test]
fn the_manual_names_each_metric() {
    let net = Net::new();
    let relay = net.relay(Terms::default(), vec![offer(1)]);
    let watch = Watch {
        stacks: vec![("front".into(), net.front.clone())],
        pool: SplicePool::builder().build(),
    };
    let page = metrics::page(Arc::clone(&relay.shared), watch);
    let manual = include_str!("../../../../../src/doc/guide.md");
    let names = page
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE sosplice_"));
    let mut count = 0;
    for name in names {
        let (name, _) = name.split_once(' ').unwrap();
        let named = format!("`{name}`");
        assert!(manual.contains(&named), "{named} is not in the guide");
        count += 1;
    }
    assert!(count >= 20, "{page}");
    relay.stop();
}
