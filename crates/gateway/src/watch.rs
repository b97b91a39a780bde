//! Follows one task to its end, whatever happens to the orchestrator on the way.

use std::sync::Arc;
use std::time::Duration;

use contract::auth::Caller;
use contract::v1::watch_response::Event;
use contract::{ErrorCode, Failure, TaskId, orchestrator, v1};
use tokio::time::Instant;
use tonic::Streaming;

use crate::edge::Edge;
use crate::revoked::{self, OpenKey};
use crate::task_json::has_ended;

/// First pause before a lost stream is opened again; doubles up to [`MAX_PAUSE`].
const MIN_PAUSE: Duration = Duration::from_millis(100);
const MAX_PAUSE: Duration = Duration::from_secs(2);
/// Longest wait for the orchestrator to begin a stream.
const OPEN_TIMEOUT: Duration = Duration::from_secs(5);
/// Faults of the orchestrator's own, in a row, before the caller hears of them.
const MAX_FAULTS: u32 = 5;
/// When to come back while the gateway restarts.
const RESTART_WAIT: Duration = Duration::from_secs(2);
/// Tries to cancel what nobody waits for any more.
const CANCEL_TRIES: u32 = 3;

/// Why a watch ended before its task.
#[derive(Debug)]
pub(crate) enum Parted {
    /// This gateway lets go of it, and whoever comes back, here or elsewhere, is told the rest.
    LetGo(Failure),
    /// To come back does not mend it.
    Failed(Failure),
}

impl From<Parted> for Failure {
    fn from(parted: Parted) -> Self {
        match parted {
            Parted::LetGo(failure) | Parted::Failed(failure) => failure,
        }
    }
}

/// A task's events, over as many streams as it takes.
pub(crate) struct Watch {
    edge: Arc<Edge>,
    caller: Caller,
    task: TaskId,
    previews: bool,
    deadline: Instant,
    stream: Option<Streaming<orchestrator::WatchResponse>>,
    pause: Duration,
    faults: u32,
    last: Option<v1::Task>,
    ended: bool,
    key: Arc<OpenKey>,
}

impl Watch {
    /// Follows `task` until `deadline` at most; nothing is sent yet.
    pub(crate) fn new(
        edge: Arc<Edge>,
        caller: &Caller,
        task: TaskId,
        previews: bool,
        deadline: Instant,
    ) -> Self {
        Self {
            key: revoked::hold(&edge, caller),
            edge,
            caller: caller.clone(),
            task,
            previews,
            deadline,
            stream: None,
            pause: MIN_PAUSE,
            faults: 0,
            last: None,
            ended: false,
        }
    }

    /// Which task it follows.
    pub(crate) fn task(&self) -> TaskId {
        self.task
    }

    /// The next event; `None` after the task's end. An error ends the watch, never the task.
    pub(crate) async fn next(&mut self) -> Result<Option<Event>, Parted> {
        if self.ended {
            return Ok(None);
        }
        let (task, deadline) = (self.task, self.deadline);
        let (drained, key) = (self.edge.drained.clone(), self.key.clone());
        tokio::select! {
            event = self.advance() => event.map(Some).map_err(Parted::Failed),
            () = tokio::time::sleep_until(deadline) => {
                let message = format!("the task goes on but took longer than this request may: see /v1/tasks/{task}");
                Err(Parted::LetGo(Failure::new(ErrorCode::DeadlineExceeded, message)))
            }
            () = drained.cancelled() => {
                let message = format!("this gateway stops; what becomes of the task: see /v1/tasks/{task}");
                Err(Parted::LetGo(Failure::unavailable(message, RESTART_WAIT)))
            }
            failure = key.revoked() => {
                let message = format!("{}; what becomes of the task: see /v1/tasks/{task}", failure.message);
                Err(Parted::Failed(Failure { message, ..failure }))
            }
        }
    }

    /// The task at its end.
    pub(crate) async fn end(&mut self) -> Result<v1::Task, Failure> {
        while let Some(event) = self.next().await? {
            match event {
                Event::Task(task) if has_ended(&task) => return Ok(task),
                _ => {}
            }
        }
        Err(Failure::new(
            ErrorCode::Internal,
            "the task's end was told before",
        ))
    }

    async fn advance(&mut self) -> Result<Event, Failure> {
        loop {
            let Some(stream) = self.stream.as_mut() else {
                self.open().await?;
                continue;
            };
            match stream.message().await {
                Ok(Some(response)) => {
                    self.pause = MIN_PAUSE;
                    self.faults = 0;
                    let event = response.event.and_then(|event| event.event);
                    if let Some(event) = event.filter(|event| self.is_news(event)) {
                        return Ok(event);
                    }
                }
                // The orchestrator stops, or the connection does; the task does not.
                Ok(None) => self.lost(None).await?,
                Err(status) => self.lost(Some(status.into())).await?,
            }
        }
    }

