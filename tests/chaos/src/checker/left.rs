//! Nothing is left in the object store but what whoever was ended left there, and the audit chain is whole.
//!
//! A process asks whether the store is well with one object of its own, the same each time: each life of a process leaves one at most. Files
//! that were to become objects are left by who is killed when a group of them is written. Checkpoints may be left of tasks whose worker died, or whose
//! store was away, when they ended; of those that ended in peace there is none.

use super::{Calm, Evidence, Left, Log, Verdict};
use crate::history::What;
use crate::plan::{Fault, INSTANCES};

const LEFT: &str = "no more is left in the object store than those who were ended can have left";
const CHAIN: &str = "the audit chain is whole";
/// Files that a process writes at once: four groups of 32.
const DRAFTS: u64 = 4 * 32;

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
    if drafts > lives * DRAFTS {
        verdict.violated(
            LEFT,
            format!("{drafts} drafts of {lives} lives of processes"),
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
}

/// How often a process that uses the store was started.
fn lives(evidence: &Evidence) -> u64 {
    let uses_it = |instance: &str| !instance.starts_with("auth");
    let first = INSTANCES.iter().filter(|name| uses_it(name)).count() as u64;
    let again = evidence.entries.iter().filter(|entry| match &entry.what {
        What::Strike {
            begins: true,
            of: Fault::Kill { instance } | Fault::Terminate { instance },
            ..
        }
        | What::Ended { instance, .. } => uses_it(instance),
        _ => false,
    });
    first + again.count() as u64
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
        let drafts = Left {
            drafts: first * DRAFTS + 1,
            ..Left::default()
        };
        assert_eq!(violated(&with(drafts)), LEFT);
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
}
