//! A platform of one broker, one store and one registry, to start workers on.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

use contract::registry::registry_service_server::{RegistryService, RegistryServiceServer};
use contract::registry::{
    Artifact, ListModelsRequest, ListModelsResponse, Model, ModelVersion, Profile,
    RegisterVersionRequest, RegisterVersionResponse, SetTrafficRequest, SetTrafficResponse,
    WatchModelsRequest, WatchModelsResponse,
};
use contract::task::{DeadLetter, Done, StoredImage, Submitted, done};
use contract::v1::{SubmitTask, TaskPhase};
use contract::{TaskId, TenantId};
use futures::StreamExt as _;
use futures::stream::{self, BoxStream};
use gpu_worker::Settings;
use lifecycle::Service;
use messaging::{Broker, BrokerSettings};
use nats_server::NatsServer;
use prost::Message as _;
use storage::{Key, Storage, StorageSettings};
use task_log::{Handed, Handover, Record, StreamSettings, TaskLog, TaskRef, Update};
use telemetry::Telemetry;
use tonic::{Request, Response, Status};

pub(crate) const MODEL: &str = "inkstone-demo";
pub(crate) const TENANT: &str = "acme";
const LANE: &str = "test-standard";
/// What a test waits for at most. The engine shares two cores with everything else.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);
const GRACE: Duration = Duration::from_secs(60);

/// Kept in this order: workers go before what they work on.
pub(crate) struct Platform {
    pub(crate) log: TaskLog,
    pub(crate) broker: Broker,
    pub(crate) storage: Storage,
    registry: SocketAddr,
    _registry: Service,
    pub(crate) nats: NatsServer,
    pub(crate) folder: tempfile::TempDir,
}

impl Platform {
    /// With the demo model in version 1.
    pub(crate) async fn start() -> Self {
        Self::with_versions(|version| vec![version]).await
    }

    /// The same, whose model takes as many steps as a test needs.
    pub(crate) async fn with_long_tasks() -> Self {
        let profile = Profile {
            multiple: 8,
            max_side: 256,
            max_steps: 1000,
            ..Profile::default()
        };
        Self::with_versions(|version| {
            vec![ModelVersion {
                profile: Some(profile),
                ..version
            }]
        })
        .await
    }

    /// With the versions that `versions` makes of the demo model's.
    pub(crate) async fn with_versions(
        versions: impl FnOnce(ModelVersion) -> Vec<ModelVersion>,
    ) -> Self {
        let nats = NatsServer::scratch().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let broker_settings = BrokerSettings::new(nats.url(), "20s".parse().unwrap());
        let broker = Broker::connect(&broker_settings, "test").await.unwrap();
        let log = TaskLog::new(broker.clone());
        let streams = StreamSettings::small();
        log.ensure_streams(&streams).await.unwrap();
        let objects = StorageSettings::new(objects_url(folder.path()));
        let storage = Storage::open(&objects).unwrap();
        let models = vec![Model {
            name: MODEL.to_owned(),
            versions: versions(demo_version(&storage).await),
            ..Model::default()
        }];
        let mut service = Service::new("test registry");
        let routes = tonic::service::Routes::new(RegistryServiceServer::new(Registry { models }));
        let any = "127.0.0.1:0".parse().unwrap();
        let registry = rpc::serve(&mut service, any, routes).await.unwrap();
        Self {
            log,
            broker,
            storage,
            registry,
            _registry: service,
            nats,
            folder,
        }
    }

    pub(crate) fn settings(&self, overrides: &[(&str, &str)]) -> Settings {
        settings::load(None, &self.with_own(overrides)).unwrap()
    }

    /// The same for a process of its own.
    pub(crate) fn environment(&self, overrides: &[(&str, &str)]) -> Vec<(String, String)> {
        let named = |(key, value): (&str, String)| {
            let key = key.to_uppercase().replace('.', "__");
            (format!("INKSTONE_GPU_WORKER__{key}"), value)
        };
        self.with_own(overrides).into_iter().map(named).collect()
    }

