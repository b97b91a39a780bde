//! From the object store to a folder on this machine, whole and verified or not at all.
//!
//! A version's folder is named by its digest and appears by a rename, so that one that is there is complete, and workers
//! that share a cache do not see each other's half.

use std::io;
use std::path::{Component, Path, PathBuf};

use bytes::Bytes;
use contract::registry::{Artifact, ModelVersion};
use storage::{Key, Storage, StorageError, sha256_hex};

/// Written last into a folder that is complete.
const MARKER: &str = ".complete";

/// Why a version's files are not here.
#[derive(Debug, thiserror::Error)]
pub(super) enum FetchError {
    /// The registry names the version's content by something that is no digest.
    #[error("{0:?} is not a SHA-256 in lower-case hex")]
    Digest(String),
    /// A file's path would lead out of the folder, or is none.
    #[error("{0:?} is not a relative path within a model folder")]
    Path(String),
    /// A file's key is not of a kind that we store.
    #[error("{path}: {key:?} is not the key of an object")]
    Key {
        /// The file.
        path: String,
        /// Its key.
        key: String,
    },
    /// A file could not be had from the store.
    #[error("{path} cannot be downloaded")]
    Download {
        /// The file.
        path: String,
        /// Why not.
        #[source]
        source: StorageError,
    },
    /// A file has other bytes than the registry says.
    #[error("{path} has {found} ({found_bytes} bytes), not {wanted} ({wanted_bytes} bytes)")]
    Content {
        /// The file.
        path: String,
        /// SHA-256 of what came.
        found: String,
        /// Its size.
        found_bytes: u64,
        /// SHA-256 of what should have come.
        wanted: String,
        /// Its size.
        wanted_bytes: u64,
    },
    /// A file or folder could not be written.
    #[error("cannot write {}", path.display())]
    Write {
        /// The file or folder.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

/// The folder with a version's files, downloaded if it is not there.
pub(super) async fn fetch(
    storage: &Storage,
    cache: &Path,
    version: &ModelVersion,
) -> Result<PathBuf, FetchError> {
    if Key::artifact(&version.digest).is_none() {
        return Err(FetchError::Digest(version.digest.clone()));
    }
    let folder = cache.join(&version.digest);
    if complete(&folder, &version.artifacts).await {
        return Ok(folder);
    }
    // One that is incomplete was damaged by hand: it only stands in the way.
    forget(&folder).await;
    let draft = cache.join(format!(".{}.{}", version.digest, uuid::Uuid::now_v7()));
    let fetched = download(storage, &draft, version).await;
    let placed = match fetched {
        Ok(()) => tokio::fs::rename(&draft, &folder)
            .await
            .map_err(write(&folder)),
        Err(error) => Err(error),
    };
    if let Err(error) = placed {
        forget(&draft).await;
        // Another worker may have been faster, with the same files.
        if !complete(&folder, &version.artifacts).await {
            return Err(error);
        }
    }
    Ok(folder)
}

/// Removes a folder, as far as that can be done.
pub(super) async fn forget(folder: &Path) {
    match tokio::fs::remove_dir_all(folder).await {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(folder = %folder.display(), %error, "a folder of the cache stays");
        }
        _ => {}
    }
}

/// Whether the folder was verified once and its files still have their sizes.
async fn complete(folder: &Path, artifacts: &[Artifact]) -> bool {
    if tokio::fs::metadata(folder.join(MARKER)).await.is_err() {
        return false;
    }
    for artifact in artifacts {
        let Some(path) = inside(&artifact.path) else {
            return false;
        };
        let found = tokio::fs::metadata(folder.join(path)).await;
        if !found.is_ok_and(|found| found.is_file() && found.len() == artifact.size_bytes) {
            return false;
        }
    }
    true
}

async fn download(
    storage: &Storage,
    draft: &Path,
    version: &ModelVersion,
) -> Result<(), FetchError> {
    tracing::info!(
        digest = version.digest,
        files = version.artifacts.len(),
        "downloading a model"
    );
    for artifact in &version.artifacts {
        let path = inside(&artifact.path).ok_or_else(|| FetchError::Path(artifact.path.clone()))?;
        let data = verified(storage, artifact).await?;
        put(draft.join(path), data).await?;
    }
    put(draft.join(MARKER), Bytes::new()).await
}

async fn verified(storage: &Storage, artifact: &Artifact) -> Result<Bytes, FetchError> {
    let Artifact {
        path,
        sha256,
        size_bytes,
        key,
    } = artifact;
    let key = Key::stored(key).ok_or_else(|| FetchError::Key {
        path: path.clone(),
        key: key.clone(),
    })?;
    let failed = |source| FetchError::Download {
        path: path.clone(),
        source,
    };
    let data = storage.get(&key, *size_bytes).await.map_err(failed)?;
    let hashed = data.clone();
    let digest = tokio::task::spawn_blocking(move || sha256_hex(&hashed)).await;
    // Hashing does not panic; a runtime that shuts down may drop it, and then nobody reads the answer.
    let found = digest.unwrap_or_default();
    if found == *sha256 && data.len() as u64 == *size_bytes {
        return Ok(data);
    }
    Err(FetchError::Content {
        path: path.clone(),
        found,
        found_bytes: data.len() as u64,
        wanted: sha256.clone(),
        wanted_bytes: *size_bytes,
    })
}

async fn put(path: PathBuf, data: Bytes) -> Result<(), FetchError> {
    if let Some(parent) = path.parent() {
        tokio::fs::create_dir_all(parent)
            .await
            .map_err(write(parent))?;
    }
    tokio::fs::write(&path, data).await.map_err(write(&path))
}

fn write(path: &Path) -> impl FnOnce(io::Error) -> FetchError + use<> {
    let path = path.to_owned();
    move |source| FetchError::Write { path, source }
}

/// The path, if it is plainly one within a folder.
fn inside(path: &str) -> Option<&Path> {
    let path = Path::new(path);
    let plain = path
        .components()
        .all(|part| matches!(part, Component::Normal(_)));
    let named = path.components().next().is_some() && path != Path::new(MARKER);
    (plain && named).then_some(path)
}

#[cfg(test)]
mod tests {
    use storage::StorageSettings;

