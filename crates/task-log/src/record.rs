//! One task, put together from its events.

use contract::task::{Dispatch, Done, Phase, State, Submitted, done};
use contract::v1::{self, Feedback, TaskPhase};
use contract::{Lane, TaskId, TenantId};
use messaging::Event;

use crate::{Queue, TaskLogError, decode, decode_end};

/// Where a task's events are.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct TaskRef {
    /// Whose task.
    pub tenant: TenantId,
    /// In which lane.
    pub lane: Lane,
    /// Which task.
    pub task: TaskId,
}

impl TaskRef {
    /// The place of the task that `submitted` makes.
    ///
    /// # Errors
    /// When it holds an invalid id.
    pub fn of(submitted: &Submitted) -> Result<Self, TaskLogError> {
        Self::parse(&submitted.tenant, &submitted.lane, &submitted.task_id)
    }

    /// Reads the three ids.
    ///
    /// # Errors
    /// When one is invalid.
    pub fn parse(tenant: &str, lane: &str, task: &str) -> Result<Self, TaskLogError> {
        Ok(Self {
            tenant: tenant.parse()?,
            lane: lane.parse()?,
            task: task.parse()?,
        })
    }

    pub(crate) fn subject(&self, event: &str) -> String {
        let Self { tenant, lane, task } = self;
        format!("inkstone.task.{tenant}.{lane}.{task}.{event}")
    }
}

/// All events of one task, whatever its lane.
pub(crate) fn filter(tenant: &TenantId, task: TaskId) -> String {
    format!("inkstone.task.{tenant}.*.{task}.*")
}

/// One event of a task, whatever its lane.
pub(crate) fn event_in_any_lane(tenant: &TenantId, task: TaskId, event: &str) -> String {
    format!("inkstone.task.{tenant}.*.{task}.{event}")
}

/// Events that a task has at most: submitted, state, feedback, done.
pub(crate) const EVENTS: usize = 4;

/// Whether `event` is a task's submission.
pub(crate) fn is_submission(event: &Event) -> bool {
    event.subject.ends_with(".submitted")
}

/// Whether `event` is a task's end.
pub(crate) fn is_end(event: &Event) -> bool {
    event.subject.ends_with(".done")
}

/// Where the events of the task are whose event is at `subject`.
pub(crate) fn place_of(subject: &str) -> Option<TaskRef> {
    let Queue { lane, tenant } = Queue::of_subject(subject)?;
    let task = task_of(subject)?;
    Some(TaskRef { tenant, lane, task })
}

/// The task whose event is at `subject`.
pub(crate) fn task_of(subject: &str) -> Option<TaskId> {
    subject.split('.').nth(4)?.parse().ok()
}

/// Whether somebody hears of the task's end without asking: its producer, or its webhook.
pub fn has_listeners(submitted: &Submitted) -> bool {
    let webhook = submitted
        .request
        .as_ref()
        .and_then(|it| it.webhook.as_ref());
    submitted.producer.is_some() || webhook.is_some()
}

/// Behind which event of a task its next state is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Behind {
    /// Behind the one with this sequence, if no later one of the task is there, of whatever kind.
    Last(u64),
    /// In place of the state with this sequence, 0 for none, whatever else is there.
    State(u64),
}

/// All that the log knows of one task.
#[derive(Debug, Clone, PartialEq)]
pub struct Record {
    /// How it was submitted.
    pub submitted: Submitted,
    /// Where it stands, once it left the backlog.
    pub state: Option<State>,
    /// The place of that in the log, which [`TaskLog::replace_state`](crate::TaskLog::replace_state) and [`TaskLog::take_up`](crate::TaskLog::take_up) go
    /// by; 0 without one.
    pub state_sequence: u64,
    /// The place of the last event of the task, of whatever kind; 0 where it is not known which that is.
    pub last_sequence: u64,
    /// How it ended.
    pub done: Option<Done>,
    /// What its caller last said of it.
    pub feedback: Option<Feedback>,
    /// Where its submission lies in the log; 0 where that is not known.
    pub sequence: u64,
}

