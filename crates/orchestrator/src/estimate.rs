//! How long a task waits until it begins: a fluid model of the lanes and of the tenants inside them. Pure.
//!
//! Work is taken to flow: every lane that has some gets its weight's share of the rate at which the workers work, every tenant in it
//! as much as any other. So at the moment at which a task's turn comes, each other tenant of its lane has had as many quanta
//! ([`crate::schedule`]) as the task's own, or all that it has, and each other lane the same cost by weight, or all that it has. The sum
//! of these, divided by the rate, is the wait.
//!
//! What is left out: tasks that come later, ageing, and versions that keep workers of their own. The first two can only move it while
//! others come; both are small against what waits where an estimate matters.

use std::collections::BTreeMap;
use std::time::Duration;

use contract::{Lane, TenantId};

use crate::schedule::{LanePolicy, RingTurn, Turns};

/// What waits of one tenant in one lane.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct QueueLoad {
    pub(crate) lane: Lane,
    pub(crate) tenant: TenantId,
    /// Tasks.
    pub(crate) waiting: u64,
    /// Of one task, in units of work.
    pub(crate) mean_cost: u64,
}

/// The workers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Fleet {
    /// Tasks that run at once.
    pub(crate) slots: u64,
    /// Units of work that one of them gets through in a second.
    pub(crate) rate_per_slot: f64,
    /// What is left of tasks that were handed to workers, in units of work.
    pub(crate) ahead: u64,
}

/// Where a task stands.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place<'a> {
    pub(crate) lane: &'a Lane,
    pub(crate) tenant: &'a TenantId,
    /// Tasks before it in its own queue.
    pub(crate) position: u64,
    /// Tasks of its tenant that workers may have at once.
    pub(crate) limit: Option<u64>,
}

/// One moment's queues, prepared so that each of many tasks can be told its wait at the cost of a few searches.
#[derive(Debug, Clone)]
pub(crate) struct Outlook {
    lanes: BTreeMap<Lane, LaneLoad>,
    quantum: f64,
    fleet: Fleet,
    /// Of a task, over all queues.
    mean_cost: f64,
}

#[derive(Debug, Clone)]
struct LaneLoad {
    weight: f64,
    /// How far it is ahead of its turn, in cost by weight.
    ahead: f64,
    /// In order of tenants.
    queues: Vec<Queue>,
    /// What waits in each queue, from little to much …
    backlogs: Vec<f64>,
    /// … and the sums of the first 0, 1, 2 … of them.
    sums: Vec<f64>,
    /// Where in `queues` the turn stands.
    turn: usize,
    /// The turn has begun its visit there.
    begun: bool,
    /// What a queue has on the average been served beyond its quanta: what it had left, less half a task that was not whole.
    beyond: f64,
}

#[derive(Debug, Clone)]
struct Queue {
    tenant: TenantId,
    mean: f64,
    /// What is left of its quanta.
    deficit: f64,
    /// All that waits.
    work: f64,
}

impl Outlook {
    /// O(n log n) in the number of queues.
    pub(crate) fn new(
        queues: &[QueueLoad],
        policy: &LanePolicy,
        turns: &Turns,
        fleet: Fleet,
    ) -> Self {
        let mut by_lane: BTreeMap<&Lane, Vec<&QueueLoad>> = BTreeMap::new();
        for queue in queues.iter().filter(|queue| queue.waiting > 0) {
            by_lane.entry(&queue.lane).or_default().push(queue);
        }
        let (mut tasks, mut cost) = (0.0, 0.0);
        for queue in queues {
            tasks += queue.waiting as f64;
            cost += queue.waiting as f64 * queue.mean_cost as f64;
        }
        let load = |(lane, queues): (&Lane, Vec<&QueueLoad>)| {
            let mut load = LaneLoad::new(queues, turns.ring(lane));
            load.weight = policy.weight(lane) as f64;
            load.ahead = turns.ahead(lane);
            (lane.clone(), load)
        };
        Self {
            lanes: by_lane.into_iter().map(load).collect(),
            quantum: policy.quantum.max(1) as f64,
            fleet,
            mean_cost: if tasks > 0.0 { cost / tasks } else { 0.0 },
        }
    }

