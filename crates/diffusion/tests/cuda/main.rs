//! Whole pictures on a GPU against the CPU. Where no GPU is, each test says so and ends.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::path::{Path, PathBuf};

use diffusion::{DType, Device, Job, Model, Request, RgbImage, gpu_memory, open_gpu};

/// How far pixels may be from the CPU's, in steps of 256: on average over a picture, and at most.
///
/// f32 differs by the order of sums. f16 and bf16 round weights and states: a picture stays the same picture, edges move.
struct Bar {
    dtype: DType,
    mean: f64,
    most: u8,
}

const BARS: [Bar; 3] = [
    Bar {
        dtype: DType::F32,
        mean: 0.05,
        most: 3,
    },
    Bar {
        dtype: DType::F16,
        mean: 2.0,
        most: 96,
    },
    Bar {
        dtype: DType::BF16,
        mean: 8.0,
        most: 255,
    },
];

fn gpu() -> Option<Device> {
    match open_gpu(0) {
        Ok(device) => Some(device),
        Err(reason) => {
            println!("skipped: {reason}");
            None
        }
    }
}

fn folders() -> [PathBuf; 2] {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    [
        here.join("tests").join("golden").join("mini"),
        here.join("../../assets/models/inkstone-demo"),
    ]
}

fn request(model: &Model, seed: u64) -> Request {
    Request {
        prompt: "a 3d cat on a blue background".to_owned(),
        width: model.limits().default_width,
        height: model.limits().default_height,
        steps: 8,
        guidance_scale: 2.0,
        seed,
        ..Request::default()
    }
}

fn step(model: &Model, jobs: &mut [&mut Job]) {
    for progress in model.step(jobs) {
        progress.unwrap();
    }
}

fn finish(model: &Model, mut job: Job) -> RgbImage {
    while !job.is_finished() {
        step(model, &mut [&mut job]);
    }
    model.decode(&job).unwrap()
}

fn draw(model: &Model, seed: u64) -> RgbImage {
    finish(model, model.begin(&request(model, seed)).unwrap())
}

fn check(what: &str, bar: &Bar, ours: &RgbImage, reference: &RgbImage) {
    assert_eq!(ours.pixels.len(), reference.pixels.len());
    let off = |(a, b): (&u8, &u8)| a.abs_diff(*b);
    let pairs = || ours.pixels.iter().zip(&reference.pixels);
    let most = pairs().map(off).max().unwrap_or(0);
    let sum: f64 = pairs().map(off).map(f64::from).sum();
    let mean = sum / ours.pixels.len() as f64;
    println!(
        "{what} in {:?}: off by {mean:.3} on average, {most} at most",
        bar.dtype
    );
    assert!(
        mean <= bar.mean && most <= bar.most,
        "{what} in {:?}: {mean:.3}, {most}",
        bar.dtype
    );
}

#[test]
fn pictures_on_the_gpu_are_those_of_the_cpu() {
    let Some(device) = gpu() else { return };
    for folder in folders() {
        let reference = draw(&Model::load(&folder, &Device::Cpu, DType::F32).unwrap(), 1);
        for bar in &BARS {
            let model = Model::load(&folder, &device, bar.dtype).unwrap();
            check(
                &folder.display().to_string(),
                bar,
                &draw(&model, 1),
                &reference,
            );
        }
    }
}

#[test]
fn a_picture_begun_on_one_device_is_finished_on_another() {
    let Some(device) = gpu() else { return };
    let folder = &folders()[1];
    let here = Model::load(folder, &Device::Cpu, DType::F32).unwrap();
    let there = Model::load(folder, &device, DType::F32).unwrap();
    let reference = draw(&here, 3);
    for (first, second) in [(&here, &there), (&there, &here)] {
        let mut job = first.begin(&request(first, 3)).unwrap();
        for _ in 0..3 {
            step(first, &mut [&mut job]);
        }
        let job = second.resume(&first.snapshot(&job)).unwrap();
        check("taken over", &BARS[0], &finish(second, job), &reference);
    }
}

#[test]
fn neighbours_on_the_gpu_do_not_change_a_picture_beyond_the_bound() {
    let Some(device) = gpu() else { return };
    let model = Model::load(&folders()[1], &device, DType::F32).unwrap();
    let mut jobs: Vec<Job> = (1..=3)
        .map(|seed| model.begin(&request(&model, seed)).unwrap())
        .collect();
    while !jobs[0].is_finished() {
        step(&model, &mut jobs.iter_mut().collect::<Vec<_>>());
    }
    for (job, seed) in jobs.iter().zip(1..) {
        let alone = draw(&model, seed);
        check(
            "among others",
            &BARS[0],
            &model.decode(job).unwrap(),
            &alone,
        );
    }
}

#[test]
fn a_model_that_goes_gives_its_memory_back() {
    let Some(device) = gpu() else { return };
    let folder = &folders()[1];
    // Libraries keep what they take at their first use.
    draw(&Model::load(folder, &device, DType::F16).unwrap(), 1);
    let before = gpu_memory(&device).unwrap();
    let model = Model::load(folder, &device, DType::F16).unwrap();
    draw(&model, 1);
    let loaded = gpu_memory(&device).unwrap();
    assert!(loaded.used > before.used, "{before:?}, then {loaded:?}");
    drop(model);
    let after = gpu_memory(&device).unwrap();
    // Other tests of this process have models too, but what this one took is gone from the pool.
    println!("{before:?}, {loaded:?}, {after:?}");
    assert!(after.used < loaded.used, "{loaded:?}, then {after:?}");
}

#[test]
fn a_gpu_is_opened_once() {
    let Some(device) = gpu() else { return };
    assert!(open_gpu(0).unwrap().same_device(&device));
}

#[test]
fn a_gpu_that_is_not_there_is_refused_in_one_line() {
    let line = open_gpu(4096).unwrap_err().to_string();
    assert!(!line.is_empty() && !line.contains('\n'), "{line}");
}
