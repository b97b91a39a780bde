//! OpenAI's Images API: `POST /v1/images/generations`, answered when the pictures are there or streamed.
//!
//! Where that API and the platform differ: pictures come as `b64_json` unless `response_format` is `url`, whatever
//! the model; every picture is opaque; `usage` counts no tokens, because nothing here is charged by them, and is there
//! because clients read it. Our own knobs (`seed`, `steps`, `guidance_scale`, `negative_prompt`, `scheduler`,
//! `style_tags`) ride along. A caller that hangs up cancels its task, unless it sent an `Idempotency-Key` to come back
//! with.

mod described;
pub(crate) mod edits;
pub(crate) mod fuzz;
mod multipart;
mod request;
mod response;
mod stream;

use std::sync::Arc;

use axum::Extension;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, Uri};
use axum::response::{IntoResponse as _, Response};
use contract::{ErrorCode, Failure, TaskId, v1, validate};
use serde::Serialize;
use tokio::time::Instant;
use utoipa::ToSchema;

use crate::auth::Admitted;
use crate::carried::{self, Carried};
use crate::edge::Edge;
use crate::events;
use crate::json;
use crate::openapi::params::IdempotencyKeyParam;
use crate::problem::{Refused, by_n_and_size, by_name, json as json_answer};
use crate::tasks::{idempotency_key, name_task, task_id};
use crate::waiting;
use crate::watch::{Abandon, Watch};

use described::{Event, Generation};
use request::{Delivery, Wish};
use response::{Answer, Item, Terms};
use stream::Partials;

/// Where pictures are drawn from pictures.
pub(crate) const EDITS: &str = "/v1/images/edits";
/// Bytes of all pictures of one answer that carries them inside, before base64.
const MAX_INLINE_BYTES: u64 = 64 * 1024 * 1024;

/// `POST /v1/images/generations`
#[utoipa::path(
    post,
    path = "/v1/images/generations",
    operation_id = "generateImages",
    summary = "Draw pictures",
    description = "Answers when the pictures are there, or streams. Fields that are not known are let through unread. Who hangs up cancels \
        the task, unless the request had an Idempotency-Key.",
    params(IdempotencyKeyParam),
    request_body(content = Generation, example = json!({"prompt": "a 3d cat", "size": "128x128", "seed": 7, "steps": 2})),
    responses(
        (
            status = 200,
            description = "The pictures; events where `stream` is true: `image_generation.partial_image`, and `image_generation.completed` at the end.",
            content((Answer = "application/json"), (Event = "text/event-stream")),
            headers(("X-Inkstone-Task-Id" = String, description = "The task's id."))
        ),
        (status = 400, description = "invalid_argument"),
        (status = 403, description = "permission_denied"),
        (status = 404, description = "model_not_found"),
        (status = 409, description = "idempotency_conflict cancelled"),
        (status = 422, description = "picture_too_large"),
        (status = 500, description = "engine_failed attempts_exhausted"),
        (status = 504, description = "deadline_exceeded")
    )
)]
pub(crate) async fn generate(
    State(edge): State<Arc<Edge>>,
    Extension(caller): Extension<Admitted>,
    uri: Uri,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Refused> {
    let deadline = Instant::now() + edge.http.generation_timeout.duration();
    let fields = json::read(body, &edge.http).await?;
    let mut wish = request::decode(fields, idempotency_key(&headers)?)?;
    validate(&wish.task).map_err(|failure| named(wish.picture, failure))?;
    if !wish.stream {
        // There would be no one to show them to.
        wish.task.partial_images = 0;
    }
    let base = edge.public_url(&uri, &headers);
    Ok(carry_out(&edge, caller, wish, base, deadline).await?)
}

/// Submits, and answers when the pictures are there, or streams.
async fn carry_out(
    edge: &Arc<Edge>,
    caller: Admitted,
    wish: Wish,
    base: String,
    deadline: Instant,
) -> Result<Response, Failure> {
    let open = if wish.stream {
        Some(edge.open_stream(&caller.tenant)?)
    } else {
        None
    };
    let accepted = waiting::accept(edge, &caller, wish.task.clone()).await;
    let (task, abandon) = accepted.map_err(|failure| named(wish.picture, failure))?;
    let id = task_id(&task.id)?;
    let previews = wish.stream && wish.task.partial_images > 0;
    let watch = Watch::new(edge.clone(), &caller, id, previews, deadline);
    let job = Job {
        edge: edge.clone(),
        caller,
        id,
        wish,
        base,
    };
    let answer = match open {
        Some(open) => Ok(events::answer(
            edge,
            Partials::new(job, watch, abandon, open),
        )),
        None => job.wait(watch, abandon).await.map_err(Refused),
    };
    Ok(name_task(answer, &task.id))
}

/// A complaint about the task, by OpenAI's names; `picture` is that of what it begins from. `images` of this dialect are those pictures, and of
/// the contract how many are asked for.
fn named(picture: &str, failure: Failure) -> Failure {
    match failure.field.as_deref() == Some("source") {
        true => by_name(failure, picture),
        false => by_n_and_size(failure),
    }
}

/// One accepted request.
struct Job {
    edge: Arc<Edge>,
    caller: Admitted,
    id: TaskId,
    wish: Wish,
    base: String,
}

impl Job {
    /// The whole answer, once the task has ended.
    async fn wait(self, watch: Watch, abandon: Abandon) -> Result<Response, Failure> {
        let task = waiting::success(watch, abandon).await?;
        match self.answer(&task).await {
            Err(failure) if self.wish.task.idempotency_key.is_empty() => Ok(not_again(failure)),
            answer => answer,
        }
    }

    /// The answer to a task that has succeeded.
    async fn answer(&self, task: &v1::Task) -> Result<Response, Failure> {
        let (data, carried) = match self.wish.delivery {
            Delivery::Url => {
                let url = |info: &v1::ImageInfo| Item::Url(format!("{}{}", self.base, info.path));
                (task.images.iter().map(url).collect(), None)
            }
            Delivery::Inline => {
                let (data, carried) = self.pictures(task).await?;
                (data, Some(carried))
            }
        };
        let terms = Terms::new(&self.wish, task);
        let mut response = json_answer(&Answer::new(task, data, terms));
        if let Some(carried) = carried {
            response.extensions_mut().insert(carried);
        }
        Ok(response)
    }

    /// The pictures, and the room that the answer has for them.
    async fn pictures(&self, task: &v1::Task) -> Result<(Vec<Item>, Carried), Failure> {
        let bytes: u64 = task.images.iter().map(|info| info.size_bytes).sum();
        if bytes > MAX_INLINE_BYTES {
            let message = format!(
                "the pictures have {bytes} bytes together and {MAX_INLINE_BYTES} fit into one answer; ask for url"
            );
            return Err(Failure::invalid("response_format", message));
        }
        let carried = self.room(bytes, carried::OF_ANSWER).await?;
        let mut items = Vec::with_capacity(task.images.len());
        for info in &task.images {
            items.push(Item::inline(&self.picture(info.index).await?));
        }
        Ok((items, carried))
    }

    /// Room for so many bytes of pictures inside an answer or an event.
    async fn room(&self, pictures: u64, times: u64) -> Result<Carried, Failure> {
        let room = &self.edge.carried;
        room.room(&self.caller.tenant, pictures, times).await
    }

    async fn picture(&self, index: u32) -> Result<bytes::Bytes, Failure> {
        waiting::picture(&self.edge, &self.caller, self.id, index).await
    }
}

/// A refusal when the pictures are drawn already: who sent the request again by itself, without a key to come back with, would have
/// them drawn anew.
fn not_again(failure: Failure) -> Response {
    let mut response = Refused(failure).into_response();
    let no = HeaderValue::from_static("false");
    response.headers_mut().insert("x-should-retry", no);
    response
}

/// OpenAI's error object.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = OpenAiError)]
pub(crate) struct Error<'a> {
    error: ErrorBody<'a>,
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = OpenAiErrorBody)]
struct ErrorBody<'a> {
    message: &'a str,
    r#type: &'static str,
    /// OpenAI's name of the field at fault.
    #[schema(required = true)]
    param: Option<&'a str>,
    /// Our code.
    code: &'static str,
}

