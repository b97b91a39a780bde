//! The one closed list of error codes, and how each looks over gRPC and HTTP.
//!
//! A service's own error enum maps to a [`Failure`] once, at its edge. Over gRPC a failure is a
//! [`tonic::Status`] whose metadata carries the code, the field and the wait, so the gateway can give it back in
//! any dialect without reading messages. Every code has a page in `docs/errors/`.

use std::time::Duration;

use http::StatusCode;
use tonic::metadata::{MetadataMap, MetadataValue};
use tonic::{Code, Status};

use crate::proto::v1;

const CODE: &str = "inkstone-code";
const FIELD: &str = "inkstone-field";
const RETRY_AFTER_MS: &str = "inkstone-retry-after-ms";
const RATE_LIMIT: &str = "inkstone-rate-limit";

macro_rules! codes {
    ($($(#[doc = $doc:literal])* $name:ident = $text:literal, $grpc:ident, $http:ident;)*) => {
        /// Why a request was not carried out.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum ErrorCode {
            $($(#[doc = $doc])* $name,)*
        }

        impl ErrorCode {
            /// Every code there is.
            pub const ALL: &'static [ErrorCode] = &[$(ErrorCode::$name),*];

            /// The code as callers see it.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }

            /// The code that callers see as `text`.
            pub fn from_text(text: &str) -> Option<Self> {
                match text { $($text => Some(Self::$name),)* _ => None }
            }

            /// What it means, in a sentence or two.
            pub fn meaning(self) -> &'static str {
                match self { $(Self::$name => concat!($($doc),*).trim_ascii(),)* }
            }

            /// The gRPC status it maps to.
            pub fn grpc(self) -> Code {
                match self { $(Self::$name => Code::$grpc,)* }
            }

            /// The HTTP status it maps to.
            pub fn http(self) -> StatusCode {
                match self { $(Self::$name => StatusCode::$http,)* }
            }
        }
    };
}

codes! {
    /// A field is missing, malformed or out of its range. Sending it again changes nothing.
    InvalidArgument = "invalid_argument", InvalidArgument, BAD_REQUEST;
    /// The body is larger than the edge takes.
    PayloadTooLarge = "payload_too_large", OutOfRange, PAYLOAD_TOO_LARGE;
    /// The body is not of a media type that the path takes.
    UnsupportedMediaType = "unsupported_media_type", InvalidArgument, UNSUPPORTED_MEDIA_TYPE;
    /// The caller did not show who it is.
    Unauthenticated = "unauthenticated", Unauthenticated, UNAUTHORIZED;
    /// The caller's policy does not allow this.
    PermissionDenied = "permission_denied", PermissionDenied, FORBIDDEN;
    /// There is no such model.
    ModelNotFound = "model_not_found", NotFound, NOT_FOUND;
    /// There is no such task for this tenant.
    TaskNotFound = "task_not_found", NotFound, NOT_FOUND;
    /// There is nothing at this path.
    NotFound = "not_found", NotFound, NOT_FOUND;
    /// The path exists, but not with this method.
    MethodNotAllowed = "method_not_allowed", Unimplemented, METHOD_NOT_ALLOWED;
    /// The idempotency key was used for another request.
    IdempotencyConflict = "idempotency_conflict", AlreadyExists, CONFLICT;
    /// The task has not ended, so there is nothing to fetch yet.
    NotReady = "not_ready", FailedPrecondition, CONFLICT;
    /// Over the rate limit.
    RateLimited = "rate_limited", ResourceExhausted, TOO_MANY_REQUESTS;
    /// As many tasks of the caller wait as its policy allows.
    TooManyTasks = "too_many_tasks", ResourceExhausted, TOO_MANY_REQUESTS;
    /// What the caller's policy allows in a day is used up.
    QuotaExceeded = "quota_exceeded", ResourceExhausted, TOO_MANY_REQUESTS;
    /// The platform is too busy or a part of it is down; try again after the wait.
    Unavailable = "unavailable", Unavailable, SERVICE_UNAVAILABLE;
    /// The caller's deadline passed first. The task, if accepted, goes on.
    DeadlineExceeded = "deadline_exceeded", DeadlineExceeded, GATEWAY_TIMEOUT;
    /// The task was cancelled.
    Cancelled = "cancelled", Cancelled, CONFLICT;
    /// The task was tried as often as allowed and never finished.
    AttemptsExhausted = "attempts_exhausted", Aborted, INTERNAL_SERVER_ERROR;
    /// The picture does not fit into a worker's memory. Sending it again changes nothing; a smaller one may fit.
    PictureTooLarge = "picture_too_large", FailedPrecondition, UNPROCESSABLE_ENTITY;
    /// The engine could not draw this request.
    EngineFailed = "engine_failed", Internal, INTERNAL_SERVER_ERROR;
    /// A fault of ours.
    Internal = "internal", Internal, INTERNAL_SERVER_ERROR;
}

impl std::fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// An error as a caller hears it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{code}: {message}")]
pub struct Failure {
    /// Which of the closed list.
    pub code: ErrorCode,
    /// For the person who reads it: what is wrong, and the limit or the way out.
    pub message: String,
    /// The request's field that is at fault, by its name in [`crate::proto::v1::SubmitTask`].
    pub field: Option<String>,
    /// How long to wait before trying again.
    pub retry_after: Option<Duration>,
    /// Requests a second that the caller's policy lets through, where there were more.
    pub rate_limit: Option<u32>,
}

impl Failure {
    /// A failure without field or wait.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            field: None,
            retry_after: None,
            rate_limit: None,
        }
    }

    /// A field that is missing, malformed or out of range.
    pub fn invalid(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            field: Some(field.into()),
            ..Self::new(ErrorCode::InvalidArgument, message)
        }
    }

    /// A part of the platform is down or full; worth trying again after `wait`.
    pub fn unavailable(message: impl Into<String>, wait: Duration) -> Self {
        Self {
            retry_after: Some(wait),
            ..Self::new(ErrorCode::Unavailable, message)
        }
    }
}

