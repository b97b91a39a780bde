//! DashScope's error object and its words for what went wrong.

use contract::{ErrorCode, Failure};
use serde::Serialize;
use utoipa::ToSchema;

/// The field of a complaint about the task that a path names.
pub(super) const TASK: &str = "task_id";

/// DashScope's error object.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = DashScopeError)]
pub(crate) struct Error<'a> {
    /// DashScope's word.
    code: &'static str,
    message: &'a str,
    request_id: &'a str,
}

impl<'a> Error<'a> {
    /// The error that `failure` is in this dialect.
    pub(crate) fn new(failure: &'a Failure, request_id: &'a str) -> Self {
        Self {
            code: word(failure.code, failure.field.as_deref()),
            message: &failure.message,
            request_id,
        }
    }
}

/// DashScope's word for a failure. Its list of codes is open; where it has none, ours is the nearest of its own.
pub(super) fn word(code: ErrorCode, field: Option<&str>) -> &'static str {
    match code {
        // All that can be wrong with a task that is there: it has ended.
        ErrorCode::InvalidArgument if field == Some(TASK) => "UnsupportedOperation",
        ErrorCode::InvalidArgument | ErrorCode::PictureTooLarge => "InvalidParameter",
        ErrorCode::PayloadTooLarge => "BadRequest.TooLarge",
        ErrorCode::UnsupportedMediaType => "BadRequest.IllegalInput",
        ErrorCode::Unauthenticated => "InvalidApiKey",
        ErrorCode::PermissionDenied if field == Some("model") => "Model.AccessDenied",
        ErrorCode::PermissionDenied => "AccessDenied",
        ErrorCode::ModelNotFound => "ModelNotFound",
        ErrorCode::TaskNotFound => "TaskNotFound",
        ErrorCode::NotFound => "InvalidURL",
        ErrorCode::MethodNotAllowed | ErrorCode::NotReady => "UnsupportedOperation",
        ErrorCode::IdempotencyConflict => "Conflict",
        ErrorCode::RateLimited => "Throttling.RateQuota",
        ErrorCode::QuotaExceeded => "Throttling.AllocationQuota",
        ErrorCode::TooManyTasks => "Throttling",
        ErrorCode::Unavailable => "ModelUnavailable",
        ErrorCode::DeadlineExceeded => "RequestTimeOut",
        ErrorCode::Cancelled => "TaskCanceled",
        ErrorCode::AttemptsExhausted | ErrorCode::EngineFailed => "InternalError.Algo",
        ErrorCode::Internal => "InternalError",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_has_dashscopes_shape_and_words() {
        let failure = Failure::invalid("size", "size must be WIDTH*HEIGHT");
        let shown = serde_json::to_value(Error::new(&failure, "r-1")).unwrap();
        let expected = serde_json::json!({"code": "InvalidParameter",
            "message": "size must be WIDTH*HEIGHT", "request_id": "r-1"});
        assert_eq!(shown, expected);
        // Its inputs may have pictures by this name, which are not how many it asks for.
        let failure = Failure::invalid("images", "images must hold 1 picture, not 2");
        let shown = serde_json::to_value(Error::new(&failure, "r-1")).unwrap();
        assert_eq!(shown["message"], "images must hold 1 picture, not 2");
        assert_eq!(word(ErrorCode::Unauthenticated, None), "InvalidApiKey");
        assert_eq!(word(ErrorCode::RateLimited, None), "Throttling.RateQuota");
        assert_eq!(word(ErrorCode::PermissionDenied, None), "AccessDenied");
        let ended = word(ErrorCode::InvalidArgument, Some(TASK));
        assert_eq!(ended, "UnsupportedOperation");
    }

    #[test]
    fn a_word_is_one_that_clients_can_compare() {
        let plain = |b: u8| b.is_ascii_alphabetic() || b == b'.';
        for &code in ErrorCode::ALL {
            assert!(word(code, None).bytes().all(plain), "{code}");
        }
    }
}
