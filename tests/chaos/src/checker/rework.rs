//! A worker that dies, or hands back because it is asked to end, costs at most the steps since the last checkpoint (invariant I5).
//!
//! Progress may be lost and tells no more often than ten times a second, and nothing of a run's first tenth, so what is found is a little less than
//! what was drawn again.
//! What is bounded is time, as the setting bounds it: from the first step behind the checkpoint to the last that was heard of. How often more
//! than that was at stake is a figure: a run in which it never was would not have noticed that checkpoints are missing.

use super::{Disturbed, Evidence, Rules, Verdict, heard_by_task};
use crate::history::{Happened, What};
use crate::plan::Fault;

const REWORK: &str = "a dead worker costs at most the steps since the last checkpoint";

/// What one listener knows of a task's runs.
#[derive(Default)]
struct Known<'a> {
    /// The attempts that the last one counts; 0 where none was heard.
    attempts: u32,
    /// Whose it was: a process, whatever its worker's name, where that is told, else a name.
    process: &'a str,
    /// It waits for a worker again.
    rests: bool,
    /// Steps of this run: when each was first heard of.
    told: Vec<(u64, u32)>,
}

impl<'a> Known<'a> {
    /// Whether a state that a worker has is that of another run than the last one that was heard. Of one that was handed back the attempt does not
    /// count: then the state in between tells, or that it is another process.
    fn is_another(&self, attempt: u32, process: &str) -> bool {
        self.attempts > 0 && (attempt > self.attempts || self.rests || process != self.process)
    }

    fn runs(&mut self, attempts: u32, process: &'a str) {
        (self.attempts, self.process, self.rests) = (attempts, process, false);
    }
}

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
    // A server of the broker that was cut off, or stood still, tells later what it had told its neighbours to be told: old states after newer ones.
    let held_back = Disturbed::by_plan(evidence, rules.settle_ms, |fault| {
        matches!(
            fault,
            Fault::Partition { silent: true, .. } | Fault::StopNode { .. }
        )
    });
    for ((_, task), entries) in heard_by_task(evidence) {
        let mut known = Known::default();
        for entry in entries {
            if held_back.within(entry.at_ms, entry.at_ms) {
                // From here on as if nothing had been heard of it.
                known = Known::default();
                continue;
            }
            let event = match &entry.what {
                What::Progress { step, .. } => {
                    if known.told.last().is_none_or(|last| last.1 < *step) {
                        known.told.push((entry.at_ms, *step));
                    }
                    continue;
                }
                What::Event(event) => &event.event,
                _ => continue,
            };
            match event {
                Happened::State {
                    running: true,
                    attempt,
                    worker,
                    incarnation,
                    checkpoint,
                } => {
                    let process = match incarnation.as_str() {
                        "" => worker.as_str(),
                        incarnation => incarnation,
                    };
                    if known.is_another(*attempt, process) {
                        let from = checkpoint.unwrap_or(0);
                        let handed_back = *attempt == known.attempts;
                        let told = std::mem::take(&mut known.told);
                        verdict.count("times taken up again", 1);
                        verdict.count("times taken up again, handed back", u64::from(handed_back));
                        judge(rules, &disturbed, task, &told, from, verdict);
                    }
                    known.runs(*attempt, process);
                }
                Happened::State { running: false, .. } => known.rests = known.attempts > 0,
                _ => {}
            }
        }
    }
}

/// One that is taken up again `from` a step. What was handed back is put away once more before, if that can be; so it costs no more than what a
/// kill at the same moment would have.
fn judge(
    rules: &Rules,
    disturbed: &Disturbed,
    task: &str,
    told: &[(u64, u32)],
    from: u32,
    verdict: &mut Verdict,
) {
    let again = told.iter().filter(|(_, step)| *step > from);
    let (first, last) = (again.clone().next(), again.clone().next_back());
    let (Some(first), Some(last)) = (first, last) else {
        return;
    };
    let bound = rules.checkpoint_every_ms + rules.checkpoint_margin_ms;
    let took = last.0 - first.0;
    verdict.count("steps drawn again", u64::from(last.1 - from));
    if disturbed.within(first.0, last.0) {
        return;
    }
    verdict.count("times that were judged", 1);
    verdict.most("most drawn again, ms", took);
    let drawn = last.0 - told.first().map_or(first.0, |t| t.0);
    verdict.most("most that checkpoints could have lost, ms", drawn);
    let telling = u64::from(drawn > bound);
    verdict.count("times a missing checkpoint would show", telling);
    if took > bound {
        let text = format!("{task}: {took} ms from step {from} on");
        verdict.violated(REWORK, text);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checker::sample::*;

    fn with(lost: u64) -> Evidence {
        with_next(lost, vec![state(true, 2, Some(5))])
    }

    /// One that is taken up again after so long without a checkpoint.
    fn with_next(lost: u64, next: Vec<Happened>) -> Evidence {
        let mut evidence = good();
        let last = evidence.entries.split_off(4);
        evidence.entries.extend([
            progress(100, 5),
            heard(110, state(true, 1, Some(5))),
            progress(200, 6),
            progress(200 + lost, 9),
        ]);
        let next = next.into_iter().map(|state| heard(20_000, state));
        evidence.entries.extend(next);
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
    fn more_drawn_again_of_what_was_handed_back_is_found_whoever_takes_it_up() {
        let by = |worker: &str, incarnation: &str| Happened::State {
            running: true,
            attempt: 1,
            worker: worker.to_owned(),
            incarnation: incarnation.to_owned(),
            checkpoint: Some(5),
        };
        let other = || by("another", "another-1");
        // That it rests may not have been heard.
        for next in [
            vec![state(false, 0, Some(5)), state(true, 1, Some(5))],
            vec![state(false, 0, Some(5)), other()],
            vec![other()],
            // Its own worker, started again, and one that an earlier version is.
            vec![by("w", "w-2")],
            vec![by("another", "")],
        ] {
            let good = super::super::check(&with_next(1_400, next.clone()));
            assert_eq!(good.violations, []);
            assert_eq!(good.figures["times taken up again, handed back"], 1);
            assert_eq!(violated(&with_next(1_600, next)), REWORK);
        }
        // It goes on where it was put away when its worker was asked to end.
        let kept = vec![state(false, 0, Some(9)), state(true, 1, Some(9))];
        let verdict = super::super::check(&with_next(5_000, kept));
        assert_eq!(verdict.violations, []);
        assert!(!verdict.figures.contains_key("steps drawn again"));
    }

    #[test]
    fn a_run_that_puts_itself_away_is_no_other_run() {
        let verdict = super::super::check(&with_next(5_000, vec![state(true, 1, Some(9))]));
        assert_eq!(verdict.violations, []);
        assert!(!verdict.figures.contains_key("times taken up again"));
    }

    #[test]
    fn an_old_state_that_a_broker_held_back_is_not_taken_for_another_run() {
        let old = || vec![state(false, 0, Some(5)), state(true, 1, Some(5))];
        assert_eq!(violated(&with_next(5_000, old())), REWORK);
        let mut evidence = with_next(5_000, old());
        let of = Fault::StopNode { node: 1 };
        for (at, begins) in [(18_000, true), (19_000, false)] {
            let what = strike(1, begins, of.clone());
            evidence.entries.push(entry(at, "harness", what));
        }
        evidence.entries.sort_by_key(|entry| entry.at_ms);
        assert_eq!(super::super::check(&evidence).violations, []);
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
