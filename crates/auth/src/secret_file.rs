//! Files with auth's own secrets: made once, with mode 0600, and read as all secret files are.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use aws_lc_rs::rand;
use secrecy::{ExposeSecret as _, SecretString};
use settings::SecretFile;
use zeroize::Zeroizing;

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
    /// It is there, and cannot be read, is open to others, or holds something else.
    #[error(transparent)]
    Unusable(#[from] settings::SecretFileError),
}

/// What the file holds; where it does not exist and `create` is true, it is made first and holds `new()`.
pub(crate) fn read_or_make(
    file: SecretFile<'_>,
    create: bool,
    new: impl FnOnce() -> io::Result<SecretString>,
) -> Result<Zeroizing<Vec<u8>>, SecretFileError> {
    if create && !file.path.exists() {
        let made = new().and_then(|text| make(file.path, text.expose_secret().as_bytes()));
        made.map_err(|source| SecretFileError::Make {
            path: file.path.to_owned(),
            setting: file.setting,
            source,
        })?;
    }
    file.read().map_err(|error| match error {
        settings::SecretFileError::Read {
            path,
            setting,
            source,
        } if source.kind() == io::ErrorKind::NotFound => SecretFileError::Missing { path, setting },
        error => error.into(),
    })
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
    use std::os::unix::fs::MetadataExt as _;

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
        assert_eq!(&**read_or_make(at(&path), true, text).unwrap(), b"words");
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(
            fs::metadata(path.parent().unwrap()).unwrap().mode() & 0o777,
            0o700
        );
        let others = || Ok("others".into());
        assert_eq!(&**read_or_make(at(&path), true, others).unwrap(), b"words");
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
    }

    #[test]
    fn those_who_make_a_file_at_once_all_read_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("secret");
        let make = |n: usize| read_or_make(at(&path), true, || Ok(format!("words {n}").into()));
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
        let error = read_or_make(at(Path::new("/nowhere/kek")), false, text).unwrap_err();
        let error = error.to_string();
        assert!(
            error.contains("/nowhere/kek") && error.contains("keys.key_file"),
            "{error}"
        );
    }
}
