//! The engine's threads, and how the rest of the worker talks to them.
//!
//! One thread, `engine`, owns every picture on its way. Between two denoising steps it lets pictures in as far as there is
//! room, forgets those whose claim was dropped, puts away, and shows; then it takes the pictures that the
//! [planner](plan) names one step further, together. A second thread, `decoder`, turns latents into pixels, so that a
//! picture that is done does not hold up those that are not. Neither is ever one of the runtime's threads.
//!
//! What decides is pure and stands by itself: [`plan`] (who takes part in a step), [`shares`] (whose turn it is),
//! [`memory`] (who may begin, and who makes way), [`estimate`] (how long a step will take).
//!
//! A [`Picture`] is a claim on one: dropping it is how a picture is cancelled, at the next step.

mod decoder;
mod entry;
mod estimate;
mod limit;
mod loaded;
mod memory;
mod model;
mod pass;
mod plan;
mod previews;
mod room;
mod shares;
mod simulated;
mod stepper;
#[cfg(test)]
mod tests;
mod warm_up;
mod watchdog;

use std::collections::BTreeSet;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use contract::TaskId;
use diffusion::{BeginError, DecodeError, Progress, Request, ResumeError, RgbImage, StepError};
use lifecycle::panic_text;
use tokio::sync::{mpsc, oneshot, watch};

use crate::error::StartError;

pub(crate) use limit::{Available, Source, of_gpu, of_this_machine};
use loaded::Adopted;
pub(crate) use loaded::{Loaded, Reserved};
pub(crate) use memory::{Account, Bytes, DoesNotFit, Needs};
pub(crate) use model::Model;
use pass::Step;
use room::PendingWeights;
pub(crate) use shares::Flow;
pub(crate) use simulated::Model as SimulatedModel;
use stepper::Setup;
pub(crate) use watchdog::Hung;
use watchdog::Pulse;

/// Commands that may wait for the engine's next step; further senders wait.
const COMMANDS: usize = 256;

/// Why a picture was not drawn.
#[derive(Debug, thiserror::Error)]
pub(crate) enum EngineError {
    /// The request asks for what the model cannot do.
    #[error(transparent)]
    Refused(BeginError),
    /// It cannot be begun.
    #[error("the picture cannot be begun")]
    Begin(#[source] BeginError),
    /// It cannot be taken up where it was put away.
    #[error("the picture cannot be resumed")]
    Resume(#[source] ResumeError),
    /// It has no room here, whoever makes way.
    #[error("the picture does not fit into the worker's memory")]
    DoesNotFit(#[source] DoesNotFit),
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
    /// The engine's thread has ended, from what this picture's task has no part in.
    #[error("the engine has stopped, because of other tasks")]
    GoneWithOthers,
}

impl EngineError {
    fn of_begin(error: BeginError) -> Self {
        match error {
            BeginError::Parameter { .. } | BeginError::Tokenize { .. } => Self::Refused(error),
            BeginError::Encode(_) | BeginError::Image(_) => Self::Begin(error),
        }
    }

    /// Whether it is for the caller to ask for something else, rather than for an operator to look at.
    fn is_callers(&self) -> bool {
        matches!(self, Self::Refused(_) | Self::DoesNotFit(_))
    }

    /// Whether the engine's code or its device failed, rather than a picture.
    fn is_engines(&self) -> bool {
        let computing = matches!(self, Self::Step(StepError::Compute { .. }));
        computing || matches!(self, Self::Panicked { .. } | Self::Decode(_))
    }

    /// For metrics.
    fn kind(&self) -> &'static str {
        match self {
            Self::Refused(_) => "refused",
            Self::Begin(_) => "begin",
            Self::Resume(_) => "resume",
            Self::DoesNotFit(_) => "does_not_fit",
            Self::Step(StepError::NotFinite { .. }) => "not_finite",
            Self::Step(_) => "step",
            Self::Decode(_) => "decode",
            Self::Panicked { .. } => "panic",
            Self::Gone | Self::GoneWithOthers => "gone",
        }
    }

    /// Makes an error of a panic.
    fn guard<T>(doing: &'static str, work: impl FnOnce() -> Result<T, Self>) -> Result<T, Self> {
        catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
            let message = panic_text(&*panic).to_owned();
            Err(Self::Panicked { doing, message })
        })
    }
}

/// What the engine must keep to.
#[derive(Debug, Clone, Copy)]
pub(crate) struct EngineLimits {
    /// Pictures in one step.
    pub(crate) max_batch: usize,
    /// How long a step of several pictures may take.
    pub(crate) max_step: Option<Duration>,
    /// Bytes for weights, pictures, one step and one decoding.
    pub(crate) memory: u64,
}