    async fn open(&mut self) -> Result<(), Failure> {
        let platform = self.edge.platform.clone();
        let opening = platform.watch(&self.caller, self.task, self.previews);
        match tokio::time::timeout(OPEN_TIMEOUT, opening).await {
            Ok(Ok(stream)) => {
                self.stream = Some(stream);
                Ok(())
            }
            Ok(Err(failure)) => self.lost(Some(failure)).await,
            Err(_) => self.lost(None).await,
        }
    }

    // Every new stream begins with the task as it is now, which the caller may know.
    fn is_news(&mut self, event: &Event) -> bool {
        let Event::Task(task) = event else {
            return true;
        };
        if self.last.as_ref() == Some(task) {
            return false;
        }
        self.ended = has_ended(task);
        self.last = Some(task.clone());
        true
    }

    async fn lost(&mut self, failure: Option<Failure>) -> Result<(), Failure> {
        self.stream = None;
        if let Some(failure) = failure {
            tracing::debug!(task = %self.task, %failure, "the watch of a task was lost");
            match after(failure.code) {
                After::Again => {}
                After::AgainAFewTimes if self.faults < MAX_FAULTS => self.faults += 1,
                _ => return Err(failure),
            }
        }
        tokio::time::sleep(self.pause).await;
        self.pause = (self.pause * 2).min(MAX_PAUSE);
        Ok(())
    }
}

/// What to do after a stream was lost.
#[derive(Debug, PartialEq, Eq)]
enum After {
    /// Open it again: it will pass.
    Again,
    /// It may be a fault that stays.
    AgainAFewTimes,
    /// It will be the same.
    GiveUp,
}

fn after(code: ErrorCode) -> After {
    match code {
        ErrorCode::Unavailable | ErrorCode::DeadlineExceeded | ErrorCode::RateLimited => {
            After::Again
        }
        // A connection that broke in the middle of a frame looks like this too.
        ErrorCode::Internal | ErrorCode::EngineFailed => After::AgainAFewTimes,
        _ => After::GiveUp,
    }
}

/// Cancels a task when it is dropped: its caller hung up, and nobody else can know of the task.
pub(crate) struct Abandon {
    edge: Arc<Edge>,
    caller: Caller,
    task: TaskId,
    armed: bool,
}

impl Abandon {
    /// Guards `task` until [disarmed](Self::disarm).
    pub(crate) fn new(edge: Arc<Edge>, caller: &Caller, task: TaskId) -> Self {
        Self {
            edge,
            caller: caller.clone(),
            task,
            armed: true,
        }
    }

    /// The caller has had its answer.
    pub(crate) fn disarm(&mut self) {
        self.armed = false;
    }

    /// The caller was told this before the task's end. Mostly the task then goes on by itself. But whoever is told to try again will
    /// submit again, and the first task would be drawn for nobody.
    pub(crate) fn told(&mut self, failure: &Failure) {
        if failure.code == ErrorCode::Unavailable {
            self.give_up();
        }
        self.disarm();
    }

    /// Cancels the task unless it is not guarded any more.
    fn give_up(&mut self) {
        // Outside the runtime there is no one to cancel with: the process ends.
        if !self.armed || tokio::runtime::Handle::try_current().is_err() {
            return;
        }
        self.disarm();
        metrics::counter!("inkstone_gateway_abandoned_total").increment(1);
        let (edge, caller, task) = (
            self.edge.clone(),
            std::mem::take(&mut self.caller),
            self.task,
        );
        let tasks = edge.tasks.clone();
        tasks.job("cancel-abandoned", async move {
            for _ in 0..CANCEL_TRIES {
                match edge
                    .platform
                    .cancel(&caller, task, "the caller hung up")
                    .await
                {
                    Err(failure) if failure.code == ErrorCode::Unavailable => {
                        tokio::time::sleep(MAX_PAUSE).await;
                    }
                    Ok(_) | Err(_) => return,
                }
            }
            tracing::warn!(%task, "an abandoned task could not be cancelled; it will be drawn");
        });
    }
}

impl Drop for Abandon {
    fn drop(&mut self) {
        self.give_up();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_restart_is_waited_out_and_a_refusal_is_not() {
        assert_eq!(after(ErrorCode::Unavailable), After::Again);
        assert_eq!(after(ErrorCode::Internal), After::AgainAFewTimes);
        assert_eq!(after(ErrorCode::TaskNotFound), After::GiveUp);
        assert_eq!(after(ErrorCode::PermissionDenied), After::GiveUp);
    }
}
