//! For how long heads are put aside whose tenant is at its limit. Pure.
//!
//! Nobody knows when a task of the tenant ends, so they are looked at again soon. But each look costs the broker a redelivery: where
//! there are many of them, less often.

use std::time::{Duration, Instant};

/// For a few of them.
const SHORTEST: Duration = Duration::from_secs(2);
/// However many they are.
const LONGEST: Duration = Duration::from_secs(60);
/// How often it is looked at how many there are.
const WINDOW: Duration = Duration::from_secs(4);
/// More than so many in a window is too often, and fewer than the other more seldom than it need be.
const MANY: usize = 400;
const FEW: usize = 100;

/// How long, as it changes.
#[derive(Debug)]
pub(crate) struct Aside {
    delay: Duration,
    began: Instant,
    count: usize,
}

impl Aside {
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            delay: SHORTEST,
            began: now,
            count: 0,
        }
    }

    /// The delays of so many that are put aside now, in their order: spread, so that some come back all the time and not all of them
    /// at one time.
    pub(crate) fn delays(
        &mut self,
        heads: usize,
        now: Instant,
    ) -> impl Iterator<Item = Duration> + use<> {
        let (delay, all) = (self.delay(heads, now), heads.max(1) as f64);
        (0..heads).map(move |at| delay.mul_f64(0.5 + at as f64 / all))
    }

    fn delay(&mut self, heads: usize, now: Instant) -> Duration {
        self.count = self.count.saturating_add(heads);
        // A long backlog shows at once, and that it is short again only by and by.
        if self.count > MANY {
            self.delay = (self.delay * 2).min(LONGEST);
            (self.began, self.count) = (now, 0);
        } else if now.saturating_duration_since(self.began) >= WINDOW {
            if self.count < FEW {
                self.delay = (self.delay / 2).max(SHORTEST);
            }
            (self.began, self.count) = (now, 0);
        }
        self.delay
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Redeliveries a second of so many heads, after a while, and the longest delay of one.
    fn redeliveries(heads: usize) -> (usize, Duration) {
        let began = Instant::now();
        let mut aside = Aside::new(began);
        let mut due = vec![began; heads];
        let (mut looked, mut longest) = (0, Duration::ZERO);
        for tick in 0..1200 {
            let now = began + Duration::from_millis(500 * tick);
            let mut seen: Vec<_> = due.iter_mut().filter(|at| **at <= now).collect();
            let after_a_while = tick >= 960;
            if after_a_while {
                looked += seen.len();
            }
            // As many as a lane holds, again and again.
            for some in seen.chunks_mut(50) {
                let delays: Vec<_> = aside.delays(some.len(), now).collect();
                for (at, delay) in some.iter_mut().zip(delays) {
                    **at = now + delay;
                    if after_a_while {
                        longest = longest.max(delay);
                    }
                }
            }
        }
        (looked / 120, longest)
    }

    #[test]
    fn a_few_are_looked_at_often_and_many_seldom() {
        let (_, longest) = redeliveries(20);
        assert!(longest <= SHORTEST * 3 / 2, "{longest:?}");
        for heads in [1000, 4000] {
            let (often, _) = redeliveries(heads);
            assert!((20..=150).contains(&often), "{often} a second of {heads}");
        }
    }

    #[test]
    fn when_they_are_few_again_they_are_looked_at_often_again() {
        let mut now = Instant::now();
        let mut aside = Aside::new(now);
        for _ in 0..100 {
            aside.delay(64, now);
        }
        assert_eq!(aside.delay(0, now), LONGEST);
        for _ in 0..10 {
            now += WINDOW;
            aside.delay(4, now);
        }
        assert_eq!(aside.delay(4, now), SHORTEST);
    }
}
