//! What holds for any configuration.

use proptest::prelude::*;
use serde_json::json;

use super::*;

const CLASSES: [&str; 8] = [
    "DDIMScheduler",
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "HeunDiscreteScheduler",
    "DPMSolverMultistepScheduler",
    "UniPCMultistepScheduler",
    "LCMScheduler",
    "TCDScheduler",
];

/// One of a key's values, or none.
fn maybe(
    key: &'static str,
    values: Vec<Value>,
) -> impl Strategy<Value = Option<(&'static str, Value)>> {
    prop::option::of(prop::sample::select(values).prop_map(move |value| (key, value)))
}

fn configs() -> impl Strategy<Value = (&'static str, Value)> {
    let flags = || vec![json!(false), json!(true)];
    let common = (
        maybe(
            "num_train_timesteps",
            vec![json!(2), json!(40), json!(100), json!(1000)],
        ),
        maybe(
            "beta_schedule",
            vec![
                json!("linear"),
                json!("scaled_linear"),
                json!("squaredcos_cap_v2"),
            ],
        ),
        maybe(
            "beta_start",
            vec![json!(0.00085), json!(0.0), json!(-1.0), json!(2.0)],
        ),
        maybe(
            "beta_end",
            vec![json!(0.012), json!(0.0), json!(1.0), json!(1e30)],
        ),
        maybe(
            "prediction_type",
            vec![json!("epsilon"), json!("v_prediction"), json!("sample")],
        ),
        maybe(
            "timestep_spacing",
            vec![json!("leading"), json!("linspace"), json!("trailing")],
        ),
        maybe(
            "steps_offset",
            vec![json!(0), json!(1), json!(700), json!(1_000_000)],
        ),
        maybe("rescale_betas_zero_snr", flags()),
        maybe(
            "original_inference_steps",
            vec![json!(1), json!(25), json!(40)],
        ),
    );
    let ends = (
        maybe("final_sigmas_type", vec![json!("zero"), json!("sigma_min")]),
        maybe(
            "sigma_min",
            vec![json!(0.0), json!(0.03), json!(-2.0), json!(1e30)],
        ),
        maybe("sigma_max", vec![json!(0.0), json!(14.6), json!(-2.0)]),
        maybe(
            "lambda_min_clipped",
            vec![json!(-5.1), json!(100.0), json!(-1e9)],
        ),
        maybe("interpolation_type", vec![json!("log_linear")]),
        maybe("timestep_type", vec![json!("continuous")]),
    );
    let solvers = (
        maybe("solver_order", vec![json!(1), json!(2), json!(3)]),
        maybe(
            "algorithm_type",
            vec![json!("dpmsolver++"), json!("sde-dpmsolver++")],
        ),
        maybe(
            "solver_type",
            vec![json!("midpoint"), json!("heun"), json!("bh1"), json!("bh2")],
        ),
        maybe("lower_order_final", flags()),
        maybe("euler_at_final", flags()),
        maybe("predict_x0", flags()),
        maybe("disable_corrector", vec![json!([0]), json!([1, 3])]),
        maybe("clip_sample", flags()),
        maybe("use_lu_lambdas", flags()),
    );
    let spread = prop::sample::select(vec![
        "",
        "use_karras_sigmas",
        "use_exponential_sigmas",
        "use_beta_sigmas",
    ]);
    let class = prop::sample::select(CLASSES.to_vec());
    (class, common, ends, solvers, spread).prop_map(|(class, a, b, c, spread)| {
        let mut map = Map::new();
        let given = [
            a.0, a.1, a.2, a.3, a.4, a.5, a.6, a.7, a.8, b.0, b.1, b.2, b.3, b.4, b.5, c.0, c.1,
            c.2, c.3, c.4, c.5, c.6, c.7, c.8,
        ];
        for (key, value) in given.into_iter().flatten() {
            map.insert(key.to_owned(), value);
        }
        if !spread.is_empty() {
            map.insert(spread.to_owned(), json!(true));
        }
        (class, Value::Object(map))
    })
}

