//! Pictures that begin from pictures: image to image, inpainting, the refiner, one model going on where another ended.

use std::collections::HashMap;
use std::sync::Arc;

use candle_core::{DType, Tensor};
use diffusion::{
    BeginError, Job, Latents, Mask, MicroConditioning, Model, Request, RgbImage, Size, Tiling,
};
use serde_json::Value;

use crate::support::{demo, finish, inpainter, mini, recorded, refiner, request, step};

/// The most by which a colour may differ from diffusers' after rounding.
const PIXEL_BAR: u8 = 1;
/// The most by which final latents may differ.
const LATENT_BAR: f32 = 1e-3;

fn bytes(x: &Tensor) -> Vec<u8> {
    x.flatten_all().unwrap().to_vec1().unwrap()
}

fn floats(x: &Tensor) -> Vec<f32> {
    x.to_dtype(DType::F32)
        .unwrap()
        .flatten_all()
        .unwrap()
        .to_vec1()
        .unwrap()
}

fn size(of: &Value) -> Option<Size> {
    let side = |index: usize| u32::try_from(of[index].as_u64().unwrap()).unwrap();
    of.is_array().then(|| Size {
        height: side(0),
        width: side(1),
    })
}

/// The sizes and scores under diffusers' names for them, each with `prefix`.
fn conditioning(case: &Value, prefix: &str) -> MicroConditioning {
    let (sizes, scores) = (&case["sizes"], &case["scores"]);
    // diffusers' image pipelines give the negative text the crop of the other, except for a refiner.
    let own = if scores.as_object().unwrap().is_empty() {
        ""
    } else {
        prefix
    };
    let crop = &sizes[format!("{own}crops_coords_top_left")];
    let edge = |index: usize| u32::try_from(crop[index].as_u64().unwrap_or(0)).unwrap();
    let score = scores[format!("{prefix}aesthetic_score")].as_f64();
    MicroConditioning {
        original_size: size(&sizes[format!("{prefix}original_size")]),
        target_size: size(&sizes[format!("{prefix}target_size")]),
        crop_top: edge(0),
        crop_left: edge(1),
        aesthetic_score: score.map(|score| score as f32),
    }
}

/// What a case asked for; `before` are the latents in which earlier cases ended.
fn asked(
    index: usize,
    case: &Value,
    tensors: &HashMap<String, Tensor>,
    before: &[Latents],
) -> Request {
    let number = |key: &str| u32::try_from(case[key].as_u64().unwrap()).unwrap();
    let share = |key: &str| case[key].as_f64().map(|share| share as f32);
    let (width, height) = (number("width"), number("height"));
    let image = tensors.get(&format!("{index}.image"));
    let mask = tensors.get(&format!("{index}.mask"));
    let has_away = ["sizes", "scores"].iter().any(|key| {
        let names = case[key].as_object().unwrap();
        names.keys().any(|name| name.starts_with("negative"))
    });
    Request {
        prompt: case["prompt"].as_str().unwrap().to_owned(),
        negative_prompt: case["negative"].as_str().map(str::to_owned),
        width,
        height,
        steps: number("steps"),
        guidance_scale: share("guidance").unwrap(),
        guidance_rescale: share("rescale").unwrap(),
        seed: case["seed"].as_u64().unwrap(),
        scheduler: case["scheduler"].as_str().map(|name| name.parse().unwrap()),
        image: image.map(|image| {
            Arc::new(RgbImage {
                width,
                height,
                pixels: bytes(image),
            })
        }),
        latents: case["of"]
            .as_u64()
            .map(|of| Arc::new(before[of as usize].clone())),
        mask: mask.map(|mask| {
            Arc::new(Mask {
                width,
                height,
                values: bytes(mask),
            })
        }),
        strength: share("strength"),
        denoising_start: share("start"),
        denoising_end: share("end"),
        conditioning: conditioning(case, ""),
        negative_conditioning: has_away.then(|| conditioning(case, "negative_")),
        ..Request::default()
    }
}

/// Compares every recorded case; one that asks for text only and is recorded of another model is drawn by `base`.
fn compare(name: &str, model: &Model, base: &Model) {
    let (tensors, cases) = recorded(&format!("images_{name}"));
    let mut before = Vec::new();
    for (index, case) in cases.iter().enumerate() {
        let model = if case["kind"] == "text" { base } else { model };
        let mut job = model
            .begin(&asked(index, case, &tensors, &before))
            .unwrap_or_else(|error| panic!("{name} {index}: {error:?}; {case}"));
        assert_eq!(
            u64::from(job.progress().steps),
            case["done"].as_u64().unwrap(),
            "{name} {index}: {case}"
        );
        while !job.is_finished() {
            step(model, &mut job);
        }
        let latents = job.latents();
        let off = (latents.values.iter())
            .zip(floats(&tensors[&format!("{index}.latents")]))
            .map(|(a, b)| (a - b).abs())
            .fold(0.0, f32::max);
        let picture = model.decode(&job).unwrap();
        let pixels = bytes(&tensors[&format!("{index}.pixels")]);
        assert_eq!(picture.pixels.len(), pixels.len());
        let wrong = (picture.pixels.iter().zip(&pixels))
            .map(|(a, b)| a.abs_diff(*b))
            .max()
            .unwrap();
        println!("{name} {index}: latents off by {off:e}, pixels by {wrong}; {case}");
        assert!(
            off <= LATENT_BAR,
            "{name} {index}: latents off by {off}; {case}"
        );
        assert!(
            wrong <= PIXEL_BAR,
            "{name} {index}: pixels off by {wrong}; {case}"
        );
        before.push(latents);
    }
}

