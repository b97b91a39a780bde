//! Why a worker does not start, and how errors read in one line.

use diffusion::GpuError;
use lifecycle::admin::AdminError;
use messaging::BrokerError;
use rpc::RpcError;
use storage::StorageError;

use crate::settings::DeviceName;

/// Why the worker did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A GPU was asked for, and this program cannot use one.
    #[error(
        "{reason}: engine.device is {device}; {}, or set engine.device to cpu",
        advice(reason)
    )]
    NoCuda {
        /// What was asked for.
        device: DeviceName,
        /// Why not; it is in the text, which is one line.
        reason: GpuError,
    },
    /// The operating system would not give the engine a thread.
    #[error("cannot start the thread `{thread}`")]
    Thread {
        /// Which thread.
        thread: &'static str,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// The broker cannot be reached.
    #[error(transparent)]
    Broker(#[from] BrokerError),
    /// The object store cannot be opened.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// The certificates for TLS between services are not good.
    #[error("setting tls.dir")]
    Tls(#[from] rpc::TlsError),
    /// The registry's address is not one.
    #[error("setting registry.url")]
    Registry(#[source] RpcError),
    /// The admin port cannot be opened.
    #[error(transparent)]
    Admin(#[from] AdminError),
}

fn advice(reason: &GpuError) -> &'static str {
    match reason {
        GpuError::NotBuilt => "run a build with CUDA",
        GpuError::NoDevice { .. } => "run where a GPU and its driver are",
        GpuError::NoSuchDevice { .. } => "name one that is there",
        GpuError::Unusable { .. } => "free or repair it",
    }
}
