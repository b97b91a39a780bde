//! A broker, orchestrators on it, and what stands in for callers and workers.

use std::collections::BTreeSet;
use std::sync::OnceLock;
use std::time::Duration;

use contract::task::{Done, Submitted, Succeeded, done};
use contract::v1::SubmitTask;
use contract::{TaskId, TenantId};
use futures::StreamExt as _;
use lifecycle::Service;
use messaging::{Broker, BrokerSettings, Delivery, Puller};
use nats_server::NatsServer;
use orchestrator::Settings;
use prost::Message as _;
use task_log::{Queue, StreamSettings, Submission, TaskLog, TaskRef, Touch};
use telemetry::Telemetry;

pub(crate) const LANE: &str = "standard-image";
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
const GRACE: Duration = Duration::from_secs(10);

pub(crate) struct Platform {
    pub(crate) nats: NatsServer,
    pub(crate) broker: Broker,
    pub(crate) log: TaskLog,
    folder: tempfile::TempDir,
}

impl Platform {
    pub(crate) async fn start() -> Self {
        let nats = NatsServer::scratch().unwrap();
        let settings = BrokerSettings::new(nats.url(), "20s".parse().unwrap());
        let broker = Broker::connect(&settings, "test").await.unwrap();
        let log = TaskLog::new(broker.clone());
        let streams = StreamSettings {
            task_retention: "7d".parse().unwrap(),
            task_max_size: "8GiB".parse().unwrap(),
            dead_retention: "30d".parse().unwrap(),
            dead_max_size: "256MiB".parse().unwrap(),
        };
        log.ensure_streams(&streams).await.unwrap();
        Self {
            nats,
            broker,
            log,
            folder: tempfile::tempdir().unwrap(),
        }
    }

    pub(crate) fn settings(&self, overrides: &[(&str, &str)]) -> Settings {
        let objects = format!("file://{}/objects", self.folder.path().display());
        let own = [
            ("process.admin_listen", "127.0.0.1:0".to_owned()),
            ("grpc.listen", "127.0.0.1:0".to_owned()),
            ("broker.url", self.nats.url()),
            ("storage.url", objects),
            // Nobody: no task is admitted by what runs here.
            ("registry.url", "http://127.0.0.1:9".to_owned()),
            ("auth.url", "http://127.0.0.1:9".to_owned()),
            // There is no auth that could say anything of callers.
            ("callers.demand_assertion", "false".to_owned()),
        ];
        let given = overrides
            .iter()
            .map(|&(key, value)| (key, value.to_owned()));
        let all: Vec<(&str, String)> = own.into_iter().chain(given).collect();
        settings::load(None, &all).unwrap()
    }

    pub(crate) async fn orchestrator(&self, overrides: &[(&str, &str)]) -> Service {
        let settings = self.settings(overrides);
        orchestrator::start(settings, telemetry()).await.unwrap()
    }

    /// Accepts a task as an orchestrator does.
    pub(crate) async fn submit(&self, event: &Submitted) -> TaskRef {
        let task = TaskRef::of(event).unwrap();
        self.announce(&task).await;
        let submission = self.log.submit(event).await.unwrap();
        assert_eq!(submission, Submission::Accepted);
        task
    }

    pub(crate) async fn announce(&self, task: &TaskRef) {
        let queue = Queue {
            lane: task.lane.clone(),
            tenant: task.tenant.clone(),
        };
        let backlog = self.log.backlog().await.unwrap();
        backlog.put(&queue.key(), &Touch {}).await.unwrap();
    }

    /// The same of many, as fast as the broker takes them.
    pub(crate) async fn submit_many(&self, tenant: &str, number: usize) -> Vec<TaskRef> {
        let events: Vec<Submitted> = (0..number).map(|_| submitted(tenant, "1")).collect();
        let tasks = events.iter().map(|event| TaskRef::of(event).unwrap());
        let tasks: Vec<TaskRef> = tasks.collect();
        if let Some(first) = tasks.first() {
            self.announce(first).await;
        }
        let submits = events.iter().map(|event| self.log.submit(event));
        let submits = futures::stream::iter(submits).buffer_unordered(256);
        let all = submits.all(async |one| one.unwrap() == Submission::Accepted);
        assert!(all.await);
        tasks
    }

