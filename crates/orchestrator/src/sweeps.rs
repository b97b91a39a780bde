//! What is done again and again beside the calls.

use std::convert::Infallible;
use std::time::Duration;

use lifecycle::Service;
use storage::StorageError;
use task_log::TaskLogError;

/// Why a sweep of what is stored did not come to its end.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SweepError {
    #[error(transparent)]
    Storage(#[from] StorageError),
    #[error("cannot tell what tasks still need")]
    TaskLog(#[from] TaskLogError),
}

/// Does it now and then, for as long as the service runs: at once, and `every` so often. One that takes longer puts the next one off.
pub(crate) fn start<F>(
    service: &Service,
    name: &'static str,
    every: Duration,
    mut sweep: impl FnMut() -> F + Send + 'static,
) where
    F: Future<Output = ()> + Send + 'static,
{
    let stopping = service.tasks.stopping();
    let sweeps = async move {
        let mut next = tokio::time::interval(every);
        next.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            next.tick().await;
            sweep().await;
        }
    };
    service.tasks.critical(name, async move {
        tokio::select! {
            () = stopping => {}
            () = sweeps => {}
        }
        Ok::<(), Infallible>(())
    });
}
