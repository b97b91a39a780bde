//! Our side of `scripts/bench-engine.sh`: does one thing some times and prints the seconds of each, then the most memory.
//!
//! `bench picture FOLDER STEPS GUIDANCE BATCH TIMES` · `bench jobs FOLDER STEPS GUIDANCE COUNT` ·
//! `bench unet FOLDER ROWS SIDE TIMES` · `bench vae FOLDER SIDE TIMES` · `bench ops [PART OF A NAME]`
#![allow(clippy::print_stdout)]

use std::error::Error;
use std::time::{Duration, Instant};

use diffusion::{DType, Device, Job, Model, Request, bench};

type Answer = Result<(), Box<dyn Error>>;

/// How long an operation is repeated; the fastest time counts.
const OP_TIME: Duration = Duration::from_millis(150);
/// The fewest repetitions.
const OP_TIMES: usize = 3;

fn main() -> Answer {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments.as_slice() {
        ["picture", folder, steps, guidance, batch, times] => {
            let model = Model::load(folder.as_ref(), &Device::Cpu, DType::F32)?;
            for _ in 0..times.parse::<usize>()? {
                let began = Instant::now();
                let mut jobs = jobs(&model, steps, guidance, batch)?;
                while !jobs.iter().all(Job::is_finished) {
                    step(&model, &mut jobs)?;
                }
                for job in &jobs {
                    model.decode(job)?;
                }
                say(began);
            }
        }
        ["jobs", folder, steps, guidance, count] => {
            let model = Model::load(folder.as_ref(), &Device::Cpu, DType::F32)?;
            let mut jobs = jobs(&model, steps, guidance, count)?;
            while !jobs.iter().all(Job::is_finished) {
                let began = Instant::now();
                step(&model, &mut jobs)?;
                say(began);
            }
        }
        ["unet", folder, rows, side, times] => {
            let unet = bench::Unet::load(folder.as_ref(), rows.parse()?, side.parse()?)?;
            repeat(times, || Ok(unet.step()?))?;
        }
        ["vae", folder, side, times] => {
            let vae = bench::Vae::load(folder.as_ref(), side.parse()?)?;
            repeat(times, || Ok(vae.decode()?))?;
        }
        ["ops", rest @ ..] => operations(rest.first().copied().unwrap_or_default())?,
        _ => return Err("usage: see the head of examples/bench.rs".into()),
    }
    if let Some(memory) = peak_memory() {
        println!("peak {memory}");
    }
    Ok(())
}

fn say(began: Instant) {
    println!("seconds {}", began.elapsed().as_secs_f64());
}

fn repeat(times: &str, work: impl Fn() -> Answer) -> Answer {
    for _ in 0..times.parse::<usize>()? {
        let began = Instant::now();
        work()?;
        say(began);
    }
    Ok(())
}

fn jobs(
    model: &Model,
    steps: &str,
    guidance: &str,
    count: &str,
) -> Result<Vec<Job>, Box<dyn Error>> {
    (0..count.parse::<u64>()?)
        .map(|index| {
            Ok(model.begin(&Request {
                prompt: "a 3d cat on a blue background".to_owned(),
                width: model.limits().default_width,
                height: model.limits().default_height,
                steps: steps.parse()?,
                guidance_scale: guidance.parse()?,
                seed: index + 1,
                ..Request::default()
            })?)
        })
        .collect()
}

fn step(model: &Model, jobs: &mut [Job]) -> Answer {
    let mut jobs: Vec<&mut Job> = jobs.iter_mut().collect();
    for progress in model.step(&mut jobs) {
        progress?;
    }
    Ok(())
}

fn operations(part: &str) -> Answer {
    for case in bench::cases()? {
        if !case.name.contains(part) {
            continue;
        }
        let (began, mut best, mut times) = (Instant::now(), Duration::MAX, 0);
        while times < OP_TIMES || began.elapsed() < OP_TIME {
            let began = Instant::now();
            (case.run)()?;
            best = best.min(began.elapsed());
            times += 1;
        }
        println!("op {} {}", best.as_secs_f64(), case.name);
    }
    Ok(())
}

/// The most memory that this process has had resident, in MiB, where Linux tells.
fn peak_memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    line.split_whitespace()
        .nth(1)?
        .parse::<u64>()
        .ok()
        .map(|kib| kib / 1024)
}
