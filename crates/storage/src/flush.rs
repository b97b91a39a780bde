//! Flushing files that were written together.
//!
//! Each by itself costs a file system two writes and a flush of the device, and its waiter as many turns. One `syncfs` does it for all of them, and
//! with them for whatever else is to be written there: that is good where this is little, and would hold a picture up behind somebody's copy of a disk
//! where it is not. So it is asked first how much that is, and each is flushed by itself where it is much, or cannot be told, or the file system is
//! none of which it is known that its `syncfs` reaches the disk.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path as FilePath;

/// From so many files on, one flush for all costs less than one for each.
const MIN_FILES: usize = 4;
/// How much may be on its way to all disks of the machine, for all to be flushed at once: a slow disk writes it in a second.
const MAX_BYTES: u64 = 64 << 20;
/// Where the kernel says how much that is (proc_meminfo(5)).
const MEMORY: &str = "/proc/meminfo";
/// Its lines for that.
const ON_THEIR_WAY: [&str; 2] = ["Dirty:", "Writeback:"];
/// Where it says its release.
const RELEASE: &str = "/proc/sys/kernel/osrelease";
/// The file systems of which all is flushed at once, as statfs(2) tells them: ext2 to ext4, XFS, Btrfs, F2FS. Others may be somewhere else, and their
/// `syncfs` may end there.
const LOCAL: [u64; 4] = [0xEF53, 0x5846_5342, 0x9123_683E, 0xF2F5_2010];
/// The first Linux whose `syncfs` says whatever failed: the writes that it had waited for since 5.8 (commit 735e4ae5ba28), and the file system's own
/// part (commit 5679897eb104).
const TELLS_ERRORS: (u32, u32) = (5, 17);

/// How the files of one file system are flushed.
#[derive(Debug)]
pub(crate) struct Flushes {
    /// Whether `syncfs` is one to rely on.
    all_at_once: bool,
    /// Which one it is.
    device: Option<u64>,
}

impl Flushes {
    /// Those of the file system that has this folder.
    pub(crate) fn of(folder: &FilePath) -> Self {
        let kind = rustix::fs::statfs(folder).map(|found| found.f_type as u64);
        let release = fs::read_to_string(RELEASE);
        let release = release.ok().and_then(|release| version(&release));
        Self {
            device: fs::metadata(folder).ok().map(|found| found.dev()),
            all_at_once: release.is_some_and(|release| release >= TELLS_ERRORS)
                && kind.is_ok_and(|kind| LOCAL.contains(&kind)),
        }
    }

    /// Returns when the bytes of all these files are on the disk, with how that went for each.
    pub(crate) fn flush(&self, files: &[&File]) -> Vec<io::Result<()>> {
        if self.all_at_once
            && files.len() >= MIN_FILES
            && let Some(first) = files.first()
            && files.iter().all(|file| self.has(file))
            && little_is_on_its_way()
            && rustix::fs::syncfs(first).is_ok()
        {
            return files.iter().map(|_| Ok(())).collect();
        }
        // Also to learn whose write it was that failed.
        files.iter().map(|file| file.sync_all()).collect()
    }

    /// Whether a file is there, and not on another that is mounted below.
    fn has(&self, file: &File) -> bool {
        let found = file.metadata().ok().map(|found| found.dev());
        found.is_some() && found == self.device
    }
}

fn little_is_on_its_way() -> bool {
    let told = fs::read_to_string(MEMORY);
    let bytes = told.ok().and_then(|told| on_its_way(&told));
    bytes.is_some_and(|bytes| bytes <= MAX_BYTES)
}

/// Bytes that wait to be written, or are being written, on the whole machine; `None` where that is not said.
fn on_its_way(memory: &str) -> Option<u64> {
    let of = |name: &str| {
        let line = memory.lines().find_map(|line| line.strip_prefix(name))?;
        let kib = line.trim().strip_suffix("kB")?.trim().parse::<u64>();
        kib.ok()?.checked_mul(1024)
    };
    let [dirty, writeback] = ON_THEIR_WAY.map(of);
    dirty?.checked_add(writeback?)
}

/// The first two numbers of a kernel's release.
fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    let mut next = || numbers.next()?.parse::<u32>().ok();
    Some((next()?, next()?))
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Seek as _, Write as _};

    use super::*;

    #[test]
    fn what_is_on_its_way_is_what_waits_and_what_is_being_written() {
        let told = "MemFree: 1 kB\nDirty:             332 kB\nWriteback:         4 kB\nWritebackTmp: 9 kB\n";
        assert_eq!(on_its_way(told), Some(336 << 10));
        for none in [
            "",
            "Dirty: 1 kB\n",
            "Dirty: 1 kB\nWriteback: 1\n",
            "Dirty: x kB\nWriteback: 1 kB\n",
            "Dirty: 18446744073709551615 kB\nWriteback: 1 kB\n",
        ] {
            assert_eq!(on_its_way(none), None, "{none}");
        }
    }

    #[test]
    fn kernels_are_told_by_their_first_two_numbers() {
        assert_eq!(version("6.12.8+"), Some((6, 12)));
        assert_eq!(version("5.17-rc1"), Some((5, 17)));
        assert!(version("5.4.0-generic").unwrap() < TELLS_ERRORS);
        for none in ["", "6", "x.1"] {
            assert_eq!(version(none), None, "{none}");
        }
    }

    #[test]
    fn few_and_many_files_are_flushed_and_are_what_was_written() {
        let folder = tempfile::tempdir().unwrap();
        let found = Flushes::of(folder.path());
        let device = found.device;
        assert!(device.is_some());
        let either = [true, false].map(|all_at_once| Flushes {
            all_at_once,
            device,
        });
        for flushes in std::iter::once(found).chain(either) {
            for count in [0, 1, MIN_FILES * 2] {
                let mut files: Vec<File> = (0..count)
                    .map(|_| tempfile::tempfile_in(folder.path()).unwrap())
                    .collect();
                for file in &mut files {
                    file.write_all(b"x").unwrap();
                }
                let flushed = flushes.flush(&files.iter().collect::<Vec<_>>());
                assert_eq!(flushed.len(), count);
                assert!(flushed.iter().all(|one| one.is_ok()), "{flushed:?}");
                for file in &mut files {
                    let mut found = String::new();
                    file.rewind().unwrap();
                    file.read_to_string(&mut found).unwrap();
                    assert_eq!(found, "x");
                }
            }
        }
    }

    #[test]
    fn a_file_of_another_file_system_is_known_for_one() {
        let folder = tempfile::tempdir().unwrap();
        let flushes = Flushes::of(folder.path());
        assert!(flushes.has(&tempfile::tempfile_in(folder.path()).unwrap()));
        assert!(!flushes.has(&File::open("/proc/self/stat").unwrap()));
    }

    #[test]
    fn a_folder_that_is_not_there_has_its_files_flushed_one_by_one() {
        let missing = Flushes::of(FilePath::new("/proc/self/missing"));
        assert!(!missing.all_at_once);
        // Not a disk.
        assert!(!Flushes::of(FilePath::new("/proc")).all_at_once);
    }
}
