//! Our own dialect: tasks, with everything that the platform can do.

use std::sync::Arc;

use axum::Extension;
use axum::body::Body;
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{FromRequestParts, Path, Query, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use contract::auth::Caller;
use contract::limits::{DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE};
use contract::words::{FORMATS, PHASES, PROMPT_SYNTAXES, QUALITIES, SCHEDULERS, all, meaning};
use contract::{ErrorCode, Failure, TaskId, v1, validate};
use serde::{Deserialize, Serialize};

use crate::edge::Edge;
use crate::events::{self, TaskEvents};
use crate::json::{self, Fields, shorten};
use crate::problem::{Refused, json as json_answer};
use crate::task_json::TaskJson;

const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
const REPLAYED: HeaderName = HeaderName::from_static("idempotent-replayed");

/// The fields of a submission, for the person who mistyped one.
const KNOWN: &[&str] = &[
    "model",
    "prompt",
    "negative_prompt",
    "width",
    "height",
    "images",
    "seed",
    "steps",
    "guidance_scale",
    "scheduler",
    "prompt_syntax",
    "guidance_rescale",
    "quality",
    "output_format",
    "output_compression",
    "partial_images",
    "style_tags",
    "user",
];

/// `POST /v1/tasks`
pub(crate) async fn create(
    State(edge): State<Arc<Edge>>,
    Extension(caller): Extension<Caller>,
    uri: Uri,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Refused> {
    let fields = json::read(body, &edge.http).await?;
    let request = decode(fields, idempotency_key(&headers)?)?;
    validate(&request)?;
    let (task, existing) = edge.platform.submit(&caller, request).await?;
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
pub(crate) async fn get(
    State(edge): State<Arc<Edge>>,
    Extension(caller): Extension<Caller>,
    uri: Uri,
    headers: HeaderMap,
    TaskPath(task): TaskPath,
) -> Result<Response, Refused> {
    let task = edge.platform.get(&caller.tenant, task).await?;
    Ok(json_answer(&TaskJson::new(
        &task,
        &edge.public_url(&uri, &headers),
    )))
}

/// `DELETE /v1/tasks/{id}`: cancels.
pub(crate) async fn cancel(
    State(edge): State<Arc<Edge>>,
    Extension(caller): Extension<Caller>,
    uri: Uri,
    headers: HeaderMap,
    TaskPath(task): TaskPath,
) -> Result<Response, Refused> {
    let task = edge
        .platform
        .cancel(&caller.tenant, task, "asked for by the caller")
        .await?;
    Ok(json_answer(&TaskJson::new(
        &task,
        &edge.public_url(&uri, &headers),
    )))
}

/// The query of a list.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ListQuery {
    limit: Option<String>,
    cursor: Option<String>,
    phase: Option<String>,
}

#[derive(Serialize)]
struct ListJson<'a> {
    data: Vec<TaskJson<'a>>,
    next_cursor: Option<&'a str>,
}

/// `GET /v1/tasks?limit=&cursor=&phase=`
pub(crate) async fn list(
    State(edge): State<Arc<Edge>>,
    Extension(caller): Extension<Caller>,
    uri: Uri,
    headers: HeaderMap,
    query: Result<Query<ListQuery>, QueryRejection>,
) -> Result<Response, Refused> {
    let page = page(read_query(query)?)?;
    let page = edge.platform.list(&caller.tenant, page).await?;
    let base = edge.public_url(&uri, &headers);
    let next = page.next_page_token.as_str();
    Ok(json_answer(&ListJson {
        data: page
            .tasks
            .iter()
            .map(|task| TaskJson::new(task, &base))
            .collect(),
        next_cursor: (!next.is_empty()).then_some(next),
    }))
}

/// The query of a stream of events.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct EventsQuery {
    previews: Option<String>,
}

