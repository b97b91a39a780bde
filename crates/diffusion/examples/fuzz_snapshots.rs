//! Resumes from snapshots that were altered, cut and sealed again, and steps what was taken.
//!
//! `cargo run -p diffusion --example fuzz_snapshots -- [INPUTS [SEED]]`, a million inputs by default: `make fuzz-snapshots`.
#![allow(clippy::print_stdout)]

use std::error::Error;
use std::io::Write as _;
use std::path::Path;
use std::time::Instant;

use diffusion::fuzz::Mutator;
use diffusion::{DType, Device, Model, Request, SchedulerKind};

/// Inputs between two words on the way.
const TELL_EVERY: u64 = 50_000;
/// The most steps that are taken of a job that was resumed.
const STEPS: u32 = 2;

fn main() -> Result<(), Box<dyn Error>> {
    let number = |index, default| {
        std::env::args()
            .nth(index)
            .map_or(Ok(default), |n| n.parse())
    };
    let (inputs, seed) = (number(1, 1_000_000_u64)?, number(2, 1_u64)?);
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/mini");
    let model = Model::load(&folder, &Device::Cpu, DType::F32)?;
    let snapshots = snapshots(&model)?;
    let mut mutator = Mutator::new(seed);
    let (mut refused, mut taken) = (0_u64, 0_u64);
    let started = Instant::now();
    for input in 1..=inputs {
        let bytes = mutator.mutated(&snapshots[(input % snapshots.len() as u64) as usize]);
        match model.resume(&bytes) {
            Err(_) => refused += 1,
            Ok(mut job) => {
                taken += 1;
                // One in a thousand is also drawn on: a step costs more than a refusal.
                for _ in 0..STEPS {
                    if taken % 1000 == 1 && !job.is_finished() {
                        // Numbers that overflow are an answer too.
                        drop(model.step(&mut [&mut job]));
                    }
                }
            }
        }
        if input % TELL_EVERY == 0 {
            print!("\r{input} of {inputs}: {refused} refused, {taken} taken whole");
            std::io::stdout().flush()?;
        }
    }
    let seconds = started.elapsed().as_secs_f64();
    println!(
        "\n{inputs} inputs (seed {seed}) in {seconds:.0} s: {refused} refused, {taken} taken whole, no crash"
    );
    Ok(())
}

/// Jobs of several kinds, at several steps.
fn snapshots(model: &Model) -> Result<Vec<Vec<u8>>, Box<dyn Error>> {
    let mut all = Vec::new();
    for kind in [
        None,
        Some(SchedulerKind::Heun),
        Some(SchedulerKind::UniPc),
        Some(SchedulerKind::DpmPlusPlus2MSde),
    ] {
        let request = Request {
            prompt: "a 3d cat".to_owned(),
            negative_prompt: Some("dog".to_owned()),
            width: 32,
            height: 32,
            steps: 4,
            guidance_scale: 2.0,
            scheduler: kind,
            ..Request::default()
        };
        let mut job = model.begin(&request)?;
        while !job.is_finished() {
            all.push(model.snapshot(&job));
            for answer in model.step(&mut [&mut job]) {
                answer?;
            }
        }
        all.push(model.snapshot(&job));
    }
    Ok(all)
}
