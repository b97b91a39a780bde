//! What a model does before it is served: it draws.
//!
//! A picture of its default size, and then as many at once as a step may hold, each for two steps, let in and accounted like
//! anybody's. That shows that the model can draw at all, has its weights read and its kernels chosen before a caller waits,
//! and measures what a step and a decoding take, which the account goes by from then on. Other sizes and batches are
//! measured when they first occur.

use std::sync::Arc;

use diffusion::{Request, RgbImage};
use tokio::sync::mpsc;

use super::loaded::rows;
use super::model::{Model, PassMemory};
use super::shares::MAX_WEIGHT;
use super::{Bytes, Engine, EngineError, Loaded, Start};

/// Enough to see that the second step takes what the first did.
const STEPS: u32 = 2;
/// Operations, at most, that a processor is asked for before a model is served: a few seconds. See [`operations`].
const MOST_ON_PROCESSOR: u64 = 1_000_000_000_000;

/// What a model is asked for.
fn request(model: &Model) -> Request {
    let limits = model.limits();
    let (width, height) = (limits.default_width, limits.default_height);
    let grey = || RgbImage {
        width,
        height,
        pixels: vec![127; width as usize * height as usize * 3],
    };
    let mask = || diffusion::Mask {
        width,
        height,
        values: vec![u8::MAX; width as usize * height as usize],
    };
    Request {
        prompt: "a photo".to_owned(),
        width,
        height,
        steps: STEPS,
        guidance_scale: 2.0,
        image: limits.needs_image.then(|| Arc::new(grey())),
        mask: limits.needs_mask.then(|| Arc::new(mask())),
        strength: limits.needs_image.then_some(1.0),
        ..Request::default()
    }
}

/// Floating-point operations of the steps, about and rather too many: as if every weight met every latent pixel.
fn operations(model: &Model, request: &Request, pictures: usize) -> u64 {
    let latent_pixels = u64::from(request.width) * u64::from(request.height) / 64;
    let weights = model.weights_bytes() / size_of::<f32>() as u64;
    let passes = (rows(request) * pictures) as u64 * u64::from(request.steps);
    weights
        .saturating_mul(2)
        .saturating_mul(latent_pixels)
        .saturating_mul(passes)
}

impl Engine {
    /// Has a model draw. On a processor only as much as takes a few seconds.
    ///
    /// # Errors
    /// When it cannot, whoever asks.
    pub(crate) async fn warm_up(
        &self,
        model: &Arc<Loaded>,
        max_batch: usize,
        on_processor: bool,
    ) -> Result<(), EngineError> {
        let request = request(model);
        let counts = if max_batch > 1 {
            &[1, max_batch][..]
        } else {
            &[1]
        };
        for &pictures in counts {
            if on_processor && operations(model, &request, pictures) > MOST_ON_PROCESSOR {
                tracing::info!(
                    pictures,
                    "not drawn before it is served: it would take this processor too long; what it takes is measured on the way"
                );
                break;
            }
            match self.draw_at_once(model, &request, pictures).await {
                // What it was asked for is not for this model; callers may well ask for what is.
                Err(error @ EngineError::Refused(_)) => {
                    tracing::warn!(%error, "not drawn before it is served");
                    break;
                }
                drawn => drawn?,
            }
            let (width, height) = (request.width, request.height);
            let step = model.step_memory(width, height, rows(&request) * pictures);
            tell("a step", pictures, step);
            if pictures == 1 {
                tell("decoding", 1, model.decode_memory(width, height));
            }
        }
        Ok(())
    }

    /// One is decoded too. Of several it is enough that all their steps are taken: what was measured alone need not be
    /// measured again.
    async fn draw_at_once(
        &self,
        model: &Arc<Loaded>,
        request: &Request,
        pictures: usize,
    ) -> Result<(), EngineError> {
        let flow = self.flow(MAX_WEIGHT);
        let mut begun = Vec::with_capacity(pictures);
        for index in 0..pictures as u32 {
            let start = Start {
                model: Arc::clone(model),
                request: request.clone(),
                resume: None,
                flow,
                index,
                previews: 0,
                seen: mpsc::channel(1).0,
            };
            begun.push(self.begin(start).await?);
        }
        for (mut picture, outcome) in begun {
            if pictures == 1 {
                outcome.await.unwrap_or(Err(EngineError::Gone))?;
                continue;
            }
            tokio::select! {
                drawn = outcome => drop(drawn.unwrap_or(Err(EngineError::Gone))?),
                () = picture.steps_taken() => {}
            }
        }
        Ok(())
    }
}

fn tell(what: &str, pictures: usize, memory: PassMemory) {
    let Some(measured) = memory.measured else {
        tracing::debug!(what, pictures, computed = %Bytes(memory.computed), "memory is not measured here");
        return;
    };
    tracing::info!(
        what,
        pictures,
        measured = %Bytes(measured),
        reckoned = %Bytes(memory.bytes()),
        computed = %Bytes(memory.computed),
        "memory"
    );
    if measured > memory.computed {
        tracing::warn!(
            what,
            pictures,
            measured,
            computed = memory.computed,
            "it takes more memory than its shapes say; lower engine.memory_limit by the difference"
        );
    }
}
