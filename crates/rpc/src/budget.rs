//! How many calls may be sent again: a share of all calls and a few, so that retries can never multiply the load of a peer
//! that has trouble.

use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::time::Duration;

/// What one retry costs, in thousandths.
const RETRY: u64 = 1000;
/// Retries that may be saved up beyond the spare ones.
const MOST_SAVED: u64 = 100 * RETRY;
/// The time in which the spare retries come back.
const SPARE_EVERY: Duration = Duration::from_secs(10);
/// Before the first retry, about; each further one waits twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(25);
const MOST_DOUBLINGS: u32 = 6;

/// How often calls are sent again, under `[<peer>.retries]`.
#[derive(Debug, Clone, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RetrySettings {
    /// Times that one call is sent at most, the first included; 1 never retries.
    pub attempts: u32,
    /// Retries as a percentage of calls.
    pub percent: u32,
    /// Retries every ten seconds beside those.
    pub spare: u32,
}

impl Default for RetrySettings {
    fn default() -> Self {
        Self {
            attempts: 3,
            percent: 10,
            spare: 5,
        }
    }
}

/// A token bucket that calls fill. Time is what has passed since a fixed moment.
#[derive(Debug)]
pub(crate) struct Budget {
    percent: u64,
    spare: u64,
    /// Thousandths of a retry.
    saved: u64,
    filled: Duration,
}

impl Budget {
    pub(crate) fn new(settings: &RetrySettings) -> Self {
        let spare = u64::from(settings.spare) * RETRY;
        Self {
            percent: u64::from(settings.percent),
            spare,
            saved: spare,
            filled: Duration::ZERO,
        }
    }

    /// Notes a call.
    pub(crate) fn called(&mut self) {
        self.add(self.percent * RETRY / 100);
    }

    /// Takes one retry; false when there is none.
    pub(crate) fn take(&mut self, now: Duration) -> bool {
        let passed = now.saturating_sub(self.filled);
        let back = u128::from(self.spare) * passed.as_millis() / SPARE_EVERY.as_millis();
        if back > 0 {
            self.filled = now;
            self.add(u64::try_from(back).unwrap_or(MOST_SAVED));
        }
        let enough = self.saved >= RETRY;
        if enough {
            self.saved -= RETRY;
        }
        enough
    }

    fn add(&mut self, more: u64) {
        self.saved = self.saved.saturating_add(more).min(self.spare + MOST_SAVED);
    }

    /// Whole retries that are there.
    pub(crate) fn left(&self) -> u64 {
        self.saved / RETRY
    }
}

/// How long to wait before retry number `retry` (from 1): between a half and the whole of a pause that doubles, so that
/// callers who failed together do not come back together.
pub(crate) fn pause(retry: u32, random: u64) -> Duration {
    let whole = FIRST_PAUSE * 2u32.pow(retry.clamp(1, MOST_DOUBLINGS));
    whole / 2 + (whole / 2).mul_f64((random >> 32) as f64 / f64::from(u32::MAX))
}

/// A number that differs from call to call; the standard library seeds its hashers at random.
pub(crate) fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn retries_never_exceed_their_share_of_the_calls_and_the_spare_ones(
            steps in prop::collection::vec((0..50u64, any::<bool>()), 1..500),
        ) {
            let settings = RetrySettings::default();
            let mut budget = Budget::new(&settings);
            let (mut now, mut calls, mut retries) = (Duration::ZERO, 0u64, 0u64);
            for (ms, retry) in steps {
                now += Duration::from_millis(ms);
                if retry {
                    retries += u64::from(budget.take(now));
                } else {
                    budget.called();
                    calls += 1;
                }
                let spare = u64::from(settings.spare) * (1 + now.as_secs() / 10 + 1);
                prop_assert!(retries <= calls / 10 + spare);
            }
        }

        #[test]
        fn a_pause_grows_and_is_never_more_than_one_and_a_half_seconds_or_so(retry: u32, random: u64) {
            let pause = pause(retry, random);
            prop_assert!(pause >= FIRST_PAUSE && pause <= FIRST_PAUSE * 64);
        }
    }

    #[test]
    fn the_spare_retries_come_back_with_time_alone() {
        let mut budget = Budget::new(&RetrySettings::default());
        let taken = (0..100).filter(|_| budget.take(Duration::ZERO)).count();
        assert_eq!(taken, 5);
        let taken = (0..100).filter(|_| budget.take(SPARE_EVERY)).count();
        assert_eq!(taken, 5);
    }
}
