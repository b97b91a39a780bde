//! What workers have or are about to have, kept up to date between two looks at WORK. Pure.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Instant;

use contract::{TaskId, TenantId};
use task_log::Out as Listed;

use crate::partitions::{Partition, Partitions};
use crate::schedule::Version;

/// One dispatch.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Dispatched {
    version: Version,
    tenant: TenantId,
    /// In units of work; `None` for one that was handed over elsewhere.
    cost: Option<u64>,
    since: Instant,
}

/// All dispatches.
#[derive(Debug)]
pub(crate) struct Out {
    partitions: Partitions,
    tasks: HashMap<TaskId, Dispatched>,
    /// Tasks that have ended since the last look began: their dispatches are on their way out of WORK.
    ended: HashMap<TaskId, Instant>,
    counts: BTreeMap<Version, HashMap<Partition, usize>>,
    tenants: BTreeMap<TenantId, usize>,
    /// Dispatches of an earlier version, which do not tell their task.
    older: BTreeMap<Version, usize>,
    is_known: bool,
}

/// Ends that are remembered between two looks. Of others the dispatch may count for a look too long.
const MAX_ENDED: usize = 65_536;

impl Out {
    pub(crate) fn new(partitions: Partitions) -> Self {
        Self {
            partitions,
            tasks: HashMap::new(),
            ended: HashMap::new(),
            counts: BTreeMap::new(),
            tenants: BTreeMap::new(),
            older: BTreeMap::new(),
            is_known: false,
        }
    }

    /// Whether WORK has been looked at.
    pub(crate) fn is_known(&self) -> bool {
        self.is_known
    }

    pub(crate) fn by_tenant(&self) -> &BTreeMap<TenantId, usize> {
        &self.tenants
    }

    /// How many of a version there are in all.
    pub(crate) fn of_version(&self, version: &Version) -> usize {
        let counted = self.counts.get(version).map_or(0, |c| c.values().sum());
        counted + self.older.get(version).copied().unwrap_or(0)
    }

    /// How many of a version there are of these partitions.
    pub(crate) fn of_partitions(&self, version: &Version, own: &BTreeSet<Partition>) -> usize {
        let Some(counts) = self.counts.get(version) else {
            return 0;
        };
        let own = counts.iter().filter(|(p, _)| own.contains(p));
        own.map(|(_, count)| count).sum()
    }

    /// What the dispatches of these partitions take of workers, in units of work. One of unknown cost counts as the others do.
    pub(crate) fn cost(&self, own: &BTreeSet<Partition>) -> u64 {
        let own = |one: &&Dispatched| own.contains(&self.partitions.of(&one.tenant));
        let (mut sum, mut known, mut all) = (0_u64, 0_u64, 0_u64);
        for one in self.tasks.values().filter(own) {
            sum = sum.saturating_add(one.cost.unwrap_or(0));
            known += u64::from(one.cost.is_some());
            all += 1;
        }
        (sum / known.max(1)).saturating_mul(all)
    }

    pub(crate) fn add(
        &mut self,
        task: TaskId,
        (version, tenant): (Version, TenantId),
        cost: Option<u64>,
        now: Instant,
    ) {
        self.remove(task);
        self.ended.remove(&task);
        let partition = self.partitions.of(&tenant);
        let counts = self.counts.entry(version.clone()).or_default();
        *counts.entry(partition).or_default() += 1;
        *self.tenants.entry(tenant.clone()).or_default() += 1;
        let dispatched = Dispatched {
            version,
            tenant,
            cost,
            since: now,
        };
        self.tasks.insert(task, dispatched);
    }

    /// A dispatch is there no more. True when it was known.
    pub(crate) fn remove(&mut self, task: TaskId) -> bool {
        let Some(gone) = self.tasks.remove(&task) else {
            return false;
        };
        let partition = self.partitions.of(&gone.tenant);
        if let Some(counts) = self.counts.get_mut(&gone.version) {
            if let Some(count) = counts.get_mut(&partition) {
                *count -= 1;
                if *count == 0 {
                    counts.remove(&partition);
                }
            }
            if counts.is_empty() {
                self.counts.remove(&gone.version);
            }
        }
        if let Some(count) = self.tenants.get_mut(&gone.tenant) {
            *count -= 1;
            if *count == 0 {
                self.tenants.remove(&gone.tenant);
            }
        }
        true
    }