    /// How long until the task begins; `None` when nothing works. Some hundred nanoseconds.
    pub(crate) fn wait(&self, place: Place<'_>) -> Option<Duration> {
        let Fleet {
            slots,
            rate_per_slot,
            ahead,
        } = self.fleet;
        let rate = slots as f64 * rate_per_slot;
        if !(rate.is_finite() && rate > 0.0) {
            return None;
        }
        let before = self.work_before(place);
        // A slot becomes free while the others are, on average, in the middle of a task.
        let under_way = (slots as f64 - 1.0) / 2.0 * self.mean_cost;
        let mut seconds = (ahead as f64 + before - under_way).max(0.0) / rate;
        if let (Some(limit), Some(load)) = (place.limit, self.lanes.get(place.lane)) {
            // However much room there is, its tenant's own tasks go few at a time.
            let mean = load.find(place.tenant).map_or(0.0, |(_, queue)| queue.mean);
            let rounds = place.position as f64 / limit.max(1) as f64;
            seconds = seconds.max(rounds * mean / rate_per_slot);
        }
        Duration::try_from_secs_f64(seconds).ok()
    }

    /// What is handed out before the task, in units of work.
    fn work_before(&self, place: Place<'_>) -> f64 {
        let Some(own) = self.lanes.get(place.lane) else {
            return 0.0;
        };
        let in_lane = own.work_before(place, self.quantum);
        let tag = own.ahead + in_lane / own.weight;
        let others = self.lanes.iter().filter(|(lane, _)| *lane != place.lane);
        let served = |(_, lane): (&Lane, &LaneLoad)| {
            ((tag - lane.ahead).max(0.0) * lane.weight).min(lane.total())
        };
        in_lane + others.map(served).sum::<f64>()
    }
}

impl LaneLoad {
    fn new(mut queues: Vec<&QueueLoad>, ring: Option<&RingTurn>) -> Self {
        queues.sort_by(|a, b| a.tenant.cmp(&b.tenant));
        let work = |queue: &&QueueLoad| queue.waiting as f64 * queue.mean_cost as f64;
        let mut backlogs: Vec<f64> = queues.iter().map(work).collect();
        backlogs.sort_by(f64::total_cmp);
        let sum = |sum: &mut f64, work: &f64| {
            *sum += work;
            Some(*sum)
        };
        let sums = std::iter::once(0.0)
            .chain(backlogs.iter().scan(0.0, sum))
            .collect();
        let at = ring.and_then(RingTurn::at);
        let turn = at.map_or(0, |at| queues.partition_point(|queue| queue.tenant < *at));
        let begun = queues
            .get(turn)
            .is_some_and(|queue| Some(&queue.tenant) == at);
        let left = |queue: &&QueueLoad| ring.map_or(0, |ring| ring.deficit(&queue.tenant)) as f64;
        let beyond = |queue: &&QueueLoad| left(queue) - queue.mean_cost as f64 / 2.0;
        let beyond = queues.iter().map(beyond).sum::<f64>() / queues.len().max(1) as f64;
        let known = |queue: &QueueLoad| Queue {
            tenant: queue.tenant.clone(),
            mean: queue.mean_cost as f64,
            deficit: left(&queue),
            work: work(&queue),
        };
        Self {
            weight: 1.0,
            ahead: 0.0,
            queues: queues.into_iter().map(known).collect(),
            backlogs,
            sums,
            turn,
            begun,
            beyond,
        }
    }

    fn find(&self, tenant: &TenantId) -> Option<(usize, &Queue)> {
        let found = self
            .queues
            .binary_search_by(|queue| queue.tenant.cmp(tenant));
        let index = found.ok()?;
        Some((index, self.queues.get(index)?))
    }

