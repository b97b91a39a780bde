//! What becomes of a task: from what the log holds and what happened to what is written next and what the broker is told.
//!
//! Pure, and in one place: the services act by these functions, and `tests/life` tries every order in which two workers, a
//! dispatcher and a canceller can act by them and die in between.

use std::time::Duration;

use crate::Record;

/// Pauses before a task is taken up again after its first, second and any later failure.
const RETRY_DELAYS: [Duration; 3] = [
    Duration::from_secs(1),
    Duration::from_secs(5),
    Duration::from_secs(15),
];

/// A task whose pictures no store takes rests for this part of the time that it has been tried already, so that it is drawn less and less
/// often in vain, ...
const REST_OF_TIME_TRIED: u32 = 8;
/// ... this long at least, ...
const SHORTEST_REST: Duration = Duration::from_secs(5);
/// ... and this long at most.
const LONGEST_REST: Duration = Duration::from_secs(5 * 60);

/// Runs of a task that were lost, its worker's process having died, after which it runs alone.
const LOST_BESIDE_OTHERS: u32 = 2;

/// What the log holds of a task, as far as it matters here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Known {
    /// `done` is stored.
    pub ended: bool,
    /// Times that it was taken up.
    pub attempts: u32,
}

impl From<&Record> for Known {
    fn from(record: &Record) -> Self {
        Self {
            ended: record.done.is_some(),
            attempts: record.attempts(),
        }
    }
}

/// Whether a waiting task of which there is more than its submission is handed to the workers: unless it has ended, somebody has begun to hand it over.
pub fn needs_dispatch(ended: bool) -> bool {
    !ended
}

/// What to do with a dispatch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Decision {
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

/// What to do with a dispatch of a task. `running_here`: this worker is carrying it out right now.
pub fn decide(known: Option<Known>, running_here: bool, max_attempts: u32) -> Decision {
    let Some(Known {
        ended, attempts, ..
    }) = known
    else {
        return Decision::Bury;
    };
    if ended {
        return Decision::Ended;
    }
    if running_here {
        return Decision::AlreadyHere;
    }
    if attempts >= max_attempts {
        return Decision::Exhausted { attempts };
    }
    Decision::Run {
        attempt: attempts + 1,
    }
}

/// Whether a task runs as this attempt with nothing beside it in its worker's process, where `lost` of its runs before ended with theirs.
///
/// Nothing tells the task that kills its process from those that were beside it. So each of them runs alone in the end, at the latest in its last
/// attempt, and only the guilty one loses that too. A first loss is more often the machine's fault, and to run what a node had one by one is slow.
pub fn runs_alone(lost: u32, attempt: u32, max_attempts: u32) -> bool {
    lost >= LOST_BESIDE_OTHERS || (lost > 0 && attempt >= max_attempts)
}

/// How an attempt came out. One during which somebody else has ended the task does not come out: its worker hears of the end beside it,
/// drops it, and removes what it has stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CameOut {
    /// All pictures are in the object store.
    Drawn,
    /// It would fail again, whoever tried.
    Impossible,
    /// It may succeed the next time.
    Failed,
    /// The worker stops; the attempt was nobody's fault.
    Stopped,
    /// The object store takes no picture from this worker; another may reach it. No fault of the task's, but it does not go round for ever.
    NotStored {
        /// How long ago it was first taken up.
        tried_for: Duration,
        /// How long it may be tried; `None` for ever.
        at_most: Option<Duration>,
    },
}

/// How a task is to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Ending {
    /// With its pictures.
    Succeeded,
    /// As one that cannot be carried out.
    Failed,
    /// As one that was taken up too often; a copy of the dispatch is kept.
    GivenUp,
}

/// What an attempt leaves to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Next {
    /// Write the end (create-only), for as long as it takes.
    End(Ending),
    /// Write, in place of this attempt's own state and of no other, that the task waits for a worker again.
    Rest {
        /// Attempts that count from then on.
        attempts: u32,
        /// How long it waits at least.
        pause: Duration,
    },
}

