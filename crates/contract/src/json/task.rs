//! Tasks as JSON: the contract's own names, words for enums, RFC 3339 for times.

use serde::{Serialize, Serializer};

use crate::v1;
use crate::words::{ENDS, FORMATS, PHASES, PROMPT_SYNTAXES, QUALITIES, SCHEDULERS, VERDICTS, word};

/// A task as our own dialect shows it.
#[derive(Debug, Serialize)]
pub struct TaskJson<'a> {
    id: &'a str,
    phase: Option<&'static str>,
    model: &'a str,
    model_version: &'a str,
    request: RequestJson<'a>,
    submitted_at: Time<'a>,
    scheduled_at: Time<'a>,
    started_at: Time<'a>,
    ended_at: Time<'a>,
    attempt: u32,
    images: Vec<ImageJson<'a>>,
    error: Option<ErrorJson<'a>>,
    // Only where there is some.
    #[serde(skip_serializing_if = "Option::is_none")]
    feedback: Option<FeedbackJson<'a>>,
    // Only while it waits, and where they are known.
    #[serde(skip_serializing_if = "Option::is_none")]
    queue_position: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    estimated_wait_ms: Option<u64>,
    // Only where it has run.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    runs: Vec<RunJson<'a>>,
}

#[derive(Debug, Serialize)]
struct RunJson<'a> {
    attempt: u32,
    worker: &'a str,
    device: &'a str,
    model_version: &'a str,
    from_step: u32,
    to_step: u32,
    started_at: Time<'a>,
    ended_at: Time<'a>,
    end: Option<&'a str>,
    #[serde(skip_serializing_if = "str::is_empty")]
    reason: &'a str,
}

impl<'a> RunJson<'a> {
    fn new(run: &'a v1::Run) -> Self {
        Self {
            attempt: run.attempt,
            worker: &run.worker,
            device: &run.device,
            model_version: &run.model_version,
            from_step: run.from_step,
            to_step: run.to_step,
            started_at: Time(run.started_at.as_ref()),
            ended_at: Time(run.ended_at.as_ref()),
            end: Some(run.end.as_str()).filter(|end| !end.is_empty()),
            reason: &run.reason,
        }
    }
}

#[derive(Debug, Serialize)]
struct RequestJson<'a> {
    model: &'a str,
    prompt: &'a str,
    negative_prompt: &'a str,
    width: u32,
    height: u32,
    images: u32,
    seed: Option<u64>,
    steps: u32,
    guidance_scale: Option<f32>,
    scheduler: Option<&'static str>,
    // Only where they were given: an answer to a request of before has the fields of before.
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_syntax: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    guidance_rescale: Option<f32>,
    quality: Option<&'static str>,
    output_format: Option<&'static str>,
    output_compression: Option<u32>,
    partial_images: u32,
    style_tags: &'a [String],
    user: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    webhook: Option<WebhookJson<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    expires_after_seconds: Option<u32>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    visible_label: bool,
}

#[derive(Debug, Serialize)]
struct WebhookJson<'a> {
    url: &'a str,
    events: Vec<&'static str>,
}

#[derive(Debug, Serialize)]
struct ImageJson<'a> {
    index: u32,
    seed: u64,
    width: u32,
    height: u32,
    format: Option<&'static str>,
    size_bytes: u64,
    sha256: &'a str,
    url: String,
}

#[derive(Debug, Serialize)]
struct FeedbackJson<'a> {
    rating: Option<u32>,
    verdict: Option<&'static str>,
    comment: &'a str,
    tags: &'a [String],
    at: Time<'a>,
}

#[derive(Debug, Serialize)]
struct ErrorJson<'a> {
    code: &'a str,
    message: &'a str,
}

