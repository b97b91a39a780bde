//! Which partitions an orchestrator takes and which it releases, and its part of a version's window. Pure.

use std::collections::BTreeMap;

use contract::TenantId;

/// A part of all tenants.
pub(crate) type Partition = u16;

/// The partition in which all queues of a tenant are: FNV-1a, the same in every process and version.
pub(crate) fn partition_of(tenant: &TenantId, partitions: Partition) -> Partition {
    const OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
    const PRIME: u64 = 0x0100_0000_01b3;
    let hash = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(PRIME);
    let hash = tenant.as_str().as_bytes().iter().fold(OFFSET, hash);
    // The lowest bits of an FNV hash are its weakest.
    ((hash ^ (hash >> 32)) % u64::from(partitions.max(1))) as Partition
}

/// What to change.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Plan {
    pub(crate) take: Vec<Partition>,
    pub(crate) release: Vec<Partition>,
}

/// What `me` changes, given who lives and who owns what. A partition whose owner is not among the living is free. Whoever has more than
/// its even share releases the rest, and takes no more than that.
pub(crate) fn plan(
    me: &str,
    living: &[&str],
    owners: &BTreeMap<Partition, String>,
    partitions: Partition,
) -> Plan {
    let members = living.len() + usize::from(!living.contains(&me));
    let share = usize::from(partitions).div_ceil(members);
    let owner = |partition: &Partition| owners.get(partition).map_or("", String::as_str);
    let all = 0..partitions;
    let mine: Vec<Partition> = all.clone().filter(|p| owner(p) == me).collect();
    let is_free = |p: &Partition| owner(p) != me && !living.contains(&owner(p));
    let free = all.filter(is_free);
    Plan {
        take: free.take(share.saturating_sub(mine.len())).collect(),
        release: mine.into_iter().skip(share).collect(),
    }
}

/// How many dispatches of a version may be out for `me`: `window` shared in proportion to how many queues have tasks of it at each
/// orchestrator. Whoever has one gets one at least, though they be more than the window holds.
pub(crate) fn share(window: usize, mine: u64, others: &[u64]) -> usize {
    if mine == 0 {
        return 0;
    }
    let all = others.iter().fold(mine, |sum, n| sum.saturating_add(*n));
    let part = window as u128 * u128::from(mine) / u128::from(all);
    usize::try_from(part).unwrap_or(window).max(1)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Lets each in turn do what its plan says until nobody has anything to do.
    fn settle(
        names: &[String],
        owners: &mut BTreeMap<Partition, String>,
        partitions: Partition,
    ) -> usize {
        let living: Vec<&str> = names.iter().map(String::as_str).collect();
        for round in 0..100 {
            let mut changed = false;
            for name in &living {
                let plan = plan(name, &living, owners, partitions);
                changed |= plan != Plan::default();
                for p in plan.release {
                    owners.remove(&p);
                }
                for p in plan.take {
                    owners.insert(p, (*name).to_owned());
                }
            }
            if !changed {
                return round;
            }
        }
        panic!("never settled");
    }

    proptest! {
        #[test]
        fn partitions_are_shared_evenly_whoever_comes_and_goes(
            partitions in 1u16..64,
            steps in prop::collection::vec(prop::collection::btree_set(0u8..6, 1..6), 1..5),
        ) {
            let mut owners = BTreeMap::new();
            for step in steps {
                let names: Vec<String> = step.iter().map(|n| format!("m{n}")).collect();
                settle(&names, &mut owners, partitions);
                prop_assert_eq!(owners.len(), usize::from(partitions));
                let most = usize::from(partitions).div_ceil(names.len());
                for name in &names {
                    let has = owners.values().filter(|owner| *owner == name).count();
                    prop_assert!(has <= most);
                }
                prop_assert!(owners.values().all(|owner| names.contains(owner)));
            }
        }

        #[test]
        fn nobody_takes_what_the_living_have(
            partitions in 1u16..64,
            owned in prop::collection::btree_map(0u16..64, 0u8..4, 0..64),
        ) {
            let owners: BTreeMap<Partition, String> =
                owned.into_iter().map(|(p, n)| (p, format!("m{n}"))).collect();
            let plan = plan("m0", &["m0", "m1"], &owners, partitions);
            for p in plan.take {
                let owner = owners.get(&p).map_or("", String::as_str);
                prop_assert!(owner != "m0" && owner != "m1");
            }
            for p in plan.release {
                prop_assert_eq!(&owners[&p], "m0");
            }
        }

        #[test]
        fn a_window_is_shared_in_proportion_and_everyone_with_demand_has_a_part(
            window in 1usize..5000,
            demands in prop::collection::vec(0u64..100_000, 1..12),
        ) {
            let part = |me: usize| {
                let mut others = demands.clone();
                let mine = others.remove(me);
                share(window, mine, &others)
            };
            let parts: Vec<usize> = (0..demands.len()).map(part).collect();
            let wanting = demands.iter().filter(|demand| **demand > 0).count();
            prop_assert!(parts.iter().sum::<usize>() <= window + wanting);
            for (part, demand) in parts.iter().zip(&demands) {
                prop_assert_eq!(*demand > 0, *part > 0);
            }
            for (a, x) in parts.iter().zip(&demands) {
                for (b, y) in parts.iter().zip(&demands) {
                    prop_assert!(x > y || a <= b);
                }
            }
        }

        #[test]
        fn every_tenant_is_in_a_partition(name in "[a-z0-9-]{1,40}", partitions in 1u16..1000) {
            prop_assert!(partition_of(&name.parse().unwrap(), partitions) < partitions);
        }
    }

    #[test]
    fn tenants_are_spread_over_the_partitions() {
        let mut counts = [0; 16];
        for n in 0..16_000 {
            let tenant = format!("tenant-{n}").parse().unwrap();
            counts[usize::from(partition_of(&tenant, 16))] += 1;
        }
        assert!(counts.iter().all(|n| (700..1300).contains(n)), "{counts:?}");
    }
}
