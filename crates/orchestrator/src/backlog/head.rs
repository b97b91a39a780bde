//! The next task of a queue, as it is kept in memory until it is handed over. Pure.

use std::time::Duration;

use contract::task::Submitted;
use task_log::{TaskLogError, TaskRef, deadline};

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
            trace: trace.map(Into::into),
            submitted: Vec::new(),
        })
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
            trace: None,
            submitted: Vec::new(),
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
