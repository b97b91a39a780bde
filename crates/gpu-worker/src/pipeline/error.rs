//! What can go wrong on the way, and what follows from it.

use std::time::Duration;

use contract::ErrorCode;
use diffusion::StepError;
use imaging::EncodeError;
use storage::StorageError;

use crate::engine::{EngineError, Hung};
use crate::retry::Stopped;

/// Why a task did not get through the pipeline.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NodeError {
    /// The request asks for what no model could do. Admission should have caught it.
    #[error("{field} {problem}")]
    Request {
        /// The field of `SubmitTask`.
        field: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// The engine could not draw a picture.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// A picture could not be made into a file.
    #[error("picture {index} cannot be encoded")]
    Encode {
        /// Which one.
        index: usize,
        /// Why not.
        #[source]
        source: EncodeError,
    },
    /// The picture to begin from cannot be read.
    #[error("the picture to begin from cannot be read")]
    Source(#[source] StorageError),
    /// The store gave no picture to begin from for as long as a task waits for that.
    #[error("the object store gave no picture to begin from within {patience:?}")]
    SourceAway {
        /// How long that is.
        patience: Duration,
    },
    /// Work off the runtime's threads, or too short to be done there, ended by a panic.
    #[error("{doing} failed")]
    OffRuntime {
        /// What it was.
        doing: &'static str,
        /// The panic.
        #[source]
        source: tokio::task::JoinError,
    },
    /// A thread of the engine does not come back.
    #[error(transparent)]
    Hung(Hung),
    /// A thread of the engine does not come back, from something that this task has no part in.
    #[error("the worker ends, because of another task: {0}")]
    HungWithAnother(Hung),
    /// It was drawn for as long as it may be.
    #[error("it was not drawn within {limit:?}")]
    TimedOut {
        /// How long that is.
        limit: Duration,
    },
    /// The store took no picture for as long as a task waits for that.
    #[error("the object store took no picture within {patience:?}")]
    StoreAway {
        /// How long that is.
        patience: Duration,
    },
    /// Another worker's state stands in the log: this one was taken for dead.
    #[error("another worker has the task by now")]
    TakenOver,
    /// The worker was asked to stop.
    #[error(transparent)]
    Stopped(#[from] Stopped),
}

/// What becomes of the task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It has failed for good, and this is how: to try again would end the same.
    Fail(ErrorCode),
    /// It is tried again after a rest, as often as allowed.
    Retry,
    /// It goes to another worker now, and no attempt is counted.
    HandBack,
    /// It goes to another worker, if there is one, after a rest, and no attempt is counted.
    LeaveToAnother,
}

impl NodeError {
    /// What follows from it.
    pub(crate) fn verdict(&self) -> Verdict {
        match self {
            Self::Request { .. } => Verdict::Fail(ErrorCode::InvalidArgument),
            Self::Engine(error) => engine_verdict(error),
            // Encoding is a function of its input: the size or the format is at fault.
            Self::Encode { .. } => Verdict::Fail(ErrorCode::EngineFailed),
            Self::OffRuntime { .. } | Self::Source(_) => Verdict::Retry,
            Self::Hung(_) | Self::TimedOut { .. } => Verdict::Retry,
            Self::StoreAway { .. } | Self::SourceAway { .. } => Verdict::LeaveToAnother,
            // Of one that was taken over there is nothing to hand back; no fault of the task's either.
            Self::Stopped(Stopped) | Self::HungWithAnother(_) | Self::TakenOver => {
                Verdict::HandBack
            }
        }
    }
}

fn engine_verdict(error: &EngineError) -> Verdict {
    match error {
        EngineError::Refused(_) => Verdict::Fail(ErrorCode::InvalidArgument),
        // Whoever takes it up next is most likely such a worker as this, and the caller can ask for less.
        EngineError::DoesNotFit(_) => Verdict::Fail(ErrorCode::PictureTooLarge),
        // The same seed would give the same numbers again.
        EngineError::Step(StepError::NotFinite { .. }) => Verdict::Fail(ErrorCode::EngineFailed),
        EngineError::Begin(_)
        | EngineError::Resume(_)
        | EngineError::Step(StepError::Finished | StepError::Compute { .. })
        | EngineError::Decode(_)
        | EngineError::Panicked { .. }
        | EngineError::Gone => Verdict::Retry,
        EngineError::GoneWithOthers => Verdict::HandBack,
    }
}

#[cfg(test)]
mod tests {
    use diffusion::BeginError;

    use super::*;
    use crate::engine::DoesNotFit;

    fn parameter() -> BeginError {
        BeginError::Parameter {
            field: "width",
            value: "100".to_owned(),
            reason: "expected a multiple of 32".to_owned(),
        }
    }

    #[test]
    fn what_the_caller_got_wrong_fails_at_once() {
        let error = NodeError::from(EngineError::Refused(parameter()));
        assert_eq!(error.verdict(), Verdict::Fail(ErrorCode::InvalidArgument));
        let text = lifecycle::chain(&error);
        assert_eq!(text, "width is 100: expected a multiple of 32");
    }

    #[test]
    fn what_does_not_fit_fails_at_once_with_the_numbers() {
        let refused = DoesNotFit {
            needs: 812 << 20,
            weights: 2 << 30,
            room: 5 << 29,
        };
        let error = NodeError::from(EngineError::DoesNotFit(refused));
        assert_eq!(error.verdict(), Verdict::Fail(ErrorCode::PictureTooLarge));
        let text = lifecycle::chain(&error);
        assert!(
            text.contains("needs 812.0 MiB beside 2.0 GiB of weights"),
            "{text}"
        );
    }

    #[test]
    fn numbers_that_are_not_finite_fail_at_once() {
        let error = NodeError::from(EngineError::Step(StepError::NotFinite { step: 3 }));
        assert_eq!(error.verdict(), Verdict::Fail(ErrorCode::EngineFailed));
    }

    #[test]
    fn a_fault_of_ours_is_tried_again() {
        let panicked = EngineError::Panicked {
            doing: "stepping",
            message: "oh".to_owned(),
        };
        for error in [
            panicked,
            EngineError::Gone,
            EngineError::Step(StepError::Finished),
        ] {
            assert_eq!(NodeError::from(error).verdict(), Verdict::Retry);
        }
    }

    #[test]
    fn a_stop_is_nobodys_fault() {
        assert_eq!(NodeError::from(Stopped).verdict(), Verdict::HandBack);
        let gone = NodeError::from(EngineError::GoneWithOthers);
        assert_eq!(gone.verdict(), Verdict::HandBack);
    }

    #[test]
    fn a_step_that_hangs_counts_for_those_that_are_in_it_and_for_nobody_else() {
        let hung = Hung {
            thread: "engine",
            doing: "a step",
            limit: Duration::from_secs(1),
            pictures: [7].into(),
        };
        assert_eq!(NodeError::Hung(hung.clone()).verdict(), Verdict::Retry);
        let anothers = NodeError::HungWithAnother(hung);
        assert_eq!(anothers.verdict(), Verdict::HandBack);
    }

    #[test]
    fn a_store_that_is_away_costs_no_attempt() {
        let patience = Duration::from_secs(60);
        for error in [
            NodeError::StoreAway { patience },
            NodeError::SourceAway { patience },
        ] {
            assert_eq!(error.verdict(), Verdict::LeaveToAnother);
        }
    }
}
