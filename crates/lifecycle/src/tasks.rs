//! Supervised tasks: each has a name, an owner and a policy for its end.

use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::FutureExt as _;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tokio_util::task::TaskTracker;
use tracing::Instrument as _;

/// Why a service cannot go on.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{service}: task `{task}` {problem}")]
pub struct TaskFailure {
    /// Whose task.
    pub service: &'static str,
    /// Which task.
    pub task: &'static str,
    /// How it ended.
    pub problem: String,
    /// Something in this process hangs that nothing inside of it can end: only a new process goes on.
    pub hung: bool,
}

/// The tasks of one service. Cheap to clone; all clones are the same set.
#[derive(Clone)]
pub struct Tasks {
    service: &'static str,
    tracker: TaskTracker,
    stopping: CancellationToken,
    failed: CancellationToken,
    failure: Arc<Mutex<Option<TaskFailure>>>,
    /// Whether the service's start is over.
    started: Arc<AtomicBool>,
}

impl Tasks {
    pub(crate) fn new(service: &'static str) -> Self {
        Self {
            service,
            tracker: TaskTracker::new(),
            stopping: CancellationToken::new(),
            failed: CancellationToken::new(),
            failure: Arc::default(),
            started: Arc::default(),
        }
    }

    /// The service's start is over.
    pub(crate) fn started(&self) {
        self.started.store(true, Ordering::Relaxed);
    }

    /// Runs what the service cannot live without. If it ends before the service stops, by returning or by a
    /// panic, the service has [failed](Self::failed). It must watch [`stopping`](Self::stopping) itself.
    pub fn critical<F, E>(&self, task: &'static str, future: F)
    where
        F: Future<Output = Result<(), E>> + Send + 'static,
        E: std::error::Error + Send + 'static,
    {
        let tasks = self.clone();
        self.track(task, async move {
            let problem = match AssertUnwindSafe(future).catch_unwind().await {
                Ok(_) if tasks.stopping.is_cancelled() => return,
                Ok(Ok(())) => return tasks.ended_by_itself(task),
                Ok(Err(error)) => format!("failed: {}", chain(&error)),
                Err(panic) => format!("panicked: {}", panic_text(&*panic)),
            };
            tasks.fail(task, problem);
        });
    }

    /// Runs one bounded piece of work, such as one request's. Its panic is logged and hurts nothing else.
    pub fn job<F>(&self, task: &'static str, future: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let service = self.service;
        // Not in a block of its own, which would have room for the future twice.
        let ended = AssertUnwindSafe(future).catch_unwind();
        self.track(
            task,
            ended.map(move |ended| {
                if let Err(panic) = ended {
                    tracing::error!(service, task, "panicked: {}", panic_text(&*panic));
                }
            }),
        );
    }

    #[allow(clippy::disallowed_methods)] // The one place where tasks are born.
    fn track(&self, task: &'static str, future: impl Future<Output = ()> + Send + 'static) {
        tracing::trace!(service = self.service, task, "starts");
        self.tracker
            .spawn(future.instrument(tracing::Span::current()));
    }

    /// Declares that the service cannot go on. Only the first failure counts.
    pub fn fail(&self, task: &'static str, problem: String) {
        self.declare(task, problem, false);
    }

    /// Declares that a part of the service hangs, so that only a new process can go on.
    pub fn hang(&self, task: &'static str, problem: String) {
        self.declare(task, problem, true);
    }

    fn declare(&self, task: &'static str, problem: String, hung: bool) {
        let failure = self.failure_of(task, problem, hung);
        tracing::error!(service = self.service, "{failure}");
        self.record(failure);
    }

    /// A start that fails lets go of what its tasks wait for: whoever starts the service is told why, and their ends are no news.
    fn ended_by_itself(&self, task: &'static str) {
        let failure = self.failure_of(task, "ended by itself".to_owned(), false);
        if self.started.load(Ordering::Relaxed) {
            tracing::error!(service = self.service, "{failure}");
        } else {
            tracing::debug!(service = self.service, "{failure}");
        }
        self.record(failure);
    }

    fn failure_of(&self, task: &'static str, problem: String, hung: bool) -> TaskFailure {
        TaskFailure {
            service: self.service,
            task,
            problem,
            hung,
        }
    }

    fn record(&self, failure: TaskFailure) {
        // A poisoned lock still holds a whole value: it is only ever set.
        let mut slot = self.failure.lock().unwrap_or_else(|e| e.into_inner());
        slot.get_or_insert(failure);
        self.failed.cancel();
    }

    /// Resolves when the service has been asked to stop.
    pub fn stopping(&self) -> WaitForCancellationFutureOwned {
        self.stopping.clone().cancelled_owned()
    }

    /// A token that is cancelled when the service has been asked to stop.
    pub fn stop_token(&self) -> CancellationToken {
        self.stopping.clone()
    }

    /// Resolves when a critical task has ended before its time.
    pub async fn failed(&self) -> TaskFailure {
        self.failed.cancelled().await;
        let slot = self.failure.lock().unwrap_or_else(|e| e.into_inner());
        slot.clone().unwrap_or(TaskFailure {
            service: self.service,
            task: "unknown",
            problem: "failed".to_owned(),
            hung: false,
        })
    }

    pub(crate) async fn stop(&self, grace: Duration) -> bool {
        self.stopping.cancel();
        self.tracker.close();
        let done = tokio::time::timeout(grace, self.tracker.wait()).await;
        if done.is_err() {
            let left = self.tracker.len();
            tracing::warn!(
                service = self.service,
                left,
                "tasks left behind after the grace time"
            );
        }
        done.is_ok()
    }
}

/// An error with its causes, on one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        let words = next.to_string();
        if !text.contains(&words) {
            text.push_str(": ");
            text.push_str(&words);
        }
        cause = next.source();
    }
    text
}

