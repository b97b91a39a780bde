//! Decode, call, encode.

use std::sync::Arc;
use std::time::{Duration, Instant};

use contract::orchestrator as api;
use contract::orchestrator::orchestrator_service_server::OrchestratorService;
use contract::task::progress_event;
use contract::v1::{self, submit_result, watch_response};
use contract::{Failure, check_batch};
use futures::StreamExt as _;
use futures::future::join_all;
use futures::stream::BoxStream;
use lifecycle::Tasks as ServiceTasks;
use rpc::Asked;
use task_log::{Record, TaskLogError, Update, Watch};
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use crate::callers::Callers;
use crate::error::CallError;
use crate::tasks::Tasks;
use crate::waits::{Told, Waits, waits};

/// Updates that a slow watcher may be behind before progress is left out.
const WATCH_BUFFER: usize = 32;
/// Before a watch that lost the log tries again.
const WATCH_AGAIN: Duration = Duration::from_millis(500);

/// How often a watcher of a task that waits is told another wait at most.
const TELL_AGAIN: Duration = Duration::from_secs(2);

/// The gRPC service.
pub(crate) struct Grpc {
    pub(crate) tasks: Tasks,
    pub(crate) callers: Arc<Callers>,
    pub(crate) service: ServiceTasks,
}

fn status(error: CallError) -> Status {
    Failure::from(error).into()
}

fn missing(field: &str) -> Failure {
    Failure::invalid(field, format!("{field} is missing"))
}

async fn submit(
    tasks: &Tasks,
    callers: &Callers,
    request: api::SubmitRequest,
) -> Result<(v1::Task, bool), CallError> {
    let caller = callers.admit(request.caller).await?;
    let task = request.task.ok_or_else(|| missing("task"))?;
    tasks.submit(&caller, &task).await
}

fn decode_call(call: api::SubmitCall) -> Asked<api::SubmitRequest> {
    Asked {
        question: call.request.unwrap_or_default(),
        timeout: Duration::from_millis(call.timeout_ms.into()),
        traceparent: call.traceparent,
    }
}

fn encode_answer((call, answer): (u32, Result<(v1::Task, bool), Failure>)) -> api::SubmitAnswer {
    let result = Some(encode_result(answer));
    api::SubmitAnswer { call, result }
}

fn encode_result(accepted: Result<(v1::Task, bool), Failure>) -> v1::SubmitResult {
    let result = match accepted {
        Ok((task, existing)) => submit_result::Result::Accepted(v1::SubmitResponse {
            task: Some(task),
            existing,
        }),
        Err(failure) => submit_result::Result::Refused(failure.into()),
    };
    let result = Some(result);
    v1::SubmitResult { result }
}

#[tonic::async_trait]
impl OrchestratorService for Grpc {
    type SubmitEachStream = BoxStream<'static, Result<api::SubmitEachResponse, Status>>;
    type WatchStream = ReceiverStream<Result<api::WatchResponse, Status>>;

    async fn submit(
        &self,
        request: Request<api::SubmitRequest>,
    ) -> Result<Response<api::SubmitResponse>, Status> {
        let submitted = submit(&self.tasks, &self.callers, request.into_inner()).await;
        let (task, existing) = submitted.map_err(status)?;
        let task = Some(task);
        Ok(Response::new(api::SubmitResponse { task, existing }))
    }

    async fn submit_each(
        &self,
        request: Request<api::SubmitEachRequest>,
    ) -> Result<Response<Self::SubmitEachStream>, Status> {
        let calls = request.into_inner().calls.into_iter().map(decode_call);
        // For the group once: it is many handles.
        let tasks = Arc::new(self.tasks.clone());
        let callers = self.callers.clone();
        let answers = rpc::each("SubmitEach", calls.collect(), move |request| {
            let (tasks, callers) = (tasks.clone(), callers.clone());
            async move {
                let submitted = submit(&tasks, &callers, request).await;
                submitted.map_err(Failure::from)
            }
        });
        let answers = answers.await?.map(|some| {
            let answers = some.into_iter().map(encode_answer).collect();
            Ok(api::SubmitEachResponse { answers })
        });
        Ok(Response::new(answers.boxed()))
    }

