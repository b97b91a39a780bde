//! Every accepted task ends exactly once, and the same submission twice is one task (invariants I1 and I2).
//!
//! A task may fail because its attempts are used up, where faults used them up: each that was there while the task lived costs it one, and
//! one that lasts another each time that the task can have been taken up again meanwhile.

use std::collections::BTreeMap;

use super::{EXPIRED, Evidence, Log, Verdict, all_ends};
use crate::history::{Happened, What};
use crate::plan::Fault;

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
            if outcome != "failed" || code == EXPIRED {
                continue;
            }
            if code != EXHAUSTED {
                verdict.violated(FAILED, format!("{id} failed with {code}"));
                continue;
            }
            let (cost, most) = (cost(evidence, id), u64::from(evidence.rules.max_attempts));
            if cost < most {
                let text = format!("{id} used up {most} attempts, of which faults explain {cost}");
                verdict.violated(FAILED, text);
            }
        }
    }
}

/// Attempts that a task can have lost to faults. More than it did: whom a fault struck is not looked at, and the platform may need until it has settled
/// to be itself again. That is all there can be, for a task that was taken from its worker is taken up again after the ack wait, and one that failed
/// rests for as long on average; what a worker hands back that is asked to end costs none, unless that it does is not stored.
fn cost(evidence: &Evidence, task: &str) -> u64 {
    let rules = &evidence.rules;
    let (first, last) = life(evidence, task);
    let first = first.saturating_sub(rules.settle_ms);
    let of_span = |from: u64, until: u64| {
        let (from, until) = (from.max(first), until.min(last));
        let lasted = until.checked_sub(from);
        lasted.map_or(0, |lasted| 1 + lasted / rules.attempt_ms.max(1))
    };
    let mut open: BTreeMap<usize, u64> = BTreeMap::new();
    let mut cost = 0;
    for entry in &evidence.entries {
        let at = entry.at_ms;
        match &entry.what {
            What::Ended { .. } => cost += u64::from((first..=last).contains(&at)),
            What::Strike {
                begins,
                of: Fault::Kill { .. } | Fault::Terminate { .. },
                ..
            } => {
                // It is over at once; what was there is gone and comes again as another.
                cost += u64::from(*begins && (first..=last).contains(&at));
            }
            What::Strike {
                number,
                begins: true,
                ..
            } => {
                open.insert(*number, at);
            }
            What::Strike { number, .. } => {
                let from = open.remove(number);
                cost += from.map_or(0, |from| of_span(from, at + rules.settle_ms));
            }
            _ => {}
        }
    }
    let unended = open.into_values();
    cost + unended.map(|from| of_span(from, last)).sum::<u64>()
}

/// From when a task was first heard of until its end was.
fn life(evidence: &Evidence, task: &str) -> (u64, u64) {
    let (mut first, mut last) = (None, None);
    for entry in &evidence.entries {
        let ended = match &entry.what {
            What::Accepted { task: of, .. } if of == task => false,
            What::Event(event) if event.task == task => {
                matches!(event.event, Happened::Done { .. })
            }
            _ => continue,
        };
        first = first.or(Some(entry.at_ms));
        last = last.or(ended.then_some(entry.at_ms));
    }
    (first.unwrap_or(0), last.unwrap_or(u64::MAX))
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
        for (code, kills, found) in [
            (EXHAUSTED, 3, false),
            (EXHAUSTED, 2, true),
            ("internal", 3, true),
        ] {
            let mut evidence = exhausted(code);
            for number in 0..kills {
                let instance = "gpu-worker-1".to_owned();
                strikes(
                    &mut evidence,
                    number,
                    Fault::Kill { instance },
                    (1_000, 2_000),
                );
            }
            assert_eq!(!super::super::check(&evidence).violations.is_empty(), found);
            if found {
                assert_eq!(violated(&evidence), FAILED);
            }
        }
    }

    /// A task that lives from 500 ms to 30 s and fails.
    fn exhausted(code: &str) -> Evidence {
        let mut evidence = good();
        with_another(&mut evidence, "task-2", failed("task-2", code));
        evidence.charged.insert(TENANT.to_owned(), 2);
        for (at, what) in [(500, submitted()), (30_000, failed("task-2", code))] {
            let what = What::Event(event("task-2", what));
            evidence.entries.push(entry(at, "listener", what));
        }
        evidence
    }

    fn strikes(evidence: &mut Evidence, number: usize, of: Fault, (from, until): (u64, u64)) {
        for (at, begins) in [(from, true), (until, false)] {
            let what = strike(number, begins, of.clone());
            evidence.entries.push(entry(at, "harness", what));
        }
        evidence.entries.sort_by_key(|entry| entry.at_ms);
    }

    #[test]
    fn a_fault_that_lasts_explains_an_attempt_for_each_time_the_task_can_have_been_taken_up() {
        let stop = || Fault::Stop {
            instance: "gpu-worker-1".to_owned(),
        };
        // With what settles after it, five seconds and ten.
        for (until, found) in [(1_000, true), (6_000, false)] {
            let mut evidence = exhausted(EXHAUSTED);
            strikes(&mut evidence, 0, stop(), (1_000, until));
            assert_eq!(!super::super::check(&evidence).violations.is_empty(), found);
        }
        // It came after the task's end.
        let mut evidence = exhausted(EXHAUSTED);
        strikes(&mut evidence, 0, stop(), (31_000, 60_000));
        assert_eq!(violated(&evidence), FAILED);
    }
}
