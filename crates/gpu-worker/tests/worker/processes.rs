//! Workers as processes of their own: killed, hung, and replaced one after the other.

use contract::TaskId;
use contract::task::{Done, Submitted, done, progress_event};
use contract::v1::{Run, SubmitTask, TaskPhase};
use task_log::{TaskRef, Update, deadline};

use crate::process::Process;
use crate::support::{PATIENCE, Platform, TENANT, request, until};

/// What the worker ends with when something in it hangs.
const HUNG: i32 = 75;

/// The next told steps of a task, from `least` on.
async fn told(platform: &Platform, task: &TaskRef, least: u32) -> u32 {
    let mut watch = platform
        .log
        .watch(&TENANT.parse().unwrap(), task.task)
        .await
        .unwrap()
        .unwrap();
    let told = async {
        while let Some(update) = watch.next().await.unwrap() {
            if let Update::Progress(event) = update
                && let Some(progress_event::Event::Progress(progress)) = event.event
                && progress.step >= least
            {
                return progress.step;
            }
        }
        panic!("it ended before");
    };
    tokio::time::timeout(PATIENCE, told).await.unwrap()
}

fn large(seed: u64, steps: u32) -> SubmitTask {
    SubmitTask {
        width: 256,
        height: 256,
        ..request("a red car", seed, steps)
    }
}

fn failure(done: &Done) -> (&str, &str) {
    match &done.outcome {
        Some(done::Outcome::Failed(failed)) => (&failed.code, &failed.message),
        outcome => panic!("{outcome:?}"),
    }
}

#[tokio::test]
async fn a_killed_worker_costs_no_more_than_the_steps_since_its_last_checkpoint() {
    const EVERY: u32 = 10;
    let platform = Platform::start().await;
    let every = EVERY.to_string();
    let settings = [
        ("worker.ack_wait", "2s"),
        ("engine.checkpoint_every", "0s"),
        ("engine.checkpoint_steps", &*every),
    ];
    let first = Process::start(&platform, "first", &settings);
    let undisturbed = platform
        .pictures(&platform.submit(large(3, 60)).await)
        .await;
    let task = platform.submit(large(3, 60)).await;
    let reached = told(&platform, &task, 3 * EVERY).await;
    first.kill();
    let state = platform.record(&task).await.state.unwrap();
    let put_away = state.checkpoint.unwrap().step;
    // Steps go on while a checkpoint is being written, so that it may be one behind.
    assert!(put_away + 2 * EVERY > reached, "{put_away} of {reached}");

    let _second = Process::start(&platform, "second", &settings);
    let goes_on = told(&platform, &task, 0).await;
    assert!(goes_on >= put_away, "nothing before is drawn again");
    assert_eq!(platform.pictures(&task).await[0].1, undisturbed[0].1);
    let runs = platform.record(&task).await.view().runs;
    let of = |run: &Run| (run.worker.clone(), run.attempt, run.from_step, run.to_step);
    let (first, second) = ("first".to_owned(), "second".to_owned());
    assert_eq!(runs.len(), 2);
    assert_eq!(of(&runs[0]), (first, 1, 0, put_away));
    assert_eq!((&*runs[0].end, &*runs[0].device), ("lost", "cpu"));
    assert_eq!((of(&runs[1]).0, of(&runs[1]).2), (second, put_away));
    assert_eq!((&*runs[1].end, runs[1].attempt), ("ended", 2));
}

#[tokio::test]
async fn a_worker_that_was_stopped_for_longer_than_the_ack_wait_leaves_its_task_to_whoever_has_it()
{
    let platform = Platform::with_long_tasks().await;
    let settings = [
        // Whoever is at work says so every third of it: one that gets no processor for some seconds keeps what it has.
        ("worker.ack_wait", "5s"),
        ("engine.kind", "simulated"),
        ("engine.simulated.step", "20ms"),
        ("engine.checkpoint_every", "300ms"),
    ];
    let first = Process::start(&platform, "first", &settings);
    // 4 s of steps: it has not ended when it is stopped, however fast the machine is.
    let car = || request("a red car", 3, 200);
    let undisturbed = platform.pictures(&platform.submit(car()).await).await;
    let task = platform.submit(car()).await;
    let state = async || platform.record(&task).await.state.unwrap_or_default();
    until("it is put away", async || {
        state().await.checkpoint.is_some()
    })
    .await;
    first.signal("-STOP");
    let _second = Process::start(&platform, "second", &settings);
    until("another has it", async || state().await.worker == "second").await;
    first.signal("-CONT");
    assert_eq!(platform.pictures(&task).await[0].1, undisturbed[0].1);
    let done = platform.record(&task).await.done.unwrap();
    assert_eq!((done.worker.as_str(), done.attempt), ("second", 2));
    platform.work_is_settled().await;
    assert!(platform.dead_letters().await.is_empty());
}

