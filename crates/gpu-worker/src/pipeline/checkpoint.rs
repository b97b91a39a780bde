//! A running task put away: its pictures' engine snapshots as one object, and the task's state that names it.

use std::time::Duration;

use bytes::Bytes;
use contract::task::{Checkpoint, CheckpointFile, Phase, State};
use prost::Message as _;
use storage::{Key, StorageError, sha256_hex};
use task_log::TaskLogError;

use super::TaskJob;
use crate::engine::Picture;
use lifecycle::chain;

/// The largest checkpoint that is read: ten pictures of 4096 × 4096 are 190 MiB.
const MAX_BYTES: u64 = 256 << 20;
/// How long writing one may take before the task goes on without it.
const WRITE_LIMIT: Duration = Duration::from_secs(10);

/// Why a checkpoint was not written.
#[derive(Debug, thiserror::Error)]
enum SaveError {
    #[error("the checkpoint was not stored")]
    Store(#[source] StorageError),
    #[error("the task's state was not read or written")]
    State(#[source] TaskLogError),
    #[error("{worker} has taken the task up as attempt {attempt}")]
    TakenOver { worker: String, attempt: u32 },
}

/// Why a checkpoint cannot be used.
#[derive(Debug, thiserror::Error)]
enum LoadError {
    #[error("{0:?} is not the key of a checkpoint")]
    Key(String),
    #[error("the checkpoint cannot be read")]
    Read(#[source] StorageError),
    #[error("the checkpoint has another digest than when it was written")]
    Digest,
    #[error("the checkpoint cannot be decoded")]
    Decode(#[source] prost::DecodeError),
    #[error("the checkpoint is of {found} pictures, the task of {wanted}")]
    Pictures { found: usize, wanted: usize },
}

/// The snapshots that the task's state names, one a picture; `None` when there are none or they cannot be used, which
/// costs time and nothing else.
pub(super) async fn load(job: &TaskJob, pictures: usize) -> Option<Vec<Vec<u8>>> {
    let checkpoint = job.state.checkpoint.as_ref()?;
    match read(job, checkpoint, pictures).await {
        Ok(snapshots) => {
            tracing::info!(step = checkpoint.step, "goes on from a checkpoint");
            Some(snapshots)
        }
        Err(error) => {
            tracing::warn!(error = chain(&error), "begins anew");
            None
        }
    }
}

async fn read(
    job: &TaskJob,
    checkpoint: &Checkpoint,
    wanted: usize,
) -> Result<Vec<Vec<u8>>, LoadError> {
    let key = Key::stored(&checkpoint.key);
    let key = key.ok_or_else(|| LoadError::Key(checkpoint.key.clone()))?;
    let data = job
        .worker
        .storage
        .get(&key, MAX_BYTES)
        .await
        .map_err(LoadError::Read)?;
    if sha256_hex(&data) != checkpoint.sha256 {
        return Err(LoadError::Digest);
    }
    let CheckpointFile { snapshots } = CheckpointFile::decode(data).map_err(LoadError::Decode)?;
    let found = snapshots.len();
    if found != wanted {
        return Err(LoadError::Pictures { found, wanted });
    }
    Ok(snapshots)
}

/// Puts the task away as it is now, unless it is no further than when it was last put away. Waits for the step that is
/// being taken. Best effort: a task without a checkpoint is only slower to recover.
pub(super) async fn save(job: &mut TaskJob, pictures: &[Picture]) {
    // Before the snapshots: then they are at least as far as the number says.
    let step = pictures.iter().map(|picture| picture.progress().step).sum();
    let before = job.state.checkpoint.as_ref();
    if before.map_or(0, |checkpoint| checkpoint.step) >= step {
        return;
    }
    // All between the same two steps. One that the engine has no longer has failed, and its task with it.
    let Some(snapshots) = job.worker.engine.snapshots(pictures).await else {
        return;
    };
    if loses(&job.put_away, &snapshots) {
        tracing::debug!(
            step,
            "the last checkpoint stays: a picture that is done has none in this one"
        );
        return;
    }
    let put_away = snapshots.iter().map(|bytes| !bytes.is_empty()).collect();
    let file = CheckpointFile { snapshots };
    match tokio::time::timeout(WRITE_LIMIT, write(job, step, &file)).await {
        Ok(Ok(())) => {
            job.put_away = put_away;
            tracing::debug!(step, "put away");
        }
        Ok(Err(error)) => tracing::warn!(error = chain(&error), "no checkpoint was taken"),
        Err(_) => tracing::warn!(limit = ?WRITE_LIMIT, "no checkpoint was taken in time"),
    }
}

/// Whether a picture would be lost that the last checkpoint has: one that is done, and that there was no room to keep.
fn loses(before: &[bool], now: &[Vec<u8>]) -> bool {
    let mut pictures = before.iter().zip(now);
    pictures.any(|(&was_there, bytes)| was_there && bytes.is_empty())
}

/// The object first, then the state that names it, and only then goes what the state named before.
async fn write(job: &mut TaskJob, step: u32, file: &CheckpointFile) -> Result<(), SaveError> {
    let data = Bytes::from(file.encode_to_vec());
    let sha256 = sha256_hex(&data);
    // Under the attempt: a worker that was taken for dead and wakes up writes beside its successor's, never over it.
    let key = Key::checkpoint(job.task.task, job.state.attempt, step);
    forget_half_written(job).await;
    job.half_written = Some(key.clone());
    let stored = job.worker.storage.put(&key, data).await;
    stored.map_err(SaveError::Store)?;
    still_ours(job).await?;
    let state = State {
        checkpoint: Some(Checkpoint {
            step,
            key: key.to_string(),
            sha256,
        }),
        at: Some(contract::now()),
        ..job.state.clone()
    };
    let written = job.worker.log.set_state(&job.task, &state).await;
    written.map_err(SaveError::State)?;
    job.half_written = None;
    let before = std::mem::replace(&mut job.state, state);
    if let Some(key) = before
        .checkpoint
        .and_then(|before| Key::stored(&before.key))
    {
        forget(job, &key).await;
    }
    Ok(())
}

/// Refuses once another worker has the task: this one was taken for dead, and what it writes into the task's state would
/// stand in place of its successor's.
async fn still_ours(job: &TaskJob) -> Result<(), SaveError> {
    let record = job.worker.log.read(&job.task.tenant, job.task.task).await;
    let state = record
        .map_err(SaveError::State)?
        .and_then(|record| record.state);
    let anothers = |state: &State| {
        let elsewhere = state.phase() == Phase::Running && state.worker != job.worker.name;
        state.attempt > job.state.attempt || elsewhere
    };
    match state.filter(anothers) {
        None => Ok(()),
        Some(State {
            worker, attempt, ..
        }) => Err(SaveError::TakenOver { worker, attempt }),
    }
}

/// Removes what the task was last put away as, once it has ended. Best effort.
pub(crate) async fn remove(job: &mut TaskJob) {
    forget_half_written(job).await;
    let named = job.state.checkpoint.as_ref();
    if let Some(key) = named.and_then(|checkpoint| Key::stored(&checkpoint.key)) {
        forget(job, &key).await;
    }
}

/// An object whose state is not known to be written: if it was, a task that is taken up again begins anew.
async fn forget_half_written(job: &mut TaskJob) {
    if let Some(key) = job.half_written.take() {
        forget(job, &key).await;
    }
}

async fn forget(job: &TaskJob, key: &Key) {
    if let Err(error) = job.worker.storage.delete(key).await {
        tracing::debug!(
            error = chain(&error),
            "a checkpoint that nobody needs stays"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::loses;

    #[test]
    fn a_picture_that_was_put_away_is_not_given_up_for_the_progress_of_others() {
        let (kept, nothing) = (vec![1], Vec::new());
        assert!(loses(&[true, true], &[nothing.clone(), kept.clone()]));
        assert!(!loses(&[true, true], &[kept.clone(), kept.clone()]));
        assert!(!loses(&[false, true], &[nothing.clone(), kept.clone()]));
        assert!(!loses(&[], &[nothing, kept]), "there is no checkpoint yet");
    }
}
