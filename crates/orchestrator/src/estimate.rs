//! How long a task waits until it begins: a fluid model of the lanes and of the tenants inside them. Pure.
//!
//! Work is taken to flow: every lane that has some gets its weight's share of the rate at which the workers work, every tenant in it
//! as much as any other. So at the moment at which a task's turn comes, each other tenant of its lane has had as many quanta
//! ([`crate::schedule`]) as the task's own, or all that it has, and each other lane the same cost by weight, or all that it has. The sum
//! of these, divided by the rate, is the wait.
//!
//! A task that was handed to workers and has not begun waits for those that were handed over before it. Every task also waits for what
//! is left of those that run.
//!
//! What is left out: tasks that come later, ageing, and versions that keep workers of their own. The first two can only move it while
//! others come; both are small against what waits where an estimate matters.

use std::collections::BTreeMap;
use std::time::Duration;

use contract::{Lane, TenantId};

use crate::ahead::Ahead;
use crate::schedule::{LanePolicy, RingTurn, Turns};

/// What waits of one tenant in one lane.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct QueueLoad {
    pub(crate) lane: Lane,
    pub(crate) tenant: TenantId,
    /// Tasks.
    pub(crate) waiting: u64,
    /// Of one task, in units of work; 0 where that is not known.
    pub(crate) mean_cost: u64,
}

/// The workers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Fleet {
    /// Tasks that run at once.
    pub(crate) slots: f64,
    /// Units of work that they get through in a second, all together.
    pub(crate) rate: f64,
    /// The same of one task that runs while all slots are taken.
    pub(crate) speed: f64,
}

/// Where a task stands that waits in its queue.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place<'a> {
    pub(crate) lane: &'a Lane,
    pub(crate) tenant: &'a TenantId,
    /// Tasks before it in its own queue.
    pub(crate) position: u64,
    /// What tasks cost, in units of work, where nothing is known of its queue.
    pub(crate) cost: u64,
    /// Tasks of its tenant that workers may have at once …
    pub(crate) limit: Option<u64>,
    /// … and that they have.
    pub(crate) handed: u64,
}

/// One moment's queues, prepared so that each of many tasks can be told its wait at the cost of a few searches.
#[derive(Debug, Clone)]
pub(crate) struct Outlook {
    lanes: BTreeMap<Lane, LaneLoad>,
    policy: LanePolicy,
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
        for queue in queues.iter().filter(|queue| queue.mean_cost > 0) {
            tasks += queue.waiting as f64;
            cost += queue.waiting as f64 * queue.mean_cost as f64;
        }
        let mean_cost = if tasks > 0.0 { cost / tasks } else { 0.0 };
        let load = |(lane, queues): (&Lane, Vec<&QueueLoad>)| {
            let mut load = LaneLoad::new(queues, turns.ring(lane), mean_cost);
            load.weight = policy.weight(lane) as f64;
            load.ahead = turns.ahead(lane);
            (lane.clone(), load)
        };
        Self {
            lanes: by_lane.into_iter().map(load).collect(),
            policy: policy.clone(),
            quantum: policy.quantum.max(1) as f64,
            fleet,
            mean_cost,
        }
    }

    /// The workers.
    pub(crate) fn fleet(&self) -> &Fleet {
        &self.fleet
    }

    /// How long until a task begins that waits in its queue, behind all that workers have; `None` when nothing works. Some hundred
    /// nanoseconds.
    pub(crate) fn wait(&self, place: Place<'_>, ahead: Ahead) -> Option<Duration> {
        let seconds = self.seconds(ahead, self.work_before(place))?;
        let limited = match place.limit {
            // However much room there is, its tenant's own tasks go few at a time.
            Some(limit) => self.rounds(place, limit.max(1)),
            None => 0.0,
        };
        Duration::try_from_secs_f64(seconds.max(limited)).ok()
    }

    /// The same of one that was handed to workers.
    pub(crate) fn wait_at_workers(&self, ahead: Ahead) -> Option<Duration> {
        Duration::try_from_secs_f64(self.seconds(ahead, 0.0)?).ok()
    }

    fn seconds(&self, ahead: Ahead, before: f64) -> Option<f64> {
        let Fleet { slots, rate, .. } = self.fleet;
        if !(rate.is_finite() && rate > 0.0) {
            return None;
        }
        let mean = match self.mean_cost > 0.0 {
            true => self.mean_cost,
            false => ahead.mean_cost,
        };
        let others = ahead.tasks as f64 + if mean > 0.0 { before / mean } else { 0.0 };
        if others + 0.5 < slots {
            return Some(0.0);
        }
        // A slot becomes free while the others are, on average, in the middle of a task.
        let under_way = (slots - 1.0).max(0.0) / 2.0 * mean;
        Some((ahead.work + before - under_way).max(0.0) / rate)
    }

    /// How long its tenant's own tasks take that go before it, in seconds.
    fn rounds(&self, place: Place<'_>, limit: u64) -> f64 {
        let own = self.lanes.get(place.lane);
        let known = own.and_then(|load| load.find(place.tenant));
        let mean = known.map_or(place.cost as f64, |(_, queue)| queue.mean);
        let before = place.position as f64 + place.handed as f64;
        let rounds = (before + 1.0 - limit as f64).max(0.0) / limit as f64;
        if self.fleet.speed > 0.0 {
            rounds * mean / self.fleet.speed
        } else {
            0.0
        }
    }

    /// What is handed out before the task, in units of work.
    fn work_before(&self, place: Place<'_>) -> f64 {
        let (ahead, weight, in_lane) = match self.lanes.get(place.lane) {
            Some(own) => {
                let in_lane = own.work_before(place, self.quantum);
                (own.ahead, own.weight, in_lane)
            }
            // A lane that had nothing begins where the others are.
            None => {
                let least = self.lanes.values().map(|lane| lane.ahead);
                let ahead = least.reduce(f64::min).unwrap_or(0.0);
                let own = place.position as f64 * place.cost as f64;
                (ahead, self.policy.weight(place.lane) as f64, own)
            }
        };
        let tag = ahead + in_lane / weight;
        let others = self.lanes.iter().filter(|(lane, _)| *lane != place.lane);
        let served = |(_, lane): (&Lane, &LaneLoad)| {
            ((tag - lane.ahead).max(0.0) * lane.weight).min(lane.total())
        };
        in_lane + others.map(served).sum::<f64>()
    }
}

