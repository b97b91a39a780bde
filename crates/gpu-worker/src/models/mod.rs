//! The models that this worker serves: those of the registry, as it says them, loaded and pulled for.
//!
//! Every version of a model is served for as long as the registry lists it, whatever its share of new tasks: tasks that were
//! admitted for it earlier still wait. Each version has a life of its own (downloaded, loaded, served); one that cannot be
//! had is tried again and disturbs no other. When the registry is away, what is served goes on.

mod demand;
mod fetch;
mod learned;
mod on_demand;
mod status;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use contract::registry::registry_service_client::RegistryServiceClient;
use contract::registry::{Model as Listed, ModelVersion, WatchModelsRequest};
use contract::{ModelName, VersionName};
use diffusion::{DType, Device, Limits, LoadError};
use lifecycle::{Check, Tasks};
use tokio_util::sync::CancellationToken;

use crate::engine::{Bytes, EngineError, Loaded, Model, Needs, ReserveError, SimulatedModel};
use crate::metrics;
use crate::pull;
use crate::retry::Backoff;
use crate::settings::{Load, SimulatedSettings};
use crate::worker::Worker;
use lifecycle::chain;

use fetch::FetchError;
pub(crate) use learned::Learned;
pub(crate) use status::{Models, Status, VersionKey};

/// Pauses between attempts to watch the registry.
const WATCH_PAUSES: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(5));
/// Pauses between attempts to get a version that cannot be had.
const VERSION_PAUSES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// Tokens of a prompt that a simulated model has room for: as many as CLIP has.
const SIMULATED_TOKENS: u32 = 77;

/// A model version that is loaded.
pub(crate) struct Served {
    pub(crate) name: ModelName,
    pub(crate) version: VersionName,
    pub(crate) model: Arc<Loaded>,
}

impl Served {
    /// As `WORKERS` names it: `model/version`.
    pub(crate) fn key(&self) -> String {
        format!("{}/{}", self.name, self.version)
    }
}

/// What the versions' lives need.
#[derive(Clone)]
pub(crate) struct Keeper {
    pub(crate) worker: Arc<Worker>,
    pub(crate) tasks: Tasks,
    pub(crate) models: Models,
    /// Names to serve; none means all.
    pub(crate) wanted: Vec<ModelName>,
    pub(crate) cache: PathBuf,
    pub(crate) device: Device,
    pub(crate) dtype: DType,
    /// Pictures in one step.
    pub(crate) max_batch: usize,
    pub(crate) load: Load,
    /// How steps are, where none is computed.
    pub(crate) simulated: Option<SimulatedSettings>,
}