    /// What leads to this platform, and settings beside.
    fn with_own<'a>(&self, overrides: &[(&'a str, &str)]) -> Vec<(&'a str, String)> {
        let cache = self.folder.path().join("cache").display().to_string();
        let own = [
            ("process.admin_listen", "127.0.0.1:0".to_owned()),
            ("broker.url", self.nats.url()),
            ("storage.url", objects_url(self.folder.path())),
            ("registry.url", format!("http://{}", self.registry)),
            ("worker.cache_dir", cache),
        ];
        let given = overrides
            .iter()
            .map(|&(key, value)| (key, value.to_owned()));
        own.into_iter().chain(given).collect()
    }

    /// A worker that is ready.
    pub(crate) async fn worker(&self, overrides: &[(&str, &str)]) -> Service {
        let worker = gpu_worker::start(self.settings(overrides), telemetry())
            .await
            .unwrap();
        until("the worker is ready", async || {
            worker.health.problem().is_none()
        })
        .await;
        worker
    }

    /// Accepts a task and hands it to the workers, as an orchestrator does.
    pub(crate) async fn submit(&self, request: SubmitTask) -> TaskRef {
        let task = self.submit_only(request).await;
        let record = self.record(&task).await;
        self.log.dispatch(&record.submitted, 1, 1).await.unwrap();
        task
    }

    /// Hands a task over as an orchestrator does, which tells `told` of it.
    pub(crate) async fn hand_over(&self, told: &Submitted) -> TaskRef {
        let task = TaskRef::of(told).unwrap();
        let stored = self.log.read(&task.tenant, task.task).await.unwrap();
        let sequence = stored.map_or(0, |record| record.sequence);
        self.hand_over_lying_at(told, sequence).await
    }

    /// The same of one whose submission lies there, as far as the orchestrator knows; 0 where it does not.
    pub(crate) async fn hand_over_lying_at(&self, told: &Submitted, sequence: u64) -> TaskRef {
        let task = TaskRef::of(told).unwrap();
        let to = Handover {
            task: task.clone(),
            model: told.model.clone(),
            version: told.model_version.clone(),
            weight: 1,
            submitted: told.encode_to_vec(),
            sequence,
        };
        let handed = self.log.hand_over(to).await.unwrap();
        assert_eq!(handed, Handed::Dispatched);
        task
    }

    pub(crate) async fn submit_only(&self, request: SubmitTask) -> TaskRef {
        let submitted = Submitted {
            task_id: TaskId::random().to_string(),
            tenant: TENANT.to_owned(),
            lane: LANE.to_owned(),
            request: Some(request),
            model: MODEL.to_owned(),
            model_version: "1".to_owned(),
            at: Some(contract::now()),
            ..Submitted::default()
        };
        self.log.submit(&submitted).await.unwrap();
        TaskRef::of(&submitted).unwrap()
    }

    pub(crate) async fn record(&self, task: &TaskRef) -> Record {
        self.log
            .read(&task.tenant, task.task)
            .await
            .unwrap()
            .unwrap()
    }

    pub(crate) async fn phase(&self, task: &TaskRef) -> TaskPhase {
        self.record(task).await.phase()
    }

    pub(crate) async fn done(&self, task: &TaskRef) -> Done {
        let mut ends = self.log.ends(task).await.unwrap();
        tokio::time::timeout(PATIENCE, ends.wait())
            .await
            .expect("the task ends")
    }

    /// The pictures of a task that succeeds, with their bytes.
    pub(crate) async fn pictures(&self, task: &TaskRef) -> Vec<(StoredImage, Vec<u8>)> {
        let done = self.done(task).await;
        let Some(done::Outcome::Succeeded(success)) = done.outcome else {
            panic!("{:?}", done.outcome);
        };
        let mut pictures = Vec::new();
        for image in success.images {
            let key = Key::stored(&image.key).unwrap();
            let data = self.storage.get(&key, image.size_bytes).await.unwrap();
            pictures.push((image, data.to_vec()));
        }
        pictures
    }

    /// Waits until a task's progress was told to be at least `step`.
    pub(crate) async fn reaches(&self, task: &TaskRef, step: u32) {
        let tenant: TenantId = TENANT.parse().unwrap();
        let mut watch = self.log.watch(&tenant, task.task).await.unwrap().unwrap();
        let reached = async {
            while let Some(update) = watch.next().await.unwrap() {
                let Update::Progress(event) = update else {
                    continue;
                };
                let Some(contract::task::progress_event::Event::Progress(progress)) = event.event
                else {
                    continue;
                };
                assert!(
                    progress.step < progress.steps,
                    "too late to interrupt: take more steps"
                );
                if progress.step >= step {
                    return;
                }
            }
            panic!("it ended before");
        };
        tokio::time::timeout(PATIENCE, reached)
            .await
            .expect("the task comes this far");
    }

    /// Waits until nothing is queued or being worked on.
    pub(crate) async fn work_is_settled(&self) {
        until("all work is settled", async || {
            self.log.work().await.unwrap().by_version.is_empty()
        })
        .await;
    }

    pub(crate) async fn dead_letters(&self) -> Vec<DeadLetter> {
        let events = self
            .broker
            .log("DEAD")
            .last_of_each("inkstone.dead.>")
            .await
            .unwrap();
        events
            .iter()
            .map(|event| DeadLetter::decode(event.payload.clone()).unwrap())
            .collect()
    }

    /// Files below a folder of the store.
    pub(crate) fn objects(&self, kind: &str) -> Vec<PathBuf> {
        files(&self.folder.path().join("objects").join(kind))
    }
}

