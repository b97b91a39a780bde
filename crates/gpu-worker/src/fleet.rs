//! The other workers, as they announce themselves.

use contract::fleet::{BUCKET, MAX_AGE, WorkerRecord};
use lifecycle::chain;
use messaging::{Broker, BrokerError, Bucket};

/// A look at `WORKERS`. Read when it is asked.
pub(crate) struct Fleet {
    broker: Broker,
    /// This worker's own name.
    name: String,
}

impl Fleet {
    pub(crate) fn new(broker: Broker, name: String) -> Self {
        Self { broker, name }
    }

    /// Whether another worker serves this version, `model/version`, as far as is known.
    pub(crate) async fn has_another_for(&self, version: &str) -> bool {
        match self.others().await {
            Ok(others) => others
                .iter()
                .any(|other| other.models.iter().any(|served| served == version)),
            Err(error) => {
                tracing::debug!(error = chain(&error), "the fleet is not known");
                false
            }
        }
    }

    /// All workers but this one.
    pub(crate) async fn others(&self) -> Result<Vec<WorkerRecord>, BrokerError> {
        let bucket: Bucket<WorkerRecord> = self.broker.bucket(BUCKET, MAX_AGE).await?;
        let all = bucket.all().await?;
        let others = all.into_values().filter(|other| other.name != self.name);
        Ok(others.collect())
    }
}
