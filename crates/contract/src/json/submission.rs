//! A submission out of its JSON: the body of `POST /v1/tasks`, one of a batch, or a message from a NATS producer.

use super::Fields;
use crate::words::{ENDS, FORMATS, PROMPT_SYNTAXES, QUALITIES, SCHEDULERS};
use crate::{Failure, v1};

/// The fields of a submission, for the person who mistyped one. Where no header can carry it, `idempotency_key` is one more.
pub const SUBMISSION_FIELDS: &[&str] = &[
    "model",
    "prompt",
    "negative_prompt",
    "width",
    "height",
    "images",
    "seed",
    "steps",
    "guidance_scale",
    "scheduler",
    "prompt_syntax",
    "guidance_rescale",
    "quality",
    "output_format",
    "output_compression",
    "partial_images",
    "style_tags",
    "user",
    "webhook",
    "webhook_url",
    "expires_after_seconds",
    "visible_label",
];

/// The field that is `url` of [`WEBHOOK`] in short.
const WEBHOOK_URL: &str = "webhook_url";
/// The field of the contract that both are read into.
const WEBHOOK: &str = "webhook";

/// A submission as its caller wrote it.
#[derive(Debug, Clone, PartialEq)]
pub struct Submission {
    /// What is asked for.
    pub task: v1::SubmitTask,
    /// By which names.
    pub names: Names,
}

impl From<v1::SubmitTask> for Submission {
    /// One that has the contract's own names.
    fn from(task: v1::SubmitTask) -> Self {
        let names = Names::default();
        Self { task, names }
    }
}

/// By which names a submission was written, where there are two for one thing; the contract's own unless it says otherwise.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Names {
    /// `webhook_url`, not `url` of `webhook`.
    short_webhook: bool,
}

impl Names {
    /// A complaint about the task, by the name that its caller wrote.
    pub fn tell(self, failure: Failure) -> Failure {
        if !self.short_webhook || failure.field.as_deref() != Some(WEBHOOK) {
            return failure;
        }
        let message = match failure.message.strip_prefix("webhook.url") {
            Some(rest) => format!("{WEBHOOK_URL}{rest}"),
            None => format!("{WEBHOOK_URL}: {}", failure.message),
        };
        Failure {
            field: Some(WEBHOOK_URL.to_owned()),
            message,
            ..failure
        }
    }
}

/// Reads a submission whose idempotency key came another way.
///
/// # Errors
/// An invalid argument that names the field.
pub fn submission(mut fields: Fields, idempotency_key: String) -> Result<Submission, Failure> {
    let names = Names {
        short_webhook: fields.is_given(WEBHOOK_URL),
    };
    let task = v1::SubmitTask {
        model: fields.text("model")?.unwrap_or_default(),
        prompt: fields.text("prompt")?.unwrap_or_default(),
        negative_prompt: fields.text("negative_prompt")?.unwrap_or_default(),
        width: fields.small("width")?.unwrap_or_default(),
        height: fields.small("height")?.unwrap_or_default(),
        images: fields.small("images")?.unwrap_or_default(),
        seed: fields.large("seed")?,
        steps: fields.small("steps")?.unwrap_or_default(),
        guidance_scale: fields.number("guidance_scale")?,
        scheduler: fields
            .word("scheduler", SCHEDULERS)?
            .unwrap_or_default()
            .into(),
        quality: fields
            .word("quality", QUALITIES)?
            .unwrap_or_default()
            .into(),
        output_format: fields
            .word("output_format", FORMATS)?
            .unwrap_or_default()
            .into(),
        output_compression: fields.small("output_compression")?,
        partial_images: fields.small("partial_images")?.unwrap_or_default(),
        style_tags: fields.texts("style_tags")?,
        user: fields.text("user")?.unwrap_or_default(),
        idempotency_key,
        prompt_syntax: fields
            .word("prompt_syntax", PROMPT_SYNTAXES)?
            .unwrap_or_default()
            .into(),
        guidance_rescale: fields.number("guidance_rescale")?,
        source: None,
        webhook: webhook(&mut fields)?,
        expires_after_seconds: fields.small("expires_after_seconds")?.unwrap_or_default(),
        visible_label: fields.truth("visible_label")?.unwrap_or_default(),
    };
    fields.nothing_else(SUBMISSION_FIELDS)?;
    Ok(Submission { task, names })
}

