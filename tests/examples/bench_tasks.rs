//! Tasks a second from submission to end, and how long they wait to be dispatched: `make bench-tasks`.
//!
//! All five services and nats-server, each a process of its own, with an engine that takes no time (`engine.kind = "simulated"`):
//! what is measured is the way of a task, not its picture. Tasks come in batches over gRPC through the gateway; their ends and
//! states are heard as everybody may hear them, from the events that the log republishes. First a closed loop with so many
//! tasks outstanding, then an open loop at half of what that reached.
#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a measuring tool"
)]

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use contract::task::{Done, Phase, State, Submitted, done};
use contract::v1::image_service_client::ImageServiceClient;
use contract::v1::{SubmitBatchRequest, SubmitTask, submit_result};
use e2e::{Platform, SERVICES};
use futures::StreamExt as _;
use hdrhistogram::Histogram;
use prost::Message as _;
use tokio::sync::{Mutex, Semaphore};
use tonic::transport::Channel;

/// Who measures must not be what is measured.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Tasks of one submission, at saturation and in the open loop.
const BATCH: usize = 64;
const SMALL_BATCH: usize = 8;
/// The bars.
const MOST_WAIT: f64 = 20.0;

fn tasks(count: usize) -> SubmitBatchRequest {
    let task = SubmitTask {
        prompt: "a 3d cat on a blue background".to_owned(),
        seed: Some(7),
        steps: 1,
        width: 64,
        height: 64,
        ..SubmitTask::default()
    };
    SubmitBatchRequest {
        tasks: vec![task; count],
    }
}

async fn submit(client: &mut ImageServiceClient<Channel>, authorization: &str, count: usize) {
    let mut request = tonic::Request::new(tasks(count));
    let value = authorization.parse().unwrap();
    request.metadata_mut().insert("authorization", value);
    let answer = client.submit_batch(request).await.unwrap().into_inner();
    for one in answer.results {
        match one.result {
            Some(submit_result::Result::Accepted(_)) => {}
            other => panic!("a task was not accepted: {other:?}"),
        }
    }
}

/// What was heard.
#[derive(Default)]
struct Heard {
    ended: AtomicU64,
    events: AtomicU64,
    /// Of the open loop.
    times: Mutex<Option<Times>>,
}

/// Microseconds since the submission.
struct Times {
    submitted: HashMap<String, i128>,
    scheduled: Histogram<u64>,
    running: Histogram<u64>,
    ended: Histogram<u64>,
}

impl Times {
    fn new() -> Self {
        let histogram = || Histogram::new_with_bounds(1, 600_000_000, 3).unwrap();
        Self {
            submitted: HashMap::new(),
            scheduled: histogram(),
            running: histogram(),
            ended: histogram(),
        }
    }

    /// By the times that the log's events hold.
    fn hear(&mut self, task: &str, event: &str, payload: &[u8]) {
        let (histogram, at) = match event {
            "submitted" => {
                let at = micros(Submitted::decode(payload).unwrap().at);
                self.submitted.insert(task.to_owned(), at);
                return;
            }
            "state" => {
                let state = State::decode(payload).unwrap();
                match state.phase() {
                    Phase::Running => (&mut self.running, state.at),
                    _ => (&mut self.scheduled, state.at),
                }
            }
            "done" => (&mut self.ended, Done::decode(payload).unwrap().at),
            _ => return,
        };
        if let Some(began) = self.submitted.get(task) {
            let took = (micros(at) - began).max(1);
            histogram.saturating_record(took as u64);
        }
    }
}

fn micros(at: Option<prost_types::Timestamp>) -> i128 {
    let at = at.unwrap();
    i128::from(at.seconds) * 1_000_000 + i128::from(at.nanos) / 1000
}

/// Listens to all events until the program ends.
async fn listen(platform: &Platform, room: Arc<Semaphore>) -> Arc<Heard> {
    let heard = Arc::new(Heard::default());
    let broker = platform.connect().await;
    let events = broker.listen("inkstone.event.>".to_owned()).await.unwrap();
    let listener = heard.clone();
    tokio::spawn(async move {
        let _broker = broker;
        let mut events = std::pin::pin!(events);
        while let Some((subject, payload)) = events.next().await {
            listener.events.fetch_add(1, Ordering::Relaxed);
            // inkstone.event.<tenant>.<lane>.<task>.<event>
            let mut tokens = subject.rsplit('.');
            let (event, task) = (tokens.next().unwrap(), tokens.next().unwrap());
            if event == "done" {
                if listener.ended.fetch_add(1, Ordering::Relaxed) == 0 {
                    succeeded(&payload);
                }
                room.add_permits(1);
            }
            if let Some(times) = listener.times.lock().await.as_mut() {
                times.hear(task, event, &payload);
            }
        }
    });
    heard
}

