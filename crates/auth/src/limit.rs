//! The rate limit: the generic cell rate algorithm in its leaky bucket form (ITU-T I.371, annex A), decided by a pure function
//! whose whole memory of a key is one level at one time, so a changed policy is in force with the next request.
//!
//! An instance may have a part of a key's rate ([`Share`]). The level is kept in requests and not in time: when the share changes,
//! what was let through before still counts for what it was. So instances that take over from each other let through no more
//! together than one would, and a key that used its burst on one of them pays it back there.

use std::num::NonZeroU32;
use std::time::Duration;

use crate::share::Share;

/// One request, in units of which a rate of one request a second earns back one each nanosecond.
const REQUEST: u64 = 1_000_000_000;
const MILLION: u128 = 1_000_000;

/// How often, and how many at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Rate {
    /// Requests a second in the long run.
    pub(crate) per_second: NonZeroU32,
    /// Requests at once after a pause.
    pub(crate) burst: NonZeroU32,
}

impl Rate {
    fn whole_burst(self) -> u64 {
        u64::from(self.burst.get()) * REQUEST
    }

    /// What is earned back in so many nanoseconds.
    fn earned(self, nanos: u64, share: Share) -> u64 {
        let whole = u128::from(nanos) * u128::from(self.per_second.get());
        let part = whole * u128::from(share.millionths()) / MILLION;
        u64::try_from(part).unwrap_or(u64::MAX)
    }

    /// How long it takes to earn back so much, rounded up.
    fn earned_in(self, amount: u64, share: Share) -> Duration {
        let speed = u128::from(self.per_second.get()) * u128::from(share.millionths());
        let nanos = (u128::from(amount) * MILLION).div_ceil(speed);
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }
}

/// What a key has used and not earned back, at a moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Used {
    level: u64,
    /// Nanoseconds on one monotonic clock.
    at: u64,
}

impl Used {
    /// The same at a later moment. Call it before a share changes: what was earned so far was earned at the old one.
    pub(crate) fn later(self, now: u64, rate: Rate, share: Share) -> Self {
        // No more than a burst is owed: what a more generous policy allowed before must not cost more under this one.
        let owed = self.level.min(rate.whole_burst());
        let earned = rate.earned(now.saturating_sub(self.at), share);
        Self {
            level: owed.saturating_sub(earned),
            at: self.at.max(now),
        }
    }

    /// Whether nothing is left to earn back.
    pub(crate) fn is_nothing(self) -> bool {
        self.level == 0
    }
}

/// What is asked for, all or none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ask {
    /// To be charged now.
    pub(crate) requests: NonZeroU32,
    /// Charged a moment ago to let the same caller in, and charged again when it comes back.
    pub(crate) entry: u32,
}

impl Ask {
    /// One request.
    pub(crate) const ONE: Self = Self {
        requests: NonZeroU32::MIN,
        entry: 0,
    };
}

/// What is left after requests that were let through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Allowance {
    /// Requests that may follow at once.
    pub(crate) remaining: u32,
    /// Until the whole burst is there again.
    pub(crate) full_in: Duration,
}

/// Over the limit, and when the same will be let through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct OverLimit {
    /// The shortest wait that helps.
    pub(crate) retry_after: Duration,
}

