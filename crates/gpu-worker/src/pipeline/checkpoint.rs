//! A running task put away: its pictures' engine snapshots as one object, and the task's state that names it.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use contract::task::{Checkpoint, CheckpointFile, State};
use futures::future::{BoxFuture, FutureExt as _};
use prost::Message as _;
use storage::{Key, Storage, StorageError, sha256_hex};
use task_log::TaskLogError;

use super::{NodeError, StateWritten, TaskJob};
use crate::engine::Picture;
use crate::retry::{Stopped, unless_stopped, until_stopped};
use lifecycle::chain;

/// The largest checkpoint that is read: ten pictures of 4096 × 4096 are 190 MiB.
const MAX_BYTES: u64 = 256 << 20;
/// How long a store that does not answer is asked for one before the task begins anew. A worker that stops does not wait for it.
const READ_LIMIT: Duration = Duration::from_secs(30);
/// How long writing one may take before the task goes on without it.
const WRITE_LIMIT: Duration = Duration::from_secs(10);
/// Checkpoints of a task that may be stored at a time before another is: more than one only where the log did not say what became of their states.
const MOST_OBJECTS: usize = 4;

/// Why a checkpoint was not written.
#[derive(Debug, thiserror::Error)]
enum SaveError {
    #[error("the checkpoint was not stored")]
    Store(#[source] StorageError),
    #[error("the task's state was not written")]
    State(#[source] TaskLogError),
    #[error("another worker has the task by now")]
    TakenOver,
}

/// Why a checkpoint cannot be used.
#[derive(Debug, thiserror::Error)]
enum LoadError {
    #[error("{0:?} is not the key of a checkpoint")]
    Key(String),
    #[error("the checkpoint cannot be read")]
    Read(#[source] StorageError),
    #[error("the checkpoint was not read within {limit:?}")]
    Away { limit: Duration },
    #[error("the checkpoint has another digest than when it was written")]
    Digest,
    #[error("the checkpoint cannot be decoded")]
    Decode(#[source] prost::DecodeError),
    #[error("the checkpoint is of {found} pictures, the task of {wanted}")]
    Pictures { found: usize, wanted: usize },
    #[error(transparent)]
    Stopped(#[from] Stopped),
}

impl LoadError {
    /// Whether nobody can go on from it, however often it is read.
    fn is_for_good(&self) -> bool {
        match self {
            Self::Key(_) | Self::Digest | Self::Decode(_) | Self::Pictures { .. } => true,
            Self::Read(error) => matches!(
                error,
                StorageError::Missing { .. } | StorageError::TooLarge { .. }
            ),
            Self::Away { .. } | Self::Stopped(_) => false,
        }
    }
}

/// The snapshots that the task's state names, one a picture; `None` when there are none or they cannot be used, which
/// costs time and nothing else.
///
/// # Errors
/// When the worker was asked to stop before they were read.
pub(super) async fn load(
    job: &mut TaskJob,
    pictures: usize,
) -> Result<Option<Vec<Vec<u8>>>, Stopped> {
    let Some(checkpoint) = job.state.checkpoint.as_ref() else {
        return Ok(None);
    };
    let step = checkpoint.step;
    match read(job, checkpoint, pictures).await {
        Ok(snapshots) => {
            tracing::info!(step, "goes on from a checkpoint");
            job.put_away_at = step;
            Ok(Some(snapshots))
        }
        Err(LoadError::Stopped(stopped)) => Err(stopped),
        Err(error) => {
            tracing::warn!(error = chain(&error), step, "begins anew");
            begin_anew(job);
            // What is only away is worth keeping, until this run has taken one.
            if error.is_for_good() {
                job.state.checkpoint = None;
            }
            Ok(None)
        }
    }
}

/// Nothing counts as put away by this run, so that its first checkpoint is taken as that of a task that never had one.
fn begin_anew(job: &mut TaskJob) {
    job.put_away_at = 0;
    if let Some(run) = job.state.runs.last_mut() {
        run.from_step = 0;
    }
}

/// Lets go of what the engine could not go on from, such as another version's snapshots: where that is so of all that the checkpoint has, the next
/// state does not name it, and the next checkpoint is due as if there had been none.
pub(super) fn let_go_of_unusable(job: &mut TaskJob, pictures: &[Picture]) {
    let mut any = false;
    for (index, (planned, picture)) in job.planned.iter_mut().zip(pictures).enumerate() {
        if planned.resume.is_some() && picture.began_anew() {
            planned.resume = None;
            any = true;
            if let Some(there) = job.put_away.get_mut(index) {
                *there = false;
            }
        }
    }
    if !any {
        return;
    }
    job.put_away_at = 0;
    if !job.put_away.contains(&true) {
        begin_anew(job);
        job.state.checkpoint = None;
    }
}

async fn read(
    job: &TaskJob,
    checkpoint: &Checkpoint,
    wanted: usize,
) -> Result<Vec<Vec<u8>>, LoadError> {
    let key = Key::stored(&checkpoint.key);
    let key = key.ok_or_else(|| LoadError::Key(checkpoint.key.clone()))?;
    let data = fetch(job, &key).await?;
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

/// The object. A store that does not answer now may have it all the same: it is asked again.
async fn fetch(job: &TaskJob, key: &Key) -> Result<Bytes, LoadError> {
    let storage = &job.worker.storage;
    let stop = &job.worker.stop;
    let fetched = until_stopped(stop, "reading a checkpoint", || async {
        match storage.get(key, MAX_BYTES).await {
            Err(error @ StorageError::Request { .. }) => Err(error),
            answer => Ok(answer),
        }
    });
    // A store that hangs would use up the time that a worker has to stop, and with it that of handing the task back.
    let fetched = unless_stopped(stop, tokio::time::timeout(READ_LIMIT, fetched)).await?;
    let fetched = fetched.map_err(|_| LoadError::Away { limit: READ_LIMIT })??;
    fetched.map_err(LoadError::Read)
}

/// Steps done, over all pictures.
fn step_of_all(pictures: &[Picture]) -> u32 {
    pictures.iter().map(|picture| picture.progress().step).sum()
}

/// Whether each picture has, on average, been taken so many steps further than it was last put away.
pub(super) fn is_due(job: &mut TaskJob, pictures: &[Picture], steps: Option<u32>) -> bool {
    let_go_of_unusable(job, pictures);
    let further = step_of_all(pictures).saturating_sub(job.put_away_at);
    steps.is_some_and(|steps| further >= steps.saturating_mul(pictures.len() as u32))
}

/// Puts the task away as it is now, unless it is no further than when it was last put away. Waits for the step that is
/// being taken. Best effort: a task without a checkpoint is only slower to recover.
///
/// # Errors
/// When another worker has the task by now.
pub(super) async fn save(job: &mut TaskJob, pictures: &[Picture]) -> Result<(), NodeError> {
    let_go_of_unusable(job, pictures);
    // Before the snapshots: then they are at least as far as the number says.
    let step = step_of_all(pictures);
    if job.put_away_at >= step {
        return Ok(());
    }
    // All between the same two steps. One that the engine has no longer has failed, and its task with it.
    let snapshots = tokio::select! {
        // Nor does a thread that hangs answer.
        _ = job.worker.hangs() => return Ok(()),
        snapshots = job.worker.engine.snapshots(pictures) => snapshots,
    };
    let Some(snapshots) = snapshots else {
        return Ok(());
    };
    if loses(&job.put_away, &snapshots) {
        tracing::debug!(
            step,
            "the last checkpoint stays: a picture that is done has none in this one"
        );
        return Ok(());
    }
    let put_away = snapshots.iter().map(|bytes| !bytes.is_empty()).collect();
    let file = CheckpointFile { snapshots };
    match tokio::time::timeout(WRITE_LIMIT, write(job, step, &file)).await {
        Ok(Ok(())) => {
            job.put_away = put_away;
            job.put_away_at = step;
            tracing::debug!(step, "put away");
        }
        Ok(Err(error @ SaveError::TakenOver)) => {
            tracing::warn!(error = chain(&error), step, "left to it");
            return Err(NodeError::TakenOver);
        }
        Ok(Err(error)) => tracing::warn!(error = chain(&error), "no checkpoint was taken"),
        Err(_) => tracing::warn!(limit = ?WRITE_LIMIT, "no checkpoint was taken in time"),
    }
    Ok(())
}

/// Whether a picture would be lost that the last checkpoint has: one that is done, and that there was no room to keep.
fn loses(before: &[bool], now: &[Vec<u8>]) -> bool {
    let mut pictures = before.iter().zip(now);
    pictures.any(|(&was_there, bytes)| was_there && bytes.is_empty())
}

/// The object first, then the state that names it, and only then goes what the state named before.
async fn write(job: &mut TaskJob, step: u32, file: &CheckpointFile) -> Result<(), SaveError> {
    if job.objects.len() >= MOST_OBJECTS {
        // The newest that is stored, once more: none of the states that nobody has answered for can stand after it.
        let state = State {
            // Other bytes: it must not be taken for what stood there before.
            at: Some(job.worker.log.now().into()),
            ..job.state.clone()
        };
        stand(job, state).await?;
    }
    let data = Bytes::from(file.encode_to_vec());
    let sha256 = sha256_hex(&data);
    // A key of its own: a worker that was taken for dead and wakes up writes beside its successor's, never over it.
    let key = Key::checkpoint(job.task.task, job.state.attempt, step);
    forget_half_written(job).await;
    let half = HalfWritten::begin(&job.worker.storage, key.clone(), data);
    let stored = job.half_written.insert(half).stored().await;
    stored.map_err(SaveError::Store)?;
    // From here on a state may name it, whatever is heard of that.
    job.half_written = None;
    job.objects.push(key.clone());
    // Each state from now on names it, those of a run that rests, too: if one that does has stood, whoever saw that has removed the one before.
    job.state.checkpoint = Some(Checkpoint {
        step,
        key: key.to_string(),
        sha256,
    });
    let state = State {
        at: Some(job.worker.log.now().into()),
        ..job.state.clone()
    };
    stand(job, state).await
}

/// Writes a state. What it does not name goes only when it is known to stand: a state before it whose answer was lost may have stood until then, and
/// whoever took the task over from that goes on from what it names.
async fn stand(job: &mut TaskJob, state: State) -> Result<(), SaveError> {
    let written = job.write_state(&state).await.map_err(SaveError::State)?;
    match written {
        StateWritten::Stored(sequence) => {
            job.state_sequence = sequence;
            job.state = state;
            forget_unnamed(job, &job.state).await;
            let named = named(&job.state);
            job.objects.retain(|key| named.as_ref() == Some(key));
            Ok(())
        }
        // Its state would stand in place of its successor's.
        StateWritten::TakenOver(stands) => {
            if let Some(stands) = stands {
                forget_unnamed(job, &stands).await;
            }
            Err(SaveError::TakenOver)
        }
    }
}

/// What a state names to go on from.
pub(super) fn named(state: &State) -> Option<Key> {
    let checkpoint = state.checkpoint.as_ref();
    checkpoint.and_then(|checkpoint| Key::stored(&checkpoint.key))
}

/// Removes what this run knows of and a state does not name that stands in the log, whoever wrote it after this run's own. Best effort.
pub(crate) async fn forget_unnamed(job: &TaskJob, stands: &State) {
    let named = named(stands);
    let objects = job.objects.iter();
    let unnamed = objects.filter(|key| named.as_ref() != Some(*key));
    let unnamed: Vec<Key> = unnamed.cloned().collect();
    job.worker.forget(&unnamed).await;
}

/// Removes all that the task may have been put away as, once it has ended. Best effort.
pub(crate) async fn remove(job: &mut TaskJob) {
    forget_half_written(job).await;
    let objects = std::mem::take(&mut job.objects);
    job.worker.forget(&objects).await;
}

/// An object that was not stored whole, as far as is known: no state names it.
async fn forget_half_written(job: &mut TaskJob) {
    let Some(half) = &mut job.half_written else {
        return;
    };
    // A write that goes on would come after the removal.
    if let Ok(Err(error)) = tokio::time::timeout(WRITE_LIMIT, half.stored()).await {
        tracing::debug!(error = chain(&error), "a checkpoint was not stored");
    }
    if let Some(HalfWritten { key, .. }) = job.half_written.take() {
        job.worker.forget(&[key]).await;
    }
}

/// An object on its way into the store. Whoever stops waiting for it can go on doing so later: the store does not stop writing.
pub(super) struct HalfWritten {
    key: Key,
    /// `None` once it has an answer.
    put: Mutex<Option<BoxFuture<'static, Result<(), StorageError>>>>,
}

impl HalfWritten {
    fn begin(storage: &Storage, key: Key, data: Bytes) -> Self {
        let (storage, of) = (storage.clone(), key.clone());
        let put = async move { storage.put(&of, data).await }.boxed();
        Self {
            key,
            put: Mutex::new(Some(put)),
        }
    }

    /// Waits until it is stored, or is known not to be; no longer than that when it was waited for before.
    async fn stored(&mut self) -> Result<(), StorageError> {
        let put = self.put.get_mut();
        // Nobody locks it: it is one so that the task can be looked at from several threads.
        let put = put.unwrap_or_else(PoisonError::into_inner);
        let Some(running) = put else {
            return Ok(());
        };
        let stored = running.await;
        *put = None;
        stored
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
