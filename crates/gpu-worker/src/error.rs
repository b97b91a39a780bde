//! Why a worker does not start, and how errors read in one line.

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
        "this build has no CUDA: engine.device is {device}; run a build with CUDA, or set engine.device to cpu"
    )]
    NoCuda {
        /// What was asked for.
        device: DeviceName,
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
    /// The registry's address is not one.
    #[error("setting registry.url")]
    Registry(#[source] RpcError),
    /// The admin port cannot be opened.
    #[error(transparent)]
    Admin(#[from] AdminError),
}

/// An error with its causes, on one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        let words = next.to_string();
        // Transparent variants repeat their cause.
        if !text.contains(&words) {
            text.push_str(": ");
            text.push_str(&words);
        }
        cause = next.source();
    }
    text
}

/// What a panic said.
pub(crate) fn panic_text(panic: &(dyn std::any::Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("without a message")
}
