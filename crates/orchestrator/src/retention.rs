//! What workers have stored for tasks: how long it stays, and that none goes which a task still needs.
//!
//! Pictures stay `retention.pictures` after they were drawn. What nobody can want goes sooner: checkpoints of tasks that have ended, and
//! pictures that no task's end names, which a worker leaves behind that dies between storing and saying so. Before anything is removed
//! the log is asked for its task, and a task that has not ended keeps everything.
//!
//! The same sweep removes the cursors of queues of which the log has nothing left.
//!
//! In a dry run (`retention.dry_run`) nothing is removed, and it is said how much would be. That holds for what callers have sent (`inputs`),
//! too.
//!
//! Every orchestrator sweeps by itself. Removing what another has removed is no error.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use contract::task::done::Outcome;
use futures::TryStreamExt as _;
use lifecycle::Service;
use storage::{Drawn, Kind, Storage};
use task_log::{Record, TaskLog};

use crate::settings::RetentionSettings;
use crate::sweeps::{self, Expired, SweepError};

/// Objects that are looked at together.
const AT_ONCE: usize = 8;

/// What a task wants of an object of its.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Claim {
    /// It has not ended, and may want everything.
    Open,
    /// It has ended, and its end names the object.
    Named,
    /// It has ended, and its end does not name the object.
    Unnamed,
    /// The log knows no such task, or not any more.
    Unknown,
}

/// Whether an object of this age goes.
fn expires(kind: Kind, claim: Claim, age: Duration, settings: &RetentionSettings) -> bool {
    let kept = settings.pictures.duration();
    let grace = settings.grace.duration();
    match (kind, claim) {
        (_, Claim::Open) => false,
        (Kind::Picture, Claim::Named | Claim::Unknown) => age >= kept.max(grace),
        (Kind::Picture, Claim::Unnamed) | (Kind::Checkpoint, _) => age >= grace,
    }
}

fn claim(record: Option<&Record>, object: &Drawn) -> Claim {
    let Some(record) = record else {
        return Claim::Unknown;
    };
    let Some(done) = &record.done else {
        return Claim::Open;
    };
    let named = match &done.outcome {
        Some(Outcome::Succeeded(success)) => {
            let key = object.key.as_str();
            success.images.iter().any(|image| image.key == key)
        }
        Some(Outcome::Failed(_) | Outcome::Cancelled(_)) => false,
        // A later version wrote it: who knows what it names.
        None => true,
    };
    if named { Claim::Named } else { Claim::Unnamed }
}

/// As metrics and the log name it.
fn word(kind: Kind) -> &'static str {
    match kind {
        Kind::Picture => "picture",
        Kind::Checkpoint => "checkpoint",
    }
}

/// Sweeps.
struct Sweeper {
    storage: Storage,
    log: TaskLog,
    settings: RetentionSettings,
}

impl Sweeper {
    async fn sweep_all(&self) {
        for kind in [Kind::Checkpoint, Kind::Picture] {
            match self.sweep(kind).await {
                Ok(expired) => {
                    metrics::gauge!("inkstone_orchestrator_last_sweep_seconds")
                        .set(contract::now().seconds as f64);
                    if self.settings.dry_run {
                        sweeps::tell(word(kind), &expired);
                    }
                }
                Err(error) => {
                    let error = lifecycle::chain(&error);
                    tracing::warn!(error, ?kind, "what has expired stays for now");
                }
            }
        }
        if self.settings.dry_run {
            return;
        }
        match self.log.sweep_cursors().await {
            Ok(0) => {}
            Ok(gone) => tracing::debug!(gone, "cursors of queues that are gone are removed"),
            Err(error) => {
                let error = lifecycle::chain(&error);
                tracing::warn!(error, "cursors of queues that are gone stay for now");
            }
        }
    }

    /// Removes what has expired of a kind; nothing in a dry run.
    async fn sweep(&self, kind: Kind) -> Result<Expired, SweepError> {
        // An orchestrator whose own clock is ahead would remove what the log still names; without the broker's there is no sweep.
        let now = self.log.time().await?;
        let expired = Expired::default();
        let objects = self.storage.drawn(kind).map_err(SweepError::from);
        let each = async |object: Drawn| {
            let (key, size) = (object.key.to_string(), object.size);
            match self.look(kind, object, now).await {
                Ok(true) => expired.count(size),
                Ok(false) => {}
                // One that cannot be judged or removed keeps no other from it.
                Err(error) => {
                    metrics::counter!("inkstone_orchestrator_not_removed_total").increment(1);
                    tracing::debug!(
                        error = lifecycle::chain(&error),
                        key,
                        "it stays until the next sweep"
                    );
                }
            }
            Ok(())
        };
        objects.try_for_each_concurrent(AT_ONCE, each).await?;
        Ok(expired)
    }

