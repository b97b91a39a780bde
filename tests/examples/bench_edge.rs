//! Durable submissions a second and how long they take: `make bench-edge`.
//!
//! The gateway, auth, the orchestrator, the registry and nats-server, each a process of its own; no worker, so tasks stay
//! queued. First as many as there can be (a closed loop), then an open loop at parts of that, whose latencies are counted
//! from when a request was due: a server that stalls does not hide behind callers who wait for it (hdrhistogram).
#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a measuring tool"
)]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use contract::v1::image_service_client::ImageServiceClient;
use contract::v1::{SubmitBatchRequest, SubmitRequest, SubmitTask, submit_result};
use e2e::Platform;
use hdrhistogram::Histogram;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Bytes;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;
use tokio::sync::Mutex;
use tonic::transport::{Channel, Endpoint};

/// The one that sends must not be what is measured.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Connections that were made over HTTP, and requests that went over them.
static MADE: AtomicU64 = AtomicU64::new(0);
static SENT: AtomicU64 = AtomicU64::new(0);

const SERVICES: [&str; 4] = ["auth", "model-registry", "orchestrator", "gateway"];
const CONNECTIONS: usize = 8;
/// Requests on their way in an open loop beyond which further ones count as failed.
const MOST_OUTSTANDING: usize = 8192;
const BATCH: usize = 100;
/// What callers of a saturated edge do: so many wait for an answer at once.
const CALLERS: usize = 128;
const BATCH_CALLERS: usize = 16;

/// Somebody to send to; an answer is how many submissions it accepted.
#[derive(Clone)]
enum Target {
    Http(Arc<Vec<http2::SendRequest<Full<Bytes>>>>, Arc<str>),
    Grpc(Vec<ImageServiceClient<Channel>>, Arc<str>),
    Batch(Vec<ImageServiceClient<Channel>>, Arc<str>),
    /// A peer's, one request at a time on each connection.
    Peer(Arc<Vec<Mutex<http1::SendRequest<Full<Bytes>>>>>, Arc<str>),
}

impl Target {
    async fn send(&self, number: usize) -> Result<usize, String> {
        match self {
            Self::Http(connections, authorization) => {
                let mut sender = connections[number % connections.len()].clone();
                let body = r#"{"prompt":"a 3d cat on a blue background","seed":7,"steps":20}"#;
                let request = hyper::Request::post("http://gateway/v1/tasks")
                    .header("authorization", &**authorization)
                    .header("content-type", "application/json")
                    .body(Full::new(Bytes::from_static(body.as_bytes())))
                    .unwrap();
                sender.ready().await.map_err(text)?;
                SENT.fetch_add(1, Ordering::Relaxed);
                accepted(sender.send_request(request).await.map_err(text)?).await
            }
            Self::Grpc(clients, authorization) => {
                let mut client = clients[number % clients.len()].clone();
                let request = SubmitRequest { task: Some(task()) };
                let sent = client.submit(authorized(request, authorization)).await;
                sent.map(|_| 1).map_err(text)
            }
            Self::Batch(clients, authorization) => {
                let mut client = clients[number % clients.len()].clone();
                let tasks = (0..BATCH).map(|_| task()).collect();
                let request = authorized(SubmitBatchRequest { tasks }, authorization);
                let answer = client.submit_batch(request).await.map_err(text)?;
                let results = answer.into_inner().results;
                let good = results
                    .iter()
                    .filter(|one| matches!(one.result, Some(submit_result::Result::Accepted(_))));
                let good = good.count();
                if good == BATCH {
                    return Ok(good);
                }
                Err(format!("{good} of {BATCH} were accepted: {:?}", results[0]))
            }
            Self::Peer(connections, path) => {
                let mut sender = connections[number % connections.len()].lock().await;
                let request = hyper::Request::post(&**path)
                    .header("host", "peer")
                    .header("content-type", "application/json")
                    .body(Full::new(Bytes::from_static(b"{}")))
                    .unwrap();
                sender.ready().await.map_err(text)?;
                accepted(sender.send_request(request).await.map_err(text)?).await
            }
        }
    }

