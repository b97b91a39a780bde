//! Objects that are put into a folder at the same time are written together, as databases commit in groups: all files, then their
//! [flush](crate::flush), then their names, then one flush of each folder that they lie in. So one thread waits for the disk instead of one for each,
//! and they share what it does. Whoever comes alone is written alone, at once.

use std::collections::{HashMap, VecDeque};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path as FilePath, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use object_store::{Extensions, PutOptions, PutPayload};
use tokio::sync::oneshot;

use crate::flush::Flushes;
use crate::whole::ReadBack;

/// Objects of one group.
const MAX_OBJECTS: usize = 32;
/// Bytes of one group, unless one object alone has more.
const MAX_BYTES: usize = 8 << 20;
/// Groups that are written at once: a second one begins where a whole one waits.
const AT_ONCE: usize = 4;
/// Names tried for a draft, before it is given up: others' drafts have the rest.
const DRAFTS: usize = 1000;
/// Folders that are known to be on the disk, of which as many are remembered. What is forgotten is flushed once more.
const SETTLED: usize = 1024;

/// Who writes objects under a root.
#[derive(Debug)]
pub(crate) struct Writers {
    folders: Folders,
    flushes: Flushes,
    queue: Mutex<Queue>,
}

#[derive(Debug, Default)]
struct Queue {
    /// As many as wait for their answer.
    waiting: VecDeque<Waiting>,
    bytes: usize,
    at_work: usize,
}

#[derive(Debug)]
struct Waiting {
    path: PathBuf,
    payload: PutPayload,
    options: PutOptions,
    answer: oneshot::Sender<io::Result<Extensions>>,
}

impl Writers {
    /// For objects under `root`, which is there.
    pub(crate) fn new(root: PathBuf) -> Self {
        Self {
            flushes: Flushes::of(&root),
            folders: Folders {
                root,
                settled: Mutex::default(),
            },
            queue: Mutex::default(),
        }
    }

    /// Writes a file whole, in place of one that is there, and makes the folders that it needs. When this returns, its bytes and its name are on
    /// the disk, and so are the folders on the way to it, whoever made them.
    ///
    /// # Errors
    /// What the file system says.
    pub(crate) async fn write(
        self: &Arc<Self>,
        path: PathBuf,
        payload: PutPayload,
        options: PutOptions,
    ) -> io::Result<Extensions> {
        let (answer, answered) = oneshot::channel();
        let waiting = Waiting {
            path,
            payload,
            options,
            answer,
        };
        if let Some(worker) = self.queue_up(waiting) {
            tokio::task::spawn_blocking(move || worker.work());
        }
        let given_up = |_| Err(io::Error::other("whoever wrote it has stopped"));
        answered.await.unwrap_or_else(given_up)
    }

    /// Gives back who is to come to work for it, unless who is at work will do it.
    fn queue_up(self: &Arc<Self>, waiting: Waiting) -> Option<AtWork> {
        let mut queue = lock(&self.queue);
        queue.bytes += waiting.payload.content_length();
        queue.waiting.push_back(waiting);
        let whole = queue.waiting.len() >= MAX_OBJECTS || queue.bytes >= MAX_BYTES;
        let needed = queue.at_work == 0 || (whole && queue.at_work < AT_ONCE);
        needed.then(|| {
            queue.at_work += 1;
            AtWork {
                writers: Arc::clone(self),
                unfinished: true,
            }
        })
    }

    /// Those that are next. Where there are none, who asks is not at work any more: whoever comes after that needs another.
    fn next(&self) -> Option<Vec<Waiting>> {
        let mut queue = lock(&self.queue);
        if queue.waiting.is_empty() {
            queue.at_work -= 1;
            return None;
        }
        let mut group = Vec::new();
        let mut bytes = 0;
        while let Some(first) = queue.waiting.front() {
            let more = first.payload.content_length();
            if group.len() == MAX_OBJECTS || (!group.is_empty() && bytes + more > MAX_BYTES) {
                break;
            }
            bytes += more;
            group.extend(queue.waiting.pop_front());
        }
        queue.bytes -= bytes;
        Some(group)
    }

