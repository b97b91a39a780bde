//! Which path leads where, and what a request passes on its way.

use std::sync::Arc;

use axum::Router;
use axum::extract::Request;
use axum::http::{Method, Uri};
use axum::middleware::from_fn_with_state;
use axum::response::IntoResponse;
use axum::routing::get;
use contract::{ErrorCode, Failure};
use settings::ByteSize;
use tonic::service::Routes as Services;
use tonic_health::server::HealthReporter;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::edge::Edge;
use crate::error::StartError;
use crate::json::shorten;
use crate::layers::{Observer, Terms};
use crate::openapi::{Routes, also_at, answers, with_version};
use crate::problem::{Dialect, Refused, text};
use crate::{
    batch, cors, dashscope, feedback, grpc, health, images, layers, list, models, oip, openai,
    openapi, tasks, tokens, welcome,
};

const QUICK: Terms = Terms {
    quick: true,
    json: false,
};
const JSON: Terms = Terms {
    quick: false,
    json: true,
};
const QUICK_JSON: Terms = Terms {
    quick: true,
    json: true,
};
/// Waits for pictures, and may take what is no JSON.
const SLOW: Terms = Terms {
    quick: false,
    json: false,
};

/// Everything that HTTP callers can reach, and the description of it that goes with it.
pub(crate) fn http(edge: &Arc<Edge>) -> Router {
    let (router, mut document) = described(edge).split_for_parts();
    openapi::finish(&mut document);
    // Made once: the router does not change while it serves.
    let _ = edge.document.set(text(&document).into());
    let router = router
        // The package's asynchronous classes put a slash at the end.
        .route(
            "/api/v1/tasks/{id}/",
            guarded(edge, QUICK, routes!(dashscope::poll)).2,
        )
        .route(
            "/api/v1/tasks/{id}/cancel/",
            guarded(edge, QUICK, routes!(dashscope::cancel)).2,
        )
        // There is nothing to be had, so it needs no credentials, and only the package asks, so it is not described.
        .route("/api/v1/uploads", get(dashscope::uploads))
        .fallback(nothing_here)
        .method_not_allowed_fallback(not_this_way)
        .layer(from_fn_with_state(
            Observer::new(Some(edge.clone())),
            layers::observe,
        ));
    // Around all of it, so that a page can read refusals too, and a preflight, which has no credentials, needs none.
    let router = match cors::layer(&edge.http.cors) {
        Some(layer) => router.layer(layer),
        None => router,
    };
    router.with_state(edge.clone())
}

/// The paths, each where its handler's attribute says.
fn described(edge: &Arc<Edge>) -> OpenApiRouter<Arc<Edge>> {
    let quick = |routes| quick(edge, routes);
    let guarded = |terms, routes| guarded(edge, terms, routes);
    let without_key = |routes| without_key(edge, routes);
    OpenApiRouter::with_openapi(openapi::base())
        // These wait for nothing: no credentials, no place, no other service.
        .routes(routes!(health::healthz))
        .routes(without_key(routes!(welcome::page)))
        .routes(without_key(routes!(welcome::error_page)))
        .routes(without_key(routes!(openapi::document)))
        .routes(without_key(routes!(openapi::page)))
        // Authenticates itself, because auth must see the proof with the wish.
        .routes(quick(short(
            edge,
            tokens::MAX_BODY,
            proves_itself(edge, without_body(routes!(tokens::issue))),
        )))
        // For everyone.
        .routes(quick(roomy(edge, routes!(tokens::keys))))
        // Our own dialect.
        .routes(guarded(QUICK, routes!(list::list)))
        .routes(guarded(QUICK_JSON, routes!(tasks::create)))
        .routes(guarded(QUICK, routes!(tasks::get, tasks::cancel)))
        .routes(guarded(QUICK_JSON, routes!(batch::create)))
        .routes(guarded(QUICK_JSON, routes!(feedback::give)))
        .routes(guarded(QUICK, routes!(tasks::watch)))
        // Authenticates itself, because a token in the query will do.
        .routes(quick(proves_itself(edge, routes!(images::get))))
        // OpenAI's. A generation has its own, longer deadline.
        .routes(guarded(JSON, routes!(openai::generate)))
        .routes(guarded(SLOW, routes!(openai::edits::edit)))
        .routes(guarded(QUICK, routes!(models::list)))
        .routes(guarded(QUICK, routes!(models::get)))
        .merge(dashscope_paths(edge))
        .merge(oip_paths(edge))
}

