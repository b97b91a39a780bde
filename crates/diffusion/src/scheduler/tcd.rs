//! Trajectory consistency sampling (Zheng et al., 2024), for models distilled for it: `scheduling_tcd.py`.

use super::config::{Prediction, SchedulerConfig};
use super::plan::as_written;
use super::{At, History, Level, Solver, Whole, lcm, map2, table};

#[derive(Clone, Debug)]
pub(super) struct Tcd {
    steps: Vec<Step>,
    eta: f32,
}

/// ᾱ before a step, after it, and where the model's output leads before noise is added.
#[derive(Clone, Debug)]
struct Step {
    now: f32,
    next: f32,
    between: f32,
}

pub(super) fn schedule(
    config: &SchedulerConfig,
    steps: usize,
    original_steps: usize,
    eta: f32,
) -> Whole {
    let alphas = table::alphas(config);
    let visited = lcm::visited(config.train_steps, original_steps, steps);
    let kept = (1.0 - as_written(eta)) as f32;
    let all = visited.iter().enumerate().map(|(index, t)| {
        let next = visited.get(index + 1).copied().unwrap_or(0);
        let between = (kept * next as f32).floor() as usize;
        Step {
            now: alphas[*t],
            next: alphas[next],
            between: alphas[between.min(next)],
        }
    });
    let levels = Level::of_training_steps(&alphas, &visited);
    let solver = Solver::Tcd(Tcd {
        steps: all.collect(),
        eta,
    });
    Whole::at_training_steps(&visited, levels, solver)
}

impl Tcd {
    /// Whether anything is drawn from evaluation `begin` on.
    pub(super) fn draws_noise(&self, begin: usize) -> bool {
        self.eta > 0.0 && begin + 1 < self.steps.len()
    }

    pub(super) fn advance(
        &self,
        prediction: Prediction,
        at: At,
        output: &[f32],
        sample: &mut [f32],
        history: &mut History,
    ) {
        let Step { now, next, between } = self.steps[at.index];
        let (level, target) = (Level::of_alpha(now), Level::of_alpha(between));
        history.denoised = map2(output, sample, |output, sample| {
            prediction.picture(level, output, sample)
        });
        for ((sample, &output), picture) in sample.iter_mut().zip(output).zip(&history.denoised) {
            let epsilon = prediction.epsilon(level, output, *sample);
            *sample = target.signal * picture + target.noise * epsilon;
        }
        if self.draws_noise(at.index) {
            let noise = history.noise.normal(sample.len());
            let up = Level::of_alpha(next / between);
            let noised = up.noised(sample, &noise);
            sample.copy_from_slice(&noised);
        }
    }
}
