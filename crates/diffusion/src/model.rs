//! A loaded model, and what it does with jobs.

use std::path::Path;

use candle_core::{DType, Device, Tensor};
use serde_json::Value;

use crate::clip::Clip;
use crate::config::{self, Fields};
use crate::error::{BeginError, DecodeError, LoadError, ResumeError, StepError};
use crate::job::{Job, Progress, Request, RgbImage};
use crate::noise::Generator;
use crate::ops::{Place, with_values};
use crate::scheduler::{Schedule, SchedulerConfig};
use crate::sha256::{self, Sha256};
use crate::snapshot::{self, Snapshot};
use crate::tokenizer::Tokenizer;
use crate::unet::{Conditioning, TIME_IDS, Unet};
use crate::vae::{Tiling, Vae};
use crate::weights::Weights;

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

/// A Stable Diffusion XL model, ready to draw. It has no state: jobs have.
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
        let (vae, vae_weights) = Vae::load(&folder.join("vae"), &Place::new(device, DType::F32))?;
        let tokenizers = [
            Tokenizer::read(&folder.join("tokenizer"), first.config().positions)?,
            Tokenizer::read(&folder.join("tokenizer_2"), second.config().positions)?,
        ];
        check_fit(folder, [&first, &second], &tokenizers, &unet, &vae)?;
        let digest = digest(
            folder,
            &[&first_weights, &second_weights, &unet_weights, &vae_weights],
        )?;
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
        let (height, width) = self.latent_size(request)?;
        let own = &self.scheduler;
        let config = request
            .scheduler
            .map_or_else(|| own.clone(), |kind| own.with_kind(kind));
        let schedule = Schedule::new(&config, request.steps as usize).map_err(|reason| {
            BeginError::Parameter {
                field: "steps",
                value: request.steps.to_string(),
                reason,
            }
        })?;
        let guided = request.guidance_scale > 1.0;
        let (prompt, negative) = self.condition(request, guided)?;
        let count = self.unet.config().latent * height * width;
        let mut latents = Generator::new(request.seed).normal(count);
        latents
            .iter_mut()
            .for_each(|x| *x *= schedule.initial_sigma);
        Ok(Job {
            request: request.clone(),
            schedule,
            done: 0,
            latents,
            denoised: Vec::new(),
            prompt,
            negative,
        })
    }

    fn latent_size(&self, request: &Request) -> Result<(usize, usize), BeginError> {
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
        if !(0.0..=MAX_GUIDANCE).contains(&request.guidance_scale) {
            return Err(BeginError::Parameter {
                field: "guidance_scale",
                value: request.guidance_scale.to_string(),
                reason: format!("expected 0 to {MAX_GUIDANCE}"),
            });
        }
        let factor = self.vae.config().factor();
        Ok((
            request.height as usize / factor,
            request.width as usize / factor,
        ))
    }

    fn condition(
        &self,
        request: &Request,
        guided: bool,
    ) -> Result<(Conditioning, Option<Conditioning>), BeginError> {
        let (height, width) = (request.height as f32, request.width as f32);
        let time_ids: [f32; TIME_IDS] = [height, width, 0.0, 0.0, height, width];
        let condition = |(hidden, pooled): &(Tensor, Tensor)| {
            self.unet
                .condition(hidden, pooled, time_ids)
                .map_err(BeginError::Encode)
        };
        let text = self.encode(&request.prompt)?;
        let prompt = condition(&text)?;
        if !guided {
            return Ok((prompt, None));
        }
        let away = match &request.negative_prompt {
            None if self.zeros_for_no_prompt => {
                let zeros = text
                    .0
                    .zeros_like()
                    .and_then(|hidden| Ok((hidden, text.1.zeros_like()?)));
                zeros.map_err(BeginError::Encode)?
            }
            negative => self.encode(negative.as_deref().unwrap_or_default())?,
        };
        Ok((prompt, Some(condition(&away)?)))
    }

    /// Both encoders' hidden states side by side, and the second's pooled state.
    fn encode(&self, text: &str) -> Result<(Tensor, Tensor), BeginError> {
        let ids = |tokenizer: &Tokenizer| {
            tokenizer
                .encode(text)
                .map_err(|reason| BeginError::Tokenize { reason })
        };
        let first = self.encoders[0]
            .encode(&ids(&self.tokenizers[0])?)
            .map_err(BeginError::Encode)?;
        let second = self.encoders[1]
            .encode(&ids(&self.tokenizers[1])?)
            .map_err(BeginError::Encode)?;
        let hidden =
            Tensor::cat(&[&first.hidden, &second.hidden], 1).map_err(BeginError::Encode)?;
        let pooled = second.pooled.ok_or_else(|| BeginError::Tokenize {
            reason: "no pooled state".to_owned(),
        })?;
        Ok((hidden, pooled))
    }

    /// Takes each job one denoising step further. One answer a job, in order; a job that fails stays as it was and
    /// does not disturb the others.
    pub fn step(&self, jobs: &mut [&mut Job]) -> Vec<Result<Progress, StepError>> {
        // A forward pass a job: what a picture becomes cannot depend on who shares the call.
        jobs.iter_mut().map(|job| self.step_one(job)).collect()
    }

    fn step_one(&self, job: &mut Job) -> Result<Progress, StepError> {
        if job.is_finished() {
            return Err(StepError::Finished);
        }
        let step = job.done as u32 + 1;
        let output = self
            .predict(job)
            .map_err(|source| StepError::Compute { step, source })?;
        let (mut latents, mut denoised) = (job.latents.clone(), job.denoised.clone());
        job.schedule
            .advance(job.done, &output, &mut latents, &mut denoised);
        if !latents.iter().chain(&denoised).all(|x| x.is_finite()) {
            return Err(StepError::NotFinite { step });
        }
        (job.latents, job.denoised) = (latents, denoised);
        job.done += 1;
        Ok(job.progress())
    }

    /// The UNet's output for a job's next step, guidance applied.
    fn predict(&self, job: &Job) -> candle_core::Result<Vec<f32>> {
        let divisor = job.schedule.input_divisor(job.done);
        let scaled: Vec<f32> = job.latents.iter().map(|x| x / divisor).collect();
        let input = self.picture(scaled, &job.request, &self.place)?;
        let timestep = job.schedule.timesteps[job.done];
        let Some(negative) = &job.negative else {
            return planes(&self.unet.forward(&input, &[timestep], &[&job.prompt])?);
        };
        let input = Tensor::cat(&[&input, &input], 0)?;
        let both = planes(
            &self
                .unet
                .forward(&input, &[timestep; 2], &[negative, &job.prompt])?,
        )?;
        let (away, towards) = both.split_at(both.len() / 2);
        let scale = job.request.guidance_scale;
        Ok(away
            .iter()
            .zip(towards)
            .map(|(away, towards)| away + scale * (towards - away))
            .collect())
    }

    /// Channels × pixels as a `(1, height, width, channels)` tensor.
    fn picture(
        &self,
        values: Vec<f32>,
        request: &Request,
        place: &Place,
    ) -> candle_core::Result<Tensor> {
        let factor = self.vae.config().factor();
        let (height, width) = (
            request.height as usize / factor,
            request.width as usize / factor,
        );
        let x = place.tensor(values, &[1, self.unet.config().latent, height, width])?;
        x.permute((0, 2, 3, 1))?.contiguous()
    }

    /// The job as bytes, from which any process with the same weights can go on.
    pub fn snapshot(&self, job: &Job) -> Vec<u8> {
        snapshot::write(&Snapshot {
            model: self.digest,
            request: job.request.clone(),
            done: job.done as u32,
            latents: job.latents.clone(),
            denoised: job.denoised.clone(),
        })
    }

    /// Goes on from a snapshot, to the same picture.
    ///
    /// # Errors
    ///
    /// Refuses bytes that were cut short or altered, or that come from other weights.
    pub fn resume(&self, bytes: &[u8]) -> Result<Job, ResumeError> {
        let saved = snapshot::read(bytes)?;
        if saved.model != self.digest {
            let theirs = sha256::hex(&saved.model);
            return Err(ResumeError::OtherModel {
                theirs,
                ours: self.digest_hex.clone(),
            });
        }
        let mut job = self.begin(&saved.request)?;
        let pictured = if saved.done == 0 {
            0
        } else {
            job.latents.len()
        };
        if saved.latents.len() != job.latents.len() || saved.denoised.len() != pictured {
            return Err(ResumeError::Damaged {
                reason: "its latents are not of the request's size",
            });
        }
        if saved.done > saved.request.steps {
            return Err(ResumeError::Damaged {
                reason: "more steps are done than there are",
            });
        }
        (job.latents, job.denoised, job.done) =
            (saved.latents, saved.denoised, saved.done as usize);
        Ok(job)
    }

    /// What the picture will be as far as the last step could tell.
    ///
    /// # Errors
    ///
    /// Before the first step there is nothing to see.
    pub fn preview(&self, job: &Job) -> Result<RgbImage, DecodeError> {
        if job.denoised.is_empty() {
            return Err(DecodeError::NotStarted);
        }
        self.pixels(job.denoised.clone(), &job.request)
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
        self.pixels(job.latents.clone(), &job.request)
    }

    fn pixels(&self, mut latents: Vec<f32>, request: &Request) -> Result<RgbImage, DecodeError> {
        self.vae.unscale(&mut latents);
        let place = Place::new(&self.place.device, DType::F32);
        let decoded = self
            .vae
            .decode(&self.picture(latents, request, &place)?, Tiling::default())?;
        let decoded = decoded.to_device(&Device::Cpu)?.to_dtype(DType::F32)?;
        let pixels = with_values(&decoded, |values| {
            // numpy rounds halves to even.
            values
                .iter()
                .map(|x| ((x / 2.0 + 0.5).clamp(0.0, 1.0) * 255.0).round_ties_even() as u8)
                .collect()
        })?;
        Ok(RgbImage {
            width: request.width,
            height: request.height,
            pixels,
        })
    }
}