    fn each(&self) -> usize {
        if matches!(self, Self::Batch(..)) {
            BATCH
        } else {
            1
        }
    }
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

async fn accepted(response: hyper::Response<hyper::body::Incoming>) -> Result<usize, String> {
    let status = response.status();
    let body = response.into_body().collect().await.map_err(text)?;
    if status.is_success() {
        return Ok(1);
    }
    Err(format!("{status}: {:?}", body.to_bytes()))
}

fn task() -> SubmitTask {
    SubmitTask {
        prompt: "a 3d cat on a blue background".to_owned(),
        seed: Some(7),
        steps: 20,
        ..SubmitTask::default()
    }
}

fn authorized<T>(message: T, authorization: &str) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    let metadata = request.metadata_mut();
    metadata.insert("authorization", authorization.parse().unwrap());
    request
}

async fn connect(address: &str) -> TcpStream {
    let stream = TcpStream::connect(address).await.unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

async fn over_http2(address: &str, authorization: &Arc<str>) -> Target {
    let mut connections = Vec::new();
    for _ in 0..CONNECTIONS {
        let io = TokioIo::new(connect(address).await);
        let (sender, connection) = http2::handshake(TokioExecutor::new(), io).await.unwrap();
        tokio::spawn(connection);
        MADE.fetch_add(1, Ordering::Relaxed);
        connections.push(sender);
    }
    Target::Http(Arc::new(connections), authorization.clone())
}

async fn over_http1(address: &str, path: &str) -> Target {
    let mut connections = Vec::new();
    for _ in 0..CALLERS / 2 {
        let io = TokioIo::new(connect(address).await);
        let (sender, connection) = http1::handshake(io).await.unwrap();
        tokio::spawn(connection);
        connections.push(Mutex::new(sender));
    }
    Target::Peer(Arc::new(connections), path.into())
}

fn grpc_clients(address: &str) -> Vec<ImageServiceClient<Channel>> {
    let one = |_| {
        let endpoint = Endpoint::from_shared(format!("http://{address}")).unwrap();
        let channel = endpoint.tcp_nodelay(true).connect_lazy();
        ImageServiceClient::new(channel).max_decoding_message_size(64 << 20)
    };
    (0..CONNECTIONS).map(one).collect()
}

/// Submissions a second with so many callers who send again as soon as they are answered; and how many there were in all.
async fn saturate(target: &Target, callers: usize, time: Duration) -> (f64, usize) {
    let stop = Arc::new(AtomicBool::new(false));
    let done = Arc::new(AtomicUsize::new(0));
    let refused = Arc::new(AtomicUsize::new(0));
    let mut running = Vec::new();
    for caller in 0..callers {
        let (target, stop, done) = (target.clone(), stop.clone(), done.clone());
        let refused = refused.clone();
        running.push(tokio::spawn(async move {
            while !stop.load(Ordering::Relaxed) {
                match target.send(caller).await {
                    Ok(accepted) => _ = done.fetch_add(accepted, Ordering::Relaxed),
                    Err(why) => {
                        // One that is turned away comes again, and is told.
                        if refused.fetch_add(1, Ordering::Relaxed) == 0 {
                            println!("  refused at saturation: {why}");
                        }
                        tokio::time::sleep(Duration::from_millis(10)).await;
                    }
                }
            }
        }));
    }
    // Connections are made and code is paged in before it counts.
    tokio::time::sleep(time / 4).await;
    let (before, began) = (done.load(Ordering::Relaxed), Instant::now());
    tokio::time::sleep(time).await;
    let rate = (done.load(Ordering::Relaxed) - before) as f64 / began.elapsed().as_secs_f64();
    stop.store(true, Ordering::Relaxed);
    for caller in running {
        caller.await.unwrap();
    }
    let refused = refused.load(Ordering::Relaxed);
    if refused > 0 {
        println!("  {refused} were refused");
    }
    (rate, done.load(Ordering::Relaxed))
}

struct Loop {
    latencies: Histogram<u64>,
    failed: u64,
    sent: u64,
    why: Option<String>,
}

/// Sends so many submissions a second, whatever becomes of them.
async fn open_loop(target: &Target, rate: f64, time: Duration) -> Loop {
    let requests = rate / target.each() as f64;
    let histogram = || Histogram::<u64>::new_with_bounds(1, 60_000_000, 3).unwrap();
    let latencies = Arc::new(std::sync::Mutex::new(histogram()));
    let (outstanding, failed) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicU64::new(0)));
    let why = Arc::new(std::sync::Mutex::new(None));
    let began = Instant::now();
    let mut sent = 0_u64;
    let mut every = tokio::time::interval(Duration::from_millis(1));
    while began.elapsed() < time {
        every.tick().await;
        let due = (began.elapsed().as_secs_f64() * requests) as u64;
        while sent < due {
            let at = began + Duration::from_secs_f64(sent as f64 / requests);
            let number = sent as usize;
            sent += 1;
            if outstanding.fetch_add(1, Ordering::Relaxed) >= MOST_OUTSTANDING {
                outstanding.fetch_sub(1, Ordering::Relaxed);
                failed.fetch_add(1, Ordering::Relaxed);
                continue;
            }
            let (target, latencies) = (target.clone(), latencies.clone());
            let (outstanding, failed, why) = (outstanding.clone(), failed.clone(), why.clone());
            tokio::spawn(async move {
                match target.send(number).await {
                    Ok(_) => {
                        let micros = at.elapsed().as_micros() as u64;
                        latencies.lock().unwrap().saturating_record(micros.max(1));
                    }
                    Err(error) => {
                        failed.fetch_add(1, Ordering::Relaxed);
                        *why.lock().unwrap() = Some(error);
                    }
                }
                outstanding.fetch_sub(1, Ordering::Relaxed);
            });
        }
    }
    while outstanding.load(Ordering::Relaxed) > 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let latencies = latencies.lock().unwrap().clone();
    let (failed, why) = (failed.load(Ordering::Relaxed), why.lock().unwrap().take());
    Loop {
        latencies,
        failed,
        sent,
        why,
    }
}

