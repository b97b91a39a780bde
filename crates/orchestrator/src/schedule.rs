//! What runs next: a pure function from backlog heads, weights and room to decisions.
//!
//! Lanes take turns in proportion to their weights (smooth weighted round robin, as in nginx); inside a lane the tenant
//! that was served longest ago goes first. A model version without room blocks its own tasks and, while its heads fill a lane, for
//! some seconds those behind them. A tenant that has as many tasks at workers as its policy allows blocks nobody: all but a few of
//! its heads are put aside.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;

use contract::{Lane, TenantId};

/// A model version, as (model, version).
pub(crate) type Version = (String, String);

/// Heads that a tenant at its limit keeps in a lane, so that the next ones are at hand when tasks of its end: as many as its limit, within
/// these.
const KEPT_AT_LIMIT: RangeInclusive<usize> = 4..=16;

/// One waiting task that could run next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Head {
    /// Names the head in the decision; grows with arrival.
    pub(crate) id: u64,
    pub(crate) lane: Lane,
    pub(crate) tenant: TenantId,
    pub(crate) version: Version,
    /// Tasks of its tenant that workers may have at once.
    pub(crate) limit: Option<usize>,
}

/// What there is room for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Room {
    /// How many more dispatches each version may have; a version not named has none.
    pub(crate) versions: BTreeMap<Version, usize>,
    /// How many dispatches each tenant has.
    pub(crate) tenants: BTreeMap<TenantId, usize>,
}

impl Room {
    fn within_limit(&self, head: &Head) -> bool {
        let out = self.tenants.get(&head.tenant).copied().unwrap_or(0);
        head.limit.is_none_or(|limit| out < limit)
    }

    fn can_run(&self, head: &Head) -> bool {
        let left = self.versions.get(&head.version);
        left.is_some_and(|&left| left > 0) && self.within_limit(head)
    }

    fn take(&mut self, head: &Head) {
        if let Some(left) = self.versions.get_mut(&head.version) {
            *left -= 1;
        }
        *self.tenants.entry(head.tenant.clone()).or_default() += 1;
    }
}

/// What fairness remembers between decisions.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Turns {
    /// What each lane is owed.
    credits: BTreeMap<Lane, i64>,
    /// When each tenant with heads was last served, in picks.
    served: BTreeMap<(Lane, TenantId), u64>,
    picks: u64,
}

/// What to do with the heads; those in neither list stay.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Decision {
    /// To be handed to workers, in this order.
    pub(crate) dispatch: Vec<u64>,
    /// To be put back into the backlog, because they block others of their lane from being seen.
    pub(crate) give_back: Vec<u64>,
    /// The same, because their tenant is at its limit: for longer, for nobody knows when one of its tasks ends.
    pub(crate) put_aside: Vec<u64>,
}

/// Decides. `heads_per_lane` is how many heads a lane can hold: a full lane of which nothing can run gives half of it back.
pub(crate) fn decide(
    heads: &[Head],
    weights: &BTreeMap<Lane, u32>,
    room: &Room,
    heads_per_lane: usize,
    turns: &mut Turns,
) -> Decision {
    let mut room = room.clone();
    let mut waiting: Vec<&Head> = heads.iter().collect();
    let mut decision = Decision::default();
    while let Some(at) = pick(&waiting, weights, &room, turns) {
        let head = waiting.remove(at);
        room.take(head);
        decision.dispatch.push(head.id);
    }
    turns.forget_absent(heads);
    decision.put_aside = at_limit(&waiting, &room);
    waiting.retain(|head| !decision.put_aside.contains(&head.id));
    decision.give_back = blocked(&waiting, heads_per_lane);
    decision
}

/// The position of the head that goes next.
fn pick(
    waiting: &[&Head],
    weights: &BTreeMap<Lane, u32>,
    room: &Room,
    turns: &mut Turns,
) -> Option<usize> {
    let can_run = |head: &Head| room.can_run(head);
    let lanes: BTreeSet<&Lane> = waiting
        .iter()
        .filter(|head| can_run(head))
        .map(|head| &head.lane)
        .collect();
    let lane = turns.next_lane(&lanes, weights)?;
    let eligible = |(_, head): &(usize, &&Head)| head.lane == lane && can_run(head);
    let longest_ago = |(_, head): &(usize, &&Head)| {
        let key = (head.lane.clone(), head.tenant.clone());
        (turns.served.get(&key).copied().unwrap_or(0), head.id)
    };
    let (at, head) = waiting
        .iter()
        .enumerate()
        .filter(eligible)
        .min_by_key(longest_ago)?;
    turns.picks += 1;
    let key = (head.lane.clone(), head.tenant.clone());
    turns.served.insert(key, turns.picks);
    Some(at)
}

