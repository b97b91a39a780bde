//! Which path leads where, and what a request passes on its way.

use std::sync::Arc;

use axum::Router;
use axum::extract::Request;
use axum::http::{Method, Uri};
use axum::middleware::{from_fn, from_fn_with_state};
use axum::response::IntoResponse;
use axum::routing::{MethodRouter, delete, get, post};
use contract::{ErrorCode, Failure};
use tonic::service::Routes;
use tonic_health::server::HealthReporter;
use tower_http::catch_panic::CatchPanicLayer;

use crate::edge::Edge;
use crate::error::StartError;
use crate::json::shorten;
use crate::problem::Refused;
use crate::{
    auth, batch, dashscope, grpc, health, images, layers, models, oip, openai, tasks, tokens,
    welcome,
};

/// Everything that HTTP callers can reach.
pub(crate) fn http(edge: &Arc<Edge>) -> Router {
    let quick = |methods| quick(edge, methods);
    let guarded = |methods| guarded(edge, methods);
    Router::new()
        // These wait for nothing: no credentials, no room, no other service.
        .route("/", get(welcome::page))
        .route("/healthz", get(health::healthz))
        .route("/docs/errors/{code}", get(welcome::error_page))
        // Authenticates itself, because auth must see the proof with the wish.
        .route("/v1/token", quick(roomy(edge, post(tokens::issue))))
        // For everyone.
        .route(
            "/.well-known/jwks.json",
            quick(roomy(edge, get(tokens::keys))),
        )
        // Our own dialect.
        .route(
            "/v1/tasks",
            quick(guarded(get(tasks::list)).merge(json(guarded(post(tasks::create))))),
        )
        .route(
            "/v1/tasks/{id}",
            quick(guarded(get(tasks::get)).merge(guarded(delete(tasks::cancel)))),
        )
        .route("/v1/tasks/batch", quick(json(guarded(post(batch::create)))))
        .route("/v1/tasks/{id}/events", quick(guarded(get(tasks::watch))))
        // Authenticates itself, because a token in the query will do.
        .route(
            "/v1/tasks/{id}/images/{index}",
            quick(roomy(edge, get(images::get))),
        )
        // OpenAI's. A generation has its own, longer deadline.
        .route(
            "/v1/images/generations",
            json(guarded(post(openai::generate))),
        )
        .route(openai::EDITS, guarded(post(openai::edit)))
        .route("/v1/models", quick(guarded(get(models::list))))
        .route("/v1/models/{name}", quick(guarded(get(models::get))))
        .merge(dashscope_paths(edge))
        .merge(oip_paths(edge))
        .fallback(nothing_here)
        .method_not_allowed_fallback(not_this_way)
        // From the inside out: a body over the limit is refused before anyone works for it, …
        .layer(from_fn_with_state(edge.clone(), layers::body_limit))
        // … a panic anywhere inside becomes an answer like any other, …
        .layer(CatchPanicLayer::custom(layers::panicked))
        // … and outermost, whatever comes out gets its words, its request id and its place in the metrics.
        .layer(from_fn(layers::observe))
        .with_state(edge.clone())
}

/// DashScope's. A request that waits for its pictures has its own, longer deadline.
fn dashscope_paths(edge: &Arc<Edge>) -> Router<Arc<Edge>> {
    const SERVICES: &str = "/api/v1/services/aigc";
    let quick = |methods| quick(edge, methods);
    let guarded = |methods| guarded(edge, methods);
    let poll = quick(guarded(get(dashscope::poll)));
    let cancel = quick(guarded(post(dashscope::cancel)));
    Router::new()
        .route(
            &format!("{SERVICES}/text2image/image-synthesis"),
            quick(json(guarded(post(dashscope::synthesize)))),
        )
        .route(
            &format!("{SERVICES}/image-generation/generation"),
            quick(json(guarded(post(dashscope::generate)))),
        )
        .route(
            &format!("{SERVICES}/multimodal-generation/generation"),
            json(guarded(post(dashscope::converse))),
        )
        .route("/api/v1/tasks", quick(guarded(get(dashscope::tasks))))
        // The package's asynchronous classes put a slash at the end.
        .route("/api/v1/tasks/{id}", poll.clone())
        .route("/api/v1/tasks/{id}/", poll)
        .route("/api/v1/tasks/{id}/cancel", cancel.clone())
        .route("/api/v1/tasks/{id}/cancel/", cancel)
}

