//! Letting go of what the log has kept for as long as it should, and never of a task that has not ended.
//!
//! The broker could do that by itself, by an age of the stream. But then, while no orchestrator is there to end it, it would also let go of a task
//! that waits: accepted, charged, and known to nobody. So nothing in TASKS has an age. Whoever ends what is old removes it, too, from the
//! beginning of the log up to what is young enough, or to the first task that has not ended: it is found by the records of queues, for a queue
//! with such a task has one in BACKLOG, and everything in front of its cursor's [`open_from`](Cursor::open_from) has ended.
//!
//! A task's submission lies before its other events and goes before them: when its end goes depends on when it ended. In between the task is gone
//! for all readers, and what is left of it must not become part of another of the same id. So a task's submission is stored only where
//! nothing of the task is, which the broker sees to, and whoever submits one [removes](clear) what is left first.

use std::ops::Range;
use std::time::SystemTime;

use futures::{StreamExt as _, TryStreamExt as _};
use messaging::{Bucket, Event, EventLog};

use crate::open::next_queues;
use crate::{Cursor, MayGo, TaskLog, TaskLogError, TaskRef, Touch, record};

/// Queues that are looked at together.
const AT_ONCE: usize = 8;
/// Places that are removed by one request, so that none takes the broker long.
const STRETCH: u64 = 65_536;
/// Of these in one turn, so that a log that nobody has let go of for long keeps whoever calls from nothing else.
const STRETCHES: usize = 16;
/// Tasks that are removed by themselves in one turn.
const ONE_BY_ONE: usize = 64;

/// What came of letting go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LetGo {
    /// All that is old enough is gone.
    All,
    /// All in front of this place is gone. A task lies there that is old enough and has not ended, or some that have and were not looked through: the
    /// next turn goes on there. Or whoever called wanted no more.
    UpTo(u64),
    /// All in front of this place is gone, and what may go lies there, too: a turn removes so much and no more. The next may come at once.
    More(u64),
}

/// The first task that is old enough to go and may not have ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    /// Where its submission lies.
    pub place: u64,
    /// Which task; `None` where its submission's subject names none.
    pub task: Option<TaskRef>,
}

/// Lets go of what is old.
pub struct Retention {
    log: TaskLog,
    backlog: Bucket<Touch>,
    cursors: Bucket<Cursor>,
    /// Places that are removed by one request.
    stretch: u64,
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
            stretch: STRETCH,
        })
    }
}

/// Removes what is left of a task whose submission has gone; nothing where there is one, or its end must stay.
///
/// Where this stops half way, or another does it too, no harm is done: events go by their places, and no task has what was without a submission.
pub(crate) async fn clear(
    tasks: &EventLog,
    task: &TaskRef,
    may_go: Option<&MayGo>,
) -> Result<(), TaskLogError> {
    let TaskRef { tenant, task, .. } = task;
    let left = tasks.last_of_each(&record::filter(tenant, *task)).await?;
    // A replica has the log as it was at some time, and what lay there without a submission was left over. The leader is asked all the same, as
    // before all that cannot be undone.
    if left.iter().any(record::is_submission) {
        return Ok(());
    }
    let submission = record::event_in_any_lane(tenant, *task, "submitted");
    if tasks.last_at_leader(&submission).await?.is_some() {
        return Ok(());
    }
    for end in left.iter().filter(|event| record::is_end(event)) {
        let place = end.sequence;
        if let Some(may_go) = may_go
            && !may_go(place).await
        {
            return Err(TaskLogError::EarlierEnd { place });
        }
    }
    for event in &left {
        tasks.remove(event.sequence).await?;
    }
    tracing::debug!(%task, events = left.len(), "what was left of an earlier task of this id is removed");
    Ok(())
}

impl Retention {
    /// The same, with so many places removed by one request. For tests: their logs are short.
    #[must_use]
    pub fn in_stretches_of(mut self, places: u64) -> Self {
        self.stretch = places.max(1);
        self
    }

