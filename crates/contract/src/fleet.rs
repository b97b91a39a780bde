//! What workers tell of themselves, in the key-value bucket [`BUCKET`].

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The bucket: a record for each worker, under its name.
pub const BUCKET: &str = "WORKERS";
/// How long a worker that says nothing is taken for alive.
pub const MAX_AGE: Duration = Duration::from_secs(15);

/// What `WORKERS` holds of one worker, under its name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerRecord {
    /// Its name.
    pub name: String,
    /// The versions that it serves, as `model/version`.
    pub models: Vec<String>,
    /// The versions that it is loading.
    #[serde(default)]
    pub loading: Vec<String>,
    /// Versions that it should serve and cannot so far, with the reason.
    pub failing: BTreeMap<String, String>,
    /// Tasks that it can run at once.
    pub slots: usize,
    /// Tasks that it runs now.
    pub running: usize,
    /// What it computes on: `cpu` or `cuda:N`.
    pub device: String,
    /// The program's version.
    pub version: String,
}
