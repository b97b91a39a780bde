//! Objects that are put into a folder at the same time are written together, as databases commit in groups: all files, then their
//! [flush](crate::flush), then their names, then one flush of each folder that they lie in. So one thread waits for the disk instead of one for each,
//! and they share what it does. Whoever comes alone is written alone, at once.
//!
//! A disk may hang, and callers give up and try again. Of those that have gone nothing is kept, and only so much waits; more is refused, as by a store
//! that is away.

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
/// Objects that wait at most.
const MAX_WAITING: usize = 1024;
/// Bytes that wait at most, unless one object alone has more.
const MAX_WAITING_BYTES: usize = 256 << 20;
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
    /// As many as wait for their answer, [`MAX_WAITING`] at most.
    waiting: VecDeque<Waiting>,
    bytes: usize,
    at_work: usize,
}

/// Why an object is not written.
#[derive(Debug, thiserror::Error)]
enum Full {
    #[error(
        "{limit} objects wait to be written, the most that may: the disk is slow, or hangs; see to it, and try again"
    )]
    Objects { limit: usize },
    #[error(
        "{waiting} bytes wait to be written, and with {more} more they would be over the limit of {limit}: the disk is slow, or hangs; see to it, and try again"
    )]
    Bytes {
        waiting: usize,
        more: usize,
        limit: usize,
    },
}

impl Queue {
    /// Lets go of those whose caller has gone.
    fn let_go(&mut self) {
        let mut bytes = 0;
        self.waiting.retain(|one| {
            let stays = !one.answer.is_closed();
            if !stays {
                bytes += one.payload.content_length();
            }
            stays
        });
        self.bytes -= bytes;
    }

    fn room_for(&self, more: usize) -> Result<(), Full> {
        let (objects, waiting) = (self.waiting.len(), self.bytes);
        if objects >= MAX_WAITING {
            let limit = MAX_WAITING;
            return Err(Full::Objects { limit });
        }
        if objects > 0 && waiting.saturating_add(more) > MAX_WAITING_BYTES {
            return Err(Full::Bytes {
                waiting,
                more,
                limit: MAX_WAITING_BYTES,
            });
        }
        Ok(())
    }
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
    /// What the file system says, or that too much waits.
    pub(crate) async fn write(
        self: &Arc<Self>,
        path: PathBuf,
        payload: PutPayload,
        options: PutOptions,
    ) -> io::Result<Extensions> {
        // Dropped after what is waited for.
        let mut caller = Caller {
            writers: self,
            waits: true,
        };
        let (answer, answered) = oneshot::channel();
        let waiting = Waiting {
            path,
            payload,
            options,
            answer,
        };
        if let Some(worker) = self.queue_up(waiting).map_err(io::Error::other)? {
            tokio::task::spawn_blocking(move || worker.work());
        }
        let given_up = |_| Err(io::Error::other("whoever wrote it has stopped"));
        let done = answered.await.unwrap_or_else(given_up);
        caller.waits = false;
        done
    }

    /// Gives back who is to come to work for it, unless who is at work will do it.
    fn queue_up(self: &Arc<Self>, waiting: Waiting) -> Result<Option<AtWork>, Full> {
        let mut queue = lock(&self.queue);
        let more = waiting.payload.content_length();
        queue.room_for(more)?;
        queue.bytes += more;
        queue.waiting.push_back(waiting);
        let whole = queue.waiting.len() >= MAX_OBJECTS || queue.bytes >= MAX_BYTES;
        let needed = queue.at_work == 0 || (whole && queue.at_work < AT_ONCE);
        if !needed {
            return Ok(None);
        }
        queue.at_work += 1;
        Ok(Some(AtWork {
            writers: Arc::clone(self),
            unfinished: true,
        }))
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

/// One who waits for an object to be written. Gone without an answer, it takes along what was to be written, which would lie there for as long as the
/// disk hangs.
struct Caller<'a> {
    writers: &'a Writers,
    waits: bool,
}

impl Drop for Caller<'_> {
    fn drop(&mut self) {
        if self.waits {
            lock(&self.writers.queue).let_go();
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
#[path = "writers_tests.rs"]
mod tests;
