//! What every request passes before its handler. `router.rs` puts these in order; where several are one layer, it says the order itself, and why.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use contract::{ErrorCode, Failure};
use futures::FutureExt as _;
use http_body_util::BodyExt as _;
use settings::ByteSize;
use tracing::Instrument as _;
use uuid::Uuid;

use crate::counts::Counts;
use crate::crowd::Network;
use crate::edge::Edge;
use crate::problem::{self, Dialect, Refused};
use crate::records::MODEL_STREAM_INFER;
use crate::room::{Class, Place, Room, Share};
use crate::{auth, bodies, heads, json};

/// Carries a request's id in and out.
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const MAX_REQUEST_ID_BYTES: usize = 128;
/// Asks for health once; what else is asked of it comes as a stream.
const HEALTH_CHECK: &str = "/grpc.health.v1.Health/Check";
/// How long the whole of a short request may take that anyone may send.
const SHORT_PATIENCE: Duration = Duration::from_secs(2);
/// The route of what has none. One name for all, or anyone could make a time series a request.
const UNMATCHED: &str = "unmatched";

/// The id of the request that is being answered.
#[derive(Debug, Clone)]
pub(crate) struct RequestId(pub(crate) Arc<str>);

/// What [`observe`] needs.
#[derive(Clone)]
pub(crate) struct Observer {
    counts: Arc<Counts>,
    /// Bodies over their limit are refused at once; where there is none, each message has a limit of its own.
    limits: Option<Arc<Edge>>,
}

impl Observer {
    pub(crate) fn new(limits: Option<Arc<Edge>>) -> Self {
        let counts = Arc::default();
        Self { counts, limits }
    }

    /// What comes out of a request: a head that can be read in two ways is refused before anyone reads it, a body over the limit before
    /// anyone works for it, and a panic anywhere inside becomes an answer like any other.
    async fn answer(&self, request: Request, next: Next) -> Response {
        let checked = heads::is_read_in_one_way(&request);
        let checked = checked.and_then(|()| match &self.limits {
            Some(edge) => bodies::check_length(edge, &request),
            None => Ok(()),
        });
        match checked {
            Ok(()) => {
                let answer = AssertUnwindSafe(next.run(request)).catch_unwind().await;
                answer.unwrap_or_else(panicked)
            }
            Err(failure) => Refused(failure).into_response(),
        }
    }
}

/// Gives the request an id and a span, counts it, and puts a refusal into the words of its dialect.
pub(crate) async fn observe(
    State(observer): State<Observer>,
    mut request: Request,
    next: Next,
) -> Response {
    let began = std::time::Instant::now();
    let dialect = Dialect::of(&request);
    let route = request.extensions().get::<MatchedPath>().cloned();
    let id = request_id(request.headers());
    let called = (dialect == Dialect::Grpc).then(|| request.uri().clone());
    // Of the highest level, so that no filter of log lines takes the trace out of answers.
    let span = tracing::error_span!(
        "request",
        otel.kind = "server",
        dialect = dialect.as_str(),
        method = %request.method(),
        path = request.uri().path(),
        request_id = &*id.0,
    );
    telemetry::continue_trace(&span, |name| {
        request.headers().get(name).and_then(|v| v.to_str().ok())
    });
    request.extensions_mut().insert(id.clone());
    let mut response = async {
        let mut response = observer.answer(request, next).await;
        if let Some(called) = &called {
            problem::in_our_words(called.path(), &mut response);
        }
        let response = problem::in_words(dialect, &id.0, response);
        tracing::debug!(status = response.status().as_u16(), "answered");
        response
    }
    .instrument(span.clone())
    .await;
    let headers = response.headers_mut();
    // The id is visible ASCII by construction.
    if let Ok(value) = HeaderValue::from_str(&id.0) {
        headers.insert(REQUEST_ID, value);
    }
    if let Some(Ok(value)) = telemetry::traceparent(&span).map(|v| HeaderValue::from_str(&v)) {
        headers.insert(telemetry::TRACEPARENT, value);
    }
    let route = route.as_ref().map_or(UNMATCHED, MatchedPath::as_str);
    let took = began.elapsed();
    observer.counts.count(dialect, route, &response, took);
    response
}

