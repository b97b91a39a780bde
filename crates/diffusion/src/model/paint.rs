//! From latents to pixels.

use candle_core::{DType, Device};

use super::Model;
use super::memory::Pass;
use crate::error::DecodeError;
use crate::job::{Job, Latents, Progress, RgbImage};
use crate::ops::{Place, with_values};
use crate::vae::Tiling;

impl Model {
    /// What the picture will be as far as the last step could tell.
    ///
    /// # Errors
    ///
    /// Before the first step there is nothing to see.
    pub fn preview(&self, job: &Job) -> Result<RgbImage, DecodeError> {
        let estimate = job.estimate().ok_or(DecodeError::NotStarted)?;
        self.paint_in(estimate, job.request.tiling)
    }

    /// The finished picture.
    ///
    /// # Errors
    ///
    /// Refuses a job with steps left.
    pub fn decode(&self, job: &Job) -> Result<RgbImage, DecodeError> {
        if !job.is_finished() {
            let Progress { step, steps } = job.progress();
            return Err(DecodeError::Unfinished { step, steps });
        }
        self.paint_in(job.latents(), job.request.tiling)
    }

    /// Pixels of latents, so that a picture can be decoded while its job goes on or is gone.
    ///
    /// # Errors
    ///
    /// Refuses latents that are not of the size that they claim.
    pub fn paint(&self, latents: Latents) -> Result<RgbImage, DecodeError> {
        self.paint_in(latents, Tiling::Whole)
    }

    /// [`Model::paint`], whole or in tiles.
    ///
    /// # Errors
    ///
    /// Refuses latents that are not of the size that they claim.
    pub fn paint_in(&self, latents: Latents, tiling: Tiling) -> Result<RgbImage, DecodeError> {
        let Latents {
            width,
            height,
            mut values,
        } = latents;
        let factor = self.vae.config().factor();
        let (tall, wide) = (height as usize / factor, width as usize / factor);
        let channels = self.unet.config().latent;
        if values.is_empty() || values.len() != channels * tall * wide {
            return Err(DecodeError::Size {
                width,
                height,
                values: values.len(),
            });
        }
        self.vae.unscale(&mut values);
        let place = Place::new(&self.place.device, DType::F32);
        let latents = place
            .tensor(values, &[1, channels, tall, wide])?
            .permute((0, 2, 3, 1))?
            .contiguous()?;
        let pass = Pass::decode((tall, wide), tiling);
        let decoded = self.metered(pass, || self.vae.decode(&latents, tiling))?;
        let decoded = decoded.to_device(&Device::Cpu)?.to_dtype(DType::F32)?;
        let pixels = with_values(&decoded, |values| {
            // numpy rounds halves to even.
            values
                .iter()
                .map(|x| ((x / 2.0 + 0.5).clamp(0.0, 1.0) * 255.0).round_ties_even() as u8)
                .collect()
        })?;
        Ok(RgbImage {
            width,
            height,
            pixels,
        })
    }
}
