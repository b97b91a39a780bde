//! What can be said about a request without knowing its model. One function, whoever asks: the gateway before it sends a
//! request on, whatever dialect it came in, and the orchestrator before it takes one, whoever sent it.
//!
//! The model's own limits (sizes, steps, guidance) are the orchestrator's to check: it knows the version.

use crate::limits::{
    MAX_BATCH_TASKS, MAX_COMMENT_CHARS, MAX_EXPIRES_AFTER_SECONDS, MAX_FEEDBACK_TAG_BYTES,
    MAX_FEEDBACK_TAGS, MAX_IDEMPOTENCY_KEY_BYTES, MAX_IMAGES, MAX_KEY_BYTES, MAX_MODEL_BYTES,
    MAX_PARTIAL_IMAGES, MAX_PROMPT_BYTES, MAX_RATING, MAX_STYLE_TAG_BYTES, MAX_STYLE_TAGS,
    MAX_USER_BYTES, MAX_WEBHOOK_URL_BYTES,
};
use crate::words::{self, ENDS, FORMATS, PROMPT_SYNTAXES, QUALITIES, SCHEDULERS, VERDICTS, Words};
use crate::{Failure, v1};

/// Checks a request against the limits of the public contract.
///
/// # Errors
/// An invalid argument that names the first field at fault and its limit.
pub fn validate(task: &v1::SubmitTask) -> Result<(), Failure> {
    if task.prompt.trim().is_empty() {
        return Err(Failure::invalid(
            "prompt",
            "prompt must be given, and not be empty or blank",
        ));
    }
    at_most("prompt", &task.prompt, MAX_PROMPT_BYTES)?;
    at_most("negative_prompt", &task.negative_prompt, MAX_PROMPT_BYTES)?;
    at_most("model", &task.model, MAX_MODEL_BYTES)?;
    at_most("user", &task.user, MAX_USER_BYTES)?;
    at_most(
        "idempotency_key",
        &task.idempotency_key,
        MAX_IDEMPOTENCY_KEY_BYTES,
    )?;
    // The ids of tasks that the platform makes itself are derived from names with such, so that no caller's key makes the same.
    no_control("idempotency_key", &task.idempotency_key)?;
    no_more("images", task.images, MAX_IMAGES)?;
    no_more("partial_images", task.partial_images, MAX_PARTIAL_IMAGES)?;
    no_more(
        "expires_after_seconds",
        task.expires_after_seconds,
        MAX_EXPIRES_AFTER_SECONDS,
    )?;
    numbers(task)?;
    known_words(task)?;
    source(task)?;
    webhook(task)?;
    let most = (MAX_STYLE_TAGS, MAX_STYLE_TAG_BYTES);
    tags("style_tags", &task.style_tags, most)
}

/// Checks what a caller says of its pictures.
///
/// # Errors
/// An invalid argument that names the first field at fault and its limit.
pub fn validate_feedback(feedback: &v1::Feedback) -> Result<(), Failure> {
    known("verdict", feedback.verdict, VERDICTS)?;
    if feedback.rating > MAX_RATING {
        let text = format!("rating must be 1 to {MAX_RATING}, not {}", feedback.rating);
        return Err(Failure::invalid("rating", text));
    }
    if feedback.rating == 0 && feedback.verdict() == v1::Verdict::Unspecified {
        let words = words::all(VERDICTS);
        let text = format!("feedback needs a rating (1 to {MAX_RATING}) or a verdict ({words})");
        return Err(Failure::invalid("rating", text));
    }
    let characters = feedback.comment.chars().count();
    if characters > MAX_COMMENT_CHARS {
        let text =
            format!("comment must be at most {MAX_COMMENT_CHARS} characters, not {characters}");
        return Err(Failure::invalid("comment", text));
    }
    let most = (MAX_FEEDBACK_TAGS, MAX_FEEDBACK_TAG_BYTES);
    tags("tags", &feedback.tags, most)
}

/// Checks how many tasks a batch has.
///
/// # Errors
/// An invalid argument that names the limit.
pub fn check_batch(tasks: usize) -> Result<(), Failure> {
    if (1..=MAX_BATCH_TASKS).contains(&tasks) {
        return Ok(());
    }
    let text = format!("tasks must hold 1 to {MAX_BATCH_TASKS} tasks, not {tasks}");
    Err(Failure::invalid("tasks", text))
}

fn at_most(field: &str, text: &str, limit: usize) -> Result<(), Failure> {
    if text.len() <= limit {
        return Ok(());
    }
    let message = format!(
        "{field} must be at most {limit} bytes of UTF-8, not {}",
        text.len()
    );
    Err(Failure::invalid(field, message))
}