impl<'a> TaskJson<'a> {
    /// Shows `task`; `base` goes in front of its pictures' paths.
    pub fn new(task: &'a v1::Task, base: &str) -> Self {
        static NOTHING: v1::SubmitTask = nothing();
        let request = RequestJson::new(task.request.as_ref().unwrap_or(&NOTHING));
        Self {
            id: &task.id,
            phase: word(PHASES, task.phase()),
            model: request.model,
            model_version: &task.model_version,
            request,
            submitted_at: Time(task.submitted_at.as_ref()),
            scheduled_at: Time(task.scheduled_at.as_ref()),
            started_at: Time(task.started_at.as_ref()),
            ended_at: Time(task.ended_at.as_ref()),
            attempt: task.attempt,
            images: task
                .images
                .iter()
                .map(|info| ImageJson::new(info, base))
                .collect(),
            error: task.error.as_ref().map(|error| ErrorJson {
                code: &error.code,
                message: &error.message,
            }),
            feedback: task.feedback.as_ref().map(FeedbackJson::new),
            queue_position: task.queue_position,
            estimated_wait_ms: task.estimated_wait_ms,
            runs: task.runs.iter().map(RunJson::new).collect(),
        }
    }
}

const fn nothing() -> v1::SubmitTask {
    v1::SubmitTask {
        model: String::new(),
        prompt: String::new(),
        negative_prompt: String::new(),
        width: 0,
        height: 0,
        images: 0,
        seed: None,
        steps: 0,
        guidance_scale: None,
        scheduler: 0,
        quality: 0,
        output_format: 0,
        output_compression: None,
        partial_images: 0,
        style_tags: Vec::new(),
        idempotency_key: String::new(),
        user: String::new(),
        prompt_syntax: 0,
        guidance_rescale: None,
        source: None,
        webhook: None,
        expires_after_seconds: 0,
        visible_label: false,
    }
}

impl<'a> RequestJson<'a> {
    fn new(request: &'a v1::SubmitTask) -> Self {
        Self {
            model: &request.model,
            prompt: &request.prompt,
            negative_prompt: &request.negative_prompt,
            width: request.width,
            height: request.height,
            images: request.images,
            seed: request.seed,
            steps: request.steps,
            guidance_scale: request.guidance_scale,
            scheduler: word(SCHEDULERS, request.scheduler()),
            prompt_syntax: word(PROMPT_SYNTAXES, request.prompt_syntax()),
            guidance_rescale: request.guidance_rescale,
            quality: word(QUALITIES, request.quality()),
            output_format: word(FORMATS, request.output_format()),
            output_compression: request.output_compression,
            partial_images: request.partial_images,
            style_tags: &request.style_tags,
            user: &request.user,
            webhook: request.webhook.as_ref().map(|webhook| WebhookJson {
                url: &webhook.url,
                events: webhook.events().filter_map(|end| word(ENDS, end)).collect(),
            }),
            expires_after_seconds: (request.expires_after_seconds > 0)
                .then_some(request.expires_after_seconds),
            visible_label: request.visible_label,
        }
    }
}

impl<'a> FeedbackJson<'a> {
    fn new(feedback: &'a v1::Feedback) -> Self {
        Self {
            rating: (feedback.rating > 0).then_some(feedback.rating),
            verdict: word(VERDICTS, feedback.verdict()),
            comment: &feedback.comment,
            tags: &feedback.tags,
            at: Time(feedback.at.as_ref()),
        }
    }
}

impl<'a> ImageJson<'a> {
    fn new(info: &'a v1::ImageInfo, base: &str) -> Self {
        Self {
            index: info.index,
            seed: info.seed,
            width: info.width,
            height: info.height,
            format: word(FORMATS, info.format()),
            size_bytes: info.size_bytes,
            sha256: &info.sha256,
            url: format!("{base}{}", info.path),
        }
    }
}

/// A time in RFC 3339, or `null`.
#[derive(Debug)]
pub(super) struct Time<'a>(pub(super) Option<&'a prost_types::Timestamp>);