impl<'a> Error<'a> {
    /// The error that `failure` is in this dialect.
    pub(crate) fn new(failure: &'a Failure) -> Self {
        Self {
            error: ErrorBody {
                message: &failure.message,
                r#type: kind(failure.code),
                param: failure.field.as_deref(),
                code: failure.code.as_str(),
            },
        }
    }
}

fn kind(code: ErrorCode) -> &'static str {
    match code.http().as_u16() {
        401 => "authentication_error",
        403 => "permission_error",
        429 => "rate_limit_error",
        500.. => "server_error",
        _ => "invalid_request_error",
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::problem::{Dialect, in_words};

    #[test]
    fn who_finds_no_room_for_pictures_that_are_drawn_does_not_have_them_drawn_anew() {
        let failure = Failure::unavailable("no room", Duration::from_secs(2));
        let answer = in_words(Dialect::OpenAi, "a-request", not_again(failure));
        assert_eq!(answer.status(), 503);
        assert_eq!(answer.headers()["x-should-retry"], "false");
        assert_eq!(answer.headers()["retry-after"], "2");
    }

    #[test]
    fn an_error_names_openais_own_parameter_and_kind() {
        let shown = |failure: &Failure| serde_json::to_value(Error::new(failure)).unwrap();
        let height = Failure::invalid("height", "height must be a multiple of 32");
        let failure = named("image", height);
        let expected = serde_json::json!({"error": {"message": "size: height must be a multiple of 32",
            "type": "invalid_request_error", "param": "size", "code": "invalid_argument"}});
        assert_eq!(shown(&failure), expected);
        let failure = Failure::invalid("images", "images must hold 1 picture, not 2");
        assert_eq!(shown(&failure)["error"]["param"], "images");
        for (field, param) in [("images", "n"), ("source", "images"), ("steps", "steps")] {
            let of_a_task = Failure::invalid(field, format!("{field} must be at most 5"));
            let error = shown(&named("images", of_a_task))["error"].clone();
            assert_eq!(error["param"], param);
            assert_eq!(error["message"], format!("{param} must be at most 5"));
        }
        let failure = Failure::new(ErrorCode::RateLimited, "slower");
        assert_eq!(shown(&failure)["error"]["type"], "rate_limit_error");
        assert_eq!(shown(&failure)["error"]["param"], serde_json::Value::Null);
        assert_eq!(kind(ErrorCode::Unauthenticated), "authentication_error");
        assert_eq!(kind(ErrorCode::PermissionDenied), "permission_error");
        assert_eq!(kind(ErrorCode::Unavailable), "server_error");
        assert_eq!(
            kind(ErrorCode::IdempotencyConflict),
            "invalid_request_error"
        );
    }
}
