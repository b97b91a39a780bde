//! Dead letters, for operators: what was given up is looked at, and tried again or removed.
//!
//! A letter goes when what it asks for is stored, so a try that is cut off is made again; what is made has an identity that comes from
//! the letter, so that made twice it is there once.

pub(crate) mod grpc;
mod page;

use std::collections::HashMap;

use aws_lc_rs::rand;
use contract::task::{Producer, Submitted, WebhookDelivery};
use contract::v1::{self, TaskEvent, TaskPhase};
use contract::{ErrorCode, Failure, TaskId, TenantId};
use messaging::{Broker, Outgoing, WorkQueue};
use prost::Message as _;
use task_log::{
    Found, Letter, LetterId, LetterKind, LetterName, Record, Submission, TaskLogError, TaskRef,
};

use crate::auth::Auth;
use crate::backlog::queue_of;
use crate::error::CallError;
use crate::exchange;
use crate::intake::message::{self, Message, Raw};
use crate::models;
use crate::notices::webhook;
use crate::notices::{Outcomes, Target};
use crate::tasks::Tasks;
use page::place;

/// The use cases.
pub(crate) struct Letters {
    tasks: Tasks,
    auth: Auth,
    outcomes: Outcomes,
    webhooks: WorkQueue,
}

/// What came of another try.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Retried {
    /// The task that was made; none for a webhook.
    pub(crate) task: Option<TaskId>,
    /// Whether an earlier try made it.
    pub(crate) existing: bool,
}

impl Letters {
    pub(crate) fn new(broker: &Broker, tasks: Tasks, auth: Auth, outcomes: Outcomes) -> Self {
        let webhooks = broker.queue(exchange::WEBHOOKS);
        Self {
            tasks,
            auth,
            outcomes,
            webhooks,
        }
    }

    /// One letter.
    pub(crate) async fn get(&self, name: &LetterName) -> Result<Found, CallError> {
        let found = self.find(name).await?;
        found.ok_or_else(|| no_letter(name))
    }

    /// By its place none is found that has a name: a number that is mistaken must not hit it.
    async fn find(&self, name: &LetterName) -> Result<Option<Found>, CallError> {
        match (name, self.tasks.log.letter(name).await?) {
            (LetterName::Place(place), Some(Ok(letter))) => {
                let text = format!("what lies at {place} can be decoded: it is {}", letter.id);
                Err(Failure::invalid("id", text).into())
            }
            (_, found) => Ok(found),
        }
    }

    /// Has what a letter holds tried again, and removes the letter. Of a task's letter that is gone since, it says again what it made: the
    /// first answer may have been lost.
    pub(crate) async fn retry(&self, name: &LetterName) -> Result<Retried, CallError> {
        let (id, letter) = match (name, self.find(name).await?) {
            (LetterName::Id(id), Some(Ok(letter))) => (id, Some(letter)),
            (LetterName::Id(id), None) => (id, None),
            (_, Some(Err(found))) => {
                let (problem, place) = (&found.problem, found.sequence);
                return Err(cannot(&format!(
                    "it cannot be decoded ({problem}); `inkstone dead remove {place}` removes it"
                )));
            }
            (LetterName::Place(_), _) => return Err(no_letter(name)),
        };
        let Some(letter) = letter else {
            let made = match (id.kind(), id.tenant().parse::<TenantId>()) {
                (LetterKind::Task, Ok(tenant)) => self.made(&tenant, again(&tenant, id)).await?,
                _ => None,
            };
            return made.ok_or_else(|| no_letter(name));
        };
        let retried = match id.kind() {
            LetterKind::Task => self.retry_task(&letter).await?,
            LetterKind::Intake => self.retry_submission(&letter).await?,
            LetterKind::Webhook => self.retry_webhook(&letter).await?,
        };
        self.tasks.log.remove_letter(letter.sequence).await?;
        metrics::counter!("inkstone_orchestrator_letters_retried_total", "kind" => word(id.kind()))
            .increment(1);
        tracing::info!(letter = %id, task = ?retried.task, "a dead letter is tried again");
        Ok(retried)
    }

