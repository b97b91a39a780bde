//! From the backlog to the workers: a task's state, and its dispatch in WORK.
//!
//! Neither write overwrites anything, so no task has two dispatches at once, whoever tries: WORK has a subject a task, and refuses a second
//! message there while the first waits or is being worked on. Whoever was interrupted between the two writes does both again.

use contract::task::{Dispatch, Phase, State, Submitted};
use messaging::{NewEvent, Replaced};

use crate::{Behind, Record, TaskLog, TaskLogError, TaskRef, encode, record, streams, transition};

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
    /// Where that lies in the log; 0 where it is not known.
    pub sequence: u64,
}

/// The state that a dispatch tells of.
struct Told {
    state: State,
    sequence: u64,
    /// Nothing else lies behind the submission.
    is_last: bool,
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
    /// Hands a task to the workers of its model version, unless they have it or it has ended. One whose end is on its way to the replicas of a cluster at
    /// that moment may be handed over: the end that its worker writes is the second, and does not count.
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
        // a checkpoint. Nor behind an end, but for one that is on its way to the replicas of a cluster.
        if to.sequence > 0
            && let Some(sequence) = self.append_state(&to.task, &state, to.sequence).await?
        {
            let told = Told {
                state,
                sequence,
                is_last: true,
            };
            return self.queue_dispatch(to, Some(0), Some(told)).await;
        }
        // In a box: hardly any needs it.
        Box::pin(self.hand_over_known(to, state)).await
    }

    /// Hands a task over that is known by more than its submission, or whose submission is known by no place. The leader says whether it has ended:
    /// it has refused the state, perhaps for an end of which a replica that lags has not heard.
    async fn hand_over_known(&self, to: Handover, state: State) -> Result<Handed, TaskLogError> {
        let done = self.tasks.last_at_leader(&to.task.subject("done")).await?;
        if !transition::needs_dispatch(done.is_some()) {
            return Ok(Handed::Ended);
        }
        // Where one stands there, whoever takes it up reads that.
        let written = self.replace_state(&to.task, &state, 0).await?;
        let told = written.map(|sequence| Told {
            state,
            sequence,
            is_last: false,
        });
        self.queue_dispatch(to, Some(0), told).await
    }

    /// Writes that a worker has the task from now on; the state's place. `None` where the task is not as it was read or told of: another has it by
    /// now, or it has ended.
    ///
    /// # Errors
    /// When neither is known. Try again with the same state: one that was stored is found.
    pub async fn take_up(
        &self,
        task: &TaskRef,
        state: &State,
        behind: Behind,
    ) -> Result<Option<u64>, TaskLogError> {
        match behind {
            Behind::Last(sequence) => self.append_state(task, state, sequence).await,
            Behind::State(sequence) => self.replace_state(task, state, sequence).await,
        }
    }

    /// Writes where a task stands, if the event with the sequence `after` is the last that the log has of it.
    async fn append_state(
        &self,
        task: &TaskRef,
        state: &State,
        after: u64,
    ) -> Result<Option<u64>, TaskLogError> {
        let event = NewEvent::new(task.subject("state"), task.subject("*"), encode(state));
        Ok(match self.tasks.append(&event, after).await? {
            Replaced::Stored(sequence) => Some(sequence),
            Replaced::Refused => None,
        })
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
            sequence: 0,
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
            sequence: 0,
        };
        self.queue_dispatch(to, Some(attempt), None).await
    }

    /// `attempt`: its message's id, which the broker remembers for a while; without one only the subject keeps it from being there twice.
    /// `told`: the state that was written for it.
    async fn queue_dispatch(
        &self,
        to: Handover,
        attempt: Option<u32>,
        told: Option<Told>,
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
        if let Some(told) = told
            && !to.submitted.is_empty()
        {
            dispatch.submitted = to.submitted;
            dispatch.state = Some(told.state);
            dispatch.state_sequence = told.sequence;
            dispatch.state_is_last = told.is_last;
        }
        let (id, dispatch) = (message_id.as_deref(), encode(&dispatch));
        Ok(match self.work.create(&subject, id, dispatch).await? {
            true => Handed::Dispatched,
            false => Handed::Already,
        })
    }
}
