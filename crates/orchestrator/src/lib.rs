//! The life of a task: admit, schedule, dispatch, end.
//!
//! The orchestrator alone decides what runs next and on which model version. Its truth is the task log; it keeps nothing
//! that a restart would lose, and any number of it may run.
//!
//! * [`admit`] says whether a request becomes a task, and exactly which (pure);
//! * [`waiting`] and [`meter`] hold callers to what their policies allow at once and in a day;
//! * [`tasks`] is what callers can do with tasks;
//! * [`schedule`] says what runs next (pure);
//! * [`dispatch`] carries that out, from the backlog in TASKS to the workers' queue WORK;
//! * [`intake`] takes submissions from NATS producers, [`notices`] tells them, and webhooks, what became of tasks.
//!
//! Invariants kept here: **I1** (accepted means stored), **I2** with a cancel as one of the possible ends, **I6** (a fixed number
//! of heads in memory, however long the backlog).

mod admit;
mod aside;
mod auth;
mod dispatch;
mod error;
mod exchange;
mod grpc;
mod inputs;
mod intake;
mod meter;
mod models;
mod notices;
mod pace;
mod page;
mod pulled;
mod schedule;
mod settings;
mod tasks;
mod usage;
mod waiting;

#[doc(hidden)]
pub use intake::fuzz;

use std::sync::Arc;
use std::time::Duration;

use contract::orchestrator::orchestrator_service_server::OrchestratorServiceServer;
use egress::Egress;
use lifecycle::Service;
use messaging::Broker;
use rpc::{Identity, Security};
use storage::Storage;
use task_log::TaskLog;
use telemetry::Telemetry;

use crate::meter::Meter;
use crate::waiting::Waiting;

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
    let security = Security::start(&service, Identity::Orchestrator, &settings.tls)?;
    let storage = Storage::open(&settings.storage)?;
    let broker = Broker::connect(&settings.broker, "orchestrator").await?;
    let log = TaskLog::new(broker.clone());
    log.ensure_streams(&settings.streams).await?;

    let registry = security.peer("registry", Identity::ModelRegistry, &settings.registry)?;
    let check = service.health.check("models");
    let models = models::Models::follow(registry, &service.tasks, check);
    let max_size = settings.streams.task_max_size.bytes();
    watch_dependencies(&service, &broker, &storage, &log, max_size);

    let waiting = Arc::new(Waiting::new(log.clone()));
    let meter = Arc::new(Meter::open(&broker, meter::now).await?);
    meter.clone().keep_up(&service);
    dispatch::start(
        &service,
        &broker,
        &log,
        waiting.clone(),
        &settings.scheduling,
    )
    .await?;
    let (intake, committer) = log.intake();
    service.tasks.critical("commit", async move {
        // Until nobody can submit any more: what was sent is answered, even while the service stops.
        committer.run().await;
        Ok::<(), std::convert::Infallible>(())
    });
    let auth = auth::Auth::new(security.peer("auth", Identity::Auth, &settings.auth)?);
    let inputs = inputs::Inputs::new(storage, &settings.inputs);
    let lanes = settings.scheduling.lanes.keys().cloned().collect();
    inputs::start(
        &service,
        inputs.clone(),
        log.clone(),
        lanes,
        &settings.inputs,
    );
    let tasks = tasks::Tasks {
        log,
        intake,
        waiting,
        meter,
        models,
        inputs,
        health: service.health.clone(),
        settings: Arc::new(settings.scheduling.clone()),
        egress: Egress::new(&settings.egress)?,
    };
    exchange(&service, &broker, &settings, &auth, &tasks).await?;
    let grpc = grpc::Grpc {
        tasks,
        service: service.tasks.clone(),
    };
    let server = rpc::with_limits!(OrchestratorServiceServer::new(grpc));
    let routes = tonic::service::Routes::new(server);
    let address = settings.grpc.listen;
    security.serve(&mut service, address, routes).await?;
    Ok(service.started())
}

/// Starts what reaches producers and receivers of webhooks, and what they reach.
async fn exchange(
    service: &Service,
    broker: &Broker,
    settings: &Settings,
    auth: &auth::Auth,
    tasks: &tasks::Tasks,
) -> Result<(), StartError> {
    let Settings {
        intake,
        notices,
        webhooks,
        ..
    } = settings;
    exchange::ensure_streams(broker, intake, notices, webhooks).await?;
    let jobs = &service.tasks;
    let outcomes = notices::Outcomes::new(broker, &notices.public_url);
    let log = &tasks.log;
    notices::start(jobs, broker, log, outcomes.clone(), &notices.public_url).await?;
    let deliverer = notices::webhook::Deliverer {
        log: log.clone(),
        auth: auth.clone(),
        egress: tasks.egress.clone(),
        settings: webhooks.clone(),
        busy: Default::default(),
        lines: Default::default(),
    };
    notices::webhook::start(jobs, broker, deliverer).await?;
    if intake.enabled {
        let intake = intake::Intake {
            tasks: tasks.clone(),
            auth: auth.clone(),
            outcomes,
            settings: intake.clone(),
            lines: Default::default(),
        };
        intake::start(jobs, broker, intake).await?;
    }
    Ok(())
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
