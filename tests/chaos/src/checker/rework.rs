//! A worker that dies costs at most the steps since the last checkpoint (invariant I5).
//!
//! Progress may be lost and tells no more often than ten times a second, so what is found is a little less than what was drawn again.
//! What is bounded is time, as the setting bounds it: from the first step behind the checkpoint to the last that was heard of. How often more
//! than that was at stake is a figure: a run in which it never was would not have noticed that checkpoints are missing.

use super::{Disturbed, Evidence, Verdict, heard_by_task};
use crate::history::{Happened, What};
use crate::plan::Fault;

const REWORK: &str = "a dead worker costs at most the steps since the last checkpoint";

pub(super) fn check(evidence: &Evidence, verdict: &mut Verdict) {
    let rules = &evidence.rules;
    // With these, no checkpoint can be stored, or time passes while nothing is drawn. A kill leaves nothing undone that was done.
    let disturbed = Disturbed::of(evidence, rules.checkpoint_margin_ms, |fault| match fault {
        Fault::Kill { .. } | Fault::Terminate { .. } => false,
        Fault::Stop { instance } | Fault::Cut { instance, .. } => {
            instance.starts_with("gpu-worker")
        }
        _ => true,
    });
    let bound = rules.checkpoint_every_ms + rules.checkpoint_margin_ms;
    for ((_, task), entries) in heard_by_task(evidence) {
        let mut attempts = 0;
        // Steps of this attempt: when each was first heard of.
        let mut told: Vec<(u64, u32)> = Vec::new();
        for entry in entries {
            match &entry.what {
                What::Progress { step, .. } if told.last().is_none_or(|last| last.1 < *step) => {
                    told.push((entry.at_ms, *step));
                }
                What::Event(event) => {
                    let Happened::State {
                        running: true,
                        attempt,
                        checkpoint,
                        ..
                    } = event.event
                    else {
                        continue;
                    };
                    if attempt > attempts.max(1) {
                        let from = checkpoint.unwrap_or(0);
                        let again = told.iter().filter(|(_, step)| *step > from);
                        let (first, last) = (again.clone().next(), again.clone().next_back());
                        verdict.count("times taken up again", 1);
                        if let (Some(first), Some(last)) = (first, last) {
                            let took = last.0 - first.0;
                            verdict.count("steps drawn again", u64::from(last.1 - from));
                            let judged = !disturbed.within(first.0, last.0);
                            if judged {
                                verdict.count("times that were judged", 1);
                                verdict.most("most drawn again, ms", took);
                                let drawn = last.0 - told.first().map_or(first.0, |t| t.0);
                                verdict.most("most that checkpoints could have lost, ms", drawn);
                                let telling = u64::from(drawn > bound);
                                verdict.count("times a missing checkpoint would show", telling);
                            }
                            if judged && took > bound {
                                let text = format!("{task}: {took} ms from step {from} on");
                                verdict.violated(REWORK, text);
                            }
                        }
                        told.clear();
                    }
                    attempts = attempt;
                }
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checker::sample::*;

    fn with(lost: u64) -> Evidence {
        let mut evidence = good();
        let last = evidence.entries.split_off(4);
        evidence.entries.extend([
            progress(100, 5),
            heard(110, state(true, 1, Some(5))),
            progress(200, 6),
            progress(200 + lost, 9),
            heard(20_000, state(true, 2, Some(5))),
        ]);
        evidence.entries.extend(last.into_iter().map(|mut entry| {
            entry.at_ms += 30_000;
            entry
        }));
        evidence
    }

    #[test]
    fn more_drawn_again_than_a_checkpoint_allows_is_found() {
        let verdict = super::super::check(&with(1_400));
        assert_eq!(verdict.violations, []);
        assert_eq!(verdict.figures["steps drawn again"], 4);
        let telling = |lost| super::super::check(&with(lost)).figures["times a missing checkpoint would show"];
        assert_eq!((telling(1_300), telling(1_450)), (0, 1));
        assert_eq!(violated(&with(1_600)), REWORK);
    }

    #[test]
    fn what_a_broken_store_costs_is_not_held_against_the_worker() {
        let mut evidence = with(5_000);
        let plan = storage::FaultPlan::default();
        for (at, begins) in [(300, true), (400, false)] {
            let what = strike(1, begins, Fault::Store { plan });
            evidence.entries.insert(7, entry(at, "harness", what));
        }
        evidence.entries.sort_by_key(|entry| entry.at_ms);
        assert_eq!(super::super::check(&evidence).violations, []);
    }
}
