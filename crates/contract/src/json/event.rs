//! What is told of a task without being asked, as JSON: to a producer over NATS, and to a webhook.

use serde::Serialize;

use super::task::{TaskJson, Time};
use crate::v1::{self, TaskEvent, outcome};
use crate::words::{EVENTS, word};

/// What became of a submission over NATS.
#[derive(Debug, Serialize)]
pub struct OutcomeJson<'a> {
    r#type: Option<&'static str>,
    task_id: &'a str,
    reference: &'a str,
    sequence: u64,
    at: Time<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    task: Option<TaskJson<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<RefusalJson<'a>>,
}

#[derive(Debug, Serialize)]
struct RefusalJson<'a> {
    code: &'a str,
    message: &'a str,
    field: Option<&'a str>,
    retry_after_ms: Option<u64>,
}

impl<'a> OutcomeJson<'a> {
    /// Shows an outcome; `base` goes in front of pictures' paths.
    pub fn new(outcome: &'a v1::Outcome, base: &str) -> Self {
        let (task, error) = match &outcome.result {
            Some(outcome::Result::Task(task)) => (Some(TaskJson::new(task, base)), None),
            Some(outcome::Result::Refused(refusal)) => (None, Some(RefusalJson::new(refusal))),
            None => (None, None),
        };
        Self {
            r#type: word(EVENTS, outcome.r#type()),
            task_id: &outcome.task_id,
            reference: &outcome.reference,
            sequence: outcome.sequence,
            at: Time(outcome.at.as_ref()),
            task,
            error,
        }
    }

    /// As bytes.
    pub fn to_vec(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("its parts are texts and finite numbers")
    }
}

impl<'a> RefusalJson<'a> {
    fn new(refusal: &'a v1::Refusal) -> Self {
        Self {
            code: &refusal.code,
            message: &refusal.message,
            field: Some(refusal.field.as_str()).filter(|field| !field.is_empty()),
            retry_after_ms: refusal.retry_after_ms,
        }
    }
}

/// The body of a webhook, in the form that Standard Webhooks recommends.
#[derive(Debug, Serialize)]
pub struct TaskEventJson<'a> {
    r#type: Option<&'static str>,
    timestamp: Time<'a>,
    data: TaskJson<'a>,
}

impl<'a> TaskEventJson<'a> {
    /// Tells of `task`; `base` goes in front of its pictures' paths.
    pub fn new(
        event: TaskEvent,
        at: Option<&'a prost_types::Timestamp>,
        task: &'a v1::Task,
        base: &str,
    ) -> Self {
        Self {
            r#type: word(EVENTS, event),
            timestamp: Time(at),
            data: TaskJson::new(task, base),
        }
    }

    /// As bytes.
    pub fn to_vec(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("its parts are texts and finite numbers")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_that_json_cannot_hold_are_no_panic() {
        let task = v1::Task {
            request: Some(v1::SubmitTask {
                guidance_scale: Some(f32::NAN),
                guidance_rescale: Some(f32::INFINITY),
                ..Default::default()
            }),
            ..Default::default()
        };
        let told = TaskEventJson::new(TaskEvent::Failed, None, &task, "").to_vec();
        let told: serde_json::Value = serde_json::from_slice(&told).unwrap();
        assert_eq!(told["type"], "task.failed");
        assert_eq!(
            told["data"]["request"]["guidance_scale"],
            serde_json::Value::Null
        );
    }
}
