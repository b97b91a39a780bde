//! Tasks end before the log lets go of them.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, SystemTime};

use contract::task::{Done, Phase, State, Submitted, done};
use task_log::{StreamSettings, TaskRef, deadline};

use crate::support::{Platform, stop, submitted, until};

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

/// How long the oldest task has waited, as the orchestrator whose admin address this is says.
fn oldest_wait(admin: &str) -> Option<Duration> {
    let mut connection = TcpStream::connect(admin).ok()?;
    let asked = "GET /metrics HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n";
    connection.write_all(asked.as_bytes()).ok()?;
    let mut answer = String::new();
    connection.read_to_string(&mut answer).ok()?;
    let name = "inkstone_orchestrator_oldest_wait_seconds";
    let line = answer.lines().find(|line| line.starts_with(name))?;
    let value = line.trim_end().rsplit(' ').next()?;
    Some(Duration::from_secs_f64(value.parse().ok()?))
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
