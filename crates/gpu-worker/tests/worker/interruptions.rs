//! Cancels, crashes and stops in the middle of a picture.

use bytes::Bytes;
use contract::task::{Cancelled, Checkpoint, CheckpointFile, Done, Phase, State, done};
use contract::v1::SubmitTask;
use prost::Message as _;
use storage::Key;
use task_log::{Ended, TaskRef};

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

/// A task that a worker before left with a checkpoint of so many steps, of which these bytes are there.
async fn left_at(platform: &Platform, step: u32, digest: &str, stored: Option<&[u8]>) -> TaskRef {
    let task = platform.submit_only(request("a boat", 2, LONG)).await;
    let key = Key::checkpoint(task.task, 1, step);
    if let Some(stored) = stored {
        let stored = Bytes::copy_from_slice(stored);
        platform.storage.put(&key, stored).await.unwrap();
    }
    let state = State {
        phase: Phase::Scheduled.into(),
        checkpoint: Some(Checkpoint {
            step,
            key: key.to_string(),
            sha256: digest.to_owned(),
        }),
        ..State::default()
    };
    platform.log.set_state(&task, &state).await.unwrap();
    let submitted = platform.record(&task).await.submitted;
    platform.log.dispatch(&submitted, 1, 1).await.unwrap();
    task
}

#[tokio::test]
async fn a_checkpoint_that_nobody_can_go_on_from_is_let_go_of_and_the_next_is_taken_as_if_there_had_been_none()
 {
    let platform = Platform::start().await;
    let settings = [
        ("engine.checkpoint_every", "0s"),
        ("engine.checkpoint_steps", "10"),
    ];
    let worker = platform.worker(&settings).await;
    let undisturbed = platform
        .pictures(&platform.submit(request("a boat", 2, LONG)).await)
        .await;
    let file = |snapshots: Vec<Vec<u8>>| CheckpointFile { snapshots }.encode_to_vec();
    // As a version writes them that has another number for what it writes.
    let foreign = file(vec![b"inkstone snapshot of another version".to_vec()]);
    let of_two = file(vec![vec![1], vec![2]]);
    let digest = storage::sha256_hex;
    let cases = [
        ("foreign", digest(&foreign), Some(&*foreign)),
        ("of two pictures", digest(&of_two), Some(&*of_two)),
        ("no checkpoint", digest(b"\xff"), Some(&b"\xff"[..])),
        ("damaged", digest(b"whole"), Some(&b"damaged"[..])),
        ("missing", digest(b"whole"), None),
    ];
    for (what, digest, stored) in cases {
        // Further than the task ever comes.
        let task = left_at(&platform, 10 * LONG, &digest, stored).await;
        let pictures = platform.pictures(&task).await;
        assert_eq!(pictures[0].1, undisturbed[0].1, "{what}");
        let record = platform.record(&task).await;
        let done = record.done.as_ref().unwrap();
        assert_eq!(done.attempt, 1, "{what}: it began anew in the same attempt");
        let put_away = record.state.as_ref().unwrap().checkpoint.as_ref();
        let step = put_away.map(|checkpoint| checkpoint.step);
        assert!(step.is_some_and(|step| step <= LONG), "{what}: {step:?}");
        assert_eq!(record.view().runs.last().unwrap().from_step, 0, "{what}");
    }
    platform.work_is_settled().await;
    until("all checkpoints are gone", async || {
        platform.objects("checkpoints").is_empty()
    })
    .await;
    stop(worker).await;
}

#[tokio::test]
async fn a_worker_that_stops_hands_back_no_checkpoint_that_nobody_can_go_on_from() {
    let platform = Platform::start().await;
    let worker = platform.worker(&[]).await;
    let task = left_at(&platform, 10 * LONG, "", Some(b"damaged")).await;
    platform.reaches(&task, 5).await;
    stop(worker).await;
    let state = platform.record(&task).await.state.unwrap();
    assert_eq!((state.phase(), state.attempt), (Phase::Scheduled, 0));
    let put_away = state.checkpoint.unwrap();
    assert!((5..LONG).contains(&put_away.step), "{}", put_away.step);
    let key = Key::stored(&put_away.key).unwrap();
    let kept = platform.storage.get(&key, 1 << 30).await.unwrap();
    assert_eq!(storage::sha256_hex(&kept), put_away.sha256);
    assert_eq!(platform.objects("checkpoints").len(), 1);
}

/// What a worker does that goes on from this one's checkpoint, having taken it for dead; the key of that.
async fn take_over(platform: &Platform, task: &TaskRef) -> (State, Key) {
    let mut taken_over = None;
    until("it is taken over", async || {
        let record = platform.record(task).await;
        let stands = record.state.unwrap_or_default();
        let Some(checkpoint) = &stands.checkpoint else {
            return false;
        };
        let key = Key::stored(&checkpoint.key).unwrap();
        let state = State {
            attempt: 2,
            worker: "successor".to_owned(),
            ..stands
        };
        let after = record.state_sequence;
        let written = platform.log.replace_state(task, &state, after).await;
        // Unless another checkpoint was named meanwhile.
        let stored = written.unwrap().is_some();
        taken_over = stored.then_some((state, key));
        stored
    })
    .await;
    taken_over.unwrap()
}

#[tokio::test]
async fn a_worker_that_wakes_up_after_its_task_was_taken_over_leaves_it_and_what_its_successor_goes_on_from()
 {
    let platform = Platform::start().await;
    let settings = [
        ("worker.slots", "1"),
        ("worker.ack_wait", "300s"),
        ("engine.checkpoint_every", "300ms"),
    ];
    let worker = platform.worker(&settings).await;
    let task = SubmitTask {
        images: 4,
        ..request("a boat", 2, LONG)
    };
    let task = platform.submit(task).await;
    let (successors, key) = take_over(&platform, &task).await;
    // It goes on until its next checkpoint and no further: then there is room again.
    let next = platform.submit(request("a cat", 1, 2)).await;
    assert_eq!(platform.pictures(&next).await.len(), 1);
    let record = platform.record(&task).await;
    assert_eq!((record.state, record.done), (Some(successors), None));
    let left = platform.objects("checkpoints");
    assert_eq!(left.len(), 1, "its own are gone: {left:?}");
    platform.storage.get(&key, 1 << 30).await.unwrap();
    until("the other is off the queue, and it is not", async || {
        let work = platform.log.work().await.unwrap();
        work.by_version.values().sum::<usize>() == 1
    })
    .await;
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
