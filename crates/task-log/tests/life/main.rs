//! The life of a task, in every order in which it can go: two workers, a dispatcher and a canceller, of which workers and the
//! dispatcher may die between any two things that they do, and a worker that is alive may be taken for dead.
//!
//! They decide by [`task_log::transition`], as the services do. Checked by stateright: every state that can be reached is
//! visited, and from every one of them the task can still come to its end.

mod model;
mod properties;
mod worker;
mod world;

use std::collections::{BTreeSet, HashMap};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::time::Instant;

use stateright::{Checker, HasDiscoveries, Model, StateRecorder};

use model::Life;
use world::{Mishaps, World};

/// Two workers, a death, two deliveries to a second worker while the first is alive, a stop, a cancel.
const MISHAPS: Mishaps = Mishaps {
    deaths: 1,
    taken_for_dead: 2,
    stops: 1,
    lost_answers: 0,
};

/// One delivery to a second worker while the first is alive, a stop, a cancel, and a state of whose writing no answer comes.
const UNANSWERED: Mishaps = Mishaps {
    deaths: 0,
    taken_for_dead: 1,
    stops: 1,
    lost_answers: 1,
};

/// How many of these states can never come to an end, whatever happens; and one of them.
fn stuck(life: &Life, states: &[World]) -> (usize, Option<World>) {
    let numbers: HashMap<u64, u32> = states.iter().map(fingerprint_of).zip(0..).collect();
    // From where to where, sorted by where to.
    let mut ways: Vec<(u32, u32)> = Vec::new();
    let mut acts = Vec::new();
    for (number, state) in (0..).zip(states) {
        life.actions(state, &mut acts);
        let after = acts.drain(..).filter_map(|act| life.next_state(state, act));
        ways.extend(after.map(|after| (numbers[&fingerprint_of(&after)], number)));
    }
    ways.sort_unstable();
    let mut can_end: Vec<bool> = states.iter().map(World::is_over).collect();
    let ended = (0_u32..).zip(&can_end).filter(|(_, can)| **can);
    let mut open: Vec<u32> = ended.map(|(number, _)| number).collect();
    while let Some(number) = open.pop() {
        let first = ways.partition_point(|&(to, _)| to < number);
        for &(_, from) in ways[first..].iter().take_while(|&&(to, _)| to == number) {
            if !std::mem::replace(&mut can_end[from as usize], true) {
                open.push(from);
            }
        }
    }
    let stuck = || can_end.iter().zip(states).filter(|(can, _)| !**can);
    (stuck().count(), stuck().next().map(|(_, state)| *state))
}

fn fingerprint_of(state: &World) -> u64 {
    let mut hasher = DefaultHasher::new();
    state.hash(&mut hasher);
    hasher.finish()
}

/// Visits every state that can be reached.
#[allow(
    clippy::print_stdout,
    reason = "how much was visited, in a test's output"
)]
fn check(mishaps: Mishaps) {
    let life = Life {
        mishaps,
        guarded: true,
        hasty: false,
        by_name: false,
    };
    let began = Instant::now();
    let (recorder, states) = StateRecorder::new_with_accessor();
    let checker = life.clone().checker().threads(2).visitor(recorder);
    let checker = checker.spawn_bfs().join();
    println!(
        "{} states, the longest way to one is {} events, {:.1} s",
        checker.unique_state_count(),
        checker.max_depth(),
        began.elapsed().as_secs_f64()
    );
    checker.assert_properties();
    let states = states();
    let (stuck, example) = stuck(&life, &states);
    println!(
        "an end can be reached from all but {stuck}; {:.1} s",
        began.elapsed().as_secs_f64()
    );
    assert_eq!(example, None);
}

#[test]
fn every_order_of_events_keeps_the_invariants_and_can_come_to_an_end() {
    check(MISHAPS);
}

#[test]
fn a_worker_that_does_not_hear_whether_its_state_was_stored_keeps_them_too() {
    check(UNANSWERED);
}

#[test]
fn a_state_that_is_written_over_whatever_stands_there_is_found_to_be_wrong() {
    let life = Life {
        mishaps: MISHAPS,
        guarded: false,
        hasty: false,
        by_name: false,
    };
    let wrong = BTreeSet::from([properties::NEWEST_STATE, properties::ATTEMPTS]);
    let enough = HasDiscoveries::AllOf(wrong.clone());
    let checker = life.checker().threads(2).finish_when(enough);
    let found = checker.spawn_bfs().join().discoveries();
    assert!(wrong.iter().all(|name| found.contains_key(name)));
}

#[test]
fn a_checkpoint_that_goes_before_a_later_state_is_known_to_stand_is_found_to_be_wrong() {
    let life = Life {
        mishaps: UNANSWERED,
        guarded: true,
        hasty: true,
        by_name: false,
    };
    let enough = HasDiscoveries::AllOf(BTreeSet::from([properties::CHECKPOINT]));
    let checker = life.checker().threads(2).finish_when(enough);
    let found = checker.spawn_bfs().join().discoveries();
    assert!(found.contains_key(properties::CHECKPOINT));
}

#[test]
fn workers_of_one_name_that_nothing_else_tells_apart_are_found_to_be_wrong() {
    let life = Life {
        mishaps: UNANSWERED,
        guarded: true,
        hasty: false,
        by_name: true,
    };
    let enough = HasDiscoveries::AllOf(BTreeSet::from([properties::PICTURES]));
    let checker = life.checker().threads(2).finish_when(enough);
    let found = checker.spawn_bfs().join().discoveries();
    assert!(found.contains_key(properties::PICTURES));
}
