//! Nobody is charged for a task that does not exist, and for none twice.
//!
//! A task is charged when it is accepted, and one that is cancelled, or does not begin in time, is given back (ADR 22); an orchestrator that is killed leaves what it had
//! set aside, or was about to give back, as used. So what was charged lies between what the tasks that were not cancelled asked for and that
//! and what the disturbances left. How much that may be is counted for each disturbance of an orchestrator or of the broker; what was
//! charged in peace, when nothing explains a difference, is judged to the picture.

use std::collections::{BTreeMap, BTreeSet};

use super::{Calm, Disturbed, EXPIRED, Evidence, Log, Verdict, heard_by_task};
use crate::history::{Entry, Happened, TaskEvent, What};
use crate::plan::Fault;

const CHARGED: &str =
    "tenants are charged for what was accepted, once, and not for what was cancelled";
/// An orchestrator writes what it has to give back within this time.
const GIVEN_BACK_MS: u64 = 15_000;
/// Instances that charge.
const ORCHESTRATORS: u64 = 2;

pub(super) fn check(evidence: &Evidence, log: &Log, verdict: &mut Verdict) {
    let given_back = given_back(evidence);
    let (mut asked, mut least) = (BTreeMap::new(), BTreeMap::new());
    // The most that a tenant asked for at once.
    let mut largest = BTreeMap::new();
    for (id, task) in &log.tasks {
        let Some(Happened::Submitted { images, .. }) = task.submitted.map(|s| &s.event.event)
        else {
            continue;
        };
        let images = u64::from(*images);
        let most = largest.entry(task.tenant).or_insert(0);
        *most = images.max(*most);
        if task
            .done
            .is_some_and(|done| is_given_back(&done.event.event))
        {
            verdict.count("pictures cancelled or expired", images);
            if given_back.contains(id) && !evidence.over_midnight {
                continue;
            }
            // Whoever was to give it back was killed, perhaps before that was written.
            *asked.entry(task.tenant).or_insert(0) += images;
            continue;
        }
        *asked.entry(task.tenant).or_insert(0) += images;
        *least.entry(task.tenant).or_insert(0) += images;
    }
    let left = losses(evidence) * evidence.rules.left_by_a_kill;
    verdict.most("most pictures that kills may have left charged", left);
    let mut doubtful: BTreeMap<&str, u64> = BTreeMap::new();
    for entry in evidence.entries.iter().filter(|entry| is_doubtful(entry)) {
        *doubtful.entry(&entry.who).or_default() += 1;
    }
    for (tenant, charged) in &evidence.charged {
        let tenant = tenant.as_str();
        let of = |pictures: &BTreeMap<&str, u64>| pictures.get(tenant).copied().unwrap_or(0);
        let (asked, lost) = (of(&asked), of(&doubtful) * of(&largest));
        verdict.count("pictures charged", *charged);
        if *charged > asked + left + lost {
            let text = format!("{tenant} asked for {asked} and was charged {charged}");
            verdict.violated(CHARGED, text);
        }
    }
    let doubtful: u64 = doubtful.values().sum();
    for (tenant, asked) in least {
        let charged = evidence.charged.get(tenant).copied().unwrap_or(0);
        if charged + doubtful < asked {
            let text = format!("{tenant} asked for {asked} and was charged {charged} only");
            verdict.violated(CHARGED, text);
        }
    }
    in_peace(evidence, log, verdict);
}

/// In peace each picture is charged that was not cancelled, and no other.
fn in_peace(evidence: &Evidence, log: &Log, verdict: &mut Verdict) {
    let Some(Calm { tenant, before }) = &evidence.calm else {
        return;
    };
    let unsure = |entry: &Entry| entry.who == *tenant && is_doubtful(entry);
    if evidence.entries.iter().any(unsure) {
        // One whose answer was lost counts, and is asked for again (ADR 22).
        verdict.count("calm phases that were not judged", 1);
        return;
    }
    let taken_up = taken_up(evidence);
    let mut asked = 0;
    for (id, task) in log.tasks.iter().filter(|(_, task)| task.tenant == tenant) {
        let Some(Happened::Submitted { images, .. }) = task.submitted.map(|s| &s.event.event)
        else {
            continue;
        };
        let images = u64::from(*images);
        if task
            .done
            .is_some_and(|done| is_given_back(&done.event.event))
        {
            let figure = match taken_up.contains(id) {
                true => "pictures cancelled in peace, taken up",
                false => "pictures cancelled in peace, waiting",
            };
            verdict.count(figure, images);
            continue;
        }
        asked += images;
    }
    verdict.count("pictures drawn in peace", asked);
    let charged = evidence.charged.get(tenant).copied().unwrap_or(0);
    if charged != before + asked {
        let text = format!("{tenant} drew {asked}, had {before} before and has {charged} in peace");
        verdict.violated(CHARGED, text);
    }
}

