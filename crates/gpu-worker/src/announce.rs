//! The worker in the fleet: a record in `WORKERS` that vanishes soon after the worker does.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use contract::fleet::{BUCKET, MAX_AGE, WorkerRecord};
use messaging::{Broker, BrokerError, Bucket};

use crate::metrics;
use crate::models::{Models, Status};
use crate::worker::Worker;
use lifecycle::chain;

/// How often a worker says something …
const EVERY: Duration = Duration::from_secs(5);
/// … and how soon when it serves other versions than it said.
const SOON: Duration = Duration::from_millis(500);

/// What is said about the worker.
pub(crate) struct Announcer {
    pub(crate) worker: Arc<Worker>,
    pub(crate) models: Models,
    pub(crate) slots: usize,
    pub(crate) device: String,
}

impl Announcer {
    /// Says it every few seconds, and soon when it has changed, until the worker stops, and then takes it back.
    pub(crate) async fn keep_announcing(self, broker: Broker) {
        let mut every = tokio::time::interval(SOON);
        let mut bucket: Option<Bucket<WorkerRecord>> = None;
        let mut said: Option<(WorkerRecord, Instant)> = None;
        let mut place = Place::default();
        loop {
            tokio::select! {
                () = self.worker.stop.cancelled() => break,
                _ = every.tick() => {}
            }
            let (record, now) = (self.record(), Instant::now());
            if let Some((before, at)) = &said
                && now.saturating_duration_since(*at) < EVERY
                && serves_the_same(before, &record)
            {
                continue;
            }
            match announce(&broker, &mut bucket, &record, &mut place).await {
                Ok(()) => said = Some((record, now)),
                Err(error) => tracing::debug!(error = chain(&error), "not announced"),
            }
        }
        // A namesake's record is not this worker's to take back.
        if let Some(bucket) = bucket
            && let Some(revision) = place.revision
            && !place.is_shared
            && let Err(error) = bucket.delete_at(&self.worker.name, revision).await
        {
            tracing::debug!(error = chain(&error), "the record vanishes by its age");
        }
    }

    fn record(&self) -> WorkerRecord {
        let (mut models, mut loading) = (Vec::new(), Vec::new());
        let mut failing = BTreeMap::new();
        for (version, status) in self.models.all() {
            match status {
                Status::Loaded => models.push(version),
                Status::Loading => loading.push(version),
                Status::Failed(why) => drop(failing.insert(version, why)),
            }
        }
        WorkerRecord {
            name: self.worker.name.clone(),
            models,
            loading,
            failing,
            slots: self.slots,
            running: self.worker.running.count(),
            device: self.device.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        }
    }
}

/// Where a worker's record stands.
#[derive(Debug, Default)]
struct Place {
    /// Whether this worker has ever written there.
    is_begun: bool,
    /// Of what it has written last, if it was told.
    revision: Option<u64>,
    /// Whether another process has written there since this one began to.
    is_shared: bool,
}

fn serves_the_same(before: &WorkerRecord, now: &WorkerRecord) -> bool {
    before.models == now.models && before.loading == now.loading
}

async fn announce(
    broker: &Broker,
    bucket: &mut Option<Bucket<WorkerRecord>>,
    record: &WorkerRecord,
    place: &mut Place,
) -> Result<(), BrokerError> {
    let bucket = match bucket {
        Some(bucket) => bucket,
        None => bucket.insert(broker.bucket(BUCKET, MAX_AGE).await?),
    };
    // Whoever cannot be read is no reason to say nothing.
    let found = bucket.get(&record.name).await.ok().flatten();
    match (place.revision.take(), found) {
        // A copy that lags may show an older one.
        (Some(own), Some(found)) if found.revision > own => {
            place.is_shared = true;
            metrics::namesake();
            tracing::warn!(
                name = record.name,
                device = found.value.device,
                "another worker has this name: the fleet counts one of the two, and runs do not tell them apart; give each its own worker.name"
            );
        }
        (None, Some(found)) if !place.is_begun => tracing::warn!(
            name = record.name,
            device = found.value.device,
            "a worker of this name was there a moment ago: one that was killed, or one that still runs"
        ),
        _ => {}
    }
    place.is_begun = true;
    place.revision = Some(bucket.put(&record.name, record).await?);
    Ok(())
}

/// A name that no other worker has: the machine's, and a few random characters.
pub(crate) fn made_up_name() -> String {
    let machine = std::fs::read_to_string("/proc/sys/kernel/hostname");
    let machine = machine.unwrap_or_else(|_| "worker".to_owned());
    let random = uuid::Uuid::now_v7().simple().to_string();
    // The end of a version 7 UUID is random, its beginning is the time.
    format!("{}-{}", plain(machine.trim()), &random[random.len() - 6..])
}

/// What tells this start of a worker from all others, whatever their names.
pub(crate) fn new_incarnation() -> String {
    uuid::Uuid::now_v7().simple().to_string()
}

/// A machine's name as part of a key.
fn plain(machine: &str) -> String {
    let plain = |c: char| {
        if c.is_ascii_alphanumeric() || c == '_' {
            c
        } else {
            '-'
        }
    };
    machine.chars().take(40).map(plain).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn made_up_names_differ_and_can_be_keys() {
        assert_ne!(made_up_name(), made_up_name());
        assert_ne!(new_incarnation(), new_incarnation());
        assert_eq!(plain("gpu.node/7 ü"), "gpu-node-7--");
    }
}
