//! Tables over the training steps, and the choice of steps among them.

use super::config::{Growth, SchedulerConfig, Spacing};

/// Exponent of Karras' noise levels.
const RHO: f64 = 7.0;
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
        Growth::SquaredCosine => {
            let bar = |t: f64| {
                ((t + 0.008) / 1.008 * std::f64::consts::FRAC_PI_2)
                    .cos()
                    .powi(2)
            };
            let at = |index: usize| bar(index as f64 / count as f64);
            (0..count)
                .map(|index| (1.0 - at(index + 1) / at(index)).min(0.999) as f32)
                .collect()
        }
    }
}

/// As torch has it: the second half counts from the end.
fn linspace_f32(start: f32, end: f32, count: usize) -> Vec<f32> {
    let step = (end - start) / (count.max(2) - 1) as f32;
    (0..count)
        .map(|index| {
            if index < count / 2 {
                start + step * index as f32
            } else {
                end - step * (count - 1 - index) as f32
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

/// Each training step's sigma (noise over signal), smallest first.
pub(super) fn sigmas(config: &SchedulerConfig) -> Vec<f32> {
    let mut alphas = alphas(config);
    if config.zero_snr
        && let Some(last) = alphas.last_mut()
    {
        *last = ALMOST_ZERO;
    }
    alphas
        .iter()
        .map(|alpha| ((1.0 - alpha) / alpha).sqrt())
        .collect()
}

/// `count` values from `start` to `end`, both included.
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

/// The training steps that DDIM and Euler visit, last first; whole except for linspace.
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
        Spacing::Trailing => trailing(train, steps),
    }
}

/// Evenly back from the end of training.
pub(super) fn trailing(train: usize, steps: usize) -> Vec<f64> {
    let ratio = train as f64 / steps as f64;
    (0..steps)
        .map(|index| (train as f64 - index as f64 * ratio).round_ties_even() - 1.0)
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

/// The (fractional) training step of a sigma.
pub(super) fn step_of(sigma: f64, logs: &[f32]) -> f64 {
    let log = sigma.max(1e-10).ln();
    let low = logs
        .iter()
        .rposition(|at| log >= f64::from(*at))
        .unwrap_or(0)
        .min(logs.len() - 2);
    let span = f64::from(logs[low] - logs[low + 1]);
    let weight = ((f64::from(logs[low]) - log) / span).clamp(0.0, 1.0);
    (1.0 - weight) * low as f64 + weight * (low + 1) as f64
}

/// Karras et al. (2022), equation 5.
pub(super) fn karras(config: &SchedulerConfig, most: f64, least: f64, steps: usize) -> Vec<f64> {
    let least = config.sigma_min.unwrap_or(least).powf(1.0 / RHO);
    let most = config.sigma_max.unwrap_or(most).powf(1.0 / RHO);
    linspace(0.0, 1.0, steps)
        .into_iter()
        .map(|ramp| (most + ramp * (least - most)).powf(RHO))
        .collect()
}

/// The sigmas in f32, with the one after the last step.
pub(super) fn with_end(
    config: &SchedulerConfig,
    sigmas: impl IntoIterator<Item = f64>,
    table: &[f32],
) -> Vec<f32> {
    let end = if config.end_at_smallest {
        table[0]
    } else {
        0.0
    };
    sigmas
        .into_iter()
        .map(|sigma| sigma as f32)
        .chain([end])
        .collect()
}
