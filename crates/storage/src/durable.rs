//! A folder as the store, whose writes survive a power loss.
//!
//! Three things are not `object_store`'s own. Its writing, told to flush, flushes four times for an object in a folder of its own, and each
//! writer for itself. Here the file and its folder are flushed once each, then the folders that hold new ones or may, and those who wait for one
//! and the same folder share its flush ([`Folders`]). Its removing takes away each folder that has become empty; here the folders that tasks share
//! stay, so that one that is known to be on the disk remains so. And what its reader takes in one piece is opened and read in one turn,
//! that of its writing if the writer wants to see it ([`whole`]).

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path as FilePath, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use futures::StreamExt as _;
use futures::stream::BoxStream;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta,
    ObjectStore, ObjectStoreExt as _, PutMode, PutMultipartOptions, PutOptions, PutPayload,
    PutResult, Result,
};

use crate::key::is_shared;
use crate::whole::{self, AtOnce, ReadBack};

/// Names tried for a draft, before it is given up: others' drafts have the rest.
const DRAFTS: usize = 1000;
/// Objects of one call that are removed together.
const REMOVED_AT_ONCE: usize = 10;

/// The store.
#[derive(Debug)]
pub(crate) struct Durable {
    inner: LocalFileSystem,
    root: PathBuf,
    folders: Arc<Folders>,
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
            root,
            folders: Arc::default(),
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
        let (root, folders) = (self.root.clone(), Arc::clone(&self.folders));
        let shared = is_shared(location.as_ref());
        let work = move || {
            let made = write(&root, &path, &payload)?;
            folders.flush_for(&root, &path, &made, shared)?;
            ReadBack::answer(&options, &path, payload.content_length() as u64)
        };
        let written = tokio::task::spawn_blocking(work);
        Ok(PutResult {
            e_tag: None,
            version: None,
            extensions: written.await?.map_err(failed)?,
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
        let cleaning = self.inner.clone();
        let keeping = cleaning.clone().with_automatic_cleanup(false);
        let remove = move |location: Result<Path>| {
            let (cleaning, keeping) = (cleaning.clone(), keeping.clone());
            async move {
                let location = location?;
                let shared = is_shared(location.as_ref());
                let store = if shared { keeping } else { cleaning };
                store.delete(&location).await?;
                Ok::<Path, Error>(location)
            }
        };
        locations.map(remove).buffered(REMOVED_AT_ONCE).boxed()
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

/// Writes a file whole, in place of one that is there, and gives back the folders that were made for it. When this returns, its bytes are on
/// the disk, and its name need not be.
fn write(root: &FilePath, path: &FilePath, payload: &PutPayload) -> io::Result<Vec<PathBuf>> {
    let (mut file, draft, made) = new_draft(root, folder_of(root, path), path)?;
    let written = payload
        .iter()
        .try_for_each(|part| file.write_all(part))
        .and_then(|()| file.sync_all());
    drop(file);
    if let Err(error) = written.and_then(|()| fs::rename(&draft, path)) {
        // Nothing refers to it, and listings leave it out.
        let _ = fs::remove_file(&draft);
        return Err(error);
    }
    Ok(made)
}

fn folder_of<'a>(root: &'a FilePath, path: &'a FilePath) -> &'a FilePath {
    path.parent().unwrap_or(root)
}

/// A folder and those that hold it, up to the root and without it.
fn up_to<'a>(root: &'a FilePath, folder: &'a FilePath) -> impl Iterator<Item = &'a FilePath> {
    folder.ancestors().take_while(move |at| *at != root)
}

/// The folders that hold those on the way to `folder`, itself included, whose names may not be on the disk: the `made` innermost ones are new,
/// and who made another, in this process or elsewhere, may not have come to flushing it.
fn unsure<'a>(
    root: &'a FilePath,
    folder: &'a FilePath,
    made: usize,
    shared: bool,
) -> impl Iterator<Item = &'a FilePath> {
    let all = up_to(root, folder).count();
    // Of those that are not shared only the innermost one comes and goes. What lies in the root is made once for each kind of objects.
    let many = if shared {
        all
    } else {
        made.max(usize::from(all > 1))
    };
    up_to(root, folder).take(many).filter_map(FilePath::parent)
}

fn flush(folder: &FilePath) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

/// A file beside the one that is to be, and the folders that were made for it, the innermost first. It is named as `object_store`
/// names its own: `#` and a number are left out of listings.
fn new_draft(
    root: &FilePath,
    folder: &FilePath,
    path: &FilePath,
) -> io::Result<(File, PathBuf, Vec<PathBuf>)> {
    static NUMBERS: AtomicU64 = AtomicU64::new(0);
    let mut made: Vec<PathBuf> = Vec::new();
    for _ in 0..DRAFTS {
        let number = NUMBERS.fetch_add(1, Ordering::Relaxed);
        let mut draft = path.as_os_str().to_owned();
        draft.push(format!("#{}{number:09}", std::process::id()));
        let draft = PathBuf::from(draft);
        match OpenOptions::new().write(true).create_new(true).open(&draft) {
            Ok(file) => return Ok((file, draft, made)),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            // Also when one that was empty was removed in this moment.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let missing = up_to(root, folder).take_while(|at| !at.exists());
                made = missing.map(FilePath::to_owned).collect();
                fs::create_dir_all(folder)?;
            }
            Err(error) => return Err(error),
        }
    }
    Err(io::ErrorKind::AlreadyExists.into())
}

