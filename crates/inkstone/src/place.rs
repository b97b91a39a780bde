//! What a platform on this machine leaves in its data folder for others to find it by.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::CliError;

/// Where a running platform's parts are: `run.json` in the data folder, while it runs.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Running {
    pub(crate) process: i32,
    /// The public address.
    pub(crate) gateway: String,
    pub(crate) auth: String,
    pub(crate) registry: String,
    /// Not there in what an earlier version wrote.
    #[serde(default)]
    pub(crate) orchestrator: String,
    pub(crate) broker: String,
    pub(crate) admin: Vec<(String, String)>,
}

/// The files of a data folder.
#[derive(Debug, Clone)]
pub(crate) struct Place(PathBuf);

impl Place {
    /// The place at `data`, which need not exist.
    pub(crate) fn at(data: &Path) -> Self {
        // Absolute, because the storage setting wants it so; a folder that does not exist cannot be canonicalised.
        Self(std::path::absolute(data).unwrap_or_else(|_| data.to_owned()))
    }

    pub(crate) fn folder(&self) -> &Path {
        &self.0
    }

    pub(crate) fn join(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    pub(crate) fn admin_token_file(&self) -> PathBuf {
        self.join("auth/admin-token")
    }

    /// The platform that runs here, if one does.
    pub(crate) fn running(&self) -> Option<Running> {
        let text = fs::read_to_string(self.join("run.json")).ok()?;
        let running: Running = serde_json::from_str(&text).ok()?;
        // A file that a crash left behind names a process that is gone, or another program's.
        let name = fs::read_to_string(format!("/proc/{}/comm", running.process)).ok()?;
        // One that was killed has its name until whoever started it has seen that it is gone.
        let status = fs::read_to_string(format!("/proc/{}/stat", running.process)).ok()?;
        let is_dead = status
            .rsplit_once(") ")
            .is_some_and(|(_, rest)| rest.starts_with('Z'));
        (name.starts_with("inkstone") && !is_dead).then_some(running)
    }

    /// Takes the folder for this process, which lasts as long as the file that is returned.
    pub(crate) fn lock(&self) -> Result<fs::File, CliError> {
        let path = self.join("lock");
        let file = fs::File::create(&path).map_err(CliError::file("write", &path))?;
        match file.try_lock() {
            Ok(()) => Ok(file),
            Err(fs::TryLockError::WouldBlock) => Err(CliError::AlreadyStarting {
                data: self.0.clone(),
            }),
            Err(fs::TryLockError::Error(source)) => Err(CliError::file("lock", &path)(source)),
        }
    }

    pub(crate) fn announce(&self, running: &Running) -> Result<(), CliError> {
        let path = self.join("run.json");
        // Plain strings and numbers: this cannot fail.
        let text = serde_json::to_string_pretty(running).unwrap_or_default();
        let partial = self.join("run.json.part");
        fs::write(&partial, text).map_err(CliError::file("write", &partial))?;
        fs::rename(&partial, &path).map_err(CliError::file("write", &path))
    }

    pub(crate) fn withdraw(&self) {
        // Gone already is as good.
        let _ = fs::remove_file(self.join("run.json"));
    }

    /// The bearer that `inkstone up` made for this laptop.
    ///
    /// # Errors
    /// When there is one that cannot be read, as another user's.
    pub(crate) fn key(&self) -> Result<Option<String>, CliError> {
        let path = self.join("key");
        match fs::read_to_string(&path) {
            Ok(text) => Ok(Some(text.trim().to_owned()).filter(|key| !key.is_empty())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(CliError::file("read", &path)(error)),
        }
    }

    pub(crate) fn keep_key(&self, bearer: &str) -> Result<(), CliError> {
        let path = self.join("key");
        let failed = || CliError::file("write", &path);
        let mut options = fs::OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o600);
        let mut file = options.open(&path).map_err(failed())?;
        writeln!(file, "{bearer}").map_err(failed())
    }
}

/// A folder that is kept open: one that is made anew in its place is another.
#[derive(Debug)]
pub(crate) struct Held {
    path: PathBuf,
    folder: fs::File,
}

impl Held {
    pub(crate) fn of(path: PathBuf) -> Result<Self, CliError> {
        let folder = fs::File::open(&path).map_err(CliError::file("open", &path))?;
        Ok(Self { path, folder })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether its path leads to nothing, or to another folder.
    pub(crate) fn is_gone(&self) -> bool {
        let there = match fs::metadata(&self.path) {
            Ok(there) => there,
            Err(error) => return error.kind() == io::ErrorKind::NotFound,
        };
        let held = self.folder.metadata();
        held.is_ok_and(|held| (held.dev(), held.ino()) != (there.dev(), there.ino()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_that_cannot_be_read_is_an_error_and_one_that_is_not_there_is_none() {
        let root = tempfile::tempdir().unwrap();
        let place = Place::at(root.path());
        assert_eq!(place.key().unwrap(), None);
        place.keep_key("ink_x").unwrap();
        assert_eq!(place.key().unwrap().as_deref(), Some("ink_x"));
        fs::remove_file(place.join("key")).unwrap();
        // Nobody can read a folder as a file, root included.
        fs::create_dir(place.join("key")).unwrap();
        let refused = place.key().unwrap_err().to_string();
        let path = place.join("key").display().to_string();
        assert!(refused.contains(&path), "{refused}");
    }

    #[test]
    fn a_folder_that_was_removed_or_made_anew_is_gone_whatever_is_in_it() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("nats");
        fs::create_dir(&path).unwrap();
        let held = Held::of(path.clone()).unwrap();
        fs::write(path.join("file"), "x").unwrap();
        assert!(!held.is_gone());
        fs::remove_dir_all(&path).unwrap();
        assert!(held.is_gone());
        fs::create_dir(&path).unwrap();
        assert!(held.is_gone());
        assert!(!Held::of(path).unwrap().is_gone());
    }
}