/// DashScope's. A request that waits for its pictures has its own, longer deadline.
fn dashscope_paths(edge: &Arc<Edge>) -> OpenApiRouter<Arc<Edge>> {
    let guarded = |terms, routes| guarded(edge, terms, routes);
    OpenApiRouter::new()
        .routes(guarded(QUICK_JSON, routes!(dashscope::synthesize)))
        .routes(guarded(
            QUICK_JSON,
            also_at(
                "/api/v1/services/aigc/image2image/image-synthesis",
                "FromPicture",
                routes!(dashscope::synthesize),
            ),
        ))
        .routes(guarded(QUICK_JSON, routes!(dashscope::generate)))
        .routes(guarded(JSON, routes!(dashscope::converse)))
        .routes(guarded(QUICK, routes!(dashscope::tasks)))
        .routes(guarded(QUICK, routes!(dashscope::poll)))
        .routes(guarded(QUICK, routes!(dashscope::cancel)))
}

/// The Open Inference Protocol's. What a model draws has its own, longer deadline; the server's own state needs no key.
fn oip_paths(edge: &Arc<Edge>) -> OpenApiRouter<Arc<Edge>> {
    let guarded = |terms, routes| guarded(edge, terms, routes);
    OpenApiRouter::new()
        .routes(routes!(oip::http::server))
        .routes(routes!(oip::http::live))
        .routes(routes!(oip::http::ready))
        .routes(guarded(QUICK, routes!(oip::http::index)))
        .routes(guarded(QUICK, routes!(oip::http::metadata)))
        .routes(guarded(QUICK, routes!(oip::http::model_ready)))
        .routes(guarded(QUICK, routes!(oip::http::config)))
        .routes(guarded(SLOW, routes!(oip::http::infer_model)))
        .routes(guarded(QUICK, with_version(routes!(oip::http::metadata))))
        .routes(guarded(
            QUICK,
            with_version(routes!(oip::http::model_ready)),
        ))
        .routes(guarded(QUICK, with_version(routes!(oip::http::config))))
        .routes(guarded(SLOW, with_version(routes!(oip::http::infer_model))))
}

/// Everything that gRPC callers can reach.
pub(crate) fn grpc(edge: &Arc<Edge>) -> Result<(Router, HealthReporter), StartError> {
    let (reporter, health) = tonic_health::server::health_reporter();
    let largest = edge.http.max_body.plus(grpc::PREFIX_BYTES);
    let calls = Services::new(grpc::Images::server(edge.clone()))
        .into_axum_router()
        .layer((
            from_fn_with_state(edge.clone(), layers::grpc_guard),
            from_fn_with_state((edge.clone(), largest), layers::message),
        ));
    // Without a fallback of their own: the one of `calls`, behind the same door, answers what nobody knows.
    let open = Services::new(health.max_decoding_message_size(grpc::SMALL_MESSAGE))
        .into_axum_router()
        .layer((
            from_fn_with_state(edge.clone(), layers::grpc_deadline),
            from_fn_with_state((edge.clone(), grpc::SMALL_REQUEST), layers::whole),
            from_fn_with_state(edge.clone(), layers::shed_but_for_unread),
            from_fn_with_state(edge.clone(), layers::stream_without_key),
        ))
        .reset_fallback();
    // Its answers are long, and whoever does not read them keeps nobody from asking for health.
    let reflection = Services::new(grpc::reflection()?)
        .add_service(grpc::reflection_v1alpha()?)
        .into_axum_router()
        .layer((
            from_fn_with_state(edge.clone(), layers::grpc_deadline),
            from_fn_with_state(edge.clone(), layers::shed),
            from_fn_with_state(edge.clone(), layers::without_key),
            from_fn_with_state(edge.clone(), layers::stream_without_key),
        ))
        .reset_fallback();
    // Some of its calls need no key, and others wait for pictures.
    let inference = Services::new(oip::grpc::Inference::server(edge.clone()))
        .into_axum_router()
        .layer((
            from_fn_with_state(edge.clone(), layers::grpc_generation_deadline),
            from_fn_with_state(edge.clone(), oip::grpc::shed),
            from_fn_with_state(edge.clone(), oip::grpc::admit),
            from_fn_with_state((edge.clone(), oip::grpc::MAX_REQUEST), layers::message),
        ))
        .reset_fallback();
    let all = calls.merge(open).merge(reflection).merge(inference);
    let all = all.layer(from_fn_with_state(Observer::new(None), layers::observe));
    Ok((all, reporter))
}

