//! DashScope's picture API: asynchronous tasks, and the newer requests that look like a message.
//!
//! Where that API and the platform differ: a task that runs is cancelled too, not only one that waits; a prompt is drawn as
//! it stands, whatever `prompt_extend` says; a task answers a poll both with `results` and with `choices`, because what
//! kind of request made it is not kept. A picture to begin from is fetched while its caller waits, so that a bad one is refused and not
//! accepted to fail. What is not there yet (masks, sketches, several pictures) is refused by name.
//! See `docs/adr/0019-two-more-dialects.md`.

mod described;
mod error;
pub(crate) mod fuzz;
mod list;
mod request;
mod response;
mod source;

use std::sync::Arc;

use axum::Extension;
use axum::body::Body;
use axum::extract::State;
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query};
use axum::http::{HeaderMap, HeaderName, Uri};
use axum::response::Response;
use contract::auth::Caller;
use contract::v1::TaskPhase;
use contract::{ErrorCode, Failure, v1, validate};
use tokio::time::Instant;

use crate::auth::Admitted;
use crate::edge::Edge;
use crate::json::{self, shorten};
use crate::layers::RequestId;
use crate::openapi::params::{AnyTaskIdParam, IdempotencyKeyParam, TaskIdParam};
use crate::pictures;
use crate::problem::{Refused, json as json_answer};
use crate::tasks::{by_header, idempotency_key, name_task, read_query, task_id};
use crate::waiting;

use described::{AsyncParam, ListParams, Message, Synthesis};
pub(crate) use error::Error;
use list::list;
use request::{Form, Wish};
use response::{Accepted, Cancelled, Drawn, Polled};

/// Says that the caller does not wait for the pictures.
const ASYNC: HeaderName = HeaderName::from_static("x-dashscope-async");
/// DashScope's own words, which clients look for, and behind them what to do.
const NOT_SYNCHRONOUS: &str = "current user api does not support synchronous calls. Send the header X-DashScope-Async: enable.";
const NOT_ASYNCHRONOUS: &str = "current user api does not support asynchronous calls.";

