//! Every task ends before the log lets go of it (`streams.task_retention`): a submission that vanished without an end would be a task that was
//! accepted and that nobody knows any more. So what is here ends what is old, and then [lets go](task_log::Retention) of what has ended;
//! while no orchestrator is there, nothing goes.
//!
//! A task that waits in its queue has a [longest wait](task_log::deadline::Kept), nine tenths of that time. The oldest of a queue are its heads, so whoever
//! owns the queue ends them as it ends those whose own deadline has passed ([`dispatch`](crate::dispatch)), some at a time, and nothing is noted of a
//! submission. What was handed over has left its queue, and its dispatch is in WORK until it has ended: that is looked through here,
//! which costs a read for each, and those are as many as the windows let through. One that has begun may end by itself meanwhile: it
//! ends here half a tenth later, and a worker that still draws it hears of that.
//!
//! Every orchestrator does so by itself. Ending what another has ended is no error. What time it is says the broker.

use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use futures::{StreamExt as _, TryStreamExt as _};
use lifecycle::Service;
use task_log::deadline::Kept;
use task_log::{Ended, LetGo, Out, Retention, TaskLog, TaskLogError};

use crate::sweeps;

/// Looks within the time for which a task is kept, so that one comes well before each limit is over ...
const LOOKS: u32 = 200;
/// ... but not more often, ...
const SHORTEST: Duration = Duration::from_millis(250);
/// ... and not less often than this.
const LONGEST: Duration = Duration::from_secs(60);
/// Tasks that are looked at together.
const AT_ONCE: usize = 8;

/// Looks at what workers have been handed, and at what the log has kept, for as long as the service runs.
///
/// # Errors
/// When the broker refuses.
pub(crate) async fn start(
    service: &Service,
    log: &TaskLog,
    kept: Kept,
) -> Result<(), TaskLogError> {
    let Some(retention) = kept.retention() else {
        return Ok(());
    };
    let every = (retention / LOOKS).clamp(SHORTEST, LONGEST);
    let keeper = Arc::new(log.retention().await?);
    let log = log.clone();
    sweeps::start(service, "aged", every, move || {
        let (log, keeper) = (log.clone(), keeper.clone());
        async move {
            if let Err(error) = sweep(&log, kept).await {
                let error = lifecycle::chain(&error);
                tracing::warn!(error, "tasks that are kept no longer are looked at again");
                // A cursor that an earlier version wrote does not tell of what was handed over: that has ended only now.
                return;
            }
            if let Err(error) = let_go(&log, &keeper, retention).await {
                let error = lifecycle::chain(&error);
                tracing::warn!(error, "what is kept no longer stays for now");
            }
        }
    });
    Ok(())
}

async fn let_go(
    log: &TaskLog,
    keeper: &Retention,
    retention: Duration,
) -> Result<(), TaskLogError> {
    let Some(before) = log.time().await?.checked_sub(retention) else {
        return Ok(());
    };
    if let LetGo::UpTo(place) = keeper.let_go(before).await? {
        tracing::info!(
            place,
            "the log keeps more than streams.task_retention: a task from then has not ended"
        );
    }
    Ok(())
}

async fn sweep(log: &TaskLog, kept: Kept) -> Result<(), TaskLogError> {
    let out = log.out().await?;
    if out.is_empty() {
        return Ok(());
    }
    let now = log.time().await?.duration_since(UNIX_EPOCH);
    let now = now.unwrap_or_default();
    let out = futures::stream::iter(out).map(Ok::<Out, TaskLogError>);
    let each = async |one: Out| look_at(log, one, kept, now).await;
    out.try_for_each_concurrent(AT_ONCE, each).await
}

async fn look_at(log: &TaskLog, out: Out, kept: Kept, now: Duration) -> Result<(), TaskLogError> {
    let (Some(tenant), Some(id)) = (out.tenant, out.task) else {
        return Ok(());
    };
    if let Some(record) = sweeps::readable(log, &tenant, id).await?
        && let Some(end) = kept.overdue(&record, now)
        && log.end(&record.task_ref()?, &end).await? == Ended::First
    {
        tracing::warn!(task = %id, "ended, for the log is about to let go of it");
    }
    Ok(())
}
