//! Submissions over NATS: from the stream INTAKE into the log, and an outcome for each.
//!
//! One durable consumer is shared by all orchestrators. A message is acknowledged only when its task's `submitted` and its outcome are
//! stored, or when it is refused and that is told; until then it comes again, and is the same task again
//! ([`message`] says why). What waits for a limit or for a part of the platform stays in the stream ([`decide`]), within the tenant's
//! share of it, and comes back in turn ([`pace`](crate::pace)); what was let in and charged once is not charged again ([`held`]).

mod decide;
pub mod fuzz;
mod held;
pub(crate) mod message;

use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant, SystemTime};

use aws_lc_rs::digest;
use contract::auth::Receipt;
use contract::auth::authenticate_request::Proof;
use contract::task::{DeadLetter, Listener, Producer};
use contract::v1::{self, TaskEvent};
use contract::{ErrorCode, Failure, TenantId};
use lifecycle::Tasks as ServiceTasks;
use messaging::{Broker, BrokerError, Delivery};
use task_log::{LetterKind, TaskLogError};
use tracing::Instrument as _;

use crate::auth::Auth;
use crate::exchange;
use crate::notices::late::Late;
use crate::notices::{Outcomes, Target, event_of};
use crate::pace::Pace;
use crate::pulled;
use crate::settings::IntakeSettings;
use crate::tasks::Tasks;
use decide::Then;
use held::{Held, Id, Limit};
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
    pub(crate) late: Late,
    pub(crate) settings: IntakeSettings,
    /// Those who wait for a rate, and those who wait for a place among tasks that wait.
    pub(crate) lines: Mutex<Pace<Line>>,
    pub(crate) places: Mutex<Pace<TenantId>>,
    pub(crate) held: Mutex<Held>,
}