/// What is to be drawn.
pub(crate) struct Start {
    pub(crate) model: Arc<Loaded>,
    pub(crate) request: Request,
    /// Where it was put away, if it was. Bytes that cannot be used are no error: it begins anew.
    pub(crate) resume: Option<Vec<u8>>,
    /// Whose it is, and what that one weighs.
    pub(crate) flow: Flow,
    /// Which picture of its task; comes back with its previews.
    pub(crate) index: u32,
    /// How often to show it on the way, evenly spaced over its steps.
    pub(crate) previews: u32,
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
    numbers: Arc<AtomicU64>,
    account: watch::Receiver<Account>,
    pulses: [Pulse; 2],
    memory: u64,
    broken: Broken,
}

/// Set when the engine's thread ends: at which tasks its code failed last. Never where it ends by a fault of its own.
type Broken = Arc<OnceLock<BTreeSet<Flow>>>;

/// A claim on a picture that the engine has. Dropped, the engine forgets it at the next step.
pub(crate) struct Picture {
    id: u64,
    // Dropped first: the engine must find the claim gone when it is woken.
    progress: watch::Receiver<Progress>,
    anew: Arc<AtomicBool>,
    _engine: WakeOnDrop,
}

struct WakeOnDrop(mpsc::Sender<Command>);

enum Command {
    Begin(Box<Begin>),
    /// All of these as they are between two steps; `None` when one is not there any more.
    Snapshot {
        ids: Vec<u64>,
        reply: oneshot::Sender<Option<Vec<Vec<u8>>>>,
    },
    /// The decoder is done with something; whose it was, if its code failed at it.
    Decoded {
        number: u64,
        broken: Option<Flow>,
    },
    /// A model is to be loaded.
    Weights(PendingWeights),
    /// A claim was dropped, or memory was given back.
    Wake,
}

struct Begin {
    id: u64,
    start: Start,
    progress: watch::Sender<Progress>,
    outcome: oneshot::Sender<Result<Drawn, EngineError>>,
    anew: Arc<AtomicBool>,
}

impl Engine {
    /// Starts both threads.
    ///
    /// # Errors
    /// When the operating system gives no thread.
    pub(crate) fn start(limits: EngineLimits) -> Result<Self, StartError> {
        Self::start_with(limits, Box::new(|model, jobs| model.step(jobs)))
    }

    fn start_with(limits: EngineLimits, step: Step) -> Result<Self, StartError> {
        let (commands, received) = mpsc::channel(COMMANDS);
        let (told, account) = watch::channel(Account::default());
        let pulses = [Pulse::new("engine"), Pulse::new("decoder")];
        let [pulse, of_decoder] = pulses.clone();
        let decoder = decoder::start(commands.downgrade(), of_decoder)?;
        let broken = Broken::default();
        stepper::start(Setup {
            pulse,
            commands: received,
            engine: commands.downgrade(),
            decoder,
            step,
            max_batch: limits.max_batch,
            max_step: limits.max_step,
            memory_limit: limits.memory,
            weights: Arc::default(),
            account: told,
            broken: Arc::clone(&broken),
        })?;
        Ok(Self {
            commands,
            numbers: Arc::default(),
            account,
            pulses,
            memory: limits.memory,
            broken,
        })
    }

