//! The registry itself: publishes versions, sets traffic, and lets others watch.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use contract::{ModelName, registry as proto};
use lifecycle::Tasks;
use messaging::{Broker, BrokerError, Bucket, Entry, Snapshot};
use storage::{Key, Storage};
use tokio::sync::{Semaphore, watch};

use crate::error::RegistryError;
use crate::folder::ModelFolder;
use crate::metrics;
use crate::record::{Candidate, ModelRecord, NameRecord, Schema, now_ms};

/// How often a change is tried again when someone else changed the model meanwhile.
const MAX_CONFLICTS: usize = 8;
/// Folders that are read and stored at the same time: the disk is the limit, and memory is bounded.
const FOLDERS_AT_ONCE: usize = 1;
/// Buckets keep what they hold.
const FOR_EVER: Duration = Duration::ZERO;

/// What is thought of an object that is there and has the right size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stored {
    /// That it is what it should be.
    Trusted,
    /// That it may have been damaged: it is written anew, which costs no more than reading it would.
    Doubted,
}

/// The models of a platform. Cheap to clone. Any number of registries may work on the same buckets.
#[derive(Clone)]
pub struct Registry {
    models: Bucket<ModelRecord>,
    names: Bucket<NameRecord>,
    storage: Storage,
    folders: Arc<Semaphore>,
}

impl Registry {
    /// Opens the buckets `MODELS` and `MODEL_NAMES`, and creates them if need be.
    ///
    /// # Errors
    /// When the broker refuses.
    pub async fn open(broker: &Broker, storage: Storage) -> Result<Self, BrokerError> {
        Ok(Self {
            models: broker.bucket("MODELS", FOR_EVER).await?,
            names: broker.bucket("MODEL_NAMES", FOR_EVER).await?,
            storage,
            folders: Arc::new(Semaphore::new(FOLDERS_AT_ONCE)),
        })
    }

    /// Every model by name, as it is now.
    ///
    /// # Errors
    /// When the broker does not answer.
    pub async fn models(&self) -> Result<BTreeMap<String, ModelRecord>, RegistryError> {
        Ok(self.models.all().await?)
    }

    /// A copy of all models that follows every change until the service stops.
    ///
    /// # Errors
    /// When the broker does not answer.
    pub async fn follow(
        &self,
        tasks: &Tasks,
    ) -> Result<watch::Receiver<Snapshot<ModelRecord>>, BrokerError> {
        self.models.follow(tasks, "models").await
    }

    /// Publishes the version that lies in `folder`: its files into the object store first, then its record. The same
    /// files again under the same version change nothing, but put back objects that have gone missing or were damaged.
    ///
    /// Gives back the model and the version's name.
    ///
    /// # Errors
    /// When the folder is no whole model, the version exists with other files, a name is another model's, or broker
    /// or store do not do their part. Nothing is published then; some files may be stored, which harms nothing.
    pub async fn register(&self, folder: PathBuf) -> Result<(ModelRecord, String), RegistryError> {
        // Whoever publishes what is published doubts that it is well.
        self.publish(folder, Stored::Doubted).await
    }

    /// The same at a start, which must not read or write every model anew: of objects that are there the size is looked
    /// at, and no more.
    ///
    /// # Errors
    /// As for [`register`](Self::register).
    pub(crate) async fn bootstrap(
        &self,
        folder: PathBuf,
    ) -> Result<(ModelRecord, String), RegistryError> {
        self.publish(folder, Stored::Trusted).await
    }

    async fn publish(
        &self,
        folder: PathBuf,
        stored: Stored,
    ) -> Result<(ModelRecord, String), RegistryError> {
        // Never closed; if it were, the limit would not matter any more.
        let _permit = self.folders.acquire().await.ok();
        let read = tokio::task::spawn_blocking(move || ModelFolder::read(&folder)).await;
        let folder = read.map_err(RegistryError::Interrupted)??;
        let candidate = &folder.candidate;
        let version = candidate.version.version.to_string();
        // What cannot be published need not be uploaded.
        let before = self.models.get(candidate.model.as_str()).await?;
        let before = before.map(|entry| entry.value);
        let known = ModelRecord::with_version(before.as_ref(), candidate, now_ms())?.is_none();
        if !known {
            self.claim_names(candidate).await?;
        }
        // Files of a new version that another has too are there already.
        let stored = if known { stored } else { Stored::Trusted };
        for (artifact, file) in candidate.version.artifacts.iter().zip(&folder.files) {
            self.upload(file, &artifact.sha256, artifact.size_bytes, stored)
                .await?;
        }
        let change =
            |before: Option<&ModelRecord>| ModelRecord::with_version(before, candidate, now_ms());
        let record = self.change(&candidate.model, change).await?;
        if !known {
            let digest = &candidate.version.digest;
            tracing::info!(model = %record.name, version, digest, "published");
        }
        Ok((record, version))
    }