    /// Removes an object if it has expired; true then. In a dry run it stays all the same.
    async fn look(&self, kind: Kind, object: Drawn, now: SystemTime) -> Result<bool, SweepError> {
        let age = now.duration_since(object.written).unwrap_or_default();
        // Most stay whatever their task says: the log is not asked for these.
        if !expires(kind, Claim::Unnamed, age, &self.settings) {
            return Ok(false);
        }
        let record = self.log.read_for_any_tenant(object.task).await?;
        let claim = claim(record.as_ref(), &object);
        if !expires(kind, claim, age, &self.settings) {
            return Ok(false);
        }
        // A replica that lags knows nothing of a task that may still want it: its word that there is none is not taken.
        if claim == Claim::Unknown && self.log.is_there(object.task).await? {
            return Ok(false);
        }
        if self.settings.dry_run {
            tracing::debug!(key = %object.key, "would be removed");
            return Ok(true);
        }
        self.storage.delete(&object.key).await?;
        tracing::debug!(key = %object.key, "removed");
        let kind = word(kind);
        metrics::counter!("inkstone_orchestrator_removed_total", "kind" => kind).increment(1);
        metrics::counter!("inkstone_orchestrator_removed_bytes_total", "kind" => kind)
            .increment(object.size);
        Ok(true)
    }
}