/// What follows from how the `attempt`-th attempt came out.
pub fn after_attempt(attempt: u32, came_out: CameOut, max_attempts: u32) -> Next {
    match came_out {
        CameOut::Drawn => Next::End(Ending::Succeeded),
        CameOut::Impossible => Next::End(Ending::Failed),
        CameOut::Failed if attempt >= max_attempts => Next::End(Ending::GivenUp),
        CameOut::Failed => Next::Rest {
            attempts: attempt,
            pause: retry_delay(attempt),
        },
        CameOut::Stopped => Next::Rest {
            attempts: attempt.saturating_sub(1),
            pause: Duration::ZERO,
        },
        CameOut::NotStored {
            tried_for,
            at_most: Some(most),
        } if tried_for >= most => Next::End(Ending::GivenUp),
        CameOut::NotStored { tried_for, .. } => Next::Rest {
            attempts: attempt.saturating_sub(1),
            pause: (tried_for / REST_OF_TIME_TRIED).clamp(SHORTEST_REST, LONGEST_REST),
        },
    }
}

/// What the broker is told of a dispatch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Settlement {
    /// The task has ended, or there is none.
    Ack,
    /// Someone takes it up after this long.
    GiveBack(Duration),
    /// Nothing: another worker has it, and to give it back would hand it to a third.
    Leave,
}

/// What came of a state that was to stand in place of another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Written {
    /// It stands there.
    Stored,
    /// Another was written meanwhile, and stays.
    Refused,
    /// Nobody knows.
    Unknown,
}

/// How a dispatch is settled whose task rests.
pub fn after_rest(pause: Duration, written: Written) -> Settlement {
    match written {
        // When it was not stored the old state stays, which only counts an attempt more.
        Written::Stored | Written::Unknown => Settlement::GiveBack(pause),
        Written::Refused => Settlement::Leave,
    }
}

/// How a dispatch is settled whose task was not taken up, because it is not as it was read or told of. `now`: as it is read since. One that has ended
/// is taken off the queue.
///
/// Whoever has written that state had a later delivery, and may have given it back to a third worker that is about to take the task up. The broker
/// takes the word of whoever ever had the message: to give this one back would hand the task to a fourth beside that one, whether the state
/// counts more attempts than before or not. Where nobody has it, it comes again after the ack wait.
pub fn after_refusal(now: Option<Known>) -> Settlement {
    if now.is_some_and(|now| now.ended) {
        Settlement::Ack
    } else {
        Settlement::Leave
    }
}

