//! How fast the places of a tenant's waiting tasks become free, seen from those that did, and so when the next one will be. Pure.
//!
//! Only what passes while tasks wait counts: where none does, it is the tenant that sets the pace and not the workers.

use std::time::{Duration, Instant};

/// What is told of a tenant of which nothing is known.
const UNKNOWN: Duration = Duration::from_secs(2);
/// The least that is told, and the most: workers come, and limits change.
const TOLD: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(600));
/// When so many places have become free …
const ENOUGH: u32 = 16;
/// … in so long at least, a half of it is forgotten. Workers take up many at once: a shorter time would see no more than one such go.
const LONG_ENOUGH: Duration = Duration::from_secs(30);

/// What was seen of one tenant's places.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Leaving {
    seen: Option<Seen>,
}

#[derive(Debug, Clone, Copy)]
struct Seen {
    /// From when on places are counted …
    from: Instant,
    /// … that became free after that.
    freed: u32,
    last: Instant,
}

impl Leaving {
    /// So many places have become free, at least one.
    pub(crate) fn note(&mut self, places: u32, now: Instant) {
        let Some(seen) = &mut self.seen else {
            // The first ones say when, and not yet how often.
            self.seen = Some(Seen {
                from: now,
                freed: 0,
                last: now,
            });
            return;
        };
        seen.freed = seen.freed.saturating_add(places);
        seen.last = now;
        let span = seen.last.saturating_duration_since(seen.from);
        if seen.freed >= ENOUGH && span >= LONG_ENOUGH {
            seen.freed /= 2;
            seen.from += span / 2;
        }
    }

    /// None waits any more.
    pub(crate) fn ran_dry(&mut self) {
        self.seen = None;
    }

    /// How long until so many more places will be free.
    pub(crate) fn wait(&self, places: u32, now: Instant) -> Duration {
        let Some(seen) = self.seen else {
            return UNKNOWN;
        };
        let expected = match seen.freed {
            0 => UNKNOWN,
            freed => now.saturating_duration_since(seen.from) / freed,
        };
        // Where it has come to rest it is not over at once.
        let rest = now.saturating_duration_since(seen.last) / 2;
        let wait = expected.saturating_mul(places.max(1)).max(rest);
        wait.clamp(TOLD.0, TOLD.1)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    /// One place each `gap`, and when the last one was.
    fn steady(leaving: &mut Leaving, from: Instant, gap: Duration, places: u32) -> Instant {
        let mut now = from;
        for _ in 0..places {
            now += gap;
            leaving.note(1, now);
        }
        now
    }

    #[test]
    fn the_wait_is_as_long_as_it_took_from_one_place_to_the_next() {
        let start = Instant::now();
        for (gap, told) in [
            (Duration::from_millis(10), seconds(1)),
            (seconds(12), seconds(12)),
            (seconds(240), seconds(240)),
            (seconds(3600), seconds(600)),
        ] {
            let mut leaving = Leaving::default();
            let now = steady(&mut leaving, start, gap, 40);
            assert_eq!(leaving.wait(1, now), told, "{gap:?}");
        }
        let mut leaving = Leaving::default();
        let now = steady(&mut leaving, start, seconds(12), 40);
        // A limit that was lowered lets nobody in before several have left.
        assert_eq!(leaving.wait(3, now), seconds(36));
    }

    #[test]
    fn what_leaves_by_twenties_is_not_taken_for_fast() {
        let (mut leaving, mut now) = (Leaving::default(), Instant::now());
        for _ in 0..12 {
            now += seconds(100);
            leaving.note(20, now);
        }
        let wait = leaving.wait(1, now + seconds(1));
        assert!((seconds(4)..=seconds(6)).contains(&wait), "{wait:?}");
    }

    #[test]
    fn where_nothing_is_known_it_is_looked_again_soon() {
        let (mut leaving, now) = (Leaving::default(), Instant::now());
        assert_eq!(leaving.wait(5, now), UNKNOWN);
        let after = steady(&mut leaving, now, seconds(60), 9);
        assert_eq!(leaving.wait(1, after), seconds(60));
        // Then the tenant's own pace is all that is seen.
        leaving.ran_dry();
        assert_eq!(leaving.wait(1, after), UNKNOWN);
    }

    #[test]
    fn a_line_that_comes_to_rest_is_told_longer_waits_and_soon_shorter_ones_when_it_goes_on() {
        let mut leaving = Leaving::default();
        let now = steady(
            &mut leaving,
            Instant::now(),
            Duration::from_millis(100),
            1000,
        );
        assert_eq!(leaving.wait(1, now), seconds(1));
        let rested = now + seconds(120);
        assert_eq!(leaving.wait(1, rested), seconds(60));
        assert_eq!(leaving.wait(1, now + seconds(86_400)), TOLD.1);
        let on = steady(&mut leaving, rested, Duration::from_millis(100), 1);
        assert_eq!(leaving.wait(1, on), seconds(1));
    }

    proptest! {
        #[test]
        fn what_is_told_is_within_its_bounds_whatever_was_seen(
            steps in prop::collection::vec((1u32.., 0u64..10_000_000, any::<bool>()), 0..100),
            places in any::<u32>(),
        ) {
            let (mut leaving, mut now) = (Leaving::default(), Instant::now());
            for (freed, later, dry) in steps {
                now += Duration::from_millis(later);
                if dry {
                    leaving.ran_dry();
                }
                leaving.note(freed, now);
                let wait = leaving.wait(places, now);
                prop_assert!((TOLD.0..=TOLD.1).contains(&wait), "{wait:?}");
            }
        }
    }
}
