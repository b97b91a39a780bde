//! The rate limit: the generic cell rate algorithm (ITU-T I.371), decided by a pure function whose whole memory of a key is
//! one point in time, so a changed policy is in force with the next request.

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::sync::Mutex;
use std::time::Duration;

use contract::AppKey;

const NANOS_PER_SECOND: u64 = 1_000_000_000;

/// How often, and how many at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Rate {
    /// Requests a second in the long run.
    pub(crate) per_second: NonZeroU32,
    /// Requests at once after a pause.
    pub(crate) burst: NonZeroU32,
}

impl Rate {
    /// Nanoseconds that one request uses up.
    fn interval(self) -> u64 {
        // Above one a nanosecond there is no limit worth the name.
        (NANOS_PER_SECOND / u64::from(self.per_second.get())).max(1)
    }
}

/// What is left after a request that was let through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Allowance {
    /// Requests that may follow at once.
    pub(crate) remaining: u32,
    /// Until the whole burst is there again.
    pub(crate) full_in: Duration,
}

/// A request over the limit, and when one will be let through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct OverLimit {
    /// The shortest wait that helps.
    pub(crate) retry_after: Duration,
}

/// Charges one request at `now`. `used_until` is when a key's past requests are used up (the algorithm's theoretical
/// arrival time): the past or `None` for an idle key. Both are nanoseconds on one monotonic clock. Gives the new
/// `used_until`, which a refused request does not move.
pub(crate) fn charge(
    used_until: Option<u64>,
    now: u64,
    rate: Rate,
) -> Result<(u64, Allowance), OverLimit> {
    let interval = rate.interval();
    let whole_burst = interval.saturating_mul(u64::from(rate.burst.get()));
    // No more than a burst can be used up: what a more generous policy allowed before must not cost more under this one.
    let used = used_until
        .map_or(0, |until| until.saturating_sub(now))
        .min(whole_burst);
    let used_now = used.saturating_add(interval);
    if used_now > whole_burst {
        return Err(OverLimit {
            retry_after: Duration::from_nanos(used_now - whole_burst),
        });
    }
    let remaining = (whole_burst - used_now) / interval;
    let allowance = Allowance {
        // At most the burst, which is a u32.
        remaining: u32::try_from(remaining).unwrap_or(u32::MAX),
        full_in: Duration::from_nanos(used_now),
    };
    Ok((now.saturating_add(used_now), allowance))
}

/// Every key's use. Bounded: only proven keys are charged, so it holds no more entries than there are keys, and
/// [`forget_idle`](Self::forget_idle) drops those that are idle.
#[derive(Default)]
pub(crate) struct Limiter {
    used_until: Mutex<HashMap<AppKey, u64>>,
}

impl Limiter {
    /// Charges one request of a key; `now` is the time since some fixed moment.
    pub(crate) fn charge(
        &self,
        app_key: &AppKey,
        now: Duration,
        rate: Rate,
    ) -> Result<Allowance, OverLimit> {
        // A poisoned map still holds whole values: each is written in one step.
        let mut all = self.used_until.lock().unwrap_or_else(|e| e.into_inner());
        let (used_until, allowance) = charge(all.get(app_key).copied(), nanos(now), rate)?;
        match all.get_mut(app_key) {
            Some(entry) => *entry = used_until,
            None => drop(all.insert(app_key.clone(), used_until)),
        }
        Ok(allowance)
    }

    /// Charges several requests of a key, all or none.
    pub(crate) fn charge_together(
        &self,
        app_key: &AppKey,
        now: Duration,
        rate: Rate,
        requests: NonZeroU32,
    ) -> Result<Allowance, OverLimit> {
        let mut all = self.used_until.lock().unwrap_or_else(|e| e.into_inner());
        let first = charge(all.get(app_key).copied(), nanos(now), rate)?;
        let last = (1..requests.get()).try_fold(first, |(used_until, _), _| {
            charge(Some(used_until), nanos(now), rate)
        });
        let (used_until, allowance) = last?;
        all.insert(app_key.clone(), used_until);
        Ok(allowance)
    }

    /// Drops the keys whose whole burst is there again: they are as if never seen.
    pub(crate) fn forget_idle(&self, now: Duration) {
        let mut all = self.used_until.lock().unwrap_or_else(|e| e.into_inner());
        all.retain(|_, used_until| *used_until > nanos(now));
        let room = all.len() * 2;
        all.shrink_to(room);
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        self.used_until.lock().unwrap().len()
    }
}

