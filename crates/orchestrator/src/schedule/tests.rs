use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::simulation::{Simulation, head, policy, version};
use super::*;

const TENANTS: [&str; 3] = ["a", "b", "c"];

fn room(left: usize) -> Room {
    Room {
        versions: [(version(), left)].into(),
        tenants: BTreeMap::new(),
    }
}

fn fast_and_slow(quantum: u64) -> LanePolicy {
    policy([("fast", 3), ("slow", 1)], quantum)
}

fn decide_now(heads: &[Head], policy: &LanePolicy, room: &Room) -> Vec<u64> {
    decide(heads, policy, room, Duration::ZERO, &mut Turns::default()).dispatch
}

#[test]
fn lanes_share_the_cost_in_proportion_to_their_weights() {
    let mut heads: Vec<_> = (0..100).map(|id| head(id, "fast", "t", 2)).collect();
    heads.extend((100..200).map(|id| head(id, "slow", "t", 1)));
    let chosen = decide_now(&heads, &fast_and_slow(1), &room(50));
    let fast = chosen.iter().filter(|&&id| id < 100).count();
    // 30 × 2 : 20 × 1 = 3 : 1
    assert_eq!((fast, chosen.len()), (30, 50));
}

#[test]
fn a_tenant_with_one_task_does_not_wait_behind_anothers_many() {
    let mut heads: Vec<_> = (0..20).map(|id| head(id, "fast", "many", 1)).collect();
    heads.push(head(20, "fast", "one", 1));
    assert_eq!(decide_now(&heads, &fast_and_slow(1), &room(2)), [0, 20]);
}

#[test]
fn tenants_with_small_and_large_tasks_get_the_same_cost() {
    let mut heads: Vec<_> = (0..100).map(|id| head(id, "fast", "small", 1)).collect();
    heads.extend((100..120).map(|id| head(id, "fast", "large", 10)));
    let chosen = decide_now(&heads, &fast_and_slow(5), &room(55));
    let small = chosen.iter().filter(|&&id| id < 100).count();
    assert!((45..=55).contains(&small), "{small}");
}

#[test]
fn a_version_without_room_blocks_only_its_own() {
    let other = Head {
        version: ("full".to_owned(), "1".to_owned()),
        ..head(0, "fast", "t", 1)
    };
    let heads = [other, head(1, "fast", "t", 1)];
    assert_eq!(decide_now(&heads, &fast_and_slow(1), &room(1)), [1]);
}

#[test]
fn a_head_whose_deadline_has_passed_is_expired_and_not_run() {
    let due = |id, seconds| Head {
        deadline: Some(Duration::from_secs(seconds)),
        ..head(id, "fast", "t", 1)
    };
    let heads = [due(0, 10), due(1, 11), head(2, "fast", "t", 1)];
    let now = Duration::from_secs(10);
    let turns = &mut Turns::default();
    let decision = decide(&heads, &fast_and_slow(1), &room(5), now, turns);
    assert_eq!(decision.expired, [0]);
    assert_eq!(decision.dispatch, [1, 2]);
}

#[test]
fn what_has_waited_for_long_gives_its_lane_weight_until_it_is_served() {
    let mut policy = policy([("fast", 8), ("slow", 1)], 1);
    policy.ageing = Duration::from_secs(60);
    let slow: Lane = "slow".parse().unwrap();
    let weight = |seconds| policy.aged_weight(&slow, Duration::from_secs(seconds));
    assert_eq!([weight(59), weight(60), weight(200)], [1, 2, 4]);
    // It never counts for more than the most favoured lane.
    assert_eq!(weight(100_000), 8);

    let now = Duration::from_secs(3600);
    let young = |id, lane| Head {
        submitted_at: now,
        ..head(id, lane, "t", 1)
    };
    let mut heads: Vec<_> = (0..200).map(|id| young(id, "fast")).collect();
    // Of two tenants, one of which has old tasks.
    heads.extend((200..210).map(|id| head(id, "slow", "old", 1)));
    heads.extend((300..400).map(|id| young(id, "slow")));
    let chosen = decide(&heads, &policy, &room(130), now, &mut Turns::default()).dispatch;
    let slow_among = |chosen: &[u64]| chosen.iter().filter(|&&id| id >= 200).count();
    // As many as of the fast lane while the old ones wait, then one for eight.
    assert_eq!(slow_among(&chosen[..36]), 18);
    assert_eq!(slow_among(&chosen[40..130]), 10);
}

