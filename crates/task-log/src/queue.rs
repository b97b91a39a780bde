//! Queues of the backlog: a tenant's tasks in one lane, in the order in which they were stored.
//!
//! Nothing of a queue is kept beside the log but two small records: that it exists (bucket BACKLOG, touched before a submission is stored
//! there), and up to where everything of it was handed over (bucket CURSORS).

use std::fmt;

use contract::{Lane, TenantId};
use messaging::{BrokerError, Bucket, Event, EventLog, MAX_BATCH, Page, Reader};
use serde::{Deserialize, Serialize};

use crate::{TaskLog, TaskLogError, streams};

/// The bucket of queues that exist.
const BACKLOG: &str = "BACKLOG";
/// The bucket of their cursors.
const CURSORS: &str = "CURSORS";
/// Of the version before this one: a consumer a lane.
const OLDER_CONSUMERS: &str = "dispatch_";
/// Submissions read at once while what an earlier version left is looked through.
const BATCH: usize = 512;

/// A tenant's tasks in one lane.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Queue {
    /// In which lane.
    pub lane: Lane,
    /// Whose.
    pub tenant: TenantId,
}

/// A record of BACKLOG: this queue may have tasks.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Touch {}

/// A record of CURSORS.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cursor {
    /// Every task of the queue whose submission lies before this sequence of TASKS was handed over or has ended.
    pub sequence: u64,
    /// Every one whose submission lies before this one has ended. `None`: the same as `sequence`, or an earlier version wrote it, which
    /// did not tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended: Option<u64>,
}

impl Cursor {
    /// A cursor at `sequence`, all before `ended` having ended.
    pub fn new(sequence: u64, ended: u64) -> Self {
        Self {
            sequence,
            ended: Some(ended).filter(|ended| *ended < sequence),
        }
    }

    /// From where on there may be tasks that have not ended.
    pub fn open_from(&self) -> u64 {
        let ended = self.ended.unwrap_or(self.sequence);
        ended.min(self.sequence)
    }
}

impl Queue {
    /// What it is known by in buckets and messages.
    pub fn key(&self) -> String {
        self.to_string()
    }

    /// The queue that is known by `key`.
    pub fn of_key(key: &str) -> Option<Self> {
        let (lane, tenant) = key.split_once('.')?;
        Some(Self {
            lane: lane.parse().ok()?,
            tenant: tenant.parse().ok()?,
        })
    }

    /// The queue in which the task is whose event is at `subject`.
    pub fn of_subject(subject: &str) -> Option<Self> {
        let mut tokens = subject.split('.').skip(2);
        let (tenant, lane) = (tokens.next()?, tokens.next()?);
        Some(Self {
            lane: lane.parse().ok()?,
            tenant: tenant.parse().ok()?,
        })
    }

    pub(crate) fn filter(&self) -> String {
        let Self { lane, tenant } = self;
        format!("inkstone.task.{tenant}.{lane}.*.submitted")
    }
}

impl fmt::Display for Queue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.lane, self.tenant)
    }
}

impl TaskLog {
    /// Opens the bucket of queues that exist.
    ///
    /// # Errors
    /// When the broker refuses.
    pub async fn backlog(&self) -> Result<Bucket<Touch>, BrokerError> {
        self.broker.bucket(BACKLOG, std::time::Duration::ZERO).await
    }

    /// Opens the bucket of their cursors, which must be kept for as long as submissions are.
    ///
    /// # Errors
    /// When the broker refuses.
    pub async fn cursors(&self) -> Result<Bucket<Cursor>, BrokerError> {
        self.broker.bucket(CURSORS, std::time::Duration::ZERO).await
    }

    /// Up to `limit` submissions of a queue from `sequence` on, and how many there are behind them.
    ///
    /// # Errors
    /// When the broker does not answer.
    pub async fn submissions(
        &self,
        queue: &Queue,
        sequence: u64,
        limit: usize,
    ) -> Result<Page, TaskLogError> {
        Ok(self.tasks.page(&queue.filter(), sequence, limit).await?)
    }

    /// The first submission of a queue from `sequence` on.
    ///
    /// # Errors
    /// When the broker does not answer.
    pub async fn next_submission(
        &self,
        queue: &Queue,
        sequence: u64,
    ) -> Result<Option<Event>, TaskLogError> {
        Ok(self.tasks.next(&queue.filter(), sequence).await?)
    }

