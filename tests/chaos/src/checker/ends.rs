//! Every accepted task ends exactly once, and the same submission twice is one task (invariants I1 and I2).

use std::collections::BTreeMap;

use super::{Evidence, Log, Verdict, all_ends};
use crate::history::{Happened, What};

const ONCE: &str = "every accepted task ends exactly once";
const ONE_TASK: &str = "the same submission twice is one task";
const FAILED: &str = "no task fails but by the deaths of its workers";
/// What a task fails with when its workers died too often.
const EXHAUSTED: &str = "attempts_exhausted";

pub(super) fn check(evidence: &Evidence, log: &Log, verdict: &mut Verdict) {
    let mut keyed: BTreeMap<(&str, &str), &str> = BTreeMap::new();
    for entry in &evidence.entries {
        match &entry.what {
            What::Accepted { tenant, key, task } => {
                verdict.count("accepted", 1);
                if log
                    .tasks
                    .get(task.as_str())
                    .is_none_or(|t| t.submitted.is_none())
                {
                    verdict.violated(ONCE, format!("{task} was accepted and is not in the log"));
                }
                if let Some(key) = key {
                    let first = *keyed.entry((tenant, key)).or_insert(task);
                    if first != task {
                        let text = format!("{key} of {tenant} is {first} and {task}");
                        verdict.violated(ONE_TASK, text);
                    }
                }
            }
            What::Refused { .. } => verdict.count("refused", 1),
            What::Unanswered { .. } => verdict.count("requests without an answer", 1),
            What::Ended { .. } => verdict.count("processes that ended by themselves", 1),
            _ => {}
        }
    }
    for (task, ends) in all_ends(evidence) {
        if ends.len() > 1 {
            verdict.violated(ONCE, format!("{task} has {} different ends", ends.len()));
        }
    }
    for (id, task) in &log.tasks {
        if task.submitted.is_none() {
            verdict.violated(ONCE, format!("{id} has events and was not submitted"));
        }
        let Some(done) = task.done else {
            verdict.violated(ONCE, format!("{id} has not ended"));
            continue;
        };
        if let Happened::Done { outcome, code, .. } = &done.event.event {
            verdict.count(outcome, 1);
            if outcome == "failed" && code != EXHAUSTED {
                verdict.violated(FAILED, format!("{id} failed with {code}"));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checker::sample::*;

    #[test]
    fn a_task_that_was_accepted_and_is_not_there_is_found() {
        let mut evidence = good();
        evidence
            .entries
            .push(entry(80, "client", accepted("lost", None)));
        assert_eq!(violated(&evidence), ONCE);
    }

    #[test]
    fn a_task_that_never_ended_is_found() {
        let mut evidence = good();
        evidence.log.pop();
        evidence.entries.truncate(5);
        assert_eq!(violated(&evidence), ONCE);
    }

    #[test]
    fn a_second_end_is_found() {
        let mut evidence = good();
        let mut other = succeeded(TASK);
        if let Happened::Done { digest, .. } = &mut other {
            *digest = "another".to_owned();
        }
        evidence.entries.push(heard(65, other));
        assert_eq!(violated(&evidence), ONCE);
    }

    #[test]
    fn two_tasks_of_one_key_are_found() {
        let mut evidence = good();
        with_another(&mut evidence, "task-2", cancelled("task-2"));
        evidence.charged.insert(TENANT.to_owned(), 2);
        for task in [TASK, "task-2"] {
            let what = accepted(task, Some("order-17"));
            evidence.entries.push(entry(80, "client", what));
        }
        assert_eq!(violated(&evidence), ONE_TASK);
    }

    #[test]
    fn a_failure_that_no_death_explains_is_found() {
        for (code, found) in [(EXHAUSTED, false), ("internal", true)] {
            let mut evidence = good();
            let mut end = cancelled("task-2");
            if let Happened::Done {
                outcome, code: of, ..
            } = &mut end
            {
                (*outcome, *of) = ("failed".to_owned(), code.to_owned());
            }
            with_another(&mut evidence, "task-2", end);
            evidence.charged.insert(TENANT.to_owned(), 2);
            assert_eq!(!super::super::check(&evidence).violations.is_empty(), found);
        }
    }
}
