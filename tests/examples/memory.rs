//! Memory of each service at rest, while pictures are drawn, and at its peak: `make bench-memory`.
#![allow(clippy::print_stdout, clippy::unwrap_used)]

use std::time::Duration;

use contract::v1::SubmitTask;
use e2e::{Platform, SERVICES};

#[tokio::main]
async fn main() {
    let platform = Platform::start().await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let rest = SERVICES.map(|service| memory(platform.process_id(service), "VmRSS"));
    let broker = memory(platform.broker.process_id(), "VmRSS");
    let mut tasks = Vec::new();
    for seed in 0..8 {
        let picture = SubmitTask {
            prompt: "a 3d cat on a blue background".to_owned(),
            images: 4,
            steps: 20,
            seed: Some(seed),
            ..SubmitTask::default()
        };
        tasks.push(platform.submit(picture).await.unwrap());
    }
    platform.wait_running(&tasks[2].id).await;
    let drawing = SERVICES.map(|service| memory(platform.process_id(service), "VmRSS"));
    for task in &tasks {
        platform.wait_ended(&task.id).await;
    }
    println!(
        "{:<16} {:>8} {:>8} {:>8}   (MiB resident)",
        "", "at rest", "drawing", "peak"
    );
    for ((service, rest), drawing) in SERVICES.iter().zip(rest).zip(drawing) {
        let peak = memory(platform.process_id(service), "VmHWM");
        println!("{service:<16} {rest:>8} {drawing:>8} {peak:>8}");
    }
    let process = platform.broker.process_id();
    let (drawing, peak) = (memory(process, "VmRSS"), memory(process, "VmHWM"));
    println!("{:<16} {broker:>8} {drawing:>8} {peak:>8}", "nats-server");
}

/// A field of `/proc/<pid>/status`, in MiB.
fn memory(process: u32, field: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with(field)).unwrap();
    let kib: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    kib / 1024
}