    /// Sets which share of new tasks each version takes; versions that are not named take none.
    ///
    /// # Errors
    /// When model or versions are unknown, the weights make no sense, or the broker does not do its part.
    pub async fn set_traffic(
        &self,
        model: &str,
        weights: &[proto::VersionWeight],
    ) -> Result<ModelRecord, RegistryError> {
        let unknown = || RegistryError::UnknownModel {
            model: model.chars().take(80).collect(),
        };
        let name: ModelName = model.parse().map_err(|_| unknown())?;
        let change = |before: Option<&ModelRecord>| {
            let before = before.ok_or_else(unknown)?;
            let after = before.with_traffic(weights)?;
            Ok((after != *before).then_some(after))
        };
        let record = self.change(&name, change).await?;
        let weights: Vec<_> = record
            .versions
            .iter()
            .map(|v| (v.version.as_str(), v.weight))
            .collect();
        tracing::info!(model = %record.name, ?weights, "traffic is set");
        Ok(record)
    }

    /// Reads a model, changes it and writes it, anew as long as someone else changes it in between. `None` from
    /// `change` means that it is as it should be.
    async fn change(
        &self,
        model: &ModelName,
        change: impl Fn(Option<&ModelRecord>) -> Result<Option<ModelRecord>, RegistryError>,
    ) -> Result<ModelRecord, RegistryError> {
        let key = model.as_str();
        for _ in 0..MAX_CONFLICTS {
            let before = self.models.get(key).await?;
            let after = change(before.as_ref().map(|entry| &entry.value))?;
            let written = match (after, before) {
                (None, Some(Entry { value, .. })) => return Ok(value),
                (None, None) => break,
                (Some(after), None) => self.models.create(key, &after).await.map(|_| after),
                (Some(after), Some(Entry { revision, .. })) => self
                    .models
                    .update(key, &after, revision)
                    .await
                    .map(|_| after),
            };
            match written {
                Err(BrokerError::Conflict { .. }) => {}
                written => return Ok(written?),
            }
        }
        Err(RegistryError::Contended {
            model: model.to_string(),
        })
    }

    /// Makes the model's name and aliases its own. A name stays claimed if what follows fails; only this model can
    /// want it then, and finds it claimed for itself.
    async fn claim_names(&self, candidate: &Candidate) -> Result<(), RegistryError> {
        let names = || std::iter::once(&candidate.model).chain(&candidate.aliases);
        // Look at all before the first is claimed, so that a plain collision leaves nothing behind.
        for name in names() {
            self.check_owner(name, &candidate.model).await?;
        }
        let claim = NameRecord {
            schema: Schema,
            model: candidate.model.clone(),
        };
        for name in names() {
            match self.names.create(name.as_str(), &claim).await {
                Ok(_) => {}
                Err(BrokerError::Conflict { .. }) => {
                    self.check_owner(name, &candidate.model).await?;
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    async fn check_owner(&self, name: &ModelName, model: &ModelName) -> Result<(), RegistryError> {
        match self.names.get(name.as_str()).await? {
            Some(owner) if owner.value.model != *model => Err(RegistryError::NameTaken {
                name: name.to_string(),
                model: owner.value.model.to_string(),
            }),
            _ => Ok(()),
        }
    }

    async fn upload(
        &self,
        file: &Path,
        sha256: &str,
        size: u64,
        stored: Stored,
    ) -> Result<(), RegistryError> {
        let Some(key) = Key::artifact(sha256) else {
            return Err(RegistryError::folder(file, "has a digest that is not one"));
        };
        if stored == Stored::Trusted && self.storage.size(&key).await? == Some(size) {
            return Ok(());
        }
        let stored = self.storage.put_file(&key, file, sha256).await?;
        metrics::uploaded(stored);
        Ok(())
    }
}
