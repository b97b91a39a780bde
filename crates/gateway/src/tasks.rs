//! Our own dialect: tasks, with everything that the platform can do.

use std::sync::Arc;

use axum::Extension;
use axum::body::Body;
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{FromRequestParts, Path, Query, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use contract::json::submission;
use contract::limits::MAX_IDEMPOTENCY_KEY_BYTES;
use contract::{ErrorCode, Failure, TaskId, validate};

use crate::auth::Admitted;
use crate::edge::Edge;
use crate::events::{self, Seen, TaskEvents};
use crate::json::{self, shorten};
use crate::openapi::params::{
    IdempotencyKeyParam, TaskIdParam, header as header_param, params, query,
};
use crate::openapi::schema::{text, truth};
use crate::openapi::submission::Submission;
use crate::openapi::task::{Task, TaskEvent};
use crate::problem::{Refused, json as json_answer};
use crate::query::Parameters;
use crate::task_json::{TaskJson, has_ended};

/// The header of an idempotency key, as its callers are told of it.
pub(crate) const IDEMPOTENCY_KEY: &str = "Idempotency-Key";
const REPLAYED: HeaderName = HeaderName::from_static("idempotent-replayed");

/// `POST /v1/tasks`
#[utoipa::path(
    post,
    path = "/v1/tasks",
    operation_id = "createTask",
    summary = "Submit a task",
    description = "Answers once the task is stored. 202 means that it will end.",
    params(IdempotencyKeyParam),
    request_body(content = Submission, example = json!({"prompt": "a 3d cat on a blue background", "seed": 7, "steps": 2})),
    responses(
        (
            status = 202,
            description = "The task as it is stored, with every default filled in.",
            body = Task,
            headers(
                ("Location" = String, description = "The task's path."),
                ("Idempotent-Replayed" = String, description = "`true` where an earlier submission made the task.")
            ),
            links(
                ("get" = (operation_id = "getTask", parameters(("id" = "$response.body#/id")))),
                ("cancel" = (operation_id = "cancelTask", parameters(("id" = "$response.body#/id")))),
                ("feedback" = (operation_id = "giveFeedback", parameters(("id" = "$response.body#/id"))))
            )
        ),
        (status = 400, description = "invalid_argument"),
        (status = 403, description = "permission_denied"),
        (status = 404, description = "model_not_found"),
        (status = 409, description = "idempotency_conflict")
    )
)]
pub(crate) async fn create(
    State(edge): State<Arc<Edge>>,
    Extension(caller): Extension<Admitted>,
    uri: Uri,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Refused> {
    let fields = json::read(body, &edge.http).await?;
    let written = submission(fields, idempotency_key(&headers)?)?;
    let names = written.names;
    let named = |failure| names.tell(failure);
    validate(&written.task).map_err(named)?;
    let submitted = edge.platform.submit(&caller, written.task).await;
    let (task, existing) = submitted.map_err(|failure| named(by_header(failure)))?;
    let base = edge.public_url(&uri, &headers);
    let mut response = json_answer(&TaskJson::new(&task, &base));
    *response.status_mut() = StatusCode::ACCEPTED;
    if let Ok(place) = HeaderValue::from_str(&format!("/v1/tasks/{}", task.id)) {
        response.headers_mut().insert(header::LOCATION, place);
    }
    if existing {
        response
            .headers_mut()
            .insert(REPLAYED, HeaderValue::from_static("true"));
    }
    Ok(response)
}

/// `GET /v1/tasks/{id}`
#[utoipa::path(
    get,
    path = "/v1/tasks/{id}",
    operation_id = "getTask",
    summary = "Read a task",
    params(TaskIdParam),
    responses((status = 200, description = "The task.", body = Task), (status = 404, description = "task_not_found"))
)]
pub(crate) async fn get(
    State(edge): State<Arc<Edge>>,
    Extension(caller): Extension<Admitted>,
    uri: Uri,
    headers: HeaderMap,
    TaskPath(task): TaskPath,
) -> Result<Response, Refused> {
    let task = edge.platform.get(&caller, task).await?;
    Ok(json_answer(&TaskJson::new(
        &task,
        &edge.public_url(&uri, &headers),
    )))
}