    fn write_group(&self, group: Vec<Waiting>) {
        // Nobody waits for those whose caller has gone.
        let wanted = group.into_iter().filter(|one| !one.answer.is_closed());
        let drafted = wanted.map(|one| {
            let draft = self.folders.draft(&one.path, &one.payload);
            (one, draft)
        });
        let drafted: Vec<(Waiting, io::Result<Draft>)> = drafted.collect();
        let files = drafted.iter().filter_map(|(_, draft)| draft.as_ref().ok());
        let files: Vec<&File> = files.map(|draft| &draft.file).collect();
        let mut flushed = self.flushes.flush(&files).into_iter();
        let named = drafted.into_iter().map(|(one, draft)| {
            // As many as there are files.
            let named = draft.and_then(|draft| {
                let flushed = flushed.next().unwrap_or(Ok(()));
                draft.become_file(flushed, &one.path)
            });
            (one, named)
        });
        let named: Vec<_> = named.collect();
        let mut round = Round::default();
        for (one, named) in named {
            let size = one.payload.content_length() as u64;
            let folder = self.folders.above(&one.path);
            let settled = named.and_then(|()| Ok(self.folders.settle(folder, &mut round)?));
            let done = settled.and_then(|()| ReadBack::answer(&one.options, &one.path, size));
            // Whose caller has gone meanwhile needs none.
            let _ = one.answer.send(done);
        }
    }
}

/// One who is at work, until nothing waits.
struct AtWork {
    writers: Arc<Writers>,
    unfinished: bool,
}

impl AtWork {
    fn work(mut self) {
        while let Some(group) = self.writers.next() {
            self.writers.write_group(group);
        }
        self.unfinished = false;
    }
}

impl Drop for AtWork {
    /// Not reached by who is done, but where the runtime stops before its work began, or the work panicked: then those whom nobody is left
    /// to work for hear of it.
    fn drop(&mut self) {
        if !self.unfinished {
            return;
        }
        let mut queue = lock(&self.writers.queue);
        queue.at_work -= 1;
        if queue.at_work == 0 {
            queue.bytes = 0;
            queue.waiting.clear();
        }
    }
}

/// A file beside the one that is to be.
struct Draft {
    file: File,
    path: PathBuf,
}

impl Draft {
    /// Takes the place of the file that it is for, if its bytes were `flushed`. Its name need not be on the disk then.
    fn become_file(self, flushed: io::Result<()>, path: &FilePath) -> io::Result<()> {
        let Self { file, path: draft } = self;
        drop(file);
        let named = flushed.and_then(|()| fs::rename(&draft, path));
        named.inspect_err(|_| discard(&draft))
    }
}

/// Nothing refers to it, and listings leave it out.
fn discard(draft: &FilePath) {
    let _ = fs::remove_file(draft);
}

/// The folders under a root.
#[derive(Debug)]
struct Folders {
    root: PathBuf,
    /// Those that are known to be on the disk, as are all that hold them.
    settled: Mutex<HashMap<PathBuf, Identity>>,
}

/// Which folder it is: one that is removed and made anew under the same name is another.
type Identity = (u64, u64, SystemTime);

/// The folders that were flushed in one round, and how that went.
type Round = HashMap<PathBuf, Result<(), Failure>>;

impl Folders {
    fn above<'a>(&'a self, path: &'a FilePath) -> &'a FilePath {
        path.parent().unwrap_or(&self.root)
    }

    /// A file beside the one that is to be, with its bytes, which need not be on the disk. It is named as `object_store` names its own: `#` and a number
    /// are left out of listings.
    fn draft(&self, path: &FilePath, payload: &PutPayload) -> io::Result<Draft> {
        let (mut file, draft) = self.new_draft(path)?;
        let written = payload.iter().try_for_each(|part| file.write_all(part));
        written.inspect_err(|_| discard(&draft))?;
        Ok(Draft { file, path: draft })
    }