/// A rate at which tasks fail is of no interest.
fn succeeded(payload: &[u8]) {
    let done = Done::decode(payload).unwrap();
    assert!(
        matches!(done.outcome, Some(done::Outcome::Succeeded(_))),
        "{done:?}"
    );
}

/// User and system time of a process (proc(5), `stat`, fields 14 and 15; a tick is 10 ms).
fn used(process: u32) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap();
    let (_, fields) = stat.rsplit_once(") ").unwrap();
    let ticks = fields.split(' ').skip(11).take(2);
    let ticks: u64 = ticks.map(|ticks| ticks.parse::<u64>().unwrap()).sum();
    Duration::from_millis(ticks * 10)
}

struct Bench {
    platform: Platform,
    heard: Arc<Heard>,
    room: Arc<Semaphore>,
}

impl Bench {
    async fn start(outstanding: usize) -> Self {
        let (slots, window) = (outstanding.min(256).to_string(), outstanding.to_string());
        let settings = [
            ("INKSTONE_ORCHESTRATOR__COMMIT__MANNER", "one_by_one"),
            ("INKSTONE_GPU_WORKER__ENGINE__KIND", "simulated"),
            ("INKSTONE_GPU_WORKER__WORKER__SLOTS", slots.as_str()),
            ("INKSTONE_GPU_WORKER__WORKER__MAX_BATCH", "64"),
            ("INKSTONE_GPU_WORKER__WORKER__ACK_WAIT", "30s"),
            ("INKSTONE_ORCHESTRATOR__SCHEDULING__WINDOW", window.as_str()),
            ("INKSTONE_ORCHESTRATOR__STREAMS__TASK_MAX_SIZE", "4GiB"),
            // As by default, and not what tests set aside on the disk.
            ("INKSTONE_ORCHESTRATOR__AUDIT__MAX_SIZE", "256MiB"),
            ("INKSTONE_GATEWAY__HTTP__TENANT_SHARE", "100"),
            (
                "INKSTONE_GATEWAY__HTTP__MAX_CONNECTIONS_PER_ADDRESS",
                "4096",
            ),
            ("INKSTONE_AUTH__TELEMETRY__LOG", "warn"),
            ("INKSTONE_GATEWAY__TELEMETRY__LOG", "warn"),
            ("INKSTONE_GPU_WORKER__TELEMETRY__LOG", "warn"),
            ("INKSTONE_ORCHESTRATOR__TELEMETRY__LOG", "warn"),
        ];
        let platform = Platform::start_services(&SERVICES, &settings, false).await;
        platform.allow("dev", 1_000_000).await;
        let room = Arc::new(Semaphore::new(0));
        let heard = listen(&platform, room.clone()).await;
        Self {
            platform,
            heard,
            room,
        }
    }

    fn counts(&self) -> (u64, u64) {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        (read(&self.heard.ended), read(&self.heard.events))
    }

    fn processor(&self) -> Vec<(&'static str, Duration)> {
        let services = SERVICES.map(|service| (service, self.platform.process_id(service)));
        let broker = ("nats-server", self.platform.broker.process_id());
        let own = ("this", std::process::id());
        let all = services.into_iter().chain([broker, own]);
        all.map(|(name, process)| (name, used(process))).collect()
    }