/// `DELETE /v1/tasks/{id}`: cancels.
#[utoipa::path(
    delete,
    path = "/v1/tasks/{id}",
    operation_id = "cancelTask",
    summary = "Cancel a task",
    description = "Cancelling twice, or too late, is no error.",
    params(TaskIdParam),
    responses((status = 200, description = "The task as it then is.", body = Task), (status = 404, description = "task_not_found"))
)]
pub(crate) async fn cancel(
    State(edge): State<Arc<Edge>>,
    Extension(caller): Extension<Admitted>,
    uri: Uri,
    headers: HeaderMap,
    TaskPath(task): TaskPath,
) -> Result<Response, Refused> {
    let task = edge
        .platform
        .cancel(&caller, task, "asked for by the caller")
        .await?;
    Ok(json_answer(&TaskJson::new(
        &task,
        &edge.public_url(&uri, &headers),
    )))
}

params!(
    /// The query and the header of a stream of events.
    EventsParams,
    [
        query("previews", "`false` leaves previews out.", truth()),
        header_param(
            "Last-Event-ID",
            "The `id` of the last event that was seen: the stream goes on behind it.",
            text()
        ),
    ]
);

/// `GET /v1/tasks/{id}/events`
#[utoipa::path(
    get,
    path = "/v1/tasks/{id}/events",
    operation_id = "watchTask",
    summary = "Follow a task",
    description = "Server-sent events: `task` as it is now and after each change, `progress` and `preview`. \
        The last `task` is the task's end. A stream that ends early says `reconnect`, with `retry:`, where the rest is to be had by \
        `Last-Event-ID`, and `error` where it is not.",
    params(TaskIdParam, EventsParams),
    responses(
        (status = 200, description = "Events until the task has ended.", body = TaskEvent, content_type = "text/event-stream"),
        (status = 204, description = "The end was seen: nothing will follow `Last-Event-ID`."),
        (status = 400, description = "invalid_argument"),
        (status = 404, description = "task_not_found")
    )
)]
pub(crate) async fn watch(
    State(edge): State<Arc<Edge>>,
    Extension(caller): Extension<Admitted>,
    uri: Uri,
    headers: HeaderMap,
    TaskPath(task): TaskPath,
) -> Result<Response, Refused> {
    let previews = previews(Parameters::of(&uri)?)?;
    let seen = Seen::of(&headers);
    let open = edge.open_stream(&caller.tenant)?;
    // A task that is not there is a 404, not a stream.
    let now = edge.platform.get(&caller, task).await?;
    if has_ended(&now) && seen.knows(&now) {
        // What makes browsers stop opening the stream again.
        return Ok(StatusCode::NO_CONTENT.into_response());
    }
    let base = edge.public_url(&uri, &headers);
    let events = TaskEvents::new(&edge, open, &caller, task, previews, base, seen);
    Ok(events::answer(&edge, events))
}

fn previews(mut query: Parameters) -> Result<bool, Failure> {
    let previews = match query.take("previews").as_deref() {
        None | Some("true") => true,
        Some("false") => false,
        Some(_) => {
            return Err(Failure::invalid(
                "previews",
                "previews must be true or false",
            ));
        }
    };
    query.nothing_else(&["previews"])?;
    Ok(previews)
}

