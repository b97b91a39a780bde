//! A tenant's tasks, newest first, in pages, without an index: the stream is read backwards in growing windows.

use std::collections::HashMap;
use std::time::{Duration, SystemTime};

use contract::task::Submitted;
use contract::v1::TaskPhase;
use contract::{TaskId, TenantId};
use messaging::{Event, MAX_BATCH};

use crate::{Record, TaskLog, TaskLogError, decode, record};

/// Sequences looked at first; each further window is four times as large.
const FIRST_WINDOW: u64 = 256;
/// Reads of the stream for one page: a bound on what a page may cost, whatever the log holds.
const MAX_READS: usize = 32;
/// Tasks whose phase is looked up for one page: the same for a phase that hardly any task is in.
const MAX_LOOKED_UP: usize = 1000;
/// Tasks whose events are read in one go.
const TOGETHER: usize = 100;
/// By how much the times of submission and of storing may differ.
const APART: Duration = Duration::from_secs(300);

// What one read returns holds all events of so many tasks.
const _: () = assert!(TOGETHER * record::EVENTS <= MAX_BATCH);

/// Which of a tenant's tasks.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Of this model; empty for all.
    pub model: String,
    /// In one of these phases; none for all.
    pub phases: Vec<TaskPhase>,
    /// Submitted then or later.
    pub after: Option<SystemTime>,
    /// Submitted before.
    pub before: Option<SystemTime>,
}

/// Some of a tenant's tasks.
#[derive(Debug, Clone)]
pub struct Page {
    /// Newest first.
    pub records: Vec<Record>,
    /// What to pass as `before` for the next page; `None` on the last.
    pub next: Option<u64>,
}

impl Wanted {
    /// What can be told without the task's other events.
    fn takes(&self, submitted: &Submitted) -> bool {
        let at = submitted.at.and_then(|at| SystemTime::try_from(at).ok());
        let at = at.unwrap_or(SystemTime::UNIX_EPOCH);
        (self.model.is_empty() || self.model == submitted.model)
            && self.after.is_none_or(|after| at >= after)
            && self.before.is_none_or(|before| at < before)
    }

    fn takes_phase(&self, phase: TaskPhase) -> bool {
        self.phases.is_empty() || self.phases.contains(&phase)
    }
}

/// Where a listing stands.
struct Walk {
    records: Vec<Record>,
    limit: usize,
    /// All from here on has been looked at.
    at: u64,
    looked_up: usize,
}

impl Walk {
    fn full(&self) -> bool {
        self.records.len() >= self.limit || self.looked_up >= MAX_LOOKED_UP
    }
}

impl TaskLog {
    /// Up to `limit` of the tasks of `tenant` that are wanted and were submitted before sequence `before`, newest first. A page may hold
    /// fewer, or none, and still have a next one: what one page costs is bounded.
    ///
    /// # Errors
    /// When the broker does not answer or an event cannot be decoded.
    pub async fn list(
        &self,
        tenant: &TenantId,
        wanted: &Wanted,
        before: Option<u64>,
        limit: usize,
    ) -> Result<Page, TaskLogError> {
        let filter = format!("inkstone.task.{tenant}.*.*.submitted");
        let (first, end) = self.bounds(&filter, wanted).await?;
        let mut walk = Walk {
            records: Vec::new(),
            limit,
            at: before.map_or(end, |before| before.min(end)),
            looked_up: 0,
        };
        let (mut window, mut reads) = (FIRST_WINDOW, 0);
        while walk.at > first && !walk.full() && reads < MAX_READS {
            reads += 1;
            let low = walk.at.saturating_sub(window).max(first);
            match self.between(&filter, low, walk.at).await? {
                Some(part) => {
                    let part = part.into_iter().rev();
                    let part = part.filter(|(_, submitted)| wanted.takes(submitted));
                    self.look_up(tenant, wanted, part.collect(), &mut walk)
                        .await?;
                    if !walk.full() {
                        walk.at = low;
                    }
                    window = window.saturating_mul(4);
                }
                // More than one read returns: look at less. A window of one batch always fits.
                None => window = (window / 4).max(MAX_BATCH as u64 / 2),
            }
        }
        Ok(Page {
            records: walk.records,
            next: (walk.at > first).then_some(walk.at),
        })
    }