#[test]
fn a_lane_that_comes_and_goes_gets_no_more_than_its_share() {
    let mut turns = Turns::default();
    let policy = policy([("fast", 9), ("slow", 1)], 1);
    let mut slow = 0;
    for id in 0..100 {
        let mut heads = vec![head(id, "fast", "t", 1)];
        // Absent every other time.
        if id % 2 == 0 {
            heads.push(head(1000 + id, "slow", "t", 1));
        }
        let decision = decide(&heads, &policy, &room(1), Duration::ZERO, &mut turns);
        slow += usize::from(decision.dispatch[0] >= 1000);
    }
    assert!((8..=11).contains(&slow), "{slow}");
}

fn arbitrary_heads() -> impl Strategy<Value = Vec<Head>> {
    let one = (
        0..2usize,
        0..3usize,
        0..2usize,
        1..30u64,
        0..4usize,
        0..3u64,
    );
    prop::collection::vec(one, 0..60).prop_map(|spec| {
        let head = |(id, one): (usize, (usize, usize, usize, u64, usize, u64))| {
            let (lane, tenant, model, cost, limit, due) = one;
            Head {
                version: (["m", "n"][model].to_owned(), "1".to_owned()),
                limit: (limit > 0).then_some(limit),
                deadline: (due > 0).then(|| Duration::from_secs(due)),
                ..head(id as u64, ["fast", "slow"][lane], TENANTS[tenant], cost)
            }
        };
        spec.into_iter().enumerate().map(head).collect()
    })
}

/// What a decision leaves of the room, or `None` when it took more than there was.
fn after(room: &Room, chosen: &[&Head]) -> Option<Room> {
    let mut left = room.clone();
    for head in chosen {
        let versions = left.versions.get_mut(&head.version)?;
        *versions = versions.checked_sub(1)?;
        let out = left.tenants.entry(head.tenant.clone()).or_default();
        if head.limit.is_some_and(|limit| *out >= limit) {
            return None;
        }
        *out += 1;
    }
    Some(left)
}

