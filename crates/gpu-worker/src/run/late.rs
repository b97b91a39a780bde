//! The broker's clock, and whether a task's time to begin is over by it, whatever this machine's says.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use contract::task::{Done, Submitted};
use task_log::transition::Settlement;
use task_log::{TaskRef, deadline};

use crate::retry::{Stopped, until_stopped};
use crate::worker::Worker;

/// How long the present is reckoned, for a deadline, from what the broker said last. Deadlines are in seconds, and nobody is asked more often.
const GOOD_FOR: Duration = Duration::from_secs(1);

/// The present, by the broker's clock, reckoned from what that was `good_for` ago at most.
pub(super) async fn time(worker: &Worker, good_for: Duration) -> Result<SystemTime, Stopped> {
    until_stopped(&worker.stop, "asking for the time", || {
        worker.log.time_within(good_for)
    })
    .await
}

/// Ends a task whose time to begin is over, if it is. This machine's own clock is not asked: one that is behind would have begun what is too
/// late.
pub(super) async fn expire(
    worker: &Worker,
    task: &TaskRef,
    submitted: &Submitted,
) -> Result<Option<Settlement>, Stopped> {
    let Some(deadline) = deadline::deadline(submitted) else {
        return Ok(None);
    };
    let now = time(worker, GOOD_FOR).await?;
    if now.duration_since(UNIX_EPOCH).unwrap_or_default() < deadline {
        return Ok(None);
    }
    let within = deadline.saturating_sub(deadline::submitted_at(submitted));
    let done = Done {
        worker: worker.name.clone(),
        ..deadline::expired(within, now)
    };
    tracing::info!(?within, "too late to begin");
    until_stopped(&worker.stop, "writing the task's end", || {
        worker.log.end(task, &done)
    })
    .await?;
    Ok(Some(Settlement::Ack))
}
