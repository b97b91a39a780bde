//! How a task is made: what is asked of a submission, what it is charged, and that it is stored.

use std::num::NonZeroU32;
use std::time::{Duration, SystemTime};

use aws_lc_rs::{digest, rand};
use contract::auth::{Caller, Policy};
use contract::task::{Producer, Submitted};
use contract::v1::{self, SubmitTask};
use contract::{ErrorCode, Failure, TaskId, TenantId};
use egress::EgressError;
use prost::Message as _;
use task_log::{Queue, Record, Submission, TaskLogError, TaskRef, deadline};

use super::Tasks;
use crate::admit;
use crate::allowed::{Allowed, InDoubt};
use crate::backlog::queue_of;
use crate::error::CallError;
use crate::meter::{Account, Attempt, Charge};
use crate::models;
use crate::usage::{DayLimit, Use};

/// How long callers are asked to wait when a part that tasks need is down.
const RETRY_AFTER: Duration = Duration::from_secs(5);
/// The same of a model of which no version takes tasks: it is an operator who lets one take them again.
const NO_VERSION_WAIT: Duration = Duration::from_secs(30);

impl Tasks {
    /// Whether a task would be made, as far as its request and the caller's policy tell. Nothing is stored.
    pub(crate) fn check(&self, caller: &Caller, request: &SubmitTask) -> Result<(), CallError> {
        self.admit(caller, request)?;
        self.check_health()
    }

    /// Makes a task (invariant I1). True beside it when the same submission made it before.
    pub(crate) async fn submit(
        &self,
        caller: &Caller,
        request: &SubmitTask,
    ) -> Result<(v1::Task, bool), CallError> {
        self.submit_for(caller, request, None).await
    }

    /// The same; a producer hears of the task's end.
    pub(crate) async fn submit_for(
        &self,
        caller: &Caller,
        request: &SubmitTask,
        producer: Option<Producer>,
    ) -> Result<(v1::Task, bool), CallError> {
        let mut submitted = Submitted {
            producer,
            ..self.admit(caller, request)?
        };
        self.check_webhook(request)?;
        // Checked last, so that a bad request hears what is wrong with it whatever the platform's state.
        self.check_health()?;
        let now = self.time().await?;
        submitted.at = Some(now.into());
        // What few submissions need is in boxes: each of them would be as large as all that any of them may need.
        if request.source.is_some() {
            Box::pin(self.hold_source(&submitted, request, now)).await?;
        }
        let none = Policy::default();
        let policy = caller.policy.as_ref().unwrap_or(&none);
        let keyed = !request.idempotency_key.is_empty();
        let allowed = match Box::pin(self.allow(&submitted, policy, keyed)).await {
            Ok(allowed) => allowed,
            // Whoever asks again for what was accepted asks for nothing new.
            Err(refused) => {
                return match Box::pin(self.existing(&submitted, keyed)).await? {
                    Some(record) => Ok((self.waits.view(&record).await, true)),
                    None => Err(refused),
                };
            }
        };
        // What it is given back on: the day may have turned since it was dated.
        submitted.charged_day = allowed.charge.as_ref().map_or(0, Charge::day);
        self.store(submitted, allowed).await
    }

    /// Stores what is allowed, or finds the task that the same submission made before: true beside it then. What was allowed is given back where
    /// it made none.
    async fn store(
        &self,
        submitted: Submitted,
        allowed: Allowed<'_>,
    ) -> Result<(v1::Task, bool), CallError> {
        let place = TaskRef::of(&submitted)?;
        let queue = queue_of(&place);
        // Before it is stored: a task in a queue that nobody knows would wait for ever.
        let announced = self.backlog.announce(&queue).await;
        announced.map_err(TaskLogError::from)?;
        // From here on the task may be there, whatever is heard of it: an answer may be lost, and a caller may not wait for one.
        let in_doubt = InDoubt::new(allowed);
        let existing = match self.intake.submit(&submitted).await {
            Ok(Submission::Accepted) => {
                in_doubt.made();
                let task = self.accepted(submitted, &place, &queue).await;
                return Ok((task, false));
            }
            Ok(Submission::Existing(existing)) => {
                in_doubt.not_made();
                existing
            }
            Err(error) => {
                // Or each try of a caller would be charged while the broker is away.
                if error.is_not_stored() {
                    in_doubt.not_made();
                }
                return Err(error.into());
            }
        };
        same_request(&existing, &submitted)?;
        let record = Box::pin(self.read(&existing.tenant, &existing.task_id)).await?;
        Ok((Box::pin(self.waits.view(&record)).await, true))
    }

