//! Every key's use of its rate on this instance, with what [leases](crate::lease) say of its share.
//!
//! Bounded: only proven keys are charged, so it holds no more entries than there are keys, and
//! [`forget_idle`](Limiter::forget_idle) drops those that are idle.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use contract::AppKey;

use crate::demand::Demand;
use crate::limit::{self, Allowance, Ask, OverLimit, Rate, Used};
use crate::share::Share;

/// Keys that one instance holds leases for. Of more than that in use at once the others get an even part each, which is never too
/// much. It keeps an instance's record below a megabyte, which is what brokers take.
pub(crate) const MAX_LEASED: usize = 10_000;

/// A key with a lease, or on its way to one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Wanted {
    /// Requests a second that come for it here.
    pub(crate) demand: u32,
    pub(crate) rate: Rate,
}

/// What an instance knows of its leases.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Terms {
    /// Until when its shares are its own, in nanoseconds of [`Limiter::now`].
    pub(crate) until: u64,
    /// How many instances there are, this one included.
    pub(crate) instances: usize,
}

impl Terms {
    /// The share of a key: the leased one as long as it lasts, else an even part.
    fn share(self, leased: Option<Share>, now: u64) -> Share {
        let leased = leased.filter(|_| now <= self.until);
        leased.unwrap_or_else(|| Share::one_of(self.instances))
    }
}

struct Entry {
    used: Used,
    rate: Rate,
    demand: Demand,
    leased: Option<Share>,
}

struct State {
    keys: HashMap<AppKey, Entry>,
    terms: Terms,
}

/// The limits of all keys.
pub(crate) struct Limiter {
    state: Mutex<State>,
    began: Instant,
}

impl Default for Limiter {
    /// As for a single instance.
    fn default() -> Self {
        let terms = Terms {
            until: 0,
            instances: 1,
        };
        let keys = HashMap::new();
        Self {
            state: Mutex::new(State { keys, terms }),
            began: Instant::now(),
        }
    }
}

