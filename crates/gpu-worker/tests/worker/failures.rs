//! What cannot be done, and what waits for a part that is away.

use std::path::PathBuf;
use std::time::Duration;

use contract::task::{Cancelled, Checkpoint, Done, Phase, State, done};
use contract::v1::{Source, SubmitTask, TaskPhase};
use gpu_worker::{StartError, WorkerRecord};
use lifecycle::Service;
use messaging::Bucket;

use crate::support::{MODEL, Platform, request, stop, telemetry, until};

fn failure(done: contract::task::Done) -> (String, String) {
    match done.outcome {
        Some(done::Outcome::Failed(failed)) => (failed.code, failed.message),
        outcome => panic!("{outcome:?}"),
    }
}

#[tokio::test]
async fn a_dispatch_that_cannot_be_read_goes_to_dead_and_is_not_tried_again() {
    let platform = Platform::start().await;
    let worker = platform.worker(&[]).await;
    let queue = platform.broker.queue("WORK");
    let subject = format!("inkstone.work.{MODEL}.1.standard");
    queue
        .publish(
            &subject,
            "garbage",
            b"\xff\xff not protobuf".as_slice().into(),
        )
        .await
        .unwrap();
    let lost = contract::task::Dispatch {
        task_id: contract::TaskId::random().to_string(),
        tenant: "acme".to_owned(),
        lane: "test-standard".to_owned(),
        weight: 1,
        ..contract::task::Dispatch::default()
    };
    let payload = prost::Message::encode_to_vec(&lost);
    queue
        .publish(&subject, "of no task", payload.into())
        .await
        .unwrap();
    platform.work_is_settled().await;
    let mut letters = platform.dead_letters().await;
    letters.sort_by(|a, b| a.code.cmp(&b.code));
    let codes: Vec<&str> = letters.iter().map(|letter| letter.code.as_str()).collect();
    assert_eq!(codes, ["invalid_argument", "task_not_found"]);
    assert_eq!(letters[0].payload, b"\xff\xff not protobuf");
    assert_eq!(letters[1].task_id, lost.task_id);
    let next = platform.submit(request("a cat", 1, 2)).await;
    assert_eq!(platform.pictures(&next).await.len(), 1);
    stop(worker).await;
}

#[tokio::test]
async fn what_the_model_cannot_do_fails_at_once_and_says_why() {
    let platform = Platform::start().await;
    let worker = platform.worker(&[]).await;
    let task = platform
        .submit(SubmitTask {
            width: 100,
            ..request("a cat", 1, 4)
        })
        .await;
    let done = platform.done(&task).await;
    assert_eq!(done.attempt, 1);
    let (code, message) = failure(done);
    assert_eq!(code, "invalid_argument");
    assert!(message.contains("width is 100"), "{message}");
    platform.work_is_settled().await;
    stop(worker).await;
}

#[tokio::test]
async fn a_picture_that_does_not_fit_fails_at_once_with_the_numbers_and_others_go_on() {
    let platform = Platform::start().await;
    let worker = platform.worker(&[("engine.memory_limit", "512MiB")]).await;
    let large = platform
        .submit(SubmitTask {
            width: 4096,
            height: 4096,
            ..request("a cat", 1, 4)
        })
        .await;
    let small = platform.submit(request("a cat", 1, 4)).await;
    let done = platform.done(&large).await;
    assert_eq!(done.attempt, 1);
    let (code, message) = failure(done);
    assert_eq!(code, "picture_too_large");
    assert!(message.contains("of weights"), "{message}");
    assert_eq!(platform.pictures(&small).await.len(), 1);
    platform.work_is_settled().await;
    stop(worker).await;
}

#[tokio::test]
async fn a_model_that_does_not_fit_is_not_served_and_health_says_what_to_do() {
    let platform = Platform::start().await;
    let settings = platform.settings(&[("engine.memory_limit", "1MiB")]);
    let worker = gpu_worker::start(settings, telemetry()).await.unwrap();
    until("the worker says why", async || {
        let problem = worker.health.problem().unwrap_or_default();
        problem.contains("raise engine.memory_limit") && problem.contains("MiB")
    })
    .await;
    stop(worker).await;
}

#[tokio::test]
async fn a_task_whose_workers_died_is_given_up_after_the_last_attempt() {
    let platform = Platform::start().await;
    let worker = platform.worker(&[("worker.max_attempts", "2")]).await;
    let task = platform.submit_only(request("a cat", 1, 4)).await;
    let state = State {
        phase: Phase::Running.into(),
        attempt: 2,
        ..State::default()
    };
    platform.log.set_state(&task, &state).await.unwrap();
    let record = platform.record(&task).await;
    platform
        .log
        .dispatch(&record.submitted, 1, 1)
        .await
        .unwrap();
    let (code, message) = failure(platform.done(&task).await);
    assert_eq!(code, "attempts_exhausted");
    assert!(message.contains("2 times"), "{message}");
    platform.work_is_settled().await;
    let letters = platform.dead_letters().await;
    assert_eq!(letters[0].task_id, task.task.to_string());
    stop(worker).await;
}

