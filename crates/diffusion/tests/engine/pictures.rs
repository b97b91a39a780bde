//! Whole pictures.

use diffusion::{BeginError, DecodeError, Model, Request, StepError};
use serde_json::Value;

use crate::support::{demo, finish, mini, recorded, request, step};

/// The most by which a colour may differ from diffusers' after rounding.
const PIXEL_BAR: u8 = 1;
/// The most by which final latents may differ.
const LATENT_BAR: f32 = 1e-3;

fn asked(case: &Value) -> Request {
    let number = |key: &str| u32::try_from(case[key].as_u64().unwrap()).unwrap();
    Request {
        prompt: case["prompt"].as_str().unwrap().to_owned(),
        negative_prompt: case["negative"].as_str().map(str::to_owned),
        width: number("width"),
        height: number("height"),
        steps: number("steps"),
        guidance_scale: case["guidance"].as_f64().unwrap() as f32,
        seed: case["seed"].as_u64().unwrap(),
        scheduler: case["scheduler"].as_str().map(|name| name.parse().unwrap()),
        eta: case["eta"].as_f64().map(|eta| eta as f32),
        guidance_rescale: case["rescale"].as_f64().unwrap_or_default() as f32,
        ..Request::default()
    }
}

fn compare(name: &str, model: &Model) {
    let (tensors, cases) = recorded(&format!("pictures_{name}"));
    for (index, case) in cases.iter().enumerate() {
        let mut job = model.begin(&asked(case)).unwrap();
        while !job.is_finished() {
            step(model, &mut job);
        }
        let latents: Vec<f32> = tensors[&format!("{index}.latents")]
            .flatten_all()
            .unwrap()
            .to_vec1()
            .unwrap();
        let ours = job.latents().values;
        assert_eq!(ours.len(), latents.len());
        let off = ours
            .iter()
            .zip(&latents)
            .map(|(a, b)| (a - b).abs())
            .fold(0.0, f32::max);
        let pixels: Vec<u8> = tensors[&format!("{index}.pixels")]
            .flatten_all()
            .unwrap()
            .to_vec1()
            .unwrap();
        let picture = model.decode(&job).unwrap();
        assert_eq!(picture.pixels.len(), pixels.len());
        let wrong = picture
            .pixels
            .iter()
            .zip(&pixels)
            .map(|(a, b)| a.abs_diff(*b))
            .max()
            .unwrap();
        println!("{name} {index}: latents off by {off:e}, pixels by {wrong}; {case}");
        assert!(off <= LATENT_BAR, "{name} {index}: latents off by {off}");
        assert!(wrong <= PIXEL_BAR, "{name} {index}: pixels off by {wrong}");
    }
}

#[test]
fn the_demo_model_draws_what_diffusers_draws() {
    compare("demo", demo());
}

#[test]
fn each_scheduler_draws_what_diffusers_draws() {
    compare("schedulers", demo());
}

#[test]
fn a_model_of_another_shape_draws_what_diffusers_draws() {
    compare("mini", mini());
}

#[test]
fn the_same_seed_twice_gives_the_same_bytes() {
    let draw = |seed| {
        finish(
            mini(),
            mini().begin(&Request { seed, ..request() }).unwrap(),
        )
    };
    assert_eq!(draw(3), draw(3));
    assert_ne!(draw(3), draw(4));
}

