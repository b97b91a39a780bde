//! Files on this machine into the object store, of any size in bounded memory.

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use aws_lc_rs::digest;
use bytes::Bytes;
use object_store::{ObjectStoreExt as _, WriteMultipart};

use crate::{Key, Storage, StorageError, path, request};

/// What is read, hashed and sent at once. S3 takes 10,000 parts: files of up to 160 GB.
const PART_BYTES: usize = 16 * 1024 * 1024;
/// Parts on their way at the same time.
const PARTS_IN_FLIGHT: usize = 4;

impl Storage {
    /// Stores a file whole, in place of an object with the same key, and gives back its size in bytes.
    ///
    /// `sha256` (lower-case hex) is what the file's bytes must have: one that was changed or cut short since it was
    /// hashed is found out before the object appears. An upload that is dropped half-way leaves no object, but on S3
    /// its parts, until the bucket's own rule for incomplete uploads removes them.
    ///
    /// # Errors
    /// [`StorageError::ReadFile`] or [`StorageError::ChangedFile`], or what the store answered.
    pub async fn put_file(
        &self,
        key: &Key,
        file: &Path,
        sha256: &str,
    ) -> Result<u64, StorageError> {
        let reader = FileReader::open(file).await?;
        let (reader, first) = reader.next().await?;
        if reader.ended {
            reader.check(sha256)?;
            let size = first.len() as u64;
            return self.put(key, first).await.map(|()| size);
        }
        let upload = self.store.put_multipart(&path(key)).await;
        let upload = upload.map_err(request("writing", key))?;
        let mut upload = WriteMultipart::new_with_chunk_size(upload, PART_BYTES);
        match send(&mut upload, key, reader, first, sha256).await {
            Ok(size) => {
                let finished = upload.finish().await;
                finished.map(|_| size).map_err(request("writing", key))
            }
            Err(error) => {
                // What went wrong first is what matters; parts that stay are the bucket's to remove.
                let _ = upload.abort().await;
                Err(error)
            }
        }
    }
}

async fn send(
    upload: &mut WriteMultipart,
    key: &Key,
    mut reader: FileReader,
    mut part: Bytes,
    sha256: &str,
) -> Result<u64, StorageError> {
    let mut size = 0;
    loop {
        size += part.len() as u64;
        upload.put(part);
        let room = upload.wait_for_capacity(PARTS_IN_FLIGHT).await;
        room.map_err(request("writing", key))?;
        if reader.ended {
            reader.check(sha256)?;
            return Ok(size);
        }
        (reader, part) = reader.next().await?;
    }
}

/// A file that is read once, part by part, off the runtime's threads.
struct FileReader {
    file: File,
    path: PathBuf,
    hash: digest::Context,
    ended: bool,
}

impl FileReader {
    async fn open(path: &Path) -> Result<Self, StorageError> {
        let path = path.to_owned();
        off_runtime(path.clone(), move || {
            Ok(Self {
                file: File::open(&path)?,
                path,
                hash: digest::Context::new(&digest::SHA256),
                ended: false,
            })
        })
        .await
    }

    async fn next(mut self) -> Result<(Self, Bytes), StorageError> {
        off_runtime(self.path.clone(), move || {
            let mut part = Vec::new();
            let limit = PART_BYTES as u64;
            (&mut self.file).take(limit).read_to_end(&mut part)?;
            self.hash.update(&part);
            self.ended = part.len() < PART_BYTES;
            Ok((self, part.into()))
        })
        .await
    }

    fn check(self, sha256: &str) -> Result<(), StorageError> {
        if hex::encode(self.hash.finish().as_ref()) == sha256 {
            return Ok(());
        }
        Err(StorageError::ChangedFile { path: self.path })
    }
}

/// File work on the blocking pool.
pub(crate) async fn off_runtime<T: Send + 'static>(
    path: PathBuf,
    work: impl FnOnce() -> std::io::Result<T> + Send + 'static,
) -> Result<T, StorageError> {
    let done = tokio::task::spawn_blocking(work).await;
    // The work does not panic; a runtime that shuts down may drop it.
    done.unwrap_or_else(|error| Err(error.into()))
        .map_err(|source| StorageError::ReadFile { path, source })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sha256_hex;
    use crate::tests::scratch;

    fn file(size: usize) -> (tempfile::TempDir, PathBuf, String) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("weights");
        let data: Vec<u8> = (0..size).map(|i| (i % 251) as u8).collect();
        std::fs::write(&path, &data).unwrap();
        (folder, path, sha256_hex(&data))
    }

    #[tokio::test]
    async fn files_below_at_and_above_a_part_are_stored_whole() {
        let (_store, storage) = scratch();
        for size in [0, 3, PART_BYTES, 2 * PART_BYTES + 7] {
            let (_folder, path, sha256) = file(size);
            let key = Key::artifact(&sha256).unwrap();
            let stored = storage.put_file(&key, &path, &sha256).await.unwrap();
            assert_eq!(stored, size as u64);
            let read = storage.get(&key, size as u64).await.unwrap();
            assert_eq!(sha256_hex(&read), sha256, "{size} bytes");
        }
    }

    #[tokio::test]
    async fn a_file_changed_since_it_was_hashed_leaves_no_object() {
        let (_store, storage) = scratch();
        for size in [3, 2 * PART_BYTES] {
            let (_folder, path, _) = file(size);
            let other = sha256_hex(b"what it was");
            let key = Key::artifact(&other).unwrap();
            let error = storage.put_file(&key, &path, &other).await.unwrap_err();
            assert!(matches!(error, StorageError::ChangedFile { .. }), "{error}");
            assert_eq!(storage.size(&key).await.unwrap(), None);
        }
    }
}
