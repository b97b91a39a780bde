//! The broker's clock, which deadlines and ages go by: machines' own may be wrong.

use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant, SystemTime};

use crate::{TaskLog, TaskLogError};

/// Clocks of computers go wrong by one part in so many at most, each (50 ppm; RFC 5905 allows 15), so that two go apart by twice that.
const DRIFT: u32 = 10_000;

/// What the broker said of the time.
///
/// An answer was true at some moment between the question and its arrival, so the present is never before what is reckoned from its arrival, and
/// after a busy moment far behind. What was heard soonest after it was said is gone by, as long as no later answer contradicts it (the clock filter
/// and the intersection of intervals of RFC 5905, section 10 and 11.2.1, with one peer): so two services date what they write by one clock
/// within the fastest answer each of them had, and not within the slowest.
#[derive(Debug, Default)]
pub(crate) struct Said {
    /// The best of what was said, and when the broker answered last.
    said: Mutex<Option<Heard>>,
}

#[derive(Debug, Clone, Copy)]
struct Heard {
    /// The broker's time when it was heard.
    time: SystemTime,
    at: Instant,
    /// The last answer.
    last: Instant,
}

impl Heard {
    /// The broker's time at some other moment.
    fn reckon(&self, now: Instant) -> SystemTime {
        match now.checked_duration_since(self.at) {
            Some(since) => self.time + since,
            None => self.time - self.at.saturating_duration_since(now),
        }
    }

    /// The same, less what this machine's clock may have gone too fast since: so what is reckoned stays behind, if anything.
    fn aged(&self, now: Instant) -> SystemTime {
        let since = now.saturating_duration_since(self.at);
        self.reckon(now) - since / DRIFT
    }
}

impl Said {
    /// The present, unless the broker answered longer ago than `good_for`.
    fn reckon(&self, now: Instant, good_for: Duration) -> Option<SystemTime> {
        let heard = (*self.said())?;
        let since = now.saturating_duration_since(heard.last);
        (since <= good_for).then(|| heard.reckon(now))
    }

    /// The broker said so, to whoever had asked it then.
    fn hear(&self, time: SystemTime, asked: Instant, now: Instant) {
        let mut said = self.said();
        *said = Some(match *said {
            // It was not later than that when it was asked: otherwise one of the two clocks was set, or runs faster.
            Some(best) if best.aged(now) >= time && best.reckon(asked) <= time => Heard {
                time: best.aged(now),
                at: now,
                last: now.max(best.last),
            },
            _ => Heard {
                time,
                at: now,
                last: now,
            },
        });
    }

    fn said(&self) -> MutexGuard<'_, Option<Heard>> {
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
        let asked = Instant::now();
        let time = self.deadlines.time().await?;
        self.said.hear(time, asked, Instant::now());
        Ok(time)
    }

    /// The same of a broker that may not answer so far: asks until it does, for no longer than its start may take.
    ///
    /// # Errors
    /// When the broker has not answered by then.
    pub async fn time_patiently(&self) -> Result<SystemTime, TaskLogError> {
        self.broker
            .patiently(|| async {
                let asked = Instant::now();
                let time = self.deadlines.time().await?;
                self.said.hear(time, asked, Instant::now());
                Ok(time)
            })
            .await
            .map_err(TaskLogError::from)
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
        time.hear(said, begin, begin);
        let half = GOOD_FOR / 2;
        assert_eq!(time.reckon(begin + half, GOOD_FOR), Some(said + half));
        let later = begin + GOOD_FOR + half;
        assert_eq!(time.reckon(later, GOOD_FOR), None);
        let reckoned = time.reckon(later, Duration::MAX);
        assert_eq!(reckoned, Some(said + GOOD_FOR + half));
    }

    #[test]
    fn an_answer_that_came_late_sets_nothing_back() {
        let (time, begin) = (Said::default(), Instant::now());
        let (said, moment) = (SystemTime::now(), Duration::from_millis(1));
        time.hear(said, begin, begin + moment);
        // Asked for a second later, said at once, and heard half a second after that.
        let asked = begin + GOOD_FOR;
        time.hear(said + GOOD_FOR, asked, asked + GOOD_FOR / 2);
        let later = begin + 2 * GOOD_FOR;
        let reckoned = time.reckon(later, GOOD_FOR);
        let drift = (asked + GOOD_FOR / 2 - (begin + moment)) / DRIFT;
        assert_eq!(reckoned, Some(said + 2 * GOOD_FOR - moment - drift));
        // One that came sooner after it was said puts it right.
        time.hear(said + 2 * GOOD_FOR, later - moment, later);
        let reckoned = time.reckon(later, GOOD_FOR);
        assert_eq!(reckoned, Some(said + 2 * GOOD_FOR));
    }

    #[test]
    fn a_clock_that_was_set_is_gone_by_from_the_next_answer_on() {
        let (said, hour) = (SystemTime::now(), Duration::from_secs(3600));
        for set in [said + hour, said - hour] {
            let (time, begin) = (Said::default(), Instant::now());
            time.hear(said, begin, begin);
            let (asked, heard) = (begin + GOOD_FOR / 2, begin + GOOD_FOR);
            time.hear(set, asked, heard);
            assert_eq!(time.reckon(heard, GOOD_FOR), Some(set));
        }
    }

    #[test]
    fn what_is_reckoned_is_never_ahead_however_fast_this_machines_clock_goes() {
        let (time, begin, said) = (Said::default(), Instant::now(), SystemTime::now());
        let minute = Duration::from_secs(60);
        // Of the broker's minutes this machine counts 90 ppm more.
        let counted = |minutes: u32| begin + minute * minutes + minute * minutes * 9 / 100_000;
        for minutes in 0..3 * 24 * 60 {
            let heard = counted(minutes);
            // Of two answers one comes late.
            let late = Duration::from_millis(u64::from(minutes % 2) * 20);
            time.hear(said + minute * minutes - late, heard - late, heard);
            let reckoned = time.reckon(heard, minute).unwrap();
            assert!(reckoned <= said + minute * minutes, "{minutes}");
        }
    }
}