/// The Open Inference Protocol's. What a model draws has its own, longer deadline; the server's own state needs no key.
fn oip_paths(edge: &Arc<Edge>) -> Router<Arc<Edge>> {
    let quick = |methods| quick(edge, methods);
    let guarded = |methods| guarded(edge, methods);
    let mut paths = Router::new()
        .route("/v2", get(oip::http::server))
        .route("/v2/health/live", get(oip::http::live))
        .route("/v2/health/ready", get(oip::http::ready))
        .route(
            "/v2/repository/index",
            quick(guarded(post(oip::http::index))),
        );
    for model in [
        "/v2/models/{model}",
        "/v2/models/{model}/versions/{version}",
    ] {
        let described = quick(guarded(get(oip::http::metadata)));
        let ready = quick(guarded(get(oip::http::model_ready)));
        let config = quick(guarded(get(oip::http::config)));
        paths = paths
            .route(model, described)
            .route(&format!("{model}/ready"), ready)
            .route(&format!("{model}/config"), config)
            .route(
                &format!("{model}/infer"),
                guarded(post(oip::http::infer_model)),
            );
    }
    paths
}

/// Everything that gRPC callers can reach.
pub(crate) fn grpc(edge: &Arc<Edge>) -> Result<(Router, HealthReporter), StartError> {
    let (reporter, health) = tonic_health::server::health_reporter();
    let calls = Routes::new(grpc::Images::server(edge.clone()))
        .into_axum_router()
        // As over HTTP: room first, because to verify a proof is work as well.
        .layer(from_fn_with_state(edge.clone(), auth::authenticate))
        .layer(from_fn_with_state(edge.clone(), layers::shed))
        .layer(from_fn_with_state(edge.clone(), layers::grpc_deadline));
    // Without a fallback of their own: the one of `calls`, behind the same door, answers what nobody knows.
    let open = Routes::builder()
        .routes()
        .add_service(health.max_decoding_message_size(grpc::SMALL_MESSAGE))
        .add_service(grpc::reflection()?)
        .add_service(grpc::reflection_v1alpha()?)
        .into_axum_router()
        .layer(from_fn_with_state(edge.clone(), layers::shed))
        .layer(from_fn_with_state(edge.clone(), layers::grpc_deadline))
        .reset_fallback();
    // Some of its calls need no key, and others wait for pictures.
    let inference = Routes::new(oip::grpc::Inference::server(edge.clone()))
        .into_axum_router()
        .layer(from_fn_with_state(edge.clone(), oip::grpc::admit))
        .layer(from_fn_with_state(edge.clone(), layers::shed))
        .layer(from_fn_with_state(
            edge.clone(),
            layers::grpc_generation_deadline,
        ))
        .reset_fallback();
    let all = calls
        .merge(open)
        .merge(inference)
        .layer(CatchPanicLayer::custom(layers::panicked))
        .layer(from_fn(layers::observe));
    Ok((all, reporter))
}

/// For callers that auth knows.
fn guarded(edge: &Arc<Edge>, methods: MethodRouter<Arc<Edge>>) -> MethodRouter<Arc<Edge>> {
    roomy(
        edge,
        methods.route_layer(from_fn_with_state(edge.clone(), auth::authenticate)),
    )
}

/// Sheds load before anything is done for a request, its authentication included.
fn roomy(edge: &Arc<Edge>, methods: MethodRouter<Arc<Edge>>) -> MethodRouter<Arc<Edge>> {
    methods.route_layer(from_fn_with_state(edge.clone(), layers::shed))
}

/// For what answers at once; outside of [`guarded`], so that the deadline covers all of it.
fn quick(edge: &Arc<Edge>, methods: MethodRouter<Arc<Edge>>) -> MethodRouter<Arc<Edge>> {
    methods.route_layer(from_fn_with_state(edge.clone(), layers::deadline))
}

/// For what takes JSON. Headers tell, so it costs the caller nothing of its rate limit.
fn json(methods: MethodRouter<Arc<Edge>>) -> MethodRouter<Arc<Edge>> {
    methods.route_layer(from_fn(layers::only_json))
}

async fn nothing_here(uri: Uri) -> impl IntoResponse {
    let path = shorten(uri.path());
    Refused(Failure::new(
        ErrorCode::NotFound,
        format!("there is nothing at {path}"),
    ))
}

async fn not_this_way(method: Method, request: Request) -> impl IntoResponse {
    let (method, path) = (shorten(method.as_str()), shorten(request.uri().path()));
    let message = format!("{path} does not take {method}; the Allow header lists what it takes");
    Refused(Failure::new(ErrorCode::MethodNotAllowed, message))
}