    /// What is said of a task that was stored just now, and told to those who do something about it.
    async fn accepted(&self, submitted: Submitted, place: &TaskRef, queue: &Queue) -> v1::Task {
        // Before it counts itself.
        let before = self.waits.length(place);
        metrics::counter!("inkstone_orchestrator_submitted_total").increment(1);
        // It is in the log, in the audit chain and in the metrics: a line for each would cost as much as all else that is done here.
        tracing::debug!(
            task = submitted.task_id,
            tenant = submitted.tenant,
            "accepted"
        );
        let record = Record {
            submitted,
            state: None,
            state_sequence: 0,
            last_sequence: 0,
            done: None,
            feedback: None,
            sequence: 0,
        };
        // At once, so that it does not wait for the answer of who is asked.
        let view = self.waits.view_new(&record, before);
        let noted = self.note_deadline(&record.submitted);
        let (task, (), ()) = futures::join!(view, self.backlog.poke(queue), noted);
        task
    }

    /// Notes by when a task that is stored must have begun. Where that fails its end comes late, when its queue has come to it.
    pub(crate) async fn note_deadline(&self, submitted: &Submitted) {
        if deadline::deadline(submitted).is_none() {
            return;
        }
        if let Err(error) = Box::pin(self.log.note_deadline(submitted)).await {
            let (task, error) = (&submitted.task_id, lifecycle::chain(&error));
            tracing::warn!(task, error, "its deadline is not noted");
        }
    }

    /// Whether a webhook could be told, as far as its URL says.
    fn check_webhook(&self, request: &SubmitTask) -> Result<(), Failure> {
        let Some(webhook) = &request.webhook else {
            return Ok(());
        };
        let checked = self.egress.check_url(&webhook.url);
        checked.map(drop).map_err(|error| {
            let text = match error {
                EgressError::Url { problem } => format!("webhook.url {problem}"),
                error => format!("webhook.url: {error}"),
            };
            Failure::invalid("webhook", text)
        })
    }

    fn check_health(&self) -> Result<(), CallError> {
        let Some(problem) = self.health.problem() else {
            return Ok(());
        };
        tracing::warn!(problem, "a submission was refused");
        let text = "pictures cannot be made just now; try again";
        Err(Failure::unavailable(text, RETRY_AFTER).into())
    }

    /// Lets what the task begins from stay. A task that is there already has what it needed, even if that is gone now.
    async fn hold_source(
        &self,
        submitted: &Submitted,
        request: &SubmitTask,
        now: SystemTime,
    ) -> Result<(), CallError> {
        let tenant: TenantId = submitted.tenant.parse()?;
        let held = self.inputs.hold(&tenant, request.source.as_ref(), now);
        let held = held.await;
        let Err(failure) = held else { return Ok(()) };
        let keyed = !request.idempotency_key.is_empty();
        if keyed
            && self
                .log
                .read(&tenant, submitted.task_id.parse()?)
                .await?
                .is_some()
        {
            return Ok(());
        }
        Err(failure.into())
    }

