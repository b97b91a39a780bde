//! One lane's queues, and what is handed out there before a task's turn comes. Pure.

use contract::TenantId;

use super::{Place, QueueLoad};
use crate::schedule::RingTurn;

#[derive(Debug, Clone)]
pub(super) struct LaneLoad {
    pub(super) weight: f64,
    /// How far it is ahead of its turn, in cost by weight.
    pub(super) ahead: f64,
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
pub(super) struct Queue {
    tenant: TenantId,
    pub(super) mean: f64,
    /// What is left of its quanta.
    deficit: f64,
    /// All that waits.
    work: f64,
}

impl LaneLoad {
    /// `usual`: what a task costs of which nothing else is known.
    pub(super) fn new(mut queues: Vec<&QueueLoad>, ring: Option<&RingTurn>, usual: f64) -> Self {
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

    pub(super) fn find(&self, tenant: &TenantId) -> Option<(usize, &Queue)> {
        let found = self
            .queues
            .binary_search_by(|queue| queue.tenant.cmp(tenant));
        let index = found.ok()?;
        Some((index, self.queues.get(index)?))
    }

    pub(super) fn total(&self) -> f64 {
        self.sums.last().copied().unwrap_or(0.0)
    }

    /// What all tenants together have been served when each has had `each` at most.
    fn served(&self, each: f64) -> f64 {
        let done = self.backlogs.partition_point(|&work| work <= each);
        let rest = (self.backlogs.len() - done) as f64;
        self.sums.get(done).copied().unwrap_or(0.0) + rest * each.max(0.0)
    }

    /// What is handed out in the lane before the task.
    pub(super) fn work_before(&self, place: Place<'_>, quantum: f64) -> f64 {
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
