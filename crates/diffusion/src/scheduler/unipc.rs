//! UniPC (Zhao et al., 2023), orders 1 to 3: a multistep predictor whose every step first corrects the one before, with
//! the output that was computed where it led: `scheduling_unipc_multistep.py`.

use super::config::{Prediction, SchedulerConfig, Spread, UniPcOptions};
use super::sigmas::{self, Steps};
use super::{At, History, Level, PlanError, Solver, Whole, map2, table};

const MOST_ORDER: usize = 3;

#[derive(Clone, Debug)]
pub(super) struct UniPc {
    /// The sigma at each step, and after the last.
    pub(super) sigmas: Vec<f32>,
    options: UniPcOptions,
}

pub(super) fn schedule(
    config: &SchedulerConfig,
    steps: usize,
    options: &UniPcOptions,
) -> Result<Whole, PlanError> {
    let table = table::sigmas(config);
    let mut timesteps = table::timesteps_before_last(config, config.train_steps, steps)?;
    let (mut least, most) = (f64::from(table[0]), f64::from(table[table.len() - 1]));
    let sigmas = match sigmas::spread(config, most, least, steps) {
        Some(sigmas) => {
            let lookup = Steps::of(&table);
            timesteps = sigmas.iter().map(|sigma| lookup.step(*sigma)).collect();
            if config.spread == Spread::Karras {
                timesteps.iter_mut().for_each(|t| *t = t.round_ties_even());
            }
            // Unlike DPM-Solver, it ends at the least of these, not of the table.
            least = sigmas[sigmas.len() - 1];
            sigmas
        }
        None => (timesteps.iter())
            .map(|t| table::interpolate(&table, *t))
            .collect(),
    };
    let sigmas = sigmas::with_end(config, sigmas, least);
    Ok(Whole {
        // They are whole numbers in diffusers.
        timesteps: timesteps.iter().map(|t| t.trunc() as f32).collect(),
        levels: sigmas.iter().map(|sigma| Level::of_sigma(*sigma)).collect(),
        initial_sigma: 1.0,
        order: 1,
        solver: Solver::UniPc(UniPc {
            sigmas,
            options: options.clone(),
        }),
    })
}

/// One update from a noise level to the next, after the outputs at that level and before.
struct Update {
    of_sample: f32,
    of_output: f32,
    of_residual: f32,
    /// Of the earlier outputs, newest first, how far before this step, in units of it.
    ratios: Vec<f32>,
    /// φ-function values of the paper's linear system.
    right: [f32; MOST_ORDER],
}

impl UniPc {
    /// The sample that the last step began with, and the last outputs, as many as the order.
    pub(super) fn keeps(&self, done: usize) -> usize {
        if done == 0 {
            0
        } else {
            1 + done.min(self.options.order)
        }
    }

    /// The order of the step that begins at an evaluation.
    fn order(&self, at: At) -> usize {
        let (now, next) = (self.sigmas[at.index], self.sigmas[at.index + 1]);
        // Neither towards sigma zero nor over no distance have differences a value (diffusers computes NaN there).
        if next == 0.0 || next == now {
            return 1;
        }
        let left = self.sigmas.len() - 1 - at.index;
        let most = if self.options.lower_order_final {
            self.options.order.min(left)
        } else {
            self.options.order
        };
        most.min(at.done + 1)
    }

    fn update(&self, from: usize, order: usize) -> Update {
        let level = |index: usize| Level::of_sigma(self.sigmas[index]);
        let (now, next) = (level(from), level(from + 1));
        let width = next.lambda() - now.lambda();
        let signed = if self.options.predicts_picture {
            -width
        } else {
            width
        };
        let phi = signed.exp_m1();
        let residual = if self.options.bh1 { signed } else { phi };
        let mut right = [0.0; MOST_ORDER];
        let (mut term, mut factorial) = (phi / signed - 1.0, 1.0);
        for (index, value) in right.iter_mut().take(order).enumerate() {
            *value = term * factorial / residual;
            factorial *= (index + 2) as f32;
            term = term / signed - 1.0 / factorial;
        }
        let ratios = (1..order)
            .map(|back| (level(from - back).lambda() - now.lambda()) / width)
            .collect();
        let (of_sample, target) = if self.options.predicts_picture {
            (next.noise / now.noise, next.signal)
        } else {
            (next.signal / now.signal, next.noise)
        };
        Update {
            of_sample,
            of_output: target * phi,
            of_residual: target * residual,
            ratios,
            right,
        }
    }

