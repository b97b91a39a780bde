//! From files to stored pictures (invariant I3: their bytes are in the store before the task's end is written).

use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use contract::task::StoredImage;
use contract::v1::OutputFormat;
use imaging::Format;
use storage::{Key, Storage, StorageError, sha256_hex};

use super::postprocess::File;
use super::{NodeError, PipelineNode, TaskJob};
use crate::retry::{soon_if_stopped, until_stopped};
use crate::settings::{OutputSettings, Verify};

/// How long storing a task's pictures may go on once the worker is asked to stop: as long as writing a checkpoint may. Pictures that are
/// stored by then need not be drawn again; a store that hangs would use up the time that the worker has, and with it that of handing the task back.
const STOP_LIMIT: Duration = Duration::from_secs(10);

/// Stores the files under keys derived from task, its beginning, index and digest.
pub(super) struct Output;

/// Why a file is not known to be stored.
#[derive(Debug, thiserror::Error)]
enum StoreError {
    #[error(transparent)]
    Storage(#[from] StorageError),
    #[error("{key} has {found:?} bytes in the store, not {written}")]
    Size {
        key: Key,
        found: Option<u64>,
        written: u64,
    },
    #[error("{key} has other bytes in the store than were written")]
    Bytes { key: Key },
}

#[async_trait]
impl PipelineNode for Output {
    fn name(&self) -> &'static str {
        "output"
    }

    async fn run(&self, job: &mut TaskJob) -> Result<(), NodeError> {
        let files = std::mem::take(&mut job.files);
        let stop = job.worker.stop.clone();
        let stored = soon_if_stopped(&stop, STOP_LIMIT, async {
            for (index, file) in (0..).zip(files) {
                let image = store(job, index, file).await?;
                job.images.push(image);
            }
            Ok::<(), NodeError>(())
        });
        stored.await?
    }
}

/// Stores one file, for as long as patience lasts: a store that is full or away is no fault of the task, so it keeps its place. Its caller sees to it that
/// a worker that stops does not wait for so long.
async fn store(job: &TaskJob, index: u32, file: File) -> Result<StoredImage, NodeError> {
    let format = job.encoding.format;
    let File { bytes, sha256 } = file;
    let key = Key::image(
        job.task.task,
        begun(job),
        index,
        &sha256,
        format.extension(),
    );
    let OutputSettings {
        verify, patience, ..
    } = &job.worker.output;
    let (storage, patience) = (&job.worker.storage, patience.duration());
    let written = Written {
        key: &key,
        file: &bytes,
        sha256: &sha256,
    };
    let stored = until_stopped(&job.worker.stop, "storing a picture", || {
        put(storage, &written, *verify)
    });
    if patience.is_zero() {
        stored.await?;
    } else {
        let stored = tokio::time::timeout(patience, stored).await;
        stored.map_err(|_| NodeError::StoreAway { patience })??;
    }
    // Planned by this very task; one request a picture.
    let request = &job.planned[index as usize].request;
    Ok(StoredImage {
        index,
        seed: request.seed,
        width: request.width,
        height: request.height,
        format: output_format(format).into(),
        size_bytes: bytes.len() as u64,
        sha256,
        key: key.to_string(),
    })
}

/// When the task was first taken up, as whoever takes it up again reads it too.
fn begun(job: &TaskJob) -> SystemTime {
    let first = job.state.started_at;
    let first = first.and_then(|at| SystemTime::try_from(at).ok());
    first.unwrap_or(SystemTime::UNIX_EPOCH)
}

/// A picture on its way into the store.
struct Written<'a> {
    key: &'a Key,
    file: &'a Bytes,
    sha256: &'a str,
}

/// A store that took the bytes and does not have them must not be believed.
async fn put(storage: &Storage, picture: &Written<'_>, verify: Verify) -> Result<(), StoreError> {
    let Written { key, file, sha256 } = picture;
    let written = file.len() as u64;
    match verify {
        Verify::Size => {
            storage.put(key, (*file).clone()).await?;
            let found = storage.size(key).await?;
            if found != Some(written) {
                let key = (*key).clone();
                return Err(StoreError::Size {
                    key,
                    found,
                    written,
                });
            }
        }
        Verify::Digest => {
            let found = storage.put_and_get(key, (*file).clone()).await?;
            if sha256_hex(&found) != *sha256 {
                let key = (*key).clone();
                return Err(StoreError::Bytes { key });
            }
        }
    }
    Ok(())
}

fn output_format(format: Format) -> OutputFormat {
    match format {
        Format::Png => OutputFormat::Png,
        Format::Jpeg => OutputFormat::Jpeg,
        Format::WebP => OutputFormat::Webp,
    }
}