fn plans() -> impl Strategy<Value = Plan> {
    let steps = prop_oneof![
        20 => 1..30_usize,
        1 => prop::sample::select(vec![0, 333, 999, 1000, usize::MAX]),
    ];
    let share = || {
        let odd = prop::sample::select(vec![f32::NAN, -1.0, 0.0, 1.0, 7.0]);
        prop::option::weighted(0.3, prop_oneof![15 => 0.05..0.95_f32, 1 => odd])
    };
    (steps, share(), share(), share(), share()).prop_map(|(steps, strength, start, end, eta)| {
        Plan {
            steps,
            strength,
            start,
            end,
            eta,
        }
    })
}

/// A job's state as it would be read from a snapshot.
fn through_bytes(history: &History) -> History {
    History {
        noise: Generator::from_bytes(&history.noise.to_bytes()).unwrap(),
        ..history.clone()
    }
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn no_configuration_and_no_plan_panics((class, config) in configs(), plan in plans(), elements in 1..20_usize) {
        let Ok(config) = read(class, &config) else { return Ok(()) };
        let Ok(schedule) = Schedule::new(&config, &plan) else { return Ok(()) };
        prop_assert!(schedule.evaluations() > 0);
        let mut generator = Generator::new(1);
        let noise = generator.normal(elements);
        let mut sample = schedule.start_from(&noise, &noise);
        let mut history = History::new(generator);
        for index in 0..schedule.evaluations().min(40) {
            prop_assert!(schedule.fits(index, &history, elements));
            let output = model(&sample, schedule.input_divisor(index), &noise);
            schedule.advance(index, &output, &mut sample, &mut history);
            prop_assert_eq!(schedule.noised_at(index, &noise, &noise).len(), elements);
        }
    }

    #[test]
    fn a_run_split_anywhere_gives_the_same_bits(
        (class, config) in configs(),
        plan in plans(),
        splits in prop::collection::vec(any::<bool>(), 60),
        seed in any::<u64>(),
    ) {
        let Ok(config) = read(class, &config) else { return Ok(()) };
        let plan = Plan { steps: plan.steps % 30, ..plan };
        let Ok(schedule) = Schedule::new(&config, &plan) else { return Ok(()) };
        let mut generator = Generator::new(seed);
        let noise = generator.normal(7);
        let (mut sample, mut history) = (noise.clone(), History::new(generator));
        let (mut other, mut split) = (sample.clone(), history.clone());
        for (index, here) in splits.iter().enumerate().take(schedule.evaluations()) {
            let output = model(&sample, schedule.input_divisor(index), &noise);
            schedule.advance(index, &output, &mut sample, &mut history);
            if *here {
                split = through_bytes(&split);
            }
            // Another value of the same schedule, as another process makes it.
            let again = Schedule::new(&config, &plan).unwrap();
            again.advance(index, &output, &mut other, &mut split);
            prop_assert_eq!(bits(&sample), bits(&other));
            prop_assert_eq!(bits(&history.denoised), bits(&split.denoised));
        }
    }

    #[test]
    fn only_the_history_of_the_evaluations_before_fits(
        (class, config) in configs(),
        plan in plans(),
        damage in 0..6_usize,
    ) {
        let Ok(config) = read(class, &config) else { return Ok(()) };
        let plan = Plan { steps: plan.steps % 30, ..plan };
        let Ok(schedule) = Schedule::new(&config, &plan) else { return Ok(()) };
        let mut history = History::new(Generator::new(1));
        let mut sample = vec![1.0, -1.0];
        for index in 0..schedule.evaluations() {
            schedule.advance(index, &[0.1, 0.2], &mut sample, &mut history);
            prop_assert!(schedule.fits(index + 1, &history, 2));
            prop_assert!(!schedule.fits(index + 1, &history, 3));
            let mut broken = history.clone();
            match damage {
                0 => broken.kept.push(vec![0.5; 2]),
                1 if !broken.kept.is_empty() => broken.kept.truncate(broken.kept.len() - 1),
                2 if !broken.kept.is_empty() => broken.kept[0].push(0.5),
                3 => broken.denoised.clear(),
                _ => broken.denoised.push(0.5),
            }
            prop_assert!(!schedule.fits(index + 1, &broken, 2));
        }
        prop_assert!(!schedule.fits(0, &history, 2));
        prop_assert!(!schedule.fits(schedule.evaluations() + 1, &history, 2));
        prop_assert!(!schedule.fits(usize::MAX, &history, 2));
    }
}