/// The same where the key is a field: among many, or without headers of its own.
///
/// # Errors
/// An invalid argument that names the field.
pub fn submission_with_key(fields: Fields) -> Result<Submission, Failure> {
    let mut fields = fields.once()?;
    let key = fields.text("idempotency_key")?.unwrap_or_default();
    submission(fields, key)
}

/// `webhook_url` alone, or `webhook` with the events that it is to be told of.
fn webhook(fields: &mut Fields) -> Result<Option<v1::Webhook>, Failure> {
    let short = fields.text(WEBHOOK_URL)?;
    let long = fields.says(WEBHOOK);
    let mut webhook = fields.object(WEBHOOK)?;
    match (short, long) {
        (None, false) => Ok(None),
        (Some(_), true) => {
            let message = "webhook_url is webhook.url in short: give one of the two";
            Err(Failure::invalid(WEBHOOK_URL, message))
        }
        (Some(url), false) => Ok(Some(v1::Webhook {
            url,
            events: Vec::new(),
        })),
        (None, true) => {
            let url = webhook.text("url").map_err(inside)?.unwrap_or_default();
            let events = webhook.words("events", ENDS).map_err(inside)?;
            webhook.nothing_else(&["url", "events"]).map_err(inside)?;
            let events = events.into_iter().map(Into::into).collect();
            Ok(Some(v1::Webhook { url, events }))
        }
    }
}