#[test]
fn jobs_that_share_their_steps_draw_what_they_draw_alone() {
    let model = mini();
    let kinds = [None, Some("euler"), Some("dpm++2m"), Some("dpm++2m-karras")];
    let requests: Vec<Request> = (0..8)
        .map(|index| Request {
            prompt: format!("thing {index}"),
            negative_prompt: (index % 3 == 0).then(|| "dog".to_owned()),
            width: if index % 4 == 1 { 48 } else { 32 },
            steps: 3 + index,
            guidance_scale: if index % 2 == 0 { 1.0 } else { 3.5 },
            seed: u64::from(index),
            scheduler: kinds[index as usize % 4].map(|name| name.parse().unwrap()),
            ..request()
        })
        .collect();
    let mut jobs: Vec<_> = requests
        .iter()
        .map(|request| model.begin(request).unwrap())
        .collect();
    // Each turn another part of the jobs takes part.
    for turn in 0.. {
        let mut part: Vec<_> = (jobs.iter_mut().enumerate())
            .filter(|(index, job)| !job.is_finished() && (turn + index) % 3 != 0)
            .map(|(_, job)| job)
            .collect();
        assert!(model.step(&mut part).iter().all(Result::is_ok));
        if jobs.iter().all(diffusion::Job::is_finished) {
            break;
        }
    }
    for (job, request) in jobs.iter().zip(&requests) {
        assert_eq!(
            model.decode(job).unwrap(),
            finish(model, model.begin(request).unwrap())
        );
    }
}

#[test]
fn a_step_answers_with_the_steps_done() {
    let model = mini();
    let mut job = model.begin(&request()).unwrap();
    assert!(matches!(model.preview(&job), Err(DecodeError::NotStarted)));
    assert!(matches!(
        model.decode(&job),
        Err(DecodeError::Unfinished { step: 0, steps: 5 })
    ));
    for expected in 1..=5 {
        let progress = model.step(&mut [&mut job]).remove(0).unwrap();
        assert_eq!((progress.step, progress.steps), (expected, 5));
        assert_eq!(model.preview(&job).unwrap().pixels.len(), 32 * 32 * 3);
    }
    assert!(matches!(
        model.step(&mut [&mut job]).remove(0),
        Err(StepError::Finished)
    ));
}

#[test]
fn the_last_preview_is_the_picture() {
    // Euler ends at sigma zero, where the estimate is the picture.
    let model = demo();
    let mut job = model
        .begin(&Request {
            width: 128,
            height: 128,
            steps: 4,
            ..request()
        })
        .unwrap();
    while !job.is_finished() {
        step(model, &mut job);
    }
    let (preview, picture) = (model.preview(&job).unwrap(), model.decode(&job).unwrap());
    let off = preview
        .pixels
        .iter()
        .zip(&picture.pixels)
        .map(|(a, b)| a.abs_diff(*b))
        .max();
    assert!(off <= Some(1), "off by {off:?}");
}

#[test]
fn parameters_out_of_range_are_refused_by_name() {
    let model = mini();
    let cases = [
        (
            "width",
            Request {
                width: 0,
                ..request()
            },
        ),
        (
            "width",
            Request {
                width: 33,
                ..request()
            },
        ),
        (
            "width",
            Request {
                width: u32::MAX - 15,
                ..request()
            },
        ),
        (
            "height",
            Request {
                height: 8,
                ..request()
            },
        ),
        (
            "steps",
            Request {
                steps: 0,
                ..request()
            },
        ),
        (
            "steps",
            Request {
                steps: 1001,
                ..request()
            },
        ),
        (
            "steps",
            Request {
                steps: u32::MAX,
                ..request()
            },
        ),
        (
            "guidance_scale",
            Request {
                guidance_scale: f32::NAN,
                ..request()
            },
        ),
        (
            "guidance_scale",
            Request {
                guidance_scale: -1.0,
                ..request()
            },
        ),
        (
            "guidance_scale",
            Request {
                guidance_scale: f32::INFINITY,
                ..request()
            },
        ),
    ];
    for (expected, request) in cases {
        match model.begin(&request) {
            Err(BeginError::Parameter { field, .. }) => assert_eq!(field, expected),
            other => panic!("{request:?} gave {other:?}"),
        }
    }
}

#[test]
fn limits_are_read_from_the_model() {
    let limits = demo().limits();
    assert_eq!(
        (
            limits.size_multiple,
            limits.default_width,
            limits.default_height
        ),
        (32, 128, 128)
    );
    assert_eq!((limits.max_prompt_tokens, limits.max_steps), (77, 1000));
    assert_eq!(mini().limits().size_multiple, 16);
}
