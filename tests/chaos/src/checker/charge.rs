//! Nobody is charged for a task that does not exist, and for none twice.
//!
//! A task is charged when it is accepted, and one that is cancelled is given back (ADR 22); an orchestrator that is killed leaves what it had
//! set aside, or was about to give back, as used. So what was charged lies between what the tasks that were not cancelled asked for and that
//! and what the kills left.

use std::collections::{BTreeMap, BTreeSet};

use super::{Disturbed, Evidence, Log, Verdict, heard_by_task};
use crate::history::{Happened, What};

const CHARGED: &str =
    "tenants are charged for what was accepted, once, and not for what was cancelled";
/// An orchestrator writes what it has to give back within this time.
const GIVEN_BACK_MS: u64 = 15_000;

pub(super) fn check(evidence: &Evidence, log: &Log, verdict: &mut Verdict) {
    let given_back = given_back(evidence);
    let (mut asked, mut least) = (BTreeMap::new(), BTreeMap::new());
    for (id, task) in &log.tasks {
        let Some(Happened::Submitted { images, .. }) = task.submitted.map(|s| &s.event.event)
        else {
            continue;
        };
        let images = u64::from(*images);
        let cancelled = |event: &Happened| matches!(event, Happened::Done { outcome, .. } if outcome == "cancelled");
        if task.done.is_some_and(|done| cancelled(&done.event.event)) {
            verdict.count("pictures cancelled", images);
            if given_back.contains(id) {
                continue;
            }
            // Whoever was to give it back was killed, perhaps before that was written.
            *asked.entry(task.tenant).or_insert(0) += images;
            continue;
        }
        *asked.entry(task.tenant).or_insert(0) += images;
        *least.entry(task.tenant).or_insert(0) += images;
    }
    let left = interruptions(evidence) * evidence.rules.left_by_a_kill;
    for (tenant, charged) in &evidence.charged {
        let asked = asked.get(tenant.as_str()).copied().unwrap_or(0);
        verdict.count("pictures charged", *charged);
        if *charged > asked + left {
            let text = format!("{tenant} asked for {asked} and was charged {charged}");
            verdict.violated(CHARGED, text);
        }
    }
    // A submission whose answer from the broker was lost may be there uncharged (ADR 22).
    let doubtful = evidence.entries.iter().filter(|entry| {
        let unknown = |status: u16| status >= 500;
        match &entry.what {
            What::Unanswered { .. } => true,
            What::Refused { status, .. } => unknown(*status),
            _ => false,
        }
    });
    let doubtful = doubtful.count() as u64;
    for (tenant, asked) in least {
        let charged = evidence.charged.get(tenant).copied().unwrap_or(0);
        if charged + doubtful < asked {
            let text = format!("{tenant} asked for {asked} and was charged {charged} only");
            verdict.violated(CHARGED, text);
        }
    }
}

/// The cancelled tasks that are given back for sure: no orchestrator and no broker was disturbed when they were cancelled or soon after.
fn given_back(evidence: &Evidence) -> BTreeSet<&str> {
    let disturbed = Disturbed::of(evidence, 0, |fault| {
        let of_orchestrator = |name: &str| name.starts_with("orchestrator");
        fault.of_broker() || fault.instance().is_some_and(of_orchestrator)
    });
    let mut given_back = BTreeSet::new();
    for ((_, task), entries) in heard_by_task(evidence) {
        let end = entries.iter().find(|entry| match &entry.what {
            What::Event(event) => matches!(event.event, Happened::Done { .. }),
            _ => false,
        });
        if let Some(end) = end
            && !disturbed.within(
                end.at_ms.saturating_sub(GIVEN_BACK_MS),
                end.at_ms + GIVEN_BACK_MS,
            )
        {
            given_back.insert(task);
        }
    }
    given_back
}

/// Times that an orchestrator may have left something set aside: when it was disturbed, and when the broker was, which may have
/// stored what it did not confirm.
fn interruptions(evidence: &Evidence) -> u64 {
    let of_orchestrator = |instance: &str| instance.starts_with("orchestrator");
    let counts = |entry: &&crate::history::Entry| match &entry.what {
        What::Strike {
            begins: true, of, ..
        } => of.of_broker() || of.instance().is_some_and(of_orchestrator),
        What::Ended { instance, .. } => of_orchestrator(instance),
        _ => false,
    };
    // One set of what is set aside for each of the two, beside what they were stopped with.
    2 + 2 * evidence.entries.iter().filter(counts).count() as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checker::sample::*;
    use crate::plan::Fault;

    #[test]
    fn a_tenant_that_is_charged_too_much_is_found() {
        let mut evidence = good();
        evidence.charged.insert(TENANT.to_owned(), 1 + 2 * 10);
        assert_eq!(super::super::check(&evidence).violations, []);
        evidence.charged.insert(TENANT.to_owned(), 1 + 2 * 10 + 1);
        assert_eq!(violated(&evidence), CHARGED);
        // A kill explains it.
        let of = Fault::Kill {
            instance: "orchestrator-1".to_owned(),
        };
        evidence
            .entries
            .push(entry(80, "harness", strike(0, true, of)));
        assert_eq!(super::super::check(&evidence).violations, []);
    }

    #[test]
    fn a_tenant_that_is_not_charged_is_found_unless_an_answer_was_lost() {
        let mut evidence = good();
        evidence.charged.clear();
        assert_eq!(violated(&evidence), CHARGED);
        let why = "connection reset".to_owned();
        evidence
            .entries
            .push(entry(80, "client", What::Unanswered { why }));
        assert_eq!(super::super::check(&evidence).violations, []);
    }
}
