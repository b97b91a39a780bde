//! From a failure to an answer: the one place that knows how each dialect says no.
//!
//! Handlers and layers return a [`Refused`]; the outermost layers know the dialect and the request's id and
//! [put it into words](answer).

use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderMap, HeaderValue, Request, header};
use axum::response::{IntoResponse, Response};
use contract::error::is_of_a_service;
use contract::{ErrorCode, Failure};
use serde::Serialize;
use tonic::{Code, Status};

use crate::{dashscope, oip, openai};

/// What OpenAI's clients ask for first. Most of it is not served, and they show a refusal in other words than theirs as an empty one.
const OPENAI: &[&str] = &[
    "assistants",
    "audio",
    "batches",
    "chat",
    "completions",
    "containers",
    "conversations",
    "embeddings",
    "evals",
    "files",
    "fine_tuning",
    "images",
    "models",
    "moderations",
    "realtime",
    "responses",
    "threads",
    "uploads",
    "vector_stores",
    "videos",
];
/// How the library of messages begins to tell of one that cannot be read.
const UNREADABLE: &str = "failed to decode Protobuf message";
/// Characters of a method's path that are told to whoever called it: all that there are have fewer.
const LONGEST_METHOD: usize = 200;

/// Whose words a caller expects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Dialect {
    /// Our own paths, and everything that nobody claims: RFC 9457.
    Own,
    /// OpenAI's, also where its clients lead with a wrong base URL.
    OpenAi,
    /// DashScope.
    DashScope,
    /// The Open Inference Protocol over HTTP.
    Oip,
    /// gRPC.
    Grpc,
}

impl Dialect {
    /// The dialect of a request.
    pub(crate) fn of<B>(request: &Request<B>) -> Self {
        if is_grpc(request.headers()) {
            return Self::Grpc;
        }
        Self::of_path(request.uri().path())
    }

    /// The dialect of what is not gRPC, by its path.
    pub(crate) fn of_path(path: &str) -> Self {
        let under = |root: &str| {
            path.strip_prefix(root)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        // Without `/v1` where the base URL lacks it.
        let asked = path.strip_prefix("/v1").unwrap_or(path);
        let asked = asked.strip_prefix('/').and_then(|p| p.split('/').next());
        if asked.is_some_and(|first| OPENAI.contains(&first)) {
            Self::OpenAi
        } else if under("/api/v1") {
            Self::DashScope
        } else if under("/v2") {
            Self::Oip
        } else {
            Self::Own
        }
    }

    /// The name in logs and metrics.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Own => "own",
            Self::OpenAi => "openai",
            Self::DashScope => "dashscope",
            Self::Oip => "oip",
            Self::Grpc => "grpc",
        }
    }
}

/// Whether a request is a gRPC call, by its content type.
pub(crate) fn is_grpc(headers: &HeaderMap) -> bool {
    let kind = headers.get(header::CONTENT_TYPE).map(HeaderValue::as_bytes);
    kind.is_some_and(|kind| kind.starts_with(b"application/grpc"))
}

/// A failure on its way out, before anyone has put it into words.
#[derive(Debug, Clone)]
pub(crate) struct Refused(pub(crate) Failure);

impl From<Failure> for Refused {
    fn from(failure: Failure) -> Self {
        Self(failure)
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let mut response = self.0.code.http().into_response();
        response.extensions_mut().insert(self);
        response
    }
}

/// RFC 9457 problem details with our code.
#[derive(Debug, Serialize)]
pub(crate) struct Problem<'a> {
    r#type: String,
    title: String,
    status: u16,
    detail: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    instance: Option<&'a str>,
    code: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    field: Option<&'a str>,
}

impl<'a> Problem<'a> {
    /// The problem that `failure` is; `instance` is the request's id.
    pub(crate) fn new(failure: &'a Failure, instance: Option<&'a str>) -> Self {
        Self {
            r#type: format!("/docs/errors/{}", failure.code),
            title: title(failure.code),
            status: failure.code.http().as_u16(),
            detail: &failure.message,
            instance,
            code: failure.code.as_str(),
            field: failure.field.as_deref(),
        }
    }
}

