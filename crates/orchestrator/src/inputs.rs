//! Files that callers have sent for tasks to begin from: how long they stay, and that none goes which a task still needs.
//!
//! A file stays `inputs.keep` after it was last sent, and longer where a task that has not ended may need it. The rule that makes
//! this cheap: a submission renews what it begins from unless that is younger than half of `keep`. So whatever a task needs was
//! written later than half of `keep` before the task, and what is older than half of `keep` before the oldest task that has not
//! ended is needed by none. That oldest task is found without an index (`task_log`); nobody keeps count of files.
//!
//! In a dry run (`retention.dry_run`) a sweep removes nothing, and says how much it would.
//!
//! Every orchestrator sweeps by itself. Removing what another has removed is no error.

use std::time::{Duration, SystemTime};

use contract::limits::MAX_SOURCE_BYTES;
use contract::v1::Source;
use contract::{Failure, TenantId};
use futures::{StreamExt as _, TryStreamExt as _};
use lifecycle::Service;
use storage::{Aged, Key, Storage, StorageError};
use task_log::TaskLog;

use crate::settings::InputSettings;
use crate::sweeps::{self, Expired, SweepError};

/// Files that one sweep removes at most; the next one takes the rest.
const MAX_SWEPT: usize = 10_000;
/// Files removed at the same time.
const REMOVALS: usize = 8;
/// Suggested wait when the object store does not answer.
const RETRY_AFTER: Duration = Duration::from_secs(2);

/// What callers have sent. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Inputs {
    storage: Storage,
    keep: Duration,
    dry_run: bool,
}

impl Inputs {
    pub(crate) fn new(storage: Storage, settings: &InputSettings, dry_run: bool) -> Self {
        Self {
            storage,
            keep: settings.keep.duration(),
            dry_run,
        }
    }

    /// Lets what a task that is submitted `now`, by the broker's clock, is to begin from stay for as long as the task may need it.
    ///
    /// # Errors
    /// [`Failure`] that names `source` when it is not there any more; unavailable when the store does not answer.
    pub(crate) async fn hold(
        &self,
        tenant: &TenantId,
        source: Option<&Source>,
        now: SystemTime,
    ) -> Result<(), Failure> {
        let Some(source) = source else { return Ok(()) };
        for text in [&source.image_key, &source.mask_key] {
            // That the others are this tenant's is checked on admission.
            if let Some(key) = Key::input_of(tenant, text) {
                self.hold_one(&key, now).await?;
            }
        }
        Ok(())
    }

    async fn hold_one(&self, key: &Key, now: SystemTime) -> Result<(), Failure> {
        let unavailable = |error: StorageError| {
            tracing::warn!(error = lifecycle::chain(&error), "answered unavailable");
            let text = "pictures to begin from cannot be read just now; try again";
            Failure::unavailable(text, RETRY_AFTER)
        };
        let gone = || {
            let text = "source names a file that is not stored any more; send it again";
            Failure::invalid("source", text)
        };
        let written = self.storage.written(key).await.map_err(unavailable)?;
        let age = written.map(|written| now.duration_since(written).unwrap_or_default());
        match age {
            None => Err(gone()),
            Some(age) if is_fresh(age, self.keep) => Ok(()),
            Some(_) => match self.storage.renew(key, MAX_SOURCE_BYTES).await {
                Ok(()) => Ok(()),
                Err(StorageError::Missing { .. }) => Err(gone()),
                Err(error) => Err(unavailable(error)),
            },
        }
    }

    async fn sweep_and_tell(&self, log: &TaskLog) {
        match self.sweep(log).await {
            Ok(expired) => {
                metrics::counter!("inkstone_orchestrator_input_sweeps_total").increment(1);
                if self.dry_run {
                    return sweeps::tell("input", &expired);
                }
                let (removed, _) = expired.all();
                metrics::counter!("inkstone_orchestrator_inputs_removed_total").increment(removed);
                if removed > 0 {
                    tracing::info!(removed, "pictures that callers had sent have expired");
                }
            }
            Err(error) => {
                let error = lifecycle::chain(&error);
                tracing::warn!(error, "pictures that callers have sent stay for now");
            }
        }
    }

    /// Removes what has expired, and says how much that was; in a dry run how much it would have been.
    async fn sweep(&self, log: &TaskLog) -> Result<Expired, SweepError> {
        // An orchestrator whose own clock is ahead would remove what others need; without the broker's there is no sweep.
        let now = log.time().await?;
        let old = now.checked_sub(self.keep).unwrap_or(SystemTime::UNIX_EPOCH);
        let old = self.storage.inputs_before(old, MAX_SWEPT).await?;
        if old.is_empty() {
            return Ok(Expired::default());
        }
        let before = expiry(now, log.open_since().await?, self.keep);
        let expired = old.into_iter().filter(|one| one.written < before);
        let removed = futures::stream::iter(expired)
            .map(|one| self.remove(one))
            .buffer_unordered(REMOVALS)
            .try_fold(Expired::default(), async |all: Expired, removed| {
                if let Some(bytes) = removed {
                    all.count(bytes);
                }
                Ok(all)
            });
        Ok(removed.await?)
    }

    /// Removes a file, unless it was sent again since it was listed, and says of how many bytes it was. In a dry run it stays all
    /// the same.
    async fn remove(&self, one: Aged) -> Result<Option<u64>, StorageError> {
        match self.storage.written(&one.key).await? {
            Some(written) if written <= one.written => {}
            _ => return Ok(None),
        }
        if self.dry_run {
            tracing::debug!(key = %one.key, "would be removed");
        } else {
            self.storage.delete(&one.key).await?;
        }
        Ok(Some(one.size))
    }
}

