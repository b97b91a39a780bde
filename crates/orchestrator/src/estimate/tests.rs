use std::time::Instant;

use proptest::prelude::*;
use proptest::strategy::ValueTree as _;
use proptest::test_runner::TestRunner;

use super::*;
use crate::schedule::Head;
use crate::schedule::simulation::{Simulation, head, policy};

fn loads(simulation: &Simulation) -> Vec<QueueLoad> {
    let load = |((lane, tenant), heads): (&(Lane, TenantId), &std::collections::VecDeque<Head>)| {
        let cost: u64 = heads.iter().map(|head| head.cost).sum();
        QueueLoad {
            lane: lane.clone(),
            tenant: tenant.clone(),
            waiting: heads.len() as u64,
            mean_cost: cost / (heads.len() as u64).max(1),
        }
    };
    simulation.queues.iter().map(load).collect()
}

fn fleet(slots: u64) -> Fleet {
    Fleet {
        slots: slots as f64,
        rate: slots as f64 * 1e6,
        speed: 1e6,
        alone: 1e6,
    }
}

/// Workers that have nothing to do.
fn idle(fleet: &Fleet) -> Ahead {
    let now = Instant::now();
    Ahead::of(&[], None, fleet, (now, now))
}

/// When each waiting task begins, as it is told now.
fn told(simulation: &Simulation, slots: u64) -> BTreeMap<u64, Duration> {
    let fleet = fleet(slots);
    let mut ahead = idle(&fleet);
    ahead
        .slots
        .take(simulation.running().map(|left| left as f64));
    let loads = loads(simulation);
    let outlook = Outlook::new(&loads, &simulation.policy, &simulation.turns, fleet);
    let mut told = BTreeMap::new();
    for ((lane, tenant), heads) in &simulation.queues {
        for (position, head) in heads.iter().enumerate() {
            let place = Place {
                lane,
                tenant,
                position: position as u64,
                cost: head.cost,
                limit: None,
                handed: 0,
            };
            let wait = outlook.wait(place, &ahead).unwrap();
            told.insert(head.id, simulation.now + wait);
        }
    }
    told
}

/// Of the tasks that wait at a moment: those whose wait is told within a quarter of it, or within the time of a task; and all.
fn told_honestly(mut simulation: Simulation, slots: u64, after: usize) -> (u64, u64) {
    let longest = simulation
        .queues
        .values()
        .flatten()
        .map(|head| head.cost)
        .max();
    let floor = Duration::from_micros(longest.unwrap());
    for _ in 0..after {
        simulation.begin_more();
    }
    let (told, from) = (told(&simulation, slots), simulation.now);
    let (mut honest, mut all) = (0, 0);
    loop {
        let begun = simulation.begin_more();
        if begun.is_empty() {
            return (honest, all);
        }
        let waited = simulation.now - from;
        for head in begun {
            let off = told[&head.id].abs_diff(simulation.now);
            honest += u64::from(off <= floor.max(waited / 4));
            all += 1;
        }
    }
}

/// Two seconds each.
const TASK: u64 = 2_000_000;

fn load(lane: &str, tenant: &str, waiting: u64) -> QueueLoad {
    QueueLoad {
        lane: lane.parse().unwrap(),
        tenant: tenant.parse().unwrap(),
        waiting,
        mean_cost: TASK,
    }
}

fn wait_of(outlook: &Outlook, lane: &str, tenant: &str, position: u64) -> Option<Duration> {
    let (lane, tenant): (Lane, TenantId) = (lane.parse().unwrap(), tenant.parse().unwrap());
    let place = Place {
        lane: &lane,
        tenant: &tenant,
        position,
        cost: TASK,
        limit: None,
        handed: 0,
    };
    outlook.wait(place, &idle(outlook.fleet()))
}

