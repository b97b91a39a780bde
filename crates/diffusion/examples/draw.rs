//! Draws one picture and says how long everything took.
//!
//! `cargo run -p diffusion --example draw -- FOLDER PROMPT [OUT.ppm [STEPS [GUIDANCE [SEED [TIMES]]]]]`
#![allow(clippy::print_stdout)]

use std::error::Error;
use std::time::Instant;

use diffusion::{DType, Device, Model, Request};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [folder, prompt, rest @ ..] = arguments.as_slice() else {
        return Err("usage: draw FOLDER PROMPT [OUT.ppm [STEPS [GUIDANCE [SEED [TIMES]]]]]".into());
    };
    let number = |index: usize, default: f32| {
        rest.get(index)
            .map_or(Ok(default), |text| text.parse::<f32>())
    };
    let started = Instant::now();
    let model = Model::load(folder.as_ref(), &Device::Cpu, DType::F32)?;
    println!("loaded in {:.0} ms", started.elapsed().as_secs_f64() * 1e3);
    let request = Request {
        prompt: prompt.clone(),
        width: model.limits().default_width,
        height: model.limits().default_height,
        steps: number(1, 20.0)? as u32,
        guidance_scale: number(2, 2.0)?,
        seed: number(3, 1.0)? as u64,
        ..Request::default()
    };
    for _ in 0..number(4, 1.0)? as u32 {
        let begin = Instant::now();
        let mut job = model.begin(&request)?;
        let begun = begin.elapsed();
        let stepping = Instant::now();
        while !job.is_finished() {
            for progress in model.step(&mut [&mut job]) {
                progress?;
            }
        }
        let stepped = stepping.elapsed();
        let decoding = Instant::now();
        let picture = model.decode(&job)?;
        println!(
            "begin {:.1} ms, {:.2} ms a step, decode {:.1} ms, all {:.0} ms",
            begun.as_secs_f64() * 1e3,
            stepped.as_secs_f64() * 1e3 / f64::from(request.steps),
            decoding.elapsed().as_secs_f64() * 1e3,
            begin.elapsed().as_secs_f64() * 1e3
        );
        if let Some(out) = rest.first() {
            let mut file = format!("P6 {} {} 255\n", picture.width, picture.height).into_bytes();
            file.extend_from_slice(&picture.pixels);
            std::fs::write(out, file)?;
        }
    }
    Ok(())
}
