//! A device and its engine: pulls work it has room for and gives it back when it cannot finish.
//!
//! ```text
//! registry ──watch──► models ──one loop a version──► pull ──► run ──► pipeline: Preprocess → Inference → Postprocess → Output
//!                                                     │        │                                │
//!                                                    WORK    TASKS                    engine thread, step by step
//! ```
//!
//! * `models` keeps the versions of the registry downloaded, verified and loaded; each has a pull loop.
//! * `pull` takes a dispatch from WORK when one of the worker's slots is free.
//! * `run` settles one dispatch: what the log says of its task decides what happens to it.
//! * `pipeline` carries a task from request to stored pictures.
//! * `engine` owns the pictures on two threads of its own, and keeps account of their memory; the runtime never waits for a
//!   step.
//!
//! Invariants:
//!
//! * A dispatch is acknowledged only after its task's end is stored (I4), and the end is written only after the bytes of all
//!   pictures are (I3). Whoever ends the task first is right; a worker that comes second throws its work away (I2).
//! * A worker that dies costs the steps since the last checkpoint, never the task (I5). One that stops puts its tasks away
//!   and hands them back, and that counts as no attempt.
//! * The same request and seed give the same file, byte by byte, however often it was interrupted, whoever shared its steps.
//! * A task whose runs its workers did not outlive runs alone in the end: if it kills them, it takes no other task with it.
//! * A picture that fails fails alone. What the engine takes is accounted before it is taken, and stays below the limit.
//! * A part of the platform that is away (broker, store, registry) makes tasks wait, not fail.

mod announce;
mod engine;
mod error;
mod fleet;
mod metrics;
mod models;
mod pipeline;
mod pull;
mod retry;
mod run;
mod settings;
mod slots;
mod worker;

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use diffusion::{Device, GpuError};
use lifecycle::{Check, Service, admin};
use messaging::Broker;
use rpc::{Identity, Security};
use storage::Storage;
use task_log::TaskLog;
use telemetry::Telemetry;
use tokio::sync::watch;

pub use contract::fleet::WorkerRecord;
pub use error::StartError;
pub use settings::{
    DTypeName, DeviceName, EngineKind, EngineSettings, LabelSettings, Load, MemoryLimit,
    ModelSettings, OutputSettings, Settings, SimulatedSettings, UnknownDevice, UnknownMemoryLimit,
    Verify, WorkerSettings,
};

use announce::Announcer;
use engine::{Available, Bytes, Engine, EngineLimits, Source};
use fleet::Fleet;
use models::{Keeper, Models};
use slots::Slots;
use worker::{Checkpoints, RunLimits, Worker};

/// Whatever program the worker is part of: its account goes by what steps take, and on a processor the allocator tells.
#[global_allocator]
static ALLOCATOR: diffusion::MeteredAllocator = diffusion::MeteredAllocator;

/// How often the broker and the store are probed for health.
const PROBE_EVERY: Duration = Duration::from_secs(5);
/// How long the store may take to answer.
const PROBE_LIMIT: Duration = Duration::from_secs(5);
/// How long a process may take to end once something in it hangs, before it is aborted.
const LAST_RESORT: Duration = Duration::from_secs(120);

/// What simulated pictures are said to be drawn on, and by.
const SIMULATED: &str = "simulated";

