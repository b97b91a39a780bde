//! The thread that turns latents into pixels, for previews and at the end.
//!
//! It has copies of latents, not jobs: a picture that is shown on the way misses no step, and one that is done takes no
//! memory but what decoding takes.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use diffusion::{Latents, RgbImage};
use tokio::sync::{mpsc, oneshot};

use super::loaded::Loaded;
use super::watchdog::Pulse;
use super::{Command, Drawn, EngineError, Flow, Seen};
use crate::error::StartError;
use crate::metrics;

const THREAD: &str = "decoder";
/// Pictures that may wait to be decoded. Finished ones beyond it wait with the engine, previews are left out.
const WAITING: usize = 8;

/// Latents to decode.
pub(super) struct Work {
    /// Of this work, not of the picture.
    pub(super) number: u64,
    /// Of the picture.
    pub(super) picture: u64,
    /// Whose it is.
    pub(super) flow: Flow,
    pub(super) model: Arc<Loaded>,
    pub(super) latents: Latents,
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
pub(super) fn start(
    back: mpsc::WeakSender<Command>,
    pulse: Pulse,
) -> Result<SyncSender<Work>, StartError> {
    let (sender, work) = sync_channel(WAITING);
    let thread = std::thread::Builder::new().name(THREAD.to_owned());
    let started = thread.spawn(move || run(&work, &back, &pulse));
    started.map_err(|source| StartError::Thread {
        thread: THREAD,
        source,
    })?;
    Ok(sender)
}

fn run(work: &Receiver<Work>, back: &mpsc::WeakSender<Command>, pulse: &Pulse) {
    while let Ok(work) = work.recv() {
        let (number, flow) = (work.number, work.flow);
        pulse.at("decoding", vec![work.picture], None);
        let broken = decode(work).then_some(flow);
        pulse.idle();
        // Nobody left to tell: the engine is ending.
        let Some(back) = back.upgrade() else { return };
        // The engine never waits for this thread, so this wait ends.
        let told = back.blocking_send(Command::Decoded { number, broken });
        if told.is_err() {
            return;
        }
    }
}

/// True when the code failed, rather than the picture.
fn decode(work: Work) -> bool {
    let Work {
        model,
        latents,
        wanted,
        ..
    } = work;
    let started = Instant::now();
    let paint = |doing| EngineError::guard(doing, || paint(&model, latents));
    match wanted {
        Wanted::Preview {
            index,
            preview,
            seen,
        } => match paint("drawing a preview") {
            // A task that cannot keep up misses some.
            Ok(image) => drop(seen.try_send(Seen {
                index,
                preview,
                image,
            })),
            Err(error) => return fails(&error),
        },
        Wanted::Picture { outcome, busy } => {
            let image = paint("decoding");
            let panicked = image.as_ref().is_err_and(fails);
            let busy = busy + started.elapsed();
            // The claim may be gone by now.
            let _ = outcome.send(image.map(|image| Drawn { image, busy }));
            return panicked;
        }
    }
    false
}

fn paint(model: &Loaded, latents: Latents) -> Result<RgbImage, EngineError> {
    model.paint(latents).map_err(EngineError::Decode)
}

fn fails(error: &EngineError) -> bool {
    metrics::engine_error(error.kind());
    tracing::error!(error = lifecycle::chain(error), "decoding failed");
    error.is_engines()
}