impl Limiter {
    /// Nanoseconds since this began: of this process alone, and never backwards.
    pub(crate) fn now(&self) -> u64 {
        // 584 years fit.
        u64::try_from(self.began.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // After a panic it still holds whole values: each is written in one step.
        self.state.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Charges what is asked for, all or none.
    pub(crate) fn charge(
        &self,
        app_key: &AppKey,
        now: u64,
        rate: Rate,
        ask: Ask,
    ) -> Result<Allowance, OverLimit> {
        let state = &mut *self.state();
        if !state.keys.contains_key(app_key) {
            let entry = Entry {
                used: Used::default(),
                rate,
                demand: Demand::default(),
                leased: None,
            };
            state.keys.insert(app_key.clone(), entry);
        }
        // It was put in just now, if it was not there.
        let Some(entry) = state.keys.get_mut(app_key) else {
            unreachable!("an entry that was inserted is there");
        };
        entry.rate = rate;
        // What is refused is demand, too.
        entry.demand.count(ask.requests);
        let share = state.terms.share(entry.leased, now);
        let (used, allowance) = limit::charge(entry.used, now, rate, share, ask)?;
        entry.used = used;
        Ok(allowance)
    }

    /// What came for each key since the last look, `over` ago: the keys to hold leases for.
    pub(crate) fn look(&self, over: Duration) -> BTreeMap<AppKey, Wanted> {
        let state = &mut *self.state();
        let mut wanted = BTreeMap::new();
        for (app_key, entry) in &mut state.keys {
            let demand = entry.demand.look(over, entry.rate.per_second);
            if let Some(demand) = demand.filter(|_| wanted.len() < MAX_LEASED) {
                let rate = entry.rate;
                wanted.insert(app_key.clone(), Wanted { demand, rate });
            }
        }
        wanted
    }

    /// Puts new shares in the place of all that were there.
    pub(crate) fn lease(&self, shares: &BTreeMap<AppKey, Share>, terms: Terms, now: u64) {
        let state = &mut *self.state();
        for (app_key, entry) in &mut state.keys {
            // What was earned until now was earned at the old share.
            let share = state.terms.share(entry.leased, now);
            entry.used = entry.used.later(now, entry.rate, share);
            entry.leased = shares.get(app_key).copied();
        }
        state.terms = terms;
    }

    /// Drops what says no more than nothing would: keys that owe nothing and that nobody asks for.
    pub(crate) fn forget_idle(&self, now: u64) {
        let state = &mut *self.state();
        let terms = state.terms;
        state.keys.retain(|_, entry| {
            let share = terms.share(entry.leased, now);
            let used = entry.used.later(now, entry.rate, share);
            !used.is_nothing() || !entry.demand.is_idle()
        });
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use super::*;

    fn rate(per_second: u32, burst: u32) -> Rate {
        Rate {
            per_second: NonZeroU32::new(per_second).unwrap(),
            burst: NonZeroU32::new(burst).unwrap(),
        }
    }

    fn key(name: &str) -> AppKey {
        name.parse().unwrap()
    }

    fn millis(millis: u64) -> u64 {
        millis * 1_000_000
    }

    fn let_through(limiter: &Limiter, key: &AppKey, at: u64, rate: Rate) -> usize {
        let tries = 0..1000;
        tries
            .filter(|_| limiter.charge(key, at, rate, Ask::ONE).is_ok())
            .count()
    }

    #[test]
    fn keys_do_not_share_a_limit_and_idle_ones_are_forgotten() {
        let limiter = Limiter::default();
        let (a, b) = (key("test-a"), key("test-b"));
        let second = Duration::from_secs(1);
        let slow = rate(1, 1);
        limiter.charge(&a, 0, slow, Ask::ONE).unwrap();
        limiter.charge(&a, millis(1), slow, Ask::ONE).unwrap_err();
        limiter.charge(&b, millis(500), slow, Ask::ONE).unwrap();
        assert_eq!(limiter.look(second).len(), 2);
        for _ in 0..10 {
            limiter.look(second);
        }
        limiter.forget_idle(millis(999));
        assert_eq!(limiter.state().keys.len(), 2);
        limiter.forget_idle(millis(1000));
        assert_eq!(limiter.state().keys.len(), 1);
        limiter.charge(&a, millis(1000), slow, Ask::ONE).unwrap();
    }

    #[test]
    fn a_key_that_is_asked_for_keeps_its_share_though_it_owes_nothing() {
        let limiter = Limiter::default();
        let (a, quick) = (key("test-a"), rate(1000, 10));
        limiter.charge(&a, 0, quick, Ask::ONE).unwrap();
        limiter.look(Duration::from_millis(500));
        let terms = Terms {
            until: u64::MAX,
            instances: 2,
        };
        let shares = [(a.clone(), Share::ALL)].into();
        limiter.lease(&shares, terms, millis(1));
        limiter.forget_idle(millis(500));
        assert_eq!(let_through(&limiter, &a, millis(500), quick), 10);
    }

    #[test]
    fn without_a_lease_a_key_has_an_even_part_at_once_and_again_when_its_lease_ran_out() {
        let limiter = Limiter::default();
        let (a, quick) = (key("test-a"), rate(100, 100));
        let terms = Terms {
            until: millis(3000),
            instances: 4,
        };
        limiter.lease(&BTreeMap::new(), terms, 0);
        assert_eq!(let_through(&limiter, &a, 0, quick), 25);
        let shares = [(a.clone(), Share::ALL)].into();
        limiter.lease(&shares, terms, 0);
        assert_eq!(let_through(&limiter, &a, 0, quick), 75);
        // All of it is earned back by then, and the lease is over.
        assert_eq!(let_through(&limiter, &a, millis(9000), quick), 25);
    }

    #[test]
    fn no_more_keys_are_leased_than_a_record_can_hold() {
        let limiter = Limiter::default();
        for number in 0..MAX_LEASED + 5 {
            let key = key(&format!("test-{number}"));
            limiter.charge(&key, 0, rate(5, 5), Ask::ONE).unwrap();
        }
        assert_eq!(limiter.look(Duration::from_secs(1)).len(), MAX_LEASED);
    }
}
