//! Cancels, crashes and stops in the middle of a picture.

use contract::task::{Cancelled, Checkpoint, Done, Phase, State, done};
use contract::v1::SubmitTask;
use storage::Key;
use task_log::Ended;

use crate::support::{Platform, request, stop, until};

/// Steps of a picture that is long enough to be interrupted.
const LONG: u32 = 80;

#[tokio::test]
async fn a_cancel_while_it_runs_ends_the_task_once_and_frees_the_slot() {
    let platform = Platform::start().await;
    let worker = platform
        .worker(&[("worker.slots", "1"), ("engine.checkpoint_every", "200ms")])
        .await;
    let task = platform
        .submit(SubmitTask {
            images: 4,
            ..request("a dog", 1, LONG)
        })
        .await;
    platform.reaches(&task, 4).await;
    let cancelled = Done {
        at: Some(contract::now()),
        outcome: Some(done::Outcome::Cancelled(Cancelled {
            reason: "asked".to_owned(),
        })),
        ..Done::default()
    };
    assert_eq!(
        platform.log.end(&task, &cancelled).await.unwrap(),
        Ended::First
    );
    let next = platform.submit(request("a cat", 1, 2)).await;
    assert_eq!(platform.pictures(&next).await.len(), 1);
    platform.work_is_settled().await;
    assert_eq!(platform.record(&task).await.done, Some(cancelled));
    assert_eq!(
        platform.objects("images").len(),
        1,
        "of the second task only"
    );
    until("the checkpoint is gone", async || {
        platform.objects("checkpoints").is_empty()
    })
    .await;
    stop(worker).await;
}

#[tokio::test]
async fn a_task_ends_once_although_the_broker_is_killed_and_restarted_in_the_middle() {
    let mut platform = Platform::start().await;
    let worker = platform.worker(&[("worker.ack_wait", "2s")]).await;
    let undisturbed = platform
        .pictures(&platform.submit(request("a tree", 5, LONG)).await)
        .await;
    let task = platform.submit(request("a tree", 5, LONG)).await;
    platform.reaches(&task, 10).await;
    platform.nats.kill();
    platform.nats.restart().unwrap();
    let broker = platform.broker.clone();
    until("the broker is back", async || broker.probe().await.is_ok()).await;
    let pictures = platform.pictures(&task).await;
    assert_eq!(pictures[0].1, undisturbed[0].1);
    let done = platform.record(&task).await.done.unwrap();
    assert_eq!(done.attempt, 1, "the same worker went on");
    platform.work_is_settled().await;
    assert_eq!(platform.record(&task).await.done.unwrap(), done);
    stop(worker).await;
}

#[tokio::test]
async fn a_worker_that_stops_hands_back_and_another_finishes_with_the_same_bytes() {
    let platform = Platform::start().await;
    let wanted = || SubmitTask {
        images: 2,
        ..request("a 3d panda", 11, LONG)
    };
    let first = platform.worker(&[("worker.name", "first")]).await;
    let undisturbed = platform.pictures(&platform.submit(wanted()).await).await;
    let task = platform.submit(wanted()).await;
    platform.reaches(&task, 20).await;
    stop(first).await;
    let state = platform.record(&task).await.state.unwrap();
    assert_eq!(
        (state.phase(), state.attempt),
        (Phase::Scheduled, 0),
        "a hand-back is nobody's fault"
    );
    let put_away = state.checkpoint.unwrap();
    assert!(put_away.step >= 20);
    assert_eq!(platform.objects("checkpoints").len(), 1);

    let second = platform.worker(&[("worker.name", "second")]).await;
    let pictures = platform.pictures(&task).await;
    for (ours, theirs) in pictures.iter().zip(&undisturbed) {
        assert_eq!(ours.1, theirs.1);
    }
    let done = platform.record(&task).await.done.unwrap();
    assert_eq!((done.worker.as_str(), done.attempt), ("second", 1));
    until("the checkpoint is gone", async || {
        platform.objects("checkpoints").is_empty()
    })
    .await;
    stop(second).await;
}

#[tokio::test]
async fn a_checkpoint_that_is_damaged_costs_time_and_nothing_else() {
    let platform = Platform::start().await;
    let first = platform
        .worker(&[("engine.checkpoint_every", "100ms")])
        .await;
    let undisturbed = platform
        .pictures(&platform.submit(request("a boat", 2, LONG)).await)
        .await;
    let task = platform.submit(request("a boat", 2, LONG)).await;
    platform.reaches(&task, 20).await;
    stop(first).await;
    for file in platform.objects("checkpoints") {
        std::fs::write(file, b"damaged").unwrap();
    }
    let second = platform.worker(&[]).await;
    assert_eq!(platform.pictures(&task).await[0].1, undisturbed[0].1);
    stop(second).await;
}

#[tokio::test]
async fn a_worker_that_wakes_up_after_its_task_was_taken_over_leaves_its_successors_checkpoint_alone()
 {
    let platform = Platform::start().await;
    let worker = platform
        .worker(&[("engine.checkpoint_every", "300ms")])
        .await;
    let undisturbed = platform
        .pictures(&platform.submit(request("a boat", 2, LONG)).await)
        .await;
    let task = platform.submit(request("a boat", 2, LONG)).await;
    platform.reaches(&task, 5).await;
    // Just after one of its checkpoints, so that it is not in the middle of the next.
    let checkpoint = async || {
        let state = platform.record(&task).await.state;
        state.and_then(|state| state.checkpoint)
    };
    let before = checkpoint().await;
    until("it is put away", async || checkpoint().await != before).await;
    // What a successor does that took this worker for dead.
    let key = Key::checkpoint(task.task, 2, 20);
    let saved = b"the successor's".as_slice();
    platform.storage.put(&key, saved.into()).await.unwrap();
    let state = State {
        phase: Phase::Running.into(),
        attempt: 2,
        worker: "successor".to_owned(),
        checkpoint: Some(Checkpoint {
            step: 20,
            key: key.to_string(),
            sha256: storage::sha256_hex(saved),
        }),
        ..State::default()
    };
    platform.log.set_state(&task, &state).await.unwrap();
    // It goes on, past the time of other checkpoints, and is the first to end the task, with the same bytes.
    assert_eq!(platform.pictures(&task).await[0].1, undisturbed[0].1);
    let left = platform.record(&task).await.state.unwrap();
    assert_eq!((left.attempt, left.checkpoint), (2, state.checkpoint));
    let kept = platform.storage.get(&key, 100).await.unwrap();
    assert_eq!(&*kept, saved);
    platform.work_is_settled().await;
    assert_eq!(platform.objects("checkpoints").len(), 1, "its own are gone");
    stop(worker).await;
}

#[tokio::test]
async fn a_worker_that_was_taken_over_and_then_stops_hands_nothing_back() {
    let platform = Platform::start().await;
    let worker = platform.worker(&[("worker.name", "first")]).await;
    let task = platform.submit(request("a boat", 2, LONG)).await;
    platform.reaches(&task, 5).await;
    let successors = State {
        phase: Phase::Running.into(),
        attempt: 2,
        worker: "successor".to_owned(),
        ..State::default()
    };
    platform.log.set_state(&task, &successors).await.unwrap();
    stop(worker).await;
    let record = platform.record(&task).await;
    assert_eq!(record.state, Some(successors), "attempts go on from two");
    assert_eq!(record.done, None);
}
