//! One picture on its way.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::given::{Given, Mask, MicroConditioning};
use crate::prompt::PromptSyntax;
use crate::scheduler::{History, Schedule, SchedulerKind};
use crate::unet::Conditioning;
use crate::vae::Tiling;

/// What a picture is to be.
///
/// Made from [`Request::default`], of which only the prompt and the size must be set: later versions add fields.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Request {
    /// What it shows, read as `prompt_syntax` says. A plain one is cut beyond the encoder's length
    /// ([`Limits::max_prompt_tokens`](crate::Limits)).
    pub prompt: String,
    /// How both prompts are read.
    #[serde(default)]
    pub prompt_syntax: PromptSyntax,
    /// What it is led away from, where guidance is above 1. Without one the model's own default holds, which is not
    /// the same as an empty text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
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
    /// How much of the contrast that guidance adds is taken back, 0 to 1 (Lin et al., 2023, section 3.4).
    #[serde(default)]
    pub guidance_rescale: f32,
    /// How much of each step's noise is fresh, 0 to 1, with DDIM (its eta) and TCD (its gamma); none without it. The
    /// other schedulers have no such choice.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub eta: Option<f32>,
    /// Seed of the noise: the picture is that of `torch.Generator("cpu").manual_seed(seed)`.
    pub seed: u64,
    /// The way from noise to picture; without one the model's own.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        with = "scheduler_name"
    )]
    pub scheduler: Option<SchedulerKind>,
    /// A picture of the request's size to begin from, rather than from noise alone. A job does not keep it, nor the
    /// latents and the mask: only what is made of them goes on.
    #[serde(skip)]
    pub image: Option<Arc<RgbImage>>,
    /// The same as latents, such as those in which another model's job ended.
    #[serde(skip)]
    pub latents: Option<Arc<Latents>>,
    /// What of the picture to begin from is to be painted anew; without one all of it is.
    #[serde(skip)]
    pub mask: Option<Arc<Mask>>,
    /// Of the whole way, the share that a picture to begin from is led through, more than 0 and at most 1; without one
    /// 0.3, or under a mask 0.9999, as in diffusers' pipelines.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub strength: Option<f32>,
    /// The share of the way that the picture to begin from has gone already, with the noise of that place still in it.
    /// The strength means nothing then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub denoising_start: Option<f32>,
    /// The share of the way after which the job ends, for another model to go on from its latents.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub denoising_end: Option<f32>,
    /// Of what the picture is said to be cut.
    #[serde(default)]
    pub conditioning: MicroConditioning,
    /// The same of what it is led away from; sizes that it does not give are those of [`Request::conditioning`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub negative_conditioning: Option<MicroConditioning>,
    /// How large pictures pass the autoencoder.
    #[serde(default)]
    pub tiling: Tiling,
}

impl Request {
    pub(crate) fn begins_from_picture(&self) -> bool {
        self.image.is_some() || self.latents.is_some()
    }
}

impl Default for Request {
    /// Nothing in particular, as Stable Diffusion XL was trained: 1024×1024, 30 steps, guidance 5.
    fn default() -> Self {
        Self {
            prompt: String::new(),
            prompt_syntax: PromptSyntax::Plain,
            negative_prompt: None,
            width: 1024,
            height: 1024,
            steps: 30,
            guidance_scale: 5.0,
            guidance_rescale: 0.0,
            eta: None,
            seed: 0,
            scheduler: None,
            image: None,
            latents: None,
            mask: None,
            strength: None,
            denoising_start: None,
            denoising_end: None,
            conditioning: MicroConditioning::default(),
            negative_conditioning: None,
            tiling: Tiling::default(),
        }
    }
}

/// A scheduler is written by its name, which outlives its place in a list.
mod scheduler_name {
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    use super::SchedulerKind;

    pub(super) fn serialize<S: Serializer>(
        kind: &Option<SchedulerKind>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        match kind {
            Some(kind) => serializer.collect_str(kind),
            None => serializer.serialize_none(),
        }
    }

    pub(super) fn deserialize<'a, D: Deserializer<'a>>(
        deserializer: D,
    ) -> Result<Option<SchedulerKind>, D::Error> {
        let name: Option<String> = Option::deserialize(deserializer)?;
        let read = |name: String| name.parse().map_err(D::Error::custom);
        name.map(read).transpose()
    }
}

/// How far a job is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Steps done: evaluations of the model, of which some schedulers need two for each step that was asked for.
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

/// A picture as the UNet has it, before [`Model::paint`](crate::Model::paint) makes pixels of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Latents {
    /// Width of the picture in pixels.
    pub width: u32,
    /// Height of the picture in pixels.
    pub height: u32,
    /// Channels × latent height × latent width, scaled as the UNet works on them.
    pub values: Vec<f32>,
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
    /// Where it began from a picture: what the steps need of it.
    pub(crate) given: Given,
    pub(crate) prompt: Arc<Conditioning>,
    /// Where guidance is above 1: the row that is led away from.
    pub(crate) negative: Option<Arc<Conditioning>>,
}

impl Job {
    /// How far it is.
    pub fn progress(&self) -> Progress {
        // Both come from the request's u32, twice at most.
        Progress {
            step: self.done as u32,
            steps: self.schedule.evaluations() as u32,
        }
    }

    /// Whether every step has been done.
    pub fn is_finished(&self) -> bool {
        self.done >= self.schedule.evaluations()
    }

    /// What it was asked for, without the pictures.
    pub fn request(&self) -> &Request {
        &self.request
    }

    /// Rows that it takes in a forward pass: two with guidance, one without.
    pub fn rows(&self) -> usize {
        1 + usize::from(self.negative.is_some())
    }

    /// The noisy picture as it is now; after the last step the finished one.
    pub fn latents(&self) -> Latents {
        self.picture(&self.latents)
    }

    /// What the picture will be as far as the last step could tell; nothing before the first.
    pub fn estimate(&self) -> Option<Latents> {
        let known = !self.history.denoised.is_empty();
        known.then(|| self.picture(&self.history.denoised))
    }

    fn picture(&self, values: &[f32]) -> Latents {
        Latents {
            width: self.request.width,
            height: self.request.height,
            values: values.to_vec(),
        }
    }
}