    fn number(&self) -> u64 {
        self.numbers.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Someone whose pictures share what the weight gives it.
    pub(crate) fn flow(&self, weight: u32) -> Flow {
        Flow::new(self.number(), weight)
    }

    /// A task, whose pictures share what its lane's weight gives it: the same whenever it is taken up, so that one that fails
    /// again and again is not taken for many.
    pub(crate) fn flow_of(&self, task: TaskId, weight: u32) -> Flow {
        let mut hasher = DefaultHasher::new();
        task.hash(&mut hasher);
        Flow::new(hasher.finish(), weight)
    }

    /// Waits until there is room for a model: so much of weights, and what one picture takes beside them.
    ///
    /// # Errors
    /// When it does not fit, whatever makes way, or would leave a model that is loaded no room for its default picture; or
    /// the engine has stopped.
    pub(crate) async fn reserve(
        &self,
        bytes: u64,
        picture: Needs,
    ) -> Result<Reserved, ReserveError> {
        self.ask_for_room(bytes, picture, None).await
    }

    async fn ask_for_room(
        &self,
        bytes: u64,
        picture: Needs,
        loaded: Option<Adopted>,
    ) -> Result<Reserved, ReserveError> {
        let (reply, answer) = oneshot::channel();
        let pending = PendingWeights {
            bytes,
            picture,
            loaded,
            after: self.number(),
            reply,
        };
        let sent = self.commands.send(Command::Weights(pending)).await;
        sent.map_err(|_| ReserveError::Gone)?;
        let answer = answer.await.map_err(|_| ReserveError::Gone)?;
        answer.map_err(ReserveError::DoesNotFit)
    }

    /// Takes a model over whose weights, or what they were thought to be, were [reserved](Self::reserve). Where they are more
    /// than was thought, waits until there is room for the rest.
    ///
    /// # Errors
    /// As for [`reserve`](Self::reserve); the model is unloaded then.
    pub(crate) async fn adopt(
        &self,
        model: Model,
        reserved: Reserved,
    ) -> Result<Arc<Loaded>, ReserveError> {
        // At once: however this ends, the model goes before its place does.
        let mut loaded = Loaded::new(model, self.number(), reserved);
        let (adopted, more) = loaded.adopted();
        let more = self.ask_for_room(more, adopted.picture, Some(adopted));
        loaded.join(more.await?);
        Ok(Arc::new(loaded))
    }

    /// Takes in a picture, which is begun between two steps, when there is room for it.
    ///
    /// # Errors
    /// When the engine has stopped. All else comes with the outcome.
    pub(crate) async fn begin(&self, start: Start) -> Result<(Picture, Outcome), EngineError> {
        let (id, flow) = (self.number(), start.flow);
        let (progress, watched) = watch::channel(Progress { step: 0, steps: 0 });
        let (outcome, result) = oneshot::channel();
        let anew = Arc::new(AtomicBool::new(false));
        let begin = Box::new(Begin {
            id,
            start,
            progress,
            outcome,
            anew: Arc::clone(&anew),
        });
        let sent = self.commands.send(Command::Begin(begin)).await;
        sent.map_err(|_| self.gone_for(flow))?;
        let picture = Picture {
            id,
            progress: watched,
            anew,
            _engine: WakeOnDrop(self.commands.clone()),
        };
        Ok((picture, result))
    }

    /// Why a task's picture comes out no more, once the engine's thread has ended: whether it had a part in that.
    pub(crate) fn gone_for(&self, flow: Flow) -> EngineError {
        match self.broken.get() {
            Some(broken) if !broken.contains(&flow) => EngineError::GoneWithOthers,
            Some(_) | None => EngineError::Gone,
        }
    }

    /// Pictures as bytes, all of them between the same two steps; empty where one has not begun, or where there was no room to
    /// keep one that is done. `None` when the engine no longer has one of them.
    pub(crate) async fn snapshots(&self, pictures: &[Picture]) -> Option<Vec<Vec<u8>>> {
        let (reply, answer) = oneshot::channel();
        let ids = pictures.iter().map(|picture| picture.id).collect();
        let command = Command::Snapshot { ids, reply };
        self.commands.send(command).await.ok()?;
        answer.await.ok()?
    }

    /// What all weights together may take where models are loaded by need: three quarters of the limit. The rest is the pictures'.
    pub(crate) fn room_for_weights(&self) -> u64 {
        self.memory / 4 * 3
    }

    /// Where memory is, as the engine last told.
    pub(crate) fn account(&self) -> Account {
        *self.account.borrow()
    }

    /// Resolves when one of the threads has been at one thing for `least`, or for many times what that is expected to take.
    pub(crate) async fn hangs(&self, least: Duration) -> Hung {
        watchdog::watch(self.pulses.to_vec(), least).await
    }

    /// Resolves when the engine's thread has ended, which it does only when it cannot go on.
    pub(crate) async fn gone(&self) {
        self.commands.closed().await;
    }
}

/// Why a model has no place.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReserveError {
    /// There is not enough memory.
    #[error(transparent)]
    DoesNotFit(DoesNotFit),
    /// The engine's thread has ended.
    #[error("the engine has stopped")]
    Gone,
}

impl Picture {
    /// As [`Hung`] names it.
    pub(crate) fn id(&self) -> u64 {
        self.id
    }

    /// Whether it was put away, and the engine could not go on from that.
    pub(crate) fn began_anew(&self) -> bool {
        self.anew.load(Ordering::Relaxed)
    }

    /// Its progress, to be followed.
    pub(crate) fn follow(&self) -> watch::Receiver<Progress> {
        self.progress.clone()
    }

    /// How far it is; of no steps before it has begun, for only then it is known how many there are.
    pub(crate) fn progress(&self) -> Progress {
        *self.progress.borrow()
    }

    /// Waits until all its steps are taken. For ever if that does not happen: its outcome says why.
    async fn steps_taken(&mut self) {
        let all = |progress: &Progress| progress.steps > 0 && progress.step >= progress.steps;
        if self.progress.wait_for(all).await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

impl Drop for WakeOnDrop {
    fn drop(&mut self) {
        // An engine with a full queue is awake: it finds the dropped claim by itself.
        let _ = self.0.try_send(Command::Wake);
    }
}