#[tokio::test]
async fn a_task_that_kills_its_workers_ends_with_the_reason_and_a_copy_in_dead() {
    let platform = Platform::start().await;
    let settings = [("worker.ack_wait", "1s"), ("worker.max_attempts", "2")];
    let task = platform.submit(large(3, 400)).await;
    for attempt in 1..=2 {
        let worker = Process::start(&platform, "victim", &settings);
        until("it is taken up", async || {
            let record = platform.record(&task).await;
            (record.attempts(), record.phase()) == (attempt, TaskPhase::Running)
        })
        .await;
        worker.kill();
    }
    let mut worker = Process::start(&platform, "survivor", &settings);
    let done = platform.done(&task).await;
    assert_eq!(failure(&done).0, "attempts_exhausted");
    platform.work_is_settled().await;
    let letters = platform.dead_letters().await;
    assert_eq!(letters[0].task_id, task.task.to_string());
    let runs = platform.record(&task).await.view().runs;
    assert!(runs.iter().all(|run| run.worker == "victim"), "{runs:?}");
    let next = platform.submit(request("a cat", 1, 2)).await;
    assert_eq!(platform.pictures(&next).await.len(), 1);
    assert!(worker.0.try_wait().unwrap().is_none(), "it is still there");
}

#[tokio::test]
async fn a_task_that_kills_each_process_it_runs_in_takes_none_of_its_neighbours_with_it() {
    let platform = Platform::with_long_tasks().await;
    // Its steps take as long on a machine that has other work: all run for some seconds.
    let settings = [
        ("worker.slots", "4"),
        ("worker.ack_wait", "2s"),
        ("engine.kind", "simulated"),
        ("engine.simulated.step", "20ms"),
    ];
    let guilty = platform.submit(request("a cat", 1, 1000)).await;
    let mut beside = Vec::new();
    for seed in 2..=4 {
        beside.push(platform.submit(request("a dog", seed, 200)).await);
    }
    let runs_as = async |task: &TaskRef, attempt: u32| {
        let record = platform.record(task).await;
        (record.attempts(), record.phase()) == (attempt, TaskPhase::Running)
    };
    for attempt in 1..=2 {
        let worker = Process::start(&platform, "victim", &settings);
        until("all run in it", async || {
            let mut all = runs_as(&guilty, attempt).await;
            for task in &beside {
                all &= runs_as(task, attempt).await;
            }
            all
        })
        .await;
        worker.kill();
    }
    // This one comes when the others have lost two attempts, and loses none.
    let fresh = platform.submit(request("a dog", 5, 200)).await;
    let worker = Process::start(&platform, "victim", &settings);
    until("it runs for the last time", async || {
        runs_as(&guilty, 3).await
    })
    .await;
    worker.kill();

    let _survivor = Process::start(&platform, "survivor", &settings);
    let done = platform.done(&guilty).await;
    assert_eq!(failure(&done).0, "attempts_exhausted");
    let mut last_runs = Vec::new();
    for task in beside.iter().chain([&fresh]) {
        assert_eq!(platform.pictures(task).await.len(), 1);
        let runs = platform.record(task).await.view().runs;
        let ends: Vec<_> = runs.iter().map(|run| &*run.end).collect();
        let lost: &[&str] = if *task == fresh {
            &[]
        } else {
            &["lost", "lost"]
        };
        assert_eq!(ends, [lost, &["ended"]].concat(), "{runs:?}");
        let last = runs.last().unwrap();
        let (from, to) = (last.started_at.unwrap(), last.ended_at.unwrap());
        last_runs.push(((from.seconds, from.nanos), (to.seconds, to.nanos)));
    }
    last_runs.sort_unstable();
    let one_by_one = last_runs.windows(2).all(|pair| pair[0].1 <= pair[1].0);
    assert!(one_by_one, "{last_runs:?}");
    platform.work_is_settled().await;
    let letters = platform.dead_letters().await;
    assert_eq!(letters.len(), 1);
    assert_eq!(letters[0].task_id, guilty.task.to_string());
}