/// Starts a worker. It comes back once everything runs; models are downloaded and loaded after that, and the worker is ready
/// when it has one.
///
/// # Errors
/// See [`StartError`].
pub async fn start(mut settings: Settings, telemetry: Telemetry) -> Result<Service, StartError> {
    simulate(&mut settings);
    // Before anything else: a worker without its device must not look alive.
    let device = device(settings.engine.device)?;
    let storage = Storage::open(&settings.storage)?;
    let mut service = Service::new("gpu-worker");
    let security = Security::start(&service, Identity::GpuWorker, &settings.tls)?;
    let registry = security.peer("registry", Identity::ModelRegistry, &settings.registry);
    let registry = registry.map_err(StartError::Registry)?;
    let checks = Checks::of(&service);
    admin::serve(&mut service, settings.process.admin_listen, &telemetry).await?;
    let broker = Broker::connect(&settings.broker, "gpu-worker").await?;
    let worker = Arc::new(worker(&settings, &device, &service, storage, &broker)?);
    let on_demand = settings.models.load == Load::Demand;
    let models = Models::new(checks.models, on_demand);
    tracing::info!(
        name = worker.name,
        incarnation = worker.incarnation,
        device = %settings.engine.device,
        "worker"
    );

    let tasks = &service.tasks;
    tasks.critical(
        "broker probe",
        probe_broker(worker.clone(), broker.clone(), checks.broker),
    );
    tasks.critical(
        "storage probe",
        probe_storage(worker.clone(), checks.storage),
    );
    let gone = worker.clone();
    tasks.critical("engine", async move {
        tokio::select! {
            () = gone.stop.cancelled() => Ok(()),
            () = gone.engine.gone() => Err(engine::EngineError::Gone),
        }
    });
    watch_engine(&service, &worker, settings.engine.step_timeout.duration());
    let announcer = Announcer {
        worker: worker.clone(),
        models: models.clone(),
        slots: settings.worker.slots,
        device: device_name(&settings.engine),
    };
    tasks.critical("announce", async move {
        announcer.keep_announcing(broker).await;
        Ok::<(), Infallible>(())
    });
    let keeper = Keeper {
        worker,
        tasks: tasks.clone(),
        models,
        wanted: settings.worker.models,
        cache: settings.worker.cache_dir,
        device,
        dtype: settings.engine.dtype.into(),
        max_batch: settings.worker.max_batch,
        load: settings.models.load,
        simulated: (settings.engine.kind == EngineKind::Simulated)
            .then_some(settings.engine.simulated),
    };
    tasks.critical("models", async move {
        models::keep(keeper, registry, checks.registry).await;
        Ok::<(), Infallible>(())
    });
    Ok(service.started())
}

/// Has the service end once a thread of the engine hangs. Its tasks hand themselves back before.
fn watch_engine(service: &Service, worker: &Arc<Worker>, least: Duration) {
    if least.is_zero() {
        return;
    }
    let (tasks, health, worker) = (
        service.tasks.clone(),
        service.health.clone(),
        Arc::clone(worker),
    );
    service.tasks.critical("watchdog", async move {
        let hung = tokio::select! {
            () = worker.stop.cancelled() => return Ok(()),
            hung = worker.engine.hangs(least) => hung,
        };
        metrics::hung(hung.thread);
        let problem = hung.to_string();
        tracing::error!(pictures = ?hung.pictures, "{problem}: this worker ends");
        // First of all: no task may wait for an answer of that thread when it is asked to stop.
        worker.hung.send_replace(Some(hung));
        health.hang(problem.clone());
        last_resort();
        tasks.hang("watchdog", problem);
        worker.stop.cancelled().await;
        Ok::<(), Infallible>(())
    });
}

/// A driver that hangs may keep even the end of the process waiting.
fn last_resort() {
    let thread = std::thread::Builder::new().name("last resort".to_owned());
    let started = thread.spawn(|| {
        std::thread::sleep(LAST_RESORT);
        std::process::abort();
    });
    if let Err(error) = started {
        tracing::error!(
            error = lifecycle::chain(&error),
            "no thread for the last resort"
        );
    }
}

/// An engine that draws noise must not be taken for one that draws: log, metric, records and labels say so.
fn simulate(settings: &mut Settings) {
    let simulated = settings.engine.kind == EngineKind::Simulated;
    metrics::simulated(simulated);
    if simulated {
        tracing::warn!(
            "engine.kind is \"simulated\": pictures are NOISE; for load tests and rehearsals alone"
        );
        settings.engine.device = DeviceName::Cpu;
        SIMULATED.clone_into(&mut settings.label.content_producer);
    }
}

/// As records and runs name it.
fn device_name(engine: &EngineSettings) -> String {
    match engine.kind {
        EngineKind::Diffusion => engine.device.to_string(),
        EngineKind::Simulated => SIMULATED.to_owned(),
    }
}

/// The device, if this build and this machine have it.
fn device(name: DeviceName) -> Result<Device, StartError> {
    match name {
        DeviceName::Cpu => Ok(Device::Cpu),
        DeviceName::Cuda(number) => {
            diffusion::open_gpu(number).map_err(|reason| StartError::NoCuda {
                device: name,
                reason,
            })
        }
    }
}