    /// The first submission of a queue from `sequence` on and before `end`: where nobody knows of one, the stream's leader is asked, for a
    /// replica that lags may not have heard of it.
    ///
    /// # Errors
    /// When the broker does not answer.
    pub async fn submission_between(
        &self,
        queue: &Queue,
        sequence: u64,
        end: u64,
    ) -> Result<Option<Event>, TaskLogError> {
        let filter = queue.filter();
        let found = match self.tasks.next(&filter, sequence).await? {
            None => self.tasks.next_at_leader(&filter, sequence).await?,
            found => found,
        };
        Ok(found.filter(|event| event.sequence < end))
    }

    /// Reads a queue's submissions in turn, from `sequence` on: for a queue that holds very many.
    ///
    /// # Errors
    /// When the broker refuses.
    pub async fn read_submissions(
        &self,
        queue: &Queue,
        sequence: u64,
    ) -> Result<Reader, TaskLogError> {
        Ok(self.tasks.reader(&[&queue.filter()], sequence).await?)
    }

    /// Removes the cursors of queues of which no submission is left in the log, and says how many those were: whoever opens such a queue
    /// begins at the beginning, where there is nothing. One that was written meanwhile stays.
    ///
    /// # Errors
    /// When the broker does not answer. Calling again goes on.
    pub async fn sweep_cursors(&self) -> Result<usize, TaskLogError> {
        let cursors = self.cursors().await?;
        let (mut since, mut gone) = (0, 0);
        loop {
            let written = cursors.written_since(since).await?;
            for one in &written {
                since = since.max(one.revision);
                let is_empty = match Queue::of_key(&one.key) {
                    Some(queue) => self.next_submission(&queue, 1).await?.is_none(),
                    // Not of this version's making.
                    None => false,
                };
                if is_empty && cursors.forget(&one.key, one.revision).await? {
                    gone += 1;
                }
            }
            if written.len() < MAX_BATCH {
                return Ok(gone);
            }
        }
    }

    /// The last sequence of TASKS.
    ///
    /// # Errors
    /// When the broker does not answer.
    pub async fn last_sequence(&self) -> Result<u64, TaskLogError> {
        Ok(self.tasks.last_sequence().await?)
    }

    /// Takes over what a version left that kept a consumer a lane: makes the records of all queues in which submissions lie that may
    /// not have been handed over, and removes the consumers.
    ///
    /// # Errors
    /// When the broker does not answer. Calling again goes on.
    pub async fn adopt_older_backlog(&self) -> Result<(), TaskLogError> {
        let tasks = self.broker.queue(streams::TASKS);
        for (name, seen) in tasks.consumers().await? {
            let Some(lane) = name.strip_prefix(OLDER_CONSUMERS) else {
                continue;
            };
            let Ok(lane) = lane.parse::<Lane>() else {
                continue;
            };
            tracing::info!(%lane, seen, "taking over a lane's backlog from an earlier version");
            adopt(self, &self.tasks, &lane, seen).await?;
            tasks.remove_consumer(&name).await?;
        }
        Ok(())
    }
}

async fn adopt(
    log: &TaskLog,
    tasks: &EventLog,
    lane: &Lane,
    seen: u64,
) -> Result<(), TaskLogError> {
    let (backlog, cursors) = (log.backlog().await?, log.cursors().await?);
    let filter = format!("inkstone.task.*.{lane}.*.submitted");
    let mut known = std::collections::HashSet::new();
    let mut reader = tasks.reader(&[&filter], seen + 1).await?;
    loop {
        let page = reader.read(BATCH).await?;
        for event in &page.events {
            let Some(queue) = Queue::of_subject(&event.subject) else {
                continue;
            };
            if !known.insert(queue.clone()) {
                continue;
            }
            let cursor = Cursor::new(event.sequence, event.sequence);
            match cursors.create(&queue.key(), &cursor).await {
                Ok(_) | Err(BrokerError::Conflict { .. }) => {}
                Err(error) => return Err(error.into()),
            }
            backlog.put(&queue.key(), &Touch {}).await?;
        }
        if page.behind == 0 {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_queue_is_known_by_its_key_and_by_what_lies_in_it() {
        let queue = Queue {
            lane: "standard-image".parse().unwrap(),
            tenant: "acme".parse().unwrap(),
        };
        assert_eq!(Queue::of_key(&queue.key()).as_ref(), Some(&queue));
        let subject = "inkstone.task.acme.standard-image.x.submitted";
        assert_eq!(Queue::of_subject(subject), Some(queue));
        for wrong in ["", "a", "A.b", "a.b.c", "a."] {
            assert_eq!(Queue::of_key(wrong), None, "{wrong}");
        }
    }
}
