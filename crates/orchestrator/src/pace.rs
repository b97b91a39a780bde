//! Turns for what is over a limit and comes again: each is told another time, so that those who wait come back one after the other, at
//! the pace at which they are let in, and not all at once. Pure.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::{Duration, Instant};

/// The shortest and the longest time between two that wait. A wait can be longer than what lies between two: it must not set the pace
/// of all.
const GAPS: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(250));
/// The longest between two that wait for places, of which nobody knows when they will be free. To look is cheap.
const LONGEST_FOR_PLACES: Duration = Duration::from_millis(50);
/// No one is sent away for longer: limits change.
const LONGEST: Duration = Duration::from_secs(600);
/// Lines that are kept; whoever has none is told the plain wait.
const MAX_LINES: usize = 10_000;

/// Two lines for each `K`: of those who come for the first time, and of those who come again.
#[derive(Debug)]
pub(crate) struct Pace<K> {
    lines: HashMap<(K, bool), Line>,
    /// Whether the time between two is found out by who is let in, because no wait tells it.
    places: bool,
}

#[derive(Debug)]
struct Line {
    gap: Duration,
    /// The next turn that nobody has.
    next: Instant,
}

impl<K> Default for Pace<K> {
    fn default() -> Self {
        Self {
            lines: HashMap::new(),
            places: false,
        }
    }
}

impl<K> Pace<K> {
    /// For those who wait for places that become free now and then: each that is let in shortens the time between two, each that is not
    /// lengthens it.
    pub(crate) fn of_places() -> Self {
        Self {
            places: true,
            ..Self::default()
        }
    }
}

impl<K: Eq + Hash + Clone> Pace<K> {
    /// One of them was let in.
    pub(crate) fn let_in(&mut self, key: &K) {
        for again in [false, true] {
            if let Some(line) = self.lines.get_mut(&(key.clone(), again)) {
                line.gap = (line.gap / 2).max(GAPS.0);
            }
        }
    }

    /// One who comes for the first time, and need not ask, because others wait before it: when its turn is.
    pub(crate) fn join(&mut self, key: &K, now: Instant) -> Option<Duration> {
        let first = (key.clone(), false);
        let line = self.lines.get_mut(&first)?;
        if line.next <= now {
            self.lines.remove(&first);
            return None;
        }
        Some(line.turn(now))
    }

    /// One who has asked, and was told to come again after `wait`. Whoever comes `again` is not sent behind those who come for the first
    /// time: its line is another, and short.
    pub(crate) fn turn_away(
        &mut self,
        key: K,
        now: Instant,
        wait: Duration,
        again: bool,
    ) -> Duration {
        let wait = wait.clamp(GAPS.0, LONGEST);
        if self.lines.len() >= MAX_LINES {
            self.lines.retain(|_, line| line.next > now);
        }
        let line = (key, again);
        if self.lines.len() >= MAX_LINES && !self.lines.contains_key(&line) {
            return wait;
        }
        let line = self.lines.entry(line).or_insert(Line {
            gap: GAPS.0,
            next: now,
        });
        line.gap = if self.places {
            (line.gap * 5 / 4).min(LONGEST_FOR_PLACES)
        } else {
            // The longest that anyone had to wait is nearest to the time between two.
            line.gap.max(wait).min(GAPS.1)
        };
        line.next = line.next.max(now + wait);
        line.turn(now)
    }
}

impl Line {
    fn turn(&mut self, now: Instant) -> Duration {
        let wait = self.next.saturating_duration_since(now);
        if wait >= LONGEST {
            return LONGEST;
        }
        self.next += self.gap;
        wait
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const GAP: Duration = Duration::from_millis(20);

    #[test]
    fn those_who_are_turned_away_come_back_one_after_the_other() {
        let (mut pace, now) = (Pace::default(), Instant::now());
        let first = pace.turn_away("a", now, GAP, false);
        let rest: Vec<_> = (0..3).map(|_| pace.join(&"a", now)).collect();
        assert_eq!(first, GAP);
        assert_eq!(rest, [2, 3, 4].map(|n| Some(GAP * n)));
        // Another's line is another's.
        assert_eq!(pace.join(&"b", now), None);
    }

    #[test]
    fn who_comes_again_is_not_sent_behind_those_who_come_for_the_first_time() {
        let (mut pace, now) = (Pace::default(), Instant::now());
        for _ in 0..100 {
            pace.turn_away("a", now, GAP, false);
        }
        let again: Vec<_> = (0..3)
            .map(|_| pace.turn_away("a", now, GAP, true))
            .collect();
        assert_eq!(again, [1, 2, 3].map(|n| GAP * n));
    }

    #[test]
    fn who_waits_for_a_place_looks_oftener_where_places_become_free() {
        let (mut pace, now) = (Pace::of_places(), Instant::now());
        let wait = Duration::from_secs(2);
        let between = |pace: &mut Pace<_>| {
            let one = pace.turn_away("a", now, wait, true);
            pace.turn_away("a", now, wait, true) - one
        };
        for _ in 0..100 {
            between(&mut pace);
        }
        assert_eq!(between(&mut pace), LONGEST_FOR_PLACES);
        for _ in 0..3 {
            pace.let_in(&"a");
        }
        assert!(between(&mut pace) < LONGEST_FOR_PLACES / 4);
        for _ in 0..20 {
            pace.let_in(&"a");
        }
        assert!(between(&mut pace) >= GAPS.0);
    }

    #[test]
    fn a_line_that_has_come_to_its_end_is_gone() {
        let (mut pace, now) = (Pace::default(), Instant::now());
        pace.turn_away("a", now, GAP, false);
        assert_eq!(pace.join(&"a", now + 2 * GAP), None);
        assert!(pace.lines.is_empty());
    }

    proptest! {
        #[test]
        fn nobody_waits_for_ever_and_no_memory_grows(
            steps in prop::collection::vec((0u32..50_000, 0u64..100_000, 0u64..1000, any::<bool>()), 0..300),
        ) {
            let (mut pace, mut now) = (Pace::default(), Instant::now());
            for (key, wait, later, first) in steps {
                now += Duration::from_millis(later);
                let wait = Duration::from_millis(wait);
                let told = if first {
                    pace.join(&key, now).unwrap_or_default()
                } else {
                    pace.turn_away(key, now, wait, false)
                };
                prop_assert!(told <= LONGEST);
                prop_assert!(pace.lines.len() <= MAX_LINES);
            }
        }
    }
}
