//! By when a task must have begun, where its caller said so. Pure.

use std::time::Duration;

use contract::ErrorCode;
use contract::task::{Done, Failed, Submitted, done};

/// When a task was submitted, since the UNIX epoch.
pub fn submitted_at(submitted: &Submitted) -> Duration {
    let at = submitted.at.unwrap_or_default();
    let seconds = u64::try_from(at.seconds).unwrap_or(0);
    Duration::new(seconds, u32::try_from(at.nanos).unwrap_or(0))
}

/// The moment from which on a task is of no use that has not begun, since the UNIX epoch.
pub fn deadline(submitted: &Submitted) -> Option<Duration> {
    match submitted.request.as_ref()?.expires_after_seconds {
        0 => None,
        seconds => Some(submitted_at(submitted) + Duration::from_secs(seconds.into())),
    }
}

/// The end of a task that did not begin within this time of its submission.
pub fn expired(within: Duration) -> Done {
    let seconds = within.as_secs();
    Done {
        at: Some(contract::now()),
        outcome: Some(done::Outcome::Failed(Failed {
            code: ErrorCode::DeadlineExceeded.to_string(),
            message: format!(
                "the task did not begin within {seconds} s (expires_after_seconds); nothing was drawn"
            ),
        })),
        ..Done::default()
    }
}

/// Whether this is the end of a task that did not begin in time, so that nothing of it was drawn, whoever wrote it.
pub fn has_expired(done: &Done) -> bool {
    let late = ErrorCode::DeadlineExceeded.to_string();
    let failed =
        matches!(&done.outcome, Some(done::Outcome::Failed(failed)) if failed.code == late);
    failed && done.started_at.is_none()
}

#[cfg(test)]
mod tests {
    use contract::v1::SubmitTask;

    use super::*;

    #[test]
    fn a_deadline_counts_from_the_submission() {
        let mut submitted = Submitted {
            at: Some(contract::now()),
            request: Some(SubmitTask::default()),
            ..Submitted::default()
        };
        assert_eq!(deadline(&submitted), None);
        if let Some(request) = &mut submitted.request {
            request.expires_after_seconds = 90;
        }
        let after = deadline(&submitted).map(|at| at - submitted_at(&submitted));
        assert_eq!(after, Some(Duration::from_secs(90)));
        let done = expired(Duration::from_secs(90));
        assert!(has_expired(&done));
        let begun = Done {
            started_at: Some(contract::now()),
            ..done
        };
        assert!(!has_expired(&begun) && !has_expired(&Done::default()));
        let Some(done::Outcome::Failed(failed)) = expired(Duration::from_secs(90)).outcome else {
            panic!("not failed");
        };
        assert_eq!(failed.code, "deadline_exceeded");
        assert!(failed.message.contains("within 90 s"));
    }
}
