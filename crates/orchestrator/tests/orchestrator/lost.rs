//! Dispatches that are lost from WORK, and tasks that end all the same.

use std::collections::BTreeSet;

use task_log::{Queue, TaskRef};

use crate::backlog::Process;
use crate::support::{Platform, Worker, stop, submitted, until};

const TASKS: usize = 12;

/// What `nats stream purge WORK` does. Returns how many dispatches went.
async fn purge(platform: &Platform) -> u64 {
    let work = platform.broker.queue("WORK");
    work.keep_last("inkstone.work.>", 0).await.unwrap()
}

async fn all_are_out(platform: &Platform) {
    until("all are dispatched", async || {
        platform.out().await.len() == TASKS
    })
    .await;
}

/// Each comes to the worker once, and nothing else does.
async fn each_comes_once(platform: &Platform, worker: &Worker, tasks: &[TaskRef]) {
    let ids = |tasks: &[TaskRef]| -> BTreeSet<String> {
        tasks.iter().map(|task| task.task.to_string()).collect()
    };
    let seen = worker.work_off(tasks.len()).await;
    assert_eq!(ids(&seen), ids(tasks));
    until("nothing is left", async || platform.out().await.is_empty()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tasks_whose_dispatches_are_purged_are_handed_over_again_and_end() {
    let platform = Platform::start().await;
    let orchestrator = platform.orchestrator(&[("scheduling.window", "16")]).await;
    let tasks = platform.submit_many("acme", TASKS).await;
    all_are_out(&platform).await;
    assert_eq!(purge(&platform).await, TASKS as u64);
    let worker = platform.worker("1").await;
    each_comes_once(&platform, &worker, &tasks).await;
    // Those that come later have their turn as ever.
    let next = platform.submit(&submitted("acme", "1")).await;
    each_comes_once(&platform, &worker, &[next]).await;
    stop(orchestrator).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_purge_lets_no_more_tasks_through_than_the_window() {
    let platform = Platform::start().await;
    let orchestrator = platform.orchestrator(&[("scheduling.window", "4")]).await;
    let tasks = platform.submit_many("acme", TASKS).await;
    until("the window is full", async || {
        platform.out().await.len() == 4
    })
    .await;
    let before = platform.out().await;
    assert_eq!(purge(&platform).await, 4);
    until("those that were purged are out again", async || {
        let out = platform.out().await;
        assert!(out.is_subset(&before), "{out:?} are out, not {before:?}");
        out.len() == before.len()
    })
    .await;
    let worker = platform.worker("1").await;
    each_comes_once(&platform, &worker, &tasks).await;
    stop(orchestrator).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tasks_whose_dispatches_are_purged_end_though_their_orchestrator_was_killed() {
    let platform = Platform::start().await;
    let mut process = Process::start(&platform);
    let tasks = platform.submit_many("acme", TASKS).await;
    all_are_out(&platform).await;
    let mut places = Vec::new();
    for task in &tasks {
        let record = platform.log.read(&task.tenant, task.task).await.unwrap();
        places.push(record.unwrap().sequence);
    }
    let queue = Queue {
        lane: tasks[0].lane.clone(),
        tenant: tasks[0].tenant.clone(),
    };
    let (first, last) = (places.iter().min().unwrap(), places.iter().max().unwrap());
    let cursors = platform.log.cursors().await.unwrap();
    until("the queue's cursor is past them all", async || {
        let cursor = cursors.get(&queue.key()).await.unwrap();
        cursor.is_some_and(|entry| {
            assert!(entry.value.open_from() <= *first);
            entry.value.sequence > *last
        })
    })
    .await;
    process.kill();
    assert_eq!(purge(&platform).await, TASKS as u64);
    process = Process::start(&platform);
    let worker = platform.worker("1").await;
    each_comes_once(&platform, &worker, &tasks).await;
    drop(process);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_comes_again_whose_dispatch_was_taken_off_the_queue_before_it_ended() {
    let platform = Platform::start().await;
    let orchestrator = platform.orchestrator(&[]).await;
    let task = platform.submit(&submitted("acme", "1")).await;
    let worker = platform.worker("1").await;
    let mut pulled = Vec::new();
    until("it comes", async || {
        pulled = worker.pull(1).await;
        !pulled.is_empty()
    })
    .await;
    pulled[0].1.ack().await.unwrap();
    each_comes_once(&platform, &worker, &[task]).await;
    stop(orchestrator).await;
}