/// The caller's id, if it is one, and one that can stand in a log line; else a new one.
fn request_id(headers: &HeaderMap) -> RequestId {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
    let sane =
        |text: &&str| (1..=MAX_REQUEST_ID_BYTES).contains(&text.len()) && text.bytes().all(plain);
    let given = headers
        .get(REQUEST_ID)
        .and_then(|v| v.to_str().ok())
        .filter(sane)
        .filter(|_| !heads::is_repeated(headers, REQUEST_ID.as_str()));
    RequestId(given.map_or_else(|| Uuid::now_v7().to_string().into(), Arc::from))
}

/// The answer to a request whose handler panicked.
fn panicked(panic: Box<dyn std::any::Any + Send>) -> Response {
    let text = panic.downcast_ref::<&str>().copied();
    let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    tracing::error!(
        "a handler panicked: {}",
        text.unwrap_or("without a message")
    );
    let message = "something broke while this was handled; the log has it under the request's id";
    Refused(Failure::new(ErrorCode::Internal, message)).into_response()
}

/// What a route asks of requests that need a key.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Terms {
    /// The answer comes at once, or not at all.
    pub(crate) quick: bool,
    /// The body is JSON. Headers tell, so it costs the caller nothing of its rate limit.
    pub(crate) json: bool,
}

/// What stands between a request and a handler for callers that auth knows. From the outside in: the deadline, what the headers say of the body,
/// room, and only then a proof, because to verify one is work as well. All in one layer: with each layer more, what is behind it is put
/// into a box, once for each request.
pub(crate) async fn guard(
    State((edge, terms)): State<(Arc<Edge>, Terms)>,
    request: Request,
    next: Next,
) -> Response {
    let limit = terms.quick.then(|| edge.http.request_timeout.duration());
    let work = async {
        if terms.json
            && let Err(failure) = json::check_media_type(request.headers())
        {
            return Refused(failure).into_response();
        }
        enter_and_prove(edge, request, next).await
    };
    match limit {
        Some(limit) => within(limit, work).await,
        None => work.await,
    }
}

/// The same over gRPC. A stream's answer begins at once; how long it goes on is not limited here.
pub(crate) async fn grpc_guard(
    State(edge): State<Arc<Edge>>,
    request: Request,
    next: Next,
) -> Response {
    let limit = asked_for(&request, edge.http.request_timeout.duration());
    within(limit, enter_and_prove(edge, request, next)).await
}

async fn enter_and_prove(edge: Arc<Edge>, mut request: Request, next: Next) -> Response {
    match enter(&edge, &mut request) {
        Ok(_place) => auth::authenticate(State(edge), request, next).await,
        Err(failure) => Refused(failure).into_response(),
    }
}

/// Ends a request that takes longer than one that answers at once may.
pub(crate) async fn deadline(
    State(edge): State<Arc<Edge>>,
    request: Request,
    next: Next,
) -> Response {
    within(edge.http.request_timeout.duration(), next.run(request)).await
}

async fn within(limit: Duration, work: impl Future<Output = Response>) -> Response {
    let work = rpc::deadline::within(limit, work);
    match tokio::time::timeout(limit, work).await {
        Ok(response) => response,
        Err(_) => {
            let message = format!("the request took longer than {limit:?}");
            Refused(Failure::new(ErrorCode::DeadlineExceeded, message)).into_response()
        }
    }
}

/// Ends a gRPC call at the deadline that its caller set, or at that of any request, whichever comes first. A stream's
/// answer begins at once; how long it goes on is not limited here.
pub(crate) async fn grpc_deadline(
    State(edge): State<Arc<Edge>>,
    request: Request,
    next: Next,
) -> Response {
    let limit = asked_for(&request, edge.http.request_timeout.duration());
    within(limit, next.run(request)).await
}

/// The same for calls that wait for pictures.
pub(crate) async fn grpc_generation_deadline(
    State(edge): State<Arc<Edge>>,
    request: Request,
    next: Next,
) -> Response {
    // A generation ends itself with a better word; this is for what comes before and after it.
    let spare = edge.http.request_timeout.duration();
    let most = edge.http.generation_timeout.duration() + spare;
    within(asked_for(&request, most), next.run(request)).await
}

/// How long a caller of gRPC waits, `most` at most.
fn asked_for(request: &Request, most: Duration) -> Duration {
    let asked = request.headers().get("grpc-timeout");
    let asked = asked.and_then(|value| rpc::deadline::parse(value.to_str().ok()?));
    asked.map_or(most, |asked| asked.min(most))
}

