//! The one log of tasks: append, read, and end exactly once.
//!
//! The stream TASKS is the only truth about tasks. Each task has at most four events, one subject each:
//! `inkstone.task.<tenant>.<lane>.<task>.<event>` with `submitted` (create-only), `state` and `feedback` (the last one counts) and
//! `done` (create-only). Both the orchestrator and the workers write here, through this crate, so the rules stand in
//! one place:
//!
//! * **I1** a task exists if and only if its `submitted` is stored: [`TaskLog::submit`], [`Intake::submit`];
//! * **I2** a task ends exactly once; whoever comes second reads the first end: [`TaskLog::end`];
//! * **I4** work is acknowledged only after `done` is stored: the worker acknowledges what [`TaskLog::end`] returned.
//!
//! Beside it lie WORK (what workers pull, [`TaskLog::hand_over`]) and DEAD (what was given up, [`TaskLog::bury`]). What may be
//! lost (progress, previews) goes over plain subjects. DEADLINES is an index of what must have begun by when ([`TaskLog::due`]).

pub mod deadline;
mod dispatch;
mod due;
mod error;
mod feedback;
mod follow;
mod intake;
mod letters;
mod listing;
mod manner;
mod open;
mod queue;
mod record;
mod retention;
mod streams;
mod time;
pub mod transition;
mod unreadable;
mod watch;
mod writer;

use std::sync::Arc;
use std::time::Duration;

use contract::task::{DeadLetter, Done, ProgressEvent, State, Submitted};
use contract::{ModelName, TaskId, TenantId, VersionName};
use messaging::{Appended, Broker, Event, EventLog, NewEvent, Puller, Replaced, WorkQueue};
use prost::Message;

pub use dispatch::{Handed, Handover, Missed};
pub use due::{Due, slot_of};
pub use error::TaskLogError;
pub use follow::{Following, Happened, Stretch, What};
pub use intake::{Commit, Committer, Intake, MayGo};
pub use letters::{Found, Letter, LetterId, LetterKind, LetterName, Undecodable, WantedLetters};
pub use listing::{Page, Wanted};
pub use queue::{Cursor, Queue, Touch};
pub use record::{Behind, Record, TaskRef, has_listeners};
pub use retention::{Held, LetGo, Retention};
pub use streams::{Out, StreamSettings, Work};
pub use unreadable::Unreadable;
pub use watch::{Ends, Update, Watch};
pub use writer::Writer;

/// What came of a submission.
#[derive(Debug, Clone, PartialEq)]
pub enum Submission {
    /// The task exists from now on.
    Accepted,
    /// It existed before; this is how it was submitted.
    Existing(Box<Submitted>),
}

/// What came of ending a task.
#[derive(Debug, Clone, PartialEq)]
pub enum Ended {
    /// This end counts.
    First,
    /// It had ended before, like this.
    Already(Box<Done>),
}

/// The log. Cheap to clone.
#[derive(Clone)]
pub struct TaskLog {
    broker: Broker,
    tasks: EventLog,
    dead: EventLog,
    deadlines: EventLog,
    work: WorkQueue,
    said: Arc<time::Said>,
}

impl TaskLog {
    /// Opens the log, whose streams someone [makes](TaskLog::ensure_streams).
    pub fn new(broker: Broker) -> Self {
        Self {
            tasks: broker.log(streams::TASKS),
            dead: broker.log(streams::DEAD),
            deadlines: broker.log(streams::DEADLINES),
            work: broker.queue(streams::WORK),
            said: Arc::default(),
            broker,
        }
    }

    /// Makes the streams, or brings them to these settings.
    ///
    /// # Errors
    /// When the broker refuses.
    pub async fn ensure_streams(&self, settings: &StreamSettings) -> Result<(), TaskLogError> {
        for spec in streams::specs(settings) {
            self.broker.ensure_stream(&spec).await?;
        }
        Ok(())
    }

