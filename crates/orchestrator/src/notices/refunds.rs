//! Gives back what tasks were charged for that are not drawn after all: each once, however often its end is seen, and whoever sees it.
//!
//! The bucket `REFUNDS` has a record for each of them, created before anything is given back: whoever creates it gives back. One whose answer
//! was lost is known by its claim when it is asked for again. Whoever is killed between the two leaves the task charged: rather that
//! than given back twice.

use std::sync::Arc;
use std::time::Duration;

use contract::TaskId;
use contract::task::Submitted;
use messaging::{Broker, BrokerError, Bucket};
use serde::{Deserialize, Serialize};

use crate::meter::Meter;

/// The bucket of those that were given back.
const REFUNDS: &str = "REFUNDS";
/// How long it is known that one was. It is given back on the day on which it was charged, or not at all.
const KEPT: Duration = Duration::from_secs(2 * 24 * 3600);

/// Who gives back: one delivery of an end, for as long as it is looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Claim {
    by: String,
}

impl Claim {
    /// Unlike all others.
    pub(super) fn new() -> Self {
        let by = TaskId::random().to_string();
        Self { by }
    }
}

/// Gives back.
pub(super) struct Refunds {
    claims: Bucket<Claim>,
    meter: Arc<Meter>,
}

impl Refunds {
    /// Opens the bucket.
    pub(super) async fn open(broker: &Broker, meter: Arc<Meter>) -> Result<Self, BrokerError> {
        let open = || broker.bucket(REFUNDS, KEPT);
        let claims = broker.patiently(open).await?;
        Ok(Self { claims, meter })
    }

    /// Gives back what a task was charged for, unless that was done before.
    ///
    /// # Errors
    /// When it is not known whether it is this claim's to give back. Asked again with the same claim it is found out.
    pub(super) async fn refund(
        &self,
        submitted: &Submitted,
        claim: &Claim,
    ) -> Result<(), BrokerError> {
        if self.meter.charged_today(submitted) && self.is_first(&name(submitted), claim).await? {
            self.meter.refund_task(submitted);
        }
        Ok(())
    }

    async fn is_first(&self, name: &str, claim: &Claim) -> Result<bool, BrokerError> {
        let conflict = match self.claims.create(name, claim).await {
            Ok(_) => return Ok(true),
            Err(conflict @ BrokerError::Conflict { .. }) => conflict,
            Err(error) => return Err(error),
        };
        match self.claims.get(name).await {
            // An earlier attempt of this one may have been stored, and its answer lost.
            Ok(Some(found)) => Ok(found.value == *claim),
            // Of a replica that lags.
            Ok(None) => Err(conflict),
            // A later version's.
            Err(BrokerError::Decode { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

/// A task's record. When it was submitted is in it, because an id may come again: the log can let go of a task before [`KEPT`] is over, and
/// whoever submits with the same idempotency key then is charged for another.
fn name(submitted: &Submitted) -> String {
    let at = submitted.at.unwrap_or_default().seconds;
    format!("{}.{at}", submitted.task_id)
}

#[cfg(test)]
#[path = "refunds_tests.rs"]
mod tests;