/// Refuses at once what there is no room for, rather than let everything become slow. Requests that make tasks, those that wait for
/// pictures as well, and those that look have places of their own. Who asks is not known yet; what one tenant may hold is looked at
/// once it is.
pub(crate) async fn shed(
    State(edge): State<Arc<Edge>>,
    mut request: Request,
    next: Next,
) -> Response {
    match enter(&edge, &mut request) {
        Ok(_place) => next.run(request).await,
        Err(failure) => Refused(failure).into_response(),
    }
}

/// The same for probes, whatever is unread: what they are answered is short and not counted, and who hears nothing may start a gateway
/// anew that is well.
pub(crate) async fn shed_but_for_unread(
    State(edge): State<Arc<Edge>>,
    mut request: Request,
    next: Next,
) -> Response {
    match take_place(&edge, &mut request) {
        Ok(_place) => next.run(request).await,
        Err(failure) => Refused(failure).into_response(),
    }
}

/// A request's place, until it is answered.
fn enter(edge: &Edge, request: &mut Request) -> Result<Place, Failure> {
    edge.unread.admit()?;
    take_place(edge, request)
}

fn take_place(edge: &Edge, request: &mut Request) -> Result<Place, Failure> {
    let path = request.uri().path();
    let class = Class::of(request.method(), path, request.headers());
    let place = edge.room(class).enter()?;
    request.extensions_mut().insert(class);
    Ok(place)
}

/// Has the whole of a short request that anyone may send, before it takes a place: whoever begins many and ends none keeps nobody out.
/// The limit is that of its body.
pub(crate) async fn whole(
    State((edge, limit)): State<(Arc<Edge>, ByteSize)>,
    request: Request,
    next: Next,
) -> Response {
    match arrived(&edge, limit, request).await {
        Ok(request) => next.run(request).await,
        Err(failure) => Refused(failure).into_response(),
    }
}

/// A request whose body has arrived.
///
/// # Errors
/// One over the limit, or that does not arrive in time.
pub(crate) async fn arrived(
    edge: &Edge,
    limit: ByteSize,
    request: Request,
) -> Result<Request, Failure> {
    let (head, body) = request.into_parts();
    let body = json::read_at_most(body, limit, &edge.http);
    let Ok(body) = tokio::time::timeout(SHORT_PATIENCE, body).await else {
        let message = format!("the body did not arrive within {SHORT_PATIENCE:?}");
        return Err(Failure::new(ErrorCode::DeadlineExceeded, message));
    };
    Ok(Request::from_parts(head, Body::from(body?)))
}

/// Has the whole message of a call that has one before it is decoded, within the time that any body has. Whoever never ends one keeps its place
/// no longer than that, however long pictures may take; and what a message becomes in memory is looked at as soon as it is there.
pub(crate) async fn message(
    State((edge, limit)): State<(Arc<Edge>, ByteSize)>,
    request: Request,
    next: Next,
) -> Response {
    if request.uri().path() == MODEL_STREAM_INFER {
        return next.run(request).await;
    }
    let (head, body) = request.into_parts();
    match json::read_at_most(body, limit, &edge.http).await {
        Ok(body) => {
            let request = Request::from_parts(head, Body::from(body));
            next.run(request).await
        }
        Err(failure) => Refused(failure).into_response(),
    }
}

/// Refuses what anyone may ask for while too much of it is unread.
pub(crate) async fn without_key(
    State(edge): State<Arc<Edge>>,
    request: Request,
    next: Next,
) -> Response {
    let from = request.extensions().get::<Network>().copied();
    match edge.unread.admit_without_key(from) {
        Ok(()) => next.run(request).await,
        Err(failure) => Refused(failure).into_response(),
    }
}

/// Refuses a stream without a key when too many are open, of its address or of all. One that is let through has its place until it
/// ends.
pub(crate) async fn stream_without_key(
    State(edge): State<Arc<Edge>>,
    request: Request,
    next: Next,
) -> Response {
    if request.uri().path() == HEALTH_CHECK {
        return next.run(request).await;
    }
    let from = request.extensions().get::<Network>().copied();
    let held = match place_for_stream(&edge.streams_without_key, from) {
        Ok(held) => held,
        Err(failure) => return Refused(failure).into_response(),
    };
    let response = next.run(request).await;
    response.map(|body| {
        Body::new(body.map_frame(move |frame| {
            let _held = &held;
            frame
        }))
    })
}