    /// Removes a letter that is of no use any more, and says what it was; `None` when there is no such letter. Another that is written in its
    /// place meanwhile stays.
    pub(crate) async fn remove(&self, name: &LetterName) -> Result<Option<Found>, CallError> {
        let Some(found) = self.find(name).await? else {
            return Ok(None);
        };
        if !self.tasks.log.remove_letter(place(&found)).await? {
            return Ok(None);
        }
        let (kind, code) = match &found {
            Ok(letter) => (word(letter.id.kind()), letter.says.code.as_str()),
            Err(_) => ("undecodable", ""),
        };
        metrics::counter!("inkstone_orchestrator_letters_removed_total", "kind" => kind)
            .increment(1);
        tracing::info!(letter = %name, code, "a dead letter is removed");
        Ok(Some(found))
    }

    /// Submits a failed task again: as it was, on the same version if that is still there. It is the operator's wish, so it is charged to
    /// no limit of its tenant.
    async fn retry_task(&self, letter: &Letter) -> Result<Retried, CallError> {
        let record = self.failed(letter).await?;
        let old = &record.submitted;
        let tenant: TenantId = old.tenant.parse()?;
        let task = again(&tenant, &letter.id);
        if let Some(made) = self.made(&tenant, task).await? {
            return Ok(made);
        }
        let mut request = old.request.clone().unwrap_or_default();
        // By it the first task is known.
        request.idempotency_key.clear();
        let source = request.source.as_ref();
        let now = self.tasks.time().await?;
        self.tasks.inputs.hold(&tenant, source, now).await?;
        let submitted = Submitted {
            task_id: task.to_string(),
            model_version: self.version(old, task)?,
            request: Some(request),
            at: Some(now.into()),
            access_token: access_token()?,
            retry_of: old.task_id.clone(),
            // It is charged to nobody, so nothing is given back.
            charged_to: String::new(),
            ..old.clone()
        };
        let queue = queue_of(&TaskRef::of(&submitted)?);
        // Before it is stored: a task in a queue that nobody knows would wait for ever.
        let announced = self.tasks.backlog.announce(&queue).await;
        announced.map_err(TaskLogError::from)?;
        let stored = self.tasks.intake.submit(&submitted).await?;
        self.tasks.backlog.poke(&queue).await;
        self.tasks.note_deadline(&submitted).await;
        Ok(Retried {
            task: Some(task),
            existing: stored != Submission::Accepted,
        })
    }

    /// What an earlier try made, if this task is there.
    async fn made(&self, tenant: &TenantId, task: TaskId) -> Result<Option<Retried>, CallError> {
        let record = self.tasks.log.read(tenant, task).await?;
        Ok(record.map(|_| Retried {
            task: Some(task),
            existing: true,
        }))
    }

    /// The task of a letter, which failed.
    async fn failed(&self, letter: &Letter) -> Result<Record, CallError> {
        let (tenant, task) = (letter.says.tenant.parse(), letter.says.task_id.parse());
        let (Ok(tenant), Ok(task)) = (tenant, task) else {
            return Err(cannot(
                "it holds a message that could not be read, and names no task",
            ));
        };
        let record = match self.tasks.log.read(&tenant, task).await {
            Err(TaskLogError::Decode { .. }) => {
                return Err(cannot("the task's own record cannot be read"));
            }
            record => record?,
        };
        let gone = || cannot("the log has let go of its task (streams.task_retention)");
        let record = record.ok_or_else(gone)?;
        match record.phase() {
            TaskPhase::Failed => Ok(record),
            TaskPhase::Succeeded => Err(cannot("its task has succeeded")),
            TaskPhase::Cancelled => Err(cannot("its task was cancelled by its caller")),
            _ => {
                let text = "the letter's task has not ended: it may still succeed";
                Err(Failure::new(ErrorCode::NotReady, text).into())
            }
        }
    }

    /// The version that a task had, if there is such a one still; else one as a new task gets it.
    fn version(&self, old: &Submitted, task: TaskId) -> Result<String, CallError> {
        let all = self.tasks.models.all();
        let model = models::find(&all, &old.model);
        let gone = || {
            let text = format!("the model {} is not there any more", old.model);
            Failure::new(ErrorCode::ModelNotFound, text)
        };
        let model = model.ok_or_else(gone)?;
        let same = |version: &&contract::registry::ModelVersion| {
            version.version == old.model_version && version.weight > 0
        };
        let same = model.versions.iter().find(same);
        let version = same.or_else(|| models::choose_version(model, task));
        let version = version.ok_or_else(gone)?;
        Ok(version.version.clone())
    }