impl LaneLoad {
    /// `usual`: what a task costs of which nothing else is known.
    fn new(mut queues: Vec<&QueueLoad>, ring: Option<&RingTurn>, usual: f64) -> Self {
        queues.sort_by(|a, b| a.tenant.cmp(&b.tenant));
        let mean = |queue: &QueueLoad| match queue.mean_cost {
            0 => usual,
            mean => mean as f64,
        };
        let work = |queue: &&QueueLoad| queue.waiting as f64 * mean(queue);
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
        let beyond = |queue: &&QueueLoad| left(queue) - mean(queue) / 2.0;
        let beyond = queues.iter().map(beyond).sum::<f64>() / queues.len().max(1) as f64;
        let known = |queue: &QueueLoad| Queue {
            tenant: queue.tenant.clone(),
            mean: mean(queue),
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
        let cost = place.cost as f64;
        let found = self.find(place.tenant);
        let known = found.map(|(_, queue)| (queue.mean, queue.deficit, queue.work));
        let (mean, deficit, work) = known.unwrap_or((cost, 0.0, 0.0));
        let mean = if mean > 0.0 { mean } else { cost };
        let there = self.queues.len();
        // One that is new goes into the ring where its tenant belongs.
        let (index, count, turn) = match found {
            Some((index, _)) => (index, there, self.turn),
            None => {
                let index = self.queues.partition_point(|q| q.tenant < *place.tenant);
                let turn = self.turn + usize::from(index <= self.turn);
                (index, there + 1, turn)
            }
        };
        let steps = (index + count - turn.min(count)) % count;
        let visiting = self.begun && steps == 0 && found.is_some();
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
            let own_part = each.min(work);
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

    fn fleet(slots: u64) -> Fleet {
        Fleet {
            slots: slots as f64,
            rate: slots as f64 * 1e6,
            speed: 1e6,
        }
    }

    /// When each waiting task begins, as it is told now.
    fn told(simulation: &Simulation, slots: u64) -> BTreeMap<u64, Duration> {
        let left = simulation.running_cost();
        let ahead = Ahead {
            tasks: if left > 0 { slots } else { 0 },
            work: left as f64,
            mean_cost: 0.0,
        };
        let loads = loads(simulation);
        let fleet = fleet(slots);
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
                let wait = outlook.wait(place, ahead).unwrap();
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
        outlook.wait(place, Ahead::default())
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
            outlook.wait(place, Ahead::default())
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
        };
        let outlook = Outlook::new(&queues, &policy, &Turns::default(), shared);
        // Twenty before it, less two that are half done when it begins.
        let wait = wait_of(&outlook, "fast", "t", 20).unwrap();
        assert_eq!(wait, Duration::from_secs(38));
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
}
