//! Nothing is left in the object store but what whoever was ended left there, and the audit chain is whole.
//!
//! A process asks whether the store is well with one object of its own, the same each time: each life of a process leaves one at most. Files
//! that were to become objects are left by who is killed when groups of them are written; whoever ends as it should, or still runs, has few.
//! Checkpoints may be left of tasks whose worker died, or whose store was away, when they ended; of those that ended in peace there is none.

use super::{Calm, Evidence, Left, Log, Verdict};
use crate::history::{Entry, Happened, What};
use crate::plan::{Fault, INSTANCES};

const LEFT: &str = "no more is left in the object store than those who were ended can have left";
const CHAIN: &str = "the audit chain is whole";
/// Files that a process writes at once: four groups of 32.
const DRAFTS: u64 = 4 * 32;
/// … and that one has in the store which was not killed: what it is just writing.
const UNDER_WAY: u64 = 8;

pub(super) fn check(evidence: &Evidence, log: &Log, verdict: &mut Verdict) {
    let Some(left) = &evidence.left else {
        return;
    };
    let Left { probes, drafts, .. } = *left;
    let lives = lives(evidence);
    verdict.count("probes left in the store", probes);
    verdict.count("drafts left in the store", drafts);
    verdict.count(
        "tasks with a checkpoint at the end",
        left.checkpoints.len() as u64,
    );
    verdict.count("audit records in files", left.records);
    if probes > lives {
        verdict.violated(
            LEFT,
            format!("{probes} probes of {lives} lives of processes"),
        );
    }
    let killed = killed(evidence);
    if drafts > most_drafts(lives, killed) {
        verdict.violated(
            LEFT,
            format!("{drafts} drafts of {lives} lives of processes, of which {killed} were killed"),
        );
    }
    if let Some(Calm { tenant, .. }) = &evidence.calm {
        let in_peace = log.tasks.iter().filter(|(_, task)| task.tenant == tenant);
        for (id, _) in
            in_peace.filter(|(id, task)| task.done.is_some() && left.checkpoints.contains(**id))
        {
            verdict.violated(LEFT, format!("{id} ended in peace and has a checkpoint"));
        }
    }
    if let Some(broken) = &left.broken {
        verdict.violated(CHAIN, broken.clone());
    }
    let ended_ago = ended_ago(evidence);
    if left.records == 0 && ended_ago > evidence.rules.audit_within_ms {
        let text = format!(
            "there is no record, and a task ended {ended_ago} ms before the last of what was seen"
        );
        verdict.violated(CHAIN, text);
    }
}

/// How long before the last of what was seen a task was heard to have ended, the first one; 0 if none was.
fn ended_ago(evidence: &Evidence) -> u64 {
    let is_end = |entry: &&Entry| matches!(&entry.what, What::Event(event) if matches!(event.event, Happened::Done { .. }));
    let first = evidence.entries.iter().filter(is_end);
    let first = first.map(|entry| entry.at_ms).min();
    let last = evidence.entries.iter().map(|entry| entry.at_ms).max();
    match (first, last) {
        (Some(first), Some(last)) => last - first,
        _ => 0,
    }
}

/// Drafts that there may be, of so many lives of which so many were ended by force.
fn most_drafts(lives: u64, killed: u64) -> u64 {
    killed * DRAFTS + lives.saturating_sub(killed) * UNDER_WAY
}

fn uses_the_store(instance: &str) -> bool {
    !instance.starts_with("auth")
}

/// How often a process that uses the store was started.
fn lives(evidence: &Evidence) -> u64 {
    let first = INSTANCES.iter().filter(|name| uses_the_store(name));
    let first = first.count() as u64;
    let again = evidence.entries.iter().filter(|entry| match &entry.what {
        What::Strike {
            begins: true,
            of: Fault::Kill { instance } | Fault::Terminate { instance },
            ..
        }
        | What::Ended { instance, .. } => uses_the_store(instance),
        _ => false,
    });
    first + again.count() as u64
}