// Each of these puts a layer around handlers, one where it can be, and says in their description what the layer may answer instead of them.

/// For callers that auth knows; room first, as in [`roomy`].
fn guarded(edge: &Arc<Edge>, terms: Terms, (schemas, mut paths, methods): Routes) -> Routes {
    answers::guarded(&mut paths);
    answers::roomy(&mut paths);
    if terms.json {
        answers::json(&mut paths);
    }
    if terms.quick {
        answers::quick(&mut paths);
    }
    let guard = from_fn_with_state((edge.clone(), terms), layers::guard);
    (schemas, paths, methods.route_layer(guard))
}

/// For handlers that ask auth themselves.
fn proves_itself(edge: &Arc<Edge>, (schemas, mut paths, methods): Routes) -> Routes {
    answers::guarded(&mut paths);
    roomy(edge, (schemas, paths, methods))
}

/// For handlers that do with nothing in the body.
fn without_body((schemas, mut paths, methods): Routes) -> Routes {
    answers::without_body(&mut paths);
    (schemas, paths, methods)
}

/// For short requests that anyone may send; outside of what gives them a place.
fn short(edge: &Arc<Edge>, limit: ByteSize, (schemas, paths, methods): Routes) -> Routes {
    let layer = from_fn_with_state((edge.clone(), limit), layers::whole);
    (schemas, paths, methods.route_layer(layer))
}

/// Sheds load before anything is done for a request, its authentication included.
fn roomy(edge: &Arc<Edge>, (schemas, mut paths, methods): Routes) -> Routes {
    answers::roomy(&mut paths);
    let layer = from_fn_with_state(edge.clone(), layers::shed);
    (schemas, paths, methods.route_layer(layer))
}

/// For what anyone may have and is long.
fn without_key(edge: &Arc<Edge>, (schemas, mut paths, methods): Routes) -> Routes {
    answers::roomy(&mut paths);
    let layer = from_fn_with_state(edge.clone(), layers::without_key);
    (schemas, paths, methods.route_layer(layer))
}

/// For what answers at once; outside of all else, so that the deadline covers it. What is [`guarded`] has that deadline there.
fn quick(edge: &Arc<Edge>, (schemas, mut paths, methods): Routes) -> Routes {
    answers::quick(&mut paths);
    let layer = from_fn_with_state(edge.clone(), layers::deadline);
    (schemas, paths, methods.route_layer(layer))
}

async fn nothing_here(uri: Uri) -> impl IntoResponse {
    let path = uri.path();
    let mut message = format!("there is nothing at {}", shorten(path));
    if Dialect::of_path(path) == Dialect::OpenAi && !path.starts_with("/v1/") {
        message.push_str("; the base URL of an OpenAI client ends in /v1");
    } else if path == "/v1/images/variations" {
        message.push_str("; to draw from a picture, use ");
        message.push_str(openai::EDITS);
    }
    Refused(Failure::new(ErrorCode::NotFound, message))
}

async fn not_this_way(method: Method, request: Request) -> impl IntoResponse {
    let (method, path) = (shorten(method.as_str()), shorten(request.uri().path()));
    let message = format!("{path} does not take {method}; the Allow header lists what it takes");
    Refused(Failure::new(ErrorCode::MethodNotAllowed, message))
}

#[cfg(test)]
mod tests {
    use std::task::Poll;

    use axum::body::Body;
    use axum::http::{StatusCode, header};
    use axum::response::Response;
    use futures::FutureExt as _;
    use futures::future::LocalBoxFuture;
    use lifecycle::Service;
    use tower::ServiceExt as _;

    use super::*;
    use crate::crowd::Network;
    use crate::edge::tests::edge;
    use crate::unread::tests::tenant;

    #[tokio::test]
    async fn the_document_is_the_same_whenever_it_is_made() {
        let (service, storage) = (Service::new("test"), tempfile::tempdir().unwrap());
        let edge = Arc::new(edge(&service, &storage));
        let made = || {
            let (_, mut document) = described(&edge).split_for_parts();
            openapi::finish(&mut document);
            text(&document)
        };
        let first = made();
        // Of two words that come in any order half the documents would have the other first.
        for _ in 0..16 {
            assert!(made() == first, "a part of it comes in another order");
        }
    }