/// `idempotency_conflict` as people write it: `Idempotency conflict`.
fn title(code: ErrorCode) -> String {
    let words = code.as_str().replace('_', " ");
    let (first, rest) = words.split_at(1);
    first.to_ascii_uppercase() + rest
}

/// A complaint about a field of the contract, by the name that its caller wrote.
pub(crate) fn by_name(failure: Failure, name: &str) -> Failure {
    let field = failure.field.as_deref().unwrap_or_default();
    let rest = failure.message.strip_prefix(field);
    let message = match rest.filter(|rest| rest.starts_with([' ', '.', '[', ':'])) {
        Some(rest) => format!("{name}{rest}"),
        None => format!("{name}: {}", failure.message),
    };
    Failure {
        field: Some(name.to_owned()),
        message,
        ..failure
    }
}

/// The same in dialects that ask by `n` for how many pictures, and have both their sides in `size`.
pub(crate) fn by_n_and_size(failure: Failure) -> Failure {
    let field = failure.field.clone().unwrap_or_default();
    match field.as_str() {
        "images" => by_name(failure, "n"),
        // Which of the two is meant is said behind it.
        "width" | "height" => Failure {
            field: Some("size".to_owned()),
            message: format!("size: {}", failure.message),
            ..failure
        },
        _ => failure,
    }
}

/// The answer to a request that failed.
pub(crate) fn answer(dialect: Dialect, failure: Failure, request_id: &str) -> Response {
    let own_fault = failure.code.http().is_server_error();
    if own_fault {
        tracing::warn!(code = %failure.code, "answers with a failure: {}", failure.message);
    }
    let status = failure.code.http();
    let waits = retry_after(&failure);
    let unauthenticated = failure.code == ErrorCode::Unauthenticated;
    let next_day = failure.code == ErrorCode::QuotaExceeded;
    let mut response = match dialect {
        Dialect::Grpc => return Status::from(failure).into_http(),
        Dialect::Own => {
            let problem = text(&Problem::new(&failure, Some(request_id)));
            let kind = [(header::CONTENT_TYPE, "application/problem+json")];
            (status, kind, problem).into_response()
        }
        Dialect::OpenAi => {
            let kind = [(header::CONTENT_TYPE, "application/json")];
            (status, kind, text(&openai::Error::new(&failure))).into_response()
        }
        Dialect::DashScope => {
            let kind = [(header::CONTENT_TYPE, "application/json")];
            let error = text(&dashscope::Error::new(&failure, request_id));
            (status, kind, error).into_response()
        }
        Dialect::Oip => {
            let kind = [(header::CONTENT_TYPE, "application/json")];
            (status, kind, text(&oip::Error::new(&failure))).into_response()
        }
    };
    let headers = response.headers_mut();
    // The OpenAI packages send a request again after 409 and 5xx unless told not to, and the task would be drawn anew. After 429 they do so
    // within seconds, however long the wait: too soon for another day.
    if dialect == Dialect::OpenAi && (waits.is_none() || next_day) {
        headers.insert("x-should-retry", HeaderValue::from_static("false"));
    }
    if let Some(seconds) = waits {
        headers.insert(header::RETRY_AFTER, seconds.into());
    }
    if unauthenticated {
        let ways = HeaderValue::from_static("Bearer realm=\"inkstone\"");
        headers.insert(header::WWW_AUTHENTICATE, ways);
    }
    response
}

/// Puts a [`Refused`] into words and leaves any other response as it is. Headers that layers have set stay.
pub(crate) fn in_words(dialect: Dialect, request_id: &str, mut response: Response) -> Response {
    let Some(Refused(failure)) = response.extensions_mut().remove::<Refused>() else {
        return response;
    };
    let mut answered = answer(dialect, failure, request_id);
    for (name, value) in response.headers() {
        if name != header::CONTENT_LENGTH && name != header::CONTENT_TYPE {
            answered.headers_mut().insert(name, value.clone());
        }
    }
    answered
}