/// `GET /v1/tasks/{id}/events`
pub(crate) async fn watch(
    State(edge): State<Arc<Edge>>,
    Extension(caller): Extension<Caller>,
    uri: Uri,
    headers: HeaderMap,
    TaskPath(task): TaskPath,
    query: Result<Query<EventsQuery>, QueryRejection>,
) -> Result<Response, Refused> {
    let previews = match read_query(query)?.previews.as_deref() {
        None | Some("true") => true,
        Some("false") => false,
        Some(_) => {
            return Err(Failure::invalid("previews", "previews must be true or false").into());
        }
    };
    let open = edge.open_stream()?;
    // A task that is not there is a 404, not a stream.
    edge.platform.get(&caller.tenant, task).await?;
    let base = edge.public_url(&uri, &headers);
    let events = TaskEvents::new(&edge, open, &caller.tenant, task, previews, base);
    Ok(events::answer(&edge, events))
}

/// The idempotency key that the headers carry; empty when there is none.
pub(crate) fn idempotency_key(headers: &HeaderMap) -> Result<String, Failure> {
    let Some(value) = headers.get(IDEMPOTENCY_KEY) else {
        return Ok(String::new());
    };
    match value.to_str().map(str::trim) {
        Ok(key) if !key.is_empty() => Ok(key.to_owned()),
        _ => Err(Failure::invalid(
            "idempotency_key",
            "the Idempotency-Key header must be visible ASCII and not empty",
        )),
    }
}

/// A submission out of its JSON.
pub(crate) fn decode(
    mut fields: Fields,
    idempotency_key: String,
) -> Result<v1::SubmitTask, Failure> {
    let task = v1::SubmitTask {
        model: fields.text("model")?.unwrap_or_default(),
        prompt: fields.text("prompt")?.unwrap_or_default(),
        negative_prompt: fields.text("negative_prompt")?.unwrap_or_default(),
        width: fields.small("width")?.unwrap_or_default(),
        height: fields.small("height")?.unwrap_or_default(),
        images: fields.small("images")?.unwrap_or_default(),
        seed: fields.large("seed")?,
        steps: fields.small("steps")?.unwrap_or_default(),
        guidance_scale: fields.number("guidance_scale")?,
        scheduler: fields
            .word("scheduler", SCHEDULERS)?
            .unwrap_or_default()
            .into(),
        quality: fields
            .word("quality", QUALITIES)?
            .unwrap_or_default()
            .into(),
        output_format: fields
            .word("output_format", FORMATS)?
            .unwrap_or_default()
            .into(),
        output_compression: fields.small("output_compression")?,
        partial_images: fields.small("partial_images")?.unwrap_or_default(),
        style_tags: fields.texts("style_tags")?,
        user: fields.text("user")?.unwrap_or_default(),
        idempotency_key,
        prompt_syntax: fields
            .word("prompt_syntax", PROMPT_SYNTAXES)?
            .unwrap_or_default()
            .into(),
        guidance_rescale: fields.number("guidance_rescale")?,
        source: None,
    };
    fields.nothing_else(KNOWN)?;
    Ok(task)
}

fn page(query: ListQuery) -> Result<v1::ListRequest, Failure> {
    let page_size = match query.limit {
        None => DEFAULT_PAGE_SIZE,
        Some(text) => {
            let size = text
                .parse()
                .ok()
                .filter(|n| (1..=MAX_PAGE_SIZE).contains(n));
            size.ok_or_else(|| {
                let shown = shorten(&text);
                Failure::invalid(
                    "limit",
                    format!("limit must be 1 to {MAX_PAGE_SIZE}, not {shown:?}"),
                )
            })?
        }
    };
    let phase = match query.phase {
        None => v1::TaskPhase::Unspecified,
        Some(text) => meaning(PHASES, &text).ok_or_else(|| {
            let (words, shown) = (all(PHASES), shorten(&text));
            let message = format!("phase must be one of {words}, not {shown:?}");
            Failure::invalid("phase", message)
        })?,
    };
    Ok(v1::ListRequest {
        page_size,
        page_token: query.cursor.unwrap_or_default(),
        phase: phase.into(),
    })
}

