//! Which tasks have not ended, and since when there are such, without an index and at a cost that does not grow with the log.
//!
//! A task that has not ended lies behind its queue's cursor, or its dispatch is in WORK: a cursor goes past a submission only when its
//! dispatch is stored, and a dispatch is acknowledged only when the end is ([invariants I1 and I4](crate)). Or its dispatch was lost; then
//! it lies behind what the cursor tells to have [ended](Cursor::open_from).

use std::time::SystemTime;

use contract::task::{Dispatch, Submitted};
use futures::{StreamExt as _, TryStreamExt as _};
use messaging::{BrokerError, Bucket, Event, MAX_BATCH};
use prost::Message as _;

use crate::queue::{Cursor, Queue, Touch};
use crate::{TaskLog, TaskLogError, TaskRef, decode, record, streams};

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
        let (mut oldest, mut revision) = (None, Some(0));
        while let Some(since) = revision {
            let (queues, next) = next_queues(&backlog, since).await?;
            let looks: Vec<_> = queues
                .into_iter()
                .map(|queue| self.first_open(&cursors, queue, u64::MAX))
                .collect();
            let mut looks = futures::stream::iter(looks).buffer_unordered(READS);
            while let Some(first) = looks.try_next().await? {
                // One that cannot be decoded goes to DEAD, and needs no more than any other.
                let submitted = |event: Event| Submitted::decode(event.payload).unwrap_or_default();
                keep_earlier(&mut oldest, first.map(|event| time_of(&submitted(event))));
            }
            revision = next;
        }
        Ok(oldest)
    }

    /// The first submission of a queue in front of `end` whose task may not have ended; `None` when all have.
    pub(crate) async fn first_open(
        &self,
        cursors: &Bucket<Cursor>,
        queue: Queue,
        end: u64,
    ) -> Result<Option<Event>, TaskLogError> {
        let mut from = match cursors.get(&queue.key()).await {
            Ok(cursor) => cursor.map_or(1, |entry| entry.value.open_from()),
            // Whoever opens the queue writes another.
            Err(BrokerError::Decode { .. }) => 1,
            Err(error) => return Err(error.into()),
        };
        for asked in 0..=ASKED {
            if from >= end {
                return Ok(None);
            }
            let Some(event) = self.submission_between(&queue, from, end).await? else {
                return Ok(None);
            };
            if asked >= ASKED || self.is_open(&queue, &event).await? {
                return Ok(Some(event));
            }
            from = event.sequence + 1;
        }
        Ok(None)
    }

    /// Whether a submission's task has no end. What is no task's never has one, and nobody can carry it out.
    async fn is_open(&self, queue: &Queue, submission: &Event) -> Result<bool, TaskLogError> {
        let Some(task) = record::task_of(&submission.subject) else {
            return Ok(false);
        };
        let Queue { lane, tenant } = queue.clone();
        let place = TaskRef { tenant, lane, task }.subject("done");
        Ok(self.tasks.at(&place).await?.is_none())
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

/// Queues that exist, as many as one read returns, behind this write of BACKLOG; and behind which one to go on, `None` where these are all. A
/// queue that is missed is one whose tasks the log lets go of, so it is no replica's word that there are no more.
pub(crate) async fn next_queues(
    backlog: &Bucket<Touch>,
    since: u64,
) -> Result<(Vec<Queue>, Option<u64>), BrokerError> {
    let (written, next) = backlog.page_since(since).await?;
    let there = written.iter().filter(|one| one.value.is_some());
    let queues = there.filter_map(|one| Queue::of_key(&one.key)).collect();
    Ok((queues, next))
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
