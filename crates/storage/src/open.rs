//! Objects that are read piece by piece, so that a reader who takes his time costs a piece of memory and not an object.

use std::fs::File;
use std::io::Read as _;
use std::path::PathBuf;

use bytes::Bytes;
use futures::stream::{self, BoxStream, StreamExt as _};
use object_store::{GetResultPayload, ObjectStore as _};

use crate::upload::off_runtime;
use crate::whole::AtOnce;
use crate::{Key, Storage, StorageError, path, request};

/// What is read of a file at once, bytes: few turns on the blocking pool, and little to hold for each reader.
const PIECE_BYTES: u64 = 128 * 1024;

/// An object whose bytes are still in the store.
pub struct Opened {
    /// How many bytes it has.
    pub size: u64,
    /// Its bytes, in order. After an error there is nothing more.
    pub pieces: BoxStream<'static, Result<Bytes, StorageError>>,
}

impl Storage {
    /// Opens an object of at most `limit` bytes; they are read as the stream is polled, 128 KiB at a time from a folder.
    ///
    /// # Errors
    /// [`StorageError::Missing`] or [`StorageError::TooLarge`], or what the store answered.
    pub async fn open_object(&self, key: &Key, limit: u64) -> Result<Opened, StorageError> {
        // What is no larger than a piece is one.
        let options = AtOnce::ask(limit.min(PIECE_BYTES));
        let found = self.store.get_opts(&path(key), options).await;
        let found = found.map_err(request("reading", key))?;
        let size = found.meta.size;
        if size > limit {
            let key = key.clone();
            return Err(StorageError::TooLarge { key, size, limit });
        }
        let pieces = match found.payload {
            GetResultPayload::File(file, path) => pieces_of(file, path, size),
            GetResultPayload::Stream(stream) => {
                let key = key.clone();
                stream
                    .map(move |piece| piece.map_err(request("reading", &key)))
                    .boxed()
            }
        };
        Ok(Opened { size, pieces })
    }
}

/// The first `size` bytes of a file. One that is shorter ends early.
fn pieces_of(
    file: File,
    path: PathBuf,
    size: u64,
) -> BoxStream<'static, Result<Bytes, StorageError>> {
    let next = move |(mut file, left): (File, u64)| {
        let path = path.clone();
        async move {
            if left == 0 {
                return Ok(None);
            }
            off_runtime(path, move || {
                let mut piece = Vec::new();
                (&mut file)
                    .take(left.min(PIECE_BYTES))
                    .read_to_end(&mut piece)?;
                if piece.is_empty() {
                    return Err(std::io::ErrorKind::UnexpectedEof.into());
                }
                let left = left - piece.len() as u64;
                Ok(Some((Bytes::from(piece), (file, left))))
            })
            .await
        }
    };
    stream::try_unfold((file, size), next).boxed()
}

#[cfg(test)]
mod tests {
    use futures::TryStreamExt as _;

    use super::*;
    use crate::sha256_hex;
    use crate::tests::scratch;

    #[tokio::test]
    async fn an_object_comes_in_pieces_that_are_together_what_was_written() {
        let (_folder, storage) = scratch();
        for size in [0, 1, PIECE_BYTES, 2 * PIECE_BYTES + 7] {
            let data: Vec<u8> = (0..size).map(|i| (i % 251) as u8).collect();
            let key = Key::artifact(&sha256_hex(&data)).unwrap();
            storage.put(&key, data.clone().into()).await.unwrap();
            let opened = storage.open_object(&key, size).await.unwrap();
            assert_eq!(opened.size, size);
            let pieces: Vec<Bytes> = opened.pieces.try_collect().await.unwrap();
            assert!(pieces.iter().all(|piece| piece.len() as u64 <= PIECE_BYTES));
            assert_eq!(pieces.concat(), data);
        }
    }

    #[tokio::test]
    async fn what_is_missing_or_too_large_is_said_before_the_first_piece() {
        let (_folder, storage) = scratch();
        let key = Key::artifact(&sha256_hex(b"xy")).unwrap();
        let missing = storage.open_object(&key, 2).await.map(|o| o.size);
        assert!(matches!(missing, Err(StorageError::Missing { .. })));
        storage.put(&key, Bytes::from_static(b"xy")).await.unwrap();
        let large = storage.open_object(&key, 1).await.map(|o| o.size);
        assert!(matches!(large, Err(StorageError::TooLarge { size: 2, .. })));
    }

    #[tokio::test]
    async fn a_file_that_is_shorter_than_it_was_ends_in_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("short");
        std::fs::write(&path, b"abc").unwrap();
        let file = File::open(&path).unwrap();
        let read: Result<Vec<Bytes>, _> = pieces_of(file, path, 4).try_collect().await;
        assert!(matches!(read, Err(StorageError::ReadFile { .. })));
    }
}
