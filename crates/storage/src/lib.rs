//! The object store that settings name: pictures, model artifacts, checkpoints.
//!
//! On a laptop a folder, in production S3 or what speaks like it; the same calls either way. Writes are whole and
//! idempotent: a key holds all of an object or none of it, and writing it again changes nothing. Keys are derived, never
//! chosen, so a retry overwrites the same bytes and nothing else (invariant I3).

mod drafts;
mod drawn;
mod durable;
mod faults;
mod flush;
mod inputs;
mod key;
mod open;
mod probe;
mod upload;
mod whole;
mod writers;

use std::path::{Path as FilePath, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use object_store::aws::AmazonS3Builder;
use object_store::path::Path;
use object_store::prefix::PrefixStore;
use object_store::{ObjectStore, ObjectStoreExt as _, PutPayload};
use secrecy::{ExposeSecret as _, SecretString};
use tokio::sync::Mutex;

pub use drafts::{Drafts, Left};
pub use drawn::{Drawn, Kind};
pub use faults::FaultPlan;
pub use inputs::Aged;
pub use key::Key;
pub use open::Opened;

use whole::{AtOnce, Found, ReadBack};

/// Settings of the object store, under `[storage]`.
#[derive(Debug, Clone, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StorageSettings {
    /// `file:///absolute/folder`, or `s3://bucket/prefix`.
    pub url: String,
    /// S3: where the service is, when it is not AWS's own (`http://127.0.0.1:8333`).
    pub endpoint: String,
    /// S3: the region.
    pub region: String,
    /// S3: access key id; empty takes it from the environment or the machine's role.
    pub access_key_id: String,
    /// S3: secret access key.
    pub secret_access_key: SecretString,
    /// For tests: which requests fail ([`FaultPlan`] as JSON); empty is none.
    #[serde(default)]
    pub faults: PathBuf,
}

impl StorageSettings {
    /// A store of which the URL says all that is needed, such as a folder.
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            endpoint: String::new(),
            region: "us-east-1".to_owned(),
            access_key_id: String::new(),
            secret_access_key: "".into(),
            faults: PathBuf::new(),
        }
    }
}

