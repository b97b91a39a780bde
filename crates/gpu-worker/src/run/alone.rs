//! Tasks that are taken up with nothing beside them, because their workers died under them: it may be they that kill them.

use std::time::Duration;

use task_log::transition::{Settlement, runs_alone};
use task_log::{Record, TaskRef};

use super::reading::read;
use super::{history, refused};
use crate::retry::{Stopped, unless_stopped};
use crate::slots::Alone;
use crate::worker::Worker;

/// Before a task is looked at again that is to run alone after another that does.
const AFTER_ANOTHER: Duration = Duration::from_secs(2);

/// The slots beside its own, for a task that is to run alone; `None` for one that need not. An error is how its dispatch is settled, because
/// it is not taken up now.
pub(super) type Room<'a> = Result<Option<Alone<'a>>, Settlement>;

/// Makes room for a task's run as this attempt, for as long as what runs beside it takes.
pub(super) async fn room<'a>(
    worker: &'a Worker,
    task: &TaskRef,
    record: &Record,
    attempt: u32,
) -> Result<Room<'a>, Stopped> {
    let lost = record.state.as_ref().map_or(0, history::lost);
    if !runs_alone(lost, attempt, worker.max_attempts) {
        return Ok(Ok(None));
    }
    tracing::info!(attempt, lost, "its workers died: it runs alone");
    let Some(alone) = unless_stopped(&worker.stop, worker.slots.alone()).await? else {
        tracing::info!("another is to run alone first");
        return Ok(Err(Settlement::GiveBack(AFTER_ANOTHER)));
    };
    // It may have been cancelled meanwhile, and if it kills its workers it must not begin for that.
    let now = read(worker, task).await?.ok().flatten();
    let stands = |now: &Record| now.done.is_none() && now.state_sequence == record.state_sequence;
    if now.as_ref().is_some_and(stands) {
        return Ok(Ok(Some(alone)));
    }
    Ok(Err(refused(worker, now.as_ref()).await))
}
