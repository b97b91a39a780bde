//! Whole trajectories, recorded from diffusers by `scripts/golden/make_golden.py`.

use std::path::Path;

use serde_json::{Map, Value};

use super::*;
use crate::config::Fields;
use crate::golden;

fn config(case: &Value) -> SchedulerConfig {
    let mut config: Map<String, Value> = case["config"].as_object().unwrap().clone();
    config.insert("_class_name".to_owned(), case["class"].clone());
    SchedulerConfig::read(Fields::new(Path::new("golden"), config)).unwrap()
}

fn assert_near(what: &str, ours: &[f32], reference: &[f32], bar: f32) {
    assert_eq!(ours.len(), reference.len(), "{what}");
    for (index, (ours, reference)) in ours.iter().zip(reference).enumerate() {
        let off = (ours - reference).abs();
        assert!(
            off <= bar * reference.abs().max(1.0),
            "{what}[{index}]: {ours} is not {reference}"
        );
    }
}

#[test]
fn each_schedule_follows_diffusers_trajectory() {
    let recorded = golden::read("schedulers");
    let base = recorded.values("base");
    for (index, case) in recorded.cases.iter().enumerate() {
        let name = format!("{index} {} {:?}", case["scheduler"], case["config"]);
        let steps = case["steps"].as_u64().unwrap() as usize;
        let schedule = Schedule::new(&config(case), &Plan { steps }).unwrap();
        assert_eq!(schedule.evaluations(), steps, "{name}");
        assert_near(
            &name,
            &schedule.timesteps,
            &recorded.values(&format!("{index}.timesteps")),
            1e-5,
        );
        if let Some(sigmas) = schedule.sigmas() {
            assert_near(
                &name,
                sigmas,
                &recorded.values(&format!("{index}.sigmas")),
                1e-5,
            );
        }
        let samples = recorded
            .get(&format!("{index}.samples"))
            .to_vec2::<f32>()
            .unwrap();
        let pictures = recorded
            .get(&format!("{index}.denoised"))
            .to_vec2::<f32>()
            .unwrap();
        let mut noise = crate::noise::Generator::new(8).normal(16);
        noise.iter_mut().for_each(|x| *x *= schedule.initial_sigma);
        assert_near(&name, &noise, &samples[0], 1e-5);
        let (mut sample, mut history) = (
            samples[0].clone(),
            History {
                denoised: Vec::new(),
                kept: Vec::new(),
                noise: crate::noise::Generator::new(8),
            },
        );
        for step in 0..steps {
            let divisor = schedule.input_divisor(step);
            let output: Vec<f32> = sample
                .iter()
                .zip(&base)
                .map(|(sample, base)| 0.5 * (sample / divisor) - 0.25 * base)
                .collect();
            schedule.advance(step, &output, &mut sample, &mut history);
            assert_near(
                &format!("{name} step {step}"),
                &sample,
                &samples[step + 1],
                1e-4,
            );
            assert_near(
                &format!("{name} step {step} denoised"),
                &history.denoised,
                &pictures[step],
                1e-4,
            );
        }
    }
}

#[test]
fn each_name_reads_back() {
    for kind in SchedulerKind::ALL {
        assert_eq!(kind.to_string().parse::<SchedulerKind>().unwrap(), kind);
    }
    assert!("plms".parse::<SchedulerKind>().is_err());
}

#[test]
fn no_number_of_steps_panics() {
    let recorded = golden::read("schedulers");
    for case in &recorded.cases {
        for steps in [0, 1, 2, 3, 333, 500, 999, 1000, 1001, usize::MAX] {
            let _ = Schedule::new(&config(case), &Plan { steps });
        }
    }
}
