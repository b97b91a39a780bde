//! Notices that a thread of the engine does not come back from what it does.
//!
//! Each thread says what it begins, for which pictures, and how long that is expected to take ([`Pulse`]); the watchdog looks
//! again and again. It counts time in its own looks: a process that was stopped for an hour and goes on has not
//! waited for that hour, and no clock but the monotonic one is asked.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::time::MissedTickBehavior;

/// A step may take so many times what it is expected to take.
const EXPECTED_TIMES: u32 = 20;
/// Between two looks, at most and at least.
const LOOKS: (Duration, Duration) = (Duration::from_secs(1), Duration::from_millis(5));
/// Looks within the time limit.
const LOOKS_IN_LIMIT: u32 = 8;

/// A thread did not come back in time. Nothing in this process can end it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the thread `{thread}` does not come back from {doing}; it was waited for {limit:?}")]
pub(crate) struct Hung {
    /// Which thread.
    pub(crate) thread: &'static str,
    /// What it was at.
    pub(crate) doing: &'static str,
    /// How long that may take.
    pub(crate) limit: Duration,
    /// For which pictures.
    pub(crate) pictures: BTreeSet<u64>,
}

/// What a thread does now. Cheap to clone; all clones are of the same thread.
#[derive(Clone)]
pub(super) struct Pulse {
    thread: &'static str,
    beat: Arc<Mutex<Beat>>,
}

#[derive(Default)]
struct Beat {
    /// Of what it does: another number is another thing.
    number: u64,
    /// `None` while it waits for something to do.
    busy: Option<Busy>,
}

struct Busy {
    doing: &'static str,
    pictures: Vec<u64>,
    expected: Option<Duration>,
}

impl Pulse {
    pub(super) fn new(thread: &'static str) -> Self {
        Self {
            thread,
            beat: Arc::default(),
        }
    }

    /// The thread begins something.
    pub(super) fn at(&self, doing: &'static str, pictures: Vec<u64>, expected: Option<Duration>) {
        self.set(Some(Busy {
            doing,
            pictures,
            expected,
        }));
    }

    /// The thread has nothing to do.
    pub(super) fn idle(&self) {
        self.set(None);
    }

    fn set(&self, busy: Option<Busy>) {
        let mut beat = self.beat();
        beat.number += 1;
        beat.busy = busy;
    }

    fn beat(&self) -> MutexGuard<'_, Beat> {
        // Nothing panics while it is held half-changed.
        self.beat
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

/// How long one thread has been at the same thing.
struct Patience {
    pulse: Pulse,
    number: u64,
    waited: Duration,
}

impl Patience {
    fn with(pulse: Pulse) -> Self {
        Self {
            pulse,
            number: 0,
            waited: Duration::ZERO,
        }
    }

    /// A look, `passed` after the last.
    fn look(&mut self, passed: Duration, least: Duration) -> Option<Hung> {
        let beat = self.pulse.beat();
        let busy = beat.busy.as_ref()?;
        if beat.number != self.number {
            self.number = beat.number;
            self.waited = Duration::ZERO;
            return None;
        }
        self.waited += passed;
        let limit = limit(busy.expected, least);
        (self.waited >= limit).then(|| Hung {
            thread: self.pulse.thread,
            doing: busy.doing,
            limit,
            pictures: busy.pictures.iter().copied().collect(),
        })
    }
}

/// How long something may take that is expected to take so long; `least` at least.
fn limit(expected: Option<Duration>, least: Duration) -> Duration {
    let expected = expected.unwrap_or_default();
    expected.saturating_mul(EXPECTED_TIMES).max(least)
}

/// Resolves when one of the threads has been at the same thing for longer than it may.
pub(super) async fn watch(pulses: Vec<Pulse>, least: Duration) -> Hung {
    let between = (least / LOOKS_IN_LIMIT).clamp(LOOKS.1, LOOKS.0);
    let mut looks = tokio::time::interval(between);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut all: Vec<Patience> = pulses.into_iter().map(Patience::with).collect();
    loop {
        looks.tick().await;
        // However long ago the last look was: no more time than this is known to have been this process's own.
        let hung = all
            .iter_mut()
            .find_map(|patience| patience.look(between, least));
        if let Some(hung) = hung {
            return hung;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LOOK: Duration = Duration::from_secs(1);
    const LEAST: Duration = Duration::from_secs(3);

    #[test]
    fn who_stays_at_one_thing_for_longer_than_it_may_hangs() {
        let pulse = Pulse::new("engine");
        let mut patience = Patience::with(pulse.clone());
        pulse.at("stepping", vec![7], None);
        let mut looks = (1..).map(|look| (look, patience.look(LOOK, LEAST)));
        let (looks, hung) = looks
            .find_map(|(look, hung)| hung.map(|hung| (look, hung)))
            .unwrap();
        assert_eq!(looks, 4, "the first look only sees what it is at");
        assert_eq!(
            (hung.thread, hung.doing, hung.limit),
            ("engine", "stepping", LEAST)
        );
        assert_eq!(hung.pictures, BTreeSet::from([7]));
    }

    #[test]
    fn what_is_expected_to_take_long_may_take_many_times_as_long() {
        assert_eq!(limit(None, LEAST), LEAST);
        assert_eq!(limit(Some(Duration::from_millis(1)), LEAST), LEAST);
        assert_eq!(
            limit(Some(Duration::from_secs(2)), LEAST),
            Duration::from_secs(40)
        );
    }

    proptest! {
        #[test]
        fn who_goes_on_to_other_things_or_waits_for_some_never_hangs(
            rests in prop::collection::vec((0u32..3, any::<bool>()), 0..50),
        ) {
            let pulse = Pulse::new("engine");
            let mut patience = Patience::with(pulse.clone());
            for (looks, idle) in rests {
                pulse.at("stepping", Vec::new(), None);
                for _ in 0..looks {
                    prop_assert_eq!(patience.look(LOOK, LEAST), None);
                }
                if idle {
                    pulse.idle();
                    for _ in 0..10 {
                        prop_assert_eq!(patience.look(LOOK, LEAST), None);
                    }
                }
            }
        }
    }
}