#[tokio::test]
async fn a_step_that_does_not_come_back_ends_the_process_and_not_the_tasks_beside_it() {
    let platform = Platform::start().await;
    let settings = [
        ("worker.ack_wait", "5s"),
        ("worker.max_attempts", "2"),
        ("engine.step_timeout", "1500ms"),
        // Its account is not what is tested here.
        ("engine.memory_limit", "256GiB"),
    ];
    // A step of it takes longer than one may: to the watchdog it is as one that never ends.
    let poison = SubmitTask {
        width: 2560,
        height: 2560,
        ..request("a cat", 1, 4)
    };
    let poison = platform.submit(poison).await;
    let beside = platform.submit(request("a dog", 2, 40)).await;
    for attempt in 1..=2 {
        let mut worker = Process::start(&platform, "hangs", &settings);
        assert_eq!(worker.ends().await.code(), Some(HUNG));
        assert_eq!(platform.record(&poison).await.attempts(), attempt);
    }
    let done = platform.done(&poison).await;
    let (code, reason) = failure(&done);
    assert_eq!(code, "attempts_exhausted");
    assert!(
        reason.contains("does not come back from a step"),
        "{reason}"
    );
    let letters = platform.dead_letters().await;
    assert_eq!(letters.len(), 1);
    assert_eq!(letters[0].task_id, poison.task.to_string());
    let runs = platform.record(&poison).await.view().runs;
    assert_eq!(runs[0].end, "failed");
    assert!(runs[0].reason.contains("does not come back"), "{runs:?}");

    let _next = Process::start(&platform, "next", &settings);
    assert_eq!(platform.pictures(&beside).await.len(), 1);
    let done = platform.record(&beside).await.done.unwrap();
    assert_eq!(done.attempt, 1, "it had no part in it");
    platform.work_is_settled().await;
}

#[tokio::test]
async fn workers_that_are_replaced_one_after_the_other_under_load_end_every_task_once() {
    let platform = Platform::start().await;
    let settings = [("worker.slots", "2")];
    let mut workers = Vec::new();
    for name in ["a", "b"] {
        workers.push((name, Process::start(&platform, name, &settings)));
    }
    let mut tasks = Vec::new();
    for seed in 0..8 {
        tasks.push(platform.submit(large(seed % 2, 60)).await);
    }
    let running = async || {
        let mut workers = Vec::new();
        for task in &tasks {
            let record = platform.record(task).await;
            if record.phase() == TaskPhase::Running {
                workers.push(record.state.unwrap().worker);
            }
        }
        workers
    };
    let mut replaced = Vec::new();
    for (name, old) in workers {
        until("it is at work", async || {
            running().await.iter().any(|worker| worker == name)
        })
        .await;
        assert!(old.terminate().await.success());
        let name = format!("{name}-new");
        replaced.push(Process::start(&platform, &name, &settings));
    }
    let mut digests = [None, None];
    for (seed, task) in tasks.iter().enumerate() {
        let pictures = platform.pictures(task).await;
        let drawn = pictures[0].0.sha256.clone();
        let same = digests[seed % 2].get_or_insert_with(|| drawn.clone());
        assert_eq!(*same, drawn);
        let record = platform.record(task).await;
        let done = record.done.as_ref().unwrap();
        assert_eq!(done.attempt, 1, "{:?}", record.view().runs);
    }
    let handed_back = async |task: &TaskRef| {
        let runs = platform.record(task).await.view().runs;
        runs.iter().any(|run| run.end == "handed_back")
    };
    let mut any = false;
    for task in &tasks {
        any |= handed_back(task).await;
    }
    assert!(any, "nobody was interrupted");
    platform.work_is_settled().await;
    assert!(platform.dead_letters().await.is_empty());
}

