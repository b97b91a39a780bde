//! Deliveries of webhooks: each is a signed POST (Standard Webhooks) of a message that lies in WEBHOOKS until its receiver has taken it, or
//! it is given up with a letter in DEAD.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use aws_lc_rs::rand;
use bytes::Bytes;
use contract::auth::SignWebhookRequest;
use contract::task::WebhookDelivery;
use contract::words::{EVENTS, word};
use contract::{ErrorCode, Failure};
use egress::{Egress, EgressError};
use http::{HeaderMap, HeaderName, HeaderValue, header};
use lifecycle::Tasks as ServiceTasks;
use messaging::{Broker, BrokerError, Delivery};
use prost::Message as _;
use task_log::{TaskLog, TaskLogError};

use super::busy::Busy;
use super::{letter, retry};
use crate::auth::Auth;
use crate::exchange;
use crate::pace::Pace;
use crate::pulled;
use crate::settings::WebhookSettings;

const CONSUMER: &str = "webhooks";
const ID: HeaderName = HeaderName::from_static("webhook-id");
const TIMESTAMP: HeaderName = HeaderName::from_static("webhook-timestamp");
const SIGNATURE: HeaderName = HeaderName::from_static("webhook-signature");
/// How long a delivery may be silent beyond what its request may take.
const ACK_WAIT_MORE: Duration = Duration::from_secs(20);
/// Before a delivery is tried again for which a part of ours was not there.
const OURS_AGAIN: Duration = Duration::from_secs(5);
/// Between two of a tenant's that wait for one of its places.
const TURN: Duration = Duration::from_millis(20);

/// Carries deliveries out.
pub(crate) struct Deliverer {
    pub(crate) log: TaskLog,
    pub(crate) auth: Auth,
    pub(crate) egress: Egress,
    pub(crate) settings: WebhookSettings,
    pub(crate) busy: Busy,
    pub(crate) lines: Mutex<Pace<String>>,
}

/// What came of an attempt.
#[derive(Debug, PartialEq, Eq)]
enum Attempt {
    /// The receiver has it, or wants no more.
    Over(&'static str),
    /// The receiver did not take it, and why; it may have asked for time.
    NotNow(String, Option<Duration>),
    /// A part of ours did not do its part.
    Ours(Failure),
    /// It can never be delivered.
    Never(String),
}

/// What all attempts of a delivery are known by.
pub(crate) fn message_id(delivery: &WebhookDelivery) -> String {
    // A dot would part what is signed.
    let event = word(EVENTS, delivery.event()).unwrap_or_default();
    format!("{}-{}", delivery.task_id, event.replace('.', "-"))
}

/// Starts to deliver.
///
/// # Errors
/// When the consumer cannot be opened.
pub(crate) async fn start(
    service: &ServiceTasks,
    broker: &Broker,
    deliverer: Deliverer,
) -> Result<(), BrokerError> {
    let settings = &deliverer.settings;
    let ack_wait = settings.timeout.duration() + ACK_WAIT_MORE;
    // All that wait may be out: those of one tenant must not keep others' from coming.
    let most = i64::from(settings.max_waiting);
    let queue = broker.queue(exchange::WEBHOOKS);
    let puller = queue.puller(CONSUMER, "inkstone.webhook.*", ack_wait, most);
    let puller = puller.await?;
    let at_once = settings.max_concurrent as usize;
    let deliverer = Arc::new(deliverer);
    pulled::start(service, "webhooks", puller, at_once, move |message| {
        let deliverer = deliverer.clone();
        async move { deliverer.handle(&message).await }
    });
    Ok(())
}

impl Deliverer {
    async fn handle(&self, message: &Delivery) {
        let settled = message.heartbeat(self.settle(message)).await;
        if let Err(error) = settled {
            let error = lifecycle::chain(&error);
            tracing::warn!(error, "a webhook comes again");
            give_back(message, OURS_AGAIN).await;
        }
    }

    async fn settle(&self, message: &Delivery) -> Result<(), TaskLogError> {
        let Ok(delivery) = WebhookDelivery::decode(message.payload().clone()) else {
            // Only we write there.
            tracing::error!("a delivery cannot be decoded");
            return Ok(message.ack().await?);
        };
        let host = self.egress.check_url(&delivery.url);
        let host = host.map(|url| url.host_str().unwrap_or_default().to_owned());
        let attempt = match host {
            Err(error) => Attempt::Never(error.to_string()),
            Ok(host) => {
                let most = self.settings.max_per_tenant;
                let Some(_places) = self.busy.take(&delivery.tenant, &host, most) else {
                    let now = Instant::now();
                    let tenant = delivery.tenant.clone();
                    let turn = self.lines().turn_away(tenant, now, TURN, false);
                    give_back(message, turn).await;
                    return Ok(());
                };
                self.attempt(&delivery).await
            }
        };
        self.conclude(message, &delivery, attempt).await
    }

