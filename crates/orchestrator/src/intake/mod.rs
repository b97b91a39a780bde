//! Submissions over NATS: from the stream INTAKE into the log, and an outcome for each.
//!
//! One durable consumer is shared by all orchestrators. A message is acknowledged only when its task's `submitted` and its outcome are
//! stored, or when it is refused and that is told; until then it comes again, and is the same task again
//! ([`message`] says why). What waits for a limit or for a part of the platform stays in the stream ([`decide`]), within the tenant's
//! share of it, and comes back in turn ([`pace`](crate::pace)).

mod decide;
pub mod fuzz;
mod message;

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use aws_lc_rs::digest;
use contract::auth::authenticate_request::Proof;
use contract::task::{DeadLetter, Producer};
use contract::v1::{self, TaskEvent};
use contract::{ErrorCode, Failure, TenantId};
use lifecycle::Tasks as ServiceTasks;
use messaging::{Broker, BrokerError, Delivery};
use task_log::TaskLogError;
use tracing::Instrument as _;

use crate::auth::Auth;
use crate::exchange;
use crate::notices::{Outcomes, Target};
use crate::pace::Pace;
use crate::pulled;
use crate::settings::IntakeSettings;
use crate::tasks::Tasks;
use decide::Then;
use message::{Message, Raw};

/// The consumer that all orchestrators share.
const CONSUMER: &str = "intake";
/// Before a message is seen again whose outcome could not be stored.
const GIVE_BACK: Duration = Duration::from_secs(2);

/// Takes submissions in.
pub(crate) struct Intake {
    pub(crate) tasks: Tasks,
    pub(crate) auth: Auth,
    pub(crate) outcomes: Outcomes,
    pub(crate) settings: IntakeSettings,
    pub(crate) lines: Mutex<Pace<Line>>,
}

/// Those who wait for one limit: a tenant's, by what it shows of its key.
pub(crate) type Line = (TenantId, [u8; 8]);

/// Starts to take them in.
///
/// # Errors
/// When the consumer cannot be opened.
pub(crate) async fn start(
    service: &ServiceTasks,
    broker: &Broker,
    intake: Intake,
) -> Result<(), BrokerError> {
    let settings = &intake.settings;
    let queue = broker.queue(exchange::INTAKE);
    // As many may be out as the stream holds: those of one tenant that wait for its limit must not keep others' from coming.
    let most = i64::from(settings.max_messages);
    let (filter, ack_wait) = ("inkstone.intake.*", settings.ack_wait.duration());
    let puller = queue.puller(CONSUMER, filter, ack_wait, most).await?;
    let at_once = settings.max_concurrent as usize;
    let intake = Arc::new(intake);
    pulled::start(service, "intake", puller, at_once, move |delivery| {
        let intake = intake.clone();
        async move { intake.handle(&delivery).await }
    });
    Ok(())
}

impl Intake {
    async fn handle(&self, delivery: &Delivery) {
        let span = tracing::info_span!("intake", sequence = delivery.sequence());
        delivery.continue_trace(&span);
        let settled = delivery
            .heartbeat(self.settle(delivery))
            .instrument(span)
            .await;
        if let Err(error) = settled {
            let error = lifecycle::chain(&error);
            tracing::warn!(error, "a submission comes again");
            give_back(delivery, GIVE_BACK).await;
        }
    }

    /// Brings a message to where it can be acknowledged, or gives it back.
    async fn settle(&self, delivery: &Delivery) -> Result<(), TaskLogError> {
        let raw = Raw {
            subject: delivery.subject(),
            headers: delivery.headers().collect(),
            payload: delivery.payload(),
            sequence: delivery.sequence(),
            taken: since_epoch(delivery.published()).as_nanos(),
        };
        let Some(message) = Message::read(&raw) else {
            // Nobody's, so nobody hears, and no copy is kept: whoever shows no key must not push out others' letters.
            count("refused");
            tracing::debug!(
                subject = raw.subject,
                "a message names no tenant in its subject"
            );
            return Ok(delivery.ack().await?);
        };
        let line = (message.tenant.clone(), fingerprint(&message.proof));
        let first = delivery.deliveries() <= 1;
        let turn = first.then(|| self.lines().join(&line, Instant::now()));
        if let Some(turn) = turn.flatten() {
            count("waits");
            give_back(delivery, turn).await;
            return Ok(());
        }
        let failure = match self.accept(delivery, &message).await {
            Ok((task, existing)) => {
                count(if existing { "existing" } else { "accepted" });
                let result = v1::outcome::Result::Task(task);
                self.tell(delivery, &message, TaskEvent::Accepted, result)
                    .await?;
                return Ok(delivery.ack().await?);
            }
            Err(failure) => failure,
        };
        let age = SystemTime::now().duration_since(delivery.published());
        let (age, tries) = (age.unwrap_or_default(), delivery.deliveries());
        match decide::then(&failure, age, tries, self.settings.max_wait.duration()) {
            Then::Wait(wait) => {
                count("waits");
                let wait = if decide::is_limit(failure.code) {
                    self.lines().turn_away(line, Instant::now(), wait, !first)
                } else {
                    wait
                };
                tracing::debug!(%failure, ?wait, "a submission waits");
                give_back(delivery, wait).await;
                Ok(())
            }
            Then::Refuse => self.refuse(delivery, &message, failure).await,
        }
    }

