//! How long a task waits until it begins: a fluid model of the lanes and of the tenants inside them. Pure.
//!
//! Work is taken to flow: every lane that has some gets its weight's share of the rate at which the workers work, every tenant in it
//! as much as any other ([`lane`]). So at the moment at which a task's turn comes, each other tenant of its lane has had as many quanta
//! ([`crate::schedule`]) as the task's own, or all that it has, and each other lane the same cost by weight, or all that it has. The sum
//! of these is what goes before it.
//!
//! Before all that come those that workers have: what is left of those that run, and those that were handed over earlier. Of these each
//! one's cost is known, so it is worked out when the workers' slots are free of them, and then of what waits before the task
//! ([`slots`]): the wait ends when the first of them is.
//!
//! What is left out: tasks that come later, ageing, and versions that keep workers of their own. The first two can only move it while
//! others come; both are small against what waits where an estimate matters.

mod lane;
#[cfg(test)]
mod sharing_tests;
mod slots;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::time::Duration;

use contract::{Lane, TenantId};

use crate::ahead::Ahead;
use crate::schedule::{LanePolicy, Turns};
use lane::LaneLoad;
pub(crate) use slots::Slots;

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
    /// The same of one task that runs while all slots are taken …
    pub(crate) speed: f64,
    /// … and of one that has a device to itself.
    pub(crate) alone: f64,
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

    /// How long until a task begins that waits in its queue, behind all that workers have; `None` when nothing works. It takes
    /// some microseconds, and longer the more slots workers have.
    pub(crate) fn wait(&self, place: Place<'_>, ahead: &Ahead) -> Option<Duration> {
        let usual = place.cost as f64;
        let seconds = self.seconds(ahead, self.work_before(place), usual)?;
        let limited = match place.limit {
            // However much room there is, its tenant's own tasks go few at a time.
            Some(limit) => self.rounds(place, limit.max(1)),
            None => 0.0,
        };
        Duration::try_from_secs_f64(seconds.max(limited)).ok()
    }

    /// The same of one that was handed to workers.
    pub(crate) fn wait_at_workers(&self, ahead: &Ahead) -> Option<Duration> {
        Duration::try_from_secs_f64(self.seconds(ahead, 0.0, 0.0)?).ok()
    }

    /// Until a slot is free, when so much work goes before besides what workers have. `usual`: what a task costs if nothing is known of
    /// any that waits or that workers have.
    fn seconds(&self, ahead: &Ahead, before: f64, usual: f64) -> Option<f64> {
        let rate = self.fleet.rate;
        if !(rate.is_finite() && rate > 0.0) {
            return None;
        }
        let known = [self.mean_cost, ahead.mean_cost];
        let mean = known.into_iter().find(|mean| *mean > 0.0).unwrap_or(usual);
        let tasks = if mean > 0.0 { before / mean } else { 0.0 };
        // All slots are taken until then, so each has an equal part of what is got through.
        let work = ahead.slots.until_free(tasks, mean) * ahead.slots.count() as f64;
        Some(work / rate)
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
