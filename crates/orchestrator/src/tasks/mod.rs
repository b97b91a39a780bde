//! What callers can do with tasks: submit, get, cancel, list, watch, judge, find pictures.

mod submit;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use aws_lc_rs::constant_time;
use contract::orchestrator::ListRequest;
use contract::task::{Cancelled, Done, StoredImage, done};
use contract::v1::{self, Feedback};
use contract::{ErrorCode, Failure, TaskId, TenantId, validate_feedback};
use egress::Egress;
use lifecycle::Health;
use task_log::{Ended, Intake, Record, TaskLog, TaskLogError, Watch};

use crate::backlog::Backlog;
use crate::error::{CallError, task_not_found};
use crate::inputs::Inputs;
use crate::meter::Meter;
use crate::models::{self, Models};
use crate::page::Asked;
use crate::settings::SchedulingSettings;
use crate::waiting::Waiting;
use crate::waits::Waits;

/// The use cases. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Tasks {
    pub(crate) log: TaskLog,
    pub(crate) intake: Intake,
    pub(crate) backlog: Backlog,
    pub(crate) waiting: Arc<Waiting>,
    pub(crate) meter: Arc<Meter>,
    pub(crate) models: Models,
    pub(crate) health: Health,
    pub(crate) inputs: Inputs,
    pub(crate) settings: Arc<SchedulingSettings>,
    /// What webhooks go by.
    pub(crate) egress: Egress,
    pub(crate) waits: Waits,
}

impl Tasks {
    /// The present, by the broker's clock, which deadlines go by. It costs no request: `deadlines` asks once a second, and what was heard before
    /// is still good when the broker does not answer that for a while.
    pub(crate) async fn time(&self) -> Result<SystemTime, TaskLogError> {
        self.log.time_within(Duration::MAX).await
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
            at: Some(self.log.now().into()),
            outcome: Some(done::Outcome::Cancelled(Cancelled {
                reason: reason.to_owned(),
            })),
            attempt: record.attempts(),
            started_at: record.state.as_ref().and_then(|s| s.started_at),
            ..Done::default()
        };
        record.done = Some(match self.log.end(&record.task_ref()?, &done).await? {
            Ended::First => {
                // What it was charged for is given back by whoever tells its end, who goes by what is stored: also where the answer to this
                // write is lost.
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
        mut request: ListRequest,
    ) -> Result<(Vec<v1::Task>, String), CallError> {
        let tenant: TenantId = request.tenant.parse()?;
        // What a task is found by is the model's own name, whatever alias it was asked for by.
        if let Some(model) = models::find(&self.models.all(), &request.model) {
            request.model = model.name.clone();
        }
        let asked = Asked::read(&request)?;
        let page = self
            .log
            .list(&tenant, &asked.wanted, asked.before, asked.size);
        let page = page.await?;
        let tasks = page.records.iter().map(Record::view).collect();
        let next = page.next.map(|sequence| asked.token(sequence));
        Ok((tasks, next.unwrap_or_default()))
    }

    /// Keeps what a caller says of a task that has ended.
    pub(crate) async fn feedback(
        &self,
        tenant: &str,
        task: &str,
        mut feedback: Feedback,
    ) -> Result<v1::Task, CallError> {
        validate_feedback(&feedback)?;
        let mut record = self.read(tenant, task).await?;
        if record.done.is_none() {
            let text = "the task has not ended: there is nothing to judge yet";
            return Err(Failure::new(ErrorCode::NotReady, text).into());
        }
        feedback.at = Some(self.log.now().into());
        // Its id may have come again since it was read: another task is nothing that the caller has seen.
        if !self.log.set_feedback(&record, &feedback).await? {
            return Err(task_not_found(task));
        }
        record.feedback = Some(feedback);
        Ok(record.view())
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
