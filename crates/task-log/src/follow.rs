//! The log from its beginning, for who must see everything.

use bytes::Bytes;
use contract::task::{Done, Submitted};

use crate::{TaskLog, TaskLogError, decode};

/// Something that happened to a task for good.
#[derive(Debug, Clone)]
pub struct Happened {
    /// Its place in the log.
    pub sequence: u64,
    /// Whose task.
    pub tenant: String,
    /// Which task.
    pub task: String,
    /// In which lane.
    pub lane: String,
    /// What.
    pub what: What,
}

/// What happened.
#[derive(Debug, Clone)]
pub enum What {
    /// The task was accepted.
    Submitted(Box<Submitted>),
    /// The task ended.
    Done(Box<Done>),
    /// An event that cannot be decoded.
    Unreadable(Bytes),
}

/// A part of the log.
#[derive(Debug, Clone, Default)]
pub struct Stretch {
    /// Submissions and ends, in the log's order.
    pub happened: Vec<Happened>,
    /// The last place that was looked at; `None` when there is nothing behind where the stretch begins.
    pub last: Option<u64>,
}

impl TaskLog {
    /// Submissions and ends behind place `sequence` of the log, a stretch of them. All that the log holds is seen once and in order by who
    /// goes on behind each stretch's last place.
    ///
    /// # Errors
    /// When the broker does not answer.
    pub async fn after(&self, sequence: u64) -> Result<Stretch, TaskLogError> {
        // One question for both kinds: of two, the later one would see what happened between them, and the earlier one not.
        // Everything that TASKS has: to count what is behind a narrower filter would cost the broker time that grows with the log.
        let filter = ">";
        let batch = messaging::MAX_BATCH;
        let events = self.tasks.from_sequence(filter, sequence + 1, batch);
        let events = events.await?;
        let last = events.last().map(|event| event.sequence);
        let happened = events.into_iter().filter_map(happened).collect();
        Ok(Stretch { happened, last })
    }
}

fn happened(event: messaging::Event) -> Option<Happened> {
    let mut tokens = event.subject.split('.').skip(2).map(str::to_owned);
    let (tenant, lane) = (tokens.next()?, tokens.next()?);
    let (task, kind) = (tokens.next()?, tokens.next()?);
    let payload = event.payload;
    let what = match kind.as_str() {
        "submitted" => decode("submitted", &payload).map(|it| What::Submitted(Box::new(it))),
        "done" => decode("done", &payload).map(|it| What::Done(Box::new(it))),
        _ => return None,
    };
    Some(Happened {
        sequence: event.sequence,
        tenant,
        task,
        lane,
        what: what.unwrap_or(What::Unreadable(payload)),
    })
}
