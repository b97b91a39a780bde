//! From the start of the process to its first step, and what memory that took.
//!
//! `cargo run -p diffusion --example start -- FOLDER [SIDE [packed|mapped|auto [STARTED]]]`
//!
//! SIDE is the picture's, in pixels. STARTED is when the process was started, in nanoseconds since 1970 (`date +%s%N`);
//! without it, time counts from the first line of `main`.
#![allow(clippy::print_stdout)]

use std::error::Error;
use std::time::{Duration, SystemTime};

use diffusion::{DType, Device, Model, Request, Residency};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let word = |index: usize| arguments.get(index).map(String::as_str);
    let started = match word(3) {
        Some(nanoseconds) => {
            SystemTime::UNIX_EPOCH + Duration::from_nanos(nanoseconds.parse::<u64>()?)
        }
        None => SystemTime::now(),
    };
    let folder = word(0).ok_or("usage: start FOLDER [SIDE [packed|mapped|auto [STARTED]]]")?;
    let side = word(1).map_or(Ok(256), str::parse)?;
    let residency = match word(2) {
        Some("packed") => Residency::Packed,
        Some("mapped") => Residency::Mapped,
        None | Some("auto") => Residency::Auto,
        Some(other) => return Err(format!("no residency is called {other}").into()),
    };
    let tell = |what: &str| -> Result<(), Box<dyn Error>> {
        let [anonymous, peak, file] = ["RssAnon:", "VmHWM:", "RssFile:"].map(memory);
        println!(
            "{what:<12} {:>7.2} s   {anonymous:>5} MiB of its own, {file:>5} MiB of files, {peak:>5} MiB at most",
            started.elapsed()?.as_secs_f64()
        );
        Ok(())
    };
    let model = Model::load_resident(folder.as_ref(), &Device::Cpu, DType::F32, residency)?;
    tell("loaded")?;
    let request = Request {
        prompt: "a 3d cat on a blue background".to_owned(),
        width: side,
        height: side,
        ..Request::default()
    };
    let mut job = model.begin(&request)?;
    tell("begun")?;
    for number in ["first step", "second step"] {
        for progress in model.step(&mut [&mut job]) {
            progress?;
        }
        tell(number)?;
    }
    Ok(())
}

/// A line of `/proc/self/status`, in MiB; zero where there is no such file.
fn memory(key: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(key));
    let kibibytes = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kibibytes.unwrap_or(0) / 1024
}
