//! DPM-Solver++, multistep, orders 1 to 3, and its form for the stochastic equation (Lu et al., 2022):
//! `scheduling_dpmsolver_multistep.py`.

use super::config::{DpmOptions, Growth, Prediction, SchedulerConfig, Spread};
use super::sigmas::{self, Steps};
use super::{At, History, Level, PlanError, Solver, Whole, map2, table};

/// Fewer steps than this end with lower orders, if the configuration wants that.
const FEW_STEPS: usize = 15;

#[derive(Clone, Debug)]
pub(super) struct Dpm {
    /// The sigma at each step, and after the last.
    pub(super) sigmas: Vec<f32>,
    order: usize,
    sde: bool,
    heun: bool,
    last_is_first_order: bool,
    last_but_one_is_second_order: bool,
}

pub(super) fn schedule(
    config: &SchedulerConfig,
    steps: usize,
    options: &DpmOptions,
) -> Result<Whole, PlanError> {
    let table = table::sigmas(config);
    let last = last_step(&table::alphas_above_zero(config), options.least_lambda);
    let mut timesteps = table::timesteps_before_last(config, last, steps)?;
    let (least, most) = (f64::from(table[0]), f64::from(table[table.len() - 1]));
    let sigmas = match sigmas::spread(config, most, least, steps) {
        Some(sigmas) => {
            let lookup = Steps::of(&table);
            timesteps = sigmas.iter().map(|sigma| lookup.step(*sigma)).collect();
            let rounded = matches!(config.spread, Spread::Karras | Spread::Lu);
            if rounded && config.growth != Growth::SquaredCosine {
                timesteps.iter_mut().for_each(|t| *t = t.round_ties_even());
            }
            sigmas
        }
        None => (timesteps.iter())
            .map(|t| table::interpolate(&table, *t))
            .collect(),
    };
    let sigmas = sigmas::with_end(config, sigmas, least);
    let few = options.lower_order_final && timesteps.len() < FEW_STEPS;
    Ok(Whole {
        // They are whole numbers in diffusers.
        timesteps: timesteps.iter().map(|t| t.trunc() as f32).collect(),
        levels: sigmas.iter().map(|sigma| Level::of_sigma(*sigma)).collect(),
        initial_sigma: 1.0,
        order: 1,
        solver: Solver::Dpm(Dpm {
            sigmas,
            order: options.order,
            sde: options.sde,
            heun: options.heun,
            last_is_first_order: options.euler_at_final || few || !config.end_at_smallest,
            last_but_one_is_second_order: few,
        }),
    })
}

/// How many training steps are low enough in noise to begin at: `lambda_min_clipped`.
fn last_step(alphas: &[f32], least_lambda: Option<f64>) -> usize {
    let Some(least) = least_lambda.map(|least| least as f32) else {
        return alphas.len();
    };
    let lambdas = alphas.iter().map(|alpha| Level::of_alpha(*alpha).lambda());
    alphas.len() - lambdas.rev().take_while(|lambda| *lambda < least).count()
}

/// A step's factors on the sample, on the newest picture, on its first and second divided differences, and on noise.
#[derive(Clone, Copy, Debug, Default)]
struct Factors {
    sample: f32,
    picture: f32,
    first: f32,
    second: f32,
    noise: f32,
}

impl Factors {
    fn bend_once(self, moved: &mut [f32], picture: &[f32], before: &[f32], ratio: f32) {
        let scale = 1.0 / ratio;
        for ((moved, picture), before) in moved.iter_mut().zip(picture).zip(before) {
            *moved += self.first * (scale * (picture - before));
        }
    }

    fn bend_twice(
        self,
        moved: &mut [f32],
        picture: &[f32],
        [before, before_that]: [&[f32]; 2],
        [near, far]: [f32; 2],
    ) {
        let (near_scale, far_scale) = (1.0 / near, 1.0 / far);
        let (lean, bend) = (near / (near + far), 1.0 / (near + far));
        let earlier = before.iter().zip(before_that);
        for ((moved, picture), (before, before_that)) in moved.iter_mut().zip(picture).zip(earlier)
        {
            let first = near_scale * (picture - before);
            let change = first - far_scale * (before - before_that);
            *moved = *moved + self.first * (first + lean * change) + self.second * (bend * change);
        }
    }
}

impl Dpm {
    pub(super) fn draws_noise(&self) -> bool {
        self.sde
    }

    /// Earlier pictures, one less than the order.
    pub(super) fn keeps(&self, done: usize) -> usize {
        done.min(self.order - 1)
    }

    pub(super) fn advance(
        &self,
        prediction: Prediction,
        at: At,
        output: &[f32],
        sample: &mut [f32],
        history: &mut History,
    ) {
        let level = |index: usize| Level::of_sigma(self.sigmas[index]);
        let now = level(at.index);
        let picture = map2(output, sample, |output, sample| {
            prediction.picture(now, output, sample)
        });
        let noise = self.sde.then(|| history.noise.normal(sample.len()));
        let evaluations = self.sigmas.len() - 1;
        let order = match history.kept.len() {
            _ if at.index + 1 == evaluations && self.last_is_first_order => 1,
            0 => 1,
            1 => 2,
            _ if at.index + 2 == evaluations && self.last_but_one_is_second_order => 2,
            _ => 3,
        };
        let next = level(at.index + 1);
        let width = next.lambda() - now.lambda();
        let factors = self.factors(order, now, next, width);
        let mut moved = map2(sample, &picture, |sample, picture| {
            factors.sample * sample + factors.picture * picture
        });
        // Of a step before, in units of this one.
        let ratio = |back: usize| {
            (level(at.index + 1 - back).lambda() - level(at.index - back).lambda()) / width
        };
        match (order, history.kept.as_slice()) {
            (2, [.., before]) => factors.bend_once(&mut moved, &picture, before, ratio(1)),
            (3, [.., before_that, before]) => {
                let earlier = [before.as_slice(), before_that.as_slice()];
                factors.bend_twice(&mut moved, &picture, earlier, [ratio(1), ratio(2)]);
            }
            _ => {}
        }
        for (index, (sample, moved)) in sample.iter_mut().zip(moved).enumerate() {
            *sample = match &noise {
                Some(noise) => moved + factors.noise * noise[index],
                None => moved,
            };
        }
        history.denoised.clone_from(&picture);
        history.keep(picture, self.order - 1);
    }

    fn factors(&self, order: usize, now: Level, next: Level, width: f32) -> Factors {
        if self.sde {
            return self.stochastic_factors(order, now, next, width);
        }
        let decay = (-width).exp() - 1.0;
        let slope = next.signal * (decay / width + 1.0);
        Factors {
            sample: next.noise / now.noise,
            picture: -(next.signal * decay),
            first: match order {
                1 => 0.0,
                2 if !self.heun => -0.5 * (next.signal * decay),
                _ => slope,
            },
            second: -(next.signal * ((decay + width) / (width * width) - 0.5)),
            noise: 0.0,
        }
    }

    fn stochastic_factors(&self, order: usize, now: Level, next: Level, width: f32) -> Factors {
        let twice = 2.0 * width;
        let growth = 1.0 - (-twice).exp();
        Factors {
            sample: next.noise / now.noise * (-width).exp(),
            picture: next.signal * growth,
            first: match order {
                1 => 0.0,
                2 if !self.heun => 0.5 * (next.signal * growth),
                _ => next.signal * (growth / -twice + 1.0),
            },
            second: next.signal * ((growth - twice) / (twice * twice) - 0.5),
            noise: next.noise * growth.sqrt(),
        }
    }
}
