//! What a record says.

use serde::{Deserialize, Serialize};

/// What is recorded of one event, before it takes its place in the chain. Fields are written in this order.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Content {
    /// When it was recorded, RFC 3339 in UTC.
    pub recorded: String,
    /// The event's place in the task log's stream; of a gap the last place of it.
    pub source: u64,
    /// When that stream was made, RFC 3339 in UTC to the nanosecond: one that was made anew has other events at the same places. It is that of all
    /// records up to the next that says it; empty in those, and in what was recorded before there was this field.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub log: String,
    /// Whose task; empty of a gap.
    pub tenant: String,
    /// Its id; empty of a gap.
    pub task: String,
    /// What happened.
    #[serde(flatten)]
    pub event: Event,
}

/// What happened to a task.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// It was accepted.
    Submitted(Box<Task>),
    /// It ended.
    Done {
        /// When, RFC 3339 in UTC.
        at: String,
        /// `succeeded`, `failed` or `cancelled`.
        outcome: String,
        /// Of a failure its code, else empty.
        code: String,
        /// Who ended it; empty for the orchestrator.
        worker: String,
        /// Times a worker took it up.
        attempt: u32,
        /// What can leave the platform.
        pictures: Vec<Picture>,
    },
    /// An event that could not be read: that it was there is recorded, and what its bytes hash to.
    Unreadable {
        /// SHA-256 of its bytes, hex.
        sha256: String,
    },
    /// Places of the task log were removed before they were recorded. Nobody knows what happened there: a chain with a gap is not whole, however
    /// good each of its records is.
    Gap {
        /// The first such place.
        from: u64,
        /// The last one.
        to: u64,
        /// `expired`: the log held them for as long as it may, and let go of them. `removed`: somebody else removed them, or the log let go
        /// of them while nothing was recorded. [`ANEW`](Event::ANEW): another log stands in place of the one that was recorded so far.
        why: String,
    },
}

impl Event {
    /// Why there is a gap where the task log was made anew: `from` is a place of the log before, of which nobody knows how far it went, and `to` lies
    /// in front of all that the new one had when that was found. It may be less than `from`.
    pub const ANEW: &'static str = "anew";
}

/// A task as it was accepted.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Task {
    /// When, RFC 3339 in UTC.
    pub at: String,
    /// The key that asked; its public half.
    pub app_key: String,
    /// Canonical name.
    pub model: String,
    /// Chosen at admission.
    pub model_version: String,
    /// The lane in which it waits.
    pub lane: String,
    /// Who asked, as the caller names its own users.
    pub user: String,
    /// SHA-256 of the request as it came, hex.
    pub request_sha256: String,
    /// SHA-256 of the prompt's UTF-8, hex.
    pub prompt_sha256: String,
    /// … and of the negative prompt's.
    pub negative_prompt_sha256: String,
    /// The words themselves, where the settings say so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt: Option<String>,
    /// … and those of the negative prompt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub negative_prompt: Option<String>,
    /// The failed task that an operator had tried again as this one.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub retry_of: String,
    /// What is to be drawn, besides the words.
    pub request: Request,
}

/// The parameters of a request, with every default filled in.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Request {
    /// Pixels.
    pub width: u32,
    /// Pixels.
    pub height: u32,
    /// Pictures.
    pub images: u32,
    /// Of the first picture.
    pub seed: Option<u64>,
    /// Denoising steps.
    pub steps: u32,
    /// Guidance scale in its shortest decimal form; empty where absent.
    pub guidance_scale: String,
    /// The sampler's name in the protocol.
    pub scheduler: String,
    /// Standard or HD, as the protocol names it.
    pub quality: String,
    /// The file format, as the protocol names it.
    pub output_format: String,
    /// Object key of the picture to begin from; empty where there is none.
    pub source_image: String,
    /// Object key of its mask; empty where there is none.
    pub source_mask: String,
    /// Whom the end is told; empty for nobody.
    pub webhook: String,
    /// Seconds within which it was to begin; 0 for any time, and in what was recorded before there was this field.
    #[serde(default, skip_serializing_if = "is_none")]
    pub expires_after_seconds: u32,
    /// Whether a visible label was asked for; false in what was recorded before there was this field.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub visible_label: bool,
}

/// Whether a limit is none.
fn is_none(limit: &u32) -> bool {
    *limit == 0
}

/// A picture that a task made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Picture {
    /// Object key.
    pub key: String,
    /// SHA-256 of the file, hex.
    pub sha256: String,
    /// Of the file.
    pub size_bytes: u64,
}