    use super::*;

    struct Scratch {
        _folder: tempfile::TempDir,
        cache: PathBuf,
        storage: Storage,
    }

    fn scratch() -> Scratch {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("file://{}/objects", folder.path().display());
        let settings = StorageSettings::new(url);
        let cache = folder.path().join("cache");
        Scratch {
            storage: Storage::open(&settings).unwrap(),
            cache,
            _folder: folder,
        }
    }

    async fn artifact(storage: &Storage, path: &str, data: &'static [u8]) -> Artifact {
        let sha256 = sha256_hex(data);
        let key = Key::artifact(&sha256).unwrap();
        storage.put(&key, Bytes::from_static(data)).await.unwrap();
        let (path, key) = (path.to_owned(), key.to_string());
        Artifact {
            path,
            sha256,
            size_bytes: data.len() as u64,
            key,
        }
    }

    fn version(artifacts: Vec<Artifact>) -> ModelVersion {
        ModelVersion {
            digest: "ab".repeat(32),
            artifacts,
            ..ModelVersion::default()
        }
    }

    fn drafts(cache: &Path) -> usize {
        let entries = std::fs::read_dir(cache).map(Iterator::collect::<Vec<_>>);
        let drafts = entries.unwrap_or_default().into_iter().flatten();
        drafts
            .filter(|entry| entry.file_name().to_string_lossy().starts_with('.'))
            .count()
    }

    #[tokio::test]
    async fn what_was_downloaded_once_is_used_again() {
        let Scratch {
            storage,
            cache,
            _folder,
        } = scratch();
        let file = artifact(&storage, "unet/config.json", b"{}").await;
        let key = Key::stored(&file.key).unwrap();
        let version = version(vec![file]);
        let folder = fetch(&storage, &cache, &version).await.unwrap();
        assert_eq!(
            std::fs::read(folder.join("unet/config.json")).unwrap(),
            b"{}"
        );
        storage.delete(&key).await.unwrap();
        assert_eq!(fetch(&storage, &cache, &version).await.unwrap(), folder);
        assert_eq!(drafts(&cache), 0);
    }

    #[tokio::test]
    async fn a_cached_file_that_was_cut_short_is_downloaded_again() {
        let Scratch {
            storage,
            cache,
            _folder,
        } = scratch();
        let version = version(vec![artifact(&storage, "a", b"abc").await]);
        let folder = fetch(&storage, &cache, &version).await.unwrap();
        std::fs::write(folder.join("a"), b"ab").unwrap();
        fetch(&storage, &cache, &version).await.unwrap();
        assert_eq!(std::fs::read(folder.join("a")).unwrap(), b"abc");
    }

    #[tokio::test]
    async fn a_file_with_other_bytes_is_refused_by_name_and_leaves_nothing() {
        let Scratch {
            storage,
            cache,
            _folder,
        } = scratch();
        let mut bad = artifact(&storage, "vae/weights", b"abc").await;
        bad.sha256 = sha256_hex(b"abd");
        let version = version(vec![artifact(&storage, "a", b"good").await, bad]);
        let error = fetch(&storage, &cache, &version).await.unwrap_err();
        assert!(error.to_string().starts_with("vae/weights has"), "{error}");
        assert_eq!(drafts(&cache), 0);
        assert!(!cache.join(&version.digest).exists());
    }

    #[tokio::test]
    async fn a_path_that_leads_out_of_the_folder_is_refused() {
        let Scratch {
            storage,
            cache,
            _folder,
        } = scratch();
        for path in ["../a", "/etc/a", "", "a/../../b", ".complete", "./a"] {
            let version = version(vec![artifact(&storage, path, b"x").await]);
            let error = fetch(&storage, &cache, &version).await.unwrap_err();
            assert!(matches!(error, FetchError::Path(_)), "{path}: {error}");
        }
        let version = ModelVersion {
            digest: "../../up".to_owned(),
            ..version(Vec::new())
        };
        let error = fetch(&storage, &cache, &version).await.unwrap_err();
        assert!(matches!(error, FetchError::Digest(_)), "{error}");
    }
}