/// How many of these lives ended without a chance to put things away.
fn killed(evidence: &Evidence) -> u64 {
    let killed = evidence.entries.iter().filter(|entry| match &entry.what {
        What::Strike {
            begins: true,
            of: Fault::Kill { instance },
            ..
        }
        | What::Ended { instance, .. } => uses_the_store(instance),
        _ => false,
    });
    killed.count() as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checker::sample::*;

    fn with(left: Left) -> Evidence {
        Evidence {
            left: Some(left),
            ..good()
        }
    }

    #[test]
    fn more_than_each_life_of_a_process_can_have_left_is_found() {
        let first = lives(&good());
        assert_eq!(first, 9);
        let probes = |probes| Left {
            probes,
            ..Left::default()
        };
        assert_eq!(super::super::check(&with(probes(first))).violations, []);
        assert_eq!(violated(&with(probes(first + 1))), LEFT);
        let kill = |instance: &str| Fault::Kill {
            instance: instance.to_owned(),
        };
        for (instance, found) in [("gpu-worker-1", false), ("auth-1", true)] {
            let mut evidence = with(probes(first + 1));
            let what = strike(1, true, kill(instance));
            evidence.entries.push(entry(80, "harness", what));
            assert_eq!(!super::super::check(&evidence).violations.is_empty(), found);
        }
    }

    #[test]
    fn drafts_of_who_was_killed_may_be_many_and_of_who_was_not_few() {
        let first = lives(&good());
        let drafts = |drafts| {
            with(Left {
                drafts,
                ..Left::default()
            })
        };
        let few = first * UNDER_WAY;
        assert_eq!(super::super::check(&drafts(few)).violations, []);
        assert_eq!(violated(&drafts(few + 1)), LEFT);
        let instance = || "gpu-worker-1".to_owned();
        let (kill, terminate) = (
            Fault::Kill {
                instance: instance(),
            },
            Fault::Terminate {
                instance: instance(),
            },
        );
        for (fault, more) in [(terminate, UNDER_WAY), (kill, DRAFTS)] {
            for (beyond, found) in [(0, false), (1, true)] {
                let mut evidence = drafts(few + more + beyond);
                let what = strike(1, true, fault.clone());
                evidence.entries.push(entry(80, "harness", what));
                let verdict = super::super::check(&evidence);
                assert_eq!(!verdict.violations.is_empty(), found, "{fault:?}");
            }
        }
    }

    #[test]
    fn a_checkpoint_of_a_task_that_ended_in_peace_is_found_and_of_another_may_be_there() {
        let mut evidence = with(Left {
            checkpoints: [TASK.to_owned()].into(),
            ..Left::default()
        });
        assert_eq!(super::super::check(&evidence).violations, []);
        evidence.calm = Some(Calm {
            tenant: TENANT.to_owned(),
            before: 0,
        });
        assert_eq!(violated(&evidence), LEFT);
    }

    #[test]
    fn an_audit_chain_that_is_broken_is_found() {
        let evidence = with(Left {
            broken: Some("records are missing".to_owned()),
            ..Left::default()
        });
        assert_eq!(violated(&evidence), CHAIN);
    }

    #[test]
    fn no_audit_at_all_is_found_once_there_should_long_have_been_one() {
        let within = good().rules.audit_within_ms;
        for (records, later, found) in [(0, 0, false), (0, 1, true), (1, 1, false)] {
            let mut evidence = with(Left {
                records,
                ..Left::default()
            });
            // The task was heard to end at 60.
            let seen = seen(TASK, "succeeded", &["cat"]);
            let last = entry(60 + within + later, "client", seen);
            evidence.entries.push(last);
            let verdict = super::super::check(&evidence);
            assert_eq!(!verdict.violations.is_empty(), found, "{records} {later}");
        }
    }
}
