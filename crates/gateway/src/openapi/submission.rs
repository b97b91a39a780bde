//! What a caller may ask for in our own dialect, as its decoders read it.

use contract::json::{Asked, asked, submission, submission_with_key};
use contract::limits::{
    MAX_BATCH_TASKS, MAX_COMMENT_CHARS, MAX_EXPIRES_AFTER_SECONDS, MAX_FEEDBACK_TAG_BYTES,
    MAX_FEEDBACK_TAGS, MAX_IDEMPOTENCY_KEY_BYTES, MAX_IMAGES, MAX_MODEL_BYTES, MAX_PARTIAL_IMAGES,
    MAX_PROMPT_BYTES, MAX_RATING, MAX_STYLE_TAG_BYTES, MAX_STYLE_TAGS, MAX_USER_BYTES,
    MAX_WEBHOOK_URL_BYTES,
};
use contract::words::ENDS;
use serde_json::json;
use utoipa::openapi::schema::Array;
use utoipa::openapi::{Object, RefOr, Schema};

use super::schema::{About, component, part, record, request, rule};
use crate::{feedback, tokens};

component!(
    /// `POST /v1/tasks`
    Submission,
    "Submission",
    [],
    submitted(&asked(SAMPLE, |fields| submission(fields, String::new())).unwrap_or_default())
);

component!(
    /// One of many, which has its idempotency key as a field.
    KeyedSubmission,
    "KeyedSubmission",
    [],
    submitted(&asked(SAMPLE, submission_with_key).unwrap_or_default())
);

component!(
    /// `POST /v1/tasks/batch`
    Batch,
    "Batch",
    [KeyedSubmission],
    batch()
);