/// `POST /api/v1/services/aigc/text2image/image-synthesis` and `…/image2image/image-synthesis`
#[utoipa::path(
    post,
    path = "/api/v1/services/aigc/text2image/image-synthesis",
    operation_id = "dashScopeSynthesize",
    summary = "Submit a task",
    params(AsyncParam, IdempotencyKeyParam),
    request_body(content = Synthesis, example = json!({"input": {"prompt": "a 3d cat"}, "parameters": {"size": "128*128", "seed": 7, "steps": 2}})),
    responses(
        (status = 200, description = "The task is stored.", body = Accepted, headers(("X-Inkstone-Task-Id" = String, description = "The task's id."))),
        (status = 400, description = "invalid_argument"),
        (status = 403, description = "permission_denied"),
        (status = 404, description = "model_not_found"),
        (status = 409, description = "idempotency_conflict")
    )
)]
pub(crate) async fn synthesize(
    edge: State<Arc<Edge>>,
    caller: Extension<Admitted>,
    request_id: Extension<RequestId>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Refused> {
    submit(edge, caller, request_id, &headers, body, Form::Prompt).await
}

/// `POST /api/v1/services/aigc/image-generation/generation`
#[utoipa::path(
    post,
    path = "/api/v1/services/aigc/image-generation/generation",
    operation_id = "dashScopeGenerate",
    summary = "Submit a task, in the shape of a message",
    params(AsyncParam, IdempotencyKeyParam),
    request_body(content = Message, example = json!({"input": {"messages": [{"role": "user", "content": [{"text": "a 3d cat"}]}]}, "parameters": {"steps": 2}})),
    responses(
        (status = 200, description = "The task is stored.", body = Accepted, headers(("X-Inkstone-Task-Id" = String, description = "The task's id."))),
        (status = 400, description = "invalid_argument"),
        (status = 403, description = "permission_denied"),
        (status = 404, description = "model_not_found"),
        (status = 409, description = "idempotency_conflict")
    )
)]
pub(crate) async fn generate(
    edge: State<Arc<Edge>>,
    caller: Extension<Admitted>,
    request_id: Extension<RequestId>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Refused> {
    submit(edge, caller, request_id, &headers, body, Form::Messages).await
}

async fn submit(
    State(edge): State<Arc<Edge>>,
    Extension(caller): Extension<Admitted>,
    Extension(request_id): Extension<RequestId>,
    headers: &HeaderMap,
    body: Body,
    form: Form,
) -> Result<Response, Refused> {
    if !is_async(headers) {
        return Err(Failure::new(ErrorCode::PermissionDenied, NOT_SYNCHRONOUS).into());
    }
    let fields = json::read(body, &edge.http).await?;
    let wish = request::decode(fields, form, idempotency_key(headers)?)?;
    let names = wish.names;
    let task = complete(&edge, &caller, wish).await?;
    let submitted = edge.platform.submit(&caller, task).await;
    let (task, _) = submitted.map_err(|failure| names.tell(by_header(failure)))?;
    let answer = json_answer(&Accepted::new(&task, &request_id.0));
    Ok(name_task(answer, &task.id))
}

/// The task that a caller wishes for, with what it begins from stored.
async fn complete(
    edge: &Arc<Edge>,
    caller: &Caller,
    wish: Wish,
) -> Result<v1::SubmitTask, Failure> {
    let Wish {
        mut task,
        source,
        names,
    } = wish;
    let named = |failure| names.tell(failure);
    match source {
        None => validate(&task).map_err(named)?,
        Some(source) => {
            let upload = edge.open_upload(&caller.tenant)?;
            pictures::begin_from(edge, caller, &mut task, source, upload, named).await?;
        }
    }
    Ok(task)
}

/// `POST /api/v1/services/aigc/multimodal-generation/generation`: answers when the pictures are there. A caller that hangs
/// up cancels its task, as in OpenAI's dialect.
#[utoipa::path(
    post,
    path = "/api/v1/services/aigc/multimodal-generation/generation",
    operation_id = "dashScopeConverse",
    summary = "Draw pictures, in the shape of a message",
    description = "Answers when the pictures are there. `X-DashScope-Async: enable` is refused here.",
    params(IdempotencyKeyParam),
    request_body(content = Message, example = json!({"input": {"messages": [{"role": "user", "content": "a 3d cat"}]}, "parameters": {"steps": 2}})),
    responses(
        (status = 200, description = "The pictures.", body = Drawn, headers(("X-Inkstone-Task-Id" = String, description = "The task's id."))),
        (status = 400, description = "invalid_argument"),
        (status = 403, description = "permission_denied"),
        (status = 404, description = "model_not_found"),
        (status = 409, description = "idempotency_conflict cancelled"),
        (status = 422, description = "picture_too_large"),
        (status = 500, description = "engine_failed attempts_exhausted"),
        (status = 504, description = "deadline_exceeded")
    )
)]
pub(crate) async fn converse(
    State(edge): State<Arc<Edge>>,
    Extension(caller): Extension<Admitted>,
    Extension(request_id): Extension<RequestId>,
    uri: Uri,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Refused> {
    let deadline = Instant::now() + edge.http.generation_timeout.duration();
    if is_async(&headers) {
        return Err(Failure::new(ErrorCode::PermissionDenied, NOT_ASYNCHRONOUS).into());
    }
    let fields = json::read(body, &edge.http).await?;
    let wish = request::decode(fields, Form::Messages, idempotency_key(&headers)?)?;
    let names = wish.names;
    let task = complete(&edge, &caller, wish).await?;
    let drawn = waiting::draw(&edge, &caller, task, deadline).await;
    let task = drawn.map_err(|failure| names.tell(failure))?;
    let base = edge.public_url(&uri, &headers);
    let answer = json_answer(&Drawn::new(&task, &base, &request_id.0));
    Ok(name_task(answer, &task.id))
}

/// `GET /api/v1/tasks/{id}`. A task that is not there is one whose status is UNKNOWN, as in DashScope.
#[utoipa::path(
    get,
    path = "/api/v1/tasks/{id}",
    operation_id = "dashScopePoll",
    summary = "Read a task",
    description = "One that is not there has the status `UNKNOWN`.",
    params(AnyTaskIdParam),
    responses((status = 200, description = "The task.", body = Polled))
)]
pub(crate) async fn poll(
    State(edge): State<Arc<Edge>>,
    Extension(caller): Extension<Admitted>,
    Extension(request_id): Extension<RequestId>,
    uri: Uri,
    headers: HeaderMap,
    path: Result<Path<String>, PathRejection>,
) -> Result<Response, Refused> {
    let given = path.map(|Path(text)| text).unwrap_or_default();
    let found = match task_id(&given) {
        Ok(id) => edge.platform.get(&caller, id).await,
        Err(failure) => Err(failure),
    };
    let base = edge.public_url(&uri, &headers);
    match found {
        Ok(task) => Ok(json_answer(&Polled::new(&task, &base, &request_id.0))),
        Err(failure) if failure.code == ErrorCode::TaskNotFound => {
            let shown = shorten(&given);
            Ok(json_answer(&Polled::unknown(&shown, &request_id.0)))
        }
        Err(failure) => Err(failure.into()),
    }
}