    /// Stores that a task exists (create-only). What is left of an earlier task of its id goes, and nobody is [asked](MayGo).
    ///
    /// # Errors
    /// When it is not known to be stored. Unless it [is not](TaskLogError::is_not_stored), it may be: a caller that submits again under
    /// the same id finds out.
    pub async fn submit(&self, submitted: &Submitted) -> Result<Submission, TaskLogError> {
        intake::submit(&self.tasks, submitted, None).await
    }

    /// A way in for many at once. Whoever opens it runs the [`Committer`].
    pub fn intake(&self, commit: Commit) -> (Intake, Committer) {
        intake::open(self.tasks.clone(), commit)
    }

    /// All that is known of a task; `None` when this tenant has no such task.
    ///
    /// # Errors
    /// When the broker does not answer or an event cannot be decoded.
    pub async fn read(
        &self,
        tenant: &TenantId,
        task: TaskId,
    ) -> Result<Option<Record>, TaskLogError> {
        Record::from_events(&self.events(tenant, task).await?)
    }

    /// The same, as the log's leader has it. For whoever would do what cannot be undone because of something that the log does not hold: the replica that
    /// [`read`](Self::read) hears from may not have heard of it.
    ///
    /// # Errors
    /// As for [`read`](Self::read), and when the log has no leader just now.
    pub async fn read_at_leader(
        &self,
        tenant: &TenantId,
        task: TaskId,
    ) -> Result<Option<Record>, TaskLogError> {
        Record::from_events(&self.events_at_leader(tenant, task).await?)
    }

    /// The last of each of a task's events, none when this tenant has no such task. A replica that lags may not have heard of a task that was
    /// submitted a moment ago: its word that there is none is not taken, the stream's leader is asked.
    async fn events(&self, tenant: &TenantId, task: TaskId) -> Result<Vec<Event>, TaskLogError> {
        let filter = record::filter(tenant, task);
        let events = self.tasks.last_of_each(&filter).await?;
        if events.iter().any(record::is_submission) {
            return Ok(events);
        }
        // In a box: hardly any needs it.
        Box::pin(self.events_at_leader(tenant, task)).await
    }

    async fn events_at_leader(
        &self,
        tenant: &TenantId,
        task: TaskId,
    ) -> Result<Vec<Event>, TaskLogError> {
        let place = |event: &str| record::event_in_any_lane(tenant, task, event);
        let submission = self.tasks.last_at_leader(&place("submitted")).await?;
        let Some(submission) = submission else {
            return Ok(Vec::new());
        };
        let (state, feedback, done) = (place("state"), place("feedback"), place("done"));
        let (state, feedback, done) = futures::try_join!(
            self.tasks.last_at_leader(&state),
            self.tasks.last_at_leader(&feedback),
            self.tasks.last_at_leader(&done),
        )?;
        let events = [Some(submission), state, feedback, done];
        Ok(events.into_iter().flatten().collect())
    }

    /// How a task was submitted; `None` when there is no such task in this lane. As for [`read`](Self::read), a replica's word that there is none
    /// is not taken.
    ///
    /// # Errors
    /// As for [`read`](Self::read).
    pub async fn submitted(&self, task: &TaskRef) -> Result<Option<Submitted>, TaskLogError> {
        let subject = task.subject("submitted");
        let found = match self.tasks.at(&subject).await? {
            // In a box: hardly any needs it.
            None => Box::pin(self.tasks.last_at_leader(&subject)).await?,
            found => found,
        };
        let read = |event: Event| decode("submitted", &event.payload);
        found.map(read).transpose()
    }

    /// How a task ended; `None` when it has not, or there is no such task in this lane. Costs the broker one answer.
    ///
    /// # Errors
    /// As for [`read`](Self::read).
    pub async fn done(&self, task: &TaskRef) -> Result<Option<Done>, TaskLogError> {
        let found = self.tasks.at(&task.subject("done")).await?;
        Ok(found.map(|event| decode_end(&event.payload)))
    }

