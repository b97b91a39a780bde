//! Since when there are tasks that have not ended, without an index and at a cost that does not grow with the log.
//!
//! A task that has not ended waits in its lane, or its dispatch is in WORK: a submission is acknowledged only when its dispatch
//! is stored, and a dispatch only when the end is ([invariants I1 and I4](crate)).

use std::time::SystemTime;

use contract::Lane;
use contract::task::{Dispatch, Submitted};
use futures::{StreamExt as _, TryStreamExt as _};
use messaging::MAX_BATCH;

use crate::{TaskLog, TaskLogError, decode, dispatcher, streams};

/// Tasks read at the same time.
const READS: usize = 16;

impl TaskLog {
    /// When the oldest task of these lanes was submitted that may not have ended; `None` when all have. It may be earlier than
    /// that: the time of one that has ended but that nobody has looked at since.
    ///
    /// # Errors
    /// When the broker does not answer or an event cannot be decoded.
    pub async fn open_since(
        &self,
        lanes: impl IntoIterator<Item = &Lane>,
    ) -> Result<Option<SystemTime>, TaskLogError> {
        let mut oldest = None;
        // Lanes first: what leaves one meanwhile is then seen in WORK.
        for lane in lanes {
            keep_earlier(&mut oldest, self.waiting_since(lane).await?);
        }
        keep_earlier(&mut oldest, self.dispatched_since().await?);
        Ok(oldest)
    }

    async fn waiting_since(&self, lane: &Lane) -> Result<Option<SystemTime>, TaskLogError> {
        let (name, filter) = dispatcher(lane);
        let seen = self
            .broker
            .queue(streams::TASKS)
            .acknowledged(&name)
            .await?;
        let next = self.tasks.from_sequence(&filter, seen + 1, 1).await?;
        let Some(event) = next.first() else {
            return Ok(None);
        };
        let submitted: Submitted = decode("submitted", &event.payload)?;
        Ok(Some(time_of(&submitted)))
    }

    async fn dispatched_since(&self) -> Result<Option<SystemTime>, TaskLogError> {
        let work = self.broker.log(streams::WORK);
        let dispatches = work.from_sequence("inkstone.work.>", 1, MAX_BATCH).await?;
        if dispatches.len() == MAX_BATCH {
            // Far more than the windows let through; whoever wants to know must not be told too late a time.
            return Ok(Some(SystemTime::UNIX_EPOCH));
        }
        let mut times = futures::stream::iter(dispatches)
            .map(|event| async move {
                let dispatch: Dispatch = decode("dispatch", &event.payload)?;
                let (tenant, task) = (dispatch.tenant.parse()?, dispatch.task_id.parse()?);
                let record = self.read(&tenant, task).await?;
                let open = record.filter(|record| record.done.is_none());
                Ok::<_, TaskLogError>(open.map(|record| time_of(&record.submitted)))
            })
            .buffer_unordered(READS);
        let mut oldest = None;
        while let Some(time) = times.try_next().await? {
            keep_earlier(&mut oldest, time);
        }
        Ok(oldest)
    }
}

/// One without a time is as old as any.
fn time_of(submitted: &Submitted) -> SystemTime {
    let at = submitted.at.and_then(|at| SystemTime::try_from(at).ok());
    at.unwrap_or(SystemTime::UNIX_EPOCH)
}

fn keep_earlier(oldest: &mut Option<SystemTime>, time: Option<SystemTime>) {
    *oldest = match (*oldest, time) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, other) => one.or(other),
    };
}
