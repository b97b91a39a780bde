//! The worker in the fleet: a record in `WORKERS` that vanishes soon after the worker does.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use contract::fleet::{BUCKET, MAX_AGE, WorkerRecord};
use messaging::{Broker, BrokerError, Bucket};

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
            match announce(&broker, &mut bucket, &record).await {
                Ok(()) => said = Some((record, now)),
                Err(error) => tracing::debug!(error = chain(&error), "not announced"),
            }
        }
        if let Some(bucket) = bucket
            && let Err(error) = bucket.delete(&self.worker.name).await
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

fn serves_the_same(before: &WorkerRecord, now: &WorkerRecord) -> bool {
    before.models == now.models && before.loading == now.loading
}

async fn announce(
    broker: &Broker,
    bucket: &mut Option<Bucket<WorkerRecord>>,
    record: &WorkerRecord,
) -> Result<(), BrokerError> {
    let bucket = match bucket {
        Some(bucket) => bucket,
        None => bucket.insert(broker.bucket(BUCKET, MAX_AGE).await?),
    };
    bucket.put(&record.name, record).await.map(drop)
}

/// A name that no other worker has: the machine's, and a few random characters.
pub(crate) fn made_up_name() -> String {
    let machine = std::fs::read_to_string("/proc/sys/kernel/hostname");
    let machine = machine.unwrap_or_else(|_| "worker".to_owned());
    let random = uuid::Uuid::now_v7().simple().to_string();
    // The end of a version 7 UUID is random, its beginning is the time.
    format!("{}-{}", plain(machine.trim()), &random[random.len() - 6..])
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
        assert_eq!(plain("gpu.node/7 ü"), "gpu-node-7--");
    }
}
