//! Who hears of a task's end without asking: its producer over NATS, and its webhook.
//!
//! A durable consumer, shared by all orchestrators, reads the ends in the log. An end is acknowledged only when all that follows from it
//! is stored: the outcome in OUTCOMES, the delivery in WEBHOOKS. From there [`webhook`] carries deliveries out. Producers of whom the task's
//! submission does not know, because their message came later, are told by [`late`].
//!
//! What a task was charged for that was cancelled or did not begin in time is given back here, too ([`Meter::refund`]): its end may be any
//! orchestrator's or a worker's, whoever wrote it may not have heard that it is stored, and each end comes by here.

mod busy;
pub(crate) mod late;
mod outcome;
mod retry;
pub(crate) mod webhook;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use contract::ErrorCode;
use contract::json::TaskEventJson;
use contract::task::{DeadLetter, Done, Producer, Submitted, WebhookDelivery, done};
use contract::v1::{self, TaskEvent, TaskPhase};
use lifecycle::Tasks as ServiceTasks;
use messaging::{Broker, BrokerError, Delivery, Outgoing, WorkQueue};
use prost::Message as _;
use task_log::{LetterKind, Record, TaskLog, TaskLogError, TaskRef, deadline, has_listeners};
use tokio::time::Instant;

use crate::meter::Meter;
use crate::{exchange, pulled};

pub(crate) use outcome::{Outcomes, Target};

/// Ends that are handled at once.
const CONCURRENCY: usize = 64;
/// How long one orchestrator may keep an end.
const ACK_WAIT: Duration = Duration::from_secs(30);
/// Before an end is seen again that could not be told.
const GIVE_BACK: Duration = Duration::from_secs(2);
/// How long it is tried to give back what a task was charged for: well within [`ACK_WAIT`].
const PATIENCE: Duration = Duration::from_secs(15);
/// Between two such attempts.
const ASK_AGAIN: Duration = Duration::from_millis(500);

/// What an end asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Settled {
    /// It is told, and what follows from it is stored.
    Told,
    /// Nothing, as it says itself.
    Nothing,
}

/// Tells ends.
struct Notices {
    log: TaskLog,
    outcomes: Outcomes,
    meter: Arc<Meter>,
    webhooks: WorkQueue,
    /// In front of the paths of pictures.
    public_url: String,
    /// Says when the service stops.
    service: ServiceTasks,
}

/// Starts to tell ends.
///
/// # Errors
/// When the consumer cannot be opened.
pub(crate) async fn start(
    service: &ServiceTasks,
    broker: &Broker,
    log: &TaskLog,
    outcomes: Outcomes,
    meter: Arc<Meter>,
    public_url: &str,
) -> Result<(), TaskLogError> {
    let puller = log.ends_of_all(ACK_WAIT).await?;
    let notices = Arc::new(Notices {
        log: log.clone(),
        outcomes,
        meter,
        webhooks: broker.queue(exchange::WEBHOOKS),
        public_url: public_url.to_owned(),
        service: service.clone(),
    });
    pulled::start(service, "notices", puller, CONCURRENCY, move |end| {
        let notices = notices.clone();
        async move { notices.handle(&end).await }
    });
    Ok(())
}

impl Notices {
    async fn handle(&self, end: &Delivery) {
        let settled = match self.settle(end).await {
            // A record that cannot be read now never can be: it must not hold up the others.
            Err(error @ (TaskLogError::Decode { .. } | TaskLogError::Id(_))) => {
                let (subject, error) = (end.subject(), lifecycle::chain(&error));
                tracing::error!(subject, error, "an end cannot be told");
                Ok(Settled::Told)
            }
            settled => settled,
        };
        let acknowledged = match settled {
            Ok(Settled::Told) => end.ack().await,
            // Should it come again, it is as quickly done.
            Ok(Settled::Nothing) => end.ack_unconfirmed().await,
            Err(error) => {
                tracing::warn!(error = lifecycle::chain(&error), "an end is told again");
                end.give_back(GIVE_BACK).await
            }
        };
        if let Err(error) = acknowledged {
            tracing::debug!(%error, "an end comes back after its ack wait");
        }
    }

