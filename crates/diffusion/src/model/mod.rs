//! A loaded model, and what it does with jobs.

mod folder;
mod memory;
mod paint;
mod step;
mod text;

use std::path::Path;

use candle_core::{DType, Device};

use crate::clip::Clip;
use crate::config::Fields;
use crate::error::{BeginError, LoadError, ResumeError};
use crate::gpu::ReturnedMemory;
use crate::job::{Job, Request};
use crate::noise::Generator;
use crate::ops::Place;
use crate::scheduler::{History, Plan, Schedule, SchedulerConfig};
use crate::sha256;
use crate::snapshot::{self, Snapshot};
use crate::tokenizer::Tokenizer;
use crate::unet::Unet;
use crate::vae::Vae;
use folder::{check_fit, digest, read_index};
use text::{Texts, Told};

/// The longest side of a picture, in pixels.
const MAX_SIDE: u32 = 8192;
/// The most guidance that a request may ask for.
const MAX_GUIDANCE: f32 = 1000.0;

/// What a model can be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Width and height are multiples of this, in pixels, and at least this.
    pub size_multiple: u32,
    /// The longest side, in pixels. What fits into memory is the caller's to know.
    pub max_side: u32,
    /// The width that the model was trained on, in pixels.
    pub default_width: u32,
    /// The height that the model was trained on, in pixels.
    pub default_height: u32,
    /// The longest prompt, in tokens, those of start and end included; what is beyond is not seen.
    pub max_prompt_tokens: u32,
    /// The most steps.
    pub max_steps: u32,
}

/// A Stable Diffusion XL model, ready to draw. It keeps what texts mean, so that a text that comes again costs nothing; all
/// other state is the jobs'.
#[derive(Debug)]
pub struct Model {
    tokenizers: [Tokenizer; 2],
    encoders: [Clip; 2],
    unet: Unet,
    vae: Vae,
    scheduler: SchedulerConfig,
    /// Whether a request without a negative prompt is led away from zeros rather than from an empty text.
    zeros_for_no_prompt: bool,
    limits: Limits,
    digest: [u8; 32],
    digest_hex: String,
    place: Place,
    texts: Texts,
    weights_bytes: u64,
    /// Last, so that it goes when all else has.
    _memory: ReturnedMemory,
}

impl Model {
    /// Loads a folder in diffusers' layout. `dtype` is what the UNet and the encoders compute in; the decoder always
    /// computes in f32.
    ///
    /// # Errors
    ///
    /// Names the file, and the key or tensor in it, that is missing, damaged or not understood.
    pub fn load(folder: &Path, device: &Device, dtype: DType) -> Result<Self, LoadError> {
        let place = Place::new(device, dtype);
        let zeros_for_no_prompt = read_index(&folder.join("model_index.json"))?;
        let scheduler = SchedulerConfig::read(Fields::open(
            &folder.join("scheduler").join("scheduler_config.json"),
        )?)?;
        let (first, first_weights) = Clip::load(&folder.join("text_encoder"), false, &place)?;
        let (second, second_weights) = Clip::load(&folder.join("text_encoder_2"), true, &place)?;
        let (unet, unet_weights) = Unet::load(&folder.join("unet"), &place)?;
        let (vae, vae_weights) = Vae::load(&folder.join("vae"), &Place::of_decoder(device, dtype))?;
        let tokenizers = [
            Tokenizer::read(&folder.join("tokenizer"), first.config().positions)?,
            Tokenizer::read(&folder.join("tokenizer_2"), second.config().positions)?,
        ];
        check_fit(folder, [&first, &second], &tokenizers, &unet, &vae)?;
        let weights = [&first_weights, &second_weights, &unet_weights, &vae_weights];
        let digest = digest(folder, &weights)?;
        let weights_bytes = weights.iter().map(|weights| weights.bytes_placed()).sum();
        let factor = vae.config().factor();
        let side = unet.config().sample_size * factor;
        let limits = Limits {
            size_multiple: (factor * unet.config().factor()) as u32,
            max_side: MAX_SIDE,
            default_width: side as u32,
            default_height: side as u32,
            max_prompt_tokens: tokenizers[0].length() as u32,
            max_steps: scheduler.train_steps as u32,
        };
        Ok(Self {
            tokenizers,
            encoders: [first, second],
            unet,
            vae,
            scheduler,
            zeros_for_no_prompt,
            limits,
            digest_hex: sha256::hex(&digest),
            digest,
            place,
            texts: Texts::default(),
            weights_bytes,
            _memory: ReturnedMemory(device.clone()),
        })
    }

