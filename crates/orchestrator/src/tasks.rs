//! What callers can do with tasks: submit, get, cancel, list, watch, find pictures.

use std::sync::Arc;

use aws_lc_rs::{constant_time, digest, rand};
use contract::auth::Caller;
use contract::limits::{DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE};
use contract::task::{Cancelled, Done, StoredImage, Submitted, done};
use contract::v1::{self, SubmitTask, TaskPhase};
use contract::{ErrorCode, Failure, TaskId, TenantId};
use lifecycle::Health;
use prost::Message as _;
use task_log::{Ended, Intake, Record, Submission, TaskLog, Watch};

use crate::admit;
use crate::error::{CallError, task_not_found};
use crate::models::{self, Models};
use crate::settings::SchedulingSettings;

/// How long callers are asked to wait when a part that tasks need is down.
const RETRY_AFTER: std::time::Duration = std::time::Duration::from_secs(5);

/// The use cases. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Tasks {
    pub(crate) log: TaskLog,
    pub(crate) intake: Intake,
    pub(crate) models: Models,
    pub(crate) health: Health,
    pub(crate) settings: Arc<SchedulingSettings>,
}

impl Tasks {
    /// Makes a task (invariant I1). True beside it when the same submission made it before.
    pub(crate) async fn submit(
        &self,
        caller: &Caller,
        request: &SubmitTask,
    ) -> Result<(v1::Task, bool), CallError> {
        let submitted = self.admit(caller, request)?;
        // Checked last, so that a bad request hears what is wrong with it whatever the platform's state.
        if let Some(problem) = self.health.problem() {
            tracing::warn!(problem, "a submission was refused");
            let text = "pictures cannot be made just now; try again";
            return Err(Failure::unavailable(text, RETRY_AFTER).into());
        }
        let existing = match self.intake.submit(&submitted).await? {
            Submission::Accepted => {
                metrics::counter!("inkstone_orchestrator_submitted_total").increment(1);
                tracing::info!(
                    task = submitted.task_id,
                    tenant = submitted.tenant,
                    "accepted"
                );
                let record = Record {
                    submitted,
                    state: None,
                    done: None,
                };
                return Ok((record.view(), false));
            }
            Submission::Existing(existing) => existing,
        };
        if existing.request_digest != submitted.request_digest {
            let text = "this idempotency key was used for another request";
            return Err(Failure {
                field: Some("idempotency_key".to_owned()),
                ..Failure::new(ErrorCode::IdempotencyConflict, text)
            }
            .into());
        }
        let record = self.read(&existing.tenant, &existing.task_id).await?;
        Ok((record.view(), true))
    }

    /// The event that would make the task.
    fn admit(&self, caller: &Caller, request: &SubmitTask) -> Result<Submitted, CallError> {
        let tenant: TenantId = caller.tenant.parse()?;
        let policy = caller.policy.clone().unwrap_or_default();
        let known = self.models.all();
        if known.is_empty() {
            let text = "the models are not known just now; try again";
            return Err(Failure::unavailable(text, RETRY_AFTER).into());
        }
        let default = &self.settings.default_model;
        let model = admit::choose_model(&known, &request.model, default, &policy)?;
        let task = match request.idempotency_key.as_str() {
            "" => TaskId::random(),
            key => TaskId::derived(&tenant, key),
        };
        let version = models::choose_version(model, task).ok_or_else(|| {
            let text = format!("the model {} takes no tasks at present", model.name);
            Failure::unavailable(text, RETRY_AFTER)
        })?;
        admit::check_source(&tenant, request)?;
        let profile = version.profile.unwrap_or_default();
        let mut random = [0; 20];
        rand::fill(&mut random)
            .map_err(|_| Failure::new(ErrorCode::Internal, "the system's random source failed"))?;
        let (token, seed) = random.split_at(16);
        // 32 bits: what every client can hold in a JSON number, and as many pictures as anyone compares.
        let seed = u64::from(u32::from_be_bytes([seed[0], seed[1], seed[2], seed[3]]));
        let full = admit::normalise(request, model, &profile, &policy, seed)?;
        Ok(Submitted {
            task_id: task.to_string(),
            tenant: tenant.to_string(),
            app_key: caller.app_key.clone(),
            lane: admit::lane(request, &policy, &self.settings).to_string(),
            request: Some(full),
            request_digest: digest::digest(&digest::SHA256, &request.encode_to_vec())
                .as_ref()
                .to_vec(),
            model: model.name.clone(),
            model_version: version.version.clone(),
            at: Some(contract::now()),
            access_token: hex::encode(token),
        })
    }

