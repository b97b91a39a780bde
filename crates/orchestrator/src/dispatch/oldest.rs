//! How long the oldest task has waited: whoever runs this hears of it long before it ends for that, or is lost because nobody is there to end it.

use std::time::{Duration, Instant, UNIX_EPOCH};

use task_log::deadline::Kept;

use super::Dispatcher;

/// Between two times that the log says so.
const SAY_EVERY: Duration = Duration::from_secs(600);

/// Whether a wait is a matter for whoever runs this: half of the time for which the log keeps a task is over.
fn is_long(waited: Duration, kept: Kept) -> bool {
    kept.retention().is_some_and(|all| waited >= all / 2)
}

impl Dispatcher {
    /// Tells how long the oldest task of all queues that are here has waited to be handed over.
    pub(super) fn tell_oldest(&mut self, now: Instant) {
        // Where that is not known, what is old is not known either.
        let Some(time) = self.mandate.borrow().time(now) else {
            return;
        };
        let today = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        let lines = self.backlog.lines();
        let heads = self
            .active
            .iter()
            .filter_map(|queue| lines.get(queue)?.heads.front());
        // One that does not say when it was submitted would be as old as any.
        let dated = heads.filter(|head| !head.submitted_at.is_zero());
        let oldest = dated.min_by_key(|head| head.submitted_at);
        let oldest = oldest.map(|head| (head.task.task, head.submitted_at));
        drop(lines);
        let waited = oldest.map_or(Duration::ZERO, |(_, at)| today.saturating_sub(at));
        metrics::gauge!("inkstone_orchestrator_oldest_wait_seconds").set(waited.as_secs_f64());
        let Some((task, _)) = oldest.filter(|_| is_long(waited, self.kept)) else {
            return;
        };
        let said = self.said_oldest;
        if said.is_none_or(|at| now.saturating_duration_since(at) >= SAY_EVERY) {
            self.said_oldest = Some(now);
            tracing::warn!(
                %task,
                ?waited,
                "it waits for more than half of streams.task_retention: no worker takes its version, or not enough of them"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_of_the_time_for_which_a_task_is_kept_is_long() {
        let kept = Kept::new(Duration::from_secs(100));
        assert!(!is_long(Duration::from_secs(49), kept));
        assert!(is_long(Duration::from_secs(50), kept));
        assert!(!is_long(Duration::MAX, Kept::new(Duration::ZERO)));
    }
}
