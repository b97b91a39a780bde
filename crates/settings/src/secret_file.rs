//! Files that hold a secret: refused where others can use them, and read up to a bound.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

/// No secret of ours is longer.
const MAX_BYTES: usize = 4096;
const SHORT_ENOUGH: &str = "at most 4096 bytes";
/// Permission bits of everyone but the owner.
const OTHERS: u32 = 0o077;
/// The one of them that lets the group read.
const GROUP_READS: u32 = 0o040;
const ROOT: u32 = 0;

/// A secret file that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SecretFileError {
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
    /// Its permissions let others use it.
    #[error(
        "{} (setting {setting}) has mode {mode:04o}, so others than its owner can use it; run: chmod 600 {}{}",
        path.display(), path.display(), or_by_group(*owner)
    )]
    OpenToOthers {
        /// The file.
        path: PathBuf,
        /// Which setting names it.
        setting: &'static str,
        /// Its permission bits.
        mode: u32,
        /// Its owner's id.
        owner: u32,
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

fn or_by_group(owner: u32) -> &'static str {
    match owner {
        ROOT => ", or 640 where the service reads it by its group",
        _ => "",
    }
}

/// Where a secret is, and which setting says so.
#[derive(Debug, Clone, Copy)]
pub struct SecretFile<'a> {
    /// The file.
    pub path: &'a Path,
    /// Dotted path of the setting that names it.
    pub setting: &'static str,
}

impl SecretFile<'_> {
    /// All that the file holds, which is wiped from memory when it is dropped.
    ///
    /// # Errors
    /// Where it cannot be read, others can use it, or it is longer than any secret.
    pub fn read(self) -> Result<Zeroizing<Vec<u8>>, SecretFileError> {
        let failed = |source| SecretFileError::Read {
            path: self.path.to_owned(),
            setting: self.setting,
            source,
        };
        // What is looked at is what is read, whatever takes its name meanwhile.
        let file = File::open(self.path).map_err(failed)?;
        let about = file.metadata().map_err(failed)?;
        // Before its mode, which is another matter: nobody is to take a folder's x away.
        if about.is_dir() {
            return Err(failed(io::ErrorKind::IsADirectory.into()));
        }
        let (mode, owner) = (about.mode() & 0o7777, about.uid());
        if is_open_to_others(mode, owner) {
            return Err(SecretFileError::OpenToOthers {
                path: self.path.to_owned(),
                setting: self.setting,
                mode,
                owner,
            });
        }
        // Room for all of it from the start: growing would leave copies behind.
        let mut bytes = Zeroizing::new(Vec::<u8>::with_capacity(MAX_BYTES + 1));
        // Not by the length that is stated: a pipe states none.
        file.take(MAX_BYTES as u64 + 1)
            .read_to_end(&mut bytes)
            .map_err(failed)?;
        if bytes.len() > MAX_BYTES {
            return Err(self.content(SHORT_ENOUGH));
        }
        Ok(bytes)
    }

    /// The text that the file holds, without white space around it; `expected` says what it is where it is none.
    ///
    /// # Errors
    /// As [`read`](Self::read), and where it is empty or no UTF-8.
    pub fn text(self, expected: &'static str) -> Result<Zeroizing<String>, SecretFileError> {
        let bytes = self.read()?;
        match std::str::from_utf8(&bytes).map(str::trim) {
            Ok("") | Err(_) => Err(self.content(expected)),
            Ok(text) => Ok(Zeroizing::new(text.to_owned())),
        }
    }

    /// The error for a file that can be read but does not hold what it should.
    pub fn content(self, expected: &'static str) -> SecretFileError {
        SecretFileError::Content {
            path: self.path.to_owned(),
            setting: self.setting,
            expected,
        }
    }
}

