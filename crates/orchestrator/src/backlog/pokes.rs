//! Telling a queue's owner of submissions, not too often. Pure.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use task_log::Queue;

/// Between two words about one queue. It is what a task of a busy tenant waits for to be seen, half of it on average.
pub(crate) const PAUSE: Duration = Duration::from_millis(10);
/// Queues that are remembered. Of others the owner is told at once.
const MAX_QUEUES: usize = 16_384;

/// Which queues were told of lately, and what is still to be told.
#[derive(Debug, Default)]
pub(crate) struct Pokes(HashMap<Queue, (Instant, u64)>);

impl Pokes {
    /// A submission was stored. How many to tell of now, if any.
    pub(crate) fn note(&mut self, queue: &Queue, now: Instant) -> Option<u64> {
        let is_full = self.0.len() >= MAX_QUEUES;
        match self.0.get_mut(queue) {
            Some((told, _)) if now.saturating_duration_since(*told) >= PAUSE => {}
            Some((_, untold)) => {
                *untold += 1;
                return None;
            }
            None if is_full => return Some(1),
            None => {}
        }
        let before = self.0.insert(queue.clone(), (now, 0));
        Some(1 + before.map_or(0, |(_, untold)| untold))
    }

    /// Whether nothing is remembered, so that there is nothing to tell or to forget.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many submissions of a queue are still to be told of.
    pub(crate) fn untold(&self, queue: &Queue) -> u64 {
        self.0.get(queue).map_or(0, |(_, untold)| *untold)
    }

    /// What is to be told now; forgets queues of which there is nothing to tell.
    pub(crate) fn due(&mut self, now: Instant) -> Vec<(Queue, u64)> {
        let mut due = Vec::new();
        self.0.retain(|queue, (told, untold)| {
            if now.saturating_duration_since(*told) < PAUSE {
                return true;
            }
            if *untold == 0 {
                return false;
            }
            due.push((queue.clone(), std::mem::take(untold)));
            *told = now;
            true
        });
        due
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn all_are_told_of_and_seldom(steps in prop::collection::vec((0u64..40, 0u8..3), 0..200)) {
            let (mut pokes, mut now) = (Pokes::default(), Instant::now());
            let (mut noted, mut told, mut words) = (0, 0, Vec::new());
            for (wait, queue) in steps {
                now += Duration::from_millis(wait);
                let queue = Queue {
                    lane: "l".parse().unwrap(),
                    tenant: format!("t{queue}").parse().unwrap(),
                };
                noted += 1;
                if let Some(count) = pokes.note(&queue, now) {
                    told += count;
                    words.push((queue, now));
                }
                for (queue, count) in pokes.due(now) {
                    told += count;
                    words.push((queue, now));
                }
            }
            for (queue, count) in pokes.due(now + PAUSE) {
                told += count;
                words.push((queue, now + PAUSE));
            }
            prop_assert_eq!(noted, told);
            for (at, (queue, when)) in words.iter().enumerate() {
                let next = words[at + 1..].iter().find(|(other, _)| other == queue);
                prop_assert!(next.is_none_or(|(_, next)| *next - *when >= PAUSE));
            }
        }
    }
}