fn no_control(field: &str, text: &str) -> Result<(), Failure> {
    let Some(at) = text.find(char::is_control) else {
        return Ok(());
    };
    let message = format!("{field} must hold no control characters, and has one at byte {at}");
    Err(Failure::invalid(field, message))
}

fn no_more(field: &str, count: u32, limit: u32) -> Result<(), Failure> {
    if count <= limit {
        return Ok(());
    }
    Err(Failure::invalid(
        field,
        format!("{field} must be at most {limit}, whatever the model, not {count}"),
    ))
}

fn numbers(task: &v1::SubmitTask) -> Result<(), Failure> {
    if let Some(scale) = task.guidance_scale
        && !(scale.is_finite() && scale >= 0.0)
    {
        let message = format!("guidance_scale must be a finite number of 0 or more, not {scale}");
        return Err(Failure::invalid("guidance_scale", message));
    }
    if let Some(share) = task.guidance_rescale
        && !(0.0..=1.0).contains(&share)
    {
        let message = format!("guidance_rescale must be 0 to 1, not {share}");
        return Err(Failure::invalid("guidance_rescale", message));
    }
    if let Some(quality) = task.output_compression
        && !(1..=100).contains(&quality)
    {
        let message = format!("output_compression must be 1 to 100, not {quality}");
        return Err(Failure::invalid("output_compression", message));
    }
    Ok(())
}

fn source(task: &v1::SubmitTask) -> Result<(), Failure> {
    let Some(source) = &task.source else {
        return Ok(());
    };
    if source.image_key.is_empty() {
        let message = "source.image_key must not be empty: it is the picture to begin from";
        return Err(Failure::invalid("source", message));
    }
    at_most("source", &source.image_key, MAX_KEY_BYTES)?;
    at_most("source", &source.mask_key, MAX_KEY_BYTES)?;
    if let Some(share) = source.strength
        && !(share > 0.0 && share <= 1.0)
    {
        let message = format!("strength must be more than 0 and at most 1, not {share}");
        return Err(Failure::invalid("strength", message));
    }
    Ok(())
}

// Over gRPC an enum is any number.
fn known_words(task: &v1::SubmitTask) -> Result<(), Failure> {
    known("scheduler", task.scheduler, SCHEDULERS)?;
    known("quality", task.quality, QUALITIES)?;
    known("output_format", task.output_format, FORMATS)?;
    known("prompt_syntax", task.prompt_syntax, PROMPT_SYNTAXES)
}

fn known<T: TryFrom<i32>>(field: &str, value: i32, words: Words<T>) -> Result<(), Failure> {
    if T::try_from(value).is_ok() {
        return Ok(());
    }
    let words = words::all(words);
    let message = format!("{field} has no value {value} in this version; there are {words}");
    Err(Failure::invalid(field, message))
}

/// What can be said of a webhook's URL without the rules of the one who will call it: those are checked at admission.
fn webhook(task: &v1::SubmitTask) -> Result<(), Failure> {
    let Some(webhook) = &task.webhook else {
        return Ok(());
    };
    let url = &webhook.url;
    at_most("webhook.url", url, MAX_WEBHOOK_URL_BYTES).map_err(|failure| Failure {
        field: Some("webhook".to_owned()),
        ..failure
    })?;
    let scheme = url.starts_with("https://") || url.starts_with("http://");
    if !scheme || !url.bytes().all(|b| b.is_ascii_graphic()) {
        let message = "webhook.url must be an absolute URL (https://…) of printable ASCII";
        return Err(Failure::invalid("webhook", message));
    }
    for &event in &webhook.events {
        let end = v1::TaskEvent::try_from(event).ok();
        if end.is_none_or(|end| words::word(ENDS, end).is_none()) {
            let words = words::all(ENDS);
            let message = format!("webhook.events may hold {words}");
            return Err(Failure::invalid("webhook", message));
        }
    }
    if webhook.events.len() > ENDS.len() {
        let message = format!("webhook.events must be at most {}", ENDS.len());
        return Err(Failure::invalid("webhook", message));
    }
    Ok(())
}

