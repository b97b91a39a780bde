//! From the backlog to the workers: a task's state, and its dispatch in WORK.
//!
//! Neither write overwrites anything, so no task has two dispatches at once, whoever tries: WORK has a subject a task, and refuses a second
//! message there while the first waits or is being worked on. Whoever was interrupted between the two writes does both again.

use contract::task::{Dispatch, Phase, State, Submitted};
use messaging::Replaced;

use crate::{Record, TaskLog, TaskLogError, TaskRef, encode, record, streams, transition};

/// A task that is to be handed to workers.
#[derive(Debug, Clone)]
pub struct Handover {
    /// Which task.
    pub task: TaskRef,
    /// The model's canonical name.
    pub model: String,
    /// Its version.
    pub version: String,
    /// Its lane's, for those who share a worker with it.
    pub weight: u32,
    /// Its submission, byte for byte as the log has it, which spares the worker reading it; empty where it is not at hand.
    pub submitted: Vec<u8>,
}

/// What came of handing a task over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Handed {
    /// Its dispatch is in WORK from now on.
    Dispatched,
    /// Its dispatch was there before.
    Already,
    /// It has ended.
    Ended,
}

/// What came of a task whose dispatch was missed in WORK.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Missed {
    /// It was lost: the task has a new one from now on.
    Dispatched,
    /// It is there after all.
    There,
    /// It was lost, but a worker had the task, and may be at it still.
    Running,
    /// The task has ended, or the log has it no more.
    Over,
}

impl TaskLog {
    /// Hands a task to the workers of its model version, unless they have it or it is known to have ended. One that was ended before it was
    /// ever handed over is handed over all the same: who takes it finds out.
    ///
    /// # Errors
    /// When it is not known whether its dispatch is stored. Try again: it is there once, however often that is.
    pub async fn hand_over(&self, to: Handover) -> Result<Handed, TaskLogError> {
        let now = self.now().into();
        let state = State {
            phase: Phase::Scheduled.into(),
            scheduled_at: Some(now),
            at: Some(now),
            ..State::default()
        };
        // Before the dispatch, so that a fast worker's "running" is not overwritten; and never over a state that is there, which may name
        // a checkpoint.
        let subject = to.task.subject("state");
        let stands = match self.tasks.replace(&subject, encode(&state), 0).await? {
            Replaced::Stored(sequence) => Some((state, sequence)),
            Replaced::Refused => {
                // It was handed over before, and may have ended since.
                let done = self.tasks.last(&to.task.subject("done")).await?;
                if !transition::needs_dispatch(true, done.is_some()) {
                    return Ok(Handed::Ended);
                }
                // Whoever takes it up reads what stands there.
                None
            }
        };
        self.queue_dispatch(to, Some(0), stands).await
    }

    /// Hands a task over once more whose dispatch was handed over and is in WORK no more, unless it has ended; what a worker has begun only
    /// where `though_running` says so. Asks the log's leader: a worker stores the end before it takes the dispatch off, so where the leader
    /// has none, the dispatch was lost.
    ///
    /// # Errors
    /// When it is not known whether its dispatch is stored. Try again: it is there once, however often that is. Or its record [cannot be
    /// read](TaskLogError::is_unreadable), so nobody could carry it out; one that has ended needs not be read.
    pub async fn hand_over_again(
        &self,
        task: &TaskRef,
        weight: u32,
        though_running: bool,
    ) -> Result<Missed, TaskLogError> {
        let events = self.events_at_leader(&task.tenant, task.task).await?;
        if events.iter().any(record::is_end) {
            return Ok(Missed::Over);
        }
        let Some(Record {
            submitted, state, ..
        }) = Record::from_events(&events)?
        else {
            return Ok(Missed::Over);
        };
        let is_running = state.is_some_and(|state| state.phase() == Phase::Running);
        if is_running && !though_running {
            return Ok(Missed::Running);
        }
        let to = Handover {
            task: task.clone(),
            model: submitted.model,
            version: submitted.model_version,
            weight,
            // Whoever takes it up reads what the log holds by then.
            submitted: Vec::new(),
        };
        // Under no id: the broker remembers that of the one that was lost.
        Ok(match self.queue_dispatch(to, None, None).await? {
            Handed::Dispatched => Missed::Dispatched,
            Handed::Already | Handed::Ended => Missed::There,
        })
    }

    /// Queues the dispatch of a task alone. `attempt` tells it from others of the same task, for as long as the broker remembers.
    ///
    /// # Errors
    /// When it is not known to be stored.
    pub async fn dispatch(
        &self,
        submitted: &Submitted,
        attempt: u32,
        weight: u32,
    ) -> Result<Handed, TaskLogError> {
        let to = Handover {
            task: TaskRef::of(submitted)?,
            model: submitted.model.clone(),
            version: submitted.model_version.clone(),
            weight,
            submitted: Vec::new(),
        };
        self.queue_dispatch(to, Some(attempt), None).await
    }

    /// `attempt`: its message's id, which the broker remembers for a while; without one only the subject keeps it from being there twice.
    /// `stands`: the state that was written for it, and its place.
    async fn queue_dispatch(
        &self,
        to: Handover,
        attempt: Option<u32>,
        stands: Option<(State, u64)>,
    ) -> Result<Handed, TaskLogError> {
        let subject = streams::work_subject(&to.model, &to.version, &to.task);
        let message_id = attempt.map(|attempt| format!("{}-{attempt}", to.task.task));
        let mut dispatch = Dispatch {
            task_id: to.task.task.to_string(),
            tenant: to.task.tenant.to_string(),
            lane: to.task.lane.to_string(),
            weight: to.weight,
            ..Dispatch::default()
        };
        if let Some((state, sequence)) = stands
            && !to.submitted.is_empty()
        {
            dispatch.submitted = to.submitted;
            dispatch.state = Some(state);
            dispatch.state_sequence = sequence;
        }
        let (id, dispatch) = (message_id.as_deref(), encode(&dispatch));
        Ok(match self.work.create(&subject, id, dispatch).await? {
            true => Handed::Dispatched,
            false => Handed::Already,
        })
    }
}
