//! Whatever happens to a picture on its way, and whoever shares its steps, it becomes what it becomes alone.

use std::sync::Arc;

use diffusion::{Job, Latents, Mask, Model, PromptSyntax, Request, RgbImage, SchedulerKind};
use proptest::prelude::*;

use crate::support::{demo, finish, mini, step};

/// What happens between two steps of the batch.
#[derive(Clone, Debug)]
enum Event {
    /// A step in which the jobs take part whose bit is set.
    Step(u8),
    /// The next request joins.
    Join,
    /// A job is put away as bytes and taken up again.
    Resume(prop::sample::Index),
    /// A job is given up.
    Cancel(prop::sample::Index),
}

fn requests() -> impl Strategy<Value = Vec<Request>> {
    let one = (
        prop_oneof!["[a-z3 ]{0,30}", "([(]cat:1[.]3[)] [a-z]{1,8} ){1,20}"],
        prop::sample::select(PromptSyntax::ALL.to_vec()),
        prop::option::of("[a-z ]{0,12}"),
        prop::sample::select(vec![(32, 32), (32, 32), (48, 32)]),
        1_u32..7,
        prop::sample::select(vec![0.0_f32, 1.0, 2.0, 7.5]),
        prop::sample::select(vec![0.0_f32, 0.7]),
        prop::option::of(0.0_f32..=1.0),
        any::<u64>(),
        prop::option::of(prop::sample::select(SchedulerKind::ALL.to_vec())),
    );
    let request = (one, origins()).prop_map(
        |(
            (
                prompt,
                prompt_syntax,
                negative_prompt,
                size,
                steps,
                guidance_scale,
                guidance_rescale,
                eta,
                seed,
                scheduler,
            ),
            origin,
        )| {
            let request = Request {
                prompt,
                prompt_syntax,
                negative_prompt,
                width: size.0,
                height: size.1,
                steps,
                guidance_scale,
                guidance_rescale,
                eta,
                seed,
                scheduler,
                ..Request::default()
            };
            begin_from(origin, request)
        },
    );
    prop::collection::vec(request, 2..7)
}

/// What a picture begins from.
#[derive(Clone, Debug)]
enum Origin {
    Noise,
    /// An image of these bytes, under a mask if so, led through this share of the way.
    Image(Vec<u8>, bool, f32),
    /// Latents that are in the middle of their way.
    Latents(Vec<f32>),
}

fn origins() -> impl Strategy<Value = Origin> {
    let image = (
        prop::collection::vec(any::<u8>(), 1..50),
        any::<bool>(),
        prop::sample::select(vec![0.6_f32, 1.0]),
    );
    prop_oneof![
        3 => Just(Origin::Noise),
        2 => image.prop_map(|(bytes, masked, strength)| Origin::Image(bytes, masked, strength)),
        1 => prop::collection::vec(-2.0_f32..2.0, 1..30).prop_map(Origin::Latents),
    ]
}

/// What is given fills the picture again and again.
fn begin_from(origin: Origin, request: Request) -> Request {
    let (width, height) = (request.width, request.height);
    let pixels = (width * height) as usize;
    match origin {
        Origin::Noise => request,
        Origin::Image(bytes, masked, strength) => {
            let fill = |count: usize| bytes.iter().copied().cycle().take(count).collect();
            let mask = || Mask {
                width,
                height,
                values: fill(pixels),
            };
            let image = RgbImage {
                width,
                height,
                pixels: fill(3 * pixels),
            };
            Request {
                // Of a single step no share is left.
                steps: request.steps.max(2),
                image: Some(Arc::new(image)),
                mask: masked.then(|| Arc::new(mask())),
                strength: Some(strength),
                ..request
            }
        }
        Origin::Latents(values) => {
            let values = values.iter().copied().cycle().take(pixels / 64 * 4);
            let latents = Latents {
                width,
                height,
                values: values.collect(),
            };
            Request {
                steps: request.steps.max(2),
                latents: Some(Arc::new(latents)),
                denoising_start: Some(0.4),
                ..request
            }
        }
    }
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let event = prop_oneof![
        6 => any::<u8>().prop_map(Event::Step),
        3 => Just(Event::Join),
        2 => any::<prop::sample::Index>().prop_map(Event::Resume),
        1 => any::<prop::sample::Index>().prop_map(Event::Cancel),
    ];
    prop::collection::vec(event, 4..24)
}

