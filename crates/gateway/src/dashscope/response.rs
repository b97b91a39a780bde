//! DashScope's answers.

use contract::v1::TaskPhase;
use contract::{ErrorCode, v1};
use jiff::tz::Offset;
use serde::{Serialize, Serializer};
use utoipa::ToSchema;

use super::error;

/// DashScope's times name no zone and are those of its home, UTC+8; clients read them so.
pub(super) const ZONE: Offset = jiff::tz::offset(8);

/// DashScope's word for a phase.
pub(super) fn status(phase: TaskPhase) -> &'static str {
    match phase {
        TaskPhase::Queued | TaskPhase::Scheduled => "PENDING",
        TaskPhase::Running => "RUNNING",
        TaskPhase::Succeeded => "SUCCEEDED",
        TaskPhase::Failed => "FAILED",
        TaskPhase::Cancelled => "CANCELED",
        TaskPhase::Unspecified => "UNKNOWN",
    }
}

/// The answer to a submission.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = DashScopeAccepted)]
pub(super) struct Accepted<'a> {
    output: AcceptedOutput<'a>,
    request_id: &'a str,
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = DashScopeAcceptedOutput)]
struct AcceptedOutput<'a> {
    task_status: &'static str,
    task_id: &'a str,
}

impl<'a> Accepted<'a> {
    pub(super) fn new(task: &'a v1::Task, request_id: &'a str) -> Self {
        let output = AcceptedOutput {
            task_status: status(task.phase()),
            task_id: &task.id,
        };
        Self { output, request_id }
    }
}

/// The answer to a cancel.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = DashScopeCancelled)]
pub(super) struct Cancelled<'a> {
    request_id: &'a str,
}

impl<'a> Cancelled<'a> {
    pub(super) fn new(request_id: &'a str) -> Self {
        Self { request_id }
    }
}

/// The answer to a poll.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = DashScopePolled)]
pub(super) struct Polled<'a> {
    request_id: &'a str,
    output: PolledOutput<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Usage>,
}

#[derive(Debug, Default, Serialize, ToSchema)]
#[schema(as = DashScopePolledOutput)]
struct PolledOutput<'a> {
    task_id: &'a str,
    task_status: &'static str,
    #[serde(skip_serializing_if = "Time::is_none")]
    #[schema(value_type = Option<String>)]
    submit_time: Time<'a>,
    #[serde(skip_serializing_if = "Time::is_none")]
    #[schema(value_type = Option<String>)]
    scheduled_time: Time<'a>,
    #[serde(skip_serializing_if = "Time::is_none")]
    #[schema(value_type = Option<String>)]
    end_time: Time<'a>,
    // Where DashScope has drawn some pictures of a task, which is a success, each other has its `code` and `message` here. There is no such
    // task here, since all are drawn or none; and one that failed has no results, there as here.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    results: Vec<Place>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    choices: Vec<Choice>,
    #[serde(skip_serializing_if = "Option::is_none")]
    code: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    task_metrics: Option<Metrics>,
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = DashScopePlace)]
struct Place {
    url: String,
}

/// Pictures of a task, by what became of them.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = DashScopeMetrics)]
#[serde(rename_all = "UPPERCASE")]
struct Metrics {
    total: usize,
    succeeded: usize,
    failed: usize,
}

impl<'a> Polled<'a> {
    /// Shows `task`; `base` goes in front of its pictures' paths.
    pub(super) fn new(task: &'a v1::Task, base: &str, request_id: &'a str) -> Self {
        let phase = task.phase();
        let asked = task.request.as_ref().map_or(0, |r| r.images as usize);
        let failed = if phase == TaskPhase::Failed { asked } else { 0 };
        let error = task.error.as_ref();
        let code = error.map(|e| ErrorCode::from_text(&e.code).unwrap_or(ErrorCode::Internal));
        let place = |info: &v1::ImageInfo| Place {
            url: format!("{base}{}", info.path),
        };
        let output = PolledOutput {
            task_id: &task.id,
            task_status: status(phase),
            submit_time: Time(task.submitted_at.as_ref()),
            scheduled_time: Time(task.scheduled_at.as_ref()),
            end_time: Time(task.ended_at.as_ref()),
            results: task.images.iter().map(place).collect(),
            choices: choices(task, base),
            code: code.map(|code| error::word(code, None)),
            message: error.map(|e| e.message.as_str()),
            task_metrics: Some(Metrics {
                total: asked,
                succeeded: task.images.len(),
                failed,
            }),
        };
        let usage = (phase == TaskPhase::Succeeded).then(|| Usage::new(task));
        Self {
            request_id,
            output,
            usage,
        }
    }

    /// A task that is not there.
    pub(super) fn unknown(task_id: &'a str, request_id: &'a str) -> Self {
        let output = PolledOutput {
            task_id,
            task_status: status(TaskPhase::Unspecified),
            ..Default::default()
        };
        Self {
            request_id,
            output,
            usage: None,
        }
    }
}

/// What was drawn. The tokens are there because clients read them; nothing here is counted in tokens.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = DashScopeUsage)]
struct Usage {
    image_count: usize,
    width: u32,
    height: u32,
    input_tokens: u32,
    output_tokens: u32,
    total_tokens: u32,
}

