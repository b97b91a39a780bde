//! By when a task must have begun: where its caller said so, and before the log lets go of it. Pure.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use contract::ErrorCode;
use contract::task::{Done, Failed, State, Submitted, done};

use crate::Record;

/// A task must have begun when the log has kept it for this many tenths of the time for which it does ...
const BEGIN_TENTHS: u32 = 9;
/// ... and must have ended after this many twentieths. What is left is for those who ask how it has ended.
const END_TWENTIETHS: u32 = 19;

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

/// The end, written `at`, of a task that did not begin within this time of its submission.
pub fn expired(within: Duration, at: SystemTime) -> Done {
    let seconds = within.as_secs();
    let text = format!(
        "the task did not begin within {seconds} s (expires_after_seconds); nothing was drawn"
    );
    failed(text, at)
}

/// The end of a task at `now`, since the UNIX epoch, if its time to begin is over, and it has neither begun nor ended.
pub fn overdue(record: &Record, now: Duration) -> Option<Done> {
    let submitted = &record.submitted;
    let deadline = deadline(submitted).filter(|deadline| *deadline <= now)?;
    let waits = record.done.is_none() && begun(record).is_none();
    let within = deadline.saturating_sub(submitted_at(submitted));
    waits.then(|| expired(within, UNIX_EPOCH + now))
}

/// Where a task stands that a worker has begun.
fn begun(record: &Record) -> Option<&State> {
    let state = record.state.as_ref();
    state.filter(|state| state.started_at.is_some())
}

/// For how long the log keeps a task, and what follows from it: a submission that it lets go of without an end would be a task that nobody
/// knows any more. Times count from the submission, as for a caller's own deadline.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kept(Option<Duration>);

impl Kept {
    /// So long; zero is for ever, as it is for the broker.
    pub fn new(retention: Duration) -> Self {
        Self(Some(retention).filter(|retention| !retention.is_zero()))
    }

    /// How long that is; `None` for ever.
    pub fn retention(self) -> Option<Duration> {
        self.0
    }

    /// The moment by which the task must have begun, since the UNIX epoch.
    pub fn begin_by(self, submitted: &Submitted) -> Option<Duration> {
        // One that does not say when it was submitted would be as old as any.
        let after = self.0? * BEGIN_TENTHS / 10;
        submitted.at.map(|_| submitted_at(submitted) + after)
    }

    fn end_by(self, submitted: &Submitted) -> Option<Duration> {
        let after = self.0? * END_TWENTIETHS / 20;
        submitted.at.map(|_| submitted_at(submitted) + after)
    }

    /// The end of a task at `now`, since the UNIX epoch, if it must end: one that has not begun before one that has, which may be about to end
    /// by itself.
    pub fn overdue(self, record: &Record, now: Duration) -> Option<Done> {
        if record.done.is_some() {
            return None;
        }
        let submitted = &record.submitted;
        let over = |by: Option<Duration>| by.filter(|by| *by <= now);
        let since = |by: Duration| by.saturating_sub(submitted_at(submitted));
        let at = UNIX_EPOCH + now;
        match begun(record) {
            Some(state) => {
                let by = over(self.end_by(submitted))?;
                Some(unfinished(state, since(by), at))
            }
            None => over(self.begin_by(submitted)).map(|by| waited_out(since(by), at)),
        }
    }
}

/// The end, written `at`, of a task that did not begin for as long as one may wait here.
pub fn waited_out(within: Duration, at: SystemTime) -> Done {
    let seconds = within.as_secs();
    let text = format!(
        "the task did not begin within {seconds} s, the longest that one waits here; nothing was drawn"
    );
    failed(text, at)
}

/// The end of a task that began, and did not end for as long as one is kept.
fn unfinished(state: &State, within: Duration, at: SystemTime) -> Done {
    let seconds = within.as_secs();
    let text = format!(
        "the task began and did not end within {seconds} s, the longest that one is kept here"
    );
    Done {
        attempt: state.attempt,
        started_at: state.started_at,
        ..failed(text, at)
    }
}

/// `at` is given, because whoever writes an end may have a clock of its own that is wrong.
fn failed(message: String, at: SystemTime) -> Done {
    Done {
        at: Some(at.into()),
        outcome: Some(done::Outcome::Failed(Failed {
            code: ErrorCode::DeadlineExceeded.to_string(),
            message,
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
        let at = UNIX_EPOCH + Duration::from_secs(7);
        let done = expired(Duration::from_secs(90), at);
        assert!(has_expired(&done));
        assert_eq!(done.at.map(|at| at.seconds), Some(7));
        let begun = Done {
            started_at: Some(contract::now()),
            ..done
        };
        assert!(!has_expired(&begun) && !has_expired(&Done::default()));
        let Some(done::Outcome::Failed(failed)) = begun.outcome else {
            panic!("not failed");
        };
        assert_eq!(failed.code, "deadline_exceeded");
        assert!(failed.message.contains("within 90 s"));
    }

    /// A task that was submitted just now.
    fn record(request: SubmitTask) -> Record {
        Record {
            submitted: Submitted {
                at: Some(contract::now()),
                request: Some(request),
                ..Submitted::default()
            },
            state: None,
            state_sequence: 0,
            last_sequence: 0,
            done: None,
            feedback: None,
            sequence: 1,
        }
    }

    #[test]
    fn only_what_is_late_and_has_not_begun_expires() {
        let mut record = record(SubmitTask {
            expires_after_seconds: 90,
            ..SubmitTask::default()
        });
        let at = deadline(&record.submitted).unwrap();
        assert_eq!(overdue(&record, at - Duration::from_nanos(1)), None);
        let end = Some(expired(Duration::from_secs(90), UNIX_EPOCH + at));
        assert_eq!(overdue(&record, at), end);
        // Handed over, to workers that may be away.
        record.state = Some(State::default());
        assert_eq!(overdue(&record, at), end);
        record.state = Some(State {
            started_at: Some(contract::now()),
            ..State::default()
        });
        assert_eq!(overdue(&record, at), None);
        record.state = None;
        record.done = end;
        assert_eq!(overdue(&record, at), None);
    }

    #[test]
    fn every_task_must_end_before_the_log_lets_go_of_it() {
        let hundred = Duration::from_secs(100);
        let kept = Kept::new(hundred);
        let mut record = record(SubmitTask::default());
        let at = submitted_at(&record.submitted);
        let after =
            |record: &Record, seconds| kept.overdue(record, at + Duration::from_secs(seconds));
        assert_eq!(after(&record, 89), None);
        assert!(has_expired(&after(&record, 90).unwrap()));
        // Handed over, to workers that may be away.
        record.state = Some(State::default());
        assert!(has_expired(&after(&record, 90).unwrap()));
        record.state = Some(State {
            attempt: 2,
            started_at: Some(contract::now()),
            ..State::default()
        });
        assert_eq!(after(&record, 94), None, "it may end by itself");
        let end = after(&record, 95).unwrap();
        assert_eq!(end.attempt, 2);
        assert!(!has_expired(&end), "something was drawn, perhaps");
        assert_eq!(
            Kept::new(Duration::ZERO).overdue(&record, at + hundred),
            None
        );
        record.done = Some(end);
        assert_eq!(after(&record, 99), None);
        record.done = None;
        record.state = None;
        record.submitted.at = None;
        assert_eq!(after(&record, 99), None, "nobody knows how old it is");
    }
}