    /// The same as [`read`](Self::read) for whoever's task it is: for callers that hold the task's access token instead of a key.
    ///
    /// # Errors
    /// As for [`read`](Self::read).
    pub async fn read_for_any_tenant(&self, task: TaskId) -> Result<Option<Record>, TaskLogError> {
        let filter = format!("inkstone.task.*.*.{task}.*");
        Record::from_events(&self.tasks.last_of_each(&filter).await?)
    }

    /// Whether there is a task of whatever tenant, by the stream's leader: a replica that lags may say that there is none.
    ///
    /// # Errors
    /// As for [`read`](Self::read).
    pub async fn is_there(&self, task: TaskId) -> Result<bool, TaskLogError> {
        let filter = format!("inkstone.task.*.*.{task}.submitted");
        Ok(self.tasks.last_at_leader(&filter).await?.is_some())
    }

    /// Writes where a task stands, whatever stood there. For tests: two who write like this undo each other's.
    ///
    /// # Errors
    /// When it is not known to be stored.
    pub async fn set_state(&self, task: &TaskRef, state: &State) -> Result<(), TaskLogError> {
        let subject = task.subject("state");
        Ok(self.tasks.put(&subject, encode(state)).await?)
    }

    /// Writes where a task stands, in place of the state with the sequence `after`
    /// ([`Record::state_sequence`]), 0 for none; returns the new one's. `None` when another stands there by now: whoever wrote it has
    /// the task, and the writer, taken for dead perhaps, has not.
    ///
    /// # Errors
    /// When neither is known. Try again with the same state: one that was stored is found.
    pub async fn replace_state(
        &self,
        task: &TaskRef,
        state: &State,
        after: u64,
    ) -> Result<Option<u64>, TaskLogError> {
        let subject = task.subject("state");
        match self.tasks.replace(&subject, encode(state), after).await? {
            Replaced::Stored(sequence) => Ok(Some(sequence)),
            Replaced::Refused => Ok(None),
        }
    }

    /// Where a task stands, and the place of that in the log, as the stream's leader has it: for who was refused and must know by whom. `None`
    /// where it never left the backlog.
    ///
    /// # Errors
    /// When the broker does not answer, or what it has cannot be decoded.
    pub async fn state_at_leader(
        &self,
        task: &TaskRef,
    ) -> Result<Option<(State, u64)>, TaskLogError> {
        let found = self.tasks.last_at_leader(&task.subject("state")).await?;
        let Some(event) = found else {
            return Ok(None);
        };
        Ok(Some((decode("state", &event.payload)?, event.sequence)))
    }

    /// Ends a task unless it has ended (create-only).
    ///
    /// # Errors
    /// When neither is known. Try again: the answer is the same however often it is asked.
    pub async fn end(&self, task: &TaskRef, done: &Done) -> Result<Ended, TaskLogError> {
        let subject = task.subject("done");
        let event = NewEvent::new(subject.clone(), subject, encode(done));
        match self.tasks.create(&event).await? {
            Appended::Created => Ok(Ended::First),
            Appended::Exists(payload) => Ok(Ended::Already(Box::new(decode_end(&payload)))),
        }
    }

    /// The bytes that TASKS takes.
    ///
    /// # Errors
    /// When the broker does not answer.
    pub async fn size(&self) -> Result<u64, TaskLogError> {
        Ok(self.tasks.size().await?)
    }

    /// Keeps a copy of what was given up, with the reason.
    ///
    /// # Errors
    /// When it is not known to be stored.
    pub async fn bury(&self, letter: &DeadLetter) -> Result<(), TaskLogError> {
        let DeadLetter {
            tenant,
            task_id,
            kind,
            ..
        } = letter;
        let subject = match kind.as_str() {
            "" => format!("inkstone.dead.{tenant}.{task_id}"),
            // Beside the task's own, if it has one.
            kind => format!("inkstone.dead.{tenant}.{task_id}.{kind}"),
        };
        Ok(self.dead.put(&subject, encode(letter)).await?)
    }

