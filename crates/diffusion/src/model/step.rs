//! One denoising step for many jobs.
//!
//! Jobs of one size go through the UNet together, each with its own timestep, text, guidance and schedule. What a row
//! becomes does not depend on the others (see [`crate::ops`]), so neither does a picture.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor};

use super::Model;
use super::memory::Pass;
use crate::error::StepError;
use crate::guidance;
use crate::job::{Job, Progress};

impl Model {
    /// Takes each job one denoising step further: one forward pass for all jobs of one size. One answer a job, in
    /// order; a job that fails stays as it was and does not disturb the others.
    pub fn step(&self, jobs: &mut [&mut Job]) -> Vec<Result<Progress, StepError>> {
        let mut by_size: BTreeMap<(usize, usize), Vec<usize>> = BTreeMap::new();
        for (index, job) in jobs.iter().enumerate() {
            if !job.is_finished() {
                let size = self.latent_size(&job.request);
                by_size.entry(size).or_default().push(index);
            }
        }
        let mut answers: Vec<_> = jobs.iter().map(|_| Err(StepError::Finished)).collect();
        for (size, members) in by_size {
            let together: Vec<&Job> = members.iter().map(|&index| &*jobs[index]).collect();
            for (index, output) in members.iter().zip(self.outputs(size, &together)) {
                answers[*index] = output.and_then(|output| advance(jobs[*index], &output));
            }
        }
        answers
    }

    /// The UNet's output for each job's next step, guidance applied. When a pass of several jobs fails (for want of
    /// memory, say), it is taken again job by job, so that a job answers only for itself.
    fn outputs(&self, size: (usize, usize), jobs: &[&Job]) -> Vec<Result<Vec<f32>, StepError>> {
        let rows = jobs.iter().map(|job| job.rows()).sum();
        match self.metered(Pass::step(size, rows), || self.predict(size, jobs)) {
            Ok(outputs) => outputs.into_iter().map(Ok).collect(),
            Err(source) if jobs.len() == 1 => {
                let step = jobs[0].done as u32 + 1;
                vec![Err(StepError::Compute { step, source })]
            }
            Err(_) => (jobs.iter())
                .flat_map(|job| self.outputs(size, &[job]))
                .collect(),
        }
    }

    fn predict(
        &self,
        (height, width): (usize, usize),
        jobs: &[&Job],
    ) -> candle_core::Result<Vec<Vec<f32>>> {
        let channels = self.unet.config().latent;
        let (mut values, mut timesteps, mut rows) = (Vec::new(), Vec::new(), Vec::new());
        for job in jobs {
            let divisor = job.schedule.input_divisor(job.done);
            let pixels = pixels(job, channels, divisor);
            for conditioning in job.negative.iter().chain([&job.prompt]) {
                values.extend_from_slice(&pixels);
                timesteps.push(job.schedule.timesteps[job.done]);
                rows.push(&**conditioning);
            }
        }
        let input = self.place.tensor(
            values,
            &[rows.len(), height, width, self.unet.config().input],
        )?;
        let output = planes(&self.unet.forward(&input, &timesteps, &rows)?)?;
        let mut parts = output.chunks_exact(channels * height * width);
        let outputs = jobs.iter().map(|job| {
            let away = job.negative.as_ref().and_then(|_| parts.next());
            let towards = parts.next().unwrap_or_default();
            let Some(away) = away else {
                return towards.to_vec();
            };
            let mut guided = guidance::lead(away, towards, job.request.guidance_scale);
            guidance::rescale(&mut guided, towards, job.request.guidance_rescale);
            guided
        });
        Ok(outputs.collect())
    }
}

fn advance(job: &mut Job, output: &[f32]) -> Result<Progress, StepError> {
    let (mut latents, mut history) = (job.latents.clone(), job.history.clone());
    job.schedule
        .advance(job.done, output, &mut latents, &mut history);
    if let Some(known) = &job.given.known {
        let noised = (job.schedule).noised_at(job.done, &known.latents, &known.noise);
        known.put_back(&noised, &mut latents);
    }
    let kept = history.kept.iter().flatten();
    if !(latents.iter().chain(&history.denoised).chain(kept)).all(|x| x.is_finite()) {
        return Err(StepError::NotFinite {
            step: job.done as u32 + 1,
        });
    }
    (job.latents, job.history) = (latents, history);
    job.done += 1;
    Ok(job.progress())
}

/// What the UNet sees of a job, pixels × channels: the latents, divided, and what lies beside them.
fn pixels(job: &Job, channels: usize, divisor: f32) -> Vec<f32> {
    let count = job.latents.len() / channels;
    let at = |pixel: usize| {
        let latents = (job.latents.iter().skip(pixel).step_by(count)).map(move |x| x / divisor);
        latents.chain((job.given.beside.iter().skip(pixel).step_by(count)).copied())
    };
    (0..count).flat_map(at).collect()
}

/// `(batch, height, width, channels)` as batch × channels × pixels.
fn planes(x: &Tensor) -> candle_core::Result<Vec<f32>> {
    x.permute((0, 3, 1, 2))?
        .to_device(&Device::Cpu)?
        .to_dtype(DType::F32)?
        .flatten_all()?
        .to_vec1()
}
