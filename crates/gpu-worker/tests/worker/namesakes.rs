//! Workers of one name: two at a time, which nobody should set up and somebody will, and one that is started again.

use contract::task::{Phase, State};
use task_log::{Record, TaskRef};

use crate::process::Process;
use crate::support::{Platform, request, stop, until};

const NAME: &str = "painter";
/// Whoever is at work says so every third of it: a process that gets no processor for some seconds, and was not stopped, keeps what it has.
const ACK_WAIT: &str = "5s";

/// The attempt that a task ended as, and the process that wrote its end.
fn ended_by(record: &Record) -> (u32, &str) {
    let done = record.done.as_ref().unwrap();
    assert_eq!(done.worker, NAME);
    (done.attempt, &done.incarnation)
}

/// The process that has a task, once one has that is not `another`.
async fn holder(platform: &Platform, task: &TaskRef, another: &str) -> String {
    let mut holder = String::new();
    until("a process has it", async || {
        let state = platform.record(task).await.state.unwrap_or_default();
        holder = state.incarnation;
        !holder.is_empty() && holder != another
    })
    .await;
    holder
}

#[tokio::test]
async fn a_worker_hands_nothing_back_of_what_a_namesake_has_as_the_same_attempt() {
    let platform = Platform::start().await;
    let worker = platform.worker(&[("worker.name", NAME)]).await;
    let task = platform.submit(request("a boat", 2, 80)).await;
    platform.reaches(&task, 5).await;
    let own = platform.record(&task).await.state.unwrap();
    assert_eq!((own.attempt, &*own.worker), (1, NAME));
    assert!(!own.incarnation.is_empty());
    let namesakes = State {
        phase: Phase::Running.into(),
        attempt: 1,
        worker: NAME.to_owned(),
        incarnation: "another".to_owned(),
        ..State::default()
    };
    platform.log.set_state(&task, &namesakes).await.unwrap();
    stop(worker).await;
    let record = platform.record(&task).await;
    assert_eq!((record.state, record.done), (Some(namesakes), None));
}

#[tokio::test]
async fn a_worker_that_was_stopped_leaves_its_task_to_a_namesake_that_has_it_by_now() {
    let platform = Platform::with_long_tasks().await;
    let settings = [
        ("worker.ack_wait", ACK_WAIT),
        ("engine.kind", "simulated"),
        ("engine.simulated.step", "20ms"),
        ("engine.checkpoint_every", "300ms"),
    ];
    let first = Process::start(&platform, NAME, &settings);
    // 4 s of steps: it has not ended when it is stopped, however fast the machine is.
    let task = platform.submit(request("a red car", 3, 200)).await;
    until("it is put away", async || {
        let state = platform.record(&task).await.state;
        state.is_some_and(|state| state.checkpoint.is_some())
    })
    .await;
    let before = holder(&platform, &task, "").await;
    first.signal("-STOP");
    let _second = Process::start(&platform, NAME, &settings);
    let after = holder(&platform, &task, &before).await;
    first.signal("-CONT");
    assert_eq!(platform.pictures(&task).await.len(), 1);
    let record = platform.record(&task).await;
    assert_eq!(ended_by(&record), (2, after.as_str()));
    platform.work_is_settled().await;
    assert!(platform.dead_letters().await.is_empty());
}

#[tokio::test]
async fn workers_of_one_name_end_each_task_once_and_what_one_had_that_died_is_taken_over() {
    let platform = Platform::with_long_tasks().await;
    // Its steps take as long on a machine that has other work.
    let settings = [
        ("worker.slots", "1"),
        ("worker.ack_wait", ACK_WAIT),
        ("engine.kind", "simulated"),
        ("engine.simulated.step", "20ms"),
    ];
    let _first = Process::start(&platform, NAME, &settings);
    let long = platform.submit(request("a cat", 1, 1000)).await;
    let has_long = holder(&platform, &long, "").await;
    // The first has no room: another process takes the next one.
    let second = Process::start(&platform, NAME, &settings);
    let short = platform.submit(request("a dog", 2, 200)).await;
    let has_short = holder(&platform, &short, "").await;
    assert_ne!(has_short, has_long);
    second.kill();
    let _second = Process::start(&platform, NAME, &settings);
    let takes_over = holder(&platform, &short, &has_short).await;
    let mut others = Vec::new();
    for seed in 3..7 {
        others.push(platform.submit(request("a dog", seed, 20)).await);
    }

    assert_eq!(platform.pictures(&short).await.len(), 1);
    let record = platform.record(&short).await;
    assert_eq!(ended_by(&record), (2, takes_over.as_str()));
    let runs = record.view().runs;
    let ends: Vec<_> = runs.iter().map(|run| (&*run.worker, &*run.end)).collect();
    assert_eq!(ends, [(NAME, "lost"), (NAME, "ended")]);
    assert_eq!(platform.pictures(&long).await.len(), 1);
    let record = platform.record(&long).await;
    assert_eq!(ended_by(&record), (1, has_long.as_str()));
    for task in &others {
        assert_eq!(platform.pictures(task).await.len(), 1);
        let record = platform.record(task).await;
        let state = record.state.as_ref().unwrap();
        assert_eq!(ended_by(&record), (1, state.incarnation.as_str()));
    }
    platform.work_is_settled().await;
    assert!(platform.dead_letters().await.is_empty());
}
