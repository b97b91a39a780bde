//! Which tasks must have begun by now: an index of deadlines by time, so that nobody reads a backlog to find them.
//!
//! The stream DEADLINES has a small message for each task with a deadline, at `inkstone.deadline.<slot>.<tenant>.<lane>.<task>`: a slot is
//! two seconds of deadlines. When a slot is over its messages are read, and removed as their tasks are looked at. It is an index and nothing
//! more: the deadline that counts is the one in the task's submission, and a task that is missing here is found late, not never.

use std::time::Duration;

use bytes::Bytes;
use contract::task::Submitted;
use messaging::MAX_BATCH;

use crate::{TaskLog, TaskLogError, TaskRef, deadline};

/// Seconds of deadlines that are looked at together.
const SLOT_SECONDS: u64 = 2;
/// Where it is kept up to which slot all were looked at.
const LOOKED: &str = "inkstone.deadline.looked";

/// A task whose deadline lies in a slot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Due {
    /// Which task; `None` for a message that is not of our making.
    pub task: Option<TaskRef>,
    /// The message's place in DEADLINES.
    pub sequence: u64,
}

/// The slot in which a time lies, since the UNIX epoch.
pub fn slot_of(time: Duration) -> u64 {
    time.as_secs() / SLOT_SECONDS
}

/// `inkstone.deadline.<slot>.<tenant>.<lane>.<task>`.
fn task_at(subject: &str) -> Option<TaskRef> {
    let mut tokens = subject.split('.').skip(3);
    let (tenant, lane, task) = (tokens.next()?, tokens.next()?, tokens.next()?);
    TaskRef::parse(tenant, lane, task).ok()
}

impl TaskLog {
    /// Notes the deadline of a task that is stored, if it has one.
    ///
    /// # Errors
    /// When it is not known to be noted: then the task's end comes late, when its queue has come to it.
    pub async fn note_deadline(&self, submitted: &Submitted) -> Result<(), TaskLogError> {
        let Some(deadline) = deadline::deadline(submitted) else {
            return Ok(());
        };
        let TaskRef { tenant, lane, task } = TaskRef::of(submitted)?;
        let slot = slot_of(deadline);
        let subject = format!("inkstone.deadline.{slot}.{tenant}.{lane}.{task}");
        Ok(self
            .deadlines
            .put(&subject, Bytes::from_static(b"-"))
            .await?)
    }

    /// Tasks whose deadline was noted in a slot, from the place `from` of DEADLINES on: [`MAX_BATCH`] at most, and fewer only where there are
    /// no more.
    ///
    /// # Errors
    /// When the broker does not answer.
    pub async fn due(&self, slot: u64, from: u64) -> Result<Vec<Due>, TaskLogError> {
        let filter = format!("inkstone.deadline.{slot}.>");
        let found = self
            .deadlines
            .from_sequence(&filter, from, MAX_BATCH)
            .await?;
        let due = found.iter().map(|event| Due {
            task: task_at(&event.subject),
            sequence: event.sequence,
        });
        Ok(due.collect())
    }

    /// Removes what was noted of a task.
    ///
    /// # Errors
    /// When the broker does not confirm.
    pub async fn forget_due(&self, due: &Due) -> Result<(), TaskLogError> {
        self.deadlines.remove(due.sequence).await?;
        Ok(())
    }

    /// The slot before which all were looked at, by whoever did so last; `None` where nobody has.
    ///
    /// # Errors
    /// When the broker does not answer.
    pub async fn looked_up_to(&self) -> Result<Option<u64>, TaskLogError> {
        let found = self.deadlines.last(LOOKED).await?;
        Ok(found.and_then(|event| std::str::from_utf8(&event.payload).ok()?.parse().ok()))
    }

    /// Keeps that all slots before this one were looked at.
    ///
    /// # Errors
    /// When it is not known to be stored.
    pub async fn keep_looked_up_to(&self, slot: u64) -> Result<(), TaskLogError> {
        Ok(self.deadlines.put(LOOKED, slot.to_string().into()).await?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_subject_tells_the_task_and_what_is_not_ours_tells_none() {
        let task = "0197c5a2-0000-7000-8000-000000000001";
        let subject = format!("inkstone.deadline.17.acme.standard-image.{task}");
        let found = task_at(&subject).unwrap();
        assert_eq!(found.task.to_string(), task);
        assert_eq!(found.tenant.as_str(), "acme");
        assert_eq!(task_at("inkstone.deadline.17.acme"), None);
        assert_eq!(task_at(LOOKED), None);
    }
}
