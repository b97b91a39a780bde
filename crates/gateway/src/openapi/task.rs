//! What our own dialect answers.

use contract::ErrorCode;
use contract::limits::MAX_RATING;
use contract::words::{
    ENDS, FORMATS, PHASES, PROMPT_SYNTAXES, QUALITIES, SCHEDULERS, VERDICTS, Words,
};
use utoipa::openapi::schema::Array;
use utoipa::openapi::{Object, OneOfBuilder, RefOr, Schema};

use super::schema::{
    component, count, event, number, or_null, part, record, text, time, truth, url, uuid, whole,
    word,
};

component!(
    /// A task.
    Task,
    "Task",
    [TaskRequest, Picture, TaskFeedback],
    task()
);

component!(
    /// The request of a task.
    TaskRequest,
    "TaskRequest",
    [],
    task_request()
);

component!(
    /// A finished picture.
    Picture,
    "Picture",
    [],
    record([
        ("index", "", count().into()),
        ("seed", "", whole(0, u64::MAX).into()),
        ("width", "Pixels.", count().into()),
        ("height", "Pixels.", count().into()),
        ("format", "", one_of(FORMATS).into()),
        ("size_bytes", "", whole(0, u64::MAX).into()),
        ("sha256", "Of the file, in hexadecimal digits.", digest().into()),
        ("url", "Needs no credentials, for as long as the task is stored.", url().into()),
    ])
);

component!(
    /// What was said of a task's pictures.
    TaskFeedback,
    "TaskFeedback",
    [],
    record([
        ("rating", "", or_null(whole(1, u64::from(MAX_RATING))).into()),
        ("verdict", "", or_null(one_of(VERDICTS)).into()),
        ("comment", "", text().into()),
        ("tags", "", Array::new(text()).into()),
        ("at", "", or_null(time()).into()),
    ])
);

component!(
    /// An event of a task.
    TaskEvent,
    "TaskEvent",
    [],
    event(["task", "progress", "preview", "reconnect", "error"])
);

component!(
    /// A page of tasks.
    TaskList,
    "TaskList",
    [Task],
    record([
        ("data", "Newest first.", Array::new(part::<Task>()).into()),
        ("next_page_token", "Leads to the next page, with the same filters; null on the last.", or_null(text()).into()),
        ("next_cursor", "The same by its older name.", or_null(text()).into()),
    ])
);

component!(
    /// The answer to a batch.
    BatchAnswer,
    "BatchAnswer",
    [Accepted, NotAccepted],
    record([(
        "results",
        "One a task, in the request's order.",
        Array::new(
            OneOfBuilder::new()
                .item(part::<Accepted>())
                .item(part::<NotAccepted>())
        )
        .into()
    )])
);

component!(
    /// One of a batch that is a task now.
    Accepted,
    "Accepted",
    [Task],
    record([
        ("status", "What it would have been by itself.", status(202, 202).into()),
        ("existing", "Whether an earlier submission made the task.", truth().into()),
        ("task", "", part::<Task>()),
    ])
);

component!(
    /// One of a batch that is none.
    NotAccepted,
    "NotAccepted",
    [Problem],
    record([
        ("status", "What it would have been by itself.", status(400, 599).into()),
        ("error", "", part::<Problem>()),
    ])
);

component!(
    /// Problem details.
    Problem,
    "Problem",
    [],
    record([
        ("type", "Where the code is explained.", text().into()),
        ("title", "The code as people write it.", text().into()),
        ("status", "", status(400, 599).into()),
        ("detail", "What is wrong, and the limit or the way out.", text().into()),
        ("instance?", "The request's id.", text().into()),
        ("code", "", codes().into()),
        ("field?", "The field at fault.", text().into()),
    ])
);

fn task() -> Object {
    let moment = || -> RefOr<Schema> { or_null(time()).into() };
    let error = record([("code", "", codes().into()), ("message", "", text().into())]);
    record([
        ("id", "", uuid().into()),
        ("phase", "", one_of(PHASES).into()),
        ("model", "", text().into()),
        ("model_version", "", text().into()),
        (
            "request",
            "With every default filled in.",
            part::<TaskRequest>(),
        ),
        ("submitted_at", "", moment()),
        ("scheduled_at", "", moment()),
        ("started_at", "", moment()),
        ("ended_at", "", moment()),
        (
            "attempt",
            "Times that a worker took the task up.",
            count().into(),
        ),
        (
            "images",
            "Once it has succeeded.",
            Array::new(part::<Picture>()).into(),
        ),
        ("error", "Why it failed.", or_null(error).into()),
        (
            "feedback?",
            "What was last said of its pictures.",
            part::<TaskFeedback>(),
        ),
        (
            "queue_position?",
            "While it waits, where it is known: your tasks before it in its lane.",
            count().into(),
        ),
        (
            "estimated_wait_ms?",
            "While it waits, where it is known: how long until it begins.",
            whole(0, u64::MAX).into(),
        ),
        (
            "runs?",
            "Where it ran: the last 16 times that a worker had it, in order.",
            Array::new(run()).into(),
        ),
    ])
}

fn run() -> Object {
    let end = or_null(word(["ended", "handed_back", "failed", "lost"]));
    record([
        ("attempt", "", count().into()),
        ("worker", "", text().into()),
        ("device", "", text().into()),
        ("model_version", "", text().into()),
        ("from_step", "Of all pictures.", count().into()),
        ("to_step", "As far as it was put away.", count().into()),
        ("started_at", "", or_null(time()).into()),
        ("ended_at", "", or_null(time()).into()),
        ("end", "Null while it goes on.", end.into()),
        ("reason?", "Why it failed.", text().into()),
    ])
}

fn task_request() -> Object {
    let webhook = record([
        ("url", "", text().into()),
        (
            "events",
            "Which ends; none are all.",
            Array::new(one_of(ENDS)).into(),
        ),
    ]);
    record([
        ("model", "", text().into()),
        ("prompt", "", text().into()),
        ("negative_prompt", "", text().into()),
        ("width", "", count().into()),
        ("height", "", count().into()),
        ("images", "", count().into()),
        ("seed", "", or_null(whole(0, u64::MAX)).into()),
        ("steps", "", count().into()),
        ("guidance_scale", "", or_null(number()).into()),
        (
            "scheduler",
            "null is the one that the model was published with.",
            or_null(one_of(SCHEDULERS)).into(),
        ),
        (
            "prompt_syntax?",
            "Where it was given.",
            one_of(PROMPT_SYNTAXES).into(),
        ),
        ("guidance_rescale?", "Where it was given.", number().into()),
        ("quality", "", or_null(one_of(QUALITIES)).into()),
        ("output_format", "", or_null(one_of(FORMATS)).into()),
        ("output_compression", "", or_null(count()).into()),
        ("partial_images", "", count().into()),
        ("style_tags", "", Array::new(text()).into()),
        ("user", "", text().into()),
        ("webhook?", "Where it was given.", webhook.into()),
        (
            "expires_after_seconds?",
            "Where it was given.",
            count().into(),
        ),
        ("visible_label?", "Where it was asked for.", truth().into()),
    ])
}

/// One of a closed list of the contract's.
pub(crate) fn one_of<T>(words: Words<T>) -> Object {
    word(words.iter().map(|(word, _)| *word))
}

/// One of our codes.
pub(crate) fn codes() -> Object {
    word(ErrorCode::ALL.iter().map(|code| code.as_str()))
}

fn status(least: u64, most: u64) -> Object {
    whole(least, most)
}

fn digest() -> Object {
    let mut object = text();
    object.pattern = Some("^[0-9a-f]{64}$".to_owned());
    object
}
