//! What answers say of tasks: how they ended, when, and as what.

use contract::v1::{OutputFormat, TaskPhase};
use contract::{ErrorCode, Failure, v1};

pub(crate) use contract::json::TaskJson;

/// Whether a task has come to its end.
pub(crate) fn has_ended(task: &v1::Task) -> bool {
    matches!(
        task.phase(),
        TaskPhase::Succeeded | TaskPhase::Failed | TaskPhase::Cancelled
    )
}

/// Why a task that has ended has no pictures.
pub(crate) fn end_failure(task: &v1::Task) -> Option<Failure> {
    match task.phase() {
        TaskPhase::Failed => {
            let (code, message) = match &task.error {
                Some(error) => (ErrorCode::from_text(&error.code), error.message.clone()),
                None => (None, String::new()),
            };
            let message = if message.is_empty() {
                "the task failed".to_owned()
            } else {
                message
            };
            Some(Failure::new(code.unwrap_or(ErrorCode::Internal), message))
        }
        TaskPhase::Cancelled => Some(Failure::new(ErrorCode::Cancelled, "the task was cancelled")),
        _ => None,
    }
}

/// The media type of a file format.
pub(crate) fn media_type(format: OutputFormat) -> &'static str {
    match format {
        OutputFormat::Png => "image/png",
        OutputFormat::Jpeg => "image/jpeg",
        OutputFormat::Webp => "image/webp",
        OutputFormat::Unspecified => "application/octet-stream",
    }
}

/// Unix seconds; 0 when there is no time.
pub(crate) fn unix_seconds(time: Option<&prost_types::Timestamp>) -> i64 {
    time.map_or(0, |time| time.seconds)
}

/// Unix milliseconds, for dialects that count them.
pub(crate) fn unix_millis(time: Option<&prost_types::Timestamp>) -> Option<i64> {
    time.map(|t| t.seconds.saturating_mul(1000) + i64::from(t.nanos / 1_000_000))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_task_keeps_its_code() {
        let mut task = v1::Task {
            phase: TaskPhase::Failed.into(),
            error: Some(v1::TaskError {
                code: "engine_failed".to_owned(),
                message: "no".to_owned(),
            }),
            ..Default::default()
        };
        assert_eq!(end_failure(&task).unwrap().code, ErrorCode::EngineFailed);
        task.set_phase(TaskPhase::Cancelled);
        assert_eq!(end_failure(&task).unwrap().code, ErrorCode::Cancelled);
        task.set_phase(TaskPhase::Succeeded);
        assert_eq!(end_failure(&task), None);
    }
}
