//! The protocol over HTTP, under `/v2`.

use std::sync::Arc;

use axum::Extension;
use axum::body::Body;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::HeaderMap;
use axum::response::Response;
use contract::Failure;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::described::{Binary, Inference, InferenceParams};
use super::infer::infer;
use super::json::{AnswerJson, JSON_BYTES, decode, encode};
use super::model::{Config, EXTENSIONS, Metadata, PLATFORM, READY, find};
use crate::auth::Admitted;
use crate::edge::Edge;
use crate::json::{check_coding, read_bytes};
use crate::models::allowed;
use crate::openapi::params::{IdempotencyKeyParam, ModelParam};
use crate::problem::{Refused, json as json_answer};
use crate::tasks::idempotency_key;

/// Bytes of all pictures of one answer.
const MAX_ANSWER_BYTES: u64 = 64 * 1024 * 1024;
/// When to ask again whether the platform is ready.
const READY_WAIT: std::time::Duration = std::time::Duration::from_secs(1);

/// The model that a path names. A path without a version leaves it to the platform.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct ModelPath {
    model: String,
    #[serde(default)]
    version: String,
}

/// A path that cannot be read names no model.
type Named = Result<Path<ModelPath>, PathRejection>;

fn named(path: Named) -> ModelPath {
    path.map(|Path(path)| path).unwrap_or_default()
}

#[derive(Serialize, ToSchema)]
#[schema(as = InferServer)]
struct ServerJson {
    name: &'static str,
    version: &'static str,
    #[schema(value_type = Vec<String>)]
    extensions: &'static [&'static str],
}

/// `GET /v2`
#[utoipa::path(
    get,
    path = "/v2",
    operation_id = "inferServer",
    summary = "What the server is",
    responses((status = 200, description = "Name, version and extensions.", body = ServerJson))
)]
pub(crate) async fn server() -> Response {
    json_answer(&ServerJson {
        name: PLATFORM,
        version: env!("CARGO_PKG_VERSION"),
        extensions: EXTENSIONS,
    })
}

/// KServe's client reads the body, Triton's the status.
#[derive(Serialize, ToSchema)]
#[schema(as = InferServerLive)]
struct LiveJson {
    live: bool,
}

/// `GET /v2/health/live`: that the gateway runs.
#[utoipa::path(
    get,
    path = "/v2/health/live",
    operation_id = "inferLive",
    summary = "That the server runs",
    responses((status = 200, description = "It does.", body = LiveJson))
)]
pub(crate) async fn live() -> Response {
    json_answer(&LiveJson { live: true })
}

/// The protocol's text has `live` here, its clients read `ready`.
#[derive(Serialize, ToSchema)]
#[schema(as = InferServerReady)]
struct ReadyJson {
    ready: bool,
    live: bool,
}

/// `GET /v2/health/ready`: what the status of `/readyz` is, as the gateway last looked: one that is limited is ready.
#[utoipa::path(
    get,
    path = "/v2/health/ready",
    operation_id = "inferReady",
    summary = "That the platform is ready",
    responses(
        (status = 200, description = "It is.", body = ReadyJson),
        (status = 503, description = "unavailable")
    )
)]
pub(crate) async fn ready(State(edge): State<Arc<Edge>>) -> Result<Response, Refused> {
    match edge.health.not_ready() {
        None => Ok(json_answer(&ReadyJson {
            ready: true,
            live: true,
        })),
        // What exactly is wrong is for operators: /readyz on the admin port.
        Some(_) => Err(Failure::unavailable("the platform is not ready", READY_WAIT).into()),
    }
}

/// `GET /v2/models/{model}[/versions/{version}]`
#[utoipa::path(
    get,
    path = "/v2/models/{model}",
    operation_id = "inferMetadata",
    summary = "Read a model",
    params(ModelParam),
    responses(
        (status = 200, description = "Its tensors.", body = Metadata),
        (status = 404, description = "model_not_found")
    )
)]
pub(crate) async fn metadata(
    State(edge): State<Arc<Edge>>,
    Extension(caller): Extension<Admitted>,
    path: Named,
) -> Result<Response, Refused> {
    let path = named(path);
    let models = allowed(&edge, &caller).await?;
    let model = find(&models, &path.model, &path.version)?;
    Ok(json_answer(&Metadata::new(model)))
}

/// `GET /v2/models/{model}[/versions/{version}]/config`
#[utoipa::path(
    get,
    path = "/v2/models/{model}/config",
    operation_id = "inferConfig",
    summary = "Read a model's configuration",
    params(ModelParam),
    responses(
        (status = 200, description = "As far as a client can need it.", body = Config),
        (status = 404, description = "model_not_found")
    )
)]
pub(crate) async fn config(
    State(edge): State<Arc<Edge>>,
    Extension(caller): Extension<Admitted>,
    path: Named,
) -> Result<Response, Refused> {
    let path = named(path);
    let models = allowed(&edge, &caller).await?;
    let model = find(&models, &path.model, &path.version)?;
    Ok(json_answer(&Config::new(model)))
}

