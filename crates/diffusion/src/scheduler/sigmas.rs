//! Noise levels that are not simply those of the visited training steps, and the training step of a noise level.
//!
//! Source: `_convert_to_karras`, `_convert_to_exponential`, `_convert_to_beta`, `_convert_to_lu` and `_sigma_to_t` of
//! `scheduling_euler_discrete.py` and `scheduling_dpmsolver_multistep.py`; numpy computes them in f64.

use super::config::{SchedulerConfig, Spread};
use super::table::linspace;
use super::{beta, logarithm};

/// Exponent of Karras' noise levels.
const RHO: f64 = 7.0;
/// Both parameters of the beta distribution (Lee et al., 2024).
const BETA: f64 = 0.6;

/// `steps` levels spread as the configuration asks, from the `most` to the `least` noise unless it names its own ends;
/// nothing if the visited training steps' own are to stay.
pub(super) fn spread(
    config: &SchedulerConfig,
    most: f64,
    least: f64,
    steps: usize,
) -> Option<Vec<f64>> {
    let (low, high) = (
        config.sigma_min.unwrap_or(least),
        config.sigma_max.unwrap_or(most),
    );
    Some(match config.spread {
        Spread::Trained => return None,
        Spread::Karras => {
            let (low, high) = (low.powf(1.0 / RHO), high.powf(1.0 / RHO));
            linspace(0.0, 1.0, steps)
                .into_iter()
                .map(|ramp| (high + ramp * (low - high)).powf(RHO))
                .collect()
        }
        Spread::Exponential => exponentials(linspace(high.ln(), low.ln(), steps)),
        Spread::Beta => linspace(0.0, 1.0, steps)
            .into_iter()
            .map(|ramp| low + beta::quantile(1.0 - ramp, BETA) * (high - low))
            .collect(),
        // From end to end of the table, whatever ends are named; numpy's logarithms of an f32 table are f32.
        Spread::Lu => {
            let ln = |sigma: f64| f64::from(logarithm::ln(sigma as f32));
            let (low, high) = (ln(least), ln(most));
            let ramps = linspace(0.0, 1.0, steps).into_iter();
            exponentials(ramps.map(|ramp| high + ramp * (low - high)).collect())
        }
    })
}

/// In f32, and behind the last step's what is left at the end: the `least`, or nothing.
pub(super) fn with_end(config: &SchedulerConfig, sigmas: Vec<f64>, least: f64) -> Vec<f32> {
    let end = if config.end_at_smallest { least } else { 0.0 };
    (sigmas.into_iter().chain([end]))
        .map(|sigma| sigma as f32)
        .collect()
}

fn exponentials(mut logs: Vec<f64>) -> Vec<f64> {
    logs.iter_mut().for_each(|log| *log = log.exp());
    logs
}

/// The training steps of a whole table, for looking sigmas up.
pub(super) struct Steps {
    /// Of each training step's sigma.
    logs: Vec<f32>,
}

impl Steps {
    pub(super) fn of(table: &[f32]) -> Self {
        Self {
            logs: table.iter().copied().map(logarithm::ln).collect(),
        }
    }

    /// The (fractional) training step of a sigma.
    pub(super) fn step(&self, sigma: f64) -> f64 {
        let logs = &self.logs;
        let log = sigma.max(1e-10).ln();
        // The table rises. Below all of it and above, its first or last interval is taken.
        let below = logs.partition_point(|at| log >= f64::from(*at));
        let low = below.saturating_sub(1).min(logs.len() - 2);
        let span = f64::from(logs[low] - logs[low + 1]);
        let weight = ((f64::from(logs[low]) - log) / span).clamp(0.0, 1.0);
        (1.0 - weight) * low as f64 + weight * (low + 1) as f64
    }
}
