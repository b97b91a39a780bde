//! Tasks whose events are stored and cannot be decoded: nobody can carry them out, and nobody finds by reading them how old they are.

use std::time::SystemTime;

use bytes::Bytes;
use contract::{TaskId, TenantId};
use messaging::Event;

use crate::{Record, TaskLog, TaskLogError, TaskRef, record};

/// A task that has not ended and cannot be read.
#[derive(Debug)]
pub struct Unreadable {
    /// Which task, as its events' subjects say.
    pub task: TaskRef,
    /// Where its submission lies in the log.
    pub sequence: u64,
    /// When the broker stored its submission; `None` where it does not say.
    pub stored_at: Option<SystemTime>,
    /// Where the event is that cannot be decoded, or that holds an invalid id.
    pub subject: String,
    /// What that event holds.
    pub payload: Bytes,
    /// Why it cannot be read.
    pub error: TaskLogError,
}

impl TaskLog {
    /// What is wrong with a task that [cannot be read](TaskLogError::is_unreadable); `None` when it can, when it has ended, or when this tenant
    /// has no such task. As the log's leader has it, for who is told of it may bury it: a replica that lags may not have heard that it has ended, or
    /// what was written since in place of what cannot be read.
    ///
    /// # Errors
    /// When the broker does not answer, or the log has no leader just now.
    pub async fn unreadable(
        &self,
        tenant: &TenantId,
        task: TaskId,
    ) -> Result<Option<Unreadable>, TaskLogError> {
        of_events(&self.events_at_leader(tenant, task).await?)
    }
}

fn of_events(events: &[Event]) -> Result<Option<Unreadable>, TaskLogError> {
    if events.iter().any(record::is_end) {
        return Ok(None);
    }
    let Some(submission) = events.iter().find(|event| record::is_submission(event)) else {
        return Ok(None);
    };
    let read = Record::from_events(events);
    let read = read.and_then(|record| record.map(|record| record.task_ref()).transpose());
    let error = match read {
        Ok(_) => return Ok(None),
        Err(error) if error.is_unreadable() => error,
        Err(error) => return Err(error),
    };
    // One whose subject names no task is no task's: it has a copy in DEAD, and nobody asks for it.
    let Some(task) = record::place_of(&submission.subject) else {
        return Ok(None);
    };
    let wrong = match &error {
        TaskLogError::Decode { what, .. } => events
            .iter()
            .find(|event| event.subject.rsplit('.').next() == Some(*what)),
        _ => None,
    };
    let wrong = wrong.unwrap_or(submission);
    Ok(Some(Unreadable {
        task,
        sequence: submission.sequence,
        stored_at: submission.stored_at(),
        subject: wrong.subject.clone(),
        payload: wrong.payload.clone(),
        error,
    }))
}