/// A backlog that no queue of runs dry of: `costs` by tenant, again and again.
fn endless(lanes: &[&str], costs: &[Vec<u64>], total: u64) -> Vec<Head> {
    let mut heads = Vec::new();
    for lane in lanes {
        for (tenant, costs) in TENANTS.iter().zip(costs) {
            let mut sum = 0;
            for &cost in costs.iter().cycle() {
                heads.push(head(heads.len() as u64, lane, tenant, cost));
                sum += cost;
                if sum > total {
                    break;
                }
            }
        }
    }
    heads
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn room_is_never_exceeded_and_never_left_while_someone_could_run(
        heads in arbitrary_heads(), m in 0..12usize, n in 0..12usize,
        out in prop::array::uniform3(0..4usize), quantum in 1..40u64, now in 0..4u64,
    ) {
        let versions = [("m", m), ("n", n)].map(|(v, left)| ((v.to_owned(), "1".to_owned()), left));
        let tenants = TENANTS.iter().zip(out).map(|(t, out)| (t.parse().unwrap(), out)).collect();
        let room = Room { versions: versions.into(), tenants };
        let now = Duration::from_secs(now);
        let decision =
            decide(&heads, &fast_and_slow(quantum), &room, now, &mut Turns::default());
        let is_late = |head: &Head| head.deadline.is_some_and(|deadline| deadline <= now);
        for head in &heads {
            prop_assert_eq!(decision.expired.contains(&head.id), is_late(head));
        }
        let chosen: Vec<&Head> = decision.dispatch.iter().map(|&id| &heads[id as usize]).collect();
        prop_assert!(!chosen.iter().any(|head| is_late(head)));
        let left = after(&room, &chosen);
        prop_assert!(left.is_some(), "more than there was room for");
        let left = left.unwrap();
        for head in heads.iter().filter(|head| !is_late(head)) {
            let waits = !decision.dispatch.contains(&head.id);
            prop_assert!(!waits || after(&left, &[head]).is_none(), "{} could run", head.id);
        }
        // In a queue and version, older ones go first.
        for (at, head) in chosen.iter().enumerate() {
            let same = |other: &&&Head| {
                other.place().0 == head.place().0 && other.tenant == head.tenant
                    && other.version == head.version && other.limit.is_none()
            };
            let overtaken = chosen[at..].iter().filter(same).any(|other| other.id < head.id);
            prop_assert!(head.limit.is_some() || !overtaken);
        }
    }

    #[test]
    fn the_same_heads_in_any_order_of_queues_make_the_same_decision(
        heads in arbitrary_heads(), left in 0..20usize, quantum in 1..40u64,
    ) {
        let mut sorted = heads.clone();
        sorted.sort_by(|a, b| a.place().cmp(&b.place()));
        let policy = fast_and_slow(quantum);
        let (mut one, mut other) = (Turns::default(), Turns::default());
        for _ in 0..2 {
            let first = decide(&heads, &policy, &room(left), Duration::ZERO, &mut one);
            let second = decide(&sorted, &policy, &room(left), Duration::ZERO, &mut other);
            prop_assert_eq!(first.dispatch, second.dispatch);
            prop_assert_eq!(&one, &other);
        }
    }

    #[test]
    fn no_tenant_gets_more_than_a_quantum_and_a_task_more_than_another(
        costs in prop::collection::vec(prop::collection::vec(1..50u64, 1..6), 3),
        quantum in 1..100u64, rooms in prop::collection::vec(1..5usize, 1..60),
    ) {
        let max = *costs.iter().flatten().max().unwrap();
        let heads = endless(&["fast"], &costs, 200 * 50);
        let mut simulation = Simulation::new(heads, fast_and_slow(quantum), 0);
        let mut served: BTreeMap<String, u64> = TENANTS.map(|t| (t.to_owned(), 0)).into();
        for room in rooms {
            for head in simulation.take(room) {
                *served.get_mut(head.tenant.as_str()).unwrap() += head.cost;
                let (low, high) = (served.values().min().unwrap(), served.values().max().unwrap());
                prop_assert!(high - low <= quantum + max, "{served:?}");
            }
            let ring = simulation.turns.ring(&"fast".parse().unwrap()).unwrap();
            for tenant in TENANTS {
                prop_assert!(ring.deficit(&tenant.parse().unwrap()) <= quantum + max);
            }
        }
    }

    #[test]
    fn lanes_differ_from_their_shares_by_no_more_than_a_task_each(
        costs in prop::collection::vec(prop::collection::vec(1..50u64, 1..4), 2),
        weights in prop::array::uniform2(1..20u32), rooms in prop::collection::vec(1..5usize, 1..60),
    ) {
        let max = *costs.iter().flatten().max().unwrap() as f64;
        let policy = policy([("fast", weights[0]), ("slow", weights[1])], 20);
        let heads = endless(&["fast", "slow"], &costs, 200 * 50);
        let mut simulation = Simulation::new(heads, policy, 0);
        let mut served = [0.0, 0.0];
        let [fast, slow] = weights.map(f64::from);
        for room in rooms {
            for head in simulation.take(room) {
                served[usize::from(head.lane.as_str() == "slow")] += head.cost as f64;
                let apart = (served[0] / fast - served[1] / slow).abs();
                prop_assert!(apart <= max / fast + max / slow + 1e-6, "{served:?}");
            }
        }
    }

    /// What is served before a head that stands first in its queue, whatever else arrives: of its own lane no more than
    /// the laps that its cost takes, of each other lane that by weight, and a task more.
    #[test]
    fn nothing_starves(
        cost in 1..50u64, others in 1..6usize, weights in prop::array::uniform3(1..20u32),
        quantum in 5..60u64, noise in prop::collection::vec(1..50u64, 1..8), room in 1..4usize,
        ageing in prop::bool::ANY,
    ) {
        let max = 50;
        let mut policy = policy([("a", weights[0]), ("b", weights[1]), ("c", weights[2])], quantum);
        if ageing {
            policy.ageing = Duration::from_millis(1);
        }
        let laps = cost.div_ceil(quantum);
        let own = others as u64 * (laps * quantum + max) + cost;
        let most = if ageing { *weights.iter().max().unwrap() } else { 0 };
        let foreign: u64 = [1, 2].map(|lane| {
            let share = u64::from(weights[lane].max(most)) * (own + max);
            share.div_ceil(u64::from(weights[0])) + 2 * max
        }).iter().sum();
        let bound = own + foreign + room as u64 * max;
        let mut costs = noise.iter().cycle().copied();
        let mut turns = Turns::default();
        let mut queues: Vec<VecDeque<Head>> = Vec::new();
        for lane in ["a", "b", "c"] {
            queues.extend((0..others).map(|tenant| {
                let tenant = format!("t{tenant}");
                (0..4).map(|_| head(0, lane, &tenant, 1)).collect()
            }));
        }
        let mut next = 1;
        for queue in &mut queues {
            for head in queue {
                (head.id, head.cost) = (next, costs.next().unwrap());
                next += 1;
            }
        }
        let mut served = 0;
        let mut now = Duration::ZERO;
        loop {
            let mut heads: Vec<Head> = queues.iter().flatten().cloned().collect();
            heads.push(head(0, "a", "victim", cost));
            let decision = decide(&heads, &policy, &self::room(room), now, &mut turns);
            if decision.dispatch.contains(&0) {
                break;
            }
            for queue in &mut queues {
                while let Some(at) = queue.iter().position(|h| decision.dispatch.contains(&h.id)) {
                    let gone = queue.remove(at).unwrap();
                    served += gone.cost;
                    now += Duration::from_micros(100 * gone.cost);
                    // Another comes.
                    queue.push_back(Head {
                        id: next, cost: costs.next().unwrap(), submitted_at: now, ..gone
                    });
                    next += 1;
                }
            }
            prop_assert!(served <= bound, "{served} of {bound}");
        }
    }
}