impl Record {
    pub(crate) fn from_events(events: &[Event]) -> Result<Option<Self>, TaskLogError> {
        let event = |name: &str| {
            let of = |event: &&Event| event.subject.rsplit('.').next() == Some(name);
            events.iter().find(of)
        };
        let find = |name: &str| event(name).map(|event| &event.payload[..]);
        let submission = events.iter().find(|event| is_submission(event));
        let sequence = submission.map(|event| event.sequence);
        let Some(submitted) = find("submitted") else {
            return Ok(None);
        };
        Ok(Some(Self {
            submitted: decode("submitted", submitted)?,
            state: find("state").map(|p| decode("state", p)).transpose()?,
            state_sequence: event("state").map_or(0, |event| event.sequence),
            last_sequence: events.iter().map(|it| it.sequence).max().unwrap_or(0),
            done: find("done").map(decode_end),
            feedback: find("feedback")
                .map(|p| decode("feedback", p))
                .transpose()?,
            sequence: sequence.unwrap_or(0),
        }))
    }

    /// What a dispatch tells of its task: the log as it was when the dispatch was queued. `None` where it does not tell all of that, or tells of
    /// another task than its own.
    ///
    /// It knows of no end. Whether the state still stands, the next write tells ([`TaskLog::take_up`](crate::TaskLog::take_up)), and where the state was
    /// the task's last event, whether that is over; else who goes by it asks ([`TaskLog::done`](crate::TaskLog::done)).
    pub fn of_dispatch(task: &TaskRef, dispatch: &Dispatch) -> Option<Self> {
        let state = dispatch.state.clone()?;
        let submitted: Submitted = decode("submitted", &dispatch.submitted).ok()?;
        let is_own = TaskRef::of(&submitted).is_ok_and(|told| told == *task);
        if !is_own || dispatch.state_sequence == 0 {
            return None;
        }
        Some(Self {
            submitted,
            state: Some(state),
            state_sequence: dispatch.state_sequence,
            last_sequence: match dispatch.state_is_last {
                true => dispatch.state_sequence,
                false => 0,
            },
            done: None,
            feedback: None,
            sequence: 0,
        })
    }

    /// Behind which event the state is stored of whoever takes the task up.
    ///
    /// Behind the last one where a dispatch told of it: nobody had the task before. Where it was read, in place of its state: who had it may be writing in place
    /// of that, too, and the broker of a cluster sees that two writes exclude each other only where both go by the same subjects.
    pub fn behind(&self) -> Behind {
        match (self.sequence, self.last_sequence) {
            (0, last) if last > 0 => Behind::Last(last),
            _ => Behind::State(self.state_sequence),
        }
    }

    /// Where the task's events are.
    ///
    /// # Errors
    /// When the stored ids are invalid.
    pub fn task_ref(&self) -> Result<TaskRef, TaskLogError> {
        TaskRef::of(&self.submitted)
    }

    /// Times a worker took the task up so far.
    pub fn attempts(&self) -> u32 {
        self.state.as_ref().map_or(0, |state| state.attempt)
    }

    /// The phase that the events add up to.
    pub fn phase(&self) -> TaskPhase {
        if let Some(done) = &self.done {
            return match done.outcome {
                Some(done::Outcome::Succeeded(_)) => TaskPhase::Succeeded,
                Some(done::Outcome::Cancelled(_)) => TaskPhase::Cancelled,
                // An end without a known outcome was written by a later version: it has ended all the same.
                Some(done::Outcome::Failed(_)) | None => TaskPhase::Failed,
            };
        }
        match self.state.as_ref().map(State::phase) {
            None | Some(Phase::Unspecified) => TaskPhase::Queued,
            Some(Phase::Scheduled) => TaskPhase::Scheduled,
            Some(Phase::Running) => TaskPhase::Running,
        }
    }

