//! Since when there are tasks that have not ended, without an index and at a cost that does not grow with the log.
//!
//! A task that has not ended lies behind its queue's cursor, or its dispatch is in WORK: a cursor goes past a submission only when its
//! dispatch is stored, and a dispatch is acknowledged only when the end is ([invariants I1 and I4](crate)). Or its dispatch was lost; then
//! it lies behind what the cursor tells to have [ended](Cursor::open_from).

use std::time::SystemTime;

use contract::task::{Dispatch, Submitted};
use futures::{StreamExt as _, TryStreamExt as _};
use messaging::{Bucket, MAX_BATCH};

use crate::queue::{Cursor, Queue};
use crate::{TaskLog, TaskLogError, TaskRef, decode, streams};

/// Tasks read at the same time.
const READS: usize = 16;
/// Tasks of a queue that are asked for their end; where all of these have one, it is taken that the next may have none.
const ASKED: usize = 64;

impl TaskLog {
    /// When the oldest task was submitted that may not have ended; `None` when all have. It may be earlier than that: the time of one
    /// that has ended but that nobody has looked at since.
    ///
    /// # Errors
    /// When the broker does not answer or an event cannot be decoded.
    pub async fn open_since(&self) -> Result<Option<SystemTime>, TaskLogError> {
        // Queues first: what leaves one meanwhile is then seen in WORK.
        let mut oldest = self.waiting_since().await?;
        keep_earlier(&mut oldest, self.dispatched_since().await?);
        Ok(oldest)
    }

    async fn waiting_since(&self) -> Result<Option<SystemTime>, TaskLogError> {
        let (backlog, cursors) = (self.backlog().await?, self.cursors().await?);
        let mut oldest = None;
        let mut revision = 0;
        loop {
            let queues = backlog.written_since(revision).await?;
            let all = queues.len() < MAX_BATCH;
            let Some(last) = queues.last() else { break };
            revision = last.revision;
            let there = queues.into_iter().filter(|one| one.value.is_some());
            let queues = there.filter_map(|one| Queue::of_key(&one.key));
            let mut times = futures::stream::iter(queues)
                .map(|queue| self.first_waiting(&cursors, queue))
                .buffer_unordered(READS);
            while let Some(time) = times.try_next().await? {
                keep_earlier(&mut oldest, time);
            }
            if all {
                break;
            }
        }
        Ok(oldest)
    }

    async fn first_waiting(
        &self,
        cursors: &Bucket<Cursor>,
        queue: Queue,
    ) -> Result<Option<SystemTime>, TaskLogError> {
        let cursor = cursors.get(&queue.key()).await?;
        let cursor = cursor.map_or(Cursor::new(1, 1), |entry| entry.value);
        let mut from = cursor.open_from();
        for asked in 0..=ASKED {
            let Some(event) = self.tasks.next(&queue.filter(), from).await? else {
                return Ok(None);
            };
            // One that cannot be decoded goes to DEAD, and needs no more than any other.
            let submitted: Submitted = decode("submitted", &event.payload).unwrap_or_default();
            let is_open = event.sequence >= cursor.sequence || asked >= ASKED;
            if is_open || !self.has_end(&submitted).await? {
                return Ok(Some(time_of(&submitted)));
            }
            from = event.sequence + 1;
        }
        Ok(None)
    }

    async fn has_end(&self, submitted: &Submitted) -> Result<bool, TaskLogError> {
        match TaskRef::of(submitted) {
            Ok(task) => Ok(self.done(&task).await?.is_some()),
            // Nobody can carry it out.
            Err(_) => Ok(true),
        }
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