    async fn settle(&self, end: &Delivery) -> Result<Settled, TaskLogError> {
        let done = Done::decode(end.payload().clone());
        let done = done.map_err(|source| TaskLogError::Decode {
            what: "done",
            source,
        })?;
        let owed = is_owed(&done);
        if done.without_listeners && !owed {
            return Ok(Settled::Nothing);
        }
        // inkstone.task.<tenant>.<lane>.<task>.done
        let mut tokens = end.subject().split('.').skip(2);
        let mut token = || tokens.next().unwrap_or_default();
        let place = TaskRef::parse(token(), token(), token())?;
        let submitted = match owed {
            true => self.give_back_charge(&place).await?,
            false => self.log.submitted(&place).await?,
        };
        let Some(submitted) = submitted else {
            // The log has let go of it meanwhile.
            return Ok(Settled::Told);
        };
        if !has_listeners(&submitted) {
            return Ok(Settled::Told);
        }
        let TaskRef { tenant, task, .. } = place;
        let Some(mut record) = self.log.read(&tenant, task).await? else {
            return Ok(Settled::Told);
        };
        // The end counts that was handed out: the replica that answered may not have heard of it so far.
        record.done = Some(done);
        let Some(event) = event_of(record.phase()) else {
            return Ok(Settled::Told);
        };
        if let Some(producer) = &record.submitted.producer {
            tell_producer(&self.outcomes, &record, event, producer).await?;
        }
        self.queue_webhook(&record, event).await?;
        Ok(Settled::Told)
    }

    /// Gives back what a task was charged for, and says how it was submitted. Tried until the broker answers or [`PATIENCE`] has passed, and no
    /// longer than until the service is asked to stop: then the end comes again, here or elsewhere. So it does at once where there is no room.
    async fn give_back_charge(&self, place: &TaskRef) -> Result<Option<Submitted>, TaskLogError> {
        let until = Instant::now() + PATIENCE;
        loop {
            let attempt = tokio::time::timeout_at(until, self.try_to_give_back(place));
            let answer = tokio::select! {
                biased;
                () = self.service.stopping() => return Err(TaskLogError::Stopping),
                answer = attempt => answer.unwrap_or_else(|late| Err(too_late(late).into())),
            };
            match answer {
                Err(TaskLogError::Broker(error))
                    if Instant::now() < until && !matches!(error, BrokerError::Full { .. }) =>
                {
                    tracing::debug!(%error, "trying again to give back");
                }
                answer => return answer,
            }
            tokio::select! {
                () = self.service.stopping() => return Err(TaskLogError::Stopping),
                () = tokio::time::sleep(ASK_AGAIN) => {}
            }
        }
    }

    async fn try_to_give_back(&self, place: &TaskRef) -> Result<Option<Submitted>, TaskLogError> {
        let submitted = self.log.submitted(place).await?;
        if let Some(submitted) = &submitted {
            self.meter.refund(submitted).await?;
        }
        Ok(submitted)
    }

    async fn queue_webhook(&self, record: &Record, event: TaskEvent) -> Result<(), TaskLogError> {
        let now = self.log.now();
        let Some(delivery) = delivery(record, event, &self.public_url, now) else {
            return Ok(());
        };
        let message = Outgoing {
            subject: format!("inkstone.webhook.{}", delivery.tenant),
            id: Some(webhook::message_id(&delivery)),
            headers: Vec::new(),
            payload: delivery.encode_to_vec().into(),
        };
        match self.webhooks.send(message).await {
            Ok(_) => Ok(()),
            // The tenant has too many waiting: it must not hold up what others hear.
            Err(BrokerError::Full { .. }) => {
                let reason = "too many webhooks of the tenant wait already".to_owned();
                metrics::counter!("inkstone_orchestrator_webhooks_total", "outcome" => "no_room")
                    .increment(1);
                let letter = letter(&delivery, reason, self.log.now());
                self.log.bury(&letter).await
            }
            Err(error) => Err(error.into()),
        }
    }
}

/// Tells a producer that a task has ended, and how.
async fn tell_producer(
    outcomes: &Outcomes,
    record: &Record,
    event: TaskEvent,
    producer: &Producer,
) -> Result<(), BrokerError> {
    let outcome = v1::Outcome {
        r#type: event.into(),
        task_id: record.submitted.task_id.clone(),
        reference: producer.reference.clone(),
        sequence: producer.sequence,
        at: record.done.as_ref().and_then(|done| done.at),
        result: Some(v1::outcome::Result::Task(record.view())),
    };
    let target = Target {
        tenant: &record.submitted.tenant,
        json: producer.json,
        proven: true,
    };
    outcomes.tell(target, &outcome).await
}

fn too_late(late: tokio::time::error::Elapsed) -> BrokerError {
    BrokerError::Request {
        operation: "giving back what a task was charged",
        source: late.into(),
    }
}