    /// Takes a submission in that was proven when it came: what its key may do now decides.
    async fn retry_submission(&self, letter: &Letter) -> Result<Retried, CallError> {
        let says = &letter.says;
        if says.app_key.is_empty() {
            return Err(cannot(
                "it does not say which key it was proven with: an earlier version wrote it",
            ));
        }
        let message = submission(says.subject.as_str(), &says.headers, &says.payload);
        let message = message.ok_or_else(|| cannot("its subject names no tenant"))?;
        let mut request = message.request?;
        if message.reference.is_empty() {
            // Known by its letter, so that it is one however often it is tried.
            request.idempotency_key = format!("letter:{}", letter.id);
        }
        let caller = self.auth.vouch(&says.app_key, &says.tenant).await?;
        let producer = Producer {
            reference: message.reference.clone(),
            sequence: 0,
            json: message.json,
        };
        let submitted = self
            .tasks
            .submit_for(&caller, &request, Some(producer))
            .await;
        let told = |error: CallError| message.names.tell(error.into());
        let (task, existing) = submitted.map_err(told)?;
        let id = task.id.parse()?;
        let outcome = v1::Outcome {
            r#type: TaskEvent::Accepted.into(),
            task_id: task.id.clone(),
            reference: message.reference,
            sequence: 0,
            at: Some(self.tasks.log.now().into()),
            result: Some(v1::outcome::Result::Task(task)),
        };
        let target = Target {
            tenant: &says.tenant,
            json: message.json,
            proven: true,
        };
        let told = self.outcomes.tell(target, &outcome).await;
        told.map_err(TaskLogError::from)?;
        Ok(Retried {
            task: Some(id),
            existing,
        })
    }

    /// Has a webhook told again, with all its time before it.
    async fn retry_webhook(&self, letter: &Letter) -> Result<Retried, CallError> {
        let delivery = WebhookDelivery::decode(&letter.says.payload[..]);
        let delivery = delivery.map_err(|_| cannot("its webhook cannot be read"))?;
        let id = webhook::message_id(&delivery);
        let delivery = WebhookDelivery {
            at: Some(self.tasks.log.now().into()),
            ..delivery
        };
        let message = Outgoing {
            subject: format!("inkstone.webhook.{}", delivery.tenant),
            // Not the one that it had: the broker may remember that, and would drop it.
            id: Some(format!("{id}-letter-{}", letter.sequence)),
            headers: Vec::new(),
            payload: delivery.encode_to_vec().into(),
        };
        match self.webhooks.send(message).await {
            Ok(_) => Ok(Retried::default()),
            Err(messaging::BrokerError::Full { .. }) => {
                let text = "as many webhooks of the tenant wait as may; try again later";
                Err(Failure::unavailable(text, RETRY_AFTER).into())
            }
            Err(error) => Err(TaskLogError::from(error).into()),
        }
    }
}

/// Before a webhook that had no room is tried again.
const RETRY_AFTER: std::time::Duration = std::time::Duration::from_secs(10);

/// The task that a task's letter makes, always the same. No caller's key can be this one: keys hold no control characters.
fn again(tenant: &TenantId, letter: &LetterId) -> TaskId {
    TaskId::derived(tenant, &format!("\0dead letter\0{letter}"))
}

/// As metrics name it.
fn word(kind: LetterKind) -> &'static str {
    match kind {
        LetterKind::Task => "task",
        LetterKind::Intake => "intake",
        LetterKind::Webhook => "webhook",
    }
}

fn access_token() -> Result<String, Failure> {
    let mut random = [0; 16];
    rand::fill(&mut random)
        .map_err(|_| Failure::new(ErrorCode::Internal, "the system's random source failed"))?;
    Ok(hex::encode(random))
}

fn submission(subject: &str, headers: &HashMap<String, String>, payload: &[u8]) -> Option<Message> {
    Message::read(&Raw {
        subject,
        headers: message::as_sent(headers),
        payload,
        // It names the message only where nothing else does, and then the letter does.
        sequence: 0,
        taken: 0,
    })
}

fn no_letter(id: &LetterName) -> CallError {
    let text = format!(
        "there is no dead letter {id}: it never was, has expired, or was tried again or removed"
    );
    Failure::new(ErrorCode::NotFound, text).into()
}

fn cannot(why: &str) -> CallError {
    let text = format!("this letter cannot be tried again: {why}");
    Failure::invalid("id", text).into()
}
