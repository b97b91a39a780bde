//! What the log alone takes: submissions a second through [`TaskLog::intake`] against a real broker, for so many callers at once.
//!
//! `bench_intake [--sync-always] [--one-by-one | --together]`
#![allow(clippy::print_stdout, clippy::unwrap_used, clippy::disallowed_methods)]

use std::time::{Duration, Instant};

use contract::TaskId;
use contract::task::Submitted;
use messaging::{Broker, BrokerSettings};
use nats_server::NatsServer;
use task_log::{Commit, StreamSettings, TaskLog};

const TIME: Duration = Duration::from_secs(2);

fn submitted() -> Submitted {
    Submitted {
        task_id: TaskId::random().to_string(),
        tenant: "acme".to_owned(),
        lane: "standard-image".to_owned(),
        model: "demo".to_owned(),
        model_version: "1".to_owned(),
        request_digest: vec![1; 500],
        ..Submitted::default()
    }
}

#[tokio::main]
async fn main() {
    let sync = std::env::args().any(|argument| argument == "--sync-always");
    let server = NatsServer::scratch_with(sync).unwrap();
    let settings = BrokerSettings::new(server.url(), "10s".parse().unwrap());
    let broker = Broker::connect(&settings, "bench").await.unwrap();
    let log = TaskLog::new(broker);
    let streams = StreamSettings {
        task_max_size: "8GiB".parse().unwrap(),
        ..StreamSettings::small()
    };
    log.ensure_streams(&streams).await.unwrap();
    let said = |word: &str| std::env::args().any(|argument| argument == word);
    let commit = match (said("--one-by-one"), said("--together")) {
        (true, _) => Commit::OneByOne,
        (_, true) => Commit::Together,
        _ => Commit::Measured,
    };
    let (intake, committer) = log.intake(commit);
    tokio::spawn(committer.run());
    for callers in [1, 8, 64, 256, 1024] {
        let began = Instant::now();
        let each = (0..callers).map(|_| {
            let intake = intake.clone();
            tokio::spawn(async move {
                let mut count = 0_u32;
                while began.elapsed() < TIME {
                    intake.submit(&submitted()).await.unwrap();
                    count += 1;
                }
                count
            })
        });
        let each: Vec<_> = each.collect();
        let mut all = 0;
        for one in each {
            all += one.await.unwrap();
        }
        let rate = f64::from(all) / began.elapsed().as_secs_f64();
        let latency = f64::from(callers) / rate * 1000.0;
        println!("{callers:>5} callers: {rate:>8.0}/s, {latency:>7.2} ms each");
    }
}
