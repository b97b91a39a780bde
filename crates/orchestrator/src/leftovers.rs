//! What processes leave in the object store, beside objects of tasks, that are killed: what they [probed](Storage::probe) it with, and in a
//! folder the [files](storage::Drafts) that would have become objects.
//!
//! Every orchestrator sweeps by itself, as in [`retention`](crate::retention), whose grace and dry run hold here, too.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use lifecycle::Service;
use storage::{Drafts, Storage};
use task_log::TaskLog;
use tokio::sync::Mutex;

use crate::settings::RetentionSettings;
use crate::sweeps::{self, Expired, SweepError};

/// What was probed with that one sweep removes at most: a process leaves one.
const PROBES: usize = 10_000;
/// A file that was not written to for so long becomes no object any more. A large one that is stored in parts may rest for a while.
const DRAFT_AGE: Duration = Duration::from_secs(3600);
/// How long one sweep walks through a folder at most; the next goes on where it was.
const WALK: Duration = Duration::from_secs(300);

/// As metrics and the log name them.
const PROBE: &str = "probe";
const DRAFT: &str = "draft";

/// Sweeps.
struct Sweeper {
    storage: Storage,
    log: TaskLog,
    settings: RetentionSettings,
    /// None where the store is no folder.
    drafts: Mutex<Option<Drafts>>,
}

impl Sweeper {
    fn new(storage: &Storage, log: &TaskLog, settings: &RetentionSettings) -> Self {
        Self {
            storage: storage.clone(),
            log: log.clone(),
            settings: settings.clone(),
            drafts: Mutex::new(storage.drafts()),
        }
    }

    async fn sweep_all(&self) {
        for (kind, swept) in [
            (PROBE, self.sweep_probes().await),
            (DRAFT, self.sweep_drafts().await),
        ] {
            match swept {
                Ok(expired) if self.settings.dry_run => sweeps::tell(kind, &expired),
                Ok(_) => {}
                Err(error) => {
                    let error = lifecycle::chain(&error);
                    tracing::warn!(error, kind, "what killed processes left stays for now");
                }
            }
        }
    }

    /// Removes what was probed with; nothing in a dry run.
    async fn sweep_probes(&self) -> Result<Expired, SweepError> {
        let now = self.log.time().await?;
        let before = now.checked_sub(self.settings.grace.duration());
        let before = before.unwrap_or(SystemTime::UNIX_EPOCH);
        let expired = Expired::default();
        for probe in self.storage.probes_before(before, PROBES).await? {
            if !self.settings.dry_run {
                self.storage.delete(&probe.key).await?;
                count(PROBE, 1, probe.size);
            }
            expired.count(probe.size);
        }
        Ok(expired)
    }

    /// Removes, on a part of a walk, what would have become objects; nothing in a dry run.
    async fn sweep_drafts(&self) -> Result<Expired, SweepError> {
        let expired = Expired::default();
        let mut drafts = self.drafts.lock().await;
        let Some(drafts) = drafts.as_mut() else {
            return Ok(expired);
        };
        let remove = !self.settings.dry_run;
        let age = self.settings.grace.duration().max(DRAFT_AGE);
        let left = drafts.walk(age, WALK, remove).await?;
        metrics::counter!("inkstone_orchestrator_not_removed_total").increment(left.stay);
        if remove {
            count(DRAFT, left.files, left.bytes);
        }
        expired.count_all(left.files, left.bytes);
        Ok(expired)
    }
}

fn count(kind: &'static str, objects: u64, bytes: u64) {
    metrics::counter!("inkstone_orchestrator_removed_total", "kind" => kind).increment(objects);
    metrics::counter!("inkstone_orchestrator_removed_bytes_total", "kind" => kind).increment(bytes);
}

/// Sweeps now and then for as long as the service runs.
pub(crate) fn start(
    service: &Service,
    storage: &Storage,
    log: &TaskLog,
    settings: &RetentionSettings,
) {
    let sweeper = Arc::new(Sweeper::new(storage, log, settings));
    let every = settings.sweep_every.duration();
    sweeps::start(service, "leftovers", every, move || {
        let sweeper = sweeper.clone();
        async move { sweeper.sweep_all().await }
    });
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::path::PathBuf;

    use contract::TaskId;

    use super::*;
    use crate::sweeps::tests::place;

    /// A file of four bytes that was written two hours ago, or now.
    fn written(path: PathBuf, old: bool) -> PathBuf {
        let file = File::create(&path).unwrap();
        file.set_len(4).unwrap();
        if old {
            let ago = Duration::from_secs(2 * 3600);
            file.set_modified(SystemTime::now() - ago).unwrap();
        }
        path
    }

    #[tokio::test]
    async fn what_killed_processes_left_is_told_in_a_dry_run_and_removed_otherwise_and_what_is_young_stays()
     {
        let (log, storage, (_server, folder)) = place().await;
        let path = |name: &str| folder.path().join(name);
        let probe = || path(&format!("probe-{}", TaskId::random()));
        let (old_probe, young_probe) = (written(probe(), true), written(probe(), false));
        let old_draft = written(path("probe-x#10000000001"), true);
        let young_draft = written(path("probe-x#10000000002"), false);
        let mut sweeper = Sweeper::new(
            &storage,
            &log,
            &RetentionSettings {
                pictures: "30d".parse().unwrap(),
                grace: "1h".parse().unwrap(),
                sweep_every: "6h".parse().unwrap(),
                dry_run: true,
            },
        );
        for dry_run in [true, false] {
            sweeper.settings.dry_run = dry_run;
            assert!(old_probe.exists() && old_draft.exists());
            assert_eq!(sweeper.sweep_probes().await.unwrap().all(), (1, 4));
            assert_eq!(sweeper.sweep_drafts().await.unwrap().all(), (1, 4));
        }
        assert!(!old_probe.exists() && !old_draft.exists());
        assert!(young_probe.exists() && young_draft.exists());
        assert_eq!(sweeper.sweep_probes().await.unwrap().all(), (0, 0));
        assert_eq!(sweeper.sweep_drafts().await.unwrap().all(), (0, 0));
    }

    #[tokio::test]
    async fn an_orchestrator_that_starts_removes_what_killed_processes_left() {
        let (log, storage, (_server, folder)) = place().await;
        let probe = format!("probe-{}", TaskId::random());
        let left = [
            written(folder.path().join(probe), true),
            written(folder.path().join("probe-x#1"), true),
        ];
        let settings = RetentionSettings {
            pictures: "30d".parse().unwrap(),
            grace: "1h".parse().unwrap(),
            sweep_every: "6h".parse().unwrap(),
            dry_run: false,
        };
        let service = Service::new("test");
        start(&service, &storage, &log, &settings);
        let gone = async {
            while left.iter().any(|path| path.exists()) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), gone)
            .await
            .unwrap();
        service.stop(Duration::from_secs(5)).await;
    }
}
