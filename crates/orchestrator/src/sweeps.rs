//! What is done again and again beside the calls.

use std::convert::Infallible;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use contract::{TaskId, TenantId};
use lifecycle::Service;
use storage::StorageError;
use task_log::{Record, TaskLog, TaskLogError};

/// Between two turns of which the first had more to do: what else the broker has to do comes in between.
const BREATH: Duration = Duration::from_millis(100);

/// Why a sweep of what is stored did not come to its end.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SweepError {
    #[error(transparent)]
    Storage(#[from] StorageError),
    #[error("cannot tell what tasks still need")]
    TaskLog(#[from] TaskLogError),
}

/// What a sweep found that goes.
#[derive(Debug, Default)]
pub(crate) struct Expired {
    objects: AtomicU64,
    bytes: AtomicU64,
}

impl Expired {
    /// One of so many bytes goes.
    pub(crate) fn count(&self, bytes: u64) {
        self.count_all(1, bytes);
    }

    /// So many of so many bytes together go.
    pub(crate) fn count_all(&self, objects: u64, bytes: u64) {
        self.objects.fetch_add(objects, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Objects and their bytes.
    pub(crate) fn all(&self) -> (u64, u64) {
        let all = [&self.objects, &self.bytes].map(|number| number.load(Ordering::Relaxed));
        (all[0], all[1])
    }
}

/// Says what a dry run found, of a kind as metrics and the log name it.
pub(crate) fn tell(kind: &'static str, expired: &Expired) {
    let (objects, bytes) = expired.all();
    metrics::gauge!("inkstone_orchestrator_would_remove", "kind" => kind).set(objects as f64);
    metrics::gauge!("inkstone_orchestrator_would_remove_bytes", "kind" => kind).set(bytes as f64);
    tracing::info!(
        kind,
        objects,
        bytes,
        "would be removed, were it not for retention.dry_run"
    );
}

/// A task, if the log has it and it can be read. One that cannot ends otherwise, when its queue comes to it, its worker gives it up or it is
/// [too old](crate::aged), and must not keep the others from being looked at.
pub(crate) async fn readable(
    log: &TaskLog,
    tenant: &TenantId,
    task: TaskId,
) -> Result<Option<Record>, TaskLogError> {
    match log.read(tenant, task).await {
        Ok(record) => Ok(record.filter(|record| record.task_ref().is_ok())),
        Err(error) if error.is_unreadable() => Ok(None),
        Err(error) => Err(error),
    }
}

/// What came of a sweep that does so much at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Turn {
    /// All is done for now.
    Over,
    /// There is more to do.
    GoesOn,
}

/// Does it now and then, for as long as the service runs: at once, and `every` so often. One that takes longer puts the next one off.
pub(crate) fn start<F>(
    service: &Service,
    name: &'static str,
    every: Duration,
    mut sweep: impl FnMut() -> F + Send + 'static,
) where
    F: Future<Output = ()> + Send + 'static,
{
    start_in_turns(service, name, every, move || {
        let swept = sweep();
        async move {
            swept.await;
            Turn::Over
        }
    });
}

/// The same; where there is more to do, the next comes after a [breath](BREATH).
pub(crate) fn start_in_turns<F>(
    service: &Service,
    name: &'static str,
    every: Duration,
    mut turn: impl FnMut() -> F + Send + 'static,
) where
    F: Future<Output = Turn> + Send + 'static,
{
    let stopping = service.tasks.stopping();
    let sweeps = async move {
        let mut next = tokio::time::interval(every);
        next.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            next.tick().await;
            while turn().await == Turn::GoesOn {
                tokio::time::sleep(BREATH.min(every)).await;
            }
        }
    };
    service.tasks.critical(name, async move {
        tokio::select! {
            () = stopping => {}
            () = sweeps => {}
        }
        Ok::<(), Infallible>(())
    });
}

#[cfg(test)]
pub(crate) mod tests {
    use std::time::SystemTime;

    use contract::task::{Phase, State, Submitted};
    use contract::v1::SubmitTask;
    use messaging::{Broker, BrokerSettings};
    use nats_server::NatsServer;
    use prost::Message as _;
    use storage::{Storage, StorageSettings};
    use task_log::StreamSettings;

    use super::*;

    async fn connect(server: &NatsServer) -> Broker {
        let settings = BrokerSettings::new(server.url(), "20s".parse().unwrap());
        Broker::connect(&settings, "test").await.unwrap()
    }

    /// A log and a store, and what holds them.
    pub(crate) async fn place() -> (TaskLog, Storage, (NatsServer, tempfile::TempDir)) {
        let server = NatsServer::scratch().unwrap();
        let log = TaskLog::new(connect(&server).await);
        let streams = StreamSettings::small();
        log.ensure_streams(&streams).await.unwrap();
        let folder = tempfile::tempdir().unwrap();
        let url = format!("file://{}", folder.path().display());
        let storage = Storage::open(&StorageSettings::new(url)).unwrap();
        (log, storage, (server, folder))
    }

    /// A submission that must have begun a second after `at`.
    pub(crate) fn expiring(at: SystemTime) -> Submitted {
        Submitted {
            task_id: TaskId::random().to_string(),
            tenant: "acme".to_owned(),
            lane: "standard-image".to_owned(),
            model: "demo".to_owned(),
            model_version: "1".to_owned(),
            at: Some(at.into()),
            request: Some(SubmitTask {
                expires_after_seconds: 1,
                ..SubmitTask::default()
            }),
            ..Submitted::default()
        }
    }

    /// What a worker writes that begins a task.
    pub(crate) fn begun(at: SystemTime) -> State {
        State {
            phase: Phase::Running.into(),
            attempt: 1,
            started_at: Some(at.into()),
            ..State::default()
        }
    }

    #[tokio::test]
    async fn a_turn_that_leaves_something_to_do_is_followed_by_another_long_before_its_time() {
        let service = Service::new("test");
        let (tell, mut told) = tokio::sync::mpsc::channel(16);
        let mut turns = 0;
        start_in_turns(&service, "turns", Duration::from_secs(3600), move || {
            turns += 1;
            let tell = tell.clone();
            let turn = if turns < 4 { Turn::GoesOn } else { Turn::Over };
            async move {
                tell.send(turn).await.unwrap();
                turn
            }
        });
        let mut all = Vec::new();
        while all.last() != Some(&Turn::Over) {
            let turn = tokio::time::timeout(Duration::from_secs(30), told.recv());
            all.push(turn.await.unwrap().unwrap());
        }
        assert_eq!(all, [Turn::GoesOn, Turn::GoesOn, Turn::GoesOn, Turn::Over]);
        assert!(service.stop(Duration::from_secs(30)).await);
    }

    #[tokio::test]
    async fn a_task_that_cannot_be_read_keeps_no_other_from_being_looked_at() {
        let (log, _storage, (server, _folder)) = place().await;
        let tasks = connect(&server).await.log("TASKS");
        let tenant: TenantId = "acme".parse().unwrap();
        let ids = [TaskId::random(), TaskId::random()];
        let of_no_lane = Submitted {
            task_id: ids[1].to_string(),
            tenant: tenant.to_string(),
            ..Submitted::default()
        };
        let garbled = b"\x7f".to_vec();
        for (task, payload) in ids.into_iter().zip([garbled, of_no_lane.encode_to_vec()]) {
            let subject = format!("inkstone.task.acme.standard-image.{task}.submitted");
            tasks.put(&subject, payload.into()).await.unwrap();
            assert_eq!(readable(&log, &tenant, task).await.unwrap(), None);
        }
    }
}