#[test]
fn the_demo_model_changes_and_mends_pictures_as_diffusers_does() {
    compare("demo", demo(), demo());
}

#[test]
fn latents_with_a_mean_and_a_deviation_are_scaled_as_in_diffusers() {
    compare("mini", mini(), mini());
}

#[test]
fn a_model_that_sees_the_mask_paints_what_diffusers_paints() {
    compare("inpaint", inpainter(), inpainter());
}

#[test]
fn a_refiner_goes_on_where_another_model_ended_as_in_diffusers() {
    compare("refiner", refiner(), mini());
}

/// A picture with a little of everything.
fn picture(width: u32, height: u32) -> Arc<RgbImage> {
    let pixels = (0..height)
        .flat_map(|y| (0..width).flat_map(move |x| [x * 4, y * 4, (x ^ y) * 3]))
        .map(|value| (value % 256) as u8);
    Arc::new(RgbImage {
        width,
        height,
        pixels: pixels.collect(),
    })
}

/// The left half is to be painted anew.
fn left_half(width: u32, height: u32) -> Arc<Mask> {
    let values = (0..width * height).map(|at| if at % width < width / 2 { 255 } else { 0 });
    Arc::new(Mask {
        width,
        height,
        values: values.collect(),
    })
}

fn from_image() -> Request {
    Request {
        image: Some(picture(32, 32)),
        strength: Some(0.8),
        ..request()
    }
}

fn mended() -> Request {
    Request {
        mask: Some(left_half(32, 32)),
        ..from_image()
    }
}

fn draw(model: &Model, mut job: Job) -> Latents {
    while !job.is_finished() {
        step(model, &mut job);
    }
    job.latents()
}

#[test]
fn what_the_mask_leaves_out_comes_back_as_it_was() {
    for model in [demo(), mini()] {
        let request = Request {
            width: 64,
            height: 64,
            image: Some(picture(64, 64)),
            mask: Some(left_half(64, 64)),
            ..mended()
        };
        let mended = draw(model, model.begin(&request).unwrap());
        // Nothing to paint: what comes back is what the autoencoder makes of the picture.
        let all_known = Mask {
            width: 64,
            height: 64,
            values: vec![0; 64 * 64],
        };
        let request = Request {
            mask: Some(Arc::new(all_known)),
            ..request
        };
        let known = draw(model, model.begin(&request).unwrap());
        let columns = 64 / 8;
        let differs = |right: bool| {
            (mended.values.iter().zip(&known.values).enumerate())
                .filter(|(at, (a, b))| (at % columns >= columns / 2) == right && a != b)
                .count()
        };
        assert_eq!(differs(true), 0, "the right half is known");
        assert!(differs(false) > 0, "the left half was painted");
    }
}

#[test]
fn a_job_that_began_from_a_picture_resumes_to_the_same_picture() {
    let paints = Request {
        strength: None,
        ..mended()
    };
    let cases = [
        (mini(), from_image()),
        (mini(), mended()),
        (mini(), paints.clone()),
        (inpainter(), paints),
        (refiner(), from_image()),
    ];
    for (model, request) in cases {
        let whole = finish(model, model.begin(&request).unwrap());
        let mut job = model.begin(&request).unwrap();
        loop {
            let bytes = model.snapshot(&job);
            let resumed = model.resume(&bytes).unwrap();
            assert_eq!(resumed.request(), job.request());
            assert_eq!(model.snapshot(&resumed), bytes);
            job = resumed;
            if job.is_finished() {
                break;
            }
            step(model, &mut job);
        }
        assert_eq!(model.decode(&job).unwrap(), whole);
    }
}

#[test]
fn jobs_of_every_kind_share_a_step_and_draw_what_they_draw_alone() {
    let model = mini();
    let latents = draw(model, model.begin(&request()).unwrap());
    let requests = [
        request(),
        from_image(),
        mended(),
        Request {
            latents: Some(Arc::new(latents)),
            denoising_start: Some(0.5),
            ..request()
        },
        Request {
            denoising_end: Some(0.7),
            guidance_scale: 1.0,
            ..request()
        },
        Request {
            guidance_rescale: 0.7,
            ..mended()
        },
    ];
    let mut jobs = requests
        .each_ref()
        .map(|request| model.begin(request).unwrap());
    while !jobs.iter().all(Job::is_finished) {
        let mut part: Vec<&mut Job> = jobs.iter_mut().filter(|job| !job.is_finished()).collect();
        assert!(model.step(&mut part).iter().all(Result::is_ok));
    }
    for (job, request) in jobs.iter().zip(&requests) {
        assert_eq!(job.latents(), draw(model, model.begin(request).unwrap()));
    }
}

