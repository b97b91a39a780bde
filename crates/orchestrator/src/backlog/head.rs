//! The next task of a queue, as it is kept in memory until it is handed over. Pure.

use std::time::{Duration, SystemTime};

use contract::task::{Done, Submitted};
use task_log::deadline::{self, Kept};
use task_log::{TaskLogError, TaskRef};

use crate::cost::Size;
use crate::schedule::Version;

/// A submission of more bytes is not kept with its head: the worker reads it. Prompts of some hundred words fit.
const KEPT_BYTES: usize = 4096;

/// The next task of a queue.
#[derive(Debug, Clone)]
pub(crate) struct Waiting {
    /// Where its submission is in TASKS.
    pub(crate) sequence: u64,
    pub(crate) task: TaskRef,
    pub(crate) version: Version,
    /// Tasks of its tenant that workers may have at once.
    pub(crate) limit: Option<usize>,
    /// What it will take of a device, in units of work …
    pub(crate) cost: u64,
    /// … and what that goes by, so that it can be told anew.
    pub(crate) size: Option<Size>,
    /// Since the UNIX epoch.
    pub(crate) submitted_at: Duration,
    /// When it is of no use any more, since the UNIX epoch.
    pub(crate) deadline: Option<Duration>,
    /// When it has waited for as long as the log lets it, since the UNIX epoch.
    pub(crate) longest: Option<Duration>,
    /// The trace of who submitted it.
    pub(crate) trace: Option<Box<str>>,
    /// Its submission as the log has it, for its dispatch; empty where it is not kept.
    pub(crate) submitted: Vec<u8>,
}

impl Waiting {
    pub(crate) fn of(
        submitted: &Submitted,
        sequence: u64,
        cost: u64,
        trace: Option<&str>,
        kept: Kept,
    ) -> Result<Self, TaskLogError> {
        let limit = usize::try_from(submitted.tasks_running).unwrap_or(usize::MAX);
        Ok(Self {
            sequence,
            task: TaskRef::of(submitted)?,
            version: (submitted.model.clone(), submitted.model_version.clone()),
            limit: Some(limit).filter(|limit| *limit > 0),
            cost,
            size: submitted.request.as_ref().map(Size::of),
            submitted_at: deadline::submitted_at(submitted),
            deadline: deadline::deadline(submitted),
            longest: kept.begin_by(submitted),
            trace: trace.map(Into::into),
            submitted: Vec::new(),
        })
    }

    /// By when it must have begun, whoever says so, since the UNIX epoch.
    pub(crate) fn begin_by(&self) -> Option<Duration> {
        let both = [self.deadline, self.longest];
        both.into_iter().flatten().min()
    }

    /// Its end, written `at`, if it has not begun by then.
    pub(crate) fn too_late(&self, at: SystemTime) -> Done {
        let by = self.begin_by();
        let within = by.unwrap_or_default().saturating_sub(self.submitted_at);
        match by == self.deadline {
            true => deadline::expired(within, at),
            false => deadline::waited_out(within, at),
        }
    }

    /// Keeps its submission, `payload`, unless that is large.
    pub(crate) fn keep(&mut self, payload: &[u8]) {
        if payload.len() <= KEPT_BYTES {
            // A copy: the broker's bytes would keep all that came with them.
            self.submitted = payload.to_vec();
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use contract::TaskId;
    use contract::task::done;

    use super::*;

    /// A head that lies at `sequence`.
    pub(crate) fn waiting(sequence: u64) -> Waiting {
        let task = TaskRef {
            tenant: "acme".parse().unwrap(),
            lane: "standard-image".parse().unwrap(),
            task: TaskId::random(),
        };
        Waiting {
            sequence,
            task,
            version: ("demo".to_owned(), "1".to_owned()),
            limit: None,
            cost: 1,
            size: None,
            submitted_at: Duration::ZERO,
            deadline: None,
            longest: None,
            trace: None,
            submitted: Vec::new(),
        }
    }

    #[test]
    fn a_head_must_begin_before_its_caller_and_the_log_let_go_of_it() {
        let seconds = Duration::from_secs;
        let head = |deadline: Option<u64>, longest: Option<u64>| Waiting {
            submitted_at: seconds(100),
            deadline: deadline.map(seconds),
            longest: longest.map(seconds),
            ..waiting(1)
        };
        let why = |head: &Waiting| match head.too_late(SystemTime::UNIX_EPOCH).outcome {
            Some(done::Outcome::Failed(failed)) => failed.message,
            other => panic!("{other:?}"),
        };
        assert_eq!(head(None, None).begin_by(), None);
        let callers = head(Some(190), Some(1000));
        assert_eq!(callers.begin_by(), Some(seconds(190)));
        assert!(why(&callers).contains("within 90 s (expires_after_seconds)"));
        for longest in [head(Some(2000), Some(1000)), head(None, Some(1000))] {
            assert_eq!(longest.begin_by(), Some(seconds(1000)));
            assert!(why(&longest).contains("within 900 s, the longest"));
        }
    }

    #[test]
    fn a_head_keeps_a_submission_that_is_not_large() {
        let mut head = waiting(1);
        head.keep(&[1; KEPT_BYTES + 1]);
        assert!(head.submitted.is_empty());
        head.keep(&[1; KEPT_BYTES]);
        assert_eq!(head.submitted.len(), KEPT_BYTES);
    }
}