/// `(batch, height, width, channels)` as batch × channels × pixels.
fn planes(x: &Tensor) -> candle_core::Result<Vec<f32>> {
    x.permute((0, 3, 1, 2))?
        .to_device(&Device::Cpu)?
        .to_dtype(DType::F32)?
        .flatten_all()?
        .to_vec1()
}

/// Checks `model_index.json`; answers whether a missing negative prompt means zeros.
fn read_index(file: &Path) -> Result<bool, LoadError> {
    let mut index = Fields::open(file)?;
    match index.take("_class_name") {
        Some(Value::String(class)) if class == "StableDiffusionXLPipeline" => {}
        class => {
            let reason = "only StableDiffusionXLPipeline is supported";
            return Err(index.refuse("_class_name", &class.unwrap_or(Value::Null), reason));
        }
    }
    let parts = [
        ("text_encoder", "CLIPTextModel"),
        ("text_encoder_2", "CLIPTextModelWithProjection"),
        ("unet", "UNet2DConditionModel"),
        ("vae", "AutoencoderKL"),
    ];
    for (part, class) in parts {
        let found = index.take(part).unwrap_or(Value::Null);
        if found.get(1).and_then(Value::as_str) != Some(class) {
            return Err(index.refuse(part, &found, &format!("expected a {class}")));
        }
    }
    index.flag_or("force_zeros_for_empty_prompt", true)
}

