//! Letting go of what the log has kept for as long as it should, and never of a task that has not ended.
//!
//! The broker could do that by itself, by an age of the stream. But then, while no orchestrator is there to end it, it would also let go of a task
//! that waits: accepted, charged, and known to nobody. So nothing in TASKS has an age. Whoever ends what is old removes it, too, from the
//! beginning of the log up to what is young enough, or to the first task that has not ended: it is found by the records of queues, for a queue
//! with such a task has one in BACKLOG, and everything in front of its cursor's [`open_from`](Cursor::open_from) has ended.

use std::time::SystemTime;

use contract::TaskId;
use futures::{StreamExt as _, TryStreamExt as _};
use messaging::{BrokerError, Bucket, MAX_BATCH};

use crate::{Cursor, Queue, TaskLog, TaskLogError, TaskRef, Touch};

/// Submissions of a queue that are looked at in one turn. With more, all in front of the next one goes, and the next turn goes on there.
const LOOKS: usize = 256;
/// Queues that are looked at together.
const AT_ONCE: usize = 8;
/// Places that are removed by one request, so that none takes the broker long.
const STRETCH: u64 = 65_536;

/// What came of letting go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LetGo {
    /// All that is old enough is gone.
    All,
    /// All in front of this place is gone. At that place, or soon behind it, lies a task that is old enough and has not ended.
    UpTo(u64),
}

/// Lets go of what is old.
pub struct Retention {
    log: TaskLog,
    backlog: Bucket<Touch>,
    cursors: Bucket<Cursor>,
}

impl TaskLog {
    /// What lets go of old events.
    ///
    /// # Errors
    /// When the broker refuses.
    pub async fn retention(&self) -> Result<Retention, TaskLogError> {
        Ok(Retention {
            log: self.clone(),
            backlog: self.backlog().await?,
            cursors: self.cursors().await?,
        })
    }
}

impl Retention {
    /// Removes what was stored before `time`, by the broker's clock, up to the first task that has not ended. Several may do so at once.
    ///
    /// # Errors
    /// When the broker does not answer. Calling again goes on.
    pub async fn let_go(&self, time: SystemTime) -> Result<LetGo, TaskLogError> {
        let tasks = &self.log.tasks;
        let extent = tasks.extent().await?;
        let end = match extent.last_at < time {
            true => Some(extent.last + 1),
            // A replica that lags may know of nothing that is young enough: then it is not known where that begins.
            false => tasks.sequence_at("inkstone.task.>", time).await?,
        };
        let Some(end) = end.filter(|end| *end > extent.first) else {
            return Ok(LetGo::All);
        };
        let open = self.first_open(end).await?;
        let until = open.unwrap_or(end);
        let mut gone = extent.first;
        while gone < until {
            gone = until.min(gone.saturating_add(STRETCH));
            tasks.remove_before(gone).await?;
        }
        Ok(open.map_or(LetGo::All, LetGo::UpTo))
    }

    /// The first place before `end` at which a task lies that may not have ended.
    async fn first_open(&self, end: u64) -> Result<Option<u64>, TaskLogError> {
        let (mut since, mut first) = (0, None);
        loop {
            let written = self.backlog.written_since(since).await?;
            let is_last = written.len() < MAX_BATCH;
            since = written.last().map_or(since, |last| last.revision);
            let there = written.iter().filter(|one| one.value.is_some());
            let queues: Vec<Queue> = there.filter_map(|one| Queue::of_key(&one.key)).collect();
            let looks: Vec<_> = queues
                .into_iter()
                .map(|queue| self.first_open_of(queue, end))
                .collect();
            let looks = futures::stream::iter(looks).buffer_unordered(AT_ONCE);
            let found: Vec<Option<u64>> = looks.try_collect().await?;
            first = found.into_iter().flatten().chain(first).min();
            if is_last {
                return Ok(first);
            }
        }
    }

    async fn first_open_of(&self, queue: Queue, end: u64) -> Result<Option<u64>, TaskLogError> {
        let mut from = match self.cursors.get(&queue.key()).await {
            Ok(cursor) => cursor.map_or(1, |entry| entry.value.open_from()),
            // Whoever opens the queue writes another.
            Err(BrokerError::Decode { .. }) => 1,
            Err(error) => return Err(error.into()),
        };
        for _ in 0..LOOKS {
            if from >= end {
                return Ok(None);
            }
            let found = self.log.submission_between(&queue, from, end).await?;
            let Some(event) = found else {
                return Ok(None);
            };
            if self.is_open(&queue, &event.subject).await? {
                return Ok(Some(event.sequence));
            }
            from = event.sequence + 1;
        }
        Ok(Some(from).filter(|from| *from < end))
    }

    /// Whether the task whose submission is at `subject` has no end. One that cannot be read ends like others; what is no task's never does.
    async fn is_open(&self, queue: &Queue, subject: &str) -> Result<bool, TaskLogError> {
        let task = subject.split('.').nth(4);
        let Some(task) = task.and_then(|task| task.parse::<TaskId>().ok()) else {
            return Ok(false);
        };
        let Queue { lane, tenant } = queue.clone();
        let place = TaskRef { tenant, lane, task }.subject("done");
        Ok(self.log.tasks.at(&place).await?.is_none())
    }
}
