//! What runs next: a pure function from the queues' heads, a policy and the room to decisions.
//!
//! A queue is what waits of one tenant in one lane. [`lanes`] says which lane goes next: each gets its weight's share of the *cost*
//! that is served, not of the tasks. [`fair`] says which tenant inside it: deficit round robin, in cost again. A head that has waited
//! for long gives its lane weight until it is served. A version without room blocks its own tasks alone, a tenant that has as many
//! tasks at workers as its policy allows nobody but itself, and a head whose deadline has passed is named as expired.

mod fair;
mod lanes;
mod room;
#[cfg(test)]
pub(crate) mod simulation;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::time::Duration;

use contract::{Lane, TenantId};

pub(crate) use fair::RingTurn;
pub(crate) use lanes::LanePolicy;
pub(crate) use room::Room;

/// A model version, as (model, version).
pub(crate) type Version = (String, String);

/// One waiting task that could run next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Head {
    /// Names the head in the decision; grows with arrival.
    pub(crate) id: u64,
    pub(crate) lane: Lane,
    pub(crate) tenant: TenantId,
    pub(crate) version: Version,
    /// What it takes of a device, in units of work; 0 counts as 1.
    pub(crate) cost: u64,
    /// Since the UNIX epoch.
    pub(crate) submitted_at: Duration,
    /// When it is of no use any more, since the UNIX epoch.
    pub(crate) deadline: Option<Duration>,
    /// Tasks of its tenant that workers may have at once.
    pub(crate) limit: Option<usize>,
}

impl Head {
    fn cost(&self) -> u64 {
        self.cost.max(1)
    }

    fn is_expired(&self, now: Duration) -> bool {
        self.deadline.is_some_and(|deadline| deadline <= now)
    }

    fn place(&self) -> (&Lane, &TenantId, u64) {
        (&self.lane, &self.tenant, self.id)
    }
}

/// What fairness remembers between decisions: something of each lane, and of each queue that was there at the last one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Turns {
    lanes: BTreeMap<Lane, LaneTurn>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct LaneTurn {
    /// How far it is ahead of the others, in cost by weight (scaled by [`lanes::SCALE`]).
    ahead: u128,
    ring: RingTurn,
}

impl Turns {
    /// How far a lane is ahead of its turn, in cost by weight.
    pub(crate) fn ahead(&self, lane: &Lane) -> f64 {
        let ahead = self.lanes.get(lane).map_or(0, |turn| turn.ahead);
        ahead as f64 / lanes::SCALE as f64
    }

    /// What deficit round robin remembers of a lane.
    pub(crate) fn ring(&self, lane: &Lane) -> Option<&RingTurn> {
        self.lanes.get(lane).map(|turn| &turn.ring)
    }
}

/// What to do with the heads; those in neither list stay.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Decision {
    /// To be handed to workers, in this order.
    pub(crate) dispatch: Vec<u64>,
    /// To be ended: their deadline has passed.
    pub(crate) expired: Vec<u64>,
}

/// Decides. `heads` come queue by queue, each in order of id; that of the queues does not matter, but in order of (lane, tenant) they
/// need not be sorted again. `now` is since the UNIX epoch.
pub(crate) fn decide(
    heads: &[Head],
    lanes: &LanePolicy,
    room: &Room,
    now: Duration,
    turns: &mut Turns,
) -> Decision {
    let (expired, mut waiting): (Vec<&Head>, Vec<&Head>) =
        heads.iter().partition(|head| head.is_expired(now));
    if !waiting.is_sorted_by_key(|head| head.place()) {
        waiting.sort_by(|a, b| a.place().cmp(&b.place()));
    }
    let mut gate = room::Gate::new(room);
    let mut race = lanes::Race::new(&waiting, lanes, now, turns, &gate);
    let mut dispatch = Vec::new();
    while let Some(head) = race.next(&mut gate) {
        dispatch.push(head.id);
    }
    race.save(turns);
    Decision {
        dispatch,
        expired: expired.into_iter().map(|head| head.id).collect(),
    }
}