/// Whether nothing of what the task was charged for counts: it was cancelled, or did not begin in time.
fn is_owed(done: &Done) -> bool {
    let cancelled = matches!(done.outcome, Some(done::Outcome::Cancelled(_)));
    cancelled || deadline::has_expired(done)
}

/// What is heard of a phase; nothing of one that is no end.
pub(crate) fn event_of(phase: TaskPhase) -> Option<TaskEvent> {
    match phase {
        TaskPhase::Succeeded => Some(TaskEvent::Succeeded),
        TaskPhase::Failed => Some(TaskEvent::Failed),
        TaskPhase::Cancelled => Some(TaskEvent::Cancelled),
        _ => None,
    }
}

/// What a task's webhook is to be told of its end, if it wants to hear of it; `now` is when it ended where the end does not say.
fn delivery(
    record: &Record,
    event: TaskEvent,
    public_url: &str,
    now: SystemTime,
) -> Option<WebhookDelivery> {
    let submitted = &record.submitted;
    let webhook = submitted.request.as_ref()?.webhook.as_ref()?;
    let wanted = webhook.events.is_empty() || webhook.events().any(|wanted| wanted == event);
    if !wanted {
        return None;
    }
    let at = record.done.as_ref().and_then(|done| done.at);
    let view = record.view();
    let body = TaskEventJson::new(event, at.as_ref(), &view, public_url);
    Some(WebhookDelivery {
        task_id: submitted.task_id.clone(),
        tenant: submitted.tenant.clone(),
        app_key: submitted.app_key.clone(),
        event: event.into(),
        url: webhook.url.clone(),
        body: body.to_vec(),
        at: Some(at.unwrap_or_else(|| now.into())),
    })
}

/// What is kept of a delivery that was given up `at`, by the broker's clock.
fn letter(delivery: &WebhookDelivery, reason: String, at: SystemTime) -> DeadLetter {
    DeadLetter {
        task_id: delivery.task_id.clone(),
        tenant: delivery.tenant.clone(),
        code: ErrorCode::Unavailable.to_string(),
        reason,
        at: Some(at.into()),
        subject: format!("inkstone.webhook.{}", delivery.tenant),
        payload: delivery.encode_to_vec(),
        kind: LetterKind::Webhook.word().to_owned(),
        ..DeadLetter::default()
    }
}

#[cfg(test)]
mod refunds_tests;

#[cfg(test)]
mod tests {
    use contract::task::Cancelled;

    use super::*;

    fn record(events: &[TaskEvent]) -> Record {
        let webhook = v1::Webhook {
            url: "https://example.com/hook".to_owned(),
            events: events.iter().map(|&event| event.into()).collect(),
        };
        Record {
            submitted: Submitted {
                task_id: "t".to_owned(),
                request: Some(v1::SubmitTask {
                    webhook: Some(webhook),
                    ..v1::SubmitTask::default()
                }),
                ..Submitted::default()
            },
            state: None,
            state_sequence: 0,
            last_sequence: 0,
            done: Some(Done {
                outcome: Some(done::Outcome::Cancelled(Cancelled::default())),
                ..Done::default()
            }),
            feedback: None,
            sequence: 0,
        }
    }

    #[test]
    fn a_webhook_is_told_of_the_ends_that_it_wants_and_without_a_wish_of_all() {
        let told = |events: &[TaskEvent]| {
            let record = record(events);
            let event = event_of(record.phase()).unwrap();
            delivery(
                &record,
                event,
                "https://images.example.com",
                SystemTime::now(),
            )
        };
        let all = told(&[]).unwrap();
        assert!(told(&[TaskEvent::Failed, TaskEvent::Cancelled]).is_some());
        assert!(told(&[TaskEvent::Succeeded]).is_none());
        let body: serde_json::Value = serde_json::from_slice(&all.body).unwrap();
        assert_eq!(body["type"], "task.cancelled");
        assert_eq!(body["data"]["phase"], "cancelled");
        let mut none = record(&[]);
        none.submitted.request = Some(v1::SubmitTask::default());
        let now = SystemTime::now();
        assert!(delivery(&none, TaskEvent::Cancelled, "", now).is_none());
    }

    #[test]
    fn what_has_not_ended_is_no_event() {
        for phase in [TaskPhase::Queued, TaskPhase::Scheduled, TaskPhase::Running] {
            assert_eq!(event_of(phase), None);
        }
    }
}
