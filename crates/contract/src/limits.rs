//! Limits of the public contract: the same whichever dialect a request comes in.

/// Prompt and negative prompt, bytes of UTF-8 each.
pub const MAX_PROMPT_BYTES: usize = 4096;
/// A model's name or alias, bytes: longer than any that a model can have; keeps nonsense out of logs.
pub const MAX_MODEL_BYTES: usize = 128;
/// Pictures in one task.
pub const MAX_IMAGES: u32 = 10;
/// Previews of one picture.
pub const MAX_PARTIAL_IMAGES: u32 = 3;
/// Style tags on one task.
pub const MAX_STYLE_TAGS: usize = 16;
/// One style tag, bytes.
pub const MAX_STYLE_TAG_BYTES: usize = 64;
/// Idempotency key, bytes.
pub const MAX_IDEMPOTENCY_KEY_BYTES: usize = 256;
/// The caller's own user name, bytes.
pub const MAX_USER_BYTES: usize = 256;
/// A picture to begin from, pixels: more than any model draws, and bounded memory for whoever decodes it.
pub const MAX_SOURCE_PIXELS: u64 = 4096 * 4096;
/// Its file, bytes.
pub const MAX_SOURCE_BYTES: u64 = 16 * 1024 * 1024;
/// For how long a task may wait to begin at most, seconds: as long as the task log keeps it where nothing else is set.
pub const MAX_EXPIRES_AFTER_SECONDS: u32 = 7 * 24 * 60 * 60;
/// A webhook's URL, bytes.
pub const MAX_WEBHOOK_URL_BYTES: usize = 2048;
/// The best that feedback can rate.
pub const MAX_RATING: u32 = 5;
/// A comment in feedback, characters.
pub const MAX_COMMENT_CHARS: usize = 2000;
/// Tags in feedback.
pub const MAX_FEEDBACK_TAGS: usize = 16;
/// One of them, bytes.
pub const MAX_FEEDBACK_TAG_BYTES: usize = 64;
/// An object key in a request, bytes: longer than any that there is.
pub const MAX_KEY_BYTES: usize = 256;
/// Tasks on one page of a list.
pub const MAX_PAGE_SIZE: u32 = 100;
/// Phases that a list can name: each once, and each once more.
pub const MAX_PHASES: usize = 2 * crate::words::PHASES.len();
/// Tasks in one batch.
pub const MAX_BATCH_TASKS: usize = 100;
/// Values in one text of JSON, those in lists and objects included: each may take a hundred times its bytes in memory. The largest batch has
/// less than half as many.
pub const MAX_JSON_VALUES: usize = 10_000;
/// Tasks on a page when the caller does not say.
pub const DEFAULT_PAGE_SIZE: u32 = 20;
/// Requests that a policy allows in a second, and at once: a rate or burst above this is no limit worth the name.
pub const MAX_POLICY_REQUESTS: u32 = 1_000_000;
/// One gRPC message between services, bytes: a 10-picture task's largest single picture fits.
pub const MAX_GRPC_MESSAGE_BYTES: usize = 36 * 1024 * 1024;
/// Clock difference that a signature may have, seconds.
pub const MAX_CLOCK_SKEW_SECONDS: i64 = 300;
