//! The log from its beginning, for who must see everything.

use std::time::SystemTime;

use bytes::Bytes;
use contract::task::{Done, Submitted};
use messaging::{Event, EventLog, Extent, MAX_BATCH, Page, Reader};

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
    /// It was looked at behind this place.
    pub after: u64,
    /// The places that hold an event, of whatever kind. Between them lay states that others have taken the place of, or what was removed.
    pub places: Vec<u64>,
    /// Submissions and ends, in the log's order.
    pub happened: Vec<Happened>,
    /// The last place that was looked at, also where neither a submission nor an end lies; `None` when nothing was found.
    pub last: Option<u64>,
    /// How many events lie behind it.
    pub behind: u64,
}

impl Stretch {
    /// What lies behind place `after`, of a page.
    fn of(page: Page, after: u64) -> Self {
        let mut stretch = Self {
            after,
            behind: page.behind,
            ..Self::default()
        };
        // A log that is shorter than it was, or a replica that is behind, gives what was there before.
        let new = page.events.into_iter().filter(|it| it.sequence > after);
        for event in new {
            stretch.places.push(event.sequence);
            stretch.happened.extend(happened(event));
        }
        stretch.last = stretch.places.last().copied();
        stretch
    }

    /// Whether each place from its beginning to its end holds an event.
    pub fn is_whole(&self) -> bool {
        let places = self.last.map(|last| last - self.after);
        places == Some(self.places.len() as u64)
    }
}

/// Reads the log in its order, for as long as it goes on. It costs the broker less than asking for each stretch by its place, but a
/// consumer: for one reader at a time.
pub struct Following {
    tasks: EventLog,
    reader: Option<Reader>,
    /// Up to where it has read.
    after: u64,
}

impl Following {
    /// Whether what comes [next](Self::next) is of the log that it has read from so far: the consumer that it reads by goes with its log. What it
    /// begins with, and goes on with after an error, may be of one that was made anew.
    pub fn has_begun(&self) -> bool {
        self.reader.is_some()
    }

    /// The next stretch: what is there, without waiting for more. After an error it goes on where it was.
    ///
    /// # Errors
    /// When the broker does not answer.
    pub async fn next(&mut self) -> Result<Stretch, TaskLogError> {
        let mut reader = match self.reader.take() {
            Some(reader) => reader,
            // With states, which are left out here: to choose by subject, and to count by it first, the broker keeps everybody from storing.
            None => self.tasks.reader(&[], self.after + 1).await?,
        };
        let page = reader.read(MAX_BATCH).await?;
        self.reader = Some(reader);
        let stretch = Stretch::of(page, self.after);
        self.after = stretch.last.unwrap_or(self.after);
        Ok(stretch)
    }
}

impl TaskLog {
    /// Submissions and ends behind place `sequence` of the log, a stretch of them, by one question. All that the log holds is seen once and in order by who
    /// goes on behind each stretch's last place.
    ///
    /// # Errors
    /// When the broker does not answer.
    pub async fn after(&self, sequence: u64) -> Result<Stretch, TaskLogError> {
        // One question for both kinds: of two, the later one would see what happened between them, and the earlier one not.
        // Everything that TASKS has: to count what is behind a narrower filter would cost the broker time that grows with the log.
        let page = self.tasks.page(">", sequence + 1, MAX_BATCH).await?;
        Ok(Stretch::of(page, sequence))
    }

    /// Where the log begins and ends, as its leader has it.
    ///
    /// # Errors
    /// When the broker does not answer.
    pub async fn extent(&self) -> Result<Extent, TaskLogError> {
        Ok(self.tasks.extent().await?)
    }

    /// When the oldest event was stored that the log has, by the broker's clock, as its leader has it; `None` where there is none.
    ///
    /// # Errors
    /// When the broker does not answer.
    pub async fn oldest_at(&self) -> Result<Option<SystemTime>, TaskLogError> {
        Ok(self.tasks.fill().await?.oldest_at)
    }

    /// When the first submission or end behind place `sequence` was stored, by the broker's clock; `None` where there is none.
    ///
    /// # Errors
    /// When the broker does not answer.
    pub async fn next_stored_at(&self, sequence: u64) -> Result<Option<SystemTime>, TaskLogError> {
        let mut first = None::<Event>;
        for kind in ["submitted", "done"] {
            let filter = format!("inkstone.task.*.*.*.{kind}");
            let found = self.tasks.next(&filter, sequence + 1).await?;
            let both = first.into_iter().chain(found);
            first = both.min_by_key(|event| event.sequence);
        }
        Ok(first.and_then(|event| event.stored_at()))
    }

    /// Where the first submission or end behind place `sequence` lies, as the log's leader has it; `None` where there is none.
    ///
    /// # Errors
    /// When the broker does not answer, or the log has no leader just now.
    pub async fn next_at_leader(&self, sequence: u64) -> Result<Option<u64>, TaskLogError> {
        let mut first = None::<u64>;
        for kind in ["submitted", "done"] {
            let filter = format!("inkstone.task.*.*.*.{kind}");
            let found = self.tasks.next_at_leader(&filter, sequence + 1).await?;
            let found = found.map(|event| event.sequence);
            first = first.into_iter().chain(found).min();
        }
        Ok(first)
    }

    /// The same from place `sequence` on, for who goes on for long.
    pub fn following(&self, sequence: u64) -> Following {
        Following {
            tasks: self.tasks.clone(),
            reader: None,
            after: sequence,
        }
    }
}

fn happened(event: Event) -> Option<Happened> {
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
