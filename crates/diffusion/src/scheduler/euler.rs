//! Euler's method over sigmas (Karras et al., 2022, algorithm 2 without churn).

use super::config::{Prediction, SchedulerConfig, Spacing};
use super::{Schedule, Solver, table};

#[derive(Clone, Debug)]
pub(super) struct Euler {
    /// The sigma at each step, and after the last.
    pub(super) sigmas: Vec<f32>,
}

pub(super) fn schedule(config: &SchedulerConfig, steps: usize) -> Schedule {
    let table = table::sigmas(config);
    let logs: Vec<f32> = table.iter().map(|sigma| sigma.ln()).collect();
    // diffusers keeps these in f32, and reads the table at what is left of them.
    let mut timesteps: Vec<f64> = table::timesteps(config, steps)
        .into_iter()
        .map(|t| f64::from(t as f32))
        .collect();
    let mut sigmas: Vec<f64> = if config.log_linear {
        let (first, last) = (f64::from(logs[0]), f64::from(logs[logs.len() - 1]));
        table::linspace(last, first, steps + 1)
            .into_iter()
            .map(|log| f64::from((log as f32).exp()))
            .collect()
    } else {
        timesteps
            .iter()
            .map(|t| table::interpolate(&table, *t))
            .collect()
    };
    if config.karras {
        sigmas = table::karras(config, sigmas[0], sigmas[sigmas.len() - 1], steps);
        timesteps = sigmas
            .iter()
            .map(|sigma| table::step_of(*sigma, &logs))
            .collect();
    }
    let sigmas = table::with_end(config, sigmas, &table);
    let most = sigmas.iter().copied().fold(0.0, f32::max);
    let initial_sigma = if config.spacing == Spacing::Leading {
        (most * most + 1.0).sqrt()
    } else {
        most
    };
    Schedule {
        timesteps: timesteps.iter().map(|t| *t as f32).collect(),
        initial_sigma,
        prediction: config.prediction,
        solver: Solver::Euler(Euler { sigmas }),
    }
}

impl Euler {
    pub(super) fn input_divisor(&self, step: usize) -> f32 {
        (self.sigmas[step] * self.sigmas[step] + 1.0).sqrt()
    }

    pub(super) fn advance(
        &self,
        prediction: Prediction,
        step: usize,
        output: &[f32],
        sample: &mut [f32],
        denoised: &mut Vec<f32>,
    ) {
        let (sigma, next) = (self.sigmas[step], self.sigmas[step + 1]);
        let variance = sigma * sigma + 1.0;
        denoised.clear();
        for (sample, &output) in sample.iter_mut().zip(output) {
            let picture = match prediction {
                Prediction::Epsilon => *sample - sigma * output,
                Prediction::V => output * (-sigma / variance.sqrt()) + *sample / variance,
                Prediction::Sample => output,
            };
            denoised.push(picture);
            let derivative = (*sample - picture) / sigma;
            *sample += derivative * (next - sigma);
        }
    }
}