    fn total(&self) -> f64 {
        self.sums.last().copied().unwrap_or(0.0)
    }

    /// What all tenants together have been served when each has had `each` at most.
    fn served(&self, each: f64) -> f64 {
        let done = self.backlogs.partition_point(|&work| work <= each);
        let rest = (self.backlogs.len() - done) as f64;
        self.sums.get(done).copied().unwrap_or(0.0) + rest * each.max(0.0)
    }

    /// What is handed out in the lane before the task.
    fn work_before(&self, place: Place<'_>, quantum: f64) -> f64 {
        let Some((index, queue)) = self.find(place.tenant) else {
            return 0.0;
        };
        let (mean, deficit) = (queue.mean, queue.deficit);
        let count = self.queues.len();
        let steps = (index + count - self.turn.min(count)) % count;
        let visiting = self.begun && steps == 0;
        let own = place.position as f64 * mean;
        let missing = ((own + mean - deficit) / quantum).ceil();
        // Quanta that those before it in the ring have had by then, and those behind it.
        let (before, behind) = if visiting {
            (missing.max(0.0), missing.max(0.0))
        } else {
            (missing.max(1.0), missing.max(1.0) - 1.0)
        };
        let share = if count > 1 && !visiting {
            (steps as f64 - f64::from(u8::from(self.begun))).max(0.0) / (count - 1) as f64
        } else {
            0.0
        };
        let others = |quanta: f64| {
            let each = (quanta * quantum + self.beyond).max(0.0);
            let own_part = each.min(queue.work);
            (self.served(each) - own_part).max(0.0)
        };
        let low = others(behind);
        own + low + share * (others(before) - low)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use proptest::strategy::ValueTree as _;
    use proptest::test_runner::TestRunner;

    use super::*;
    use crate::schedule::Head;
    use crate::schedule::simulation::{Simulation, head, policy};

    fn loads(simulation: &Simulation) -> Vec<QueueLoad> {
        let load =
            |((lane, tenant), heads): (&(Lane, TenantId), &std::collections::VecDeque<Head>)| {
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

    /// When each waiting task begins, as it is told now.
    fn told(simulation: &Simulation, slots: u64) -> BTreeMap<u64, Duration> {
        let fleet = Fleet {
            slots,
            rate_per_slot: 1e6,
            ahead: simulation.running_cost(),
        };
        let loads = loads(simulation);
        let outlook = Outlook::new(&loads, &simulation.policy, &simulation.turns, fleet);
        let mut told = BTreeMap::new();
        for ((lane, tenant), heads) in &simulation.queues {
            for (position, head) in heads.iter().enumerate() {
                let position = position as u64;
                let place = Place {
                    lane,
                    tenant,
                    position,
                    limit: None,
                };
                told.insert(head.id, simulation.now + outlook.wait(place).unwrap());
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

    #[test]
    fn a_lone_queue_waits_for_what_is_before_it() {
        let queues = [QueueLoad {
            lane: "fast".parse().unwrap(),
            tenant: "t".parse().unwrap(),
            waiting: 100,
            mean_cost: 2_000_000,
        }];
        let policy = policy([("fast", 1)], 1_000_000);
        let wait = |slots, position, limit| {
            let fleet = Fleet {
                slots,
                rate_per_slot: 1e6,
                ahead: 0,
            };
            let outlook = Outlook::new(&queues, &policy, &Turns::default(), fleet);
            let (lane, tenant) = (&queues[0].lane, &queues[0].tenant);
            outlook.wait(Place {
                lane,
                tenant,
                position,
                limit,
            })
        };
        assert_eq!(wait(1, 10, None), Some(Duration::from_secs(20)));
        assert_eq!(wait(2, 10, Some(1)), Some(Duration::from_secs(20)));
        assert_eq!(wait(0, 10, None), None);
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
}
