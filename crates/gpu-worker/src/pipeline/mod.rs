//! One task from request to stored pictures, as nodes in a row.
//!
//! A node reads and fills the [`TaskJob`]. Everything that a node does can be done again: keys are derived, bytes are
//! the same on one kind of machine, so a task that is taken up a second time ends as it would have the first time. Other bytes
//! have another key.

pub(crate) mod checkpoint;
mod error;
mod inference;
mod label;
mod output;
mod postprocess;
mod preprocess;
mod source;

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use contract::task::{State, StoredImage};
use contract::v1::SubmitTask;
use diffusion::{Request, RgbImage};
use imaging::{Encoding, Format};
use task_log::{TaskLogError, TaskRef};
use tracing::Instrument as _;

use crate::metrics;
use crate::models::Served;
use crate::worker::Worker;

pub(crate) use error::{NodeError, Verdict};

/// One stage of the pipeline.
#[async_trait]
pub(crate) trait PipelineNode: Send + Sync {
    /// For metrics and spans.
    fn name(&self) -> &'static str;

    /// Takes the task through this stage. Dropped, it leaves nothing running but what a bounded time ends.
    async fn run(&self, job: &mut TaskJob) -> Result<(), NodeError>;
}

/// The pipeline.
const NODES: [&dyn PipelineNode; 4] = [
    &preprocess::Preprocess,
    &inference::Inference,
    &postprocess::Postprocess,
    &output::Output,
];

/// A task on its way through the pipeline.
pub(crate) struct TaskJob {
    pub(crate) worker: Arc<Worker>,
    pub(crate) served: Arc<Served>,
    pub(crate) task: TaskRef,
    pub(crate) request: SubmitTask,
    /// Its lane's weight.
    weight: u32,
    /// As last written to the log.
    pub(crate) state: State,
    /// The place of that in the log.
    pub(crate) state_sequence: u64,
    /// Whether nobody hears of its end unasked.
    pub(crate) without_listeners: bool,
    /// A checkpoint that is being written, or was not written whole.
    half_written: Option<checkpoint::HalfWritten>,
    /// Which pictures the checkpoint has that the state names, in index order; empty when there is none.
    put_away: Vec<bool>,
    /// Set by `Preprocess`: how files are written.
    encoding: Encoding,
    /// Set by `Preprocess`: one a picture, in index order.
    planned: Vec<Planned>,
    /// Set by `Inference`, in index order.
    drawn: Vec<RgbImage>,
    /// Set by `Inference`: engine time of all pictures.
    pub(crate) engine_time: Duration,
    /// Set by `Postprocess`: the files, in index order.
    files: Vec<postprocess::File>,
    /// Set by `Output`, in index order.
    pub(crate) images: Vec<StoredImage>,
}

/// One picture before it is drawn.
#[derive(Debug, Clone)]
struct Planned {
    request: Request,
    /// Where it was put away, if it was.
    resume: Option<Vec<u8>>,
}

impl TaskJob {
    /// A task before the first node. `state` is what was written when it was taken up.
    pub(crate) fn new(
        worker: &Arc<Worker>,
        served: &Arc<Served>,
        task: TaskRef,
        request: SubmitTask,
        weight: u32,
        state: State,
    ) -> Self {
        Self {
            worker: Arc::clone(worker),
            served: Arc::clone(served),
            task,
            request,
            weight,
            state,
            state_sequence: 0,
            without_listeners: false,
            half_written: None,
            put_away: Vec::new(),
            encoding: Encoding {
                format: Format::Png,
                quality: preprocess::DEFAULT_QUALITY,
            },
            planned: Vec::new(),
            drawn: Vec::new(),
            engine_time: Duration::ZERO,
            files: Vec::new(),
            images: Vec::new(),
        }
    }
}

impl TaskJob {
    /// Writes a state in place of this run's own last one. `None` when another worker's stands there by now.
    ///
    /// # Errors
    /// When neither is known.
    pub(crate) async fn write_state(&self, state: &State) -> Result<Option<u64>, TaskLogError> {
        let log = &self.worker.log;
        let after = self.state_sequence;
        let written = log.replace_state(&self.task, state, after).await?;
        if written.is_some() {
            return Ok(written);
        }
        // One of its own may have been stored after nobody waited for it any more.
        let Some(record) = log.read(&self.task.tenant, self.task.task).await? else {
            return Ok(None);
        };
        let own = |stands: State| {
            stands.worker == self.worker.name && stands.attempt == self.state.attempt
        };
        if !record.state.is_some_and(own) {
            return Ok(None);
        }
        log.replace_state(&self.task, state, record.state_sequence)
            .await
    }
}

/// Runs all nodes, one after the other.
///
/// # Errors
/// Those of the first node that fails.
pub(crate) async fn run(job: &mut TaskJob) -> Result<(), NodeError> {
    for node in NODES {
        let started = Instant::now();
        let span = tracing::info_span!("node", name = node.name());
        let result = node.run(job).instrument(span).await;
        metrics::node(node.name(), started.elapsed());
        result?;
    }
    Ok(())
}
