//! The broker's clock, and whether a task's time to begin is over by it, whatever this machine's says.
//!
//! The stream that is asked for the time may have no leader while all others have theirs. Whether a deadline is over is for the broker alone
//! to say, so a task that has one waits for its answer. Nothing else that asks decides by it what could not be decided otherwise: it is
//! waited for a moment ([`PATIENCE`]), and then gone without.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use contract::task::{Done, Submitted};
use task_log::transition::Settlement;
use task_log::{TaskRef, deadline};

use super::LOOK_AGAIN;
use super::reading::read_at_leader;
use crate::retry::{Stopped, until_stopped};
use crate::worker::Worker;
use lifecycle::chain;

/// How long the present is reckoned, for a deadline, from what the broker said last. Deadlines are in seconds, and nobody is asked more often.
const GOOD_FOR: Duration = Duration::from_secs(1);

/// How often the broker is asked for its time before there is work; the soonest answer counts.
const HEARD_BEFORE_WORK: usize = 3;
/// How long the broker's time is waited for by what can do without it.
const PATIENCE: Duration = Duration::from_millis(500);
/// After it was not told, what can do without it does so at once for this long: not every task waits in vain.
const ASKED_AGAIN: Duration = Duration::from_secs(5);

/// When the broker last did not say what time it is.
#[derive(Debug, Default)]
pub(crate) struct Untold(Mutex<Option<Instant>>);

impl Untold {
    fn note(&self, now: Instant) {
        // It is only ever set.
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(now);
    }

    fn is_recent(&self, now: Instant) -> bool {
        let last = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        last.is_some_and(|last| now.saturating_duration_since(last) < ASKED_AGAIN)
    }
}

/// The present, by the broker's clock, reckoned from what that was `good_for` ago at most; `None` where the broker does not say within
/// [`PATIENCE`], or lately did not.
pub(super) async fn time_soon(worker: &Worker, good_for: Duration) -> Option<SystemTime> {
    if worker.untold.is_recent(Instant::now()) {
        return None;
    }
    let asked = tokio::time::timeout(PATIENCE, worker.log.time_within(good_for)).await;
    let problem = match asked {
        Ok(Ok(time)) => return Some(time),
        Ok(Err(error)) => chain(&error),
        Err(_) => format!("no answer within {PATIENCE:?}"),
    };
    worker.untold.note(Instant::now());
    tracing::warn!(
        problem,
        asked_again = ?ASKED_AGAIN,
        "the broker does not say what time it is: dispatches are decided by what the log holds"
    );
    None
}

/// Asks for the time before there is work: what is heard in a quiet moment is heard soon after it was said, and gone by later.
pub(crate) async fn hear_time(worker: &Worker) {
    for _ in 0..HEARD_BEFORE_WORK {
        time_soon(worker, Duration::ZERO).await;
    }
}

/// The present, by the broker's clock, reckoned from what that was `good_for` ago at most; for as long as it takes.
async fn time(worker: &Worker, good_for: Duration) -> Result<SystemTime, Stopped> {
    until_stopped(&worker.stop, "asking for the time", || {
        worker.log.time_within(good_for)
    })
    .await
}

/// Ends a task whose time to begin is over, if it is and the log's leader knows of nobody who has begun it. This machine's own clock is not asked: one
/// that is behind would have begun what is too late.
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
    let has_begun = match read_at_leader(worker, task).await? {
        Ok(record) => {
            let state = record.and_then(|record| record.state);
            state.is_some_and(|state| state.started_at.is_some())
        }
        // Another version wrote something since: whoever reads all of it next decides.
        Err(_) => return Ok(Some(Settlement::GiveBack(LOOK_AGAIN))),
    };
    if has_begun {
        // Its state is another than was read, so it is not taken up here.
        return Ok(None);
    }
    let within = deadline.saturating_sub(deadline::submitted_at(submitted));
    let done = Done {
        worker: worker.name.clone(),
        incarnation: worker.incarnation.clone(),
        ..deadline::expired(within, now)
    };
    tracing::info!(?within, "too late to begin");
    until_stopped(&worker.stop, "writing the task's end", || {
        worker.log.end(task, &done)
    })
    .await?;
    Ok(Some(Settlement::Ack))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_was_not_told_the_time_asks_again_after_a_while_and_not_before() {
        let (untold, now) = (Untold::default(), Instant::now());
        assert!(!untold.is_recent(now));
        untold.note(now);
        assert!(untold.is_recent(now));
        assert!(!untold.is_recent(now + ASKED_AGAIN));
    }
}
