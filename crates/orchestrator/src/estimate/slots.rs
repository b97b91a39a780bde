//! When the workers' slots become free, one after the other. Pure.
//!
//! While all slots are taken each gets through as much as any other, whether it has a device to itself or shares one: so it is enough to
//! know how much work each has before it is free. Tasks go, in order, to the slot that is free first. Of those that wait behind all others
//! only the number and the mean are known; they are taken to be alike, and where the slots stand by then is worked out at once.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// Slots that are told apart at most: as many as there can be dispatches of a version. Beyond it each stands for several.
const MOST: f64 = 4096.0;

/// What each slot has to get through before it is free, in units of work.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Slots(
    /// One at least, from little to much.
    Vec<u64>,
);

impl Slots {
    /// So many that are free; one at least.
    pub(crate) fn new(count: f64) -> Self {
        // At least, too, where it is no number.
        let count = (count.round().clamp(1.0, MOST) as usize).max(1);
        Self(vec![0; count])
    }

    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        self.0.len()
    }

    /// Gives tasks of these costs, in order, each to the slot that is free first.
    pub(crate) fn take(&mut self, costs: impl Iterator<Item = f64>) {
        let mut slots: BinaryHeap<Reverse<u64>> = self.0.drain(..).map(Reverse).collect();
        for cost in costs {
            if let Some(mut first) = slots.peek_mut() {
                first.0 = first.0.saturating_add(cost as u64);
            }
        }
        self.0.extend(slots.into_iter().map(|Reverse(work)| work));
        self.0.sort_unstable();
    }

    /// What each slot gets through until one is free for a task that comes behind `tasks` more of `each` units. Between two whole
    /// numbers of tasks in proportion.
    pub(crate) fn until_free(&self, tasks: f64, each: f64) -> f64 {
        let whole = tasks.floor().max(0.0);
        let free = self.until_free_behind(whole, each);
        let part = tasks - whole;
        if part > 0.0 {
            free + part * (self.until_free_behind(whole + 1.0, each) - free)
        } else {
            free
        }
    }

    /// The same behind a whole number of tasks: the place of the last of them and this one in the order in which slots become free.
    fn until_free_behind(&self, tasks: f64, each: f64) -> f64 {
        if tasks <= 0.0 || each <= 0.0 {
            return self.0.first().map_or(0.0, |work| *work as f64);
        }
        // Slots that are free too late for any of these tasks have no part in it. Behind many tasks there are none.
        let (mut least, mut most) = (1, self.count());
        if before_the_last(&self.0, each) <= tasks {
            least = most;
        }
        while least < most {
            let middle = (least + most).div_ceil(2);
            if before_the_last(&self.0[..middle], each) <= tasks {
                least = middle;
            } else {
                most = middle - 1;
            }
        }
        let slots = &self.0[..least];
        let left = tasks - before_the_last(slots, each);
        let mut free: Vec<f64> = level(slots, each)
            .map(|(work, begun)| work + begun * each)
            .collect();
        // From here on they take turns.
        let rounds = (left / least as f64).floor();
        let turn = (left - rounds * least as f64) as usize;
        let turn = turn.min(least - 1);
        let (_, free, _) = free.select_nth_unstable_by(turn, f64::total_cmp);
        *free + rounds * each
    }
}

/// How many tasks of `each` units begin in all before the last of these slots is free, or just then.
fn before_the_last(slots: &[u64], each: f64) -> f64 {
    level(slots, each).map(|(_, begun)| begun).sum()
}

/// Of each slot what it has to get through, and how many tasks of `each` units it can end besides by when the last one is free.
fn level(slots: &[u64], each: f64) -> impl Iterator<Item = (f64, f64)> {
    let last = slots.last().map_or(0.0, |work| *work as f64);
    slots.iter().map(move |work| {
        let work = *work as f64;
        (work, ((last - work) / each).floor())
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn tasks_go_to_the_slot_that_is_free_first() {
        let mut slots = Slots::new(3.0);
        slots.take([5.0, 2.0, 4.0].into_iter());
        assert_eq!(slots, Slots(vec![2, 4, 5]));
        slots.take([4.0, 1.0].into_iter());
        assert_eq!(slots, Slots(vec![5, 5, 6]));
        assert_eq!(slots.until_free(0.0, 1.0), 5.0);
        // Of 10 each they are free at 5, 5, 6, 15, 15, 16, 25 …
        assert_eq!(slots.until_free(3.0, 10.0), 15.0);
        assert_eq!(slots.until_free(6.0, 10.0), 25.0);
        assert_eq!(slots.until_free(5.5, 10.0), 20.5);
    }

    #[test]
    fn there_is_one_slot_at_least_and_a_bound_to_them() {
        for (count, slots) in [(0.0, 1), (f64::NAN, 1), (1.4, 1), (1e18, 4096)] {
            assert_eq!(Slots::new(count).count(), slots, "{count}");
        }
    }

    proptest! {
        #[test]
        fn where_slots_stand_behind_many_tasks_is_where_one_by_one_leads(
            left in prop::collection::vec(prop_oneof![Just(0u32), 0u32..5000], 1..9),
            each in 1u32..800,
            tasks in 0usize..60,
        ) {
            let mut slots = Slots::new(left.len() as f64);
            slots.take(left.into_iter().map(f64::from));
            let at_once = slots.until_free(tasks as f64, f64::from(each));
            slots.take(std::iter::repeat_n(f64::from(each), tasks));
            prop_assert_eq!(at_once, slots.until_free(0.0, 1.0));
        }
    }
}
