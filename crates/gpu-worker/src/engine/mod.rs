//! The engine's threads, and how the rest of the worker talks to them.
//!
//! One thread, `engine`, owns every picture on its way. Between two denoising steps it admits, forgets and puts away;
//! then it takes the pictures that the [planner](plan) names one step further, together. A second thread,
//! `decoder`, turns latents into pixels, so that a picture that is done does not hold up those that are not.
//! Neither is ever one of the runtime's threads.
//!
//! A [`Picture`] is a claim on one: dropping it is how a picture is cancelled, at the next step.

mod decoder;
mod plan;
mod stepper;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use diffusion::{
    BeginError, DecodeError, Job, Model, Progress, Request, ResumeError, RgbImage, StepError,
};
use tokio::sync::{mpsc, oneshot, watch};

use crate::error::StartError;

/// Commands that may wait for the engine's next step; further senders wait.
const COMMANDS: usize = 256;

/// Why a picture was not drawn.
#[derive(Debug, thiserror::Error)]
pub(crate) enum EngineError {
    /// It cannot be begun.
    #[error("the picture cannot be begun")]
    Begin(#[source] BeginError),
    /// It cannot be taken up where it was put away.
    #[error("the picture cannot be resumed")]
    Resume(#[source] ResumeError),
    /// A step failed.
    #[error("the picture cannot be drawn")]
    Step(#[source] StepError),
    /// The pixels could not be computed.
    #[error("the picture cannot be decoded")]
    Decode(#[source] DecodeError),
    /// A fault in the engine's code.
    #[error("the engine panicked while {doing}: {message}")]
    Panicked {
        /// What it was at.
        doing: &'static str,
        /// What the panic said.
        message: String,
    },
    /// The engine's thread has ended.
    #[error("the engine has stopped")]
    Gone,
}

impl EngineError {
    /// For metrics.
    fn kind(&self) -> &'static str {
        match self {
            Self::Begin(_) => "begin",
            Self::Resume(_) => "resume",
            Self::Step(StepError::NotFinite { .. }) => "not_finite",
            Self::Step(_) => "step",
            Self::Decode(_) => "decode",
            Self::Panicked { .. } => "panic",
            Self::Gone => "gone",
        }
    }
}

/// What is to be drawn.
pub(crate) struct Start {
    pub(crate) model: Arc<Model>,
    pub(crate) request: Request,
    /// Where it was put away, if it was.
    pub(crate) resume: Option<Vec<u8>>,
    /// Which picture of its task; comes back with its previews.
    pub(crate) index: u32,
    /// After which steps to show it, ascending.
    pub(crate) previews: Vec<u32>,
    /// Where previews go; those that find no room are left out.
    pub(crate) seen: mpsc::Sender<Seen>,
}

/// A picture as it looks on the way.
pub(crate) struct Seen {
    /// Which picture of its task.
    pub(crate) index: u32,
    /// Which preview of that picture, from 0.
    pub(crate) preview: u32,
    pub(crate) image: RgbImage,
}

/// A finished picture.
pub(crate) struct Drawn {
    pub(crate) image: RgbImage,
    /// Engine time: its share of its steps, and its decoding.
    pub(crate) busy: Duration,
}

/// How a picture comes out.
pub(crate) type Outcome = oneshot::Receiver<Result<Drawn, EngineError>>;

/// The engine. Cheap to clone; its threads end when all clones and pictures are gone.
#[derive(Clone)]
pub(crate) struct Engine {
    commands: mpsc::Sender<Command>,
    ids: Arc<AtomicU64>,
}

/// A claim on a picture that the engine has. Dropped, the engine forgets it at the next step.
pub(crate) struct Picture {
    id: u64,
    // Dropped first: the engine must find the claim gone when it is woken.
    progress: watch::Receiver<Progress>,
    engine: WakeOnDrop,
}

struct WakeOnDrop(mpsc::Sender<Command>);

enum Command {
    Begin(Box<Begin>),
    Snapshot {
        id: u64,
        reply: oneshot::Sender<Vec<u8>>,
    },
    /// The decoder gives a job back.
    Returned {
        id: u64,
        job: Box<Job>,
        panicked: bool,
    },
    /// A claim was dropped.
    Wake,
}

struct Begin {
    id: u64,
    start: Start,
    begun: oneshot::Sender<Result<watch::Receiver<Progress>, EngineError>>,
    outcome: oneshot::Sender<Result<Drawn, EngineError>>,
}

impl Engine {
    /// Starts both threads. A step takes `max_batch` pictures at most.
    ///
    /// # Errors
    /// When the operating system gives no thread.
    pub(crate) fn start(max_batch: usize) -> Result<Self, StartError> {
        let (commands, received) = mpsc::channel(COMMANDS);
        let decoder = decoder::start(commands.downgrade())?;
        stepper::start(received, decoder, plan::Limits { max_batch })?;
        Ok(Self {
            commands,
            ids: Arc::default(),
        })
    }

    /// Admits a picture between two steps.
    ///
    /// # Errors
    /// [`EngineError::Begin`], [`EngineError::Resume`], or a panic in either.
    pub(crate) async fn begin(&self, start: Start) -> Result<(Picture, Outcome), EngineError> {
        let id = self.ids.fetch_add(1, Ordering::Relaxed) + 1;
        let (begun, answer) = oneshot::channel();
        let (outcome, result) = oneshot::channel();
        let begin = Box::new(Begin {
            id,
            start,
            begun,
            outcome,
        });
        let sent = self.commands.send(Command::Begin(begin)).await;
        sent.map_err(|_| EngineError::Gone)?;
        let progress = answer.await.map_err(|_| EngineError::Gone)??;
        let engine = WakeOnDrop(self.commands.clone());
        Ok((
            Picture {
                id,
                progress,
                engine,
            },
            result,
        ))
    }

    /// Resolves when the engine's thread has ended, which it does only when it cannot go on.
    pub(crate) async fn gone(&self) {
        self.commands.closed().await;
    }
}

impl Picture {
    /// How far it is.
    pub(crate) fn progress(&self) -> Progress {
        *self.progress.borrow()
    }

    /// The picture as bytes, taken between two steps or after the last; `None` when the engine no longer has it.
    pub(crate) async fn snapshot(&self) -> Option<Vec<u8>> {
        let (reply, answer) = oneshot::channel();
        let command = Command::Snapshot { id: self.id, reply };
        self.engine.0.send(command).await.ok()?;
        answer.await.ok()
    }
}

impl Drop for WakeOnDrop {
    fn drop(&mut self) {
        // An engine with a full queue is awake: it finds the dropped claim by itself.
        let _ = self.0.try_send(Command::Wake);
    }
}