    async fn accept(
        &self,
        delivery: &Delivery,
        message: &Message,
    ) -> Result<(v1::Task, bool), Failure> {
        let proof = message.proof.clone()?;
        let taken = delivery.published();
        let claim = format!(
            "{} {} {}",
            exchange::INTAKE,
            delivery.sequence(),
            since_epoch(taken).as_nanos()
        );
        let caller = self.auth.authenticate(proof, taken, claim).await?;
        if caller.tenant != message.tenant.as_str() {
            let text = "the key is not of the tenant that the subject names";
            return Err(Failure::new(ErrorCode::PermissionDenied, text));
        }
        let request = message.request.clone()?;
        let producer = Producer {
            reference: message.reference.clone(),
            sequence: delivery.sequence(),
            json: message.json,
        };
        let submitted = self.tasks.submit_for(&caller, &request, Some(producer));
        Ok(submitted.await?)
    }

    async fn refuse(
        &self,
        delivery: &Delivery,
        message: &Message,
        failure: Failure,
    ) -> Result<(), TaskLogError> {
        count("refused");
        tracing::debug!(tenant = %message.tenant, %failure, "a submission was refused");
        // Only of those that are wrong in themselves and show a key of their tenant. Of others there may be any number: they leave no copy.
        if message.request.as_ref().err() == Some(&failure) {
            self.bury(delivery, Some(message), &failure).await?;
        }
        let result = v1::outcome::Result::Refused(failure.into());
        self.tell(delivery, message, TaskEvent::Refused, result)
            .await?;
        Ok(delivery.ack().await?)
    }

    async fn tell(
        &self,
        delivery: &Delivery,
        message: &Message,
        event: TaskEvent,
        result: v1::outcome::Result,
    ) -> Result<(), BrokerError> {
        let outcome = v1::Outcome {
            r#type: event.into(),
            task_id: message.task.to_string(),
            reference: message.reference.clone(),
            sequence: delivery.sequence(),
            at: Some(contract::now()),
            result: Some(result),
        };
        let target = Target {
            tenant: message.tenant.as_str(),
            json: message.json,
        };
        self.outcomes.tell(target, &outcome).await
    }

    /// Keeps a copy of what could not be read, with the reason.
    async fn bury(
        &self,
        delivery: &Delivery,
        message: Option<&Message>,
        failure: &Failure,
    ) -> Result<(), TaskLogError> {
        let known = message.map(|message| (message.tenant.to_string(), message.task.to_string()));
        let nobody = || ("unknown".to_owned(), delivery.sequence().to_string());
        let (tenant, task_id) = known.unwrap_or_else(nobody);
        let letter = DeadLetter {
            task_id,
            tenant,
            code: failure.code.to_string(),
            reason: failure.message.clone(),
            at: Some(contract::now()),
            subject: delivery.subject().to_owned(),
            payload: delivery.payload().to_vec(),
            kind: "intake".to_owned(),
            ..DeadLetter::default()
        };
        self.tasks.log.bury(&letter).await
    }

    fn lines(&self) -> std::sync::MutexGuard<'_, Pace<Line>> {
        // Every change of the lines leaves them whole.
        self.lines.lock().unwrap_or_else(|e| e.into_inner())
    }
}

async fn give_back(delivery: &Delivery, wait: Duration) {
    if let Err(error) = delivery.give_back(wait).await {
        tracing::debug!(%error, "a submission comes back after its ack wait");
    }
}

fn since_epoch(time: SystemTime) -> Duration {
    time.duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default()
}

/// What tells one key's messages from another's before anyone has verified them.
fn fingerprint(proof: &Result<Proof, Failure>) -> [u8; 8] {
    let shown = match proof {
        Ok(Proof::Bearer(text)) => text,
        Ok(Proof::SignatureV1(signature)) => &signature.app_key,
        Ok(Proof::SignatureV2(signature)) => &signature.app_key,
        Err(_) => "",
    };
    let digest = digest::digest(&digest::SHA256, shown.as_bytes());
    let mut first = [0; 8];
    first.copy_from_slice(&digest.as_ref()[..8]);
    first
}

fn count(outcome: &'static str) {
    metrics::counter!("inkstone_orchestrator_intake_total", "outcome" => outcome).increment(1);
}