impl Usage {
    fn new(task: &v1::Task) -> Self {
        let first = task.images.first();
        Self {
            image_count: task.images.len(),
            width: first.map_or(0, |info| info.width),
            height: first.map_or(0, |info| info.height),
            input_tokens: 0,
            output_tokens: 0,
            total_tokens: 0,
        }
    }
}

/// The answer to a request that waits.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = DashScopeDrawn)]
pub(super) struct Drawn<'a> {
    request_id: &'a str,
    output: DrawnOutput,
    usage: Usage,
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = DashScopeDrawnOutput)]
struct DrawnOutput {
    choices: Vec<Choice>,
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = DashScopeChoice)]
struct Choice {
    finish_reason: &'static str,
    message: Message,
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = DashScopeAnswer)]
struct Message {
    role: &'static str,
    content: [Part; 1],
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = DashScopePart)]
struct Part {
    r#type: &'static str,
    image: String,
}

impl<'a> Drawn<'a> {
    pub(super) fn new(task: &v1::Task, base: &str, request_id: &'a str) -> Self {
        Self {
            request_id,
            output: DrawnOutput {
                choices: choices(task, base),
            },
            usage: Usage::new(task),
        }
    }
}

/// A choice a picture.
fn choices(task: &v1::Task, base: &str) -> Vec<Choice> {
    let choice = |info: &v1::ImageInfo| Choice {
        finish_reason: "stop",
        message: Message {
            role: "assistant",
            content: [Part {
                r#type: "image",
                image: format!("{base}{}", info.path),
            }],
        },
    };
    task.images.iter().map(choice).collect()
}

/// A time as DashScope writes it: `2023-10-30 15:39:39.918`.
#[derive(Debug, Default)]
struct Time<'a>(Option<&'a prost_types::Timestamp>);

impl Time<'_> {
    fn is_none(&self) -> bool {
        self.0.is_none()
    }
}

impl Serialize for Time<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let read = |t: &prost_types::Timestamp| jiff::Timestamp::new(t.seconds, t.nanos).ok();
        match self.0.and_then(read) {
            Some(time) => {
                let local = ZONE.to_datetime(time);
                serializer.collect_str(&local.strftime("%Y-%m-%d %H:%M:%S%.3f"))
            }
            None => serializer.serialize_none(),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn task(phase: TaskPhase) -> v1::Task {
        v1::Task {
            id: "t".to_owned(),
            phase: phase.into(),
            request: Some(v1::SubmitTask {
                images: 2,
                ..Default::default()
            }),
            submitted_at: Some(prost_types::Timestamp {
                seconds: 1_698_651_579,
                nanos: 918_900_000,
            }),
            ..Default::default()
        }
    }

    #[test]
    fn a_task_that_waits_has_its_status_and_dashscopes_time() {
        let task = task(TaskPhase::Scheduled);
        let shown = serde_json::to_value(Polled::new(&task, "http://h", "r")).unwrap();
        let expected = json!({"request_id": "r", "output": {"task_id": "t", "task_status": "PENDING",
            "submit_time": "2023-10-30 15:39:39.918", "task_metrics": {"TOTAL": 2, "SUCCEEDED": 0, "FAILED": 0}}});
        assert_eq!(shown, expected);
    }

    #[test]
    fn a_task_that_succeeded_has_results_choices_and_a_count() {
        let mut task = task(TaskPhase::Succeeded);
        for index in 0..2 {
            task.images.push(v1::ImageInfo {
                path: format!("/p{index}"),
                width: 128,
                height: 96,
                ..Default::default()
            });
        }
        let shown = serde_json::to_value(Polled::new(&task, "http://h", "r")).unwrap();
        let output = &shown["output"];
        assert_eq!(
            output["results"],
            json!([{"url": "http://h/p0"}, {"url": "http://h/p1"}])
        );
        let image = &output["choices"][1]["message"]["content"][0]["image"];
        assert_eq!(image, "http://h/p1");
        assert_eq!(
            output["task_metrics"],
            json!({"TOTAL": 2, "SUCCEEDED": 2, "FAILED": 0})
        );
        assert_eq!(shown["usage"]["image_count"], 2);
        let drawn = serde_json::to_value(Drawn::new(&task, "http://h", "r")).unwrap();
        let expected = json!({"finish_reason": "stop", "message": {"role": "assistant",
            "content": [{"type": "image", "image": "http://h/p0"}]}});
        assert_eq!(drawn["output"]["choices"][0], expected);
    }

    #[test]
    fn a_task_that_failed_says_why_and_one_that_is_not_there_is_unknown() {
        let mut task = task(TaskPhase::Failed);
        task.error = Some(v1::TaskError {
            code: "engine_failed".to_owned(),
            message: "no".to_owned(),
        });
        let shown = serde_json::to_value(Polled::new(&task, "", "r")).unwrap();
        // As DashScope's own: nothing is drawn, so there are neither results nor usage.
        let expected = json!({"request_id": "r", "output": {"task_id": "t", "task_status": "FAILED",
            "submit_time": "2023-10-30 15:39:39.918", "code": "InternalError.Algo", "message": "no",
            "task_metrics": {"TOTAL": 2, "SUCCEEDED": 0, "FAILED": 2}}});
        assert_eq!(shown, expected);
        let shown = serde_json::to_value(Polled::unknown("x", "r")).unwrap();
        let expected =
            json!({"request_id": "r", "output": {"task_id": "x", "task_status": "UNKNOWN"}});
        assert_eq!(shown, expected);
    }
}
