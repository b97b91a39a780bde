//! DPM-Solver++, second-order multistep (Lu et al., 2022).

use super::config::{Growth, Prediction, SchedulerConfig, Spacing};
use super::{Level, Schedule, Solver, table};

/// Fewer steps than this end with a first-order one, if the configuration wants that.
const FEW_STEPS: usize = 15;

#[derive(Clone, Debug)]
pub(super) struct Dpm {
    /// The sigma at each step, and after the last.
    pub(super) sigmas: Vec<f32>,
    first_order: bool,
    last_is_first_order: bool,
    heun: bool,
}

pub(super) fn schedule(config: &SchedulerConfig, steps: usize) -> Schedule {
    let table = table::sigmas(config);
    let mut timesteps = timesteps(config, steps);
    let sigmas: Vec<f64> = if config.karras {
        let logs: Vec<f32> = table.iter().map(|sigma| sigma.ln()).collect();
        let (least, most) = (f64::from(table[0]), f64::from(table[table.len() - 1]));
        let sigmas = table::karras(config, most, least, steps);
        timesteps = sigmas
            .iter()
            .map(|sigma| table::step_of(*sigma, &logs))
            .collect();
        if config.growth != Growth::SquaredCosine {
            timesteps.iter_mut().for_each(|t| *t = t.round_ties_even());
        }
        sigmas
    } else {
        timesteps
            .iter()
            .map(|t| table::interpolate(&table, *t))
            .collect()
    };
    let few = config.lower_order_final && steps < FEW_STEPS;
    Schedule {
        // They are whole numbers in diffusers.
        timesteps: timesteps.iter().map(|t| t.trunc() as f32).collect(),
        initial_sigma: 1.0,
        prediction: config.prediction,
        solver: Solver::Dpm(Dpm {
            sigmas: table::with_end(config, sigmas, &table),
            first_order: config.first_order,
            last_is_first_order: config.euler_at_final || few || !config.end_at_smallest,
            heun: config.heun,
        }),
    }
}

/// One step more than asked for is laid out, and the last left away, except when trailing.
fn timesteps(config: &SchedulerConfig, steps: usize) -> Vec<f64> {
    let train = config.train_steps;
    match config.spacing {
        Spacing::Linspace => {
            let all = table::linspace(0.0, (train - 1) as f64, steps + 1);
            all[1..].iter().rev().map(|t| t.round_ties_even()).collect()
        }
        Spacing::Leading => {
            let ratio = train / (steps + 1);
            (1..=steps)
                .rev()
                .map(|index| (index * ratio + config.offset) as f64)
                .collect()
        }
        Spacing::Trailing => table::trailing(train, steps),
    }
}

fn level(sigma: f32) -> Level {
    let signal = 1.0 / (sigma * sigma + 1.0).sqrt();
    Level {
        signal,
        noise: sigma * signal,
    }
}

impl Level {
    /// Half the logarithm of the signal-to-noise ratio.
    fn lambda(self) -> f32 {
        self.signal.ln() - self.noise.ln()
    }
}

impl Dpm {
    pub(super) fn advance(
        &self,
        prediction: Prediction,
        step: usize,
        output: &[f32],
        sample: &mut [f32],
        denoised: &mut Vec<f32>,
    ) {
        let (now, next) = (level(self.sigmas[step]), level(self.sigmas[step + 1]));
        let width = next.lambda() - now.lambda();
        let keep = next.noise / now.noise;
        let decay = (-width).exp() - 1.0;
        let gain = next.signal * decay;
        let last = step + 2 == self.sigmas.len();
        if self.first_order
            || step == 0
            || denoised.len() != sample.len()
            || (last && self.last_is_first_order)
        {
            denoised.resize(sample.len(), 0.0);
            for ((sample, &output), denoised) in sample.iter_mut().zip(output).zip(denoised) {
                *denoised = prediction.denoised(now, output, *sample);
                *sample = keep * *sample - gain * *denoised;
            }
            return;
        }
        let before = level(self.sigmas[step - 1]);
        let ratio = (now.lambda() - before.lambda()) / width;
        let second = if self.heun {
            next.signal * (decay / width + 1.0)
        } else {
            -0.5 * gain
        };
        for ((sample, &output), denoised) in sample.iter_mut().zip(output).zip(denoised) {
            let picture = prediction.denoised(now, output, *sample);
            let slope = (1.0 / ratio) * (picture - *denoised);
            *denoised = picture;
            *sample = keep * *sample - gain * picture + second * slope;
        }
    }
}
