//! What a worker goes by when a dispatch comes: what that tells of its task, or what the log holds.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use contract::task::{Dispatch, Submitted};
use messaging::Delivery;
use task_log::transition::{Decision, Known, decide};
use task_log::{Behind, Record, TaskLogError, TaskRef, deadline};

use super::late;
use crate::retry::{Stopped, until_stopped};
use crate::worker::Worker;

/// What a dispatch tells is gone by for so long after it was queued. Of a task that waits for longer, the log may have let go of the
/// submission by then, or of the end.
const TOLD_FOR: Duration = Duration::from_secs(10 * 60);
/// How long the present is reckoned from what the broker said last: little beside [`TOLD_FOR`], and a worker that has much to do asks it no
/// oftener.
pub(super) const TIME_GOOD_FOR: Duration = Duration::from_secs(60);
/// A task that was submitted longer ago than this when its dispatch was queued is read: the log may let go of its submission until somebody gets
/// that. A log that keeps events for no longer than this and [`TOLD_FOR`] together is not meant for work.
const SUBMITTED_WITHIN: Duration = Duration::from_secs(3600);

/// A task as it was found; an error is one that waiting does not mend.
pub(super) type Found = Result<Option<Record>, TaskLogError>;

/// Looks at the task of a dispatch, for as long as it takes.
///
/// What the dispatch tells is as old as itself. That the state still stands shows when the next one is written in its place, and so does an end that has
/// come since, where it tells that there was none; else the first who gets it asks for that. Whoever gets it later, or gets one of a task that was submitted
/// long ago, reads everything.
pub(super) async fn look(
    worker: &Worker,
    delivery: &Delivery,
    dispatch: &Dispatch,
    task: &TaskRef,
) -> Result<Found, Stopped> {
    let told = match is_news(worker, delivery).await {
        true => Record::of_dispatch(task, dispatch),
        false => None,
    };
    let told = told.filter(|record| is_recent(&record.submitted, delivery.published()));
    let Some(record) = told else {
        return read(worker, task).await;
    };
    if let Behind::Last(_) = record.behind() {
        return Ok(Ok(Some(record)));
    }
    let done = until_stopped(&worker.stop, "asking for the task's end", || async {
        match worker.log.done(task).await {
            Err(error @ TaskLogError::Broker(_)) => Err(error),
            answer => Ok(answer),
        }
    });
    Ok(done.await?.map(|done| Some(Record { done, ..record })))
}

/// Reads the task, for as long as it takes.
pub(super) async fn read(worker: &Worker, task: &TaskRef) -> Result<Found, Stopped> {
    let read = until_stopped(&worker.stop, "reading the task", || async {
        match worker.log.read(&task.tenant, task.task).await {
            Err(error @ TaskLogError::Broker(_)) => Err(error),
            answer => Ok(answer),
        }
    });
    let found = read.await?;
    if matches!(found, Ok(Some(_))) {
        worker.missing.found(task.task);
    }
    Ok(found)
}

/// The same, as the log's leader has it: a replica that lags may not have heard of what another worker wrote.
pub(super) async fn read_at_leader(worker: &Worker, task: &TaskRef) -> Result<Found, Stopped> {
    until_stopped(&worker.stop, "asking the log's leader", || async {
        match worker.log.read_at_leader(&task.tenant, task.task).await {
            Err(error @ TaskLogError::Broker(_)) => Err(error),
            answer => Ok(answer),
        }
    })
    .await
}

/// Whether the task was taken up as often as it may be, by the log's leader. One whose worker handed it back was taken up once less.
pub(super) async fn is_exhausted(worker: &Worker, task: &TaskRef) -> Result<bool, Stopped> {
    Ok(match read_at_leader(worker, task).await? {
        Ok(record) => {
            let known = record.as_ref().map(Known::from);
            let decision = decide(known, false, worker.max_attempts);
            matches!(decision, Decision::Exhausted { .. })
        }
        // The next one to whom it comes gives it up for that.
        Err(_) => false,
    })
}

/// Whether nobody had the dispatch before and it was queued a short time ago, both by the broker's clock: this machine's may be wrong.
///
/// Where the broker does not say what time it is, it is not. To go by an old dispatch would draw what the log has let go of, or what has ended;
/// to read what it told costs a request, and is right whatever time it is.
async fn is_news(worker: &Worker, delivery: &Delivery) -> bool {
    if delivery.deliveries() != 1 {
        return false;
    }
    let now = late::time_soon(worker, TIME_GOOD_FOR).await;
    now.is_some_and(|now| is_told(delivery.published(), now))
}

/// Whether what a dispatch tells is gone by. What is reckoned may be behind, and so may one broker's clock be behind another's.
fn is_told(queued: SystemTime, now: SystemTime) -> bool {
    now.duration_since(queued).unwrap_or_default() <= TOLD_FOR
}

/// Whether the log still has what was submitted, as long as the dispatch is news.
fn is_recent(submitted: &Submitted, queued: SystemTime) -> bool {
    let queued = queued.duration_since(UNIX_EPOCH).unwrap_or_default();
    queued.saturating_sub(deadline::submitted_at(submitted)) <= SUBMITTED_WITHIN
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_submitted_long_before_it_was_queued_is_read() {
        let submitted = Submitted {
            at: Some(contract::now()),
            ..Submitted::default()
        };
        let at = UNIX_EPOCH + deadline::submitted_at(&submitted);
        assert!(is_recent(&submitted, at));
        assert!(is_recent(&submitted, at + SUBMITTED_WITHIN));
        assert!(!is_recent(&submitted, at + 2 * SUBMITTED_WITHIN));
        // By a broker whose clock is behind.
        assert!(is_recent(&submitted, at - Duration::from_secs(5)));
    }

    #[test]
    fn what_a_dispatch_tells_is_gone_by_for_a_while_and_no_longer() {
        let queued = SystemTime::now();
        assert!(is_told(queued, queued));
        assert!(is_told(queued, queued + TOLD_FOR));
        assert!(is_told(queued + Duration::from_secs(5), queued));
        assert!(!is_told(queued, queued + 2 * TOLD_FOR));
        // Whoever cannot be told when it was queued reads.
        assert!(!is_told(SystemTime::UNIX_EPOCH, queued));
    }
}