    #[tokio::test]
    async fn what_a_head_shows_is_refused_before_a_proof_is_looked_for_and_so_is_what_there_is_no_room_for()
     {
        let (service, storage) = (Service::new("test"), tempfile::tempdir().unwrap());
        let edge = Arc::new(edge(&service, &storage));
        let router = http(&edge);
        let refused = async |head: &[(&str, &str)]| {
            let mut request = axum::http::Request::post("/v1/tasks");
            for (name, value) in head {
                request = request.header(*name, *value);
            }
            let request = request.body(Body::empty()).unwrap();
            router.clone().oneshot(request).await.unwrap().status()
        };
        let (host, long) = (("host", "x"), ("content-length", "1000000000"));
        let (text, json) = (
            ("content-type", "text/plain"),
            ("content-type", "application/json"),
        );
        // What is wrong with it besides comes later.
        assert_eq!(refused(&[long, text]).await, StatusCode::BAD_REQUEST);
        let long = refused(&[host, long, text]).await;
        assert_eq!(long, StatusCode::PAYLOAD_TOO_LARGE);
        let more = edge.http.max_unread_bytes.bytes() + 1;
        assert_eq!(refused(&[host, json]).await, StatusCode::UNAUTHORIZED);
        edge.unread.add(&tenant("one"), more);
        let text = refused(&[host, text]).await;
        assert_eq!(text, StatusCode::UNSUPPORTED_MEDIA_TYPE);
        let full = refused(&[host, json]).await;
        assert_eq!(full, StatusCode::SERVICE_UNAVAILABLE);
    }

    #[tokio::test]
    async fn one_address_has_a_share_of_streams_without_a_key_and_another_is_served() {
        let (service, storage) = (Service::new("test"), tempfile::tempdir().unwrap());
        let edge = Arc::new(edge(&service, &storage));
        let (router, _reporter) = grpc(&edge).unwrap();
        let watch = async |address: &str| {
            let request = axum::http::Request::post("/grpc.health.v1.Health/Watch");
            let request = request
                .header(header::HOST, "x")
                .header(header::CONTENT_TYPE, "application/grpc");
            let mut request = request.body(Body::from(vec![0; 5])).unwrap();
            let from = Network::of(address.parse().unwrap());
            request.extensions_mut().insert(from);
            router.clone().oneshot(request).await.unwrap()
        };
        // Of a refusal the status is in the head.
        let refused = |answer: &axum::response::Response| {
            let status = answer.headers().get("grpc-status");
            status.map(|status| status.to_str().unwrap().to_owned())
        };
        let mut open = Vec::new();
        // A quarter of 256, as of connections.
        for _ in 0..64 {
            let answer = watch("2001:db8::1").await;
            assert_eq!(refused(&answer), None);
            open.push(answer);
        }
        let over = (tonic::Code::ResourceExhausted as i32).to_string();
        // One holder has a whole network.
        let answer = watch("2001:db8::2").await;
        assert_eq!(refused(&answer), Some(over));
        for other in ["2001:db8:0:1::1", "10.0.0.1"] {
            assert_eq!(refused(&watch(other).await), None, "{other}");
        }
        drop(open);
        assert_eq!(refused(&watch("2001:db8::2").await), None);
    }

    #[tokio::test]
    async fn probes_over_grpc_are_answered_while_too_much_is_unread_and_other_calls_are_refused() {
        let (service, storage) = (Service::new("test"), tempfile::tempdir().unwrap());
        let edge = Arc::new(edge(&service, &storage));
        edge.unread
            .add(&tenant("one"), edge.http.max_unread_bytes.bytes() + 1);
        let (router, _reporter) = grpc(&edge).unwrap();
        // Of a refusal the status is in the head.
        let refused = async |path: &str| {
            let request = axum::http::Request::post(path);
            let request = request
                .header(header::HOST, "x")
                .header(header::CONTENT_TYPE, "application/grpc");
            // An empty message.
            let request = request.body(Body::from(vec![0; 5])).unwrap();
            let answer = router.clone().oneshot(request).await.unwrap();
            let status = answer.headers().get("grpc-status").cloned();
            status.map(|status| status.to_str().unwrap().to_owned())
        };
        for path in [
            "/grpc.health.v1.Health/Check",
            "/inference.GRPCInferenceService/ServerLive",
            "/inference.GRPCInferenceService/ServerReady",
            "/inference.GRPCInferenceService/ServerMetadata",
        ] {
            assert_eq!(refused(path).await, None, "{path}");
        }
        for path in [
            "/inference.GRPCInferenceService/ModelReady",
            "/inkstone.v1.ImageService/Get",
        ] {
            let unavailable = (tonic::Code::Unavailable as i32).to_string();
            assert_eq!(refused(path).await, Some(unavailable), "{path}");
        }
    }

