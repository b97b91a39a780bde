//! Queues and workers without a broker: the real decisions, with durations that are known.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};
use std::time::Duration;

use contract::{Lane, TenantId};

use super::{Head, LanePolicy, Room, Turns, Version, decide};

/// Heads of one queue that a decision sees.
const WINDOW: usize = 8;

pub(crate) fn version() -> Version {
    ("m".to_owned(), "1".to_owned())
}

/// A head of cost `cost` that came at the beginning.
pub(crate) fn head(id: u64, lane: &str, tenant: &str, cost: u64) -> Head {
    Head {
        id,
        lane: lane.parse().unwrap(),
        tenant: tenant.parse().unwrap(),
        version: version(),
        cost,
        submitted_at: Duration::ZERO,
        deadline: None,
        limit: None,
    }
}

pub(crate) fn policy<const N: usize>(weights: [(&str, u32); N], quantum: u64) -> LanePolicy {
    let weights = weights.map(|(lane, weight)| (lane.parse().unwrap(), weight));
    LanePolicy {
        weights: weights.into(),
        quantum,
        ageing: Duration::ZERO,
    }
}

/// A backlog, and workers that have one task each; a unit of cost takes a microsecond.
#[derive(Debug)]
pub(crate) struct Simulation {
    pub(crate) queues: BTreeMap<(Lane, TenantId), VecDeque<Head>>,
    pub(crate) policy: LanePolicy,
    pub(crate) turns: Turns,
    pub(crate) now: Duration,
    free: usize,
    running: BinaryHeap<Reverse<(Duration, u64)>>,
}

impl Simulation {
    pub(crate) fn new(heads: Vec<Head>, policy: LanePolicy, workers: usize) -> Self {
        let mut queues: BTreeMap<_, VecDeque<Head>> = BTreeMap::new();
        for head in heads {
            let key = (head.lane.clone(), head.tenant.clone());
            queues.entry(key).or_default().push_back(head);
        }
        Self {
            queues,
            policy,
            turns: Turns::default(),
            now: Duration::ZERO,
            free: workers,
            running: BinaryHeap::new(),
        }
    }

    /// Decides with room for `room` tasks, and takes those that were chosen out of the backlog.
    pub(crate) fn take(&mut self, room: usize) -> Vec<Head> {
        let seen = |queue: &VecDeque<Head>| queue.iter().take(WINDOW).cloned().collect::<Vec<_>>();
        let heads: Vec<Head> = self.queues.values().flat_map(seen).collect();
        let room = Room {
            versions: [(version(), room)].into(),
            tenants: BTreeMap::new(),
        };
        let decision = decide(&heads, &self.policy, &room, self.now, &mut self.turns);
        let by_id: BTreeMap<u64, &Head> = heads.iter().map(|head| (head.id, head)).collect();
        let taken = decision.dispatch.iter().map(|id| by_id[id].clone());
        let taken: Vec<Head> = taken.collect();
        for head in &taken {
            let key = (head.lane.clone(), head.tenant.clone());
            let queue = self.queues.get_mut(&key).unwrap();
            queue.retain(|other| other.id != head.id);
            if queue.is_empty() {
                self.queues.remove(&key);
            }
        }
        taken
    }

    /// Goes on to the next moment at which something begins; what began, and when. Empty at the end.
    pub(crate) fn begin_more(&mut self) -> Vec<Head> {
        while !self.queues.is_empty() {
            let begun = self.take(self.free);
            if !begun.is_empty() {
                self.free -= begun.len();
                for head in &begun {
                    let end = self.now + Duration::from_micros(head.cost);
                    self.running.push(Reverse((end, head.id)));
                }
                return begun;
            }
            let Some(Reverse((end, _))) = self.running.pop() else {
                break;
            };
            self.now = end;
            self.free += 1;
        }
        Vec::new()
    }

    /// What is left of each task that runs, in units of cost.
    pub(crate) fn running(&self) -> impl Iterator<Item = u64> {
        let now = self.now;
        let running = self.running.iter();
        running.map(move |Reverse((end, _))| (*end - now).as_micros() as u64)
    }
}