/// `GET`s of one path, one every 10 ms, until told to stop.
async fn poll(
    address: String,
    path: String,
    authorization: Arc<str>,
    stop: Arc<AtomicBool>,
) -> Histogram<u64> {
    let io = TokioIo::new(connect(&address).await);
    let (mut sender, connection) = http1::handshake(io).await.unwrap();
    tokio::spawn(connection);
    let mut latencies = Histogram::<u64>::new_with_bounds(1, 60_000_000, 3).unwrap();
    let mut every = tokio::time::interval(Duration::from_millis(10));
    while !stop.load(Ordering::Relaxed) {
        every.tick().await;
        let began = Instant::now();
        let request = hyper::Request::get(&path)
            .header("host", "gateway")
            .header("authorization", &*authorization)
            .body(Full::new(Bytes::new()))
            .unwrap();
        sender.ready().await.unwrap();
        // One that is turned away is answered as well.
        let _ = accepted(sender.send_request(request).await.unwrap()).await;
        latencies.saturating_record(began.elapsed().as_micros() as u64);
    }
    latencies
}

fn milliseconds(histogram: &Histogram<u64>, quantile: f64) -> f64 {
    histogram.value_at_quantile(quantile) as f64 / 1000.0
}

struct Bench {
    platform: Platform,
    address: String,
    authorization: Arc<str>,
    time: Duration,
}

impl Bench {
    async fn start(sync_always: bool, time: Duration) -> Self {
        // What whoever sets the broker up knows.
        let manner = match sync_always {
            true => "together",
            false => "one_by_one",
        };
        let settings = [
            ("INKSTONE_ORCHESTRATOR__COMMIT__MANNER", manner),
            ("INKSTONE_ORCHESTRATOR__STREAMS__TASK_MAX_SIZE", "4GiB"),
            // As by default, and not what tests set aside on the disk.
            ("INKSTONE_ORCHESTRATOR__AUDIT__MAX_SIZE", "256MiB"),
            // One tenant at one address is all there is.
            ("INKSTONE_GATEWAY__HTTP__TENANT_SHARE", "100"),
            (
                "INKSTONE_GATEWAY__HTTP__MAX_CONNECTIONS_PER_ADDRESS",
                "4096",
            ),
            ("INKSTONE_AUTH__TELEMETRY__LOG", "warn"),
            ("INKSTONE_GATEWAY__TELEMETRY__LOG", "warn"),
            ("INKSTONE_ORCHESTRATOR__TELEMETRY__LOG", "warn"),
        ];
        let platform = Platform::start_services(&SERVICES, &settings, sync_always).await;
        platform.allow("dev", 1_000_000).await;
        let address = platform.url().trim_start_matches("http://").to_owned();
        let authorization = platform.authorization().into();
        Self {
            platform,
            address,
            authorization,
            time,
        }
    }