    /// One task of a tenant.
    pub(crate) async fn read(&self, tenant: &str, task: &str) -> Result<Record, CallError> {
        let tenant: TenantId = tenant.parse()?;
        // What is no id is no task: one answer, whatever is wrong with the text.
        let id: TaskId = task.parse().map_err(|_| task_not_found(task))?;
        let record = self.log.read(&tenant, id).await?;
        record.ok_or_else(|| task_not_found(task))
    }

    /// Ends a task as cancelled unless it has ended. Whoever works on it finds out and drops it.
    pub(crate) async fn cancel(
        &self,
        tenant: &str,
        task: &str,
        reason: &str,
    ) -> Result<v1::Task, CallError> {
        let mut record = self.read(tenant, task).await?;
        if record.done.is_some() {
            return Ok(record.view());
        }
        let done = Done {
            at: Some(contract::now()),
            outcome: Some(done::Outcome::Cancelled(Cancelled {
                reason: reason.to_owned(),
            })),
            attempt: record.attempts(),
            started_at: record.state.as_ref().and_then(|s| s.started_at),
            ..Done::default()
        };
        record.done = Some(match self.log.end(&record.task_ref()?, &done).await? {
            Ended::First => {
                tracing::info!(task, "cancelled");
                done
            }
            Ended::Already(first) => *first,
        });
        Ok(record.view())
    }

    /// A page of a tenant's tasks, newest first, and the token of the next.
    pub(crate) async fn list(
        &self,
        tenant: &str,
        page_size: u32,
        page_token: &str,
        phase: TaskPhase,
    ) -> Result<(Vec<v1::Task>, String), CallError> {
        let tenant: TenantId = tenant.parse()?;
        let size = match page_size {
            0 => DEFAULT_PAGE_SIZE,
            size if size <= MAX_PAGE_SIZE => size,
            size => {
                let text = format!("page_size must be at most {MAX_PAGE_SIZE}, not {size}");
                return Err(Failure::invalid("page_size", text).into());
            }
        };
        let before = match page_token {
            "" => None,
            token => Some(token.parse().map_err(|_| {
                Failure::invalid("page_token", "page_token is not one that a page gave")
            })?),
        };
        let page = self.log.list(&tenant, before, size as usize).await?;
        let wanted = |record: &&Record| phase == TaskPhase::Unspecified || record.phase() == phase;
        let tasks = page
            .records
            .iter()
            .filter(wanted)
            .map(Record::view)
            .collect();
        Ok((tasks, page.next.map(|n| n.to_string()).unwrap_or_default()))
    }

    /// Follows a task.
    pub(crate) async fn watch(&self, tenant: &str, task: &str) -> Result<Watch, CallError> {
        let tenant: TenantId = tenant.parse()?;
        let id: TaskId = task.parse().map_err(|_| task_not_found(task))?;
        let watch = self.log.watch(&tenant, id).await?;
        watch.ok_or_else(|| task_not_found(task))
    }

    /// Where a finished picture is, for its tenant or for whoever holds the task's access token.
    pub(crate) async fn resolve_image(
        &self,
        tenant: &str,
        task: &str,
        index: u32,
        token: &str,
    ) -> Result<(v1::ImageInfo, String), CallError> {
        let record = match tenant {
            "" => self.read_by_token(task, token).await?,
            tenant => self.read(tenant, task).await?,
        };
        let Some(done) = &record.done else {
            let text = "the task has not ended; watch it or ask again";
            return Err(Failure::new(ErrorCode::NotReady, text).into());
        };
        let images: &[StoredImage] = match &done.outcome {
            Some(done::Outcome::Succeeded(success)) => &success.images,
            _ => &[],
        };
        let stored = images.iter().find(|image| image.index == index);
        let view = record.view();
        let info = view.images.into_iter().find(|image| image.index == index);
        match (info, stored) {
            (Some(info), Some(stored)) => Ok((info, stored.key.clone())),
            _ => {
                let text = format!("the task has no picture {index}");
                Err(Failure::new(ErrorCode::NotFound, text).into())
            }
        }
    }

    async fn read_by_token(&self, task: &str, token: &str) -> Result<Record, CallError> {
        let id: TaskId = task.parse().map_err(|_| task_not_found(task))?;
        let record = self.log.read_for_any_tenant(id).await?;
        let right = |record: &Record| {
            let known = record.submitted.access_token.as_bytes();
            constant_time::verify_slices_are_equal(known, token.as_bytes()).is_ok()
        };
        // A wrong token must not tell whether the task is there.
        record.filter(right).ok_or_else(|| task_not_found(task))
    }
}
