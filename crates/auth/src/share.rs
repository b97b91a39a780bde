//! How several instances share one key's rate: max-min fair, by what each is asked for. Pure.
//!
//! Every instance computes the shares of all from the same figures, so they agree without asking each other, and together
//! they never let through more than the rate.

/// The whole, in [`Share`]'s millionths.
const WHOLE: u64 = 1_000_000;

/// A part of a rate and of its burst, in millionths; never nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Share(u32);

impl Share {
    /// All of it.
    pub(crate) const ALL: Self = Self(WHOLE as u32);

    /// What each of so many gets who know nothing of each other but their number.
    pub(crate) fn one_of(instances: usize) -> Self {
        let instances = u64::try_from(instances).unwrap_or(u64::MAX).max(1);
        Self::of_millionths(WHOLE / instances)
    }

    fn of_millionths(millionths: u64) -> Self {
        // At most the whole, which fits; at least something, or a wait would have no end.
        Self(millionths.clamp(1, WHOLE) as u32)
    }

    /// In millionths.
    pub(crate) fn millionths(self) -> u64 {
        u64::from(self.0)
    }

    /// This part of an amount, rounded down.
    pub(crate) fn of(self, amount: u64) -> u64 {
        let part = u128::from(amount) * u128::from(self.0) / u128::from(WHOLE);
        // No more than `amount`.
        u64::try_from(part).unwrap_or(amount)
    }
}

/// Divides a rate among those who are asked for `demands` requests a second each.
///
/// Whoever wants less than an even part gets what it wants; the others get even parts of the rest (Bertsekas and Gallager, *Data
/// Networks*, 6.5.2). What nobody wants is divided evenly, too: demand may grow before the next look.
pub(crate) fn divide(per_second: u32, demands: &[u32]) -> Vec<Share> {
    let rate = u64::from(per_second.max(1));
    let mut left = WHOLE;
    let mut parts = vec![0; demands.len()];
    let mut order: Vec<usize> = (0..demands.len()).collect();
    order.sort_unstable_by_key(|&at| demands[at]);
    for (served, &at) in order.iter().enumerate() {
        let even = left / (demands.len() - served) as u64;
        // More than the whole rate is as good as all of it.
        let wanted = u64::from(demands[at]).min(rate) * WHOLE / rate;
        // Those who come after want as much or more: from here on all get the same.
        if wanted > even {
            for &at in &order[served..] {
                parts[at] = even;
                left -= even;
            }
            break;
        }
        parts[at] = wanted;
        left -= wanted;
    }
    let spare = left / demands.len().max(1) as u64;
    let part = |part: u64| Share::of_millionths(part + spare);
    parts.into_iter().map(part).collect()
}

/// The part of one that is asked for `own` beside `others`.
pub(crate) fn beside(per_second: u32, own: u32, others: &[u32]) -> Share {
    let mut all = Vec::with_capacity(others.len() + 1);
    all.push(own);
    all.extend_from_slice(others);
    // One for each demand, and the first is ours.
    divide(per_second, &all)
        .first()
        .copied()
        .unwrap_or(Share::ALL)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parts(per_second: u32, demands: &[u32]) -> Vec<u64> {
        let shares = divide(per_second, demands);
        shares.into_iter().map(Share::millionths).collect()
    }

    #[test]
    fn one_alone_has_all_of_it_whatever_it_wants() {
        for demand in [1, 50, 10_000] {
            assert_eq!(divide(50, &[demand]), [Share::ALL]);
        }
        assert_eq!(Share::one_of(1), Share::ALL);
    }

    #[test]
    fn those_who_want_more_than_there_is_share_evenly() {
        assert_eq!(parts(50, &[50, 500, 167]), [333_333; 3]);
    }

    #[test]
    fn whoever_wants_little_gets_it_and_the_rest_is_shared() {
        assert_eq!(parts(100, &[10, 100, 100]), [100_000, 450_000, 450_000]);
    }

    #[test]
    fn what_nobody_wants_is_room_to_grow_for_all() {
        assert_eq!(parts(100, &[20, 40]), [400_000, 600_000]);
    }

    proptest! {
        #[test]
        fn together_they_have_the_whole_and_never_more(
            per_second in 1..=u32::MAX,
            demands in prop::collection::vec(1..=u32::MAX, 1..50),
        ) {
            let sum: u64 = parts(per_second, &demands).iter().sum();
            // A share is at least one millionth: of a rate of millions a second, some want less.
            let rounding = demands.len() as u64;
            prop_assert!(sum <= WHOLE + rounding && sum + 2 * rounding >= WHOLE, "{}", sum);
        }

        #[test]
        fn of_rates_that_are_in_use_not_a_millionth_more_than_the_whole_is_given_out(
            per_second in 1..100_000u32,
            demands in prop::collection::vec(1..200_000u32, 1..50),
        ) {
            let sum: u64 = parts(per_second, &demands).iter().sum();
            prop_assert!(sum <= WHOLE, "{}", sum);
        }

        #[test]
        fn nobody_gets_less_than_it_wants_or_an_even_part(
            per_second in 1..100_000u32,
            demands in prop::collection::vec(1..200_000u32, 1..20),
        ) {
            let even = WHOLE / demands.len() as u64;
            for (part, &demand) in parts(per_second, &demands).iter().zip(&demands) {
                let wanted = u64::from(demand) * WHOLE / u64::from(per_second);
                prop_assert!(*part >= wanted.min(even));
            }
        }

        #[test]
        fn who_asks_in_which_order_makes_no_difference(
            per_second in 1..100_000u32,
            demands in prop::collection::vec(1..200_000u32, 2..20),
            by in 1..20usize,
        ) {
            let mut turned = demands.clone();
            turned.rotate_left(by % demands.len());
            let mut expected = parts(per_second, &demands);
            expected.rotate_left(by % demands.len());
            prop_assert_eq!(parts(per_second, &turned), expected);
            let own = beside(per_second, demands[0], &demands[1..]).millionths();
            prop_assert_eq!(own, parts(per_second, &demands)[0]);
        }

        #[test]
        fn whoever_wants_more_never_gets_less(
            per_second in 1..100_000u32,
            demands in prop::collection::vec(1..200_000u32, 1..20),
            more in 0..200_000u32,
        ) {
            let before = parts(per_second, &demands)[0];
            let mut grown = demands;
            grown[0] += more;
            // What is rounded down on the way.
            let rounding = grown.len() as u64;
            prop_assert!(parts(per_second, &grown)[0] + rounding >= before);
        }
    }
}