/// What the library of gRPC says by itself of a call of `path`, if that is for us to say: of a method that there is not it says nothing,
/// and a message that cannot be read it takes for a fault of ours.
pub(crate) fn of_the_library(path: &str, status: &Status) -> Option<Failure> {
    if is_of_a_service(status) {
        return None;
    }
    let said = status.message();
    match status.code() {
        Code::Unimplemented if said.is_empty() => {
            let path: String = path.chars().take(LONGEST_METHOD).collect();
            let message = format!("there is no method {path}");
            Some(Failure::new(ErrorCode::MethodNotAllowed, message))
        }
        Code::Internal if said.starts_with(UNREADABLE) => {
            Some(Failure::new(ErrorCode::InvalidArgument, said))
        }
        _ => None,
    }
}

/// Puts what the library says by itself of a call into our words. Headers that layers have set stay.
pub(crate) fn in_our_words(path: &str, response: &mut Response) {
    // An answer that goes on has its status behind it.
    let said = Status::from_header_map(response.headers());
    let Some(failure) = said.and_then(|status| of_the_library(path, &status)) else {
        return;
    };
    let status = Status::from(failure);
    // Only what cannot stand in a header keeps it out, and the message is escaped.
    if status.add_header(response.headers_mut()).is_ok() {
        response.extensions_mut().insert(status);
    }
}

/// Whole seconds until a retry makes sense; never 0, which would mean at once.
fn retry_after(failure: &Failure) -> Option<u64> {
    let tells = matches!(failure.code.http().as_u16(), 429 | 503);
    let wait = match failure.retry_after {
        Some(wait) => wait,
        None if tells => Duration::from_secs(1),
        None => return None,
    };
    Some(whole_seconds(wait).max(1))
}

/// Seconds, rounded up.
pub(crate) fn whole_seconds(wait: Duration) -> u64 {
    wait.as_secs() + u64::from(wait.subsec_nanos() > 0)
}

/// JSON text of one of our own types.
pub(crate) fn text<T: Serialize>(value: &T) -> String {
    // Our types have string keys and finite depth, which is all that serialization can fail on.
    serde_json::to_string(value).unwrap_or_default()
}