/// `POST /api/v1/tasks/{id}/cancel`
#[utoipa::path(
    post,
    path = "/api/v1/tasks/{id}/cancel",
    operation_id = "dashScopeCancel",
    summary = "Cancel a task",
    params(TaskIdParam),
    responses(
        (status = 200, description = "It is cancelled.", body = Cancelled),
        (status = 400, description = "invalid_argument"),
        (status = 404, description = "task_not_found")
    )
)]
pub(crate) async fn cancel(
    State(edge): State<Arc<Edge>>,
    Extension(caller): Extension<Admitted>,
    Extension(request_id): Extension<RequestId>,
    path: Result<Path<String>, PathRejection>,
) -> Result<Response, Refused> {
    let id = task_id(&path.map(|Path(text)| text).unwrap_or_default())?;
    let reason = "asked for by the caller";
    let task = edge.platform.cancel(&caller, id, reason).await?;
    if task.phase() != TaskPhase::Cancelled {
        let status = response::status(task.phase());
        let message = format!("the task has ended as {status} and cannot be cancelled any more");
        return Err(Failure::invalid(error::TASK, message).into());
    }
    Ok(json_answer(&Cancelled::new(&request_id.0)))
}

fn is_async(headers: &HeaderMap) -> bool {
    let value = headers.get(ASYNC).and_then(|v| v.to_str().ok());
    value.is_some_and(|value| value.trim().eq_ignore_ascii_case("enable"))
}

/// `GET /api/v1/tasks`
#[utoipa::path(
    get,
    path = "/api/v1/tasks",
    operation_id = "dashScopeList",
    summary = "List tasks",
    description = "Looks at the newest 1000.",
    params(ListParams),
    responses(
        (status = 200, description = "A page.", body = list::ListAnswer),
        (status = 400, description = "invalid_argument")
    )
)]
pub(crate) async fn tasks(
    State(edge): State<Arc<Edge>>,
    Extension(caller): Extension<Admitted>,
    Extension(request_id): Extension<RequestId>,
    query: Result<Query<list::ListQuery>, QueryRejection>,
) -> Result<Response, Refused> {
    let wanted = list::wanted(read_query(query)?)?;
    let page = list(&edge, &caller, &wanted).await?;
    Ok(json_answer(&page.answer(&request_id.0)))
}

/// `GET /api/v1/uploads`: where the package asks for a place for a local picture, before the request that is to begin from it.
pub(crate) async fn uploads(State(edge): State<Arc<Edge>>) -> Refused {
    let most = edge.http.max_body;
    let message = format!(
        "local files are not taken: name the picture by an https: URL, or by a data: URL in a body of at most {most}"
    );
    Failure::new(ErrorCode::InvalidArgument, message).into()
}
