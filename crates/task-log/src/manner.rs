//! Whether a group of submissions is stored together or one by one: whichever has lately taken less time for a group of its size.
//!
//! An atomic batch costs the broker some milliseconds whatever its size, and one flush to the disk; one by one, each costs little, and a
//! flush where the broker flushes always. So it depends on the broker's setting, its disk and the size of the group, of which
//! nobody tells: it is measured. Once in a while the other way is tried, in case that has changed.

use std::time::Duration;

use messaging::{MAX_GROUP, Manner};

/// Sizes are told apart by their binary logarithm.
const SIZES: usize = MAX_GROUP.ilog2() as usize + 1;
/// Every so many groups of a size are stored the other way; more rarely where that was far slower.
const TRY_EVERY: u32 = 64;
const TRY_FAR_SLOWER_EVERY: u32 = 1024;
/// A new observation counts for one in so many.
const SMOOTHING: f64 = 4.0;

/// What is known of groups of one size.
#[derive(Debug, Clone, Copy, Default)]
struct Known {
    /// Seconds an event, one by one and together.
    one_by_one: Option<f64>,
    together: Option<f64>,
    groups: u32,
}

/// Learns from what was observed.
#[derive(Debug, Default)]
pub(crate) struct Manners([Known; SIZES]);

impl Manners {
    /// How to store a group of so many events.
    pub(crate) fn choose(&mut self, events: usize) -> Manner {
        if events < 2 {
            return Manner::OneByOne;
        }
        let known = &mut self.0[size(events)];
        known.groups = known.groups.wrapping_add(1);
        let (one_by_one, together) = match (known.one_by_one, known.together) {
            (None, _) => return Manner::OneByOne,
            (_, None) => return Manner::Together,
            (Some(one_by_one), Some(together)) => (one_by_one, together),
        };
        let (less, more) = (one_by_one.min(together), one_by_one.max(together));
        let every = if more > 2.0 * less {
            TRY_FAR_SLOWER_EVERY
        } else {
            TRY_EVERY
        };
        let better_is_together = together < one_by_one;
        if better_is_together != known.groups.is_multiple_of(every) {
            Manner::Together
        } else {
            Manner::OneByOne
        }
    }

    /// Storing so many events in this manner took so long.
    pub(crate) fn observe(&mut self, events: usize, manner: Manner, took: Duration) {
        if events < 2 {
            return;
        }
        let known = &mut self.0[size(events)];
        let each = took.as_secs_f64() / events as f64;
        let seen = match manner {
            Manner::OneByOne => &mut known.one_by_one,
            Manner::Together => &mut known.together,
        };
        let before = seen.unwrap_or(each);
        *seen = Some(before + (each - before) / SMOOTHING);
    }
}

fn size(events: usize) -> usize {
    (events.max(1).ilog2() as usize).min(SIZES - 1)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A broker whose batches take 2 ms and 30 µs an event, and what is stored by itself `alone` µs.
    fn took(events: usize, manner: Manner, alone: u64) -> Duration {
        Duration::from_micros(match manner {
            Manner::OneByOne => alone * events as u64,
            Manner::Together => 2000 + 30 * events as u64,
        })
    }

    fn run(manners: &mut Manners, events: usize, alone: u64, groups: usize) -> usize {
        let mut together = 0;
        for _ in 0..groups {
            let manner = manners.choose(events);
            together += usize::from(manner == Manner::Together);
            manners.observe(events, manner, took(events, manner, alone));
        }
        together
    }

    proptest! {
        #[test]
        fn the_faster_way_is_taken_nearly_always(events in 2usize..=MAX_GROUP, alone in 5u64..400) {
            let mut manners = Manners::default();
            let together = run(&mut manners, events, alone, 640);
            let (one, other) = (took(events, Manner::OneByOne, alone), took(events, Manner::Together, alone));
            if other < one {
                prop_assert!(together >= 640 - 12, "{together}");
            } else {
                prop_assert!(together <= 12, "{together}");
            }
        }

        #[test]
        fn a_broker_that_has_changed_is_found_out(events in 64usize..=MAX_GROUP) {
            let mut manners = Manners::default();
            run(&mut manners, events, 10, 640);
            run(&mut manners, events, 300, 20 * TRY_FAR_SLOWER_EVERY as usize);
            let together = run(&mut manners, events, 300, 640);
            prop_assert!(together >= 620, "{together}");
        }
    }

    #[test]
    fn one_alone_is_stored_by_itself() {
        assert_eq!(Manners::default().choose(1), Manner::OneByOne);
    }
}
