//! Tasks as JSON: the contract's own names, words for enums, RFC 3339 for times.

use contract::v1::{OutputFormat, TaskPhase};
use contract::words::{FORMATS, PHASES, PROMPT_SYNTAXES, QUALITIES, SCHEDULERS, word};
use contract::{ErrorCode, Failure, v1};
use serde::{Serialize, Serializer};

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

/// A task as our own dialect shows it.
#[derive(Debug, Serialize)]
pub(crate) struct TaskJson<'a> {
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
struct ErrorJson<'a> {
    code: &'a str,
    message: &'a str,
}

impl<'a> TaskJson<'a> {
    /// Shows `task`; `base` goes in front of its pictures' paths.
    pub(crate) fn new(task: &'a v1::Task, base: &str) -> Self {
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
struct Time<'a>(Option<&'a prost_types::Timestamp>);

impl Serialize for Time<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let read = |t: &prost_types::Timestamp| jiff::Timestamp::new(t.seconds, t.nanos).ok();
        match self.0.and_then(read) {
            Some(time) => serializer.collect_str(&time),
            None => serializer.serialize_none(),
        }
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
    use contract::v1::{PromptSyntax, Scheduler};

    use super::*;

    #[test]
    fn options_are_shown_where_they_were_given() {
        let shown = |request: v1::SubmitTask| {
            let task = v1::Task {
                request: Some(request),
                ..Default::default()
            };
            crate::problem::text(&TaskJson::new(&task, ""))
        };
        let text = shown(v1::SubmitTask::default());
        assert!(!text.contains("prompt_syntax") && !text.contains("guidance_rescale"));
        let text = shown(v1::SubmitTask {
            scheduler: Scheduler::Unipc.into(),
            prompt_syntax: PromptSyntax::Weighted.into(),
            guidance_rescale: Some(0.7),
            ..Default::default()
        });
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
        let text = crate::problem::text(&TaskJson::new(&task, "http://h"));
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
