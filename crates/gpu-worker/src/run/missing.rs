//! Tasks that are not in the log although there is a dispatch of them: how often each was looked for.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use contract::TaskId;

/// Times that a task is looked for by one worker before it is given up.
const LOOKS: u32 = 4;
/// Tasks that are looked for at once. Of more, the others' looks are not counted until some of these are found or given up.
const REMEMBERED: usize = 1024;
/// One that nobody has looked for here for so long is forgotten: another worker has buried it. Not sooner, because of a version's workers that
/// take turns at its dispatch each has it once in as many seconds as they are, and if all forgot it between two turns, nobody would bury it.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(300);

/// The tasks, each with the looks that found nothing and when the last one did not.
#[derive(Debug, Default)]
pub(crate) struct Missing {
    looks: Mutex<HashMap<TaskId, (u32, Instant)>>,
}

impl Missing {
    /// Notes that a task was looked for in vain; whether that was the last time.
    pub(crate) fn is_given_up(&self, task: TaskId, now: Instant) -> bool {
        let mut looks = self.looks();
        looks.retain(|_, (_, last)| now.saturating_duration_since(*last) < FORGOTTEN_AFTER);
        if looks.len() >= REMEMBERED && !looks.contains_key(&task) {
            return false;
        }
        let (number, last) = looks.entry(task).or_insert((0, now));
        (*number, *last) = (*number + 1, now);
        let is_last = *number >= LOOKS;
        if is_last {
            looks.remove(&task);
        }
        is_last
    }

    /// Notes that a task is there after all: what was looked for in vain before says nothing of a later time.
    pub(crate) fn found(&self, task: TaskId) {
        self.looks().remove(&task);
    }

    fn looks(&self) -> MutexGuard<'_, HashMap<TaskId, (u32, Instant)>> {
        // Nothing panics while it is held half-changed.
        self.looks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_is_given_up_after_so_many_looks_of_its_own() {
        let (missing, now) = (Missing::default(), Instant::now());
        let (one, other) = (TaskId::random(), TaskId::random());
        for _ in 1..LOOKS {
            assert!(!missing.is_given_up(one, now));
        }
        assert!(!missing.is_given_up(other, now));
        assert!(missing.is_given_up(one, now));
        assert!(!missing.is_given_up(one, now), "it begins anew");
    }

    #[test]
    fn looks_long_ago_do_not_count() {
        let (missing, now) = (Missing::default(), Instant::now());
        let task = TaskId::random();
        for _ in 1..LOOKS {
            assert!(!missing.is_given_up(task, now));
        }
        assert!(!missing.is_given_up(task, now + FORGOTTEN_AFTER));
    }

    #[test]
    fn looks_before_a_task_was_found_do_not_count() {
        let (missing, now) = (Missing::default(), Instant::now());
        let task = TaskId::random();
        for _ in 1..LOOKS {
            assert!(!missing.is_given_up(task, now));
        }
        missing.found(task);
        assert!(!missing.is_given_up(task, now));
    }

    #[test]
    fn one_that_many_workers_take_turns_at_is_given_up() {
        let mut now = Instant::now();
        let task = TaskId::random();
        let workers: Vec<_> = (0..200).map(|_| Missing::default()).collect();
        let mut looks = 0;
        let given_up = (0..LOOKS).any(|_| {
            workers.iter().any(|worker| {
                now += super::super::LOOK_AGAIN;
                looks += 1;
                worker.is_given_up(task, now)
            })
        });
        assert!(given_up, "{looks} looks");
    }

    #[test]
    fn of_more_than_are_remembered_all_are_given_up_in_the_end() {
        let (missing, now) = (Missing::default(), Instant::now());
        let mut left: Vec<_> = (0..3 * REMEMBERED).map(|_| TaskId::random()).collect();
        let mut rounds = 0;
        while !left.is_empty() {
            left.retain(|&task| !missing.is_given_up(task, now));
            let remembered = missing.looks.lock().unwrap().len();
            assert!(remembered <= REMEMBERED);
            rounds += 1;
            assert!(rounds <= 3 * LOOKS);
        }
    }
}
