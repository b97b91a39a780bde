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
use storage::Key;
use task_log::{TaskLogError, TaskRef, Writer};
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
    /// As last known to be written to the log, but for its checkpoint: that is the newest that is stored, and none where it is of no use.
    pub(crate) state: State,
    /// The place of that in the log.
    pub(crate) state_sequence: u64,
    /// Whether nobody hears of its end unasked.
    pub(crate) without_listeners: bool,
    /// A checkpoint whose object is being written, or was not written whole: no state names it.
    half_written: Option<checkpoint::HalfWritten>,
    /// Checkpoints whose objects may be there. If the state in the log names one of this run or before, it is among them.
    objects: Vec<Key>,
    /// Which pictures the checkpoint has that the state names, in index order; empty when there is none.
    put_away: Vec<bool>,
    /// Steps, over all pictures, of the checkpoint that this run went on from or has taken last.
    put_away_at: u32,
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

/// What came of a state that a run wrote.
pub(crate) enum StateWritten {
    /// It stands in the log, at this place.
    Stored(u64),
    /// Another worker has the task; what stands there, if that is known.
    TakenOver(Option<Box<State>>),
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
        let objects = checkpoint::named(&state).into_iter().collect();
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
            objects,
            put_away: Vec::new(),
            put_away_at: 0,
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
    /// Writes a state in place of this run's own last one.
    ///
    /// # Errors
    /// When it is not known what stands there.
    pub(crate) async fn write_state(&self, state: &State) -> Result<StateWritten, TaskLogError> {
        let log = &self.worker.log;
        let after = self.state_sequence;
        if let Some(sequence) = log.replace_state(&self.task, state, after).await? {
            return Ok(StateWritten::Stored(sequence));
        }
        // One of its own may have been stored after nobody waited for it any more. A replica that lags would make it another's.
        let found = log.state_at_leader(&self.task).await?;
        // One from before this run says nothing of who has the task now.
        let Some((stands, after)) = found.filter(|(_, sequence)| *sequence > after) else {
            return Ok(StateWritten::TakenOver(None));
        };
        let own = self.worker.as_writer(self.state.attempt);
        if !own.wrote(&Writer::from(&stands)) {
            return Ok(StateWritten::TakenOver(Some(Box::new(stands))));
        }
        let written = log.replace_state(&self.task, state, after).await?;
        Ok(written.map_or(StateWritten::TakenOver(None), StateWritten::Stored))
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