/// How long a task rests after its `attempt`-th attempt failed.
pub fn retry_delay(attempt: u32) -> Duration {
    let failures = attempt.saturating_sub(1) as usize;
    RETRY_DELAYS[failures.min(RETRY_DELAYS.len() - 1)]
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn known(attempts: u32, ended: bool) -> Option<Known> {
        Some(Known { ended, attempts })
    }

    #[test]
    fn a_dispatch_of_no_task_is_buried() {
        assert_eq!(decide(None, false, 3), Decision::Bury);
    }

    #[test]
    fn a_task_that_has_ended_is_only_taken_off_the_queue() {
        assert_eq!(decide(known(9, true), true, 3), Decision::Ended);
    }

    #[test]
    fn a_task_that_runs_here_is_not_taken_up_twice() {
        assert_eq!(decide(known(1, false), true, 3), Decision::AlreadyHere);
    }

    #[test]
    fn the_last_attempt_is_allowed_and_the_one_after_it_is_not() {
        assert_eq!(
            decide(known(0, false), false, 3),
            Decision::Run { attempt: 1 }
        );
        assert_eq!(
            decide(known(2, false), false, 3),
            Decision::Run { attempt: 3 }
        );
        assert_eq!(
            decide(known(3, false), false, 3),
            Decision::Exhausted { attempts: 3 }
        );
    }

    proptest! {
        #[test]
        fn a_task_that_always_fails_is_given_up_after_just_so_many_attempts(max_attempts in 1u32..20) {
            let mut taken_up = 0;
            loop {
                let Decision::Run { attempt } = decide(known(taken_up, false), false, max_attempts) else {
                    panic!("it was not given up by the last attempt");
                };
                prop_assert_eq!(attempt, taken_up + 1);
                match after_attempt(attempt, CameOut::Failed, max_attempts) {
                    Next::Rest { attempts, .. } => taken_up = attempts,
                    next => {
                        prop_assert_eq!(next, Next::End(Ending::GivenUp));
                        prop_assert_eq!(attempt, max_attempts);
                        break;
                    }
                }
            }
        }
    }

    #[test]
    fn a_task_runs_alone_when_two_runs_were_lost_or_one_and_this_is_the_last() {
        assert!(!runs_alone(0, 3, 3));
        assert!(!runs_alone(1, 2, 3));
        assert!(runs_alone(1, 3, 3));
        assert!(runs_alone(1, 2, 2));
        assert!(runs_alone(2, 3, 9));
    }

    proptest! {
        #[test]
        fn a_task_that_kills_each_process_it_runs_in_is_the_only_one_to_be_given_up(
            max_attempts in 2u32..9,
            slots in 1usize..9,
        ) {
            let guilty = 0;
            // Runs that each task has lost, as long as it has not ended.
            let mut lost: BTreeMap<usize, u32> = (0..slots).map(|task| (task, 0)).collect();
            let mut given_up = Vec::new();
            while !lost.is_empty() {
                let mut together = Vec::new();
                let mut processes = Vec::new();
                for (&task, &times) in &lost {
                    let Decision::Run { attempt } = decide(known(times, false), false, max_attempts) else {
                        given_up.push(task);
                        continue;
                    };
                    if runs_alone(times, attempt, max_attempts) {
                        processes.push(vec![task]);
                    } else {
                        together.push(task);
                    }
                }
                lost.retain(|task, _| !given_up.contains(task));
                processes.push(together);
                for tasks in processes {
                    let is_killed = tasks.contains(&guilty);
                    for task in tasks {
                        if is_killed {
                            *lost.entry(task).or_default() += 1;
                        } else {
                            lost.remove(&task);
                        }
                    }
                }
            }
            prop_assert_eq!(given_up, [guilty]);
        }
    }

    #[test]
    fn a_worker_that_stops_counts_no_attempt_and_its_task_waits_no_longer_than_it_must() {
        let next = after_attempt(2, CameOut::Stopped, 3);
        let (attempts, pause) = (1, Duration::ZERO);
        assert_eq!(next, Next::Rest { attempts, pause });
    }

    proptest! {
        #[test]
        fn a_task_that_no_store_takes_is_given_up_in_time_and_costs_no_attempt_before(
            attempt in 1u32..5,
            drawing in 0u64..600,
            most in 1u64..200_000,
        ) {
            let most = Duration::from_secs(most);
            let mut tried_for = Duration::ZERO;
            let mut rounds = 0_u32;
            loop {
                tried_for += Duration::from_secs(drawing);
                rounds += 1;
                let came_out = CameOut::NotStored { tried_for, at_most: Some(most) };
                match after_attempt(attempt, came_out, 3) {
                    Next::Rest { attempts, pause } => {
                        prop_assert_eq!(attempts, attempt - 1);
                        prop_assert!((SHORTEST_REST..=LONGEST_REST).contains(&pause));
                        tried_for += pause;
                    }
                    next => {
                        prop_assert_eq!(next, Next::End(Ending::GivenUp));
                        break;
                    }
                }
            }
            prop_assert!(tried_for < most + LONGEST_REST + Duration::from_secs(drawing));
            // Not at every few seconds of a day.
            prop_assert!(u64::from(rounds) <= 40 + most.as_secs() / LONGEST_REST.as_secs());
        }
    }

    #[test]
    fn without_a_limit_a_task_that_no_store_takes_waits_on() {
        let came_out = CameOut::NotStored {
            tried_for: Duration::from_secs(86_400),
            at_most: None,
        };
        let (attempts, pause) = (0, LONGEST_REST);
        assert_eq!(
            after_attempt(1, came_out, 3),
            Next::Rest { attempts, pause }
        );
    }

    #[test]
    fn what_another_has_written_to_meanwhile_is_left_to_it_unless_it_has_ended() {
        for attempts in 0..3 {
            assert_eq!(after_refusal(known(attempts, false)), Settlement::Leave);
            assert_eq!(after_refusal(known(attempts, true)), Settlement::Ack);
        }
        // It could not be read: it is decided when it comes again.
        assert_eq!(after_refusal(None), Settlement::Leave);
    }

    #[test]
    fn rests_are_one_five_and_fifteen_seconds() {
        let rests: Vec<u64> = (1..=5)
            .map(|attempt| retry_delay(attempt).as_secs())
            .collect();
        assert_eq!(rests, [1, 5, 15, 15, 15]);
    }
}
