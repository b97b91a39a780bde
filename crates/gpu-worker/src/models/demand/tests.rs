//! Fleets of workers that decide each by itself, second by second.

use proptest::prelude::*;

use super::*;

const SIZE: u64 = 10;

fn key(number: usize) -> VersionKey {
    (format!("m{number}").parse().unwrap(), "1".parse().unwrap())
}

fn need(work: usize) -> Need {
    Need {
        bytes: SIZE,
        work,
        wanted_for: Duration::ZERO,
        task: Duration::from_secs(4),
        loading: Duration::from_secs(10),
        holders: Vec::new(),
        here: None,
    }
}

fn idle() -> Option<Here> {
    Some(Here {
        since: STAYS,
        unused: STAYS,
    })
}

#[test]
fn what_nobody_has_is_loaded_at_once_by_one_worker_and_by_the_next_if_that_one_does_not() {
    let names = ["a", "b", "c"].map(str::to_owned);
    let others = |me: &str| -> Vec<String> { names.iter().filter(|n| *n != me).cloned().collect() };
    let loads = |wanted_for| {
        let needs = BTreeMap::from([(
            key(1),
            Need {
                wanted_for,
                ..need(1)
            },
        )]);
        let load = |me: &&String| decide(me, &others(me), &needs, SIZE).is_some();
        names.iter().filter(load).count()
    };
    assert_eq!(loads(Duration::ZERO), 1);
    assert_eq!(loads(STAGGER), 2);
    assert_eq!(loads(STAGGER * 2), 3);
}

#[test]
fn what_others_have_is_loaded_when_waiting_costs_clearly_more() {
    let with = |work| {
        let need = Need {
            holders: vec!["b".to_owned()],
            ..need(work)
        };
        decide("a", &[], &BTreeMap::from([(key(1), need)]), SIZE)
    };
    assert_eq!(with(5), None, "20 s are no more than twice 10 s");
    assert_eq!(with(6), Some(Step::Load(key(1))));
}

#[test]
fn only_what_nobody_waits_for_makes_way_and_not_before_its_time() {
    let fleet = |other: Need| {
        let needs = BTreeMap::from([(key(1), need(1)), (key(2), other)]);
        decide("a", &[], &needs, SIZE)
    };
    let unused = Need {
        here: idle(),
        ..need(0)
    };
    assert_eq!(fleet(unused.clone()), Some(Step::Unload(key(2))));
    let fresh = Need {
        here: Some(Here {
            since: STAYS / 2,
            unused: STAYS / 2,
        }),
        ..need(0)
    };
    assert_eq!(fleet(fresh), None);
    let busy = Need {
        here: idle(),
        ..need(1)
    };
    assert_eq!(fleet(busy), None, "it is waited for, and its turn goes on");
    let turn_is_over = Need {
        here: Some(Here {
            since: TURN,
            unused: Duration::ZERO,
        }),
        ..need(9)
    };
    assert_eq!(fleet(turn_is_over), Some(Step::Unload(key(2))));
}

#[test]
fn of_two_that_need_room_only_one_unloads_the_copy_that_both_have() {
    let decided = |me: &str, other: &str| {
        let copy = Need {
            here: idle(),
            holders: vec![other.to_owned()],
            ..need(3)
        };
        let needs = BTreeMap::from([(key(1), need(1)), (key(2), copy)]);
        // The other has no say in what nobody has: both would take it.
        decide(me, &[], &needs, SIZE)
    };
    assert_eq!(decided("a", "b"), None);
    assert_eq!(decided("b", "a"), Some(Step::Unload(key(2))));
}

/// Workers with room for so many versions each, and demand that changes.
struct Fleet {
    names: Vec<String>,
    room: u64,
    /// By worker: what it has, since when, and when it last had work of it.
    has: Vec<BTreeMap<usize, (u64, u64)>>,
    /// By version: how much work, and since when.
    work: Vec<(usize, u64)>,
    now: u64,
    steps: usize,
}

impl Fleet {
    fn new(workers: usize, room: usize, versions: usize) -> Self {
        Self {
            names: (0..workers).map(|n| format!("w{n}")).collect(),
            room: room as u64 * SIZE,
            has: vec![BTreeMap::new(); workers],
            work: vec![(0, 0); versions],
            now: 0,
            steps: 0,
        }
    }

    fn ask(&mut self, work: &[usize]) {
        for (version, &work) in work.iter().enumerate() {
            let (before, since) = &mut self.work[version];
            if *before == 0 && work > 0 {
                *since = self.now;
            }
            *before = work;
        }
    }

    fn copies(&self, version: usize) -> usize {
        self.has
            .iter()
            .filter(|has| has.contains_key(&version))
            .count()
    }

