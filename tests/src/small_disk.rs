//! A disk that is really full: a small file system in a mount namespace of its own, so that writing to it fails as the kernel has it.

use std::fs::File;
use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// What is missing where [`unshared`] cannot be started.
pub const NEEDS_UNSHARE: &str = "this test needs `unshare` of util-linux";
/// What is missing where it ends before it has mounted anything.
pub const NEEDS_NAMESPACES: &str = "this test needs user and mount namespaces, for a file system that is full \
    (sysctl user.max_user_namespaces; in a container, one that may unshare)";

/// A shell script, whose arguments are still to be given, as a user who is root in namespaces of its own: only that one may mount.
pub fn unshared(script: &str) -> Command {
    let mut command = Command::new("unshare");
    command
        .args(["--user", "--map-root-user", "--mount", "--"])
        .args(["sh", "-c", script, "sh"])
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    command
}

/// Takes what room there is in the file system of this folder; returns what holds it.
pub fn fill(folder: &Path) -> PathBuf {
    let filler = folder.join("filler");
    let mut file = File::create(&filler).unwrap();
    let full = loop {
        if let Err(error) = file.write_all(&[0; 4096]) {
            break error;
        }
    };
    assert_eq!(full.kind(), ErrorKind::StorageFull, "{full}");
    filler
}
