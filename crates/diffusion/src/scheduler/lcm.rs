//! Latent consistency sampling (Luo et al., 2023), for models distilled for it: `scheduling_lcm.py`.

use super::config::{Prediction, SchedulerConfig};
use super::{At, History, Level, Solver, Whole, map2, table};

/// The deviation of the data that the boundary condition supposes.
const DATA_DEVIATION: f32 = 0.5;

#[derive(Clone, Debug)]
pub(super) struct Lcm {
    /// Each evaluation's noise level.
    levels: Vec<Level>,
    /// At each evaluation, the factors on the picture and on the sample: at timestep 0 the sample is the picture.
    boundary: Vec<(f32, f32)>,
    clip: Option<f32>,
}

/// Of the steps that the model was distilled for, evenly chosen ones, last first. Also TCD's.
pub(super) fn visited(train: usize, original: usize, steps: usize) -> Vec<usize> {
    let (stride, hop) = (train / original, original as f64 / steps as f64);
    (0..steps)
        .map(|index| {
            let skipped = (index as f64 * hop).floor() as usize;
            (original - skipped) * stride - 1
        })
        .collect()
}

pub(super) fn schedule(
    config: &SchedulerConfig,
    steps: usize,
    original_steps: usize,
    scaling: f64,
    clip: Option<f32>,
) -> Whole {
    let alphas = table::alphas(config);
    let visited = visited(config.train_steps, original_steps, steps);
    let boundary = visited.iter().map(|t| {
        let scaled = *t as f32 * scaling as f32;
        let variance = DATA_DEVIATION * DATA_DEVIATION;
        let sum = scaled * scaled + variance;
        (scaled / sum.sqrt(), variance / sum)
    });
    let levels = Level::of_training_steps(&alphas, &visited);
    let solver = Solver::Lcm(Lcm {
        levels: levels.clone(),
        boundary: boundary.collect(),
        clip,
    });
    Whole::at_training_steps(&visited, levels, solver)
}

impl Lcm {
    /// Whether anything is drawn from evaluation `begin` on.
    pub(super) fn draws_noise(&self, begin: usize) -> bool {
        begin + 1 < self.levels.len()
    }

    pub(super) fn advance(
        &self,
        prediction: Prediction,
        at: At,
        output: &[f32],
        sample: &mut [f32],
        history: &mut History,
    ) {
        let level = self.levels[at.index];
        let (of_picture, of_sample) = self.boundary[at.index];
        history.denoised = map2(output, sample, |output, sample| {
            let picture = prediction.picture(level, output, sample);
            let picture = self.clip.map_or(picture, |clip| picture.clamp(-clip, clip));
            of_picture * picture + of_sample * sample
        });
        if let Some(next) = self.levels.get(at.index + 1) {
            let noise = history.noise.normal(sample.len());
            sample.copy_from_slice(&next.noised(&history.denoised, &noise));
        } else {
            sample.copy_from_slice(&history.denoised);
        }
    }
}