fn place_for_stream(room: &Room, from: Option<Network>) -> Result<(Place, Option<Share>), Failure> {
    let place = room.enter()?;
    let share = from.map(|network| room.share_of_address(network));
    Ok((place, share.transpose()?))
}

#[cfg(test)]
mod tests {
    use axum::Router;
    use axum::middleware::from_fn_with_state;
    use bytes::Bytes;
    use lifecycle::Service;
    use tower::ServiceExt as _;

    use super::*;
    use crate::edge::tests::edge;
    use crate::records::MODEL_INFER;

    async fn decoded() -> &'static str {
        "decoded"
    }

    #[tokio::test]
    async fn a_call_goes_on_when_its_message_is_there_whole_and_ends_when_it_does_not_come() {
        let (service, storage) = (Service::new("test"), tempfile::tempdir().unwrap());
        let mut edge = edge(&service, &storage);
        edge.http.request_timeout = Duration::from_millis(50).into();
        let state = (Arc::new(edge), ByteSize::of(8));
        let router = Router::new().fallback(decoded);
        let router = router.layer(from_fn_with_state(state, message));
        let refused = async |path: &str, body: Body| {
            let request = axum::http::Request::post(path).body(body).unwrap();
            let response = router.clone().oneshot(request).await.unwrap();
            let refused = response.extensions().get::<Refused>();
            refused.map(|refused| refused.0.code)
        };
        let never = || Body::from_stream(futures::stream::pending::<Result<Bytes, axum::Error>>());
        assert_eq!(refused(MODEL_INFER, Body::from("8 bytes.")).await, None);
        let long = refused(MODEL_INFER, Body::from("9 bytes..")).await;
        assert_eq!(long, Some(ErrorCode::PayloadTooLarge));
        let late = refused(MODEL_INFER, never()).await;
        assert_eq!(late, Some(ErrorCode::DeadlineExceeded));
        // Of a stream each message comes when it comes.
        assert_eq!(refused(MODEL_STREAM_INFER, never()).await, None);
    }

    async fn breaks() -> &'static str {
        panic!("on purpose")
    }

    #[tokio::test]
    async fn a_panic_is_answered_in_the_words_of_its_dialect_and_with_the_requests_id() {
        let router = Router::new().fallback(breaks);
        let router = router.layer(from_fn_with_state(Observer::new(None), observe));
        let answer = async |kind: &str| {
            let request = axum::http::Request::post("/v1/tasks")
                .header("host", "x")
                .header("x-request-id", "mine")
                .header("content-type", kind);
            let request = request.body(Body::empty()).unwrap();
            let response = router.clone().oneshot(request).await.unwrap();
            assert_eq!(response.headers()["x-request-id"], "mine");
            response
        };
        let own = answer("application/json").await;
        assert_eq!(own.status(), ErrorCode::Internal.http());
        let body = axum::body::to_bytes(own.into_body(), usize::MAX);
        let body = String::from_utf8(body.await.unwrap().to_vec()).unwrap();
        assert!(body.contains("\"code\":\"internal\""), "{body}");
        assert!(!body.contains("on purpose"), "{body}");
        let grpc = answer("application/grpc").await;
        assert_eq!(grpc.headers()["grpc-status"], "13");
    }

    #[test]
    fn a_sane_request_id_is_kept_and_any_other_replaced() {
        let with = |value: &[u8]| {
            let value = HeaderValue::from_bytes(value).unwrap();
            request_id(&HeaderMap::from_iter([(REQUEST_ID, value)])).0
        };
        assert_eq!(&*with(b"a.B_9-"), "a.B_9-");
        assert_eq!(with(&[b'x'; 128]).len(), 128);
        for bad in [&b""[..], b"a b", b"a\"b", &[0xe9], &[b'x'; 129]] {
            assert!(with(bad).parse::<Uuid>().is_ok(), "{bad:?}");
        }
        let mut twice = HeaderMap::new();
        for id in ["a", "b"] {
            twice.append(REQUEST_ID, HeaderValue::from_static(id));
        }
        assert!(request_id(&twice).0.parse::<Uuid>().is_ok());
    }
}
