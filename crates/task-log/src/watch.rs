//! Following one task: its changes as they are stored, and its progress as far as it gets through.

use std::time::Duration;

use contract::task::{Done, ProgressEvent};
use contract::{TaskId, TenantId};
use futures::stream::{BoxStream, StreamExt as _};
use prost::Message as _;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at};

use crate::{Record, TaskLog, TaskLogError, TaskRef, progress_subject};

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
    Event,
    Progress(ProgressEvent),
}

/// A task being followed. Ends after the task's end.
pub struct Watch {
    log: TaskLog,
    tenant: TenantId,
    task: TaskId,
    notices: BoxStream<'static, Notice>,
    reread: Interval,
    last: Option<Record>,
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
        let events = self.broker.listen(events).await?.map(|_| Notice::Event);
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
        let notices = self.broker.listen(events).await?.map(drop).boxed();
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
            .is_some_and(|record| record.done.is_some())
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
                    Notice::Progress(_) | Notice::Event => {}
                },
                _ = self.reread.tick() => {}
            }
            let record = self.log.read(&self.tenant, self.task).await?;
            if record != self.last {
                self.last = record;
                if let Some(record) = &self.last {
                    return Ok(Some(Update::Changed(Box::new(record.clone()))));
                }
            }
        }
    }
}

/// The coming end of a task.
pub struct Ends {
    log: TaskLog,
    subject: String,
    notices: BoxStream<'static, ()>,
    reread: Interval,
}

impl Ends {
    /// Resolves with the end once it is stored. Can be dropped and called again.
    pub async fn wait(&mut self) -> Done {
        loop {
            tokio::select! {
                Some(()) = self.notices.next() => {}
                _ = self.reread.tick() => {}
            }
            match self.log.tasks.last(&self.subject).await {
                Ok(Some(event)) => match Done::decode(event.payload) {
                    Ok(done) => return done,
                    Err(error) => tracing::error!(%error, "an end cannot be decoded"),
                },
                Ok(None) => {}
                Err(error) => tracing::debug!(%error, "asking again for the end"),
            }
        }
    }
}
