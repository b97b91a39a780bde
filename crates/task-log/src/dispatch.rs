//! From the backlog to the workers: a task's state, and its dispatch in WORK.
//!
//! Neither write overwrites anything, so no task has two dispatches at once, whoever tries: WORK has a subject a task, and refuses a second
//! message there while the first waits or is being worked on. Whoever was interrupted between the two writes does both again.

use contract::task::{Dispatch, Phase, State, Submitted};
use messaging::Replaced;

use crate::{TaskLog, TaskLogError, TaskRef, encode, streams, transition};

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

impl TaskLog {
    /// Hands a task to the workers of its model version, unless they have it or it is known to have ended. One that was ended before it was
    /// ever handed over is handed over all the same: who takes it finds out.
    ///
    /// # Errors
    /// When it is not known whether its dispatch is stored. Try again: it is there once, however often that is.
    pub async fn hand_over(&self, to: Handover) -> Result<Handed, TaskLogError> {
        let now = contract::now();
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
        self.queue_dispatch(to, 0, stands).await
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
        self.queue_dispatch(to, attempt, None).await
    }

    /// `stands`: the state that was written for it, and its place.
    async fn queue_dispatch(
        &self,
        to: Handover,
        attempt: u32,
        stands: Option<(State, u64)>,
    ) -> Result<Handed, TaskLogError> {
        let subject = streams::work_subject(&to.model, &to.version, &to.task);
        let message_id = format!("{}-{attempt}", to.task.task);
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
        let created = self.work.create(&subject, &message_id, encode(&dispatch));
        Ok(match created.await? {
            true => Handed::Dispatched,
            false => Handed::Already,
        })
    }
}