#[tokio::test]
async fn a_store_that_takes_no_pictures_makes_the_task_wait_and_not_fail() {
    let platform = Platform::start().await;
    let worker = platform.worker(&[("worker.ack_wait", "2s")]).await;
    // A file where the folder of pictures should be: nothing can be stored there.
    let place = platform.folder.path().join("objects/images");
    std::fs::write(&place, b"").unwrap();
    let task = platform.submit(request("a cat", 1, 2)).await;
    until("it runs", async || {
        platform.phase(&task).await == TaskPhase::Running
    })
    .await;
    // Longer than the ack wait: the heartbeats keep the task here.
    tokio::time::sleep(Duration::from_secs(4)).await;
    let record = platform.record(&task).await;
    assert_eq!((record.phase(), record.attempts()), (TaskPhase::Running, 1));
    std::fs::remove_file(&place).unwrap();
    assert_eq!(platform.pictures(&task).await.len(), 1);
    assert_eq!(platform.record(&task).await.done.unwrap().attempt, 1);
    stop(worker).await;
}

/// A worker whose store goes wrong as the file says that is named beside it.
async fn faulty_worker(platform: &Platform, settings: &[(&str, &str)]) -> (Service, PathBuf) {
    let faults = platform.folder.path().join("faults.json");
    let file = faults.display().to_string();
    let own = [("storage.faults", file.as_str())];
    let worker = platform.worker(&[&own[..], settings].concat()).await;
    (worker, faults)
}