/// Why a version is not served so far.
#[derive(Debug, thiserror::Error)]
enum GetError {
    #[error(transparent)]
    Fetch(#[from] FetchError),
    #[error("the model cannot be loaded")]
    Load(#[source] LoadError),
    #[error("loading the model failed")]
    Panicked(#[source] tokio::task::JoinError),
    #[error(
        "the model has no room: raise engine.memory_limit, or serve fewer models (worker.models)"
    )]
    Memory(#[from] ReserveError),
    #[error("the model was loaded and cannot draw")]
    WarmUp(#[source] EngineError),
}

/// Why the registry cannot be watched.
#[derive(Debug, thiserror::Error)]
enum WatchError {
    #[error("the registry cannot be watched")]
    Call(#[source] Box<tonic::Status>),
    #[error("the registry ended the watch")]
    Ended,
}

/// A version's life, to be ended.
struct Life {
    since: Instant,
    end: CancellationToken,
}

/// The versions to serve, and the lives of those that are served. Cheap to clone; all clones are the same.
#[derive(Clone)]
struct Lives {
    keeper: Keeper,
    inner: Arc<Mutex<Known>>,
}

/// Every version to serve, with its life if it has one.
type Known = BTreeMap<VersionKey, (ModelVersion, Option<Life>)>;
type Listing<'a> = MutexGuard<'a, Known>;

impl Lives {
    /// Every version to serve, and since when it has been served here, if it is.
    fn listed(&self) -> BTreeMap<VersionKey, (ModelVersion, Option<Instant>)> {
        let inner = self.inner();
        let listed = inner.iter().map(|(key, (version, life))| {
            let since = life.as_ref().map(|life| life.since);
            (key.clone(), (version.clone(), since))
        });
        listed.collect()
    }

    /// Ends lives of versions that are gone, and begins those of new ones unless that goes by need.
    fn reconcile(&self, listed: Vec<Listed>) {
        let mut wanted = wanted(listed, &self.keeper.wanted);
        let mut inner = self.inner();
        inner.retain(|key, (known, life)| {
            let stays = wanted
                .get(key)
                .is_some_and(|version| version.digest == known.digest);
            if stays {
                wanted.remove(key);
            } else if let Some(life) = life {
                life.end.cancel();
            }
            stays
        });
        for (key, version) in wanted {
            let life = match self.keeper.load {
                Load::All => Some(self.start(&key, &version)),
                Load::Demand => None,
            };
            inner.insert(key, (version, life));
        }
    }

    /// Begins a version's life, if it has none.
    fn begin(&self, key: &VersionKey) {
        if let Some((version, life @ None)) = self.inner().get_mut(key) {
            *life = Some(self.start(key, version));
        }
    }

    /// Ends a version's life; what it has taken goes on.
    fn end(&self, key: &VersionKey) {
        let mut inner = self.inner();
        let life = inner.get_mut(key).and_then(|(_, life)| life.take());
        if let Some(life) = life {
            life.end.cancel();
        }
    }

    fn start(&self, key: &VersionKey, version: &ModelVersion) -> Life {
        let keeper = &self.keeper;
        let end = keeper.worker.stop.child_token();
        let life = live(keeper.clone(), key.clone(), version.clone(), end.clone());
        keeper.tasks.job("model", life);
        Life {
            since: Instant::now(),
            end,
        }
    }

    fn inner(&self) -> Listing<'_> {
        // Nothing panics while it is held half-changed.
        self.inner
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

/// Keeps what is served in step with the registry until the worker stops.
pub(crate) async fn keep(keeper: Keeper, registry: rpc::Peer, check: Check) {
    let lives = Lives {
        keeper,
        inner: Arc::default(),
    };
    tokio::select! {
        () = follow(&lives, &registry, &check) => {}
        () = on_demand::keep_looking(lives.clone()), if lives.keeper.load == Load::Demand => {}
    }
}

/// Follows the registry until the worker stops.
async fn follow(lives: &Lives, registry: &rpc::Peer, check: &Check) {
    let mut backoff = Backoff::new(WATCH_PAUSES.0, WATCH_PAUSES.1);
    let stop = lives.keeper.worker.stop.clone();
    loop {
        let watched = tokio::select! {
            () = stop.cancelled() => return,
            watched = watch(lives, registry, check, &mut backoff) => watched,
        };
        if let Err(error) = watched {
            tracing::debug!(error = chain(&error), "watching the registry again");
            check.fail(chain(&error));
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(backoff.pause()) => {}
        }
    }
}

async fn watch(
    lives: &Lives,
    registry: &rpc::Peer,
    check: &Check,
    backoff: &mut Backoff,
) -> Result<(), WatchError> {
    let call = |status| WatchError::Call(Box::new(status));
    let mut client = rpc::with_limits!(RegistryServiceClient::new(registry.clone()));
    let answer = client
        .watch_models(rpc::streaming(WatchModelsRequest {}))
        .await;
    let mut changes = answer.map_err(call)?.into_inner();
    while let Some(change) = changes.message().await.map_err(call)? {
        check.pass();
        backoff.reset();
        lives.reconcile(change.models);
    }
    Err(WatchError::Ended)
}

/// The versions to serve, by name. One with a name that cannot be is left out: it must not hide the others.
fn wanted(listed: Vec<Listed>, names: &[ModelName]) -> BTreeMap<VersionKey, ModelVersion> {
    let mut wanted = BTreeMap::new();
    for model in listed {
        let name: ModelName = match model.name.parse() {
            Ok(name) => name,
            Err(error) => {
                tracing::error!(%error, "a model of the registry is left out");
                continue;
            }
        };
        if !names.is_empty() && !names.contains(&name) {
            continue;
        }
        for version in model.versions {
            match version.version.parse::<VersionName>() {
                Ok(named) => drop(wanted.insert((name.clone(), named), version)),
                Err(error) => tracing::error!(%error, %name, "a version is left out"),
            }
        }
    }
    wanted
}

/// One version from download to unload.
async fn live(keeper: Keeper, key: VersionKey, version: ModelVersion, end: CancellationToken) {
    let life = keeper.models.begin(key.clone());
    let mut backoff = Backoff::new(VERSION_PAUSES.0, VERSION_PAUSES.1);
    let (name, named) = key;
    let began = Instant::now();
    let model = loop {
        let got = tokio::select! {
            () = end.cancelled() => return,
            got = get(&keeper, &version) => got,
        };
        let error = match got {
            Ok(model) => break model,
            Err(error) => error,
        };
        let pause = backoff.pause();
        tracing::error!(%name, version = %named, error = chain(&error), ?pause, "not served; trying again");
        metrics::model_failure(&name);
        life.set(Status::Failed(chain(&error)));
        tokio::select! {
            () = end.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
        }
    };
    tracing::info!(
        %name,
        version = %named,
        digest = model.digest(),
        weights = %Bytes(model.weights_bytes()),
        accounted = %Bytes(keeper.worker.engine.account().total()),
        "served"
    );
    life.set(Status::Loaded);
    let served = Arc::new(Served {
        name,
        version: named,
        model,
    });
    let learned = &keeper.worker.learned;
    learned.loading_took(&served.key(), began.elapsed());
    pull::pull(&keeper.worker, &keeper.tasks, &served, &end).await;
    tracing::info!(name = %served.name, version = %served.version, "no longer served");
}

/// One that takes its time and draws noise, of the version's profile. Nothing is downloaded.
async fn simulate(
    keeper: &Keeper,
    version: &ModelVersion,
    simulated: &SimulatedSettings,
) -> Result<Arc<Loaded>, GetError> {
    let profile = version.profile.unwrap_or_default();
    let limits = Limits {
        size_multiple: profile.multiple,
        max_side: profile.max_side,
        default_width: profile.default_width,
        default_height: profile.default_height,
        max_prompt_tokens: SIMULATED_TOKENS,
        max_steps: profile.max_steps,
        needs_image: false,
        needs_mask: false,
    };
    let engine = &keeper.worker.engine;
    let reserved = engine.reserve(0, Needs::default()).await?;
    let model = SimulatedModel::new(limits, &version.digest, simulated.step.duration());
    let model = Model::Simulated(model.hanging_at(&simulated.hang_file));
    Ok(engine.adopt(model, reserved).await?)
}

/// Downloads and loads a version, once there is room for it, and has it draw.
async fn get(keeper: &Keeper, version: &ModelVersion) -> Result<Arc<Loaded>, GetError> {
    if let Some(simulated) = &keeper.simulated {
        return simulate(keeper, version, simulated).await;
    }
    let folder = fetch::fetch(&keeper.worker.storage, &keeper.cache, version).await?;
    let engine = &keeper.worker.engine;
    // What is known before it is loaded: its weights take no less in memory than in their files.
    let reserved = engine.reserve(files_of_weights(version), Needs::default());
    let reserved = reserved.await?;
    let (path, device, dtype) = (folder.clone(), keeper.device.clone(), keeper.dtype);
    // The place goes along: loading goes on, and takes its memory, although nobody may be waiting for it any more.
    let loading =
        tokio::task::spawn_blocking(move || (Model::load(&path, &device, dtype), reserved));
    match loading.await.map_err(GetError::Panicked)? {
        (Ok(model), reserved) => {
            let model = engine.adopt(model, reserved).await?;
            let on_processor = keeper.device.is_cpu();
            let drawn = engine.warm_up(&model, keeper.max_batch, on_processor);
            drawn.await.map_err(GetError::WarmUp)?;
            Ok(model)
        }
        (Err(error), reserved) => {
            drop(reserved);
            // The files may have been damaged since they were verified: have them anew next time.
            fetch::forget(&folder).await;
            Err(GetError::Load(error))
        }
    }
}

/// Bytes of a version's weights files, at least: of files in half precision beside full ones only the smaller are read.
fn files_of_weights(version: &ModelVersion) -> u64 {
    let mut parts: BTreeMap<&str, BTreeMap<bool, u64>> = BTreeMap::new();
    for file in &version.artifacts {
        let Some(name) = file.path.strip_suffix(".safetensors") else {
            continue;
        };
        let part = name.rsplit_once('/').map_or("", |(folder, _)| folder);
        let sizes = parts.entry(part).or_default();
        *sizes.entry(name.contains(".fp16")).or_default() += file.size_bytes;
    }
    let least = |sizes: &BTreeMap<bool, u64>| sizes.values().copied().min().unwrap_or(0);
    parts.values().map(least).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model(name: &str, versions: &[&str]) -> Listed {
        let version = |&version: &&str| ModelVersion {
            version: version.to_owned(),
            ..ModelVersion::default()
        };
        Listed {
            name: name.to_owned(),
            versions: versions.iter().map(version).collect(),
            ..Listed::default()
        }
    }

    fn keys(wanted: &BTreeMap<VersionKey, ModelVersion>) -> Vec<String> {
        wanted
            .keys()
            .map(|(name, version)| format!("{name} {version}"))
            .collect()
    }

    #[test]
    fn all_versions_of_all_models_are_served_unless_models_are_named() {
        let listed = || vec![model("a", &["1", "2"]), model("b", &["1"])];
        assert_eq!(keys(&wanted(listed(), &[])), ["a 1", "a 2", "b 1"]);
        assert_eq!(keys(&wanted(listed(), &["b".parse().unwrap()])), ["b 1"]);
    }

    #[test]
    fn a_name_that_cannot_be_hides_no_other() {
        let listed = vec![model("../a", &["1"]), model("b", &["../1", "2"])];
        assert_eq!(keys(&wanted(listed, &[])), ["b 2"]);
    }

    #[test]
    fn weights_that_lie_there_twice_count_once() {
        let file = |(path, size_bytes): (&str, u64)| contract::registry::Artifact {
            path: path.to_owned(),
            size_bytes,
            ..contract::registry::Artifact::default()
        };
        let version = ModelVersion {
            artifacts: [
                ("unet/diffusion_pytorch_model.safetensors", 40),
                ("unet/diffusion_pytorch_model.fp16.safetensors", 20),
                ("vae/model-00001-of-00002.safetensors", 3),
                ("vae/model-00002-of-00002.safetensors", 4),
                ("vae/config.json", 500),
            ]
            .map(file)
            .into(),
            ..ModelVersion::default()
        };
        assert_eq!(files_of_weights(&version), 27);
    }
}
