//! Euler's method with fresh noise at each step: `scheduling_euler_ancestral_discrete.py`.

use super::config::{Prediction, SchedulerConfig};
use super::{At, History, Solver, Whole, euler, map2};

#[derive(Clone, Debug)]
pub(super) struct Ancestral {
    /// The sigma at each step, and after the last.
    pub(super) sigmas: Vec<f32>,
}

pub(super) fn schedule(config: &SchedulerConfig, steps: usize) -> Whole {
    let way = euler::way(config, steps, false);
    Whole {
        timesteps: way.timesteps,
        levels: euler::levels(&way.sigmas),
        initial_sigma: way.initial_sigma,
        order: 1,
        solver: Solver::Ancestral(Ancestral { sigmas: way.sigmas }),
    }
}

impl Ancestral {
    pub(super) fn advance(
        &self,
        prediction: Prediction,
        at: At,
        output: &[f32],
        sample: &mut [f32],
        history: &mut History,
    ) {
        let (from, to) = (self.sigmas[at.index], self.sigmas[at.index + 1]);
        // Down to less noise than the next level has, and up to it with fresh noise. diffusers has `up` = to·√(1 − to²/from²)
        // and `down` = √(to² − up²), and moves by the slope times `down` − `from`. The same without differences of nearly
        // equal numbers, which cost all but three digits where zero terminal SNR makes the first sigma 4096:
        let ratio = to / from;
        let up = to * ((1.0 - ratio) * (1.0 + ratio)).sqrt();
        let left = ratio * ratio;
        history.denoised = map2(output, sample, |output, sample| {
            prediction.picture_at_sigma(from, output, sample)
        });
        // The last step's is drawn as well, and counts nothing.
        let noise = history.noise.normal(sample.len());
        for ((sample, picture), noise) in sample.iter_mut().zip(&history.denoised).zip(noise) {
            *sample = picture + (*sample - picture) * left + noise * up;
        }
    }
}
