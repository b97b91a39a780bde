//! DDIM (Song et al., 2020): `scheduling_ddim.py`.

use super::config::{Prediction, SchedulerConfig};
use super::{At, History, Level, PlanError, Solver, Whole, table};

#[derive(Clone, Debug)]
pub(super) struct Ddim {
    /// ᾱ before and after each step.
    alphas: Vec<(f32, f32)>,
    eta: f32,
    clip: Option<f32>,
}

pub(super) fn schedule(
    config: &SchedulerConfig,
    steps: usize,
    eta: f32,
    clip: Option<f32>,
    alpha_one_at_end: bool,
) -> Result<Whole, PlanError> {
    let alphas = table::alphas(config);
    let visited: Vec<usize> = table::timesteps(config, steps)
        .into_iter()
        .map(|t| t.round_ties_even().max(0.0) as usize)
        .collect();
    if visited.iter().any(|t| *t >= alphas.len()) {
        let reason = "so many would begin after the last training step";
        return Err(PlanError::new("steps", steps, reason));
    }
    let last = if alpha_one_at_end { 1.0 } else { alphas[0] };
    let stride = config.train_steps / steps;
    let pairs = visited.iter().map(|t| {
        let next = t.checked_sub(stride);
        (alphas[*t], next.map_or(last, |next| alphas[next]))
    });
    let levels = Level::of_training_steps(&alphas, &visited);
    let solver = Solver::Ddim(Ddim {
        alphas: pairs.collect(),
        eta,
        clip,
    });
    Ok(Whole::at_training_steps(&visited, levels, solver))
}

impl Ddim {
    pub(super) fn draws_noise(&self) -> bool {
        self.eta > 0.0
    }

    pub(super) fn advance(
        &self,
        prediction: Prediction,
        at: At,
        output: &[f32],
        sample: &mut [f32],
        history: &mut History,
    ) {
        let (now, next) = self.alphas[at.index];
        let level = Level::of_alpha(now);
        let variance = (1.0 - next) / (1.0 - now) * (1.0 - now / next);
        // Where there is none, no noise; at zero signal the formula has no value.
        let fresh = if self.draws_noise() {
            self.eta * variance.sqrt()
        } else {
            0.0
        };
        let (signal, left) = (next.sqrt(), (1.0 - next - fresh * fresh).sqrt());
        history.denoised.clear();
        for (sample, &output) in sample.iter_mut().zip(output) {
            let epsilon = prediction.epsilon(level, output, *sample);
            let mut picture = prediction.picture(level, output, *sample);
            if let Some(clip) = self.clip {
                picture = picture.clamp(-clip, clip);
            }
            history.denoised.push(picture);
            *sample = signal * picture + left * epsilon;
        }
        if self.draws_noise() {
            let noise = history.noise.normal(sample.len());
            for (sample, noise) in sample.iter_mut().zip(noise) {
                *sample += fresh * noise;
            }
        }
    }
}
