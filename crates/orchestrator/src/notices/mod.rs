//! Who hears of a task's end without asking: its producer over NATS, and its webhook.
//!
//! A durable consumer, shared by all orchestrators, reads the ends in the log. An end is acknowledged only when all that follows from it
//! is stored: the outcome in OUTCOMES, the delivery in WEBHOOKS. From there [`webhook`] carries deliveries out.
//!
//! What a task was charged for that did not begin in time is given back here, too: its end may be an orchestrator's or a worker's, and each
//! end comes by here.

mod busy;
mod outcome;
mod retry;
pub(crate) mod webhook;

use std::sync::Arc;
use std::time::{Duration, Instant};

use contract::ErrorCode;
use contract::json::TaskEventJson;
use contract::task::{DeadLetter, Done, Submitted, WebhookDelivery};
use contract::v1::{self, TaskEvent, TaskPhase};
use lifecycle::Tasks as ServiceTasks;
use messaging::{Broker, BrokerError, Delivery, Outgoing, WorkQueue};
use prost::Message as _;
use task_log::{LetterKind, Record, TaskLog, TaskLogError, TaskRef, deadline, has_listeners};

use crate::meter::Meter;
use crate::{exchange, pulled};

pub(crate) use outcome::{Outcomes, Target};

/// Ends that are handled at once.
const CONCURRENCY: usize = 64;
/// How long one orchestrator may keep an end.
const ACK_WAIT: Duration = Duration::from_secs(30);
/// Before an end is seen again that could not be told.
const GIVE_BACK: Duration = Duration::from_secs(2);
/// How long the log is asked for a task to which something is owed: with the last answer well within [`ACK_WAIT`].
const PATIENCE: Duration = Duration::from_secs(20);
/// Between two such questions.
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
        let expired = deadline::has_expired(&done);
        if done.without_listeners && !expired {
            return Ok(Settled::Nothing);
        }
        // inkstone.task.<tenant>.<lane>.<task>.done
        let mut tokens = end.subject().split('.').skip(2);
        let mut token = || tokens.next().unwrap_or_default();
        let place = TaskRef::parse(token(), token(), token())?;
        // Once, as far as the broker keeps count of its deliveries: one that comes again was seen before, here or elsewhere.
        let owed = expired && end.deliveries() == 1;
        let patience = if owed { PATIENCE } else { Duration::ZERO };
        let Some(submitted) = self.submitted(&place, patience).await? else {
            // The log has let go of it meanwhile.
            return Ok(Settled::Told);
        };
        if owed {
            self.meter.refund_task(&submitted);
        }
        if !has_listeners(&submitted) {
            return Ok(Settled::Told);
        }
        let TaskRef { tenant, task, .. } = place;
        let Some(record) = self.log.read(&tenant, task).await? else {
            return Ok(Settled::Told);
        };
        let Some(event) = event_of(record.phase()) else {
            return Ok(Settled::Told);
        };
        if let Some(producer) = &record.submitted.producer {
            let outcome = v1::Outcome {
                r#type: event.into(),
                task_id: task.to_string(),
                reference: producer.reference.clone(),
                sequence: producer.sequence,
                at: record.done.as_ref().and_then(|done| done.at),
                result: Some(v1::outcome::Result::Task(record.view())),
            };
            let target = Target {
                tenant: tenant.as_str(),
                json: producer.json,
                proven: true,
            };
            self.outcomes.tell(target, &outcome).await?;
        }
        self.queue_webhook(&record, event).await?;
        Ok(Settled::Told)
    }

    /// How a task was submitted, asked for until the log answers or `patience` has passed.
    async fn submitted(
        &self,
        place: &TaskRef,
        patience: Duration,
    ) -> Result<Option<Submitted>, TaskLogError> {
        let until = Instant::now() + patience;
        loop {
            match self.log.submitted(place).await {
                Err(TaskLogError::Broker(error)) if Instant::now() < until => {
                    tracing::debug!(%error, "asking again for what is given back");
                    tokio::time::sleep(ASK_AGAIN).await;
                }
                answer => return answer,
            }
        }
    }

    async fn queue_webhook(&self, record: &Record, event: TaskEvent) -> Result<(), TaskLogError> {
        let Some(delivery) = delivery(record, event, &self.public_url) else {
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
                self.log.bury(&letter(&delivery, reason)).await
            }
            Err(error) => Err(error.into()),
        }
    }
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

/// What a task's webhook is to be told of its end, if it wants to hear of it.
fn delivery(record: &Record, event: TaskEvent, public_url: &str) -> Option<WebhookDelivery> {
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
        at: Some(at.unwrap_or_else(contract::now)),
    })
}