/// 584 years fit.
fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rate(per_second: u32, burst: u32) -> Rate {
        Rate {
            per_second: NonZeroU32::new(per_second).unwrap(),
            burst: NonZeroU32::new(burst).unwrap(),
        }
    }

    #[test]
    fn a_burst_is_let_through_and_counted_down_then_one_an_interval() {
        let rate = rate(5, 3);
        let (mut used, mut left) = (None, Vec::new());
        for _ in 0..3 {
            let (until, allowance) = charge(used, 1000, rate).unwrap();
            used = Some(until);
            left.push((allowance.remaining, allowance.full_in.as_millis()));
        }
        assert_eq!(left, [(2, 200), (1, 400), (0, 600)]);
        let over = charge(used, 1000, rate).unwrap_err();
        assert_eq!(over.retry_after, Duration::from_millis(200));
    }

    #[test]
    fn a_stricter_policy_is_in_force_at_once_and_starts_with_at_most_its_own_burst_used() {
        let (mut used, now) = (None, 1000);
        for _ in 0..100 {
            used = Some(charge(used, now, rate(50, 100)).unwrap().0);
        }
        let over = charge(used, now, rate(5, 1)).unwrap_err();
        assert_eq!(over.retry_after, Duration::from_millis(200));
        assert_eq!(charge(used, now, rate(50, 101)).unwrap().1.remaining, 0);
    }

    #[test]
    fn keys_do_not_share_a_limit_and_idle_ones_are_forgotten() {
        let limiter = Limiter::default();
        let (a, b): (AppKey, AppKey) = ("test-a".parse().unwrap(), "test-b".parse().unwrap());
        let at = Duration::from_millis;
        limiter.charge(&a, at(0), rate(1, 1)).unwrap();
        limiter.charge(&a, at(1), rate(1, 1)).unwrap_err();
        limiter.charge(&b, at(500), rate(1, 1)).unwrap();
        limiter.forget_idle(at(999));
        assert_eq!(limiter.len(), 2);
        limiter.forget_idle(at(1000));
        assert_eq!(limiter.len(), 1);
        limiter.charge(&a, at(1000), rate(1, 1)).unwrap();
    }

    proptest! {
        #[test]
        fn no_stretch_of_time_lets_more_through_than_burst_and_rate(
            per_second in 1..2000u32,
            burst in 1..50u32,
            pauses in prop::collection::vec(0..20_000_000u64, 1..300),
        ) {
            let rate = rate(per_second, burst);
            let (mut used, mut now, mut let_through) = (None, 0, Vec::new());
            for pause in pauses {
                now += pause;
                if let Ok((until, _)) = charge(used, now, rate) {
                    used = Some(until);
                    let_through.push(now);
                }
            }
            for (first, from) in let_through.iter().enumerate() {
                for (last, to) in let_through.iter().enumerate().skip(first) {
                    let allowed = u64::from(burst) + (to - from) / rate.interval();
                    prop_assert!((last - first + 1) as u64 <= allowed);
                }
            }
        }

        #[test]
        fn the_wait_that_is_named_is_the_shortest_that_helps(
            per_second in 1..5000u32,
            burst in 1..100u32,
            ahead in prop_oneof![0..1_000_000_000u64, 0..u64::MAX / 4],
            now in 0..u64::MAX / 4,
        ) {
            let rate = rate(per_second, burst);
            if let Err(over) = charge(Some(now + ahead), now, rate) {
                let wait = over.retry_after.as_nanos() as u64;
                prop_assert!(wait <= rate.interval());
                // What is used up beyond a whole burst is forgiven, so count from a whole burst at most.
                let until = now + ahead.min(rate.interval() * u64::from(burst));
                prop_assert!(charge(Some(until), now + wait, rate).is_ok());
                prop_assert!(charge(Some(until), now + wait - 1, rate).is_err());
            }
        }

        #[test]
        fn any_numbers_at_all_are_survived(
            used in any::<Option<u64>>(), now: u64, per_second in 1..=u32::MAX, burst in 1..=u32::MAX,
        ) {
            let rate = rate(per_second, burst);
            if let Ok((_, allowance)) = charge(used, now, rate) {
                prop_assert!(allowance.remaining < burst);
            }
        }
    }
}
