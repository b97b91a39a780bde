//! The three streams and their subjects.

use std::time::Duration;

use contract::Lane;
use contract::task::Submitted;
use messaging::{RetentionPolicy, StreamSpec};
use settings::{ByteSize, Millis};

pub(crate) const TASKS: &str = "TASKS";
pub(crate) const WORK: &str = "WORK";
pub(crate) const DEAD: &str = "DEAD";

/// Messages that one consumer may have out at once: a bound on what a broker keeps in memory for it.
pub(crate) const MAX_OUT: i64 = 4096;
/// What TASKS takes at least beyond the size at which submissions are refused.
const RESERVE_BYTES: u64 = 64 << 20;
/// How long a dispatch's message id is remembered.
const DUPLICATE_WINDOW: Duration = Duration::from_secs(120);

/// Settings of the streams, under `[streams]`.
#[derive(Debug, Clone, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StreamSettings {
    /// How long a task's events are kept after they were written.
    pub task_retention: Millis,
    /// How large TASKS may grow before submissions are refused. The stream itself takes a reserve more, so that what was
    /// accepted can still end.
    pub task_max_size: ByteSize,
    /// How long dead letters are kept.
    pub dead_retention: Millis,
}

pub(crate) fn specs(settings: &StreamSettings) -> [StreamSpec; 3] {
    let accepted = settings.task_max_size.bytes();
    let size = accepted.saturating_add(RESERVE_BYTES.max(accepted / 4));
    let size = i64::try_from(size).unwrap_or(i64::MAX);
    let tasks = StreamSpec {
        name: TASKS,
        subjects: &["inkstone.task.>"],
        retention: RetentionPolicy::Limits,
        max_messages_per_subject: 1,
        max_age: settings.task_retention.duration(),
        max_bytes: size,
        refuse_when_full: true,
        batches: true,
        duplicate_window: DUPLICATE_WINDOW.min(settings.task_retention.duration()),
        republish: Some(("inkstone.task.>", "inkstone.event.>")),
    };
    let work = StreamSpec {
        name: WORK,
        subjects: &["inkstone.work.>"],
        retention: RetentionPolicy::WorkQueue,
        max_messages_per_subject: -1,
        max_age: Duration::ZERO,
        max_bytes: -1,
        refuse_when_full: true,
        batches: false,
        duplicate_window: DUPLICATE_WINDOW,
        republish: None,
    };
    let dead = StreamSpec {
        name: DEAD,
        subjects: &["inkstone.dead.>"],
        retention: RetentionPolicy::Limits,
        max_messages_per_subject: 1,
        max_age: settings.dead_retention.duration(),
        max_bytes: -1,
        refuse_when_full: false,
        batches: false,
        duplicate_window: DUPLICATE_WINDOW,
        republish: None,
    };
    [tasks, work, dead]
}

/// `inkstone.work.<model>.<version>.<lane>`.
pub(crate) fn work_subject(submitted: &Submitted, lane: &Lane) -> String {
    let Submitted {
        model,
        model_version,
        ..
    } = submitted;
    format!("inkstone.work.{model}.{model_version}.{lane}")
}

pub(crate) fn by_version(depths: Vec<(String, usize)>) -> Vec<((String, String), usize)> {
    let mut sums: Vec<((String, String), usize)> = Vec::new();
    for (subject, depth) in depths {
        let mut tokens = subject.split('.').skip(2);
        let (Some(model), Some(version)) = (tokens.next(), tokens.next()) else {
            continue;
        };
        let key = (model.to_owned(), version.to_owned());
        match sums.iter_mut().find(|(known, _)| *known == key) {
            Some((_, sum)) => *sum += depth,
            None => sums.push((key, depth)),
        }
    }
    sums
}
