//! Schedules: which noise levels a picture passes through, and how a model's output moves it from one to the next.
//!
//! Sources: `scheduling_ddim.py`, `scheduling_euler_discrete.py` and `scheduling_dpmsolver_multistep.py` of
//! diffusers 0.42. Tables and coefficients are kept in f32 where torch keeps them so.

mod config;
mod ddim;
mod dpm;
mod euler;
mod table;

use crate::noise::Generator;
use config::Prediction;
pub(crate) use config::SchedulerConfig;

use std::fmt;
use std::str::FromStr;

/// A way from noise to a picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SchedulerKind {
    /// DDIM without added noise (Song et al., 2020): `ddim`.
    Ddim,
    /// Euler's method on the probability flow (Karras et al., 2022): `euler`.
    Euler,
    /// Second-order multistep DPM-Solver++ (Lu et al., 2022): `dpm++2m`.
    DpmPlusPlus2M,
    /// The same over Karras' noise levels: `dpm++2m-karras`.
    DpmPlusPlus2MKarras,
}

impl SchedulerKind {
    /// Every kind.
    pub const ALL: [SchedulerKind; 4] = [
        Self::Ddim,
        Self::Euler,
        Self::DpmPlusPlus2M,
        Self::DpmPlusPlus2MKarras,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Ddim => "ddim",
            Self::Euler => "euler",
            Self::DpmPlusPlus2M => "dpm++2m",
            Self::DpmPlusPlus2MKarras => "dpm++2m-karras",
        }
    }
}

impl fmt::Display for SchedulerKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A name that is no scheduler's.
#[derive(Debug, thiserror::Error)]
#[error("no scheduler is called {0:?}; there are ddim, euler, dpm++2m and dpm++2m-karras")]
pub struct UnknownScheduler(String);

impl FromStr for SchedulerKind {
    type Err = UnknownScheduler;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|kind| kind.name() == name)
            .ok_or_else(|| UnknownScheduler(name.to_owned()))
    }
}

/// The schedule of one job: a value, built at once, the same for the same configuration and number of steps.
#[derive(Clone, Debug)]
pub(crate) struct Schedule {
    /// What the model is told at each step.
    pub(crate) timesteps: Vec<f32>,
    /// Factor on unit noise before the first step.
    pub(crate) initial_sigma: f32,
    prediction: Prediction,
    solver: Solver,
}

#[derive(Clone, Debug)]
enum Solver {
    Ddim(ddim::Ddim),
    Euler(euler::Euler),
    Dpm(dpm::Dpm),
}

/// The noise level of a step: `sample = signal · picture + noise · unit noise`.
#[derive(Clone, Copy, Debug)]
struct Level {
    signal: f32,
    noise: f32,
}

/// Which part of the way from noise to picture is gone, in how many steps.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Plan {
    /// Steps of the whole way.
    pub(crate) steps: usize,
}

/// A plan that no schedule has.
#[derive(Clone, Debug)]
pub(crate) struct PlanError {
    /// The request's field.
    pub(crate) field: &'static str,
    /// Its value.
    pub(crate) value: String,
    /// What is in range.
    pub(crate) reason: String,
}

/// What a job carries from one evaluation of the model to the next.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct History {
    /// The last evaluation's estimate of the finished picture; empty before the first.
    pub(crate) denoised: Vec<f32>,
    /// What the solver keeps of earlier evaluations, oldest first.
    pub(crate) kept: Vec<Vec<f32>>,
    /// The request's generator, after the initial noise.
    pub(crate) noise: Generator,
}

impl Schedule {
    /// The schedule of a plan under this configuration.
    pub(crate) fn new(config: &SchedulerConfig, plan: &Plan) -> Result<Self, PlanError> {
        let steps = plan.steps;
        let refuse = |reason| PlanError {
            field: "steps",
            value: steps.to_string(),
            reason,
        };
        if steps == 0 || steps > config.train_steps {
            return Err(refuse(format!("expected 1 to {}", config.train_steps)));
        }
        match config.class {
            config::Class::Ddim => ddim::schedule(config, steps).map_err(refuse),
            config::Class::Euler => Ok(euler::schedule(config, steps)),
            config::Class::Dpm => Ok(dpm::schedule(config, steps)),
        }
    }

    /// How often the model is evaluated.
    pub(crate) fn evaluations(&self) -> usize {
        self.timesteps.len()
    }

    /// What the sample is divided by before the model sees it at `step` (from 0).
    pub(crate) fn input_divisor(&self, step: usize) -> f32 {
        match &self.solver {
            Solver::Euler(euler) => euler.input_divisor(step),
            Solver::Ddim(_) | Solver::Dpm(_) => 1.0,
        }
    }

    /// Moves `sample` one evaluation on, given the model's `output`.
    pub(crate) fn advance(
        &self,
        step: usize,
        output: &[f32],
        sample: &mut [f32],
        history: &mut History,
    ) {
        let denoised = &mut history.denoised;
        match &self.solver {
            Solver::Ddim(ddim) => ddim.advance(self.prediction, step, output, sample, denoised),
            Solver::Euler(euler) => euler.advance(self.prediction, step, output, sample, denoised),
            Solver::Dpm(dpm) => dpm.advance(self.prediction, step, output, sample, denoised),
        }
    }

    /// Whether `history` is one that the evaluation `step` can follow, for a sample of `elements` values.
    pub(crate) fn fits(&self, step: usize, history: &History, elements: usize) -> bool {
        let pictured = if step == 0 { 0 } else { elements };
        history.denoised.len() == pictured && history.kept.is_empty()
    }

    #[cfg(test)]
    pub(crate) fn sigmas(&self) -> Option<&[f32]> {
        match &self.solver {
            Solver::Ddim(_) => None,
            Solver::Euler(euler) => Some(&euler.sigmas),
            Solver::Dpm(dpm) => Some(&dpm.sigmas),
        }
    }
}

impl Prediction {
    /// The finished picture that `output` implies, for a sample that keeps its variance.
    fn denoised(self, level: Level, output: f32, sample: f32) -> f32 {
        match self {
            Self::Epsilon => (sample - level.noise * output) / level.signal,
            Self::V => level.signal * sample - level.noise * output,
            Self::Sample => output,
        }
    }
}

#[cfg(test)]
mod tests;
