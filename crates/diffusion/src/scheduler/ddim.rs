//! DDIM with eta 0 (Song et al., 2020).

use super::config::{Prediction, SchedulerConfig};
use super::{Level, Schedule, Solver, table};

#[derive(Clone, Debug)]
pub(super) struct Ddim {
    /// ᾱ before and after each step.
    alphas: Vec<(f32, f32)>,
    clip: Option<f32>,
}

pub(super) fn schedule(config: &SchedulerConfig, steps: usize) -> Result<Schedule, String> {
    let alphas = table::alphas(config);
    let visited: Vec<usize> = table::timesteps(config, steps)
        .into_iter()
        .map(|t| t.round_ties_even().max(0.0) as usize)
        .collect();
    if visited.iter().any(|t| *t >= alphas.len()) {
        return Err("so many steps would begin after the last training step".to_owned());
    }
    let last = if config.alpha_one_at_end {
        1.0
    } else {
        alphas[0]
    };
    let stride = config.train_steps / steps;
    let pairs = visited.iter().map(|t| {
        (
            alphas[*t],
            t.checked_sub(stride).map_or(last, |before| alphas[before]),
        )
    });
    Ok(Schedule {
        timesteps: visited.iter().map(|t| *t as f32).collect(),
        initial_sigma: 1.0,
        prediction: config.prediction,
        solver: Solver::Ddim(Ddim {
            alphas: pairs.collect(),
            clip: config.clip,
        }),
    })
}

impl Ddim {
    pub(super) fn advance(
        &self,
        prediction: Prediction,
        step: usize,
        output: &[f32],
        sample: &mut [f32],
        denoised: &mut Vec<f32>,
    ) {
        let (now, next) = self.alphas[step];
        let level = Level {
            signal: now.sqrt(),
            noise: (1.0 - now).sqrt(),
        };
        denoised.clear();
        for (sample, &output) in sample.iter_mut().zip(output) {
            let epsilon = match prediction {
                Prediction::Epsilon => output,
                Prediction::V => level.signal * output + level.noise * *sample,
                Prediction::Sample => (*sample - level.signal * output) / level.noise,
            };
            let mut picture = prediction.denoised(level, output, *sample);
            if let Some(clip) = self.clip {
                picture = picture.clamp(-clip, clip);
            }
            denoised.push(picture);
            *sample = next.sqrt() * picture + (1.0 - next).sqrt() * epsilon;
        }
    }
}