    pub(crate) async fn worker(&self, version: &str) -> Worker {
        let (model, version) = ("demo".parse().unwrap(), version.parse().unwrap());
        let wait = Duration::from_secs(30);
        Worker {
            log: self.log.clone(),
            puller: self.log.work_of(&model, &version, wait).await.unwrap(),
        }
    }

    /// What is in WORK.
    pub(crate) async fn out(&self) -> BTreeSet<String> {
        let out = self.log.out().await.unwrap();
        out.iter()
            .filter_map(|one| one.task.map(|task| task.to_string()))
            .collect()
    }
}

/// A task of a usual size, so that it costs about as much as a turn holds.
pub(crate) fn submitted(tenant: &str, version: &str) -> Submitted {
    let request = SubmitTask {
        width: 1024,
        height: 1024,
        steps: 30,
        images: 1,
        ..SubmitTask::default()
    };
    Submitted {
        request: Some(request),
        task_id: TaskId::random().to_string(),
        tenant: tenant.to_owned(),
        lane: LANE.to_owned(),
        model: "demo".to_owned(),
        model_version: version.to_owned(),
        request_digest: vec![1],
        at: Some(contract::now()),
        ..Submitted::default()
    }
}

/// Takes dispatches, and ends their tasks at once.
pub(crate) struct Worker {
    log: TaskLog,
    puller: Puller,
}

impl Worker {
    pub(crate) async fn pull(&self, room: usize) -> Vec<(TaskRef, Delivery)> {
        let pulled = self.puller.pull(room).await.unwrap();
        let task = |delivery: Delivery| (task_of(&delivery), delivery);
        pulled.into_iter().map(task).collect()
    }

    pub(crate) async fn end(&self, task: &TaskRef, delivery: &Delivery) {
        let succeeded = done::Outcome::Succeeded(Succeeded::default());
        let done = Done {
            outcome: Some(succeeded),
            ..Done::default()
        };
        self.log.end(task, &done).await.unwrap();
        delivery.ack().await.unwrap();
    }

    /// The next so many tasks in the order in which they came, each ended at once.
    pub(crate) async fn work_off(&self, number: usize) -> Vec<TaskRef> {
        let mut done = Vec::new();
        let work = async {
            while done.len() < number {
                let room = (number - done.len()).min(64);
                let pulled = self.pull(room).await;
                let ends = pulled.iter().map(|(task, one)| self.end(task, one));
                futures::future::join_all(ends).await;
                done.extend(pulled.into_iter().map(|(task, _)| task));
            }
        };
        let finished = tokio::time::timeout(PATIENCE, work).await;
        assert!(finished.is_ok(), "{} of {number} came", done.len());
        done
    }
}

fn task_of(delivery: &Delivery) -> TaskRef {
    let dispatch = contract::task::Dispatch::decode(delivery.payload().clone()).unwrap();
    TaskRef::parse(&dispatch.tenant, &dispatch.lane, &dispatch.task_id).unwrap()
}

pub(crate) fn tenants(tasks: &[TaskRef]) -> Vec<&TenantId> {
    tasks.iter().map(|task| &task.tenant).collect()
}

pub(crate) async fn stop(orchestrator: Service) {
    assert!(orchestrator.stop(GRACE).await, "it stops in time");
}

/// Waits for a condition.
pub(crate) async fn until(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let waiting = async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting)
        .await
        .unwrap_or_else(|_| panic!("never: {what}"));
}

pub(crate) fn telemetry() -> Telemetry {
    static STARTED: OnceLock<Telemetry> = OnceLock::new();
    let settings = telemetry::TelemetrySettings {
        log: "warn,orchestrator::dispatch=debug,orchestrator::partitions=debug".to_owned(),
        format: telemetry::LogFormat::Text,
        otlp_endpoint: String::new(),
    };
    STARTED
        .get_or_init(|| Telemetry::start("orchestrator", &settings).unwrap())
        .clone()
}