    /// Measures one way in; what it did at saturation.
    async fn measure(&self, name: &str, target: Target, callers: usize) -> f64 {
        let began = self.processor();
        let (most, done) = saturate(&target, callers, self.time).await;
        println!("{name:<44} {most:>9.0} /s at saturation, {callers} callers");
        self.print_processor(&began, done);
        for part in [0.5, 0.8, 0.95] {
            let stop = Arc::new(AtomicBool::new(false));
            let health = tokio::spawn(poll(
                self.address.clone(),
                "/healthz".to_owned(),
                self.authorization.clone(),
                stop.clone(),
            ));
            let asked = self.platform.submit(task()).await.unwrap().id;
            let polled = tokio::spawn(poll(
                self.address.clone(),
                format!("/v1/tasks/{asked}"),
                self.authorization.clone(),
                stop.clone(),
            ));
            let began = self.processor();
            let run = open_loop(&target, most * part, self.time).await;
            stop.store(true, Ordering::Relaxed);
            let (health, polled) = (health.await.unwrap(), polled.await.unwrap());
            println!(
                "  at {:>3.0} %: p50 {:>7.2}  p99 {:>7.2}  p99.9 {:>7.2} ms; {} of {} failed; /healthz p99 {:.2}, poll p99 {:.2} ms",
                part * 100.0,
                milliseconds(&run.latencies, 0.5),
                milliseconds(&run.latencies, 0.99),
                milliseconds(&run.latencies, 0.999),
                run.failed,
                run.sent,
                milliseconds(&health, 0.99),
                milliseconds(&polled, 0.99),
            );
            self.print_processor(&began, run.sent as usize * target.each());
            if let Some(why) = run.why {
                println!("    the last failure: {why}");
            }
        }
        most
    }

    fn print_processor(&self, began: &[(&'static str, Duration)], submissions: usize) {
        print!("  processor, µs a submission:");
        for ((process, before), (_, after)) in began.iter().zip(self.processor()) {
            let each = (after - *before).as_secs_f64() * 1e6 / submissions.max(1) as f64;
            print!(" {process} {each:.0}");
        }
        println!();
    }

    /// What each process has used of the processor so far.
    fn processor(&self) -> Vec<(&'static str, Duration)> {
        let services = SERVICES.map(|service| (service, self.platform.process_id(service)));
        let broker = ("nats-server", self.platform.broker.process_id());
        let own = ("this", std::process::id());
        let all = services.into_iter().chain([broker, own]);
        all.map(|(name, process)| (name, used(process))).collect()
    }

    fn memory(&self) {
        print!("  peak MiB:");
        for service in SERVICES {
            print!(" {service} {}", peak(self.platform.process_id(service)));
        }
        println!(" nats-server {}", peak(self.platform.broker.process_id()));
    }
}

/// User and system time of a process (proc(5), `stat`, fields 14 and 15; a tick is 10 ms).
fn used(process: u32) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap();
    // The name in brackets may hold anything.
    let (_, fields) = stat.rsplit_once(") ").unwrap();
    let ticks: u64 = (fields.split(' ').skip(11).take(2))
        .map(|ticks| ticks.parse::<u64>().unwrap())
        .sum();
    Duration::from_millis(ticks * 10)
}

/// The most memory that a process has had, MiB.
fn peak(process: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("VmHWM"))
        .unwrap();
    let kib: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    kib / 1024
}