/// The pictures of those that were not cancelled, with the number of their request.
fn draw_together(
    model: &Model,
    requests: &[Request],
    events: Vec<Event>,
) -> Vec<(usize, RgbImage)> {
    let mut coming = requests.iter().enumerate();
    let mut running: Vec<(usize, Job)> = Vec::new();
    let mut join = |running: &mut Vec<(usize, Job)>| {
        let next = coming
            .next()
            .map(|(number, request)| (number, model.begin(request).unwrap()));
        running.extend(next);
    };
    for event in events {
        match event {
            Event::Join => join(&mut running),
            Event::Step(mask) => step_some(model, &mut running, mask),
            Event::Resume(which) if !running.is_empty() => {
                let index = which.index(running.len());
                let job = &mut running[index].1;
                *job = model.resume(&model.snapshot(job)).unwrap();
            }
            Event::Cancel(which) if running.len() > 1 => {
                let index = which.index(running.len());
                running.remove(index);
            }
            Event::Resume(_) | Event::Cancel(_) => {}
        }
    }
    for _ in requests {
        join(&mut running);
    }
    while running.iter().any(|(_, job)| !job.is_finished()) {
        step_some(model, &mut running, u8::MAX);
    }
    let picture = |(number, job): &(usize, Job)| (*number, model.decode(job).unwrap());
    running.iter().map(picture).collect()
}

fn step_some(model: &Model, running: &mut [(usize, Job)], mask: u8) {
    let mut part: Vec<&mut Job> = (running.iter_mut().enumerate())
        .filter(|(index, (_, job))| mask >> (index % 8) & 1 == 1 && !job.is_finished())
        .map(|(_, (_, job))| job)
        .collect();
    for answer in model.step(&mut part) {
        answer.unwrap();
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_picture_does_not_depend_on_its_company(requests in requests(), events in events()) {
        for (number, together) in draw_together(mini(), &requests, events) {
            let alone = finish(mini(), mini().begin(&requests[number]).unwrap());
            prop_assert!(together == alone, "{:?}", requests[number]);
        }
    }
}

#[test]
fn a_batch_of_the_demo_model_gives_each_the_bytes_it_gets_alone() {
    let requests: Vec<Request> = (0..5)
        .map(|index| Request {
            prompt: format!("a 3d cat number {index}"),
            width: 128,
            height: 128,
            steps: 4,
            guidance_scale: [2.0, 1.0, 5.0][index as usize % 3],
            seed: index,
            ..Request::default()
        })
        .collect();
    let mut jobs: Vec<Job> = requests
        .iter()
        .map(|request| demo().begin(request).unwrap())
        .collect();
    // The last joins two steps late.
    for turn in 0..6 {
        let (last, others) = jobs.split_last_mut().unwrap();
        let mut part: Vec<&mut Job> = others.iter_mut().filter(|job| !job.is_finished()).collect();
        if turn >= 2 {
            part.push(last);
        }
        demo()
            .step(&mut part)
            .into_iter()
            .for_each(|answer| assert!(answer.is_ok()));
    }
    for (job, request) in jobs.iter().zip(&requests) {
        assert_eq!(
            demo().decode(job).unwrap(),
            finish(demo(), demo().begin(request).unwrap())
        );
    }
}

#[test]
fn a_prompt_that_comes_again_gives_the_same_bytes() {
    let request = Request {
        prompt: "a thing that no other test asks for".to_owned(),
        negative_prompt: Some("another".to_owned()),
        width: 32,
        height: 32,
        steps: 2,
        guidance_scale: 3.0,
        ..Request::default()
    };
    let mut first = mini().begin(&request).unwrap();
    let second = mini().begin(&request).unwrap();
    step(mini(), &mut first);
    assert_eq!(finish(mini(), first), finish(mini(), second));
    let fresh = diffusion::Model::load(
        &crate::support::golden().join("mini"),
        &diffusion::Device::Cpu,
        diffusion::DType::F32,
    )
    .unwrap();
    let again = finish(mini(), mini().begin(&request).unwrap());
    assert_eq!(finish(&fresh, fresh.begin(&request).unwrap()), again);
}