    fn new_draft(&self, path: &FilePath) -> io::Result<(File, PathBuf)> {
        static NUMBERS: AtomicU64 = AtomicU64::new(0);
        let mut last = io::Error::from(io::ErrorKind::AlreadyExists);
        for _ in 0..DRAFTS {
            let number = NUMBERS.fetch_add(1, Ordering::Relaxed);
            let mut draft = path.as_os_str().to_owned();
            draft.push(format!("#{}{number:09}", std::process::id()));
            let draft = PathBuf::from(draft);
            match OpenOptions::new().write(true).create_new(true).open(&draft) {
                Ok(file) => return Ok((file, draft)),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                // Also when one that was empty was removed in this moment, and that may happen again while it is made.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    match fs::create_dir_all(self.above(path)) {
                        Err(error) if error.kind() == io::ErrorKind::NotFound => last = error,
                        made => made?,
                    }
                }
                Err(error) => return Err(error),
            }
        }
        Err(last)
    }

    /// Returns when all that lay in a folder before is on the disk, and the folder itself, and those that hold it. Once a round.
    fn settle(&self, folder: &FilePath, round: &mut Round) -> Result<(), Failure> {
        if let Some(done) = round.get(folder) {
            return *done;
        }
        let done = self.flush_up(folder, round);
        round.insert(folder.to_owned(), done);
        done
    }

    fn flush_up(&self, folder: &FilePath, round: &mut Round) -> Result<(), Failure> {
        let which = flush(folder)?;
        if folder == self.root || self.is_settled(folder, which) {
            return Ok(());
        }
        // Who made it, in this process or elsewhere, may not have come to flushing what holds it.
        self.settle(self.above(folder), round)?;
        let Some(which) = which else { return Ok(()) };
        let mut settled = lock(&self.settled);
        if settled.len() >= SETTLED {
            settled.clear();
        }
        settled.insert(folder.to_owned(), which);
        Ok(())
    }

    fn is_settled(&self, folder: &FilePath, which: Option<Identity>) -> bool {
        which.is_some() && lock(&self.settled).get(folder) == which.as_ref()
    }
}

/// Flushes a folder and says which one it was, where its file system tells when it was made.
fn flush(folder: &FilePath) -> io::Result<Option<Identity>> {
    let folder = File::open(folder)?;
    folder.sync_all()?;
    let metadata = folder.metadata()?;
    let identity = |made: SystemTime| (metadata.dev(), metadata.ino(), made);
    Ok(metadata.created().ok().map(identity))
}

/// An error of which each of a group hears.
#[derive(Debug, Clone, Copy)]
enum Failure {
    System(i32),
    Other(io::ErrorKind),
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        let other = Self::Other(error.kind());
        error.raw_os_error().map_or(other, Self::System)
    }
}

impl From<Failure> for io::Error {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::System(code) => Self::from_raw_os_error(code),
            Failure::Other(kind) => kind.into(),
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing panics while it is held half-changed.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn scratch() -> (tempfile::TempDir, Arc<Writers>) {
        let folder = tempfile::tempdir().unwrap();
        let root = fs::canonicalize(folder.path()).unwrap();
        (folder, Arc::new(Writers::new(root)))
    }

    fn waiting(
        writers: &Writers,
        name: &str,
        payload: &'static [u8],
    ) -> (Waiting, oneshot::Receiver<io::Result<Extensions>>) {
        let (answer, answered) = oneshot::channel();
        let one = Waiting {
            path: writers.folders.root.join(name),
            payload: PutPayload::from_static(payload),
            options: PutOptions::default(),
            answer,
        };
        (one, answered)
    }

    #[test]
    fn those_who_come_while_one_is_at_work_are_next_together_up_to_a_whole_group() {
        let (_folder, writers) = scratch();
        let come = |payload| writers.queue_up(waiting(&writers, "x", payload).0);
        let first = come(b"x").unwrap();
        for _ in 1..MAX_OBJECTS - 1 {
            assert!(come(b"x").is_none(), "one is at work");
        }
        let second = come(b"x").unwrap();
        assert!(come(b"x").is_some(), "a whole group waits");
        assert_eq!(writers.next().unwrap().len(), MAX_OBJECTS);
        assert_eq!(writers.next().unwrap().len(), 1);
        drop((first, second));
    }

