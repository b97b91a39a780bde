//! What workers have or are about to have, kept up to date between two looks at WORK. Pure.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::{Duration, Instant};

use contract::{Lane, TaskId, TenantId};
use task_log::Out as Listed;

use crate::ahead::Handed;
use crate::cost::Size;
use crate::partitions::{Partition, Partitions};
use crate::schedule::Version;
use crate::throughput::Tally;

/// One dispatch.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Dispatched {
    version: Version,
    tenant: TenantId,
    /// `None` for one that was handed over elsewhere.
    own: Option<Own>,
    since: Instant,
    /// Grows with each.
    order: u64,
    /// Since when a worker has it …
    begun: Option<Instant>,
    /// … and what [`Out::shared`] was then.
    shared: Duration,
}

impl Dispatched {
    /// It was handed over here, and no worker has it.
    fn is_ready(&self) -> bool {
        self.own.is_some() && self.begun.is_none()
    }

    /// It was handed over here, and a worker has it.
    fn is_running(&self) -> bool {
        self.own.is_some() && self.begun.is_some()
    }
}

/// What is known of a task that was handed over here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Own {
    pub(crate) lane: Lane,
    /// In units of work.
    pub(crate) cost: u64,
    /// What that goes by.
    pub(crate) size: Option<Size>,
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
    /// Dispatches so far.
    added: u64,
    /// Those from here that no worker has.
    ready: usize,
    /// Those from here that workers have.
    running: u32,
    /// What one that ran all the time would have had of the workers' time, if those that ran from here shared it evenly …
    shared: Duration,
    /// … up to then.
    shared_to: Option<Instant>,
    tally: Tally,
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
            added: 0,
            ready: 0,
            running: 0,
            shared: Duration::ZERO,
            shared_to: None,
            tally: Tally::default(),
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

    /// The dispatches of these partitions, in the order in which they were made.
    pub(crate) fn handed(&mut self, own: &BTreeSet<Partition>, now: Instant) -> Vec<Handed> {
        self.share(now);
        let is_own = |one: &&Dispatched| own.contains(&self.partitions.of(&one.tenant));
        let of = |(task, one): (&TaskId, &Dispatched)| Handed {
            task: *task,
            tenant: one.tenant.clone(),
            lane: one.own.as_ref().map(|own| own.lane.clone()),
            cost: one.own.as_ref().map(|own| own.cost),
            order: one.order,
            begun: one.begun,
            had: match one.is_running() {
                true => self.shared.saturating_sub(one.shared),
                false => Duration::ZERO,
            },
        };
        let own = self.tasks.iter().filter(|(_, one)| is_own(one));
        let mut handed: Vec<Handed> = own.map(of).collect();
        handed.sort_unstable_by_key(|one| one.order);
        handed
    }

    /// What has ended so far.
    pub(crate) fn tally(&self) -> Tally {
        self.tally
    }

    /// Tells anew what those cost that were handed over here.
    pub(crate) fn cost_anew(&mut self, cost: impl Fn(&Version, Size) -> u64) {
        for one in self.tasks.values_mut() {
            if let Some(own) = &mut one.own
                && let Some(size) = own.size
            {
                own.cost = cost(&one.version, size);
            }
        }
    }

    /// A worker has a task from now on, or has it no more and another may take it.
    pub(crate) fn begin(&mut self, task: TaskId, is_running: bool, now: Instant) {
        self.share(now);
        let Some(one) = self.tasks.get_mut(&task) else {
            return;
        };
        let (was_ready, was_running) = (one.is_ready(), one.is_running());
        if one.begun.is_none() {
            one.shared = self.shared;
        }
        one.begun = match is_running {
            true => one.begun.or(Some(now)),
            false => None,
        };
        let (is_ready, is_running) = (one.is_ready(), one.is_running());
        self.count_ready(was_ready, is_ready);
        self.count_running(was_running, is_running);
    }

    /// Those that run have shared the time up to now. Before any change of how many they are.
    fn share(&mut self, now: Instant) {
        let since = self.shared_to.replace(now).unwrap_or(now);
        let passed = now.saturating_duration_since(since);
        self.shared += passed.checked_div(self.running).unwrap_or_default();
    }

    fn count_running(&mut self, was_running: bool, is_running: bool) {
        match (was_running, is_running) {
            (false, true) => self.running += 1,
            (true, false) => self.running = self.running.saturating_sub(1),
            _ => {}
        }
    }

    fn count_ready(&mut self, was_ready: bool, is_ready: bool) {
        match (was_ready, is_ready) {
            (false, true) => self.ready += 1,
            (true, false) => {
                self.ready = self.ready.saturating_sub(1);
                self.tally.dry += u64::from(self.ready == 0);
            }
            _ => {}
        }
    }

    pub(crate) fn add(
        &mut self,
        task: TaskId,
        (version, tenant): (Version, TenantId),
        own: Option<Own>,
        now: Instant,
    ) {
        self.remove(task, now);
        self.ended.remove(&task);
        let partition = self.partitions.of(&tenant);
        let counts = self.counts.entry(version.clone()).or_default();
        *counts.entry(partition).or_default() += 1;
        *self.tenants.entry(tenant.clone()).or_default() += 1;
        self.added += 1;
        let dispatched = Dispatched {
            version,
            tenant,
            own,
            since: now,
            order: self.added,
            begun: None,
            shared: Duration::ZERO,
        };
        self.count_ready(false, dispatched.is_ready());
        self.tasks.insert(task, dispatched);
    }

    /// A dispatch is there no more. True when it was known.
    pub(crate) fn remove(&mut self, task: TaskId, now: Instant) -> bool {
        self.share(now);
        let Some(gone) = self.tasks.remove(&task) else {
            return false;
        };
        self.count_ready(gone.is_ready(), false);
        self.count_running(gone.is_running(), false);
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
        // What ends before anybody had it was cancelled or expired: nobody did the work.
        if let Some(one) = self.tasks.get(&task)
            && let (Some(own), Some(begun)) = (&one.own, one.begun)
        {
            let ran = now.saturating_duration_since(begun);
            self.tally.add(own.cost, ran);
        }
        self.remove(task, now)
    }

    /// Whether a task was heard to have ended since the last look began.
    pub(crate) fn has_ended(&self, task: TaskId) -> bool {
        self.ended.contains_key(&task)
    }

    /// What WORK held at some time after `began`; what is not there and `keeps` its place counts all the same.
    pub(crate) fn look(
        &mut self,
        listed: Vec<Listed>,
        began: Instant,
        now: Instant,
        keeps: impl Fn(TaskId) -> bool,
    ) {
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
            let is_missed = dispatched.since < began && !there.contains_key(task);
            (is_missed && !keeps(*task)).then_some(*task)
        };
        let gone: Vec<TaskId> = self.tasks.iter().filter_map(is_gone).collect();
        for task in gone {
            self.remove(task, now);
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
    use proptest::prelude::*;

    use super::*;

    fn own(cost: u64) -> Option<Own> {
        Some(Own {
            lane: "standard-image".parse().unwrap(),
            cost,
            size: None,
        })
    }

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
                        out.add(tasks[task], (version(task % 2), tenant(tenant_of)), own(1), now);
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
                        out.look(list.collect(), now, now, |_| false);
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
        out.add(old, (version.clone(), tenant.clone()), own(1), start);
        out.add(ended, (version.clone(), tenant.clone()), own(1), start);
        out.add(new, (version.clone(), tenant.clone()), own(1), later);
        out.end(ended, later);
        let listed = [old, ended].map(|task| Listed {
            version: version.clone(),
            tenant: Some(tenant.clone()),
            task: Some(task),
            count: 1,
        });
        out.look(listed.to_vec(), began, later, |_| false);
        assert_eq!(out.of_version(&version), 2);
        let next = later + Duration::from_millis(1);
        out.look(Vec::new(), next, later, |task| task == old);
        assert_eq!(out.of_version(&version), 1, "it may come again");
        out.look(Vec::new(), next, later, |_| false);
        assert_eq!(out.of_version(&version), 0);
    }

    #[test]
    fn what_has_begun_and_what_was_done_is_told() {
        let mut out = Out::new(Partitions(1));
        let all: BTreeSet<Partition> = [0].into();
        let version = ("m".to_owned(), "1".to_owned());
        let tenant: TenantId = "acme".parse().unwrap();
        let [first, second, elsewhere] = [0; 3].map(|_| TaskId::random());
        let start = Instant::now();
        for (task, own) in [(first, own(5)), (second, own(7)), (elsewhere, None)] {
            out.add(task, (version.clone(), tenant.clone()), own, start);
        }
        out.begin(first, true, start);
        // As its checkpoints are written.
        let later = start + Duration::from_secs(2);
        out.begin(first, true, later);
        let handed = out.handed(&all, later);
        let begun: Vec<_> = handed.iter().map(|one| (one.task, one.begun)).collect();
        assert_eq!(
            begun,
            [(first, Some(start)), (second, None), (elsewhere, None)]
        );
        assert_eq!(out.tally().dry, 0);
        out.begin(second, true, later);
        assert_eq!(out.tally().dry, 1);
        // It was handed back, and is cancelled before another takes it.
        out.begin(second, false, later);
        assert!(out.end(second, later));
        assert_eq!((out.tally().served, out.tally().dry), (0, 2));
        assert!(out.end(first, later));
        let tally = out.tally();
        assert_eq!(tally.served, 5);
        assert_eq!(tally.ran, Duration::from_secs(2));
    }

    #[test]
    fn those_that_run_are_told_to_have_shared_the_time() {
        let mut out = Out::new(Partitions(1));
        let all: BTreeSet<Partition> = [0].into();
        let version = ("m".to_owned(), "1".to_owned());
        let tenant: TenantId = "acme".parse().unwrap();
        let tasks: [TaskId; 4] = [0; 4].map(|_| TaskId::random());
        let [first, second, back, elsewhere] = tasks;
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        for task in tasks {
            let own = own(5).filter(|_| task != elsewhere);
            out.add(task, (version.clone(), tenant.clone()), own, start);
        }
        let had = |out: &mut Out, seconds| -> Vec<u64> {
            let handed = out.handed(&all, at(seconds));
            handed.iter().map(|one| one.had.as_secs()).collect()
        };
        // It has none of the time that is shared here.
        out.begin(elsewhere, true, start);
        out.begin(first, true, at(10));
        out.begin(second, true, at(14));
        assert_eq!(had(&mut out, 16), [4 + 1, 1, 0, 0]);
        out.begin(back, true, at(16));
        assert_eq!(had(&mut out, 22), [5 + 2, 1 + 2, 2, 0]);
        // It is handed back, and begins anew when it begins again.
        out.begin(back, false, at(22));
        out.begin(back, true, at(24));
        assert_eq!(had(&mut out, 27), [7 + 1 + 1, 3 + 1 + 1, 1, 0]);
        out.end(second, at(27));
        out.remove(back, at(27));
        assert_eq!(had(&mut out, 30), [9 + 3, 0]);
    }
}