    async fn conclude(
        &self,
        message: &Delivery,
        delivery: &WebhookDelivery,
        attempt: Attempt,
    ) -> Result<(), TaskLogError> {
        let ended = delivery.at.and_then(|at| SystemTime::try_from(at).ok());
        let ended = ended.unwrap_or_else(|| message.published());
        // By the clock that says when it ended: by one that is ahead, it would be given up at its first failure.
        let age = self.log.now().duration_since(ended).unwrap_or_default();
        let pauses = self.settings.pauses();
        let give_up_after = self.settings.give_up_after.duration();
        let task = &delivery.task_id;
        let (reason, wait) = match attempt {
            Attempt::Over(outcome) => {
                count(outcome);
                return Ok(message.ack().await?);
            }
            Attempt::Ours(failure) => {
                tracing::warn!(task, %failure, "a webhook waits");
                let wait = (age < give_up_after).then_some(OURS_AGAIN);
                (failure.to_string(), wait)
            }
            Attempt::NotNow(reason, asked) => {
                let wait = retry::pause(age, &pauses, give_up_after, asked, random());
                (reason, wait)
            }
            Attempt::Never(reason) => (reason, None),
        };
        if let Some(wait) = wait {
            count("again");
            tracing::info!(
                task,
                reason,
                ?wait,
                "a webhook did not take its message; it is told again"
            );
            give_back(message, wait).await;
            return Ok(());
        }
        count("given_up");
        tracing::warn!(task, reason, "a webhook was given up; see DEAD");
        let letter = letter(delivery, reason, self.log.now());
        self.log.bury(&letter).await?;
        Ok(message.ack().await?)
    }

    async fn attempt(&self, delivery: &WebhookDelivery) -> Attempt {
        let now = self.log.now().duration_since(UNIX_EPOCH);
        let now = now.map_or(0, |now| now.as_secs());
        let id = message_id(delivery);
        let request = SignWebhookRequest {
            app_key: delivery.app_key.clone(),
            tenant: delivery.tenant.clone(),
            message_id: id.clone(),
            timestamp: i64::try_from(now).unwrap_or(i64::MAX),
            body: delivery.body.clone(),
        };
        let signature = match self.auth.sign_webhook(request).await {
            Ok(signature) => signature,
            Err(failure) if failure.code == ErrorCode::NotFound => {
                return Attempt::Never("its key is no longer there to sign it".to_owned());
            }
            Err(failure) => return Attempt::Ours(failure),
        };
        let Some(headers) = headers(&id, now, &signature) else {
            return Attempt::Never("its headers cannot be sent".to_owned());
        };
        let body = Bytes::copy_from_slice(&delivery.body);
        let timeout = self.settings.timeout.duration();
        let answer = self.egress.post(&delivery.url, headers, body, timeout);
        match answer.await {
            Ok(answer) => match retry::read(answer.status) {
                retry::Answer::Taken => Attempt::Over("taken"),
                retry::Answer::Gone => Attempt::Over("gone"),
                retry::Answer::NotNow => {
                    let reason = format!("the last answer was {}", answer.status);
                    Attempt::NotNow(reason, answer.retry_after)
                }
            },
            Err(
                error
                @ (EgressError::Off | EgressError::Url { .. } | EgressError::NotPublic { .. }),
            ) => Attempt::Never(error.to_string()),
            Err(error) => Attempt::NotNow(error.to_string(), None),
        }
    }

    fn lines(&self) -> std::sync::MutexGuard<'_, Pace<String>> {
        // Every change of the lines leaves them whole.
        self.lines.lock().unwrap_or_else(|e| e.into_inner())
    }
}

fn headers(id: &str, now: u64, signature: &str) -> Option<HeaderMap> {
    let mut headers = HeaderMap::new();
    let json = HeaderValue::from_static("application/json");
    headers.insert(header::CONTENT_TYPE, json);
    headers.insert(ID, HeaderValue::from_str(id).ok()?);
    headers.insert(TIMESTAMP, now.into());
    headers.insert(SIGNATURE, HeaderValue::from_str(signature).ok()?);
    Some(headers)
}

async fn give_back(message: &Delivery, wait: Duration) {
    if let Err(error) = message.give_back(wait).await {
        tracing::debug!(%error, "a webhook comes back after its ack wait");
    }
}

/// Spread, not secrecy: without randomness all wait equally long.
fn random() -> u8 {
    let mut byte = [0];
    let _ = rand::fill(&mut byte);
    byte[0]
}

fn count(outcome: &'static str) {
    metrics::counter!("inkstone_orchestrator_webhooks_total", "outcome" => outcome).increment(1);
}

#[cfg(test)]
mod tests {
    use contract::v1::TaskEvent;

    use super::*;

    #[test]
    fn every_attempt_of_an_end_has_the_same_id_without_a_dot() {
        let delivery = WebhookDelivery {
            task_id: "t".to_owned(),
            event: TaskEvent::Succeeded.into(),
            ..WebhookDelivery::default()
        };
        assert_eq!(message_id(&delivery), "t-task-succeeded");
        assert_eq!(headers("t-task-succeeded", 1, "v1,x").unwrap().len(), 4);
    }
}
