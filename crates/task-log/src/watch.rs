//! Following one task: its changes as they are stored, and its progress as far as it gets through.
//!
//! What is heard of is stored, but a replica that lags may answer the next read without it. So what was heard counts, and what was known:
//! an event gives way to none that lies before it in the log.

use std::time::Duration;

use bytes::Bytes;
use contract::task::{Done, ProgressEvent};
use contract::{TaskId, TenantId};
use futures::stream::{BoxStream, StreamExt as _};
use messaging::Event;
use prost::Message as _;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at};

use crate::{Record, TaskLog, TaskLogError, TaskRef, decode, decode_end, progress_subject};

/// How often a watched task is read even though nothing was heard: notices may be lost, the log is not.
const REREAD: Duration = Duration::from_secs(2);

/// When the end of a task is looked for first: it may have been stored just before anybody listened. Most tasks are short against a
/// cancel in that moment, and need not be read again for it.
const FIRST_LOOK: Duration = Duration::from_millis(100);

/// One piece of news of a task.
#[derive(Debug, Clone)]
pub enum Update {
    /// The task after a change; the first update is always this.
    Changed(Box<Record>),
    /// Progress or a preview.
    Progress(ProgressEvent),
}

enum Notice {
    Event(Event),
    Progress(ProgressEvent),
}

/// A task being followed. Ends after the task's end.
pub struct Watch {
    log: TaskLog,
    tenant: TenantId,
    task: TaskId,
    notices: BoxStream<'static, Notice>,
    reread: Interval,
    /// The latest event that was heard of since the last read.
    heard: Option<Event>,
    last: Option<Known>,
}

impl TaskLog {
    /// Follows a task from now on; `None` when this tenant has no such task.
    ///
    /// # Errors
    /// When the broker does not answer.
    pub async fn watch(
        &self,
        tenant: &TenantId,
        task: TaskId,
    ) -> Result<Option<Watch>, TaskLogError> {
        let events = format!("inkstone.event.{tenant}.*.{task}.*");
        let events = self.broker.listen_for_events(events).await?;
        let events = events.map(Notice::Event);
        let progress = self.broker.listen(progress_subject(task)).await?;
        let progress = progress.filter_map(async |(_, payload)| {
            ProgressEvent::decode(payload).ok().map(Notice::Progress)
        });
        if self.read(tenant, task).await?.is_none() {
            return Ok(None);
        }
        let mut reread = tokio::time::interval(REREAD);
        reread.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Ok(Some(Watch {
            log: self.clone(),
            tenant: tenant.clone(),
            task,
            notices: futures::stream::select(events, progress).boxed(),
            reread,
            heard: None,
            last: None,
        }))
    }

    /// Waits until the task has ended, whoever ends it.
    ///
    /// # Errors
    /// When the broker cannot be asked at first; later silence is waited out.
    pub async fn ends(&self, task: &TaskRef) -> Result<Ends, TaskLogError> {
        let subject = task.subject("done");
        let events = subject.replacen("inkstone.task.", "inkstone.event.", 1);
        let notices = self
            .broker
            .listen(events)
            .await?
            .map(|(_, payload)| payload)
            .boxed();
        let mut reread = interval_at(Instant::now() + FIRST_LOOK, REREAD);
        reread.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Ok(Ends {
            log: self.clone(),
            subject,
            notices,
            reread,
        })
    }
}

impl Watch {
    /// The next update; `None` after the one that told the end.
    ///
    /// # Errors
    /// When the log cannot be read. Calling again goes on where it left off.
    pub async fn next(&mut self) -> Result<Option<Update>, TaskLogError> {
        if self
            .last
            .as_ref()
            .is_some_and(|known| known.record.done.is_some())
        {
            return Ok(None);
        }
        loop {
            // The interval's first tick is at once: that is the first read.
            tokio::select! {
                Some(notice) = self.notices.next() => match notice {
                    Notice::Progress(event) if self.last.is_some() => {
                        return Ok(Some(Update::Progress(event)));
                    }
                    Notice::Progress(_) => {}
                    Notice::Event(event) => self.heard = Some(event),
                },
                _ = self.reread.tick() => {}
            }
            let known = self.read().await?;
            if known != self.last {
                self.last = known;
                if let Some(known) = &self.last {
                    return Ok(Some(Update::Changed(Box::new(known.record.clone()))));
                }
            }
        }
    }

