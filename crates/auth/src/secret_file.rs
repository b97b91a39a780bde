//! Files with auth's own secrets: made once, with mode 0600, and refused when others can read them.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use aws_lc_rs::rand;
use secrecy::{ExposeSecret as _, SecretString};
use zeroize::Zeroizing;

/// No secret of ours is longer.
const MAX_BYTES: u64 = 4096;
/// Permission bits of everyone but the owner.
const OTHERS: u32 = 0o077;

/// A secret file that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SecretFileError {
    /// It is not there, and is not to be made.
    #[error(
        "{} (setting {setting}) does not exist; put it there, or set keys.create_if_missing = true to have it made",
        path.display()
    )]
    Missing {
        /// The file.
        path: PathBuf,
        /// Which setting names it.
        setting: &'static str,
    },
    /// Its permissions let more than its owner read it.
    #[error(
        "{} (setting {setting}) has mode {mode:04o}, so others than its owner can use it; run: chmod 600 {}",
        path.display(), path.display()
    )]
    OpenToOthers {
        /// The file.
        path: PathBuf,
        /// Which setting names it.
        setting: &'static str,
        /// Its permission bits.
        mode: u32,
    },
    /// It cannot be read.
    #[error("cannot read {} (setting {setting})", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Which setting names it.
        setting: &'static str,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// It cannot be made.
    #[error("cannot make {} (setting {setting})", path.display())]
    Make {
        /// The file.
        path: PathBuf,
        /// Which setting names it.
        setting: &'static str,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// It holds something else.
    #[error("{} (setting {setting}) must hold {expected}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// Which setting names it.
        setting: &'static str,
        /// What would be right.
        expected: &'static str,
    },
}

/// Where a secret is, and which setting says so.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SecretFile<'a> {
    pub(crate) path: &'a Path,
    pub(crate) setting: &'static str,
}

impl SecretFile<'_> {
    /// What the file holds; where it does not exist and `create` is true, it is made first and holds `new()`.
    pub(crate) fn read_or_make(
        self,
        create: bool,
        new: impl FnOnce() -> io::Result<SecretString>,
    ) -> Result<Zeroizing<Vec<u8>>, SecretFileError> {
        if create && !self.path.exists() {
            let made = new().and_then(|text| make(self.path, text.expose_secret().as_bytes()));
            made.map_err(|source| SecretFileError::Make {
                path: self.path.to_owned(),
                setting: self.setting,
                source,
            })?;
        }
        self.read()
    }

    /// The error for a file that can be read but does not hold what it should.
    pub(crate) fn content(self, expected: &'static str) -> SecretFileError {
        SecretFileError::Content {
            path: self.path.to_owned(),
            setting: self.setting,
            expected,
        }
    }

    fn read(self) -> Result<Zeroizing<Vec<u8>>, SecretFileError> {
        let (path, setting) = (self.path.to_owned(), self.setting);
        let file = match File::open(self.path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(SecretFileError::Missing { path, setting });
            }
            Err(source) => {
                return Err(SecretFileError::Read {
                    path,
                    setting,
                    source,
                });
            }
        };
        let failed = |source| SecretFileError::Read {
            path: self.path.to_owned(),
            setting,
            source,
        };
        let mode = file.metadata().map_err(failed)?.mode() & 0o7777;
        if mode & OTHERS != 0 {
            return Err(SecretFileError::OpenToOthers {
                path,
                setting,
                mode,
            });
        }
        // Room for all of it from the start: growing would leave copies behind.
        let mut bytes = Zeroizing::new(Vec::with_capacity(MAX_BYTES as usize + 1));
        file.take(MAX_BYTES)
            .read_to_end(&mut bytes)
            .map_err(failed)?;
        Ok(bytes)
    }
}

/// Puts a whole file in place or none. When another process is first, its file stays.
fn make(path: &Path, content: &[u8]) -> io::Result<()> {
    let folder = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)?;
    let mut partial = path.as_os_str().to_owned();
    partial.push(format!(".{:016x}.part", unique()?));
    let partial = PathBuf::from(partial);
    let outcome = write_new(&partial, content).and_then(|()| match fs::hard_link(&partial, path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    });
    // What a failed write left is no secret that anyone uses, but it must not stay.
    let _ = fs::remove_file(&partial);
    outcome?;
    File::open(folder)?.sync_all()
}

/// Process ids repeat (in a container they are all 1), and what a crash left behind must not stand in the way.
fn unique() -> io::Result<u64> {
    let mut bytes = [0; 8];
    rand::fill(&mut bytes).map_err(io::Error::other)?;
    Ok(u64::from_ne_bytes(bytes))
}

fn write_new(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(content)?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn text() -> io::Result<SecretString> {
        Ok("words".into())
    }

    fn at(path: &Path) -> SecretFile<'_> {
        SecretFile {
            path,
            setting: "keys.key_file",
        }
    }

    #[test]
    fn a_missing_file_is_made_once_for_its_owner_only() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deep/down/secret");
        assert_eq!(&**at(&path).read_or_make(true, text).unwrap(), b"words");
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(
            fs::metadata(path.parent().unwrap()).unwrap().mode() & 0o777,
            0o700
        );
        let others = || Ok("others".into());
        assert_eq!(&**at(&path).read_or_make(true, others).unwrap(), b"words");
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
    }

    #[test]
    fn those_who_make_a_file_at_once_all_read_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("secret");
        let make = |n: usize| at(&path).read_or_make(true, || Ok(format!("words {n}").into()));
        let read: Vec<_> = std::thread::scope(|scope| {
            let all: Vec<_> = (0..8).map(|n| scope.spawn(move || make(n))).collect();
            all.into_iter()
                .map(|t| t.join().unwrap().unwrap())
                .collect()
        });
        assert!(read.iter().all(|r| *r == read[0]));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_missing_file_that_is_not_to_be_made_is_named() {
        let error = at(Path::new("/nowhere/kek"))
            .read_or_make(false, text)
            .unwrap_err();
        let error = error.to_string();
        assert!(
            error.contains("/nowhere/kek") && error.contains("keys.key_file"),
            "{error}"
        );
    }

    #[test]
    fn a_file_that_others_can_read_is_refused_with_the_way_out() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("secret");
        fs::write(&path, "words").unwrap();
        for mode in [0o644, 0o640, 0o604, 0o622] {
            fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
            let error = at(&path).read_or_make(true, text).unwrap_err().to_string();
            assert!(error.contains(&format!("{mode:04o}")), "{error}");
            assert!(error.contains("chmod 600"), "{error}");
        }
        fs::set_permissions(&path, Permissions::from_mode(0o400)).unwrap();
        at(&path).read_or_make(true, text).unwrap();
    }
}
