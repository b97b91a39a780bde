//! The streams and their subjects.

use std::collections::BTreeMap;
use std::time::Duration;

use contract::{TaskId, TenantId};
use messaging::{RetentionPolicy, StreamSpec};
use settings::{ByteSize, Millis};

use crate::deadline::Kept;
use crate::record::TaskRef;

pub(crate) const TASKS: &str = "TASKS";
pub(crate) const WORK: &str = "WORK";
pub(crate) const DEAD: &str = "DEAD";
pub(crate) const DEADLINES: &str = "DEADLINES";

/// Messages that one consumer may have out at once: a bound on what a broker keeps in memory for it.
pub(crate) const MAX_OUT: i64 = 4096;
/// What TASKS takes at least beyond the size at which submissions are refused.
const RESERVE_BYTES: u64 = 64 << 20;
/// How long a deadline stays noted beyond the time for which its task is kept.
const DEADLINE_GRACE: Duration = Duration::from_secs(24 * 3600);
/// How long a dispatch's message id is remembered.
const DUPLICATE_WINDOW: Duration = Duration::from_secs(120);

/// Settings of the streams, under `[streams]`.
#[derive(Debug, Clone, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StreamSettings {
    /// How long a task's events are kept after they were written, and until it has ended; one that has not begun after nine tenths of it ends
    /// as failed.
    pub task_retention: Millis,
    /// How large TASKS may grow before submissions are refused. The stream itself takes a reserve more, so that what was
    /// accepted can still end.
    pub task_max_size: ByteSize,
    /// How long dead letters are kept.
    pub dead_retention: Millis,
    /// How large DEAD may grow before the oldest letters go.
    pub dead_max_size: ByteSize,
}

impl StreamSettings {
    /// For how long the log keeps a task.
    pub fn kept(&self) -> Kept {
        Kept::new(self.task_retention.duration())
    }

    /// What a trial takes: an hour of tasks, and little room.
    pub fn small() -> Self {
        let hour = Duration::from_secs(3600);
        Self {
            task_retention: hour.into(),
            task_max_size: ByteSize::of(64 << 20),
            dead_retention: hour.into(),
            dead_max_size: ByteSize::of(16 << 20),
        }
    }
}

pub(crate) fn specs(settings: &StreamSettings) -> [StreamSpec; 4] {
    let accepted = settings.task_max_size.bytes();
    let size = accepted.saturating_add(RESERVE_BYTES.max(accepted / 4));
    let size = i64::try_from(size).unwrap_or(i64::MAX);
    let tasks = StreamSpec {
        name: TASKS,
        subjects: &["inkstone.task.>"],
        retention: RetentionPolicy::Limits,
        max_messages: -1,
        max_messages_per_subject: 1,
        shares: false,
        max_message_size: -1,
        // Nothing goes by its age alone: what has not ended stays (`Retention`).
        max_age: Duration::ZERO,
        max_bytes: size,
        refuse_when_full: true,
        batches: true,
        duplicate_window: DUPLICATE_WINDOW,
        republish: Some(("inkstone.task.>", "inkstone.event.>")),
    };
    let work = StreamSpec {
        name: WORK,
        subjects: &["inkstone.work.>"],
        retention: RetentionPolicy::WorkQueue,
        max_messages: -1,
        max_messages_per_subject: -1,
        shares: false,
        max_message_size: -1,
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
        max_messages: -1,
        max_messages_per_subject: 1,
        shares: false,
        max_message_size: -1,
        max_age: settings.dead_retention.duration(),
        // Callers can fill it.
        max_bytes: i64::try_from(settings.dead_max_size.bytes()).unwrap_or(i64::MAX),
        refuse_when_full: false,
        batches: false,
        duplicate_window: DUPLICATE_WINDOW,
        republish: None,
    };
    let deadlines = StreamSpec {
        name: DEADLINES,
        subjects: &["inkstone.deadline.>"],
        retention: RetentionPolicy::Limits,
        max_messages: -1,
        max_messages_per_subject: 1,
        shares: false,
        max_message_size: -1,
        max_age: settings.task_retention.duration() + DEADLINE_GRACE,
        // One small message for each task in TASKS at most, which has a limit.
        max_bytes: -1,
        refuse_when_full: false,
        batches: false,
        duplicate_window: DUPLICATE_WINDOW,
        republish: None,
    };
    [tasks, work, dead, deadlines]
}

/// `inkstone.work.<model>.<version>.<lane>.<tenant>.<task>`: each task has a subject of its own, so that the broker refuses a second
/// dispatch while the first is there.
pub(crate) fn work_subject(model: &str, version: &str, task: &TaskRef) -> String {
    let TaskRef { lane, tenant, task } = task;
    format!("inkstone.work.{model}.{version}.{lane}.{tenant}.{task}")
}

/// Dispatches at one subject of WORK, waiting or being worked on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Out {
    /// Of which model and version.
    pub version: (String, String),
    /// Whose. Two versions ago the subject did not tell.
    pub tenant: Option<TenantId>,
    /// Of which task. The version before this one's did not tell.
    pub task: Option<TaskId>,
    /// How many; of one task, one.
    pub count: usize,
}

pub(crate) fn out((subject, count): (String, usize)) -> Option<Out> {
    // inkstone.work.<model>.<version>.<lane>[.<tenant>[.<task>]]
    let mut tokens = subject.split('.').skip(2);
    let version = (tokens.next()?.to_owned(), tokens.next()?.to_owned());
    let mut rest = tokens.skip(1);
    Some(Out {
        version,
        tenant: rest.next().and_then(|tenant| tenant.parse().ok()),
        task: rest.next().and_then(|task| task.parse().ok()),
        count,
    })
}

/// What workers have, or are about to have.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Work {
    /// How many dispatches, by model and version.
    pub by_version: BTreeMap<(String, String), usize>,
    /// How many, by tenant.
    pub by_tenant: BTreeMap<TenantId, usize>,
}

pub(crate) fn work(all: impl IntoIterator<Item = Out>) -> Work {
    let mut work = Work::default();
    for out in all {
        *work.by_version.entry(out.version).or_default() += out.count;
        if let Some(tenant) = out.tenant {
            *work.by_tenant.entry(tenant).or_default() += out.count;
        }
    }
    work
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dispatches_are_counted_by_version_and_by_tenant() {
        let depths = [
            ("inkstone.work.demo.1.standard-image.acme", 3),
            (
                "inkstone.work.demo.1.priority-hd.acme.0197c5a2-0000-7000-8000-000000000001",
                1,
            ),
            ("inkstone.work.demo.2.standard-image.other", 2),
            ("inkstone.work.demo.2.standard-image", 5),
        ];
        let depths = depths.map(|(subject, depth)| (subject.to_owned(), depth));
        let all = depths.into_iter().filter_map(out);
        let work = work(all);
        let version = |version: &str| ("demo".to_owned(), version.to_owned());
        assert_eq!(work.by_version[&version("1")], 4);
        assert_eq!(work.by_version[&version("2")], 7);
        assert_eq!(work.by_tenant[&"acme".parse().unwrap()], 4);
        assert_eq!(work.by_tenant[&"other".parse().unwrap()], 2);
    }
}