    /// What is known by now; `None` before the task was seen.
    async fn read(&mut self) -> Result<Option<Known>, TaskLogError> {
        let events = self.log.events(&self.tenant, self.task).await?;
        let heard = self.heard.take();
        let known = match self.last.clone() {
            Some(known) => Some(known),
            None => Record::from_events(&events)?.map(Known::of),
        };
        let Some(mut known) = known else {
            return Ok(None);
        };
        for event in events.iter().chain(&heard) {
            known.note(&event.subject, event.sequence, &event.payload)?;
        }
        Ok(Some(known))
    }
}

/// A task as far as it was read and heard of.
#[derive(Debug, Clone, PartialEq)]
struct Known {
    record: Record,
    /// The place in the log of what its caller last said; 0 before that was looked for.
    feedback: u64,
}

impl Known {
    fn of(record: Record) -> Self {
        Self {
            record,
            feedback: 0,
        }
    }

    /// Takes in one of the task's events, unless a later one at its subject is known.
    fn note(&mut self, subject: &str, sequence: u64, payload: &[u8]) -> Result<(), TaskLogError> {
        let record = &mut self.record;
        match subject.rsplit('.').next() {
            Some("state") if sequence > record.state_sequence => {
                record.state = Some(decode("state", payload)?);
                record.state_sequence = sequence;
            }
            Some("feedback") if sequence > self.feedback => {
                record.feedback = Some(decode("feedback", payload)?);
                self.feedback = sequence;
            }
            Some("done") if record.done.is_none() => {
                record.done = Some(decode_end(payload));
            }
            _ => {}
        }
        record.last_sequence = record.last_sequence.max(sequence);
        Ok(())
    }
}

/// The coming end of a task.
pub struct Ends {
    log: TaskLog,
    subject: String,
    /// The end as it was stored.
    notices: BoxStream<'static, Bytes>,
    reread: Interval,
}

impl Ends {
    /// Resolves with the end once it is stored. Can be dropped and called again.
    pub async fn wait(&mut self) -> Done {
        loop {
            let heard = tokio::select! {
                Some(payload) = self.notices.next() => Some(payload),
                _ = self.reread.tick() => None,
            };
            if let Some(done) = heard.and_then(|payload| Done::decode(payload).ok()) {
                return done;
            }
            // Of what is heard and cannot be read, that it is stored counts.
            match self.log.tasks.last(&self.subject).await {
                Ok(Some(event)) => return decode_end(&event.payload),
                Ok(None) => {}
                Err(error) => tracing::debug!(%error, "asking again for the end"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use contract::task::{Phase, State, Submitted};
    use contract::v1::{Feedback, TaskPhase};

    use super::*;

    fn known() -> Known {
        Known::of(Record {
            submitted: Submitted::default(),
            state: None,
            state_sequence: 0,
            last_sequence: 0,
            done: None,
            feedback: None,
            sequence: 1,
        })
    }

    fn state(phase: Phase) -> Vec<u8> {
        let state = State {
            phase: phase.into(),
            ..State::default()
        };
        state.encode_to_vec()
    }

    fn rated(rating: u32) -> Vec<u8> {
        let feedback = Feedback {
            rating,
            ..Feedback::default()
        };
        feedback.encode_to_vec()
    }

    #[test]
    fn what_was_heard_stands_against_an_older_answer() {
        let mut known = known();
        let mut note = |event: &str, sequence, payload: &[u8]| {
            let subject = format!("inkstone.task.acme.standard-image.t.{event}");
            known.note(&subject, sequence, payload).unwrap();
            (known.record.phase(), known.record.state_sequence)
        };
        let heard = note("state", 7, &state(Phase::Running));
        assert_eq!(heard, (TaskPhase::Running, 7));
        let read = note("state", 5, &state(Phase::Scheduled));
        assert_eq!(read, (TaskPhase::Running, 7));
        let done = Done::default().encode_to_vec();
        assert_eq!(note("done", 9, &done), (TaskPhase::Failed, 7));
        let read = note("state", 8, &state(Phase::Scheduled));
        assert_eq!(read, (TaskPhase::Failed, 8));
        note("feedback", 11, &rated(5));
        note("feedback", 10, &rated(1));
        assert_eq!(known.record.feedback.unwrap().rating, 5);
    }

    #[test]
    fn the_same_event_again_changes_nothing() {
        let mut once = known();
        let subject = "inkstone.task.acme.standard-image.t.state";
        once.note(subject, 7, &state(Phase::Running)).unwrap();
        let mut twice = once.clone();
        twice.note(subject, 7, &state(Phase::Running)).unwrap();
        assert_eq!(once, twice);
    }
}
