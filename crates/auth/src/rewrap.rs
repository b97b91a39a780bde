//! Changes the key-encryption key under a running platform: whatever is wrapped by an old key is wrapped anew by the one that wraps now, a record at a time, by every instance that runs. A record is replaced only as it was read, so nothing
//! that someone else writes is lost; one that is left over, because an instance died or a key is missing, is found again
//! with the next look. Authentication goes on all the while: a data key is the same under either.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use lifecycle::Service;
use messaging::{BrokerError, Bucket, Snapshot};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::watch;

use crate::key_encryption::{KekId, KeyEncryption, KeyEncryptionError, Standing};
use crate::metrics;

/// How often everything is looked at when nothing changes.
const LOOK: Duration = Duration::from_secs(30);
/// Between two looks when much changes: our own writes are changes, too.
const PAUSE: Duration = Duration::from_secs(1);

/// A record with a wrapped data key in it.
pub(crate) trait Wrapped:
    Serialize + DeserializeOwned + Clone + Send + Sync + 'static
{
    /// What its data key is wrapped by.
    fn kek(&self) -> &KekId;

    /// Wraps its data key anew; `name` is where it is stored.
    fn rewrap<'a>(
        &'a mut self,
        name: &'a str,
        key_encryption: &'a dyn KeyEncryption,
    ) -> BoxFuture<'a, Result<(), KeyEncryptionError>>;
}

/// Keeps a bucket wrapped by the key that wraps now, for as long as the service runs.
pub(crate) fn start<T: Wrapped>(
    service: &Service,
    (bucket, name): (Bucket<T>, &'static str),
    mut copy: watch::Receiver<Snapshot<T>>,
    key_encryption: Arc<dyn KeyEncryption>,
) {
    let stopping = service.tasks.stopping();
    service.tasks.critical("rewrap", async move {
        tokio::pin!(stopping);
        loop {
            let held = copy.borrow_and_update().clone();
            let left = tokio::select! {
                () = &mut stopping => return Ok::<(), BrokerError>(()),
                left = pass(&bucket, name, &held, &*key_encryption) => left,
            };
            metrics::to_rewrap(name, left);
            let next = async {
                tokio::time::sleep(PAUSE).await;
                let _ = tokio::time::timeout(LOOK, copy.changed()).await;
            };
            tokio::select! {
                () = &mut stopping => return Ok(()),
                () = next => {}
            }
        }
    });
}

/// Wraps anew whatever needs it, and says how many are left.
async fn pass<T: Wrapped>(
    bucket: &Bucket<T>,
    bucket_name: &'static str,
    held: &BTreeMap<String, T>,
    key_encryption: &dyn KeyEncryption,
) -> usize {
    let current = key_encryption.id();
    let (mut done, mut left) = (0, 0);
    for (name, record) in held {
        match key_encryption.standing(record.kek()) {
            Standing::Wraps | Standing::Other => continue,
            Standing::Old => {}
            Standing::Unknown => {
                left += 1;
                tracing::warn!(bucket = bucket_name, name, kek = %record.kek(), "a record needs a key-encryption key that is not here");
                continue;
            }
        }
        match one(bucket, name, key_encryption).await {
            Ok(true) => done += 1,
            Ok(false) => {}
            Err(problem) => {
                left += 1;
                tracing::warn!(bucket = bucket_name, name, problem, kek = %record.kek(), "a record is not wrapped anew yet");
            }
        }
    }
    if done > 0 {
        tracing::info!(bucket = bucket_name, done, left, kek = %current, "records were wrapped anew");
    }
    left
}

/// Wraps one record anew as it is stored now; false when that is done already.
async fn one<T: Wrapped>(
    bucket: &Bucket<T>,
    name: &str,
    key_encryption: &dyn KeyEncryption,
) -> Result<bool, String> {
    let stored = bucket.get(name).await.map_err(|e| e.to_string())?;
    let is_old = |kek: &KekId| key_encryption.standing(kek) == Standing::Old;
    let Some(stored) = stored.filter(|stored| is_old(stored.value.kek())) else {
        return Ok(false);
    };
    let mut record = stored.value;
    let rewrapped = record.rewrap(name, key_encryption).await;
    rewrapped.map_err(|e| e.to_string())?;
    match bucket.update(name, &record, stored.revision).await {
        Ok(_) => Ok(true),
        // Another instance did it, or the record changed: it is looked at again.
        Err(BrokerError::Conflict { .. }) => Ok(false),
        Err(error) => Err(error.to_string()),
    }
}