    type Answered = Result<Response, std::convert::Infallible>;

    /// Asks with a key of which auth has said nothing yet, until it is refused: how many wait for auth then, and the refusal. No more than
    /// `enough` ask.
    async fn until_refused(
        router: &Router,
        (method, path): (&str, &str),
        address: &str,
        enough: usize,
    ) -> (Vec<LocalBoxFuture<'static, Answered>>, Option<Response>) {
        let mut waiting = Vec::new();
        while waiting.len() < enough {
            let request = axum::http::Request::builder().method(method).uri(path);
            let request = request
                .header(header::HOST, "x")
                .header(header::AUTHORIZATION, "Bearer wrong")
                .header(header::CONTENT_TYPE, "application/json");
            let mut request = request.body(Body::from("{}")).unwrap();
            let from = Network::of(address.parse().unwrap());
            request.extensions_mut().insert(from);
            let mut asking = router.clone().oneshot(request).boxed_local();
            match futures::poll!(asking.as_mut()) {
                Poll::Ready(answer) => return (waiting, Some(answer.unwrap())),
                Poll::Pending => waiting.push(asking),
            }
        }
        (waiting, None)
    }

    /// Of each class one, and how many of it one address has when it is refused another: of 2048, 2048 and 1024 places three quarters, as a quarter
    /// of them is left for other addresses; but so is one of the 4096 proofs, so that of the last class it has its own quarter alone.
    const EACH_CLASS: [((&str, &str), usize); 3] = [
        (("POST", "/v1/tasks"), 1536),
        (("POST", "/v1/images/generations"), 1536),
        (("GET", "/v1/models"), 256),
    ];

    #[tokio::test]
    async fn a_flood_of_keys_from_one_address_leaves_places_and_auth_to_callers_from_another() {
        let (service, storage) = (Service::new("test"), tempfile::tempdir().unwrap());
        let edge = Arc::new(edge(&service, &storage));
        let router = http(&edge);
        let mut flood = Vec::new();
        for (line, most) in EACH_CLASS {
            let (waiting, refused) = until_refused(&router, line, "2001:db8::1", 5000).await;
            assert_eq!(waiting.len(), most, "{line:?}");
            let refused = refused.unwrap();
            assert_eq!(refused.status(), StatusCode::TOO_MANY_REQUESTS, "{line:?}");
            assert_eq!(refused.headers()[header::RETRY_AFTER], "1");
            flood.push(waiting);
            // One holder has a whole network.
            let (same, _) = until_refused(&router, line, "2001:db8::2", 1).await;
            assert!(same.is_empty(), "{line:?}");
            let (other, _) = until_refused(&router, line, "2001:db8:0:1::1", 1).await;
            assert_eq!(other.len(), 1, "{line:?}");
        }
        drop(flood);
        for (line, _) in EACH_CLASS {
            let (again, _) = until_refused(&router, line, "2001:db8::2", 1).await;
            assert_eq!(again.len(), 1, "{line:?}");
        }
    }

    #[tokio::test]
    async fn behind_a_proxy_as_many_wait_for_auth_as_there_are_places() {
        let (service, storage) = (Service::new("test"), tempfile::tempdir().unwrap());
        let mut edge = edge(&service, &storage);
        edge.http.max_connections_per_address = edge.http.max_connections;
        let router = http(&Arc::new(edge));
        let (line, _) = EACH_CLASS[0];
        let (waiting, refused) = until_refused(&router, line, "10.0.0.1", 5000).await;
        assert_eq!(waiting.len(), 2048);
        let refused = refused.unwrap();
        assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);
    }
}