/// Whether others can use a file than those who are meant to.
///
/// What root has put there for a service that is not root is read by its group, as Kubernetes' secrets are (0440, with an fsGroup). A
/// service's own file needs no group: that it has one is chance.
fn is_open_to_others(mode: u32, owner: u32) -> bool {
    let refused = match owner {
        ROOT => OTHERS & !GROUP_READS,
        _ => OTHERS,
    };
    mode & refused != 0
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn at(path: &Path) -> SecretFile<'_> {
        SecretFile {
            path,
            setting: "keys.key_file",
        }
    }

    fn write(path: &Path, content: impl AsRef<[u8]>) {
        fs::write(path, content).unwrap();
        fs::set_permissions(path, Permissions::from_mode(0o600)).unwrap();
    }

    #[test]
    fn a_group_may_read_what_root_has_put_there_and_do_nothing_else() {
        const USER: u32 = 1000;
        for mode in [0o400, 0o600, 0o700] {
            assert!(!is_open_to_others(mode, USER), "{mode:o}");
            assert!(!is_open_to_others(mode, ROOT), "{mode:o}");
        }
        for mode in [0o440, 0o640] {
            assert!(is_open_to_others(mode, USER), "{mode:o}");
            assert!(!is_open_to_others(mode, ROOT), "{mode:o}");
        }
        for mode in [0o660, 0o620, 0o650, 0o444, 0o644, 0o604, 0o602, 0o601] {
            assert!(is_open_to_others(mode, USER), "{mode:o}");
            assert!(is_open_to_others(mode, ROOT), "{mode:o}");
        }
    }

    #[test]
    fn a_file_that_others_can_use_is_refused_with_the_way_out() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("secret");
        write(&path, "words");
        for mode in [0o644, 0o604, 0o622, 0o660] {
            fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
            let error = at(&path).read().unwrap_err().to_string();
            let mode = format!("(setting keys.key_file) has mode {mode:04o}");
            let chmod = format!("chmod 600 {}", path.display());
            assert!(error.contains(&mode) && error.contains(&chmod), "{error}");
        }
        fs::set_permissions(&path, Permissions::from_mode(0o400)).unwrap();
        assert_eq!(&**at(&path).read().unwrap(), b"words");
    }

    #[test]
    fn of_a_file_of_root_it_is_said_that_a_group_may_read_it() {
        let said = |owner| {
            let error = SecretFileError::OpenToOthers {
                path: "/s".into(),
                setting: "keys.key_file",
                mode: 0o644,
                owner,
            };
            error.to_string()
        };
        assert!(said(1000).ends_with("run: chmod 600 /s"));
        assert!(said(ROOT).contains("chmod 600 /s, or 640 where"));
    }

    #[test]
    fn what_is_longer_than_any_secret_is_refused_and_not_cut_off() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("secret");
        write(&path, [b'x'; MAX_BYTES]);
        assert_eq!(at(&path).read().unwrap().len(), MAX_BYTES);
        write(&path, [b'x'; MAX_BYTES + 1]);
        let error = at(&path).read().unwrap_err().to_string();
        assert!(error.contains(&format!("at most {MAX_BYTES} bytes")));
    }

    #[test]
    fn text_is_without_the_white_space_around_it_and_never_shown() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("secret");
        write(&path, " two words\n");
        let read = || at(&path).text("a password").map(|text| text.to_string());
        assert_eq!(read().unwrap(), "two words");
        for bytes in [&b""[..], b" \n", b"words\xff"] {
            write(&path, bytes);
            let error = read().unwrap_err().to_string();
            assert!(error.contains("must hold a password"), "{error}");
            assert!(!error.contains("words"), "{error}");
        }
    }

    #[test]
    fn a_folder_and_a_file_that_is_not_there_are_named_with_their_setting() {
        let folder = tempfile::tempdir().unwrap();
        for (path, kind) in [
            (folder.path().to_owned(), io::ErrorKind::IsADirectory),
            (folder.path().join("none"), io::ErrorKind::NotFound),
        ] {
            let error = at(&path).read().unwrap_err();
            let said = format!("cannot read {} (setting keys.key_file)", path.display());
            assert_eq!(error.to_string(), said);
            match error {
                SecretFileError::Read { source, .. } => assert_eq!(source.kind(), kind),
                other => panic!("{other}"),
            }
        }
    }
}
