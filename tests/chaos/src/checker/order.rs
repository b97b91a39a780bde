//! Events come in a legal order: a task is submitted before anything else happens to it, attempts are counted upwards, what was put away
//! is not forgotten.
//!
//! While a server of the broker is cut off in silence, what it and the others tell each other is held back, and told when the link is mended:
//! a listener may then hear what a leader told long ago after what its successor told since. What is heard then is not judged.

use super::{Disturbed, Evidence, Log, Verdict, heard_by_task};
use crate::history::{Entry, Happened, What};
use crate::plan::Fault;

const SUBMITTED_FIRST: &str = "a task is submitted before anything else happens to it";
const ATTEMPTS: &str = "attempts are counted upwards, to the limit";
const CHECKPOINT: &str = "a checkpoint is not forgotten";

pub(super) fn check(evidence: &Evidence, log: &Log, verdict: &mut Verdict) {
    for (id, task) in &log.tasks {
        let Some(submitted) = task.submitted else {
            continue;
        };
        let later = [task.state, task.done].into_iter().flatten();
        for event in later {
            if event.sequence < submitted.sequence {
                verdict.violated(SUBMITTED_FIRST, format!("{id} in the log"));
            }
        }
    }
    let held_back = Disturbed::by_plan(evidence, evidence.rules.settle_ms, |fault| {
        matches!(fault, Fault::Partition { silent: true, .. })
    });
    for ((_, task), mut entries) in heard_by_task(evidence) {
        let all = entries.len();
        entries.retain(|entry| judged(entry, &held_back));
        let left_out = (all - entries.len()) as u64;
        verdict.count("events not judged for their order", left_out);
        of_task(task, &entries, evidence.rules.max_attempts, verdict);
    }
}

fn judged(entry: &Entry, held_back: &Disturbed) -> bool {
    let What::Event(event) = &entry.what else {
        return true;
    };
    // That a task has ended is true whenever it is heard.
    let ended = matches!(event.event, Happened::Done { .. });
    ended || !held_back.within(entry.at_ms, entry.at_ms)
}

/// One task as one listener heard it. It may have missed events, so what is missing proves nothing.
fn of_task(task: &str, entries: &[&Entry], max_attempts: u32, verdict: &mut Verdict) {
    let (mut begun, mut ended, mut attempts, mut saved) = (false, false, 0, None);
    for entry in entries {
        let What::Event(event) = &entry.what else {
            continue;
        };
        match &event.event {
            Happened::Submitted { .. } if begun => {
                verdict.violated(SUBMITTED_FIRST, format!("{task} as {} heard it", entry.who));
            }
            Happened::State {
                running,
                attempt,
                checkpoint,
                ..
            } => {
                if ended {
                    // Whoever took it up had not heard of its end; it is dropped at once.
                    verdict.count("states written after an end", 1);
                    continue;
                }
                // A worker that hands back takes its attempt from the count.
                let least = if *running {
                    attempts
                } else {
                    attempts.max(1) - 1
                };
                if *attempt < least || *attempt > max_attempts {
                    let text = format!("{task}: {attempt} after {attempts}");
                    verdict.violated(ATTEMPTS, text);
                }
                if *running {
                    attempts = *attempt;
                    verdict.most("most attempts of a task", u64::from(*attempt));
                }
                if checkpoint.is_none() && saved.is_some() {
                    let text = format!("{task}: after {saved:?} steps");
                    verdict.violated(CHECKPOINT, text);
                }
                saved = *checkpoint;
            }
            Happened::Done { .. } => ended = true,
            Happened::Submitted { .. } | Happened::Feedback => {}
        }
        begun = true;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checker::sample::*;

    #[test]
    fn a_task_that_is_submitted_late_is_found() {
        let mut evidence = good();
        evidence.log[0].sequence = 99;
        assert_eq!(violated(&evidence), SUBMITTED_FIRST);
        let mut evidence = good();
        evidence.entries.swap(1, 2);
        assert_eq!(violated(&evidence), SUBMITTED_FIRST);
    }

    fn with(states: Vec<Happened>) -> Evidence {
        let mut evidence = good();
        evidence.entries.truncate(4);
        let begin = 41;
        let states = (begin..).zip(states).map(|(at, state)| heard(at, state));
        evidence.entries.extend(states);
        evidence
    }

    #[test]
    fn attempts_that_go_back_or_beyond_the_limit_are_found() {
        let back = with(vec![state(true, 2, None), state(true, 1, None)]);
        assert_eq!(violated(&back), ATTEMPTS);
        let beyond = with(vec![state(true, 4, None)]);
        assert_eq!(violated(&beyond), ATTEMPTS);
        let handed_back = with(vec![state(false, 0, Some(3)), state(true, 1, Some(3))]);
        assert_eq!(super::super::check(&handed_back).violations, []);
    }

    #[test]
    fn a_checkpoint_that_is_forgotten_is_found() {
        let forgotten = with(vec![state(true, 1, Some(5)), state(false, 0, None)]);
        assert_eq!(violated(&forgotten), CHECKPOINT);
    }

    fn with_partition(mut evidence: Evidence, silent: bool, from: u64, until: u64) -> Evidence {
        let strikes = [(from, true), (until, false)].map(|(at, begins)| {
            let of = Fault::Partition { node: 0, silent };
            entry(at, "harness", strike(1, begins, of))
        });
        evidence.entries.extend(strikes);
        evidence.entries.sort_by_key(|entry| entry.at_ms);
        evidence
    }

    #[test]
    fn what_a_silent_partition_held_back_is_old_and_no_violation() {
        let late = || with(vec![state(true, 2, None), state(true, 1, None)]);
        let held_back = super::super::check(&with_partition(late(), true, 35, 42));
        assert_eq!(held_back.violations, []);
        assert_eq!(held_back.figures["events not judged for their order"], 3);
        assert_eq!(violated(&with_partition(late(), false, 35, 42)), ATTEMPTS);
        // It was mended long ago.
        let mut evidence = late();
        for entry in &mut evidence.entries {
            entry.at_ms += 10_000;
        }
        assert_eq!(violated(&with_partition(evidence, true, 1, 2)), ATTEMPTS);
    }

    #[test]
    fn an_end_that_was_heard_during_a_partition_is_known_after_it() {
        let mut evidence = with(vec![
            state(true, 1, Some(5)),
            succeeded(TASK),
            state(false, 0, None),
        ]);
        if let Some(last) = evidence.entries.last_mut() {
            last.at_ms = 60_000;
        }
        let verdict = super::super::check(&with_partition(evidence, true, 42, 45));
        assert_eq!(verdict.violations, []);
        assert_eq!(verdict.figures["states written after an end"], 1);
    }
}