/// Whether a file is new enough for a task that is submitted now.
fn is_fresh(age: Duration, keep: Duration) -> bool {
    age < keep / 2
}

/// Files that were last written before this are needed by no task and have been kept long enough.
fn expiry(now: SystemTime, open_since: Option<SystemTime>, keep: Duration) -> SystemTime {
    let earlier =
        |time: SystemTime, by: Duration| time.checked_sub(by).unwrap_or(SystemTime::UNIX_EPOCH);
    let kept = earlier(now, keep);
    match open_since {
        Some(oldest) => kept.min(earlier(oldest, keep / 2)),
        None => kept,
    }
}

/// Sweeps now and then for as long as the service runs.
pub(crate) fn start(service: &Service, inputs: Inputs, log: TaskLog, settings: &InputSettings) {
    let every = settings.sweep_every.duration();
    sweeps::start(service, "inputs", every, move || {
        let (inputs, log) = (inputs.clone(), log.clone());
        async move { inputs.sweep_and_tell(&log).await }
    });
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use proptest::prelude::*;

    use super::*;
    use crate::sweeps::tests::place;

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn without_open_tasks_files_stay_as_long_as_the_setting_says() {
        let keep = Duration::from_secs(100);
        assert_eq!(expiry(at(1000), None, keep), at(900));
        assert_eq!(expiry(at(1000), Some(at(990)), keep), at(900));
        assert_eq!(expiry(at(1000), Some(at(500)), keep), at(450));
        assert!(expiry(at(1000), Some(at(0)), keep) <= at(0));
    }

    #[tokio::test]
    async fn a_dry_run_says_what_a_sweep_removes_and_removes_nothing() {
        let (log, storage, _kept) = place().await;
        let tenant: TenantId = "acme".parse().unwrap();
        for data in [b"four", b"more"] {
            let key = Key::input(&tenant, &storage::sha256_hex(data)).unwrap();
            storage.put(&key, Bytes::from_static(data)).await.unwrap();
        }
        let mut inputs = Inputs {
            storage: storage.clone(),
            keep: Duration::ZERO,
            dry_run: true,
        };
        assert_eq!(inputs.sweep(&log).await.unwrap().all(), (2, 8));
        let later = SystemTime::now() + Duration::from_secs(60);
        assert_eq!(storage.inputs_before(later, 10).await.unwrap().len(), 2);
        inputs.dry_run = false;
        assert_eq!(inputs.sweep(&log).await.unwrap().all(), (2, 8));
        assert_eq!(inputs.sweep(&log).await.unwrap().all(), (0, 0));
    }

    #[tokio::test]
    async fn what_callers_sent_expires_by_the_brokers_clock_and_not_by_ones_own() {
        let (log, storage, _kept) = place().await;
        let tenant: TenantId = "acme".parse().unwrap();
        let key = Key::input(&tenant, &storage::sha256_hex(b"four")).unwrap();
        let data = Bytes::from_static(b"four");
        storage.put(&key, data).await.unwrap();
        let inputs = Inputs {
            storage: storage.clone(),
            keep: Duration::from_secs(3600),
            dry_run: false,
        };
        // Of this process, which has no other test in it.
        contract::clock::set_offset(24 * 3600);
        assert_eq!(inputs.sweep(&log).await.unwrap().all(), (0, 0));
        assert!(storage.written(&key).await.unwrap().is_some());
    }

    #[tokio::test]
    async fn a_file_is_renewed_for_a_task_by_the_time_of_the_task() {
        let (_log, storage, (_server, folder)) = place().await;
        let tenant: TenantId = "acme".parse().unwrap();
        let key = Key::input(&tenant, &storage::sha256_hex(b"four")).unwrap();
        let data = Bytes::from_static(b"four");
        storage.put(&key, data).await.unwrap();
        let file = std::fs::File::options()
            .write(true)
            .open(folder.path().join(key.as_str()));
        let yesterday = SystemTime::now() - Duration::from_secs(24 * 3600);
        file.unwrap().set_modified(yesterday).unwrap();
        let keep = Duration::from_secs(3600);
        let inputs = Inputs {
            storage: storage.clone(),
            keep,
            dry_run: false,
        };
        let source = Source {
            image_key: key.to_string(),
            ..Source::default()
        };
        let written = async || storage.written(&key).await.unwrap().unwrap();
        let first = written().await;
        let held = inputs.hold(&tenant, Some(&source), first).await;
        held.unwrap();
        assert_eq!(written().await, first);
        let held = inputs.hold(&tenant, Some(&source), first + keep).await;
        held.unwrap();
        assert!(written().await > first);
    }

    proptest! {
        #[test]
        fn no_file_expires_that_an_open_task_may_need(
            keep in 2u64..100_000,
            written in 0u64..1_000_000,
            age in 0u64..100_000,
            older in 0u64..1_000_000,
            wait in 0u64..1_000_000,
        ) {
            let keep = Duration::from_secs(keep);
            let submitted = written + age;
            // Otherwise the submission has renewed it.
            prop_assume!(is_fresh(Duration::from_secs(age), keep));
            let oldest = submitted.saturating_sub(older);
            let now = at(submitted + wait);
            prop_assert!(at(written) >= expiry(now, Some(at(oldest)), keep));
        }

        #[test]
        fn everything_expires_once_no_task_is_open(keep in 1u64..100_000, written in 0u64..1_000_000) {
            let now = at(written + keep + 1);
            prop_assert!(at(written) < expiry(now, None, Duration::from_secs(keep)));
        }
    }
}