    /// A task has ended: whoever had it takes its dispatch off the queue. True when that makes room.
    pub(crate) fn end(&mut self, task: TaskId, now: Instant) -> bool {
        if self.ended.len() < MAX_ENDED {
            self.ended.insert(task, now);
        }
        self.remove(task)
    }

    /// What WORK held at some time after `began`.
    pub(crate) fn look(&mut self, listed: Vec<Listed>, began: Instant, now: Instant) {
        self.is_known = true;
        self.older.clear();
        let mut there = HashMap::new();
        for one in listed {
            match (one.task, one.tenant) {
                (Some(task), Some(tenant)) => drop(there.insert(task, (one.version, tenant))),
                _ => *self.older.entry(one.version).or_default() += one.count,
            }
        }
        let is_gone = |(task, dispatched): (&TaskId, &Dispatched)| {
            (dispatched.since < began && !there.contains_key(task)).then_some(*task)
        };
        let gone: Vec<TaskId> = self.tasks.iter().filter_map(is_gone).collect();
        for task in gone {
            self.remove(task);
        }
        for (task, (version, tenant)) in there {
            if !self.tasks.contains_key(&task) && !self.ended.contains_key(&task) {
                self.add(task, (version, tenant), None, now);
            }
        }
        // Those that ended long before are seen to be gone, or are there because nobody has taken them yet.
        self.ended.retain(|_, at| *at >= began);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn counts_are_those_of_what_is_there(
            steps in prop::collection::vec((0u8..3, 0usize..20, 0usize..3), 0..200),
        ) {
            let tasks: Vec<TaskId> = (0..20).map(|_| TaskId::random()).collect();
            let mut out = Out::new(Partitions(4));
            let mut there: BTreeMap<usize, usize> = BTreeMap::new();
            let mut now = Instant::now();
            let version = |n: usize| ("m".to_owned(), n.to_string());
            let tenant = |n: usize| -> TenantId { format!("t{n}").parse().unwrap() };
            for (step, task, tenant_of) in steps {
                now += Duration::from_millis(1);
                match step {
                    0 => {
                        out.add(tasks[task], (version(task % 2), tenant(tenant_of)), Some(1), now);
                        there.insert(task, tenant_of);
                    }
                    1 => {
                        prop_assert_eq!(out.end(tasks[task], now), there.remove(&task).is_some());
                    }
                    _ => {
                        let list = there.iter().map(|(&task, &of)| Listed {
                            version: version(task % 2),
                            tenant: Some(tenant(of)),
                            task: Some(tasks[task]),
                            count: 1,
                        });
                        out.look(list.collect(), now, now);
                    }
                }
                let all: BTreeSet<Partition> = (0..4).collect();
                for parity in 0..2 {
                    let count = there.keys().filter(|task| **task % 2 == parity).count();
                    prop_assert_eq!(out.of_version(&version(parity)), count);
                    prop_assert_eq!(out.of_partitions(&version(parity), &all), count);
                }
                for n in 0..3 {
                    let count = there.values().filter(|of| **of == n).count();
                    prop_assert_eq!(out.by_tenant().get(&tenant(n)).copied().unwrap_or(0), count);
                }
            }
        }
    }

    #[test]
    fn what_was_dispatched_or_ended_while_work_was_looked_at_counts_as_it_is() {
        let mut out = Out::new(Partitions(1));
        let version = ("m".to_owned(), "1".to_owned());
        let tenant: TenantId = "acme".parse().unwrap();
        let [old, new, ended] = [0; 3].map(|_| TaskId::random());
        let start = Instant::now();
        let began = start + Duration::from_millis(10);
        let later = start + Duration::from_millis(20);
        out.add(old, (version.clone(), tenant.clone()), Some(1), start);
        out.add(ended, (version.clone(), tenant.clone()), Some(1), start);
        out.add(new, (version.clone(), tenant.clone()), Some(1), later);
        out.end(ended, later);
        let listed = [old, ended].map(|task| Listed {
            version: version.clone(),
            tenant: Some(tenant.clone()),
            task: Some(task),
            count: 1,
        });
        out.look(listed.to_vec(), began, later);
        assert_eq!(out.of_version(&version), 2);
        out.look(Vec::new(), later + Duration::from_millis(1), later);
        assert_eq!(out.of_version(&version), 0);
    }
}
