//! The broker's clock, and whether a task's time to begin is over by it, whatever this machine's says.

use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use contract::task::{Done, Submitted};
use task_log::transition::Settlement;
use task_log::{TaskRef, deadline};

use crate::retry::{Stopped, until_stopped};
use crate::worker::Worker;

/// How long the present is reckoned, for a deadline, from what the broker said last. Deadlines are in seconds, and nobody is asked more often.
const GOOD_FOR: Duration = Duration::from_secs(1);

/// The broker's time.
#[derive(Default)]
pub(crate) struct BrokerTime {
    /// As it was said last, and when that was heard.
    said: Mutex<Option<(SystemTime, Instant)>>,
}

impl BrokerTime {
    /// The present, unless it was said longer ago than `good_for`.
    fn reckon(&self, now: Instant, good_for: Duration) -> Option<SystemTime> {
        let (time, heard) = (*self.said())?;
        let since = now.saturating_duration_since(heard);
        (since <= good_for).then(|| time + since)
    }

    fn hear(&self, time: SystemTime, now: Instant) {
        *self.said() = Some((time, now));
    }

    fn said(&self) -> MutexGuard<'_, Option<(SystemTime, Instant)>> {
        // It is only ever set.
        self.said
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

/// The present, by the broker's clock, reckoned from what that was `good_for` ago at most.
pub(super) async fn time(worker: &Worker, good_for: Duration) -> Result<SystemTime, Stopped> {
    if let Some(time) = worker.time.reckon(Instant::now(), good_for) {
        return Ok(time);
    }
    let asked = until_stopped(&worker.stop, "asking for the time", || worker.log.time());
    let time = asked.await?;
    // From when the answer is here, not from when it was asked for: what is reckoned is behind, if anything, and ends nothing too early.
    worker.time.hear(time, Instant::now());
    Ok(time)
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
    let now = time(worker, GOOD_FOR).await?.duration_since(UNIX_EPOCH);
    if now.unwrap_or_default() < deadline {
        return Ok(None);
    }
    let within = deadline.saturating_sub(deadline::submitted_at(submitted));
    let done = Done {
        worker: worker.name.clone(),
        ..deadline::expired(within)
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
    fn the_brokers_time_is_reckoned_from_when_it_was_heard_for_as_long_as_that_is_good() {
        let (time, begin) = (BrokerTime::default(), Instant::now());
        assert_eq!(time.reckon(begin, GOOD_FOR), None);
        // A day behind this machine.
        let said = SystemTime::now() - Duration::from_secs(24 * 3600);
        time.hear(said, begin);
        let half = GOOD_FOR / 2;
        assert_eq!(time.reckon(begin + half, GOOD_FOR), Some(said + half));
        let later = begin + GOOD_FOR + half;
        assert_eq!(time.reckon(later, GOOD_FOR), None);
        let reckoned = time.reckon(later, 2 * GOOD_FOR);
        assert_eq!(reckoned, Some(said + GOOD_FOR + half));
    }
}