/// A complaint about a part of `webhook`.
fn inside(failure: Failure) -> Failure {
    Failure {
        field: Some(WEBHOOK.to_owned()),
        message: format!("{WEBHOOK}: {}", failure.message),
        ..failure
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::validate;

    fn read(body: &str) -> Result<v1::SubmitTask, Failure> {
        written(body).map(|written| written.task)
    }

    fn written(body: &str) -> Result<Submission, Failure> {
        submission(Fields::parse(body.as_bytes())?, String::new())
    }

    #[test]
    fn every_field_of_a_submission_is_read() {
        let body = r#"{"model":"m","prompt":"p","negative_prompt":"n","width":64,"height":96,"images":2,
            "seed":18446744073709551615,"steps":20,"guidance_scale":7.5,"scheduler":"dpm++2m","quality":"hd",
            "output_format":"webp","output_compression":80,"partial_images":3,"style_tags":["3d"],"user":"u",
            "prompt_syntax":"weighted","guidance_rescale":0.7,"expires_after_seconds":60,"visible_label":true,
            "webhook":{"url":"https://example.com/hook","events":["task.failed"]}}"#;
        let expected = v1::SubmitTask {
            model: "m".to_owned(),
            prompt: "p".to_owned(),
            negative_prompt: "n".to_owned(),
            width: 64,
            height: 96,
            images: 2,
            seed: Some(u64::MAX),
            steps: 20,
            guidance_scale: Some(7.5),
            scheduler: v1::Scheduler::DpmPp2m.into(),
            quality: v1::Quality::Hd.into(),
            output_format: v1::OutputFormat::Webp.into(),
            output_compression: Some(80),
            partial_images: 3,
            style_tags: vec!["3d".to_owned()],
            idempotency_key: String::new(),
            user: "u".to_owned(),
            prompt_syntax: v1::PromptSyntax::Weighted.into(),
            guidance_rescale: Some(0.7),
            source: None,
            webhook: Some(v1::Webhook {
                url: "https://example.com/hook".to_owned(),
                events: vec![v1::TaskEvent::Failed.into()],
            }),
            expires_after_seconds: 60,
            visible_label: true,
        };
        assert_eq!(read(body).unwrap(), expected);
    }

    #[test]
    fn a_typo_is_refused_rather_than_taken_for_a_default() {
        let failure = read(r#"{"prompt":"p","guidence_scale":3}"#).unwrap_err();
        assert_eq!(failure.field.as_deref(), Some("guidence_scale"));
        let failure = read(r#"{"prompt":"p","scheduler":"dpm"}"#).unwrap_err();
        assert_eq!(failure.field.as_deref(), Some("scheduler"));
        for (word, _) in SCHEDULERS {
            assert!(failure.message.contains(word), "{failure}");
        }
        let failure = read(r#"{"prompt":"p","prompt_syntax":"compel"}"#).unwrap_err();
        assert_eq!(
            failure.message,
            "prompt_syntax must be one of plain, weighted, not \"compel\""
        );
    }

    #[test]
    fn every_scheduler_is_asked_for_by_its_word() {
        for (word, scheduler) in SCHEDULERS {
            let task = read(&format!(r#"{{"prompt":"p","scheduler":"{word}"}}"#)).unwrap();
            assert_eq!(task.scheduler(), *scheduler);
        }
    }

    #[test]
    fn a_webhook_is_given_in_short_or_in_full_and_not_in_both() {
        let short = read(r#"{"prompt":"p","webhook_url":"https://example.com"}"#).unwrap();
        let full = read(r#"{"prompt":"p","webhook":{"url":"https://example.com"}}"#).unwrap();
        assert_eq!(short, full);
        assert_eq!(short.webhook.unwrap().url, "https://example.com");
        for (bad, field) in [
            (
                r#"{"webhook_url":"https://a","webhook":{"url":"https://a"}}"#,
                "webhook_url",
            ),
            (
                r#"{"webhook":{"url":"https://a","events":["task.done"]}}"#,
                "webhook",
            ),
            (r#"{"webhook":{"url":"https://a","secret":"s"}}"#, "webhook"),
            (r#"{"webhook":"https://a"}"#, "webhook"),
            (r#"{"webhook":{"url":1}}"#, "webhook"),
        ] {
            assert_eq!(
                read(bad).unwrap_err().field.as_deref(),
                Some(field),
                "{bad}"
            );
        }
    }

    #[test]
    fn a_complaint_about_a_webhook_is_told_by_the_name_that_its_caller_wrote() {
        let long = format!("https://example.com/{}", "x".repeat(2048));
        let told = |body: serde_json::Value| {
            let written = written(&body.to_string()).unwrap();
            let told = |failure| written.names.tell(failure);
            let refused = told(validate(&written.task).unwrap_err());
            let name = refused.field.clone().unwrap();
            // What comes later of whoever would call it.
            let later = told(Failure::invalid("webhook", "webhook.url must be public"));
            assert_eq!(later.field.as_deref(), Some(&*name));
            let other = Failure::invalid("steps", "steps must be fewer");
            assert_eq!(told(other.clone()), other);
            (name, refused.message, later.message)
        };
        for (url, must) in [
            ("", "must be an absolute URL"),
            ("ftp://example.com", "must be an absolute URL"),
            (&*long, "must be at most 2048 bytes"),
        ] {
            for (body, field, place) in [
                (
                    json!({"prompt": "p", "webhook_url": url}),
                    "webhook_url",
                    "webhook_url",
                ),
                (
                    json!({"prompt": "p", "webhook": {"url": url}}),
                    "webhook",
                    "webhook.url",
                ),
            ] {
                let (name, refused, later) = told(body);
                assert_eq!(name, field);
                assert!(refused.starts_with(&format!("{place} {must}")), "{refused}");
                assert_eq!(later, format!("{place} must be public"));
            }
        }
        let short = written(r#"{"prompt":"p","webhook_url":"https://a"}"#).unwrap();
        let whole = short
            .names
            .tell(Failure::invalid("webhook", "nobody is called here"));
        assert_eq!(whole.message, "webhook_url: nobody is called here");
        let null = written(r#"{"prompt":"p","webhook_url":null,"webhook":{"url":"x"}}"#).unwrap();
        assert_eq!(null.names, Names::default());
    }

    #[test]
    fn a_key_is_a_field_only_where_no_header_carries_it() {
        let body = r#"{"prompt":"p","idempotency_key":"k"}"#;
        assert_eq!(
            read(body).unwrap_err().field.as_deref(),
            Some("idempotency_key")
        );
        let read = submission_with_key(Fields::parse(body.as_bytes()).unwrap()).unwrap();
        assert_eq!(read.task.idempotency_key, "k");
    }

    proptest! {
        #[test]
        fn no_fields_make_the_decoder_panic(
            name in proptest::sample::select(SUBMISSION_FIELDS),
            value in "null|-1|1e400|1e39|4294967296|\"x\"|\\[1\\]|\\[\"x\"\\]|\\{\\}|true|0.5",
        ) {
            if let Ok(task) = read(&format!("{{\"{name}\":{value}}}")) {
                let _ = validate(&task);
            }
        }
    }
}
