//! What a worker leaves to others, and what it loads when it is waited for.

use contract::task::done;
use contract::v1::SubmitTask;
use gpu_worker::WorkerRecord;
use messaging::Bucket;

use crate::support::{MODEL, Platform, request, stop, until};

/// Longer than a worker that gives it a moment draws it.
fn long(seed: u64) -> SubmitTask {
    request("a tree", seed, 300)
}

/// Seconds that a task which failed at one worker is left to others.
const LEFT_FOR: i64 = 30;

/// A worker that gives no task the time it needs.
const HASTY: [(&str, &str); 3] = [
    ("worker.name", "hasty"),
    ("worker.run_floor", "300ms"),
    ("worker.run_per_megapixel_step", "0s"),
];

#[tokio::test]
async fn a_task_that_is_not_drawn_in_time_goes_on_as_often_as_it_may_and_then_fails_with_the_reason()
 {
    let platform = Platform::start().await;
    let settings = [&HASTY[..], &[("worker.max_attempts", "2")]].concat();
    let worker = platform.worker(&settings).await;
    let task = platform.submit(long(1)).await;
    let Some(done::Outcome::Failed(failed)) = platform.done(&task).await.outcome else {
        panic!("it fails");
    };
    assert_eq!(failed.code, "attempts_exhausted");
    assert!(
        failed.message.contains("not drawn within 300ms"),
        "{}",
        failed.message
    );
    platform.work_is_settled().await;
    assert_eq!(platform.dead_letters().await.len(), 1);
    let runs = platform.record(&task).await.view().runs;
    assert!(runs[1].from_step > 0, "it goes on where it was: {runs:?}");
    stop(worker).await;
}

#[tokio::test]
async fn a_task_that_failed_at_one_worker_is_taken_up_by_another_if_there_is_one() {
    let platform = Platform::start().await;
    let patient = platform
        .worker(&[("worker.name", "patient"), ("worker.slots", "1")])
        .await;
    let hasty = platform.worker(&HASTY).await;
    let fleet: Bucket<WorkerRecord> = platform
        .broker
        .bucket("WORKERS", std::time::Duration::from_secs(15))
        .await
        .unwrap();
    until("they know of each other", async || {
        let all = fleet.all().await.unwrap();
        all.values().filter(|one| !one.models.is_empty()).count() == 2
    })
    .await;
    let mut tasks = Vec::new();
    for seed in 0..4 {
        tasks.push(platform.submit(long(seed)).await);
    }
    let mut failed_at_hasty = 0;
    for task in &tasks {
        assert_eq!(platform.pictures(task).await.len(), 1);
        let runs = platform.record(task).await.view().runs;
        assert_eq!(runs.last().unwrap().worker, "patient");
        let (_, before) = runs.split_last().unwrap();
        for run in before {
            assert_eq!((&*run.worker, &*run.end), ("hasty", "failed"));
            failed_at_hasty += 1;
        }
        // On a slow machine the patient one may not get to it in time.
        for pair in before.windows(2) {
            let ended = pair[0].ended_at.unwrap().seconds;
            let waited = pair[1].started_at.unwrap().seconds - ended;
            assert!(waited >= LEFT_FOR, "it came back too soon: {runs:?}");
        }
    }
    assert!(failed_at_hasty > 0, "the hasty one had none");
    platform.work_is_settled().await;
    stop(hasty).await;
    stop(patient).await;
}

#[tokio::test]
async fn a_version_that_is_loaded_by_need_is_loaded_when_somebody_waits_for_it() {
    let platform = Platform::start().await;
    let worker = platform
        .worker(&[("worker.name", "painter"), ("models.load", "demand")])
        .await;
    let age = std::time::Duration::from_secs(15);
    let fleet: Bucket<WorkerRecord> = platform.broker.bucket("WORKERS", age).await.unwrap();
    until("it is there and has nothing loaded", async || {
        let record = fleet.get("painter").await.unwrap();
        record.is_some_and(|entry| entry.value.models.is_empty())
    })
    .await;
    let task = platform.submit(request("a cat", 1, 2)).await;
    assert_eq!(platform.pictures(&task).await.len(), 1);
    until("it says so", async || {
        let record = fleet.get("painter").await.unwrap();
        record.is_some_and(|entry| entry.value.models == [format!("{MODEL}/1")])
    })
    .await;
    platform.work_is_settled().await;
    stop(worker).await;
}
