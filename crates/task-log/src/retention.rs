//! Letting go of what the log has kept for as long as it should, and never of a task that has not ended.
//!
//! The broker could do that by itself, by an age of the stream. But then, while no orchestrator is there to end it, it would also let go of a task
//! that waits: accepted, charged, and known to nobody. So nothing in TASKS has an age. Whoever ends what is old removes it, too, from the
//! beginning of the log up to what is young enough, or to the first task that has not ended: it is found by the records of queues, for a queue
//! with such a task has one in BACKLOG, and everything in front of its cursor's [`open_from`](Cursor::open_from) has ended.

use std::time::SystemTime;

use futures::{StreamExt as _, TryStreamExt as _};
use messaging::Bucket;

use crate::open::next_queues;
use crate::{Cursor, TaskLog, TaskLogError, Touch};

/// Queues that are looked at together.
const AT_ONCE: usize = 8;
/// Places that are removed by one request, so that none takes the broker long.
const STRETCH: u64 = 65_536;

/// What came of letting go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LetGo {
    /// All that is old enough is gone.
    All,
    /// All in front of this place is gone. A task lies there that is old enough and has not ended, or some that have and were not looked through: the
    /// next turn goes on there.
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
        let (mut first, mut revision) = (None::<u64>, Some(0));
        while let Some(since) = revision {
            let (queues, next) = next_queues(&self.backlog, since).await?;
            let looks: Vec<_> = queues
                .into_iter()
                .map(|queue| self.log.first_open(&self.cursors, queue, end))
                .collect();
            let mut looks = futures::stream::iter(looks).buffer_unordered(AT_ONCE);
            while let Some(found) = looks.try_next().await? {
                let found = found.map(|event| event.sequence);
                first = first.into_iter().chain(found).min();
            }
            revision = next;
        }
        Ok(first)
    }
}
