//! What a picture may begin from beside a text, and what it is told of its size.

use serde::{Deserialize, Serialize};

/// What of a picture is to be painted anew.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mask {
    /// Width in pixels.
    pub width: u32,
    /// Height in pixels.
    pub height: u32,
    /// A byte a pixel, row by row from the top: painted anew from 128 on, kept below.
    pub values: Vec<u8>,
}

impl Mask {
    /// Whether a pixel is to be painted anew (binarised at 0.5 of white, as `VaeImageProcessor` does).
    pub(crate) fn paints(value: u8) -> bool {
        value >= 128
    }
}

/// Width and height in pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Size {
    /// Width in pixels.
    pub width: u32,
    /// Height in pixels.
    pub height: u32,
}

/// Of what a picture is said to be cut, Stable Diffusion XL's micro-conditioning. Source: Podell et al. (2023),
/// section 2.2; `_get_add_time_ids` of diffusers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct MicroConditioning {
    /// Size of the picture before it was scaled; without one the size of the request.
    pub original_size: Option<Size>,
    /// Rows cut off at the top.
    pub crop_top: u32,
    /// Columns cut off on the left.
    pub crop_left: u32,
    /// Size after cutting; without one the size of the request. A refiner is told the score instead.
    pub target_size: Option<Size>,
    /// How well people liked it, 0 to 10, for a refiner; without one 6, or 2.5 for what it is led away from.
    pub aesthetic_score: Option<f32>,
}

/// What a job keeps of the picture that it began from, as long as its steps need it.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Given {
    /// What the UNet sees beside the noisy picture, channels × pixels of the latents: the mask, and the latents of what
    /// the mask leaves.
    pub(crate) beside: Vec<f32>,
    /// What is put back after each step.
    pub(crate) known: Option<Known>,
}

/// The known part of a picture whose rest is painted by a UNet that does not see the mask.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Known {
    /// Channels × pixels of the latents.
    pub(crate) latents: Vec<f32>,
    /// The noise that hides it as far as the rest is hidden, of the same size.
    pub(crate) noise: Vec<f32>,
    /// One value a pixel of the latents: 1 where it is painted, 0 where it is known.
    pub(crate) mask: Vec<f32>,
}

impl Known {
    /// Puts the known part back: `known` is it at the noise of `latents`.
    pub(crate) fn put_back(&self, known: &[f32], latents: &mut [f32]) {
        let planes = latents.chunks_mut(self.mask.len().max(1));
        for (latents, known) in planes.zip(known.chunks(self.mask.len().max(1))) {
            for ((latent, known), mask) in latents.iter_mut().zip(known).zip(&self.mask) {
                *latent = (1.0 - mask) * known + mask * *latent;
            }
        }
    }
}
