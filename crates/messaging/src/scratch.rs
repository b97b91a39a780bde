//! What this crate's tests keep their events in.

use std::time::Duration;

use bytes::Bytes;

use crate::{NewEvent, RetentionPolicy, StreamSpec};

/// A stream for events, alone or together.
pub(crate) const SPEC: StreamSpec = StreamSpec {
    name: "TEST",
    subjects: &["test.>"],
    retention: RetentionPolicy::Limits,
    max_messages: -1,
    max_messages_per_subject: 1,
    shares: false,
    max_message_size: -1,
    max_age: Duration::ZERO,
    max_bytes: 1 << 24,
    refuse_when_full: true,
    batches: true,
    duplicate_window: Duration::from_secs(120),
    republish: None,
};

/// As a submission is: kept out by whatever there is of its task.
pub(crate) fn event(task: &str, payload: &'static str) -> NewEvent {
    let subject = format!("test.{task}.made");
    let payload = Bytes::from_static(payload.as_bytes());
    NewEvent::new(subject.clone(), subject, payload).barred_by(format!("test.{task}.*"))
}