/// A query string that was read, or the complaint about it.
pub(crate) fn read_query<T>(query: Result<Query<T>, QueryRejection>) -> Result<T, Failure> {
    let complain =
        |rejection: QueryRejection| Failure::new(ErrorCode::InvalidArgument, rejection.body_text());
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
    use proptest::prelude::*;

    use super::*;

    fn read(body: &str) -> Result<v1::SubmitTask, Failure> {
        decode(Fields::parse(body.as_bytes())?, String::new())
    }

    #[test]
    fn every_field_of_a_submission_is_read() {
        let body = r#"{"model":"m","prompt":"p","negative_prompt":"n","width":64,"height":96,"images":2,
            "seed":18446744073709551615,"steps":20,"guidance_scale":7.5,"scheduler":"dpm++2m","quality":"hd",
            "output_format":"webp","output_compression":80,"partial_images":3,"style_tags":["3d"],"user":"u",
            "prompt_syntax":"weighted","guidance_rescale":0.7}"#;
        let expected = v1::SubmitTask {
            model: "m".to_owned(),
            prompt: "p".to_owned(),
            negative_prompt: "n".to_owned(),
            width: 64,
            height: 96,
            images: 2,
            seed: Some(u64::MAX),
            steps: 20,
            guidance_scale: Some(7.5),
            scheduler: v1::Scheduler::DpmPp2m.into(),
            quality: v1::Quality::Hd.into(),
            output_format: v1::OutputFormat::Webp.into(),
            output_compression: Some(80),
            partial_images: 3,
            style_tags: vec!["3d".to_owned()],
            idempotency_key: String::new(),
            user: "u".to_owned(),
            prompt_syntax: v1::PromptSyntax::Weighted.into(),
            guidance_rescale: Some(0.7),
            source: None,
        };
        assert_eq!(read(body).unwrap(), expected);
    }

    #[test]
    fn a_typo_is_refused_rather_than_taken_for_a_default() {
        let failure = read(r#"{"prompt":"p","guidence_scale":3}"#).unwrap_err();
        assert_eq!(failure.field.as_deref(), Some("guidence_scale"));
        let failure = read(r#"{"prompt":"p","scheduler":"dpm"}"#).unwrap_err();
        assert_eq!(failure.field.as_deref(), Some("scheduler"));
        for (word, _) in SCHEDULERS {
            assert!(failure.message.contains(word), "{failure}");
        }
        let failure = read(r#"{"prompt":"p","prompt_syntax":"compel"}"#).unwrap_err();
        assert_eq!(
            failure.message,
            "prompt_syntax must be one of plain, weighted, not \"compel\""
        );
    }

    #[test]
    fn every_scheduler_is_asked_for_by_its_word() {
        for (word, scheduler) in SCHEDULERS {
            let task = read(&format!(r#"{{"prompt":"p","scheduler":"{word}"}}"#)).unwrap();
            assert_eq!(task.scheduler(), *scheduler);
        }
    }

    #[test]
    fn a_page_has_limits_and_known_phases() {
        let with = |limit: Option<&str>, phase: Option<&str>| {
            page(ListQuery {
                limit: limit.map(str::to_owned),
                phase: phase.map(str::to_owned),
                cursor: None,
            })
        };
        assert_eq!(with(None, None).unwrap().page_size, 20);
        assert_eq!(
            with(Some("100"), Some("queued")).unwrap().phase(),
            v1::TaskPhase::Queued
        );
        for bad in ["0", "101", "-1", "x", ""] {
            assert_eq!(
                with(Some(bad), None).unwrap_err().field.as_deref(),
                Some("limit")
            );
        }
        assert_eq!(
            with(None, Some("done")).unwrap_err().field.as_deref(),
            Some("phase")
        );
    }

    proptest! {
        #[test]
        fn no_fields_make_the_decoder_panic(
            name in proptest::sample::select(KNOWN),
            value in "null|-1|1e400|1e39|4294967296|\"x\"|\\[1\\]|\\[\"x\"\\]|\\{\\}|true|0.5",
        ) {
            if let Ok(task) = read(&format!("{{\"{name}\":{value}}}")) {
                let _ = validate(&task);
            }
        }
    }
}
