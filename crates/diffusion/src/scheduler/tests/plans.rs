//! Parts of schedules.

use super::*;
use crate::golden;

#[test]
fn each_part_is_the_one_that_diffusers_pipelines_take() {
    let recorded = golden::read("schedulers_plans");
    assert!(recorded.cases.len() > 200);
    let mut worst = 0.0_f32;
    for (index, case) in recorded.cases.iter().enumerate() {
        let name = format!(
            "{index} {} {} {}",
            case["class"], case["config"], case["plan"]
        );
        let plan = plan(case);
        let schedule = Schedule::new(&config(case), &plan).unwrap();
        worst = worst.max(follow(&name, &recorded, index, &schedule, &plan));
    }
    println!("off by {worst} of the bar");
}

#[test]
fn a_plan_that_cannot_be_is_refused_by_field_and_range() {
    let config = read("EulerDiscreteScheduler", &serde_json::json!({})).unwrap();
    let plan = Plan {
        steps: 10,
        ..Plan::default()
    };
    let with = |change: fn(&mut Plan)| {
        let mut plan = plan;
        change(&mut plan);
        plan
    };
    let cases = [
        (
            with(|plan| plan.steps = 0),
            "steps is 0: expected 1 to 1000",
        ),
        (
            with(|plan| plan.steps = 1001),
            "steps is 1001: expected 1 to 1000",
        ),
        (
            with(|plan| plan.eta = Some(1.5)),
            "eta is 1.5: expected 0 to 1",
        ),
        (
            with(|plan| plan.eta = Some(f32::NAN)),
            "eta is NaN: expected 0 to 1",
        ),
        (
            with(|plan| plan.strength = Some(0.0)),
            "strength is 0: expected more than 0 and at most 1",
        ),
        (
            with(|plan| plan.strength = Some(1.1)),
            "strength is 1.1: expected more than 0 and at most 1",
        ),
        (
            with(|plan| plan.strength = Some(0.05)),
            "strength is 0.05: of 10 steps none is left",
        ),
        (
            with(|plan| plan.start = Some(1.0)),
            "denoising_start is 1: expected more than 0 and less than 1",
        ),
        (
            with(|plan| plan.end = Some(0.0)),
            "denoising_end is 0: expected more than 0 and less than 1",
        ),
        (
            with(|plan| plan.end = Some(f32::NAN)),
            "denoising_end is NaN: expected more than 0 and less than 1",
        ),
        (
            with(|plan| (plan.start, plan.end) = (Some(0.8), Some(0.8))),
            "denoising_start is 0.8: expected less than denoising_end, which is 0.8",
        ),
        (
            with(|plan| (plan.start, plan.end) = (Some(0.75), Some(0.76))),
            "denoising_end is 0.76: of 10 steps none is left",
        ),
    ];
    for (plan, expected) in cases {
        let error = Schedule::new(&config, &plan).unwrap_err();
        assert_eq!(error.to_string(), expected, "{plan:?}");
    }
    let lcm = read("LCMScheduler", &serde_json::json!({})).unwrap();
    let error = Schedule::new(&lcm, &with(|plan| plan.steps = 51)).unwrap_err();
    assert_eq!(error.to_string(), "steps is 51: expected 1 to 50");
}

#[test]
fn a_refused_plan_is_a_refused_parameter() {
    let error = PlanError::new("strength", 2, "expected less");
    let text = error.to_string();
    assert_eq!(crate::error::BeginError::from(error).to_string(), text);
}
