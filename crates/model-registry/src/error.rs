//! What can go wrong, and how it looks from outside.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use contract::{ErrorCode, Failure};
use messaging::BrokerError;
use storage::StorageError;

/// What a caller should wait before it tries again when a part is down.
const RETRY_AFTER: Duration = Duration::from_secs(2);

/// Why the registry did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// The folder of a model is not given as an absolute path.
    #[error("folder: {given:?} must be an absolute path on the registry's machine")]
    RelativeFolder {
        /// What was given.
        given: String,
    },
    /// A file or folder of the model cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file or folder.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Something in the folder is missing, damaged or not allowed.
    #[error("{} {problem}", path.display())]
    Folder {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong with it and what would be right.
        problem: String,
    },
    /// A field of `inkstone.json` is missing, malformed or out of range.
    #[error("{}: {field} {problem}", path.display())]
    Manifest {
        /// The file.
        path: PathBuf,
        /// Dotted path of the field.
        field: &'static str,
        /// What is wrong, and the limit.
        problem: String,
    },
    /// `inkstone.json` is not JSON of the right shape.
    #[error("{} is not a model manifest", path.display())]
    ManifestShape {
        /// The file.
        path: PathBuf,
        /// Which field or line.
        #[source]
        source: serde_json::Error,
    },
    /// Reading the folder was cut short.
    #[error("reading the model's folder was interrupted")]
    Interrupted(#[source] tokio::task::JoinError),
    /// The version exists with other files.
    #[error(
        "version {version} of {model} is published with other files, and versions are immutable: \
         choose another version in inkstone.json"
    )]
    VersionTaken {
        /// The model.
        model: String,
        /// The version.
        version: String,
    },
    /// A name or alias means another model already.
    #[error(
        "{name} already means the model {model}: choose another name or alias in inkstone.json"
    )]
    NameTaken {
        /// The name.
        name: String,
        /// Whose it is.
        model: String,
    },
    /// A model has grown beyond what one record holds.
    #[error("the record of {model} would have {size} bytes; {limit} fit")]
    RecordTooLarge {
        /// The model.
        model: String,
        /// Size with the new version.
        size: usize,
        /// The limit.
        limit: usize,
    },
    /// There is no such model.
    #[error("there is no model called {model:?}")]
    UnknownModel {
        /// What was asked for.
        model: String,
    },
    /// The traffic weights make no sense.
    #[error("weights: {problem}")]
    Weights {
        /// What is wrong, and the limit.
        problem: String,
    },
    /// Others kept changing the model.
    #[error("{model} is being changed by others; try again")]
    Contended {
        /// The model.
        model: String,
    },
    /// The broker did not do its part.
    #[error("the registry's broker does not answer as it should")]
    Broker(#[from] BrokerError),
    /// The object store did not do its part.
    #[error("the registry's object store does not answer as it should")]
    Storage(#[from] StorageError),
}

impl RegistryError {
    pub(crate) fn folder(path: &Path, problem: impl Into<String>) -> Self {
        Self::Folder {
            path: path.to_owned(),
            problem: problem.into(),
        }
    }

    pub(crate) fn read(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Read { path, source }
    }

    fn field(&self) -> Option<&'static str> {
        match self {
            Self::RelativeFolder { .. }
            | Self::Read { .. }
            | Self::Folder { .. }
            | Self::ManifestShape { .. }
            | Self::RecordTooLarge { .. }
            | Self::Storage(StorageError::ReadFile { .. } | StorageError::ChangedFile { .. }) => {
                Some("folder")
            }
            Self::Manifest { field, .. } => Some(field),
            Self::VersionTaken { .. } => Some("version"),
            Self::NameTaken { .. } => Some("aliases"),
            Self::Weights { .. } => Some("weights"),
            _ => None,
        }
    }
}

impl From<RegistryError> for Failure {
    fn from(error: RegistryError) -> Failure {
        if let Some(field) = error.field() {
            return Failure::invalid(field, with_cause(&error));
        }
        match &error {
            RegistryError::UnknownModel { .. } => {
                Failure::new(ErrorCode::ModelNotFound, error.to_string())
            }
            RegistryError::Interrupted(_) => Failure::new(ErrorCode::Internal, error.to_string()),
            _ => Failure::unavailable(error.to_string(), RETRY_AFTER),
        }
    }
}

/// The error and its direct cause: what a person needs who looks for the fault in a folder.
fn with_cause(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    }
}

/// Why the registry did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// No broker, or it refuses.
    #[error("cannot open the registry's buckets")]
    Broker(#[from] BrokerError),
    /// The object store cannot be opened.
    #[error("cannot open the registry's object store")]
    Storage(#[from] StorageError),
    /// The certificates for TLS between services are not good.
    #[error("setting tls.dir")]
    Tls(#[from] rpc::TlsError),
    /// The gRPC address cannot be had.
    #[error("cannot serve the registry")]
    Rpc(#[from] rpc::RpcError),
    /// The admin address cannot be had.
    #[error(transparent)]
    Admin(#[from] lifecycle::admin::AdminError),
    /// A folder of `models.bootstrap` cannot be registered.
    #[error("cannot register the model in {} (setting models.bootstrap)", folder.display())]
    Bootstrap {
        /// The folder.
        folder: PathBuf,
        /// Why not.
        #[source]
        source: RegistryError,
    },
}
