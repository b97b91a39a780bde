//! Schedules: which noise levels a picture passes through, and how a model's output moves it from one to the next.
//!
//! Sources: the `scheduling_*.py` of diffusers 0.42 that each file names. Tables and coefficients are kept in f32 where
//! torch keeps them so and in f64 where numpy does, and combined in the same order: that is where equal numbers come from.

mod ancestral;
mod beta;
mod config;
mod ddim;
mod dpm;
mod euler;
mod heun;
mod history;
mod kind;
mod lcm;
mod logarithm;
mod plan;
mod sigmas;
mod table;
mod tcd;
mod unipc;

pub(crate) use config::SchedulerConfig;
use config::{Options, Prediction};
pub(crate) use history::History;
pub use kind::{SchedulerKind, UnknownScheduler};
pub(crate) use plan::{Plan, PlanError};

/// The schedule of one job: a value, built at once, the same for the same configuration and plan.
#[derive(Clone, Debug)]
pub(crate) struct Schedule {
    /// What the model is told at each evaluation; Heun's method needs two evaluations a step, but for the last.
    pub(crate) timesteps: Vec<f32>,
    /// Factor on unit noise before the first evaluation of a whole schedule.
    pub(crate) initial_sigma: f32,
    /// Evaluations of the whole schedule before this plan's first.
    begin: usize,
    /// How a noisy picture is made at each evaluation of the whole schedule.
    levels: Vec<Level>,
    prediction: Prediction,
    solver: Solver,
}

/// A schedule before a plan has taken its part.
struct Whole {
    timesteps: Vec<f32>,
    /// One for each timestep, or more.
    levels: Vec<Level>,
    initial_sigma: f32,
    /// Evaluations a step.
    order: usize,
    solver: Solver,
}

#[derive(Clone, Debug)]
enum Solver {
    Ddim(ddim::Ddim),
    Euler(euler::Euler),
    Ancestral(ancestral::Ancestral),
    Heun(heun::Heun),
    Dpm(dpm::Dpm),
    UniPc(unipc::UniPc),
    Lcm(lcm::Lcm),
    Tcd(tcd::Tcd),
}

/// A noise level: `sample = signal · picture + noise · unit noise`.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Level {
    signal: f32,
    noise: f32,
}

/// Which evaluation it is.
#[derive(Clone, Copy, Debug)]
struct At {
    /// Counted over the whole schedule.
    index: usize,
    /// Counted from the plan's first: how many this job has behind it.
    done: usize,
}

impl Schedule {
    /// What of this configuration's schedule the plan asks for.
    pub(crate) fn new(config: &SchedulerConfig, plan: &Plan) -> Result<Self, PlanError> {
        plan.check(config.most_steps())?;
        let steps = plan.steps;
        let eta = plan.eta.unwrap_or(0.0);
        let whole = match &config.options {
            Options::Ddim {
                clip,
                alpha_one_at_end,
            } => ddim::schedule(config, steps, eta, *clip, *alpha_one_at_end)?,
            Options::Euler {
                log_linear,
                continuous,
            } => euler::schedule(config, steps, *log_linear, *continuous),
            Options::Ancestral => ancestral::schedule(config, steps),
            Options::Heun { clip } => heun::schedule(config, steps, *clip),
            Options::Dpm(options) => dpm::schedule(config, steps, options)?,
            Options::UniPc(options) => unipc::schedule(config, steps, options)?,
            Options::Lcm {
                original_steps,
                scaling,
                clip,
            } => lcm::schedule(config, steps, *original_steps, *scaling, *clip),
            Options::Tcd { original_steps } => tcd::schedule(config, steps, *original_steps, eta),
        };
        let part = plan.part(&whole.timesteps, whole.order, config.train_steps)?;
        Ok(Self {
            timesteps: whole.timesteps[part.clone()].to_vec(),
            initial_sigma: whole.initial_sigma,
            begin: part.start,
            levels: whole.levels,
            prediction: config.prediction,
            solver: whole.solver,
        })
    }

    /// How often the model is asked.
    pub(crate) fn evaluations(&self) -> usize {
        self.timesteps.len()
    }

    fn at(&self, done: usize) -> At {
        At {
            index: self.begin + done,
            done,
        }
    }

    /// What the sample is divided by before the model sees it at evaluation `index` (from 0).
    pub(crate) fn input_divisor(&self, index: usize) -> f32 {
        let sigma = match &self.solver {
            Solver::Euler(_) | Solver::Ancestral(_) | Solver::Heun(_) => {
                self.levels[self.begin + index].noise
            }
            _ => return 1.0,
        };
        (sigma * sigma + 1.0).sqrt()
    }

    /// Moves `sample` on past evaluation `index` (from 0, below [`Schedule::evaluations`]), given the model's `output`
    /// there. `history` is that of the evaluations before, which [`Schedule::fits`], and gets this one's.
    pub(crate) fn advance(
        &self,
        index: usize,
        output: &[f32],
        sample: &mut [f32],
        history: &mut History,
    ) {
        let (prediction, at) = (self.prediction, self.at(index));
        match &self.solver {
            Solver::Ddim(ddim) => ddim.advance(prediction, at, output, sample, history),
            Solver::Euler(euler) => euler.advance(prediction, at, output, sample, history),
            Solver::Ancestral(ancestral) => {
                ancestral.advance(prediction, at, output, sample, history);
            }
            Solver::Heun(heun) => heun.advance(prediction, at, output, sample, history),
            Solver::Dpm(dpm) => dpm.advance(prediction, at, output, sample, history),
            Solver::UniPc(unipc) => unipc.advance(prediction, at, output, sample, history),
            Solver::Lcm(lcm) => lcm.advance(prediction, at, output, sample, history),
            Solver::Tcd(tcd) => tcd.advance(prediction, at, output, sample, history),
        }
    }