    /// Removes what was stored before `time`, by the broker's clock, up to the first task that has not ended, and nothing at `bound` or behind it;
    /// about a million places at most. Several may do so at once.
    ///
    /// # Errors
    /// When the broker does not answer. Calling again goes on.
    pub async fn let_go(&self, time: SystemTime, bound: u64) -> Result<LetGo, TaskLogError> {
        let Some(old) = self.old(time).await? else {
            return Ok(LetGo::All);
        };
        let end = old.end.min(bound);
        if end <= old.start {
            return Ok(LetGo::UpTo(end));
        }
        let open = self.first_open_before(end).await?;
        let open = open.map(|held| held.place);
        let until = open.unwrap_or(end);
        let mut gone = old.start;
        for _ in 0..STRETCHES {
            if gone >= until {
                break;
            }
            gone = until.min(gone.saturating_add(self.stretch));
            self.log.tasks.remove_before(gone).await?;
        }
        if gone < until {
            return Ok(LetGo::More(gone));
        }
        let stays = open.or((end < old.end).then_some(end));
        Ok(stays.map_or(LetGo::All, LetGo::UpTo))
    }

    /// The first task that was stored before `time`, by the broker's clock, and may not have ended: the log keeps it, and all behind it.
    ///
    /// # Errors
    /// When the broker does not answer.
    pub async fn held(&self, time: SystemTime) -> Result<Option<Held>, TaskLogError> {
        match self.old(time).await? {
            Some(old) => self.first_open_before(old.end).await,
            None => Ok(None),
        }
    }

    /// Removes some tasks by themselves that ended before `time`, by the broker's clock, and whose ends lie behind `place` and before `bound`; how many.
    /// For a log that is full: it has no room for an end either, so what has not ended at `place` would keep all that has for ever.
    ///
    /// # Errors
    /// When the broker does not answer. Calling again goes on.
    pub async fn make_room(
        &self,
        time: SystemTime,
        place: u64,
        bound: u64,
    ) -> Result<usize, TaskLogError> {
        let ends = "inkstone.task.*.*.*.done";
        let ends = self.log.tasks.from_sequence(ends, place, ONE_BY_ONE);
        let ends = ends.await?;
        let is_old =
            |end: &&Event| end.sequence < bound && end.stored_at().is_some_and(|at| at < time);
        let mut gone = 0;
        for end in ends.iter().take_while(is_old) {
            self.remove(end).await?;
            gone += 1;
        }
        Ok(gone)
    }

    /// Removes what is there of a task that has ended like this; what was said of it since goes with what lies there.
    async fn remove(&self, end: &Event) -> Result<(), TaskLogError> {
        let tasks = &self.log.tasks;
        if let Some(TaskRef { tenant, task, .. }) = record::place_of(&end.subject) {
            let mut events = tasks.last_of_each(&record::filter(&tenant, task)).await?;
            // Gone where an earlier turn was interrupted; or a replica lags, and without its end it would be a task that has not ended.
            if !events.iter().any(record::is_submission) {
                let place = record::event_in_any_lane(&tenant, task, "submitted");
                events.extend(tasks.last_at_leader(&place).await?);
            }
            events.retain(|event| event.sequence < end.sequence);
            // Its submission first, its end last: otherwise it would be a task that has not ended, were nothing more removed.
            events.sort_by_key(|event| !record::is_submission(event));
            for event in &events {
                tasks.remove(event.sequence).await?;
            }
        }
        tasks.remove(end.sequence).await?;
        Ok(())
    }

    /// The places of what was stored before `time`; `None` where there is nothing, or nobody knows.
    async fn old(&self, time: SystemTime) -> Result<Option<Range<u64>>, TaskLogError> {
        let tasks = &self.log.tasks;
        let extent = tasks.extent().await?;
        let end = match extent.last_at < time {
            true => Some(extent.last + 1),
            // A replica that lags may know of nothing that is young enough: then it is not known where that begins.
            false => tasks.sequence_at("inkstone.task.>", time).await?,
        };
        let end = end.filter(|end| *end > extent.first);
        Ok(end.map(|end| extent.first..end))
    }

    /// The first place before `end` at which a task lies that may not have ended.
    async fn first_open_before(&self, end: u64) -> Result<Option<Held>, TaskLogError> {
        let (mut first, mut revision) = (None::<Event>, Some(0));
        while let Some(since) = revision {
            let (queues, next) = next_queues(&self.backlog, since).await?;
            let looks: Vec<_> = queues
                .into_iter()
                .map(|queue| self.log.first_open(&self.cursors, queue, end))
                .collect();
            let mut looks = futures::stream::iter(looks).buffer_unordered(AT_ONCE);
            while let Some(found) = looks.try_next().await? {
                let both = first.into_iter().chain(found);
                first = both.min_by_key(|event| event.sequence);
            }
            revision = next;
        }
        Ok(first.map(|event| Held {
            place: event.sequence,
            task: record::place_of(&event.subject),
        }))
    }
}
