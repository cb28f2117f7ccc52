//! One choice after another.

mod flaps;

use super::*;
use sosplice::clock::{Clock, SystemClock};

fn spec(number: u8, weight: u16) -> Spec {
    Spec {
        address: SocketAddr::new([10, 0, 0, number].into(), 80),
        weight,
        limit: None,
    }
}

fn backends(weights: &[u16], balance: Balance) -> Backends {
    let specs = (1..)
        .zip(weights)
        .map(|(number, weight)| spec(number, *weight));
    of(specs, balance)
}

fn of(specs: impl IntoIterator<Item = Spec>, balance: Balance) -> Backends {
    let all = (0..)
        .zip(specs)
        .map(|(id, spec)| Backend::new(Id(id), spec));
    Backends::new(all.collect(), balance)
}

fn now() -> Instant {
    SystemClock.now()
}

fn client(number: u32) -> IpAddr {
    IpAddr::from(number.to_be_bytes())
}

fn chosen(backends: &mut Backends, number: u32) -> usize {
    match backends.choose(client(number), &Tried::default(), now()) {
        Choice::Backend(index) => index,
        none => panic!("{none:?}"),
    }
}

#[test]
fn weights_are_shares_and_turns_are_mixed() {
    let mut three = backends(&[5, 1, 1, 0], Balance::RoundRobin);
    let turns: Vec<_> = (0..14).map(|number| chosen(&mut three, number)).collect();
    assert_eq!(turns, [0, 0, 1, 0, 2, 0, 0, 0, 0, 1, 0, 2, 0, 0]);
}

#[test]
fn the_fewest_connections_for_the_weight() {
    let mut two = backends(&[1, 3], Balance::Least);
    let turns: Vec<_> = (0..8).map(|number| chosen(&mut two, number)).collect();
    assert_eq!(turns.iter().filter(|index| **index == 1).count(), 6);
    for _ in 0..6 {
        two.leave(1);
    }
    assert_eq!(chosen(&mut two, 9), 1);
}

#[test]
fn a_client_keeps_its_backend_and_few_move() {
    const CLIENTS: u32 = 10_000;
    let mut all = backends(&[1, 1, 2, 1, 1], Balance::Client);
    let before: Vec<_> = (0..CLIENTS)
        .map(|number| chosen(&mut all, number))
        .collect();
    let again: Vec<_> = (0..CLIENTS)
        .map(|number| chosen(&mut all, number))
        .collect();
    assert_eq!(before, again);
    let share = |index| before.iter().filter(|one| **one == index).count();
    for (index, part) in [(0, 6), (2, 3)] {
        let wanted = CLIENTS as usize / part;
        assert!(
            share(index).abs_diff(wanted) < wanted / 8,
            "{}",
            share(index)
        );
    }
    all.set_up(1, false);
    let mut moved = 0;
    for (number, index) in (0..).zip(&before) {
        let now = chosen(&mut all, number);
        assert_ne!(now, 1);
        moved += usize::from(*index != 1 && now != *index);
    }
    assert!(moved < CLIENTS as usize / 50, "{moved} moved without need");
    all.set_up(1, true);
    let after: Vec<_> = (0..CLIENTS)
        .map(|number| chosen(&mut all, number))
        .collect();
    assert_eq!(before, after);
}

#[test]
fn tried_down_and_full_ones_are_passed_over() {
    for balance in [Balance::RoundRobin, Balance::Least, Balance::Client] {
        let mut specs = [spec(1, 1), spec(2, 1), spec(3, 1)];
        specs[2].limit = Some(1);
        let mut three = of(specs, balance);
        three.set_up(0, false);
        let mut tried = Tried::default();
        tried.add(Id(1));
        let mut choose = |tried: &Tried| three.choose(client(1), tried, now());
        assert_eq!(choose(&tried), Choice::Backend(2));
        assert_eq!(choose(&tried), Choice::Full);
        assert_eq!(choose(&Tried::default()), Choice::Backend(1));
        tried.add(Id(2));
        assert_eq!(choose(&tried), Choice::None);
    }
}

#[test]
fn one_that_does_not_answer_rests_unless_there_is_no_other() {
    let mut two = backends(&[1, 1], Balance::RoundRobin);
    let start = now();
    for _ in 0..STRIKES {
        two.refused(0, start, |_| false);
    }
    let mut choose = |tried: &Tried, now| two.choose(client(1), tried, now);
    for _ in 0..5 {
        assert_eq!(choose(&Tried::default(), start), Choice::Backend(1));
    }
    let mut other = Tried::default();
    other.add(Id(1));
    assert_eq!(choose(&other, start), Choice::Backend(0));
    let later = start + REST;
    let turns = [0, 0].map(|_| choose(&Tried::default(), later));
    assert!(turns.contains(&Choice::Backend(0)));
}

/// It has taken others between the refusals, which last; or only before.
#[test]
fn refusals_in_a_row_are_those_with_no_taken_connection_between() {
    let start = now();
    let later = |seconds| start + Duration::from_secs(seconds);
    let mut two = backends(&[1, 1], Balance::RoundRobin);
    for second in 0..6 {
        two.refused(0, later(second), |since| {
            assert_eq!(since, later(second - 1));
            true
        });
        assert!(!two.all[0].rests(later(second)));
    }
    for second in 6..8 {
        two.refused(0, later(second), |_| false);
    }
    assert!(two.all[0].rests(later(8)));
    two.took(0, later(6));
    assert!(two.all[0].rests(later(8)));
    two.took(0, later(8));
    assert!(!two.all[0].rests(later(8)));
}

#[test]
fn a_client_has_a_limit() {
    let mut clients = Clients::default();
    let (one, other) = (client(1), client(2));
    assert!((0..2).all(|_| clients.enter(one, Some(2))));
    assert!(!clients.enter(one, Some(2)) && clients.enter(other, Some(2)));
    clients.leave(one);
    assert!(clients.enter(one, Some(2)));
    for client in [one, one, other] {
        clients.leave(client);
    }
    assert!(clients.active.is_empty());
}
