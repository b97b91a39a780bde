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
//! What has ended only now is not let go of at once: whoever is to hear of it, a webhook or a producer, is told from what was submitted.
//!
//! Every orchestrator does so by itself. Ending what another has ended is no error. What time it is says the broker.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, UNIX_EPOCH};

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
/// So many looks long nothing is let go of after a start, or after something had to be ended: then that was told.
const TOLD_WITHIN: u32 = 5;
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
    let ended_at = Arc::new(Mutex::new(Instant::now()));
    sweeps::start(service, "aged", every, move || {
        let (log, keeper, ended_at) = (log.clone(), keeper.clone(), ended_at.clone());
        async move {
            let ended = match sweep(&log, kept).await {
                Ok(ended) => ended,
                Err(error) => {
                    let error = lifecycle::chain(&error);
                    tracing::warn!(error, "tasks that are kept no longer are looked at again");
                    // A cursor that an earlier version wrote does not tell of what was handed over: that has ended only now.
                    return;
                }
            };
            if !is_told(&ended_at, ended, every * TOLD_WITHIN) {
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

/// Whether nothing has ended here for so long, by a look that found this.
fn is_told(ended_at: &Mutex<Instant>, ended: bool, within: Duration) -> bool {
    // Every change leaves it whole.
    let mut ended_at = ended_at.lock().unwrap_or_else(|e| e.into_inner());
    if ended {
        *ended_at = Instant::now();
    }
    ended_at.elapsed() >= within
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

/// Whether there was something to be ended.
async fn sweep(log: &TaskLog, kept: Kept) -> Result<bool, TaskLogError> {
    let out = log.out().await?;
    if out.is_empty() {
        return Ok(false);
    }
    let now = log.time().await?.duration_since(UNIX_EPOCH);
    let now = now.unwrap_or_default();
    let out = futures::stream::iter(out).map(|one| Ok(look_at(log, one, kept, now)));
    let looks = out.try_buffer_unordered(AT_ONCE);
    looks
        .try_fold(false, async |some, ended| Ok(some || ended))
        .await
}

/// Whether it had to be ended.
async fn look_at(log: &TaskLog, out: Out, kept: Kept, now: Duration) -> Result<bool, TaskLogError> {
    let (Some(tenant), Some(id)) = (out.tenant, out.task) else {
        return Ok(false);
    };
    if let Some(record) = sweeps::readable(log, &tenant, id).await?
        && let Some(end) = kept.overdue(&record, now)
        && log.end(&record.task_ref()?, &end).await? == Ended::First
    {
        tracing::warn!(task = %id, "ended, for the log is about to let go of it");
        return Ok(true);
    }
    Ok(false)
}
