//! One picture on its way.

use crate::scheduler::{History, Schedule, SchedulerKind};
use crate::unet::Conditioning;

/// What a picture is to be.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    /// What it shows. Beyond the encoder's length ([`Limits::max_prompt_tokens`](crate::Limits)) it is cut.
    pub prompt: String,
    /// What it is led away from, where guidance is above 1. Without one the model's own default holds, which is not
    /// the same as an empty text.
    pub negative_prompt: Option<String>,
    /// Width in pixels, a multiple of [`Limits::size_multiple`](crate::Limits).
    pub width: u32,
    /// Height in pixels, a multiple of [`Limits::size_multiple`](crate::Limits).
    pub height: u32,
    /// Denoising steps.
    pub steps: u32,
    /// How far the picture is led towards the prompt (classifier-free guidance); up to 1 means not at all, at half
    /// the cost.
    pub guidance_scale: f32,
    /// Seed of the noise: the picture is that of `torch.Generator("cpu").manual_seed(seed)`.
    pub seed: u64,
    /// The way from noise to picture; without one the model's own.
    pub scheduler: Option<SchedulerKind>,
}

/// How far a job is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Steps done.
    pub step: u32,
    /// Steps in all.
    pub steps: u32,
}

/// Pixels: red, green, blue; row by row from the top.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RgbImage {
    /// Width in pixels.
    pub width: u32,
    /// Height in pixels.
    pub height: u32,
    /// `width · height · 3` bytes.
    pub pixels: Vec<u8>,
}

/// A picture between two steps, made by [`Model::begin`](crate::Model::begin) or
/// [`Model::resume`](crate::Model::resume). It belongs to that model.
#[derive(Debug)]
pub struct Job {
    pub(crate) request: Request,
    pub(crate) schedule: Schedule,
    /// Evaluations done.
    pub(crate) done: usize,
    /// The noisy picture: channels × latent height × latent width.
    pub(crate) latents: Vec<f32>,
    pub(crate) history: History,
    pub(crate) prompt: Conditioning,
    /// Where guidance is above 1: the row that is led away from.
    pub(crate) negative: Option<Conditioning>,
}

impl Job {
    /// How far it is.
    pub fn progress(&self) -> Progress {
        // At most twice the request's u32, whose most is far below.
        Progress {
            step: self.done as u32,
            steps: self.schedule.evaluations() as u32,
        }
    }

    /// Whether every step has been done.
    pub fn is_finished(&self) -> bool {
        self.done >= self.schedule.evaluations()
    }

    /// What it was asked for.
    pub fn request(&self) -> &Request {
        &self.request
    }
}