impl From<Failure> for Status {
    fn from(failure: Failure) -> Status {
        let mut metadata = MetadataMap::new();
        metadata.insert(CODE, MetadataValue::from_static(failure.code.as_str()));
        if let Some(Ok(field)) = failure.field.map(|f| f.parse()) {
            metadata.insert(FIELD, field);
        }
        if let Some(wait) = failure.retry_after {
            metadata.insert(RETRY_AFTER_MS, millis_up(wait).into());
        }
        if let Some(limit) = failure.rate_limit {
            metadata.insert(RATE_LIMIT, limit.into());
        }
        Status::with_metadata(failure.code.grpc(), failure.message, metadata)
    }
}

impl From<Failure> for v1::Refusal {
    fn from(failure: Failure) -> Self {
        Self {
            code: failure.code.as_str().to_owned(),
            message: failure.message,
            field: failure.field.unwrap_or_default(),
            retry_after_ms: failure.retry_after.map(millis_up),
            rate_limit: failure.rate_limit,
        }
    }
}

impl From<v1::Refusal> for Failure {
    /// A code of another version is an internal failure here.
    fn from(refusal: v1::Refusal) -> Self {
        Self {
            code: ErrorCode::from_text(&refusal.code).unwrap_or(ErrorCode::Internal),
            message: refusal.message,
            field: Some(refusal.field).filter(|field| !field.is_empty()),
            retry_after: refusal.retry_after_ms.map(Duration::from_millis),
            rate_limit: refusal.rate_limit,
        }
    }
}

/// In whole milliseconds, never too short: who comes back when told must not be too early.
fn millis_up(wait: Duration) -> u64 {
    u64::try_from(wait.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX)
}

/// Whether a service of ours wrote the status; else it is a transport's, such as a broken connection's.
pub fn is_of_a_service(status: &Status) -> bool {
    status.metadata().get(CODE).is_some()
}

impl From<Status> for Failure {
    /// Reads back what [`Status::from`] wrote; a status of other origin (a broken connection, a deadline) gets
    /// the nearest code.
    fn from(status: Status) -> Failure {
        let text = |key| status.metadata().get(key).and_then(|v| v.to_str().ok());
        let own = text(CODE).and_then(ErrorCode::from_text);
        let code = own.unwrap_or(match status.code() {
            // Our services always say which of ours it is; without that, it is the transport that broke.
            Code::Unavailable | Code::Cancelled | Code::Unknown | Code::Internal => {
                ErrorCode::Unavailable
            }
            Code::DeadlineExceeded => ErrorCode::DeadlineExceeded,
            Code::ResourceExhausted => ErrorCode::RateLimited,
            Code::InvalidArgument => ErrorCode::InvalidArgument,
            Code::Unauthenticated => ErrorCode::Unauthenticated,
            Code::PermissionDenied => ErrorCode::PermissionDenied,
            Code::NotFound => ErrorCode::NotFound,
            _ => ErrorCode::Internal,
        });
        let wait = text(RETRY_AFTER_MS).and_then(|v| v.parse().ok());
        let retry_after = wait
            .map(Duration::from_millis)
            .or((code == ErrorCode::Unavailable).then_some(Duration::from_secs(1)));
        // A transport's or a library's own words ("tcp connect error …") are for logs, not for callers.
        let message = match (own, code) {
            (None, ErrorCode::Unavailable) => {
                "a part of the platform is not reachable just now; try again".to_owned()
            }
            (None, ErrorCode::Internal) => "a part of the platform failed".to_owned(),
            _ => status.message().to_owned(),
        };
        Failure {
            code,
            message,
            field: text(FIELD).map(str::to_owned),
            retry_after,
            rate_limit: text(RATE_LIMIT).and_then(|v| v.parse().ok()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_survives_grpc_whole() {
        for &code in ErrorCode::ALL {
            let failure = Failure {
                code,
                message: "size: 96 is not a multiple of 32".to_owned(),
                field: Some("width".to_owned()),
                retry_after: Some(Duration::from_millis(1500)),
                rate_limit: Some(5),
            };
            assert_eq!(Failure::from(Status::from(failure.clone())), failure);
            assert_eq!(Failure::from(v1::Refusal::from(failure.clone())), failure);
        }
    }

    #[test]
    fn a_wait_is_never_told_too_short() {
        let failure = Failure::unavailable("busy", Duration::from_micros(1500));
        let told = Failure::from(Status::from(failure.clone())).retry_after;
        assert_eq!(told, Some(Duration::from_millis(2)));
        let told = Failure::from(v1::Refusal::from(failure)).retry_after;
        assert_eq!(told, Some(Duration::from_millis(2)));
    }

    #[test]
    fn codes_read_back_as_written() {
        for &code in ErrorCode::ALL {
            assert_eq!(ErrorCode::from_text(code.as_str()), Some(code));
        }
    }

    #[test]
    fn a_broken_connection_is_unavailable_and_worth_a_retry() {
        let failure = Failure::from(Status::unavailable("tcp connect error: 127.0.0.1:1"));
        assert_eq!(failure.code, ErrorCode::Unavailable);
        assert!(failure.retry_after.is_some());
        assert!(!failure.message.contains("127.0.0.1"));
    }

    #[test]
    fn every_code_has_a_page() {
        let pages = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/errors");
        for code in ErrorCode::ALL {
            let page = pages.join(format!("{code}.md"));
            assert!(page.is_file(), "missing {}", page.display());
        }
    }
}
