//! States that are written in place of the one that was read.

use contract::TaskId;
use contract::task::{Phase, State};
use task_log::TaskRef;

use crate::support::{Bench, bench, cancelled, scratch_log, submit_one, tenant};

fn running(worker: &str, attempt: u32) -> State {
    State {
        phase: Phase::Running.into(),
        worker: worker.to_owned(),
        attempt,
        ..State::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_many_workers_that_read_the_same_state_one_takes_the_task_up() {
    let (_server, log) = scratch_log().await;
    let task = submit_one(&log).await;
    let read = async || log.read(&tenant(), task.task).await.unwrap().unwrap();
    assert_eq!(read().await.state_sequence, 0, "there is none");
    let scheduled = State {
        phase: Phase::Scheduled.into(),
        ..State::default()
    };
    let first = log.replace_state(&task, &scheduled, 0).await.unwrap();
    assert!(first.is_some());
    assert_eq!(read().await.state_sequence, first.unwrap());
    let late = log.replace_state(&task, &running("late", 9), 0).await;
    assert_eq!(late.unwrap(), None, "it was there already");

    let states: Vec<State> = (0..20).map(|n| running(&format!("w{n}"), 1)).collect();
    let writes = states
        .iter()
        .map(|state| log.replace_state(&task, state, first.unwrap()));
    let written: Vec<Option<u64>> = futures::future::try_join_all(writes).await.unwrap();
    let stored: Vec<usize> = (0..20).filter(|&n| written[n].is_some()).collect();
    assert_eq!(stored.len(), 1, "{written:?}");
    let record = read().await;
    assert_eq!(record.state.as_ref(), Some(&states[stored[0]]));
    assert_eq!(Some(record.state_sequence), written[stored[0]]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_state_whose_answer_was_lost_is_found_when_it_is_written_again() {
    let (_server, log) = scratch_log().await;
    let task = submit_one(&log).await;
    let state = running("one", 1);
    let written = log.replace_state(&task, &state, 0).await.unwrap();
    let again = log.replace_state(&task, &state, 0).await.unwrap();
    assert_eq!(again, written);
    assert!(written.is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_state_whose_answer_was_lost_is_found_where_a_replica_lags_and_is_not_taken_for_anothers()
{
    let Bench {
        server,
        broker: _broker,
        log,
    } = bench().await;
    let task = submit_one(&log).await;
    let scheduled = State {
        phase: Phase::Scheduled.into(),
        ..State::default()
    };
    let before = log.replace_state(&task, &scheduled, 0).await.unwrap();
    let before = before.unwrap();
    let state = running("one", 1);
    let written = log.replace_state(&task, &state, before).await.unwrap();
    assert!(written.is_some());
    server
        .lag("TASKS", "inkstone.task.*.*.*.submitted")
        .unwrap();
    let again = log.replace_state(&task, &state, before).await;
    assert_eq!(again.unwrap(), written);
    let late = log.replace_state(&task, &running("late", 1), before).await;
    assert_eq!(late.unwrap(), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_state_that_meets_a_broker_which_is_away_is_an_error_and_no_refusal() {
    let (mut server, log) = scratch_log().await;
    let task = submit_one(&log).await;
    server.kill();
    let state = running("one", 1);
    assert!(log.replace_state(&task, &state, 0).await.is_err());
    server.restart().unwrap();
    let written = loop {
        match log.replace_state(&task, &state, 0).await {
            Ok(written) => break written,
            Err(_) => tokio::time::sleep(std::time::Duration::from_millis(50)).await,
        }
    };
    assert!(written.is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_leader_tells_the_last_event_whatever_its_lane_and_that_there_is_none() {
    let Bench {
        server: _server,
        broker,
        log,
    } = bench().await;
    let task = submit_one(&log).await;
    let tasks = broker.log("TASKS");
    let ask = async |name: &str| {
        let filter = format!("inkstone.task.acme.*.{}.{name}", task.task);
        tasks.last_at_leader(&filter).await.unwrap()
    };
    let found = ask("submitted").await.unwrap();
    let direct = tasks.at(&found.subject).await.unwrap().unwrap();
    assert_eq!(found.sequence, direct.sequence);
    assert_eq!(found.payload, direct.payload);
    assert!(ask("done").await.is_none());
    assert!(log.is_there(task.task).await.unwrap());
    assert!(!log.is_there(TaskId::random()).await.unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_leader_tells_what_a_replica_that_lags_has_not_heard_of() {
    let Bench {
        server,
        broker: _broker,
        log,
    } = bench().await;
    let task = submit_one(&log).await;
    let state = running("one", 1);
    log.set_state(&task, &state).await.unwrap();
    server
        .lag("TASKS", "inkstone.task.*.*.*.submitted")
        .unwrap();
    let read = log.read(&tenant(), task.task).await.unwrap();
    assert_eq!(read.unwrap().state, None, "it lags");
    let read = log.read_at_leader(&tenant(), task.task).await.unwrap();
    assert_eq!(read.unwrap().state, Some(state));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_leader_tells_that_a_task_which_cannot_be_read_has_ended() {
    let Bench {
        server,
        broker,
        log,
    } = bench().await;
    let id = TaskId::random();
    let task = TaskRef::parse("acme", "standard-image", &id.to_string()).unwrap();
    let subject = format!("inkstone.task.acme.standard-image.{id}.submitted");
    let garbled: &[u8] = b"\x7f";
    let tasks = broker.log("TASKS");
    tasks.put(&subject, garbled.into()).await.unwrap();
    let found = async || log.unreadable(&tenant(), id).await.unwrap();
    assert!(found().await.is_some());
    log.end(&task, &cancelled()).await.unwrap();
    server
        .lag("TASKS", "inkstone.task.*.*.*.submitted")
        .unwrap();
    assert!(found().await.is_none());
}