    /// A picture to start from, at the noise level before the first evaluation: `add_noise`.
    pub(crate) fn start_from(&self, picture: &[f32], noise: &[f32]) -> Vec<f32> {
        self.levels[self.begin].noised(picture, noise)
    }

    /// A known picture as it is after evaluation `index`, for what inpainting leaves alone: at the noise level before
    /// the next evaluation, and clean after the plan's last.
    pub(crate) fn noised_at(&self, index: usize, picture: &[f32], noise: &[f32]) -> Vec<f32> {
        if index + 1 >= self.evaluations() {
            return picture.to_vec();
        }
        self.levels[self.begin + index + 1].noised(picture, noise)
    }

    /// Whether some evaluation adds fresh noise.
    pub(crate) fn draws_noise(&self) -> bool {
        match &self.solver {
            Solver::Euler(_) | Solver::Heun(_) | Solver::UniPc(_) => false,
            Solver::Ancestral(_) => true,
            Solver::Ddim(ddim) => ddim.draws_noise(),
            Solver::Dpm(dpm) => dpm.draws_noise(),
            Solver::Lcm(lcm) => lcm.draws_noise(self.at(0).index),
            Solver::Tcd(tcd) => tcd.draws_noise(self.at(0).index),
        }
    }

    /// Whether `history` is one that evaluation `index` can follow, or the finished job's after the last: read from
    /// bytes, it could be anything. A sample has `elements` values.
    pub(crate) fn fits(&self, index: usize, history: &History, elements: usize) -> bool {
        let kept = match &self.solver {
            Solver::Heun(heun) => heun.keeps(index),
            Solver::Dpm(dpm) => dpm.keeps(index),
            Solver::UniPc(unipc) => unipc.keeps(index),
            _ => 0,
        };
        index <= self.evaluations()
            && history.denoised.len() == if index == 0 { 0 } else { elements }
            && history.kept.len() == kept
            && history.kept.iter().all(|values| values.len() == elements)
    }

    #[cfg(test)]
    pub(crate) fn sigmas(&self) -> Option<&[f32]> {
        match &self.solver {
            Solver::Ddim(_) | Solver::Lcm(_) | Solver::Tcd(_) => None,
            Solver::Euler(euler) => Some(&euler.sigmas),
            Solver::Ancestral(ancestral) => Some(&ancestral.sigmas),
            Solver::Heun(heun) => Some(&heun.sigmas),
            Solver::Dpm(dpm) => Some(&dpm.sigmas),
            Solver::UniPc(unipc) => Some(&unipc.sigmas),
        }
    }
}

impl Whole {
    /// Of a step at each of these training steps, whose noise levels are `levels`.
    fn at_training_steps(visited: &[usize], levels: Vec<Level>, solver: Solver) -> Self {
        Self {
            timesteps: visited.iter().map(|t| *t as f32).collect(),
            levels,
            initial_sigma: 1.0,
            order: 1,
            solver,
        }
    }
}

impl Level {
    /// Of the training steps `visited`, with ᾱ after each training step in `alphas`.
    fn of_training_steps(alphas: &[f32], visited: &[usize]) -> Vec<Self> {
        let level = |t: &usize| Self::of_alpha(alphas[*t]);
        visited.iter().map(level).collect()
    }

    /// Of a sample that keeps its variance, with ᾱ as the share of the picture's.
    fn of_alpha(alpha: f32) -> Self {
        Self {
            signal: alpha.sqrt(),
            noise: (1.0 - alpha).sqrt(),
        }
    }

    /// The same from the ratio of noise to signal.
    fn of_sigma(sigma: f32) -> Self {
        let signal = 1.0 / (sigma * sigma + 1.0).sqrt();
        Self {
            signal,
            noise: sigma * signal,
        }
    }

    /// Of a sample whose picture keeps its size while the noise grows.
    fn of_growing_noise(sigma: f32) -> Self {
        Self {
            signal: 1.0,
            noise: sigma,
        }
    }

    /// Half the logarithm of the signal-to-noise ratio.
    fn lambda(self) -> f32 {
        self.signal.ln() - self.noise.ln()
    }

    fn noised(self, picture: &[f32], noise: &[f32]) -> Vec<f32> {
        (picture.iter().zip(noise))
            .map(|(picture, noise)| self.signal * picture + self.noise * noise)
            .collect()
    }
}

impl Prediction {
    /// The finished picture that `output` implies, for a sample that keeps its variance.
    fn picture(self, level: Level, output: f32, sample: f32) -> f32 {
        match self {
            Self::Epsilon => (sample - level.noise * output) / level.signal,
            Self::V => level.signal * sample - level.noise * output,
            Self::Sample => output,
        }
    }

    /// The noise that `output` implies, for a sample that keeps its variance.
    fn epsilon(self, level: Level, output: f32, sample: f32) -> f32 {
        match self {
            Self::Epsilon => output,
            Self::V => level.signal * output + level.noise * sample,
            Self::Sample => (sample - level.signal * output) / level.noise,
        }
    }

    /// The finished picture, for a sample whose picture keeps its size while the noise grows.
    fn picture_at_sigma(self, sigma: f32, output: f32, sample: f32) -> f32 {
        let variance = sigma * sigma + 1.0;
        match self {
            Self::Epsilon => sample - sigma * output,
            Self::V => output * (-sigma / variance.sqrt()) + sample / variance,
            Self::Sample => output,
        }
    }
}

/// Element by element.
fn map2(first: &[f32], second: &[f32], f: impl Fn(f32, f32) -> f32) -> Vec<f32> {
    (first.iter().zip(second))
        .map(|(first, second)| f(*first, *second))
        .collect()
}

#[cfg(test)]
mod tests;