pub(crate) async fn stop(worker: Service) {
    assert!(worker.stop(GRACE).await, "the worker stops in time");
}

/// Waits for a condition.
pub(crate) async fn until(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let waiting = async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting)
        .await
        .unwrap_or_else(|_| panic!("never: {what}"));
}

/// A request with everything filled in.
pub(crate) fn request(prompt: &str, seed: u64, steps: u32) -> SubmitTask {
    SubmitTask {
        model: MODEL.to_owned(),
        prompt: prompt.to_owned(),
        width: 128,
        height: 128,
        images: 1,
        seed: Some(seed),
        steps,
        guidance_scale: Some(2.0),
        ..SubmitTask::default()
    }
}

pub(crate) fn telemetry() -> Telemetry {
    static STARTED: OnceLock<Telemetry> = OnceLock::new();
    let settings = telemetry::TelemetrySettings {
        log: "warn,gpu_worker=debug".to_owned(),
        format: telemetry::LogFormat::Text,
        otlp_endpoint: String::new(),
    };
    STARTED
        .get_or_init(|| Telemetry::start("gpu-worker", &settings).unwrap())
        .clone()
}

fn objects_url(folder: &Path) -> String {
    format!("file://{}/objects", folder.display())
}

/// All files below a folder; none where it is not there.
pub(crate) fn files(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(folder) else {
        return Vec::new();
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            found.push(path);
        }
    }
    found
}

async fn demo_version(storage: &Storage) -> ModelVersion {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets/models/inkstone-demo");
    let mut artifacts = Vec::new();
    for file in files(&root) {
        let data = std::fs::read(&file).unwrap();
        let sha256 = storage::sha256_hex(&data);
        let key = Key::artifact(&sha256).unwrap();
        storage.put_file(&key, &file, &sha256).await.unwrap();
        let path = file.strip_prefix(&root).unwrap().display().to_string();
        let (key, size_bytes) = (key.to_string(), data.len() as u64);
        artifacts.push(Artifact {
            path,
            sha256,
            size_bytes,
            key,
        });
    }
    artifacts.sort_by(|a, b| a.path.cmp(&b.path));
    let all: Vec<u8> = artifacts.iter().flat_map(|a| a.sha256.bytes()).collect();
    ModelVersion {
        version: "1".to_owned(),
        weight: 1,
        digest: storage::sha256_hex(&all),
        artifacts,
        ..ModelVersion::default()
    }
}

struct Registry {
    models: Vec<Model>,
}

#[tonic::async_trait]
impl RegistryService for Registry {
    type WatchModelsStream = BoxStream<'static, Result<WatchModelsResponse, Status>>;

    async fn watch_models(
        &self,
        _: Request<WatchModelsRequest>,
    ) -> Result<Response<Self::WatchModelsStream>, Status> {
        let now = WatchModelsResponse {
            models: self.models.clone(),
        };
        let stream = stream::once(async { Ok(now) }).chain(stream::pending());
        Ok(Response::new(stream.boxed()))
    }

    async fn list_models(
        &self,
        _: Request<ListModelsRequest>,
    ) -> Result<Response<ListModelsResponse>, Status> {
        Err(Status::unimplemented("a worker watches"))
    }

    async fn register_version(
        &self,
        _: Request<RegisterVersionRequest>,
    ) -> Result<Response<RegisterVersionResponse>, Status> {
        Err(Status::unimplemented("a worker watches"))
    }

    async fn set_traffic(
        &self,
        _: Request<SetTrafficRequest>,
    ) -> Result<Response<SetTrafficResponse>, Status> {
        Err(Status::unimplemented("a worker watches"))
    }
}
