//! How many requests a second come for a key, steady enough to be told to others. Pure.

use std::num::NonZeroU32;
use std::time::Duration;

/// Looks without a request after which a key is idle.
const QUIET_LOOKS: u8 = 4;
/// A demand that differs from the one told by less than this part of it is not worth telling: each change is a write.
const PART_WORTH_TELLING: u32 = 8;

/// The demand for one key.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Demand {
    /// Requests since the last look.
    counted: u64,
    /// Requests a second, smoothed; nothing for a key that was not looked at yet.
    smooth: u32,
    /// What others were told.
    told: u32,
    quiet: u8,
}

impl Demand {
    /// Requests came, whatever became of them.
    pub(crate) fn count(&mut self, requests: NonZeroU32) {
        self.counted = self.counted.saturating_add(requests.get().into());
    }

    /// Whether nobody has asked for the key for a while.
    pub(crate) fn is_idle(&self) -> bool {
        self.counted == 0 && self.told == 0
    }

    /// What others are to be told of the time `over` since the last look: requests a second, at most `limit`, because more than all of
    /// it cannot be had; nothing for an idle key.
    pub(crate) fn look(&mut self, over: Duration, limit: NonZeroU32) -> Option<u32> {
        let counted = std::mem::take(&mut self.counted);
        if counted == 0 {
            self.quiet = self.quiet.saturating_add(1);
        } else {
            self.quiet = 0;
        }
        if self.quiet >= QUIET_LOOKS || (counted == 0 && self.told == 0) {
            *self = Self::default();
            return None;
        }
        let millis = over.as_millis().max(1);
        let fresh = (u128::from(counted) * 1000).div_ceil(millis);
        let fresh = u32::try_from(fresh).map_or(limit.get(), |f| f.min(limit.get()));
        self.smooth = match self.told {
            0 => fresh,
            // Half way: an even stream looks uneven in short looks.
            _ => fresh / 2 + self.smooth / 2 + (fresh % 2 + self.smooth % 2).div_ceil(2),
        };
        // Where it could be more than all of it, all of it is what is meant.
        if fresh == limit.get() && self.smooth > limit.get() / 8 * 7 {
            self.smooth = limit.get();
        }
        let smooth = self.smooth.clamp(1, limit.get());
        let differs = smooth.abs_diff(self.told);
        if self.told == 0 || differs > self.told / PART_WORTH_TELLING || self.told > limit.get() {
            self.told = smooth;
        }
        Some(self.told)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LOOK: Duration = Duration::from_millis(500);

    fn look(demand: &mut Demand, came: u32, limit: u32) -> Option<u32> {
        if let Some(came) = NonZeroU32::new(came) {
            demand.count(came);
        }
        demand.look(LOOK, NonZeroU32::new(limit).unwrap())
    }

    #[test]
    fn a_new_demand_is_told_at_once_and_a_steady_one_stays_as_told() {
        let mut demand = Demand::default();
        assert_eq!(look(&mut demand, 10, 50), Some(20));
        for came in [11, 9, 10, 10, 11, 9] {
            assert_eq!(look(&mut demand, came, 50), Some(20));
        }
    }

    #[test]
    fn a_demand_over_the_limit_is_the_limit_however_far_over() {
        let mut demand = Demand::default();
        for came in [80, 300, 25, 90] {
            assert_eq!(look(&mut demand, came, 50), Some(50));
        }
    }

    #[test]
    fn a_key_is_idle_after_a_while_without_requests_and_new_after_that() {
        let mut demand = Demand::default();
        look(&mut demand, 10, 50).unwrap();
        assert!(!demand.is_idle());
        for _ in 1..QUIET_LOOKS {
            look(&mut demand, 0, 50).unwrap();
        }
        assert_eq!(look(&mut demand, 0, 50), None);
        assert!(demand.is_idle());
        assert_eq!(demand, Demand::default());
    }

    proptest! {
        #[test]
        fn what_is_told_is_something_and_within_the_limit(
            came in prop::collection::vec(0..5000u32, 1..50), limit in 1..1000u32,
        ) {
            let mut demand = Demand::default();
            for came in came {
                if let Some(told) = look(&mut demand, came, limit) {
                    prop_assert!((1..=limit).contains(&told));
                }
            }
        }

        #[test]
        fn a_steady_demand_is_told_to_within_an_eighth(rate in 8..400u32, before in 1..400u32) {
            let mut demand = Demand::default();
            look(&mut demand, before, 1000).unwrap();
            let mut told = 0;
            for _ in 0..20 {
                told = look(&mut demand, rate, 1000).unwrap();
            }
            let real = (rate * 2).min(1000);
            prop_assert!(told.abs_diff(real) <= real / 7 + 2, "{} for {}", told, real);
        }
    }
}