/// Folders that many write into at once: those who wait for one to be flushed go together.
#[derive(Debug, Default)]
struct Folders {
    /// Of those that somebody waits for.
    queues: Mutex<HashMap<PathBuf, Arc<Rounds>>>,
    /// Shared ones that are known to be on the disk themselves, as are all that hold them. They are never removed.
    settled: Mutex<HashSet<PathBuf>>,
}

impl Folders {
    /// Returns when a file's name is on the disk, and the folders on the way to it: all that were `made` for it and, whoever made them, the one
    /// that it lies in, unless that lies in the root, and, of a shared one, all that hold it. Not if somebody else removes folders meanwhile:
    /// a shared one that is made again, by another process, is taken for the one that was on the disk.
    fn flush_for(
        &self,
        root: &FilePath,
        path: &FilePath,
        made: &[PathBuf],
        shared: bool,
    ) -> io::Result<()> {
        let folder = folder_of(root, path);
        self.flush(folder)?;
        if shared && made.is_empty() && lock(&self.settled).contains(folder) {
            return Ok(());
        }
        for above in unsure(root, folder, made.len(), shared) {
            self.flush(above)?;
        }
        if shared {
            lock(&self.settled).insert(folder.to_owned());
        }
        Ok(())
    }

    /// Returns when all that lay in the folder before is on the disk.
    fn flush(&self, folder: &FilePath) -> io::Result<()> {
        self.together(folder, || flush(folder))
    }

    /// Does the work for a folder, once for all who came before it began.
    fn together(&self, folder: &FilePath, work: impl Fn() -> io::Result<()>) -> io::Result<()> {
        let rounds = {
            let mut queues = lock(&self.queues);
            Arc::clone(queues.entry(folder.to_owned()).or_default())
        };
        let done = rounds.join(work);
        let mut queues = lock(&self.queues);
        drop(rounds);
        // Others come and go under the lock alone.
        let left = queues.get(folder).map(Arc::strong_count);
        if left == Some(1) {
            queues.remove(folder);
        }
        done
    }
}

/// Something that is done again and again, once for all who came before it began.
#[derive(Debug, Default)]
struct Rounds {
    state: Mutex<Round>,
    ended: Condvar,
}

#[derive(Debug, Default)]
struct Round {
    begun: u64,
    ended: u64,
    /// The last one that failed, and how.
    failed: Option<(u64, io::ErrorKind)>,
}

