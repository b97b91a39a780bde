//! Producers whose message came second: another submission had made their task, over HTTP say, and it had not ended.
//!
//! The notice of an end ([`super`]) knows only who listened when the task was made, and most ends say themselves that nobody did. So that no
//! end has to be looked up, it is the other way round: a note of each such producer lies in the work queue LISTENERS, and its task is looked at,
//! less and less often, until it has ended. Each look comes after the note was stored, so no end is missed between the two.

use std::time::Duration;

use contract::task::Listener;
use contract::{TaskId, TenantId};
use lifecycle::Tasks as ServiceTasks;
use messaging::{Broker, BrokerError, Delivery, Outgoing, WorkQueue};
use prost::Message as _;
use task_log::{TaskLog, TaskLogError};

use super::outcome::Outcomes;
use super::{event_of, tell_producer};
use crate::exchange::{self, MAX_LISTENERS};
use crate::pulled;

const CONSUMER: &str = "listeners";
/// Notes that are looked at at once.
const CONCURRENCY: usize = 16;
/// How long one orchestrator may keep a note.
const ACK_WAIT: Duration = Duration::from_secs(30);
/// Before a note is seen again whose task could not be read.
const GIVE_BACK: Duration = Duration::from_secs(2);
/// The first and the longest pause between two looks; each is a quarter longer than the one before.
const PAUSES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// Who listens late. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Late {
    log: TaskLog,
    outcomes: Outcomes,
    queue: WorkQueue,
}

impl Late {
    pub(crate) fn new(broker: &Broker, log: &TaskLog, outcomes: &Outcomes) -> Self {
        Self {
            log: log.clone(),
            outcomes: outcomes.clone(),
            queue: broker.queue(exchange::LISTENERS),
        }
    }

    /// Keeps that a producer is to hear of the end. Where there is no room it is let go of: its task was accepted all the same, and it can ask.
    ///
    /// # Errors
    /// When it is not known to be stored.
    pub(crate) async fn note(&self, listener: &Listener) -> Result<(), BrokerError> {
        let Listener {
            tenant,
            task_id,
            producer,
        } = listener;
        let sequence = producer.as_ref().map_or(0, |producer| producer.sequence);
        let message = Outgoing {
            subject: format!("inkstone.listener.{tenant}"),
            id: Some(format!("{task_id}-{sequence}")),
            headers: Vec::new(),
            payload: listener.encode_to_vec().into(),
        };
        match self.queue.send(message).await {
            Ok(_) => Ok(()),
            Err(BrokerError::Full { .. }) => {
                metrics::counter!("inkstone_orchestrator_late_listeners_refused_total")
                    .increment(1);
                tracing::warn!(
                    tenant,
                    task = task_id,
                    "too many listen late: one is not told"
                );
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    async fn handle(&self, note: &Delivery) {
        let settled = match self.look(note).await {
            Ok(true) => note.ack().await,
            Ok(false) => note.give_back(pause(note.deliveries())).await,
            // It can never be read.
            Err(error @ (TaskLogError::Decode { .. } | TaskLogError::Id(_))) => {
                let error = lifecycle::chain(&error);
                tracing::error!(error, "who listens late cannot be told");
                note.ack().await
            }
            Err(error) => {
                tracing::warn!(error = lifecycle::chain(&error), "a late listener waits");
                note.give_back(GIVE_BACK).await
            }
        };
        if let Err(error) = settled {
            tracing::debug!(%error, "a late listener comes back after its ack wait");
        }
    }

    /// Tells the end, if there is one. True when nothing is left to do.
    async fn look(&self, note: &Delivery) -> Result<bool, TaskLogError> {
        let listener = Listener::decode(note.payload().clone());
        let listener = listener.map_err(|source| TaskLogError::Decode {
            what: "listener",
            source,
        })?;
        let tenant: TenantId = listener.tenant.parse()?;
        let task: TaskId = listener.task_id.parse()?;
        let Some(record) = self.log.read(&tenant, task).await? else {
            tracing::debug!(%tenant, %task, "the log has let go of a task that somebody listens for");
            return Ok(true);
        };
        let Some(event) = event_of(record.phase()) else {
            return Ok(false);
        };
        let producer = listener.producer.unwrap_or_default();
        tell_producer(&self.outcomes, &record, event, &producer).await?;
        Ok(true)
    }
}

/// Starts to look at what late listeners wait for.
///
/// # Errors
/// When the consumer cannot be opened.
pub(crate) async fn start(service: &ServiceTasks, late: Late) -> Result<(), BrokerError> {
    // All that wait may be out: those whose tasks take long must not keep others' from being looked at.
    let filter = "inkstone.listener.*";
    let puller = late.queue.puller(CONSUMER, filter, ACK_WAIT, MAX_LISTENERS);
    let puller = puller.await?;
    pulled::start(service, CONSUMER, puller, CONCURRENCY, move |note| {
        let late = late.clone();
        async move { late.handle(&note).await }
    });
    Ok(())
}

/// How long a note waits until its task is looked at again, that was handed out so often. By no clock: a machine's own may be wrong.
fn pause(deliveries: u64) -> Duration {
    let (first, longest) = PAUSES;
    let looks = i32::try_from(deliveries).unwrap_or(i32::MAX);
    // Beyond the longest from here on; there is no need to know by how much.
    let grown = 1.25_f64.powi(looks.clamp(1, 40) - 1);
    first.mul_f64(grown).min(longest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_takes_long_is_looked_at_less_often() {
        let seconds = Duration::from_secs_f64;
        assert_eq!(pause(1), seconds(1.0));
        assert_eq!(pause(2), seconds(1.25));
        assert_eq!(pause(1000), seconds(60.0));
        assert_eq!(pause(u64::MAX), seconds(60.0));
    }
}
