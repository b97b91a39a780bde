//! The broker's clock, which deadlines and ages go by: machines' own may be wrong.

use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant, SystemTime};

use crate::{TaskLog, TaskLogError};

/// What the broker said of the time.
#[derive(Debug, Default)]
pub(crate) struct Said {
    /// As it was said last, and when that was heard.
    said: Mutex<Option<(SystemTime, Instant)>>,
}

impl Said {
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

impl TaskLog {
    /// The present, by the broker's clock: the one by which a deadline is over.
    ///
    /// # Errors
    /// When the broker does not answer.
    pub async fn time(&self) -> Result<SystemTime, TaskLogError> {
        let time = self.deadlines.time().await?;
        // From when the answer is here, not from when it was asked for: what is reckoned is behind, if anything, and ends nothing too early.
        self.said.hear(time, Instant::now());
        Ok(time)
    }

    /// The same of a broker that may not answer so far: asks until it does, for no longer than its start may take.
    ///
    /// # Errors
    /// When the broker has not answered by then.
    pub async fn time_patiently(&self) -> Result<SystemTime, TaskLogError> {
        let time = self.broker.patiently(|| self.deadlines.time()).await?;
        self.said.hear(time, Instant::now());
        Ok(time)
    }

    /// The same, reckoned from what the broker said last, whoever of those that share this log asked, if that was `good_for` ago at most. Otherwise
    /// it is asked.
    ///
    /// # Errors
    /// When the broker is asked and does not answer.
    pub async fn time_within(&self, good_for: Duration) -> Result<SystemTime, TaskLogError> {
        if let Some(time) = self.said.reckon(Instant::now(), good_for) {
            return Ok(time);
        }
        // In a box: hardly any needs it.
        Box::pin(self.time()).await
    }

    /// The same, reckoned from what the broker said last, however long ago; by this machine's clock where it has said nothing so far. For
    /// what is only told, and for what follows from ages of minutes and days; who ends something asks.
    pub fn now(&self) -> SystemTime {
        let reckoned = self.said.reckon(Instant::now(), Duration::MAX);
        reckoned.unwrap_or_else(contract::clock::system_time)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD_FOR: Duration = Duration::from_secs(1);

    #[test]
    fn the_brokers_time_is_reckoned_from_when_it_was_heard_for_as_long_as_that_is_good() {
        let (time, begin) = (Said::default(), Instant::now());
        assert_eq!(time.reckon(begin, GOOD_FOR), None);
        // A day behind this machine.
        let said = SystemTime::now() - Duration::from_secs(24 * 3600);
        time.hear(said, begin);
        let half = GOOD_FOR / 2;
        assert_eq!(time.reckon(begin + half, GOOD_FOR), Some(said + half));
        let later = begin + GOOD_FOR + half;
        assert_eq!(time.reckon(later, GOOD_FOR), None);
        let reckoned = time.reckon(later, Duration::MAX);
        assert_eq!(reckoned, Some(said + GOOD_FOR + half));
    }
}
