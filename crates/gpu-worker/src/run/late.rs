//! Whether a task's time to begin is over: by the broker's clock, whatever this machine's says.

use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use contract::task::{Done, Submitted};
use task_log::transition::Settlement;
use task_log::{TaskRef, deadline};

use crate::retry::{Stopped, until_stopped};
use crate::worker::Worker;

/// How long the present is reckoned from what the broker said last. Deadlines are in seconds, and nobody is asked more often.
const GOOD_FOR: Duration = Duration::from_secs(1);

/// The broker's time.
#[derive(Default)]
pub(crate) struct BrokerTime {
    /// As it was said last, and when that was heard.
    said: Mutex<Option<(SystemTime, Instant)>>,
}

impl BrokerTime {
    /// The present, unless it was said too long ago.
    fn reckon(&self, now: Instant) -> Option<SystemTime> {
        let (time, heard) = (*self.said())?;
        let since = now.saturating_duration_since(heard);
        (since <= GOOD_FOR).then(|| time + since)
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

/// The present, by the broker's clock.
async fn time(worker: &Worker) -> Result<SystemTime, Stopped> {
    if let Some(time) = worker.time.reckon(Instant::now()) {
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
    let now = time(worker).await?.duration_since(UNIX_EPOCH);
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
    fn the_brokers_time_is_reckoned_for_a_second_from_when_it_was_heard() {
        let (time, begin) = (BrokerTime::default(), Instant::now());
        assert_eq!(time.reckon(begin), None);
        // A day behind this machine.
        let said = SystemTime::now() - Duration::from_secs(24 * 3600);
        time.hear(said, begin);
        let half = GOOD_FOR / 2;
        assert_eq!(time.reckon(begin + half), Some(said + half));
        assert_eq!(time.reckon(begin + GOOD_FOR + half), None);
    }
}