    /// The sequences between which the wanted tasks are.
    async fn bounds(&self, filter: &str, wanted: &Wanted) -> Result<(u64, u64), TaskLogError> {
        let end = self.tasks.last_sequence().await? + 1;
        // Further away than any task, and than what the broker knows for times: all of them, or none.
        let (oldest, newest) = (SystemTime::UNIX_EPOCH, self.now() + 2 * APART);
        let first = match wanted.after.map(|time| time.checked_sub(APART)) {
            None | Some(None) => 1,
            Some(Some(after)) if after <= oldest => 1,
            Some(Some(after)) if after >= newest => end,
            Some(Some(after)) => self.tasks.sequence_at(filter, after).await?.unwrap_or(end),
        };
        let until = match wanted.before.map(|time| time.checked_add(APART)) {
            None | Some(None) => end,
            Some(Some(before)) if before >= newest => end,
            Some(Some(before)) if before <= oldest => 1,
            Some(Some(before)) => self.tasks.sequence_at(filter, before).await?.unwrap_or(end),
        };
        Ok((first, until))
    }

    /// Adds those that are in a wanted phase, until the walk is full.
    async fn look_up(
        &self,
        tenant: &TenantId,
        wanted: &Wanted,
        part: Vec<(u64, Submitted)>,
        walk: &mut Walk,
    ) -> Result<(), TaskLogError> {
        for some in part.chunks(TOGETHER) {
            let ids = some.iter().map(|(_, submitted)| submitted.task_id.parse());
            let ids = ids.collect::<Result<Vec<TaskId>, _>>()?;
            let mut records = self.read_each(tenant, &ids).await?;
            for ((sequence, _), id) in some.iter().zip(&ids) {
                if walk.full() {
                    return Ok(());
                }
                walk.at = *sequence;
                walk.looked_up += 1;
                if let Some(record) = records.remove(id)
                    && wanted.takes_phase(record.phase())
                {
                    walk.records.push(record);
                }
            }
        }
        Ok(())
    }

    /// What is known of each of these tasks, in one go; at most [`TOGETHER`].
    async fn read_each(
        &self,
        tenant: &TenantId,
        tasks: &[TaskId],
    ) -> Result<HashMap<TaskId, Record>, TaskLogError> {
        let filters = tasks.iter().map(|task| record::filter(tenant, *task));
        let filters: Vec<String> = filters.collect();
        let filters: Vec<&str> = filters.iter().map(String::as_str).collect();
        let mut events: HashMap<TaskId, Vec<Event>> = HashMap::new();
        for event in self.tasks.last_of_all(&filters).await? {
            if let Some(task) = record::task_of(&event.subject) {
                events.entry(task).or_default().push(event);
            }
        }
        let mut records = HashMap::new();
        for (task, events) in events {
            if let Some(record) = Record::from_events(&events)? {
                records.insert(task, record);
            }
        }
        Ok(records)
    }

    /// Events with `low ≤ sequence < high`, in stream order; `None` when they are more than one read returns.
    async fn between(
        &self,
        filter: &str,
        low: u64,
        high: u64,
    ) -> Result<Option<Vec<(u64, Submitted)>>, TaskLogError> {
        let events = self.tasks.from_sequence(filter, low, MAX_BATCH).await?;
        let cut = events.len() == MAX_BATCH && events.last().is_some_and(|e| e.sequence < high - 1);
        if cut {
            return Ok(None);
        }
        let within = events.into_iter().filter(|event| event.sequence < high);
        within
            .map(|event| Ok((event.sequence, decode("submitted", &event.payload)?)))
            .collect::<Result<_, _>>()
            .map(Some)
    }
}