/// What the engine may take: of the GPU's memory where it computes on one, else of the machine's.
fn free_memory(name: DeviceName, device: &Device) -> Result<Available, StartError> {
    match (name, diffusion::gpu_memory(device)) {
        (_, Some(memory)) => Ok(engine::of_gpu(memory)),
        (DeviceName::Cpu, None) => Ok(engine::of_this_machine()),
        (DeviceName::Cuda(number), None) => Err(StartError::NoCuda {
            device: name,
            reason: GpuError::Unusable {
                number,
                reason: "it does not say how much memory is free".to_owned(),
            },
        }),
    }
}

fn engine(settings: &Settings, device: &Device) -> Result<Engine, StartError> {
    let Available { bytes, source } = match settings.engine.memory_limit {
        MemoryLimit::Auto => free_memory(settings.engine.device, device)?,
        MemoryLimit::Bytes(bytes) => Available {
            bytes,
            source: Source::Setting,
        },
    };
    tracing::info!(limit = %Bytes(bytes), from = %source, "memory for weights and pictures");
    let max_step = settings.engine.max_step.duration();
    Engine::start(EngineLimits {
        max_batch: settings.worker.max_batch,
        max_step: (!max_step.is_zero()).then_some(max_step),
        memory: bytes,
    })
}

fn worker(
    settings: &Settings,
    device: &Device,
    service: &Service,
    storage: Storage,
    broker: &Broker,
) -> Result<Worker, StartError> {
    let name = match settings.worker.name.as_str() {
        "" => announce::made_up_name(),
        name => name.to_owned(),
    };
    let every = settings.engine.checkpoint_every.duration();
    let steps = settings.engine.checkpoint_steps;
    Ok(Worker {
        fleet: Fleet::new(broker.clone(), name.clone()),
        name,
        incarnation: announce::new_incarnation(),
        log: TaskLog::new(broker.clone()),
        storage,
        engine: engine(settings, device)?,
        slots: Slots::new(settings.worker.slots),
        pulled: pull::Pulled::default(),
        running: run::Running::default(),
        ack_wait: settings.worker.ack_wait.duration(),
        max_attempts: settings.worker.max_attempts,
        limits: RunLimits {
            floor: settings.worker.run_floor.duration(),
            per_megapixel_step: settings.worker.run_per_megapixel_step.duration(),
        },
        checkpoints: Checkpoints {
            every: (!every.is_zero()).then_some(every),
            steps: (steps > 0).then_some(steps),
        },
        output: settings.output.clone(),
        device: device_name(&settings.engine),
        elsewhere: run::Elsewhere::default(),
        missing: run::Missing::default(),
        untold: run::Untold::default(),
        learned: models::Learned::default(),
        hung: watch::Sender::new(None),
        content_producer: settings.label.content_producer.clone(),
        always_visible: settings.label.always_visible,
        stop: service.tasks.stop_token(),
    })
}

struct Checks {
    broker: Check,
    storage: Check,
    registry: Check,
    models: Check,
}

impl Checks {
    fn of(service: &Service) -> Self {
        let check = |name| service.health.check(name);
        Self {
            broker: check("broker"),
            storage: check("storage"),
            registry: check("registry"),
            models: check("models"),
        }
    }
}

async fn probe_broker(worker: Arc<Worker>, broker: Broker, check: Check) -> Result<(), Infallible> {
    while !worker.stop.is_cancelled() {
        check.set(broker.probe().await);
        rest(&worker).await;
    }
    Ok(())
}

async fn probe_storage(worker: Arc<Worker>, check: Check) -> Result<(), Infallible> {
    while !worker.stop.is_cancelled() {
        match tokio::time::timeout(PROBE_LIMIT, worker.storage.probe()).await {
            Ok(answer) => check.set(answer),
            // A store that hangs must not look well, nor keep the worker from stopping.
            Err(_) => check.fail(format!("no answer within {PROBE_LIMIT:?}")),
        }
        rest(&worker).await;
    }
    Ok(())
}

async fn rest(worker: &Worker) {
    tokio::select! {
        () = worker.stop.cancelled() => {}
        () = tokio::time::sleep(PROBE_EVERY) => {}
    }
}