#[tokio::test]
async fn a_store_that_says_stored_and_has_other_bytes_is_not_believed() {
    let platform = Platform::start().await;
    let (worker, faults) = faulty_worker(&platform, &[]).await;
    std::fs::write(&faults, r#"{"lies":100}"#).unwrap();
    let task = platform.submit(request("a cat", 1, 2)).await;
    let written = || {
        let mut files = platform.objects("images").into_iter();
        let picture = files.find(|file| file.extension().is_some_and(|it| it == "png"))?;
        std::fs::metadata(picture).ok()?.modified().ok()
    };
    let mut first = None;
    until("something is in the picture's place", async || {
        first = written();
        first.is_some()
    })
    .await;
    until("it is stored again", async || {
        written().is_some_and(|at| Some(at) != first)
    })
    .await;
    assert_eq!(platform.phase(&task).await, TaskPhase::Running);
    std::fs::remove_file(&faults).unwrap();
    let pictures = platform.pictures(&task).await;
    let (image, data) = &pictures[0];
    assert_eq!(storage::sha256_hex(data), image.sha256);
    assert_eq!(platform.record(&task).await.done.unwrap().attempt, 1);
    platform.work_is_settled().await;
    stop(worker).await;
}

#[tokio::test]
async fn a_store_that_does_not_answer_for_a_while_costs_no_checkpoint() {
    let platform = Platform::start().await;
    let first = platform.worker(&[("worker.name", "first")]).await;
    let task = platform.submit(request("a boat", 2, 80)).await;
    platform.reaches(&task, 20).await;
    let own = [
        ("worker.name", "second"),
        ("engine.checkpoint_every", "100ms"),
    ];
    let (second, faults) = faulty_worker(&platform, &own).await;
    std::fs::write(&faults, r#"{"errors":100}"#).unwrap();
    stop(first).await;
    let runs = async || platform.record(&task).await.view().runs;
    until("the second takes it up", async || {
        runs()
            .await
            .last()
            .is_some_and(|run| run.worker == "second")
    })
    .await;
    // Long enough for several tries.
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(platform.phase(&task).await, TaskPhase::Running);
    std::fs::remove_file(&faults).unwrap();
    assert_eq!(platform.pictures(&task).await.len(), 1);
    let runs = runs().await;
    let last = runs.last().unwrap();
    assert!(last.from_step >= 20, "it goes on where it was: {runs:?}");
    platform.work_is_settled().await;
    stop(second).await;
}

#[tokio::test]
async fn a_worker_that_stops_while_its_store_hangs_hands_the_task_back_at_once_and_no_attempt_counts()
 {
    let platform = Platform::start().await;
    let first = platform.worker(&[("worker.name", "first")]).await;
    let task = platform.submit(request("a boat", 2, 80)).await;
    platform.reaches(&task, 20).await;
    let (second, faults) = faulty_worker(&platform, &[("worker.name", "second")]).await;
    // For as long as a worker has to stop.
    std::fs::write(&faults, r#"{"delays":100,"delay_ms":30000}"#).unwrap();
    stop(first).await;
    until("the second takes it up", async || {
        let state = platform.record(&task).await.state;
        state.is_some_and(|state| state.worker == "second")
    })
    .await;
    let in_time = second.stop(Duration::from_secs(20)).await;
    assert!(in_time, "it does not wait for the store");
    let state = platform.record(&task).await.state.unwrap();
    assert_eq!((state.phase(), state.attempt), (Phase::Scheduled, 0));
    assert!(
        state.checkpoint.unwrap().step >= 20,
        "another goes on from it"
    );
}

#[tokio::test]
async fn a_worker_that_stops_while_its_store_takes_no_picture_hands_the_task_back_in_time_and_says_nothing_of_success()
 {
    let platform = Platform::start().await;
    let (first, faults) = faulty_worker(&platform, &[("worker.name", "first")]).await;
    let wanted = SubmitTask {
        images: 2,
        ..request("a boat", 2, 2)
    };
    // Each request takes so long that there is time to make the store hang between the first picture and the second.
    std::fs::write(&faults, r#"{"delays":100,"delay_ms":3000}"#).unwrap();
    let task = platform.submit(wanted).await;
    let stored = || {
        let files = platform.objects("images").into_iter();
        let is_picture = |file: &PathBuf| file.extension().is_some_and(|it| it == "png");
        files.filter(is_picture).count()
    };
    until("the first picture is stored", async || stored() > 0).await;
    std::fs::write(&faults, r#"{"delays":100,"delay_ms":30000}"#).unwrap();
    let in_time = first.stop(Duration::from_secs(20)).await;
    assert!(in_time, "it does not wait for the store");
    let record = platform.record(&task).await;
    let state = record.state.as_ref().unwrap();
    assert_eq!((state.phase(), state.attempt), (Phase::Scheduled, 0));
    assert_eq!(record.done, None);
    assert_eq!(record.view().runs.last().unwrap().end, "handed_back");
    let second = platform.worker(&[("worker.name", "second")]).await;
    assert_eq!(platform.pictures(&task).await.len(), 2);
    let done = platform.record(&task).await.done.unwrap();
    assert_eq!((done.worker.as_str(), done.attempt), ("second", 1));
    assert_eq!(stored(), 2, "the first is the same file again");
    platform.work_is_settled().await;
    stop(second).await;
}

#[tokio::test]
async fn a_dispatch_of_a_task_that_is_over_does_not_wait_for_a_store_that_hangs() {
    let platform = Platform::start().await;
    let (worker, faults) = faulty_worker(&platform, &[]).await;
    let task = platform.submit_only(request("a boat", 2, 8)).await;
    let checkpoint = Checkpoint {
        step: 1,
        key: storage::Key::checkpoint(task.task, 1, 1).to_string(),
        sha256: String::new(),
    };
    let state = State {
        phase: Phase::Scheduled.into(),
        checkpoint: Some(checkpoint),
        ..State::default()
    };
    platform.log.set_state(&task, &state).await.unwrap();
    let cancelled = Done {
        outcome: Some(done::Outcome::Cancelled(Cancelled::default())),
        ..Done::default()
    };
    platform.log.end(&task, &cancelled).await.unwrap();
    std::fs::write(&faults, r#"{"delays":100,"delay_ms":30000}"#).unwrap();
    let submitted = platform.record(&task).await.submitted;
    platform.log.dispatch(&submitted, 1, 1).await.unwrap();
    let settled = platform.work_is_settled();
    let settled = tokio::time::timeout(Duration::from_secs(20), settled).await;
    settled.expect("its checkpoint is left to a sweep");
    std::fs::remove_file(&faults).unwrap();
    stop(worker).await;
}

/// Soon tired of a store that takes nothing.
const IMPATIENT: [(&str, &str); 2] = [("worker.name", "full"), ("output.patience", "500ms")];

#[tokio::test]
async fn a_task_whose_worker_has_a_full_disk_is_not_done_and_goes_to_another() {
    let platform = Platform::start().await;
    let (full, faults) = faulty_worker(&platform, &IMPATIENT).await;
    std::fs::write(&faults, r#"{"full":100}"#).unwrap();
    let task = platform.submit(request("a cat", 1, 2)).await;
    until("it is put off", async || {
        let runs = platform.record(&task).await.view().runs;
        runs.last().is_some_and(|run| run.end == "handed_back")
    })
    .await;
    assert_eq!(platform.record(&task).await.done, None);
    assert!(platform.objects("images").is_empty());
    let roomy = platform.worker(&[("worker.name", "roomy")]).await;
    assert_eq!(platform.pictures(&task).await.len(), 1);
    let record = platform.record(&task).await;
    assert_eq!(record.view().runs.last().unwrap().worker, "roomy");
    assert_eq!(
        record.done.unwrap().attempt,
        1,
        "it was no fault of the task's"
    );
    platform.work_is_settled().await;
    stop(full).await;
    stop(roomy).await;
}

#[tokio::test]
async fn a_task_whose_picture_to_begin_from_cannot_be_read_for_a_while_rests_and_loses_no_attempt()
{
    let platform = Platform::start().await;
    let (worker, faults) = faulty_worker(&platform, &IMPATIENT).await;
    let before = platform.submit(request("a cat", 1, 2)).await;
    let (image, _) = platform.pictures(&before).await.remove(0);
    let source = Source {
        image_key: image.key,
        strength: Some(0.5),
        ..Source::default()
    };
    std::fs::write(&faults, r#"{"errors":100}"#).unwrap();
    let wanted = SubmitTask {
        source: Some(source),
        ..request("a dog", 2, 4)
    };
    let task = platform.submit(wanted).await;
    until("it is put off", async || {
        let runs = platform.record(&task).await.view().runs;
        runs.last().is_some_and(|run| run.end == "handed_back")
    })
    .await;
    let record = platform.record(&task).await;
    assert_eq!((record.done.as_ref(), record.attempts()), (None, 0));
    let runs = record.view().runs;
    let reason = &runs[0].reason;
    assert!(
        reason.contains("gave no picture to begin from within 500ms"),
        "{reason}"
    );
    std::fs::remove_file(&faults).unwrap();
    assert_eq!(platform.pictures(&task).await.len(), 1);
    assert_eq!(platform.record(&task).await.done.unwrap().attempt, 1);
    platform.work_is_settled().await;
    stop(worker).await;
}

#[tokio::test]
async fn a_task_that_no_worker_can_store_is_given_up_in_its_time_with_the_reason() {
    let platform = Platform::start().await;
    let settings = [&IMPATIENT[..], &[("output.give_up_after", "3s")]].concat();
    let (full, faults) = faulty_worker(&platform, &settings).await;
    std::fs::write(&faults, r#"{"full":100}"#).unwrap();
    let task = platform.submit(request("a cat", 1, 2)).await;
    let (code, message) = failure(platform.done(&task).await);
    assert_eq!(code, "attempts_exhausted");
    assert!(
        message.contains("has stored its pictures within 3s"),
        "{message}"
    );
    platform.work_is_settled().await;
    let letters = platform.dead_letters().await;
    assert_eq!(letters[0].task_id, task.task.to_string());
    stop(full).await;
}

#[tokio::test]
async fn a_version_that_is_damaged_is_reported_and_disturbs_no_other() {
    let platform = Platform::with_versions(|good| {
        let mut bad = good.clone();
        bad.version = "2".to_owned();
        bad.digest = "0".repeat(64);
        // The bytes of one file under the name of another.
        let config = bad
            .artifacts
            .iter()
            .position(|a| a.path == "unet/config.json")
            .unwrap();
        let other = bad
            .artifacts
            .iter()
            .position(|a| a.path == "vae/config.json")
            .unwrap();
        let bytes = bad.artifacts[other].clone();
        bad.artifacts[config] = contract::registry::Artifact {
            path: "unet/config.json".to_owned(),
            ..bytes
        };
        vec![bad, good]
    })
    .await;
    let worker = platform.worker(&[("worker.name", "painter")]).await;
    let task = platform.submit(request("a cat", 1, 2)).await;
    assert_eq!(platform.pictures(&task).await.len(), 1);
    let fleet: Bucket<WorkerRecord> = platform
        .broker
        .bucket("WORKERS", Duration::from_secs(15))
        .await
        .unwrap();
    until("the record names the version and the file", async || {
        let record = fleet.get("painter").await.unwrap();
        let failing = record.and_then(|entry| entry.value.failing.get("inkstone-demo/2").cloned());
        failing.is_some_and(|why| why.contains("unet/config.json"))
    })
    .await;
    stop(worker).await;
}

#[tokio::test]
async fn cuda_is_refused_where_it_is_not_before_anything_else() {
    let settings = settings::load(
        None,
        // Nothing listens there: the device must be looked at first.
        &[
            // No machine has as many.
            ("engine.device", "cuda:4096".to_owned()),
            ("broker.url", "nats://127.0.0.1:1".to_owned()),
        ],
    );
    let error = gpu_worker::start(settings.unwrap(), telemetry())
        .await
        .map(drop)
        .unwrap_err();
    assert!(matches!(error, StartError::NoCuda { .. }));
    let line = error.to_string();
    assert!(line.contains("engine.device is cuda:4096; "), "{line}");
    let without = !cfg!(feature = "cuda");
    assert_eq!(
        line.starts_with("this build has no CUDA"),
        without,
        "{line}"
    );
    assert!(!line.contains('\n'));
}