    async fn check(
        &self,
        request: Request<api::CheckRequest>,
    ) -> Result<Response<api::CheckResponse>, Status> {
        let api::CheckRequest { caller, task } = request.into_inner();
        let caller = self.callers.admit(caller).await?;
        let task = task.ok_or_else(|| missing("task"))?;
        self.tasks.check(&caller, &task).map_err(status)?;
        Ok(Response::new(api::CheckResponse {}))
    }

    async fn submit_batch(
        &self,
        request: Request<api::SubmitBatchRequest>,
    ) -> Result<Response<api::SubmitBatchResponse>, Status> {
        let api::SubmitBatchRequest { caller, tasks } = request.into_inner();
        let caller = self.callers.admit(caller).await?;
        check_batch(tasks.len())?;
        let submitted = tasks.iter().map(async |task| {
            let accepted = self.tasks.submit(&caller, task).await;
            encode_result(accepted.map_err(Failure::from))
        });
        let results = join_all(submitted).await;
        Ok(Response::new(api::SubmitBatchResponse { results }))
    }

    async fn get(
        &self,
        request: Request<api::GetRequest>,
    ) -> Result<Response<api::GetResponse>, Status> {
        let api::GetRequest {
            tenant,
            task_id,
            assertion,
        } = request.into_inner();
        self.callers.admit_tenant(&tenant, &assertion).await?;
        let record = self.tasks.read(&tenant, &task_id).await.map_err(status)?;
        let task = Some(self.tasks.waits.view(&record).await);
        Ok(Response::new(api::GetResponse { task }))
    }

    async fn cancel(
        &self,
        request: Request<api::CancelRequest>,
    ) -> Result<Response<api::CancelResponse>, Status> {
        let api::CancelRequest {
            tenant,
            task_id,
            reason,
            assertion,
        } = request.into_inner();
        self.callers.admit_tenant(&tenant, &assertion).await?;
        // Whoever asked may hang up, or have no more time, between the end and what it gives back: that is carried out in any case.
        let (tasks, (done, answer)) = (self.tasks.clone(), oneshot::channel());
        self.service.job("cancel", async move {
            let task = tasks.cancel(&tenant, &task_id, &reason).await;
            // Nobody may be there any more.
            let _ = done.send(task);
        });
        let answer = answer.await;
        let task =
            answer.map_err(|_| Status::internal("a cancellation failed; the log says why"))?;
        let task = Some(task.map_err(status)?);
        Ok(Response::new(api::CancelResponse { task }))
    }

    async fn list(
        &self,
        request: Request<api::ListRequest>,
    ) -> Result<Response<api::ListResponse>, Status> {
        let request = request.into_inner();
        let (tenant, assertion) = (&request.tenant, &request.assertion);
        self.callers.admit_tenant(tenant, assertion).await?;
        let page = self.tasks.list(request).await;
        let (tasks, next_page_token) = page.map_err(status)?;
        Ok(Response::new(api::ListResponse {
            tasks,
            next_page_token,
        }))
    }

    async fn feedback(
        &self,
        request: Request<api::FeedbackRequest>,
    ) -> Result<Response<api::FeedbackResponse>, Status> {
        let api::FeedbackRequest {
            tenant,
            task_id,
            feedback,
            assertion,
        } = request.into_inner();
        self.callers.admit_tenant(&tenant, &assertion).await?;
        let feedback = feedback.ok_or_else(|| missing("feedback"))?;
        let task = self.tasks.feedback(&tenant, &task_id, feedback).await;
        let task = Some(task.map_err(status)?);
        Ok(Response::new(api::FeedbackResponse { task }))
    }