#[test]
fn turns_remember_no_more_than_the_queues_that_are_there() {
    let mut turns = Turns::default();
    for round in 0..50 {
        let tenant = |i| format!("t{round}-{i}");
        let heads: Vec<_> = (0..20).map(|i| head(i, "fast", &tenant(i), 7)).collect();
        decide(
            &heads,
            &fast_and_slow(3),
            &room(5),
            Duration::ZERO,
            &mut turns,
        );
        let lanes = turns.lanes.values();
        assert!(lanes.map(|lane| lane.ring.deficits.len()).sum::<usize>() <= 20);
    }
}

#[test]
fn ten_thousand_queues_are_decided_on_quickly() {
    let lanes = ["a", "b", "c", "d"];
    let head = |id: u64| Head {
        limit: Some(4),
        ..head(
            id,
            lanes[id as usize % 4],
            &format!("tenant-{}", id / 4),
            1000 + id % 977,
        )
    };
    let mut heads: Vec<_> = (0..10_000).map(head).collect();
    heads.sort_by(|a, b| a.place().cmp(&b.place()));
    let mut policy = policy([("a", 8), ("b", 4), ("c", 4), ("d", 2)], 500);
    policy.ageing = Duration::from_secs(60);
    let mut turns = Turns::default();
    let now = Duration::from_secs(61);
    decide(&heads, &policy, &room(32), now, &mut turns);
    let begin = Instant::now();
    for _ in 0..10 {
        decide(&heads, &policy, &room(32), now, &mut turns);
    }
    println!(
        "10,000 queues, room for 32: {:?} a decision",
        begin.elapsed() / 10
    );
}