#[tokio::main]
async fn main() {
    let mut arguments = std::env::args().skip(1);
    let mut seconds = 8;
    let (mut peers, mut ours, mut result) = (Vec::new(), None, None);
    let mut only = None;
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--seconds" => seconds = arguments.next().unwrap().parse().unwrap(),
            "--peer" => peers.push(arguments.next().unwrap()),
            "--ours" => ours = Some(arguments.next().unwrap().parse().unwrap()),
            "--only" => only = arguments.next(),
            "--result" => result = Some(arguments.next().unwrap()),
            other => panic!(
                "what is {other}? --seconds N, --result FILE for our rate over HTTP, --only http|grpc|flushed|batch; or --ours RATE and --peer NAME=HOST:PORT/PATH, \
                 to measure only peers beside that"
            ),
        }
    }
    let time = Duration::from_secs(seconds);

    if let Some(ours) = ours {
        return beside(ours, &peers, time).await;
    }
    if let Some(only) = only {
        return only_one(&only, time).await;
    }
    println!("# one by one; the broker flushes now and then, as it does by default");
    let bench = Bench::start(false, time).await;
    let http = over_http2(&bench.address, &bench.authorization).await;
    let http = bench
        .measure("HTTP/2 JSON, POST /v1/tasks", http, CALLERS)
        .await;
    let (made, sent) = (MADE.load(Ordering::Relaxed), SENT.load(Ordering::Relaxed));
    let clients = || grpc_clients(&bench.address);
    let grpc = Target::Grpc(clients(), bench.authorization.clone());
    let grpc = bench.measure("gRPC, Submit", grpc, CALLERS).await;
    bench.memory();
    drop(bench);

    println!("# with a flush to the disk before each acknowledgement");
    let bench = Bench::start(true, time).await;
    let clients = || grpc_clients(&bench.address);
    let one = Target::Grpc(clients(), bench.authorization.clone());
    let flushed = bench.measure("gRPC, Submit", one, CALLERS).await;
    let batch = Target::Batch(clients(), bench.authorization.clone());
    let batch = bench
        .measure("gRPC, SubmitBatch of 100", batch, BATCH_CALLERS)
        .await;
    bench.memory();
    drop(bench);

    println!("# ratios");
    println!(
        "bar: 10,000/s one by one     HTTP {:.2}, gRPC {:.2}",
        http / 10_000.0,
        grpc / 10_000.0
    );
    println!(
        "bar: 24,000/s flushed        in batches {:.2}; one by one, grouped by the platform: {flushed:.0}/s",
        batch / 24_000.0
    );
    // A connection that the gateway closes is not made again here: its requests fail, and are counted so.
    println!(
        "bar: 98 % of requests over connections that were there: {:.3} % ({sent} requests over {made})",
        100.0 * sent.saturating_sub(made) as f64 / sent.max(1) as f64
    );
    if let Some(result) = result {
        std::fs::write(result, format!("{http:.0}\n")).unwrap();
    }
}

/// One of the ways in, for whoever looks for what it costs.
async fn only_one(which: &str, time: Duration) {
    let bench = Bench::start(matches!(which, "flushed" | "batch"), time).await;
    let (address, authorization) = (&bench.address, &bench.authorization);
    let (target, callers) = match which {
        "http" => (over_http2(address, authorization).await, CALLERS),
        "batch" => (
            Target::Batch(grpc_clients(address), authorization.clone()),
            BATCH_CALLERS,
        ),
        _ => (
            Target::Grpc(grpc_clients(address), authorization.clone()),
            CALLERS,
        ),
    };
    bench.measure(which, target, callers).await;
    bench.memory();
}

/// What peers do with a request for nothing, beside what we did over HTTP.
async fn beside(ours: f64, peers: &[String], time: Duration) {
    for peer in peers {
        let (name, place) = peer.split_once('=').unwrap();
        let (address, path) = place.split_once('/').unwrap();
        let target = over_http1(address, &format!("/{path}")).await;
        let (rate, _) = saturate(&target, CALLERS / 2, time).await;
        println!(
            "{name} answering a no-op          {rate:.0}/s; ours over HTTP, stored: {:.2} of it",
            ours / rate
        );
    }
}
