//! Work that must be done and may be late: on a thread of its own, behind everything else.

use std::future::Future;

use tokio::sync::oneshot;
use tracing::Instrument as _;

use crate::tasks::Tasks;

/// How far behind (nice(2)): where others want all of the processor, a tenth of what one of them gets.
#[cfg(target_os = "linux")]
const NICE: i32 = 10;

/// Background work that ended.
#[derive(Debug, thiserror::Error)]
enum Ended<E: std::error::Error + 'static> {
    #[error("its thread cannot be started")]
    Thread(#[source] std::io::Error),
    #[error("it panicked; the log has it")]
    Panicked,
    #[error(transparent)]
    Failed(E),
}

impl Tasks {
    /// Runs what the service cannot live without, as [`critical`](Self::critical) does, where it takes nothing from those who wait for
    /// answers: on a thread of its own, of low priority. It must watch [`stopping`](Self::stopping) itself.
    pub fn background<F, E>(&self, task: &'static str, future: F)
    where
        F: Future<Output = Result<(), E>> + Send + 'static,
        E: std::error::Error + Send + 'static,
    {
        let (done, ended) = oneshot::channel();
        let span = tracing::Span::current();
        let work = move || {
            step_back(task);
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build();
            let outcome = match runtime {
                Ok(runtime) => runtime
                    .block_on(future.instrument(span))
                    .map_err(Ended::Failed),
                Err(error) => Err(Ended::Thread(error)),
            };
            // A service that is gone does not ask.
            let _ = done.send(outcome);
        };
        let thread = std::thread::Builder::new().name(task.to_owned());
        let started = thread.spawn(work);
        self.critical(task, async move {
            started.map_err(Ended::Thread)?;
            ended.await.unwrap_or(Err(Ended::Panicked))
        });
    }
}

/// Lets others go first. Threads that this one starts do the same.
fn step_back(task: &'static str) {
    // Of the thread that calls, on Linux; elsewhere it would be the whole process.
    #[cfg(target_os = "linux")]
    if let Err(error) = rustix::process::setpriority_process(None, NICE) {
        tracing::debug!(%error, task, "it takes its turn among all others");
    }
    #[cfg(not(target_os = "linux"))]
    let _ = task;
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("as the test wants it")]
    struct Wanted;

    #[tokio::test]
    async fn it_runs_behind_others_and_its_failure_is_the_services() {
        let tasks = Tasks::new("test");
        let own = rustix::process::getpriority_process(None).unwrap();
        let (tell, told) = oneshot::channel();
        tasks.background("late", async move {
            // It has timers of its own.
            tokio::time::sleep(Duration::from_millis(1)).await;
            let own = std::thread::current().name().map(str::to_owned);
            let _ = tell.send((own, rustix::process::getpriority_process(None)));
            Err(Wanted)
        });
        let (name, nice) = told.await.unwrap();
        assert_eq!(name.as_deref(), Some("late"));
        #[cfg(target_os = "linux")]
        assert_eq!(nice.unwrap(), NICE.max(own));
        let failure = tokio::time::timeout(Duration::from_secs(10), tasks.failed()).await;
        assert!(
            failure
                .unwrap()
                .to_string()
                .contains("as the test wants it")
        );
        // Those that go first still do.
        assert_eq!(rustix::process::getpriority_process(None), Ok(own));
    }

    #[tokio::test]
    async fn its_panic_is_the_services_too() {
        let tasks = Tasks::new("test");
        tasks.background("late", async {
            let broken = true;
            assert!(!broken, "as the test wants it");
            Ok::<(), Wanted>(())
        });
        let failure = tokio::time::timeout(Duration::from_secs(10), tasks.failed()).await;
        assert!(failure.unwrap().to_string().contains("panicked"));
    }
}
