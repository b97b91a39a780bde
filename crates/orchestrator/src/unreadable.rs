//! Submissions and tasks that cannot be read, and so can never run.

use std::time::SystemTime;

use contract::ErrorCode;
use contract::task::{DeadLetter, Done, Failed, done};
use task_log::{TaskLog, TaskLogError, TaskRef, Unreadable};

/// Tasks that have not ended and cannot be read, by where they were found.
pub(crate) const METRIC: &str = "inkstone_orchestrator_unreadable_tasks";
/// What is done with one of them, and what else can be.
pub(crate) const WHAT_TO_DO: &str = "it is given up, with a copy in DEAD, once it is older than streams.task_retention. If a newer version wrote it, \
                                     start that one; `nats stream get TASKS SEQUENCE` shows it";

/// Keeps a copy of such a submission, and ends its task, so that none is open that nobody carries out. True when both are stored; else it is
/// tried again.
pub(crate) async fn give_up(log: &TaskLog, letter: &DeadLetter) -> bool {
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

/// Keeps a copy of what cannot be read of a task that the log is about to let go of, and ends it: nobody would ever come to its end, and all
/// behind it would stay. `at` is the broker's time.
///
/// # Errors
/// When either is not known to be stored. Calling again goes on.
pub(crate) async fn end(
    log: &TaskLog,
    found: &Unreadable,
    at: SystemTime,
) -> Result<(), TaskLogError> {
    let why = lifecycle::chain(&found.error);
    let reason = format!("{why}; its task is older than streams.task_retention");
    bury_and_end(log, &letter(&found.subject, &found.payload, reason, at)).await?;
    let Unreadable {
        task,
        sequence,
        subject,
        ..
    } = found;
    tracing::error!(
        task = %task.task,
        sequence,
        subject,
        error = why,
        "a task that cannot be read was given up; see DEAD"
    );
    Ok(())
}

/// What is kept of what cannot be read. `at` is the broker's time, as of all that ends a task.
pub(crate) fn letter(subject: &str, payload: &[u8], reason: String, at: SystemTime) -> DeadLetter {
    // inkstone.task.<tenant>.<lane>.<task>.<event>
    let mut tokens = subject.split('.').skip(2);
    let mut token = || tokens.next().unwrap_or("unknown").to_owned();
    DeadLetter {
        tenant: token(),
        lane: token(),
        task_id: token(),
        code: ErrorCode::Internal.to_string(),
        reason,
        at: Some(at.into()),
        subject: subject.to_owned(),
        payload: payload.to_vec(),
        ..DeadLetter::default()
    }
}
