//! Heun's method over sigmas (Karras et al., 2022, algorithm 2 without churn): `scheduling_heun_discrete.py`.
//!
//! A step is two evaluations: Euler's step to the next sigma, then the same step again with the mean of both slopes. The
//! last step, to sigma zero, is Euler's alone.

use super::config::{Prediction, SchedulerConfig};
use super::{At, History, Solver, Whole, euler, map2};

#[derive(Clone, Debug)]
pub(super) struct Heun {
    /// The sigma at each evaluation, and after the last: all but the first and the last come twice.
    pub(super) sigmas: Vec<f32>,
    clip: Option<f32>,
}

pub(super) fn schedule(config: &SchedulerConfig, steps: usize, clip: Option<f32>) -> Whole {
    let way = euler::way(config, steps, false);
    let mut sigmas = twice_but_first(&way.sigmas);
    // Nothing is evaluated at the end.
    sigmas.pop();
    Whole {
        timesteps: twice_but_first(&way.timesteps),
        levels: euler::levels(&sigmas),
        initial_sigma: way.initial_sigma,
        order: 2,
        solver: Solver::Heun(Heun { sigmas, clip }),
    }
}

fn twice_but_first(values: &[f32]) -> Vec<f32> {
    (values.iter().flat_map(|value| [*value; 2]))
        .skip(1)
        .collect()
}

impl Heun {
    /// In the middle of a step, its first slope and the sample that it began with.
    pub(super) fn keeps(&self, done: usize) -> usize {
        if done.is_multiple_of(2) { 0 } else { 2 }
    }

    pub(super) fn advance(
        &self,
        prediction: Prediction,
        at: At,
        output: &[f32],
        sample: &mut [f32],
        history: &mut History,
    ) {
        let sigma = self.sigmas[at.index];
        history.denoised = map2(output, sample, |output, sample| {
            let picture = prediction.picture_at_sigma(sigma, output, sample);
            self.clip.map_or(picture, |clip| picture.clamp(-clip, clip))
        });
        let slope = map2(sample, &history.denoised, |sample, picture| {
            (sample - picture) / sigma
        });
        if let [first, began] = history.kept.as_slice() {
            let width = sigma - self.sigmas[at.index - 1];
            for (((sample, slope), first), began) in
                sample.iter_mut().zip(&slope).zip(first).zip(began)
            {
                *sample = began + (first + slope) / 2.0 * width;
            }
            history.kept.clear();
            return;
        }
        let width = self.sigmas[at.index + 1] - sigma;
        history.kept = vec![slope, sample.to_vec()];
        for (sample, slope) in sample.iter_mut().zip(&history.kept[0]) {
            *sample += slope * width;
        }
    }
}
