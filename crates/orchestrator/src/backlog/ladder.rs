//! Which place a submission has in its queue, from a few known ones. Pure.

use std::collections::VecDeque;

/// Rungs of one queue at most.
const MAX_RUNGS: usize = 256;

/// Pairs of a sequence in the log and how many submissions of the queue lie before it, both growing.
#[derive(Debug, Clone, Default)]
pub(crate) struct Ladder(VecDeque<(u64, u64)>);

impl Ladder {
    /// `ordinal` submissions of the queue lie before `sequence`. What was noted earlier and does not agree is forgotten.
    pub(crate) fn note(&mut self, sequence: u64, ordinal: u64) {
        self.0.retain(|&(other, count)| {
            let before = other < sequence && count <= ordinal;
            let behind = other > sequence && count >= ordinal;
            before || behind
        });
        let at = self.0.partition_point(|rung| rung.0 < sequence);
        self.0.insert(at, (sequence, ordinal));
        if self.0.len() > MAX_RUNGS {
            self.thin_out(sequence);
        }
    }

    /// Forgets every second rung but the last one and that of `sequence`.
    fn thin_out(&mut self, sequence: u64) {
        let last = self.0.back().map(|rung| rung.0);
        let mut odd = false;
        self.0.retain(|rung| {
            odd = !odd;
            odd || rung.0 == sequence || Some(rung.0) == last
        });
    }

    /// Forgets what lies before `sequence`, but for the last rung there.
    pub(crate) fn forget_before(&mut self, sequence: u64) {
        while self.0.len() > 1 && self.0[1].0 <= sequence {
            self.0.pop_front();
        }
    }

    /// How many lie before `sequence`, of which one of the queue is there, when `known` are known of in all. Behind the last rung there
    /// can be one more for each place of the log, and no more than are known of.
    pub(crate) fn ordinal_up_to(&self, sequence: u64, known: u64) -> Option<u64> {
        let &(last, ordinal) = self.0.back()?;
        if sequence <= last {
            return self.ordinal(sequence);
        }
        let most = known.saturating_sub(1).max(ordinal);
        Some(ordinal.saturating_add(sequence - last).min(most))
    }

    /// How many lie before `sequence`, between rungs in proportion.
    fn ordinal(&self, sequence: u64) -> Option<u64> {
        let at = self.0.partition_point(|rung| rung.0 <= sequence);
        let below = *self.0.get(at.checked_sub(1)?)?;
        let Some(&above) = self.0.get(at) else {
            return Some(below.1);
        };
        let part = u128::from(sequence - below.0) * u128::from(above.1 - below.1)
            / u128::from(above.0 - below.0);
        Some(below.1 + u64::try_from(part).unwrap_or(0))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_is_bounded_and_right_at_its_rungs_and_never_falls(
            steps in prop::collection::vec((1u64..1000, 0u64..50), 1..600),
        ) {
            let mut ladder = Ladder::default();
            let (mut sequence, mut ordinal) = (0, 0);
            for (by, more) in steps {
                sequence += by;
                ordinal += more.min(by);
                ladder.note(sequence, ordinal);
                prop_assert!(ladder.0.len() <= MAX_RUNGS);
                prop_assert_eq!(ladder.ordinal(sequence), Some(ordinal));
            }
            let places: Vec<_> = (0..sequence).filter_map(|at| ladder.ordinal(at)).collect();
            prop_assert!(places.is_sorted());
            ladder.forget_before(sequence);
            prop_assert_eq!(ladder.ordinal(sequence), Some(ordinal));
        }
    }
}