#[test]
fn tiling_changes_only_pictures_that_are_larger_than_a_tile() {
    // The demo model's tiles are of 128 pixels.
    for (side, same) in [(128, true), (160, false)] {
        let [whole, tiles] = [Tiling::Whole, Tiling::Tiles].map(|tiling| {
            let request = Request {
                width: side,
                height: side,
                image: Some(picture(side, side)),
                strength: Some(0.3),
                steps: 4,
                tiling,
                ..request()
            };
            finish(demo(), demo().begin(&request).unwrap())
        });
        assert_eq!(whole == tiles, same, "{side}");
        let far = (whole.pixels.iter().zip(&tiles.pixels))
            .map(|(a, b)| u32::from(a.abs_diff(*b)))
            .sum::<u32>();
        assert!(far <= 8 * side * side * 3, "{side}: {far}");
    }
}

fn refused(model: &Model, request: &Request) -> (&'static str, String) {
    match model.begin(request) {
        Err(error @ BeginError::Parameter { field, .. }) => (field, error.to_string()),
        other => panic!("{request:?} gave {other:?}"),
    }
}

#[test]
fn what_does_not_go_together_is_refused_by_name() {
    let no_pixels = RgbImage {
        pixels: vec![0; 5],
        ..(*picture(32, 32)).clone()
    };
    let no_mask = Mask {
        values: vec![0; 7],
        ..(*left_half(32, 32)).clone()
    };
    let latents = |values: usize, value: f32| {
        Some(Arc::new(Latents {
            width: 32,
            height: 32,
            values: vec![value; values],
        }))
    };
    let with = |change: &dyn Fn(&mut Request)| {
        let mut request = mended();
        change(&mut request);
        request
    };
    let cases = [
        ("image", with(&|r| r.image = Some(picture(48, 32)))),
        (
            "image",
            with(&|r| r.image = Some(Arc::new(no_pixels.clone()))),
        ),
        ("mask", with(&|r| r.mask = Some(left_half(32, 48)))),
        ("mask", with(&|r| r.mask = Some(Arc::new(no_mask.clone())))),
        ("mask", with(&|r| r.image = None)),
        ("latents", with(&|r| r.latents = latents(64, 0.0))),
        (
            "latents",
            Request {
                latents: latents(63, 0.0),
                ..request()
            },
        ),
        (
            "latents",
            Request {
                latents: latents(64, f32::NAN),
                ..request()
            },
        ),
        (
            "strength",
            Request {
                strength: Some(0.5),
                ..request()
            },
        ),
        ("strength", with(&|r| r.strength = Some(0.0))),
        ("strength", with(&|r| r.strength = Some(1.01))),
        ("strength", with(&|r| r.strength = Some(f32::NAN))),
        ("strength", with(&|r| r.strength = Some(0.1))),
        (
            "denoising_start",
            Request {
                denoising_start: Some(0.5),
                ..request()
            },
        ),
        ("denoising_start", with(&|r| r.denoising_start = Some(1.0))),
        (
            "denoising_end",
            with(&|r| r.denoising_end = Some(f32::INFINITY)),
        ),
        (
            "denoising_start",
            with(&|r| {
                (r.denoising_start, r.denoising_end) = (Some(0.6), Some(0.5));
            }),
        ),
        (
            "original_size",
            with(&|r| {
                r.conditioning.original_size = Some(Size {
                    width: 0,
                    height: 32,
                });
            }),
        ),
        (
            "target_size",
            with(&|r| {
                r.conditioning.target_size = Some(Size {
                    width: 32,
                    height: u32::MAX,
                });
            }),
        ),
        ("crop_left", with(&|r| r.conditioning.crop_left = u32::MAX)),
        (
            "aesthetic_score",
            with(&|r| r.conditioning.aesthetic_score = Some(f32::NAN)),
        ),
        (
            "negative_crop_top",
            with(&|r| {
                let crop_top = u32::MAX;
                r.negative_conditioning = Some(MicroConditioning {
                    crop_top,
                    ..Default::default()
                });
            }),
        ),
    ];
    for (expected, request) in cases {
        let (field, text) = refused(mini(), &request);
        assert_eq!(field, expected, "{text}");
    }
}

#[test]
fn a_model_that_needs_a_picture_says_so() {
    let (field, text) = refused(refiner(), &request());
    assert_eq!(field, "image", "{text}");
    assert!(refiner().limits().needs_image && !refiner().limits().needs_mask);
    for (expected, request) in [("image", request()), ("mask", from_image())] {
        let (field, text) = refused(inpainter(), &request);
        assert_eq!(field, expected, "{text}");
    }
    assert!(inpainter().limits().needs_image && inpainter().limits().needs_mask);
    let of_latents = Request {
        image: None,
        latents: Some(Arc::new(Latents {
            width: 32,
            height: 32,
            values: vec![0.0; 64],
        })),
        ..mended()
    };
    assert_eq!(refused(inpainter(), &of_latents).0, "latents");
    assert!(!mini().limits().needs_image && !demo().limits().needs_mask);
}
