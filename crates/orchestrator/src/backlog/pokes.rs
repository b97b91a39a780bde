//! Telling a queue's owner of submissions, not too often. Pure.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use contract::TenantId;
use task_log::Queue;

/// Between two words about one queue. It is what a task of a busy tenant waits for to be seen at most, half of it on average.
pub(crate) const PAUSE: Duration = Duration::from_millis(PAUSE_MS);
const PAUSE_MS: u64 = 3;
/// Queues that are remembered. Of others the owner is told at once.
const MAX_QUEUES: usize = 16_384;

/// Which queues were told of lately, and what is still to be told.
#[derive(Debug, Default)]
pub(crate) struct Pokes {
    /// With when each was told of, and how many were stored in it since.
    queues: HashMap<Queue, (Instant, u64)>,
    /// When each was told of, in that order; some have been told of again since.
    told: VecDeque<(Instant, Queue)>,
}

impl Pokes {
    /// A submission was stored. How many to tell of now, if any.
    pub(crate) fn note(&mut self, queue: &Queue, now: Instant) -> Option<u64> {
        let is_full = self.queues.len() >= MAX_QUEUES;
        match self.queues.get_mut(queue) {
            Some((told, _)) if now.saturating_duration_since(*told) >= PAUSE => {}
            Some((_, untold)) => {
                *untold += 1;
                return None;
            }
            None if is_full => return Some(1),
            None => {}
        }
        let before = self.queues.insert(queue.clone(), (now, 0));
        self.told.push_back((now, queue.clone()));
        Some(1 + before.map_or(0, |(_, untold)| untold))
    }

    /// When to look for what is [due](Self::due) next; `None` when nothing is remembered.
    pub(crate) fn next(&self) -> Option<Instant> {
        self.told.front().map(|(told, _)| *told + PAUSE)
    }

    /// How many submissions of a queue are still to be told of.
    pub(crate) fn untold(&self, queue: &Queue) -> u64 {
        self.queues.get(queue).map_or(0, |(_, untold)| *untold)
    }

    /// The same of all queues of a tenant.
    pub(crate) fn untold_of(&self, tenant: &TenantId) -> u64 {
        let of_tenant = self
            .queues
            .iter()
            .filter(|(queue, _)| queue.tenant == *tenant);
        of_tenant.map(|(_, (_, untold))| untold).sum()
    }

    /// What is to be told now; forgets queues of which there is nothing to tell.
    pub(crate) fn due(&mut self, now: Instant) -> Vec<(Queue, u64)> {
        let mut due = Vec::new();
        while let Some((then, queue)) = self
            .told
            .pop_front_if(|(told, _)| now.saturating_duration_since(*told) >= PAUSE)
        {
            match self.queues.get_mut(&queue) {
                Some((told, _)) if *told != then => {}
                Some((_, 0)) => {
                    self.queues.remove(&queue);
                }
                Some((told, untold)) => {
                    *told = now;
                    due.push((queue.clone(), std::mem::take(untold)));
                    self.told.push_back((now, queue));
                }
                None => {}
            }
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn all_are_told_of_and_seldom(steps in prop::collection::vec((0u64..4 * PAUSE_MS, 0u8..3), 0..200)) {
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
            // What is told by the clock is told in time, and in the end nothing is remembered.
            while let Some(next) = pokes.next() {
                prop_assert!(next > now && next <= now + PAUSE);
                now = next;
                for (queue, count) in pokes.due(now) {
                    told += count;
                    words.push((queue, now));
                }
            }
            prop_assert_eq!(noted, told);
            prop_assert!(pokes.queues.is_empty());
            for (at, (queue, when)) in words.iter().enumerate() {
                let next = words[at + 1..].iter().find(|(other, _)| other == queue);
                prop_assert!(next.is_none_or(|(_, next)| *next - *when >= PAUSE));
            }
        }
    }
}