    /// What the caller's policy allows at once and in a day: a place among the tasks that wait, and the day's charge. Both are given
    /// back if the task is not made.
    async fn allow(
        &self,
        submitted: &Submitted,
        policy: &Policy,
        keyed: bool,
    ) -> Result<Allowed<'_>, CallError> {
        let tenant: TenantId = submitted.tenant.parse()?;
        let place = match policy.tasks_waiting.and_then(NonZeroU32::new) {
            Some(limit) => Some(self.waiting.enter(&tenant, limit).await?),
            None => None,
        };
        let attempt = keyed.then(|| Attempt::of(submitted));
        let limit = DayLimit::of(policy);
        let charge = if limit.is_none() {
            None
        } else {
            let ask = submitted.request.as_ref().map(Use::of);
            let policy = policy.name.clone();
            let account = Account { tenant, policy };
            let ask = ask.unwrap_or_default();
            self.charge(&account, limit, ask, attempt.as_ref()).await?
        };
        Ok(Allowed {
            place,
            charge,
            attempt,
        })
    }

    /// Charges an account for an attempt; nothing where an earlier one of the same task was charged, and may not have been stored, and the day has no
    /// more.
    async fn charge(
        &self,
        account: &Account,
        limit: DayLimit,
        ask: Use,
        attempt: Option<&Attempt>,
    ) -> Result<Option<Charge>, CallError> {
        let refused = match self.meter.charge(account, limit, ask).await {
            Ok(charge) => return Ok(Some(charge)),
            Err(refused) => refused,
        };
        if let Some(attempt) = attempt
            && refused.code == ErrorCode::QuotaExceeded
            && Box::pin(self.meter.join(account, ask, attempt)).await?
        {
            return Ok(None);
        }
        Err(refused.into())
    }

    /// The task that this submission made before, if it names itself and has.
    async fn existing(
        &self,
        submitted: &Submitted,
        keyed: bool,
    ) -> Result<Option<Record>, CallError> {
        if !keyed {
            return Ok(None);
        }
        let (tenant, task) = (submitted.tenant.parse()?, submitted.task_id.parse()?);
        let record = self.log.read(&tenant, task).await?;
        if let Some(record) = &record {
            same_request(&record.submitted, submitted)?;
        }
        Ok(record)
    }

    /// The event that would make the task, but for when.
    fn admit(&self, caller: &Caller, request: &SubmitTask) -> Result<Submitted, CallError> {
        let tenant: TenantId = caller.tenant.parse()?;
        let none = Policy::default();
        let policy = caller.policy.as_ref().unwrap_or(&none);
        let known = self.models.all();
        if known.is_empty() {
            let text = "the models are not known just now; try again";
            return Err(Failure::unavailable(text, RETRY_AFTER).into());
        }
        let routed = admit::routed(&known, request, policy, &self.settings.routes);
        let (model, pinned) = match routed {
            Some(target) => target,
            None => {
                let default = &self.settings.default_model;
                let model = admit::choose_model(&known, &request.model, default, policy)?;
                (model, None)
            }
        };
        let task = match request.idempotency_key.as_str() {
            "" => TaskId::random(),
            key => TaskId::derived(&tenant, key),
        };
        let version = pinned.or_else(|| models::choose_version(model, task));
        let version = version.ok_or_else(|| {
            let name = admit::shown_as(model, &request.model, policy);
            let text = format!("the model {name} takes no tasks at present");
            Failure::unavailable(text, NO_VERSION_WAIT)
        })?;
        admit::check_source(&tenant, request)?;
        let profile = version.profile.unwrap_or_default();
        let mut random = [0; 20];
        rand::fill(&mut random)
            .map_err(|_| Failure::new(ErrorCode::Internal, "the system's random source failed"))?;
        let (token, seed) = random.split_at(16);
        // 32 bits: what every client can hold in a JSON number, and as many pictures as anyone compares.
        let seed = u64::from(u32::from_be_bytes([seed[0], seed[1], seed[2], seed[3]]));
        let full = admit::normalise(request, model, &profile, policy, seed)?;
        Ok(Submitted {
            task_id: task.to_string(),
            tenant: tenant.to_string(),
            app_key: caller.app_key.clone(),
            lane: admit::lane(&full, policy, &self.settings).to_string(),
            request: Some(full),
            request_digest: digest::digest(&digest::SHA256, &request.encode_to_vec())
                .as_ref()
                .to_vec(),
            model: model.name.clone(),
            model_version: version.version.clone(),
            at: None,
            access_token: hex::encode(token),
            producer: None,
            tasks_running: policy.tasks_running.unwrap_or(0),
            retry_of: String::new(),
            charged_to: match DayLimit::of(policy).is_none() {
                true => String::new(),
                false => policy.name.clone(),
            },
            charged_day: 0,
        })
    }
}

fn same_request(existing: &Submitted, submitted: &Submitted) -> Result<(), CallError> {
    if existing.request_digest == submitted.request_digest {
        return Ok(());
    }
    let text = "this idempotency key was used for another request";
    Err(Failure {
        field: Some("idempotency_key".to_owned()),
        ..Failure::new(ErrorCode::IdempotencyConflict, text)
    }
    .into())
}
