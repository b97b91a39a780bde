//! Events come in a legal order: a task is submitted before anything else happens to it, attempts are counted upwards, what was put away
//! is not forgotten.

use super::{Evidence, Log, Verdict, heard_by_task};
use crate::history::{Entry, Happened, What};

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
    for ((_, task), entries) in heard_by_task(evidence) {
        of_task(task, &entries, evidence.rules.max_attempts, verdict);
    }
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
}
