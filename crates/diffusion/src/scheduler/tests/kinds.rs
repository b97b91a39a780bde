//! A model's own configuration: swapped for another class's, and refused where it is not understood.

use serde_json::json;

use super::*;
use crate::golden;

#[test]
fn a_swapped_kind_is_diffusers_class_from_that_config() {
    let recorded = golden::read("schedulers_kinds");
    let mut seen = Vec::new();
    for (index, case) in recorded.cases.iter().enumerate() {
        let name = format!("{index} {} {}", case["kind"], case["own"]);
        let kind: SchedulerKind = case["kind"].as_str().unwrap().parse().unwrap();
        let class = case["own"]["_class_name"].as_str().unwrap();
        let own = read(class, &case["own"]).unwrap();
        let schedule = Schedule::new(&own.with_kind(kind).unwrap(), &plan(case)).unwrap();
        if case["finite"] == json!(true) {
            follow(&name, &recorded, index, &schedule, &plan(case));
        } else {
            // diffusers divides by zero.
            let sample = run(&schedule, &recorded.values("base"));
            assert!(sample.iter().all(|value| value.is_finite()), "{name}");
        }
        seen.push(kind);
    }
    for kind in SchedulerKind::ALL {
        assert!(seen.contains(&kind), "{kind} is not recorded");
    }
}

fn run(schedule: &Schedule, base: &[f32]) -> Vec<f32> {
    let mut generator = Generator::new(8);
    let mut sample = generator.normal(ELEMENTS);
    let mut history = History::new(generator);
    for index in 0..schedule.evaluations() {
        let output = model(&sample, schedule.input_divisor(index), base);
        schedule.advance(index, &output, &mut sample, &mut history);
    }
    sample
}

#[test]
fn a_kind_that_cannot_serve_a_model_is_refused() {
    let own = read(
        "EulerDiscreteScheduler",
        &json!({"prediction_type": "sample"}),
    )
    .unwrap();
    let error = own.with_kind(SchedulerKind::EulerAncestral).unwrap_err();
    assert_eq!(error.field, "scheduler");
    let text = error.to_string();
    assert!(
        text.contains("prediction_type") && text.contains("epsilon, v_prediction"),
        "{text}"
    );
}

#[test]
fn what_is_not_understood_is_refused_by_key_value_and_reason() {
    let dpm = "DPMSolverMultistepScheduler";
    let unipc = "UniPCMultistepScheduler";
    let cases = [
        ("PNDMScheduler", json!({}), "_class_name", "LCMScheduler"),
        (
            "DDIMScheduler",
            json!({"thresholding": true}),
            "thresholding",
            "false",
        ),
        (
            "DDIMScheduler",
            json!({"clip_sample_range": -1.0}),
            "clip_sample_range",
            "at least 0",
        ),
        (
            "EulerAncestralDiscreteScheduler",
            json!({"prediction_type": "sample"}),
            "prediction_type",
            "v_prediction",
        ),
        (
            "EulerDiscreteScheduler",
            json!({"timestep_type": "other"}),
            "timestep_type",
            "continuous",
        ),
        (
            "EulerDiscreteScheduler",
            json!({"use_karras_sigmas": true, "use_beta_sigmas": true}),
            "use_beta_sigmas",
            "another kind",
        ),
        (
            "EulerDiscreteScheduler",
            json!({"num_train_timesteps": 1}),
            "num_train_timesteps",
            "at least 2",
        ),
        (
            "EulerDiscreteScheduler",
            json!({"shift": 3.0}),
            "shift",
            "unknown",
        ),
        (
            "HeunDiscreteScheduler",
            json!({"beta_schedule": "sigmoid"}),
            "beta_schedule",
            "exp",
        ),
        (
            "EulerDiscreteScheduler",
            json!({"beta_schedule": "exp"}),
            "beta_schedule",
            "squaredcos_cap_v2",
        ),
        (dpm, json!({"solver_order": 4}), "solver_order", "2, 1, 3"),
        (
            dpm,
            json!({"algorithm_type": "sde-dpmsolver"}),
            "algorithm_type",
            "sde-dpmsolver++",
        ),
        (
            dpm,
            json!({"variance_type": "learned"}),
            "variance_type",
            "not supported",
        ),
        (
            dpm,
            json!({"use_flow_sigmas": true}),
            "use_flow_sigmas",
            "false",
        ),
        (
            dpm,
            json!({"prediction_type": "flow_prediction"}),
            "prediction_type",
            "sample",
        ),
        (unipc, json!({"solver_type": "bh3"}), "solver_type", "bh1"),
        (unipc, json!({"solver_p": {}}), "solver_p", "null"),
        (
            unipc,
            json!({"shift_terminal": 0.1}),
            "shift_terminal",
            "null",
        ),
        (
            unipc,
            json!({"disable_corrector": 1}),
            "disable_corrector",
            "list of steps",
        ),
        (
            unipc,
            json!({"predict_x0": false}),
            "final_sigmas_type",
            "sigma_min",
        ),
        (
            "LCMScheduler",
            json!({"original_inference_steps": 1001}),
            "original_inference_steps",
            "num_train_timesteps",
        ),
        (
            "TCDScheduler",
            json!({"trained_betas": [0.1]}),
            "trained_betas",
            "length",
        ),
    ];
    for (class, config, key, reason) in cases {
        let text = read(class, &config).unwrap_err().to_string();
        assert!(
            text.contains(key) && text.contains(reason),
            "{class} {config}: {text}"
        );
    }
}

#[test]
fn another_classs_keys_are_carried_along() {
    let all = json!({
        "algorithm_type": "dpmsolver", "thresholding": true, "solver_order": 9, "use_flow_sigmas": true,
        "skip_prk_steps": true, "variance_type": "fixed_small", "lambda_min_clipped": -5.1,
    });
    assert!(read("EulerAncestralDiscreteScheduler", &all).is_ok());
    assert!(read("DPMSolverMultistepScheduler", &all).is_err());
}
