//! The life of a task: admit, schedule, dispatch, end.
//!
//! The orchestrator alone decides what runs next and on which model version. Its truth is the task log; it keeps nothing
//! that a restart would lose, and any number of it may run.
//!
//! * [`callers`] says whom a call is for, by auth's word and not the gateway's;
//! * [`admit`] says whether a request becomes a task, and exactly which (pure);
//! * [`waiting`] and [`meter`] hold callers to what their policies allow at once and in a day ([`allowed`]), and tell those over it when to
//!   come again, by how fast places become free ([`leaving`], pure);
//! * [`tasks`] is what callers can do with tasks;
//! * [`backlog`] knows which queues there are, and holds the next few tasks of each;
//! * [`schedule`] says what runs next (pure), by what tasks [cost](cost), their [class and route](route) and their [deadlines](task_log::deadline);
//! * [`deadlines`] ends what did not begin in time, however deep it lies;
//! * [`aged`] ends what workers were handed and do not end, and has the log let go of what is old and has ended;
//! * [`unreadable`] gives up what is stored and cannot be decoded;
//! * [`estimate`] says how long a task waits (pure), going by what workers have [`ahead`] of it and by how fast they were seen to be
//!   ([`throughput`]), both pure; [`waits`] tells its caller,
//!   [`asking`] the orchestrator that knows;
//! * [`dispatch`] carries that out, from the backlog in TASKS to the workers' queue WORK;
//! * [`partitions`] says whose queues this orchestrator does so for, where there are several;
//! * [`letters`] lets operators look at what was given up, and try it again;
//! * [`audit`] records who asked for what, [`retention`] lets go of what has expired, [`leftovers`] of what killed processes left;
//! * [`intake`] takes submissions from NATS producers, [`notices`] tells them, and webhooks, what became of tasks.
//!
//! Invariants kept here: **I1** (accepted means stored), **I2** with a cancel as one of the possible ends, **I6** (a fixed number
//! of heads in memory, however long the backlog).

mod admit;
mod aged;
mod ahead;
mod allowed;
mod asking;
mod audit;
mod auth;
mod backlog;
mod callers;
mod cost;
mod deadlines;
mod dispatch;
mod error;
mod estimate;
mod exchange;
mod grpc;
mod inputs;
mod intake;
mod learning;
mod leaving;
mod leftovers;
mod letters;
mod meter;
mod models;
mod notices;
mod pace;
mod page;
mod partitions;
mod pulled;
mod retention;
mod route;
mod schedule;
mod settings;
mod sweeps;
mod tasks;
mod throughput;
mod unreadable;
mod usage;
mod waiting;
mod waits;

#[doc(hidden)]
pub use intake::fuzz;

use std::sync::Arc;
use std::time::Duration;

use contract::orchestrator::dead_letter_service_server::DeadLetterServiceServer;
use contract::orchestrator::orchestrator_service_server::OrchestratorServiceServer;
use egress::Egress;
use futures::FutureExt as _;
use lifecycle::Service;
use messaging::Broker;
use rpc::{Identity, Security};
use storage::Storage;
use task_log::TaskLog;
use telemetry::Telemetry;

use crate::backlog::Backlog;
use crate::meter::Meter;
use crate::partitions::Partitions;
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
    // From here on the time is known: a day or an age by this machine's own clock may be another.
    log.time_patiently().await?;

    let registry = security.peer("registry", Identity::ModelRegistry, &settings.registry)?;
    let check = service.health.check("models");
    let models = models::Models::follow(registry, &service.tasks, check);
    let max_size = settings.streams.task_max_size.bytes();
    watch_dependencies(&service, &broker, &storage, &log, max_size);

    let waiting = Arc::new(Waiting::new(log.clone(), service.tasks.clone()));
    let clock = log.clone();
    let today = move || meter::now(&clock);
    let meter = Arc::new(Meter::open(&broker, today, settings.refunds.max_size).await?);
    meter.clone().keep_up(&service);
    let learned = learning::Learned::start(&service, &log);
    let numbers = (waiting.clone(), learned.clone());
    let backlog = dispatch(&service, &broker, &log, numbers, &settings).await?;
    let intake = commit(&service, &log, settings.commit.manner);
    let peer = security.peer("auth", Identity::Auth, &settings.auth)?;
    let auth = auth::Auth::new(peer, settings.auth.timeout.duration(), &service.tasks);
    let demanded = settings.callers.demand_assertion;
    let callers = callers::Callers::start(&service, &auth, &log, demanded);
    let hold = record(&service, &broker, &settings).await?;
    let intake = match &hold {
        Some(hold) => intake.asking(hold.clone().asked()),
        None => intake,
    };
    let inputs = sweep(&service, storage, &log, hold, &settings).await?;
    let waits = tell_waits(&service, &broker, &backlog, &waiting, learned, &settings).await?;
    let tasks = tasks::Tasks {
        log,
        intake,
        backlog,
        waiting,
        meter,
        models,
        inputs,
        health: service.health.clone(),
        waits,
        settings: Arc::new(settings.scheduling.clone()),
        egress: Egress::new(&settings.egress)?,
    };
    let outcomes = exchange(&service, &broker, &settings, &auth, &tasks).await?;
    let letters = letters::Letters::new(&broker, tasks.clone(), auth, outcomes);
    let grpc = grpc::Grpc {
        tasks,
        callers,
        service: service.tasks.clone(),
    };
    let routes = routes(grpc, letters);
    let address = settings.grpc.listen;
    security.serve(&mut service, address, routes).await?;
    Ok(service.started())
}

