//! Tasks that failed here through no fault of theirs: another worker takes them up, if there is one.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use contract::TaskId;
use task_log::TaskRef;

use crate::models::Served;
use crate::worker::Worker;

/// How long another worker has for taking one up, after it may be tried again. Then this one does: a second try at the same
/// place is better than none.
const LEFT_FOR: Duration = Duration::from_secs(30);
/// Before a task that is left to another worker is looked at again.
pub(super) const LEFT_AGAIN: Duration = Duration::from_secs(2);
/// Tasks that are remembered; beyond it the one that may be taken up here soonest is forgotten.
const REMEMBERED: usize = 1024;

/// The tasks, each until when it is left to others.
#[derive(Default)]
pub(crate) struct Elsewhere {
    until: Mutex<HashMap<TaskId, Instant>>,
}

impl Elsewhere {
    /// One failed here and may be tried again after `rest`.
    pub(crate) fn leave(&self, task: TaskId, now: Instant, rest: Duration) {
        let mut until = self.until();
        until.retain(|_, until| *until > now);
        until.insert(task, now + rest + LEFT_FOR);
        if until.len() > REMEMBERED {
            let soonest = until.iter().min_by_key(|(_, until)| **until);
            if let Some((&soonest, _)) = soonest {
                until.remove(&soonest);
            }
        }
    }

    /// Whether it is another worker's to take up.
    pub(crate) fn is_left(&self, task: TaskId, now: Instant) -> bool {
        self.until().get(&task).is_some_and(|until| *until > now)
    }

    fn until(&self) -> MutexGuard<'_, HashMap<TaskId, Instant>> {
        // Nothing panics while it is held half-changed.
        self.until
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

/// Whether the task failed here lately, and there is another worker to take it up.
pub(super) async fn is_anothers(worker: &Worker, served: &Served, task: &TaskRef) -> bool {
    let left = worker.elsewhere.is_left(task.task, Instant::now());
    left && worker.fleet.has_another_for(&served.key()).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_that_failed_is_left_to_others_for_a_while_and_no_longer() {
        let (elsewhere, now) = (Elsewhere::default(), Instant::now());
        let task = TaskId::random();
        let rest = Duration::from_secs(5);
        assert!(!elsewhere.is_left(task, now));
        elsewhere.leave(task, now, rest);
        assert!(elsewhere.is_left(task, now + rest));
        assert!(!elsewhere.is_left(TaskId::random(), now + rest));
        assert!(!elsewhere.is_left(task, now + rest + LEFT_FOR));
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let (elsewhere, now) = (Elsewhere::default(), Instant::now());
        let first = TaskId::random();
        elsewhere.leave(first, now, Duration::ZERO);
        for _ in 0..REMEMBERED {
            elsewhere.leave(TaskId::random(), now, Duration::from_secs(1));
        }
        assert_eq!(elsewhere.until().len(), REMEMBERED);
        assert!(!elsewhere.is_left(first, now));
    }
}
