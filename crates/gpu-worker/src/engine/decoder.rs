//! The thread that turns latents into pixels, for previews and at the end.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use diffusion::{DecodeError, Job, Model, RgbImage};
use tokio::sync::{mpsc, oneshot};

use super::{Command, Drawn, EngineError, Seen};
use crate::error::StartError;
use crate::metrics;
use lifecycle::panic_text;

const THREAD: &str = "decoder";
/// Pictures that may wait to be decoded. Finished ones beyond it wait with the engine, previews are left out.
const WAITING: usize = 8;

/// A job to decode and to give back.
pub(super) struct Work {
    pub(super) id: u64,
    pub(super) model: Arc<Model>,
    pub(super) job: Job,
    pub(super) wanted: Wanted,
}

/// What for.
pub(super) enum Wanted {
    /// To be seen on the way.
    Preview {
        index: u32,
        preview: u32,
        seen: mpsc::Sender<Seen>,
    },
    /// To be had. `busy` is the engine time before.
    Picture {
        outcome: oneshot::Sender<Result<Drawn, EngineError>>,
        busy: Duration,
    },
}

/// Starts the thread; it ends with the sender.
pub(super) fn start(back: mpsc::WeakSender<Command>) -> Result<SyncSender<Work>, StartError> {
    let (sender, work) = sync_channel(WAITING);
    let thread = std::thread::Builder::new().name(THREAD.to_owned());
    let started = thread.spawn(move || run(&work, &back));
    started.map_err(|source| StartError::Thread {
        thread: THREAD,
        source,
    })?;
    Ok(sender)
}

fn run(work: &Receiver<Work>, back: &mpsc::WeakSender<Command>) {
    while let Ok(Work {
        id,
        model,
        job,
        wanted,
    }) = work.recv()
    {
        let panicked = decode(&model, &job, wanted);
        // Nobody left to give it back to: the engine is ending.
        let Some(back) = back.upgrade() else { return };
        let job = Box::new(job);
        // The engine never waits for this thread, so this wait ends.
        if back
            .blocking_send(Command::Returned { id, job, panicked })
            .is_err()
        {
            return;
        }
    }
}

/// True when it panicked.
fn decode(model: &Model, job: &Job, wanted: Wanted) -> bool {
    let started = Instant::now();
    match wanted {
        Wanted::Preview {
            index,
            preview,
            seen,
        } => {
            match guarded("drawing a preview", || model.preview(job)) {
                // A task that cannot keep up misses some.
                Ok(image) => drop(seen.try_send(Seen {
                    index,
                    preview,
                    image,
                })),
                Err(error) => return fails(&error),
            }
        }
        Wanted::Picture { outcome, busy } => {
            let image = guarded("decoding", || model.decode(job));
            let panicked = image.as_ref().is_err_and(fails);
            let busy = busy + started.elapsed();
            // The claim may be gone by now.
            let _ = outcome.send(image.map(|image| Drawn { image, busy }));
            return panicked;
        }
    }
    false
}

fn fails(error: &EngineError) -> bool {
    metrics::engine_error(error.kind());
    tracing::error!(error = lifecycle::chain(error), "decoding failed");
    matches!(error, EngineError::Panicked { .. })
}

fn guarded(
    doing: &'static str,
    work: impl FnOnce() -> Result<RgbImage, DecodeError>,
) -> Result<RgbImage, EngineError> {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(image) => image.map_err(EngineError::Decode),
        Err(panic) => {
            let message = panic_text(&*panic).to_owned();
            Err(EngineError::Panicked { doing, message })
        }
    }
}
