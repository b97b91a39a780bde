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

mod lane;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::time::Duration;

use contract::{Lane, TenantId};

use crate::ahead::Ahead;
use crate::schedule::{LanePolicy, Turns};
use lane::LaneLoad;

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
