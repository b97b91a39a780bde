//! What writers leave in a folder that are killed: files under names that listings leave out (`#` and digits, as `object_store` has
//! it), which would have taken objects' names. No listing finds them; here the folder itself is walked.
//!
//! A folder may hold millions of objects. So a walk goes on where the one before it had to stop, a few names at a time and with a pause after
//! each few, and what it holds meanwhile is one open folder for each level.

use std::ffi::OsStr;
use std::fs::{self, DirEntry, OpenOptions, ReadDir};
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use contract::TaskId;

use crate::upload::off_runtime;
use crate::{Storage, StorageError};

/// Names that are looked at in one turn ...
const NAMES: usize = 256;
/// ... and how long the disk has for others then: some thousand names a second.
const PAUSE: Duration = Duration::from_millis(25);
/// Folders in folders that are looked into; objects lie in fewer.
const DEPTH: usize = 8;

/// Those who look for what was left in a folder.
#[derive(Debug)]
pub struct Drafts {
    root: Arc<Path>,
    walk: Walk,
}

/// What was found on a part of a walk.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Left {
    /// Files that were left.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// More of them, which cannot be looked at or removed.
    pub stay: u64,
    /// Whether the walk has come to its end. The next one begins anew.
    pub whole: bool,
}

impl Left {
    fn and(self, more: Self) -> Self {
        Self {
            files: self.files + more.files,
            bytes: self.bytes + more.bytes,
            stay: self.stay + more.stay,
            whole: more.whole,
        }
    }
}

impl Storage {
    /// Who looks for what killed writers have left; none where the store is no folder.
    pub fn drafts(&self) -> Option<Drafts> {
        let root = self.folder.clone()?;
        let walk = Walk::default();
        Some(Drafts { root, walk })
    }
}