/// Starts what brings waiting tasks to workers.
async fn dispatch(
    service: &Service,
    broker: &Broker,
    log: &TaskLog,
    numbers: (Arc<Waiting>, learning::Learned),
    settings: &Settings,
) -> Result<Backlog, StartError> {
    let partitions = Partitions(settings.scheduling.partitions);
    // Another at each start: whoever was killed is someone else, whom the others know to be dead.
    let name = contract::TaskId::random().to_string();
    let ends = partitions::start(service, broker, partitions, name).await?;
    let mandate = ends.mandate.clone();
    let backlog = Backlog::open(service, broker, log, partitions, mandate).await?;
    let kept = backlog.0.clone();
    dispatch::start(service, broker, log, backlog, numbers, settings, ends).await?;
    Ok(kept)
}

/// Starts what stores submissions, and says where they go in.
fn commit(service: &Service, log: &TaskLog, manner: task_log::Commit) -> task_log::Intake {
    let (intake, committer) = log.intake(manner);
    service.tasks.critical("commit", async move {
        // Until nobody can submit any more: what was sent is answered, even while the service stops.
        committer.run().await;
        Ok::<(), std::convert::Infallible>(())
    });
    intake
}

/// Starts what records who asked for what, where that is wanted, and says what the log must keep for it.
async fn record(
    service: &Service,
    broker: &Broker,
    settings: &Settings,
) -> Result<Option<Arc<self::audit::Hold>>, StartError> {
    if !settings.audit.enabled {
        return Ok(None);
    }
    // A client of its own: what waits for answers must not share connections with a thread that comes last.
    let storage = Storage::open(&settings.storage)?;
    let hold = self::audit::start(service, broker, storage, settings).await?;
    Ok(Some(Arc::new(hold)))
}

/// Starts what looks now and then for what must end and what may go. Hands back the files that callers have sent, for tasks to hold.
async fn sweep(
    service: &Service,
    storage: Storage,
    log: &TaskLog,
    hold: Option<Arc<self::audit::Hold>>,
    settings: &Settings,
) -> Result<inputs::Inputs, StartError> {
    deadlines::start(service, log);
    aged::start(service, log, &settings.streams, hold).await?;
    retention::start(service, &storage, log, &settings.retention);
    leftovers::start(service, &storage, log, &settings.retention);
    let dry_run = settings.retention.dry_run;
    let inputs = inputs::Inputs::new(storage, &settings.inputs, dry_run);
    inputs::start(service, inputs.clone(), log.clone(), &settings.inputs);
    Ok(inputs)
}

/// Starts what tells callers how long their tasks wait, and has policies go by how many of a tenant it knows to wait.
async fn tell_waits(
    service: &Service,
    broker: &Broker,
    backlog: &Backlog,
    waiting: &Waiting,
    learned: learning::Learned,
    settings: &Settings,
) -> Result<waits::Waits, StartError> {
    let queues: Arc<dyn waits::Queues> = Arc::new(backlog.clone());
    let known = (queues, learned);
    let policy = settings.scheduling.policy();
    let waits = waits::Waits::start(service, broker, known, policy).await?;
    let asked = waits.clone();
    waiting.ask(Box::new(move |tenant| {
        let waits = asked.clone();
        async move { waits.of_tenant(&tenant).await }.boxed()
    }));
    Ok(waits)
}

/// What callers and operators call.
fn routes(grpc: grpc::Grpc, letters: letters::Letters) -> tonic::service::Routes {
    let server = rpc::with_limits!(OrchestratorServiceServer::new(grpc));
    let letters = rpc::with_limits!(DeadLetterServiceServer::new(letters));
    tonic::service::Routes::new(server).add_service(letters)
}

/// Starts what reaches producers and receivers of webhooks, and what they reach.
async fn exchange(
    service: &Service,
    broker: &Broker,
    settings: &Settings,
    auth: &auth::Auth,
    tasks: &tasks::Tasks,
) -> Result<notices::Outcomes, StartError> {
    let Settings {
        intake,
        notices,
        webhooks,
        ..
    } = settings;
    exchange::ensure_streams(broker, intake, notices, webhooks).await?;
    let jobs = &service.tasks;
    let outcomes = notices::Outcomes::new(broker, notices);
    let log = &tasks.log;
    let (told, meter) = (outcomes.clone(), tasks.meter.clone());
    notices::start(jobs, broker, log, told, meter, &notices.public_url).await?;
    let deliverer = notices::webhook::Deliverer {
        log: log.clone(),
        auth: auth.clone(),
        egress: tasks.egress.clone(),
        settings: webhooks.clone(),
        busy: Default::default(),
        lines: Default::default(),
    };
    notices::webhook::start(jobs, broker, deliverer).await?;
    let late = notices::late::Late::new(broker, log, &outcomes);
    notices::late::start(jobs, late.clone()).await?;
    if intake.enabled {
        let intake = intake::Intake {
            tasks: tasks.clone(),
            auth: auth.clone(),
            outcomes: outcomes.clone(),
            late,
            settings: intake.clone(),
            lines: Default::default(),
            places: pace::Pace::of_places().into(),
            held: Default::default(),
        };
        intake::start(jobs, broker, intake).await?;
    }
    Ok(outcomes)
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
