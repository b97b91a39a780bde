//! DashScope's picture API: asynchronous tasks, and the newer requests that look like a message.
//!
//! Where that API and the platform differ: a task that runs is cancelled too, not only one that waits; a prompt is drawn as
//! it stands, whatever `prompt_extend` says; a task answers a poll both with `results` and with `choices`, because what
//! kind of request made it is not kept. What is not there yet (pictures as input, a visible watermark) is refused by name.
//! See `docs/adr/0019-two-more-dialects.md`.

mod error;
mod list;
mod request;
mod response;

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
use contract::{ErrorCode, Failure, validate};
use tokio::time::Instant;

use crate::edge::Edge;
use crate::json::{self, shorten};
use crate::layers::RequestId;
use crate::problem::{Refused, json as json_answer};
use crate::tasks::{idempotency_key, name_task, read_query, task_id};
use crate::waiting;

pub(crate) use error::Error;
use list::list;
use request::Form;
use response::{Accepted, Cancelled, Drawn, Polled};

/// Says that the caller does not wait for the pictures.
const ASYNC: HeaderName = HeaderName::from_static("x-dashscope-async");
/// DashScope's own words, which clients look for.
const NOT_SYNCHRONOUS: &str = "current user api does not support synchronous calls.";
const NOT_ASYNCHRONOUS: &str = "current user api does not support asynchronous calls.";

/// `POST /api/v1/services/aigc/text2image/image-synthesis`
pub(crate) async fn synthesize(
    edge: State<Arc<Edge>>,
    caller: Extension<Caller>,
    request_id: Extension<RequestId>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Refused> {
    submit(edge, caller, request_id, &headers, body, Form::Prompt).await
}

/// `POST /api/v1/services/aigc/image-generation/generation`
pub(crate) async fn generate(
    edge: State<Arc<Edge>>,
    caller: Extension<Caller>,
    request_id: Extension<RequestId>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Refused> {
    submit(edge, caller, request_id, &headers, body, Form::Messages).await
}

async fn submit(
    State(edge): State<Arc<Edge>>,
    Extension(caller): Extension<Caller>,
    Extension(request_id): Extension<RequestId>,
    headers: &HeaderMap,
    body: Body,
    form: Form,
) -> Result<Response, Refused> {
    if !is_async(headers) {
        return Err(Failure::new(ErrorCode::PermissionDenied, NOT_SYNCHRONOUS).into());
    }
    let fields = json::read(body, &edge.http).await?;
    let task = request::decode(fields, form, idempotency_key(headers)?)?;
    validate(&task)?;
    let (task, _) = edge.platform.submit(&caller, task).await?;
    let answer = json_answer(&Accepted::new(&task, &request_id.0));
    Ok(name_task(answer, &task.id))
}

/// `POST /api/v1/services/aigc/multimodal-generation/generation`: answers when the pictures are there. A caller that hangs
/// up cancels its task, as in OpenAI's dialect.
pub(crate) async fn converse(
    State(edge): State<Arc<Edge>>,
    Extension(caller): Extension<Caller>,
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
    let task = request::decode(fields, Form::Messages, idempotency_key(&headers)?)?;
    validate(&task)?;
    let task = waiting::draw(&edge, &caller, task, deadline).await?;
    let base = edge.public_url(&uri, &headers);
    let answer = json_answer(&Drawn::new(&task, &base, &request_id.0));
    Ok(name_task(answer, &task.id))
}

/// `GET /api/v1/tasks/{id}`. A task that is not there is one whose status is UNKNOWN, as in DashScope.
pub(crate) async fn poll(
    State(edge): State<Arc<Edge>>,
    Extension(caller): Extension<Caller>,
    Extension(request_id): Extension<RequestId>,
    uri: Uri,
    headers: HeaderMap,
    path: Result<Path<String>, PathRejection>,
) -> Result<Response, Refused> {
    let given = path.map(|Path(text)| text).unwrap_or_default();
    let found = match task_id(&given) {
        Ok(id) => edge.platform.get(&caller.tenant, id).await,
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
pub(crate) async fn cancel(
    State(edge): State<Arc<Edge>>,
    Extension(caller): Extension<Caller>,
    Extension(request_id): Extension<RequestId>,
    path: Result<Path<String>, PathRejection>,
) -> Result<Response, Refused> {
    let id = task_id(&path.map(|Path(text)| text).unwrap_or_default())?;
    let reason = "asked for by the caller";
    let task = edge.platform.cancel(&caller.tenant, id, reason).await?;
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
pub(crate) async fn tasks(
    State(edge): State<Arc<Edge>>,
    Extension(caller): Extension<Caller>,
    Extension(request_id): Extension<RequestId>,
    query: Result<Query<list::ListQuery>, QueryRejection>,
) -> Result<Response, Refused> {
    let wanted = list::wanted(read_query(query)?)?;
    let page = list(&edge, &caller.tenant, &wanted).await?;
    Ok(json_answer(&page.answer(&request_id.0)))
}
