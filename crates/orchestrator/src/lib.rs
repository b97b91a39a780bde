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

    let registry = rpc::peer(&settings.registry)?;
    let check = service.health.check("models");
    let models = models::Models::follow(registry, &service.tasks, check);
    watch_dependencies(&service, &broker, &storage);

    dispatch::start(&service, &broker, &log, &settings.scheduling).await?;
    let grpc = grpc::Grpc {
        tasks: tasks::Tasks {
            log,
            models,
            health: service.health.clone(),
            settings: Arc::new(settings.scheduling),
        },
        service: service.tasks.clone(),
    };
    let server = rpc::with_limits!(OrchestratorServiceServer::new(grpc));
    let routes = tonic::service::Routes::new(server);
    rpc::serve(&mut service, settings.grpc.listen, routes).await?;
    Ok(service)
}

/// Keeps the `broker` and `storage` checks up to date.
fn watch_dependencies(service: &Service, broker: &Broker, storage: &Storage) {
    let (broker, storage) = (broker.clone(), storage.clone());
    let broker_check = service.health.check("broker");
    let storage_check = service.health.check("storage");
    let stopping = service.tasks.stopping();
    let probes = async move {
        let mut every = tokio::time::interval(PROBE_EVERY);
        loop {
            every.tick().await;
            broker_check.set(broker.probe().await);
            storage_check.set(storage.probe().await);
        }
    };
    service.tasks.critical("probes", async move {
        tokio::select! {
            () = stopping => {}
            () = probes => {}
        }
        Ok::<(), std::convert::Infallible>(())
    });
}