impl Drafts {
    /// Goes on with the walk for about as long as `within`, and removes, where it is to `remove`, what was last written longer than `age` ago by the
    /// clock of the file system.
    ///
    /// # Errors
    /// When the folder cannot be read, or takes no file by which its clock could be told.
    pub async fn walk(
        &mut self,
        age: Duration,
        within: Duration,
        remove: bool,
    ) -> Result<Left, StorageError> {
        let begun = Instant::now();
        let root = self.root.clone();
        let now = off_runtime(root.to_path_buf(), move || present(&root)).await?;
        let before = now.checked_sub(age).unwrap_or(SystemTime::UNIX_EPOCH);
        let mut left = Left::default();
        loop {
            let (root, mut walk) = (self.root.clone(), std::mem::take(&mut self.walk));
            let (walk, more) = off_runtime(root.to_path_buf(), move || {
                let more = walk.go_on(&root, before, remove)?;
                Ok((walk, more))
            })
            .await?;
            self.walk = walk;
            left = left.and(more);
            if left.whole || begun.elapsed() >= within {
                return Ok(left);
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
}

/// What time it is where files are written: this machine's clock may be another.
fn present(root: &Path) -> io::Result<SystemTime> {
    // Named as a draft, so that it is hidden as one, and removed as one if nobody comes to that.
    let path = root.join(format!("clock-{}#0", TaskId::random()));
    let file = OpenOptions::new().write(true).create_new(true).open(&path);
    let written = file.and_then(|file| file.metadata()?.modified());
    let _ = fs::remove_file(&path);
    written
}

/// Where a walk is: in the folders that are open, each in the one before it.
#[derive(Debug, Default)]
struct Walk {
    open: Vec<ReadDir>,
}

impl Walk {
    /// Looks at the next few names.
    fn go_on(&mut self, root: &Path, before: SystemTime, remove: bool) -> io::Result<Left> {
        if self.open.is_empty() {
            self.open.push(fs::read_dir(root)?);
        }
        let mut left = Left::default();
        for _ in 0..NAMES {
            let Some(folder) = self.open.last_mut() else {
                break;
            };
            match folder.next() {
                Some(Ok(entry)) => self.look(&entry, before, remove, &mut left),
                // One that cannot be read to its end keeps no other from it.
                Some(Err(_)) | None => drop(self.open.pop()),
            }
        }
        left.whole = self.open.is_empty();
        Ok(left)
    }

    fn look(&mut self, entry: &DirEntry, before: SystemTime, remove: bool, left: &mut Left) {
        let Ok(kind) = entry.file_type() else {
            return;
        };
        if kind.is_dir() && self.open.len() < DEPTH {
            // One that is empty may have been removed just now.
            self.open.extend(fs::read_dir(entry.path()));
        }
        if !kind.is_file() || !is_draft(&entry.file_name()) {
            return;
        }
        match old(entry, before, remove) {
            Ok(Some(bytes)) => {
                left.files += 1;
                left.bytes += bytes;
                // It goes as well if nothing else lay there, as when an object is removed; the store's own folder stays.
                if remove && self.open.len() > 1 {
                    let path = entry.path();
                    let _ = path.parent().map(fs::remove_dir);
                }
            }
            Ok(None) => {}
            // Whoever wrote it has just named or removed it, or another walk has.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(_) => left.stay += 1,
        }
    }
}

/// The bytes of a draft that is old, which is removed if it is to be; none of one that is not.
fn old(entry: &DirEntry, before: SystemTime, remove: bool) -> io::Result<Option<u64>> {
    let metadata = entry.metadata()?;
    if metadata.modified()? >= before {
        return Ok(None);
    }
    if remove {
        fs::remove_file(entry.path())?;
    }
    Ok(Some(metadata.len()))
}

/// Whether listings leave it out.
fn is_draft(name: &OsStr) -> bool {
    let parts = name.to_str().and_then(|name| name.split_once('#'));
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    parts.is_some_and(|(_, number)| digits(number))
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::path::PathBuf;

    use bytes::Bytes;

    use super::*;
    use crate::tests::scratch;
    use crate::{Key, sha256_hex};

    const HOUR: Duration = Duration::from_secs(3600);

    /// A file that was written `ago`.
    fn written(path: PathBuf, ago: Duration) -> PathBuf {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let file = File::create(&path).unwrap();
        file.set_len(7).unwrap();
        file.set_modified(SystemTime::now() - ago).unwrap();
        path
    }

    async fn walk(drafts: &mut Drafts, remove: bool) -> Left {
        drafts.walk(HOUR, HOUR, remove).await.unwrap()
    }

    #[tokio::test]
    async fn what_a_killed_writer_left_goes_and_what_is_young_or_an_object_stays() {
        let (folder, storage) = scratch();
        let artifact = Key::artifact(&sha256_hex(b"x")).unwrap();
        storage
            .put(&artifact, Bytes::from_static(b"x"))
            .await
            .unwrap();
        let place = |name: &str| folder.path().join(name);
        let gone = [
            written(place("images/20261128T0449/a.png#1234000000001"), 2 * HOUR),
            written(place("artifacts/b#1"), 2 * HOUR),
            written(place("clock-c#0"), 2 * HOUR),
        ];
        let stay = [
            written(place("images/20261128T0450/a.png#1234000000002"), HOUR / 2),
            written(place("images/20261128T0450/a.png"), 2 * HOUR),
            // An object's name may be so.
            written(place("artifacts/c#"), 2 * HOUR),
            written(place("artifacts/c#1a"), 2 * HOUR),
            place(artifact.as_str()),
        ];
        let mut drafts = storage.drafts().unwrap();
        let found = Left {
            files: 3,
            bytes: 21,
            stay: 0,
            whole: true,
        };
        assert_eq!(walk(&mut drafts, false).await, found);
        assert!(gone.iter().chain(&stay).all(|path| path.exists()));
        assert_eq!(walk(&mut drafts, true).await, found);
        assert!(gone.iter().all(|path| !path.exists()));
        assert!(!place("images/20261128T0449").exists(), "it is empty");
        assert!(stay.iter().all(|path| path.exists()));
        let nothing = Left {
            whole: true,
            ..Left::default()
        };
        assert_eq!(walk(&mut drafts, true).await, nothing);
        // Nothing is left of the walks themselves.
        let all = fs::read_dir(folder.path()).unwrap();
        assert_eq!(all.count(), 2, "artifacts and images");
    }

    #[tokio::test]
    async fn a_walk_that_has_no_more_time_goes_on_where_it_was() {
        let (folder, storage) = scratch();
        let all = 2 * NAMES as u64 + 2;
        for number in 0..all {
            written(folder.path().join(format!("images/a/x#{number}")), 2 * HOUR);
        }
        let mut drafts = storage.drafts().unwrap();
        let (mut files, mut parts) = (0, 0);
        loop {
            let left = drafts.walk(HOUR, Duration::ZERO, false).await.unwrap();
            files += left.files;
            parts += 1;
            if left.whole {
                break;
            }
        }
        assert_eq!((files, parts), (all, 3));
    }

    #[tokio::test]
    async fn the_stores_own_folder_stays_when_nothing_else_lay_in_it() {
        let (folder, storage) = scratch();
        written(folder.path().join("probe-x#1"), 2 * HOUR);
        let mut drafts = storage.drafts().unwrap();
        assert_eq!(walk(&mut drafts, true).await.files, 1);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[tokio::test]
    async fn a_link_to_elsewhere_is_not_followed() {
        let (folder, storage) = scratch();
        let elsewhere = tempfile::tempdir().unwrap();
        let draft = written(elsewhere.path().join("x#1"), 2 * HOUR);
        std::os::unix::fs::symlink(elsewhere.path(), folder.path().join("images")).unwrap();
        let mut drafts = storage.drafts().unwrap();
        assert_eq!(walk(&mut drafts, true).await.files, 0);
        assert!(draft.exists());
    }
}
