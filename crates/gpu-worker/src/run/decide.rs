//! What to do with a dispatch, given what the log knows of its task. A pure function.

use std::time::Duration;

use task_log::Record;

/// Pauses before a task is taken up again after its first, second and any later failure.
const RETRY_DELAYS: [Duration; 3] = [
    Duration::from_secs(1),
    Duration::from_secs(5),
    Duration::from_secs(15),
];

/// What to do with a dispatch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Decision {
    /// There is no such task: keep a copy, take it off the queue.
    Bury,
    /// The task has ended: take it off the queue.
    Ended,
    /// This worker is at it; the broker forgot. Let it come again later.
    AlreadyHere,
    /// It was taken up this often without an end: no more.
    Exhausted {
        /// Times it was taken up.
        attempts: u32,
    },
    /// Take it up.
    Run {
        /// As which attempt, 1 for the first.
        attempt: u32,
    },
}

/// `running`: this worker is carrying the task out right now.
pub(super) fn decide(record: Option<&Record>, running: bool, max_attempts: u32) -> Decision {
    let Some(record) = record else {
        return Decision::Bury;
    };
    if record.done.is_some() {
        return Decision::Ended;
    }
    if running {
        return Decision::AlreadyHere;
    }
    let attempts = record.attempts();
    if attempts >= max_attempts {
        return Decision::Exhausted { attempts };
    }
    Decision::Run {
        attempt: attempts + 1,
    }
}

/// How long a task rests after its `attempt`-th attempt failed.
pub(super) fn retry_delay(attempt: u32) -> Duration {
    let failures = attempt.saturating_sub(1) as usize;
    RETRY_DELAYS[failures.min(RETRY_DELAYS.len() - 1)]
}

#[cfg(test)]
mod tests {
    use contract::task::{Done, State, Submitted};
    use proptest::prelude::*;

    use super::*;

    fn record(attempts: Option<u32>, ended: bool) -> Record {
        Record {
            submitted: Submitted::default(),
            state: attempts.map(|attempt| State {
                attempt,
                ..State::default()
            }),
            done: ended.then(Done::default),
            feedback: None,
        }
    }

    #[test]
    fn a_dispatch_of_no_task_is_buried() {
        assert_eq!(decide(None, false, 3), Decision::Bury);
    }

    #[test]
    fn a_task_that_has_ended_is_only_taken_off_the_queue() {
        assert_eq!(
            decide(Some(&record(Some(9), true)), true, 3),
            Decision::Ended
        );
    }

    #[test]
    fn a_task_that_runs_here_is_not_taken_up_twice() {
        assert_eq!(
            decide(Some(&record(Some(1), false)), true, 3),
            Decision::AlreadyHere
        );
    }

    #[test]
    fn the_first_attempt_is_number_one_with_or_without_a_state() {
        assert_eq!(
            decide(Some(&record(None, false)), false, 3),
            Decision::Run { attempt: 1 }
        );
        assert_eq!(
            decide(Some(&record(Some(0), false)), false, 3),
            Decision::Run { attempt: 1 }
        );
    }

    #[test]
    fn the_last_attempt_is_allowed_and_the_one_after_it_is_not() {
        assert_eq!(
            decide(Some(&record(Some(2), false)), false, 3),
            Decision::Run { attempt: 3 }
        );
        assert_eq!(
            decide(Some(&record(Some(3), false)), false, 3),
            Decision::Exhausted { attempts: 3 }
        );
    }

    proptest! {
        #[test]
        fn a_task_that_always_fails_is_given_up_after_just_so_many_attempts(max_attempts in 1u32..20) {
            let mut taken_up = 0;
            while let Decision::Run { attempt } = decide(Some(&record(Some(taken_up), false)), false, max_attempts) {
                prop_assert_eq!(attempt, taken_up + 1);
                taken_up = attempt;
            }
            prop_assert_eq!(taken_up, max_attempts);
        }
    }

    #[test]
    fn rests_are_one_five_and_fifteen_seconds() {
        let rests: Vec<u64> = (1..=5)
            .map(|attempt| retry_delay(attempt).as_secs())
            .collect();
        assert_eq!(rests, [1, 5, 15, 15, 15]);
    }
}