/// What went wrong with the object store.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    /// The setting is not understood.
    #[error("storage.url {url:?} must be file:///absolute/folder or s3://bucket/prefix")]
    Url {
        /// What was given.
        url: String,
    },
    /// Tests would disturb others.
    #[error("storage.faults is for tests, with file:// alone: empty it")]
    Faults,
    /// The folder cannot be made.
    #[error("cannot make the storage folder {}", path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// The store cannot be opened as it is set up.
    #[error("cannot open the object store")]
    Open(#[source] object_store::Error),
    /// There is no such object.
    #[error("{key} is not in the object store")]
    Missing {
        /// Its key.
        key: Key,
    },
    /// The object is larger than the reader is ready for.
    #[error("{key} has {size} bytes; {limit} were expected at most")]
    TooLarge {
        /// Its key.
        key: Key,
        /// Its size in bytes.
        size: u64,
        /// The reader's limit in bytes.
        limit: u64,
    },
    /// The store said no or did not answer.
    #[error("{operation} {key} failed")]
    Request {
        /// What was asked.
        operation: &'static str,
        /// Of which object.
        key: Key,
        /// The answer.
        #[source]
        source: object_store::Error,
    },
    /// The store said no or did not answer when it was asked what is there.
    #[error("listing what is stored failed")]
    List(#[source] object_store::Error),
    /// A file that is to be stored cannot be read.
    #[error("cannot read {}", path.display())]
    ReadFile {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// A file that is to be stored has other bytes than when it was hashed.
    #[error("{} was changed while it was being stored", path.display())]
    ChangedFile {
        /// The file.
        path: PathBuf,
    },
    /// What came back is not what was written.
    #[error("the object store did not return what it was given")]
    ReadBack,
}

/// An open object store. Cheap to clone.
#[derive(Clone)]
pub struct Storage {
    store: Arc<dyn ObjectStore>,
    /// Where objects lie, if that is a folder.
    folder: Option<Arc<FilePath>>,
    /// What this store is [probed](Self::probe) with, by one at a time.
    probing: Arc<Mutex<Key>>,
}

impl Storage {
    /// Opens the store that `settings` name. A folder is made if it is not there.
    ///
    /// # Errors
    /// When the settings make no sense. Whether the store answers is for [`probe`](Self::probe) to say.
    pub fn open(settings: &StorageSettings) -> Result<Self, StorageError> {
        let url = || StorageError::Url {
            url: settings.url.clone(),
        };
        let mut folder = None;
        let store: Arc<dyn ObjectStore> = match settings.url.split_once("://") {
            Some(("file", path)) if path.starts_with('/') => {
                let path = PathBuf::from(path);
                let not_made = |source| StorageError::Folder {
                    path: path.clone(),
                    source,
                };
                std::fs::create_dir_all(&path).map_err(not_made)?;
                folder = Some(Arc::from(path.as_path()));
                // Pictures must survive what the log survives, and a power loss with `sync_always` is part of that.
                Arc::new(durable::Durable::open(&path).map_err(StorageError::Open)?)
            }
            Some(("s3", place)) if !place.is_empty() => {
                let (bucket, prefix) = place.split_once('/').unwrap_or((place, ""));
                let s3 = s3(settings, bucket).map_err(StorageError::Open)?;
                Arc::new(PrefixStore::new(s3, prefix))
            }
            _ => return Err(url()),
        };
        let opened = Self {
            store,
            folder,
            probing: Arc::new(Mutex::new(Key::probe())),
        };
        if settings.faults.as_os_str().is_empty() {
            return Ok(opened);
        }
        if !settings.url.starts_with("file://") {
            return Err(StorageError::Faults);
        }
        let store = Arc::new(faults::Faulty::new(opened.store, settings.faults.clone()));
        Ok(Self { store, ..opened })
    }

    /// Stores an object whole, in place of one with the same key.
    ///
    /// # Errors
    /// When the store did not confirm it.
    pub async fn put(&self, key: &Key, data: Bytes) -> Result<(), StorageError> {
        let put = self
            .store
            .put(&path(key), PutPayload::from_bytes(data))
            .await;
        put.map(drop).map_err(request("writing", key))
    }

    /// Stores an object whole and gives back what lies in the store then, for the caller to compare: as [`put`](Self::put) and [`get`](Self::get), but from a folder
    /// in one turn.
    ///
    /// # Errors
    /// When the store did not confirm it, or it cannot be read.
    pub async fn put_and_get(&self, key: &Key, data: Bytes) -> Result<Bytes, StorageError> {
        let (size, path) = (data.len() as u64, path(key));
        let payload = PutPayload::from_bytes(data);
        let put = self.store.put_opts(&path, payload, ReadBack::ask());
        let put = put.await.map_err(request("writing", key))?;
        match put.extensions.get::<Found>() {
            Some(Found(found)) => Ok(found.clone()),
            None => self.get(key, size).await,
        }
    }

    /// Reads an object of at most `limit` bytes.
    ///
    /// # Errors
    /// [`StorageError::Missing`] or [`StorageError::TooLarge`], or what the store answered.
    pub async fn get(&self, key: &Key, limit: u64) -> Result<Bytes, StorageError> {
        let found = self.store.get_opts(&path(key), AtOnce::ask(limit)).await;
        let found = found.map_err(request("reading", key))?;
        let size = found.meta.size;
        if size > limit {
            let key = key.clone();
            return Err(StorageError::TooLarge { key, size, limit });
        }
        found.bytes().await.map_err(request("reading", key))
    }

    /// The size of an object in bytes, if it is there.
    ///
    /// # Errors
    /// When the store did not answer.
    pub async fn size(&self, key: &Key) -> Result<Option<u64>, StorageError> {
        match self.store.head(&path(key)).await {
            Ok(meta) => Ok(Some(meta.size)),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(source) => Err(request("finding", key)(source)),
        }
    }

    /// Removes an object. That it is not there is no error.
    ///
    /// # Errors
    /// When the store did not answer.
    pub async fn delete(&self, key: &Key) -> Result<(), StorageError> {
        match self.store.delete(&path(key)).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(source) => Err(request("removing", key)(source)),
        }
    }
}

fn s3(settings: &StorageSettings, bucket: &str) -> object_store::Result<impl ObjectStore> {
    let mut builder = AmazonS3Builder::from_env()
        .with_bucket_name(bucket)
        .with_region(&settings.region);
    if !settings.endpoint.is_empty() {
        builder = builder
            .with_endpoint(&settings.endpoint)
            .with_allow_http(settings.endpoint.starts_with("http://"));
    }
    if !settings.access_key_id.is_empty() {
        builder = builder
            .with_access_key_id(&settings.access_key_id)
            .with_secret_access_key(settings.secret_access_key.expose_secret());
    }
    builder.build()
}

fn path(key: &Key) -> Path {
    Path::from(key.as_str())
}

fn request(
    operation: &'static str,
    key: &Key,
) -> impl FnOnce(object_store::Error) -> StorageError + use<> {
    let key = key.clone();
    move |source| match source {
        object_store::Error::NotFound { .. } => StorageError::Missing { key },
        source => StorageError::Request {
            operation,
            key,
            source,
        },
    }
}

/// SHA-256, lower-case hex.
pub fn sha256_hex(data: &[u8]) -> String {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, data);
    hex::encode(digest.as_ref())
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(crate) fn scratch() -> (tempfile::TempDir, Storage) {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("file://{}", folder.path().display());
        let storage = Storage::open(&StorageSettings::new(url)).unwrap();
        (folder, storage)
    }

    #[tokio::test]
    async fn what_is_written_is_read_and_may_be_written_again() {
        let (_folder, storage) = scratch();
        let key = Key::artifact(&sha256_hex(b"x")).unwrap();
        assert_eq!(storage.size(&key).await.unwrap(), None);
        storage.put(&key, Bytes::from_static(b"x")).await.unwrap();
        storage.put(&key, Bytes::from_static(b"x")).await.unwrap();
        assert_eq!(storage.size(&key).await.unwrap(), Some(1));
        assert_eq!(
            storage.get(&key, 1).await.unwrap(),
            Bytes::from_static(b"x")
        );
        storage.delete(&key).await.unwrap();
        storage.delete(&key).await.unwrap();
        let missing = storage.get(&key, 1).await.unwrap_err();
        assert!(matches!(missing, StorageError::Missing { .. }));
    }

    #[tokio::test]
    async fn an_object_over_the_readers_limit_is_not_read() {
        let (_folder, storage) = scratch();
        let key = Key::artifact(&sha256_hex(b"xy")).unwrap();
        storage.put(&key, Bytes::from_static(b"xy")).await.unwrap();
        let error = storage.get(&key, 1).await.unwrap_err();
        assert!(matches!(
            error,
            StorageError::TooLarge {
                size: 2,
                limit: 1,
                ..
            }
        ));
    }

    #[test]
    fn an_url_of_another_kind_is_refused_with_the_two_that_work() {
        for url in ["", "file://relative", "ftp://x", "s3://"] {
            let error = Storage::open(&StorageSettings::new(url))
                .map(drop)
                .unwrap_err();
            assert!(error.to_string().contains("s3://bucket/prefix"), "{error}");
        }
    }
}