    /// All decide on what they saw before the second.
    fn second(&mut self) {
        let decided: Vec<_> = (0..self.names.len()).map(|me| self.decided(me)).collect();
        let before: Vec<usize> = (0..self.work.len()).map(|v| self.copies(v)).collect();
        for (me, step) in decided.into_iter().enumerate() {
            let number = |wanted: &VersionKey| {
                (0..self.work.len())
                    .find(|&number| key(number) == *wanted)
                    .unwrap()
            };
            match step {
                Some(Step::Load(wanted)) => {
                    let version = number(&wanted);
                    self.has[me].insert(version, (self.now, self.now));
                    self.steps += 1;
                }
                Some(Step::Unload(victim)) => {
                    let version = number(&victim);
                    let (since, _) = self.has[me].remove(&version).unwrap();
                    assert!(self.now - since >= STAYS.as_secs());
                    self.steps += 1;
                }
                None => {}
            }
            assert!(self.has[me].len() as u64 * SIZE <= self.room);
        }
        for (version, &before) in before.iter().enumerate() {
            // Of several copies at least one is left, unless a turn was over or nobody waits for it.
            if before > 1 && self.work[version].0 > 0 {
                assert!(self.copies(version) > 0 || self.now >= TURN.as_secs());
            }
        }
        for has in &mut self.has {
            for (version, (_, used)) in has {
                if self.work[*version].0 > 0 {
                    *used = self.now;
                }
            }
        }
        self.now += 1;
        for version in 0..self.work.len() {
            if self.copies(version) > 0 {
                self.work[version].1 = self.now;
            }
        }
    }

    fn decided(&self, me: usize) -> Option<Step> {
        let others = |version: usize| {
            let others = self.has.iter().enumerate();
            let holds = others.filter(|(n, has)| *n != me && has.contains_key(&version));
            holds.map(|(n, _)| self.names[n].clone()).collect()
        };
        let seconds = |since: u64| Duration::from_secs(self.now - since);
        let needs = self
            .work
            .iter()
            .enumerate()
            .map(|(version, &(work, since))| {
                let here = self.has[me].get(&version).map(|&(since, used)| Here {
                    since: seconds(since),
                    unused: seconds(used),
                });
                let wanted_for = if work > 0 {
                    seconds(since)
                } else {
                    Duration::ZERO
                };
                let need = Need {
                    wanted_for,
                    holders: others(version),
                    here,
                    ..need(work)
                };
                (key(version), need)
            });
        let mut names = self.names.clone();
        names.remove(me);
        decide(&self.names[me], &names, &needs.collect(), self.room)
    }
}

proptest! {
    // Each is a fleet's hour or so.
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn whatever_is_waited_for_is_loaded_by_someone_in_time(
        workers in 1usize..5,
        room in 1usize..4,
        work in prop::collection::vec(0usize..30, 1..6),
    ) {
        let mut fleet = Fleet::new(workers, room, work.len());
        fleet.ask(&work);
        // Each in its turn, if they do not fit together.
        let bound = (TURN.as_secs() + STAGGER.as_secs() * 5) * (work.len() as u64 + 1);
        let mut seen = vec![false; work.len()];
        for _ in 0..bound {
            fleet.second();
            for (version, seen) in seen.iter_mut().enumerate() {
                *seen |= fleet.copies(version) > 0;
            }
        }
        for (version, &work) in work.iter().enumerate() {
            prop_assert!(work == 0 || seen[version], "version {version}");
        }
    }

    #[test]
    fn what_fits_is_loaded_within_the_stagger_and_then_all_is_quiet(
        workers in 1usize..5,
        work in prop::collection::vec(0usize..30, 1..4),
    ) {
        let mut fleet = Fleet::new(workers, work.len(), work.len());
        fleet.ask(&work);
        for _ in 0..STAGGER.as_secs() * 5 + 10 {
            fleet.second();
        }
        for (version, &work) in work.iter().enumerate() {
            prop_assert_eq!(work > 0, fleet.copies(version) > 0);
        }
        let steps = fleet.steps;
        for _ in 0..1000 {
            fleet.second();
        }
        prop_assert_eq!(fleet.steps, steps, "nobody loads or unloads while demand stays");
    }

    #[test]
    fn nothing_flaps_however_demand_changes(
        workers in 1usize..4,
        room in 1usize..3,
        asks in prop::collection::vec(prop::collection::vec(0usize..20, 4), 1..30),
    ) {
        let mut fleet = Fleet::new(workers, room, 4);
        for ask in &asks {
            fleet.ask(ask);
            for _ in 0..20 {
                fleet.second();
            }
        }
        // A place is taken anew once in its time at most; each is a load and an unload.
        let places = workers * room;
        let turns = fleet.now as usize / STAYS.as_secs() as usize + 1;
        prop_assert!(fleet.steps <= 2 * places * turns, "{} steps", fleet.steps);
    }
}
