//! The models that this worker serves: those of the registry, as it says them, loaded and pulled for.
//!
//! Every version of a model is served for as long as the registry lists it, whatever its share of new tasks: tasks that were
//! admitted for it earlier still wait. Each version has a life of its own (downloaded, loaded, served); one that cannot be
//! had is tried again and disturbs no other. When the registry is away, what is served goes on.

mod fetch;
mod status;

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use contract::registry::registry_service_client::RegistryServiceClient;
use contract::registry::{Model as Listed, ModelVersion, WatchModelsRequest};
use contract::{ModelName, VersionName};
use diffusion::{DType, Device, LoadError, Model};
use lifecycle::{Check, Tasks};
use tokio_util::sync::CancellationToken;

use crate::engine::{Bytes, EngineError, Loaded, Needs, ReserveError};
use crate::metrics;
use crate::pull;
use crate::retry::Backoff;
use crate::worker::Worker;
use lifecycle::chain;

use fetch::FetchError;
pub(crate) use status::{Models, Status, VersionKey};

/// Pauses between attempts to watch the registry.
const WATCH_PAUSES: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(5));
/// Pauses between attempts to get a version that cannot be had.
const VERSION_PAUSES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// A model version that is loaded.
pub(crate) struct Served {
    pub(crate) name: ModelName,
    pub(crate) version: VersionName,
    pub(crate) model: Arc<Loaded>,
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
    digest: String,
    end: CancellationToken,
}

/// Keeps what is served in step with the registry until the worker stops.
pub(crate) async fn keep(keeper: Keeper, registry: rpc::Peer, check: Check) {
    let mut lives = HashMap::new();
    let mut backoff = Backoff::new(WATCH_PAUSES.0, WATCH_PAUSES.1);
    let stop = keeper.worker.stop.clone();
    loop {
        let watched = tokio::select! {
            () = stop.cancelled() => return,
            watched = watch(&keeper, &registry, &mut lives, &check, &mut backoff) => watched,
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
    keeper: &Keeper,
    registry: &rpc::Peer,
    lives: &mut HashMap<VersionKey, Life>,
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
        reconcile(keeper, lives, change.models);
    }
    Err(WatchError::Ended)
}

/// Begins lives of versions that are new and ends those of versions that are gone.
fn reconcile(keeper: &Keeper, lives: &mut HashMap<VersionKey, Life>, listed: Vec<Listed>) {
    let mut wanted = wanted(listed, &keeper.wanted);
    lives.retain(|key, life| {
        let stays = wanted
            .get(key)
            .is_some_and(|version| version.digest == life.digest);
        if stays {
            wanted.remove(key);
        } else {
            life.end.cancel();
        }
        stays
    });
    for (key, version) in wanted {
        let end = keeper.worker.stop.child_token();
        let digest = version.digest.clone();
        lives.insert(
            key.clone(),
            Life {
                digest,
                end: end.clone(),
            },
        );
        keeper
            .tasks
            .job("model", live(keeper.clone(), key, version, end));
    }
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
    pull::pull(&keeper.worker, &keeper.tasks, &served, &end).await;
    tracing::info!(name = %served.name, version = %served.version, "no longer served");
}

/// Downloads and loads a version, once there is room for it, and has it draw.
async fn get(keeper: &Keeper, version: &ModelVersion) -> Result<Arc<Loaded>, GetError> {
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
