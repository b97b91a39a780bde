//! Tasks that did not begin in time end, however deep in their queues they lie.
//!
//! The log has an index of deadlines by time ([`TaskLog::due`]). Once a second those whose time is over are looked at: a task that no
//! worker has begun ends as expired, by the rule that a worker goes by before it begins one; so also when all workers are away. What
//! time it is says the broker: orchestrators' clocks may be ahead.
//! What is in memory does not grow with the backlog: a page of the index at a time.
//!
//! Every orchestrator does so by itself. Ending what another has ended is no error, and what one has looked at the others do not find.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, UNIX_EPOCH};

use futures::{StreamExt as _, TryStreamExt as _};
use lifecycle::Service;
use messaging::MAX_BATCH;
use task_log::{Due, Ended, Record, TaskLog, TaskLogError, TaskRef, deadline, slot_of};

use crate::sweeps;

/// Between two looks.
const EVERY: Duration = Duration::from_secs(1);
/// Slots that are looked at again: what is noted late, or by a clock that is behind, is found there.
const LATE: u64 = 15;
/// Between two times that it is kept up to which slot all were looked at.
const KEEP_EVERY: u64 = 30;
/// The longest that nobody may have looked: no task that waits is older than that.
const LONGEST: Duration = Duration::from_secs(8 * 24 * 3600);
/// Slots that are looked at together, and tasks of each.
const AT_ONCE: usize = 8;
/// Slots after which it is noted how far it has come: half an hour.
const STRETCH: u64 = 900;

struct Deadlines {
    log: TaskLog,
    /// All slots before this were looked at; 0 where that is not known so far.
    next: AtomicU64,
    /// As it was kept last.
    kept: AtomicU64,
}

/// Looks at deadlines for as long as the service runs.
pub(crate) fn start(service: &Service, log: &TaskLog) {
    let deadlines = Arc::new(Deadlines::new(log.clone()));
    sweeps::start(service, "deadlines", EVERY, move || {
        let deadlines = deadlines.clone();
        async move {
            if let Err(error) = deadlines.sweep().await {
                let error = lifecycle::chain(&error);
                tracing::warn!(error, "deadlines are looked at again");
            }
        }
    });
}

impl Deadlines {
    fn new(log: TaskLog) -> Self {
        Self {
            log,
            next: AtomicU64::new(0),
            kept: AtomicU64::new(0),
        }
    }

    async fn sweep(&self) -> Result<(), TaskLogError> {
        let now = self.log.time().await?.duration_since(UNIX_EPOCH);
        let now = now.unwrap_or_default();
        // The one before it is over.
        let until = slot_of(now);
        let next = match self.next.load(Ordering::Relaxed) {
            0 => self.log.looked_up_to().await?.unwrap_or(until),
            next => next,
        };
        let first = next.min(until.saturating_sub(LATE));
        let first = first.max(slot_of(now.saturating_sub(LONGEST)));
        let mut begin = first;
        while begin < until {
            let end = until.min(begin + STRETCH);
            let slots = futures::stream::iter(begin..end).map(Ok::<u64, TaskLogError>);
            let each = async |slot: u64| self.look(slot, now).await;
            slots.try_for_each_concurrent(AT_ONCE, each).await?;
            self.next.store(end, Ordering::Relaxed);
            begin = end;
        }
        if until >= self.kept.load(Ordering::Relaxed) + KEEP_EVERY {
            self.log.keep_looked_up_to(until).await?;
            self.kept.store(until, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Looks at the tasks of a slot.
    async fn look(&self, slot: u64, now: Duration) -> Result<(), TaskLogError> {
        let mut from = 1;
        loop {
            let due = self.log.due(slot, from).await?;
            let more = due.len() >= MAX_BATCH;
            from = due.last().map_or(from, |last| last.sequence + 1);
            let due = futures::stream::iter(due).map(Ok::<Due, TaskLogError>);
            let each = async |one: Due| self.look_at(one, now).await;
            due.try_for_each_concurrent(AT_ONCE, each).await?;
            if !more {
                return Ok(());
            }
        }
    }

    async fn look_at(&self, due: Due, now: Duration) -> Result<(), TaskLogError> {
        if let Some(task) = &due.task
            && let Some(record) = sweeps::readable(&self.log, &task.tenant, task.task).await?
            && deadline::overdue(&record, now).is_some()
            // A replica that lags may not have heard that it has begun.
            && let Some(record) = self.at_leader(task).await?
            && let Some(end) = deadline::overdue(&record, now)
            && self.log.end(&record.task_ref()?, &end).await? == Ended::First
        {
            tracing::debug!(task = %task.task, "too late to begin");
        }
        self.log.forget_due(&due).await
    }

    /// A task as the log's leader has it, if it can be read.
    async fn at_leader(&self, task: &TaskRef) -> Result<Option<Record>, TaskLogError> {
        match self.log.read_at_leader(&task.tenant, task.task).await {
            Err(error) if error.is_unreadable() => Ok(None),
            answer => answer,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sweeps::tests::{begun, expiring, place};

    #[tokio::test]
    async fn a_task_that_began_in_time_goes_on_though_a_replica_has_not_heard_of_it() {
        let (log, _storage, (server, _folder)) = place().await;
        let at = log.time().await.unwrap();
        let (drawn, waiting) = (expiring(at), expiring(at));
        for one in [&drawn, &waiting] {
            log.submit(one).await.unwrap();
            log.note_deadline(one).await.unwrap();
        }
        let by = deadline::deadline(&drawn).unwrap();
        let [drawn, waiting] = [&drawn, &waiting].map(|one| TaskRef::of(one).unwrap());
        log.set_state(&drawn, &begun(at)).await.unwrap();
        server
            .lag("TASKS", "inkstone.task.*.*.*.submitted")
            .unwrap();
        let deadlines = Deadlines::new(log.clone());
        let later = by + Duration::from_secs(1);
        deadlines.look(slot_of(by), later).await.unwrap();
        let end = async |task: &TaskRef| {
            let record = log.read_at_leader(&task.tenant, task.task).await;
            record.unwrap().unwrap().done
        };
        assert_eq!(end(&drawn).await, None);
        let expired = end(&waiting).await.unwrap();
        assert!(deadline::has_expired(&expired), "{expired:?}");
        assert!(log.due(slot_of(by), 1).await.unwrap().is_empty());
    }
}