/// What a panic said.
pub fn panic_text(panic: &(dyn std::any::Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("without a message")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_critical_task_that_panics_fails_its_service_with_the_message() {
        let tasks = Tasks::new("test");
        tasks.critical("doomed", async {
            if true {
                panic!("the reason");
            }
            Ok::<(), std::io::Error>(())
        });
        let failure = tasks.failed().await;
        assert_eq!(failure.task, "doomed");
        assert!(failure.problem.contains("the reason"));
    }

    #[tokio::test]
    async fn a_critical_task_that_ends_too_early_fails_its_service_started_or_not() {
        for started in [false, true] {
            let tasks = Tasks::new("test");
            if started {
                tasks.started();
            }
            tasks.critical("short", async { Ok::<(), std::io::Error>(()) });
            let failure = tasks.failed().await;
            assert_eq!(failure.to_string(), "test: task `short` ended by itself");
        }
    }

    #[tokio::test]
    async fn stopping_waits_for_tasks_and_is_no_failure() {
        let tasks = Tasks::new("test");
        let stopping = tasks.stopping();
        tasks.critical("patient", async move {
            stopping.await;
            Ok::<(), std::io::Error>(())
        });
        assert!(tasks.stop(Duration::from_secs(5)).await);
        assert!(tasks.failure.lock().unwrap().is_none());
    }

    #[tokio::test]
    async fn a_job_that_panics_hurts_nothing_else() {
        let tasks = Tasks::new("test");
        tasks.job("clumsy", async { panic!("oh") });
        assert!(tasks.stop(Duration::from_secs(5)).await);
        assert!(tasks.failure.lock().unwrap().is_none());
    }

    #[tokio::test]
    async fn stopping_is_bounded_by_the_grace_time() {
        let tasks = Tasks::new("test");
        tasks.job("stubborn", std::future::pending());
        assert!(!tasks.stop(Duration::from_millis(20)).await);
    }
}