impl Serialize for Time<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let read = |t: &prost_types::Timestamp| jiff::Timestamp::new(t.seconds, t.nanos).ok();
        match self.0.and_then(read) {
            Some(time) => serializer.collect_str(&time),
            None => serializer.serialize_none(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::v1::{OutputFormat, PromptSyntax, Scheduler, TaskEvent, TaskPhase, Verdict};

    fn text(task: &TaskJson<'_>) -> String {
        serde_json::to_string(task).unwrap()
    }

    #[test]
    fn options_are_shown_where_they_were_given() {
        let shown = |request: v1::SubmitTask| {
            let task = v1::Task {
                request: Some(request),
                ..Default::default()
            };
            text(&TaskJson::new(&task, ""))
        };
        let text = shown(v1::SubmitTask::default());
        assert!(!text.contains("prompt_syntax") && !text.contains("guidance_rescale"));
        assert!(!text.contains("visible_label"), "{text}");
        let text = shown(v1::SubmitTask {
            scheduler: Scheduler::Unipc.into(),
            prompt_syntax: PromptSyntax::Weighted.into(),
            guidance_rescale: Some(0.7),
            visible_label: true,
            ..Default::default()
        });
        assert!(text.contains(r#""visible_label":true"#), "{text}");
        let expected = r#""scheduler":"unipc","prompt_syntax":"weighted","guidance_rescale":0.7,"#;
        assert!(text.contains(expected), "{text}");
    }

    #[test]
    fn a_task_is_shown_with_words_times_and_absolute_addresses() {
        let task = v1::Task {
            id: "t".to_owned(),
            phase: TaskPhase::Succeeded.into(),
            request: Some(v1::SubmitTask {
                model: "demo".to_owned(),
                guidance_scale: Some(0.1),
                scheduler: Scheduler::DpmPp2mKarras.into(),
                ..Default::default()
            }),
            submitted_at: Some(prost_types::Timestamp {
                seconds: 1,
                nanos: 500_000_000,
            }),
            images: vec![v1::ImageInfo {
                format: OutputFormat::Png.into(),
                path: "/v1/tasks/t/images/0?token=x".to_owned(),
                ..Default::default()
            }],
            ..Default::default()
        };
        let text = text(&TaskJson::new(&task, "http://h"));
        // Single precision is not stretched into digits that nobody sent.
        assert!(text.contains(r#""guidance_scale":0.1,"#), "{text}");
        let shown: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(shown["phase"], "succeeded");
        assert_eq!(shown["model"], "demo");
        assert_eq!(shown["submitted_at"], "1970-01-01T00:00:01.5Z");
        assert_eq!(shown["ended_at"], serde_json::Value::Null);
        assert_eq!(shown["request"]["scheduler"], "dpm++2m-karras");
        assert_eq!(
            shown["images"][0]["url"],
            "http://h/v1/tasks/t/images/0?token=x"
        );
        assert_eq!(shown["error"], serde_json::Value::Null);
    }

    #[test]
    fn webhook_and_feedback_are_shown_where_there_are_some() {
        let mut task = v1::Task::default();
        let shown = text(&TaskJson::new(&task, ""));
        assert!(!shown.contains("webhook") && !shown.contains("feedback"));
        task.request = Some(v1::SubmitTask {
            webhook: Some(v1::Webhook {
                url: "https://example.com".to_owned(),
                events: vec![TaskEvent::Failed.into()],
            }),
            ..Default::default()
        });
        task.feedback = Some(v1::Feedback {
            verdict: Verdict::Like.into(),
            ..Default::default()
        });
        let shown: serde_json::Value =
            serde_json::from_str(&text(&TaskJson::new(&task, ""))).unwrap();
        assert_eq!(shown["request"]["webhook"]["events"][0], "task.failed");
        assert_eq!(shown["feedback"]["verdict"], "like");
        assert_eq!(shown["feedback"]["rating"], serde_json::Value::Null);
    }
}
