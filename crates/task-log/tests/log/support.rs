//! A log with a broker of its own, and what goes into it.

use contract::task::{Cancelled, Done, Submitted, done};
use contract::{TaskId, TenantId};
use messaging::{Broker, BrokerSettings};
use nats_server::NatsServer;
use task_log::{StreamSettings, TaskLog, TaskRef};

pub(crate) struct Bench {
    pub(crate) server: NatsServer,
    pub(crate) broker: Broker,
    pub(crate) log: TaskLog,
}

pub(crate) async fn bench() -> Bench {
    let server = NatsServer::scratch().unwrap();
    let settings = BrokerSettings::new(server.url(), "10s".parse().unwrap());
    let broker = Broker::connect(&settings, "test").await.unwrap();
    let log = TaskLog::new(broker.clone());
    let streams = StreamSettings::small();
    log.ensure_streams(&streams).await.unwrap();
    Bench {
        server,
        broker,
        log,
    }
}

/// The same where nothing is asked of the broker itself. The server runs for as long as it is kept.
pub(crate) async fn scratch_log() -> (NatsServer, TaskLog) {
    let Bench { server, log, .. } = bench().await;
    (server, log)
}

pub(crate) fn tenant() -> TenantId {
    "acme".parse().unwrap()
}

pub(crate) fn submitted(task: TaskId) -> Submitted {
    Submitted {
        task_id: task.to_string(),
        tenant: "acme".to_owned(),
        lane: "standard-image".to_owned(),
        model: "demo".to_owned(),
        model_version: "1".to_owned(),
        request_digest: vec![1],
        ..Submitted::default()
    }
}

/// A task that was just submitted.
pub(crate) async fn submit_one(log: &TaskLog) -> TaskRef {
    let event = submitted(TaskId::random());
    log.submit(&event).await.unwrap();
    TaskRef::of(&event).unwrap()
}

pub(crate) fn ended(outcome: done::Outcome) -> Done {
    Done {
        outcome: Some(outcome),
        ..Done::default()
    }
}

pub(crate) fn cancelled() -> Done {
    ended(done::Outcome::Cancelled(Cancelled::default()))
}
