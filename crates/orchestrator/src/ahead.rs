//! What workers have, or get before a task: how much of it is left. Pure.

use std::time::Instant;

use contract::{Lane, TaskId, TenantId};

use crate::estimate::Fleet;

/// A task that was handed to workers, and has not ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Handed {
    pub(crate) task: TaskId,
    pub(crate) tenant: TenantId,
    /// Not known of those that were handed over elsewhere.
    pub(crate) lane: Option<Lane>,
    /// In units of work; not known of those that were handed over elsewhere.
    pub(crate) cost: Option<u64>,
    /// Grows with each that is handed over.
    pub(crate) order: u64,
    /// Since when a worker has it.
    pub(crate) begun: Option<Instant>,
}

/// Tasks that workers have or get before the one that is asked for.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Ahead {
    /// Tasks.
    pub(crate) tasks: u64,
    /// What is left of them, in units of work.
    pub(crate) work: f64,
    /// Of one of them when it begins; 0 without any.
    pub(crate) mean_cost: f64,
}

impl Ahead {
    /// What is left, at a moment, of those that have begun and of those that were handed over earlier than `before`, or of all.
    pub(crate) fn of(handed: &[Handed], before: Option<u64>, fleet: &Fleet, now: Instant) -> Self {
        let costs = || handed.iter().filter_map(|one| one.cost);
        let known = costs().count() as f64;
        let mean = costs().map(|cost| cost as f64).sum::<f64>() / known.max(1.0);
        let is_ahead = |one: &&Handed| one.begun.is_some() || before.is_none_or(|b| one.order < b);
        let left = |one: &Handed| {
            let cost = one.cost.map_or(mean, |cost| cost as f64);
            let ran = one.begun.map(|at| now.saturating_duration_since(at));
            let done = ran.map_or(0.0, |ran| ran.as_secs_f64() * fleet.speed.max(0.0));
            (cost - done).max(0.0)
        };
        let ahead = handed.iter().filter(is_ahead);
        let (tasks, work) = ahead.fold((0, 0.0), |(n, work), one| (n + 1, work + left(one)));
        Self {
            tasks,
            work,
            mean_cost: mean,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::estimate::Outlook;
    use crate::schedule::Turns;
    use crate::schedule::simulation::policy;

    /// Two seconds.
    const TASK: u64 = 2_000_000;

    #[test]
    fn what_workers_have_is_waited_for_as_far_as_it_is_left() {
        let now = Instant::now() + Duration::from_secs(60);
        let fleet = Fleet {
            slots: 2.0,
            rate: 1e6,
            speed: 0.5e6,
        };
        let handed = |order: u64, begun: Option<u64>, cost| Handed {
            task: TaskId::random(),
            tenant: "t".parse().unwrap(),
            lane: None,
            cost,
            order,
            begun: begun.map(|ago| now - Duration::from_secs(ago)),
        };
        let all = [
            handed(1, Some(2), Some(TASK)),
            // Overdue.
            handed(2, Some(10), Some(TASK)),
            handed(3, None, Some(TASK)),
            handed(4, None, None),
        ];
        let third = Ahead::of(&all, Some(3), &fleet, now);
        assert_eq!((third.tasks, third.work), (2, 1e6));
        let last = Ahead::of(&all, None, &fleet, now);
        assert_eq!((last.tasks, last.work), (4, 5e6));
        let outlook = Outlook::new(&[], &policy([], 1), &Turns::default(), fleet);
        assert_eq!(outlook.wait_at_workers(third), Some(Duration::ZERO));
        let wait = outlook.wait_at_workers(last).unwrap();
        assert_eq!(wait, Duration::from_secs(4));
    }
}
