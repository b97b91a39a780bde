//! Times one model on one device: load, steps at growing batches, decoding, and memory. Prints rows of a Markdown table.
//!
//! `cargo run -p diffusion --release --example bench_cuda -- FOLDER [DEVICE [DTYPE [SIDE [STEPS [BATCHES]]]]]`, for instance
//! `… bench_cuda -- model cuda:0 f16 1024 30 1,2,4,8`. With `--check` in place of a size it compares the device's picture with the
//! CPU's, and fails where they differ too much.
#![allow(clippy::print_stdout)]

use std::error::Error;
use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use diffusion::{
    DType, Device, Job, Model, Request, RgbImage, gpu_memory, open_gpu, reset_gpu_peak,
};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let argument = |index: usize, default: &str| {
        arguments
            .get(index)
            .map_or_else(|| default.to_owned(), Clone::clone)
    };
    let [folder, ..] = arguments.as_slice() else {
        return Err(
            "usage: bench_cuda FOLDER [DEVICE [DTYPE [SIDE|--check [STEPS [BATCHES]]]]]".into(),
        );
    };
    let device = device(&argument(1, "cpu"))?;
    let dtype = dtype(&argument(2, "f32"))?;
    if argument(3, "") == "--check" {
        return check(folder.as_ref(), &device, dtype);
    }
    let side: u32 = argument(3, "1024").parse()?;
    let steps: u32 = argument(4, "30").parse()?;
    let batches = argument(5, "1,2,4,8");
    let began = Instant::now();
    let model = Model::load(folder.as_ref(), &device, dtype)?;
    println!("loaded in {:.1} s", began.elapsed().as_secs_f64());
    for batch in batches.split(',') {
        if let Err(error) = row(&model, &device, dtype, side, steps, batch.parse()?) {
            // A batch that does not fit is a result; smaller ones before it stand.
            println!("| ours | {dtype:?} | {batch} | {error} | | | | |");
            break;
        }
    }
    Ok(())
}

fn device(name: &str) -> Result<Device> {
    match name {
        "cpu" => Ok(Device::Cpu),
        "cuda" => Ok(open_gpu(0)?),
        _ => match name.strip_prefix("cuda:") {
            Some(number) => Ok(open_gpu(number.parse()?)?),
            None => Err(format!("{name} is no device: cpu, cuda or cuda:N").into()),
        },
    }
}

fn dtype(name: &str) -> Result<DType> {
    match name {
        "f32" => Ok(DType::F32),
        "f16" => Ok(DType::F16),
        "bf16" => Ok(DType::BF16),
        _ => Err(format!("{name} is no type: f32, f16 or bf16").into()),
    }
}

fn request(side: u32, steps: u32, seed: u64) -> Request {
    Request {
        prompt: "a 3d panda on a yellow background".to_owned(),
        width: side,
        height: side,
        steps,
        guidance_scale: 5.0,
        seed,
        ..Request::default()
    }
}

fn begin(model: &Model, side: u32, steps: u32, batch: usize) -> Result<Vec<Job>> {
    (1..=batch as u64)
        .map(|seed| Ok(model.begin(&request(side, steps, seed))?))
        .collect()
}

fn step(model: &Model, jobs: &mut [Job]) -> Result<()> {
    for progress in model.step(&mut jobs.iter_mut().collect::<Vec<_>>()) {
        progress?;
    }
    Ok(())
}

/// One batch from prompts to pixels, after a warm-up of two steps and a picture.
fn row(
    model: &Model,
    device: &Device,
    dtype: DType,
    side: u32,
    steps: u32,
    batch: usize,
) -> Result<()> {
    let mut warm = begin(model, side, 2, batch)?;
    while !warm[0].is_finished() {
        step(model, &mut warm)?;
    }
    model.decode(&warm[0])?;
    drop(warm);
    reset_gpu_peak(device);
    let began = Instant::now();
    let mut jobs = begin(model, side, steps, batch)?;
    let begun = began.elapsed().as_secs_f64();
    while !jobs[0].is_finished() {
        step(model, &mut jobs)?;
    }
    let stepped = began.elapsed().as_secs_f64() - begun;
    for job in &jobs {
        model.decode(job)?;
    }
    let all = began.elapsed().as_secs_f64();
    let peak = gpu_memory(device).map_or_else(
        || "-".to_owned(),
        |memory| format!("{:.1}", memory.peak as f64 / f64::from(1 << 30)),
    );
    println!(
        "| ours | {dtype:?} | {batch} | {:.2} | {:.1} | {:.2} | {:.2} | {peak} |",
        all / batch as f64,
        stepped * 1e3 / f64::from(steps),
        all - begun - stepped,
        batch as f64 / all,
    );
    Ok(())
}

/// The device's picture against the CPU's: means may differ by what each type's rounding leaves (tests/cuda).
fn check(folder: &Path, device: &Device, dtype: DType) -> Result<()> {
    let draw = |device: &Device, dtype: DType| -> Result<RgbImage> {
        let model = Model::load(folder, device, dtype)?;
        let side = model.limits().default_width;
        let mut jobs = begin(&model, side, 8, 1)?;
        while !jobs[0].is_finished() {
            step(&model, &mut jobs)?;
        }
        Ok(model.decode(&jobs[0])?)
    };
    let (ours, reference) = (draw(device, dtype)?, draw(&Device::Cpu, DType::F32)?);
    let pairs = ours.pixels.iter().zip(&reference.pixels);
    let off: u64 = pairs.map(|(a, b)| u64::from(a.abs_diff(*b))).sum();
    let mean = off as f64 / ours.pixels.len() as f64;
    let bar = match dtype {
        DType::F32 => 0.05,
        DType::F16 => 2.0,
        _ => 8.0,
    };
    println!(
        "{} in {dtype:?}: pixels off by {mean:.3} of 255 on average",
        folder.display()
    );
    if mean > bar {
        return Err(format!("more than {bar}: the device computes something else").into());
    }
    Ok(())
}