/// A JSON answer.
pub(crate) fn json<T: Serialize>(value: &T) -> Response {
    let kind = [(header::CONTENT_TYPE, "application/json")];
    (kind, Body::from(text(value))).into_response()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use lifecycle::Service;
    use tower::ServiceExt as _;

    use super::*;
    use crate::edge::tests::edge;
    use crate::router::grpc;

    #[test]
    fn a_path_belongs_to_the_dialect_whose_root_it_is_under() {
        let of = |path: &str| Dialect::of(&Request::get(path).body(()).unwrap());
        assert_eq!(of("/v1/images/generations"), Dialect::OpenAi);
        assert_eq!(of("/v1/models"), Dialect::OpenAi);
        assert_eq!(of("/v1/modelsx"), Dialect::Own);
        assert_eq!(of("/v1/chat/completions"), Dialect::OpenAi);
        assert_eq!(of("/v1/responses"), Dialect::OpenAi);
        assert_eq!(of("/images/generations"), Dialect::OpenAi);
        assert_eq!(of("/models"), Dialect::OpenAi);
        assert_eq!(of("/v1models"), Dialect::Own);
        assert_eq!(of("/v1"), Dialect::Own);
        assert_eq!(of("/v1/tasks/images"), Dialect::Own);
        assert_eq!(of("/api/v1/tasks/x"), Dialect::DashScope);
        assert_eq!(of("/v2"), Dialect::Oip);
        assert_eq!(of("/v2/models/m/infer"), Dialect::Oip);
        assert_eq!(of("/v1/tasks/x/images/0"), Dialect::Own);
        let call = Request::post("/v1/images").header("content-type", "application/grpc+proto");
        assert_eq!(Dialect::of(&call.body(()).unwrap()), Dialect::Grpc);
    }

    #[test]
    fn a_wait_is_rounded_up_to_whole_seconds() {
        let failure = Failure::unavailable("busy", Duration::from_millis(1200));
        let response = answer(Dialect::Own, failure, "r");
        assert_eq!(response.headers()["retry-after"], "2");
        let at_once = Failure::unavailable("busy", Duration::ZERO);
        assert_eq!(
            answer(Dialect::OpenAi, at_once, "r").headers()["retry-after"],
            "1"
        );
    }

    #[test]
    fn openais_packages_are_told_not_to_come_back_before_the_next_day() {
        let told = |code| {
            let failure = Failure {
                retry_after: Some(Duration::from_secs(3600)),
                ..Failure::new(code, "no more")
            };
            let response = answer(Dialect::OpenAi, failure, "r");
            assert_eq!(response.headers()["retry-after"], "3600");
            response.headers().contains_key("x-should-retry")
        };
        assert!(told(ErrorCode::QuotaExceeded));
        assert!(!told(ErrorCode::RateLimited));
    }

    #[test]
    fn a_complaint_is_told_by_the_name_that_its_caller_wrote() {
        let told = |field: &str, message: &str, name: &str| {
            let told = by_name(Failure::invalid(field, message), name);
            assert_eq!(told.field.as_deref(), Some(name));
            told.message
        };
        assert_eq!(told("images", "images must be", "n"), "n must be");
        assert_eq!(told("tags", "tags[1] is", "TAGS"), "TAGS[1] is");
        assert_eq!(told("steps", "too many", "STEPS"), "STEPS: too many");
        assert_eq!(told("tasks", "tasks: fewer", "PROMPT"), "PROMPT: fewer");
        assert_eq!(told("n", "none is given", "m"), "m: none is given");
        let side = by_n_and_size(Failure::invalid("width", "width must be"));
        assert_eq!(side.message, "size: width must be");
        assert_eq!(side.field.as_deref(), Some("size"));
    }

    #[test]
    fn a_problem_names_its_page_its_field_and_its_request() {
        let failure = Failure::invalid("width", "width must be a multiple of 32");
        let problem = serde_json::to_value(Problem::new(&failure, Some("r-1"))).unwrap();
        let expected = serde_json::json!({
            "type": "/docs/errors/invalid_argument", "title": "Invalid argument", "status": 400,
            "detail": "width must be a multiple of 32", "instance": "r-1", "code": "invalid_argument",
            "field": "width",
        });
        assert_eq!(problem, expected);
    }

    #[tokio::test]
    async fn a_method_that_there_is_not_and_a_message_that_cannot_be_read_are_refused_with_our_codes()
     {
        let (service, storage) = (Service::new("test"), tempfile::tempdir().unwrap());
        let edge = Arc::new(edge(&service, &storage));
        let (router, _reporter) = grpc(&edge).unwrap();
        let refused = async |path: &str, message: &[u8]| {
            let request = Request::post(path)
                .header(header::HOST, "x")
                .header(header::CONTENT_TYPE, "application/grpc");
            // Not packed, and as long as it is.
            let body = [&[0, 0, 0, 0, message.len() as u8][..], message].concat();
            let request = request.body(Body::from(body)).unwrap();
            let answer = router.clone().oneshot(request).await.unwrap();
            let status = Status::from_header_map(answer.headers()).unwrap();
            let failure = Failure::from(status.clone());
            assert!(is_of_a_service(&status), "{status:?}");
            assert_eq!(status.code(), failure.code.grpc());
            failure
        };
        for service in [
            "grpc.health.v1.Health",
            "grpc.reflection.v1.ServerReflection",
        ] {
            let path = format!("/{service}/Nothing");
            let failure = refused(&path, &[]).await;
            assert_eq!(failure.code, ErrorCode::MethodNotAllowed);
            assert!(failure.message.contains(&path), "{failure}");
        }
        for path in [
            "/grpc.health.v1.Health/Check",
            "/inference.GRPCInferenceService/ServerReady",
        ] {
            let failure = refused(path, &[0xff]).await;
            assert_eq!(failure.code, ErrorCode::InvalidArgument, "{path}");
        }
    }
}
