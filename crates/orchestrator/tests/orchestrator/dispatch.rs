//! What is dispatched, in which order, and that it is dispatched once.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant, SystemTime};

use contract::TenantId;
use contract::task::{Cancelled, DeadLetter, Dispatch, Done, done};
use contract::v1::TaskPhase;
use prost::Message as _;
use task_log::{Record, TaskRef};

use crate::support::{LANE, PATIENCE, Platform, stop, submitted, tenants, until};

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_with_one_task_does_not_wait_behind_anothers_thousands() {
    let platform = Platform::start().await;
    platform.submit_many("flood", 3000).await;
    let orchestrator = platform.orchestrator(&[("scheduling.window", "8")]).await;
    let worker = platform.worker("1").await;
    // It is under way.
    worker.work_off(20).await;
    let task = platform.submit(&submitted("one", "1")).await;
    let began = Instant::now();
    let mut before = 0;
    until("the lone task is dispatched", async || {
        let done = worker.work_off(1).await;
        before += 1;
        done[0] == task
    })
    .await;
    println!("dispatched after {:?}, {before} others", began.elapsed());
    assert!(before < 1500, "{before} of the other's went first");
    stop(orchestrator).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tenants_take_turns_however_many_tasks_each_has() {
    let platform = Platform::start().await;
    for (tenant, number) in [("many", 400), ("some", 60), ("few", 30)] {
        platform.submit_many(tenant, number).await;
    }
    let orchestrator = platform.orchestrator(&[("scheduling.window", "6")]).await;
    let worker = platform.worker("1").await;
    let done = worker.work_off(90).await;
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for tenant in tenants(&done) {
        *counts.entry(tenant.as_str()).or_default() += 1;
    }
    // But for the first few, which were dispatched before all queues were read.
    assert!(counts["few"] >= 22 && counts["some"] >= 22, "{counts:?}");
    stop(orchestrator).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_task_is_dispatched_once_though_its_orchestrator_is_stopped_and_another_goes_on() {
    let platform = Platform::start().await;
    let mut all = BTreeSet::new();
    for tenant in ["a", "b", "c"] {
        let tasks = platform.submit_many(tenant, 150).await;
        all.extend(tasks.iter().map(|task| task.task.to_string()));
    }
    let worker = platform.worker("1").await;
    let mut seen = Vec::new();
    for _ in 0..2 {
        let orchestrator = platform.orchestrator(&[]).await;
        seen.extend(worker.work_off(100).await);
        stop(orchestrator).await;
    }
    let began = Instant::now();
    let orchestrator = platform.orchestrator(&[]).await;
    until("it is dispatched again", async || {
        !platform.out().await.is_empty()
    })
    .await;
    assert!(began.elapsed() < Duration::from_secs(5));
    seen.extend(worker.work_off(all.len() - seen.len()).await);
    let once: BTreeSet<String> = seen.iter().map(|task| task.task.to_string()).collect();
    assert_eq!(once, all);
    until("nothing is left", async || platform.out().await.is_empty()).await;
    stop(orchestrator).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn several_orchestrators_share_the_work_and_dispatch_nothing_twice() {
    let platform = Platform::start().await;
    let first = platform.orchestrator(&[]).await;
    let second = platform.orchestrator(&[]).await;
    let mut all = BTreeSet::new();
    for tenant in 0..12 {
        let tasks = platform.submit_many(&format!("t-{tenant}"), 40).await;
        all.extend(tasks.iter().map(|task| task.task.to_string()));
    }
    let worker = platform.worker("1").await;
    let mut seen = worker.work_off(240).await;
    // What it owned is given to the other at once.
    stop(first).await;
    seen.extend(worker.work_off(all.len() - seen.len()).await);
    let once: BTreeSet<String> = seen.iter().map(|task| task.task.to_string()).collect();
    assert_eq!(once, all);
    stop(second).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_cancelled_before_its_dispatch_stays_cancelled_and_blocks_nobody() {
    let platform = Platform::start().await;
    let task = platform.submit(&submitted("acme", "1")).await;
    let cancelled = Done {
        outcome: Some(done::Outcome::Cancelled(Cancelled::default())),
        ..Done::default()
    };
    platform.log.end(&task, &cancelled).await.unwrap();
    let next = platform.submit(&submitted("acme", "1")).await;
    let orchestrator = platform.orchestrator(&[]).await;
    let worker = platform.worker("1").await;
    assert_eq!(worker.work_off(1).await, [next]);
    let record = platform.log.read(&task.tenant, task.task).await.unwrap();
    assert_eq!(record.unwrap().phase(), TaskPhase::Cancelled);
    stop(orchestrator).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dispatch_tells_its_worker_of_the_task_unless_that_is_large() {
    let platform = Platform::start().await;
    let small = platform.submit(&submitted("acme", "1")).await;
    let mut event = submitted("acme", "1");
    if let Some(request) = &mut event.request {
        request.prompt = "a cat ".repeat(600);
        request.negative_prompt = "a dog ".repeat(600);
    }
    platform.submit(&event).await;
    let orchestrator = platform.orchestrator(&[]).await;
    let worker = platform.worker("1").await;
    let mut seen = 0;
    until("both have come", async || {
        for (task, delivery) in worker.pull(2).await {
            let dispatch = Dispatch::decode(delivery.payload().clone()).unwrap();
            let told = Record::of_dispatch(&task, &dispatch);
            let record = platform.log.read(&task.tenant, task.task).await.unwrap();
            // Where the submission lies, a dispatch does not tell.
            let known = record.map(|record| Record {
                sequence: 0,
                ..record
            });
            assert_eq!(told, known.filter(|_| task == small));
            worker.end(&task, &delivery).await;
            seen += 1;
        }
        seen == 2
    })
    .await;
    stop(orchestrator).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_has_no_more_tasks_at_workers_than_its_limit() {
    let platform = Platform::start().await;
    let orchestrator = platform.orchestrator(&[("scheduling.window", "16")]).await;
    for _ in 0..12 {
        let mut event = submitted("limited", "1");
        event.tasks_running = 3;
        platform.submit(&event).await;
    }
    platform.submit_many("free", 5).await;
    until("all that may be are dispatched", async || {
        platform.out().await.len() == 8
    })
    .await;
    let worker = platform.worker("1").await;
    let limited: TenantId = "limited".parse().unwrap();
    let mut pulled = worker.pull(16).await;
    let mut ended = 0;
    while ended < 17 {
        let (task, delivery) = match pulled.pop() {
            Some(next) => next,
            None => {
                pulled = worker.pull(16).await;
                continue;
            }
        };
        worker.end(&task, &delivery).await;
        ended += 1;
        let out = platform.log.work().await.unwrap().by_tenant;
        let limited = out.get(&limited).copied();
        assert!(limited.unwrap_or(0) <= 3, "{out:?}");
    }
    stop(orchestrator).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_that_did_not_begin_in_time_ends_however_deep_it_lies_and_others_stay() {
    let platform = Platform::start().await;
    let orchestrator = platform.orchestrator(&[("scheduling.window", "4")]).await;
    // Nobody takes them, and more than are ever held in memory lie before it.
    platform.submit_many("acme", 1500).await;
    let limited = |seconds| {
        let mut event = submitted("acme", "1");
        if let Some(request) = &mut event.request {
            request.expires_after_seconds = seconds;
        }
        event
    };
    let (soon, later) = (limited(2), limited(600));
    let began = Instant::now();
    let mut tasks = Vec::new();
    for event in [&soon, &later] {
        tasks.push(platform.submit(event).await);
        platform.log.note_deadline(event).await.unwrap();
    }
    let phase = async |task: &TaskRef| {
        let record = platform.log.read(&task.tenant, task.task).await.unwrap();
        record.unwrap().phase()
    };
    until("it has ended", async || {
        phase(&tasks[0]).await == TaskPhase::Failed
    })
    .await;
    println!("ended after {:?}", began.elapsed());
    assert!(began.elapsed() >= Duration::from_secs(1));
    assert!(began.elapsed() < Duration::from_secs(20));
    assert_eq!(phase(&tasks[1]).await, TaskPhase::Queued);
    let noted = platform.broker.log("DEADLINES");
    until("only the other is noted", async || {
        let noted = noted.last_of_each("inkstone.deadline.*.>").await.unwrap();
        let of = |task: &TaskRef| {
            let name = task.task.to_string();
            noted.iter().any(|event| event.subject.ends_with(&name))
        };
        !of(&tasks[0]) && of(&tasks[1])
    })
    .await;
    stop(orchestrator).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_submission_that_cannot_be_read_ends_and_is_buried_and_blocks_nobody() {
    let platform = Platform::start().await;
    let orchestrator = platform.orchestrator(&[]).await;
    let event = submitted("acme", "1");
    let task = contract::TaskId::random();
    let subject = format!("inkstone.task.acme.standard-image.{task}.submitted");
    let tasks = platform.broker.log("TASKS");
    let nonsense = bytes::Bytes::from_static(b"\xff\xff nonsense");
    tasks.put(&subject, nonsense.clone()).await.unwrap();
    // Of this one nobody can ask: it has no task's id.
    let nobodys = "inkstone.task.acme.standard-image.nonsense.submitted";
    tasks.put(nobodys, nonsense).await.unwrap();
    let next = platform.submit(&event).await;
    let worker = platform.worker("1").await;
    assert_eq!(worker.work_off(1).await, [next]);
    let dead = platform.broker.log("DEAD");
    let letters = dead.last_of_each("inkstone.dead.>").await.unwrap();
    assert_eq!(letters.len(), 2);
    let end = async |task: &str| {
        let subject = format!("inkstone.task.acme.standard-image.{task}.done");
        tasks.last(&subject).await.unwrap()
    };
    let done = end(&task.to_string()).await.expect("it has an end");
    let done = Done::decode(done.payload).unwrap();
    let Some(done::Outcome::Failed(failed)) = done.outcome else {
        panic!("{:?}", done.outcome);
    };
    assert_eq!(failed.code, "internal");
    assert!(
        failed.message.contains("cannot be decoded"),
        "{}",
        failed.message
    );
    assert!(end("nonsense").await.is_none());
    stop(orchestrator).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_read_is_given_up_by_the_brokers_clock_and_not_by_ones_own() {
    let platform = Platform::start().await;
    // Of this process, which has no other test in it.
    contract::clock::set_offset(24 * 3600);
    let orchestrator = platform.orchestrator(&[]).await;
    let event = submitted("acme", "1");
    let task = TaskRef::of(&event).unwrap();
    platform.announce(&task).await;
    let place = |event: &str| format!("inkstone.task.acme.{LANE}.{}.{event}", task.task);
    let nonsense = bytes::Bytes::from_static(b"\xff\xff nonsense");
    let tasks = platform.broker.log("TASKS");
    tasks.put(&place("submitted"), nonsense).await.unwrap();
    until("it has ended", async || {
        platform.log.done(&task).await.unwrap().is_some()
    })
    .await;
    let done = platform.log.done(&task).await.unwrap().unwrap();
    let letter = platform.broker.log("DEAD").last("inkstone.dead.>").await;
    let letter = DeadLetter::decode(letter.unwrap().unwrap().payload).unwrap();
    let now = platform.log.time().await.unwrap();
    for at in [done.at, letter.at] {
        let at = SystemTime::try_from(at.unwrap()).unwrap();
        let hour = Duration::from_secs(3600);
        assert!(at < now + hour && at + hour > now, "{at:?}, {now:?}");
    }
    stop(orchestrator).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_version_without_room_keeps_no_other_from_running() {
    let platform = Platform::start().await;
    // More than a queue's usual heads, and nobody takes them.
    for _ in 0..200 {
        platform.submit(&submitted("acme", "full")).await;
    }
    let task = platform.submit(&submitted("acme", "1")).await;
    let orchestrator = platform.orchestrator(&[("scheduling.window", "4")]).await;
    let worker = platform.worker("1").await;
    let done = tokio::time::timeout(PATIENCE, worker.work_off(1)).await;
    assert_eq!(done.unwrap(), [task]);
    stop(orchestrator).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn dispatching_goes_on_when_the_broker_was_away() {
    let mut platform = Platform::start().await;
    let orchestrator = platform.orchestrator(&[("scheduling.window", "4")]).await;
    platform.submit_many("acme", 40).await;
    let worker = platform.worker("1").await;
    worker.work_off(10).await;
    platform.nats.kill();
    platform.nats.restart().unwrap();
    until("the broker is back", async || {
        platform.broker.probe().await.is_ok()
    })
    .await;
    worker.work_off(30).await;
    stop(orchestrator).await;
}
