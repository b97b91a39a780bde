//! Every task ends before the log lets go of it (`streams.task_retention`): a submission that vanished without an end would be a task that was
//! accepted and that nobody knows any more.
//!
//! A task that waits in its queue has a [longest wait](task_log::deadline::Kept), nine tenths of that time. The oldest of a queue are its heads, so whoever
//! owns the queue ends them as it ends those whose own deadline has passed ([`dispatch`](crate::dispatch)), some at a time, and nothing is noted of a
//! submission. What was handed over has left its queue, and its dispatch is in WORK until it has ended: that is looked through here,
//! which costs a read for each, and those are as many as the windows let through. One that has begun may end by itself meanwhile: it
//! ends here half a tenth later, and a worker that still draws it hears of that.
//!
//! Every orchestrator does so by itself. Ending what another has ended is no error. What time it is says the broker.

use std::time::{Duration, UNIX_EPOCH};

use futures::{StreamExt as _, TryStreamExt as _};
use lifecycle::Service;
use task_log::deadline::Kept;
use task_log::{Ended, Out, TaskLog, TaskLogError};

use crate::sweeps;

/// Looks within the time for which a task is kept, so that one comes well before each limit is over ...
const LOOKS: u32 = 200;
/// ... but not more often, ...
const SHORTEST: Duration = Duration::from_millis(250);
/// ... and not less often than this.
const LONGEST: Duration = Duration::from_secs(60);
/// A log that keeps tasks for less is told of: a tenth of it is how long all orchestrators may be away, and nobody mends much in two hours.
const SHORT: Duration = Duration::from_secs(24 * 3600);
/// Tasks that are looked at together.
const AT_ONCE: usize = 8;

/// Looks at what workers have been handed for as long as the service runs.
pub(crate) fn start(service: &Service, log: &TaskLog, kept: Kept) {
    let Some(retention) = kept.retention() else {
        return;
    };
    if retention < SHORT {
        tracing::warn!(
            ?retention,
            away_for = ?(retention / 10),
            "streams.task_retention is short: where all orchestrators are away for so long, what waits may be lost without an end"
        );
    }
    let every = (retention / LOOKS).clamp(SHORTEST, LONGEST);
    let log = log.clone();
    sweeps::start(service, "aged", every, move || {
        let log = log.clone();
        async move {
            if let Err(error) = sweep(&log, kept).await {
                let error = lifecycle::chain(&error);
                tracing::warn!(error, "tasks that are kept no longer are looked at again");
            }
        }
    });
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