/// How far a message came that was not accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Came {
    /// Nobody has shown that it is the tenant's.
    Unproven,
    /// It is, and was charged nothing.
    Proven,
    /// It was charged to this key, and its tenant may have so many waiting.
    Charged(Limit, String),
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
        if let Some(turn) = self.turn(&line).filter(|_| first) {
            count("waits");
            give_back(delivery, turn).await;
            return Ok(());
        }
        let id = (raw.sequence, raw.taken);
        let (failure, came) = match self.accept(id, &message).await {
            Ok((task, existing)) => {
                locked(&self.held).remove(&id);
                locked(&self.places).let_in(&message.tenant);
                count(if existing { "existing" } else { "accepted" });
                let result = v1::outcome::Result::Task(task.clone());
                let accepted = TaskEvent::Accepted;
                self.tell(delivery, &message, true, accepted, result)
                    .await?;
                if existing {
                    self.tell_end(delivery, &message, task).await?;
                }
                return Ok(delivery.ack().await?);
            }
            Err(refused) => refused,
        };
        // By the clock that says when it was published: by one that is ahead, everything would have waited too long.
        let age = self.tasks.log.now().duration_since(delivery.published());
        let (age, tries) = (age.unwrap_or_default(), delivery.deliveries());
        match decide::then(&failure, age, tries, self.settings.max_wait.duration()) {
            Then::Wait(wait) => {
                count("waits");
                if let Came::Charged(limit, _) = came {
                    locked(&self.held).insert(id, limit);
                }
                let now = Instant::now();
                let wait = match failure.code {
                    ErrorCode::TooManyTasks => {
                        let tenant = message.tenant.clone();
                        locked(&self.places).turn_away(tenant, now, wait, !first)
                    }
                    code if decide::is_limit(code) => {
                        locked(&self.lines).turn_away(line, now, wait, !first)
                    }
                    _ => wait,
                };
                tracing::debug!(%failure, ?wait, "a submission waits");
                give_back(delivery, wait).await;
                Ok(())
            }
            Then::Refuse => {
                locked(&self.held).remove(&id);
                self.refuse(delivery, &message, came, failure).await
            }
        }
    }

    /// When it is the turn of one who comes for the first time, where others wait before it.
    fn turn(&self, line: &Line) -> Option<Duration> {
        let now = Instant::now();
        let turn = locked(&self.lines).join(line, now);
        turn.or_else(|| locked(&self.places).join(&line.0, now))
    }

    async fn accept(
        &self,
        (sequence, taken): Id,
        message: &Message,
    ) -> Result<(v1::Task, bool), (Failure, Came)> {
        let charged = locked(&self.held).get(&(sequence, taken));
        // Of one that waits for a place it is known without asking anyone that there is none yet.
        if let Some(limit @ Some(most)) = charged
            && let Some(failure) = self.tasks.waiting.refusal(&message.tenant, most)
        {
            return Err((failure, Came::Charged(limit, String::new())));
        }
        let unproven = |failure| (failure, Came::Unproven);
        let proof = message.proof.clone().map_err(unproven)?;
        if !self.settings.bearer_keys {
            message::refuse_key(&proof).map_err(unproven)?;
        }
        let receipt = Receipt {
            at: Some(since_epoch_as_time(taken).into()),
            claim: format!("{} {sequence} {taken}", exchange::INTAKE),
            tenant: message.tenant.to_string(),
            charged: charged.is_some(),
        };
        let caller = self.auth.authenticate((proof, receipt)).await;
        let caller = caller.map_err(|failure| match failure.code {
            // Said only of a key that was proven, and is the tenant's.
            ErrorCode::RateLimited => (failure, Came::Proven),
            _ => (failure, Came::Unproven),
        })?;
        let policy = caller.policy.as_ref();
        let limit = policy.and_then(|policy| NonZeroU32::new(policy.tasks_waiting?));
        let charged = || Came::Charged(limit, caller.app_key.clone());
        let at_fault = |failure: Failure| (failure, charged());
        let request = message.request.clone().map_err(at_fault)?;
        let producer = producer(message, sequence);
        let submitted = self.tasks.submit_for(&caller, &request, Some(producer));
        let submitted = submitted.await;
        submitted.map_err(|error| at_fault(message.names.tell(error.into())))
    }

    async fn refuse(
        &self,
        delivery: &Delivery,
        message: &Message,
        came: Came,
        failure: Failure,
    ) -> Result<(), TaskLogError> {
        count("refused");
        tracing::debug!(tenant = %message.tenant, %failure, "a submission was refused");
        let proven = came != Came::Unproven;
        // Only of those that are wrong in themselves and show a key of their tenant. Of others there may be any number: they leave no copy.
        if let Came::Charged(_, app_key) = came
            && message.request.as_ref().err() == Some(&failure)
        {
            self.bury(delivery, message, app_key, &failure).await?;
        }
        let result = v1::outcome::Result::Refused(failure.into());
        self.tell(delivery, message, proven, TaskEvent::Refused, result)
            .await?;
        Ok(delivery.ack().await?)
    }

    /// Tells the end of a task that ended before this message of it came, or has it told once it comes, where the log tells it to no producer:
    /// the task was first submitted by another way.
    async fn tell_end(
        &self,
        delivery: &Delivery,
        message: &Message,
        task: v1::Task,
    ) -> Result<(), TaskLogError> {
        let record = self.tasks.log.read(&message.tenant, message.task).await?;
        let told = record.is_none_or(|record| record.submitted.producer.is_some());
        if told {
            return Ok(());
        }
        let Some(end) = event_of(task.phase()) else {
            let listener = Listener {
                tenant: message.tenant.to_string(),
                task_id: task.id,
                producer: Some(producer(message, delivery.sequence())),
            };
            return Ok(self.late.note(&listener).await?);
        };
        let result = v1::outcome::Result::Task(task);
        Ok(self.tell(delivery, message, true, end, result).await?)
    }

    /// `proven`: whether the message is the tenant's for certain.
    async fn tell(
        &self,
        delivery: &Delivery,
        message: &Message,
        proven: bool,
        event: TaskEvent,
        result: v1::outcome::Result,
    ) -> Result<(), BrokerError> {
        let ended_at = match &result {
            v1::outcome::Result::Task(task) if event != TaskEvent::Accepted => task.ended_at,
            _ => None,
        };
        let outcome = v1::Outcome {
            r#type: event.into(),
            task_id: message.task.to_string(),
            reference: message.reference.clone(),
            sequence: delivery.sequence(),
            at: ended_at.or_else(|| Some(self.tasks.log.now().into())),
            result: Some(result),
        };
        let target = Target {
            tenant: message.tenant.as_str(),
            json: message.json,
            proven,
        };
        self.outcomes.tell(target, &outcome).await
    }

    /// Keeps a copy of what is wrong in itself, with the reason.
    async fn bury(
        &self,
        delivery: &Delivery,
        message: &Message,
        app_key: String,
        failure: &Failure,
    ) -> Result<(), TaskLogError> {
        let letter = DeadLetter {
            task_id: message.task.to_string(),
            tenant: message.tenant.to_string(),
            code: failure.code.to_string(),
            reason: failure.message.clone(),
            at: Some(self.tasks.log.now().into()),
            subject: delivery.subject().to_owned(),
            payload: delivery.payload().to_vec(),
            kind: LetterKind::Intake.word().to_owned(),
            app_key,
            headers: message::kept(delivery.headers()),
            ..DeadLetter::default()
        };
        self.tasks.log.bury(&letter).await
    }
}

/// Who is to hear of a message's task: `sequence` is its place in INTAKE.
fn producer(message: &Message, sequence: u64) -> Producer {
    Producer {
        reference: message.reference.clone(),
        sequence,
        json: message.json,
    }
}

fn locked<T>(value: &Mutex<T>) -> MutexGuard<'_, T> {
    // Every change of what is held here leaves it whole.
    value.lock().unwrap_or_else(|e| e.into_inner())
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

fn since_epoch_as_time(nanos: u128) -> SystemTime {
    let nanos = u64::try_from(nanos).unwrap_or(u64::MAX);
    SystemTime::UNIX_EPOCH + Duration::from_nanos(nanos)
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
