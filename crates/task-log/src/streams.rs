//! The three streams and their subjects.

use std::collections::BTreeMap;
use std::time::Duration;

use contract::TenantId;
use contract::task::Submitted;
use messaging::{RetentionPolicy, StreamSpec};
use settings::{ByteSize, Millis};

use crate::record::TaskRef;

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
    /// How large DEAD may grow before the oldest letters go.
    pub dead_max_size: ByteSize,
}

pub(crate) fn specs(settings: &StreamSettings) -> [StreamSpec; 3] {
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
    [tasks, work, dead]
}

/// `inkstone.work.<model>.<version>.<lane>.<tenant>`.
pub(crate) fn work_subject(submitted: &Submitted, task: &TaskRef) -> String {
    let Submitted {
        model,
        model_version,
        ..
    } = submitted;
    let TaskRef { lane, tenant, .. } = task;
    format!("inkstone.work.{model}.{model_version}.{lane}.{tenant}")
}

/// What workers have, or are about to have.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Work {
    /// How many dispatches, by model and version.
    pub by_version: BTreeMap<(String, String), usize>,
    /// How many, by tenant.
    pub by_tenant: BTreeMap<TenantId, usize>,
}

pub(crate) fn work(depths: Vec<(String, usize)>) -> Work {
    let mut work = Work::default();
    for (subject, depth) in depths {
        let mut tokens = subject.split('.').skip(2);
        let (Some(model), Some(version)) = (tokens.next(), tokens.next()) else {
            continue;
        };
        let version = (model.to_owned(), version.to_owned());
        *work.by_version.entry(version).or_default() += depth;
        // A version before this one put no tenant behind the lane.
        if let Some(Ok(tenant)) = tokens.nth(1).map(str::parse) {
            *work.by_tenant.entry(tenant).or_default() += depth;
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
            ("inkstone.work.demo.1.priority-hd.acme", 1),
            ("inkstone.work.demo.2.standard-image.other", 2),
            ("inkstone.work.demo.2.standard-image", 5),
        ];
        let depths = depths.map(|(subject, depth)| (subject.to_owned(), depth));
        let work = work(depths.to_vec());
        let version = |version: &str| ("demo".to_owned(), version.to_owned());
        assert_eq!(work.by_version[&version("1")], 4);
        assert_eq!(work.by_version[&version("2")], 7);
        assert_eq!(work.by_tenant[&"acme".parse().unwrap()], 4);
        assert_eq!(work.by_tenant[&"other".parse().unwrap()], 2);
    }
}
