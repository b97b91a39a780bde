//! From files to stored pictures (invariant I3: their bytes are in the store before the task's end is written).

use async_trait::async_trait;
use bytes::Bytes;
use contract::task::StoredImage;
use contract::v1::OutputFormat;
use imaging::Format;
use storage::{Key, Storage, StorageError, sha256_hex};

use super::{NodeError, PipelineNode, TaskJob};
use crate::retry::until_stopped;

/// Stores the files under keys derived from task and index.
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
}

#[async_trait]
impl PipelineNode for Output {
    fn name(&self) -> &'static str {
        "output"
    }

    async fn run(&self, job: &mut TaskJob) -> Result<(), NodeError> {
        let files = std::mem::take(&mut job.files);
        for (index, file) in (0..).zip(files) {
            let image = store(job, index, file).await?;
            job.images.push(image);
        }
        Ok(())
    }
}

/// Stores one file, for as long as it takes: a store that is full or away is no fault of the task, so it keeps its place.
async fn store(job: &TaskJob, index: u32, file: Bytes) -> Result<StoredImage, NodeError> {
    let format = job.encoding.format;
    let key = Key::image(job.task.task, index, format.extension());
    let storage = &job.worker.storage;
    until_stopped(&job.worker.stop, "storing a picture", || {
        put(storage, &key, &file)
    })
    .await?;
    // Planned by this very task; one request a picture.
    let request = &job.planned[index as usize].request;
    Ok(StoredImage {
        index,
        seed: request.seed,
        width: request.width,
        height: request.height,
        format: output_format(format).into(),
        size_bytes: file.len() as u64,
        sha256: sha256_hex(&file),
        key: key.to_string(),
    })
}

async fn put(storage: &Storage, key: &Key, file: &Bytes) -> Result<(), StoreError> {
    storage.put(key, file.clone()).await?;
    // A store that took the bytes and does not have them must not be believed.
    let (found, written) = (storage.size(key).await?, file.len() as u64);
    if found == Some(written) {
        return Ok(());
    }
    Err(StoreError::Size {
        key: key.clone(),
        found,
        written,
    })
}

fn output_format(format: Format) -> OutputFormat {
    match format {
        Format::Png => OutputFormat::Png,
        Format::Jpeg => OutputFormat::Jpeg,
        Format::WebP => OutputFormat::Webp,
    }
}
