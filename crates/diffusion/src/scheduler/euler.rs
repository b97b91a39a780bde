//! Euler's method over sigmas (Karras et al., 2022, algorithm 2 without churn): `scheduling_euler_discrete.py`.

use super::config::{Prediction, SchedulerConfig, Spacing};
use super::sigmas::{self, Steps};
use super::{At, History, Level, Solver, Whole, logarithm, map2, table};

#[derive(Clone, Debug)]
pub(super) struct Euler {
    /// The sigma at each step, and after the last.
    pub(super) sigmas: Vec<f32>,
}

/// What Euler's family shares.
pub(super) struct Way {
    pub(super) timesteps: Vec<f32>,
    /// One for each timestep, and at least one more.
    pub(super) sigmas: Vec<f32>,
    pub(super) initial_sigma: f32,
}

pub(super) fn schedule(
    config: &SchedulerConfig,
    steps: usize,
    log_linear: bool,
    continuous: bool,
) -> Whole {
    let mut way = way(config, steps, log_linear);
    if continuous && config.prediction == Prediction::V {
        let before_last = &way.sigmas[..way.sigmas.len() - 1];
        way.timesteps = before_last.iter().map(|sigma| 0.25 * sigma.ln()).collect();
    }
    Whole {
        timesteps: way.timesteps,
        levels: levels(&way.sigmas),
        initial_sigma: way.initial_sigma,
        order: 1,
        solver: Solver::Euler(Euler { sigmas: way.sigmas }),
    }
}

pub(super) fn levels(sigmas: &[f32]) -> Vec<Level> {
    sigmas
        .iter()
        .map(|sigma| Level::of_growing_noise(*sigma))
        .collect()
}

pub(super) fn way(config: &SchedulerConfig, steps: usize, log_linear: bool) -> Way {
    let table = table::sigmas(config);
    // diffusers keeps these in f32, and reads the table at what is left of them.
    let mut timesteps: Vec<f64> = table::timesteps(config, steps)
        .into_iter()
        .map(|t| f64::from(t as f32))
        .collect();
    let (least, most) = (table[0], table[table.len() - 1]);
    let mut sigmas: Vec<f64> = if log_linear {
        table::linspace_f32(logarithm::ln(most), logarithm::ln(least), steps + 1)
            .into_iter()
            .map(|log| f64::from(log.exp()))
            .collect()
    } else {
        timesteps
            .iter()
            .map(|t| table::interpolate(&table, *t))
            .collect()
    };
    if let Some(spread) = sigmas::spread(config, sigmas[0], sigmas[sigmas.len() - 1], steps) {
        let lookup = Steps::of(&table);
        timesteps = spread.iter().map(|sigma| lookup.step(*sigma)).collect();
        sigmas = spread;
    }
    let sigmas = sigmas::with_end(config, sigmas, f64::from(least));
    let most = sigmas.iter().copied().fold(0.0, f32::max);
    Way {
        timesteps: timesteps.iter().map(|t| *t as f32).collect(),
        initial_sigma: if config.spacing == Spacing::Leading {
            (most * most + 1.0).sqrt()
        } else {
            most
        },
        sigmas,
    }
}

impl Euler {
    pub(super) fn advance(
        &self,
        prediction: Prediction,
        at: At,
        output: &[f32],
        sample: &mut [f32],
        history: &mut History,
    ) {
        let (sigma, next) = (self.sigmas[at.index], self.sigmas[at.index + 1]);
        history.denoised = map2(output, sample, |output, sample| {
            prediction.picture_at_sigma(sigma, output, sample)
        });
        for (sample, picture) in sample.iter_mut().zip(&history.denoised) {
            let derivative = (*sample - picture) / sigma;
            *sample += derivative * (next - sigma);
        }
    }
}