/// `most`: how many there may be, and how many bytes of each.
fn tags(field: &str, tags: &[String], most: (usize, usize)) -> Result<(), Failure> {
    let invalid = |message| Err(Failure::invalid(field, message));
    let (count, length) = most;
    if tags.len() > count {
        return invalid(format!(
            "{field} must be at most {count}, not {}",
            tags.len()
        ));
    }
    for (i, tag) in tags.iter().enumerate() {
        if tag.is_empty() || tag.len() > length {
            let bytes = tag.len();
            return invalid(format!(
                "{field}[{i}] must be 1 to {length} bytes, not {bytes}"
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn field(change: impl FnOnce(&mut v1::SubmitTask)) -> Option<String> {
        let mut task = v1::SubmitTask {
            prompt: "a cat".to_owned(),
            ..Default::default()
        };
        change(&mut task);
        validate(&task).err().and_then(|failure| failure.field)
    }

    #[test]
    fn a_prompt_alone_is_a_request() {
        assert_eq!(field(|_| ()), None);
    }

    #[test]
    fn each_limit_is_named_by_its_field_and_the_limit_itself_is_allowed() {
        let named = |name: &str| Some(name.to_owned());
        assert_eq!(
            field(|t| t.prompt = " \n\u{3000}".to_owned()),
            named("prompt")
        );
        assert_eq!(field(|t| t.prompt = "x".repeat(4096)), None);
        assert_eq!(field(|t| t.prompt = "x".repeat(4097)), named("prompt"));
        assert_eq!(
            field(|t| t.negative_prompt = "x".repeat(4097)),
            named("negative_prompt")
        );
        assert_eq!(field(|t| t.model = "x".repeat(129)), named("model"));
        assert_eq!(field(|t| t.images = 10), None);
        assert_eq!(field(|t| t.images = 11), named("images"));
        assert_eq!(field(|t| t.partial_images = 3), None);
        assert_eq!(field(|t| t.partial_images = 4), named("partial_images"));
        assert_eq!(field(|t| t.guidance_scale = Some(0.0)), None);
        for bad in [f32::NAN, f32::INFINITY, -0.5] {
            assert_eq!(
                field(|t| t.guidance_scale = Some(bad)),
                named("guidance_scale")
            );
        }
        for good in [0.0, 0.7, 1.0] {
            assert_eq!(field(|t| t.guidance_rescale = Some(good)), None);
        }
        for bad in [f32::NAN, f32::INFINITY, -0.1, 1.1] {
            assert_eq!(
                field(|t| t.guidance_rescale = Some(bad)),
                named("guidance_rescale")
            );
        }
        let from = |image_key: &str, strength| {
            let image_key = image_key.to_owned();
            Some(v1::Source {
                image_key,
                strength,
                ..Default::default()
            })
        };
        assert_eq!(field(|t| t.source = from("k", Some(1.0))), None);
        assert_eq!(field(|t| t.source = from("", None)), named("source"));
        for bad in [f32::NAN, 0.0, 1.1] {
            assert_eq!(
                field(|t| t.source = from("k", Some(bad))),
                named("strength")
            );
        }
        assert_eq!(field(|t| t.output_compression = Some(100)), None);
        for bad in [0, 101] {
            assert_eq!(
                field(|t| t.output_compression = Some(bad)),
                named("output_compression")
            );
        }
        assert_eq!(field(|t| t.scheduler = 99), named("scheduler"));
        assert_eq!(field(|t| t.prompt_syntax = 99), named("prompt_syntax"));
        assert_eq!(field(|t| t.quality = -1), named("quality"));
        assert_eq!(field(|t| t.output_format = 99), named("output_format"));
        assert_eq!(field(|t| t.style_tags = vec!["x".to_owned(); 16]), None);
        assert_eq!(
            field(|t| t.style_tags = vec!["x".to_owned(); 17]),
            named("style_tags")
        );
        assert_eq!(
            field(|t| t.style_tags = vec![String::new()]),
            named("style_tags")
        );
        assert_eq!(field(|t| t.user = "x".repeat(257)), named("user"));
        assert_eq!(field(|t| t.expires_after_seconds = 604_800), None);
        assert_eq!(
            field(|t| t.expires_after_seconds = 604_801),
            named("expires_after_seconds")
        );
        assert_eq!(
            field(|t| t.idempotency_key = "x".repeat(257)),
            named("idempotency_key")
        );
    }

    #[test]
    fn an_idempotency_key_of_any_script_is_good_and_one_with_control_characters_is_refused() {
        let with = |key: &str| field(|t| t.idempotency_key = key.to_owned());
        for good in ["", "order 17", "注文-17", "é{}\\\""] {
            assert_eq!(with(good), None, "{good:?}");
        }
        let retried = "\0dead letter\0task.acme";
        for bad in [retried, "\0", "order\n17", "tab\t", "\u{7f}", "\u{85}"] {
            let named = Some("idempotency_key".to_owned());
            assert_eq!(with(bad), named, "{bad:?}");
        }
    }

    #[test]
    fn a_webhook_is_an_absolute_url_and_told_of_ends_only() {
        let with = |url: &str, events: &[v1::TaskEvent]| {
            let events = events.iter().map(|&event| event.into()).collect();
            let url = url.to_owned();
            field(|t| t.webhook = Some(v1::Webhook { url, events }))
        };
        let at_fault = Some("webhook".to_owned());
        let ends: Vec<_> = ENDS.iter().map(|(_, end)| *end).collect();
        assert_eq!(with("https://example.com/hook?a=b", &ends), None);
        assert_eq!(with("http://example.com", &[]), None);
        let long = format!("https://example.com/{}", "x".repeat(2048));
        for bad in [
            "",
            "example.com",
            "ftp://example.com",
            "https://a b",
            "https://é",
            &long,
        ] {
            assert_eq!(with(bad, &[]), at_fault, "{bad}");
        }
        let url = "https://example.com";
        assert_eq!(with(url, &[v1::TaskEvent::Accepted]), at_fault);
        assert_eq!(with(url, &[ends[0]; 4]), at_fault);
        assert_eq!(
            field(|t| t.webhook = Some(v1::Webhook {
                url: url.to_owned(),
                events: vec![99]
            })),
            at_fault
        );
    }

    #[test]
    fn feedback_has_a_rating_or_a_verdict_and_each_limit_is_named() {
        let field = |change: fn(&mut v1::Feedback)| {
            let mut feedback = v1::Feedback {
                rating: 3,
                ..Default::default()
            };
            change(&mut feedback);
            validate_feedback(&feedback)
                .err()
                .and_then(|failure| failure.field)
        };
        let named = |name: &str| Some(name.to_owned());
        assert_eq!(field(|_| ()), None);
        assert_eq!(field(|f| f.rating = 5), None);
        assert_eq!(field(|f| f.rating = 6), named("rating"));
        assert_eq!(field(|f| f.rating = 0), named("rating"));
        let like = |f: &mut v1::Feedback| {
            f.rating = 0;
            f.set_verdict(v1::Verdict::Like);
        };
        assert_eq!(field(like), None);
        assert_eq!(field(|f| f.verdict = 9), named("verdict"));
        // Characters, not bytes.
        assert_eq!(field(|f| f.comment = "猫".repeat(2000)), None);
        assert_eq!(field(|f| f.comment = "x".repeat(2001)), named("comment"));
        assert_eq!(field(|f| f.tags = vec!["x".to_owned(); 16]), None);
        assert_eq!(field(|f| f.tags = vec!["x".to_owned(); 17]), named("tags"));
        assert_eq!(field(|f| f.tags = vec!["x".repeat(65)]), named("tags"));
    }

    #[test]
    fn a_value_that_no_word_has_is_answered_with_the_words() {
        let task = v1::SubmitTask {
            prompt: "a cat".to_owned(),
            scheduler: 99,
            ..Default::default()
        };
        let message = validate(&task).unwrap_err().message;
        for (word, _) in SCHEDULERS {
            assert!(message.contains(word), "{message}");
        }
    }

    #[test]
    fn a_request_of_before_has_the_same_bytes() {
        // What the idempotency digest is taken of. The fields of later versions add nothing unless they are set.
        let task = v1::SubmitTask {
            model: "m".to_owned(),
            prompt: "a cat".to_owned(),
            width: 64,
            seed: Some(7),
            guidance_scale: Some(2.0),
            scheduler: v1::Scheduler::DpmPp2mKarras.into(),
            ..Default::default()
        };
        let mut expected = vec![0x0a, 1, b'm', 0x12, 5];
        expected.extend(b"a cat");
        expected.extend([0x20, 64, 0x38, 7, 0x4d, 0, 0, 0, 0x40, 0x50, 4]);
        assert_eq!(prost::Message::encode_to_vec(&task), expected);
        let set = v1::SubmitTask {
            guidance_rescale: Some(0.0),
            prompt_syntax: v1::PromptSyntax::Plain.into(),
            ..task
        };
        expected.extend([0x90, 1, 1, 0x9d, 1, 0, 0, 0, 0]);
        assert_eq!(prost::Message::encode_to_vec(&set), expected);
    }

    #[test]
    fn a_prompts_limit_counts_bytes_and_says_so() {
        let task = v1::SubmitTask {
            prompt: "猫".repeat(1366),
            ..Default::default()
        };
        let message = validate(&task).unwrap_err().message;
        assert!(
            message.contains("4096 bytes") && message.contains("4098"),
            "{message}"
        );
    }
}
