//! The life of a task: admit, schedule, dispatch, end.
//!
//! The orchestrator alone decides what runs next and on which model version. Its truth is the task log; it keeps nothing
//! that a restart would lose, and any number of it may run.
//!
//! * [`admit`] says whether a request becomes a task, and exactly which (pure);
//! * [`tasks`] is what callers can do with tasks;
//! * [`schedule`] says what runs next (pure);
//! * [`dispatch`] carries that out, from the backlog in TASKS to the workers' queue WORK.
//!
//! Invariants kept here: **I1** (accepted means stored), **I2** with a cancel as one of the possible ends, **I6** (a fixed number
//! of heads in memory, however long the backlog).

mod admit;
mod dispatch;
mod error;
mod grpc;
mod models;
mod schedule;
mod settings;
mod tasks;

use std::sync::Arc;
use std::time::Duration;

use contract::orchestrator::orchestrator_service_server::OrchestratorServiceServer;
use lifecycle::Service;
use messaging::Broker;
use storage::Storage;
use task_log::TaskLog;
use telemetry::Telemetry;

pub use error::StartError;
pub use settings::Settings;

/// How often dependencies are looked at for `/readyz`.
const PROBE_EVERY: Duration = Duration::from_secs(2);
/// How long a dependency may take to answer.
const PROBE_LIMIT: Duration = Duration::from_secs(5);

/// Starts the orchestrator; it takes calls when this returns.
///
/// # Errors
/// When the broker does not answer in time, or an address cannot be listened on.
pub async fn start(settings: Settings, telemetry: Telemetry) -> Result<Service, StartError> {
    let mut service = Service::new("orchestrator");
    lifecycle::admin::serve(&mut service, settings.process.admin_listen, &telemetry).await?;
    let storage = Storage::open(&settings.storage)?;
    let broker = Broker::connect(&settings.broker, "orchestrator").await?;
    let log = TaskLog::new(broker.clone());
    log.ensure_streams(&settings.streams).await?;

    let registry = rpc::peer("registry", &settings.registry)?;
    let check = service.health.check("models");
    let models = models::Models::follow(registry, &service.tasks, check);
    let max_size = settings.streams.task_max_size.bytes();
    watch_dependencies(&service, &broker, &storage, &log, max_size);

    dispatch::start(&service, &broker, &log, &settings.scheduling).await?;
    let (intake, committer) = log.intake();
    service.tasks.critical("commit", async move {
        // Until nobody can submit any more: what was sent is answered, even while the service stops.
        committer.run().await;
        Ok::<(), std::convert::Infallible>(())
    });
    let grpc = grpc::Grpc {
        tasks: tasks::Tasks {
            log,
            intake,
            models,
            health: service.health.clone(),
            settings: Arc::new(settings.scheduling),
        },
        service: service.tasks.clone(),
    };
    let server = rpc::with_limits!(OrchestratorServiceServer::new(grpc));
    let routes = tonic::service::Routes::new(server);
    rpc::serve(&mut service, settings.grpc.listen, routes).await?;
    Ok(service.started())
}

/// Keeps the checks `broker`, `storage` and `task log` up to date, each by itself: one that hangs must not hide another.
fn watch_dependencies(
    service: &Service,
    broker: &Broker,
    storage: &Storage,
    log: &TaskLog,
    max_size: u64,
) {
    let broker = broker.clone();
    probe(service, "broker", move || {
        let broker = broker.clone();
        async move { broker.probe().await.map_err(|e| lifecycle::chain(&e)) }
    });
    let storage = storage.clone();
    probe(service, "storage", move || {
        let storage = storage.clone();
        async move { storage.probe().await.map_err(|e| lifecycle::chain(&e)) }
    });
    let log = log.clone();
    probe(service, "task log", move || {
        let log = log.clone();
        async move {
            match log.size().await {
                Ok(size) if size >= max_size => Err(format!(
                    "full: {size} of {max_size} bytes; raise streams.task_max_size, or wait until old tasks expire"
                )),
                Ok(_) => Ok(()),
                Err(error) => Err(lifecycle::chain(&error)),
            }
        }
    });
}

fn probe<F>(service: &Service, name: &'static str, mut ask: impl FnMut() -> F + Send + 'static)
where
    F: Future<Output = Result<(), String>> + Send,
{
    let check = service.health.check(name);
    let stopping = service.tasks.stopping();
    let probes = async move {
        let mut every = tokio::time::interval(PROBE_EVERY);
        loop {
            every.tick().await;
            match tokio::time::timeout(PROBE_LIMIT, ask()).await {
                Ok(Ok(())) => check.pass(),
                Ok(Err(problem)) => check.fail(problem),
                Err(_) => check.fail(format!("no answer within {PROBE_LIMIT:?}")),
            }
        }
    };
    service.tasks.critical("probe", async move {
        tokio::select! {
            () = stopping => {}
            () = probes => {}
        }
        Ok::<(), std::convert::Infallible>(())
    });
}
