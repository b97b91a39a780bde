//! What workers have, or get before a task: how much of it is left. Pure.
//!
//! What is left of a task that runs is not the same part of each: after a burst onto idle workers all have just begun. So it is taken
//! from what each has had: the workers' rate, shared among those that ran with it, and what one gets of a device at most.

use std::time::{Duration, Instant};

use contract::{Lane, TaskId, TenantId};

use crate::estimate::{Fleet, Slots};

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
    /// How much of the workers' time it had until this was told, if all that were handed over here and ran shared that evenly.
    pub(crate) had: Duration,
}

/// Tasks that workers have or get before the one that is asked for.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Ahead {
    /// When the workers are free of them.
    pub(crate) slots: Slots,
    /// What one of them costs when it begins, in units of work; 0 without any.
    pub(crate) mean_cost: f64,
}

impl Ahead {
    /// What is left `now` of those that have begun and of those that were handed over earlier than `before`, or of all. `handed` is in order, and
    /// was told `at` some moment since when none of them has begun or ended.
    pub(crate) fn of(
        handed: &[Handed],
        before: Option<u64>,
        fleet: &Fleet,
        (at, now): (Instant, Instant),
    ) -> Self {
        let costs = || handed.iter().filter_map(|one| one.cost);
        let known = costs().count() as f64;
        let mean = costs().map(|cost| cost as f64).sum::<f64>() / known.max(1.0);
        let cost = |one: &Handed| one.cost.map_or(mean, |cost| cost as f64);
        let running = || handed.iter().filter(|one| one.begun.is_some());
        let sharing = running().filter(|one| one.cost.is_some()).count();
        let since = now.saturating_duration_since(at).as_secs_f64() / sharing.max(1) as f64;
        let left = |one: &Handed| {
            let ran = one.begun.map(|at| now.saturating_duration_since(at));
            let ran = ran.unwrap_or_default().as_secs_f64();
            let done = match one.cost {
                Some(_) => {
                    let shared = one.had.as_secs_f64() + since;
                    (shared * fleet.rate).min(ran * fleet.alone)
                }
                // Who handed it over knows with how many it shared: as if all slots were taken.
                None => ran * fleet.speed.max(0.0),
            };
            (cost(one) - done).max(0.0)
        };
        let is_next =
            |one: &&Handed| one.begun.is_none() && before.is_none_or(|before| one.order < before);
        let mut slots = Slots::new(fleet.slots);
        slots.take(running().map(left));
        slots.take(handed.iter().filter(is_next).map(cost));
        Self {
            slots,
            mean_cost: mean,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::estimate::Outlook;
    use crate::schedule::Turns;
    use crate::schedule::simulation::policy;

    /// Two seconds.
    const TASK: u64 = 2_000_000;

    fn fleet(devices: f64, slots: f64) -> Fleet {
        Fleet {
            slots,
            rate: devices * 1e6,
            speed: devices * 1e6 / slots,
            alone: 1e6,
        }
    }

    /// A task that began so many milliseconds before `now`, and had so many of the workers' time.
    fn handed(order: u64, begun: Option<(u64, u64)>, cost: Option<u64>, now: Instant) -> Handed {
        Handed {
            task: TaskId::random(),
            tenant: "t".parse().unwrap(),
            lane: None,
            cost,
            order,
            begun: begun.map(|(ago, _)| now - Duration::from_millis(ago)),
            had: Duration::from_millis(begun.map_or(0, |(_, had)| had)),
        }
    }

    fn wait(all: &[Handed], fleet: Fleet, times: (Instant, Instant)) -> Duration {
        let outlook = Outlook::new(&[], &policy([], 1), &Turns::default(), fleet);
        let ahead = Ahead::of(all, None, &fleet, times);
        outlook.wait_at_workers(&ahead).unwrap()
    }

    fn a_while_from_now() -> Instant {
        Instant::now() + Duration::from_secs(60)
    }

    #[test]
    fn what_workers_have_is_waited_for_as_far_as_it_is_left() {
        let now = a_while_from_now();
        let fleet = fleet(1.0, 2.0);
        let all = [
            handed(1, Some((2000, 1000)), Some(TASK), now),
            // Overdue.
            handed(2, Some((10_000, 5000)), Some(TASK), now),
            handed(3, None, Some(TASK), now),
            handed(4, None, None, now),
        ];
        let third = Ahead::of(&all, Some(3), &fleet, (now, now));
        assert_eq!(third.slots.until_free(0.0, 0.0), 0.0);
        assert_eq!(third.slots.until_free(1.0, TASK as f64), 1e6);
        let outlook = Outlook::new(&[], &policy([], 1), &Turns::default(), fleet);
        assert_eq!(outlook.wait_at_workers(&third), Some(Duration::ZERO));
        assert_eq!(wait(&all, fleet, (now, now)), Duration::from_secs(4));
    }

    #[test]
    fn of_tasks_that_have_just_begun_all_is_waited_for() {
        let now = a_while_from_now();
        let all = [1, 2, 3].map(|order| handed(order, Some((0, 0)), Some(TASK), now));
        let told = wait(&all, fleet(1.0, 3.0), (now, now));
        assert_eq!(told, Duration::from_secs(6));
        // With as many slots as that and one more it could begin at once.
        assert_eq!(wait(&all, fleet(1.0, 4.0), (now, now)), Duration::ZERO);
    }

    #[test]
    fn a_task_that_ran_with_few_others_has_come_farther() {
        let now = a_while_from_now();
        // Alone for a second and a half, with another for one.
        let all = [
            handed(1, Some((2500, 2000)), Some(2_500_000), now),
            handed(2, Some((1000, 500)), Some(TASK), now),
        ];
        let told = wait(&all, fleet(1.0, 2.0), (now, now));
        assert_eq!(told, Duration::from_secs(1));
        // Seen half a second later, during which both ran on.
        let later = now + Duration::from_millis(500);
        let told = wait(&all, fleet(1.0, 2.0), (now, later));
        assert_eq!(told, Duration::from_millis(500));
    }

    #[test]
    fn a_task_has_no_more_than_a_device() {
        let now = a_while_from_now();
        // Three devices had nothing to do in its first second.
        let all = [
            handed(1, Some((1000, 1000)), Some(TASK), now),
            handed(2, Some((0, 0)), Some(TASK), now),
            handed(3, Some((0, 0)), Some(TASK), now),
            handed(4, Some((0, 0)), Some(TASK), now),
        ];
        let told = wait(&all, fleet(4.0, 4.0), (now, now));
        assert_eq!(told, Duration::from_secs(1));
    }
}