#[tokio::test]
async fn a_worker_whose_clock_is_ahead_ends_only_what_is_late_by_the_brokers() {
    let platform = Platform::start().await;
    let ahead = [("process.clock_offset", "1800")];
    let _worker = Process::start(&platform, "ahead", &ahead);
    let in_time = SubmitTask {
        expires_after_seconds: 900,
        ..request("a cat", 1, 2)
    };
    let in_time = platform.submit(in_time).await;
    assert_eq!(platform.pictures(&in_time).await.len(), 1);
    let late = late(&platform, &in_time).await;
    platform.log.dispatch(&late, 1, 1).await.unwrap();
    let done = platform.done(&TaskRef::of(&late).unwrap()).await;
    assert!(deadline::has_expired(&done), "{done:?}");
}

#[tokio::test]
async fn a_worker_whose_clock_is_behind_begins_nothing_that_is_late_by_the_brokers() {
    let platform = Platform::start().await;
    let behind = [("process.clock_offset", "-1800")];
    let _worker = Process::start(&platform, "behind", &behind);
    let in_time = SubmitTask {
        expires_after_seconds: 900,
        ..request("a cat", 1, 2)
    };
    let in_time = platform.submit(in_time).await;
    assert_eq!(platform.pictures(&in_time).await.len(), 1);
    // As an orchestrator hands it over: who gets it goes by what it tells.
    let late = late(&platform, &in_time).await;
    let task = platform.hand_over(&late).await;
    let done = platform.done(&task).await;
    assert!(deadline::has_expired(&done), "{done:?}");
}

#[tokio::test]
async fn what_a_dispatch_tells_is_gone_by_whatever_the_workers_clock_says() {
    let platform = Platform::start().await;
    // The log's submission wants one picture, the one that is told two.
    let task = platform.submit_only(request("a cat", 1, 2)).await;
    let mut told = platform.record(&task).await.submitted;
    told.request.as_mut().unwrap().images = 2;
    // So far ahead that the dispatch would be too old to be gone by.
    let ahead = [("process.clock_offset", "1800")];
    let _worker = Process::start(&platform, "ahead", &ahead);
    platform.hand_over(&told).await;
    assert_eq!(platform.pictures(&task).await.len(), 2);
}

#[tokio::test]
async fn a_worker_whose_clock_is_ahead_does_not_give_up_what_others_have_just_begun() {
    let platform = Platform::start().await;
    let faults = platform.folder.path().join("faults.json");
    std::fs::write(&faults, r#"{"full":100}"#).unwrap();
    let file = faults.display().to_string();
    let full = [
        ("storage.faults", file.as_str()),
        ("output.patience", "500ms"),
        ("output.give_up_after", "12h"),
    ];
    let task = platform.submit(request("a cat", 1, 2)).await;
    let handed_back = async |name: &str| {
        let runs = platform.record(&task).await.view().runs;
        let by = |run: &Run| run.worker == name && run.end == "handed_back";
        runs.iter().any(by)
    };
    let first = Process::start(&platform, "first", &full);
    until("it is put off", async || handed_back("first").await).await;
    assert!(first.terminate().await.success());
    let ahead = [&full[..], &[("process.clock_offset", "86400")]].concat();
    let _ahead = Process::start(&platform, "ahead", &ahead);
    until("it is put off again, or given up", async || {
        handed_back("ahead").await || platform.record(&task).await.done.is_some()
    })
    .await;
    assert_eq!(platform.record(&task).await.done, None);
    std::fs::remove_file(&faults).unwrap();
    assert_eq!(platform.pictures(&task).await.len(), 1);
}

/// A task like this one that should have begun some minutes ago.
async fn late(platform: &Platform, like: &TaskRef) -> Submitted {
    let mut at = contract::now();
    at.seconds -= 1200;
    let late = Submitted {
        task_id: TaskId::random().to_string(),
        at: Some(at),
        ..platform.record(like).await.submitted
    };
    platform.log.submit(&late).await.unwrap();
    late
}
