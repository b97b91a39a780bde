//! Tasks end before the log lets go of them.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use contract::TaskId;
use contract::task::{Cancelled, Done, Phase, State, Submitted, done};
use task_log::{LetterName, StreamSettings, TaskRef, deadline};

use crate::support::{LANE, Platform, stop, submitted, until};

/// A task that was submitted so long ago, as its submission says.
fn aged(days: f64) -> Submitted {
    let ago = Duration::from_secs_f64(days * 24.0 * 3600.0);
    Submitted {
        at: Some((SystemTime::now() - ago).into()),
        ..submitted("acme", "1")
    }
}

async fn end_of(platform: &Platform, task: &TaskRef) -> Done {
    until("it has ended", async || {
        platform.log.done(task).await.unwrap().is_some()
    })
    .await;
    platform.log.done(task).await.unwrap().unwrap()
}

fn why(done: Done) -> (String, String) {
    match done.outcome {
        Some(done::Outcome::Failed(failed)) => (failed.code, failed.message),
        other => panic!("not failed: {other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_that_no_worker_takes_ends_before_the_log_lets_go_of_it() {
    let platform = Platform::start().await;
    let retention = ("streams.task_retention", "20s");
    let settings = [retention, ("scheduling.window", "1")];
    let orchestrator = platform.orchestrator(&settings).await;
    // One is handed over, the others wait in their queue.
    let tasks = platform.submit_many("acme", 3).await;
    until("one is handed over", async || {
        platform.out().await.len() == 1
    })
    .await;
    for task in &tasks {
        let end = end_of(&platform, task).await;
        assert!(deadline::has_expired(&end), "its charge is given back");
        let (code, message) = why(end);
        assert_eq!(code, "deadline_exceeded");
        assert!(message.contains("within 18 s, the longest"), "{message}");
        let record = platform.log.read(&task.tenant, task.task).await.unwrap();
        assert!(record.is_some(), "the log still knows the task");
    }
    stop(orchestrator).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_too_long_ends_however_much_it_is_and_what_has_begun_a_little_later() {
    let platform = Platform::start().await;
    let mut old = Vec::new();
    // More than are in memory at a time. Of seven days it may wait six and three tenths.
    for _ in 0..200 {
        old.push(platform.submit(&aged(6.31)).await);
    }
    let young = platform.submit(&aged(6.29)).await;
    let begun = async |days| {
        let event = aged(days);
        let task = platform.submit(&event).await;
        let state = State {
            phase: Phase::Running.into(),
            attempt: 1,
            started_at: event.at,
            ..State::default()
        };
        platform.log.set_state(&task, &state).await.unwrap();
        platform.log.dispatch(&event, 0, 1).await.unwrap();
        task
    };
    let (drawn, hung) = (begun(6.6).await, begun(6.7).await);
    let orchestrator = platform.orchestrator(&[]).await;
    let end = end_of(&platform, &hung).await;
    assert_eq!(end.attempt, 1);
    assert!(!deadline::has_expired(&end), "it stays charged");
    assert_eq!(why(end).0, "deadline_exceeded");
    for task in &old {
        let end = end_of(&platform, task).await;
        assert!(deadline::has_expired(&end));
    }
    until("the young one is handed over", async || {
        platform.out().await.contains(&young.task.to_string())
    })
    .await;
    for task in [&young, &drawn] {
        assert_eq!(platform.log.done(task).await.unwrap(), None);
    }
    stop(orchestrator).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_while_no_orchestrator_is_there_ends_when_one_comes_and_goes_only_then() {
    let platform = Platform::start().await;
    let kept = "2s";
    let streams = StreamSettings {
        task_retention: kept.parse().unwrap(),
        ..StreamSettings::small()
    };
    platform.log.ensure_streams(&streams).await.unwrap();
    let waiting = platform.submit(&submitted("acme", "1")).await;
    let event = submitted("acme", "1");
    let handed = platform.submit(&event).await;
    platform.log.dispatch(&event, 0, 1).await.unwrap();
    let late = platform.log.time().await.unwrap() + Duration::from_secs(4);
    until("its time is over twice", async || {
        platform.log.time().await.unwrap() >= late
    })
    .await;
    let known = async |task: &TaskRef| {
        let record = platform.log.read(&task.tenant, task.task).await;
        record.unwrap().is_some()
    };
    let tasks = [waiting, handed];
    for task in &tasks {
        assert!(known(task).await, "nobody has ended it");
    }
    let settings = [("streams.task_retention", kept)];
    let orchestrator = platform.orchestrator(&settings).await;
    for task in &tasks {
        let end = end_of(&platform, task).await;
        assert!(deadline::has_expired(&end), "its charge is given back");
    }
    for task in &tasks {
        until("the log has let go of it", async || !known(task).await).await;
    }
    stop(orchestrator).await;
}

/// A figure of the orchestrator whose admin address this is; `name` with its labels.
pub(crate) fn figure(admin: &str, name: &str) -> Option<f64> {
    let mut connection = TcpStream::connect(admin).ok()?;
    let asked = "GET /metrics HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n";
    connection.write_all(asked.as_bytes()).ok()?;
    let mut answer = String::new();
    connection.read_to_string(&mut answer).ok()?;
    let line = answer.lines().find(|line| line.starts_with(name))?;
    let value = line.trim_end().rsplit(' ').next()?;
    value.parse().ok()
}

/// How long the oldest task has waited.
fn oldest_wait(admin: &str) -> Option<Duration> {
    let seconds = figure(admin, "inkstone_orchestrator_oldest_wait_seconds");
    seconds.map(Duration::from_secs_f64)
}

#[tokio::test(flavor = "multi_thread")]
async fn how_long_the_oldest_task_waits_is_told_before_it_ends_for_that() {
    let platform = Platform::start().await;
    let (days, day) = (4.0, Duration::from_secs(24 * 3600));
    for _ in 0..2 {
        platform.submit(&aged(days)).await;
    }
    let admin = format!("127.0.0.1:{}", nats_server::free_port().unwrap());
    // One is handed over, the other waits.
    let settings = [
        ("scheduling.window", "1"),
        ("process.admin_listen", admin.as_str()),
    ];
    let orchestrator = platform.orchestrator(&settings).await;
    until("it is told", async || {
        let waits = oldest_wait(&admin).unwrap_or_default();
        waits >= day.mul_f64(days) && waits < day.mul_f64(days + 0.1)
    })
    .await;
    let worker = platform.worker("1").await;
    worker.work_off(2).await;
    until("nothing waits any more", async || {
        oldest_wait(&admin) == Some(Duration::ZERO)
    })
    .await;
    stop(orchestrator).await;
}

/// What was stored until now is older than this by the broker's clock when this returns.
pub(crate) async fn grow_older_than(platform: &Platform, age: Duration) {
    let late = platform.log.time().await.unwrap() + age;
    until("its time is over", async || {
        platform.log.time().await.unwrap() > late
    })
    .await;
}

/// An event of a task of this name, beside those of tasks.
fn filler() -> String {
    let task = TaskId::random();
    format!("inkstone.task.filler.{LANE}.{task}.feedback")
}

/// Fills TASKS until not even the smallest event has room.
async fn fill(platform: &Platform) {
    let tasks = platform.broker.log("TASKS");
    let mut size = 1 << 20;
    while size > 0 {
        let payload = Bytes::from(vec![0_u8; size]);
        if tasks.put(&filler(), payload).await.is_err() {
            size /= 2;
        }
    }
}

/// Settings of a log that is small and keeps little for long.
const SMALL: [(&str, &str); 3] = [
    ("streams.task_retention", "2s"),
    ("streams.task_max_size", "1MiB"),
    // It would read all that fills the log.
    ("audit.enabled", "false"),
];

async fn small() -> Platform {
    let platform = Platform::start().await;
    let [(_, kept), (_, size), _] = SMALL;
    let streams = StreamSettings {
        task_retention: kept.parse().unwrap(),
        task_max_size: size.parse().unwrap(),
        ..StreamSettings::small()
    };
    platform.log.ensure_streams(&streams).await.unwrap();
    platform
}

/// A task that has ended.
pub(crate) async fn ended(platform: &Platform) -> TaskRef {
    let task = platform.submit(&submitted("acme", "1")).await;
    let cancelled = Done {
        outcome: Some(done::Outcome::Cancelled(Cancelled::default())),
        ..Done::default()
    };
    platform.log.end(&task, &cancelled).await.unwrap();
    task
}

/// One that workers were handed, and that none has begun.
async fn handed(platform: &Platform) -> TaskRef {
    let event = submitted("acme", "1");
    let task = platform.submit(&event).await;
    let state = State {
        phase: Phase::Scheduled.into(),
        ..State::default()
    };
    platform.log.set_state(&task, &state).await.unwrap();
    platform.log.dispatch(&event, 0, 1).await.unwrap();
    task
}

/// The log is full and all in it is old; these end, and then the log lets go of all.
async fn end_and_go(platform: &Platform, open: &[TaskRef], over: &[TaskRef]) {
    fill(platform).await;
    let refused = platform.log.submit(&submitted("acme", "1")).await;
    assert!(refused.is_err(), "there is no room");
    grow_older_than(platform, Duration::from_secs(4)).await;
    let orchestrator = platform.orchestrator(&SMALL).await;
    for task in open {
        let end = end_of(platform, task).await;
        assert!(deadline::has_expired(&end));
    }
    for task in open.iter().chain(over) {
        until("the log has let go of it", async || {
            !platform.log.is_there(task.task).await.unwrap()
        })
        .await;
    }
    // What lies between them goes with the prefix, when those that were ended were told.
    until("the log has room", async || {
        platform.log.size().await.unwrap() < 1 << 20
    })
    .await;
    stop(orchestrator).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_log_lets_go_of_what_has_ended_and_so_has_room_for_the_ends_of_what_has_not() {
    let platform = small().await;
    let over = [ended(&platform).await];
    let payload = Bytes::from(vec![0_u8; 1 << 20]);
    let tasks = platform.broker.log("TASKS");
    tasks.put(&filler(), payload).await.unwrap();
    // More than are looked at together: one that cannot be ended keeps none from being tried.
    let mut open = Vec::new();
    for _ in 0..20 {
        open.push(handed(&platform).await);
    }
    end_and_go(&platform, &open, &over).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_log_whose_first_task_has_not_ended_has_room_for_its_end_all_the_same() {
    let platform = small().await;
    // In WORK, and at the head of a queue.
    let mut open = vec![handed(&platform).await];
    open.push(platform.submit(&submitted("other", "1")).await);
    let mut over = Vec::new();
    for _ in 0..20 {
        over.push(ended(&platform).await);
    }
    end_and_go(&platform, &open, &over).await;
}

/// Puts what nobody can decode in place of a task's state.
pub(crate) async fn garble(platform: &Platform, task: &TaskRef) {
    let TaskRef { tenant, lane, task } = task;
    let subject = format!("inkstone.task.{tenant}.{lane}.{task}.state");
    let tasks = platform.broker.log("TASKS");
    let garbled = Bytes::from_static(b"\x7f");
    tasks.put(&subject, garbled).await.unwrap();
}

/// It ends as one that was given up, with a copy of what cannot be decoded, and then goes.
pub(crate) async fn is_given_up(platform: &Platform, task: &TaskRef) {
    let end = end_of(platform, task).await;
    let (code, message) = why(end);
    assert_eq!(code, contract::ErrorCode::Internal.to_string());
    assert!(message.contains("`state`"), "{message}");
    let name: LetterName = format!("{}.{}", task.tenant, task.task).parse().unwrap();
    let letter = platform.log.letter(&name).await.unwrap();
    let letter = letter.unwrap().unwrap().says;
    assert!(letter.subject.ends_with(".state"), "{}", letter.subject);
    assert_eq!(letter.payload, b"\x7f");
    until("the log has let go of it", async || {
        !platform.log.is_there(task.task).await.unwrap()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_that_cannot_be_read_and_that_no_worker_takes_ends_by_its_age_with_a_copy() {
    let platform = Platform::start().await;
    let kept = ("streams.task_retention", "2s");
    let event = submitted("acme", "1");
    let handed = platform.submit(&event).await;
    garble(&platform, &handed).await;
    platform.log.dispatch(&event, 0, 1).await.unwrap();
    // One that was about to be handed over, and waits as its queue's head.
    let waiting = platform.submit(&submitted("acme", "1")).await;
    garble(&platform, &waiting).await;
    // What lies behind them is held up by neither.
    let behind = platform.submit(&submitted("acme", "1")).await;
    grow_older_than(&platform, Duration::from_secs(4)).await;
    let orchestrator = platform.orchestrator(&[kept]).await;
    let (_, _, end) = tokio::join!(
        is_given_up(&platform, &handed),
        is_given_up(&platform, &waiting),
        end_of(&platform, &behind),
    );
    assert!(deadline::has_expired(&end));
    stop(orchestrator).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_that_cannot_be_read_and_whose_dispatch_is_lost_is_counted_and_ends_by_its_age() {
    let platform = Platform::start().await;
    let admin = format!("127.0.0.1:{}", nats_server::free_port().unwrap());
    let mut tasks = Vec::new();
    for _ in 0..2 {
        let task = platform.submit(&submitted("acme", "1")).await;
        garble(&platform, &task).await;
        tasks.push(task);
    }
    let settings = [
        ("streams.task_retention", "20s"),
        ("process.admin_listen", admin.as_str()),
    ];
    let orchestrator = platform.orchestrator(&settings).await;
    until("both are handed over", async || {
        platform.out().await.len() == 2
    })
    .await;
    let number = |place: &str| {
        let name = format!("inkstone_orchestrator_unreadable_tasks{{place=\"{place}\"}}");
        figure(&admin, &name)
    };
    until("they are counted in WORK", async || {
        number("work") == Some(2.0)
    })
    .await;
    let work = platform.broker.queue("WORK");
    assert_eq!(work.keep_last("inkstone.work.>", 0).await.unwrap(), 2);
    until("they are counted as lost", async || {
        number("lost") == Some(2.0)
    })
    .await;
    tokio::join!(
        is_given_up(&platform, &tasks[0]),
        is_given_up(&platform, &tasks[1]),
    );
    until("neither is left", async || number("lost") == Some(0.0)).await;
    stop(orchestrator).await;
}
