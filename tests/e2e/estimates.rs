//! What callers are told of the wait before their tasks, against the wait that they had.

// What was measured, for whoever runs it by hand.
#![allow(clippy::print_stdout)]

use std::time::{Duration, Instant};

use contract::fleet::{BUCKET, MAX_AGE, WorkerRecord};
use contract::v1::{SubmitTask, Task, TaskPhase};
use e2e::{LIMIT, Platform};
use prost_types::Timestamp;

/// One device whose three slots draw in turn, so that it gets through a third of what its slots would if each had it alone. A step takes a
/// known time, whatever else the machine does.
const SHARED: [(&str, &str); 4] = [
    ("INKSTONE_GPU_WORKER__ENGINE__KIND", "simulated"),
    ("INKSTONE_GPU_WORKER__ENGINE__SIMULATED__STEP", "20ms"),
    ("INKSTONE_GPU_WORKER__WORKER__SLOTS", "3"),
    ("INKSTONE_GPU_WORKER__WORKER__MAX_BATCH", "1"),
];
/// Tasks from which the platform learns what tasks cost and how fast the worker is.
const FIRST: usize = 20;
/// Tasks that come all at once.
const BURST: usize = 60;
/// Tasks that come afterwards, each so long after the one before: faster than they are drawn.
const LATER: usize = 40;
const EVERY: Duration = Duration::from_millis(150);
/// A wait that is told is off by so much of the one that was had at most …
const OFF: f64 = 0.25;
/// … or by this, which is about what one task takes of the device.
const FLOOR: Duration = Duration::from_millis(250);

/// A picture of 6 to 14 steps.
fn picture(number: usize) -> SubmitTask {
    SubmitTask {
        steps: 6 + (number * 5 % 9) as u32,
        images: 1,
        seed: Some(number as u64),
        ..crate::short_picture()
    }
}

fn since_epoch(at: Option<&Timestamp>) -> Duration {
    let at = at.unwrap();
    Duration::new(at.seconds as u64, at.nanos as u32)
}

/// How long a task that has begun waited for that.
fn had(task: &Task) -> Duration {
    let submitted = since_epoch(task.submitted_at.as_ref());
    since_epoch(task.started_at.as_ref()).saturating_sub(submitted)
}

/// How long a task that has ended had a slot.
fn ran(task: &Task) -> Duration {
    since_epoch(task.ended_at.as_ref()).saturating_sub(since_epoch(task.started_at.as_ref()))
}

fn told(task: &Task) -> Option<Duration> {
    task.estimated_wait_ms.map(Duration::from_millis)
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "goes by the clock: for a quiet machine"]
async fn nine_of_ten_waits_are_told_within_a_quarter_though_slots_share_a_device() {
    let platform = Platform::start_with(&SHARED).await;
    platform.allow("dev", 1000).await;
    the_worker_is_announced(&platform).await;
    let mut first = Vec::new();
    for number in 0..FIRST {
        first.push(platform.submit(picture(number)).await.unwrap().id);
    }
    for id in &first {
        let ended = platform.wait_ended(id).await;
        assert_eq!(ended.phase(), TaskPhase::Succeeded);
    }

    let mut submitted = Vec::new();
    for number in 0..BURST {
        submitted.push(platform.submit(picture(number)).await.unwrap());
    }
    assert_those_that_wait_are_told(&platform, &submitted).await;
    for number in 0..LATER {
        tokio::time::sleep(EVERY).await;
        submitted.push(platform.submit(picture(number)).await.unwrap());
    }

    let (mut honest, mut longest) = (0, Duration::ZERO);
    for task in &submitted {
        let ended = platform.wait_ended(&task.id).await;
        let had = had(&ended);
        let off = told(task).map(|told| told.abs_diff(had));
        longest = longest.max(had);
        if off.is_some_and(|off| off <= had.mul_f64(OFF).max(FLOOR)) {
            honest += 1;
        } else {
            let position = task.queue_position;
            // Three that share the device run for three times their steps; what is more the model cannot know of.
            let (told, ran) = (told(task), ran(&ended));
            let steps = task.request.as_ref().map(|request| request.steps);
            println!("told {told:?} at {position:?}, had {had:?}, ran {ran:?} for {steps:?} steps");
        }
    }
    let all = submitted.len();
    println!("{honest} of {all} told within a quarter; the longest was {longest:?}");
    // There was something to wait for: four seconds at the least, if nothing but steps took time.
    assert!(longest > Duration::from_secs(4), "{longest:?}");
    assert!(honest * 10 >= all * 9, "{honest} of {all}");
}

async fn the_worker_is_announced(platform: &Platform) {
    let broker = platform.connect().await;
    let workers = broker
        .bucket::<WorkerRecord>(BUCKET, MAX_AGE)
        .await
        .unwrap();
    let deadline = Instant::now() + LIMIT;
    let serves = |worker: &WorkerRecord| !worker.models.is_empty();
    while !workers.all().await.unwrap().values().any(serves) {
        assert!(Instant::now() < deadline, "no worker serves any model");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Whoever waits is told, in its queue and at the workers: all but those that begin just then.
async fn assert_those_that_wait_are_told(platform: &Platform, tasks: &[Task]) {
    let (mut told_of, mut waiting, mut scheduled) = (0, 0, 0);
    for task in tasks {
        let task = platform.get(&task.id).await.unwrap();
        if matches!(task.phase(), TaskPhase::Queued | TaskPhase::Scheduled) {
            waiting += 1;
            scheduled += usize::from(task.phase() == TaskPhase::Scheduled);
            let is_told = task.queue_position.is_some() && told(&task).is_some();
            told_of += usize::from(is_told);
        }
    }
    println!("{waiting} wait, {scheduled} of them at workers, {told_of} are told");
    assert!(scheduled > 0 && waiting > scheduled);
    assert!(told_of * 10 >= waiting * 9, "{told_of} of {waiting}");
}