#[test]
fn a_lone_queue_waits_for_what_is_before_it() {
    let queues = [load("fast", "t", 100)];
    let policy = policy([("fast", 1)], 1_000_000);
    let wait = |slots, position, limit| {
        let outlook = Outlook::new(&queues, &policy, &Turns::default(), fleet(slots));
        let (lane, tenant) = (&queues[0].lane, &queues[0].tenant);
        let place = Place {
            lane,
            tenant,
            position,
            cost: TASK,
            limit,
            handed: 0,
        };
        outlook.wait(place, &idle(outlook.fleet()))
    };
    assert_eq!(wait(1, 10, None), Some(Duration::from_secs(20)));
    assert_eq!(wait(2, 10, Some(1)), Some(Duration::from_secs(20)));
    assert_eq!(wait(0, 10, None), None);
    // There are slots for all of them.
    assert_eq!(wait(11, 10, None), Some(Duration::ZERO));
}

#[test]
fn slots_that_share_a_device_get_through_what_the_device_does() {
    let queues = [load("fast", "t", 100)];
    let policy = policy([("fast", 1)], 1_000_000);
    let shared = Fleet {
        slots: 3.0,
        rate: 1e6,
        speed: 1e6 / 3.0,
        alone: 1e6,
    };
    let outlook = Outlook::new(&queues, &policy, &Turns::default(), shared);
    // Six rounds, and there is a third slot in the seventh.
    let wait = wait_of(&outlook, "fast", "t", 20).unwrap();
    assert_eq!(wait, Duration::from_secs(36));
    let wait = wait_of(&outlook, "fast", "t", 21).unwrap();
    assert_eq!(wait, Duration::from_secs(42));
}

#[test]
fn a_queue_that_is_new_takes_its_turn_among_those_that_are_known() {
    let queues = [load("fast", "a", 100), load("fast", "c", 100)];
    let policy = policy([("fast", 1), ("slow", 1)], TASK);
    let outlook = Outlook::new(&queues, &policy, &Turns::default(), fleet(1));
    let tenth = wait_of(&outlook, "fast", "b", 10).unwrap().as_secs();
    // Each of the others has ten, too, more or less.
    assert!((50..=70).contains(&tenth), "{tenth}");
    let first = wait_of(&outlook, "fast", "b", 0).unwrap().as_secs();
    assert!(first <= 6, "{first}");
    // And a lane that is new shares with the other.
    let tenth = wait_of(&outlook, "slow", "b", 10).unwrap().as_secs();
    assert_eq!(tenth, 40);
}

/// Queues of different lanes, tenants and sizes, and workers that go through them.
fn simulations() -> impl Strategy<Value = (Simulation, u64, usize)> {
    let queue = (0..3usize, 0..30usize, 5..60usize, 50..2000u64);
    let queues = prop::collection::vec(queue, 1..25);
    let heads = queues.prop_map(|queues| {
        let lanes = ["a", "b", "c"];
        let one = |(lane, tenant, count, cost): (usize, usize, usize, u64)| {
            let tenant = format!("t{tenant}");
            // 0.7 to 1.3 of the usual cost.
            let cost = move |i: u64| cost * (70 + i * 17 % 61) / 100;
            (0..count as u64).map(move |i| head(i, lanes[lane], &tenant, cost(i)))
        };
        queues.into_iter().flat_map(one).collect::<Vec<Head>>()
    });
    let weights = prop::array::uniform3(1..9u32);
    let all = (
        heads.prop_shuffle(),
        weights,
        1..9usize,
        100..3000u64,
        0..30usize,
    );
    all.prop_map(|(mut heads, [a, b, c], slots, quantum, after)| {
        for (id, head) in heads.iter_mut().enumerate() {
            head.id = id as u64;
        }
        let policy = policy([("a", a), ("b", b), ("c", c)], quantum);
        (Simulation::new(heads, policy, slots), slots as u64, after)
    })
}

#[test]
fn nine_of_ten_waits_are_told_within_a_quarter() {
    let mut runner = TestRunner::deterministic();
    let (mut honest, mut all) = (0, 0);
    for _ in 0..40 {
        let (simulation, slots, after) = simulations().new_tree(&mut runner).unwrap().current();
        let (some, of) = told_honestly(simulation, slots, after);
        honest += some;
        all += of;
        // Nor is any backlog told wrongly as a whole.
        assert!(some * 10 >= of * 8, "{some} of {of}");
    }
    println!("{honest} of {all} waits told within a quarter");
    assert!(all > 10_000 && honest * 10 >= all * 9, "{honest} of {all}");
}
