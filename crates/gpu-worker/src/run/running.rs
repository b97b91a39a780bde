//! Which tasks this worker is carrying out.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard};

use contract::TaskId;

use crate::metrics;

/// The tasks. Cheap to clone; all clones are the same set.
#[derive(Clone, Default)]
pub(crate) struct Running {
    tasks: Arc<Mutex<HashSet<TaskId>>>,
}

/// One task's place in the set, given up when dropped.
pub(crate) struct Place {
    task: TaskId,
    running: Running,
}

impl Running {
    /// Enters a task; `None` when it is there.
    pub(crate) fn enter(&self, task: TaskId) -> Option<Place> {
        let mut tasks = self.tasks();
        let entered = tasks.insert(task);
        metrics::tasks_running(tasks.len());
        entered.then(|| Place {
            task,
            running: self.clone(),
        })
    }

    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        self.tasks().len()
    }

    fn tasks(&self) -> MutexGuard<'_, HashSet<TaskId>> {
        // Nothing panics while it is held half-changed.
        self.tasks
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut tasks = self.running.tasks();
        tasks.remove(&self.task);
        metrics::tasks_running(tasks.len());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_has_one_place_at_a_time() {
        let running = Running::default();
        let task = TaskId::random();
        let place = running.enter(task);
        assert!(place.is_some());
        assert!(running.enter(task).is_none());
        assert_eq!(running.count(), 1);
        drop(place);
        assert!(running.enter(task).is_some());
    }
}
