//! Where a job begins: at noise, or at a picture under as much noise as its schedule begins with.
//!
//! Source: `prepare_latents` of `pipeline_stable_diffusion_xl_img2img.py`, `prepare_latents` and `prepare_mask_latents` of
//! `pipeline_stable_diffusion_xl_inpaint.py`. The order in which the request's generator is drawn from is theirs: first the
//! picture's latents, then the noise, then the latents of the masked picture.
//!
//! One difference: diffusers 0.42 forgets `latents_mean` and `latents_std` when it inpaints, so that the known part comes
//! back in other colours; here they count there too. Models made for inpainting have none.

use super::Model;
use super::memory::Pass;
use crate::error::BeginError;
use crate::given::{Given, Known, Mask};
use crate::job::{Job, Request, RgbImage};
use crate::noise::Generator;
use crate::scheduler::{History, Schedule};

/// How much of the way a picture goes through where a request does not say: the pipelines' own defaults.
const STRENGTH: f32 = 0.3;
const STRENGTH_UNDER_MASK: f32 = 0.9999;

impl Model {
    /// Starts a job: the prompt is encoded, the noise drawn from the seed, the schedule built, and the picture that it
    /// begins from, if there is one, encoded.
    ///
    /// # Errors
    ///
    /// Names the parameter that is out of range.
    pub fn begin(&self, request: &Request) -> Result<Job, BeginError> {
        self.check_begin(request)?;
        let mut request = request.clone();
        if request.begins_from_picture() && request.denoising_start.is_none() {
            let default = request
                .mask
                .as_ref()
                .map_or(STRENGTH, |_| STRENGTH_UNDER_MASK);
            request.strength.get_or_insert(default);
        }
        let (schedule, told) = self.prepare(&request)?;
        let mut noise = Generator::new(request.seed);
        let (latents, given) = self.start(&request, &schedule, &mut noise)?;
        // From here on the job needs of the pictures only what was made of them.
        (request.image, request.latents, request.mask) = (None, None, None);
        Ok(Job {
            request,
            schedule,
            done: 0,
            latents,
            history: History::new(noise),
            given,
            prompt: told.prompt,
            negative: told.negative,
        })
    }

    /// The latents before the first step, and what the steps need of the picture beside them.
    fn start(
        &self,
        request: &Request,
        schedule: &Schedule,
        noise: &mut Generator,
    ) -> Result<(Vec<f32>, Given), BeginError> {
        let count = self.elements(request);
        let Some(mask) = &request.mask else {
            let known = self.known(request, noise)?;
            let latents = match known {
                None => initial(schedule, noise.normal(count)),
                Some(known) if request.denoising_start.is_some() => known,
                Some(known) => schedule.start_from(&known, &noise.normal(count)),
            };
            return Ok((latents, Given::default()));
        };
        let only_noise = request.strength == Some(1.0) && request.denoising_start.is_none();
        let sees_mask = self.unet.config().sees_mask();
        // A UNet that sees the mask also sees what is known, and from pure noise needs no more of it.
        let known = if only_noise && sees_mask {
            None
        } else {
            self.known(request, noise)?
        };
        let fresh = noise.normal(count);
        let latents = match &known {
            Some(known) if request.denoising_start.is_some() => known.clone(),
            Some(known) if !only_noise => schedule.start_from(known, &fresh),
            _ => initial(schedule, fresh.clone()),
        };
        let shrunk = self.shrink(mask);
        if !sees_mask {
            if request.image.is_some() && schedule.draws_noise() {
                // The pipeline encodes the masked picture all the same, and draws for it before the steps do.
                noise.normal(count);
            }
            let known = known.map(|latents| Known {
                latents,
                noise: fresh,
                mask: shrunk,
            });
            let given = Given {
                known,
                ..Given::default()
            };
            return Ok((latents, given));
        }
        let mut beside = shrunk;
        if let Some(image) = &request.image {
            let masked = masked(unit(image), mask);
            beside.extend(self.encode_pixels(masked, request, noise)?);
        }
        let given = Given {
            beside,
            known: None,
        };
        Ok((latents, given))
    }

    /// The latents of the picture that a request begins from, if it does.
    fn known(
        &self,
        request: &Request,
        noise: &mut Generator,
    ) -> Result<Option<Vec<f32>>, BeginError> {
        if let Some(latents) = &request.latents {
            return Ok(Some(latents.values.clone()));
        }
        let Some(image) = &request.image else {
            return Ok(None);
        };
        self.encode_pixels(unit(image), request, noise).map(Some)
    }

    /// Pixels of -1 to 1, row by row, channels together, to scaled latents drawn with the next noise.
    fn encode_pixels(
        &self,
        pixels: Vec<f32>,
        request: &Request,
        noise: &mut Generator,
    ) -> Result<Vec<f32>, BeginError> {
        let shape = [1, request.height as usize, request.width as usize, 3];
        let pixels = self.vae.place().tensor(pixels, &shape);
        let posterior = pixels.map_err(Into::into).and_then(|pixels| {
            let pass = Pass::encode(self.latent_size(request), request.tiling);
            self.metered(pass, || self.vae.encode(&pixels, request.tiling))
        });
        let mut latents = Vec::new();
        for picture in posterior.map_err(BeginError::Image)? {
            latents = picture.sample(noise);
        }
        self.vae.scale(&mut latents);
        Ok(latents)
    }

    /// A mask at the size of the latents: the first pixel that each covers (nearest neighbour), 1 where it is painted.
    fn shrink(&self, mask: &Mask) -> Vec<f32> {
        let factor = self.vae.config().factor();
        let rows = mask.values.chunks(mask.width.max(1) as usize);
        rows.step_by(factor)
            .flat_map(|row| row.iter().step_by(factor))
            .map(|value| f32::from(u8::from(Mask::paints(*value))))
            .collect()
    }
}

/// Pure noise, as strong as the schedule begins.
fn initial(schedule: &Schedule, mut noise: Vec<f32>) -> Vec<f32> {
    noise.iter_mut().for_each(|x| *x *= schedule.initial_sigma);
    noise
}

/// Bytes as the autoencoder has them: -1 to 1.
fn unit(image: &RgbImage) -> Vec<f32> {
    let unit = |byte: &u8| 2.0 * (f32::from(*byte) / 255.0) - 1.0;
    image.pixels.iter().map(unit).collect()
}

/// What the mask leaves; grey where it paints.
fn masked(mut pixels: Vec<f32>, mask: &Mask) -> Vec<f32> {
    for (pixel, mask) in pixels.chunks_exact_mut(3).zip(&mask.values) {
        if Mask::paints(*mask) {
            pixel.fill(0.0);
        }
    }
    pixels
}
