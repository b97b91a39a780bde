//! Where a task ran: pure changes of the runs that its state holds.

use contract::task::State;
use contract::v1::Run;

/// Runs that a state holds; the oldest go first.
const RUNS: usize = 16;
/// How a run was over that its worker did not outlive.
const LOST: &str = "lost";
/// Characters of a reason.
const REASON: usize = 256;

/// How a run was over, by the words of `Run.end`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Over {
    /// The worker stops.
    HandedBack,
    /// It is tried again.
    Failed,
}

/// A worker takes the task up. A run before it that is not over was lost.
pub(super) fn begin(state: &mut State, worker: &str, device: &str, model_version: &str) {
    let step = step(state);
    if let Some(last) = state.runs.last_mut().filter(|last| last.end.is_empty()) {
        last.end = LOST.to_owned();
        last.to_step = step;
        last.ended_at = state.at;
    }
    state.runs.push(Run {
        attempt: state.attempt,
        worker: worker.to_owned(),
        device: device.to_owned(),
        model_version: model_version.to_owned(),
        from_step: step,
        started_at: state.at,
        ..Run::default()
    });
    let many = state.runs.len().saturating_sub(RUNS);
    state.runs.drain(..many);
}

/// Runs that ended with their workers, of a task that nobody is at: one that is not over is among them.
pub(super) fn lost(state: &State) -> u32 {
    let lost = |run: &&Run| run.end.is_empty() || run.end == LOST;
    let lost = state.runs.iter().filter(lost).count();
    u32::try_from(lost).unwrap_or(u32::MAX)
}

/// The run that goes on is over at the state's time, and its task is not.
pub(super) fn end(state: &mut State, over: Over, reason: &str) {
    let (at, step) = (state.at, step(state));
    if let Some(last) = state.runs.last_mut() {
        let word = match over {
            Over::HandedBack => "handed_back",
            Over::Failed => "failed",
        };
        last.end = word.to_owned();
        last.ended_at = at;
        last.to_step = step;
        last.reason = reason.chars().take(REASON).collect();
    }
}

/// Steps that are put away.
fn step(state: &State) -> u32 {
    state
        .checkpoint
        .as_ref()
        .map_or(0, |checkpoint| checkpoint.step)
}

#[cfg(test)]
mod tests {
    use contract::task::Checkpoint;
    use proptest::prelude::*;

    use super::*;

    fn put_away(step: u32) -> Option<Checkpoint> {
        Some(Checkpoint {
            step,
            ..Checkpoint::default()
        })
    }

    #[test]
    fn runs_say_who_had_the_task_from_which_step_to_which() {
        let mut state = State {
            attempt: 1,
            ..State::default()
        };
        begin(&mut state, "a", "cpu", "1");
        state.checkpoint = put_away(8);
        end(&mut state, Over::Failed, "the device is gone");
        state.attempt = 2;
        begin(&mut state, "b", "cuda:0", "1");
        state.checkpoint = put_away(20);
        state.attempt = 3;
        begin(&mut state, "c", "cpu", "1");
        let runs: Vec<_> = state.runs.iter().collect();
        let told = |run: &Run| {
            let end = run.end.clone();
            (run.worker.clone(), run.from_step, run.to_step, end)
        };
        let word = str::to_owned;
        assert_eq!(told(runs[0]), (word("a"), 0, 8, word("failed")));
        assert_eq!(runs[0].reason, "the device is gone");
        assert_eq!(told(runs[1]), (word("b"), 8, 20, word("lost")));
        assert_eq!(told(runs[2]), (word("c"), 20, 0, word("")));
    }

    #[test]
    fn of_the_runs_before_those_are_lost_that_their_workers_did_not_outlive() {
        let mut state = State::default();
        assert_eq!(lost(&state), 0);
        let ends = [None, Some(Over::Failed), Some(Over::HandedBack), None];
        let counts = ends.map(|over| {
            begin(&mut state, "w", "cpu", "1");
            if let Some(over) = over {
                end(&mut state, over, "");
            }
            lost(&state)
        });
        assert_eq!(counts, [1, 1, 1, 2]);
    }

    proptest! {
        #[test]
        fn a_state_holds_the_last_runs_and_only_the_last_goes_on(
            ends in prop::collection::vec(prop::option::of(any::<bool>()), 0..60),
        ) {
            let mut state = State::default();
            for (number, over) in (1..).zip(&ends) {
                state.attempt = number;
                begin(&mut state, "w", "cpu", "1");
                match over {
                    Some(true) => end(&mut state, Over::Failed, &"x".repeat(1000)),
                    Some(false) => end(&mut state, Over::HandedBack, ""),
                    None => {}
                }
                prop_assert!(state.runs.len() <= RUNS);
                prop_assert_eq!(state.runs.last().unwrap().attempt, number);
                let open = state.runs.iter().rev().skip(1).filter(|run| run.end.is_empty());
                prop_assert_eq!(open.count(), 0);
                prop_assert!(state.runs.iter().all(|run| run.reason.len() <= REASON));
            }
        }
    }
}