/// What is kept of a delivery that was given up.
fn letter(delivery: &WebhookDelivery, reason: String) -> DeadLetter {
    DeadLetter {
        task_id: delivery.task_id.clone(),
        tenant: delivery.tenant.clone(),
        code: ErrorCode::Unavailable.to_string(),
        reason,
        at: Some(contract::now()),
        subject: format!("inkstone.webhook.{}", delivery.tenant),
        payload: delivery.encode_to_vec(),
        kind: LetterKind::Webhook.word().to_owned(),
        ..DeadLetter::default()
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU64;

    use contract::TaskId;
    use contract::task::{Cancelled, done};
    use messaging::{BrokerSettings, Puller};
    use nats_server::NatsServer;

    use super::*;
    use crate::meter::{Account, Charge};
    use crate::usage::{DayLimit, Use};

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
            delivery(&record, event, "https://images.example.com")
        };
        let all = told(&[]).unwrap();
        assert!(told(&[TaskEvent::Failed, TaskEvent::Cancelled]).is_some());
        assert!(told(&[TaskEvent::Succeeded]).is_none());
        let body: serde_json::Value = serde_json::from_slice(&all.body).unwrap();
        assert_eq!(body["type"], "task.cancelled");
        assert_eq!(body["data"]["phase"], "cancelled");
        let mut none = record(&[]);
        none.submitted.request = Some(v1::SubmitTask::default());
        assert!(delivery(&none, TaskEvent::Cancelled, "").is_none());
    }

    async fn next(puller: &Puller) -> Delivery {
        loop {
            if let Some(delivery) = puller.pull(1).await.unwrap().pop() {
                return delivery;
            }
        }
    }

    /// Where a task has ended that was charged three pictures, all that a day has.
    struct Bench {
        server: NatsServer,
        broker: Broker,
        notices: Notices,
        ends: Puller,
    }

    impl Bench {
        /// Whether so many pictures more may be charged.
        async fn charge(&self, images: u64) -> bool {
            let account = Account {
                tenant: "acme".parse().unwrap(),
                policy: "prod".to_owned(),
            };
            let limit = DayLimit {
                images: NonZeroU64::new(3),
                pixel_steps: None,
            };
            let ask = Use {
                images,
                pixel_steps: 0,
            };
            let charged = self.notices.meter.charge(&account, limit, ask).await;
            charged.map(Charge::keep).is_ok()
        }
    }

    async fn bench(done: &Done) -> Bench {
        let server = NatsServer::scratch().unwrap();
        let broker = BrokerSettings::new(server.url(), "20s".parse().unwrap());
        let broker = Broker::connect(&broker, "test").await.unwrap();
        let settings: crate::Settings = settings::load(None, &[]).unwrap();
        let log = TaskLog::new(broker.clone());
        log.ensure_streams(&settings.streams).await.unwrap();
        let meter = Arc::new(Meter::open(&broker, crate::meter::now).await.unwrap());
        let submitted = Submitted {
            task_id: TaskId::random().to_string(),
            tenant: "acme".to_owned(),
            lane: "standard-image".to_owned(),
            charged_to: "prod".to_owned(),
            at: Some(contract::now()),
            request: Some(v1::SubmitTask {
                images: 3,
                ..v1::SubmitTask::default()
            }),
            ..Submitted::default()
        };
        log.submit(&submitted).await.unwrap();
        let task = TaskRef::of(&submitted).unwrap();
        log.end(&task, done).await.unwrap();
        let ends = log.ends_of_all(ACK_WAIT).await.unwrap();
        let notices = Notices {
            log,
            outcomes: Outcomes::new(&broker, &settings.notices),
            meter,
            webhooks: broker.queue(exchange::WEBHOOKS),
            public_url: String::new(),
        };
        let bench = Bench {
            server,
            broker,
            notices,
            ends,
        };
        assert!(bench.charge(3).await);
        bench
    }

    /// Whether another task like it may be charged after its end was seen, and one more picture after it was seen again.
    async fn charged_after(done: Done) -> (bool, bool) {
        let bench = bench(&done).await;
        let end = next(&bench.ends).await;
        bench.notices.settle(&end).await.unwrap();
        let first = bench.charge(3).await;
        end.give_back(Duration::ZERO).await.unwrap();
        let end = next(&bench.ends).await;
        bench.notices.settle(&end).await.unwrap();
        (first, bench.charge(1).await)
    }

    #[tokio::test]
    async fn a_task_that_did_not_begin_in_time_is_given_back_once_whoever_ended_it() {
        let expired = deadline::expired(Duration::from_secs(5));
        assert_eq!(charged_after(expired.clone()).await, (true, false));
        let by_a_worker = Done {
            worker: "painter".to_owned(),
            ..expired
        };
        assert_eq!(charged_after(by_a_worker).await, (true, false));
    }

    #[tokio::test]
    async fn a_task_that_did_not_begin_in_time_is_given_back_though_nobody_hears_of_it() {
        let expired = Done {
            without_listeners: true,
            ..deadline::expired(Duration::from_secs(5))
        };
        assert_eq!(charged_after(expired).await, (true, false));
    }

    #[tokio::test]
    async fn an_expired_task_is_given_back_though_the_log_does_not_answer_at_first() {
        let mut bench = bench(&deadline::expired(Duration::from_secs(5))).await;
        let end = next(&bench.ends).await;
        bench.server.kill();
        // From when the client has noticed.
        while !matches!(
            bench.broker.probe().await,
            Err(BrokerError::Unreachable { .. })
        ) {}
        let server = &mut bench.server;
        let back = async { server.restart().unwrap() };
        let (settled, ()) = tokio::join!(bench.notices.settle(&end), back);
        settled.unwrap();
        assert!(bench.charge(3).await);
    }

    #[tokio::test]
    async fn a_task_that_failed_otherwise_stays_charged() {
        let failed = Done {
            outcome: Some(done::Outcome::Failed(contract::task::Failed {
                code: ErrorCode::EngineFailed.to_string(),
                message: String::new(),
            })),
            ..Done::default()
        };
        assert_eq!(charged_after(failed).await, (false, false));
    }

    #[test]
    fn what_has_not_ended_is_no_event() {
        for phase in [TaskPhase::Queued, TaskPhase::Scheduled, TaskPhase::Running] {
            assert_eq!(event_of(phase), None);
        }
    }
}
