//! What a caller says of a task that it has read.

use contract::v1::Feedback;
use messaging::{BrokerError, NewEvent, Replaced};

use crate::{Record, TaskLog, TaskLogError, TaskRef, encode};

/// How often it is written: each time that it is refused, another of the same task's events came first.
const TRIES: u32 = 8;

impl TaskLog {
    /// Keeps what a caller says of a task that was [read](Self::read), in place of what it said before. False where the log has that task no more, or another of
    /// the same id: nothing is stored then.
    ///
    /// # Errors
    /// When it is not known to be stored, or is not because of all that came in between.
    pub async fn set_feedback(
        &self,
        read: &Record,
        feedback: &Feedback,
    ) -> Result<bool, TaskLogError> {
        let task = read.task_ref()?;
        let (subject, family) = (task.subject("feedback"), task.subject("*"));
        let event = NewEvent::new(subject, family, encode(feedback));
        let mut after = read.last_sequence;
        for _ in 0..TRIES {
            if let Replaced::Stored(_) = self.tasks.append(&event, after).await? {
                return Ok(true);
            }
            match self.last_of_same(&task, read.sequence).await? {
                Some(last) => after = last,
                None => return Ok(false),
            }
        }
        let key = event.subject().to_owned();
        Err(BrokerError::Conflict { key }.into())
    }

    /// The place of a task's last event, as the log's leader has it, if its submission is still the one at the place `submission`.
    async fn last_of_same(
        &self,
        task: &TaskRef,
        submission: u64,
    ) -> Result<Option<u64>, TaskLogError> {
        // In this order: where the submission is there after it, the last event is one of the same task's.
        let last = self.tasks.last_at_leader(&task.subject("*")).await?;
        let found = self
            .tasks
            .last_at_leader(&task.subject("submitted"))
            .await?;
        let is_same = found.is_some_and(|found| found.sequence == submission);
        Ok(last.filter(|_| is_same).map(|last| last.sequence))
    }
}
