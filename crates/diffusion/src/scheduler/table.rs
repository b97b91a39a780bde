//! Tables over the training steps, and the choice of steps among them.

use super::PlanError;
use super::config::{Growth, SchedulerConfig, Spacing};

/// Stands for zero where a zero would make the first sigma infinite: the smallest half-precision value.
const ALMOST_ZERO: f32 = 5.960_464_5e-8;

/// The share of signal (ᾱ) left after each training step.
pub(super) fn alphas(config: &SchedulerConfig) -> Vec<f32> {
    let mut betas = betas(config);
    if config.zero_snr {
        rescale_to_zero_snr(&mut betas);
    }
    // torch accumulates this product in f64.
    let mut product = 1.0_f64;
    (betas.iter())
        .map(|beta| {
            product *= f64::from(1.0 - beta);
            product as f32
        })
        .collect()
}

fn betas(config: &SchedulerConfig) -> Vec<f32> {
    let (start, end, count) = (config.beta_start, config.beta_end, config.train_steps);
    if let Some(betas) = &config.trained_betas {
        return betas.clone();
    }
    match config.growth {
        Growth::Linear => linspace_f32(start as f32, end as f32, count),
        Growth::ScaledLinear => {
            let roots = linspace_f32(start.sqrt() as f32, end.sqrt() as f32, count);
            roots.iter().map(|root| root * root).collect()
        }
        Growth::SquaredCosine => betas_of(count, |t| {
            ((t + 0.008) / 1.008 * std::f64::consts::FRAC_PI_2)
                .cos()
                .powi(2)
        }),
        Growth::Exponential => betas_of(count, |t| (-12.0 * t).exp()),
    }
}

/// The betas whose products are `bar`, the share of signal left at a share of training.
fn betas_of(count: usize, bar: impl Fn(f64) -> f64) -> Vec<f32> {
    let at = |index: usize| bar(index as f64 / count as f64);
    (0..count)
        .map(|index| (1.0 - at(index + 1) / at(index)).min(0.999) as f32)
        .collect()
}

/// As torch has it: the second half counts from the end, and each value is rounded once.
pub(super) fn linspace_f32(start: f32, end: f32, count: usize) -> Vec<f32> {
    let step = (end - start) / (count.max(2) - 1) as f32;
    (0..count)
        .map(|index| {
            if index < count / 2 {
                step.mul_add(index as f32, start)
            } else {
                (-step).mul_add((count - 1 - index) as f32, end)
            }
        })
        .collect()
}

/// Lin et al. (2023): shifts and scales so that the last step keeps no signal.
fn rescale_to_zero_snr(betas: &mut [f32]) {
    let mut product = 1.0_f64;
    let mut roots: Vec<f32> = (betas.iter())
        .map(|beta| {
            product *= f64::from(1.0 - beta);
            (product as f32).sqrt()
        })
        .collect();
    let (Some(&first), Some(&last)) = (roots.first(), roots.last()) else {
        return;
    };
    for root in &mut roots {
        *root = (*root - last) * (first / (first - last));
    }
    let mut before = 1.0;
    for (beta, root) in betas.iter_mut().zip(&roots) {
        let bar = root * root;
        *beta = 1.0 - bar / before;
        before = bar;
    }
}

/// The same, never zero: what has no signal at all would have an infinite sigma.
pub(super) fn alphas_above_zero(config: &SchedulerConfig) -> Vec<f32> {
    let mut alphas = alphas(config);
    if config.zero_snr
        && let Some(last) = alphas.last_mut()
    {
        *last = ALMOST_ZERO;
    }
    alphas
}

/// Each training step's sigma (noise over signal), smallest first.
pub(super) fn sigmas(config: &SchedulerConfig) -> Vec<f32> {
    (alphas_above_zero(config).iter())
        .map(|alpha| ((1.0 - alpha) / alpha).sqrt())
        .collect()
}

/// `count` values from `start` to `end`, both included, as numpy has them.
pub(super) fn linspace(start: f64, end: f64, count: usize) -> Vec<f64> {
    let step = (end - start) / (count.max(2) - 1) as f64;
    (0..count)
        .map(|index| {
            if index > 0 && index == count - 1 {
                end
            } else {
                start + index as f64 * step
            }
        })
        .collect()
}

/// The training steps that DDIM and the schedulers of Euler's family visit, last first; whole except for linspace.
pub(super) fn timesteps(config: &SchedulerConfig, steps: usize) -> Vec<f64> {
    let train = config.train_steps;
    match config.spacing {
        Spacing::Linspace => linspace(0.0, (train - 1) as f64, steps)
            .into_iter()
            .rev()
            .collect(),
        Spacing::Leading => {
            let ratio = train / steps;
            (0..steps)
                .rev()
                .map(|index| (index * ratio + config.offset) as f64)
                .collect()
        }
        Spacing::Trailing => trailing(train, train, steps),
    }
}

/// The training steps that DPM-Solver and UniPC visit, of the first `last` ones: one step more than asked for is laid
/// out, and the last left away, except when trailing.
pub(super) fn timesteps_before_last(
    config: &SchedulerConfig,
    last: usize,
    steps: usize,
) -> Result<Vec<f64>, PlanError> {
    Ok(match config.spacing {
        Spacing::Linspace => {
            let all = linspace(0.0, last.saturating_sub(1) as f64, steps + 1);
            all[1..].iter().rev().map(|t| t.round_ties_even()).collect()
        }
        Spacing::Leading => {
            let ratio = last / (steps + 1);
            if ratio == 0 {
                let reason = format!("with leading spacing expected less than {last}");
                return Err(PlanError::new("steps", steps, reason));
            }
            (1..=steps)
                .rev()
                .map(|index| (index * ratio + config.offset) as f64)
                .collect()
        }
        Spacing::Trailing => trailing(last, config.train_steps, steps),
    })
}

/// Evenly back from training step `last`, with the stride of `steps` over all of `train`: `numpy.arange`, which finds
/// its own stride again from its first two values. Where that overshoots, diffusers makes one evaluation more, at
/// timestep -1 (61 steps of 1000 are the first such number); here it is left away.
fn trailing(last: usize, train: usize, steps: usize) -> Vec<f64> {
    let (last, ratio) = (last as f64, train as f64 / steps as f64);
    let count = ((last / ratio).ceil() as usize).min(steps);
    let stride = (last - ratio) - last;
    (0..count)
        .map(|index| (last + index as f64 * stride).round_ties_even() - 1.0)
        .collect()
}

/// `table` read at a fractional `index`, clamped to its ends.
pub(super) fn interpolate(table: &[f32], index: f64) -> f64 {
    let last = table.len() - 1;
    let low = index.max(0.0) as usize;
    if low >= last {
        return f64::from(table[last]);
    }
    let (a, b) = (f64::from(table[low]), f64::from(table[low + 1]));
    a + (b - a) * (index.max(0.0) - low as f64)
}
