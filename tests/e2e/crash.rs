//! kill -9 of each part in the middle of a picture: the accepted task still ends, once, with the picture it would have
//! had. "Once" is the log's create-only `done`; here it shows as an end that never changes.

use contract::v1::{Quality, SubmitRequest, SubmitTask};
use e2e::{Platform, SERVICES};

use crate::{assert_whole, digests, long_picture, short_picture};

/// What an undisturbed platform draws.
async fn undisturbed(platform: &Platform) -> Vec<String> {
    let task = platform.submit(long_picture()).await.unwrap();
    digests(&platform.wait_ended(&task.id).await)
}

async fn assert_ends_once(platform: &Platform, id: &str, expected: &[String]) {
    let ended = platform.wait_ended(id).await;
    assert_whole(platform, &ended);
    assert_eq!(digests(&ended), expected);
    assert_eq!(
        platform.get(id).await.unwrap(),
        ended,
        "an end must not change"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_killed_in_the_middle_of_a_picture_costs_no_task() {
    let mut platform = Platform::start().await;
    let expected = undisturbed(&platform).await;
    let task = platform.submit(long_picture()).await.unwrap();
    platform.wait_running(&task.id).await;
    platform.kill("gpu-worker");
    assert!(!e2e::has_ended(&platform.get(&task.id).await.unwrap()));
    platform.run("gpu-worker");
    assert_ends_once(&platform, &task.id, &expected).await;
    assert_eq!(platform.get(&task.id).await.unwrap().attempt, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_orchestrator_killed_with_tasks_running_and_waiting_costs_no_task() {
    let mut platform = Platform::start().await;
    let expected = undisturbed(&platform).await;
    let mut tasks = Vec::new();
    for _ in 0..4 {
        tasks.push(platform.submit(long_picture()).await.unwrap());
    }
    platform.wait_running(&tasks[0].id).await;
    platform.kill("orchestrator");
    platform.run("orchestrator");
    for task in &tasks {
        assert_ends_once(&platform, &task.id, &expected).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_killed_while_a_caller_waits_costs_no_task() {
    let mut platform = Platform::start().await;
    let expected = undisturbed(&platform).await;
    let task = platform.submit(long_picture()).await.unwrap();
    platform.wait_running(&task.id).await;
    platform.kill("gateway");
    platform.run("gateway");
    assert_ends_once(&platform, &task.id, &expected).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_killed_in_the_middle_of_a_picture_costs_no_task() {
    let mut platform = Platform::start().await;
    let expected = undisturbed(&platform).await;
    let running = platform.submit(long_picture()).await.unwrap();
    let waiting = platform.submit(long_picture()).await.unwrap();
    platform.wait_running(&running.id).await;
    platform.broker.kill();
    platform.wait_readiness("orchestrator", 503);
    // Nothing is accepted while it is away.
    let refused = platform.submit(short_picture()).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::Unavailable, "{refused:?}");
    platform.broker.restart().unwrap();
    assert_ends_once(&platform, &running.id, &expected).await;
    assert_ends_once(&platform, &waiting.id, &expected).await;
    platform.wait_ready("orchestrator");
    assert_eq!(
        platform.list().await.len(),
        3,
        "a refused submission must not be a task"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_killed_at_once_comes_back_and_ends_every_task() {
    let mut platform = Platform::start().await;
    let expected = undisturbed(&platform).await;
    let mut tasks = Vec::new();
    for _ in 0..3 {
        tasks.push(platform.submit(long_picture()).await.unwrap());
    }
    platform.wait_running(&tasks[0].id).await;
    for service in SERVICES {
        platform.kill(service);
    }
    platform.broker.kill();
    platform.broker.restart().unwrap();
    for service in SERVICES {
        platform.run(service);
    }
    for task in &tasks {
        assert_ends_once(&platform, &task.id, &expected).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_asked_to_stop_hands_its_picture_on_and_the_attempt_is_not_counted() {
    let mut platform = Platform::start().await;
    let expected = undisturbed(&platform).await;
    let task = platform.submit(long_picture()).await.unwrap();
    platform.wait_running(&task.id).await;
    assert!(
        platform.terminate("gpu-worker"),
        "{}",
        platform.log("gpu-worker")
    );
    platform.run("gpu-worker");
    assert_ends_once(&platform, &task.id, &expected).await;
    assert_eq!(platform.get(&task.id).await.unwrap().attempt, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_submission_repeated_with_its_idempotency_key_over_a_crash_is_one_task() {
    let mut platform = Platform::start().await;
    let mut picture = short_picture();
    picture.idempotency_key = "order-17".to_owned();
    let first = platform.submit(picture.clone()).await.unwrap();
    platform.kill("orchestrator");
    platform.kill("gateway");
    platform.run("orchestrator");
    platform.run("gateway");
    platform.wait_ready("gateway");
    let second = platform.submit(picture.clone()).await.unwrap();
    assert_eq!(first.id, second.id);
    // The same key, as metadata.
    let without = SubmitTask {
        idempotency_key: String::new(),
        ..picture.clone()
    };
    let mut by_metadata = platform.request(SubmitRequest {
        task: Some(without),
    });
    let metadata = by_metadata.metadata_mut();
    metadata.insert("idempotency-key", "order-17".parse().unwrap());
    let third = platform.client().submit(by_metadata).await.unwrap();
    let third = third.into_inner();
    assert!(third.existing);
    assert_eq!(third.task.unwrap().id, first.id);
    let mut other = picture.clone();
    other.prompt = "a dog".to_owned();
    let mut other_lane = picture;
    other_lane.set_quality(Quality::Hd);
    for request in [other, other_lane] {
        let conflict = platform.submit(request).await.unwrap_err();
        assert_eq!(conflict.code(), tonic::Code::AlreadyExists);
    }
    platform.wait_ended(&first.id).await;
    assert_eq!(platform.list().await.len(), 1);
}
