//! A folder as the store, whose writes survive a power loss.
//!
//! Two things are not `object_store`'s own. Its writing, told to flush, flushes four times for an object in a folder of its own, and each
//! writer for itself; here those who come together are written together ([`Writers`]). And what its reader takes in one piece is opened and
//! read in one turn, that of its writing if the writer wants to see it ([`whole`]).

use std::fmt;
use std::fs;
use std::io;
use std::path::Path as FilePath;
use std::sync::Arc;

use async_trait::async_trait;
use futures::stream::BoxStream;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta,
    ObjectStore, PutMode, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};

use crate::whole::{self, AtOnce};
use crate::writers::Writers;

/// The store.
#[derive(Debug)]
pub(crate) struct Durable {
    inner: LocalFileSystem,
    writers: Arc<Writers>,
}

impl Durable {
    /// Objects under `root`, which is there.
    pub(crate) fn open(root: &FilePath) -> Result<Self> {
        let inner = LocalFileSystem::new_with_prefix(root)?;
        // As the paths of objects begin.
        let root = fs::canonicalize(root).map_err(failed)?;
        Ok(Self {
            // For all that is not written here.
            inner: inner.with_automatic_cleanup(true).with_fsync(true),
            writers: Arc::new(Writers::new(root)),
        })
    }
}

impl fmt::Display for Durable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

#[async_trait]
impl ObjectStore for Durable {
    async fn put_opts(
        &self,
        location: &Path,
        payload: PutPayload,
        options: PutOptions,
    ) -> Result<PutResult> {
        let plain = matches!(options.mode, PutMode::Overwrite) && options.attributes.is_empty();
        if !plain {
            return self.inner.put_opts(location, payload, options).await;
        }
        let path = self.inner.path_to_filesystem(location)?;
        let written = self.writers.write(path, payload, options);
        Ok(PutResult {
            e_tag: None,
            version: None,
            extensions: written.await.map_err(failed)?,
        })
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(location, options).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        let Some(most) = AtOnce::asked(&options) else {
            return self.inner.get_opts(location, options).await;
        };
        let path = self.inner.path_to_filesystem(location)?;
        let location = location.clone();
        tokio::task::spawn_blocking(move || whole::read(location, path, most)).await?
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        self.inner.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}

pub(crate) fn failed(source: io::Error) -> Error {
    Error::Generic {
        store: "a folder",
        source: Box::new(source),
    }
}

#[cfg(test)]
mod tests {
    use object_store::ObjectStoreExt as _;

    use super::*;

    fn scratch() -> (tempfile::TempDir, Durable) {
        let folder = tempfile::tempdir().unwrap();
        let store = Durable::open(folder.path()).unwrap();
        (folder, store)
    }

    #[tokio::test]
    async fn what_is_written_is_there_and_replaced_whole_and_nothing_lies_beside_it() {
        let (folder, store) = scratch();
        let path = Path::from("images/a/0.png");
        for text in ["first, and longer", "second"] {
            store.put(&path, PutPayload::from(text)).await.unwrap();
            let found = store.get(&path).await.unwrap().bytes().await.unwrap();
            assert_eq!(found, text);
        }
        let beside = fs::read_dir(folder.path().join("images/a")).unwrap();
        assert_eq!(beside.count(), 1);
    }

    #[tokio::test]
    async fn writers_beside_removers_of_the_same_folder_all_come_through() {
        let (_folder, store) = scratch();
        let store = &store;
        let write_and_remove = move |path: Path| async move {
            for _ in 0..20 {
                store.put(&path, PutPayload::from("x")).await.unwrap();
                store.delete(&path).await.unwrap();
            }
        };
        let paths = (0..8).map(|name| Path::from(format!("images/a/{name}")));
        futures::future::join_all(paths.map(write_and_remove)).await;
    }

    #[tokio::test]
    async fn an_empty_folder_goes_and_comes_again() {
        let (folder, store) = scratch();
        let path = Path::from("images/20261128T0449/0.png");
        for _ in 0..2 {
            store.put(&path, PutPayload::from("x")).await.unwrap();
            store.delete(&path).await.unwrap();
            assert!(!folder.path().join("images").exists());
            let again = store.delete(&path).await.unwrap_err();
            assert!(
                matches!(again, object_store::Error::NotFound { .. }),
                "{again}"
            );
        }
    }

    #[tokio::test]
    async fn a_write_that_fails_says_so_and_leaves_nothing_and_those_beside_it_come_through() {
        let (folder, store) = scratch();
        fs::create_dir_all(folder.path().join("images/a/0.png")).unwrap();
        let put = |name: &str| {
            let path = Path::from(format!("images/a/{name}"));
            let store = &store;
            async move { store.put(&path, PutPayload::from("x")).await }
        };
        let (wrong, right) = tokio::join!(put("0.png"), put("1.png"));
        wrong.unwrap_err();
        right.unwrap();
        let beside = fs::read_dir(folder.path().join("images/a")).unwrap();
        assert_eq!(
            beside.count(),
            2,
            "the folder that is in the way, and the other"
        );
    }
}
