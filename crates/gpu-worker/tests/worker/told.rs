//! What a dispatch tells of its task, and when a worker reads instead.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use contract::TaskId;
use contract::task::{Cancelled, Done, Phase, State, done};
use task_log::TaskRef;

use crate::support::{MODEL, Platform, request, stop, until};

/// Accepts a task of one picture and hands it over as an orchestrator does, but with a submission that wants two: so the pictures tell which of
/// them a worker went by.
async fn hand_over(platform: &Platform) -> TaskRef {
    let task = platform.submit_only(request("a cat", 1, 2)).await;
    let mut told = platform.record(&task).await.submitted;
    told.request.as_mut().unwrap().images = 2;
    platform.hand_over(&told).await
}

#[tokio::test]
async fn the_first_worker_that_gets_a_dispatch_goes_by_what_it_tells_and_does_not_read_the_task() {
    let platform = Platform::start().await;
    let task = hand_over(&platform).await;
    let worker = platform.worker(&[]).await;
    assert_eq!(platform.pictures(&task).await.len(), 2);
    assert_eq!(platform.record(&task).await.done.unwrap().attempt, 1);
    platform.work_is_settled().await;
    stop(worker).await;
}

#[tokio::test]
async fn a_dispatch_that_comes_again_is_decided_by_what_the_log_holds() {
    let platform = Platform::start().await;
    let task = hand_over(&platform).await;
    let (model, version) = (MODEL.parse().unwrap(), "1".parse().unwrap());
    let wait = Duration::from_secs(30);
    let work = platform.log.work_of(&model, &version, wait).await.unwrap();
    let first = work.pull(1).await.unwrap();
    first[0].give_back(Duration::ZERO).await.unwrap();
    let worker = platform.worker(&[("worker.ack_wait", "30s")]).await;
    assert_eq!(platform.pictures(&task).await.len(), 1);
    platform.work_is_settled().await;
    stop(worker).await;
}

#[tokio::test]
async fn a_task_whose_state_is_another_than_its_dispatch_tells_goes_on_from_that() {
    let platform = Platform::start().await;
    // Somebody has taken up one of them and died, and handed the other back.
    let taken_up = hand_over(&platform).await;
    let running = State {
        phase: Phase::Running.into(),
        attempt: 1,
        worker: "another".to_owned(),
        ..State::default()
    };
    platform.log.set_state(&taken_up, &running).await.unwrap();
    let given_back = hand_over(&platform).await;
    let scheduled = State {
        phase: Phase::Scheduled.into(),
        at: Some(contract::now()),
        ..State::default()
    };
    let set = platform.log.set_state(&given_back, &scheduled).await;
    set.unwrap();
    let worker = platform.worker(&[("worker.ack_wait", "2s")]).await;
    for (task, attempt) in [(&taken_up, 2), (&given_back, 1)] {
        assert_eq!(platform.pictures(task).await.len(), 1);
        assert_eq!(platform.record(task).await.done.unwrap().attempt, attempt);
    }
    platform.work_is_settled().await;
    stop(worker).await;
}

#[tokio::test]
async fn a_task_that_the_log_may_have_let_go_of_is_read_and_not_drawn_when_it_has() {
    let platform = Platform::start().await;
    let like = platform.submit_only(request("a cat", 1, 2)).await;
    let mut told = platform.record(&like).await.submitted;
    told.task_id = TaskId::random().to_string();
    let mut at = contract::now();
    at.seconds -= 2 * 3600;
    told.at = Some(at);
    platform.hand_over(&told).await;
    let worker = platform.worker(&[]).await;
    platform.work_is_settled().await;
    let letters = platform.dead_letters().await;
    let given_up: Vec<_> = letters.iter().map(|letter| &letter.task_id).collect();
    assert_eq!(given_up, [&told.task_id]);
    assert!(platform.objects("images").is_empty());
    stop(worker).await;
}