    async fn watch(
        &self,
        request: Request<api::WatchRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let request = request.into_inner();
        // Once: a watch that has begun goes on.
        let (tenant, assertion) = (&request.tenant, &request.assertion);
        self.callers.admit_tenant(tenant, assertion).await?;
        let watch = self.tasks.watch(&request.tenant, &request.task_id).await;
        let watch = watch.map_err(status)?;
        let (sender, receiver) = mpsc::channel(WATCH_BUFFER);
        let stopping = self.service.stopping();
        let estimates = self.tasks.waits.clone();
        self.service.job("watch", async move {
            tokio::select! {
                () = forward(watch, &estimates, request.previews, &sender) => {}
                () = sender.closed() => {}
                () = stopping => {
                    let text = "this orchestrator is stopping; watch again";
                    let failure = Failure::unavailable(text, WATCH_AGAIN);
                    let _ = sender.try_send(Err(failure.into()));
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn resolve_image(
        &self,
        request: Request<api::ResolveImageRequest>,
    ) -> Result<Response<api::ResolveImageResponse>, Status> {
        let api::ResolveImageRequest {
            tenant,
            task_id,
            index,
            access_token,
            assertion,
        } = request.into_inner();
        // Without a tenant the task's token says that the caller may.
        if !tenant.is_empty() {
            self.callers.admit_tenant(&tenant, &assertion).await?;
        }
        let found = self
            .tasks
            .resolve_image(&tenant, &task_id, index, &access_token);
        let (info, key) = found.await.map_err(status)?;
        let info = Some(info);
        Ok(Response::new(api::ResolveImageResponse { info, key }))
    }
}

/// Sends a task's updates until its end has been sent. Progress is left out when the receiver is behind; changes wait. While the task waits it
/// is sent again when its wait is clearly another than what was told.
async fn forward(
    mut watch: Watch,
    estimates: &Waits,
    previews: bool,
    sender: &mpsc::Sender<Result<api::WatchResponse, Status>>,
) {
    let mut told: Option<(Box<Record>, Told)> = None;
    loop {
        let event = match next_or_retell(&mut watch, estimates, &mut told, sender).await {
            Ok(None) => return,
            Ok(Some(Update::Changed(record))) => {
                let task = estimates.view(&record).await;
                let now = Told::of(&task, Instant::now());
                told = waits(&task).then_some((record, now));
                let event = watch_response::Event::Task(task);
                if sender.send(Ok(response(event))).await.is_err() {
                    return;
                }
                continue;
            }
            Ok(Some(Update::Progress(event))) => event.event,
            Err(error) => {
                tracing::debug!(%error, "watching again");
                tokio::time::sleep(WATCH_AGAIN).await;
                continue;
            }
        };
        let event = match event {
            Some(progress_event::Event::Progress(progress)) => {
                watch_response::Event::Progress(progress)
            }
            Some(progress_event::Event::Preview(preview)) if previews => {
                watch_response::Event::Preview(preview)
            }
            _ => continue,
        };
        let _ = sender.try_send(Ok(response(event)));
    }
}

/// The next update. Meanwhile a task that waits is sent again when its wait has changed, if the receiver is not behind.
async fn next_or_retell(
    watch: &mut Watch,
    estimates: &Waits,
    told: &mut Option<(Box<Record>, Told)>,
    sender: &mpsc::Sender<Result<api::WatchResponse, Status>>,
) -> Result<Option<Update>, TaskLogError> {
    // Not dropped half-way: it may have heard something and be about to read it.
    let mut next = std::pin::pin!(watch.next());
    loop {
        tokio::select! {
            update = &mut next => return update,
            () = tokio::time::sleep(TELL_AGAIN), if told.is_some() => {}
        }
        let Some((record, before)) = told else {
            continue;
        };
        let task = estimates.view(record).await;
        // Whoever knows was not asked, or did not answer: that is no news.
        if task.queue_position.is_none() {
            continue;
        }
        let now = Told::of(&task, Instant::now());
        if before.is_outdated_by(&now)
            && sender
                .try_send(Ok(response(watch_response::Event::Task(task))))
                .is_ok()
        {
            *before = now;
        }
    }
}

fn response(event: watch_response::Event) -> api::WatchResponse {
    api::WatchResponse {
        event: Some(v1::WatchResponse { event: Some(event) }),
    }
}