impl Turns {
    fn next_lane(
        &mut self,
        lanes: &BTreeSet<&Lane>,
        weights: &BTreeMap<Lane, u32>,
    ) -> Option<Lane> {
        let weight = |lane: &Lane| i64::from(weights.get(lane).copied().unwrap_or(1));
        for &lane in lanes {
            *self.credits.entry(lane.clone()).or_default() += weight(lane);
        }
        let credit = |lane: &&&Lane| self.credits.get(**lane).copied().unwrap_or(0);
        let lane = (*lanes.iter().max_by_key(credit)?).clone();
        let total: i64 = lanes.iter().map(|lane| weight(lane)).sum();
        *self.credits.entry(lane.clone()).or_default() -= total;
        Some(lane)
    }

    /// Keeps memory bounded by the number of heads, and lets no lane save up while it has nothing to run.
    fn forget_absent(&mut self, heads: &[Head]) {
        let lanes: BTreeSet<&Lane> = heads.iter().map(|h| &h.lane).collect();
        self.credits.retain(|lane, _| lanes.contains(lane));
        let present: BTreeSet<_> = heads.iter().map(|h| (&h.lane, &h.tenant)).collect();
        self.served
            .retain(|(lane, tenant), _| present.contains(&(lane, tenant)));
    }
}

/// What tenants at their limit have in each lane beyond a few: behind it others wait who could run.
fn at_limit(waiting: &[&Head], room: &Room) -> Vec<u64> {
    let mut kept: BTreeMap<(&Lane, &TenantId), usize> = BTreeMap::new();
    let mut over: Vec<&&Head> = waiting.iter().filter(|h| !room.within_limit(h)).collect();
    // The oldest stay.
    over.sort_unstable_by_key(|head| head.id);
    over.retain(|head| {
        let kept = kept.entry((&head.lane, &head.tenant)).or_default();
        *kept += 1;
        let limit = head.limit.unwrap_or_default();
        *kept > limit.clamp(*KEPT_AT_LIMIT.start(), *KEPT_AT_LIMIT.end())
    });
    over.into_iter().map(|head| head.id).collect()
}