    /// The dispatches that wait or are being worked on, subject by subject.
    ///
    /// # Errors
    /// When the broker does not answer.
    pub async fn out(&self) -> Result<Vec<Out>, TaskLogError> {
        let depths = self.work.depth("inkstone.work.>").await?;
        Ok(depths.into_iter().filter_map(streams::out).collect())
    }

    /// The same, added up.
    ///
    /// # Errors
    /// When the broker does not answer.
    pub async fn work(&self) -> Result<Work, TaskLogError> {
        Ok(streams::work(self.out().await?))
    }

    /// How many tasks of a tenant have not ended and wait for a worker to be handed to. It is counted anew, which costs the broker
    /// time that grows with the tenant's tasks in the log; while tasks begin and end it may be off by some of them. Too few where the log
    /// has let go of submissions whose ends it still has: by as many as had not ended when the oldest that is left came.
    ///
    /// # Errors
    /// When the broker does not answer.
    pub async fn waiting(&self, tenant: &TenantId) -> Result<u64, TaskLogError> {
        let of = |event| format!("inkstone.task.{tenant}.*.*.{event}");
        let (submitted, done) = (of("submitted"), of("done"));
        // Of this version, and of the one before it, whose dispatches may still be there.
        let out = format!("inkstone.work.*.*.*.{tenant}.*");
        let older = format!("inkstone.work.*.*.*.{tenant}");
        let (submitted, done, out, older) = futures::try_join!(
            self.tasks.count(&submitted),
            self.tasks.count(&done),
            self.work.depth(&out),
            self.work.depth(&older),
        )?;
        let out = out.into_iter().chain(older);
        let out: usize = out.map(|(_, depth)| depth).sum();
        Ok(submitted.saturating_sub(done).saturating_sub(out as u64))
    }

    /// Opens the consumer that all workers of a model version share.
    ///
    /// # Errors
    /// When the broker refuses, or WORK does not exist so far.
    pub async fn work_of(
        &self,
        model: &ModelName,
        version: &VersionName,
        ack_wait: Duration,
    ) -> Result<Puller, TaskLogError> {
        let name = format!("worker_{model}_{version}");
        let filter = format!("inkstone.work.{model}.{version}.>");
        let puller = self.work.puller(&name, &filter, ack_wait, streams::MAX_OUT);
        Ok(puller.await?)
    }

    /// Opens the consumer that hands each end, of whatever task, to one orchestrator.
    ///
    /// # Errors
    /// When the broker refuses.
    pub async fn ends_of_all(&self, ack_wait: Duration) -> Result<Puller, TaskLogError> {
        let queue = self.broker.queue(streams::TASKS);
        let filter = "inkstone.task.*.*.*.done";
        let puller = queue.puller("notices", filter, ack_wait, streams::MAX_OUT);
        Ok(puller.await?)
    }

    /// Tells who watches a task how it comes on. May be lost.
    pub async fn tell_progress(&self, task: TaskId, event: &ProgressEvent) {
        self.broker
            .tell(progress_subject(task), encode(event))
            .await;
    }
}

fn progress_subject(task: TaskId) -> String {
    format!("inkstone.progress.{task}")
}

fn encode(message: &impl Message) -> bytes::Bytes {
    message.encode_to_vec().into()
}

fn decode<M: Message + Default>(what: &'static str, payload: &[u8]) -> Result<M, TaskLogError> {
    M::decode(payload).map_err(|source| TaskLogError::Decode { what, source })
}

/// An end. One that cannot be read is one all the same, of which no more is known: whoever took it for none would try to write another for ever.
fn decode_end(payload: &[u8]) -> Done {
    Done::decode(payload).unwrap_or_else(|error| {
        tracing::error!(%error, "a task has ended, and its end cannot be decoded");
        Done::default()
    })
}
