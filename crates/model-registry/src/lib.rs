//! Models, their versions, and where their files are.
//!
//! A version is what lies in a model folder (diffusers layout with an `inkstone.json`): its files go into the object
//! store under their own digests, its record into the bucket `MODELS`, where every registry, gateway and worker sees
//! it within milliseconds through `WatchModels`.
//!
//! Invariants:
//! * A version is immutable but for its traffic weight: the same files again change nothing, other files are refused.
//! * A record is published after all of its files are stored, never before.
//! * A name or alias means one model, whichever registries publish at the same moment.
//! * A new version of a model takes no tasks until its traffic is set; the first takes all.

mod error;
mod folder;
mod grpc;
mod manifest;
mod metrics;
mod record;
mod registry;
mod settings;

use std::path::PathBuf;
use std::time::Duration;

use contract::registry::registry_service_server::RegistryServiceServer;
use lifecycle::{Check, Service};
use messaging::{Broker, BrokerError, Snapshot};
use rpc::{Identity, Security};
use storage::{Storage, StorageError};
use telemetry::Telemetry;
use tokio::sync::watch;

pub use error::{RegistryError, StartError};
pub use record::{ArtifactRecord, ModelRecord, ProfileRecord, Schema, VersionRecord};
pub use registry::Registry;
pub use settings::{ModelsSettings, Settings};

/// Between two looks at broker and store.
const PROBE_EVERY: Duration = Duration::from_secs(5);
/// How long a look at the store may take: its own attempts go on for minutes.
const PROBE_LIMIT: Duration = Duration::from_secs(10);

/// Starts the registry: when it returns, the models of `models.bootstrap` are registered and calls are answered.
///
/// # Errors
/// When broker or store cannot be had, an address is taken, or a bootstrap folder is missing or damaged.
pub async fn start(settings: Settings, telemetry: Telemetry) -> Result<Service, StartError> {
    let mut service = Service::new("model-registry");
    lifecycle::admin::serve(&mut service, settings.process.admin_listen, &telemetry).await?;
    metrics::describe();
    let security = Security::start(&service, Identity::ModelRegistry, &settings.tls)?;
    let storage = Storage::open(&settings.storage)?;
    let broker = Broker::connect(&settings.broker, service.name).await?;
    let open = || Registry::open(&broker, storage.clone());
    let registry = broker.patiently(open).await?;
    bootstrap(&registry, settings.models.bootstrap).await?;
    let live = registry.follow(&service.tasks).await?;
    count_models(&service, live.clone());
    watch_dependencies(&service, broker, storage).await;
    let grpc = grpc::Grpc {
        registry,
        live,
        tasks: service.tasks.clone(),
    };
    let server = rpc::with_limits!(RegistryServiceServer::new(grpc));
    let routes = tonic::service::Routes::new(server);
    let address = settings.grpc.listen;
    security.serve(&mut service, address, routes).await?;
    Ok(service.started())
}

async fn bootstrap(registry: &Registry, folders: Vec<PathBuf>) -> Result<(), StartError> {
    for folder in folders {
        let registered = registry.bootstrap(folder.clone()).await;
        let (model, version) =
            registered.map_err(|source| StartError::Bootstrap { folder, source })?;
        tracing::info!(model = %model.name, version, "there from the start");
    }
    Ok(())
}

fn count_models(service: &Service, mut live: watch::Receiver<Snapshot<ModelRecord>>) {
    let stopping = service.tasks.stopping();
    service.tasks.critical("model metrics", async move {
        let counting = async {
            loop {
                let now = live.borrow_and_update().clone();
                metrics::models(&now);
                // Fails when the live copy has ended; that task is critical too and says why.
                if live.changed().await.is_err() {
                    return;
                }
            }
        };
        tokio::select! {
            () = stopping => {}
            () = counting => {}
        }
        Ok::<(), BrokerError>(())
    });
}

/// Looks once before it returns, and every few seconds from then on.
async fn watch_dependencies(service: &Service, broker: Broker, storage: Storage) {
    let broker_check = service.health.check("broker");
    let storage_check = service.health.check("storage");
    let look = async move || {
        let (broker, ()) = tokio::join!(broker.probe(), probe_storage(&storage, &storage_check));
        broker_check.set(broker);
    };
    look().await;
    let stopping = service.tasks.stopping();
    service.tasks.critical("dependencies", async move {
        let looking = async {
            loop {
                tokio::time::sleep(PROBE_EVERY).await;
                look().await;
            }
        };
        tokio::select! {
            () = stopping => {}
            () = looking => {}
        }
        Ok::<(), StorageError>(())
    });
}

async fn probe_storage(storage: &Storage, check: &Check) {
    match tokio::time::timeout(PROBE_LIMIT, storage.probe()).await {
        Ok(result) => check.set(result),
        Err(_) => check.fail(format!("did not answer within {PROBE_LIMIT:?}")),
    }
}