/// Charges what is asked for at `now` to the part `share` of a rate. `used` is nothing for an idle key. Gives what is used then;
/// who is refused uses nothing.
///
/// A share's part of the burst may be less than what comes at once: that much is let through all the same once nothing else is
/// left to earn back, and is owed.
pub(crate) fn charge(
    used: Used,
    now: u64,
    rate: Rate,
    share: Share,
    ask: Ask,
) -> Result<(Used, Allowance), OverLimit> {
    let before = used.later(now, rate, share);
    let asked = u64::from(ask.requests.get()) * REQUEST;
    let entry = u64::from(ask.entry) * REQUEST;
    let room = share.of(rate.whole_burst());
    let level = before.level + asked;
    let over = level.saturating_sub(room.max(asked + entry));
    if over > 0 {
        return Err(OverLimit {
            retry_after: rate.earned_in(over + entry, share),
        });
    }
    let remaining = room.saturating_sub(level) / REQUEST;
    let allowance = Allowance {
        // At most the burst, which is a u32.
        remaining: u32::try_from(remaining).unwrap_or(u32::MAX),
        full_in: rate.earned_in(level, share),
    };
    let at = before.at;
    Ok((Used { level, at }, allowance))
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

    fn together(requests: u32) -> Ask {
        Ask {
            requests: NonZeroU32::new(requests).unwrap(),
            entry: 1,
        }
    }

    fn shares() -> impl Strategy<Value = Share> {
        prop_oneof![Just(1), 1..50usize, Just(1_000_000)].prop_map(Share::one_of)
    }

    #[test]
    fn a_burst_is_let_through_and_counted_down_then_one_an_interval() {
        let rate = rate(5, 3);
        let (mut used, mut left) = (Used::default(), Vec::new());
        for _ in 0..3 {
            let (after, allowance) = charge(used, 1000, rate, Share::ALL, Ask::ONE).unwrap();
            used = after;
            left.push((allowance.remaining, allowance.full_in.as_millis()));
        }
        assert_eq!(left, [(2, 200), (1, 400), (0, 600)]);
        let over = charge(used, 1000, rate, Share::ALL, Ask::ONE).unwrap_err();
        assert_eq!(over.retry_after, Duration::from_millis(200));
    }

    #[test]
    fn a_stricter_policy_is_in_force_at_once_and_starts_with_at_most_its_own_burst_used() {
        let (mut used, now) = (Used::default(), 1000);
        for _ in 0..100 {
            let charged = charge(used, now, rate(50, 100), Share::ALL, Ask::ONE);
            used = charged.unwrap().0;
        }
        let over = charge(used, now, rate(5, 1), Share::ALL, Ask::ONE).unwrap_err();
        assert_eq!(over.retry_after, Duration::from_millis(200));
        let more = charge(used, now, rate(50, 101), Share::ALL, Ask::ONE);
        assert_eq!(more.unwrap().1.remaining, 0);
    }

    #[test]
    fn a_share_that_shrinks_forgets_nothing_and_names_the_time_until_the_debt_is_paid() {
        let (rate, third) = (rate(30, 30), Share::one_of(3));
        let mut used = Used::default();
        for _ in 0..30 {
            used = charge(used, 0, rate, Share::ALL, Ask::ONE).unwrap().0;
        }
        // Twenty of a burst of ten are owed, and the one that is asked for, at ten a second.
        let over = charge(used, 0, rate, third, Ask::ONE).unwrap_err();
        let wait = over.retry_after.as_secs_f64();
        assert!((2.1..2.101).contains(&wait), "{wait}");
        let then = over.retry_after.as_nanos() as u64;
        charge(used, then - 1, rate, third, Ask::ONE).unwrap_err();
        charge(used, then, rate, third, Ask::ONE).unwrap();
    }

    #[test]
    fn more_at_once_than_a_share_of_the_burst_goes_through_alone_and_is_owed() {
        let (rate, half) = (rate(20, 20), Share::one_of(2));
        let let_in = charge(Used::default(), 0, rate, half, Ask::ONE).unwrap().0;
        let (used, allowance) = charge(let_in, 0, rate, half, together(19)).unwrap();
        assert_eq!(allowance.remaining, 0);
        let over = charge(used, 0, rate, half, Ask::ONE).unwrap_err();
        assert_eq!(over.retry_after, Duration::from_millis(1100));
    }

    #[test]
    fn many_together_are_let_through_all_or_none_and_when_told() {
        let rate = rate(10, 10);
        let all = Share::ALL;
        let enter = |used, at| charge(used, at, rate, all, Ask::ONE).unwrap().0;
        let used = enter(Used::default(), 0);
        let (used, allowance) = charge(used, 0, rate, all, together(4)).unwrap();
        assert_eq!(allowance.remaining, 5);
        let entered = enter(used, 0);
        let over = charge(entered, 0, rate, all, together(8)).unwrap_err();
        let wait = over.retry_after.as_nanos() as u64;
        // The entry of the second time is in it.
        assert_eq!(wait, 500_000_000);
        let again = enter(entered, wait);
        charge(again, wait, rate, all, together(8)).unwrap();
        let early = enter(entered, wait - 1);
        charge(early, wait - 1, rate, all, together(8)).unwrap_err();
    }

    proptest! {
        #[test]
        fn no_stretch_of_time_lets_more_through_than_burst_and_rate(
            per_second in 1..2000u32,
            burst in 1..50u32,
            share in shares(),
            pauses in prop::collection::vec(0..20_000_000u64, 1..300),
        ) {
            let rate = rate(per_second, burst);
            let (mut used, mut now, mut let_through) = (Used::default(), 0, Vec::new());
            for pause in pauses {
                now += pause;
                if let Ok((after, _)) = charge(used, now, rate, share, Ask::ONE) {
                    used = after;
                    let_through.push(now);
                }
            }
            let room = share.of(rate.whole_burst()).max(REQUEST);
            for (first, from) in let_through.iter().enumerate() {
                for (last, to) in let_through.iter().enumerate().skip(first) {
                    let allowed = room + rate.earned(to - from, share) + 1;
                    prop_assert!((last - first + 1) as u64 * REQUEST <= allowed);
                }
            }
        }

        #[test]
        fn shares_that_change_let_through_no_more_than_the_whole_rate_would(
            per_second in 1..500u32,
            burst in 10..50u32,
            steps in prop::collection::vec((0..20_000_000u64, 1..10usize, 1..8u32), 1..200),
        ) {
            let rate = rate(per_second, burst);
            let (mut used, mut now, mut share) = (Used::default(), 0, Share::ALL);
            let mut through = 0;
            for (pause, one_of, requests) in steps {
                now += pause;
                used = used.later(now, rate, share);
                share = Share::one_of(one_of);
                let ask = Ask { requests: NonZeroU32::new(requests).unwrap(), entry: 0 };
                if let Ok((after, _)) = charge(used, now, rate, share, ask) {
                    used = after;
                    through += u64::from(requests) * REQUEST;
                }
                prop_assert!(through <= rate.whole_burst() + rate.earned(now, Share::ALL));
            }
        }

        #[test]
        fn the_wait_that_is_named_is_the_shortest_that_helps(
            per_second in 1..5000u32,
            burst in 1..100u32,
            share in shares(),
            requests in 1..100u32,
            level in prop_oneof![0..200 * REQUEST, any::<u64>()],
            now in 0..u64::MAX / 4,
        ) {
            let rate = rate(per_second, burst);
            let requests = NonZeroU32::new(requests.min(burst)).unwrap();
            let ask = Ask { requests, entry: 0 };
            let used = Used { level, at: now };
            if let Err(over) = charge(used, now, rate, share, ask) {
                let wait = over.retry_after.as_nanos() as u64;
                prop_assert!(charge(used, now + wait, rate, share, ask).is_ok());
                prop_assert!(charge(used, now + wait - 1, rate, share, ask).is_err());
            }
        }

        #[test]
        fn any_numbers_at_all_are_survived(
            level: u64, at: u64, now: u64, per_second in 1..=u32::MAX, burst in 1..=u32::MAX,
            requests in 1..=u32::MAX, entry: u32, share in shares(),
        ) {
            let rate = rate(per_second, burst);
            let ask = Ask { requests: NonZeroU32::new(requests).unwrap(), entry };
            if let Ok((_, allowance)) = charge(Used { level, at }, now, rate, share, ask) {
                prop_assert!(allowance.remaining < burst);
            }
        }
    }
}