    /// What each process has used of the processors since, for each of so many tasks.
    fn tell_processor(&self, since: &[(&'static str, Duration)], count: u64) {
        print!("  processor, µs a task:");
        for ((process, before), (_, after)) in since.iter().zip(self.processor()) {
            let each = (after - *before).as_secs_f64() * 1e6 / count.max(1) as f64;
            print!(" {process} {each:.0}");
        }
        println!();
    }

    /// Ends a second with so many outstanding.
    async fn saturate(&self, outstanding: usize, time: Duration) -> f64 {
        self.room.add_permits(outstanding);
        let callers: Vec<_> = (0..4)
            .map(|_| {
                let (mut client, room) = (self.platform.client(), self.room.clone());
                let authorization = self.platform.authorization();
                tokio::spawn(async move {
                    while let Ok(permits) = room.acquire_many(BATCH as u32).await {
                        permits.forget();
                        submit(&mut client, &authorization, BATCH).await;
                    }
                })
            })
            .collect();
        // Connections are made and code is paged in before it counts.
        tokio::time::sleep(time / 4).await;
        let (used, (ended, events), began) = (self.processor(), self.counts(), Instant::now());
        tokio::time::sleep(time).await;
        let (took, now) = (began.elapsed().as_secs_f64(), self.counts());
        let count = now.0 - ended;
        let rate = count as f64 / took;
        println!(
            "{rate:>8.0} tasks/s from submission to end, {outstanding} outstanding; {:.0} events/s in the log",
            (now.1 - events) as f64 / took
        );
        self.tell_processor(&used, count);
        self.room.close();
        for caller in callers {
            caller.await.unwrap();
        }
        rate
    }

    /// Waits until nothing ends any more.
    async fn settle(&self) {
        let mut before = self.counts();
        loop {
            tokio::time::sleep(Duration::from_secs(1)).await;
            let now = self.counts();
            if now == before {
                return;
            }
            before = now;
        }
    }

    /// The 99th percentile of the wait for a worker, ms.
    async fn at(&self, rate: f64, time: Duration) -> f64 {
        *self.heard.times.lock().await = Some(Times::new());
        let (client, authorization) = (self.platform.client(), self.platform.authorization());
        let (began, mut sent) = (Instant::now(), 0_usize);
        let used = self.processor();
        let mut every = tokio::time::interval(Duration::from_millis(1));
        let mut calls = tokio::task::JoinSet::new();
        while began.elapsed() < time {
            every.tick().await;
            let due = (began.elapsed().as_secs_f64() * rate) as usize;
            while sent + SMALL_BATCH <= due {
                sent += SMALL_BATCH;
                let (mut client, authorization) = (client.clone(), authorization.clone());
                calls.spawn(async move {
                    submit(&mut client, &authorization, SMALL_BATCH).await;
                });
            }
        }
        while let Some(call) = calls.join_next().await {
            call.unwrap();
        }
        self.settle().await;
        let times = self.heard.times.lock().await.take().unwrap();
        println!("{rate:>8.0} tasks/s, half of that: {sent} tasks, ms since the submission:");
        self.tell_processor(&used, sent as u64);
        for (what, histogram) in [
            ("scheduled", &times.scheduled),
            ("taken up by a worker", &times.running),
            ("ended", &times.ended),
        ] {
            let at = |quantile| histogram.value_at_quantile(quantile) as f64 / 1000.0;
            println!(
                "  {what:<22} p50 {:>7.2}  p99 {:>7.2}  p99.9 {:>7.2}  of {}",
                at(0.5),
                at(0.99),
                at(0.999),
                histogram.len()
            );
        }
        times.running.value_at_quantile(0.99) as f64 / 1000.0
    }
}

#[tokio::main]
async fn main() {
    let mut arguments = std::env::args().skip(1);
    let (mut seconds, mut outstanding, mut report) = (8, 1024, None);
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().unwrap();
        match argument.as_str() {
            "--seconds" => seconds = value().parse().unwrap(),
            "--outstanding" => outstanding = value().parse().unwrap(),
            "--report" => report = Some(value()),
            other => panic!("what is {other}? --seconds N, --outstanding N, --report FILE"),
        }
    }
    assert!(outstanding >= BATCH, "at least {BATCH} outstanding");
    let time = Duration::from_secs(seconds);
    println!("# ours: five services, nats-server, an engine that takes no time");
    let bench = Bench::start(outstanding).await;
    let most = bench.saturate(outstanding, time).await;
    bench.settle().await;
    let wait = bench.at(most / 2.0, time).await;
    println!(
        "bar: dispatch p99 < {MOST_WAIT:.0} ms at half load: {wait:.1} ms, {}",
        if wait < MOST_WAIT { "met" } else { "MISSED" }
    );
    if let Some(report) = report {
        std::fs::write(report, format!("{most}\n")).unwrap();
    }
}