fn check_fit(
    folder: &Path,
    encoders: [&Clip; 2],
    tokenizers: &[Tokenizer; 2],
    unet: &Unet,
    vae: &Vae,
) -> Result<(), LoadError> {
    let refuse = |key: &str, value: usize, reason: String| LoadError::Config {
        file: folder.join("unet").join("config.json"),
        key: key.to_owned(),
        value: value.to_string(),
        reason,
    };
    let config = unet.config();
    let width = encoders[0].config().width + encoders[1].config().width;
    if config.context != width {
        let reason = format!("the text encoders give hidden states of {width}");
        return Err(refuse("cross_attention_dim", config.context, reason));
    }
    let pooled = encoders[1].config().projection;
    if unet.pooled_width() != pooled {
        let reason = format!(
            "it must be projection_dim ({pooled:?}) and {TIME_IDS} addition_time_embed_dim"
        );
        return Err(refuse(
            "projection_class_embeddings_input_dim",
            unet.pooled_width().unwrap_or(0),
            reason,
        ));
    }
    if config.latent != vae.config().latent {
        let reason = format!("the VAE's latents have {} channels", vae.config().latent);
        return Err(refuse("in_channels", config.latent, reason));
    }
    if tokenizers[0].length() != tokenizers[1].length() {
        let reason = format!(
            "model_max_length is {} and that of the other tokenizer {}",
            tokenizers[1].length(),
            tokenizers[0].length()
        );
        return Err(LoadError::Tokenizer {
            folder: folder.join("tokenizer_2"),
            reason,
        });
    }
    Ok(())
}

fn digest(folder: &Path, weights: &[&Weights]) -> Result<[u8; 32], LoadError> {
    let mut sha = Sha256::new();
    let mut feed = |bytes: &[u8]| {
        sha.update(&(bytes.len() as u64).to_le_bytes());
        sha.update(bytes);
    };
    let tokenizer = ["vocab.json", "merges.txt", "tokenizer_config.json"];
    let mut files = vec![
        folder.join("model_index.json"),
        folder.join("scheduler").join("scheduler_config.json"),
    ];
    files.extend(
        ["text_encoder", "text_encoder_2", "unet", "vae"]
            .map(|part| folder.join(part).join("config.json")),
    );
    for part in ["tokenizer", "tokenizer_2"] {
        files.extend(tokenizer.map(|name| folder.join(part).join(name)));
    }
    for file in files {
        feed(&config::read(&file)?);
    }
    for weights in weights {
        weights.identify(&mut feed)?;
    }
    Ok(sha.finish())
}

#[cfg(test)]
mod tests;
