//! What runs next: a pure function from backlog heads, weights and room to decisions.
//!
//! Lanes take turns in proportion to their weights (smooth weighted round robin, as in nginx); inside a lane the tenant
//! that was served longest ago goes first. A model version without room blocks its own tasks and, while its heads fill a lane, for
//! some seconds those behind them.

use std::collections::{BTreeMap, BTreeSet};

use contract::{Lane, TenantId};

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
}

/// Decides. `room` says how many more dispatches each version may have; a version not named has none.
/// `heads_per_lane` is how many heads a lane can hold: a full lane of which nothing can run gives half of it back.
pub(crate) fn decide(
    heads: &[Head],
    weights: &BTreeMap<Lane, u32>,
    room: &BTreeMap<Version, usize>,
    heads_per_lane: usize,
    turns: &mut Turns,
) -> Decision {
    let mut room = room.clone();
    let mut waiting: Vec<&Head> = heads.iter().collect();
    let mut decision = Decision::default();
    while let Some(at) = pick(&waiting, weights, &room, turns) {
        let head = waiting.remove(at);
        if let Some(left) = room.get_mut(&head.version) {
            *left -= 1;
        }
        decision.dispatch.push(head.id);
    }
    turns.forget_absent(heads);
    decision.give_back = blocked(&waiting, heads_per_lane);
    decision
}

/// The position of the head that goes next.
fn pick(
    waiting: &[&Head],
    weights: &BTreeMap<Lane, u32>,
    room: &BTreeMap<Version, usize>,
    turns: &mut Turns,
) -> Option<usize> {
    let can_run = |head: &Head| room.get(&head.version).is_some_and(|&left| left > 0);
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
        let room = BTreeMap::from([(version("m"), 40)]);
        let decision = decide(&heads, &weights(), &room, 100, &mut Turns::default());
        let fast = decision.dispatch.iter().filter(|id| *id % 2 == 0).count();
        assert_eq!((fast, decision.dispatch.len()), (30, 40));
    }

    #[test]
    fn a_tenant_with_one_task_does_not_wait_behind_anothers_many() {
        let mut heads: Vec<_> = (0..20).map(|i| head(i, "fast", "many", "m")).collect();
        heads.push(head(20, "fast", "one", "m"));
        let room = BTreeMap::from([(version("m"), 2)]);
        let decision = decide(&heads, &weights(), &room, 100, &mut Turns::default());
        assert_eq!(decision.dispatch, [0, 20]);
    }

    #[test]
    fn a_version_without_room_blocks_only_its_own() {
        let heads = [head(0, "fast", "t", "full"), head(1, "fast", "t", "free")];
        let room = BTreeMap::from([(version("full"), 0), (version("free"), 1)]);
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
            &BTreeMap::new(),
            4,
            &mut Turns::default(),
        );
        assert_eq!(decision.give_back, [2, 3]);
    }

    #[test]
    fn a_backlog_of_one_version_is_not_turned_over() {
        let heads: Vec<_> = (0..4).map(|i| head(i, "fast", "t", "full")).collect();
        let none = BTreeMap::new();
        let decision = decide(&heads, &weights(), &none, 4, &mut Turns::default());
        assert!(decision.give_back.is_empty());
    }

    proptest! {
        #[test]
        fn room_is_never_exceeded_and_never_left_while_someone_could_run(
            spec in prop::collection::vec((0..2usize, 0..3usize, 0..2usize), 0..40),
            left in 0..10usize, other in 0..10usize,
        ) {
            let heads: Vec<_> = spec.iter().enumerate().map(|(i, &(lane, tenant, model))| {
                head(i as u64, ["fast", "slow"][lane], ["a", "b", "c"][tenant], ["m", "n"][model])
            }).collect();
            let room = BTreeMap::from([(version("m"), left), (version("n"), other)]);
            let decision = decide(&heads, &weights(), &room, 100, &mut Turns::default());
            for (version, &room) in &room {
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
            let room = BTreeMap::from([(version("m"), 3)]);
            let decision = decide(&heads, &weights(), &room, 100, &mut Turns::default());
            let tenants: BTreeSet<_> =
                decision.dispatch.iter().map(|&id| heads[id as usize].tenant.clone()).collect();
            prop_assert_eq!(tenants.len(), 3);
        }
    }
}