/// Whether a submission may be there and uncharged, or charged and not there: its answer from the broker, or to its caller, was lost (ADR 22).
fn is_doubtful(entry: &Entry) -> bool {
    match &entry.what {
        What::Unanswered { .. } => true,
        What::Refused { status, .. } => *status >= 500,
        _ => false,
    }
}

/// Nothing is charged for a task that was cancelled, or that did not begin in time.
fn is_given_back(event: &Happened) -> bool {
    match event {
        Happened::Done {
            outcome,
            code,
            begun,
            ..
        } => outcome == "cancelled" || (code == EXPIRED && !begun),
        _ => false,
    }
}

/// The tasks that a worker was heard to take up.
fn taken_up(evidence: &Evidence) -> BTreeSet<&str> {
    let heard = evidence
        .entries
        .iter()
        .filter_map(|entry| match &entry.what {
            What::Event(TaskEvent {
                task,
                event: Happened::State { running: true, .. },
                ..
            }) => Some(task.as_str()),
            _ => None,
        });
    heard.collect()
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

/// How often at most what an orchestrator sets aside at once was left charged to a tenant. A kill leaves it once. While an orchestrator or the
/// broker does not answer, each write may be stored and not confirmed, and is asked for again; for one tenant an orchestrator
/// writes once at a time.
fn losses(evidence: &Evidence) -> u64 {
    let of_orchestrator = |instance: &str| instance.starts_with("orchestrator");
    let mut began = BTreeMap::new();
    let mut losses = 0;
    for entry in &evidence.entries {
        match &entry.what {
            What::Ended { instance, .. } if of_orchestrator(instance) => losses += 1,
            What::Strike { number, begins, of } => {
                let writers = match of.instance() {
                    Some(instance) => u64::from(of_orchestrator(instance)),
                    None if of.of_broker() => ORCHESTRATORS,
                    None => 0,
                };
                if matches!(of, Fault::Terminate { .. }) {
                    // It puts everything back.
                } else if matches!(of, Fault::Kill { .. }) {
                    losses += u64::from(*begins) * writers;
                } else if *begins {
                    // The write that was under way, and the one that is under way at the end.
                    losses += 2 * writers;
                    began.insert(*number, entry.at_ms);
                } else if let Some(from) = began.remove(number) {
                    losses += writers * ((entry.at_ms - from) / evidence.rules.write_ms.max(1));
                }
            }
            _ => {}
        }
    }
    losses
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checker::sample::*;

    fn kill(instance: &str) -> Fault {
        let instance = instance.to_owned();
        Fault::Kill { instance }
    }

    #[test]
    fn a_tenant_that_is_charged_too_much_is_found() {
        let mut evidence = good();
        evidence.charged.insert(TENANT.to_owned(), 2);
        assert_eq!(violated(&evidence), CHARGED);
        // Who is killed had not set anything aside, whoever it was.
        for (instance, most) in [("gateway-1", 1), ("orchestrator-1", 1 + 10)] {
            let mut evidence = good();
            let what = strike(0, true, kill(instance));
            evidence.entries.push(entry(80, "harness", what));
            evidence.charged.insert(TENANT.to_owned(), most);
            assert_eq!(super::super::check(&evidence).violations, []);
            evidence.charged.insert(TENANT.to_owned(), most + 1);
            assert_eq!(violated(&evidence), CHARGED);
        }
    }

    #[test]
    fn one_cancelled_task_that_is_charged_above_what_many_kills_leave_is_found() {
        let mut evidence = good();
        with_another(&mut evidence, "task-2", cancelled("task-2"));
        let end = What::Event(event("task-2", cancelled("task-2")));
        evidence.entries.push(entry(90, "listener", end));
        let kills = 5;
        for number in 0..kills {
            // Long after the cancel.
            let at = 60_000 + 10_000 * number as u64;
            for begins in [true, false] {
                let what = strike(number, begins, kill("orchestrator-2"));
                evidence.entries.push(entry(at, "harness", what));
            }
        }
        let most = 1 + 10 * kills as u64;
        evidence.charged.insert(TENANT.to_owned(), most);
        assert_eq!(super::super::check(&evidence).violations, []);
        evidence.charged.insert(TENANT.to_owned(), most + 1);
        assert_eq!(violated(&evidence), CHARGED);
        // On another day it is not given back.
        evidence.over_midnight = true;
        assert_eq!(super::super::check(&evidence).violations, []);
    }

    #[test]
    fn writes_that_a_broker_did_not_confirm_are_left_by_both_orchestrators() {
        let mut evidence = good();
        for (at, begins) in [(1_000, true), (8_000, false)] {
            let what = strike(0, begins, Fault::KillNode { node: 1 });
            evidence.entries.push(entry(at, "harness", what));
        }
        assert_eq!(losses(&evidence), 2 * 2 + 2);
    }

    #[test]
    fn a_task_that_did_not_begin_in_time_and_is_charged_is_found() {
        let mut evidence = good();
        with_another(&mut evidence, "task-2", failed("task-2", EXPIRED));
        if let Happened::Submitted {
            expires_after_s, ..
        } = &mut evidence.log[3].event.event
        {
            *expires_after_s = 5;
        }
        let end = What::Event(event("task-2", failed("task-2", EXPIRED)));
        evidence.entries.push(entry(90, "listener", end));
        assert_eq!(super::super::check(&evidence).violations, []);
        evidence.charged.insert(TENANT.to_owned(), 2);
        assert_eq!(violated(&evidence), CHARGED);
    }

    fn calm() -> Evidence {
        let mut evidence = good();
        evidence.calm = Some(Calm {
            tenant: "calm".to_owned(),
            before: 7,
        });
        evidence.charged.insert("calm".to_owned(), 7 + 1);
        let drawn = evidence.log.len();
        with_another(&mut evidence, "drawn", succeeded(TASK));
        with_another(&mut evidence, "waiting", cancelled("waiting"));
        with_another(&mut evidence, "running", cancelled("running"));
        for logged in &mut evidence.log[drawn..] {
            logged.event.tenant = "calm".to_owned();
        }
        // Many kills before explain nothing of it.
        for number in 0..100 {
            let what = strike(number, true, kill("orchestrator-1"));
            evidence.entries.push(entry(80, "harness", what));
        }
        let running = What::Event(event("running", state(true, 1, None)));
        evidence.entries.push(entry(90, "listener", running));
        evidence
    }

    #[test]
    fn one_cancelled_task_that_is_charged_in_peace_is_found_and_one_that_is_given_back_twice() {
        let verdict = super::super::check(&calm());
        assert_eq!(verdict.violations, []);
        assert_eq!(verdict.figures["pictures cancelled in peace, waiting"], 1);
        assert_eq!(verdict.figures["pictures cancelled in peace, taken up"], 1);
        assert_eq!(verdict.figures["pictures drawn in peace"], 1);
        for wrong in [7, 9] {
            let mut evidence = calm();
            evidence.charged.insert("calm".to_owned(), wrong);
            assert_eq!(violated(&evidence), CHARGED);
        }
    }

    #[test]
    fn a_submission_whose_answer_was_lost_may_be_charged_to_its_tenant() {
        for (who, found) in [(TENANT, false), ("another", true)] {
            let mut evidence = good();
            evidence.charged.insert(TENANT.to_owned(), 2);
            let why = "connection reset".to_owned();
            let what = What::Unanswered { why };
            evidence.entries.push(entry(80, who, what));
            assert_eq!(!super::super::check(&evidence).violations.is_empty(), found);
        }
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
