//! A loaded model, and what it does with jobs.

mod begin;
mod folder;
mod limits;
mod memory;
mod paint;
mod step;
mod text;

use std::path::Path;

use candle_core::{DType, Device};

use crate::clip::Clip;
use crate::config::Fields;
use crate::error::{BeginError, LoadError, ResumeError};
use crate::given::Given;
use crate::gpu::ReturnedMemory;
use crate::job::{Job, Request};
use crate::ops::Place;
use crate::scheduler::{Plan, Schedule, SchedulerConfig};
use crate::sha256;
use crate::snapshot::{self, Snapshot};
use crate::tokenizer::Tokenizer;
use crate::unet::Unet;
use crate::vae::Vae;
use crate::weights::{self, Residency, Weights};
use folder::{Index, check_fit, digest};
pub use limits::Limits;
use limits::MAX_SIDE;
use memory::Measurements;
pub use memory::PassMemory;
use text::{Texts, Told};

/// A Stable Diffusion XL model, ready to draw. It keeps what texts mean, so that a text that comes again costs nothing; all
/// other state is the jobs'.
#[derive(Debug)]
pub struct Model {
    /// In a refiner, which has only the second encoder, both are its.
    tokenizers: [Tokenizer; 2],
    /// Both, or the second: it has the pooled state.
    encoders: Vec<Clip>,
    unet: Unet,
    vae: Vae,
    scheduler: SchedulerConfig,
    index: Index,
    limits: Limits,
    digest: [u8; 32],
    digest_hex: String,
    place: Place,
    texts: Texts,
    weights_bytes: u64,
    measured: Measurements,
    /// Last, so that it goes when all else has.
    _memory: ReturnedMemory,
}

impl Model {
    /// Loads a folder in diffusers' layout. The weights of components that have none of their own come from the one
    /// checkpoint (`*.safetensors` of SGM's names) that then lies in the folder itself. `dtype` is what the UNet and the
    /// encoders compute in; the decoder always computes in f32.
    ///
    /// # Errors
    ///
    /// Names the file, and the key or tensor in it, that is missing, damaged or not understood.
    pub fn load(folder: &Path, device: &Device, dtype: DType) -> Result<Self, LoadError> {
        Self::load_resident(folder, device, dtype, Residency::Auto)
    }

    /// [`Model::load`] with a word on where weights are kept.
    ///
    /// # Errors
    ///
    /// As [`Model::load`].
    pub fn load_resident(
        folder: &Path,
        device: &Device,
        dtype: DType,
        residency: Residency,
    ) -> Result<Self, LoadError> {
        let mapped = residency.is_mapped(weights::parameters(folder));
        let place = Place::new(device, dtype).with_mapped(mapped);
        let index = Index::read(&folder.join("model_index.json"))?;
        let scheduler = SchedulerConfig::read(Fields::open(
            &folder.join("scheduler").join("scheduler_config.json"),
        )?)?;
        let (mut encoders, mut texts) = (Vec::new(), Vec::new());
        for (part, projects) in index.encoders() {
            let (encoder, weights) = Clip::load(&folder.join(part), projects, &place)?;
            encoders.push(encoder);
            texts.push(weights);
        }
        let (unet, unet_weights) = Unet::load(&folder.join("unet"), &place)?;
        let vae_place = Place::of_decoder(device, dtype).with_mapped(mapped);
        let (vae, vae_weights) = Vae::load(&folder.join("vae"), &vae_place)?;
        let tokenizer = |part: &str, encoder: Option<&Clip>| {
            let positions = encoder.map_or(0, |encoder| encoder.config().positions);
            Tokenizer::read(&folder.join(part), positions)
        };
        let tokenizers = [
            tokenizer(index.tokenizers()[0], encoders.first())?,
            tokenizer(index.tokenizers()[1], encoders.last())?,
        ];
        check_fit(folder, index, &encoders, &tokenizers, &unet, &vae)?;
        let mut parts: Vec<&Weights> = texts.iter().collect();
        parts.extend([&unet_weights, &*vae_weights]);
        let digest = digest(folder, index, &parts)?;
        let placed: u64 = parts.iter().map(|weights| weights.bytes_placed()).sum();
        // The VAE's encoder counts from the beginning, although it is read when it is first needed.
        let weights_bytes = placed + vae.encoder_bytes();
        let factor = vae.config().factor();
        let side = unet.config().sample_size * factor;
        let limits = Limits {
            size_multiple: (factor * unet.config().factor()) as u32,
            max_side: MAX_SIDE,
            default_width: side as u32,
            default_height: side as u32,
            max_prompt_tokens: tokenizers[0].length() as u32,
            max_steps: scheduler.train_steps as u32,
            needs_image: index.refines || unet.config().sees_mask(),
            needs_mask: unet.config().sees_mask(),
        };
        Ok(Self {
            tokenizers,
            encoders,
            unet,
            vae,
            scheduler,
            index,
            limits,
            digest_hex: sha256::hex(&digest),
            digest,
            place,
            texts: Texts::default(),
            weights_bytes,
            measured: Measurements::default(),
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

    /// All of a job that follows from its request, without what its steps change.
    fn prepare(&self, request: &Request) -> Result<(Schedule, Told), BeginError> {
        self.check(request)?;
        let config = match request.scheduler {
            Some(kind) => self.scheduler.with_kind(kind)?,
            None => self.scheduler.clone(),
        };
        let plan = Plan {
            steps: request.steps as usize,
            strength: request.strength,
            start: request.denoising_start,
            end: request.denoising_end,
            eta: request.eta,
        };
        let schedule = Schedule::new(&config, &plan)?;
        Ok((schedule, self.tell(request)?))
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

    /// Whether a job of so many latents can have kept that of its picture.
    fn fits(&self, given: &Given, elements: usize) -> bool {
        let config = self.unet.config();
        let pixels = elements / config.latent;
        let known = given.known.as_ref().is_none_or(|known| {
            !config.sees_mask()
                && known.latents.len() == elements
                && known.noise.len() == elements
                && known.mask.len() == pixels
        });
        known && given.beside.len() == config.beside() * pixels
    }

    /// The job as bytes, from which any process with the same weights can go on.
    pub fn snapshot(&self, job: &Job) -> Vec<u8> {
        snapshot::write(&Snapshot {
            model: self.digest,
            request: job.request.clone(),
            done: job.done as u32,
            latents: job.latents.clone(),
            history: job.history.clone(),
            given: job.given.clone(),
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
        if !self.fits(&saved.given, elements) {
            return Err(damaged(
                "what it keeps of its picture is not of the request's size",
            ));
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
            given: saved.given,
            prompt: told.prompt,
            negative: told.negative,
        })
    }
}

#[cfg(test)]
mod tests;
