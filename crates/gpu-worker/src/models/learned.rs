//! What versions take of time, learned on the way.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

/// Thought of a task, and of a loading, before there was one.
const TASK: Duration = Duration::from_secs(10);
const LOADING: Duration = Duration::from_secs(30);
/// A new observation counts for one in so many.
const SMOOTHING: f64 = 4.0;
/// Versions that are remembered.
const VERSIONS: usize = 1024;

/// By version, `model/version`.
#[derive(Default)]
pub(crate) struct Learned {
    tasks: Mutex<HashMap<String, f64>>,
    loadings: Mutex<HashMap<String, f64>>,
}

impl Learned {
    /// A task was drawn within `took`.
    pub(crate) fn task_took(&self, version: &str, took: Duration) {
        observe(&self.tasks, version, took);
    }

    /// A version was loaded within `took`, its download included.
    pub(crate) fn loading_took(&self, version: &str, took: Duration) {
        observe(&self.loadings, version, took);
    }

    /// What a task takes.
    pub(crate) fn task(&self, version: &str) -> Duration {
        expected(&self.tasks, version, TASK)
    }

    /// What loading takes.
    pub(crate) fn loading(&self, version: &str) -> Duration {
        expected(&self.loadings, version, LOADING)
    }
}

type Seconds = Mutex<HashMap<String, f64>>;

fn observe(known: &Seconds, version: &str, took: Duration) {
    let (mut known, took) = (lock(known), took.as_secs_f64());
    if known.len() >= VERSIONS && !known.contains_key(version) {
        return;
    }
    let seconds = known.entry(version.to_owned()).or_insert(took);
    *seconds += (took - *seconds) / SMOOTHING;
}

fn expected(known: &Seconds, version: &str, otherwise: Duration) -> Duration {
    let seconds = lock(known).get(version).copied();
    seconds.map_or(otherwise, Duration::from_secs_f64)
}

fn lock(known: &Seconds) -> MutexGuard<'_, HashMap<String, f64>> {
    // Nothing panics while it is held half-changed.
    known
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_expected_is_what_was_seen_smoothed() {
        let learned = Learned::default();
        assert_eq!(learned.task("m/1"), TASK);
        learned.task_took("m/1", Duration::from_secs(4));
        learned.task_took("m/1", Duration::from_secs(8));
        assert_eq!(learned.task("m/1"), Duration::from_secs(5));
        assert_eq!(learned.task("m/2"), TASK);
        assert_eq!(learned.loading("m/1"), LOADING);
    }
}