impl Rounds {
    /// Returns when a round has ended that began after this was called. Whoever finds none going on does it.
    fn join(&self, work: impl Fn() -> io::Result<()>) -> io::Result<()> {
        let mut state = lock(&self.state);
        let wanted = state.begun + 1;
        while state.ended < wanted {
            if state.begun > state.ended {
                let woken = self.ended.wait(state);
                state = woken.unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            state.begun += 1;
            drop(state);
            let result = work();
            state = lock(&self.state);
            state.ended = state.begun;
            if let Err(error) = result {
                state.failed = Some((state.ended, error.kind()));
            }
            self.ended.notify_all();
        }
        match state.failed {
            // It may have been a later one: then it is said once too often that something is not known to be on the disk.
            Some((round, kind)) if round >= wanted => Err(kind.into()),
            _ => Ok(()),
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing panics while it is held half-changed.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;
    use std::time::Duration;

    use super::*;

    /// A folder that tasks share.
    const SHARED: &str = "images/00";

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
        for folder in ["images/a", SHARED] {
            let paths = (0..8).map(|name| Path::from(format!("{folder}/{name}")));
            futures::future::join_all(paths.map(write_and_remove)).await;
        }
    }

    #[tokio::test]
    async fn an_empty_folder_goes_unless_tasks_share_it() {
        let (folder, store) = scratch();
        for (name, stays) in [("images/a", false), (SHARED, true)] {
            let path = Path::from(format!("{name}/0.png"));
            store.put(&path, PutPayload::from("x")).await.unwrap();
            store.delete(&path).await.unwrap();
            assert_eq!(folder.path().join(name).exists(), stays, "{name}");
            let again = store.delete(&path).await.unwrap_err();
            assert!(matches!(again, Error::NotFound { .. }), "{again}");
        }
    }

    #[tokio::test]
    async fn writers_into_one_folder_all_come_through_and_nothing_is_kept_of_their_waiting() {
        let (folder, store) = scratch();
        // Made by another process, which may not have flushed it.
        fs::create_dir_all(folder.path().join(SHARED)).unwrap();
        let paths: Vec<Path> = (0..32)
            .map(|name| Path::from(format!("{SHARED}/{name}")))
            .collect();
        let held = &store;
        let write = move |path: Path| async move {
            let payload = PutPayload::from(path.to_string());
            held.put(&path, payload).await.unwrap();
        };
        futures::future::join_all(paths.iter().cloned().map(write)).await;
        for path in &paths {
            let found = store.get(path).await.unwrap().bytes().await.unwrap();
            assert_eq!(found, path.to_string());
        }
        assert!(lock(&store.folders.queues).is_empty());
        let settled = lock(&store.folders.settled);
        assert_eq!(*settled, HashSet::from([store.root.join(SHARED)]));
    }

    #[test]
    fn a_folder_that_was_there_is_not_taken_to_be_on_the_disk() {
        let root = FilePath::new("/root");
        let flushed = |folder: &str, made: usize, shared: bool| -> Vec<String> {
            let folder = root.join(folder);
            let all = unsure(root, &folder, made, shared);
            all.map(|at| at.display().to_string()).collect()
        };
        assert_eq!(flushed("inputs/a", 0, false), ["/root/inputs"]);
        assert_eq!(flushed("inputs/a", 2, false), ["/root/inputs", "/root"]);
        assert_eq!(flushed("artifacts", 1, false), ["/root"]);
        assert_eq!(flushed(SHARED, 0, true), ["/root/images", "/root"]);
        for (folder, why) in [("artifacts", "made once"), ("", "the root itself")] {
            assert!(flushed(folder, 0, false).is_empty(), "{why}");
        }
    }

    #[tokio::test]
    async fn a_write_that_fails_says_so_and_leaves_nothing() {
        let (folder, store) = scratch();
        fs::create_dir_all(folder.path().join("images/a/0.png")).unwrap();
        let path = Path::from("images/a/0.png");
        store.put(&path, PutPayload::from("x")).await.unwrap_err();
        let beside = fs::read_dir(folder.path().join("images/a")).unwrap();
        assert_eq!(beside.count(), 1, "the folder that is in the way");
    }

    #[test]
    fn those_who_come_together_share_a_round_that_begins_after_they_came() {
        const CALLERS: usize = 16;
        let (folders, taken) = (Folders::default(), AtomicUsize::new(0));
        let came = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..CALLERS {
                scope.spawn(|| {
                    came.fetch_add(1, Ordering::SeqCst);
                    let done = folders.together(FilePath::new("folder"), || {
                        taken.fetch_add(1, Ordering::SeqCst);
                        // The first one waits until all are there.
                        while came.load(Ordering::SeqCst) < CALLERS {
                            std::thread::sleep(Duration::from_millis(1));
                        }
                        Ok(())
                    });
                    done.unwrap();
                });
            }
        });
        let taken = taken.load(Ordering::SeqCst);
        assert!((2..CALLERS).contains(&taken), "{taken} rounds");
        assert!(lock(&folders.queues).is_empty());
    }

    #[test]
    fn who_waits_for_a_round_that_fails_hears_of_it_and_the_next_may_succeed() {
        let rounds = Rounds::default();
        let error = rounds.join(|| Err(io::ErrorKind::StorageFull.into()));
        assert_eq!(error.unwrap_err().kind(), io::ErrorKind::StorageFull);
        rounds.join(|| Ok(())).unwrap();
    }
}
