//! Between lanes: each gets its weight's share of the cost that is served, by start-time fair queuing (Goyal, Vin and Cheng, 1996).
//!
//! A lane's tag is the cost that it has been served divided by its weight; the lane with the lowest goes next. One that had nothing to
//! run begins where the others are, so that it saves up nothing. Two lanes that always have something to run differ by no more than
//! one task's cost by weight each.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::time::Duration;

use contract::Lane;

use super::fair::Ring;
use super::room::Gate;
use super::{Head, LaneTurn, Turns};

/// Tags are in this part of a unit of cost by weight: divisions lose nothing that counts.
pub(super) const SCALE: u128 = 1 << 20;

/// How lanes share.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LanePolicy {
    /// Shares of the cost served, while several lanes have something to run; a lane not named has 1.
    pub(crate) weights: BTreeMap<Lane, u32>,
    /// Cost that a tenant is served at a time.
    pub(crate) quantum: u64,
    /// For each time that a lane's oldest head has waited so long, the lane has its weight once more, up to the greatest weight of all.
    /// Zero: never.
    pub(crate) ageing: Duration,
}

impl LanePolicy {
    /// A lane's share.
    pub(crate) fn weight(&self, lane: &Lane) -> u64 {
        u64::from(self.weights.get(lane).copied().unwrap_or(1).max(1))
    }

    /// A lane's share while its oldest head has waited so long.
    pub(super) fn aged_weight(&self, lane: &Lane, waited: Duration) -> u64 {
        let weight = self.weight(lane);
        let Some(times) = waited.as_nanos().checked_div(self.ageing.as_nanos()) else {
            return weight;
        };
        let most = self.weights.values().copied().max().unwrap_or(1);
        let grown = u128::from(weight).saturating_mul(times.saturating_add(1));
        u64::try_from(grown)
            .unwrap_or(u64::MAX)
            .clamp(weight, u64::from(most).max(weight))
    }
}

/// The lanes on their way through one decision.
pub(super) struct Race<'a> {
    policy: &'a LanePolicy,
    now: Duration,
    lanes: Vec<Runner<'a>>,
    /// The tag that was served last.
    clock: u128,
}

struct Runner<'a> {
    lane: &'a Lane,
    ring: Ring<'a>,
    tag: u128,
    /// Heads that have waited for long: when they came, index of their queue, id.
    aged: BinaryHeap<Reverse<(Duration, usize, u64)>>,
}

impl<'a> Race<'a> {
    /// `heads` are sorted by (lane, tenant, id).
    pub(super) fn new(
        heads: &'a [&'a Head],
        policy: &'a LanePolicy,
        now: Duration,
        turns: &Turns,
        gate: &Gate<'_>,
    ) -> Self {
        let runner = |heads: &'a [&'a Head]| {
            let lane = &heads.first()?.lane;
            let turn = turns.lanes.get(lane);
            let ring = Ring::new(heads, policy.quantum, turn.map(|turn| &turn.ring), gate);
            let old = |(index, head)| aged(index, head, now, policy.ageing);
            Some(Runner {
                aged: ring.heads().filter_map(old).collect(),
                lane,
                ring,
                tag: turn.map_or(0, |turn| turn.ahead),
            })
        };
        let by_lane = heads.chunk_by(|a, b| a.lane == b.lane);
        Self {
            policy,
            now,
            lanes: by_lane.filter_map(runner).collect(),
            clock: 0,
        }
    }

    /// The head that goes next; the gate has taken it.
    pub(super) fn next(&mut self, gate: &mut Gate<'a>) -> Option<&'a Head> {
        let (clock, policy) = (self.clock, self.policy);
        let start = |(index, runner): (usize, &mut Runner<'a>)| {
            runner.ring.peek(gate)?;
            let weight = Reverse(policy.weight(runner.lane));
            Some((runner.tag.max(clock), weight, index))
        };
        let (start, _, index) = self.lanes.iter_mut().enumerate().filter_map(start).min()?;
        let runner = self.lanes.get_mut(index)?;
        let head = runner.ring.peek(gate)?;
        let weight = policy.aged_weight(runner.lane, runner.waited(self.now, policy.ageing));
        gate.take(head);
        runner.ring.serve(gate);
        runner.tag = start + u128::from(head.cost()) * SCALE / u128::from(weight);
        self.clock = start;
        Some(head)
    }

    /// Keeps what the next decision has to know.
    pub(super) fn save(self, turns: &mut Turns) {
        let mut before = std::mem::take(&mut turns.lanes);
        for runner in self.lanes {
            let turn = before.remove(runner.lane);
            let kept = LaneTurn {
                ahead: runner.tag.saturating_sub(self.clock),
                ring: runner.ring.save(turn.as_ref().map(|turn| &turn.ring)),
            };
            turns.lanes.insert(runner.lane.clone(), kept);
        }
        // A lane that comes and goes owes what it was served: else it would be first each time. Only lanes of the policy, so that
        // there are no more of them than it has.
        for (lane, turn) in before {
            let ahead = turn.ahead.saturating_sub(self.clock);
            if ahead > 0 && self.policy.weights.contains_key(&lane) {
                let ring = Default::default();
                turns.lanes.insert(lane, LaneTurn { ahead, ring });
            }
        }
    }
}

impl Runner<'_> {
    /// How long the oldest of the heads has waited that waited for long.
    fn waited(&mut self, now: Duration, ageing: Duration) -> Duration {
        while let Some(&Reverse((since, index, id))) = self.aged.peek() {
            match self.ring.head_of(index) {
                Some(head) if head.id == id => return now.saturating_sub(since),
                // That one was served, or shut out: another one stands in its queue's front.
                next => {
                    self.aged.pop();
                    let next = next.and_then(|head| aged(index, head, now, ageing));
                    self.aged.extend(next);
                }
            }
        }
        Duration::ZERO
    }
}

/// A queue's head as one that has waited for long, if it has.
fn aged(
    index: usize,
    head: &Head,
    now: Duration,
    ageing: Duration,
) -> Option<Reverse<(Duration, usize, u64)>> {
    let old = !ageing.is_zero() && now.saturating_sub(head.submitted_at) >= ageing;
    old.then_some(Reverse((head.submitted_at, index, head.id)))
}