/// The idempotency key that the headers carry; empty when there is none.
pub(crate) fn idempotency_key(headers: &HeaderMap) -> Result<String, Failure> {
    let Some(value) = headers.get(IDEMPOTENCY_KEY) else {
        return Ok(String::new());
    };
    let good = |key: &&str| {
        let fits = (1..=MAX_IDEMPOTENCY_KEY_BYTES).contains(&key.len());
        fits && key.bytes().all(|b| (b' '..=b'~').contains(&b))
    };
    match value.to_str().map(str::trim).ok().filter(good) {
        Some(key) => Ok(key.to_owned()),
        None => {
            let message = format!(
                "the {IDEMPOTENCY_KEY} header must be 1 to {MAX_IDEMPOTENCY_KEY_BYTES} visible ASCII characters"
            );
            Err(Failure::invalid(IDEMPOTENCY_KEY, message))
        }
    }
}

/// A complaint about the idempotency key of a task whose key came by the header.
pub(crate) fn by_header(failure: Failure) -> Failure {
    if failure.field.as_deref() != Some("idempotency_key") {
        return failure;
    }
    Failure {
        field: Some(IDEMPOTENCY_KEY.to_owned()),
        ..failure
    }
}

/// A query string that was read, or the complaint about it.
pub(crate) fn read_query<T>(query: Result<Query<T>, QueryRejection>) -> Result<T, Failure> {
    let complain = |rejection: QueryRejection| {
        Failure::new(ErrorCode::InvalidArgument, json::cut(rejection.body_text()))
    };
    query.map(|Query(value)| value).map_err(complain)
}

/// The task that a path names.
pub(crate) struct TaskPath(pub(crate) TaskId);

impl<S: Send + Sync> FromRequestParts<S> for TaskPath {
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Refused> {
        let path: Result<Path<String>, PathRejection> =
            Path::from_request_parts(parts, state).await;
        let text = path.map(|Path(text)| text).unwrap_or_default();
        Ok(Self(task_id(&text)?))
    }
}

/// The id that a text is. What is no id names no task.
pub(crate) fn task_id(text: &str) -> Result<TaskId, Failure> {
    let missing = |_| {
        let shown = shorten(text);
        Failure::new(
            ErrorCode::TaskNotFound,
            format!("there is no task {shown:?}"),
        )
    };
    text.parse().map_err(missing)
}

/// The header that tells callers of other dialects which task it was.
pub(crate) fn name_task(response: impl IntoResponse, task: &str) -> Response {
    let mut response = response.into_response();
    if let Ok(value) = HeaderValue::from_str(task) {
        let name = HeaderName::from_static("x-inkstone-task-id");
        response.headers_mut().insert(name, value);
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_idempotency_key_is_visible_ascii_and_refused_by_its_headers_name() {
        let with = |value: &[u8]| {
            let mut headers = HeaderMap::new();
            headers.insert(IDEMPOTENCY_KEY, HeaderValue::from_bytes(value).unwrap());
            idempotency_key(&headers)
        };
        assert_eq!(idempotency_key(&HeaderMap::new()).unwrap(), "");
        assert_eq!(with(b" order 1 ").unwrap(), "order 1");
        let long = [b'k'; MAX_IDEMPOTENCY_KEY_BYTES + 1];
        assert!(with(&long[1..]).is_ok());
        for bad in [&b""[..], b"  ", b"a\tb", "\u{e9}".as_bytes(), &long] {
            let refused = with(bad).unwrap_err();
            assert_eq!(refused.field.as_deref(), Some("Idempotency-Key"));
        }
        let other = Failure::invalid("steps", "steps must be fewer");
        assert_eq!(by_header(other.clone()), other);
    }

    #[test]
    fn previews_are_there_unless_they_are_not_wanted() {
        let read = |uri: &'static str| previews(Parameters::of(&Uri::from_static(uri))?);
        assert!(read("/e").unwrap() && read("/e?previews=true").unwrap());
        assert!(!read("/e?previews=false").unwrap());
        for (bad, field) in [
            ("/e?previews=0", "previews"),
            ("/e?preview=false", "preview"),
        ] {
            assert_eq!(read(bad).unwrap_err().field.as_deref(), Some(field));
        }
    }
}