/// Sweeps now and then for as long as the service runs.
pub(crate) fn start(
    service: &Service,
    storage: &Storage,
    log: &TaskLog,
    settings: &RetentionSettings,
) {
    let sweeper = Arc::new(Sweeper {
        storage: storage.clone(),
        log: log.clone(),
        settings: settings.clone(),
    });
    let every = settings.sweep_every.duration();
    sweeps::start(service, "retention", every, move || {
        let sweeper = sweeper.clone();
        async move { sweeper.sweep_all().await }
    });
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use contract::TaskId;
    use contract::task::{Cancelled, Done, StoredImage, Submitted, Succeeded};
    use storage::Key;
    use task_log::TaskRef;

    use super::*;
    use crate::sweeps::tests::place;

    fn settings(pictures: &str, grace: &str) -> RetentionSettings {
        RetentionSettings {
            pictures: pictures.parse().unwrap(),
            grace: grace.parse().unwrap(),
            sweep_every: "1h".parse().unwrap(),
            dry_run: false,
        }
    }

    #[test]
    fn an_open_task_keeps_everything_and_what_is_young_stays() {
        let settings = settings("30d", "1h");
        let ages = [0, 3599, 3600, 86_400 * 30].map(Duration::from_secs);
        for kind in [Kind::Picture, Kind::Checkpoint] {
            let goes = |claim| ages.map(|age| expires(kind, claim, age, &settings));
            assert_eq!(goes(Claim::Open), [false; 4]);
            assert_eq!(goes(Claim::Unnamed), [false, false, true, true]);
        }
        let goes = |kind, claim| ages.map(|age| expires(kind, claim, age, &settings));
        for claim in [Claim::Named, Claim::Unknown] {
            assert_eq!(goes(Kind::Picture, claim), [false, false, false, true]);
            assert_eq!(goes(Kind::Checkpoint, claim), [false, false, true, true]);
        }
    }

    fn submitted() -> Submitted {
        Submitted {
            task_id: TaskId::random().to_string(),
            tenant: "acme".to_owned(),
            lane: "standard-image".to_owned(),
            ..Submitted::default()
        }
    }

    #[tokio::test]
    async fn a_dry_run_says_what_a_sweep_removes_and_removes_nothing() {
        let (log, storage, _kept) = place().await;
        for step in 1..=3 {
            let lost = Key::checkpoint(TaskId::random(), 1, step);
            let data = Bytes::from_static(b"four");
            storage.put(&lost, data).await.unwrap();
        }
        let mut sweeper = Sweeper {
            storage: storage.clone(),
            log,
            settings: RetentionSettings {
                dry_run: true,
                ..settings("1h", "0s")
            },
        };
        let found = sweeper.sweep(Kind::Checkpoint).await.unwrap();
        assert_eq!(found.all(), (3, 12));
        let left: Vec<Drawn> = storage.drawn(Kind::Checkpoint).try_collect().await.unwrap();
        assert_eq!(left.len(), 3);
        sweeper.settings.dry_run = false;
        let removed = sweeper.sweep(Kind::Checkpoint).await.unwrap();
        assert_eq!(removed.all(), (3, 12));
        let again = sweeper.sweep(Kind::Checkpoint).await.unwrap();
        assert_eq!(again.all(), (0, 0));
    }

    #[tokio::test]
    async fn what_was_drawn_expires_by_the_brokers_clock_and_not_by_ones_own() {
        let (log, storage, _kept) = place().await;
        let data = Bytes::from_static(b"x");
        let lost = Key::checkpoint(TaskId::random(), 1, 1);
        storage.put(&lost, data).await.unwrap();
        let sweeper = Sweeper {
            storage: storage.clone(),
            log,
            settings: settings("1h", "1h"),
        };
        // Of this process, which has no other test in it.
        contract::clock::set_offset(24 * 3600);
        let removed = sweeper.sweep(Kind::Checkpoint).await.unwrap();
        assert_eq!(removed.all(), (0, 0));
        assert!(storage.written(&lost).await.unwrap().is_some());
    }

    #[tokio::test]
    async fn without_the_brokers_time_there_is_no_sweep() {
        let (log, storage, (mut server, _folder)) = place().await;
        let lost = Key::checkpoint(TaskId::random(), 1, 1);
        let data = Bytes::from_static(b"x");
        storage.put(&lost, data).await.unwrap();
        let sweeper = Sweeper {
            storage: storage.clone(),
            log,
            settings: settings("1h", "0s"),
        };
        server.kill();
        sweeper.sweep(Kind::Checkpoint).await.unwrap_err();
        assert!(storage.written(&lost).await.unwrap().is_some());
    }

    #[tokio::test]
    async fn a_sweep_removes_what_no_task_names_and_nothing_of_an_open_one() {
        let (log, storage, _kept) = place().await;
        let (open, cancelled, good) = (submitted(), submitted(), submitted());
        let id = |task: &Submitted| task.task_id.parse::<TaskId>().unwrap();
        let begun = SystemTime::now();
        let drawn = |task: &Submitted, index, data: &[u8]| {
            let sha256 = storage::sha256_hex(data);
            Key::image(id(task), begun, index, &sha256, "png")
        };
        let image = |task: &Submitted, index| drawn(task, index, b"x");
        // As another kind of machine draws it.
        let other = |task: &Submitted| drawn(task, 0, b"y");
        // As workers of before stored it.
        let old =
            |task: &Submitted| Key::stored(&format!("images/{}/0.png", task.task_id)).unwrap();
        let undigested = |task: &Submitted| {
            let text = &task.task_id;
            let folder = &text[text.len() - 2..];
            Key::stored(&format!("images/{folder}/{text}-0.png")).unwrap()
        };
        let put_away = |task: &Submitted| {
            let text = &task.task_id;
            Key::stored(&format!("checkpoints/{text}/1-5")).unwrap()
        };
        let named = |key: Key| StoredImage {
            key: key.to_string(),
            ..StoredImage::default()
        };
        let success = Succeeded {
            images: vec![
                named(image(&good, 0)),
                named(old(&good)),
                named(undigested(&good)),
            ],
            ..Succeeded::default()
        };
        for (task, outcome) in [
            (&open, None),
            (&cancelled, Some(Outcome::Cancelled(Cancelled::default()))),
            (&good, Some(Outcome::Succeeded(success))),
        ] {
            log.submit(task).await.unwrap();
            if outcome.is_some() {
                let done = Done {
                    outcome,
                    ..Done::default()
                };
                let place = TaskRef::of(task).unwrap();
                log.end(&place, &done).await.unwrap();
            }
            for key in [
                image(task, 0),
                image(task, 1),
                other(task),
                old(task),
                undigested(task),
                put_away(task),
            ] {
                storage.put(&key, Bytes::from_static(b"x")).await.unwrap();
            }
        }
        let lost = Key::checkpoint(TaskId::random(), 1, 1);
        storage.put(&lost, Bytes::from_static(b"x")).await.unwrap();
        let sweeper = Sweeper {
            storage: storage.clone(),
            log,
            settings: settings("1h", "0s"),
        };
        for kind in [Kind::Checkpoint, Kind::Picture] {
            sweeper.sweep(kind).await.unwrap();
        }
        let mut left = Vec::new();
        for kind in [Kind::Checkpoint, Kind::Picture] {
            let objects: Vec<Drawn> = storage.drawn(kind).try_collect().await.unwrap();
            left.extend(objects.into_iter().map(|object| object.key.to_string()));
        }
        left.sort();
        let mut expected = vec![
            put_away(&open).to_string(),
            image(&open, 0).to_string(),
            image(&open, 1).to_string(),
            other(&open).to_string(),
            old(&open).to_string(),
            undigested(&open).to_string(),
            image(&good, 0).to_string(),
            old(&good).to_string(),
            undigested(&good).to_string(),
        ];
        expected.sort();
        assert_eq!(left, expected);
    }
}
