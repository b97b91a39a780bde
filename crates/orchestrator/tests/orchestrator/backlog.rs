//! A million waiting tasks, and an orchestrator killed among them. By hand: `make bench-backlog`.

use std::collections::BTreeSet;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::{Platform, submitted, until};

/// An orchestrator in a process of its own.
pub(crate) struct Process(Child);

impl Process {
    pub(crate) fn start(platform: &Platform) -> Self {
        let objects = format!("file://{}/objects", platform.nats.folder().display());
        let [admin, grpc] = [0; 2].map(|_| {
            let port = nats_server::free_port().unwrap();
            format!("127.0.0.1:{port}")
        });
        let child = Command::new(env!("CARGO_BIN_EXE_inkstone-orchestrator"))
            .env("INKSTONE_ORCHESTRATOR__BROKER__URL", platform.nats.url())
            .env("INKSTONE_ORCHESTRATOR__STORAGE__URL", objects)
            .env("INKSTONE_ORCHESTRATOR__PROCESS__ADMIN_LISTEN", admin)
            .env("INKSTONE_ORCHESTRATOR__GRPC__LISTEN", grpc)
            .env("INKSTONE_ORCHESTRATOR__SCHEDULING__WINDOW", "4096")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        Self(child.unwrap())
    }

    /// Resident memory, in KiB.
    fn memory(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.0.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS:"));
        let number = line.unwrap().split_whitespace().nth(1);
        number.unwrap().parse().unwrap()
    }

    pub(crate) fn kill(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_orchestrator_that_is_killed_is_taken_over_within_five_seconds() {
    let platform = Platform::start().await;
    platform.submit_many("acme", 300).await;
    let worker = platform.worker("1").await;
    let mut first = Process::start(&platform);
    worker.work_off(40).await;
    let second = Process::start(&platform);
    let leases = platform.broker.bucket::<Value>("LEASES", Duration::ZERO);
    let leases = leases.await.unwrap();
    until("they share the partitions", async || {
        let leases = leases.all().await.unwrap();
        let owners = leases
            .values()
            .map(|lease| lease["owner"].as_str().unwrap());
        let owners = owners.filter(|owner| !owner.is_empty());
        owners.collect::<BTreeSet<_>>().len() == 2
    })
    .await;
    worker.work_off(40).await;
    let killed = Instant::now();
    first.kill();
    // Tasks of many tenants lie in the partitions of both, eight each.
    for tenant in 0..20 {
        let event = submitted(&format!("t-{tenant}"), "1");
        platform.submit(&event).await;
    }
    worker.work_off(240).await;
    let taken_over = killed.elapsed();
    println!("all were dispatched {taken_over:?} after the kill");
    assert!(taken_over < Duration::from_secs(5), "{taken_over:?}");
    // The other one's own were there at once.
    assert!(
        taken_over > Duration::from_secs(1),
        "none of them waited for the one that was killed: {taken_over:?}"
    );
    drop(second);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "stores a million tasks: make bench-backlog"]
async fn a_million_waiting_tasks_cost_no_memory_no_time_and_nobody_elses_turn() {
    let number = std::env::var("BACKLOG").map_or(1_000_000, |n| n.parse().unwrap());
    let platform = Platform::start().await;
    let mut process = Process::start(&platform);
    let worker = platform.worker("1").await;
    platform.submit_many("early", 1).await;
    worker.work_off(1).await;
    let idle = process.memory();
    let began = Instant::now();
    platform.submit_many("flood", number).await;
    let stored = began.elapsed();
    println!("{number} tasks stored in {stored:?}");
    // As many as the window holds are dispatched; the others wait.
    until("the window is full", async || {
        platform.out().await.len() >= 4096
    })
    .await;
    let full = process.memory();
    println!("memory: idle {idle} KiB, with the backlog {full} KiB");

    let began = Instant::now();
    let rate = 20_000.min(number / 2);
    worker.work_off(rate).await;
    let rate = rate as f64 / began.elapsed().as_secs_f64();
    println!("{rate:.0} tasks a second, dispatched and ended");

    process.kill();
    let before = platform.out().await;
    // Room for others, while nobody is there to fill it.
    worker.work_off(before.len().min(64)).await;
    let began = Instant::now();
    process = Process::start(&platform);
    until("something is dispatched", async || {
        !platform.out().await.is_subset(&before)
    })
    .await;
    let restart = began.elapsed();
    println!("restart after kill -9 to first dispatch: {restart:?}");

    let began = Instant::now();
    let lone = platform.submit(&submitted("idle", "1")).await;
    let mut seen = 0;
    until("the idle tenant's task is dispatched", async || {
        seen += worker.work_off(16).await.len();
        let record = platform.log.read(&lone.tenant, lone.task).await;
        record.unwrap().unwrap().state.is_some()
    })
    .await;
    let waited = began.elapsed();
    println!("an idle tenant's task was dispatched after {waited:?}, {seen} others");
    // Of the one that began with the backlog, and has dispatched from it.
    let end = process.memory();
    println!("memory at the end: {end} KiB");
    // After everything was measured: one that misses its bar hides no other.
    let bar = idle + 64 * 1024;
    assert!(full < bar, "{full} KiB, at most {bar}");
    assert!(end < bar, "{end} KiB at the end, at most {bar}");
    assert!(rate > 3000.0);
    assert!(restart < Duration::from_secs(5));
    assert!(waited < Duration::from_secs(1));
}
