//! What the repository holds: its files, and its crates as cargo sees them.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde::Deserialize;

/// Why the repository could not be read or written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WorkspaceError {
    #[error("cannot run cargo metadata")]
    RunCargo(#[source] io::Error),
    #[error("cargo metadata failed:\n{stderr}")]
    Metadata { stderr: String },
    #[error("cargo metadata said something unexpected")]
    MetadataShape(#[source] serde_json::Error),
    #[error("cannot read {}", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot write {}", path.display())]
    Write {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// One crate of the workspace and what it names in its `Cargo.toml`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(crate) struct Crate {
    pub(crate) name: String,
    pub(crate) dependencies: Vec<Dependency>,
}

/// One line of a crate's dependencies.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(crate) struct Dependency {
    pub(crate) name: String,
    pub(crate) kind: Option<Kind>,
}

/// What a dependency is for, when not for the crate itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Kind {
    Dev,
    Build,
}

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Crate>,
}

/// The repository that this binary was built in.
pub(crate) struct Workspace {
    root: PathBuf,
}

impl Workspace {
    pub(crate) fn here() -> Self {
        let here = Path::new(env!("CARGO_MANIFEST_DIR"));
        let root = here.ancestors().nth(2).unwrap_or(here);
        Self {
            root: root.to_owned(),
        }
    }

    pub(crate) fn path(&self, relative: &str) -> PathBuf {
        self.root.join(relative)
    }

    /// Every crate of the workspace, sorted by name.
    pub(crate) fn graph(&self) -> Result<Vec<Crate>, WorkspaceError> {
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let output = Command::new(cargo)
            .args(["metadata", "--format-version", "1", "--no-deps"])
            .current_dir(&self.root)
            .output()
            .map_err(WorkspaceError::RunCargo)?;
        if !output.status.success() {
            let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
            return Err(WorkspaceError::Metadata { stderr });
        }
        let metadata: Metadata =
            serde_json::from_slice(&output.stdout).map_err(WorkspaceError::MetadataShape)?;
        let mut graph = metadata.packages;
        graph.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(graph)
    }

    /// The names of the folders in `crates/`, sorted.
    pub(crate) fn crates(&self) -> Result<Vec<String>, WorkspaceError> {
        let entries = entries(&self.path("crates"))?;
        let crates = entries.iter().filter(|e| e.join("Cargo.toml").is_file());
        Ok(crates.map(|e| file_name(e)).collect())
    }

    /// Each service's name, and the path and text of its `config.default.toml`.
    pub(crate) fn default_settings(
        &self,
    ) -> Result<Vec<(String, PathBuf, String)>, WorkspaceError> {
        let mut found = Vec::new();
        for name in self.crates()? {
            let path = self.path(&format!("crates/{name}/config.default.toml"));
            if let Some(text) = self.read_if_there(&path)? {
                found.push((name, path, text));
            }
        }
        Ok(found)
    }

    /// Every Rust file of ours, by its path in the repository.
    pub(crate) fn sources(&self) -> Result<Vec<(String, String)>, WorkspaceError> {
        let mut waiting = vec![self.path("crates"), self.path("tests")];
        let mut paths = BTreeSet::new();
        while let Some(folder) = waiting.pop() {
            for entry in entries(&folder)? {
                let name = file_name(&entry);
                if entry.is_dir() && name != "target" && !name.starts_with('.') {
                    waiting.push(entry);
                } else if name.ends_with(".rs") {
                    paths.insert(entry);
                }
            }
        }
        let read = |path: PathBuf| {
            let relative = path.strip_prefix(&self.root).unwrap_or(&path);
            Ok((relative.display().to_string(), self.read(&path)?))
        };
        paths.into_iter().map(read).collect()
    }

    pub(crate) fn read(&self, path: &Path) -> Result<String, WorkspaceError> {
        fs::read_to_string(path).map_err(|source| WorkspaceError::Read {
            path: path.to_owned(),
            source,
        })
    }

    pub(crate) fn read_if_there(&self, path: &Path) -> Result<Option<String>, WorkspaceError> {
        match self.read(path) {
            Ok(text) => Ok(Some(text)),
            Err(WorkspaceError::Read { source, .. })
                if source.kind() == io::ErrorKind::NotFound =>
            {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    pub(crate) fn write(&self, path: &Path, text: &str) -> Result<(), WorkspaceError> {
        fs::write(path, text).map_err(|source| WorkspaceError::Write {
            path: path.to_owned(),
            source,
        })
    }
}

/// What lies in a folder, sorted.
fn entries(folder: &Path) -> Result<Vec<PathBuf>, WorkspaceError> {
    let failed = |source| WorkspaceError::Read {
        path: folder.to_owned(),
        source,
    };
    let entries = fs::read_dir(folder).map_err(failed)?;
    let entries: io::Result<BTreeSet<PathBuf>> = entries.map(|e| e.map(|e| e.path())).collect();
    Ok(entries.map_err(failed)?.into_iter().collect())
}

fn file_name(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default();
    name.to_string_lossy().into_owned()
}
