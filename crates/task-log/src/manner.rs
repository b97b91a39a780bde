//! Whether a group of submissions is stored together or one by one: whichever takes less time for a group of its size.
//!
//! An atomic batch costs the broker some milliseconds whatever its size, and one flush to the disk; one by one, each costs little, and a
//! flush where the broker flushes always. So it depends on the broker's setting, its disk and the size of the group, of which
//! nobody tells: it is measured. Groups on their way together wait for each other, so one that is tried among others of the other manner
//! takes as long as they do. Now and then all groups are therefore stored in the one manner for a while and then in the
//! other, and only what had company of its own manner counts.

use std::time::Duration;

use messaging::{MAX_GROUP, Manner};

/// Sizes are told apart by their binary logarithm.
const SIZES: usize = MAX_GROUP.ilog2() as usize + 1;
/// Groups in a row that are stored in one manner to measure it.
const TRIAL: u32 = 8;
/// Groups from one pair of trials to the next; more where one manner was far slower, for that is felt.
const BETWEEN: u32 = 512;
const BETWEEN_FAR: u32 = 16384;
/// A new observation counts for one in so many.
const SMOOTHING: f64 = 4.0;

/// Seconds an event, for groups of one size.
#[derive(Debug, Clone, Copy, Default)]
struct Known {
    one_by_one: Option<f64>,
    together: Option<f64>,
}

impl Known {
    fn both(self) -> Option<(f64, f64)> {
        self.one_by_one.zip(self.together)
    }
}

/// How a group is to be stored.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Choice {
    pub(crate) manner: Manner,
    events: usize,
    /// Whether those that are on their way with it are stored in the same manner.
    in_company: bool,
}

/// Learns from what was observed.
#[derive(Debug)]
pub(crate) struct Manners {
    known: [Known; SIZES],
    /// Groups since the last pair of trials began.
    groups: u32,
    /// The manner of the last group, and how many in a row had it.
    last: Manner,
    in_a_row: usize,
    /// Groups that may be on their way at once.
    appends: usize,
}

impl Manners {
    /// Of groups of which so many may be on their way at once.
    pub(crate) fn new(appends: usize) -> Self {
        Self {
            known: [Known::default(); SIZES],
            groups: 0,
            last: Manner::OneByOne,
            in_a_row: 0,
            appends,
        }
    }

    /// How to store a group of so many events.
    pub(crate) fn choose(&mut self, events: usize) -> Choice {
        if events < 2 {
            // One message among others tells nothing, and changes little for them.
            return Choice {
                manner: Manner::OneByOne,
                events,
                in_company: false,
            };
        }
        let manner = self.next(events);
        self.in_a_row = if manner == self.last {
            self.in_a_row.saturating_add(1)
        } else {
            1
        };
        self.last = manner;
        Choice {
            manner,
            events,
            in_company: self.in_a_row > self.appends,
        }
    }

    fn next(&mut self, events: usize) -> Manner {
        let number = self.groups;
        self.groups += 1;
        if number < TRIAL {
            return Manner::OneByOne;
        }
        if number < 2 * TRIAL {
            return Manner::Together;
        }
        let nearest = |at: &usize| at.abs_diff(size(events));
        let known = (0..SIZES)
            .filter(|&at| self.known[at].both().is_some())
            .min_by_key(nearest);
        let Some((one_by_one, together)) = known.and_then(|at| self.known[at].both()) else {
            // Nothing that tells was seen in the trials. They are held again, but not at once: they may be what is slow.
            if number >= 2 * TRIAL + BETWEEN {
                self.groups = 0;
            }
            return Manner::OneByOne;
        };
        let (less, more) = (one_by_one.min(together), one_by_one.max(together));
        let between = if more > 2.0 * less {
            BETWEEN_FAR
        } else {
            BETWEEN
        };
        if number >= 2 * TRIAL + between {
            self.groups = 0;
        }
        if together < one_by_one {
            Manner::Together
        } else {
            Manner::OneByOne
        }
    }

    /// Storing a group as it was chosen took so long.
    pub(crate) fn observe(&mut self, choice: Choice, took: Duration) {
        let Choice {
            manner,
            events,
            in_company,
        } = choice;
        if !in_company || manner != self.last {
            return;
        }
        let known = &mut self.known[size(events)];
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
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;

    const APPENDS: usize = 4;

    /// A broker whose batches take 2 ms and 30 µs an event, and what is stored by itself `alone` µs. Groups on their way at
    /// once take as long as the slowest of them.
    struct Machine {
        manners: Manners,
        company: VecDeque<Duration>,
    }

    impl Machine {
        fn new() -> Self {
            Self {
                manners: Manners::new(APPENDS),
                company: VecDeque::new(),
            }
        }

        /// How many of so many groups are stored together.
        fn run(&mut self, events: usize, alone: u64, groups: usize) -> usize {
            let mut together = 0;
            for _ in 0..groups {
                let choice = self.manners.choose(events);
                together += usize::from(choice.manner == Manner::Together);
                self.company.push_back(took(events, choice.manner, alone));
                if self.company.len() > APPENDS {
                    self.company.pop_front();
                }
                let slowest = self.company.iter().max().copied().unwrap_or_default();
                self.manners.observe(choice, slowest);
            }
            together
        }
    }

    fn took(events: usize, manner: Manner, alone: u64) -> Duration {
        Duration::from_micros(match manner {
            Manner::OneByOne => alone * events as u64,
            Manner::Together => 2000 + 30 * events as u64,
        })
    }

    proptest! {
        #[test]
        fn the_faster_way_is_taken_but_for_the_trials(events in 2usize..=MAX_GROUP, alone in 5u64..400) {
            let (one, other) = (took(events, Manner::OneByOne, alone), took(events, Manner::Together, alone));
            let together = Machine::new().run(events, alone, 4000);
            let trials = 4000 / (2 * TRIAL + BETWEEN) as usize * TRIAL as usize + 2 * TRIAL as usize;
            if other < one {
                prop_assert!(together >= 4000 - trials, "{together}");
            } else {
                prop_assert!(together <= trials, "{together}");
            }
        }

        #[test]
        fn a_broker_that_has_changed_is_found_out(events in 64usize..=MAX_GROUP) {
            let mut machine = Machine::new();
            machine.run(events, 10, 1000);
            machine.run(events, 300, 2 * BETWEEN_FAR as usize);
            let together = machine.run(events, 300, 1000);
            prop_assert!(together >= 950, "{together}");
        }
    }

    #[test]
    fn a_size_that_was_never_seen_goes_as_the_nearest_that_was() {
        let mut machine = Machine::new();
        machine.run(200, 300, 100);
        assert_eq!(machine.manners.choose(100).manner, Manner::Together);
    }

    #[test]
    fn one_alone_is_stored_by_itself_and_disturbs_no_trial() {
        let mut machine = Machine::new();
        for _ in 0..100 {
            machine.run(200, 300, 1);
            assert_eq!(machine.manners.choose(1).manner, Manner::OneByOne);
        }
        assert_eq!(machine.manners.choose(200).manner, Manner::Together);
    }
}
