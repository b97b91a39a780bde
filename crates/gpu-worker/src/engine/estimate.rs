//! How long a step will take, learned from those that were taken.
//!
//! Pure arithmetic on what is [observed](Estimates::observe). A step of a bucket and a number of rows that was seen lately
//! is expected to take what it took, smoothed; one of another number of rows what the nearest seen number suggests in
//! proportion, which is right where a row costs the same in any company and too careful where company makes it cheaper; a
//! bucket that was not seen yet is unknown, and its first picture goes alone.
//!
//! A number of rows that is not seen any more is forgotten after a while: otherwise one slow step (the first, which
//! reads the weights from the disk) could rule out a batch for ever, for a batch that is ruled out is never seen again.

use std::collections::BTreeMap;
use std::time::Duration;

use super::plan::Bucket;

/// A new observation counts for one in so many.
const SMOOTHING: f64 = 4.0;
/// Steps of a bucket after which a number of rows that was not among them is forgotten.
const REMEMBERED: u64 = 64;
/// Buckets that are remembered; the one seen longest ago goes first.
const BUCKETS: usize = 64;

#[derive(Debug, Clone, Copy)]
struct Seen {
    seconds: f64,
    /// The bucket's step at which it was last seen.
    at: u64,
}

#[derive(Debug, Default)]
struct Known {
    by_rows: BTreeMap<usize, Seen>,
    /// Steps of this bucket so far.
    steps: u64,
    /// Steps of all buckets when it was last seen.
    last: u64,
}

/// What is known of the steps of each bucket.
#[derive(Debug, Default)]
pub(crate) struct Estimates {
    buckets: BTreeMap<Bucket, Known>,
    steps: u64,
}

impl Estimates {
    /// A step of so many rows took so long.
    pub(crate) fn observe(&mut self, bucket: Bucket, rows: usize, took: Duration) {
        self.steps += 1;
        let known = self.buckets.entry(bucket).or_default();
        known.last = self.steps;
        known.steps += 1;
        let (at, took) = (known.steps, took.as_secs_f64());
        let seen = known.by_rows.entry(rows);
        let seen = seen.or_insert(Seen { seconds: took, at });
        seen.seconds += (took - seen.seconds) / SMOOTHING;
        seen.at = at;
        known.by_rows.retain(|_, seen| at - seen.at < REMEMBERED);
        if self.buckets.len() > BUCKETS {
            let oldest = self.buckets.iter().min_by_key(|(_, known)| known.last);
            if let Some((&oldest, _)) = oldest {
                self.buckets.remove(&oldest);
            }
        }
    }

    /// How long a step of so many rows will take; `None` when no step of the bucket has been seen.
    pub(crate) fn expected(&self, bucket: Bucket, rows: usize) -> Option<Duration> {
        let by_rows = &self.buckets.get(&bucket)?.by_rows;
        let (&seen, nearest) = by_rows
            .iter()
            .min_by_key(|&(&seen, _)| seen.abs_diff(rows))?;
        Some(Duration::from_secs_f64(
            nearest.seconds * rows as f64 / seen as f64,
        ))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn bucket(model: u64) -> Bucket {
        Bucket {
            model,
            width: 128,
            height: 128,
        }
    }

    const fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn nothing_is_expected_of_what_was_never_seen() {
        let mut estimates = Estimates::default();
        estimates.observe(bucket(1), 2, ms(10));
        assert_eq!(estimates.expected(bucket(2), 2), None);
        assert_eq!(estimates.expected(bucket(1), 2), Some(ms(10)));
    }

    #[test]
    fn a_slow_first_step_is_outlived_and_rules_out_no_batch_for_ever() {
        let mut estimates = Estimates::default();
        estimates.observe(bucket(1), 2, ms(900));
        estimates.observe(bucket(1), 8, ms(9000));
        for _ in 0..REMEMBERED {
            estimates.observe(bucket(1), 2, ms(10));
        }
        let expected = estimates.expected(bucket(1), 8).unwrap();
        assert!(expected < ms(50), "{expected:?}");
    }

    #[test]
    fn buckets_are_forgotten_in_the_order_in_which_they_were_last_seen() {
        let mut estimates = Estimates::default();
        for model in 0..=BUCKETS as u64 {
            estimates.observe(bucket(model), 2, ms(10));
            estimates.observe(bucket(0), 2, ms(10));
        }
        assert!(estimates.expected(bucket(0), 2).is_some());
        assert!(estimates.expected(bucket(1), 2).is_none());
        assert_eq!(estimates.buckets.len(), BUCKETS);
    }

    proptest! {
        #[test]
        fn an_even_machine_is_foretold_exactly(
            per_row in 1u64..500,
            seen in prop::collection::vec(1usize..9, 1..80),
            rows in 1usize..17,
        ) {
            let mut estimates = Estimates::default();
            for &seen in &seen {
                estimates.observe(bucket(1), seen, ms(per_row * seen as u64));
            }
            let expected = estimates.expected(bucket(1), rows).unwrap();
            let truth = ms(per_row * rows as u64);
            prop_assert!(expected.abs_diff(truth) < Duration::from_micros(1));
        }

        #[test]
        fn what_is_expected_lies_between_what_was_seen(
            took in prop::collection::vec(1u64..5000, 1..40),
        ) {
            let mut estimates = Estimates::default();
            for &took in &took {
                estimates.observe(bucket(1), 2, ms(took));
            }
            let expected = estimates.expected(bucket(1), 2).unwrap();
            let (least, most) = (took.iter().min().unwrap(), took.iter().max().unwrap());
            let rounding = Duration::from_micros(1);
            prop_assert!(ms(*least) <= expected + rounding && expected <= ms(*most) + rounding);
        }

        #[test]
        fn a_machine_that_has_changed_is_known_after_a_dozen_steps(before in 1u64..5000, after in 1u64..5000) {
            let mut estimates = Estimates::default();
            for _ in 0..30 {
                estimates.observe(bucket(1), 2, ms(before));
            }
            for _ in 0..16 {
                estimates.observe(bucket(1), 2, ms(after));
            }
            let expected = estimates.expected(bucket(1), 2).unwrap();
            let off = expected.abs_diff(ms(after));
            prop_assert!(off <= ms(before.abs_diff(after)) / 50 + ms(1), "{expected:?}");
        }
    }
}
