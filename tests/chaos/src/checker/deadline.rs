//! A task that must begin within a time ends as expired only where it was not begun.
//!
//! A begin and the end may cross: a worker that looked at the time a moment before it was over writes its state when the end is being
//! written, and drops the task when it hears of that. So a state that was heard just before the end proves nothing, nor one that was written
//! while anything was disturbed, which may have held up its worker or its reader for as long. One that had stood for longer than that in
//! peace was seen by whoever ended the task.

use std::collections::BTreeMap;

use super::{Disturbed, EXPIRED, Evidence, Log, Verdict, heard_by_task};
use crate::history::{Happened, What};

const BEGUN: &str = "a task expires only before it begins";
/// What may lie between a look at the time and the state or end that follows, beside the wait for a write: a slow machine, and how far a copy
/// of the log may be behind.
const BEHIND_MS: u64 = 2_000;

pub(super) fn check(evidence: &Evidence, log: &Log, verdict: &mut Verdict) {
    for (id, task) in &log.tasks {
        let expires = task.submitted.is_some_and(|submitted| {
            matches!(submitted.event.event, Happened::Submitted { expires_after_s, .. } if expires_after_s > 0)
        });
        if expires {
            verdict.count("tasks that were to begin in time", 1);
        }
        let Some(Happened::Done { code, begun, .. }) = task.done.map(|done| &done.event.event)
        else {
            continue;
        };
        if code != EXPIRED {
            continue;
        }
        verdict.count("tasks that did not begin in time", 1);
        if !expires {
            let text = format!("{id} expired, and could wait for as long as it took");
            verdict.violated(BEGUN, text);
        }
        if *begun {
            verdict.violated(
                BEGUN,
                format!("{id} expired, and its end says that it began"),
            );
        }
    }
    drawn(evidence, verdict);
}

/// How long a begin and an end may cross.
fn cross_ms(evidence: &Evidence) -> u64 {
    evidence.rules.write_ms + BEHIND_MS
}

/// Those that were heard to be begun long before they expired.
fn drawn(evidence: &Evidence, verdict: &mut Verdict) {
    let disturbed = Disturbed::of(evidence, evidence.rules.settle_ms, |_| true);
    let cross_ms = cross_ms(evidence);
    // When each was first heard to be begun, by any listener.
    let mut begun: BTreeMap<&str, u64> = BTreeMap::new();
    let mut expired: BTreeMap<&str, u64> = BTreeMap::new();
    for ((_, task), entries) in heard_by_task(evidence) {
        for entry in entries {
            let What::Event(event) = &entry.what else {
                continue;
            };
            let first = match &event.event {
                Happened::State { running: true, .. } => begun.entry(task),
                Happened::Done { code, .. } if code == EXPIRED => expired.entry(task),
                _ => continue,
            };
            let first = first.or_insert(entry.at_ms);
            *first = entry.at_ms.min(*first);
        }
    }
    for (task, end) in expired {
        let Some(&begin) = begun.get(task) else {
            continue;
        };
        if begin + cross_ms < end && !disturbed.within(begin, end) {
            let text = format!("{task} was begun {} ms before it expired", end - begin);
            verdict.violated(BEGUN, text);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checker::sample::*;
    use crate::plan::Fault;

    /// One that expired so long after it was begun, if it was.
    fn with(begun: Option<u64>) -> Evidence {
        let mut evidence = good();
        with_another(&mut evidence, "task-2", failed("task-2", EXPIRED));
        if let Happened::Submitted {
            expires_after_s, ..
        } = &mut evidence.log[3].event.event
        {
            *expires_after_s = 5;
        }
        let end = 20_000;
        let hear =
            |at: u64, what: Happened| entry(at, "listener", What::Event(event("task-2", what)));
        evidence.entries.push(hear(4_000, submitted()));
        if let Some(before) = begun {
            evidence
                .entries
                .push(hear(end - before, state(true, 1, None)));
        }
        evidence.entries.push(hear(end, failed("task-2", EXPIRED)));
        evidence
    }

    #[test]
    fn a_task_that_expires_when_it_is_drawn_is_found() {
        assert_eq!(super::super::check(&with(None)).violations, []);
        let cross_ms = cross_ms(&good());
        assert_eq!(super::super::check(&with(Some(cross_ms))).violations, []);
        assert_eq!(violated(&with(Some(cross_ms + 1))), BEGUN);
    }

    #[test]
    fn a_begin_that_a_fault_may_have_held_up_proves_nothing() {
        let mut evidence = with(Some(8_000));
        for (at, begins) in [(8_000, true), (8_500, false)] {
            let of = Fault::Stop {
                instance: "gpu-worker-1".to_owned(),
            };
            evidence
                .entries
                .push(entry(at, "harness", strike(1, begins, of)));
        }
        evidence.entries.sort_by_key(|entry| entry.at_ms);
        assert_eq!(super::super::check(&evidence).violations, []);
    }

    #[test]
    fn a_task_without_a_deadline_that_expires_is_found_and_an_end_that_says_that_it_began() {
        let mut evidence = with(None);
        if let Happened::Submitted {
            expires_after_s, ..
        } = &mut evidence.log[3].event.event
        {
            *expires_after_s = 0;
        }
        assert_eq!(violated(&evidence), BEGUN);
        let mut evidence = with(None);
        if let Happened::Done { begun, .. } = &mut evidence.log[5].event.event {
            *begun = true;
        }
        evidence.charged.insert(TENANT.to_owned(), 2);
        assert_eq!(violated(&evidence), BEGUN);
    }
}
