//! Submissions that cannot be read, and so can never run.

use std::time::SystemTime;

use contract::ErrorCode;
use contract::task::{DeadLetter, Done, Failed, done};
use task_log::{TaskLog, TaskLogError, TaskRef};

/// Keeps a copy of such a submission, and ends its task, so that none is open that nobody carries out. True when both are stored; else it is
/// tried again.
pub(super) async fn give_up(log: &TaskLog, letter: &DeadLetter) -> bool {
    match bury_and_end(log, letter).await {
        Ok(()) => true,
        Err(error) => {
            let (subject, error) = (&letter.subject, lifecycle::chain(&error));
            tracing::warn!(subject, error, "not given up so far; again soon");
            false
        }
    }
}

async fn bury_and_end(log: &TaskLog, letter: &DeadLetter) -> Result<(), TaskLogError> {
    log.bury(letter).await?;
    let DeadLetter {
        tenant,
        lane,
        task_id,
        code,
        reason,
        ..
    } = letter;
    let Ok(task) = TaskRef::parse(tenant, lane, task_id) else {
        // Written by something else than an orchestrator: nobody can ask for it.
        let subject = &letter.subject;
        tracing::error!(subject, "it is no task's: the copy in DEAD is all there is");
        return Ok(());
    };
    let failed = Failed {
        code: code.clone(),
        message: reason.clone(),
    };
    let done = Done {
        at: letter.at,
        outcome: Some(done::Outcome::Failed(failed)),
        ..Done::default()
    };
    log.end(&task, &done).await.map(drop)
}

/// What is kept of it. `at` is the broker's time, as of all that ends a task.
pub(super) fn letter(subject: &str, payload: &[u8], at: SystemTime) -> DeadLetter {
    // inkstone.task.<tenant>.<lane>.<task>.submitted
    let mut tokens = subject.split('.').skip(2);
    let mut token = || tokens.next().unwrap_or("unknown").to_owned();
    DeadLetter {
        tenant: token(),
        lane: token(),
        task_id: token(),
        code: ErrorCode::Internal.to_string(),
        reason: "the submission cannot be decoded".to_owned(),
        at: Some(at.into()),
        subject: subject.to_owned(),
        payload: payload.to_vec(),
        ..DeadLetter::default()
    }
}