    /// The task as its tenant sees it.
    pub fn view(&self) -> v1::Task {
        let submitted = &self.submitted;
        let state = self.state.as_ref();
        let done = self.done.as_ref();
        let (images, error) = match done.and_then(|done| done.outcome.as_ref()) {
            Some(done::Outcome::Succeeded(success)) => {
                let image =
                    |stored| image_info(stored, &submitted.task_id, &submitted.access_token);
                (success.images.iter().map(image).collect(), None)
            }
            Some(done::Outcome::Failed(failed)) => {
                let error = v1::TaskError {
                    code: failed.code.clone(),
                    message: failed.message.clone(),
                };
                (Vec::new(), Some(error))
            }
            Some(done::Outcome::Cancelled(_)) | None => (Vec::new(), None),
        };
        v1::Task {
            id: submitted.task_id.clone(),
            phase: self.phase().into(),
            request: submitted.request.clone(),
            model_version: submitted.model_version.clone(),
            submitted_at: submitted.at,
            scheduled_at: state.and_then(|s| s.scheduled_at),
            started_at: done
                .and_then(|d| d.started_at)
                .or(state.and_then(|s| s.started_at)),
            ended_at: done.and_then(|d| d.at),
            attempt: done.map_or(self.attempts(), |d| d.attempt),
            images,
            error,
            feedback: self.feedback.clone(),
            runs: self.runs(),
            // The scheduler knows.
            queue_position: None,
            estimated_wait_ms: None,
        }
    }

    /// Where it ran. The end of the last run is in the task's end.
    fn runs(&self) -> Vec<v1::Run> {
        let mut runs = self.state.as_ref().map_or(Vec::new(), |s| s.runs.clone());
        if let (Some(done), Some(last)) = (&self.done, runs.last_mut())
            && last.end.is_empty()
        {
            last.end = "ended".to_owned();
            last.ended_at = done.at;
        }
        runs
    }
}

fn image_info(stored: &contract::task::StoredImage, task: &str, token: &str) -> v1::ImageInfo {
    v1::ImageInfo {
        index: stored.index,
        seed: stored.seed,
        width: stored.width,
        height: stored.height,
        format: stored.format,
        size_bytes: stored.size_bytes,
        sha256: stored.sha256.clone(),
        path: format!("/v1/tasks/{task}/images/{}?token={token}", stored.index),
    }
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::*;

    fn dispatch() -> (TaskRef, Dispatch) {
        let submitted = Submitted {
            task_id: TaskId::random().to_string(),
            tenant: "acme".to_owned(),
            lane: "standard-image".to_owned(),
            ..Submitted::default()
        };
        let dispatch = Dispatch {
            submitted: submitted.encode_to_vec(),
            state: Some(State::default()),
            state_sequence: 7,
            ..Dispatch::default()
        };
        (TaskRef::of(&submitted).unwrap(), dispatch)
    }

    #[test]
    fn a_dispatch_tells_of_its_own_task_all_or_nothing() {
        let (task, whole) = dispatch();
        let record = Record::of_dispatch(&task, &whole).unwrap();
        assert_eq!(record.task_ref().unwrap(), task);
        assert_eq!((record.behind(), &record.done), (Behind::State(7), &None));
        let last = Dispatch {
            state_is_last: true,
            ..whole.clone()
        };
        let record = Record::of_dispatch(&task, &last).unwrap();
        assert_eq!(record.behind(), Behind::Last(7));
        let nothing = |alter: fn(&mut Dispatch)| {
            let mut dispatch = whole.clone();
            alter(&mut dispatch);
            assert_eq!(Record::of_dispatch(&task, &dispatch), None, "{dispatch:?}");
        };
        nothing(|dispatch| dispatch.submitted.clear());
        nothing(|dispatch| dispatch.submitted = b"\xff\xff not protobuf".to_vec());
        nothing(|dispatch| dispatch.state = None);
        nothing(|dispatch| dispatch.state_sequence = 0);
        let (another, _) = dispatch();
        assert_eq!(Record::of_dispatch(&another, &whole), None);
    }
}
