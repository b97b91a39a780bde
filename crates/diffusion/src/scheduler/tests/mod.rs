//! Schedules against diffusers', recorded by `scripts/golden/schedulers.py`, and what holds for any of them.

mod kinds;
mod plans;
mod properties;
mod trajectories;

use std::path::Path;

use serde_json::{Map, Value};

use super::*;
use crate::config::Fields;
use crate::error::LoadError;
use crate::golden::Golden;
use crate::noise::Generator;

/// Values of a recorded sample.
const ELEMENTS: usize = 16;
/// The most by which a table may be off, relative to a value or to 1.
const TABLE: f32 = 1e-5;
/// The same for a whole trajectory.
const TRAJECTORY: f32 = 1e-4;

fn read(class: &str, config: &Value) -> Result<SchedulerConfig, LoadError> {
    let mut config: Map<String, Value> = config.as_object().unwrap().clone();
    config.insert("_class_name".to_owned(), class.into());
    SchedulerConfig::read(Fields::new(Path::new("golden"), config))
}

fn config(case: &Value) -> SchedulerConfig {
    read(case["class"].as_str().unwrap(), &case["config"]).unwrap()
}

fn plan(case: &Value) -> Plan {
    let share = |key: &str| case["plan"][key].as_f64().map(|share| share as f32);
    Plan {
        steps: case["plan"]["steps"].as_u64().unwrap() as usize,
        strength: share("strength"),
        start: share("start"),
        end: share("end"),
        eta: share("eta"),
    }
}

/// How far off the worst value is, in units of the bar.
fn off(what: &str, ours: &[f32], reference: &[f32], bar: f32) -> f32 {
    assert_eq!(ours.len(), reference.len(), "{what}");
    let mut worst = 0.0_f32;
    for (index, (ours, reference)) in ours.iter().zip(reference).enumerate() {
        let off = (ours - reference).abs() / (bar * reference.abs().max(1.0));
        assert!(off <= 1.0, "{what}[{index}]: {ours} is not {reference}");
        worst = worst.max(off);
    }
    worst
}

/// The stand-in for a model that the script uses.
fn model(sample: &[f32], divisor: f32, base: &[f32]) -> Vec<f32> {
    map2(sample, base, |sample, base| {
        0.5 * (sample / divisor) - 0.25 * base
    })
}

/// Follows a recorded case from end to end, and says how far off it was in units of the bar.
fn follow(name: &str, recorded: &Golden, case: usize, schedule: &Schedule, plan: &Plan) -> f32 {
    let values = |key: &str| recorded.values(&format!("{case}.{key}"));
    let rows = |key: &str| {
        let rows = recorded.get(&format!("{case}.{key}"));
        rows.to_vec2::<f32>().unwrap()
    };
    let (base, picture) = (recorded.values("base"), recorded.find("picture"));
    off(name, &schedule.timesteps, &values("timesteps"), TABLE);
    if let Some(sigmas) = schedule.sigmas() {
        off(name, sigmas, &values("sigmas"), TABLE);
    }
    let (samples, pictures) = (rows("samples"), rows("denoised"));
    let mut generator = Generator::new(8);
    let noise = generator.normal(ELEMENTS);
    let known = picture.map(|picture| picture.flatten_all().unwrap().to_vec1().unwrap());
    let known: Vec<f32> = known.unwrap_or_default();
    let from_picture = plan.strength.is_some() || plan.start.is_some();
    let start: Vec<f32> = if from_picture {
        schedule.start_from(&known, &noise)
    } else {
        let sigma = schedule.initial_sigma;
        noise.iter().map(|noise| noise * sigma).collect()
    };
    off(name, &start, &samples[0], TABLE);
    // From the recorded start: with zero terminal SNR a sample begins in the thousands and ends near 1, so what our noise
    // is off by in its last places (see `noise.rs`) would be a thousandfold in the end.
    let mut sample = samples[0].clone();
    let mut history = History::new(generator);
    let mut worst = 0.0_f32;
    for index in 0..schedule.evaluations() {
        assert!(schedule.fits(index, &history, ELEMENTS), "{name} {index}");
        let output = model(&sample, schedule.input_divisor(index), &base);
        let before = history.noise.clone();
        schedule.advance(index, &output, &mut sample, &mut history);
        assert!(schedule.draws_noise() || before == history.noise, "{name}");
        let name = format!("{name} evaluation {index}");
        worst = worst.max(off(&name, &sample, &samples[index + 1], TRAJECTORY));
        let denoised = &history.denoised;
        worst = worst.max(off(&name, denoised, &pictures[index], TRAJECTORY));
        if from_picture {
            let noised = schedule.noised_at(index, &known, &noise);
            off(&name, &noised, &rows("noised")[index], TABLE);
        }
    }
    assert!(schedule.fits(schedule.evaluations(), &history, ELEMENTS));
    worst
}