/// The younger half of every lane that is full of heads that cannot run, if there are several versions among them: behind heads
/// of one version alone there is most likely more of the same, and putting them back would only turn the backlog over.
fn blocked(waiting: &[&Head], heads_per_lane: usize) -> Vec<u64> {
    let mut by_lane: BTreeMap<&Lane, Vec<&Head>> = BTreeMap::new();
    for head in waiting {
        by_lane.entry(&head.lane).or_default().push(head);
    }
    let stuck = |heads: &Vec<&Head>| {
        let several = heads
            .windows(2)
            .any(|pair| pair[0].version != pair[1].version);
        heads.len() >= heads_per_lane && several
    };
    let younger_half = |heads: Vec<&Head>| {
        let mut ids: Vec<u64> = heads.iter().map(|head| head.id).collect();
        ids.sort_unstable();
        ids.split_off(ids.len() / 2)
    };
    let lanes = by_lane.into_values();
    lanes.filter(stuck).flat_map(younger_half).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn version(name: &str) -> Version {
        (name.to_owned(), "1".to_owned())
    }

    fn head(id: u64, lane: &str, tenant: &str, model: &str) -> Head {
        Head {
            id,
            lane: lane.parse().unwrap(),
            tenant: tenant.parse().unwrap(),
            version: version(model),
            limit: None,
        }
    }

    fn room<const N: usize>(versions: [(&str, usize); N]) -> Room {
        let versions = versions.map(|(model, left)| (version(model), left));
        Room {
            versions: versions.into(),
            tenants: BTreeMap::new(),
        }
    }

    fn weights() -> BTreeMap<Lane, u32> {
        let weight = |(lane, weight): (&str, u32)| (lane.parse().unwrap(), weight);
        [("fast", 3), ("slow", 1)].into_iter().map(weight).collect()
    }

    #[test]
    fn lanes_share_in_proportion_to_their_weights() {
        let heads: Vec<_> = (0..80)
            .map(|i| head(i, if i % 2 == 0 { "fast" } else { "slow" }, "t", "m"))
            .collect();
        let room = room([("m", 40)]);
        let decision = decide(&heads, &weights(), &room, 100, &mut Turns::default());
        let fast = decision.dispatch.iter().filter(|id| *id % 2 == 0).count();
        assert_eq!((fast, decision.dispatch.len()), (30, 40));
    }

    #[test]
    fn a_tenant_with_one_task_does_not_wait_behind_anothers_many() {
        let mut heads: Vec<_> = (0..20).map(|i| head(i, "fast", "many", "m")).collect();
        heads.push(head(20, "fast", "one", "m"));
        let room = room([("m", 2)]);
        let decision = decide(&heads, &weights(), &room, 100, &mut Turns::default());
        assert_eq!(decision.dispatch, [0, 20]);
    }

    #[test]
    fn a_version_without_room_blocks_only_its_own() {
        let heads = [head(0, "fast", "t", "full"), head(1, "fast", "t", "free")];
        let room = room([("full", 0), ("free", 1)]);
        let decision = decide(&heads, &weights(), &room, 100, &mut Turns::default());
        assert_eq!(decision.dispatch, [1]);
        assert!(decision.give_back.is_empty());
    }

    #[test]
    fn a_lane_full_of_what_cannot_run_gives_half_of_it_back() {
        let models = ["full", "other", "full", "full"];
        let heads: Vec<_> = (0..4)
            .map(|i| head(i, "fast", "t", models[i as usize]))
            .collect();
        let decision = decide(
            &heads,
            &weights(),
            &Room::default(),
            4,
            &mut Turns::default(),
        );
        assert_eq!(decision.give_back, [2, 3]);
    }

    #[test]
    fn a_backlog_of_one_version_is_not_turned_over() {
        let heads: Vec<_> = (0..4).map(|i| head(i, "fast", "t", "full")).collect();
        let none = Room::default();
        let decision = decide(&heads, &weights(), &none, 4, &mut Turns::default());
        assert!(decision.give_back.is_empty());
    }

    fn limited(id: u64, tenant: &str, limit: usize) -> Head {
        Head {
            limit: Some(limit),
            ..head(id, "fast", tenant, "m")
        }
    }

    #[test]
    fn a_tenant_at_its_limit_runs_no_more_and_keeps_nobody_from_being_seen() {
        let mut heads: Vec<_> = (0..10).map(|id| limited(id, "many", 3)).collect();
        heads.push(head(10, "fast", "one", "m"));
        let room = Room {
            tenants: [("many".parse().unwrap(), 2)].into(),
            ..room([("m", 16)])
        };
        let decision = decide(&heads, &weights(), &room, 11, &mut Turns::default());
        assert_eq!(decision.dispatch, [0, 10]);
        // 1 to 4 are next when one of its tasks ends.
        assert_eq!(decision.put_aside, [5, 6, 7, 8, 9]);
        assert!(decision.give_back.is_empty());
    }

    proptest! {
        #[test]
        fn no_tenant_gets_more_than_its_limit_and_whoever_may_run_does(
            spec in prop::collection::vec((0..3usize, 0..2usize), 0..60),
            limits in prop::array::uniform3(0..8usize),
            out in prop::array::uniform3(0..8usize),
        ) {
            let names = ["a", "b", "c"];
            let heads: Vec<_> = spec.iter().enumerate().map(|(id, &(tenant, lane))| Head {
                limit: (limits[tenant] > 0).then_some(limits[tenant]),
                ..head(id as u64, ["fast", "slow"][lane], names[tenant], "m")
            }).collect();
            let tenants = names.iter().zip(out).map(|(name, out)| (name.parse().unwrap(), out));
            let room = Room { tenants: tenants.collect(), ..room([("m", 1000)]) };
            let decision = decide(&heads, &weights(), &room, 1000, &mut Turns::default());
            for (at, name) in names.iter().enumerate() {
                let of = |ids: &[u64]| {
                    ids.iter().filter(|&&id| heads[id as usize].tenant.as_str() == *name).count()
                };
                let wanted = spec.iter().filter(|(tenant, _)| *tenant == at).count();
                let sent = of(&decision.dispatch);
                let may = match limits[at] {
                    0 => wanted,
                    limit => limit.saturating_sub(out[at]).min(wanted),
                };
                prop_assert_eq!(sent, may);
                // In both lanes together.
                let left = wanted - sent;
                let kept = limits[at].max(*KEPT_AT_LIMIT.start());
                prop_assert!(left - of(&decision.put_aside) <= 2 * kept);
            }
        }

        #[test]
        fn room_is_never_exceeded_and_never_left_while_someone_could_run(
            spec in prop::collection::vec((0..2usize, 0..3usize, 0..2usize), 0..40),
            left in 0..10usize, other in 0..10usize,
        ) {
            let heads: Vec<_> = spec.iter().enumerate().map(|(i, &(lane, tenant, model))| {
                head(i as u64, ["fast", "slow"][lane], ["a", "b", "c"][tenant], ["m", "n"][model])
            }).collect();
            let room = room([("m", left), ("n", other)]);
            let decision = decide(&heads, &weights(), &room, 100, &mut Turns::default());
            for (version, &room) in &room.versions {
                let of = |h: &&Head| &h.version == version;
                let sent = decision.dispatch.iter().filter(|&&id| of(&&heads[id as usize])).count();
                prop_assert_eq!(sent, room.min(heads.iter().filter(of).count()));
            }
        }

        #[test]
        fn every_waiting_tenant_is_served_before_any_is_served_twice_more(
            counts in prop::collection::vec(1..12usize, 3),
        ) {
            let mut heads = Vec::new();
            for (tenant, &count) in ["a", "b", "c"].iter().zip(&counts) {
                for _ in 0..count {
                    heads.push(head(heads.len() as u64, "fast", tenant, "m"));
                }
            }
            let room = room([("m", 3)]);
            let decision = decide(&heads, &weights(), &room, 100, &mut Turns::default());
            let tenants: BTreeSet<_> =
                decision.dispatch.iter().map(|&id| heads[id as usize].tenant.clone()).collect();
            prop_assert_eq!(tenants.len(), 3);
        }
    }
}