    /// Identity of the weights, in hexadecimal: SHA-256 over the configurations, the headers of the weights files and
    /// the first 4 KiB of each tensor.
    pub fn digest(&self) -> &str {
        &self.digest_hex
    }

    /// What may be asked for.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Starts a job: the prompt is encoded, the noise drawn from the seed, the schedule built.
    ///
    /// # Errors
    ///
    /// Names the parameter that is out of range.
    pub fn begin(&self, request: &Request) -> Result<Job, BeginError> {
        let (schedule, told) = self.prepare(request)?;
        let mut noise = Generator::new(request.seed);
        let mut latents = noise.normal(self.elements(request));
        latents
            .iter_mut()
            .for_each(|x| *x *= schedule.initial_sigma);
        let history = History {
            denoised: Vec::new(),
            kept: Vec::new(),
            noise,
        };
        Ok(Job {
            request: request.clone(),
            schedule,
            done: 0,
            latents,
            history,
            prompt: told.prompt,
            negative: told.negative,
        })
    }

    /// All of a job that follows from its request, without what its steps change.
    fn prepare(&self, request: &Request) -> Result<(Schedule, Told), BeginError> {
        self.check(request)?;
        let own = &self.scheduler;
        let config = request
            .scheduler
            .map_or_else(|| own.clone(), |kind| own.with_kind(kind));
        let plan = Plan {
            steps: request.steps as usize,
        };
        let schedule = Schedule::new(&config, &plan).map_err(|error| BeginError::Parameter {
            field: error.field,
            value: error.value,
            reason: error.reason,
        })?;
        Ok((schedule, self.tell(request)?))
    }

    fn check(&self, request: &Request) -> Result<(), BeginError> {
        let Limits {
            size_multiple,
            max_side,
            ..
        } = self.limits;
        for (field, side) in [("width", request.width), ("height", request.height)] {
            if side == 0 || side % size_multiple != 0 || side > max_side {
                let reason = format!("expected a multiple of {size_multiple} up to {max_side}");
                return Err(BeginError::Parameter {
                    field,
                    value: side.to_string(),
                    reason,
                });
            }
        }
        for (field, value, most) in [
            ("guidance_scale", request.guidance_scale, MAX_GUIDANCE),
            ("guidance_rescale", request.guidance_rescale, 1.0),
        ] {
            if !(0.0..=most).contains(&value) {
                return Err(BeginError::Parameter {
                    field,
                    value: value.to_string(),
                    reason: format!("expected 0 to {most}"),
                });
            }
        }
        Ok(())
    }

    /// Height and width of a request's latents.
    fn latent_size(&self, request: &Request) -> (usize, usize) {
        let factor = self.vae.config().factor();
        (
            request.height as usize / factor,
            request.width as usize / factor,
        )
    }

    /// Values of a request's latents.
    fn elements(&self, request: &Request) -> usize {
        let (height, width) = self.latent_size(request);
        self.unet.config().latent * height * width
    }

    /// The job as bytes, from which any process with the same weights can go on.
    pub fn snapshot(&self, job: &Job) -> Vec<u8> {
        snapshot::write(&Snapshot {
            model: self.digest,
            request: job.request.clone(),
            done: job.done as u32,
            latents: job.latents.clone(),
            history: job.history.clone(),
        })
    }

    /// Goes on from a snapshot, to the same picture.
    ///
    /// # Errors
    ///
    /// Refuses bytes that were cut short or altered, or that come from other weights.
    pub fn resume(&self, bytes: &[u8]) -> Result<Job, ResumeError> {
        let saved = snapshot::read(bytes)?;
        let damaged = |reason| ResumeError::Damaged { reason };
        if saved.model != self.digest {
            let theirs = sha256::hex(&saved.model);
            return Err(ResumeError::OtherModel {
                theirs,
                ours: self.digest_hex.clone(),
            });
        }
        let request = saved.request;
        self.check(&request)?;
        let elements = self.elements(&request);
        if saved.latents.len() != elements {
            return Err(damaged("its latents are not of the request's size"));
        }
        let (schedule, told) = self.prepare(&request)?;
        let done = saved.done as usize;
        if done > schedule.evaluations() {
            return Err(damaged("more steps are done than there are"));
        }
        if !schedule.fits(done, &saved.history, elements) {
            return Err(damaged("its history is not one of this schedule"));
        }
        Ok(Job {
            request,
            schedule,
            done,
            latents: saved.latents,
            history: saved.history,
            prompt: told.prompt,
            negative: told.negative,
        })
    }
}

#[cfg(test)]
mod tests;