component!(
    /// `POST /v1/tasks/{id}/feedback`
    Feedback,
    "Feedback",
    [],
    given(&asked(r#"{"rating":1}"#, feedback::decode).unwrap_or_default())
);

component!(
    /// `POST /v1/token`
    TokenWish,
    "TokenWish",
    [],
    request(
        &asked("{}", tokens::lifetime_of).unwrap_or_default(),
        &TOKEN
    )
);

/// A decoder's samples are accepted by it, which tests of this module show.
const SAMPLE: &str = r#"{"webhook":{"url":"https://example.com"}}"#;

/// What is said of a submission's fields.
const ABOUT: About = About {
    field,
    most,
    required: &["prompt", "webhook.url"],
};

const FEEDBACK: About = About {
    field: of_feedback,
    most: |path| (path == "tags").then_some(MAX_FEEDBACK_TAGS),
    required: &[],
};

const TOKEN: About = About {
    field: |path, schema| {
        if path == tokens::LIFETIME {
            schema.minimum = Some(1_u32.into());
            schema.description = Some("From 60 up to the longest that the platform gives (15 minutes unless set), which it is where it is left out.".to_owned());
        }
    },
    most: |_| None,
    required: &[],
};

/// The one who is to be told is named once.
fn submitted(asked: &[Asked]) -> Object {
    let mut object = request(asked, &ABOUT);
    let both = json!({
        "required": ["webhook", "webhook_url"],
        "properties": {"webhook": {"type": "object"}, "webhook_url": {"type": "string"}},
    });
    rule(&mut object, json!({"not": both}));
    object
}

/// It says something of the pictures.
fn given(asked: &[Asked]) -> Object {
    let mut object = request(asked, &FEEDBACK);
    let neither = json!({"properties": {"rating": {"type": "null"}, "verdict": {"type": "null"}}});
    rule(&mut object, json!({"not": neither}));
    object
}

fn batch() -> Object {
    let mut tasks = Array::new(part::<KeyedSubmission>());
    tasks.min_items = Some(1);
    tasks.max_items = Some(MAX_BATCH_TASKS);
    let tasks: RefOr<Schema> = tasks.into();
    let mut batch = record([("tasks", "Each is accepted or refused by itself.", tasks)]);
    let closed = utoipa::openapi::schema::AdditionalProperties::FreeForm(false);
    batch.additional_properties = Some(Box::new(closed));
    batch
}

/// What the fields of the contract mean, and their limits, by whatever dialect they are asked for.
pub(crate) fn field(path: &str, schema: &mut Object) {
    limit(path, schema);
    let means = meaning(path);
    if !means.is_empty() {
        schema.description = Some(means.to_owned());
    }
}

fn limit(path: &str, schema: &mut Object) {
    match path {
        "model" => schema.max_length = Some(MAX_MODEL_BYTES),
        "prompt" => {
            schema.min_length = Some(1);
            schema.max_length = Some(MAX_PROMPT_BYTES);
            // Not blank.
            schema.pattern = Some(r"\S".to_owned());
        }
        "negative_prompt" => schema.max_length = Some(MAX_PROMPT_BYTES),
        "images" => schema.maximum = Some(MAX_IMAGES.into()),
        "guidance_scale" => {
            schema.minimum = Some(0.0_f64.into());
            schema.maximum = Some(f64::from(f32::MAX).into());
        }
        "guidance_rescale" => {
            schema.minimum = Some(0.0_f64.into());
            schema.maximum = Some(1.0_f64.into());
        }
        "output_compression" => {
            schema.minimum = Some(1_u32.into());
            schema.maximum = Some(100_u32.into());
        }
        "partial_images" => schema.maximum = Some(MAX_PARTIAL_IMAGES.into()),
        "style_tags[]" => {
            schema.min_length = Some(1);
            schema.max_length = Some(MAX_STYLE_TAG_BYTES);
        }
        "user" => schema.max_length = Some(MAX_USER_BYTES),
        "expires_after_seconds" => {
            schema.minimum = Some(0_u32.into());
            schema.maximum = Some(MAX_EXPIRES_AFTER_SECONDS.into());
        }
        "idempotency_key" => schema.max_length = Some(MAX_IDEMPOTENCY_KEY_BYTES),
        "webhook.url" | "webhook_url" => {
            schema.max_length = Some(MAX_WEBHOOK_URL_BYTES);
            schema.pattern = Some("^https?://[!-~]*$".to_owned());
        }
        _ => {}
    }
}

/// Empty for what explains itself.
fn meaning(path: &str) -> &'static str {
    match path {
        "model" => "Name or alias of a model; the platform's default where it is left out.",
        "prompt" => "What to draw. At most 4096 bytes of UTF-8.",
        "negative_prompt" => "What to keep out. At most 4096 bytes of UTF-8.",
        "width" | "height" => {
            "Pixels, within the model's limits and a multiple of its step; 0 is the model's own."
        }
        "images" => "Pictures; 0 is 1. Picture i has seed + i.",
        "seed" => "The same request and seed give the same pictures. Random where it is left out.",
        "steps" => "Denoising steps, up to the model's limit; 0 is the model's own number.",
        "guidance_scale" => "Up to the model's limit; 1 or less switches guidance off.",
        "scheduler" => "The one that the model was published with where it is left out.",
        "prompt_syntax" => "How prompt and negative prompt are read; `plain` where it is left out.",
        "guidance_rescale" => "The share of the contrast that guidance adds which is taken back.",
        "quality" => "`hd` needs a policy that allows it.",
        "output_format" => "`png` where it is left out; `webp` is lossless.",
        "output_compression" => "The quality of JPEG; 90 where it is left out.",
        "partial_images" => "Previews of each picture, evenly spaced.",
        "style_tags" => "Stored with the task.",
        "user" => "The caller's own user; stored with the task.",
        "expires_after_seconds" => {
            "How long the task may wait to begin; after that it fails with `deadline_exceeded`. 0 is no limit but the platform's own, some days."
        }
        "visible_label" => {
            "Whether each picture says in its corner that AI generated it. The platform may have it so in any case."
        }
        "idempotency_key" => "As the header Idempotency-Key of a single submission.",
        "webhook" => "Who is told of the task's end; not beside `webhook_url`.",
        "webhook.url" => "An absolute URL of a host on the public internet.",
        "webhook_url" => "`webhook.url` in short; not both.",
        "webhook.events" => "Which ends; all where it is left out.",
        _ => "",
    }
}

/// How many the contract's lists may hold.
pub(crate) fn most(path: &str) -> Option<usize> {
    match path {
        "style_tags" => Some(MAX_STYLE_TAGS),
        "webhook.events" => Some(ENDS.len()),
        _ => None,
    }
}

fn of_feedback(path: &str, schema: &mut Object) {
    let means = match path {
        "rating" => {
            schema.minimum = Some(1_u32.into());
            schema.maximum = Some(MAX_RATING.into());
            "5 is best. Rating or verdict has to be there."
        }
        "verdict" => "Rating or verdict has to be there.",
        "comment" => {
            schema.max_length = Some(MAX_COMMENT_CHARS);
            ""
        }
        "tags[]" => {
            schema.min_length = Some(1);
            schema.max_length = Some(MAX_FEEDBACK_TAG_BYTES);
            ""
        }
        _ => "",
    };
    if !means.is_empty() {
        schema.description = Some(means.to_owned());
    }
}