    pub(super) fn advance(
        &self,
        prediction: Prediction,
        at: At,
        output: &[f32],
        sample: &mut [f32],
        history: &mut History,
    ) {
        let level = Level::of_sigma(self.sigmas[at.index]);
        history.denoised = map2(output, sample, |output, sample| {
            prediction.picture(level, output, sample)
        });
        let newest = if self.options.predicts_picture {
            history.denoised.clone()
        } else {
            map2(output, sample, |output, sample| {
                prediction.epsilon(level, output, sample)
            })
        };
        if let Some((began, outputs)) = history.kept.split_first()
            && at.done > 0
            && !self.options.uncorrected.contains(&(at.index - 1))
        {
            let before = At {
                index: at.index - 1,
                done: at.done - 1,
            };
            self.correct(before, began, outputs, &newest, sample);
        }
        if !history.kept.is_empty() {
            history.kept.remove(0);
        }
        history.keep(newest, self.options.order);
        let began = sample.to_vec();
        self.predict(at, &history.kept, sample);
        history.kept.insert(0, began);
    }

    fn predict(&self, at: At, outputs: &[Vec<f32>], sample: &mut [f32]) {
        let order = self.order(at).min(outputs.len());
        let update = self.update(at.index, order);
        let weights = match order {
            1 => Vec::new(),
            2 => vec![0.5],
            _ => solve(&update.ratios, &update.right),
        };
        let base = sample.to_vec();
        update.apply(&base, outputs, &weights, None, sample);
    }

    /// `began` is the sample that the step `before` began with, `outputs` those at its beginning and earlier, `newest`
    /// the one where it led.
    fn correct(
        &self,
        before: At,
        began: &[f32],
        outputs: &[Vec<f32>],
        newest: &[f32],
        sample: &mut [f32],
    ) {
        let order = self.order(before).min(outputs.len());
        let update = self.update(before.index, order);
        let mut weights = if order == 1 {
            vec![0.5]
        } else {
            let nodes: Vec<f32> = update.ratios.iter().copied().chain([1.0]).collect();
            solve(&nodes, &update.right)
        };
        let last = weights.pop().unwrap_or_default();
        update.apply(began, outputs, &weights, Some((last, newest)), sample);
    }
}

impl Update {
    /// Where the step leads from `base`, into `sample`. `outputs` are oldest first; `weights` are those of the divided
    /// differences from the newest of them to each before, and of that to an output where the step leads, if there is.
    fn apply(
        &self,
        base: &[f32],
        outputs: &[Vec<f32>],
        weights: &[f32],
        reached: Option<(f32, &[f32])>,
        sample: &mut [f32],
    ) {
        let Some((newest, earlier)) = outputs.split_last() else {
            return;
        };
        let earlier: Vec<(&Vec<f32>, f32, f32)> = (earlier.iter().rev())
            .zip(&self.ratios)
            .zip(weights)
            .map(|((output, ratio), weight)| (output, *ratio, *weight))
            .collect();
        for (index, (sample, base)) in sample.iter_mut().zip(base).enumerate() {
            let here = newest[index];
            let plain = self.of_sample * base - self.of_output * here;
            let mut residual = 0.0;
            for (output, ratio, weight) in &earlier {
                residual += weight * ((output[index] - here) / ratio);
            }
            if let Some((weight, output)) = reached {
                residual += weight * (output[index] - here);
            }
            *sample = if earlier.is_empty() && reached.is_none() {
                plain
            } else {
                plain - self.of_residual * residual
            };
        }
    }
}

/// The weights whose moments over `nodes` are those on the `right`: Gauss' elimination with pivots, as LAPACK's.
fn solve(nodes: &[f32], right: &[f32]) -> Vec<f32> {
    let size = nodes.len().min(right.len());
    let mut rows: Vec<Vec<f32>> = (0..size)
        .map(|power| {
            let moments = nodes[..size].iter().map(|node| node.powi(power as i32));
            moments.chain([right[power]]).collect()
        })
        .collect();
    for column in 0..size {
        let pivot = (column..size)
            .reduce(|best, row| {
                if rows[row][column].abs() > rows[best][column].abs() {
                    row
                } else {
                    best
                }
            })
            .unwrap_or(column);
        rows.swap(column, pivot);
        let (done, below) = rows.split_at_mut(column + 1);
        let top = &done[column];
        for row in below {
            let factor = row[column] / top[column];
            for (value, above) in row.iter_mut().zip(top).skip(column) {
                *value -= factor * above;
            }
        }
    }
    let mut weights = vec![0.0; size];
    for row in (0..size).rev() {
        let known: f32 = (row + 1..size)
            .map(|column| rows[row][column] * weights[column])
            .sum();
        weights[row] = (rows[row][size] - known) / rows[row][row];
    }
    weights
}
