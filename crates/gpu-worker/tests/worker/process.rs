//! A worker as a process of its own.

use std::process::{Child, Command, ExitStatus, Stdio};

use crate::support::{Platform, until};

/// A worker's process, killed when dropped.
pub(crate) struct Process(pub(crate) Child);

impl Process {
    pub(crate) fn start(platform: &Platform, name: &str, settings: &[(&str, &str)]) -> Self {
        let log = platform.folder.path().join(format!("{name}.log"));
        let log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(log);
        let child = Command::new(env!("CARGO_BIN_EXE_inkstone-gpu-worker"))
            .envs(platform.environment(&[("worker.name", name)]))
            .envs(platform.environment(settings))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log.unwrap())
            .spawn()
            .unwrap();
        Self(child)
    }

    /// As a crash would have it.
    pub(crate) fn kill(mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }

    /// Asks it to stop.
    pub(crate) async fn terminate(mut self) -> ExitStatus {
        self.signal("-TERM");
        self.ends().await
    }

    pub(crate) fn signal(&self, signal: &str) {
        let pid = self.0.id().to_string();
        let sent = Command::new("kill").args([signal, &pid]).status();
        assert!(sent.unwrap().success());
    }

    pub(crate) async fn ends(&mut self) -> ExitStatus {
        let mut status = None;
        until("the worker ends", async || {
            status = self.0.try_wait().unwrap();
            status.is_some()
        })
        .await;
        status.unwrap()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