    #[test]
    fn a_group_has_no_more_bytes_than_it_may_unless_one_alone_has() {
        static LARGE: [u8; MAX_BYTES + 1] = [0; MAX_BYTES + 1];
        let (_folder, writers) = scratch();
        let come = |payload| writers.queue_up(waiting(&writers, "x", payload).0);
        let at_work = [
            come(b"x"),
            come(&LARGE),
            come(&LARGE[..MAX_BYTES]),
            come(b"x"),
        ];
        assert!(at_work.iter().filter(|one| one.is_some()).count() > 1);
        let groups: Vec<usize> = (0..4).map(|_| writers.next().unwrap().len()).collect();
        assert_eq!(groups, [1, 1, 1, 1]);
    }

    #[tokio::test]
    async fn all_that_come_at_once_come_through_and_nothing_is_kept_of_them() {
        let (folder, writers) = scratch();
        let write = |number: u32| {
            let path = writers
                .folders
                .root
                .join(format!("a/{}/{number}", number % 3));
            let payload = PutPayload::from(number.to_string());
            writers.write(path, payload, PutOptions::default())
        };
        let written = futures::future::join_all((0..200).map(write)).await;
        assert!(written.into_iter().all(|one| one.is_ok()));
        for number in 0..200 {
            let path = folder.path().join(format!("a/{}/{number}", number % 3));
            assert_eq!(fs::read_to_string(path).unwrap(), number.to_string());
        }
        let drafts = fs::read_dir(folder.path().join("a/0")).unwrap();
        assert_eq!(drafts.count(), 67);
        // Whoever has answered the last one looks once more whether another has come.
        let rest = async {
            while lock(&writers.queue).at_work > 0 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), rest)
            .await
            .unwrap();
        let queue = lock(&writers.queue);
        assert_eq!((queue.waiting.len(), queue.bytes), (0, 0));
    }

    #[test]
    fn whoever_nobody_is_left_to_work_for_hears_of_it_and_the_next_is_worked_for() {
        let (_folder, writers) = scratch();
        let (one, mut answered) = waiting(&writers, "a/x", b"x");
        // As when the runtime stops.
        drop(writers.queue_up(one));
        let closed = oneshot::error::TryRecvError::Closed;
        assert_eq!(answered.try_recv().unwrap_err(), closed);
        let (next, mut answered) = waiting(&writers, "a/x", b"x");
        writers.queue_up(next).unwrap().work();
        answered.try_recv().unwrap().unwrap();
    }

    #[test]
    fn what_nobody_waits_for_any_more_is_not_written() {
        let (folder, writers) = scratch();
        let (one, answered) = waiting(&writers, "x", b"x");
        drop(answered);
        writers.queue_up(one).unwrap().work();
        assert!(!folder.path().join("x").exists());
    }

    #[test]
    fn a_folder_is_known_to_be_on_the_disk_once_all_that_holds_it_is_and_one_made_anew_is_not() {
        let (_folder, writers) = scratch();
        let folders = &writers.folders;
        let inner = folders.root.join("a/b");
        // Made by another process, which may not have flushed it.
        fs::create_dir_all(&inner).unwrap();
        let flushed = || {
            let mut round = Round::new();
            assert!(folders.settle(&inner, &mut round).is_ok());
            let mut flushed: Vec<PathBuf> = round.into_keys().collect();
            flushed.sort();
            flushed
        };
        let all = [folders.root.clone(), folders.root.join("a"), inner.clone()];
        assert_eq!(flushed(), all);
        assert_eq!(flushed(), std::slice::from_ref(&inner));
        // Held open, so that the new one does not get its inode within a tick of the clock.
        let _held = File::open(&inner).unwrap();
        fs::remove_dir(&inner).unwrap();
        fs::create_dir(&inner).unwrap();
        assert_eq!(flushed(), all[1..]);
    }

    #[test]
    fn a_folder_that_cannot_be_flushed_is_an_error_for_each_that_lies_in_it() {
        let (_folder, writers) = scratch();
        let mut round = Round::new();
        for _ in 0..2 {
            let missing = writers.folders.root.join("missing");
            let failed = writers.folders.settle(&missing, &mut round).unwrap_err();
            let failed = io::Error::from(failed);
            assert_eq!(failed.kind(), io::ErrorKind::NotFound);
            assert!(failed.raw_os_error().is_some(), "{failed}");
        }
    }
}