#[tokio::test]
async fn a_task_that_was_cancelled_after_its_dispatch_is_not_taken_up() {
    let platform = Platform::start().await;
    let task = hand_over(&platform).await;
    is_not_taken_up_once_it_is_cancelled(&platform, &task).await;
}

#[tokio::test]
async fn a_task_whose_dispatch_does_not_tell_that_it_had_not_ended_is_asked_for_its_end() {
    let platform = Platform::start().await;
    let like = platform.submit_only(request("a cat", 1, 2)).await;
    let told = platform.record(&like).await.submitted;
    // As an earlier version does.
    let task = platform.hand_over_lying_at(&told, 0).await;
    is_not_taken_up_once_it_is_cancelled(&platform, &task).await;
}

async fn is_not_taken_up_once_it_is_cancelled(platform: &Platform, task: &TaskRef) {
    let cancelled = Done {
        outcome: Some(done::Outcome::Cancelled(Cancelled::default())),
        ..Done::default()
    };
    platform.log.end(task, &cancelled).await.unwrap();
    let worker = platform.worker(&[]).await;
    platform.work_is_settled().await;
    let record = platform.record(task).await;
    assert_eq!((record.attempts(), record.done), (0, Some(cancelled)));
    assert!(platform.objects("images").is_empty());
    stop(worker).await;
}

/// Takes away the stream whose leader is asked for the time, as nobody of the platform does: it answers as little as one without a leader.
async fn remove_clock(platform: &Platform) {
    let url = platform.nats.url();
    let mut connection = TcpStream::connect(url.trim_start_matches("nats://")).unwrap();
    let asked = "CONNECT {\"verbose\":false}\r\n\
                 PUB $JS.API.STREAM.DELETE.DEADLINES _INBOX.test 0\r\n\r\nPING\r\n";
    connection.write_all(asked.as_bytes()).unwrap();
    let mut lines = BufReader::new(connection).lines();
    assert!(lines.any(|line| line.unwrap() == "PONG"), "it was taken");
    let clock = platform.broker.log("DEADLINES");
    until("nobody says what time it is", async || {
        clock.time().await.is_err()
    })
    .await;
}

#[tokio::test]
async fn where_nobody_says_what_time_it_is_a_dispatch_is_decided_by_what_the_log_holds() {
    let platform = Platform::start().await;
    remove_clock(&platform).await;
    let task = hand_over(&platform).await;
    let worker = platform.worker(&[]).await;
    assert_eq!(platform.pictures(&task).await.len(), 1);
    let record = platform.record(&task).await;
    assert!(record.state.unwrap().started_at.is_some());
    assert_eq!(record.done.unwrap().attempt, 1);
    platform.work_is_settled().await;
    stop(worker).await;
}

#[tokio::test]
async fn a_task_that_is_not_in_the_log_is_looked_for_again_however_often_its_dispatch_came_before()
{
    let platform = Platform::start().await;
    let like = platform.submit_only(request("a cat", 1, 2)).await;
    let mut told = platform.record(&like).await.submitted;
    told.task_id = TaskId::random().to_string();
    platform.hand_over(&told).await;
    let (model, version) = (MODEL.parse().unwrap(), "1".parse().unwrap());
    let wait = Duration::from_secs(30);
    let work = platform.log.work_of(&model, &version, wait).await.unwrap();
    for _ in 0..5 {
        let pulled = work.pull(1).await.unwrap();
        pulled[0].give_back(Duration::ZERO).await.unwrap();
    }
    let held = work.pull(1).await.unwrap();
    let worker = platform.worker(&[("worker.ack_wait", "30s")]).await;
    let begin = Instant::now();
    held[0].give_back(Duration::ZERO).await.unwrap();
    platform.work_is_settled().await;
    // Three pauses of a second lie between the looks, by the broker's timers.
    assert!(begin.elapsed() >= Duration::from_millis(2500));
    let letters = platform.dead_letters().await;
    let given_up: Vec<_> = letters.iter().map(|letter| &letter.task_id).collect();
    assert_eq!(given_up, [&told.task_id]);
    stop(worker).await;
}
