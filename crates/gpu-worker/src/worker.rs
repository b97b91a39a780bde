//! What all tasks of one worker share.

use std::sync::Arc;
use std::time::Duration;

use storage::Storage;
use task_log::TaskLog;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::engine::Engine;
use crate::run::Running;

/// The worker.
pub(crate) struct Worker {
    /// As states and ends name it.
    pub(crate) name: String,
    pub(crate) log: TaskLog,
    pub(crate) storage: Storage,
    pub(crate) engine: Engine,
    /// A permit a task.
    pub(crate) slots: Arc<Semaphore>,
    pub(crate) running: Running,
    pub(crate) ack_wait: Duration,
    pub(crate) max_attempts: u32,
    /// `None`: never.
    pub(crate) checkpoint_every: Option<Duration>,
    /// As labels name it.
    pub(crate) content_producer: String,
    /// Cancelled when the service has been asked to stop.
    pub(crate) stop: CancellationToken,
}
