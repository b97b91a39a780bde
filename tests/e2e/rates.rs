//! One key's rate, let through by several gateways together, each with an auth of its own.

// What was measured, for whoever runs it by hand.
#![allow(clippy::print_stdout)]

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use contract::v1::GetRequest;
use contract::v1::image_service_client::ImageServiceClient;
use contract::{ErrorCode, Failure};
use e2e::{LIMIT, Platform, SECOND, THIRD};
use futures::future::{self, Either, join_all};
use tonic::transport::Channel;

const GATEWAYS: [&str; 3] = ["gateway", "gateway-2", "gateway-3"];
/// Who sends through one gateway, and how often: 500 requests a second in all.
const SENDERS: usize = 4;
const EVERY: Duration = Duration::from_millis(24);

/// Sends through one gateway, and counts what it lets through.
async fn send(platform: &Platform, mut client: ImageServiceClient<Channel>, through: &AtomicU64) {
    let mut due = tokio::time::interval(EVERY);
    loop {
        due.tick().await;
        // What there is not: nothing behind the gateway and auth has any work with it.
        let request = platform.request(GetRequest {
            task_id: "none".to_owned(),
        });
        let Err(refused) = client.get(request).await else {
            unreachable!("there is no such task");
        };
        let let_in = Failure::from(refused).code == ErrorCode::TaskNotFound;
        through.fetch_add(let_in.into(), Ordering::Relaxed);
    }
}

/// How many are let through a second, seen for so long.
async fn rate(through: &AtomicU64, time: Duration) -> f64 {
    let (began, before) = (Instant::now(), through.load(Ordering::Relaxed));
    tokio::time::sleep(time).await;
    let more = through.load(Ordering::Relaxed) - before;
    more as f64 / began.elapsed().as_secs_f64()
}

/// Offers requests through every gateway while `observe` looks on.
async fn offer<T>(platform: &Platform, through: &AtomicU64, observe: impl Future<Output = T>) -> T {
    let senders = GATEWAYS.into_iter().flat_map(|gateway| {
        let client = platform.client_of(gateway);
        (0..SENDERS).map(move |_| client.clone())
    });
    let all = senders.map(|client| send(platform, client, through));
    let all = join_all(all);
    match future::select(std::pin::pin!(observe), std::pin::pin!(all)).await {
        Either::Left((seen, _)) => seen,
        Either::Right(_) => unreachable!("they go on for ever"),
    }
}

/// The bar of the platform: run it with `--run-ignored all`.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes a minute, and a machine that has nothing else to do"]
async fn three_gateways_let_fifty_a_second_through_of_five_hundred_and_two_do_when_one_is_killed() {
    let front = ["auth", "model-registry", "orchestrator", "gateway"];
    let mut platform = Platform::start_services(&front, &[], false).await;
    for instance in SECOND.into_iter().chain(THIRD) {
        platform.run(instance);
        platform.wait_ready(instance);
    }
    platform.allow("dev", 50).await;
    let through = AtomicU64::new(0);
    let seen = offer(&platform, &through, async {
        // The burst is used up, and shares are settled.
        let began = Instant::now();
        while through.load(Ordering::Relaxed) < 150 {
            assert!(began.elapsed() < LIMIT, "nothing is let through");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        rate(&through, Duration::from_secs(20)).await
    })
    .await;
    println!("three gateways: {seen:.2} a second");
    assert!((47.5..=52.5).contains(&seen), "{seen}");

    platform.kill("gateway-3");
    platform.kill("auth-3");
    let killed = Instant::now();
    let seen = offer(&platform, &through, async {
        while rate(&through, Duration::from_secs(1)).await < 47.0 {
            assert!(killed.elapsed() < LIMIT, "its slice does not come back");
        }
        println!("its slice is back after {:?}", killed.elapsed());
        rate(&through, Duration::from_secs(10)).await
    })
    .await;
    println!("two gateways: {seen:.2} a second");
    assert!((47.5..=52.5).contains(&seen), "{seen}");
}