#[derive(Serialize, ToSchema)]
#[schema(as = InferModelReady)]
struct ModelReadyJson {
    /// As the path has it.
    name: String,
    ready: bool,
}

/// `GET /v2/models/{model}[/versions/{version}]/ready`
#[utoipa::path(
    get,
    path = "/v2/models/{model}/ready",
    operation_id = "inferModelReady",
    summary = "That a model takes requests",
    params(ModelParam),
    responses(
        (status = 200, description = "It does.", body = ModelReadyJson),
        (status = 404, description = "model_not_found")
    )
)]
pub(crate) async fn model_ready(
    State(edge): State<Arc<Edge>>,
    Extension(caller): Extension<Admitted>,
    path: Named,
) -> Result<Response, Refused> {
    let path = named(path);
    let models = allowed(&edge, &caller).await?;
    find(&models, &path.model, &path.version)?;
    Ok(json_answer(&ModelReadyJson {
        name: path.model,
        ready: true,
    }))
}

#[derive(Serialize, ToSchema)]
#[schema(as = InferIndexed)]
struct IndexJson<'a> {
    name: &'a str,
    version: &'a str,
    state: &'static str,
    reason: &'static str,
}

/// `POST /v2/repository/index`: each version that the caller may use.
#[utoipa::path(
    post,
    path = "/v2/repository/index",
    operation_id = "inferIndex",
    summary = "List models",
    responses((status = 200, description = "Each version that the key may use.", body = Vec<IndexJson>))
)]
pub(crate) async fn index(
    State(edge): State<Arc<Edge>>,
    Extension(caller): Extension<Admitted>,
) -> Result<Response, Refused> {
    let models = allowed(&edge, &caller).await?;
    let mut index = Vec::new();
    for model in &models {
        index.extend(model.versions.iter().map(|version| IndexJson {
            name: &model.name,
            version,
            state: READY,
            reason: "",
        }));
    }
    Ok(json_answer(&index))
}

/// `POST /v2/models/{model}[/versions/{version}]/infer`: answers when the pictures are there.
#[utoipa::path(
    post,
    path = "/v2/models/{model}/infer",
    operation_id = "infer",
    summary = "Draw a batch",
    description = "Answers when the pictures are there. Each is a task of its own, and counts as a request against the rate limit.",
    params(ModelParam, InferenceParams, IdempotencyKeyParam),
    request_body(content(
        (Inference = "application/json", example = json!({"inputs": [
            {"name": "PROMPT", "shape": [1], "datatype": "BYTES", "data": ["a 3d cat"]},
            {"name": "STEPS", "shape": [1], "datatype": "INT32", "data": [2]}
        ]})),
        (Binary = "application/octet-stream")
    )),
    responses(
        (
            status = 200,
            description = "The pictures.",
            content((AnswerJson = "application/json"), (Binary = "application/octet-stream")),
            headers(("Inference-Header-Content-Length" = u32, description = "How many bytes are JSON, where raw data is behind it."))
        ),
        (status = 400, description = "invalid_argument"),
        (status = 403, description = "permission_denied"),
        (status = 404, description = "model_not_found"),
        (status = 409, description = "idempotency_conflict cancelled"),
        (status = 422, description = "picture_too_large"),
        (status = 500, description = "engine_failed attempts_exhausted"),
        (status = 504, description = "deadline_exceeded"),
        (status = 415, description = "unsupported_media_type")
    )
)]
pub(crate) async fn infer_model(
    State(edge): State<Arc<Edge>>,
    Extension(caller): Extension<Admitted>,
    path: Named,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Refused> {
    // Triton's client announces no media type, so only the coding is checked.
    check_coding(&headers)?;
    let key = idempotency_key(&headers)?;
    let body = read_bytes(body, &edge.http).await?;
    let json_bytes = headers
        .get(JSON_BYTES)
        .map(|v| v.to_str().unwrap_or_default());
    let (mut asked, binary) = decode(&body, json_bytes)?;
    let path = named(path);
    (asked.model, asked.version) = (path.model, path.version);
    let drawn = infer(&edge, &caller, asked, &key, MAX_ANSWER_BYTES).await?;
    let mut response = encode(drawn.answer, &binary)?;
    let extensions = response.extensions_mut();
    // For the layer that tells the caller what is left.
    extensions.insert(drawn.limit);
    if let Some(carried) = drawn.carried {
        extensions.insert(carried);
    }
    Ok(response)
}
